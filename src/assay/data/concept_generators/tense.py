"""Past tense: a verb in the past tense, read at the verb.

Members and negatives are the two forms of one verb (walked, walks), so which verb it is tells nothing; no
frame says when. Near misses are present passives (is helped): a participle with the ending of a past form.
"""

from assay.data.concept_generators.base import bundled, paired_forms

bundled("tense", "a verb in the past (walked), not present (walks) or a present passive (is helped)", paired_forms)
