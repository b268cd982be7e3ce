"""What a format is, and how what was read becomes a dictionary.

1. `Found.dictionary` says in the provenance what was read, what was left aside and what had to be assumed.
2. Where a matrix is square, its shape does not show whether it lies transposed: `check_order` looks at norms and at how
   encoder rows lie along decoder rows, and says what it found or had to assume.
3. Files written here carry a few numbers that say what the dictionary does (`probe`), and are checked against them.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import SiteError, bad_argument
from assay.features.dictionary import Dictionary, Spec, make_dictionary
from assay.features.kept import probe_inputs
from assay.registry import Registry
from assay.sites import Site, before_gain, parse_site

OWN = "assay"  # the key of what only Assay knows, in other tools' configs
BEFORE_GAIN = "before_gain"  # the key, in what is kept of an import, of the sites it has once a norm's gain is folded in
PROBE_TOLERANCE = 1e-3
MORE_ALIKE, ONE_NORM = 5.0, 0.01  # spreads of norms: what counts as evidence of how a square matrix lies
TIED, CHANCE, FEWEST = 0.2, 8.0, 8  # cosines, too: of random rows of d numbers they differ by up to CHANCE / d


@dataclass(frozen=True, eq=False)
class Format:
    """One way to keep dictionaries. `lacks`: why a dictionary has no place in it, empty where it has."""

    name: str
    title: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Dictionary]
    write: Callable[[Dictionary, Path], Sequence[str]]
    lacks: Callable[[Dictionary], str]


FORMATS: Registry[Format] = Registry("format")


@dataclass(eq=False)
class Found:
    """What was read, before it is a dictionary. `assumed`: what the file does not say and was decided here.

    `before_gain`: it reads what a norm gives without its gain, which is no site: the dictionary gets none, and those in
    `spec` are kept for `folded`.
    """

    spec: Spec
    numbers: dict[str, Tensor]
    source: dict[str, Any]
    assumed: list[str] = field(default_factory=list)
    name: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    before_gain: bool = False

    def dictionary(self) -> Dictionary:
        """The dictionary. Raises UsageError where it does not do what the file's own probe says."""
        spec, name, before, assumed = _restored(self.spec, self.own), self.name, {}, list(self.assumed)
        waits = {"inputs": list(spec.inputs), "outputs": list(spec.outputs)} if self.before_gain and spec.inputs else None
        if self.own:
            name, before = str(self.own.get("name") or name), dict(_object(self.own, "provenance"))
            waits = _object(before, "imported").get(BEFORE_GAIN)
        elif not spec.inputs:
            assumed.append("sites: the file names none that is known here")
        if not self.own:
            assumed.append(f"skip_first {spec.skip_first}: the file does not say which positions it is for")
        if waits:
            spec = replace(spec, inputs=(), outputs=())
            assumed.append(without_gain(waits))
        assumed += check_order(self.numbers["W_enc"], self.numbers["W_dec"]) if "W_dec" in self.numbers else []
        dictionary = make_dictionary(spec, name)
        with torch.no_grad():
            own = dict(dictionary.named_parameters()) | dict(dictionary.named_buffers())
            for key, value in self.numbers.items():
                own[key].copy_(value)
        dictionary.requires_grad_(False)
        if self.own:
            check_probe(dictionary, self.own.get("probe"))
        kept = {BEFORE_GAIN: waits} if waits else {}
        dictionary.provenance = {**before, "imported": {**self.source, **kept, "assumed": assumed}}
        return dictionary


def _restored(spec: Spec, own: Mapping[str, Any]) -> Spec:
    """With what the format has no place for, from the part of the file only Assay writes."""
    if not (kept := _object(own, "spec")):
        return spec
    try:
        before = Spec.of(kept)
        limits = [None if value is None else float(value) for value in (before.norm_limit, before.target_limit)]
        first, inputs, outputs = int(before.skip_first), *(tuple(map(str, sites)) for sites in (before.inputs, before.outputs))
    except (TypeError, ValueError) as error:
        raise bad_argument(f"{OWN}: spec", dict(kept), "a description as Assay writes it", f"{error}.") from error
    if (before.width, before.d_in, before.d_out) != (spec.width, spec.d_in, spec.d_out):
        raise bad_argument(f"{OWN}: spec", (before.width, before.d_in, before.d_out),
                           f"{(spec.width, spec.d_in, spec.d_out)}, as the numbers of the file")  # fmt: skip
    return replace(spec, inputs=inputs, outputs=outputs, k=spec.k or before.k, skip_first=first, norm_limit=limits[0],
                   target_limit=limits[1])  # fmt: skip


