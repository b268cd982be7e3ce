"""Edges by brute force: raw PyTorch hooks in float64, one number per edge that says how much of a writer's change its
reader reads. Module paths and heads are written down by hand for every family; nothing of the package is used.
(RMSNorm and softmax of some families compute in float32 whatever they are given.)"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

ANSWER, FOIL = 7, 8
HEADS, LAYERS = 4, 3


@dataclass
class Part:
    """One layer. `reads`: q, k, v -> (module, slice of its output per head)."""

    block: nn.Module
    norm1: Callable
    reads: dict
    o: nn.Module
    norm2: Callable
    mlp: nn.Module
    mid: nn.Module | None  # the module that reads the stream between attention and MLP; None: parallel
    post_attn: nn.Module | None = None
    post_mlp: nn.Module | None = None
    d_head: int = 8
    scale: float = 1.0


def _separate(attention, n_kv, d_head):
    def cut(n):
        return [slice(h * d_head, (h + 1) * d_head) for h in range(n)]

    return {"q": (attention.q_proj, cut(HEADS)), "k": (attention.k_proj, cut(n_kv)), "v": (attention.v_proj, cut(n_kv))}


def _llama(hf, n_kv=2, d_head=8):
    return [Part(b, b.input_layernorm.forward, _separate(b.self_attn, n_kv, d_head), b.self_attn.o_proj,
                 b.post_attention_layernorm.forward, b.mlp, b.post_attention_layernorm, d_head=d_head,
                 scale=getattr(hf.config, "residual_multiplier", 1.0))
            for b in hf.model.layers], hf.model.norm  # fmt: skip


def _gpt2(hf):
    def part(b):
        cut = {name: (b.attn.c_attn, [slice(32 * i + 8 * h, 32 * i + 8 * h + 8) for h in range(HEADS)])
               for i, name in enumerate("qkv")}  # fmt: skip
        return Part(b, b.ln_1.forward, cut, b.attn.c_proj, b.ln_2.forward, b.mlp, b.ln_2)

    return [part(b) for b in hf.transformer.h], hf.transformer.ln_f


def _neox(hf, parallel):
    def part(b):
        cut = {name: (b.attention.query_key_value, [slice(24 * h + 8 * i, 24 * h + 8 * i + 8) for h in range(HEADS)])
               for i, name in enumerate("qkv")}  # fmt: skip
        norm = b.post_attention_layernorm
        return Part(b, b.input_layernorm.forward, cut, b.attention.dense, norm.forward, b.mlp, None if parallel else norm)

    return [part(b) for b in hf.gpt_neox.layers], hf.gpt_neox.final_layer_norm


def _gemma2(hf):
    return [Part(b, b.input_layernorm.forward, _separate(b.self_attn, 2, 8), b.self_attn.o_proj,
                 b.pre_feedforward_layernorm.forward, b.mlp, b.pre_feedforward_layernorm,
                 b.post_attention_layernorm, b.post_feedforward_layernorm) for b in hf.model.layers], hf.model.norm  # fmt: skip


def _olmo2(hf):
    def same(x):
        return x

    return [Part(b, same, _separate(b.self_attn, 2, 8), b.self_attn.o_proj, same, b.mlp, b.mlp,
                 b.post_attention_layernorm, b.post_feedforward_layernorm) for b in hf.model.layers], hf.model.norm  # fmt: skip


FAMILIES = {
    "llama": _llama, "qwen2": _llama, "gpt2": _gpt2, "neox": lambda hf: _neox(hf, True),
    "neox_sequential": lambda hf: _neox(hf, False), "gemma2": _gemma2,
    "qwen3": lambda hf: _llama(hf, d_head=16), "olmo2": _olmo2, "granite": _llama,
}  # fmt: skip


def roughen(hf, seed=0, size=0.2):
    """Weights large enough for every nonlinearity to matter, biases and norms that are not trivial."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in hf.parameters():
            noise = torch.randn(p.shape, generator=rng) * size
            p.copy_(noise if p.dim() > 1 else p + noise)
    return hf


@dataclass
class Run:
    metric: torch.Tensor
    seen: dict = field(default_factory=dict)


