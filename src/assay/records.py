"""Frozen records that methods return and stores keep. No torch, no SQL, no drawing.

Every record has one spelling as text (`canonical`), and so one hash (`digest`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any


def canonical(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. Records become objects."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False,
                      ensure_ascii=False)  # fmt: skip


def plain(value: Any) -> Any:
    """Records and tuples as objects and lists."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


@dataclass(frozen=True)
class Pair:
    """One minimal pair of prompts of a task.

    `answers` are the continuations the model should prefer after `clean`, `foils` those it should
    prefer after `corrupted`; both as they follow the prompt, leading space included. `labels` name
    character offsets: label -> (offset of a character inside `clean`, offset inside `corrupted`).
    `cluster` joins template, words and document: two pairs of one cluster never go to two splits.
    """

    clean: str
    corrupted: str
    answers: tuple[str, ...]
    foils: tuple[str, ...]
    template: str
    labels: dict[str, tuple[int, int]] = field(default_factory=dict)
    entities: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.clean, self.corrupted)


@dataclass(frozen=True)
class Example:
    """One text with a label for a concept: 1 = the concept is there, 0 = it is not.

    `template` is what joins texts that are one observation (a sentence frame, a document); `entities`
    are the words that must not be seen on both sides of a split. `position`: offset of a character
    inside the token that is read; None = the last token. `near_miss`: a negative that looks like a member.
    """

    text: str
    label: int
    template: str
    entities: tuple[str, ...] = ()
    position: int | None = None
    near_miss: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.text,)


@dataclass(frozen=True)
class TaskSummary:
    """What a model can do on a task: is there a behaviour to study?"""

    task: str
    n_pairs: int
    dropped: dict[str, int]
    accuracy: float
    logit_diff: float
    low: float
    high: float
    n_templates: int


@dataclass(frozen=True)
class PatchResult:
    """A patching sweep: one effect per cell of a grid.

    `effect[i][j]` is (mean patched - mean corrupted) / (mean clean - mean corrupted) over pairs:
    0 = like the corrupted run, 1 = like the clean run. `low` and `high` are 95% bootstrap bounds
    over pairs. `axis` says what the columns are: positions, heads, components or neurons.
    """

    plan: dict[str, Any]
    layers: list[int]
    axis: str
    columns: list[str]
    effect: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    clean: float
    corrupted: float
    n_pairs: int
    dropped: dict[str, int]
    checks: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin, with the keys scripts rely on."""
        record = asdict(self)
        plan, axis, columns = record.pop("plan"), record.pop("axis"), record.pop("columns")
        named = [int(name) if name.lstrip("-").isdigit() else name for name in columns]
        return {**plan, **record, axis: named, "plan": plan}


# claims and evidence -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One falsifiable sentence about a model. Immutable once locked; narrowing makes a new version.

    `subject`: {"model", "digest", "sites", "positions"} and what the kind adds (directions, a rule, ..).
    `task`: the data it is about, as their source records itself, with at least a "name".
    `quantifier`: tends | usually | always. `parent`: id of the claim this one narrows.
    """

    id: str
    version: int
    parent: str | None
    kind: str
    statement: str
    quantifier: str
    subject: dict[str, Any]
    task: dict[str, Any]
    direction: str
    rivals: tuple[str, ...] = ()
    created: str = ""


@dataclass(frozen=True)
class GatePlan:
    """One gate as locked: the smallest effect of interest, and how the gate is measured.

    `group` joins gates that measure one quantity in different ways (necessity by mean and by
    resample ablation). `required` gates decide; the others are reported.
    """

    name: str
    group: str
    sesoi: float
    required: bool
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What will be measured and how it will be judged, locked before confirm data are read.

    `splits`: per split {"n", "seed", "digest", "templates"}; the digest is of its texts.
    `levels`: {"confirm": alpha, "ood": alpha}. `settings`: controls, draws, seeds, ablation grid.
    `mde`: per gate, the smallest excess over the SESOI that tune data say is found 80% of the time.
    """

    claim: str
    kind: str
    gates: tuple[GatePlan, ...]
    splits: dict[str, dict[str, Any]]
    metric: str
    levels: dict[str, float]
    family: str
    settings: dict[str, Any]
    search: dict[str, Any]
    mde: dict[str, float | None]
    rule_version: str
    lock: str = ""


@dataclass(frozen=True)
class GateResult:
    """One gate on one split, decided on templates.

    `p_above` tests "effect <= SESOI", `p_below` tests "effect >= SESOI". Bounds are 95%.
    `sample`: K, N, icc, sd, mde80, method. `tables`: per_template means and, for control gates,
    the mean effect of every control.
    """

    name: str
    split: str
    group: str
    required: bool
    sesoi: float
    estimate: float | None
    low: float | None
    high: float | None
    p_above: float
    p_below: float
    sample: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The gate's name, with the split where that is not confirm."""
        return self.name if self.split == "confirm" else f"{self.name}@{self.split}"


@dataclass(frozen=True)
class Counterexample:
    """An input on which the claim fails. `status`: verified (it failed again when re-run) or open.

    `clean`, `corrupted`: the two prompts of a pair; of a labelled text `clean` alone. `tokens`: the tokens with
    their scores; `minimal`: the shortest form that still fails; `fluency`: mean log-probability per token.
    """

    claim: str
    clean: str
    corrupted: str
    template: str
    gate: str
    score: float
    expected: str
    status: str
    method: str = "wrong sign"
    tokens: tuple[tuple[str, float], ...] = ()
    minimal: str = ""
    fluency: float | None = None


@dataclass(frozen=True)
class Evidence:
    """Everything measured for a claim: tables per prompt, gates made from them, and the search.

    `tables`: split -> {"templates", "words" or null, "columns": {name: one number per item or null}}.
    `data`: split -> {"digest", "clusters", "pairs", "dropped", "looked"}. `reads`: how often these confirm
    clusters had been read for this subject, this read included. `flags`: instrument problems.
    """

    claim: str
    lock: str
    run: dict[str, Any]
    tables: dict[str, dict[str, Any]]
    gates: tuple[GateResult, ...]
    search: dict[str, Any]
    data: dict[str, dict[str, Any]]
    reads: int = 1
    flags: tuple[str, ...] = ()
    created: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the rule makes of plan, evidence and counterexamples.

    `reasons` are codes, `decision` the numbers behind them (claim p, Holm-adjusted p, charged
    alpha, reads, family, notes), `unexplained` the share of the effect the claim leaves open.
    """

    claim: str
    kind: str
    verdict: str
    reasons: tuple[str, ...]
    qualifiers: tuple[str, ...]
    gates: tuple[dict[str, Any], ...]
    sentence: str
    does_not_show: tuple[str, ...]
    rule_version: str
    decision: dict[str, Any] = field(default_factory=dict)
    counterexamples: dict[str, Any] = field(default_factory=dict)
    unexplained: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin, with the keys scripts rely on."""
        return asdict(self)
