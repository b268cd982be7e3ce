"""Proposals: a language model behind an OpenAI-compatible endpoint thinks of hard cases.

1. It is asked for texts that fit the words of the concept but not its meaning, and the other way round. Endpoint
   and model are named by the claim's options `proposer_url` and `proposer_model`, or by the environment
   variables ASSAY_PROPOSER_URL, ASSAY_PROPOSER_MODEL and ASSAY_PROPOSER_KEY; without them nothing is asked.
2. It sees examples of the tune kind only: the claim's sentence and texts it may already know. It never sees a score.
3. Every proposal is run on the model under study. What misfits is shown; the label is the proposer's opinion,
   so a hit is *open*, unless the claim's `concept_rule` gives the same label.
4. Prompt and reply are kept in the notes.

Text by a language model is never evidence. A proposer that explains and judges can deceive; this one only proposes.
"""

import json
import os
import re
from typing import Any

from assay.evidence.endpoint import Endpoint
from assay.evidence.hunting.labels import as_claimed, concept_rule
from assay.evidence.hunting.reading import LONGEST, Reader, nothing, reader_of
from assay.evidence.hunting.showing import Candidate, fails, show
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS, SHOWN

LONGEST_TEXT = 2000
ASK = """A feature of a language model is claimed to stand for a concept: {statement}
Write {n} short texts that could break the claim. Half of them should look like the concept in their words but not
have it in their meaning; the other half should have it in unusual words or languages. Each text must end at the
word where it is decided whether the concept is there.
Answer with JSON only: {{"texts": [{{"text": "...", "member": true}}, ...]}}"""


def endpoint_of(hunt: Hunt) -> Endpoint | None:
    """The endpoint of the claim's options, else of the environment; None when none is named."""
    options = hunt.plan.settings.get("options", {})
    url = options.get("proposer_url") or os.environ.get("ASSAY_PROPOSER_URL", "")
    model = options.get("proposer_model") or os.environ.get("ASSAY_PROPOSER_MODEL", "")
    return Endpoint(url, model, os.environ.get("ASSAY_PROPOSER_KEY", "")) if url and model else None


@as_claimed
def find(hunt: Hunt) -> Found:
    """Proposals that misfit when they are run."""
    reader, endpoint = reader_of(hunt), endpoint_of(hunt)
    if reader is None or endpoint is None or hunt.budget == 0:
        return nothing("no endpoint is named" if reader else "no texts can be read on this host")
    prompt = ASK.format(statement=hunt.claim.statement, n=hunt.budget)
    log: dict[str, Any] = {"endpoint": endpoint.address, "model": endpoint.model, "prompt": prompt}
    try:
        reply = endpoint.ask(prompt)
    except ConnectionError as problem:
        return Found(0, 0, complete=False, notes={**log, "failed": str(problem)})
    proposals = proposals_in(reply)[: hunt.budget]
    hits, tried = run(hunt, reader, proposals)
    kept, notes = show(hunt, reader, hits[: min(hunt.keep, SHOWN)], "proposals")
    return Found(tried, len(hits), tuple(kept), reader.passes, notes={**notes, **log, "reply": reply[:LONGEST_TEXT],
                                                                      "proposed": len(proposals)})  # fmt: skip


def proposals_in(reply: str) -> list[tuple[str, int]]:
    """(text, label) of a reply; whatever in it is not as asked for is left out."""
    body = re.search(r"\{.*\}", reply, re.S)
    try:
        found = json.loads(body[0]) if body else {}
    except ValueError:
        return []
    items = found.get("texts") if isinstance(found, dict) else None
    good = [(each["text"], int(each["member"])) for each in items if isinstance(each, dict)
            and isinstance(each.get("text"), str) and isinstance(each.get("member"), bool)
            and 0 < len(each["text"].strip()) <= LONGEST_TEXT] if isinstance(items, list) else []  # fmt: skip
    return list(dict(good).items())


def run(hunt: Hunt, reader: Reader, proposals: list[tuple[str, int]]) -> tuple[list[Candidate], int]:
    """Proposals that misfit at their last token, and how many were run."""
    rule = concept_rule(hunt)
    fit = [(text.rstrip(), label, ids) for (text, label) in proposals
           if len(ids := reader.model.tokens([text.rstrip()])[0]) <= LONGEST]  # fmt: skip
    if not fit:
        return [], 0
    scores = reader.at([ids for _, _, ids in fit], [len(ids) - 1 for _, _, ids in fit])
    hits = []
    for (text, label, ids), score in zip(fit, scores, strict=True):
        if fails(hunt.setup, label, score):
            certain = rule is not None and rule(text) == bool(label)
            said = "" if certain else "so the proposer says"
            hits.append(Candidate(text, tuple(ids), len(ids) - 1, label, "", certain, said=said))
    return hits, len(fit)


register_search(SearchMethod("proposals", KINDS, find, budget=24))
