"""The planted words, by the names that the tests use."""

from assay.testing.word_latents import READERS, WIDTH, WORDS
from assay.testing.word_latents import word_corpus as corpus
from assay.testing.word_latents import word_dictionary as dictionary
from assay.testing.word_latents import word_model as model

__all__ = ["READERS", "WIDTH", "WORDS", "corpus", "dictionary", "model"]