def _object(own: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object in the part only Assay writes, empty where it is missing."""
    found = own.get(key) or {}
    if not isinstance(found, Mapping):
        raise bad_argument(f"{OWN}: {key}", type(found).__name__, "an object")
    return found


def check_order(encoder: Float[Tensor, "latent d_in"], decoder: Float[Tensor, "latent d_out"]) -> list[str]:
    """What square matrices show of how they lie. Raises UsageError where they lie against their format."""
    if decoder.shape[0] != decoder.shape[1] and encoder.shape[0] != encoder.shape[1]:
        return []
    seen = []
    if FEWEST <= decoder.shape[0] == decoder.shape[1]:
        across, along = (_spread(decoder.norm(dim=axis)) for axis in (0, 1))
        if along < min(ONE_NORM, across / MORE_ALIKE):
            seen.append("decoder rows have one norm")
        elif across < min(ONE_NORM, along / MORE_ALIKE):
            raise bad_argument(
                "decoder",
                "a square matrix whose columns, not rows, have one norm",
                "latents along the format's axis",
                "It lies transposed: write the file again with it turned.",
            )
    if encoder.shape == decoder.shape and encoder.shape[0] == encoder.shape[1]:
        straight, turned = _alike(encoder, decoder), _alike(encoder.T, decoder)
        margin = max(TIED, CHANCE / len(encoder))
        if turned > straight + margin:
            raise bad_argument("encoder, decoder", f"square matrices that agree (cosine {turned:.2f}) only when one is turned",
                               "both in the format's order", "One of them lies transposed: write the file again.")  # fmt: skip
        if straight > turned + margin:
            seen.append("encoder rows lie along decoder rows")
    return [f"square matrices: {' and '.join(seen)}" if seen else "square matrices: the order of the format, as nothing in the "
            "numbers shows another"]  # fmt: skip


def _spread(norms: Tensor) -> float:
    return float(norms.std() / norms.mean().clamp_min(1e-12))


def _alike(a: Float[Tensor, "row d"], b: Float[Tensor, "row d"]) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=1).mean())


def probe(dictionary: Dictionary) -> dict[str, Any]:
    """A few numbers that say what a dictionary does: norms of reconstructions and active latents of inputs made from it."""
    x = probe_inputs(dictionary)
    return {"norms": dictionary.reconstruct(x).norm(dim=1).tolist(), "active": dictionary.codes(x).l0.tolist()}


def check_probe(dictionary: Dictionary, kept: Any) -> None:
    """Raises UsageError where a dictionary does not do what is kept of it."""
    if kept is None:
        return
    try:
        norms = torch.tensor(kept["norms"], dtype=torch.float32)
    except (TypeError, KeyError, ValueError) as error:
        raise bad_argument(f"{OWN}: probe", type(kept).__name__, "norms of reconstructions") from error
    found = torch.tensor(probe(dictionary)["norms"])
    if norms.shape != found.shape or float((norms - found).abs().max()) > PROBE_TOLERANCE * float(
        norms.abs().max().clamp_min(1.0)
    ):
        raise bad_argument(
            "numbers",
            f"reconstructions of norm {found.tolist()}",
            f"norms {norms.tolist()}, as kept in the file",
            "Numbers or settings were changed after the file was written.",
        )


def own_part(dictionary: Dictionary, read_back: Dictionary | None = None) -> dict[str, Any]:
    """What only Assay knows of a dictionary, for a config of another tool. `read_back`: the dictionary the file will make."""
    spec = dictionary.spec.json()
    return {"spec": spec, "name": dictionary.name, "provenance": json.loads(json.dumps(dictionary.provenance, default=str)),
            "probe": probe(read_back or dictionary)}  # fmt: skip


def known_site(text: Any) -> str:
    """The canonical form of another tool's address, empty where it is not one of ours."""
    try:
        return str(parse_site(str(text))) if text else ""
    except SiteError:
        return ""


def known_hook(text: Any) -> tuple[str, bool]:
    """The canonical form of another tool's address, and whether the address is that site before the gain of a norm."""
    gained = before_gain(str(text))
    return (str(gained), True) if gained else (known_site(text), False)


def without_gain(waits: Any) -> str:
    """What is to be said of a dictionary that has no sites until a gain is folded in."""
    sites = ", ".join(map(str, _listed(waits, "inputs")))
    return f"no site: it reads {sites} before the gain of the norm (assay dictionary import PATH --fold MODEL)"


def waiting(dictionary: Dictionary) -> tuple[list[str], list[str]]:
    """Inputs and outputs it has once the gain of a norm is folded in; none where it does not wait for that."""
    waits = _object(dictionary.provenance, "imported").get(BEFORE_GAIN)
    return (_listed(waits, "inputs"), _listed(waits, "outputs")) if waits and not dictionary.spec.inputs else ([], [])


def _listed(waits: Any, key: str) -> list[str]:
    found = waits.get(key) if isinstance(waits, Mapping) else None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise bad_argument(f"{OWN}: imported: {BEFORE_GAIN}: {key}", found, "a list of sites")
    return found


LAYERS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "mlp_act": "mlp.hook_post",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
}
NORMALIZED = {"mlp_in": "ln2.hook_normalized", "attn_in": "ln1.hook_normalized", "final_norm": "ln_final.hook_normalized"}


def hook_name(site: str) -> str:
    """How TransformerLens calls a site; the site itself where it has no name for it."""
    try:
        found: Site = parse_site(site)
    except SiteError:
        return site
    if found.name in LAYERS and found.layer is not None and found.layer >= 0:
        return f"blocks.{found.layer}.{LAYERS[found.name]}"
    return "hook_embed" if found.name == "embed" else site


def hook_names(dictionary: Dictionary) -> tuple[str | None, str | None]:
    """How TransformerLens calls what a dictionary reads and what it reconstructs; None where that is not known."""
    before, after = waiting(dictionary)
    inputs, outputs = before or dictionary.spec.inputs, after or dictionary.spec.outputs
    name = _normalized if before else hook_name
    return (name(inputs[0]) if inputs else None, name(outputs[0]) if outputs else None)


def _normalized(site: str) -> str:
    """The hook before the gain, of a site after it; as `hook_name` for others."""
    found = parse_site(site)
    if found.name not in NORMALIZED:
        return hook_name(site)
    return NORMALIZED[found.name] if found.layer is None else f"blocks.{found.layer}.{NORMALIZED[found.name]}"


def layer_of(site: str) -> int | None:
    """The layer of a site."""
    found = re.match(r"[a-z_]+\.(\d+)", site)
    return int(found[1]) if found else None
