"""Gemma Scope 1: `layer_L/width_W/average_l0_N/params.npz`, arrays without objects.

W_enc (d_in, latents), W_dec (latents, d_out), b_enc, b_dec, threshold; some files write w_enc. JumpReLU, nothing taken off
inputs, no scaling. What it is for is said by the names of the folders around it only: `-res`, `-mlp`, `-att` (heads
concatenated), `transcoders`, `embedding`. Embeddings were read before the model multiplies them by sqrt(d): inputs and
outputs are brought to the multiplied ones, W_enc / sqrt(d), W_dec sqrt(d), b_dec sqrt(d). Transcoders read what the norm
before the MLP gives without its gain, which their authors had folded into the MLP: `before_gain`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import FORMATS, Format, Found
from assay.features.formats.plain import plain, unplain, write_npz
from assay.features.formats.reading import read_npz

FILE = "params.npz"
KINDS = {"transcoder": ("mlp_in", "mlp_out"), "-res": ("resid_post", "resid_post"), "-mlp": ("mlp_out", "mlp_out"),
         "-att": ("z", "z")}  # fmt: skip


def _file(path: Path) -> Path:
    return path / FILE if path.is_dir() else path


def recognises(path: Path) -> bool:
    """A folder with params.npz, or an .npz file."""
    return _file(path).is_file() and _file(path).suffix == ".npz"


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    file = _file(path)
    numbers = read_npz(file)
    renamed = {re.sub(r"^w_", "W_", name.lower()): value for name, value in numbers.tensors.items()}
    if len(renamed) < len(numbers.tensors):
        raise bad_argument(f"{FILE}: arrays", sorted(numbers.tensors), "each name once, whatever its case")
    numbers.tensors = renamed
    d_in, width = numbers.shape("W_enc")
    _, d_out = numbers.shape("W_dec")
    state = {"W_enc": numbers.take("W_enc", d_in, width).T.contiguous(), "b_enc": numbers.take("b_enc", width),
             "W_dec": numbers.take("W_dec", width, d_out), "b_dec": numbers.take("b_dec", d_out),
             "threshold": numbers.take("threshold", width)}  # fmt: skip
    numbers.done()
    place = file.parent.resolve()  # of the folder: in the cache of Hugging Face a file is a link to a place without names
    inputs, outputs, assumed = _sites(place.as_posix())
    if inputs == ("embed",):
        root = d_in**0.5
        state |= {"W_enc": state["W_enc"] / root, "W_dec": state["W_dec"] * root, "b_dec": state["b_dec"] * root}
        assumed.append("an embedding, by its folder: read from and written to embeddings times sqrt(d)")
    spec = Spec("jumprelu", width, d_in, d_out, inputs=inputs, outputs=outputs, centred=False)
    parts = [part for part in place.parts[-3:] if re.match(r"(layer|width|average|embedding)", part)]
    source = {"format": "gemma_scope", "from": "/".join(parts) or file.name}
    return Found(spec, state, source, assumed, "-".join(parts), before_gain=inputs != outputs).dictionary()


def _sites(place: str) -> tuple[tuple[str, ...], tuple[str, ...], list[str]]:
    """Inputs and outputs by the name of a folder; those of a transcoder once the gain is folded in."""
    if re.search(r"/embedding(/|$)", place):
        return ("embed",), ("embed",), []
    layers = re.findall(r"(?<=/)layer_(\d+)(?=/|$)", place)
    for word, (before, after) in KINDS.items():
        if layers and re.search(rf"gemma-scope[^/]*{word}s?(?![a-z])", place):
            told = f"sites by the names of folders: {word.strip('-')}, layer_{layers[-1]}"
            return (f"{before}.{layers[-1]}",), (f"{after}.{layers[-1]}",), [told]
    return (), (), []


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if why := unplain(dictionary):
        return why
    if dictionary.architecture not in ("relu", "jumprelu", "batchtopk", "matryoshka"):
        return f"it has thresholds only, not {dictionary.architecture}"
    if dictionary.spec.skip:
        return "it has no skip connection"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    made = plain(dictionary)
    assert made is not None
    made = made.shifted(False).jump()
    assert made.threshold is not None
    write_npz(folder / FILE, {"W_enc": made.W_enc.T, "W_dec": made.W_dec, "b_enc": made.b_enc, "b_dec": made.b_dec,
                              "threshold": made.threshold})  # fmt: skip
    kept = "sites, positions and norm limits have no place there"
    return (
        (kept,)
        if dictionary.architecture == "jumprelu"
        else (f"{dictionary.architecture} is jumprelu there: the same latents", kept)
    )


FORMATS.add("gemma_scope", Format("gemma_scope", "Gemma Scope 1: params.npz", recognises, read, write, lacks))
