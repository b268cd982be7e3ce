"""Plurals: a noun in the plural, read at the noun.

Members and negatives are the two forms of one noun (dogs, dog), so which noun it is tells nothing. Near misses
are singular nouns that end in s (bus). Nothing in a frame agrees with the noun. Irregular plurals are in all
splits and prevail in ood.
"""

from assay.data.concept_generators.base import bundled, paired_forms

bundled("plurals", "a plural noun (books), not a singular (book) or one that ends in s (bus)", paired_forms)
