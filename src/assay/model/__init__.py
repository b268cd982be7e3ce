"""The engine: the only part of Assay that knows `transformers` and hooks."""
