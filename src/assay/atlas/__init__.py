"""One directory that holds what is known about a model."""
