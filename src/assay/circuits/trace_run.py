"""One prompt's run made linear: what `trace.py` walks down.

1. Which latents of which transcoder are active, at the tokens that the dictionary is for; what it leaves over at every token.
2. Norms with their divisors held, attention with its patterns held, skip connections: each a linear map of the stream. Gains,
   centring, value and output weights of a layer are multiplied into two matrices per head, and everything that depends on
   positions (divisors, residual multipliers) into the pattern, so that one pass for many targets is three products a layer.
3. All constants (biases of norms, values, outputs and dictionaries) are summed for every token and layer.

Weights are read from the model as it is (`readers.py`), as fp32 in main memory: the way down runs there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from assay.errors import ShapeError, SiteError, bad_argument
from assay.features.architectures.clt import CrossLayer
from assay.features.dictionary import Dictionary
from assay.model.activations import Activations
from assay.model.model import Model
from assay.model.readers import Norm, affine
from assay.sites import Site, parse_site

LOGITS = Site("logits")
PATTERNS = 4 << 30  # bytes of attention patterns of a prompt
HELD_FLOATS = 1 << 28  # of attention weights, in the form used here, kept between passes
LINEAR = 0.02  # of logits: what a factor may leave unexplained, and how far from 1 one is that is told
READS = ("mlp_in", "resid_mid", "resid_pre")


# dictionaries in the model -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Slots:
    """Where one dictionary reads and writes: layers in the order of its inputs and outputs."""

    dictionary: Dictionary
    inputs: tuple[Site, ...]
    outputs: tuple[Site, ...]

    @property
    def across(self) -> bool:
        """Whether its latents are in groups, one for each layer read."""
        return isinstance(self.dictionary, CrossLayer)

    @property
    def group(self) -> int:
        """Latents that read one layer."""
        return self.dictionary.group if isinstance(self.dictionary, CrossLayer) else self.dictionary.width

    def slot(self, latents: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """Which input each latent reads."""
        return latents // self.group

    def encoder(self, latents: Int[Tensor, " n"]) -> Float[Tensor, "n d_in"]:
        """What each latent reads its input with."""
        return _plain(self.dictionary.W_enc)[latents]

    def decoder(self, latents: Int[Tensor, " n"], output: int) -> Float[Tensor, "n d_out"]:
        """What each latent adds to one output when it is 1."""
        if not isinstance(self.dictionary, CrossLayer):
            return _plain(self.dictionary.W_dec)[latents]
        size = self.dictionary.d_layer
        out = torch.zeros(len(latents), size)
        for slot, rows in enumerate(self.dictionary.W_dec):
            own = (self.slot(latents) == slot).nonzero()[:, 0]
            if slot <= output and len(own):
                out[own] = _plain(rows)[latents[own] - slot * self.group, (output - slot) * size : (output - slot + 1) * size]
        return out

    def constant(self, output: int) -> Float[Tensor, " d_out"]:
        """What it adds to one output whatever is active."""
        size = self.dictionary.spec.d_out // len(self.outputs)
        return _plain(self.dictionary.b_dec)[output * size : (output + 1) * size]


def place_dictionaries(model: Model, dictionaries: Sequence[Dictionary]) -> list[Slots]:
    """Each dictionary with its layers. Raises UsageError for one that is no transcoder of this model's MLPs."""
    found, taken = [], dict[int, str]()
    for dictionary in dictionaries:
        slots = _placed(model, dictionary)
        for site in slots.outputs:
            assert site.layer is not None
            if site.layer in taken:
                both = f"{taken[site.layer]} and {dictionary.name}, both writing {site}"
                raise bad_argument("dictionaries", both, "one for each layer at most", "Give one of them.")
            taken[site.layer] = dictionary.name
        found.append(slots)
    return found


def is_transcoder(dictionary: Dictionary) -> bool:
    """Whether a dictionary makes MLP outputs out of what MLPs read."""
    spec = dictionary.spec
    return bool(spec.inputs and spec.outputs) and all(s.startswith("mlp_out.") for s in spec.outputs) and all(
        s.split(".")[0] in READS for s in spec.inputs)  # fmt: skip


