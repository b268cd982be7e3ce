"""The instrument of *mediates* claims about image models: channels, heads or units that carry a class.

1. The metric of a picture: mean odds of the answer's classes against those of the foil's, or of all others,
   log mean exp(answers) - log mean exp(foils). 0: an answer's class is as likely as any other.
2. Ablated: the clean picture with channels at zero, at their mean over corrupted tune pictures and places (clean ones all show
   what the claim is about, and so would their mean), or at their values in the corrupted picture (`resample`). Restored: the
   corrupted picture with channels at their clean values, place by place.
3. Random sets: for every claimed channel one of the ten of its site whose mean and spread on tune are nearest.
4. A planted truth: with the first map of the run at its clean values the corrupted picture must score like the clean one.
5. Where the model is proved to have a tail (`model.image_tail`), runs begin at the one site that a claim is about.

Same questions as `circuits_instrument.Instrument`; every value is measured once and kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.images import images_for
from assay.errors import SiteError, TaskError, bad_argument
from assay.evidence.circuits_instrument import Column, Setup, control_rows
from assay.evidence.image_host import readable
from assay.model.image_tail import tail_of
from assay.model.images import BATCH, ImageEdit, ImageModel, edited
from assay.records import Pair, Plan, digest

NEAREST, N_ADDED = 10, 10
Units = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PreparedPictures:
    """Pairs of pictures and, per pair, the numbers of answer and foil classes (no foil: all others)."""

    pairs: list[Pair]
    answers: list[tuple[int, ...]]
    foils: list[tuple[int, ...]]
    dropped: dict[str, int]

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def items(self) -> list[Pair]:
        return self.pairs

    @property
    def templates(self) -> list[str]:
        return [pair.template for pair in self.pairs]

    @property
    def words(self) -> None:
        return None


def prepare_pictures(model: ImageModel, pairs: Sequence[Pair]) -> PreparedPictures:
    """Pairs whose pictures can be read. Raises TaskError where none can, UsageError for a class it does not have."""
    kept, dropped = readable([pair.texts for pair in pairs])
    if not kept:
        raise TaskError(f"none of {len(pairs)} pairs of pictures can be read with {model.name}.")
    chosen = [pairs[row] for row in kept]
    known = {names: classes_of(model, names) for pair in chosen for names in (pair.answers, pair.foils)}
    if any(not pair.answers for pair in chosen):
        raise bad_argument("classes", "none", "the classes whose odds the claim is about")
    return PreparedPictures(chosen, [known[p.answers] for p in chosen], [known[p.foils] for p in chosen], dropped)


def classes_of(model: ImageModel, names: Sequence[str]) -> tuple[int, ...]:
    """Numbers of classes by number or by name, case aside. Raises UsageError for what the model does not have."""
    by_name = {label.lower(): number for number, label in model.labels.items()}
    n, found = model.n_classes, []
    for name in names:
        number = int(name) if name.isdecimal() else by_name.get(name.lower(), -1)
        if not 0 <= number < n:
            some = ", ".join(list(model.labels.values())[:5])
            raise bad_argument("class", name, f"0 to {n - 1}" + (f", or a name such as {some}" if some else ""))
        found.append(number)
    return tuple(found)


def class_score(logits: Float[Tensor, "picture cls"], answers: Sequence[int], foils: Sequence[int] = ()) -> Tensor:
    """log mean exp(answers) - log mean exp(foils), in nats (picture,); no foils: all other classes."""
    chosen, other = (torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device) for _ in range(2))
    chosen[list(answers)] = True
    other[list(foils)] = True
    other = other if foils else ~chosen
    means = [logits[:, mask].logsumexp(1) - np.log(int(mask.sum())) for mask in (chosen, other)]
    return means[0] - means[1]


def channels_of(model: ImageModel, names: Sequence[Any]) -> Units:
    """Canonical names of channels, heads or units, sorted by site and number. Raises SiteError for whole sites and others."""
    found = set()
    for name in dict.fromkeys(map(str, names)):
        whole, index = model.resolve(name)
        if index is None:
            one = model.unit(whole, 0)
            raise SiteError(f"subject: got {whole}; allowed: channels, heads or units of a site, such as {one}.")
        found.add((whole, index))
    if not found:
        raise bad_argument("subject", "nothing", "channels, heads or units of a site")
    return tuple(model.unit(whole, index) for whole, index in sorted(found))


def by_site(units: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Site -> numbers of its units, in order."""
    found: dict[str, list[int]] = {}
    for unit in units:
        site, _, number = unit.rstrip("]").replace("[", ".").rpartition(".")
        found.setdefault(site, []).append(int(number))
    return {site: tuple(numbers) for site, numbers in found.items()}


