"""Prove a layout on the live model: every site has an equation, measured here and now.

1. Capturing every site leaves the logits bit-identical; an identity patch is a no-op.
2. The parts add up: pre + attn_out = mid, pre + attn_out + mlp_out = post, post = next pre, the sum
   of head contributions (and bias) = attn_out, W_down mlp_act = the MLP's output, pattern v = z.
3. Roles by intervention, because sums cannot tell q from k: a perturbed q at position p moves z at p
   only and in its own head only; a perturbed k or v moves z from p on, in its own KV group only.
4. Padding: right- and left-padded batches agree with the unpadded run.

A site whose equation fails is not offered; its error names the equation and the size of the miss.
If the residual stream itself fails, the model is refused. Errors are relative to the largest entry
of each position.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import LayoutError
from assay.model.activations import Activations
from assay.model.edits import Edit, patch
from assay.model.heads import HeadMaths
from assay.model.layout import Layout, find_layout, tolerance
from assay.model.points import relative_error
from assay.model.run import Batch, Engine, Request
from assay.sites import GLOBAL_SITES, LAYER_SITES, Site

BUDGET = 1 << 30
LENGTH = 7  # tokens per probe prompt
PLACE = 3  # the position that is perturbed


@dataclass(frozen=True)
class SiteProof:
    """One site: its equation and the relative error measured on this model."""

    site: str
    proved: bool
    equation: str
    error: float


@dataclass(frozen=True, eq=False)
class Proof:
    """All site proofs of one model, what is absent by structure, and the layout that holds."""

    layout: Layout
    sites: list[SiteProof]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def proved(self) -> bool:
        return all(site.proved for site in self.sites)


def prove(hf: nn.Module) -> Proof:
    """Find the layout and prove it. Raises LayoutError when the residual stream cannot be proved."""
    with _as_found(hf):
        tokens = probe_tokens(hf)
        layout = find_layout(hf, tokens)
        proof = _Prover(hf, layout, tokens).run()
    core = [site for site in proof.sites if site.site.startswith(("resid_pre", "resid_post", "logits"))]
    failed = next((site for site in core if not site.proved), None)
    if failed is not None:
        raise LayoutError(
            f"the layout of {type(hf).__name__} could not be proved: {failed.site}:"
            f" {failed.equation}; relative error {failed.error:.2g},"
            f" allowed {tolerance(next(hf.parameters()).dtype):.2g}."
        )
    return proof


class _as_found:
    """Parameters frozen and eval mode for the proof, everything restored after it."""

    def __init__(self, hf: nn.Module) -> None:
        self.hf = hf

    def __enter__(self) -> None:
        self.flags = [p for p in self.hf.parameters() if p.requires_grad]
        self.training = [m for m in self.hf.modules() if m.training]
        for parameter in self.flags:
            parameter.requires_grad_(False)
        if self.training:
            self.hf.eval()

    def __exit__(self, *_: object) -> None:
        for parameter in self.flags:
            parameter.requires_grad_(True)
        for module in self.training:
            module.training = True


def probe_tokens(hf: nn.Module, rows: int = 2, length: int = LENGTH) -> Tensor:
    """Fixed pseudo-random token ids inside the vocabulary, away from special ids at its start."""
    embedding = hf.get_input_embeddings()  # type: ignore[operator]
    size = embedding.weight.shape[0]
    generator = torch.Generator().manual_seed(20)
    low = min(16, size // 4)
    ids = torch.randint(low, size, (rows, length), generator=generator)
    return ids.to(embedding.weight.device)


class _Prover:
    def __init__(self, hf: nn.Module, layout: Layout, tokens: Tensor) -> None:
        self.hf, self.layout, self.tokens = hf, layout, tokens
        self.engine = Engine(hf, layout, pad_id=int(tokens[0, 0]), memory_budget=BUDGET)
        self.tol = tolerance(next(hf.parameters()).dtype)
        self.results: dict[Site, list[tuple[str, float, float]]] = {}
        self.acts: dict[Site, Tensor] = {}

    def run(self) -> Proof:
        with torch.no_grad():
            plain = self.hf(input_ids=self.tokens, use_cache=False).logits
            captured = self._capture(list(self.layout.points))
            self._note(Site("logits"), "capture leaves the logits bit-identical",
                       float((plain - captured).abs().max()), 0.0)  # fmt: skip
            self._identities(plain)
            for layer in range(self.layout.dims.n_layers):
                self._sums(layer)
            self._ends()
            for name, region in _REGIONS.items():
                self._intervene(name, *region)
            self._padding(plain)
        return self._conclude()

    # measuring -------------------------------------------------------------------------------

    def _pass(self, tokens: Tensor, captures: list[Site], edits: list[Edit], logits: bool) -> tuple[Any, ...]:
        held: dict[Site, Tensor] = {}
        lengths = torch.full((len(tokens),), tokens.shape[1], device=tokens.device)
        batch = Batch(torch.arange(len(tokens), device=tokens.device), tokens, lengths)
        request = Request(tokens.tolist(), tuple(captures), tuple(edits), "all", "all" if logits else None)

        def sink(site: Site, value: Tensor) -> None:
            held[site] = value.clone()

        return self.engine.run(batch, request, sink), held

    def _capture(self, sites: list[Site]) -> Tensor:
        logits, self.acts = self._pass(self.tokens, sites, [], True)
        return logits

    def _note(self, site: Site, equation: str, error: float, tol: float | None = None) -> None:
        error = error if error == error else float("inf")
        limit = self.tol if tol is None else tol
        self.results.setdefault(site, []).append((equation, error, limit))

    def _value(self, name: str, layer: int) -> Tensor | None:
        return self.acts.get(Site(name, layer))

    def _identities(self, plain: Tensor) -> None:
        """Patching every layer's own value back changes nothing."""
        for name in (*LAYER_SITES, "embed", "final_norm"):
            sites = [site for site in self.layout.points if site.name == name]
            values = {site: self.acts[site] for site in sites if site in self.acts}
            edits = [patch(site, value) for site, value in values.items()]
            logits, _ = self._pass(self.tokens, [], edits, True)
            # each layer's own rounding may grow on its way up, so the bar is wider than one equation's
            error = relative_error(logits, plain)
            for site in values:
                self._note(site, "an identity patch is a no-op", error, 50 * self.tol)

    def _sums(self, layer: int) -> None:
        value = self._value
        pre, mid, post = (value(f"resid_{w}", layer) for w in ("pre", "mid", "post"))
        attn, mlp = value("attn_out", layer), value("mlp_out", layer)
        assert pre is not None and post is not None
        below = value("resid_post", layer - 1) if layer else None
        if below is not None:
            self._note(Site("resid_pre", layer), "resid_pre.L = resid_post.(L-1)", relative_error(pre, below), 0.0)
        else:
            self._note(Site("resid_pre", layer), "an identity patch is a no-op", 0.0)
        if mlp is not None:
            total = pre + (0 if attn is None else attn) + mlp
            error = relative_error(total, post)
            for name in ("resid_post", "mlp_out", "attn_out"):
                if value(name, layer) is not None:
                    self._note(Site(name, layer), "resid_pre + attn_out + mlp_out = resid_post", error)
        else:
            self._note(Site("resid_post", layer), "module outputs add up to resid_post - resid_pre", float("inf"))
        if mid is not None and attn is not None and mlp is not None:
            self._note(Site("resid_mid", layer), "resid_pre + attn_out = resid_mid", relative_error(pre + attn, mid))
            self._note(Site("resid_mid", layer), "resid_mid + mlp_out = resid_post", relative_error(mid + mlp, post))
        self._heads(layer)
        self._mlp(layer)

    def _heads(self, layer: int) -> None:
        z, attn = self._value("z", layer), self._value("attn_out", layer)
        pattern, v = self._value("pattern", layer), self._value("v", layer)
        if z is not None and attn is not None:
            error = self._head_sum(layer, z, attn)
            for name in ("z", "attn_out"):
                self._note(Site(name, layer), "sum of heads' contributions + bias = attn_out", error)
        if z is not None and v is not None:
            group = z.shape[2] // v.shape[2]
            values = v.repeat_interleave(group, 2)
            if pattern is not None:
                mixed = torch.einsum("bqhk,bkhd->bqhd", pattern.to(values.dtype), values)
                error = relative_error(mixed, z, values.abs().amax(1, keepdim=True).expand_as(z))
                for name in ("v", "z", "pattern"):
                    self._note(Site(name, layer), "pattern . v = z", error)
            else:
                first = relative_error(values[:, :1], z[:, :1])
                self._note(Site("v", layer), "z = v at the first position", first)
        if pattern is not None:
            future = pattern.transpose(1, 2).triu(1).abs().max()
            self._note(Site("pattern", layer), "the pattern is causal", float(future), 0.0)

    def _head_sum(self, layer: int, z: Tensor, attn: Tensor) -> float:
        maths = HeadMaths(self.hf, self.layout)
        stash = {("z", layer): z}
        try:
            weight = maths.output_weight(layer)
            if norm := self.layout.blocks[layer].post_norm:
                _, held = self._pass(self.tokens, [Site("path", path=f"{norm}:in")], [], False)
                stash["raw", layer] = next(iter(held.values()))
                stash["normed", layer] = attn / self.layout.points[Site("attn_out", layer)].scale
            parts = maths.shares(layer, stash, range(weight.shape[0]))
            return relative_error(parts.sum(2) + maths.bias_share(layer, stash), attn)
        except (RuntimeError, AttributeError, AssertionError):  # the projection is no plain matrix
            return float("inf")

    def _mlp(self, layer: int) -> None:
        act, facts = self._value("mlp_act", layer), self.layout.blocks[layer]
        if act is None or facts.down is None or facts.mlp_raw is None:
            return
        _, held = self._pass(self.tokens, [Site("path", path=f"{facts.mlp_raw}:out")], [], False)
        raw = next(iter(held.values())).reshape(*act.shape[:2], -1)
        down = self.hf.get_submodule(facts.down).forward(act)
        self._note(Site("mlp_act", layer), "W_down . mlp_act = the MLP's output", relative_error(down, raw))

    def _ends(self) -> None:
        table = self.hf.get_input_embeddings().weight[self.tokens]  # type: ignore[operator]
        embed = self.acts[Site("embed")]
        factor = (embed * table).sum() / (table * table).sum()
        self._note(Site("embed"), "embed = W_E[token] (times a constant)", relative_error(embed, factor * table))

    # roles by intervention -------------------------------------------------------------------

    def _intervene(self, name: str, outcome: str, region: "Region", equation: str) -> None:
        """Perturb one layer per row at one position; measure what moved where it must not."""
        sites = [s for s in self.layout.points if s.name == name and self._outcome(s, outcome)]
        if not sites:
            return
        rows = self.tokens[:1].expand(len(sites), -1).contiguous()
        generator = torch.Generator().manual_seed(3)
        edits, heads = [], []
        for row, site in enumerate(sites):
            base = self.acts[site][0, PLACE]
            noise = torch.randn(base.shape, generator=generator).to(base) * (1 + 3 * base.float().std().to(base))
            if name in ("q", "k"):  # a sign flip keeps every norm, also one over all heads (OLMo 2)
                noise = -2 * base
            head = (site.layer or 0) % base.shape[0] if base.dim() == 2 else None
            if head is not None:
                noise = noise * (torch.arange(base.shape[0], device=base.device) == head)[:, None]
            heads.append(head)
            edits.append(patch(site, base + noise, positions=[PLACE], rows=[row]))
        seen = [self._outcome(site, outcome) for site in sites]
        wanted = sorted({site for site in seen if site is not None and site.name != "logits"})
        logits, held = self._pass(rows, wanted, edits, outcome == "logits")
        for row, (site, target, head) in enumerate(zip(sites, seen, heads, strict=True)):
            assert target is not None
            after = logits[row] if target.name == "logits" else held[target][row]
            before = self._base(target)
            self._note(site, equation, _leak(after - before, before, region, head, self._groups(site)))

    def _base(self, target: Site) -> Tensor:
        if target.name == "logits":
            if not hasattr(self, "_plain"):
                self._plain = self.hf(input_ids=self.tokens[:1], use_cache=False).logits[0]
            return self._plain
        return self.acts[target][0]

    def _outcome(self, site: Site, outcome: str) -> Site | None:
        target = Site("logits") if outcome == "logits" else Site(outcome, site.layer)
        return target if target.name == "logits" or target in self.acts else None

    def _groups(self, site: Site) -> int:
        return self.layout.dims.n_heads // self.layout.dims.n_kv_heads if site.name in "kv" else 1

    # padding ---------------------------------------------------------------------------------

    def _padding(self, plain: Tensor) -> None:
        """Right- and left-padded rows against the unpadded run."""
        short = LENGTH - 3
        alone = self.hf(input_ids=self.tokens[:1, :short], use_cache=False).logits
        tokens = [self.tokens[0, :short].tolist(), self.tokens[1].tolist()]
        request = Request(tokens, (Site("logits"),), (), "all", "all")
        right = self.engine.capture(request, "cpu", None).rows("logits")[0].to(alone.device)
        self._note(Site("logits"), "a right-padded row = the row alone",
                   relative_error(right[None], alone), 50 * self.tol)  # fmt: skip
        pad = torch.full((1, 3), self.engine.pad_id, device=alone.device)
        ids = torch.cat([torch.cat([pad, self.tokens[:1, :short]], 1), self.tokens[1:2]])
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if "position_ids" in _parameters(self.hf.forward):
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
        left = self.hf(**arguments).logits[:1, 3:]
        self.layout.left_padding = relative_error(left, alone) <= 50 * self.tol

    def _conclude(self) -> Proof:
        proofs = []
        for site in sorted(self.results, key=_site_order):
            notes = self.results[site]
            failed = [note for note in notes if note[1] > note[2]]
            equation, error, _ = max(failed, key=lambda n: n[1]) if failed else _headline(notes)
            proofs.append(SiteProof(str(site), not failed, equation, error))
            if failed:
                self.layout.refused[site] = f"not proved: {equation}; relative error {error:.2g}"
                self.layout.points.pop(site, None)
        absent = {str(site): why for site, why in sorted(self.layout.absent.items())}
        return Proof(self.layout, proofs, absent)


