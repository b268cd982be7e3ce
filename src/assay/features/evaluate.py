"""How good is a dictionary? Numbers on text it was not trained on, always beside what needs no learning.

1. Documents are divided: some are for means, principal axes and norm limits, the others for scores. Nothing that is
   fitted here sees the others. What the dictionary was trained on must be other text: that is for the caller to know.
2. Reconstruction, over typical tokens (`held_out.py`), in float64:
       FVU = sum |y - y'|^2 / sum |y - mean y|^2,      explained variance = 1 - FVU
   and two other forms that go by the same name: the mean over tokens of 1 - |y - y'|^2 / |y - mean|^2, which counts each
   token alike, and 1 - variance of the error / variance, which forgives a constant shift. `FVU, all tokens` includes the
   first positions and massive activations.
3. Loss recovered when it takes the place of the activations: `spliced.py`.
4. Latents: active per token (L0), never active here (dead), active at more than a tenth of tokens (dense), with a twin in
   the same dictionary (duplicates), and the histogram of firing rates.
5. Controls, in columns of their own, measured alike: principal axes and raw coordinates with as many numbers per token as
   the dictionary has latents active there; the same recipe with a decoder that stays random; the same recipe on a model
   that was never trained, measured on that model.
6. What else is asked for: agreement with dictionaries of other seeds (`agreement.py`), sparse probing, targeted probe
   perturbation and spurious correlation removal (`sparse_probing.py`), absorption (`absorption.py`), bits (`cost.py`).

Batches do not depend on each other: an `Engine` reads them in any number of processes, and their sums are added in the
order of batches, so that the numbers are the same (`sums.py`).

Bounds are over documents. Explained variance is necessary only: .71 of it went with 9% of the true features found, and
frozen random decoders come close on many scores (Korznikov et al. 2026; Heap et al. 2025). A number without its controls
says nothing, so none is given without them.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import UsageError, bad_argument
from assay.features.agreement import Agreement, agreement, duplicates
from assay.features.cost import Cost
from assay.features.dictionary import ARCHITECTURES, Dictionary, Spec, of_another_model
from assay.features.engines import Engine, Where, in_order, opened_there, opener_of
from assay.features.held_out import HeldOut, Limits, SideBySide, Tokens, limits_of, positions_of, read, read_tokens
from assay.features.ratios import Measure
from assay.features.spliced import MEAN, PLAIN, ZERO, Losses, splice, tokens_at_once
from assay.features.stream import ActivationStream, TensorStream
from assay.features.sums import NOTHING, Firing, Found, KeptSums, Moments, Rates
from assay.features.train import TrainPlan, gathered, plan_of, train
from assay.model.model import Model

Report = Callable[[str, int, int], Any]
OWN, EVERYWHERE, PCA, RAW, FROZEN, UNTRAINED = (
    "dictionary", "everywhere", "principal axes", "raw coordinates", "frozen decoder", "untrained model")  # fmt: skip
SIMPLE = (PCA, RAW)
DENSE, FIRST = 0.1, 8192
ROUGH = 20  # documents, below which 95% bounds of skewed errors hold about nine times in ten
FEW_FIT = 3  # tokens per dimension: means and axes of fewer are rough


@dataclass(frozen=True)
class EvaluationPlan:
    """How to evaluate. `batch`: tokens at a time; `loss_tokens`: how many are spliced into the model, to the end of a batch, 0
    for none; `fit`: share of documents for means and axes; `corpus_tokens`: over which the cost of weights is spread."""

    batch: int = 4096
    loss_tokens: int = 16_384
    fit: float = 0.25
    corpus_tokens: int = 1_000_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("loss_tokens", 0), ("corpus_tokens", 1)):
            if getattr(self, name) < least:
                raise bad_argument(name, getattr(self, name), f"{least} or more")
        if not 0 < self.fit <= 0.5:
            raise bad_argument("fit", self.fit, "above 0, at most 0.5")


@dataclass(frozen=True, eq=False)
class Controls:
    """What a dictionary is measured beside, apart from axes and coordinates, which always are.

    `frozen`: the recipe with a decoder that stayed random. `untrained`: a model without what it learned, and the recipe
    trained on it. `seeds`: dictionaries of the same recipe with other seeds. `same_recipe` makes all of them.
    """

    frozen: Dictionary | None = None
    untrained: tuple[Model | SideBySide, Dictionary] | None = None
    seeds: Sequence[Dictionary] = ()


@dataclass(frozen=True)
class Column:
    """Measures of one thing, by name; a measure that makes no sense for it is missing."""

    name: str
    says: str
    measures: Mapping[str, Measure]


@dataclass(frozen=True)
class Evaluation:
    """All that was measured. `columns`: the dictionary first, then its controls; `predictions`: over which losses are."""

    dictionary: str
    digest: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    architecture: str
    width: int
    model: Mapping[str, Any]
    tokens: int
    typical: int
    documents: int
    limits: Mapping[str, Any]
    columns: tuple[Column, ...]
    rates: Rates
    cost: Cost
    agreement: tuple[Agreement, ...]
    notes: tuple[str, ...]
    plan: EvaluationPlan
    predictions: int = 0
    further: Mapping[str, Any] = field(default_factory=dict)

    def of(self, column: str = OWN) -> Mapping[str, Measure]:
        """The measures of a column. Raises UsageError for one that was not measured."""
        for each in self.columns:
            if each.name == column:
                return each.measures
        raise bad_argument("column", column, ", ".join(each.name for each in self.columns))

    def json(self) -> dict[str, Any]:
        """As plain values; Assay's JSON keys."""
        columns = [{"name": each.name, "says": each.says, "measures": {k: m.json() for k, m in each.measures.items()}}
                   for each in self.columns]  # fmt: skip
        bits = {"which": self.cost.which, "values": self.cost.values, "weights": self.cost.weights, "total": self.cost.total}
        return {**{name: getattr(self, name) for name in ("dictionary", "digest", "architecture", "width", "tokens", "typical",
                                                          "documents", "predictions")},
                "inputs": list(self.inputs), "outputs": list(self.outputs), "model": dict(self.model),
                "limits": dict(self.limits), "columns": columns, "rates": vars(self.rates), "bits_per_token": bits,
                "agreement": [vars(each) for each in self.agreement], "notes": list(self.notes), "plan": vars(self.plan),
                "further": dict(self.further)}  # fmt: skip


