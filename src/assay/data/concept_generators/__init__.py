"""The bundled concepts: importing this package registers them."""

from assay.data.concept_generators import animals, people, plurals, tense

__all__ = ["animals", "people", "plurals", "tense"]
