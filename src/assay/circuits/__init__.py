"""Circuits: which parts of a model carry a behaviour."""
