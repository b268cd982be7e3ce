"""What a probe run returns: numbers of every site, of every baseline, and what they do and do not show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from assay.data.concept_flags import Flag
from assay.probe.agreement import Agreement
from assay.probe.calibration import Bin
from assay.probe.scores import Estimate
from assay.records import plain

BASELINES = ("majority", "length_punctuation", "bag_of_words", "sentence_embedding", "embedding_layer", "untrained", "shuffled",
             "control_task")  # fmt: skip
MOST_ROWS = 50  # of a flag, in the JSON
NOT_SHOWN = (
    "That the model uses what can be read there: that is another claim (uses).",
    "That it is stored in this form, or only there: neighbouring layers usually read as well.",
    "Anything about texts of another kind than these.",
)


@dataclass(frozen=True)
class SiteScore:
    """A probe at one site and position. `tune`: by probes that had not seen the row's group; `confirm` and `ood`: by the one
    probe fitted on discover and tune. `near`: confirm, members against near misses alone, None where there are none. `margin`:
    confirm minus the best baseline, on the same rows."""

    site: str
    position: str
    C: float | None
    tune: Estimate
    confirm: Estimate
    near: Estimate | None
    ood: Estimate | None
    accuracy: Estimate
    margin: Estimate

    def json(self) -> dict[str, Any]:
        """With the keys scripts rely on: the interval is that of confirm."""
        return {"site": self.site, "auroc": self.confirm.value, "low": self.confirm.low, "high": self.confirm.high,
                "position": self.position, "C": self.C, "tune": self.tune.json(),
                "near": None if self.near is None else self.near.json(),
                "ood": None if self.ood is None else self.ood.json(), "accuracy": self.accuracy.json(),
                "margin": self.margin.json()}  # fmt: skip


@dataclass(frozen=True)
class BaselineScore:
    """What something simpler reaches on the same rows. All None where it was not measured; `note` says why, or what it is."""

    name: str
    tune: Estimate | None
    confirm: Estimate | None
    near: Estimate | None
    ood: Estimate | None
    accuracy: Estimate | None
    note: str = ""

    def json(self) -> dict[str, Any]:
        """As plain values."""
        parts = {name: getattr(self, name) for name in ("tune", "confirm", "near", "ood", "accuracy")}
        return {"name": self.name, "note": self.note, **{name: None if x is None else x.json() for name, x in parts.items()}}


@dataclass(frozen=True)
class Calibration:
    """Probabilities by a curve fitted on held-out tune scores, checked on confirm. `brier_rate`: of always saying the share of
    members. `abstention`: conformal sets at level `alpha`: coverage per label, share answered, accuracy of the answers."""

    bins: tuple[Bin, ...]
    ece: float
    brier: float
    brier_rate: float
    alpha: float
    abstention: Mapping[str, float | None]


@dataclass(frozen=True)
class PathPoint:
    """One penalty at the chosen site: log loss in nats and AUROC of tune rows by fits that had not seen their groups."""

    C: float
    log_loss: float
    auroc: float


@dataclass(frozen=True, eq=False)
class Reading:
    """The fitted probe: `direction` (d,) in activation space towards label 1, None for probes that have none."""

    site: str
    position: str
    probe: str
    direction: NDArray[Any] | None
    intercept: float | None


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """A whole run. `site`: the sites asked for; `best`: the one chosen on tune; `scores`: every site and position;
    `over_words`: AUROC of the chosen probe on confirm minus that of `bag_of_words`; `path`: every penalty that was tried at the
    chosen site; `agreement`: None for probes without a direction."""

    model: str
    concept: str
    site: str
    probe: str
    best: str
    position: str
    scores: tuple[SiteScore, ...]
    baselines: tuple[BaselineScore, ...]
    best_baseline: str
    over_words: Estimate
    optimism: Estimate
    calibration: Calibration
    selectivity: float | None
    code_length: Mapping[str, Any]
    scarcity: Sequence[Mapping[str, Any]]
    flags: tuple[Flag, ...]
    rows: Mapping[str, Mapping[str, Any]]
    reading: Reading
    notes: tuple[str, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    path: tuple[PathPoint, ...] = ()
    agreement: Agreement | None = None

    @property
    def chosen(self) -> SiteScore:
        """The score of the chosen site and position."""
        return next(score for score in self.scores if (score.site, score.position) == (self.best, self.position))

    def baseline(self, name: str) -> BaselineScore:
        """One baseline by name."""
        return next(each for each in self.baselines if each.name == name)

    def json(self) -> dict[str, Any]:
        """The machine-readable twin: `baselines` are AUROC on confirm, `baseline_scores` all that was measured."""
        return {
            "model": self.model, "concept": self.concept, "site": self.site, "probe": self.probe, "best": self.best,
            "position": self.position, "scores": [score.json() for score in self.scores],
            "baselines": {each.name: None if each.confirm is None else each.confirm.value for each in self.baselines},
            "baseline_scores": [each.json() for each in self.baselines], "best_baseline": self.best_baseline,
            "margin": self.chosen.margin.json(), "over_words": self.over_words.json(),
            "optimism": self.optimism.json(), "calibration": plain(self.calibration),
            "selectivity": self.selectivity, "code_length": plain(dict(self.code_length)),
            "scarcity": [plain(dict(point)) for point in self.scarcity], "flags": [_flag_json(flag) for flag in self.flags],
            "rows": plain(dict(self.rows)), "notes": list(self.notes), "plan": plain(dict(self.plan)),
            "path": plain(self.path), "agreement": plain(self.agreement),
        }  # fmt: skip


def _flag_json(flag: Flag) -> dict[str, Any]:
    """As plain values; of many rows the first, and how many there are."""
    return {**plain(flag), "rows": [list(row) for row in flag.rows[:MOST_ROWS]], "n_rows": len(flag.rows)}
