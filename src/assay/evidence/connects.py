"""*connects*: feature A drives feature B, or a writer of the graph drives a reader by the edge between them.

About two features:

1. A claim names two features of one model, A computed before B. It says that A raises B.
2. On tune, per feature: its off value (median), its spread, and the threshold beyond which it fires (mean + half a
   standard deviation: an even coin fires on its one side).
3. Co-activation: do both fire on the same token (or B up to `lag` tokens later), more than under circular shifts
   within the text? Also with what token identity explains taken out.
4. Cause: A is switched off wherever it fires; how far does B fall at its peak from A's first firing on, in standard
   deviations? Compared with features that fire about as often as B, and with changes of the same size at A's site
   along random directions from three pools.
5. Reverse: B switched off must leave A alone, since A comes first. B switched off must show in B.
6. Direct or by way of others: the same with all attention and MLP outputs in between kept at their own values.
7. With the option `second_corpus`: 3. and 4. again on its texts, with all that was fixed on tune.

About an edge (`z.3.1->q.5.2`, on the pairs of a task): `edge_link.py`.

How many pairs were screened to find this one (`screened` in the options, counted on discover data only) is kept
with the plan. A drop shows that B depends on A under this change; not that nothing else drives B, nor that A is
one thing. Two features with a common cause fire together and do not pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from assay.circuits.guards import check_task
from assay.data.prepare import PreparedTask, prepare
from assay.errors import SiteError, TaskError, UsageError, bad_argument
from assay.evidence.edge_link import EdgeLink, EdgeSetup, edge_link_setup, edge_of, is_edge
from assay.evidence.effects import control_rows, per_pool, record_of, site_features
from assay.evidence.features import Feature, feature_of
from assay.evidence.gates.base import get_gate
from assay.evidence.kinds import KINDS, Columns, Item, Progress, made_of
from assay.evidence.second_corpus import FEWEST, second_texts
from assay.evidence.second_corpus import OPTION as SECOND
from assay.evidence.second_corpus import record_of as second_record
from assay.model.edits import Edit, patch
from assay.model.model import Model
from assay.probe.variants import capture_resumable, chunks, place_of, random_subspaces, width
from assay.records import GatePlan, Pair, Plan
from assay.sites import Site

Column = list[float | None]
N_MATCHED = 9
MIN_TOKENS = 2
KEPT_CHUNKS = 4  # of texts whose clean run stays in memory


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts ready for the model, of pairs their clean prompt."""

    items: list[Item]
    tokens: list[list[int]]
    dropped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def templates(self) -> list[str]:
        return [item.template for item in self.items]

    @property
    def words(self) -> None:
        return None

    def select(self, rows: Sequence[int]) -> "Texts":
        """Only these texts, in this order."""
        return Texts([self.items[row] for row in rows], [self.tokens[row] for row in rows], self.dropped)


