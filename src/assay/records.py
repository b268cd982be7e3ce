"""Frozen records that methods return and stores keep. No torch, no SQL, no drawing.

Every record has one spelling as text (`canonical`), and so one hash (`digest`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any

SCALARS = frozenset((str, int, float, bool, type(None)))


def canonical(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. Records become objects."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False,
                      ensure_ascii=False)  # fmt: skip


def plain(value: Any) -> Any:
    """Records and tuples as objects and lists."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is list or kind is tuple:  # long columns of numbers: looked at in one step, copied in another
        return list(value) if SCALARS.issuperset(map(type, value)) else [plain(item) for item in value]
    if kind is dict:
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(shown) for name, default in _field_names(kind)
                if (shown := getattr(value, name)) != default or default is MISSING}  # fmt: skip
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


@cache
def _field_names(kind: type) -> tuple[tuple[str, Any], ...]:
    """Names of fields, and the default of those added later: while they have it they are left out, so that
    the hashes of older records still hold."""
    return tuple((each.name, each.default if each.metadata.get("later") else MISSING) for each in fields(kind))


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
    resample ablation). `required` gates decide; the others are reported. `version`: of the gate's own code.
    """

    name: str
    group: str
    sesoi: float
    required: bool
    options: dict[str, Any] = field(default_factory=dict)
    version: int = field(default=1, metadata={"later": True})


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
    version: int = field(default=1, metadata={"later": True})

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


@dataclass(frozen=True)
class Dataset:
    """The items of one split as a claim read or used them. `clusters`: hashed names of its clusters.

    `source`: how the data are found again ({"type", "name", ..}); `licence`: as the source gives it.
    """

    digest: str
    name: str
    split: str
    n: int
    seed: int
    clusters: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict)
    licence: str = ""


@dataclass(frozen=True)
class Run:
    """One measurement of one claim: under which lock and ticket, with what, and how long it took.

    `passport`: packages, model, device, seeds, commit; `passes`: forward passes of the searches.
    """

    id: str
    claim: str
    lock: str
    ticket: str
    started: str
    finished: str
    seconds: float
    passes: int
    passport: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Deviation:
    """What is done otherwise than the lock says, and why. Any deviation makes a result *exploratory*.

    `sesoi`: bars used instead of the locked ones, by gate name; the locked plan itself stays as it is.
    """

    claim: str
    what: str
    why: str
    created: str
    sesoi: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Replication:
    """A claim measured again. `who`, `where`: as given, and the machine; `moved`: gates that differ.

    `same`: the same verdict, reasons, qualifiers and numbers came out; `verdict`: what came out.
    """

    claim: str
    who: str
    where: str
    same: bool
    before: str
    verdict: str
    moved: tuple[str, ...]
    created: str
    passport: dict[str, Any] = field(default_factory=dict)