def evaluate(
    dictionary: Dictionary,
    data: HeldOut | ActivationStream,
    model: Model | SideBySide | None = None,
    plan: EvaluationPlan | None = None,
    controls: Controls | None = None,
    report: Report | None = None,
    engine: Engine | None = None,
    opener: Callable[[], Model] | None = None,
    folder: Path | None = None,
) -> Evaluation:
    """Measure a dictionary on held-out text with its model, or on a held-out stream of activations without one. A crosscoder
    between two models is measured with both, `SideBySide`; its losses are over the predictions of both, and it is read here.

    `engine`: where text is read, None for here; `opener`: how its workers open the model (None: it is sent to them).
    `folder`: where sums so far are kept; the same evaluation goes on from them and ends with the same numbers.
    With a stream there is no loss, no untrained model, no bounds (its tokens are shuffled) and no atypical token.
    Raises UsageError for text without a model, for sites that model or stream do not have, for too little text, and for a
    folder of another evaluation.
    """
    plan, controls = plan or EvaluationPlan(), controls or Controls()
    if engine is not None and isinstance(model, SideBySide):
        raise bad_argument("engine", "one, and two models", "no engine", "What reads two models is evaluated here.")
    where = Where(engine, opener)
    source = _source(dictionary, data, model, plan)
    if controls.untrained is not None and model is None:
        raise bad_argument("controls.untrained", "a model", "None where there is a stream only")
    ways = {OWN: dictionary, **({FROZEN: controls.frozen} if controls.frozen is not None else {})}
    found = _measured(source, ways, plan, report, True, where, folder)
    columns = _columns(found, ways)
    notes = _notes(dictionary, source, controls)
    if found.losses is not None and (free := [way for way in (MEAN, ZERO) if found.losses.recovered(OWN, way) is None]):
        notes.append(f"Ablation ({', '.join(free)}) does not raise the cross-entropy: no share of that is recovered.")
    if controls.untrained is not None and isinstance(data, HeldOut):
        columns.append(_untrained(controls.untrained, data, plan, report, Where(engine, None), folder and folder / "untrained"))
    alive = found.latents[OWN].counts > 0
    others = [_alive_directions(source, other, plan) for other in controls.seeds]
    own = dictionary.directions()[alive]
    return Evaluation(
        dictionary.name, dictionary.digest, dictionary.spec.inputs, dictionary.spec.outputs, dictionary.architecture,
        dictionary.width, model.passport() if model is not None else {}, found.all.n_tokens, found.typical[OWN].n_tokens,
        len(source.names), source.limits.json(), tuple(columns), found.latents[OWN].histogram(),
        found.latents[OWN].cost(dictionary, found.typical[OWN].mse, plan.corpus_tokens),
        tuple(agreement(own, other, plan.seed) for other in others if len(own) and len(other)), tuple(notes), plan,
        int(found.losses.n.sum()) if found.losses is not None else 0,
    )  # fmt: skip