def _headline(notes: list[tuple[str, float, float]]) -> tuple[str, float, float]:
    """The equation that says most about a site: the last one that is not the identity patch."""
    telling = [note for note in notes if "identity" not in note[0]] or notes
    return telling[-1]


def _site_order(site: Site) -> tuple[int, int, int]:
    if site.name in GLOBAL_SITES:
        return (-1 if site.name == "embed" else 10**6, GLOBAL_SITES.index(site.name), 0)
    return (site.layer or 0, LAYER_SITES.index(site.name), 0)


def _parameters(function: Callable[..., Any]) -> set[str]:
    import inspect

    return set(inspect.signature(function).parameters)


Region = Callable[[Tensor, int | None, int], Tensor]


def _here(moved: Tensor, head: int | None, group: int) -> Tensor:
    """Only position PLACE (and only one head, where heads are perturbed)."""
    mask = torch.zeros_like(moved, dtype=torch.bool)
    if head is None:
        mask[PLACE] = True
    else:
        mask[PLACE, head * group : (head + 1) * group] = True
    return mask


def _onwards(moved: Tensor, head: int | None, group: int) -> Tensor:
    """Position PLACE and later (and only one KV group's heads, where heads are perturbed)."""
    mask = torch.zeros_like(moved, dtype=torch.bool)
    if head is None:
        mask[PLACE:] = True
    else:
        mask[PLACE:, head * group : (head + 1) * group] = True
    return mask


