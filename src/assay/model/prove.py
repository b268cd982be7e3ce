"""Prove a layout on the live model: every site has an equation, measured here and now.

1. Capturing every site leaves the logits bit-identical; an identity patch is a no-op.
2. The parts add up: pre + attn_out = mid, pre + attn_out + mlp_out = post, post = next pre, the sum
   of head contributions (and bias) = attn_out, W_down mlp_act = the MLP's output, pattern v = z.
3. Roles by intervention, because sums cannot tell q from k: a perturbed q at position p moves z at p
   only and in its own head only; a perturbed k or v moves z from p on, in its own KV group only.
4. Padding: right- and left-padded batches agree with the unpadded run; the rest of a prompt after
   a cached prefix agrees with the whole run.

A site whose equation fails is not offered; its error names the equation and the size of the miss.
If the residual stream itself fails, the model is refused. Errors are relative to the largest entry
of each position.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import LayoutError
from assay.model.activations import Activations
from assay.model.edits import Edit, add, patch
from assay.model.heads import HeadMaths
from assay.model.hooks import ignore
from assay.model.layout import Layout, find_layout, tolerance
from assay.model.offload import brought_in, home
from assay.model.points import relative_error
from assay.model.prefix import NO_CACHE, Prefixes, provable_width
from assay.model.roles import PLACE, ROLES, Region, leak
from assay.model.run import Batch, Engine, Request
from assay.sites import GLOBAL_SITES, LAYER_SITES, Site

BUDGET = 1 << 30
LENGTH = 7  # tokens per probe prompt


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


def prove(hf: nn.Module, pad_id: int = 0) -> Proof:
    """Find the layout and prove it. Raises LayoutError when the residual stream cannot be proved."""
    with _as_found(hf):
        tokens = probe_tokens(hf)
        layout = find_layout(hf, tokens)
        proof = _Prover(hf, layout, tokens, pad_id).run()
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
    return ids.to(home(embedding))


class _Prover:
    def __init__(self, hf: nn.Module, layout: Layout, tokens: Tensor, pad_id: int = 0) -> None:
        self.hf, self.layout, self.tokens = hf, layout, tokens
        self.engine = Engine(hf, layout, pad_id, memory_budget=BUDGET)
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
            for name, role in ROLES.items():
                self._intervene(name, *role)
            self._padding()
            self.layout.prefix_width = self._prefix_width()
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
        embedding: Any = self.hf.get_input_embeddings()  # type: ignore[operator]
        with brought_in(embedding):
            table = embedding.weight[self.tokens.to(embedding.weight.device)].to(self.tokens.device)
        embed = self.acts[Site("embed")]
        factor = (embed * table).sum() / (table * table).sum()
        self._note(Site("embed"), "embed = W_E[token] (times a constant)", relative_error(embed, factor * table))

    # roles by intervention -------------------------------------------------------------------

    def _intervene(self, name: str, outcome: str, region: Region, equation: str) -> None:
        """Perturb one layer per row at one position; measure what moved where it must not.

        The comparison is the same batch with the same edits of size 0: another batch shape or memory
        layout makes kernels round differently, and that would look like a leak.
        """
        sites = [s for s in self.layout.points if s.name == name and self._outcome(s, outcome)]
        if not sites:
            return
        rows = self.tokens[:1].expand(len(sites), -1).contiguous()
        pushes = [self._push(site) for site in sites]
        edits = [add(site, push, positions=[PLACE], rows=[row])
                 for row, (site, (push, _)) in enumerate(zip(sites, pushes, strict=True))]  # fmt: skip
        idle = [replace(edit, value=torch.zeros_like(edit.value)) for edit in edits]
        seen = [self._outcome(site, outcome) for site in sites]
        wanted = sorted({site for site in seen if site is not None and site.name != "logits"})
        (before, base), (after, held) = (
            self._pass(rows, wanted, chosen, outcome == "logits") for chosen in (idle, edits)
        )
        for row, (site, target, (_, head)) in enumerate(zip(sites, seen, pushes, strict=True)):
            assert target is not None
            old, new = (before, after) if target.name == "logits" else (base[target], held[target])
            self._note(site, equation, leak(new[row] - old[row], old[row], region, head, self._groups(site)))

    def _push(self, site: Site) -> tuple[Tensor, int | None]:
        """What to add at one position, and the only head it is added to."""
        base = self.acts[site][0, PLACE]
        generator = torch.Generator().manual_seed(3 + (site.layer or 0))
        push = torch.randn(base.shape, generator=generator).to(base) * (1 + 3 * base.float().std().to(base))
        if site.name in ("q", "k"):  # a sign flip keeps every norm, also one over all heads (OLMo 2)
            push = -2 * base
        if base.dim() != 2:
            return push, None
        head = (site.layer or 0) % base.shape[0]
        return push * (torch.arange(base.shape[0], device=base.device) == head)[:, None], head

    def _outcome(self, site: Site, outcome: str) -> Site | None:
        target = Site("logits") if outcome == "logits" else Site(outcome, site.layer)
        return target if target.name == "logits" or target in self.acts else None

    def _groups(self, site: Site) -> int:
        return self.layout.dims.n_heads // self.layout.dims.n_kv_heads if site.name in "kv" else 1

    # padding ---------------------------------------------------------------------------------

    def _padding(self) -> None:
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

    def _prefix_width(self) -> int:
        """For how wide a prompt the rest after a cached prefix is what the whole prompt gives."""
        cut = LENGTH - 3
        mixed = torch.cat([self.tokens[0, :cut], self.tokens[1, cut:]])
        ids = torch.stack([self.tokens[0], mixed, self.tokens[0]])
        batch = Batch(torch.arange(3, device=ids.device), ids, torch.tensor([LENGTH, LENGTH, LENGTH - 1]).to(ids.device))
        request = Request(ids.tolist(), logits="all")
        whole = self.engine.run(batch, request, ignore)
        try:
            rest = self.engine.run(Prefixes(self.hf, self.layout, request).cut_at(batch, cut), request, ignore)
        except NO_CACHE:
            return 0
        assert whole is not None and rest is not None
        pairs = [(rest[:2], whole[:2, cut:]), (rest[2:, :-1], whole[2:, cut:-1])]
        error = max(relative_error(got, want) for got, want in pairs)
        return provable_width(self.hf, LENGTH) if error <= 50 * self.tol else 0

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


__all__ = ["Activations", "Proof", "SiteProof", "probe_tokens", "prove"]