def _placed(model: Model, dictionary: Dictionary) -> Slots:
    spec, name = dictionary.spec, dictionary.name
    if not is_transcoder(dictionary):
        got = f"{name}: {', '.join(spec.inputs) or 'no inputs'} to {', '.join(spec.outputs) or 'no outputs'}"
        raise bad_argument("dictionaries", got, "transcoders, mlp_in.L to mlp_out.L", "SAEs: see assay.circuits.latent_edges.")
    if type(dictionary).select is Dictionary.select or dictionary.input_norm != "none":
        normed = f" with input_norm {dictionary.input_norm!r}" if dictionary.input_norm != "none" else ""
        raise bad_argument("dictionaries", f"{name}, a {dictionary.architecture}{normed}",
                           "transcoders whose latents are chosen token by token, from inputs as they are",
                           "Leave it out: its layer is an error node then.")  # fmt: skip
    inputs, outputs = (tuple(model.sites([parse_site(text) for text in sites])) for sites in (spec.inputs, spec.outputs))
    across = isinstance(dictionary, CrossLayer)
    if len(inputs) != len(outputs) or (len(inputs) > 1 and not across):
        raise bad_argument("dictionaries", f"{name}: {len(inputs)} inputs, {len(outputs)} outputs",
                           "one of each, or a cross-layer transcoder")  # fmt: skip
    for read, written in zip(inputs, outputs, strict=True):
        if read.layer != written.layer or read not in (Site("mlp_in", read.layer), stream_before(model, written.layer or 0)):
            raise bad_argument("dictionaries", f"{name}: {read} to {written}", "what the MLP of a layer reads to what it adds")
    d = model.dims.d_model * len(inputs)
    if (spec.d_in, spec.d_out) != (d, d):
        raise ShapeError(f"dictionary {name}: {spec.d_in} to {spec.d_out} features; allowed for {model.name}: {d} to {d}.")
    if len({site.layer for site in outputs}) != len(outputs) or list(outputs) != sorted(outputs, key=lambda s: s.layer or 0):
        raise bad_argument("dictionaries", f"{name}: outputs {', '.join(spec.outputs)}", "layers from low to high, each once")
    return Slots(dictionary, inputs, outputs)


def stream_before(model: Model, layer: int) -> Site:
    """What the norm in front of a layer's MLP reads."""
    mid = Site("resid_mid", layer)
    return mid if mid in model.layout.points else Site("resid_pre", layer)


@dataclass(frozen=True, eq=False)
class Active:
    """Latents of one dictionary that are active on the prompt. `slope`: d value / d pre-activation.

    `typical`: the positions that the dictionary is for.
    """

    slots: Slots
    position: Int[Tensor, " n"]
    latent: Int[Tensor, " n"]
    value: Float[Tensor, " n"]
    slope: Float[Tensor, " n"]
    typical: Bool[Tensor, " pos"]

    def reading(self, places: Int[Tensor, " k"]) -> Float[Tensor, "k d_in"]:
        """d value / d input of some of them."""
        return self.slots.encoder(self.latent[places]) * self.slope[places, None]


def active_latents(
    slots: Slots, x: Float[Tensor, "pos d_in"], y: Float[Tensor, "pos d_out"], massive: Bool[Tensor, " pos"]
) -> Active:  # fmt: skip
    """Active latents where the dictionary is for the token; `x`, `y`: its inputs and targets at all positions."""
    spec = slots.dictionary.spec
    typical = slots.dictionary.typical(x, torch.arange(len(x))) & ~massive
    if spec.target_limit is not None:
        typical = typical & (y.norm(dim=1) <= spec.target_limit)
    kept = typical.nonzero()[:, 0]
    if not len(kept):
        none = kept.new_zeros(0)
        return Active(slots, none, none, x.new_zeros(0), x.new_zeros(0), typical)
    pre = slots.dictionary.pre(x[kept].to(slots.dictionary.b_dec)).detach()
    with torch.enable_grad():
        pre.requires_grad_()
        codes = slots.dictionary.select(pre).active()
        slopes = torch.autograd.grad(codes.values.sum(), pre)[0] if len(codes.values) else pre
    tokens, latents, values, slopes = codes.pairs.tokens.cpu(), codes.latents.cpu(), _plain(codes.values), _plain(slopes)
    order = (tokens * spec.width + latents).argsort()
    tokens, latents, values = tokens[order], latents[order], values[order]
    return Active(slots, kept[tokens], latents, values, slopes[tokens, latents], typical)


