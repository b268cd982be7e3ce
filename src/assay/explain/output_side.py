"""What features do to the next token: through the unembedding, and in the running model.

With d what a feature adds to the residual stream when it is 1, N(x) = gain * (x - c mean x) / sigma(x) + bias the final norm
and W_U the unembedding:

1. Direct: change of the logits to first order, J d W_U with J the norm's Jacobian,
       J d = gain * (h - x^ (x^ . h) / d_model) / sigma,     h = d - c mean d,  x^ = (x - c mean x) / sigma
   averaged over the ends of contexts; without contexts sigma = 1 and the x^ term is left out: then only the order of tokens and
   the ratios count. The mean over the vocabulary is taken off (softmax does not see it). Nothing between the feature and the
   final norm is in it, and no soft cap.
2. d of a latent: its decoder row, summed over the sites it writes to; of a neuron: its column of the down-projection (through
   the gain of a norm behind it, where there is one); of a direction in the residual stream: itself; of a head: what it adds on
   average where it is on, minus what it adds elsewhere in the same windows. Other sites have no d: they can be clamped only.
3. Clamped: at the last token of every context the feature is set to a target t, by adding (t - its value there) d' at the sites
   it is written to (d' as the engine's site has it: one neuron, a decoder row, ..), and the model goes on. Per context
       change(v) = log p'(v) - log p(v)
   Tokens are promoted by their part of KL(p' || p), p'(v) change(v), and suppressed by theirs of KL(p || p'), -p(v) change(v),
   both averaged over contexts: rare tokens that stay rare are not listed. `value` of a token is its mean change.
4. Heads and directions have no value of 0 to start from. A head is moved by d; of a direction the mean of its projections over
   the contexts counts as 0.

Passes begin at the layer that is changed, for the last token only (`Model.checkpoint`).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError, bad_argument
from assay.explain.records import FIRING, Sample, Window
from assay.explain.units import Columns, Latents, UnitSource
from assay.features.dictionary import of_texts
from assay.model.edits import Edit, add
from assay.model.model import Model
from assay.model.readers import Norm, affine
from assay.sites import Site, parse_site

STREAM = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
TOP, CONTEXTS = 10, 16
PAIRS = 512  # (feature, context) pairs of one pass
HEAD_WINDOWS = 40  # windows that a head's direction is read from
Report = Callable[[int], Any]


# records ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary. `value`: change of its logit per unit of the feature (direct), or of its log-probability."""

    id: int
    text: str
    value: float


@dataclass(frozen=True)
class Output:
    """What one feature does to the next token. `method`: direct or clamped; `documents`: those its contexts are from."""

    feature: str
    method: str
    promoted: tuple[Token, ...]
    suppressed: tuple[Token, ...]
    documents: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain values."""
        lists = {name: [{"id": t.id, "text": t.text, "value": t.value} for t in getattr(self, name)]
                 for name in ("promoted", "suppressed")}  # fmt: skip
        return {"method": self.method, **lists, "documents": list(self.documents), "detail": dict(self.detail)}


@dataclass(frozen=True, eq=False)
class Contexts:
    """Token ids that end where the next token is predicted, and the document of each."""

    tokens: tuple[tuple[int, ...], ...]
    documents: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Changes:
    """Clamped effects of a set of features in the same contexts.

    `values`: change of log p of some `tokens` (ids) by feature and context; `outputs`: the lists of every feature.
    """

    features: tuple[str, ...]
    outputs: Mapping[str, Output]
    tokens: tuple[int, ...]
    values: Float[np.ndarray, "feature context token"]
    documents: tuple[str, ...]

    def of(self, tokens: Sequence[int]) -> Float[np.ndarray, "feature context"] | None:
        """Mean change of some tokens; None where one of them was not measured."""
        place = {token: column for column, token in enumerate(self.tokens)}
        if not tokens or any(token not in place for token in tokens):
            return None
        return self.values[:, :, [place[token] for token in tokens]].astype(np.float64).mean(2)


def contexts_of(model: Model, samples: Iterable[Sample], side: str, n: int = CONTEXTS, seed: int = 0) -> Contexts:
    """n windows of samples, drawn by seed, one per document, up to the token they were chosen by. `side`: shown or scored.

    Raises UsageError for another side, or fewer than 2 documents. Fewer than n where there are fewer documents.
    """
    if side not in ("shown", "scored"):
        raise bad_argument("side", side, "shown or scored")
    found: dict[str, tuple[int, ...]] = {}
    for sample in samples:
        for window in getattr(sample, side):
            found.setdefault(window.document, _read(model, window))
    if len(found) < 2:
        raise bad_argument("samples", f"{len(found)} documents", "windows of 2 documents or more")
    names = sorted(found)
    chosen = [names[place] for place in np.random.default_rng(seed).permutation(len(names))[:n]]
    return Contexts(tuple(found[name] for name in chosen), tuple(chosen))


def _read(model: Model, window: Window) -> tuple[int, ...]:
    """A window's tokens up to the one it was chosen by, behind the token that begins every text."""
    tokens = tuple(window.tokens[: window.at + 1])
    first = model.bos_id if model.prepend_bos else None
    return tokens if first is None or tokens[0] == first else (first, *tokens)


