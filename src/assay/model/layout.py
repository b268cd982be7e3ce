"""Find a model's layout: which tensor of which module is which site.

1. Trace one forward pass (`trace.py`): modules in order, their tensors, the attention kernel calls.
2. The blocks are the items of the module list in which the kernel calls happen.
3. In each block, the attention's and the MLP's contributions are the two module outputs A, M with
   pre + a A + m M = post; found by value, so post-norms, residual multipliers, in-place sums, tuple
   outputs and parallel blocks need no table of families.
4. q, k, v are the projections that read the attention's input; a fused projection is split the one
   way in which z = v holds at the first position (which can only attend to itself).

What is found here is only a proposal: `prove.py` proves it on the live model before it is offered.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from assay.errors import LayoutError
from assay.model.points import Dims, Point, Split, relative_error
from assay.model.trace import Call, KernelCall, Trace, trace
from assay.sites import Site


@dataclass(frozen=True)
class Block:
    """Facts about one block that are not sites.

    `returns` is the length of its output tuple (0: a bare tensor). `o_proj` and `down` are the last
    projections of attention and MLP; `post_norm` the norm between attention and the residual.
    """

    path: str
    returns: int
    attention: str | None = None
    o_proj: str | None = None
    down: str | None = None
    mlp_raw: str | None = None
    post_norm: str | None = None
    parallel: bool = False


@dataclass
class Layout:
    """All sites of a model (`points`), and why the others are missing (`absent`).

    `prefix_width` is the widest prompt whose shared prefix may be run once (0: not proved).
    """

    dims: Dims
    blocks: list[Block]
    unembed: str
    points: dict[Site, Point] = field(default_factory=dict)
    absent: dict[Site, str] = field(default_factory=dict)
    refused: dict[Site, str] = field(default_factory=dict)
    left_padding: bool = False
    prefix_width: int = 0
    orders: dict[str, tuple[int, int]] = field(default_factory=dict)

    def order_of(self, path: str, side: str) -> int:
        """When a module begins or ends in a forward pass; LayoutError if it never runs."""
        if path not in self.orders:
            raise LayoutError(f"module {path!r} does not run in a forward pass of this model.")
        return self.orders[path][side == "out"]


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error that rounding in this dtype explains."""
    return 2e-5 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps


def find_layout(hf: nn.Module, tokens: Tensor) -> Layout:
    """Propose a layout from one traced forward of `tokens` (batch, pos >= 3).

    Raises LayoutError when there are no blocks to be found or the residual stream does not add up.
    """
    record = trace(hf, tokens)
    blocks = _block_paths(hf, record)
    unembed = _path_of(hf, hf.get_output_embeddings())  # type: ignore[operator]
    embed = _path_of(hf, hf.get_input_embeddings())  # type: ignore[operator]
    finders = [_BlockFinder(record, path, layer) for layer, path in enumerate(blocks)]
    facts = [finder.find() for finder in finders]
    layout = Layout(_dims(finders, record), facts, unembed)
    for finder in finders:
        layout.points.update(finder.points)
        layout.absent.update(finder.absent)
    layout.orders = {call.path: (call.begin, call.end) for call in reversed(record.calls)}
    _ends(layout, record, embed, blocks[-1])
    return layout


def _path_of(hf: nn.Module, module: nn.Module | None) -> str:
    for path, candidate in hf.named_modules():
        if candidate is module:
            return path
    raise LayoutError(
        f"{type(hf).__name__} has no input or output embedding, so it is not a causal language"
        " model; allowed: models with get_input_embeddings() and get_output_embeddings()."
    )


def _block_paths(hf: nn.Module, record: Trace) -> list[str]:
    """The items of the module list with the most attention kernels inside."""
    if not record.kernels:
        raise LayoutError(
            f"no attention kernel was seen in {type(hf).__name__}. Load it with"
            " attn_implementation='eager' or 'sdpa'; models without attention are not supported."
        )
    best: list[str] = []
    most = 0
    for path, module in hf.named_modules():
        if not isinstance(module, nn.ModuleList):
            continue
        items = [f"{path}.{index}" for index in range(len(module))]
        items = [item for item in items if record.of(item) is not None]
        count = sum(any(k.path.startswith(item + ".") for k in record.kernels) for item in items)
        if count > most:
            best, most = items, count
    if not best:
        raise LayoutError(f"{type(hf).__name__} has no list of blocks with attention inside.")
    return best