# the clean run, made linear ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """A norm with its divisors held: x -> gain * (x - c mean x) * inverse + bias, c = 0 or 1."""

    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool
    inverse: Float[Tensor, " pos"]

    def centre(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Without its mean, where the norm takes it out."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def pull(self, g: Float[Tensor, "pos t d"]) -> Float[Tensor, "pos t d"]:
        """Gradients of what it returns as gradients of what it reads."""
        return self.centre(g * self.gain) * self.inverse[: len(g), None, None]

    def constant(self, g: Float[Tensor, "pos t d"]) -> Float[Tensor, " t"]:
        """What its bias adds to the targets."""
        return g.sum(0) @ self.bias

    def before(self, weight: Float[Tensor, "*n d out"]) -> Float[Tensor, "*n d out"]:
        """A matrix behind the norm as one in front of it, but for the divisors."""
        scaled = weight * self.gain[:, None]
        return scaled - scaled.mean(-2, keepdim=True) if self.centred else scaled

    def after(self, weight: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """Rows in front of the norm as rows behind it, but for the divisors."""
        return self.centre(weight) * self.gain


@dataclass(frozen=True, eq=False)
class FrozenAttention:
    """Attention of one layer, from the stream to what it adds to the stream, linear with patterns and divisors held.

    `pattern` holds all that depends on positions: divisors of both norms and the residual multiplier. `constant`: what is
    added to each position whatever the stream holds.
    """

    values: Float[Tensor, "kv_head d d_head"]
    pattern: Float[Tensor, "head query key"]
    output: Float[Tensor, "head d_head d"]
    constant: Float[Tensor, "pos d"]

    def pull(self, g: Float[Tensor, "pos t d"]) -> Float[Tensor, "pos t d"]:
        """Gradients of what it adds as gradients of the stream it reads."""
        n, t, _ = g.shape
        heads, size, _ = self.output.shape
        kv = len(self.values)
        back = (g @ self.output.flatten(0, 1).T).view(n, t, kv, heads // kv, size)
        back = back.permute(2, 3, 0, 1, 4).reshape(kv, heads // kv * n, t * size)
        pattern = self.pattern[:, :n, :n].reshape(kv, heads // kv * n, n)
        read = (pattern.transpose(1, 2) @ back).view(kv, n, t, size).permute(1, 2, 0, 3).reshape(n, t, kv * size)
        return read @ self.values.movedim(0, 1).flatten(1).T


@dataclass(frozen=True, eq=False)
class FrozenSkip:
    """The linear path of a transcoder beside its latents, from the stream to what it adds."""

    weight: Float[Tensor, "d d_read"]
    scale: Float[Tensor, " pos"]
    constant: Float[Tensor, "pos d"]

    def pull(self, g: Float[Tensor, "pos t d"]) -> Float[Tensor, "pos t d_read"]:
        """Gradients of what it adds as gradients of the stream it reads."""
        return (g @ self.weight) * self.scale[: len(g), None, None]


def check_length(model: Model, n_tokens: int) -> None:
    """Raises UsageError where the attention patterns of so many tokens, which are held, take too much memory."""
    most = math.isqrt(PATTERNS // (4 * model.n_layers * model.dims.n_heads))
    if n_tokens > most:
        raise bad_argument("prompt", f"{n_tokens} tokens", f"{most} at most for {model.name}",
                           f"Attention patterns of all layers may take {PATTERNS >> 30} GB.")  # fmt: skip


class CleanRun:
    """One prompt's run, its dictionaries' latents, and the linear model around it."""

    def __init__(
        self, model: Model, prompt: str | Sequence[int], dictionaries: Sequence[Dictionary], position: int = -1
    ) -> None:
        self.model, self.readers = model, model.readers()
        self.tokens = model.tokens(prompt if isinstance(prompt, str) else [list(prompt)])[0]
        self.prompt = prompt if isinstance(prompt, str) else ""
        self.n = len(self.tokens)
        self.last = position + self.n if position < 0 else position
        if not 0 <= self.last < self.n:
            raise bad_argument("position", position, f"a token of the prompt, 0 to {self.n - 1} or -{self.n} to -1")
        check_length(model, self.n)
        self.slots = place_dictionaries(model, dictionaries)
        self.acts = self._capture()
        self.layers = range(model.n_layers)
        self.after_last = self.value(self.readers.stream(LOGITS))
        self.active = [active_latents(s, self._joined(s.inputs), self._joined(s.outputs), self._massive(s.dictionary))
                       for s in self.slots]  # fmt: skip
        self.mlp_norms = [self._norm(self.readers.norm(Site("mlp_in", layer)), self.value(stream_before(model, layer)))
                          for layer in self.layers]  # fmt: skip
        self.final = self._norm(self.readers.norm(LOGITS), self.after_last)
        self._held: dict[int, FrozenAttention] = {}

    def _capture(self) -> Activations:
        model, layers = self.model, range(self.model.n_layers)
        names = ("resid_pre", "pattern", "mlp_in", "mlp_out")
        wanted = {Site(name, layer) for name in names for layer in layers} | {stream_before(model, layer) for layer in layers}
        wanted |= {self.readers.stream(LOGITS), Site("final_norm"), self._head_input}
        wanted |= {Site("path", path=f"{found[0]}:in") for layer in layers if (found := self._post(layer)) is not None}
        acts = model.capture([self.tokens], sorted(wanted, key=str))
        if not torch.equal(acts[Site("final_norm")], acts[self._head_input]):
            raise SiteError(f"{model.name} cannot be traced: something stands between its final norm and its unembedding.")
        return acts

    @property
    def _head_input(self) -> Site:
        return Site("path", path=f"{self.model.layout.unembed}:in")

    def _post(self, layer: int) -> tuple[str, Norm] | None:
        return self.readers.post_norm(Site("z", layer))

    def value(self, site: Site) -> Float[Tensor, "pos d"]:
        """A stream-shaped activation of the clean run."""
        return self.acts[site][0].float()

    def logit_scale(self, logits: Float[Tensor, " vocab"], position: int) -> float:
        """By how much the model multiplies what the unembedding gives (Granite: 1 / `logits_scaling`), from the logits at one
        position; 1 where that is no factor (a soft cap)."""
        weight, offset = affine(self.model.hf.get_submodule(self.model.layout.unembed), self.model.dims.d_model)
        plain = self.value(Site("final_norm"))[position] @ weight.detach().float().cpu() + offset.detach().float().cpu()
        whole = float(logits @ plain / (plain @ plain).clamp_min(1e-30))
        plain, logits = plain - plain.mean(), logits - logits.mean()
        factor = float(logits @ plain / (plain @ plain).clamp_min(1e-30))
        off = float((logits - factor * plain).norm() / logits.norm().clamp_min(1e-30))
        capped = abs(whole - factor) > LINEAR * abs(factor)  # far from 0 a cap is a line, but not through 0
        return 1.0 if off > LINEAR or capped or abs(factor - 1) < LINEAR else factor

    def _joined(self, sites: Sequence[Site]) -> Float[Tensor, "pos d"]:
        return torch.cat([self.value(site) for site in sites], 1)

    def _massive(self, dictionary: Dictionary) -> Bool[Tensor, " pos"]:
        """Where the stream is larger than what its training took: a norm hides that from what it reads."""
        found = torch.zeros(self.n, dtype=torch.bool)
        for text, limit in dictionary.massive_above.items():
            if (site := parse_site(text)) in self.acts:
                found |= self.value(site).norm(dim=1) > limit
        return found

    def _norm(self, norm: Norm, x: Float[Tensor, "pos d"]) -> FrozenNorm:
        inverse = norm.at(x.to(norm.gain.device, self.model.dtype))[1]
        return FrozenNorm(_plain(norm.gain), _plain(norm.bias), norm.centred, _plain(inverse))

    def attention(self, layer: int) -> FrozenAttention:
        """Attention of a layer, made linear; kept where all layers are small enough."""
        if layer not in self._held:
            made = self._attention(layer)
            if self.model.n_layers * (made.values.numel() + made.output.numel()) > HELD_FLOATS:
                return made
            self._held[layer] = made
        return self._held[layer]

    def _attention(self, layer: int) -> FrozenAttention:
        model, post, dims = self.model, self._post(layer), self.model.dims
        block, scale = model.layout.blocks[layer], model.layout.points[Site("attn_out", layer)].scale
        assert block.o_proj is not None
        matrix, offset = affine(model.hf.get_submodule(block.o_proj), dims.n_heads * dims.d_head)
        output, offset = _plain(matrix).view(dims.n_heads, dims.d_head, -1), _plain(offset)
        before = self._norm(self.readers.norm(Site("attn_in", layer)), self.value(Site("resid_pre", layer)))
        held = self.readers.projection("v", layer)
        values = _plain(held.weight)
        own = _plain(held.bias) + torch.einsum("d,kdc->kc", before.bias, values)
        pattern = self.acts[Site("pattern", layer)][0].float() * scale
        own_rows = own.repeat_interleave(dims.n_heads // dims.n_kv_heads, 0)
        factor, added = torch.full((self.n,), scale), 0.0
        if post is not None:
            after = self._norm(post[1], self.value(Site("path", path=f"{post[0]}:in")))
            output, offset, added = after.after(output), after.after(offset), scale * after.bias
            pattern, factor = pattern * after.inverse[:, None], factor * after.inverse
        constant = torch.einsum("hqk,hc,hcd->qd", pattern, own_rows, output) + factor[:, None] * offset + added
        return FrozenAttention(before.before(values), pattern * before.inverse, output, constant)

    @cached_property
    def skips(self) -> dict[int, FrozenSkip]:
        """Linear paths beside latents, by layer."""
        out = {}
        for layer, (at, output) in self.writing.items():
            active = self.active[at]
            weight, kept = active.slots.dictionary.W_skip, active.typical.float()
            if weight is not None and active.slots.inputs[output].name == "mlp_in":
                norm = self.mlp_norms[layer]
                constant = kept[:, None] * (_plain(weight) @ norm.bias)
                out[layer] = FrozenSkip(norm.before(_plain(weight).T).T.contiguous(), kept * norm.inverse, constant)
            elif weight is not None:
                out[layer] = FrozenSkip(_plain(weight), kept, torch.zeros_like(self.errors[layer]))
        return out

    @cached_property
    def constants(self) -> Float[Tensor, "layer pos d"]:
        """What dictionaries add to each position whatever is active, and the constants of their linear paths."""
        out = torch.zeros_like(self.errors)
        for layer, (at, output) in self.writing.items():
            active = self.active[at]
            out[layer][active.typical] += active.slots.constant(output)
            if layer in self.skips:
                out[layer] += self.skips[layer].constant
        return out

    def parallel(self, layer: int) -> bool:
        """Whether attention and MLP of a layer read the same stream."""
        return stream_before(self.model, layer).name == "resid_pre"

    @cached_property
    def writing(self) -> dict[int, tuple[int, int]]:
        """Layer -> (dictionary, output) that makes its MLP's output."""
        return {site.layer: (at, out) for at, slots in enumerate(self.slots) for out, site in enumerate(slots.outputs)
                if site.layer is not None}  # fmt: skip

    @cached_property
    def errors(self) -> Float[Tensor, "layer pos d"]:
        """What each MLP adds beside what its dictionary makes of it."""
        out = torch.stack([self.value(Site("mlp_out", layer)) for layer in self.layers])
        for layer, (at, output) in self.writing.items():
            active = self.active[at]
            made = active.slots.decoder(active.latent, output) * active.value[:, None]
            out[layer].index_add_(0, active.position, -made)
            out[layer][active.typical] -= active.slots.constant(output)
            if (skip := active.slots.dictionary.W_skip) is not None:
                out[layer][active.typical] -= self.value(active.slots.inputs[output])[active.typical] @ _plain(skip).T
        return out


def _plain(x: Tensor) -> Tensor:
    """Numbers alone, fp32, in main memory."""
    return x.detach().float().cpu()
