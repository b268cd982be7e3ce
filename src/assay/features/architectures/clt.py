"""Cross-layer transcoders (Ameisen et al. 2025): latents read one layer's MLP input and write to all MLP outputs from it on.

1. Inputs: the MLP inputs of L layers; targets: their MLP outputs. Latents are in L equal groups: group l reads input l.
2. Latent j of group l has a decoder row for each of the layers l..L-1: `W_dec[l]` is (width / L, (L - l) d_out / L).
3. The reconstruction at layer m is the sum over groups l <= m. BatchTopK over all groups, on pre-activation x norm of
   the whole decoder row.

Decoders grow with L squared: a latent of the first layer writes to every layer.
"""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from assay.errors import bad_argument
from assay.features.architectures.batchtopk import BatchTopK
from assay.features.codes import Pairs, bag, read, spread
from assay.features.dictionary import ARCHITECTURES, AUX_ROWS, AUX_WEIGHT, Objective, Spec, Stage
from assay.features.screened import Scores
from assay.features.world import world


class CrossLayer(BatchTopK):
    """Transcoders of all layers in one. `spec.options["layers"]`: how many inputs and outputs there are."""

    architecture: ClassVar[str] = "clt"
    k_first: ClassVar[float] = 1.0
    option_names: ClassVar[tuple[str, ...]] = ("layers",)
    W_dec: nn.ParameterList  # type: ignore[assignment]

    def __init__(self, spec: Spec, name: str = "") -> None:
        layers = spec.options.get("layers", 0)
        if layers < 1 or spec.width % layers or spec.d_in % layers or spec.d_out % layers:
            raise bad_argument("layers", layers, "1 or more, and a divisor of width, d_in and d_out")
        if spec.centred or spec.skip:
            raise bad_argument("centred, skip", (spec.centred, spec.skip), "False, False", "Of cross-layer transcoders.")
        self.layers = int(layers)
        super().__init__(spec, name)
        self.out_scale = nn.Buffer(torch.ones(self.layers))

    @property
    def group(self) -> int:
        """Latents of one layer."""
        return self.width // self.layers

    @property
    def encoder_width(self) -> int:
        return self.spec.d_in // self.layers

    @property
    def d_layer(self) -> int:
        """Features of one output."""
        return self.spec.d_out // self.layers

    @property
    def free(self) -> bool:
        return True

    def make_decoder(self) -> None:
        shapes = [(self.group, (self.layers - layer) * self.d_layer) for layer in range(self.layers)]
        self.W_dec = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def norms(self) -> Float[Tensor, " latent"]:
        """Of whole decoder rows, in the units of training, where all outputs have one scale."""
        parts = [part.view(self.group, -1, self.d_layer).norm(dim=2) for part in self.W_dec]
        return torch.cat([(part * self.out_scale[layer:]).norm(dim=1) for layer, part in enumerate(parts)])

    def directions(self) -> Float[Tensor, "latent d_out"]:
        rows = [nn.functional.pad(part.detach(), (layer * self.d_layer, 0)) for layer, part in enumerate(self.W_dec)]
        return torch.cat(rows)

    def pre(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token latent"]:
        parts = x.split(self.encoder_width, dim=1)
        weights = self.W_enc.split(self.group)
        return torch.cat([part @ weight.T for part, weight in zip(parts, weights, strict=True)], 1) + self.b_enc

    @property
    def screens(self) -> bool:
        return False

    def weighed(self, pre: Scores) -> Scores:
        return pre * self.norms()

    def of_layer(self, pairs: Pairs, layer: int) -> tuple[Tensor, Pairs]:
        """Which pairs are of one layer's latents, and those pairs, numbered within the layer."""
        keep = (pairs.latents >= layer * self.group) & (pairs.latents < (layer + 1) * self.group)
        found = pairs.where(keep)
        return keep, Pairs(found.offsets, found.latents - layer * self.group, self.group)

    def active(self, x: Tensor, stage: Stage) -> tuple[Pairs, Float[Tensor, " active"]]:
        with torch.no_grad():
            pre = self.pre(x)
            pairs = self.choose(pre, stage)
        values = pre.new_zeros(len(pairs.latents))
        for layer, part in enumerate(x.split(self.encoder_width, dim=1)):
            rows = slice(layer * self.group, (layer + 1) * self.group)
            keep, own = self.of_layer(pairs, layer)
            found = read(pre[:, rows], part.contiguous(), self.W_enc[rows], self.b_enc[rows], None, own)
            values = values.masked_scatter(keep, found)
        return pairs, values.relu()

    def spread(self, values: Float[Tensor, " active"], pairs: Pairs) -> Float[Tensor, "token d_out"]:
        found = values.new_zeros(pairs.n_tokens, self.spec.d_out)
        for layer, decoder in enumerate(self.W_dec):
            keep, own = self.of_layer(pairs, layer)
            part = values[keep]
            made = spread(part, decoder, own) if torch.is_grad_enabled() else bag(part, own.latents, own.offsets, decoder)
            found = found + nn.functional.pad(made, (layer * self.d_layer, 0))
        return found

    def aux(self, x: Tensor, error: Tensor, stage: Stage) -> Tensor | float:
        """Of the layer with the most dead latents: they explain the error at that layer's own output."""
        if stage.dead is None or not bool(stage.dead.any()):
            return 0.0
        layer = int(stage.dead.view(self.layers, -1).sum(1).argmax())
        rows = slice(layer * self.group, (layer + 1) * self.group)
        dead = stage.dead[rows].nonzero().flatten()
        part = x.split(self.encoder_width, dim=1)[layer][: world().first(AUX_ROWS)]
        made = part @ self.W_enc[rows][dead].T
        best = made.topk(min(self.aux_k, max(self.d_layer // 2, 1), len(dead)), dim=1)
        found = torch.zeros_like(made).scatter(1, best.indices, best.values) @ self.W_dec[layer][dead]
        target = error[: len(part), layer * self.d_layer :]
        return AUX_WEIGHT * (target - found).square().sum() / world().mean(target.square().sum()).clamp_min(1e-12)

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        self.b_dec.copy_(y.mean(0))
        rows = torch.randn(self.width, self.encoder_width, generator=generator)
        self.W_enc.copy_(rows / rows.norm(dim=1, keepdim=True))
        self.b_enc.copy_(-self.pre(x.mean(0, keepdim=True))[0])
        for decoder in self.W_dec:
            made = torch.randn(decoder.shape, generator=generator)
            decoder.copy_(made / made.norm(dim=1, keepdim=True))

    def project(self) -> None:
        """Rows keep their own norms."""

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        values = found.values * self.norms()[found.pairs.latents]
        self.follow(values[values > 0])

    def fold_weights(self, scale_in: Tensor, scale_out: Tensor, unit: float) -> None:
        """Latents stay in the units of training: with one scale per layer no other unit keeps the selection."""
        scales = scale_in.view(self.layers, -1)[:, 0].repeat_interleave(self.group)
        self.W_enc.mul_(scales[:, None])
        self.out_scale.mul_(scale_out.view(self.layers, -1)[:, 0])
        for layer, decoder in enumerate(self.W_dec):
            decoder.div_(scale_out[layer * self.d_layer :])

    def fold_values(self, unit: float) -> None:
        """The threshold is in units of training still."""


ARCHITECTURES.add("clt", CrossLayer)