def _dims(finders: "list[_BlockFinder]", record: Trace) -> Dims:
    first = next((finder for finder in finders if finder.split is not None), None)
    if first is None or first.split is None:
        raise LayoutError("no block has an attention output projection that reads its heads.")
    return Dims(
        n_layers=len(finders),
        n_heads=first.split.n_heads,
        n_kv_heads=first.n_kv_heads,
        d_model=first.pre.shape[-1],
        d_head=first.split.d_head,
        d_mlp=max(finder.d_mlp for finder in finders),
        d_vocab=record.logits.shape[-1],
    )


def _ends(layout: Layout, record: Trace, embed: str, last_block: str) -> None:
    """embed, final_norm and logits."""
    head = record.of(layout.unembed)
    token_call = record.of(embed)
    block = record.of(last_block)
    if head is None or token_call is None or block is None:
        raise LayoutError("the embedding, a block or the unembedding did not run in a forward pass.")
    layout.points[Site("embed")] = Point(embed, "out", 0, token_call.begin)
    width = layout.dims.d_model
    norms = [call for call in record.calls if block.end < call.begin < head.begin
             and not call.has_matrix and call.outputs and call.outputs[0].shape[-1] == width]  # fmt: skip
    if norms:
        layout.points[Site("final_norm")] = Point(norms[-1].path, "out", 0, norms[-1].end)
    else:
        layout.points[Site("final_norm")] = Point(layout.unembed, "in", 0, head.begin)
    layout.points[Site("logits")] = Point("", "out", "logits", head.end + 1)


