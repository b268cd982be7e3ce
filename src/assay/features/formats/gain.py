"""The gain of a norm, folded into a dictionary that was trained on what the norm gives without it.

n is what the norm makes before its gain, y = gain n + bias is the site here. W n + c = (W / gain) y + c - (W / gain) bias,
and a skip connection goes the same way: latents and reconstructions stay what they were.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, make_dictionary
from assay.features.formats.base import BEFORE_GAIN, NORMALIZED, waiting, without_gain

FOLDS = ("relu", "jumprelu", "topk", "groupmax", "batchtopk", "matryoshka")  # their latents depend on W x + c alone
FOLDED = "the gain of the norm before {site} was folded into the encoder"


def folded(dictionary: Dictionary, gain: Float[Tensor, " d_in"], bias: Float[Tensor, " d_in"] | None = None) -> Dictionary:
    """The same dictionary for a norm's output, from one that was read as before the norm's gain.

    `gain`: what the norm multiplies by (its weight; 1 + its weight in Gemma), `bias`: what it adds (LayerNorm).
    Raises UsageError for a dictionary that does not wait for a gain, or of which one cannot be folded in.
    """
    inputs, outputs = waiting(dictionary)
    _check(dictionary, inputs, outputs)
    gain, shift = _vector("gain", gain, dictionary), torch.zeros(dictionary.spec.d_in)
    if bool((gain == 0).any()):
        raise bad_argument("gain", "zeros", "numbers other than 0", "What is multiplied by 0 cannot be read again.")
    if bias is not None:
        shift = _vector("bias", bias, dictionary)
    spec = replace(dictionary.spec, inputs=tuple(inputs), outputs=tuple(outputs), centred=False)
    found = make_dictionary(spec, dictionary.given_name)
    found.load_state_dict(dictionary.state_dict())
    with torch.no_grad():
        if dictionary.spec.centred:
            found.b_enc.sub_(found.W_enc @ found.b_dec)
        found.fold(1 / gain, torch.ones(spec.d_out))
        found.b_enc.sub_(found.W_enc @ shift)
        if found.W_skip is not None:
            found.b_dec.sub_(found.W_skip @ shift)
    found.requires_grad_(False)
    imported = dict(dictionary.provenance["imported"])
    said = without_gain(imported.pop(BEFORE_GAIN))
    assumed = [one for one in imported.get("assumed", []) if one != said] + [FOLDED.format(site=inputs[0])]
    found.provenance = {**dictionary.provenance, "imported": {**imported, "assumed": assumed}}
    return found


def _check(dictionary: Dictionary, inputs: list[str], outputs: list[str]) -> None:
    """Raises UsageError for a dictionary of which no gain can be folded in."""
    if not inputs:
        raise bad_argument("dictionary", dictionary.name, "one whose files say that it reads before the gain of a norm")
    names = [[site.partition(".")[0] in NORMALIZED for site in sites] for sites in (inputs, outputs)]
    if names != [[True], [False]]:
        raise bad_argument("dictionary", f"{', '.join(inputs)} to {', '.join(outputs)}", "a transcoder from one norm",
                           "What it writes before a gain has no site.")  # fmt: skip
    if dictionary.architecture not in FOLDS or dictionary.input_norm != "none":
        norm = f" with input_norm {dictionary.input_norm}" if dictionary.input_norm != "none" else ""
        raise bad_argument("dictionary", f"{dictionary.architecture}{norm}", ", ".join(FOLDS))


def _vector(name: str, values: Tensor, dictionary: Dictionary) -> Float[Tensor, " d_in"]:
    """As fp32 on the CPU. Raises UsageError for another shape, or numbers that are not finite."""
    found, expected = values.detach().float().cpu(), (dictionary.spec.d_in,)
    if tuple(found.shape) != expected or not bool(found.isfinite().all()):
        raise bad_argument(name, f"shape {tuple(found.shape)}", f"finite numbers of shape {expected}")
    return found