def _later(moved: Tensor, head: int | None, group: int) -> Tensor:
    """As `_onwards`; the caller also demands that later positions did move."""
    return _onwards(moved, head, group)


def _leak(moved: Tensor, base: Tensor, region: Region, head: int | None, group: int) -> float:
    """Movement outside the allowed region, relative to that inside; inf if nothing moved where it must."""
    allowed = region(moved, head, group)
    size = moved.float().abs()
    inside = size[allowed].max()
    noise = torch.finfo(base.dtype).eps * base.float().abs().max()
    if region is _later:
        inside = torch.minimum(inside, size[PLACE + 1 :][allowed[PLACE + 1 :]].max())
    outside = size[~allowed].max() if bool((~allowed).any()) else torch.zeros(())
    if not bool(inside > 4 * noise):
        return float("inf")
    return float((outside - 4 * noise).clamp_min(0) / inside)


_REGIONS: dict[str, tuple[str, Region, str]] = {
    "q": ("z", _here, "q at p moves z at p, in its own head, and nothing else"),
    "k": ("z", _later, "k at p moves z from p on, in its own KV group, and nothing else"),
    "v": ("z", _later, "v at p moves z from p on, in its own KV group, and nothing else"),
    "attn_in": ("attn_out", _later, "attn_in at p moves attn_out from p on, and nothing else"),
    "mlp_in": ("mlp_out", _here, "mlp_in at p moves mlp_out at p, and nothing else"),
    "resid_pre": ("resid_post", _later, "resid_pre at p moves resid_post from p on, and nothing else"),
    "resid_mid": ("resid_post", _here, "resid_mid at p moves resid_post at p, and nothing else"),
    "embed": ("logits", _onwards, "embed at p moves the logits from p on, and nothing else"),
    "final_norm": ("logits", _here, "final_norm at p moves the logits at p, and nothing else"),
    "resid_post": ("logits", _onwards, "resid_post at p moves the logits from p on, and nothing else"),
}

__all__ = ["Activations", "Proof", "SiteProof", "probe_tokens", "prove"]