# what features write ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Written:
    """Some features that write to the same sites. `vectors`: what 1 of each adds there, by site.

    `stream`: what each adds to the residual stream; None: that is no one direction. `now`: their values at the last token of
    contexts, (context, feature); None: they are moved, not set. `scale`: times `vectors` is what 1 of each adds, by
    context, where a dictionary normalises its inputs; None: 1.
    """

    names: tuple[str, ...]
    vectors: Mapping[str, Float[Tensor, "feature ..."]]
    stream: Float[Tensor, "feature d_model"] | None
    now: Callable[[Sequence[Sequence[int]]], Float[Tensor, "context feature"]] | None
    scale: Callable[[Sequence[Sequence[int]]], Float[Tensor, "context 1"]] | None = None


def written(model: Model, units: UnitSource, samples: Iterable[Sample] = ()) -> list[Written]:
    """What units write, in groups of the same sites and in the order of their names.

    `samples` of heads: their windows say what a head adds when it is on; a head that is on in none of them is left out. Raises
    SiteError for a dictionary that does not say where it writes, UsageError for heads none of which has a sample.
    """
    if isinstance(units, Latents):
        return [_latents(model, units)]
    if not isinstance(units, Columns):
        raise bad_argument("units", type(units).__name__, "latents, neurons, heads or directions")
    if units.kind == "head":
        return _heads(model, units, {sample.feature: sample for sample in samples})
    return list(_columns(model, units))


def some_of(groups: Iterable[Written], names: Collection[str]) -> list[Written]:
    """Some features of groups, by name; groups without any are left out."""
    return [_some(group, rows) for group in groups
            if (rows := [row for row, name in enumerate(group.names) if name in names])]  # fmt: skip


def _some(group: Written, rows: list[int]) -> Written:
    now = group.now
    return Written(tuple(group.names[row] for row in rows), {site: each[rows] for site, each in group.vectors.items()},
                   None if group.stream is None else group.stream[rows],
                   None if now is None else lambda tokens: now(tokens)[:, rows], group.scale)  # fmt: skip


def _latents(model: Model, units: Latents) -> Written:
    spec, dictionary = units.dictionary.spec, units.dictionary
    if dictionary.reads_texts:
        raise of_texts(dictionary, "They are read at the last token alone.")
    if not spec.outputs:
        raise SiteError(
            f"dictionary {dictionary.name}: its file does not say where it writes. Set spec.outputs when it is loaded."
        )
    sites = model.sites(list(spec.outputs))
    shapes = [model.feature_shape(site) or (model.dims.d_model,) for site in sites]
    parts = dictionary.directions()[list(units.only)].float().cpu().split([int(torch.Size(s).numel()) for s in shapes], dim=1)
    vectors = {str(site): part.unflatten(1, shape) for site, part, shape in zip(sites, parts, shapes, strict=True)}
    stream = torch.stack(parts).sum(0) if all(site.name in STREAM for site in sites) else None

    def read(tokens: Sequence[Sequence[int]]) -> Tensor:
        acts = model.capture([list(ids) for ids in tokens], list(units.sites), positions="last")
        return torch.cat([acts[site].flatten(1).float() for site in model.sites(list(units.sites))], 1)

    def now(tokens: Sequence[Sequence[int]]) -> Tensor:
        return dictionary.encode(read(tokens))[:, list(units.only)].float().cpu()

    def scale(tokens: Sequence[Sequence[int]]) -> Tensor:
        return torch.as_tensor(dictionary.normed(read(tokens))[1]).float().cpu()

    return Written(units.names, vectors, stream, now, None if dictionary.input_norm == "none" else scale)


