"""Attribution graphs of one prompt through transcoders: which latents made the model say what it says.

1. One clean run. Attention patterns and the divisors of all norms are held at it. Each MLP with a transcoder is replaced by
   the transcoder's reconstruction plus its error at every token; an MLP without one, and tokens that dictionaries are not for
   (the first, massive ones), are error as a whole. The replaced model does exactly what the clean run did.
2. Between the sources (embeddings, latents, errors) and what is read everything is now linear. With g the gradient of a
   target at the stream, going down layer by layer:

       norm        g <- P(gain * g) / sigma                                 P takes out the mean for a LayerNorm
       attention   g <- g + N^T( sum over heads  A_h^T  g' W_O[h]^T W_V[h]^T ),  g' = scale * N_post^T g
       skip        g <- g + N^T( g W_skip )                                 of transcoders that have one

   one pass for many targets at once, each target a row.
3. Targets: active latents, read with d value / d input (the encoder row), and the most probable logits, centred over the
   vocabulary. effect of a latent = value * (decoder row . g), of an error = error . g, of an embedding = embedding . g.
4. What comes from biases is summed on its own, so that for every target

       sum of effects + bias = its activation (latents) or its centred logit           (`completeness_error` says how exactly)

5. From the logits down: when a layer is reached, the influence of its latents is known exactly, because all that read them
   have been traced. Where more are active than `most`, each layer keeps its most influential ones in proportion; the others
   are added to the error of their layer and token.

Method: Dunefsky et al. 2024 (arXiv 2406.11944), Ameisen et al. 2025. Weights are read from the model as it is (`readers.py`):
every family whose edges can be found can be traced. A logit is what the unembedding returns, before any soft cap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.circuits.trace_graph import AttributionGraph, TraceNode, graph_scores, influence_of, normalised
from assay.circuits.trace_run import LOGITS, Active, CleanRun, Slots, stream_before
from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, of_another_model
from assay.model.context import context_length
from assay.model.model import Model
from assay.model.readers import affine
from assay.model.run import Progress
from assay.sites import Site

AT_ONCE = 128  # targets of one pass down
CHUNK_FLOATS = 1 << 24  # of gradients held at once


@dataclass(frozen=True)
class TracePlan:
    """What to trace. Logits: `targets` (token ids) where given, else the most probable ones until they have `mass` of the
    probability, `logits` at most. `most`: latents that are traced. `position`: of the logits, from the end if negative."""

    logits: int = 10
    mass: float = 0.95
    most: int = 8192
    targets: tuple[int, ...] = ()
    position: int = -1

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        for name, got in (("logits", self.logits), ("most", self.most)):
            if got < 1:
                raise bad_argument(name, got, "1 or more")
        if not 0 < self.mass <= 1:
            raise bad_argument("mass", self.mass, "a share above 0, up to 1")


def trace(
    model: Model, prompt: str | Sequence[int], dictionaries: Sequence[Dictionary], plan: TracePlan | None = None, *,
    progress: Progress | None = None,
) -> AttributionGraph:  # fmt: skip
    """The attribution graph of one prompt. `progress` is called with the number of targets done.

    Dictionaries are transcoders: they read `mlp_in.L` (or the stream before it) and write `mlp_out.L`, for any subset of
    layers; at most one writes to a layer. An empty list gives the graph of embeddings and whole MLPs.
    Raises UsageError for dictionaries that do not fit and for a prompt whose attention patterns would take too much memory,
    SiteError where the model's norms or attention are not understood.
    """
    plan = TracePlan() if plan is None else plan
    plan.check()
    run = CleanRun(model, prompt, dictionaries, plan.position)
    return _Tracer(run, plan).graph(progress)


# what leads to targets ---------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Targets:
    """What is read of the stream: row t reads `gradient[t]` at `position[t]` of what MLP `layer` reads; `layer` None: logits.

    `bias`: the part of each that does not come from the stream. `normed`: the gradients are at what the norm returns.
    """

    gradient: Float[Tensor, "t d"]
    position: Int[Tensor, " t"]
    bias: Float[Tensor, " t"]
    layer: int | None
    normed: bool = True

    def some(self, rows: Int[Tensor, " k"]) -> "Targets":
        """Only these rows."""
        return Targets(self.gradient[rows], self.position[rows], self.bias[rows], self.layer, self.normed)


@dataclass(frozen=True, eq=False)
class Rows:
    """Effects on targets: of latents by the layer they read, of errors by layer and token, of embeddings; and of biases."""

    latents: dict[int, Float[Tensor, "t n"]]
    errors: dict[int, Float[Tensor, "t pos"]]
    embeds: Float[Tensor, "t pos"]
    bias: Float[Tensor, " t"]

    def total(self) -> Float[Tensor, " t"]:
        """Everything: the target's own value."""
        return self.bias + self.embeds.sum(1) + sum(x.sum(1) for part in (self.latents, self.errors) for x in part.values())

    def size(self) -> Float[Tensor, " t"]:
        """Sum of absolute effects."""
        parts = [x.abs().sum(1) for part in (self.latents, self.errors) for x in part.values()]
        return self.embeds.abs().sum(1) + sum(parts)


