"""Evasion: exchange tokens of a text that a monitor finds until it does not.

1. Start from confirm members on which the monitor fires, drawn by seed. `gradient_swaps.py` climbs here with the score's sign
   turned round: the exchanges that lower the score most to first order are run, and the best that was run is kept.
2. The token that is read and the words of the example stay; exchanges bring in only tokens that occur in texts of the data
   without what is watched for, and the new text must be read as the same tokens again.
3. A text on which the monitor is silent is a hit. It is *verified* when the claim's `concept_rule` says that what is watched
   for is still there and it is as fluent as the confirm texts; else *open*: what went may have been what was to be found.
4. The notes say how many texts were attacked and how many got past: the success rate at this budget.

An attacker with more tries, or with other means than tokens, gets past more often.
"""

from dataclasses import replace

from assay.evidence.hunting.labels import as_claimed, concept_rule, token_sets
from assay.evidence.hunting.reading import nothing, reader_of
from assay.evidence.hunting.showing import Candidate, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import SHOWN
from assay.evidence.search.gradient_swaps import RUN, climb, starts


@as_claimed
def find(hunt: Hunt) -> Found:
    """Members on which the monitor falls silent after a few exchanges."""
    turned = turned_round(hunt)
    reader, attacker = reader_of(hunt), reader_of(turned)
    if reader is None or attacker is None:
        return nothing("no texts can be read on this host")
    special = set(getattr(reader.model.tokenizer, "all_special_ids", ()))
    vocabulary, rule = sorted(token_sets(hunt)[1] - special), concept_rule(hunt)
    hits: list[Candidate] = []
    attacked = tried = 0
    for start in starts(turned, attacker):
        if attacker.passes + RUN + 1 > hunt.budget or not vocabulary:
            break
        attacked += 1
        climbed, n = climb(turned, attacker, start, vocabulary)
        tried += n
        if climbed.score > turned.setup.half:
            text = reader.text(climbed.ids)
            hits.append(Candidate(text, climbed.ids, climbed.at, 1, start.item.template, rule is not None and rule(text)))
    kept, notes = show(hunt, reader, hits[: min(hunt.keep, SHOWN)], "evasion")
    return Found(tried, len(hits), tuple(kept), attacker.passes + reader.passes,
                 notes={**notes, "attacked": attacked, "got_past": len(hits)})  # fmt: skip


def turned_round(hunt: Hunt) -> Hunt:
    """The same hunt for a score of the opposite sign: its members are the benign texts, and it fires where the monitor is
    silent."""
    setup, items = hunt.setup, [replace(item, label=1 - item.label) for item in hunt.data.items]
    turned = replace(setup, score=lambda acts: -setup.score(acts), half=-setup.half, strict=-setup.strict)
    columns = {**hunt.columns, "score": [None if value is None else -value for value in hunt.columns["score"]]}
    return replace(hunt, setup=turned, data=replace(hunt.data, examples=items), columns=columns)


register_search(SearchMethod("evasion", ("detects",), find, budget=60))