def _columns(model: Model, units: Columns) -> Iterator[Written]:
    """Neurons (one coordinate of a site each) and directions, site by site."""
    start, decoder = 0, units.decoder()
    for name, what in units.made:
        (site,) = model.sites(name)
        shape = model.feature_shape(site) or ()
        size = int(torch.Size(shape).numel())
        flat = torch.eye(size)[what] if units.kind == "neuron" else what.float().cpu()
        names = units.names[start : start + len(flat)]
        if site.name in STREAM:
            stream = units.sign * flat
        elif units.kind == "neuron" and decoder is not None:
            stream = _behind(model, site, units.sign * decoder[start : start + len(flat)])
        else:
            stream = None
        start += len(flat)
        yield Written(names, {name: (units.sign * flat).unflatten(1, shape)}, stream, _reader(model, site, units, flat))


def _reader(model: Model, site: Site, units: Columns, flat: Tensor) -> Callable[[Sequence[Sequence[int]]], Tensor]:
    def now(tokens: Sequence[Sequence[int]]) -> Tensor:
        x = model.capture([list(ids) for ids in tokens], site, positions="last")[site].flatten(1).float()
        values = units.sign * x @ flat.T
        return values - values.mean(0) if units.centred else values

    return now


def _behind(model: Model, site: Site, own: Float[Tensor, "feature d_model"]) -> Float[Tensor, "feature d_model"]:
    """Columns of a down-projection through the gain of the norm behind it, if there is one."""
    found = model.readers().post_norm(Site("mlp_out", site.layer))
    return own if found is None else found[1].centre(own) * found[1].gain.cpu()


def _heads(model: Model, units: Columns, samples: Mapping[str, Sample]) -> list[Written]:
    groups: dict[str, tuple[list[str], list[Tensor]]] = {}
    for name in units.names:
        if name not in samples or not _firing(samples[name]):
            continue
        site = parse_site(name)
        names, rows = groups.setdefault(str(site.whole), ([], []))
        names.append(name)
        rows.append(_head(model, site, samples[name]))
    if not groups:
        raise bad_argument("samples", "none of a head that is on", "samples of heads", "What a head adds is read from them.")
    return [Written(tuple(names), {site: torch.stack(rows)}, torch.stack(rows), None) for site, (names, rows) in groups.items()]


def _firing(sample: Sample) -> list[Window]:
    return [window for window in sample.shown if window.why in FIRING][:HEAD_WINDOWS]


def _head(model: Model, site: Site, sample: Sample) -> Float[Tensor, " d_model"]:
    """Mean contribution where a head is on minus elsewhere, over shown windows that are read again by themselves."""
    windows = _firing(sample)
    first = [model.bos_id] if model.prepend_bos and model.bos_id is not None else []
    acts = model.capture([[*first, *window.tokens] for window in windows], site)
    x = torch.cat([row[len(first) :] for row in acts.rows(site)]).float()
    on = torch.tensor([value > 0 for window in windows for value in window.values])
    return x[on].mean(0) - (x[~on].mean(0) if bool((~on).any()) else 0.0)


# through the unembedding --------------------------------------------------------------------------


