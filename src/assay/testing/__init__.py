"""Models and worlds whose truth is known because it was written in by hand, and public check suites."""

from assay.testing.induction import WORDS, planted_induction, word_tokenizer
from assay.testing.worlds import World, planted_world

__all__ = ["WORDS", "World", "planted_induction", "planted_world", "word_tokenizer"]
