"""Template grid: the same sentence in another shape.

1. Confirm items that behave are drawn by seed and written anew: in capital or small letters, quoted, with one or
   two neutral sentences in front. The word that is read stays the same.
2. An item that misfits in a new shape is a hit: the claim is locked to its templates. That the label is kept is
   certain where a `concept_rule` says so, or where the item's word has one label throughout the data; other hits
   stay open.
3. Failures per variation are reported, and the share of the score's variance that is not between items, over the
   grid of all items and variations, the original included (two-way sums of squares).

Only these variations: other wordings are what ood templates are for.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from assay.evidence.hunting.labels import as_claimed, concept_rule
from assay.evidence.hunting.reading import nothing, reader_of
from assay.evidence.hunting.showing import fails
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS
from assay.evidence.search.minimal_edits import misfits_of, word_labels
from assay.records import Example

Change = Callable[[Example], Example]
LEADS = {"sentence in front": "It was late. ", "two sentences in front": "It was late. Nobody had said anything for a while. "}


@as_claimed
def find(hunt: Hunt) -> Found:
    """Items that misfit in another shape."""
    reader, rule = reader_of(hunt), concept_rule(hunt)
    if reader is None:
        return nothing("no texts can be read on this host")
    items = behaving(hunt)
    if not items:
        return nothing("no item of the data behaves")
    grid = {name: [change(item) for item in items] for name, change in VARIATIONS.items()}
    if rule is not None:
        grid = {name: [item if rule(item.text) == bool(item.label) else old for item, old in zip(group, items, strict=True)]
                for name, group in grid.items()}  # fmt: skip
    known = {item.text for item in hunt.data.items}
    fresh = {item.text: item for group in grid.values() for item in group if item.text not in known}
    if not fresh:
        return nothing("every item has these shapes already")
    data = hunt.kind.load(hunt.model, list(fresh.values()))
    scores = reader.at(data.tokens, data.at)
    decided = word_labels(hunt.data.items)
    found = misfits_of(hunt, reader, data, scores, "template grid",
                       lambda item: rule is not None or (item.entities[:1] or ("",))[0] in decided)  # fmt: skip
    of_data = (float(score) for score in hunt.columns["score"] if score is not None)
    known_scores = dict(zip((item.text for item in hunt.data.items), of_data, strict=False))
    read = {**known_scores, **dict(zip((item.text for item in data.items), scores, strict=True))}
    return replace(found, notes={**found.notes, **by_variation(hunt, grid, items, read)}, independent=0)


def behaving(hunt: Hunt) -> list[Example]:
    """Items that do not misfit as they are, drawn by seed, as many as the budget has grids for."""
    fine = [item for item, score in zip(hunt.data.items, hunt.columns["score"], strict=True)
            if score is not None and item.text.strip() and not fails(hunt.setup, item.label, score)]  # fmt: skip
    order = np.random.default_rng([hunt.seed, 14]).permutation(len(fine))
    return [fine[row] for row in order[: hunt.budget // len(VARIATIONS)]]


def by_variation(
    hunt: Hunt, grid: dict[str, list[Example]], items: Sequence[Example], read: dict[str, float]
) -> dict[str, object]:
    """Failures of every variation, and the share of variance that is not between items."""
    failed = {}
    for name, group in grid.items():
        tried = [item for item, old in zip(group, items, strict=True) if item.text != old.text and item.text in read]
        failed[name] = [sum(fails(hunt.setup, item.label, read[item.text]) for item in tried), len(tried)]
    rows = [[read.get(item.text) for item in group] for group in (items, *grid.values())]
    whole = [column for column in zip(*rows, strict=True) if None not in column]
    return {"failures": failed, "variance_by_variation": variance_share(np.array(whole, dtype=float).T)}


def variance_share(table: np.ndarray) -> float | None:
    """Of a (variations, items) table: the sum of squares that is not between items, divided by all of it."""
    total = float(((table - table.mean()) ** 2).sum()) if table.size else 0.0
    if total == 0:
        return None
    return 1 - table.shape[0] * float(((table.mean(0) - table.mean()) ** 2).sum()) / total


# the variations ----------------------------------------------------------------------------------


def behind(lead: str) -> Change:
    """The text after something else."""
    return lambda item: replace(item, text=lead + item.text, position=_at(item) + len(lead))


def letters(change: Callable[[str], str]) -> Change:
    """The text in other letters, when that keeps its length."""

    def changed(item: Example) -> Example:
        text = change(item.text)
        return replace(item, text=text, position=_at(item)) if len(text) == len(item.text) else item

    return changed


def _at(item: Example) -> int:
    """The character that is read: the last one, where the example names none."""
    return len(item.text.rstrip()) - 1 if item.position is None else item.position


VARIATIONS: dict[str, Change] = {
    "capitals": letters(str.upper), "small letters": letters(str.lower), "quoted": behind('"'),
    **{name: behind(lead) for name, lead in LEADS.items()},
}  # fmt: skip


register_search(SearchMethod("template grid", KINDS, find, budget=60))