def direct(
    model: Model, groups: Iterable[Written], contexts: Contexts | None = None, top: int = TOP, report: Report | None = None
) -> Iterator[Output]:
    """Tokens whose logits each feature moves most, to first order. Raises SiteError where a feature has no one direction in the
    residual stream, or the model's final norm or unembedding is of no known form."""
    turn, unembed = _final(model, contexts)
    documents = () if contexts is None else contexts.documents
    for group in groups:
        if group.stream is None:
            raise SiteError(f"{group.names[0]}: what it adds to the residual stream is not one direction. Clamp it instead.")
        for start in range(0, len(group.names), PAIRS):
            effects = turn(group.stream[start : start + PAIRS]) @ unembed
            effects = effects - effects.mean(1, keepdim=True)
            for name, row in zip(group.names[start : start + PAIRS], effects, strict=True):
                yield Output(name, "direct", _tokens(model, row, row, top), _tokens(model, -row, row, top), documents)
                if report:
                    report(1)


def _final(model: Model, contexts: Contexts | None) -> tuple[Callable[[Tensor], Tensor], Float[Tensor, "d_model vocab"]]:
    """(the final norm's mean Jacobian, the unembedding), in fp32."""
    norm = model.readers().norm(Site("logits"))
    weight, _ = affine(model.hf.get_submodule(model.layout.unembed), model.dims.d_model)
    if weight.shape[0] != model.dims.d_model:
        raise SiteError(f"{model.name}: something stands between its final norm and its unembedding. Clamp features instead.")
    gain, mean, radial = norm.gain.float().cpu(), 1.0, None
    if contexts is not None and norm.module is not None:
        mean, radial = _jacobian(model, norm, contexts)

    def turn(rows: Float[Tensor, "feature d_model"]) -> Tensor:
        h = norm.centre(rows.float())
        return gain * (mean * h - (0.0 if radial is None else h @ radial))

    return turn, weight.detach().float().cpu()


def _jacobian(model: Model, norm: Norm, contexts: Contexts) -> tuple[float, Float[Tensor, "d_model d_model"]]:
    """(mean of 1/sigma, mean of x^ x^T / (sigma d)) over the ends of contexts."""
    last = Site("resid_post", model.n_layers - 1)
    x = model.capture([list(ids) for ids in contexts.tokens], last, positions="last")[last].flatten(0, -2)
    with torch.no_grad():
        unit, inverse = (part.detach().float().cpu() for part in norm.at(x.to(norm.gain.device, model.dtype)))
    return float(inverse.mean()), (unit * inverse[:, None]).T @ unit / (len(unit) * unit.shape[1])


def _tokens(model: Model, key: Float[Tensor, " vocab"], value: Float[Tensor, " vocab"], top: int) -> tuple[Token, ...]:
    """The tokens with the largest keys, if above 0."""
    best = key.topk(min(top, len(key)))
    return tuple(Token(token, _text(model, token), float(value[token]))
                 for token, size in zip(best.indices.tolist(), best.values.tolist(), strict=True) if size > 0)  # fmt: skip


def _text(model: Model, token: int) -> str:
    return f"#{token}" if model.tokenizer is None else model.piece(token)


# in the running model -----------------------------------------------------------------------------