class Reference:
    """`values[(kind, layer)]`: entry, z (input of the output projection), mlp (output), raw (before the norm after it)."""

    def __init__(self, hf, family):
        self.hf = copy.deepcopy(hf).double().eval()
        self.hf.requires_grad_(False)
        self.parts, self.final = FAMILIES[family](self.hf)
        self.normed = self.parts[0].post_attn is not None
        self.kept = {}
        self.n_kv = len(self.parts[0].reads["k"][1])
        self.writers = ["embed"]
        self.readers = []
        for layer in range(len(self.parts)):
            self.writers += [*(f"z.{layer}.{h}" for h in range(HEADS)), f"mlp_out.{layer}"]
            sizes = {"q": HEADS, "k": self.n_kv, "v": self.n_kv}
            self.readers += [f"{n}.{layer}.{h}" for n in "qkv" for h in range(sizes[n])] + [f"mlp_in.{layer}"]
        self.readers.append("logits")

    def exists(self, writer, reader):
        """Whether the writer has written when the reader reads."""
        wrote = -1.0 if writer == "embed" else int(writer.split(".")[1]) + (0.25 if writer[0] == "z" else 0.75)
        if reader == "logits":
            return True
        layer = int(reader.split(".")[1])
        sees_heads = reader.startswith("mlp_in") and self.parts[layer].mid is not None
        return wrote < layer + (0.5 if sees_heads else 0.0)

    def run(self, ids, share=None, change=None, entry=None, edit=None):
        """One pass. Reader v reads stream + sum over u of share[u, v] change[u]; `entry` replaces the first stream;
        `edit` {(kind, layer): function of the value there}."""
        run, handles, edit = Run(torch.tensor(0.0)), [], edit or {}

        def extra(reader, x):
            if share is None:
                return torch.zeros_like(x)
            return torch.einsum("w,wpd->pd", share[:, self.readers.index(reader)], change)[None]

        def note(key, x):
            x = edit[key](x) if key in edit else x
            run.seen[key] = x.detach()
            return x

        for layer, part in enumerate(self.parts):
            handles += self._hook(layer, part, extra, note, run, entry if layer == 0 else None)

        def last(_, args):
            run.seen["stream", "logits"] = args[0].detach()
            return (note(("final", -1), args[0] + extra("logits", args[0])),)

        handles.append(self.final.register_forward_pre_hook(last))
        logits = self.hf(input_ids=torch.tensor([ids])).logits[0, -1]
        for handle in handles:
            handle.remove()
        run.metric = logits[ANSWER] - logits[FOIL]
        return run

    def _hook(self, layer, part, extra, note, run, entry):
        held = {}

        def enter(_, args, kwargs):
            x = args[0] if entry is None else entry
            held["pre"] = note(("entry", layer), x)
            return (held["pre"], *args[1:]), kwargs

        def middle(_, args):
            held["mid"] = args[0]

        def read(name, cuts, module):
            def hook(_, __, out):
                out = out.clone()
                for head, cut in enumerate(cuts):
                    reader = f"{name}.{layer}.{head}"
                    read = module.forward(part.norm1(held["pre"] + extra(reader, held["pre"])))[..., cut]
                    out[..., cut] = note(("read", reader), read)
                return out

            return hook

        def mlp_in(_, args):
            stream = held["pre"] if part.mid is None else held["mid"]
            reader = f"mlp_in.{layer}"
            return (note(("read", reader), part.norm2(stream + extra(reader, stream))),)

        handles = [part.block.register_forward_pre_hook(enter, with_kwargs=True)]
        if part.mid is not None:
            handles.append(part.mid.register_forward_pre_hook(middle))
        handles += [m.register_forward_hook(read(name, cuts, m)) for name, (m, cuts) in part.reads.items()]
        handles.append(part.mlp.register_forward_pre_hook(mlp_in))
        handles.append(part.o.register_forward_pre_hook(lambda _, args: (note(("z", layer), args[0]),)))
        handles.append(part.mlp.register_forward_hook(lambda _, __, out: note(("mlp", layer), out)))
        for name, norm in (("raw", part.post_attn), ("raw_mlp", part.post_mlp)):
            if norm is not None:
                handles.append(norm.register_forward_pre_hook(lambda _, args, name=name: (note((name, layer), args[0]),)))
        return handles

    def changes(self, to, of, at=None):
        """(writer, pos, d): what each writer adds in `to` minus in `of`; behind norms to first order at run `at`, or at
        full size from `of` where `at` is None."""
        out = [(to.seen["entry", 0] - of.seen["entry", 0])[0]]
        for layer, part in enumerate(self.parts):
            z = to.seen["z", layer] - of.seen["z", layer]
            for head in range(HEADS):
                only = torch.zeros_like(z)
                cut = slice(head * part.d_head, (head + 1) * part.d_head)
                only[..., cut] = z[..., cut]
                raw = part.o.forward(only) - part.o.forward(torch.zeros_like(z))
                out.append(self._behind(part.post_attn, raw, ("raw", layer), of, at)[0] * part.scale)
            raw = to.seen["mlp", layer] - of.seen["mlp", layer]
            out.append(self._behind(part.post_mlp, raw, ("raw_mlp", layer), of, at)[0] * part.scale)
        return torch.stack(out)

    def _behind(self, norm, change, key, of, at):
        if norm is None:
            return change
        if at is None:
            return norm.forward(of.seen[key] + change) - norm.forward(of.seen[key])
        return torch.func.jvp(norm.forward, (at.seen[key],), (change,))[1]

    def plain(self, ids):
        """The run as it is, kept."""
        if tuple(ids) not in self.kept:
            self.kept[tuple(ids)] = self.run(ids)
        return self.kept[tuple(ids)]

    # what is asked -----------------------------------------------------------------------------

    def gradient(self, clean, corrupted, alpha):
        """(writer, reader) d metric / d share of clean minus corrupted, at the point alpha of the line; 1 = clean."""
        high, low = self.plain(clean), self.plain(corrupted)
        entry = None
        if alpha not in (0.0, 1.0):
            entry = torch.lerp(low.seen["entry", 0], high.seen["entry", 0], torch.tensor(alpha, dtype=torch.double))
        ids = corrupted if alpha == 0.0 else clean
        change = self.changes(high, low, at=self.run(ids, entry=entry) if self.normed else high)
        share = torch.zeros(len(self.writers), len(self.readers), dtype=torch.double, requires_grad=True)
        found = self.run(ids, share, change, entry)
        return torch.autograd.grad(found.metric, share)[0]

    def exact(self, base, source, edge):
        """m(patched) - m(base) with one edge carrying the source's output."""
        writer, reader = edge.split("->")
        of, to = self.plain(base), self.plain(source)
        share = torch.zeros(len(self.writers), len(self.readers), dtype=torch.double)
        share[self.writers.index(writer), self.readers.index(reader)] = 1.0
        return float(self.run(base, share, self.changes(to, of)).metric - of.metric)

    def node(self, base, source, writer):
        """m(patched) - m(base) with a writer's output exchanged for all readers."""
        of, to = self.plain(base), self.plain(source)
        if writer == "embed":
            return float(self.run(base, entry=to.seen["entry", 0]).metric - of.metric)
        layer = int(writer.split(".")[1])
        if writer.startswith("mlp"):
            edit = {("mlp", layer): lambda _: to.seen["mlp", layer]}
        else:
            edit = {("z", layer): self.with_heads(to.seen["z", layer], layer, [int(writer.split(".")[2])])}
        return float(self.run(base, edit=edit).metric - of.metric)

    def with_heads(self, value, layer, heads, others=None):
        """A function that gives these heads their part of `value`, others that of `others`, or leaves them."""
        size = self.parts[layer].d_head

        def write(x):
            x = (x if others is None else others).clone()
            for head in heads:
                x[..., head * size : (head + 1) * size] = value[..., head * size : (head + 1) * size]
            return x

        return write

    def paths(self, base, source, senders, receivers, freeze_all):
        """m(patched) - m(base): senders' source values, other heads (and MLPs) held; only what receivers read is kept."""
        of, to, edit = self.plain(base), self.plain(source), {}
        for layer in range(len(self.parts)):
            heads = [int(s.split(".")[2]) for s in senders if s.startswith(f"z.{layer}.")]
            edit["z", layer] = self.with_heads(to.seen["z", layer], layer, heads, of.seen["z", layer])
            if f"mlp_out.{layer}" in senders:
                edit["mlp", layer] = lambda _, layer=layer: to.seen["mlp", layer]
            elif freeze_all:
                edit["mlp", layer] = lambda _, layer=layer: of.seen["mlp", layer]
        entry = to.seen["entry", 0] if "embed" in senders else None
        held = self.run(base, entry=entry, edit=edit)
        write = {("read", r): lambda _, r=r: held.seen["read", r] for r in receivers if r != "logits"}
        if "logits" in receivers:
            write["final", -1] = lambda x: x + held.seen["stream", "logits"] - of.seen["stream", "logits"]
        return float(self.run(base, edit=write).metric - of.metric)