def same_recipe(
    dictionary: Dictionary, stream: ActivationStream, *, seed: int | None = None, frozen: bool = False,
    tokens: int | None = None, report: Report | None = None, folder: Path | None = None,
) -> Dictionary:  # fmt: skip
    """A dictionary by the recipe of another: on another stream, from another seed, or with a decoder that stays random.

    The recipe is in what `train` made; for dictionaries from elsewhere it is the one `train` has by default. Of what is only
    read from files its `stand_in` is trained, and inputs are taken as they are: a note of `evaluate` says so. `tokens`
    limits the training: the controls have then seen less. `folder`: where the state of training is kept. Raises UsageError
    for sites the stream does not have.
    """
    record = dictionary.provenance.get("plan")
    plan = TrainPlan() if record is None else plan_of(record, dictionary.spec.k)
    plan = replace(plan, seed=plan.seed + 1 if seed is None else seed, tokens=min(plan.tokens, tokens or plan.tokens))
    if frozen:
        plan = replace(plan, frozen=("W_dec",))
    name = f"{dictionary.name}, {'frozen decoder' if frozen else 'again'}"
    spec = _trainable(dictionary)
    if spec.k is None:
        first = gathered(next(stream.batches(min(plan.batch, 1024), plan.seed)), spec.inputs)
        alone = torch.zeros(len(first), dtype=torch.long)  # tokens of a stream are of no known texts
        spec = replace(spec, k=max(1, min(spec.width, round(float(dictionary.codes(first, alone).l0.mean())))))
    return train(stream, [spec], plan, folder, report, [name])[0].dictionary


def _trainable(dictionary: Dictionary) -> Spec:
    """Its spec, or the nearest one that can be trained: the stand-in of its architecture, inputs as they are."""
    architecture = dictionary.architecture if dictionary.trains else dictionary.stand_in
    known = set(ARCHITECTURES.get(architecture).option_names) - {"input_norm"}
    options = {name: value for name, value in dictionary.spec.options.items() if name in known}
    return replace(dictionary.spec, architecture=architecture, options=options)


def activations(
    model: Model, dictionary: Dictionary, held: HeldOut, tokens: int, batch: int = 4096
) -> TensorStream:  # fmt: skip
    """Typical activations of a model at a dictionary's sites, in memory: what controls are trained on."""
    sites = tuple(dict.fromkeys((*dictionary.spec.inputs, *dictionary.spec.outputs)))
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    limits: Limits | None = None
    for rows in held.batches(batch):
        whole = read_tokens(model, dictionary, rows, limits or Limits(dictionary.spec.skip_first, None, None), held.names)
        limits = limits or limits_of(dictionary, whole.x, whole.y)
        keep = limits.typical(whole.x, whole.y, positions_of(rows)) & whole.typical
        for site in sites:
            parts[site].append(read(model, [site], rows)[keep])
        if sum(map(len, parts[sites[0]])) >= tokens:
            break
    made = {site: torch.cat(values)[:tokens] for site, values in parts.items()}
    if not len(made[sites[0]]):
        raise UsageError(NOTHING)
    stream = TensorStream(made, {"model": model.digest, "tokens": len(made[sites[0]])})
    assert limits is not None
    stream.skip_first = limits.skip_first
    if len(dictionary.spec.inputs) == len(dictionary.spec.outputs) == 1:
        stream.norm_limits.update({dictionary.spec.outputs[0]: limits.y, dictionary.spec.inputs[0]: limits.x})
    return stream


