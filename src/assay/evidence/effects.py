"""What *uses*, *steers* and *connects* have in common; the changes themselves are in `assay.probe.variants`.

1. Claimed directions lie at one site. Controls are named and hashed for the plan, and measured on the first few
   items of every template.
2. Damage is KL between unedited and edited next-token distributions of ordinary texts. To second order
   sqrt(2 KL) is the standard deviation of the change in log-probability: a size in nats, like an effect on log-odds.
3. Elsewhere: other behaviours that the model has, on pairs of discover and tune, under the same change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from assay.data.metrics import kl
from assay.data.prepare import PreparedTask, beginnings, prepare
from assay.data.tasks import load_task, n_templates
from assay.errors import TaskError, bad_argument
from assay.evidence.features import Feature
from assay.model.model import Model
from assay.probe.variants import Place, Variant, capture_resumable, patched_in, place_of, run_variants, width
from assay.records import digest
from assay.sites import Site
from assay.statistics import MIN_BOOTSTRAP, interval

TEXTS_AT_ONCE = 8
POOLS = 3  # of random directions and subspaces
WHOLE = ("resid_pre", "resid_mid", "resid_post")  # sites through which everything later is computed


def site_features(model: Model, features: Sequence[Feature]) -> tuple[Site, list[str]]:
    """The site all features share, and their names. Raises UsageError where they differ, ShapeError for a misfit."""
    if len(sites := sorted({feature.site for feature in features})) != 1:
        raise bad_argument("feature", f"features at {', '.join(sites) or 'no site'}", "directions at one site")
    place = place_of(model, sites[0], "all")
    for feature in features:
        feature.direction(width(model, place.site))
    return place.site, [feature.name for feature in features]


def per_pool(draws: int) -> int:
    """How many controls each of the three pools gives, for about `draws` in all."""
    return max(1, round(draws / POOLS))


def record_of(controls: Mapping[str, Tensor]) -> dict[str, str]:
    """Names and hashes of drawn controls, for the plan."""
    return {name: digest([round(float(x), 4) for x in basis.flatten()])[:12] for name, basis in controls.items()}


def control_rows(templates: Sequence[str], per_template: int) -> list[int]:
    """Rows that controls are measured on: the first few of every template."""
    seen: dict[str, int] = {}
    rows = []
    for row, template in enumerate(templates):
        seen[template] = seen.get(template, 0) + 1
        if seen[template] <= per_template:
            rows.append(row)
    return rows


def spread_over(rows: Sequence[int], values: Sequence[float], n: int) -> list[float | None]:
    """A column of n rows with values at some of them."""
    out: list[float | None] = [None] * n
    for row, value in zip(rows, values, strict=True):
        out[row] = float(value)
    return out


# damage ------------------------------------------------------------------------------------------


def neutral_kl(model: Model, texts: Sequence[str], place: Place, variants: Sequence[Variant]) -> list[list[float]]:
    """Per variant and text, KL(unedited || edited) in nats, mean over positions (or at the last, where only that is
    changed)."""
    found: list[list[float]] = [[] for _ in variants]
    prompts = beginnings(model, list(texts))
    where = "all" if place.positions == "all" else "last"
    for start in range(0, len(prompts), TEXTS_AT_ONCE):
        here = prompts[start : start + TEXTS_AT_ONCE]
        acts, resume = capture_resumable(model, here, [place.site])
        before = model.capture(here, "logits", positions=where, resume=resume)
        for losses, variant in zip(found, variants, strict=True):
            edit = patched_in(place, variant(acts[place.site], None), list(map(len, here)))
            after = model.capture(here, "logits", positions=where, edits=[edit], resume=resume)
            lost = kl(before.flat("logits"), after.flat("logits").float()).clamp_min(0)
            losses.extend(float(part.mean()) for part in lost.split(before.lengths))
    return found


class Damage:
    """What some changes do to ordinary texts: measured once, whatever split asks for it."""

    def __init__(self, texts: Sequence[str], place: Place, variants: Sequence[Variant]) -> None:
        self.texts, self.place, self.variants = texts, place, variants
        self._kept: list[float] | None = None

    def of(self, model: Model) -> list[float]:
        """Per text the KL of the change that does most, in nats."""
        if self._kept is None:
            lost = neutral_kl(model, self.texts, self.place, self.variants)
            self._kept = [max(each) for each in zip(*lost, strict=True)]
        return self._kept


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """Other behaviours, and what some changes do to them: measured once, whatever split asks. `tasks`: name -> its pairs."""

    tasks: Mapping[str, PreparedTask]
    place: Place
    variants: Mapping[str, Variant]
    kept: dict[str, list[float]] = field(default_factory=dict)

    def of(self, model: Model) -> dict[str, list[float]]:
        """`task.variant` -> per pair, the change of the log-odds as a share of the task's own contrast."""
        for name, task in self.tasks.items() if not self.kept else ():
            metric = task.metric()
            clean, corrupted = model.score(task.clean, metric), model.score(task.corrupted, metric)
            changed = run_variants(model, task.clean, metric, self.place, list(self.variants.values()))
            shares = (changed - clean) / (clean - corrupted).mean()
            self.kept.update({f"{name}.{how}": row.tolist() for how, row in zip(self.variants, shares, strict=True)})
        return self.kept


def other_tasks(model: Model, names: Sequence[str], own: Sequence[str]) -> dict[str, PreparedTask]:
    """One pair per template of discover and tune of each of these tasks. Raises UsageError for the claim's own (which has its
    templates, `own`), TaskError for one that the model does not do."""
    found: dict[str, PreparedTask] = {}
    for name in names:
        pairs = [pair for split in ("discover", "tune") for pair in load_task(name, split, n_templates(name, split))]
        if {pair.template for pair in pairs} & set(own):
            raise bad_argument("option off_target", name, "tasks other than the claim's own")
        task = prepare(pairs, model)
        if len(task) < MIN_BOOTSTRAP:
            raise TaskError(f"option off_target: {len(task)} of {len(pairs)} pairs of {name!r} can be used with {model.name};"
                            f" allowed: {MIN_BOOTSTRAP} or more.")  # fmt: skip
        clean, corrupted = (model.score(prompts, task.metric()) for prompts in (task.clean, task.corrupted))
        low, _ = interval((clean - corrupted).numpy())
        if float(clean.mean()) <= 0 or low is None or low <= 0:
            raise TaskError(f"option off_target: {model.name} does not do the task {name!r} (log-odds {clean.mean():.2f}, after"
                            f" corrupted prompts {corrupted.mean():.2f}). Name tasks that it does: assay tasks.")  # fmt: skip
        found[name] = task
    return found


def deal(values: Sequence[float], templates: Sequence[str]) -> list[float | None]:
    """Values of texts as a column: every text is dealt to one template, so that clusters share no text."""
    places: dict[str, list[int]] = {}
    for row, template in enumerate(templates):
        places.setdefault(template, []).append(row)
    names = sorted(places)
    out: list[float | None] = [None] * len(templates)
    for number, value in enumerate(values):
        turn, which = divmod(number, len(names))
        rows = places[names[which]]
        if turn < len(rows):
            out[rows[turn]] = value
    return out