def clamped(
    model: Model, groups: Iterable[Written], contexts: Contexts, targets: Mapping[str, float], tokens: Iterable[int] = (),
    top: int = TOP, report: Report | None = None,
) -> Changes:  # fmt: skip
    """What happens to the next token when features are set to `targets` (their largest value, say) at the end of contexts.

    `tokens`: ids whose change is kept by context. Heads are moved by `targets` times what they add when on. Raises UsageError
    for a feature without a target.
    """
    kept = tuple(sorted(set(tokens)))
    plain = model.logits([list(ids) for ids in contexts.tokens]).float().log_softmax(-1)
    names: list[str] = []
    outputs: dict[str, Output] = {}
    values = []
    for group in groups:
        run = _Clamp(model, group, contexts, plain, torch.tensor(kept, dtype=torch.long), top)
        moves = run.moves(targets)
        size = max(1, PAIRS // len(contexts.tokens))
        for start in range(0, len(group.names), size):
            some = range(start, min(start + size, len(group.names)))
            made, change = run(some, moves[:, start : some.stop])
            outputs.update({output.feature: output for output in made})
            values.append(change)
            if report:
                report(len(some))
        names += group.names
    if not names:
        raise bad_argument("features", "none", "one or more")
    return Changes(tuple(names), outputs, kept, np.concatenate(values), contexts.documents)


class _Clamp:
    """One group of features in the same contexts."""

    def __init__(self, model: Model, group: Written, contexts: Contexts, plain: Tensor, tokens: Tensor, top: int) -> None:
        self.model, self.group, self.contexts, self.plain = model, group, contexts, plain
        self.kept, self.top = tokens, top
        layers = [site.layer for name in group.vectors for site in model.sites(name)]
        first = None if None in layers else min(layer for layer in layers if layer is not None)
        self.checkpoint = model.checkpoint([list(ids) for ids in contexts.tokens], [first]) if first else None

    def moves(self, targets: Mapping[str, float]) -> Float[Tensor, "context feature"]:
        """How far each feature is moved in each context, in units of its vectors."""
        missing = [name for name in self.group.names if name not in targets]
        if missing:
            raise bad_argument("targets", f"none for {missing[0]}", "a value for every feature")
        wanted = torch.tensor([float(targets[name]) for name in self.group.names])
        if not bool(wanted.isfinite().all()):
            raise bad_argument("targets", "a value that is not finite", "finite values")
        now = 0.0 if self.group.now is None else self.group.now(self.contexts.tokens)
        scale = 1.0 if self.group.scale is None else self.group.scale(self.contexts.tokens)
        return ((wanted - now) * scale).expand(len(self.contexts.tokens), -1)

    def __call__(self, some: range, moves: Float[Tensor, "context feature"]) -> tuple[list[Output], np.ndarray]:
        """Outputs of some features, and the changes of kept tokens (feature, context, token)."""
        n, vocab = len(self.contexts.tokens), self.plain.shape[1]
        up, down, change = (torch.zeros(len(some), vocab) for _ in range(3))
        divergence = torch.zeros(len(some))
        kept = np.zeros((len(some), n, len(self.kept)), np.float16)

        def take(logits: Tensor, rows: Tensor) -> Tensor:
            feature, context = rows.cpu() // n, rows.cpu() % n
            after, before = logits.float().cpu().log_softmax(-1), self.plain[context]
            moved = after - before
            up.index_add_(0, feature, after.exp() * moved)
            down.index_add_(0, feature, -before.exp() * moved)
            change.index_add_(0, feature, moved)
            divergence.index_add_(0, feature, (after.exp() * moved).sum(1))
            kept[feature.numpy(), context.numpy()] = moved[:, self.kept].numpy()
            return torch.zeros(len(rows))

        rows = list(range(n)) * len(some)
        prompts = [list(self.contexts.tokens[row]) for row in rows]
        resume = None if self.checkpoint is None else self.checkpoint.select(rows)
        self.model.score(prompts, take, edits=self._edits(some, moves), resume=resume)
        made = [self._output(self.group.names[unit], up[row] / n, down[row] / n, change[row] / n, float(divergence[row]) / n)
                for row, unit in enumerate(some)]  # fmt: skip
        return made, kept

    def _edits(self, some: range, moves: Float[Tensor, "context feature"]) -> list[Edit]:
        """Feature by feature, each in all contexts."""
        far = moves.T.reshape(-1)
        edits = []
        for name, vectors in self.group.vectors.items():
            rows = vectors[some.start : some.stop].repeat_interleave(moves.shape[0], 0)
            edits.append(add(name, far.view(-1, *[1] * (rows.dim() - 1)) * rows, positions="last"))
        return edits

    def _output(self, name: str, up: Tensor, down: Tensor, change: Tensor, divergence: float) -> Output:
        return Output(name, "clamped", _tokens(self.model, up, change, self.top), _tokens(self.model, down, change, self.top),
                      self.contexts.documents, {"kl": divergence, "contexts": len(self.contexts.tokens)})  # fmt: skip
