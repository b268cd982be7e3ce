"""How attention, MLPs and the unembedding read the residual stream: through which norm, with which weights.

1. One traced pass shows which module turns the stream into what a part reads; none where it reads the stream itself.
2. A norm is taken to be  N(x) = gain * (x - c mean x) / sigma(x) + bias, sigma^2 = mean (x - c mean x)^2 + eps, with
   c = 0 (RMSNorm) or 1 (LayerNorm). Gain, bias and c are measured on the module itself and checked on other inputs;
   1/sigma is read from what the norm returns on the actual input, so eps is never guessed. Then

       J' y = P(gain * y)/sigma - x^ (x^ . P(gain * y)) / (d sigma),     x^ = (x - c mean x)/sigma,  P centres if c.

3. A projection is affine. Its matrix is read from a linear layer, else found by feeding it the identity.

Whatever does not fit is refused with the module's name: nothing here is a second implementation of a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import SiteError
from assay.model.layout import Layout
from assay.model.offload import brought_in
from assay.model.points import relative_error
from assay.model.trace import Call, Trace, trace
from assay.sites import Site

PROBES, PROBE_SIZE, NORM_TOLERANCE = 8, 100.0, 2e-3


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm module and what was measured of it; `module` None: the stream is read as it is."""

    module: nn.Module | None
    gain: Float[Tensor, " d"]
    bias: Float[Tensor, " d"]
    centred: bool

    def __call__(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """The module's own result."""
        return x if self.module is None else self.module.forward(x)

    def centre(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """x without its mean, where the norm takes it out."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def at(self, x: Float[Tensor, "t d"]) -> tuple[Float[Tensor, "t d"], Float[Tensor, " t"]]:
        """(x^, 1/sigma) of actual inputs."""
        centred = self.centre(x.float())
        if self.module is None:
            return torch.zeros_like(centred), torch.ones_like(centred[:, 0])
        unit = centred * self.gain
        normed = self(x).float() - self.bias
        inverse = (normed * unit).sum(-1) / (unit * unit).sum(-1).clamp_min(1e-30)
        return centred * inverse[:, None], inverse

    def pull(self, x: Float[Tensor, "t d"], g: Float[Tensor, "reader t d"]) -> Float[Tensor, "reader t d"]:
        """J' g at x: gradients of what the norm returns as gradients of what it reads."""
        unit, inverse = self.at(x)
        h = self.centre(g.float() * self.gain)
        return inverse[:, None] * (h - unit * (unit * h).mean(-1, keepdim=True))

    def push(self, x: Float[Tensor, "t d"], change: Float[Tensor, "t n d"]) -> Float[Tensor, "t n d"]:
        """J change at x: small changes of what the norm reads as changes of what it returns."""
        unit, inverse = (part[:, None] for part in self.at(x))
        h = self.centre(change.float())
        return (h - unit * (unit * h).mean(-1, keepdim=True)) * self.gain * inverse[..., None]


@dataclass(frozen=True, eq=False)
class Projection:
    """The queries, keys or values of one layer as a function of what every head reads."""

    weight: Float[Tensor, "head d_model d_head"]
    bias: Float[Tensor, "head d_head"]

    def __call__(self, x: Float[Tensor, "t head d_model"]) -> Float[Tensor, "t head d_head"]:
        """Every head on an input of its own."""
        return torch.einsum("thd,hdk->thk", x, self.weight.to(x.dtype)) + self.bias.to(x.dtype)

    def pull(self, g: Float[Tensor, "t head d_head"]) -> Float[Tensor, "head t d_model"]:
        """A gradient of heads as a gradient of what each reads."""
        return g.transpose(0, 1) @ self.weight.to(g.dtype).transpose(1, 2)


class Readers:
    """Norms and projections of one model. Raises SiteError where a part does not read the stream in a known way."""

    def __init__(self, hf: nn.Module, layout: Layout) -> None:
        self.hf, self.layout = hf, layout
        self._forms: dict[str, Norm] = {}
        device = hf.get_input_embeddings().weight.device  # type: ignore[operator]
        steps = torch.arange(10, device=device) * 7 + 1
        record = trace(hf, (steps % layout.dims.d_vocab).view(2, 5))
        self.norms = dict(self._norms(record))
        self._check(record)

    def norm(self, reader: Site) -> Norm:
        """The norm in front of a query, key or value, an MLP, or the logits."""
        return self.norms[_whole(reader)]

    def stream(self, reader: Site) -> Site:
        """The residual stream that a reader reads."""
        if reader.name == "logits":
            return Site("resid_post", self.layout.dims.n_layers - 1)
        mid = Site("resid_mid", reader.layer)
        return mid if reader.name == "mlp_in" and mid in self.layout.points else Site("resid_pre", reader.layer)

    def projection(self, name: str, layer: int) -> Projection:
        """q, k or v of a layer. Raises SiteError where they cannot be told apart."""
        site = Site(name, layer)
        if site not in self.layout.points or site in self.layout.refused:
            why = self.layout.refused.get(site) or self.layout.absent.get(site, "this model has no such site")
            raise SiteError(f"site {site} is not offered by this model: {why}. Its attention cannot be taken apart.")
        point = self.layout.points[site]
        weight, bias = affine(self.hf.get_submodule(point.path), self.layout.dims.d_model)
        assert point.split is not None
        return Projection(point.split.get(weight).movedim(0, 1), point.split.get(bias))

    def post_norm(self, writer: Site) -> tuple[str, Norm] | None:
        """The norm between a layer's heads (`z.L`) or MLP (`mlp_out.L`) and the stream, and its path; None: there is none."""
        assert writer.layer is not None
        block = self.layout.blocks[writer.layer]
        path = block.post_norm if writer.name == "z" else self.layout.points[Site("mlp_out", writer.layer)].path
        if path is None or (writer.name != "z" and path == block.mlp_raw):
            return None
        return path, self._form(path)

    # finding ---------------------------------------------------------------------------------

    def _norms(self, record: Trace) -> Iterator[tuple[Site, Norm]]:
        last = Site("resid_post", self.layout.dims.n_layers - 1)
        for layer in range(self.layout.dims.n_layers):
            for name in ("attn_in", "mlp_in"):
                reader = Site(name, layer)
                yield reader, self._between(record, self.stream(reader), reader, self.layout.blocks[layer].path)
        yield Site("logits"), self._between(record, last, Site("final_norm"), "")

    def _between(self, record: Trace, stream: Site, read: Site, block: str) -> Norm:
        before, after = self._value(record, stream), self._value(record, read)
        if torch.equal(before, after):
            d = before.shape[-1]
            return Norm(None, before.new_ones(d).float(), before.new_zeros(d).float(), False)
        calls = record.under(block) if block else record.calls
        for call in calls:
            turns = any(_same(x, before) for x in call.inputs.values()) and any(_same(x, after) for x in call.outputs.values())
            if turns and not call.has_matrix:
                return self._form(call.path)
        raise SiteError(f"edges into {read} are not offered: no single norm turns {stream} into it.")

    def _value(self, record: Trace, site: Site) -> Tensor:
        point = self.layout.points[site]
        call = record.of(point.path)
        assert call is not None
        held = call.inputs if point.side == "in" else call.outputs
        return point.read(_held(call, held, point.key), record.batch)

    def _form(self, path: str) -> Norm:
        if path not in self._forms:
            self._forms[path] = norm_form(self.hf.get_submodule(path), self.layout.dims.d_model, path)
        return self._forms[path]

    def _check(self, record: Trace) -> None:
        """Queries, keys and values of every head on its own copy of the stream are those of the model."""
        for layer in range(self.layout.dims.n_layers):
            stream = self._value(record, Site("resid_pre", layer)).flatten(0, 1)
            for name in "qkv":
                made = self.projection(name, layer)
                x = self.norms[Site("attn_in", layer)](stream)[:, None].expand(-1, len(made.weight), -1)
                want = self._value(record, Site(name, layer)).flatten(0, 1)
                error = relative_error(made(x), want)
                if error > 1e-3 * (1 if want.dtype == torch.float32 else 64):
                    raise SiteError(f"edges into {name}.{layer} are not offered: the projection of the normed stream"
                                    f" differs from {name}.{layer} by {error:.1e}.")  # fmt: skip


def _held(call: Call, held: dict[int, Tensor] | dict[int | str, Tensor], key: int | str) -> Tensor:
    if key == "first":
        return next(iter(held.values()))
    assert key in held, f"{call.path} has no tensor {key!r}"
    return held[key]  # type: ignore[index]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _whole(reader: Site) -> Site:
    return reader if reader.name == "logits" else Site("mlp_in" if reader.name == "mlp_in" else "attn_in", reader.layer)


@torch.no_grad()
def norm_form(module: nn.Module, d_model: int, name: str) -> Norm:
    """Gain, bias and centring of a norm, measured. Raises SiteError when it is neither RMSNorm nor LayerNorm."""
    with brought_in(module):
        like = next(iter(module.parameters()), torch.zeros(1))
        draw = torch.randn(2 * PROBES, d_model, generator=torch.Generator().manual_seed(0)) + 0.5
        x = (PROBE_SIZE * draw).to(like.device, like.dtype)
        bias = module.forward(torch.zeros_like(x[:1]))[0].float()
        y, x = module.forward(x).float() - bias, x.float()
    for centred in (False, True):
        h = x - x.mean(-1, keepdim=True) if centred else x
        h = h / h.square().mean(-1, keepdim=True).sqrt()
        gain = (y[:PROBES] * h[:PROBES]).sum(0) / h[:PROBES].square().sum(0)
        error = (y[PROBES:] - gain * h[PROBES:]).abs().max() / y.abs().max().clamp_min(1e-30)
        if float(error) < NORM_TOLERANCE * (1 if like.dtype == torch.float32 else 16):
            return Norm(module, gain, bias, centred)
    raise SiteError(f"edges are not offered: {name} ({type(module).__name__}) is neither an RMSNorm nor a LayerNorm.")


@torch.no_grad()
def affine(module: nn.Module, d_in: int) -> tuple[Float[Tensor, "d_in d_out"], Float[Tensor, " d_out"]]:
    """Matrix and offset of a projection: its weights where it is a plain linear layer, else measured."""
    with brought_in(module):
        weight = getattr(module, "weight", None)
        kind = type(module).__name__
        if isinstance(weight, Tensor) and (type(module) is nn.Linear or kind == "Conv1D") and weight.is_floating_point():
            matrix = weight if kind == "Conv1D" else weight.T
            bias = getattr(module, "bias", None)
            return matrix, matrix.new_zeros(matrix.shape[1]) if bias is None else bias.detach()
        like = next(p for p in module.parameters() if p.is_floating_point())
        eye = torch.eye(d_in, device=like.device, dtype=like.dtype)
        offset = module.forward(torch.zeros_like(eye[:1]))[0]
        return module.forward(eye) - offset, offset
