"""Direct effects by autograd on a model that is frozen by hand: softmax and the divisors of norms lose their gradients
wherever torch computes them, MLPs hand out leaves. Nothing of the tracer is used; module paths are written down by family."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

EAGER = {"attn_implementation": "eager"}


def _paths(hf, family):
    """(module whose input the MLP reads, module whose output is added to the stream) of each layer, final norm, scale."""
    if family == "gpt2":
        return [(b.mlp, b.mlp) for b in hf.transformer.h], hf.transformer.ln_f
    if family.startswith("neox"):
        return [(b.mlp, b.mlp) for b in hf.gpt_neox.layers], hf.gpt_neox.final_layer_norm
    if family == "bloom":
        return [(b.post_attention_layernorm, b.mlp.dense_4h_to_h) for b in hf.transformer.h], hf.transformer.ln_f
    if family == "phi":
        return [(b.mlp, b.mlp) for b in hf.model.layers], hf.model.final_layernorm
    if family in ("gemma2", "gemma3", "olmo2"):
        return [(b.mlp, b.post_feedforward_layernorm) for b in hf.model.layers], hf.model.norm
    return [(b.mlp, b.mlp) for b in hf.model.layers], hf.model.norm


@contextmanager
def frozen():
    """Softmax, rsqrt and the variance inside layer_norm have values and no gradients."""
    softmax, rsqrt, layer_norm, tensor_softmax = F.softmax, torch.rsqrt, F.layer_norm, torch.Tensor.softmax

    def plain_norm(x, shape, weight=None, bias=None, eps=1e-5):
        h = x - x.mean(-1, keepdim=True)
        y = h * (h.pow(2).mean(-1, keepdim=True) + eps).sqrt().reciprocal().detach()
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    F.softmax = lambda *a, **k: softmax(*a, **k).detach()
    torch.Tensor.softmax = lambda *a, **k: tensor_softmax(*a, **k).detach()
    torch.rsqrt = lambda x: rsqrt(x).detach()
    F.layer_norm = plain_norm
    try:
        yield
    finally:
        F.softmax, torch.rsqrt, F.layer_norm, torch.Tensor.softmax = softmax, rsqrt, layer_norm, tensor_softmax


class Reference:
    """One prompt of a frozen model. `sources[layer]` (leaf of what the MLP adds, beside skips), `reads[layer]`, `final`."""

    def __init__(self, hf, family, tokens, skips=None, scale=1.0):
        """`skips[layer]`: (matrix, positions) of a linear path beside the leaf."""
        self.sources, self.reads, handles = [], [], []
        parts, final = _paths(hf, family)
        hf.requires_grad_(False)
        hf.set_attn_implementation("eager")
        skips = skips or {}

        def keep(module, args, kwargs):
            self.reads.append(args[0] if args else kwargs["hidden_states"])

        def normed(module, args, out):
            self.reads.append(out)

        def replace(layer):
            def hook(module, args, out):
                clean = scale * out.detach()
                path = 0.0
                if layer in skips:
                    matrix, at = skips[layer]
                    path = torch.zeros_like(clean)
                    path[0, at] = self.reads[layer][0, at] @ matrix.T
                leaf = (clean - (path.detach() if layer in skips else 0.0)).requires_grad_()
                self.sources.append(leaf)
                return (leaf + path) / scale

            return hook

        for layer, (read, write) in enumerate(parts):
            handles.append(read.register_forward_hook(normed) if read is not write and family == "bloom"
                           else read.register_forward_pre_hook(keep, with_kwargs=True))  # fmt: skip
            handles.append(write.register_forward_hook(replace(layer)))
        handles.append(final.register_forward_hook(lambda m, a, out: setattr(self, "final", out)))
        first = self._first_block(hf)

        def enter(module, args, kwargs):
            self.embed = args[0].detach().clone().requires_grad_()
            return (self.embed, *args[1:]), kwargs

        handles.append(first.register_forward_pre_hook(enter, with_kwargs=True))
        try:
            with frozen():
                hf(input_ids=torch.tensor([tokens]), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _first_block(hf):
        return next(m for _, m in hf.named_modules() if isinstance(m, torch.nn.ModuleList))[0]

    def slopes(self, layer, position, vector):
        """d (vector . what MLP `layer` reads, or the final norm's result) / d embeddings and MLP leaves, (pos, d) each."""
        read = self.final if layer is None else self.reads[layer]
        leaves = [self.embed, *(self.sources if layer is None else self.sources[:layer])]
        found = torch.autograd.grad((read[0, position] * vector).sum(), leaves, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(leaf)[0] if g is None else g[0] for leaf, g in zip(leaves, found, strict=True)]
