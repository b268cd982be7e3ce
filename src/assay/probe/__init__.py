"""Probing: where in a model is a property readable, and is that better than chance or words alone."""
