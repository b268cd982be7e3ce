"""Sites: the one grammar for addresses inside a model.

    name.layer[.index]        resid_post.15   z.9.3   mlp_act.4.1021
    embed  final_norm  logits                 no layer
    latent.<dictionary>[.N]                   a dictionary latent
    block.<path>[.channel]                    a CNN block; a channel is <path>[channel] where a module has that name
    path:<module>:in|out                      a raw module tensor

1. `parse_site` reads one address, `parse_sites` a set of them (`resid_post.*`, `z.3:9.0`).
2. Spellings of other tools are accepted where they can mean one thing only
   (`blocks.9.hook_resid_post`, `L9.resid_post`, `layers.9`, `z.9.h3`).
3. `str(site)` is the canonical form: it is what is echoed, stored and printed.

`hidden_states[k]` is refused: its index is off by one, and its last entry is taken after the final
norm, so it is not `resid_post` of the last layer. So is `hook_normalized`: TransformerLens takes it before the
gain and bias of the norm, whether they were folded into the next weights or not; no site here is that tensor.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from assay.errors import SiteError

LAYER_SITES = (
    "resid_pre", "resid_mid", "resid_post",
    "attn_in", "q", "k", "v", "pattern", "z", "attn_out",
    "mlp_in", "mlp_act", "mlp_out",
)  # fmt: skip
GLOBAL_SITES = ("embed", "final_norm", "logits")
INDEXED = {"q": "head", "k": "KV head", "v": "KV head", "pattern": "head", "z": "head",
           "attn_out": "head", "mlp_act": "neuron"}  # fmt: skip

_SYNONYMS = {
    "neurons": "mlp_act", "neuron": "mlp_act", "mlp_post": "mlp_act",
    "attn_weights": "pattern", "attention": "pattern",
    "residual": "resid_post", "resid": "resid_post",
    "ln_final": "final_norm", "embeddings": "embed", "embedding": "embed",
}  # fmt: skip
_TL = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post", "hook_mlp_in": "resid_mid",
    "attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v", "attn.hook_z": "z",
    "attn.hook_pattern": "pattern", "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out",
    "mlp.hook_post": "mlp_act",
}  # fmt: skip
_TL_GLOBAL = {"hook_embed": "embed", "unembed": "logits"}
_TL_GAIN = {"ln1.hook_normalized": "attn_in", "ln2.hook_normalized": "mlp_in"}  # what they are once the gain is applied
_NUMBER = re.compile(r"-?\d+")
_SET = re.compile(r"\*|-?\d*:-?\d*")
_HIDDEN = re.compile(r"hidden_states(\[|\.|$)")


@dataclass(frozen=True, order=True)
class Site:
    """One address inside a model.

    `layer` may be negative until `resolve` is called with the number of layers. `path` is the
    module path of `path:` and `block.` sites and the dictionary of `latent.` sites.
    """

    name: str
    layer: int | None = None
    index: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        if self.name == "path":
            return f"path:{self.path}"
        if self.path is not None:
            return f"{self.name}.{self.path}" + ("" if self.index is None else f".{self.index}")
        parts = [self.name, self.layer, self.index]
        return ".".join(str(part) for part in parts if part is not None)

    @property
    def whole(self) -> "Site":
        """The same site without its head, neuron or latent."""
        return replace(self, index=None)

    def resolve(self, n_layers: int) -> "Site":
        """The same site with a layer from 0 to n_layers - 1. Raises SiteError outside the model."""
        if self.layer is None:
            return self
        layer = self.layer + n_layers if self.layer < 0 else self.layer
        if not 0 <= layer < n_layers:
            raise SiteError(
                f"site {self}: layer {self.layer} is outside the model; allowed: 0 to {n_layers - 1}"
                f" (or -{n_layers} to -1)."
            )
        return replace(self, layer=layer)


def parse_site(text: "str | Site") -> Site:
    """Read one address. Raises SiteError, with candidates, for everything that is not one."""
    if isinstance(text, Site):
        return text
    spelled = str(text).strip()
    _refuse_hidden_states(spelled)
    if gained := before_gain(spelled):
        raise SiteError(f"site {spelled!r} is refused: it is taken before the gain and bias of the norm, {gained} after them."
                        f" Write {gained} for what comes after.")  # fmt: skip
    for prefix, reader in (("path:", _path), ("latent.", _named), ("block.", _named)):
        if spelled.startswith(prefix):
            return reader(spelled)
    name, rest = _canonical_parts(spelled)
    if name in GLOBAL_SITES:
        if rest:
            raise SiteError(f"site {spelled!r}: {name} takes no layer. Write {name!r}.")
        return Site(name)
    return _layer_site(spelled, name, rest)


def before_gain(text: str) -> Site | None:
    """The site a `hook_normalized` is once the norm's gain and bias are applied; None for every other address."""
    if text == "ln_final.hook_normalized":
        return Site("final_norm")
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", text)
    return Site(_TL_GAIN[match[2]], int(match[1])) if match and match[2] in _TL_GAIN else None


def parse_sites(
    texts: "str | Site | Iterable[str | Site]", n_layers: int, widths: dict[str, int] | None = None
) -> list[Site]:
    """Read a set of addresses: `*` and ranges `3:9` (end excluded) are expanded, layers resolved.

    `widths` maps an indexed name to its number of heads or neurons, for `*` and ranges of them.
    """
    items = [texts] if isinstance(texts, str | Site) else list(texts)
    found: dict[Site, None] = {}
    for item in items:
        for piece in str(item).split(",") if isinstance(item, str) else [item]:
            for site in _expand(piece, n_layers, widths or {}):
                found[site.resolve(n_layers)] = None
    return list(found)


