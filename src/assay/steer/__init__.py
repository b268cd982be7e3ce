"""Steering and repair: directions, doses, side effects; changed weights and what else they changed."""
