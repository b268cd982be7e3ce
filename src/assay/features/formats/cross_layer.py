"""Cross-layer transcoders kept as files of their layers, in whichever tool's names: one way to put them together.

Layer l has W_enc (latents, d), b_enc, thresholds, and a decoder (latents, layers - l, d) for its own output and those after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import Found
from assay.features.formats.plain import bars


@dataclass(frozen=True, eq=False)
class Layer:
    """The part of one layer. `b_dec` is of the output at this layer."""

    W_enc: Float[Tensor, "latent d"]
    b_enc: Float[Tensor, " latent"]
    threshold: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent output d"]
    b_dec: Float[Tensor, " d"]


def together(
    layers: Sequence[Layer],
    sites: tuple[str, str],
    source: dict[str, Any],
    assumed: list[str],
    name: str,
    before_gain: bool = False,
) -> Dictionary:
    """One dictionary of all layers. `sites`: names of inputs and outputs, without the layer; empty where not known."""
    count, (group, d) = len(layers), layers[0].W_enc.shape
    for number, layer in enumerate(layers):
        shapes = (tuple(layer.W_enc.shape), tuple(layer.W_dec.shape))
        if shapes != ((group, d), (group, count - number, d)):
            raise bad_argument(
                f"layer {number}", f"shapes {shapes}", f"{((group, d), (group, count - number, d))}, as layer 0 says"
            )
    numbers = {
        "W_enc": torch.cat([layer.W_enc for layer in layers]),
        "b_enc": torch.cat([layer.b_enc for layer in layers]),
        "threshold": torch.cat([layer.threshold for layer in layers]),
        "b_dec": torch.cat([layer.b_dec for layer in layers]),
        **{f"W_dec.{number}": layer.W_dec.flatten(1) for number, layer in enumerate(layers)},
    }
    inputs, outputs = (tuple(f"{site}.{number}" for number in range(count)) for site in sites) if all(sites) else ((), ())
    spec = Spec("clt_jumprelu", group * count, d * count, d * count, inputs=inputs, outputs=outputs, centred=False,
                options={"layers": count})  # fmt: skip
    return Found(spec, numbers, source, assumed, name, before_gain=before_gain).dictionary()


def lacks(dictionary: Dictionary) -> str:
    """Why a cross-layer transcoder cannot be taken apart."""
    if dictionary.architecture == "clt" and float(dictionary.threshold) < 0:  # type: ignore[arg-type]
        return "its threshold is not set yet, so what is active depends on the batch"
    return ""


def apart(dictionary: Dictionary) -> list[Layer]:
    """The layers of a cross-layer transcoder. Thresholds on value x norm become thresholds on values."""
    count, group = int(dictionary.layers), int(dictionary.group)  # type: ignore[arg-type]
    threshold = dictionary.threshold.detach().float()  # type: ignore[union-attr]
    if dictionary.architecture == "clt":
        threshold = bars(float(threshold), dictionary.norms().detach())  # type: ignore[operator]
    d = dictionary.spec.d_in // count
    parts = zip(dictionary.W_enc.detach().split(group), dictionary.b_enc.detach().split(group), threshold.split(group),
                dictionary.W_dec, dictionary.b_dec.detach().split(d), strict=True)  # type: ignore[arg-type]  # fmt: skip
    return [
        Layer(encoder, bias, bar, decoder.detach().unflatten(1, (-1, d)), out) for encoder, bias, bar, decoder, out in parts
    ]
