"""A dictionary as one encoder, one decoder and a rule, which is what other tools keep; and writing files.

(x - b) W^T + c = x W^T + (c - W b): where inputs are as wide as outputs, `centred` or not is only a way to write biases.
Latents times their decoder norm, over rows of norm 1, are the same reconstruction in other units.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from assay.features.dictionary import Dictionary, make_dictionary
from assay.files import write_file

NEVER = 1e38  # a threshold that no pre-activation reaches


@dataclass(frozen=True, eq=False)
class Plain:
    """A dictionary as numbers: pre = (x - shift) W_enc^T + b_enc, with shift = b_dec where `centred`.

    `rule`: "relu", "jumprelu" (threshold per latent), "topk", "groupmax", "gated", "matching_pursuit".
    `gain`: latents here per latent of the dictionary, where decoder rows had to be brought to norm 1.
    """

    rule: str
    W_enc: Float[Tensor, "latent d_in"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_out"]
    b_dec: Float[Tensor, " d_out"]
    centred: bool
    threshold: Float[Tensor, " latent"] | None = None
    r_mag: Float[Tensor, " latent"] | None = None
    b_mag: Float[Tensor, " latent"] | None = None
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    gain: Float[Tensor, " latent"] | None = None

    def shifted(self, centred: bool) -> "Plain":
        """The same with biases for the other way to write them."""
        if centred == self.centred:
            return self
        sign = 1.0 if centred else -1.0
        moved = sign * (self.W_enc.double() @ self.b_dec.double())
        magnitude = None if self.b_mag is None or self.r_mag is None else (
            self.b_mag.double() + moved * self.r_mag.double().exp()).float()  # fmt: skip
        return replace(self, centred=centred, b_enc=(self.b_enc.double() + moved).float(), b_mag=magnitude)

    def unit(self) -> "Plain":
        """With decoder rows of norm 1: latents times what the norms were."""
        norms = self.W_dec.norm(dim=1)
        rows = norms.clamp_min(1e-12)[:, None]
        return replace(self, W_enc=self.W_enc * norms[:, None], b_enc=self.b_enc * norms, W_dec=self.W_dec / rows, gain=norms)

    def jump(self) -> "Plain":
        """A relu as a jumprelu with thresholds 0."""
        return replace(self, rule="jumprelu", threshold=torch.zeros(len(self.b_enc))) if self.rule == "relu" else self


def plain(dictionary: Dictionary) -> Plain | None:
    """A dictionary in these words; none for one of several sites, or whose latents depend on the batch."""
    rule = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(dictionary.architecture, dictionary.architecture)
    if rule not in ("relu", "jumprelu", "topk", "groupmax", "gated", "matching_pursuit"):
        return None
    state = {name: value.detach().float() for name, value in dictionary.state_dict().items()}
    threshold = state.get("threshold")
    if dictionary.architecture in ("batchtopk", "matryoshka"):
        if threshold is None or float(threshold) < 0:
            return None
        norms = state["W_dec"].norm(dim=1) if dictionary.spec.options.get("decoder") == "free" else torch.ones(dictionary.width)
        threshold = bars(float(threshold), norms)
    return Plain(rule, state["W_enc"], state["b_enc"], state["W_dec"], state["b_dec"], dictionary.spec.centred, threshold,
                 state.get("r_mag"), state.get("b_mag"), state.get("W_skip"))  # fmt: skip


def bars(threshold: float, norms: Float[Tensor, " latent"]) -> Float[Tensor, " latent"]:
    """Thresholds on values from one on value x norm; latents that write nothing are never active."""
    return torch.where(norms > 0, threshold / norms.clamp_min(1e-30), NEVER).clamp_max(NEVER)


def free_rows(dictionary: Dictionary) -> bool:
    """Whether latents are chosen by value times the norm of their decoder row."""
    return dictionary.spec.options.get("decoder") == "free"


def unplain(dictionary: Dictionary) -> str:
    """Why a dictionary cannot be written as one encoder and one decoder, empty where it can."""
    if dictionary.architecture in ("batchtopk", "matryoshka") and float(dictionary.threshold) < 0:  # type: ignore[arg-type]
        return "its threshold is not set yet, so what is active depends on the batch"
    return "" if plain(dictionary) else f"{dictionary.architecture} has no place in it"


def again(dictionary: Dictionary, made: Plain) -> Dictionary:
    """The dictionary that reading a file with these numbers gives, for its probe."""
    kept = ("input_norm", *(("residual_threshold", "steps", "stop_on_repeat") if made.rule == "matching_pursuit" else ()))
    options = {key: value for key, value in dictionary.spec.options.items() if key in kept}
    found = make_dictionary(replace(dictionary.spec, architecture=made.rule, centred=made.centred, options=options))
    own = dict(found.named_parameters()) | dict(found.named_buffers())
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "W_skip"):
            value = getattr(made, name)
            if name in own and value is not None:
                own[name].copy_(value)
    return found


SCALED = "latents in the file are times the norm of their decoder row: same reconstructions, other units"


# writing -----------------------------------------------------------------------------------------


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON object, beside and then renamed."""
    write_file(path, (json.dumps(values, indent=1) + "\n").encode())


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Tensors, beside and then renamed."""
    from safetensors.torch import save

    write_file(path, save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}))


def write_torch(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A state dictionary of torch."""
    content = io.BytesIO()
    torch.save({name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, content)
    write_file(path, content.getvalue())


def write_npz(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Numpy arrays."""
    content = io.BytesIO()
    np.savez(content, **{name: value.detach().cpu().numpy() for name, value in tensors.items()})  # type: ignore[arg-type]
    write_file(path, content.getvalue())
