"""What a repair is judged by: before and after, paired, one observation per template; and the verdict from fixed bars.

1. Share of right answers after the fault's prompts (`gain`: it rises; `right`: it is high), after the other prompt of each
   pair, where the foil is right, after neighbours, and in other tasks (`same`: two one-sided tests within +-bar, Schuirmann
   1987); mean KL(before || after) over all tokens of ordinary texts (`small`), each text an observation. The fault is asked
   in templates that nothing was made or chosen on, and once more behind an unrelated sentence (`paraphrases`).
2. *repaired*: all of it. *repaired at a price*: gain and right on confirm, but something else is changed or not shown to be
   unchanged; it is named. *not repaired*: anything else; fewer than 8 templates show nothing.

A task that cannot be asked with the model's tokenizer is left out of the verdict, and listed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from assay.data.metrics import kl
from assay.data.prepare import NothingLeft, PreparedTask, beginnings, longest_of, prepare
from assay.errors import ModelError
from assay.model.model import Model
from assay.records import Pair, plain
from assay.statistics import cluster_means, interval, summarise, tost
from assay.steer.kept import Kept, Nowhere

VERDICTS = ("repaired", "repaired at a price", "not repaired")
TEXTS_AT_ONCE = 8
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Bars:
    """What counts, fixed beforehand. Shares are of prompts, `kl` is in nats per token, `alpha` of each test."""

    gain: float = 0.25
    right: float = 0.75
    same: float = 0.10
    kl: float = 0.02
    alpha: float = 0.05
    templates: int = 8


@dataclass(frozen=True, eq=False)
class Fault:
    """Pairs by split, and what should stay: neighbours, other tasks by name, ordinary texts that no edit is made from.
    `paraphrases`: sealed pairs in other words."""

    name: str
    splits: Mapping[str, Sequence[Pair]]
    neighbours: Sequence[Pair] = ()
    tasks: Mapping[str, Sequence[Pair]] = field(default_factory=dict)
    texts: Sequence[str] = ()
    paraphrases: Sequence[Pair] = ()


@dataclass(frozen=True)
class Check:
    """One thing before and after, over templates, and its bar. `low`, `high`: 95%, of `change` (of `after` for `right`).

    `about`: gain, right, same or small. `p`: of the bar's null. `log_odds`: the change of the mean log-odds of answer
    against foil (or of the loss in nats per token, for ordinary text), with its interval.
    """

    name: str
    about: str
    n: int
    templates: int
    before: float | None
    after: float | None
    change: float | None
    low: float | None
    high: float | None
    bar: float
    p: float
    passed: bool
    log_odds: tuple[float | None, float | None, float | None] = (None, None, None)
    dropped: dict[str, int] = field(default_factory=dict)


def paraphrased(pairs: Sequence[Pair], sentences: Sequence[str]) -> list[Pair]:
    """Both prompts of every pair behind a sentence about something else, the sentences in turn: paraphrase prompts as Meng et
    al. 2022 make them. An edit that is no more than a habit of one sentence's beginning does not survive it."""
    return [_behind(sentences[number % len(sentences)], pair) for number, pair in enumerate(pairs)]


def _behind(sentence: str, pair: Pair) -> Pair:
    clean, corrupted = (f"{sentence} {text}" for text in pair.texts)
    moved = len(sentence) + 1
    labels = {name: (one + moved, other + moved) for name, (one, other) in pair.labels.items()}
    return replace(pair, clean=clean, corrupted=corrupted, labels=labels)


# measuring ---------------------------------------------------------------------------------------


def shares(model: Model, task: PreparedTask) -> tuple[float, float]:
    """Share of clean prompts with the answer ahead, and of the others with the foil ahead; means of template means."""
    found = []
    for sign, prompts in ((1, task.clean), (-1, task.corrupted)):
        right = (sign * model.score(prompts, task.metric()) > 0).float().tolist()
        means = list(cluster_means(right, task.templates).values())
        found.append(sum(means) / len(means))
    return found[0], found[1]


