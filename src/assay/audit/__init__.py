"""Audits: does a model hide something? A fixed budget, and hypotheses that are written down before they are tested."""
