"""People: a person's name, read at the name.

Negatives are names of places (Paris). Near misses are firms named after people (Disney, Toyota). All
of them begin with a capital letter and stand where either could.
"""

from assay.data.concept_generators.base import bundled, plain_words

bundled("people", "a person's name (Mary), not a place (Paris) or a firm named after people (Disney)", plain_words)
