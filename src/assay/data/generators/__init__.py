"""The bundled tasks: importing this package registers them."""

from assay.data.generators import capitals, greater_than, induction, ioi, language, opinion, pronouns, sva

__all__ = ["capitals", "greater_than", "induction", "ioi", "language", "opinion", "pronouns", "sva"]