def matched(acts: Tensor, channels: Sequence[int], draws: int, seed: int, heads: int = 0) -> list[tuple[int, ...]]:
    """Random sets: for every channel one of the 10 nearest others by mean and spread (in units of their spread). `acts`: maps
    (n, channel, h, w) or tokens (n, token, unit), of which `heads` groups are the units."""
    rows = acts.flatten(2).transpose(1, 2) if acts.ndim == 4 else acts
    rows = rows.unflatten(-1, (heads, -1)).norm(dim=-1) if heads else rows
    facts = torch.stack([rows.mean((0, 1)), rows.std((0, 1))], 1)
    facts = facts / facts.std(0).clamp_min(1e-12)
    free = [c for c in range(len(facts)) if c not in set(channels)]
    if len(free) < len(channels):
        raise bad_argument("channels", len(channels), f"at most half of the {len(facts)} of a site, or there is no control")
    near = {c: [free[i] for i in (facts[free] - facts[c]).norm(dim=1).argsort()[:NEAREST].tolist()] for c in channels}
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        drawn: list[int] = []
        for c in channels:
            left = [other for other in near[c] if other not in drawn] or [other for other in free if other not in drawn]
            drawn.append(int(rng.choice(left)))
        found.append(tuple(sorted(drawn)))
    return found


def mean_over_places(acts: Tensor) -> Tensor:
    """Mean over pictures and places of maps (n, channel, h, w) or tokens (n, token, unit), as an edit's value."""
    return acts.mean((0, 2, 3))[None, :, None, None] if acts.ndim == 4 else acts.mean((0, 1))[None, None]


def image_setup(model: ImageModel, plan: Plan, names: Sequence[str], tune: PreparedPictures) -> tuple[Setup, dict[str, Any]]:
    """Units, controls and means, from tune pictures; and a record of the controls. Raises UsageError for options."""
    settings = plan.settings
    if unread := sorted(settings["options"]):
        raise bad_argument("option", ", ".join(unread), "none, of an image model")
    if settings["positions"] != "all":
        raise bad_argument("positions", settings["positions"], "all, of an image model")
    units = channels_of(model, names)
    means, sets, complement = {}, [()] * settings["draws"], []
    clean, corrupted = (_load(model, [getattr(pair, run) for pair in tune.pairs]) for run in ("clean", "corrupted"))
    for site, numbers in by_site(units).items():
        acts, without = (model.capture(images, [site])[site] for images in (clean, corrupted))
        point = model.layout.points[site]
        means[site] = mean_over_places(without)
        draws = matched(acts, numbers, settings["draws"], settings["seed"], point.heads)
        sets = [(*have, *(model.unit(site, number) for number in drawn)) for have, drawn in zip(sets, draws, strict=True)]
        complement += [model.unit(site, number) for number in range(point.width) if number not in numbers]
    rng = np.random.default_rng([settings["seed"], 3])
    added = tuple(complement[i] for i in sorted(rng.permutation(len(complement))[:N_ADDED].tolist()))
    random_sets = tuple(dict.fromkeys(sets))
    setup = Setup(units, tuple(complement), random_sets, means, plan.metric, "all", settings["control_pairs"], added)
    record = {"random": [digest(list(drawn))[:12] for drawn in random_sets], "matched": "mean and spread on tune",
              "complement": len(complement), "added": list(added)}  # fmt: skip
    return setup, record