@dataclass(frozen=True, eq=False)
class Reading:
    """A direction at a site with its off value, spread and firing threshold, from tune."""

    site: Site
    vector: Float[Tensor, " d"]
    off: float
    spread: float
    threshold: float
    rate: float = 0.0

    def fires(self, values: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Where the feature fires."""
        return values > self.threshold


@dataclass(frozen=True, eq=False)
class ConnectSetup:
    """What is fixed before sealed data are read. `matched`: features like B; `random`: directions at A's site;
    `between`: the sites that the direct effect keeps at their own values; `second`: texts of a second corpus."""

    a: Reading
    b: Reading
    matched: Mapping[str, Reading]
    random: Mapping[str, Float[Tensor, " d"]]
    between: tuple[Site, ...]
    lag: int
    control_texts: int
    second: Texts | None = None

    @property
    def targets(self) -> list[Reading]:
        """B, then the features like it."""
        return [self.b, *self.matched.values()]


class ConnectInstrument:
    """Measures texts of one split; runs are kept, so gates may ask for the same thing twice."""

    def __init__(self, model: Model, data: Texts, setup: ConnectSetup) -> None:
        self.model, self.data, self.setup = model, data, setup
        self._kept: dict[str, Columns] = {}
        self._clean: dict[tuple[int, ...], Clean] = {}

    def link(self) -> Columns:
        """Fall of B, and of every feature like it, when A is switched off; None where A never fires."""
        return self._once("link", self._link)

    def controls(self) -> Columns:
        """Fall of B under equal changes along random directions, on the first few texts of every template."""
        return self._once("controls", self._controls)

    def direct(self) -> Columns:
        """Fall of B with everything in between kept as it was; nothing where nothing is in between."""
        return self._once("direct", self._direct) if self.setup.between else {}

    def reverse(self) -> Columns:
        """When B is switched off: how far A moves, and how far B itself falls."""
        return self._once("reverse", self._reverse)

    def together(self) -> Columns:
        """Counts of firing, together and apart, per text."""
        return self._once("together", self._together)

    def second(self) -> Columns:
        """Fall of B and counts of firing in the texts of a second corpus, per text of it; nothing without one."""
        return self._once("second", self._second)

    # how each is measured ------------------------------------------------------------------------

    def _once(self, name: str, measure: Any) -> Columns:
        if name not in self._kept:
            self._kept[name] = measure()
        return self._kept[name]

    def _chunks(self, rows: Sequence[int]) -> Any:
        wide = 4 * (width(self.model, self.setup.a.site) + width(self.model, self.setup.b.site))
        lengths = [len(self.data.tokens[row]) for row in rows]
        for chunk in chunks(lengths, wide):
            here = tuple(rows[place] for place in chunk)
            clean = self._clean.get(here)
            if clean is None:
                clean = Clean(self.model, [self.data.tokens[row] for row in here], self.setup)
                if len(self._clean) < KEPT_CHUNKS:  # every gate asks for the same texts again
                    self._clean[here] = clean
            yield clean, here

    def _link(self) -> Columns:
        names = ["link", *(f"like.{name}" for name in self.setup.matched)]
        columns: Columns = {name: [None] * len(self.data) for name in names}
        for clean, rows in self._chunks(range(len(self.data))):
            (after,) = clean.after([self.setup.a.vector])
            for name, target, values in zip(names, self.setup.targets, clean.falls(after), strict=True):
                _write(columns[name], rows, values / target.spread)
        return columns

    def _controls(self) -> Columns:
        columns: Columns = {f"random.source.{name}": [None] * len(self.data) for name in self.setup.random}
        wanted = control_rows(self.data.templates, self.setup.control_texts)
        for clean, rows in self._chunks(wanted):
            for column, after in zip(columns.values(), clean.after(list(self.setup.random.values())), strict=True):
                _write(column, rows, clean.falls(after)[0] / self.setup.b.spread)
        return columns

    def _direct(self) -> Columns:
        column: Column = [None] * len(self.data)
        for clean, rows in self._chunks(range(len(self.data))):
            (after,) = clean.after([self.setup.a.vector], self.setup.between)
            _write(column, rows, clean.falls(after)[0] / self.setup.b.spread)
        return {"direct": column}

    def _reverse(self) -> Columns:
        columns: Columns = {"reverse": [None] * len(self.data), "itself": [None] * len(self.data)}
        for clean, rows in self._chunks(range(len(self.data))):
            moved, fallen = clean.without_b()
            _write(columns["reverse"], rows, moved / self.setup.a.spread)
            _write(columns["itself"], rows, fallen / self.setup.b.spread)
        return columns

    def _together(self) -> Columns:
        firing: list[tuple[np.ndarray, np.ndarray]] = []
        for clean, _ in self._chunks(range(len(self.data))):
            firing.extend(clean.firing())
        ids = self.data.tokens
        plain = [_counts(a, _soon(b, self.setup.lag)) for a, b in firing]
        a_left = _without_identity([a for a, _ in firing], ids)
        b_left = _without_identity([_soon(b, self.setup.lag) for _, b in firing], ids)
        partial = [_counts(a, b) for a, b in zip(a_left, b_left, strict=True)]
        return {**_named("together", plain), **_named("partial", partial)}


    def _second(self) -> Columns:
        data = self.setup.second
        if data is None:
            return {}
        there = ConnectInstrument(self.model, data, replace(self.setup, matched={}))
        number = {template: float(place) for place, template in enumerate(dict.fromkeys(data.templates))}
        columns = {"link": there.link()["link"], **there.together()}
        return {**{f"second.{name}": values for name, values in columns.items()},
                "second.template": [number[template] for template in data.templates]}  # fmt: skip


class Clean:
    """One chunk of texts as the model runs them, and what changes when something is switched off."""

    def __init__(self, model: Model, tokens: list[list[int]], setup: ConnectSetup) -> None:
        self.model, self.tokens, self.setup = model, tokens, setup
        acts, self.resume = capture_resumable(model, tokens, [setup.a.site, setup.b.site])
        self.at_a, self.at_b = acts[setup.a.site], acts[setup.b.site]
        self.real = torch.arange(self.at_a.shape[1]) < torch.tensor([len(ids) for ids in tokens])[:, None]
        self.a, self.b = self.at_a.float() @ setup.a.vector, self.at_b.float() @ setup.b.vector
        self.on = setup.a.fires(self.a) & self.real
        since = self.on.int().cumsum(1) > 0
        self.open = since & self.real  # from A's first firing on

    def after(self, directions: Sequence[Tensor], frozen: Sequence[Site] = ()) -> list[Float[Tensor, "text pos d"]]:
        """Activations at B's site when, wherever A fires, its excess is taken off along each of the directions."""
        excess = torch.where(self.on, self.a - self.setup.a.off, 0.0)
        kept = self.model.capture(self.tokens, list(frozen)) if frozen else {}
        found: list[Tensor] = []
        per_prompt = self.at_a.shape[-1] + self.at_b.shape[-1]
        for group in chunks([self.at_a.shape[1]] * len(directions), len(self.tokens) * per_prompt):
            values = torch.cat([self.at_a - (excess[..., None] * directions[number]).to(self.at_a) for number in group])
            edits = [patch(self.setup.a.site, values)]
            edits += [patch(site, kept[site].repeat(len(group), *[1] * (kept[site].dim() - 1))) for site in frozen]
            found.extend(self._at_b(edits, len(group)).split(len(self.tokens)))
        return found

    def falls(self, after: Float[Tensor, "text pos d"]) -> list[Float[Tensor, " text"]]:
        """Per target, the fall at its clean peak from A's first firing on; NaN where A never fires."""
        found = []
        for target in self.setup.targets:
            before = self.at_b.float() @ target.vector
            peak = before.masked_fill(~self.open, float("-inf")).argmax(1, keepdim=True)
            fall = (before - after.float() @ target.vector).gather(1, peak)[:, 0]
            found.append(torch.where(self.open.any(1), fall, torch.nan))
        return found

    def without_b(self) -> tuple[Float[Tensor, " text"], Float[Tensor, " text"]]:
        """(largest change of A, largest fall of B) when B is switched off wherever it fires; NaN where it never does."""
        setup = self.setup
        on = setup.b.fires(self.b) & self.real
        values = self.at_b - (torch.where(on, self.b - setup.b.off, 0.0)[..., None] * setup.b.vector).to(self.at_b)
        acts = self.model.capture(self.tokens, [setup.a.site, setup.b.site], edits=[patch(setup.b.site, values)],
                                  resume=self.resume)  # fmt: skip
        moved = (acts[setup.a.site].float() @ setup.a.vector - self.a).abs() * self.real
        fallen = (self.b - acts[setup.b.site].float() @ setup.b.vector) * self.real
        none = torch.full((len(self.tokens),), torch.nan)
        return torch.where(on.any(1), moved.amax(1), none), torch.where(on.any(1), fallen.amax(1), none)

    def firing(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text, where A and B fire, as 0 and 1."""
        a, b = self.on, self.setup.b.fires(self.b) & self.real
        return [(a[row, : len(ids)].double().numpy(), b[row, : len(ids)].double().numpy())
                for row, ids in enumerate(self.tokens)]  # fmt: skip

    def _at_b(self, edits: Sequence[Edit], copies: int) -> Tensor:
        resume = None if self.resume is None else self.resume.select(list(range(len(self.tokens))) * copies)
        return self.model.capture(self.tokens * copies, self.setup.b.site, edits=edits, resume=resume)[self.setup.b.site]


# counting ----------------------------------------------------------------------------------------


def _write(column: Column, rows: Sequence[int], values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        column[row] = None if value != value else value


def _soon(b: np.ndarray, lag: int) -> np.ndarray:
    """1 where B fires now or up to `lag` tokens later."""
    return np.max([np.concatenate([b[shift:], np.zeros(min(shift, len(b)))]) for shift in range(lag + 1)], axis=0)


def _counts(a: np.ndarray, b: np.ndarray) -> tuple[float, ...]:
    """(tokens, sum a, sum b, sum a², sum b², sum ab, mean over all circular shifts of sum ab)."""
    both = float(a @ b)
    shifted = (float(a.sum() * b.sum()) - both) / (len(a) - 1)
    return float(len(a)), float(a.sum()), float(b.sum()), float(a @ a), float(b @ b), both, shifted


def _named(name: str, counts: Sequence[tuple[float, ...]]) -> Columns:
    parts = ("n", "a", "b", "aa", "bb", "ab", "shifted")
    return {f"{name}.{part}": [row[place] for row in counts] for place, part in enumerate(parts)}


def _without_identity(values: Sequence[np.ndarray], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Values minus their mean over all places with the same token."""
    total: dict[int, list[float]] = {}
    for row, tokens in zip(values, ids, strict=True):
        for value, token in zip(row, tokens, strict=True):
            entry = total.setdefault(token, [0.0, 0.0])
            entry[0] += float(value)
            entry[1] += 1
    return [np.array([value - total[token][0] / total[token][1] for value, token in zip(row, tokens, strict=True)])
            for row, tokens in zip(values, ids, strict=True)]  # fmt: skip


# preparing ---------------------------------------------------------------------------------------


def reading(site: Site, vector: Tensor, acts: Float[Tensor, "token d"]) -> Reading:
    """A direction with what tune says about it."""
    values = acts @ vector
    spread = float(values.std(correction=0)) or 1.0
    threshold = float(values.mean()) + spread / 2
    return Reading(site, vector, float(values.median()), spread, threshold, float((values > threshold).float().mean()))


def like(b: Reading, acts: Float[Tensor, "token d"], n: int, seed: int) -> dict[str, Reading]:
    """The n directions at B's site, drawn from three pools, that fire about as often as B."""
    drawn = random_subspaces(acts - acts.mean(0), b.vector[None], 4 * n, seed + 1)
    found = {name: reading(b.site, basis[0], acts) for name, basis in drawn.items()}
    alive = [name for name, other in found.items() if 0 < other.rate < 1]
    order = sorted(alive, key=lambda name: (abs(found[name].rate - b.rate), name))
    return {name: found[name] for name in order[:n]}


def sites_between(model: Model, a: Site, b: Site) -> tuple[Site, ...]:
    """Attention and MLP outputs that are computed after A and feed into B."""
    points = model.layout.points
    start, end = points[a].order, points[b].order
    parts = [Site(name, layer) for layer in range(model.n_layers) for name in ("attn_out", "mlp_out")]
    inner = [site for site in parts if site in points and site not in (a, b) and start < points[site].order <= end]
    return tuple(inner)


@dataclass(frozen=True)
class Link:
    """What a *connects* claim is about: two features, the first driving the second."""

    source: Any
    target: Any


class Connects:
    """The kind *connects*, as the trial uses it."""

    name = "connects"
    score = "link"

    def subject(self, model: Model, given: Any) -> dict[str, Any]:
        """A `Link`, {"source", "target"} or a pair of features, the driving one first; or an edge, WRITER->READER. Raises
        UsageError, also where A comes after B."""
        if is_edge(given):
            edge = edge_of(model, given)
            return {"sites": [str(edge)], "writer": str(edge.writer), "reader": str(edge.reader)}
        given = made_of(Link, given)
        if not isinstance(given, str | Link) and isinstance(given, Sequence) and any(map(is_edge, given)):
            raise bad_argument("subject", ", ".join(map(str, given)), "one edge, or two features",
                               "State one claim per edge; of what they do together, one of kind mediates.")  # fmt: skip
        if not isinstance(given, Link):
            if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != 2:
                raise bad_argument("subject", given, "a Link, or two features: the driving one and the driven one")
            given = Link(*given)
        a, b = feature_of(given.source), feature_of(given.target)
        (site_a, (name_a,)), (site_b, (name_b,)) = site_features(model, [a]), site_features(model, [b])
        if model.layout.points[site_a].order >= model.layout.points[site_b].order:
            raise SiteError(f"source {name_a}: {site_a} is not computed before {site_b}; what comes later drives nothing."
                            " Name the earlier feature first.")  # fmt: skip
        return {"sites": [name_a, name_b], "source": a.record(), "target": b.record()}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        verb = {"tends": "tends to drive", "usually": "usually drives", "always": "always drives"}[quantifier]
        if "reader" in subject:
            return f"{subject['writer']} {verb} {subject['reader']} by the edge between them on {data}"
        return f"{subject['sites'][0]} {verb} {subject['sites'][1]} on {data}"

    def load(self, model: Model, items: Sequence[Item]) -> Texts:
        """Texts of at least two tokens. Raises TaskError when there are none."""
        tokens = model.tokens([item.texts[0] for item in items])
        kept = [row for row, ids in enumerate(tokens) if len(ids) >= MIN_TOKENS]
        if not kept:
            raise TaskError(f"none of {len(items)} texts has {MIN_TOKENS} tokens in {model.name}.")
        lost = {"one token only": len(items) - len(kept)} if len(kept) < len(items) else {}
        return Texts([items[row] for row in kept], [tokens[row] for row in kept], lost)

    def prepare(
        self, model: Model, plan: Plan, subject: Mapping[str, Any], tune: Texts
    ) -> tuple[ConnectSetup | EdgeSetup, dict[str, Any]]:
        """Off values, thresholds, matched features and random directions, from tune; of an edge other edges."""
        settings, options = plan.settings, plan.settings["options"]
        if "reader" in subject:
            return _prepare_edge(model, plan, subject, tune)
        a, b = (_read_tune(model, feature_of(subject[name]), tune) for name in ("source", "target"))
        matched = like(b[0], b[1], N_MATCHED, settings["seed"])
        drawn = random_subspaces(a[1] - a[1].mean(0), a[0].vector[None], per_pool(settings["draws"]), settings["seed"])
        between = sites_between(model, a[0].site, b[0].site)
        second = self._second(model, options, settings["seed"], tune)
        setup = ConnectSetup(a[0], b[0], matched, {name: basis[0] for name, basis in drawn.items()}, between,
                             int(options.get("lag", 0)), settings["control_pairs"], second)  # fmt: skip
        record = {"random": record_of(drawn), "like": record_of({name: each.vector for name, each in matched.items()}),
                  "screened": int(options.get("screened", 1)), "between": [str(site) for site in between],
                  "rates": {"source": round(a[0].rate, 4), "target": round(b[0].rate, 4)},
                  **second_record(None if second is None else second.items)}  # fmt: skip
        return setup, record

    def _second(self, model: Model, options: Mapping[str, Any], seed: int, tune: Texts) -> Texts | None:
        """The texts of the corpus that the options name. Raises TaskError for one with too few templates."""
        if SECOND not in options:
            return None
        name = str(options[SECOND])
        found = self.load(model, second_texts(name, seed, [item.texts[0] for item in tune.items], tune.templates))
        if (n := len(set(found.templates))) < FEWEST:
            raise TaskError(f"option {SECOND}: {name} has {n} templates; allowed: {FEWEST} or more.")
        return found

    def measure(
        self, model: Model, data: Texts, setup: ConnectSetup | EdgeSetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need, over all texts of a split; None for pairs that an edge cannot be measured on."""
        rows = None
        if isinstance(setup, EdgeSetup):
            task, rows = aligned_pairs(model, data)
            instrument = EdgeLink(model, task, setup)
        else:
            instrument = ConnectInstrument(model, data, setup)
        columns: Columns = {}
        for number, gate in enumerate(gates):
            columns.update(get_gate(gate.name).measure(instrument, gate))
            if report:
                report("measuring", number + 1, len(gates))
        return columns if rows is None else {name: _over(rows, values, len(data)) for name, values in columns.items()}


def aligned_pairs(model: Model, data: Texts) -> tuple[PreparedTask, list[int]]:
    """The pairs that agree token by token, and their rows. Raises UsageError for texts that are no pairs, TaskError where no
    pair is left."""
    if not all(isinstance(item, Pair) for item in data.items):
        raise UsageError("data: got labelled texts; allowed: a task (pairs of prompts), for an edge. See: assay tasks.")
    task = prepare(data.items, model)
    kept = {id(pair) for pair in task.pairs}
    return task, [row for row, item in enumerate(data.items) if id(item) in kept]


def _over(rows: Sequence[int], values: Column, n: int) -> Column:
    out: Column = [None] * n
    for row, value in zip(rows, values, strict=True):
        out[row] = value
    return out


def _prepare_edge(model: Model, plan: Plan, subject: Mapping[str, Any], tune: Texts) -> tuple[EdgeSetup, dict[str, Any]]:
    """As `Connects.prepare`. Raises TaskError also for pairs that would make the numbers meaningless."""
    if plan.settings["positions"] != "all":
        raise bad_argument("positions", plan.settings["positions"], "all, for an edge")
    if unread := sorted(plan.settings["options"]):
        raise bad_argument("option", ", ".join(unread), "none, for an edge")
    task, _ = aligned_pairs(model, tune)
    check_task(model, task, plan.metric)
    edge = edge_of(model, subject["sites"][0])
    return edge_link_setup(model, plan, edge, task)


def _read_tune(model: Model, feature: Feature, tune: Texts) -> tuple[Reading, Tensor]:
    """What tune says about a feature, and the activations of its site there."""
    place = place_of(model, feature.site, "all")
    acts = torch.cat([model.capture([tune.tokens[row] for row in rows], place.site).flat(place.site).float()
                      for rows in chunks([len(ids) for ids in tune.tokens], width(model, place.site))])  # fmt: skip
    return reading(place.site, feature.direction(acts.shape[1]), acts), acts


KINDS.add("connects", Connects())