class Descent:
    """The way down from targets to all that adds to them."""

    def __init__(self, run: CleanRun) -> None:
        self.run = run

    def members(self, layer: int) -> tuple[Active, Int[Tensor, " n"]] | None:
        """The latents that read a layer: of which dictionary, and which of its active ones."""
        if layer not in self.run.writing:
            return None
        at, slot = self.run.writing[layer]
        active = self.run.active[at]
        return active, (active.slots.slot(active.latent) == slot).nonzero()[:, 0]

    def latents(self, layer: int, chosen: Int[Tensor, " t"]) -> Targets:
        """Some of the active latents of a layer, numbered among themselves, as targets."""
        found = self.members(layer)
        assert found is not None
        active, places = found[0], found[1][chosen]
        site = active.slots.inputs[self.run.writing[layer][1]]
        gradient, position = active.reading(places), active.position[places]
        bias = active.value[places] - (gradient * self.run.value(site)[position]).sum(1)
        return Targets(gradient, position, bias, layer, site.name == "mlp_in")

    @torch.no_grad()
    def rows(self, targets: Targets) -> Rows:
        """Effects on these targets, all in one pass down."""
        run, width = self.run, int(targets.position.max()) + 1
        g = targets.gradient.new_zeros(width, len(targets.position), targets.gradient.shape[1])
        g[targets.position, torch.arange(len(targets.position))] = targets.gradient
        bias = targets.bias.clone()
        if targets.normed:
            norm = run.final if targets.layer is None else run.mlp_norms[targets.layer]
            bias += norm.constant(g)
            g = norm.pull(g)
        top = run.model.n_layers if targets.layer is None else targets.layer
        if targets.layer is not None and not run.parallel(targets.layer):
            g, bias = self._attention(targets.layer, g, g, bias)
        found = [g.new_zeros(g.shape[1], len(active.latent)) for active in run.active]
        errors = {}
        for layer in reversed(range(top)):
            errors[layer], constant = self._written(layer, g, found)
            below = g + run.skips[layer].pull(g) if layer in run.skips else g
            g, bias = self._attention(layer, g if run.parallel(layer) else below, below, bias + constant)
        embeds = torch.einsum("pd,ptd->tp", run.value(Site("resid_pre", 0))[:width], g)
        latents = {layer: self._of(layer, found) for layer in range(top) if layer in run.writing}
        return Rows(latents, errors, self._padded(embeds), bias)

    def _attention(
        self, layer: int, read: Float[Tensor, "pos t d"], below: Float[Tensor, "pos t d"], bias: Float[Tensor, " t"]
    ) -> tuple[Float[Tensor, "pos t d"], Float[Tensor, " t"]]:
        """From behind a layer's attention to before it; `read`: the gradient of what it adds, `below`: of the stream itself."""
        attention = self.run.attention(layer)
        constant = torch.bmm(read, attention.constant[: len(read), :, None])[..., 0].sum(0)
        return below + attention.pull(read), bias + constant

    def _written(
        self, layer: int, g: Float[Tensor, "pos t d"], found: list[Float[Tensor, "t _"]]
    ) -> tuple[Float[Tensor, "t every"], Float[Tensor, " t"]]:
        """Effects of a layer's errors and constants; those of latents are added to `found`. All tokens at once, padded to
        the one with the most latents."""
        run, width = self.run, len(g)
        rows = torch.stack([run.errors[layer, :width], run.constants[layer, :width]], 1)
        own = position = place = torch.zeros(0, dtype=torch.long)
        if layer in run.writing:
            at, output = run.writing[layer]
            active = run.active[at]
            own = ((active.position < width) & (active.slots.slot(active.latent) <= output)).nonzero()[:, 0]
            position = active.position[own]
            counts = torch.bincount(position, minlength=width)
            place = 2 + torch.arange(len(own)) - (counts.cumsum(0) - counts)[position]
            rows = torch.cat([rows, g.new_zeros(width, int(counts.max()), g.shape[2])], 1)
            rows[position, place] = active.slots.decoder(active.latent[own], output) * active.value[own, None]
        effects = torch.bmm(rows, g.transpose(1, 2))
        if len(own):
            found[at].index_add_(1, own, effects[position, place].T)  # type: ignore[possibly-undefined]
        return self._padded(effects[:, 0].T), effects[:, 1].sum(0)

    def _of(self, layer: int, found: Sequence[Float[Tensor, "t _"]]) -> Float[Tensor, "t n"]:
        at, _ = self.run.writing[layer]
        members = self.members(layer)
        assert members is not None
        return found[at][:, members[1]]

    def _padded(self, x: Float[Tensor, "t some"]) -> Float[Tensor, "t pos"]:
        """Zeros for the tokens after all targets."""
        return torch.nn.functional.pad(x, (0, self.run.n - x.shape[1]))


