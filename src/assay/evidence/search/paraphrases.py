"""Paraphrases: texts that behave are reworded by a language model, and read again.

1. Confirm texts that do not misfit as they are, drawn by seed. The endpoint of `proposer.py` is asked to say each in other
   words, in another order or style, or in another language, without changing what it says; the word that is read comes last.
2. Every rewording is run on the model under study and read at its last token. What misfits there is shown.
3. That the label is kept is the opinion of whoever reworded it: a hit is *open*, unless the claim's `concept_rule` says so.

Templates of another style are what the split ood is for; this asks whether other wordings of the same texts behave.
Nothing is asked unless an endpoint is named. Texts leave this machine when it is elsewhere.
"""

import json
import re
from typing import Any

import numpy as np

from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import nothing, reader_of
from assay.evidence.hunting.showing import fails, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN
from assay.evidence.search.proposer import LONGEST_TEXT, endpoint_of, run
from assay.records import Example

ASK = """Say each of these texts in other words: another order, another style, or another language. What it says must stay
the same, and it must end with the word that it ends with now, or with the translation of that word.

{texts}

Answer with JSON only: {{"texts": [{{"number": 1, "text": "..."}}, ...]}}"""


@as_claimed
def find(hunt: Hunt) -> Found:
    """Rewordings that misfit when they are run."""
    reader, endpoint = reader_of(hunt), endpoint_of(hunt)
    if reader is None or endpoint is None or hunt.budget == 0:
        return nothing("no endpoint is named" if reader else "no texts can be read on this host")
    chosen = drawn(hunt)
    if not chosen:
        return nothing("no item of the data behaves")
    texts = "\n".join(f"{number + 1}. {json.dumps(up_to_word(item))}" for number, item in enumerate(chosen))
    prompt = ASK.format(texts=texts)
    log: dict[str, Any] = {"endpoint": endpoint.address, "model": endpoint.model, "prompt": prompt}
    try:
        reply = endpoint.ask(prompt)
    except ConnectionError as problem:
        return Found(0, 0, complete=False, notes={**log, "failed": str(problem)})
    reworded = rewordings_in(reply, chosen)
    hits, tried = run(hunt, reader, reworded)
    kept, notes = show(hunt, reader, hits[: min(hunt.keep, SHOWN)], "paraphrases")
    return Found(tried, len(hits), tuple(kept), reader.passes, notes={**notes, **log, "reply": reply[:LONGEST_TEXT],
                                                                      "reworded": len(reworded)})  # fmt: skip


def drawn(hunt: Hunt) -> list[Example]:
    """Items that do not misfit as they are, as many as the budget allows."""
    fine = [item for item, score in zip(hunt.data.items, hunt.columns["score"], strict=True)
            if score is not None and item.text.strip() and not fails(hunt.setup, item.label, score)]  # fmt: skip
    return [fine[row] for row in np.random.default_rng([hunt.seed, 18]).permutation(len(fine))[: hunt.budget]]


def up_to_word(item: Example) -> str:
    """The text up to the end of the word that is read."""
    if item.position is None:
        return item.text.rstrip()
    rest = re.match(r"\w*", item.text[item.position :])
    return item.text[: item.position + (rest.end() if rest else 0)] or item.text


def rewordings_in(reply: str, items: list[Example]) -> list[tuple[str, int]]:
    """(text, label) of a reply, label of the item that was reworded; copies and whatever is not as asked for are left out."""
    body = re.search(r"\{.*\}", reply, re.S)
    try:
        found = json.loads(body[0]) if body else {}
    except ValueError:
        return []
    given = found.get("texts") if isinstance(found, dict) else None
    known = {up_to_word(item) for item in items}
    good: dict[str, int] = {}
    for each in given if isinstance(given, list) else []:
        number, text = (each.get("number"), each.get("text")) if isinstance(each, dict) else (None, None)
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= len(items) or not isinstance(text, str):
            continue
        if 0 < len(text.strip()) <= LONGEST_TEXT and text.strip() not in known:
            good[text.strip()] = items[number - 1].label
    return list(good.items())


register_search(SearchMethod("paraphrases", KINDS, find, budget=24))