class ImageInstrument:
    """Measures some pairs of pictures."""

    def __init__(self, model: ImageModel, task: PreparedPictures, rows: Sequence[int], setup: Setup) -> None:
        self.model, self.setup, self.rows = model, setup, list(rows)
        self.units, self.complement, self.random_sets = setup.units, setup.complement, setup.random_sets
        pairs = [task.pairs[row] for row in self.rows]
        self.images = {"clean": _load(model, [p.clean for p in pairs]), "corrupted": _load(model, [p.corrupted for p in pairs])}
        self.classes = [(task.answers[row], task.foils[row]) for row in self.rows]
        self._controls = control_rows(task.templates, rows, setup.control_pairs)
        sites = list(by_site(setup.units))
        self._tail = tail_of(model, sites[0]) if len(sites) == 1 else None
        self._values: dict[tuple[str, str], Tensor] = {}
        self._kept: dict[Any, Column] = {}

    @property
    def clean(self) -> Column:
        """The metric on clean pictures."""
        return self._score("clean", (), "")

    @property
    def corrupted(self) -> Column:
        """The metric on corrupted pictures."""
        return self._score("corrupted", (), "")

    def ablated(self, units: Units, how: str, controls: bool = False) -> Column:
        """Clean pictures with units at zero, at their mean, or at their corrupted values (`resample`)."""
        return self._score("clean", units, how, controls)

    def restored(self, units: Units, controls: bool = False) -> Column:
        """Corrupted pictures with units at their clean values."""
        return self._score("corrupted", units, "restore", controls)

    def patched(self, units: Units, how: str) -> Column:
        """One plain run on the control pairs."""
        return self._score("clean" if how == "resample" else "corrupted", units, how, True)

    def many(self, sets: Sequence[Units], how: str) -> list[Column]:
        """Every set on the control pairs; `how`: resample, restore or same."""
        return [self.patched(units, how) for units in sets]

    def everything(self) -> str:
        """A site that all that is read comes through: the first map of the run, whole."""
        return next(iter(self.model.layout.points))

    def alone(self, units: Units, how: str) -> None:
        """Not asked of channels."""
        return None

    def rivals(self, sets: Sequence[Units]) -> list[Column]:
        """Each of these sets restored alone."""
        return [self.restored(units) for units in sets]

    # internal --------------------------------------------------------------------------------

    def _score(self, run: str, units: Units, how: str, controls: bool = False) -> Column:
        key = (run, units, how, controls)
        if key not in self._kept:
            places = self._controls if controls else list(range(len(self.rows)))
            out: Column = [None] * len(self.rows)
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                for place, row in zip(part, self._logits(run, units, how, part).double(), strict=True):
                    out[place] = float(class_score(row[None], *self.classes[place])[0])
            self._kept[key] = out
        return self._kept[key]

    def _logits(self, run: str, units: Units, how: str, part: list[int]) -> Tensor:
        edits = self._edits(units, how, part)
        if self._tail is None or any(edit.site != self._tail.site for edit in edits):
            return self.model.logits(self.images[run][part], edits)
        values = self._of(run, self._tail.site)[part]
        for edit in edits:
            values = edited(values, edit, None, self.model.layout.points[edit.site])
        return self._tail.logits(values)

    def _edits(self, units: Units, how: str, part: list[int]) -> list[ImageEdit]:
        if units and units[0] in self.model.layout.points:  # whole, of `everything`
            return [ImageEdit(units[0], self._of("clean", units[0])[part])]
        return [ImageEdit(site, self._value(site, how, part), "set", numbers) for site, numbers in by_site(units).items()]

    def _value(self, site: str, how: str, part: list[int]) -> Tensor | float:
        if how == "zero":
            return 0.0
        means: Any = self.setup.means
        if how == "mean":
            return means[site]
        return self._of({"resample": "corrupted", "restore": "clean", "same": "corrupted"}[how], site)[part]

    def _of(self, run: str, site: str) -> Tensor:
        if (run, site) not in self._values:
            self._values[run, site] = self.model.capture(self.images[run], [site])[site]
        return self._values[run, site]


def _load(model: ImageModel, names: Sequence[str]) -> Tensor:
    return images_for(model.pixels, names)