def text_change(before: Model, after: Model, prompts: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """Per text: mean KL(before || after) in nats over its tokens, and the change of its mean loss in nats per token."""
    lost, loss = [], []
    for start in range(0, len(prompts), TEXTS_AT_ONCE):
        here = [list(ids) for ids in prompts[start : start + TEXTS_AT_ONCE]]
        acts = [model.capture(here, "logits").rows("logits") for model in (before, after)]
        for ids, old, new in zip(here, *acts, strict=True):
            lost.append(float(kl(old.float(), new.float()).clamp_min(0).mean()))
            if len(ids) > 1:
                target = torch.tensor(ids[1:])[:, None]
                said = [rows[:-1].float().log_softmax(-1).gather(1, target.to(rows.device)).mean() for rows in (old, new)]
                loss.append(float(said[0] - said[1]))
    return lost, loss


def said_in_full(model: Model, pairs: Sequence[Pair]) -> float | None:
    """Share of clean prompts after which greedy decoding says an answer whole, and not only its first token. None: no pairs."""
    said: dict[int, bool] = {}
    rows = [(number, model.tokens(pair.clean)[0], model.tokens(pair.clean + answer)[0])
            for number, pair in enumerate(pairs) for answer in pair.answers]  # fmt: skip
    rows = [row for row in rows if len(row[2]) <= longest_of(model)]
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        here = rows[start : start + TEXTS_AT_ONCE]
        logits = model.capture([whole for _, _, whole in here], "logits").rows("logits")
        for (number, prompt, whole), row in zip(here, logits, strict=True):
            begin = len(prompt)
            match = row[begin - 1 : -1].argmax(-1).tolist() == whole[begin:] and whole[:begin] == prompt and len(whole) > begin
            said[number] = said.get(number, False) or match
    return sum(said.values()) / len(said) if said else None


# judging -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Set:
    """Prompts that are scored. `sign` -1: the foil is the right one."""

    name: str
    task: PreparedTask
    sign: int = 1

    @property
    def prompts(self) -> list[list[int]]:
        return self.task.clean if self.sign > 0 else self.task.corrupted

    def scores(self, model: Model) -> list[float]:
        return (self.sign * model.score(self.prompts, self.task.metric())).tolist()


def judge(
    before: Model, after: Model, fault: Fault, bars: Bars, seed: int = 0, report: Progress | None = None,
    kept: Kept | None = None,
) -> tuple[Check, ...]:  # fmt: skip
    """All checks, on confirm, ood, neighbours, tasks and texts. Sealed splits are read here and nowhere else."""
    kept, checks = kept or Nowhere(), list[Check]()
    parts: list[tuple[str, bool, Sequence[Pair]]] = [
        *((f"fault, {split}", True, fault.splits.get(split, ())) for split in ("confirm", "ood")),
        *([("fault, paraphrases", True, fault.paraphrases)] if fault.paraphrases else []),
        *([("neighbours", True, fault.neighbours)] if fault.neighbours else []),
        *((f"task {name}", False, pairs) for name, pairs in fault.tasks.items()),
    ]
    for number, part in enumerate(parts):
        name, *_ = part
        found = kept.once(f"{name} {after.digest}", lambda part=part: plain(_part(before, after, *part, bars, seed)))
        checks += [Check(**{**record, "log_odds": tuple(record["log_odds"])}) for record in found]
        if report:
            report(name, number + 1, len(parts) + 1)
    checks.append(_text_check(before, after, fault.texts, bars, seed))
    if report:
        report("ordinary text", len(parts) + 1, len(parts) + 1)
    return tuple(checks)


def _part(before: Model, after: Model, name: str, both: bool, pairs: Sequence[Pair], bars: Bars, seed: int) -> list[Check]:
    is_fault = name.startswith("fault")
    abouts = ("gain", "right") if is_fault else ("same",)
    try:
        task = prepare(pairs, before)
    except NothingLeft as error:
        return [Check(name, about, 0, 0, None, None, None, None, None, _bar(bars, about), 1.0, False, dropped=error.dropped)
                for about in abouts]  # fmt: skip
    checks = _compare(_Set(name, task), before, after, abouts, bars, seed)
    if both:
        checks += _compare(_Set(f"{name}, other prompt", task, -1), before, after, ("same",), bars, seed)
    return checks


def _bar(bars: Bars, about: str) -> float:
    return {"gain": bars.gain, "right": bars.right, "same": bars.same, "small": bars.kl}[about]


def _compare(found: _Set, before: Model, after: Model, abouts: Sequence[str], bars: Bars, seed: int) -> list[Check]:
    old, new = found.scores(before), found.scores(after)
    _finite(found.name, old, new)
    right = [[float(score > 0) for score in scores] for scores in (old, new)]
    names = found.task.templates
    moved = summarise([b - a for a, b in zip(old, new, strict=True)], names, 0.0, bars.alpha, seed)
    return [replace(_share_check(found.name, about, right, names, bars, seed), dropped=found.task.dropped,
                    log_odds=(moved.estimate, moved.low, moved.high)) for about in abouts]  # fmt: skip


def _finite(name: str, old: Sequence[float], new: Sequence[float]) -> None:
    """Raises ModelError where a model gives infinite numbers, or none."""
    for whose, values in (("the model", old), ("the changed model", new)):
        if not all(map(math.isfinite, values)):
            raise ModelError(f"{name}: {whose} gives numbers that are not finite. Take a smaller factor or strength, or load"
                             " the model in float32. Nothing was written.")  # fmt: skip


def _share_check(
    name: str, about: str, right: Sequence[Sequence[float]], templates: Sequence[str], bars: Bars, seed: int
) -> Check:
    """One check of shares of right prompts before and after."""
    bar = _bar(bars, about)
    means = [list(cluster_means(side, templates).values()) for side in right]
    before, after = (sum(side) / len(side) for side in means)
    difference = [b - a for a, b in zip(*right, strict=True)]
    told = summarise(right[1] if about == "right" else difference, templates, bar, bars.alpha, seed)
    p, low, high = told.p_above, told.low, told.high
    if about == "right" and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    if about == "same":
        p = tost(list(told.per_template.values()), -bar, bar, seed=seed)
    enough = len(told.per_template) >= bars.templates or about == "same"
    return Check(name, about, len(difference), len(told.per_template), before, after, after - before, low, high,
                 bar, p, p <= bars.alpha and enough)  # fmt: skip


def _text_check(before: Model, after: Model, texts: Sequence[str], bars: Bars, seed: int) -> Check:
    lost, loss = text_change(before, after, beginnings(before, list(texts)))
    _finite("ordinary text", [], [*lost, *loss])
    names = [f"{number:06d}" for number in range(len(lost))]
    told = summarise(lost, names, bars.kl, bars.alpha, seed)
    low, high = interval(loss, seed=seed)
    mean = sum(loss) / len(loss) if loss else None
    return Check("ordinary text", "small", len(lost), len(lost), 0.0, told.estimate, told.estimate, told.low, told.high,
                 bars.kl, told.p_below, told.p_below <= bars.alpha, (mean, low, high))  # fmt: skip


# verdict -----------------------------------------------------------------------------------------


def decide(checks: Sequence[Check], bars: Bars) -> tuple[str, tuple[str, ...], str]:
    """(verdict, reasons, one sentence), from checks and bars alone."""
    needed = [check for check in checks if check.name == "fault, confirm"]
    asked = [check for check in checks if check.n or not check.name.startswith("task")]  # not of another language or tokenizer
    missed = [_why_not(check, bars) for check in needed if not check.passed] if needed else ["there is no fault on confirm"]
    missed = list(dict.fromkeys(missed))  # gain and right may fail for one reason
    reasons = (*missed, *(_price(check) for check in asked if not check.passed and check not in needed))
    verdict = VERDICTS[2] if missed else VERDICTS[1] if reasons else VERDICTS[0]
    return verdict, reasons, _sentence(verdict, checks, reasons)


def _why_not(check: Check, bars: Bars) -> str:
    if check.templates < bars.templates:
        return f"confirm has {check.templates} templates that can be used; {bars.templates} are the least that can show it"
    if check.before is not None and check.before >= bars.right:
        return f"there was no fault: {check.before:.0%} right on confirm before"
    if check.about == "gain":
        return f"the share right rose by {_points(check)}, not by more than {check.bar:.0%}"
    span = "no interval" if check.low is None or check.high is None else f"95% {check.low:.0%} to {check.high:.0%}"
    return f"{check.after or 0:.0%} right on confirm after ({span}); more than {check.bar:.0%} is not shown"


def _price(check: Check) -> str:
    if check.after is None or check.before is None:
        return f"{check.name}: could not be measured ({'; '.join(check.dropped) or 'no prompts'})"
    if check.about == "small":
        beyond = check.low is not None and check.low > check.bar
        return f"{check.name}: KL {check.after:.3f} nats per token ({_range(check)}) " + (
            f"is above {check.bar:g}" if beyond else f"is not shown to be below {check.bar:g}")  # fmt: skip
    shown = f"{check.name}: right {check.before:.0%} before, {check.after:.0%} after"
    if check.about != "same":
        return f"{shown}; the bar ({check.about} {check.bar:.0%}) is not met there"
    beyond = check.low is not None and check.high is not None and (check.low > check.bar or check.high < -check.bar)
    return f"{shown} ({_points(check)}); " + ("changed" if beyond else f"not shown to be within {check.bar:.0%}")


def _points(check: Check) -> str:
    change = 100 * (check.change or 0.0)
    low, high = check.low, check.high
    span = "" if low is None or high is None else f", 95% {100 * max(low, -1.0):+.0f} to {100 * min(high, 1.0):+.0f}"
    return f"{change:+.0f} points{span}"


def _range(check: Check) -> str:
    return "no interval" if check.low is None else f"95% {check.low:.3g} to {check.high:.3g}"


def _sentence(verdict: str, checks: Sequence[Check], reasons: Sequence[str]) -> str:
    head = next((check for check in checks if check.name == "fault, confirm" and check.about == "gain"), None)
    if head is None or head.before is None or head.after is None:
        return f"{verdict.capitalize()}: {'; '.join(reasons)}."
    shown = (f"{verdict.capitalize()}: on {head.templates} templates that nothing was made or chosen on, {head.before:.0%} of"
             f" answers were right before and {head.after:.0%} after ({_points(head)})")  # fmt: skip
    if verdict == VERDICTS[0]:
        return f"{shown}; everything else that was measured stayed within its bars."
    link = "; the price" if verdict == VERDICTS[1] else ""
    return f"{shown}{link}: {'; '.join(reasons)}."
