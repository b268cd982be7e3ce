"""`polysemy`: how many unrelated concepts the contexts of mapped units hold, against contexts shuffled among units.

Units are drawn at random among those of a set that have enough contexts; their contexts are those the map kept. The method, and
what it cannot show, are in `assay.features.polysemy`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from assay.app.arguments import integer, string
from assay.app.blocks import Bar, bars, column, href, table
from assay.app.found import set_name
from assay.app.results import keep_result
from assay.app.sets import name_of, short
from assay.app.verbs import Report, Result, verb
from assay.errors import TaskError
from assay.explain.records import FIRING
from assay.records import plain
from assay.report.cells import visible
from assay.statistics import clopper_pearson

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.mapped import Mapped
    from assay.atlas.mapped_records import FeatureRecord, SetRecord
    from assay.features.polysemy import Polysemy, UnitTexts

LABELS = ("several concepts", "one concept", "one token", "no concept found")
TRIED = 20  # units looked at for each that is wanted
FEWEST_UNITS = 4


@verb("polysemy", "read", "How many unrelated concepts do units of a mapped set respond to? Neurons often have several.",
      long=True, set=set_name(),
      units=integer("Units, drawn at random among those with enough contexts.", 40, FEWEST_UNITS, 400),
      encoder=string("What makes contexts alike: minilm (meaning) or tfidf (wording only).", "minilm", ("minilm", "tfidf")),
      seed=integer("Of the draw.", 0, 0, 1 << 31))  # fmt: skip
def polysemy(workspace: "Workspace", arguments: Mapping[str, Any], report: Report) -> Result:
    from assay.features.polysemy import polysemy as measure
    from assay.features.sentences import encoder_of

    mapped = workspace.mapped
    about = mapped.set(arguments["set"])
    units = _drawn(mapped, about, arguments["units"], arguments["seed"], report)
    report("comparing contexts", 0, len(units))
    encoder = encoder_of(arguments["encoder"])
    done = iter(range(1, len(units) + 1))
    found = measure(units, encoder, progress=lambda _: report("comparing contexts", next(done), len(units)))
    record = {"set": about.id, "encoder": encoder.record, "units": [plain(one) for one in found]}
    given = {**arguments, "set": about.id}
    return keep_result(workspace.atlas, "polysemy", given, about.model_digest, name_of(about),
                       {"record": record, "blocks": polysemy_blocks(about, found)})  # fmt: skip


def _drawn(mapped: "Mapped", about: "SetRecord", n: int, seed: int, report: Report) -> "list[UnitTexts]":
    """Units with enough contexts, in random order. Raises TaskError for too few."""
    from assay.features.polysemy import FEWEST

    units: list[UnitTexts] = []
    for row in np.random.default_rng([seed, 34]).permutation(about.features)[: n * TRIED].tolist():
        unit = texts_of(mapped.page(about.id, row).record)
        if len(unit.texts) >= FEWEST:
            units.append(unit)
            report("reading contexts", len(units), n)
        if len(units) == n:
            break
    if len(units) < FEWEST_UNITS:
        raise TaskError(f"set {about.id}: {len(units)} units with {FEWEST} different contexts; {FEWEST_UNITS} are needed at"
                        " least. Map more tokens.")  # fmt: skip
    return units


def texts_of(record: "FeatureRecord") -> "UnitTexts":
    """Different texts in which a unit is on, highest value first, and the token it was on at in each."""
    from assay.features.polysemy import UnitTexts

    windows = sorted((each for each in record.contexts if each.why in FIRING), key=lambda window: -window.value)
    different = {window.text: window for window in reversed(windows)}
    kept = sorted(different.values(), key=lambda window: -window.value)
    return UnitTexts(record.name, [window.text for window in kept], [window.pieces[window.at] for window in kept])


def polysemy_blocks(about: "SetRecord", found: "Sequence[Polysemy]") -> list[Any]:
    """Shares of units by how many concepts they have, and the units."""
    counts, n = Counter(one.label for one in found), len(found)
    items: list[Bar] = []
    for label in LABELS:
        low, high = clopper_pearson(counts[label], n)
        items.append({"label": label, "value": counts[label] / n, "low": low, "high": high})
    rows = [{"unit": {"value": short(one.unit), "href": href("feature", set=about.id, feature=one.unit)},
             "concepts": {"value": one.concepts, "low": one.low, "high": one.high}, "label": one.label,
             "token": "" if one.token is None else f"{visible(one.token)} ({one.token_share:.0%})",
             "about": "; ".join(" ".join(concept.words) for concept in one.found) or "–", "p": one.p, "n": one.n}
            for one in sorted(found, key=lambda one: (-one.concepts, one.p))]  # fmt: skip
    columns = [column("unit", "unit", "link"), column("concepts", "concepts", "interval"), column("label", "seems to have"),
               column("about", "words that tell them apart"), column("token", "most frequent token", help="token"),
               column("p", "random sets as varied", "number", "p"), column("n", "contexts", "number", "context")]  # fmt: skip
    return [
        bars("shares", items, "share of units", title=f"How many concepts: {name_of(about)}", help="polysemantic",
             width="full"),
        table("units", columns, rows, title="Units, most concepts first", note="About the contexts that the map kept: rare"
              " meanings are not among them, and what the model uses a unit for is not shown by its contexts."),
    ]  # fmt: skip
