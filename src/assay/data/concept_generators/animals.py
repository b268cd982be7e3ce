"""Animals: a noun that names an animal, read at the noun.

Negatives are artefacts (chair, hammer). Near misses live or look alive without being animals: plants,
puppets, robots. People are left out, since whether they are animals is a matter of words.
"""

from assay.data.concept_generators.base import bundled, plain_words

bundled("animals", "an animal (dog), not a thing (chair) or a plant or puppet (oak), at the noun", plain_words)