class _BlockFinder:
    """Finds the sites of one block in a trace."""

    def __init__(self, record: Trace, path: str, layer: int) -> None:
        call = record.of(path)
        if call is None or not call.inputs or not call.outputs:
            raise LayoutError(f"block {path} takes or returns no tensor of shape (batch, pos, d_model).")
        self.record, self.path, self.layer, self.call = record, path, layer, call
        self.calls = record.under(path)
        self.pre_key, self.pre = next(iter(call.inputs.items()))
        self.post = call.outputs[0]
        self.tol = tolerance(self.pre.dtype)
        self.points: dict[Site, Point] = {}
        self.absent: dict[Site, str] = {}
        self.split: Split | None = None
        self.n_kv_heads = 0
        self.d_mlp = 0

    def find(self) -> Block:
        self._point("resid_pre", self.call.path, "in", self.pre_key, self.call.begin)
        self._point("resid_post", self.call.path, "out", 0, self.call.end)
        kernel = self._kernel()
        attention = self._attention(kernel) if kernel else None
        facts = Block(self.path, self.call.returns_tuple)
        if kernel is None or attention is None:
            for name in ("resid_mid", "attn_in", "q", "k", "v", "pattern", "z", "attn_out"):
                self.absent[Site(name, self.layer)] = "no attention in this block"
        else:
            facts = self._find_heads(facts, kernel, attention)
        return self._find_contributions(facts, attention)

    def _point(self, name: str, path: str, side: str, key: int | str, order: int) -> None:
        self.points[Site(name, self.layer)] = Point(path, side, key, order)  # type: ignore[arg-type]

    # attention -------------------------------------------------------------------------------

    def _kernel(self) -> KernelCall | None:
        inside = [k for k in self.record.kernels if k.path.startswith(self.path + ".")]
        return inside[-1] if inside else None

    def _attention(self, kernel: KernelCall) -> Call | None:
        """The innermost module around the kernel with a projection after it."""
        path = kernel.path
        while path != self.path:
            call = self.record.of(path)
            after = [c for c in self.record.under(path) if c.has_matrix and c.begin > kernel.when]
            if call is not None and after and call.inputs:
                return call
            path = path.rpartition(".")[0]
        return None

    def _find_heads(self, facts: Block, kernel: KernelCall, attention: Call) -> Block:
        inside = self.record.under(attention.path)
        after = [c for c in inside if c.has_matrix and c.begin > kernel.when and c.inputs]
        o_proj = after[-1]
        (z_key, z_flat), n_heads = next(iter(o_proj.inputs.items())), kernel.pattern.shape[1]
        in_key, attn_in = next(iter(attention.inputs.items()))
        self._point("attn_in", attention.path, "in", in_key, attention.begin)
        self._point("pattern", attention.path, "kernel", 0, attention.end)
        if z_flat.shape[-1] % n_heads:
            raise LayoutError(f"{o_proj.path} reads {z_flat.shape[-1]} features, not {n_heads} heads.")
        d_head = z_flat.shape[-1] // n_heads
        self.split = Split(n_heads, 1, 0, 1, d_head)
        self.points[Site("z", self.layer)] = Point(
            o_proj.path, "in", z_key, o_proj.begin, split=self.split
        )
        reads = [c for c in inside if c.has_matrix and c.end < kernel.when and c.outputs
                 and any(torch.equal(x, attn_in) for x in c.inputs.values())]  # fmt: skip
        self._find_qkv(reads, self.split.get(z_flat), n_heads, d_head)
        return replace(facts, attention=attention.path, o_proj=o_proj.path)

    def _find_qkv(self, reads: list[Call], z: Tensor, n_heads: int, d_head: int) -> None:
        self.n_kv_heads = n_heads
        splits: list[tuple[Call, Split]] = []
        if len(reads) == 1:
            splits = self._fused(reads[0], z, n_heads, d_head)
        elif len(reads) == 3:
            splits = _separate(reads, d_head)
        if not splits:
            for name in "qkv":
                self.absent[Site(name, self.layer)] = (
                    f"{len(reads)} projection(s) read the attention's input, and no split of them"
                    " into heads gives z = v at the first position"
                )
            return
        self.n_kv_heads = splits[2][1].n_heads
        for name, (call, split) in zip("qkv", splits, strict=True):
            self.points[Site(name, self.layer)] = Point(call.path, "out", 0, call.end, split=split)

    def _fused(self, call: Call, z: Tensor, n_heads: int, d_head: int) -> list[tuple[Call, Split]]:
        """The split of one fused projection for which z = v at the first position."""
        total = call.outputs[0].shape[-1] // d_head
        n_kv = (total - n_heads) // 2
        if n_kv < 1 or n_heads % n_kv or (n_heads + 2 * n_kv) * d_head != call.outputs[0].shape[-1]:
            return []
        group = n_heads // n_kv
        blocked = [(1, total, 0, n_heads), (1, total, n_heads, n_heads + n_kv),
                   (1, total, n_heads + n_kv, total)]  # fmt: skip
        grouped = [(n_kv, group + 2, 0, group), (n_kv, group + 2, group, group + 1),
                   (n_kv, group + 2, group + 1, group + 2)]  # fmt: skip
        for shape in (blocked, grouped):
            splits = [Split(*numbers, d_head) for numbers in shape]
            v = splits[2].get(call.outputs[0])
            if relative_error(v.repeat_interleave(group, 2)[:, :1], z[:, :1]) <= self.tol:
                return [(call, split) for split in splits]
        return []

    # contributions ---------------------------------------------------------------------------

    def _find_contributions(self, facts: Block, attention: Call | None) -> Block:
        width = self.pre.shape[-1]
        outputs = [c for c in self.calls if c.outputs and c.outputs[0].shape[-1] == width
                   and c.outputs[0].shape == self.pre.shape]  # fmt: skip
        if attention is None:
            attn = []
        else:
            inside = [c for c in outputs if (c.path + ".").startswith(attention.path + ".")]
            attn = inside + [c for c in outputs if c not in inside and _reads_any(c, inside)]
        rest = [c for c in outputs if not attention or not (c.path + ".").startswith(attention.path + ".")]
        found = self._decompose(attn, rest)
        if found is None:
            reason = "no pair of module outputs adds up to the residual stream in this block"
            for name in ("resid_mid", "attn_out", "mlp_out", "mlp_in", "mlp_act"):
                self.absent.setdefault(Site(name, self.layer), reason)
            return facts
        attn_call, mlp_call, scale = found
        mid = self.pre
        if attn_call is not None:
            mid = self.pre + scale * attn_call.outputs[0]
            self.points[Site("attn_out", self.layer)] = Point(
                attn_call.path, "out", 0, attn_call.end, scale=scale
            )
            if attention and not (attn_call.path + ".").startswith(attention.path + "."):
                facts = replace(facts, post_norm=attn_call.path)
        self.points[Site("mlp_out", self.layer)] = Point(
            mlp_call.path, "out", 0, mlp_call.end, scale=scale
        )
        return self._find_mlp(self._find_mid(facts, attn_call, mid), mlp_call, attention)

    def _decompose(
        self, attn: list[Call], rest: list[Call]
    ) -> tuple[Call | None, Call, float] | None:
        """A, M and the multiplier with pre + scale (A + M) = post; the outermost of those that fit as well."""
        change = self.post.float() - self.pre.float()
        size = self.post.float().abs() + self.pre.float().abs()
        fits: list[tuple[float, int, Call | None, Call, float]] = []
        for a in attn or [None]:
            for m in rest:
                if m is a:
                    continue
                added = m.outputs[0].float() + (a.outputs[0].float() if a else 0.0)
                fit = (added * change).sum() / (added * added).sum().clamp_min(1e-30)
                scale = 1.0 if abs(fit.item() - 1) < 5e-3 else fit.item()
                error = relative_error(scale * added, change, size)
                depth = m.path.count(".") + (a.path.count(".") if a else 0)
                if error <= self.tol:
                    fits.append((error, depth, a, m, scale))
        if not fits:
            return None
        least = 2 * min(fit[0] for fit in fits) + torch.finfo(self.pre.dtype).eps / 4
        return min((fit for fit in fits if fit[0] <= least), key=lambda fit: fit[:2][::-1])[2:]

    def _find_mid(self, facts: Block, attn_call: Call | None, mid: Tensor) -> Block:
        if attn_call is None:
            return facts
        for call in self.calls:
            for key, value in call.inputs.items():
                if call.begin > attn_call.end and relative_error_ok(value, mid, self.tol):
                    self._point("resid_mid", call.path, "in", key, call.begin)
                    return facts
        self.absent[Site("resid_mid", self.layer)] = (
            "parallel block: attention and MLP read the same residual stream"
        )
        return replace(facts, parallel=True)

    def _find_mlp(self, facts: Block, mlp_out: Call, attention: Call | None) -> Block:
        raw = mlp_out
        if not mlp_out.has_matrix and not self.record.under(mlp_out.path):  # a norm after the MLP
            before = [c for c in self.calls if c.end < mlp_out.begin and c.outputs
                      and any(torch.equal(c.outputs[0], x) for x in mlp_out.inputs.values())]  # fmt: skip
            raw = min(before, key=lambda c: c.path.count(".")) if before else mlp_out
        container = raw.path
        if raw.has_matrix:
            container = raw.path.rpartition(".")[0]
        inside = [c for c in self.record.under(container)
                  if not attention or not (c.path + ".").startswith(attention.path + ".")]  # fmt: skip
        matrices = [c for c in inside if c.has_matrix]
        reader = self.record.of(container) if container != self.path else None
        if (reader is None or not reader.inputs) and matrices:
            reader = matrices[0]
        if reader is not None and reader.inputs:
            key = next(iter(reader.inputs))
            self._point("mlp_in", reader.path, "in", key, reader.begin)
        down = next((c for c in reversed(matrices) if c.outputs and c.inputs and _is_linear(c)
                     and torch.equal(c.outputs[0], raw.outputs[0])), None)  # fmt: skip
        if down is None:
            self.absent[Site("mlp_act", self.layer)] = (
                "no single down-projection gives the MLP's output (mixture of experts?)"
            )
            return replace(facts, mlp_raw=raw.path)
        key, act = next(iter(down.inputs.items()))
        self.d_mlp = act.shape[-1]
        self._point("mlp_act", down.path, "in", key, down.begin)
        return replace(facts, mlp_raw=raw.path, down=down.path)