# what is read ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows to read, or tokens that are read already. `spliced`: whether loss is measured on it."""

    number: int
    held: HeldOut | Tokens
    spliced: bool = False

    @property
    def names(self) -> list[str]:
        """Its documents; tokens of a stream are of one."""
        return self.held.names if isinstance(self.held, HeldOut) else ["all"]


@dataclass(frozen=True, eq=False)
class _Source:
    """What is read: for fitting, and for scores. `identity`: what it is told from other text by."""

    names: list[str]
    identity: Mapping[str, Any]
    limits: Limits
    fit: Callable[[], Iterator[_Batch]]
    score: Callable[[], Iterator[_Batch]]
    model: Model | SideBySide | None
    n_score: int
    n_fit: int = 0


def _source(
    dictionary: Dictionary, data: HeldOut | ActivationStream, model: Model | SideBySide | None, plan: EvaluationPlan
) -> _Source:  # fmt: skip
    if isinstance(data, HeldOut):
        if model is None:
            raise bad_argument("model", None, "the model whose text this is", "Or give a stream of activations.")
        return _text_source(dictionary, data, model, plan)
    return _stream_source(dictionary, data, plan)


def _text_source(dictionary: Dictionary, data: HeldOut, model: Model | SideBySide, plan: EvaluationPlan) -> _Source:
    if not dictionary.spec.inputs or not dictionary.spec.outputs:
        raise bad_argument("dictionary", f"{dictionary.name}, which names no site", "one whose spec has inputs and outputs")
    fit, held = data.divided(plan.fit)
    anything = Limits(dictionary.spec.skip_first, None, None)
    first = read_tokens(model, dictionary, next(fit.batches(FIRST)), anything, fit.names)
    _check_width(dictionary, first)
    limits = limits_of(dictionary, first.x, first.y)
    size = tokens_at_once(model, plan.batch) if plan.loss_tokens else plan.batch

    def fitting() -> Iterator[_Batch]:
        return (_Batch(number, rows) for number, rows in enumerate(fit.batches(plan.batch)))

    def scoring() -> Iterator[_Batch]:
        done = 0
        for number, rows in enumerate(held.batches(size)):
            yield _Batch(number, rows, done < plan.loss_tokens)
            done += rows.n_tokens

    return _Source(held.names, {"rows": data.digest}, limits, fitting, scoring, model, held.n_tokens, fit.n_tokens)


