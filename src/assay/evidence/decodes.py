"""*decodes*: a property can be read at this site.

1. A claim names a whole site and a probe (linear unless it says otherwise).
2. On tune: regularisation chosen in folds that keep words together, the probe, its thresholds from scores of
   words it has not seen; control-task probes with random labels per word; the same probe fitted again on
   untrained twins; a reading of the words alone; probes of other capacity.
3. On confirm and ood, whose words and templates are others: does the probe rank members above non-members,
   better than all of these?
4. Reported besides: difference of means and a small MLP, the probe fitted on half of the words, and the bits a label costs
   (online code length).

Readable is not used: that the model relies on the property is another claim (*uses*). Words must be held out:
a probe on an untrained model reads any property of words that it has met (Hewitt & Liang 2019).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from assay.data.prepare_concept import PreparedConcept
from assay.errors import SiteError, UsageError, bad_argument
from assay.evidence.hosts import Host, as_host
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.lexical import surface_scorer
from assay.evidence.probes import (
    PROBES,
    FitData,
    check_labels,
    choose_c,
    half_of_units,
    held_out,
    online_bits,
)
from assay.evidence.scored import ScoreInstrument, Scorer, ScoreSetup, measure_with, thresholds
from assay.evidence.second_corpus import second_corpus
from assay.model.images import ImageModel
from assay.probe.control import control_labels, unit_of
from assay.records import Example, GatePlan, Plan
from assay.sites import parse_site

SCHEMES = ("all", "blocks", "permuted")
CONTROL_TASKS = 5
NO_DATA = FitData(torch.zeros(0, 0), (), ())


@dataclass(frozen=True, eq=False)
class DecodeSetup(ScoreSetup):
    """Also what was fitted on tune: its data, the regularisation, and the scores of units held out.

    `control`: draw -> probe of the control task; `capacity`: probe -> score.
    """

    tune: FitData = NO_DATA
    c: float = 1.0
    held_out: Mapping[str, float] = field(default_factory=dict)
    control: Mapping[str, Scorer] = field(default_factory=dict)
    capacity: Mapping[str, Scorer] = field(default_factory=dict)


class DecodeInstrument(ScoreInstrument):
    """Scores of one split; on tune those of probes that have not seen the unit."""

    setup: DecodeSetup

    def score(self) -> list[float | None]:
        """The claimed score."""
        known = self.setup.held_out
        if known and all(example.text in known for example in self.data.examples):
            return [known[example.text] for example in self.data.examples]
        return super().score()

    def units(self) -> list[str]:
        """What a probe could memorise, per example."""
        return [unit_of(example) for example in self.data.examples]

    def control_label(self, draw: int) -> list[float | None]:
        """Labels of a control task."""
        return [float(label) for label in control_labels(self.units(), draw, self.setup.seed)]

    def code(self) -> Columns:
        """Bits that each label costs under the online code, and at the rate of members on tune."""
        tune = self.setup.tune
        rate = sum(tune.labels) / len(tune.labels)
        bits = online_bits(tune, FitData(self.acts(), self.data.labels, self.units()), self.setup.c)
        return {"bits": list(bits), "bits.rate": [-math.log2(rate if label else 1 - rate) for label in self.data.labels]}


class Decodes:
    """The kind *decodes*, as the trial uses it."""

    name = "decodes"
    score = "score"

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """A whole site, or {"site", "probe"}. Raises SiteError or UsageError for anything else."""
        asked = dict(given) if isinstance(given, Mapping) else {"site": _single(given)}
        if unknown := set(asked) - {"site", "sites", "probe"}:
            raise bad_argument("subject", ", ".join(sorted(unknown)), "site, probe")
        probe = asked.get("probe", "linear")
        kind = probe.get("type") if isinstance(probe, Mapping) else probe
        if kind not in PROBES:
            raise bad_argument("probe", kind, ", ".join(PROBES))
        site = whole_site(asked.get("site", asked.get("sites")))
        if isinstance(model, ImageModel) and (found := model.resolve(site))[1] is not None:
            raise SiteError(f"site: got {site}; allowed: a whole site. Did you mean {found[0]}?")
        return {"sites": [site], "probe": {"type": kind}}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        adverb = {"tends": "tends to read", "usually": "usually reads", "always": "always reads"}[quantifier]
        return f"a {subject['probe']['type']} probe at {subject['sites'][0]} {adverb} {data} of words it has not seen"

    def load(self, model: Any, items: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read."""
        return as_host(model).load(items)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedConcept
    ) -> tuple[DecodeSetup, dict[str, Any]]:
        """The probe and everything it must beat, from tune."""
        host, site, probe = as_host(model), subject["sites"][0], subject["probe"]["type"]
        seed = plan.settings["seed"]
        check_labels(tune.labels)
        data = FitData(host.read(site, tune), tune.labels, [unit_of(example) for example in tune.examples])
        c = choose_c(data, seed)
        fair = held_out(data, probe, c, seed)
        half, strict = thresholds(fair, tune.labels)
        twins = refitted_twins(host, site, tune, probe, seed)
        setup = DecodeSetup(
            site, PROBES[probe](data, c, seed), half, strict,
            surface_scorer(host, [item.text for item in tune.examples], tune.labels), untrained=twins, seed=seed, tune=data,
            c=c, held_out=dict(zip([item.text for item in tune.examples], fair, strict=True)),
            control=control_probes(data, probe, c, seed),
            capacity={**{name: PROBES[name](data, c, seed) for name in ("mean", "mlp")},
                      "half": PROBES[probe](half_of_units(data, seed), c, seed)},
            second=second_corpus(host, plan.settings["options"], tune, seed),
        )  # fmt: skip
        record = {"half": half, "strict": strict, "c": c, "units": len(set(data.units)), "untrained": sorted(twins),
                  "control": sorted(setup.control)}  # fmt: skip
        return setup, record | setup.asked()

    def measure(
        self, model: Any, data: PreparedConcept, setup: DecodeSetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need."""
        return measure_with(DecodeInstrument(as_host(model), data, setup), gates, report)


def refitted_twins(
    host: Host, site: str, tune: PreparedConcept, probe: str, seed: int
) -> dict[str, tuple[Host, Scorer]]:
    """scheme -> (twin, the same kind of probe chosen and fitted on the twin's own activations)."""
    found: dict[str, tuple[Host, Scorer]] = {}
    for number, scheme in enumerate(SCHEMES):
        twin = host.untrained(scheme, seed + number)
        data = FitData(twin.read(site, tune), tune.labels, [unit_of(example) for example in tune.examples])
        found[scheme] = (twin, PROBES[probe](data, choose_c(data, seed) if probe == "linear" else 1.0, seed))
    return found


def control_probes(data: FitData, probe: str, c: float, seed: int) -> dict[str, Scorer]:
    """draw -> the same probe fitted on random labels per unit; draws that give all units one label are left out."""
    made = {draw: control_labels(data.units, draw, seed).tolist() for draw in range(CONTROL_TASKS)}
    usable = {str(draw): labels for draw, labels in made.items() if len(set(labels)) == 2}
    return {draw: PROBES[probe](data.relabelled(labels), c, seed) for draw, labels in usable.items()}


def whole_site(given: Any) -> str:
    """A whole site by name. Raises SiteError for one unit of it."""
    site = parse_site(str(_single(given)))
    if site.index is not None:
        raise SiteError(f"site: got {site}; allowed: a whole site. Did you mean {site.whole}?")
    return str(site)


def _single(given: Any) -> Any:
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != 1:
            raise UsageError(f"subject: got {len(given)} sites; allowed: one whole site, such as resid_post.6.")
        return given[0]
    return given


KINDS.add("decodes", Decodes())
