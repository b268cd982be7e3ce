"""Ordinary texts on which an edit should change nothing: what damage is measured on, unless a claim brings its own.

They are short statements about unrelated things, each a text of its own, so that one text is one observation.
A claim about a domain these texts belong to, or a model of another language, should bring its own (`neutral`
in the options of its settings).
"""

from assay.data.ordinary import TEXTS

__all__ = ["TEXTS"]