def _stream_source(dictionary: Dictionary, data: ActivationStream, plan: EvaluationPlan) -> _Source:
    if dictionary.reads_texts:
        raise bad_argument("data", "a stream of activations", "held-out text and its model",
                           f"What latents of a {dictionary.architecture} are depends on the tokens before.")  # fmt: skip
    n_fit = max(1, int(data.n_tokens * plan.fit) // plan.batch)
    n_all = max(n_fit + 1, data.n_tokens // plan.batch)
    size = max(1, min(plan.batch, data.n_tokens // (n_fit + 1)))
    x_limit, y_limit = (data.norm_limits.get(sites[0]) if len(sites) == 1 else None
                        for sites in (dictionary.spec.inputs, dictionary.spec.outputs))  # fmt: skip
    limits = Limits(data.skip_first, x_limit, y_limit)

    def tokens(start: int, stop: int) -> Iterator[_Batch]:
        batches = data.batches(size, plan.seed, start)
        for number in range(stop - start):
            batch = next(batches)
            x, y = (gathered(batch, sites or data.sites[:1]) for sites in (dictionary.spec.inputs, dictionary.spec.outputs))
            found = Tokens(x, y, torch.zeros(len(x), dtype=torch.long), torch.ones(len(x), dtype=torch.bool))
            yield _Batch(number, found)

    for site in (*dictionary.spec.inputs, *dictionary.spec.outputs):
        if site not in data.sites:
            raise bad_argument("site", site, ", ".join(data.sites), "The stream must have the dictionary's sites.")
    first = next(tokens(0, 1)).held
    assert isinstance(first, Tokens)
    _check_width(dictionary, first)
    identity = {**data.record, "first": hashlib.sha256(first.x.numpy().tobytes()).hexdigest()}
    return _Source(
        ["all"], identity, limits, lambda: tokens(0, n_fit), lambda: tokens(n_fit, n_all), None, (n_all - n_fit) * size
    )


def _check_width(dictionary: Dictionary, first: Tokens) -> None:
    widths = (first.x.shape[1], first.y.shape[1])
    if widths != (dictionary.spec.d_in, dictionary.spec.d_out):
        raise bad_argument("dictionary", f"{dictionary.name}, for {dictionary.spec.d_in} and {dictionary.spec.d_out} features",
                           f"one for {widths[0]} and {widths[1]}, what {', '.join(dictionary.spec.inputs)} and"
                           f" {', '.join(dictionary.spec.outputs)} have here")  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Reader:
    """What a process needs to read batches of one source."""

    model: Model | SideBySide | None
    ways: Mapping[str, Dictionary]
    limits: Limits

    def tokens(self, batch: _Batch) -> Tokens:
        """Activations of a batch, documents numbered inside it."""
        if isinstance(batch.held, Tokens):
            return batch.held
        assert self.model is not None
        return read_tokens(self.model, self.ways[OWN], batch.held, self.limits, batch.names)

    def moments(self, simple: bool, batch: _Batch) -> tuple[int, Moments]:
        """(number, sums over the typical targets of this batch)."""
        tokens, found = self.tokens(batch), Moments(simple)
        found.add(tokens.y[tokens.typical])
        return batch.number, found

    def scores(self, mean: Tensor, axes: Tensor | None, simple: bool, batch: _Batch) -> tuple[int, tuple[list[str], Found]]:
        """(number, (documents, sums over this batch))."""
        found = Found.empty(self.ways, len(batch.names), mean, SIMPLE if simple else (), batch.spliced)
        tokens = self.tokens(batch)
        values = _rebuilt(tokens, self.ways, mean, axes, found)
        if found.losses is not None and isinstance(batch.held, HeldOut):
            assert self.model is not None
            places = [batch.names.index(name) for name in batch.held.documents]
            splice(self.model, batch.held, self.ways[OWN].spec.outputs, values, found.losses, places)
        return batch.number, (batch.names, found)


def _reader_there(opener: Callable[[], Model] | None, digest: str, reader: _Reader, method: str, *given: Any) -> Callable:
    """One method of a reader, in another process."""
    model = opened_there(opener, digest) if opener else None
    return partial(getattr(replace(reader, model=model), method), *given)


def _results(
    source: _Source, reader: _Reader, where: Where, batches: Iterator[_Batch], done: int, method: str, *given: Any
) -> Iterator:  # fmt: skip
    """What a method of the reader makes of each batch, in their order, after the first `done`."""
    left = islice(batches, done, None)
    if where.engine is None:
        return in_order(where.run(lambda: partial(getattr(reader, method), *given), left), done)
    model = source.model
    opener = (where.opener or opener_of(model)) if isinstance(model, Model) else None
    make = partial(_reader_there, opener, model.digest if model else "", replace(reader, model=None), method, *given)
    return in_order(where.run(make, left), done)


def _measured(
    source: _Source, ways: Mapping[str, Dictionary], plan: EvaluationPlan, report: Report | None, simple: bool, where: Where,
    folder: Path | None,
) -> Found:  # fmt: skip
    """One pass for fitting, one for scores."""
    reader, identity = _Reader(source.model, ways, source.limits), _identity(source, ways, plan)
    moments, kept = Moments(simple), KeptSums(folder and folder / "moments.safetensors", identity)
    done = kept.take_up(moments)
    for part in _results(source, reader, where, source.fit(), done, "moments", simple):
        moments.merge(part)
        kept.keep(moments, done := done + 1)
    kept.keep(moments, done, last=True)
    mean, axes = moments.axes()
    losses = source.model is not None and plan.loss_tokens > 0
    found = Found.empty(ways, len(source.names), mean, SIMPLE if simple else (), losses)
    kept = KeptSums(folder and folder / "scores.safetensors", identity)
    place, done = {name: number for number, name in enumerate(source.names)}, kept.take_up(found)
    for names, part in _results(source, reader, where, source.score(), done, "scores", mean, axes, simple):
        found.merge(part, torch.tensor([place[name] for name in names]))
        kept.keep(found, done := done + 1)
        if report is not None:
            report("evaluating", found.all.n_tokens, source.n_score)
    kept.keep(found, done, last=True)
    if not found.typical[OWN].n_tokens:
        raise UsageError(NOTHING)
    return found


def _identity(source: _Source, ways: Mapping[str, Dictionary], plan: EvaluationPlan) -> str:
    """What must be the same for kept sums to be of use."""
    what = {"text": source.identity, "ways": {name: each.digest for name, each in ways.items()}, "plan": asdict(plan),
            "limits": source.limits.json(), "model": source.model and source.model.digest}  # fmt: skip
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _rebuilt(
    tokens: Tokens, ways: Mapping[str, Dictionary], mean: Tensor, axes: Tensor | None, found: Found
) -> dict[str, Tensor]:
    """Add one batch to all sums; what is to be spliced, by name: typical tokens replaced, others as they are."""
    typical, values = tokens.typical, {}
    y, places = tokens.y[typical], tokens.documents[typical]
    values[ZERO], values[MEAN] = (_placed(tokens, part) for part in (torch.zeros_like(y), mean.float().expand_as(y)))
    counts = torch.zeros(len(y), dtype=torch.long)
    for name, dictionary in ways.items():
        codes = dictionary.codes(tokens.x, tokens.positions)
        whole, active = dictionary.reconstruct(tokens.x, tokens.positions, codes), codes.l0[typical]
        found.typical[name].add(y, whole[typical], places, active)
        found.latents[name].add(codes, typical)
        values[name] = _placed(tokens, whole[typical])
        if name == OWN:
            counts = active.long()
            found.all.add(tokens.y, whole, tokens.documents)
            values[EVERYWHERE] = whole
    if axes is not None:
        for name, basis in zip(SIMPLE, (axes, None), strict=True):
            made = largest(y - mean.float(), counts, basis) + mean.float()
            found.typical[name].add(y, made, places, counts.clamp(max=y.shape[1]))
            values[name] = _placed(tokens, made)
    return values


def _placed(tokens: Tokens, made: Tensor) -> Tensor:
    """Targets of all tokens, the typical ones replaced."""
    whole = tokens.y.clone()
    whole[tokens.typical] = made.to(whole.dtype)
    return whole


def largest(
    centred: Float[Tensor, "token d"], counts: Int[Tensor, " token"], basis: Float[Tensor, "axis d"] | None
) -> Float[Tensor, "token d"]:
    """The best reconstruction with counts[t] coordinates of token t, in an orthonormal basis or the one they are in."""
    along = centred if basis is None else centred @ basis.T
    order = along.abs().argsort(dim=1, descending=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(along.shape[1]).expand_as(order))
    kept = along * (ranks < counts[:, None])
    return kept if basis is None else kept @ basis


# columns -----------------------------------------------------------------------------------------


SAYS = {
    OWN: "as it is", FROZEN: "the same recipe, its decoder left at random",
    PCA: "as many principal axes per token, the largest", RAW: "as many of the site's own coordinates per token, the largest",
    UNTRAINED: "the same recipe on an untrained model, measured there",
}  # fmt: skip


def _columns(found: Found, ways: Mapping[str, Dictionary]) -> list[Column]:
    columns = []
    for name, sums in found.typical.items():
        measures = {"FVU": sums.fvu(), **sums.forms(), "L0": sums.l0()}
        if name == OWN:
            measures["FVU, all tokens"] = found.all.fvu()
        if name in ways:
            measures.update(_of_latents(ways[name], found.latents[name]))
        if found.losses is not None:
            measures.update(_of_losses(found.losses, name))
        columns.append(Column(name, SAYS[name], {key: value for key, value in measures.items() if value is not None}))
    return columns


def _of_latents(dictionary: Dictionary, firing: Firing) -> dict[str, Measure]:
    """Dead, dense, duplicates."""
    alive: Bool[Tensor, " latent"] = firing.counts > 0
    return {"dead": Measure(float((~alive).float().mean())),
            "dense": Measure(float((firing.rates > DENSE).float().mean())),
            "duplicates": Measure(duplicates(dictionary.directions(), alive))}  # fmt: skip


def _of_losses(losses: Losses, name: str) -> dict[str, Measure | None]:
    """Loss and what of it is recovered."""
    found = {"CE": losses.mean(name), "CE recovered, against mean": losses.recovered(name, MEAN),
             "CE recovered, against zero": losses.recovered(name, ZERO),
             "KL recovered, against mean": losses.kl_recovered(name, MEAN),
             "KL recovered, against zero": losses.kl_recovered(name, ZERO)}  # fmt: skip
    if name != OWN:
        return found
    return {**found, "CE, model alone": losses.mean(PLAIN), "CE, zero": losses.mean(ZERO), "CE, mean": losses.mean(MEAN),
            "CE, every position": losses.mean(EVERYWHERE),
            "CE recovered, every position, against mean": losses.recovered(EVERYWHERE, MEAN)}  # fmt: skip


def _untrained(
    pair: tuple[Model | SideBySide, Dictionary], data: HeldOut, plan: EvaluationPlan, report: Report | None, where: Where,
    folder: Path | None,
) -> Column:  # fmt: skip
    """The twin's dictionary on the twin: reconstruction and latents; a loss that means nothing is left out."""
    twin, dictionary = pair
    plain = replace(plan, loss_tokens=0)
    found = _measured(_source(dictionary, data, twin, plain), {OWN: dictionary}, plain, report, False, where, folder)
    column = _columns(found, {OWN: dictionary})[0]
    return Column(UNTRAINED, SAYS[UNTRAINED], column.measures)


def _alive_directions(source: _Source, dictionary: Dictionary, plan: EvaluationPlan) -> Float[Tensor, "latent d"]:
    """Directions of another dictionary's latents that are active on the text for scores."""
    firing, reader = Firing(dictionary), _Reader(source.model, {OWN: dictionary}, source.limits)
    for batch in source.score():
        tokens = reader.tokens(batch)
        firing.add(dictionary.codes(tokens.x, tokens.positions), tokens.typical)
    return dictionary.directions()[firing.counts > 0]


def _notes(dictionary: Dictionary, source: _Source, controls: Controls) -> list[str]:
    """What a reader must know to read the numbers."""
    notes = []
    if source.limits.measured:
        notes.append("It came without a norm limit: tokens above 10 x the median norm here were left alone.")
    if source.model is not None and (other_model := of_another_model(dictionary, source.model.passport())):
        notes.append(other_model)
    if isinstance(source.model, SideBySide):
        notes.append(f"Cross-entropy and divergence are over the predictions of {' and '.join(source.model.models)} together.")
    if source.model is None:
        notes.append("A stream of shuffled activations: no loss and no bounds.")
    elif source.n_fit < FEW_FIT * dictionary.spec.d_out:
        notes.append(f"Means and principal axes are of {source.n_fit:,} tokens, few for {dictionary.spec.d_out} dimensions:"
                     " what is compared with them looks better than it is.")  # fmt: skip
    if source.model is not None and len(source.names) < ROUGH:
        notes.append(f"Only {len(source.names)} documents: bounds over documents are rough.")
    if controls.frozen is None:
        notes.append("No frozen decoder beside it: what a random decoder would reach is not known.")
    if controls.untrained is None:
        notes.append("No untrained model beside it: what the recipe finds without training of the model is not known.")
    own = dictionary.provenance.get("trained_tokens")
    for name, other in ((FROZEN, controls.frozen), (UNTRAINED, controls.untrained and controls.untrained[1])):
        if other is not None and (other.architecture, other.input_norm) != (dictionary.architecture, dictionary.input_norm):
            notes.append(f"The control {name!r} is a {other.architecture} on inputs as they are: a {dictionary.architecture}"
                         f" with input_norm {dictionary.input_norm!r} is not trained here.")  # fmt: skip
        seen = other.provenance.get("trained_tokens") if other is not None else None
        if seen is not None and (own is None or seen < own):
            notes.append(f"The control {name!r} was trained on {seen:,} tokens, the dictionary on"
                         f" {'an unknown number' if own is None else format(own, ',')}.")  # fmt: skip
    if dictionary.spec.transcodes:
        notes.append("Principal axes and raw coordinates read the target itself; a transcoder reads its input only.")
    return notes