def _expand(item: "str | Site", n_layers: int, widths: dict[str, int]) -> list[Site]:
    if isinstance(item, Site) or not any(mark in item for mark in ("*", ":")):
        return [parse_site(item)]
    if item.strip().startswith("path:"):
        return [parse_site(item)]
    parts = item.strip().split(".")
    name = parts[0]
    if name not in LAYER_SITES or len(parts) > 3:
        raise SiteError(f"site {item!r}: a set is written name.layers[.indices]; names: {_names()}.")
    if len(parts) == 1:
        raise SiteError(f"site {item!r}: the layers are missing, e.g. {name}.*")
    layers = _numbers(item, parts[1], n_layers)
    if len(parts) == 2:
        return [Site(name, layer) for layer in layers]
    if name not in widths and _SET.fullmatch(parts[2]):
        raise SiteError(f"site {item!r}: {name} has no index to range over.")
    indices = _numbers(item, parts[2], widths.get(name, 0))
    return [_indexed(item, name, layer, index) for layer in layers for index in indices]


def _numbers(item: str, text: str, size: int) -> list[int]:
    if text == "*":
        return list(range(size))
    if _NUMBER.fullmatch(text):
        return [int(text)]
    if _SET.fullmatch(text):
        start, stop = (int(part) if part else None for part in text.split(":"))
        numbers = list(range(size))[slice(start, stop)]
        if numbers:
            return numbers
        raise SiteError(f"site {item!r}: the range {text!r} is empty; allowed: within 0:{size}.")
    raise SiteError(f"site {item!r}: got {text!r}; allowed: a number, '*' or a range like '3:9'.")


def _canonical_parts(spelled: str) -> tuple[str, list[str]]:
    """The canonical name and the texts after it, other tools' spellings translated."""
    if spelled in _TL_GLOBAL:
        return _TL_GLOBAL[spelled], []
    if match := re.fullmatch(r"blocks\.(-?\d+)\.(.+)", spelled):
        if match[2] in _TL:
            return _TL[match[2]], [match[1]]
        raise _unknown(spelled)
    if match := re.fullmatch(r"[Ll](-?\d+)\.([a-z_]+)((?:\.h?\d+)?)", spelled):
        name = _SYNONYMS.get(match[2], match[2])
        return name, [match[1], *([match[3][1:]] if match[3] else [])]
    if match := re.fullmatch(r"(?:(?:model|transformer|gpt_neox)\.)?(?:layers|h)\.(-?\d+)", spelled):
        return "resid_post", [match[1]]
    name, *rest = spelled.split(".")
    return _SYNONYMS.get(name, name), rest


def _layer_site(spelled: str, name: str, rest: list[str]) -> Site:
    if name not in LAYER_SITES:
        raise _unknown(spelled)
    if not rest:
        raise SiteError(f"site {spelled!r}: the layer is missing. Write e.g. {name}.0 or {name}.-1")
    if not _NUMBER.fullmatch(rest[0]):
        raise SiteError(f"site {spelled!r}: layer {rest[0]!r} is not a number. Write e.g. {name}.3")
    if len(rest) == 1:
        return Site(name, int(rest[0]))
    index = rest[1].removeprefix("h")
    if len(rest) > 2 or not re.fullmatch(r"\d+", index):
        raise SiteError(f"site {spelled!r}: got {'.'.join(rest[1:])!r} after the layer; allowed: "
                        "one number (head or neuron).")  # fmt: skip
    return _indexed(spelled, name, int(rest[0]), int(index))


def _indexed(spelled: str, name: str, layer: int, index: int) -> Site:
    if name not in INDEXED:
        raise SiteError(
            f"site {spelled!r}: {name} has no index. Write {name}.{layer};"
            f" names with a head or neuron: {', '.join(INDEXED)}."
        )
    return Site(name, layer, index)


def _path(spelled: str) -> Site:
    body = spelled.removeprefix("path:")
    module, _, side = body.rpartition(":")
    if side not in ("in", "out") or not module:
        raise SiteError(f"site {spelled!r}: write path:<module path>:in or path:<module path>:out.")
    return Site("path", path=body)


def _named(spelled: str) -> Site:
    kind, _, body = spelled.partition(".")
    head, _, tail = body.rpartition(".")
    if head and re.fullmatch(r"\d+", tail) and kind == "latent":
        return Site(kind, index=int(tail), path=head)
    if not body:
        raise SiteError(f"site {spelled!r}: a name is missing after {kind!r}.")
    return Site(kind, path=body)


def _refuse_hidden_states(spelled: str) -> None:
    if _HIDDEN.match(spelled):
        raise SiteError(
            f"site {spelled!r} is refused: hidden_states[k] is the input of layer k, and its last"
            " entry is taken after the final norm. Write resid_pre.k, or resid_post.(k-1), or final_norm."
        )


def _unknown(spelled: str) -> SiteError:
    name = spelled.split(".")[0]
    close = difflib.get_close_matches(name, [*LAYER_SITES, *GLOBAL_SITES, *_SYNONYMS], n=2)
    close = list(dict.fromkeys(_SYNONYMS.get(word, word) for word in close))
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return SiteError(f"site {spelled!r}: not a site.{hint} Names: {_names()}.")


def _names() -> str:
    return ", ".join((*GLOBAL_SITES, *LAYER_SITES))
