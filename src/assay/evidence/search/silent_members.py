"""Silent members: ordinary texts that have the concept by the claim's rule, and on which the score is silent.

1. Texts are drawn from the corpus by seed and cut after the first token with which the claim's rule says that the
   concept is there; they are read at that token.
2. A score at or below the threshold that one in twenty non-members passes is a silent member; those furthest
   below are run again alone.

Silent members among the claim's own items are found by *misfits*; without a rule a corpus has no labels.
"""

import numpy as np

from assay.evidence.hunting.labels import Rule, as_claimed, concept_rule
from assay.evidence.hunting.reading import Reader, nothing, reader_of
from assay.evidence.hunting.showing import Candidate, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN


@as_claimed
def find(hunt: Hunt) -> Found:
    """Members by the rule that stay silent."""
    reader, rule = reader_of(hunt), concept_rule(hunt)
    if reader is None or rule is None or not hunt.corpus:
        return nothing("a corpus and a rule for the concept are needed")
    prompts: list[list[int]] = []
    for number in np.random.default_rng([hunt.seed, 12]).permutation(len(hunt.corpus)):
        text = hunt.corpus[int(number)]
        cut = until_member(reader, text, rule) if text.strip() and rule(text) else None
        if cut is not None and cut not in prompts:
            prompts.append(cut)
        if len(prompts) >= hunt.budget:
            break
    if not prompts:
        return nothing("no text of the corpus has the concept by its rule")
    scores = reader.at(prompts, [len(ids) - 1 for ids in prompts])
    silent = sorted((score, number) for number, score in enumerate(scores) if score <= hunt.setup.strict)
    candidates = [Candidate(reader.text(prompts[n]), tuple(prompts[n]), len(prompts[n]) - 1, 1, made=False)
                  for _, n in silent[: min(hunt.keep, SHOWN)]]  # fmt: skip
    kept, notes = show(hunt, reader, candidates, "silent members")
    return Found(len(prompts), len(silent), tuple(kept), reader.passes, notes=notes, independent=len(prompts))


def until_member(reader: Reader, text: str, rule: Rule) -> list[int] | None:
    """The tokens of a text up to the first with which the rule says so; None when that is too far on."""
    (ids,) = reader.tokens([text])
    return next((ids[:end] for end in range(reader.first + 1, len(ids) + 1) if rule(reader.text(ids[:end]))), None)


register_search(SearchMethod("silent members", KINDS, find, budget=64))
