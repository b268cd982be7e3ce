"""What *represents*, *decodes*, *explains* and *detects* have in common: a score per example, and a label.

1. A claim of these kinds says that some score tells members of a concept from everything else. The
   score is read off a host: a feature's activation, a probe's output, a monitor's.
2. `ScoreSetup` holds everything fixed before sealed data are read: the score, its thresholds on tune
   data, and what it must beat: random directions, rivals, the same pipeline on untrained twins, and a
   score made of nothing but the words.
3. `ScoreInstrument` reads every needed activation once and keeps it; all gates share them.
4. A planted positive and a planted negative go through the same activations: where they do not come out
   as they must, the instrument is broken and no verdict is given.

Scores and labels show association. That the model uses what is read is another claim (*uses*).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.evidence.black_box import BlackBox
from assay.evidence.gates.base import get_gate
from assay.evidence.hosts import Host
from assay.evidence.kinds import Columns, Progress
from assay.evidence.output_side import OutputSide
from assay.evidence.second_corpus import record_of as second_record
from assay.records import GatePlan

Scorer = Callable[[Float[Tensor, "example d"]], Float[Tensor, " example"]]
TextScorer = Callable[[Sequence[str]], Sequence[float]]
PLANTED_STRENGTH = 6.0  # standard deviations: far above what any gate asks for


@dataclass(frozen=True, eq=False)
class ScoreSetup:
    """What is fixed before sealed data are read. `half` and `strict`: thresholds of the score.

    `half` is passed by half of the members on tune, `strict` by one in twenty non-members on tune.
    `random`, `rivals`: name -> score; `untrained`: scheme -> (twin, score fitted on the twin). `reader`: a language model
    that reads the texts, where one is named; `second`: texts of a second corpus; `output`: words that the feature should say.
    """

    site: str
    score: Scorer
    half: float
    strict: float
    lexical: TextScorer
    random: Mapping[str, Scorer] = field(default_factory=dict)
    rivals: Mapping[str, Scorer] = field(default_factory=dict)
    untrained: Mapping[str, tuple[Host, Scorer]] = field(default_factory=dict)
    extra: Mapping[str, Scorer] = field(default_factory=dict)
    seed: int = 0
    reader: BlackBox | None = None
    second: PreparedConcept | None = None
    output: OutputSide | None = None
    host: Host | None = None  # what is read, where that is not the model itself

    def asked(self) -> dict[str, Any]:
        """What the plan locks of what was named in the claim's options; nothing where nothing was."""
        second = second_record(None if self.second is None else self.second.examples)
        return second | ({} if self.output is None else self.output.record())


class ScoreInstrument:
    """Scores of one split's examples; activations are read once and kept."""

    def __init__(self, host: Host, data: PreparedConcept, setup: ScoreSetup) -> None:
        self.host, self.data, self.setup = host, data, setup
        self._acts: dict[str, Tensor] = {}

    def acts(self, scheme: str | None = None) -> Float[Tensor, "example d"]:
        """Activations at the claim's site, of the host or of an untrained twin."""
        key = scheme or ""
        if key not in self._acts:
            host = self.host if scheme is None else self.setup.untrained[scheme][0]
            self._acts[key] = host.read(self.setup.site, self.data)
        return self._acts[key]

    def labels(self) -> list[float | None]:
        """1 for members, 0 for non-members."""
        return [float(example.label) for example in self.data.examples]

    def near(self) -> list[float | None]:
        """1 for near misses: negatives that look like members."""
        return [float(example.near_miss) for example in self.data.examples]

    def score(self) -> list[float | None]:
        """The claimed score."""
        return numbers(self.setup.score(self.acts()))

    def fires(self, threshold: float) -> list[float | None]:
        """1 where the claimed score passes a threshold."""
        return [float(value is not None and value > threshold) for value in self.score()]

    def of(self, scorers: Mapping[str, Scorer], prefix: str) -> Columns:
        """One column per score, named prefix.name."""
        return {f"{prefix}.{name}": numbers(scorer(self.acts())) for name, scorer in scorers.items()}

    def untrained(self) -> Columns:
        """The same pipeline on every untrained twin."""
        return {f"untrained.{scheme}": numbers(scorer(self.acts(scheme)))
                for scheme, (_, scorer) in self.setup.untrained.items()}  # fmt: skip

    def lexical(self) -> list[float | None]:
        """A score made of the words alone."""
        return [float(value) for value in self.setup.lexical([example.text for example in self.data.examples])]

    def read_by_reader(self) -> list[float | None]:
        """What a language model says that reads the texts; nothing without one."""
        reader = self.setup.reader
        return [None] * len(self.data) if reader is None else reader.scores(self.data.examples)

    def second(self) -> Columns:
        """Labels, scores and template numbers of the second corpus; nothing without one."""
        data = self.setup.second
        if data is None:
            return {}
        number = {template: float(place) for place, template in enumerate(dict.fromkeys(data.templates))}
        return {"second.label": [float(label) for label in data.labels],
                "second.score": numbers(self.setup.score(self.host.read(self.setup.site, data))),
                "second.template": [number[template] for template in data.templates]}  # fmt: skip

    def output(self) -> Columns:
        """Log-odds of the words that the feature should say, with it added and without; nothing where none are named."""
        return {} if self.setup.output is None else self.setup.output.columns(self.data)

    def lengths(self) -> list[float | None]:
        """Characters of every text."""
        return [float(len(example.text)) for example in self.data.examples]

    def planted(self, true: bool) -> list[float | None]:
        """The score of a direction that was planted with the labels (true) or with shuffled labels.

        What lies along the direction already is dealt out anew, so that it tells nothing of the labels itself.
        """
        acts, rng = self.acts(), np.random.default_rng(self.setup.seed + 7)
        towards = torch.tensor(rng.standard_normal(acts.shape[1]), dtype=acts.dtype)
        towards = towards / towards.norm()
        labels = np.array([example.label for example in self.data.examples])
        carried = labels if true else rng.permutation(labels)
        base = (acts @ towards)[torch.tensor(rng.permutation(len(acts)))]
        spread = float(base.std()) or 1.0
        return numbers(base + PLANTED_STRENGTH * spread * torch.tensor(carried, dtype=acts.dtype))