def relative_error_ok(got: Tensor, want: Tensor, tol: float) -> bool:
    return got.shape == want.shape and relative_error(got, want) <= tol


def _reads_any(call: Call, sources: list[Call]) -> bool:
    return not call.has_matrix and any(
        source.outputs and torch.equal(value, source.outputs[0])
        for source in sources
        for value in call.inputs.values()
        if value.shape == source.outputs[0].shape
    )


def _is_linear(call: Call) -> bool:
    weight = getattr(call.module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _separate(reads: list[Call], d_head: int) -> list[tuple[Call, Split]]:
    """q, k, v by name where the names say so, else in the order they run."""
    marks = {"q": ("q_", "query", "wq", "q"), "k": ("k_", "key", "wk", "k"), "v": ("v_", "value", "wv", "v")}
    ordered: list[Call] = []
    for name in "qkv":
        leaf = {call.path.rpartition(".")[2].lower(): call for call in reads}
        match = [call for text, call in leaf.items() if text.startswith(marks[name])]
        ordered += match if len(match) == 1 else []
    ordered = ordered if len(ordered) == 3 else reads
    sizes = [call.outputs[0].shape[-1] for call in ordered]
    if any(size % d_head for size in sizes) or sizes[1] != sizes[2]:
        return []
    return [(call, Split(size // d_head, 1, 0, 1, d_head))
            for call, size in zip(ordered, sizes, strict=True)]  # fmt: skip