# the graph ---------------------------------------------------------------------------------------


class _Tracer:
    """Rows of all targets from the logits down, and the graph that they make."""

    def __init__(self, run: CleanRun, plan: TracePlan) -> None:
        self.run, self.plan, self.descent = run, plan, Descent(run)
        self.members = {layer: found for layer in run.layers if (found := self.descent.members(layer)) is not None}
        self.n_active = sum(len(places) for _, places in self.members.values())
        self.kept: dict[int, Tensor] = {}
        self.latents: dict[int, list[Tensor]] = {layer: [] for layer in self.members}  # source layer -> rows so far
        self.errors: dict[int, list[Tensor]] = {layer: [] for layer in run.layers}
        self.embeds: list[Tensor] = []
        self.bias: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.residual = 0.0

    def graph(self, progress: Progress | None) -> AttributionGraph:
        """Everything, from the top."""
        logits, nodes = self._logits()
        weights = [torch.tensor([node.probability or 0.0 for node in nodes])]
        self._trace(logits, progress)
        for layer in reversed(self.run.layers):
            if layer not in self.members:
                continue
            mass = self._influence(layer, torch.cat(weights))
            self.kept[layer] = self._choose(layer, mass)
            self._lump(layer)
            weights.append(mass[self.kept[layer]])
            if len(self.kept[layer]):
                self._trace(self.descent.latents(layer, self.kept[layer]), progress)
        return self._assembled(nodes)

    # rows ------------------------------------------------------------------------------------

    def _trace(self, targets: Targets, progress: Progress | None) -> None:
        rows = max(1, min(AT_ONCE, CHUNK_FLOATS // (self.run.n * targets.gradient.shape[1])))
        order = targets.position.argsort(stable=True)
        n_parts = -(-len(order) // rows)
        parts = [(part, self.descent.rows(targets.some(part))) for part in order.tensor_split(n_parts)]
        back = order.argsort()
        for store, name in ((self.latents, "latents"), (self.errors, "errors")):
            for layer in store:
                if layer in getattr(parts[0][1], name):
                    store[layer].append(torch.cat([getattr(found, name)[layer] for _, found in parts])[back])
        self.embeds.append(torch.cat([found.embeds for _, found in parts])[back])
        self.bias.append(torch.cat([found.bias for _, found in parts])[back])
        self.sizes.append(torch.cat([found.size() for _, found in parts])[back])
        self._check(targets, torch.cat([found.total() for _, found in parts])[back])
        if progress:
            progress(len(targets.position))

    def _check(self, targets: Targets, total: Float[Tensor, " t"]) -> None:
        """How far sums of effects are from what the targets are in the clean run."""
        norm_in = self.run.value(Site("final_norm") if targets.layer is None else self._site(targets))
        truth = targets.bias + (targets.gradient * norm_in[targets.position]).sum(1)
        off = (total - truth).abs() / self.sizes[-1].clamp_min(1e-12)
        self.residual = max(self.residual, float(off.max()))

    def _site(self, targets: Targets) -> Site:
        assert targets.layer is not None
        return Site("mlp_in", targets.layer) if targets.normed else stream_before(self.run.model, targets.layer)

    def _influence(self, layer: int, weights: Float[Tensor, " row"]) -> Float[Tensor, " n"]:
        """Of a layer's latents on the logits: exact, because all targets after them have been traced."""
        rows = torch.cat(self.latents[layer]) if self.latents[layer] else torch.zeros(0, len(self.members[layer][1]))
        size = torch.cat(self.sizes)[: len(rows)].clamp_min(1e-30)
        return (rows.abs() * (weights[: len(rows)] / size)[:, None]).sum(0)

    def _choose(self, layer: int, mass: Float[Tensor, " n"]) -> Int[Tensor, " k"]:
        """Latents of a layer to trace: all, or its share of `most`."""
        if self.n_active <= self.plan.most:
            return torch.arange(len(mass))
        share = min(len(mass), max(1, int(self.plan.most * len(mass) / self.n_active)))
        return mass.topk(share).indices.sort().values

    def _lump(self, layer: int) -> None:
        """Effects of latents that are not traced count as errors of their layer and token."""
        active, places = self.members[layer]
        chosen = self.kept[layer]
        other = torch.ones(len(places), dtype=torch.bool)
        other[chosen] = False
        at = active.position[places[other]]
        for number, rows in enumerate(self.latents[layer]):
            if bool(other.any()):
                self.errors[layer][number].index_add_(1, at, rows[:, other])
            self.latents[layer][number] = rows[:, chosen]

    # targets at the top ----------------------------------------------------------------------

    def _logits(self) -> tuple[Targets, list[TraceNode]]:
        run, plan, model = self.run, self.plan, self.run.model
        vocab = model.dims.d_vocab
        if bad := [token for token in plan.targets if type(token) is not int or not 0 <= token < vocab]:
            raise bad_argument("targets", bad, f"token ids, 0 to {vocab - 1}")
        logits = model.logits([run.tokens], positions=[run.last])[0, 0].float().cpu()
        probability = logits.softmax(-1)
        tokens = list(dict.fromkeys(plan.targets)) or _likely(probability, plan)
        weight, offset = affine(model.hf.get_submodule(model.layout.unembed), model.dims.d_model)
        weight, offset = weight.detach().float().cpu(), offset.detach().float().cpu()
        scale = run.logit_scale(logits, run.last)
        gradient = scale * (weight[:, tokens] - weight.mean(1, keepdim=True)).T.contiguous()
        bias = scale * (offset[tokens] - offset.mean())
        value = gradient @ run.value(Site("final_norm"))[run.last] + bias
        nodes = [TraceNode("logit", run.last, None, token, float(v), float(probability[token]), label=self._text(token))
                 for token, v in zip(tokens, value.tolist(), strict=True)]  # fmt: skip
        position = torch.full((len(tokens),), run.last)
        return Targets(gradient, position, bias, None), nodes

    def _text(self, token: int) -> str:
        return self.run.model.piece(token) if self.run.model.tokenizer is not None else str(token)

    # putting together ------------------------------------------------------------------------

    def _assembled(self, logits: Sequence[TraceNode]) -> AttributionGraph:
        run, texts = self.run, tuple(self._text(token) for token in self.run.tokens)
        nodes = [TraceNode("embed", at, None, token, label=texts[at]) for at, token in enumerate(run.tokens)]
        firsts: dict[int, int] = {}
        for layer in run.layers:
            firsts[layer] = len(nodes)
            nodes += self._layer_nodes(layer)
        nodes += logits
        effects, bias = torch.zeros(len(nodes), len(nodes)), torch.zeros(len(nodes))
        traced = [layer for layer in reversed(run.layers) if len(self.kept.get(layer, ()))]
        targets = [slice(len(nodes) - len(logits), len(nodes))]
        targets += [slice(firsts[layer], firsts[layer] + len(self.kept[layer])) for layer in traced]
        for number, rows in enumerate(targets):
            effects[rows, : run.n] = self.embeds[number]
            bias[rows] = self.bias[number]
        for layer in run.layers:
            n = len(self.kept.get(layer, ()))
            for number, found in enumerate(self.errors[layer]):
                effects[targets[number], firsts[layer] + n : firsts[layer] + n + run.n] = found
            for number, found in enumerate(self.latents.get(layer, ())):
                effects[targets[number], firsts[layer] : firsts[layer] + n] = found
        return self._record(tuple(nodes), effects, bias, texts)

    def _layer_nodes(self, layer: int) -> Iterator[TraceNode]:
        at, out = self.run.writing.get(layer, (None, 0))
        if at is not None:
            active, places = self.members[layer]
            for place in places[self.kept[layer]].tolist():
                yield TraceNode("latent", int(active.position[place]), layer, int(active.latent[place]),
                                float(active.value[place]), dictionary=at)  # fmt: skip
        for position in range(self.run.n):
            yield TraceNode("error", position, layer, dictionary=at)

    def _record(
        self, nodes: tuple[TraceNode, ...], effects: Float[Tensor, "target source"], bias: Float[Tensor, " target"],
        texts: tuple[str, ...],
    ) -> AttributionGraph:  # fmt: skip
        model = self.run.model
        shares = normalised(effects)
        graph = AttributionGraph(nodes, effects, bias, effects.new_zeros(len(nodes)), texts, model.n_layers,
                                 tuple(self.run.tokens), self.run.prompt, model.name, model.digest,
                                 tuple(described(slots) for slots in self.run.slots), asdict(self.plan))  # fmt: skip
        influence = influence_of(shares, graph.weights)
        traced = sum(len(kept) for kept in self.kept.values())
        without = [layer for layer in self.run.layers if layer not in self.run.writing]
        about = {"active_latents": self.n_active, "traced_latents": traced, "completeness_error": self.residual,
                 "layers_without_dictionary": len(without), "bias_share": bias_share(graph)}  # fmt: skip
        passport = model.passport()
        others = [said for slots in self.run.slots if (said := of_another_model(slots.dictionary, passport))]
        notes = tuple(others[:1])
        if len(others) > 1:
            notes += (f"and so were {len(others) - 1} other dictionaries of this graph",)
        if without:
            notes += (f"no dictionary for {len(without)} of {model.n_layers} layers: there the whole MLP is error",)
        if traced < self.n_active:
            notes += (f"{self.n_active - traced} of {self.n_active} active latents were not traced: they count as error",)
        made_for = context_length(model.hf)
        if made_for is not None and self.run.n > made_for:
            notes += (f"the prompt has {self.run.n} tokens; the model was made for {made_for}, and does badly beyond",)
        return replace(graph, influence=influence, scores={**graph_scores(graph), **about}, notes=notes)


def described(slots: Slots) -> dict[str, Any]:
    """What a graph keeps of a dictionary."""
    spec = slots.dictionary.spec
    return {"name": slots.dictionary.name, "digest": slots.dictionary.digest, "architecture": spec.architecture,
            "width": spec.width, "group": slots.group, "inputs": [str(s) for s in slots.inputs],
            "outputs": [str(s) for s in slots.outputs]}  # fmt: skip


def bias_share(graph: AttributionGraph) -> float:
    """|bias| over |bias| + absolute effects, of the logits, weighted by probability: what no node accounts for."""
    rows = graph.of("logit")
    size = graph.effects[rows].abs().sum(1) + graph.bias[rows].abs()
    weights = graph.weights[rows] / graph.weights[rows].sum().clamp_min(1e-30)
    return float((weights * graph.bias[rows].abs() / size.clamp_min(1e-30)).sum())


def _likely(probability: Float[Tensor, " vocab"], plan: TracePlan) -> list[int]:
    """The most probable tokens: as few as have `mass`, at most `logits`."""
    best = probability.topk(min(plan.logits, len(probability)))
    enough = int((best.values.cumsum(0) < plan.mass).sum()) + 1
    return best.indices[:enough].tolist()


def decoders_of(graph: AttributionGraph, dictionaries: Sequence[Dictionary]) -> dict[str, Tensor]:
    """Decoder rows of a graph's latents by node name; `dictionaries` as they were traced. For `suggest_supernodes`."""
    out = {}
    for node in graph.nodes:
        if node.kind == "latent" and node.dictionary is not None and node.index is not None:
            dictionary = dictionaries[node.dictionary]
            n = len(dictionary.spec.outputs)
            slots = Slots(dictionary, (LOGITS,) * n, (LOGITS,) * n)
            at = torch.tensor([node.index])
            out[node.name] = torch.cat([slots.decoder(at, output)[0] for output in range(n)])
    return out