def measure_scores(
    host: Host, data: PreparedConcept, setup: ScoreSetup, gates: Sequence[GatePlan], report: Progress | None = None
) -> Columns:
    """All columns the gates need, over all examples of a split."""
    return measure_with(ScoreInstrument(host, data, setup), gates, report)


def measure_with(
    instrument: ScoreInstrument, gates: Sequence[GatePlan], report: Progress | None = None
) -> Columns:
    """All columns the gates need, with an instrument of a kind's own."""
    columns: Columns = {}
    for number, gate in enumerate(gates):
        columns.update(get_gate(gate.name).measure(instrument, gate))
        if report:
            report("measuring", number + 1, len(gates))
    return columns


def numbers(values: Tensor) -> list[float | None]:
    """A tensor (n,) as a column."""
    return values.detach().double().reshape(-1).tolist()


# thresholds --------------------------------------------------------------------------------------


def thresholds(scores: Sequence[float | None], labels: Sequence[int]) -> tuple[float, float]:
    """(passed by half of the members, passed by one in twenty non-members). NaN-free scores."""
    values = np.array(scores, dtype=float)
    member = np.array(labels) == 1
    half = float(np.quantile(values[member], 0.5, method="lower")) if member.any() else float("inf")
    strict = float(np.quantile(values[~member], 0.95, method="higher")) if (~member).any() else float("-inf")
    return half, strict


# controls ----------------------------------------------------------------------------------------


def projection(direction: Float[Tensor, " d"]) -> Scorer:
    """Activations (n, d) -> their component along a direction (n,)."""
    return lambda acts: acts @ direction.to(acts.dtype)


def random_directions(
    tune: Float[Tensor, "example d"], claimed: Float[Tensor, " d"], draws: int, seed: int
) -> dict[str, Tensor]:
    """About `draws` unit directions from three pools, as `pool.number` -> (d,).

    `isotropic`; `covariance`: of tune activations after the claimed direction is taken out, otherwise a strong
    feature would be compared with noisy copies of itself; `unit`: single units that are above their own mean on
    about as many examples as the claimed direction is.
    """
    rng, each = np.random.default_rng(seed), max(1, round(draws / 3))
    acts, towards = tune.double().numpy(), claimed.double().numpy()
    score, width = acts @ towards, acts.shape[1]
    others = acts - acts.mean(0)
    others = others - np.outer(others @ towards, towards) / float(towards @ towards)
    found: dict[str, Tensor] = {}
    for number in range(each):
        found[f"isotropic.{number:02d}"] = _unit(rng.standard_normal(width))
        found[f"covariance.{number:02d}"] = _unit(rng.standard_normal(len(others)) @ others)
    alive = np.flatnonzero((acts.std(0) > 0) & (np.abs(towards) < 0.9 * np.linalg.norm(towards)))
    density = np.abs((acts > acts.mean(0)).mean(0)[alive] - (score > score.mean()).mean())
    similar = alive[np.argsort(density, kind="stable")[: 3 * each]]
    for number, unit in enumerate(rng.permutation(similar)[:each]):
        found[f"unit.{number:02d}"] = _unit(np.eye(1, width, int(unit))[0])
    return found


def _unit(vector: Any) -> Tensor:
    norm = float(np.linalg.norm(vector))
    return torch.tensor(vector / norm if norm > 0 else vector, dtype=torch.float32)


def record_of(vectors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names and hashes of drawn directions, for the plan."""
    from assay.records import digest

    return {name: digest([round(float(x), 5) for x in vector])[:12] for name, vector in vectors.items()}
