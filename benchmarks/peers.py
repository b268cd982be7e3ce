"""The tools Assay is compared with, each doing the same work its own documented way.

Every method returns named ways to do one job: {"default": run, "stop": run}. A run returns the
numbers, so that they can be compared before anything is timed. Peers get their own copy of the
model, because some of them change the modules they wrap; all weights are frozen, so nobody builds a
gradient graph that was not asked for.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from inputs import GenerationInput, HeadsInput, SweepInput
from torch import Tensor, nn

from assay import Model

Variants = dict[str, Callable[[], Any]]


class Peer:
    """One tool. A job it is not compared on gives no variants."""

    label = ""

    def capture(self, ids: Tensor, layer: int) -> Variants:
        """resid_post of one layer, (prompt, pos, d_model)."""
        return {}

    def sweep(self, pair: SweepInput) -> Variants:
        """Metric of every cell of the layer x position grid, (layer, pos)."""
        return {}

    def heads(self, pairs: HeadsInput) -> Variants:
        """Mean metric with one head's z patched at all positions, (layer, head)."""
        return {}

    def attribution(self, pairs: HeadsInput) -> Variants:
        """The first-order estimate of `heads`, (layer, head)."""
        return {}

    def generation(self, job: GenerationInput) -> Variants:
        """The new token ids of a greedy continuation under steering, as a list."""
        return {}


def load_peers(model: Model) -> list[Peer]:
    """Plain hooks, and every installed peer around its own copy of the model."""
    peers: list[Peer] = [PlainHooks(model.hf)]
    if find_spec("transformer_lens"):
        peers.append(TransformerLens(_frozen_copy(model.hf), model.tokenizer))
    if find_spec("nnsight"):
        peers.append(NNsight(_frozen_copy(model.hf), model.tokenizer))
    return peers


def _frozen_copy(hf: nn.Module) -> nn.Module:
    return copy.deepcopy(hf).eval().requires_grad_(False)


class PlainHooks(Peer):
    """What one writes by hand with `register_forward_hook` on the Hugging Face model."""

    label = "plain hooks"

    def __init__(self, hf: Any) -> None:
        self.hf = hf

    def capture(self, ids: Tensor, layer: int) -> Variants:
        kept: list[Tensor] = []

        def run() -> Tensor:
            kept.clear()
            handle = self.hf.model.layers[layer].register_forward_hook(lambda _, __, out: kept.append(out))
            with handle, torch.no_grad():
                self.hf(input_ids=ids, use_cache=False)
            return kept[0]

        return {"whole model": run}

    def sweep(self, pair: SweepInput) -> Variants:
        return {"one batch a layer": lambda: self._sweep(pair)}

    def _sweep(self, pair: SweepInput) -> Tensor:
        n = torch.arange(len(pair.clean))
        clean = self._clean_residuals(pair)

        def write(layer: int, out: Tensor) -> Tensor:
            out = out.clone()
            out[n, n] = clean[layer][n]
            return out

        rows = torch.tensor([pair.corrupted] * len(n))
        return torch.stack([pair.difference(self._with_hook(rows, layer, write)) for layer in pair.layers])

    def cells_one_by_one(self, pair: SweepInput, cells: list[tuple[int, int]]) -> Tensor:
        """The metric of some cells of the grid, each from a forward pass of its own."""
        clean = self._clean_residuals(pair)
        rows, found = torch.tensor([pair.corrupted]), []
        for layer, position in cells:

            def write(layer: int, out: Tensor, position: int = position) -> Tensor:
                out = out.clone()
                out[:, position] = clean[layer][position]
                return out

            found.append(pair.difference(self._with_hook(rows, layer, write))[0])
        return torch.stack(found)

    def _clean_residuals(self, pair: SweepInput) -> list[Tensor]:
        kept: list[Tensor] = []
        with ExitStack() as hooks, torch.no_grad():
            for block in self.hf.model.layers:
                hooks.enter_context(block.register_forward_hook(lambda _, __, out: kept.append(out[0])))
            self.hf(input_ids=torch.tensor([pair.clean]), use_cache=False)
        return kept

    def _with_hook(self, ids: Tensor, layer: int, write: Callable[[int, Tensor], Tensor]) -> Tensor:
        handle = self.hf.model.layers[layer].register_forward_hook(lambda _, __, out: write(layer, out))
        with handle, torch.no_grad():
            return self.hf(input_ids=ids, use_cache=False).logits[:, -1]

    def heads(self, pairs: HeadsInput) -> Variants:
        return {"one forward a head": lambda: self._heads(pairs)}

    def _heads(self, pairs: HeadsInput) -> Tensor:
        found = torch.empty(len(pairs.layers), pairs.n_heads)
        with torch.no_grad():
            source = self._z(pairs.clean, pairs)[0]
            for row, layer in enumerate(pairs.layers):
                for head in range(pairs.n_heads):
                    at = slice(head * pairs.d_head, (head + 1) * pairs.d_head)

                    def write(_: nn.Module, args: tuple[Tensor], layer: int = layer, at: slice = at) -> tuple[Tensor]:
                        z = args[0].clone()
                        z[..., at] = source[layer][..., at]
                        return (z,)

                    with self._o_proj(layer).register_forward_pre_hook(write):
                        found[row, head] = pairs.difference(self._logits(pairs.corrupted, pairs)).mean()
        return found

    def attribution(self, pairs: HeadsInput) -> Variants:
        return {"by hand": lambda: self._attribution(pairs)}

    def _attribution(self, pairs: HeadsInput) -> Tensor:
        frozen = [p.requires_grad_(False) for p in self.hf.parameters() if p.requires_grad]
        try:
            with torch.no_grad():
                source = self._z(pairs.clean, pairs)[0]
            base, logits = self._z(pairs.corrupted, pairs, leaves=True)
            metric = pairs.difference(logits)
            slopes = torch.autograd.grad(metric.sum(), base)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        shape = (len(metric), -1, pairs.n_heads, pairs.d_head)
        change = [
            ((s * (new - old)) * pairs.mask[..., None]).view(shape).sum((1, 3)).mean(0)
            for s, new, old in zip(slopes, source, base, strict=True)
        ]
        return metric.detach().mean() + torch.stack(change)[list(pairs.layers)].detach()

    def _z(self, ids: Tensor, pairs: HeadsInput, leaves: bool = False) -> tuple[list[Tensor], Tensor]:
        """Input of every layer's output projection, and the logits."""
        kept: list[Tensor] = []

        def keep(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
            # the first leaf starts the graph; later ones are already part of it
            z = args[0].requires_grad_(True) if leaves and not kept else args[0]
            kept.append(z)
            return (z,)

        with ExitStack() as hooks:
            for layer in range(len(self.hf.model.layers)):
                hooks.enter_context(self._o_proj(layer).register_forward_pre_hook(keep))
            return kept, self._logits(ids, pairs)

    def _logits(self, ids: Tensor, pairs: HeadsInput) -> Tensor:
        return self.hf(input_ids=ids, attention_mask=pairs.mask, use_cache=False).logits

    def _o_proj(self, layer: int) -> nn.Module:
        return self.hf.model.layers[layer].self_attn.o_proj

    def generation(self, job: GenerationInput) -> Variants:
        def run() -> list[int]:
            with self.hf.model.layers[job.layer].register_forward_hook(lambda _, __, out: out + job.vector):
                return plain_generate(self.hf, job)

        return {"one hook": run}


def plain_generate(hf: Any, job: GenerationInput) -> list[int]:
    """Greedy continuation by Hugging Face's own `generate` with its KV cache."""
    with torch.no_grad():
        out = hf.generate(job.ids, attention_mask=torch.ones_like(job.ids), max_new_tokens=job.n_tokens,
                          do_sample=False, pad_token_id=0)  # fmt: skip
    return out[0, job.ids.shape[1] :].tolist()


class TransformerLens(Peer):
    """`TransformerBridge` around the model, compatibility mode off; it switches attention to eager."""

    label = "TransformerLens"

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge: Any = TransformerBridge.boot_transformers("local", hf_model=hf, tokenizer=tokenizer, device="cpu")

    def capture(self, ids: Tensor, layer: int) -> Variants:
        name = f"blocks.{layer}.hook_resid_post"

        def run(**stop: int) -> Tensor:
            with torch.no_grad():
                return self.bridge.run_with_cache(ids, names_filter=name, **stop)[1][name]

        return {"default": run, "stop_at_layer": lambda: run(stop_at_layer=layer + 1)}

    def sweep(self, pair: SweepInput) -> Variants:
        return {
            "patching helper": lambda: self._helper(pair),
            "one batch a layer": lambda: self._batched(pair, resume=False),
            "start_at_layer": lambda: self._batched(pair, resume=True),
        }

    def _helper(self, pair: SweepInput) -> Tensor:
        """The documented way: `generic_activation_patch`, one forward pass a cell."""
        import pandas
        from transformer_lens import patching

        cells = [(layer, position) for layer in pair.layers for position in range(len(pair.clean))]
        with torch.no_grad():
            clean = self._residuals(pair.clean)
            found = patching.generic_activation_patch(
                self.bridge, torch.tensor([pair.corrupted]), clean, lambda logits: pair.difference(logits[0, -1]),
                patching.layer_pos_patch_setter, "resid_post", index_df=pandas.DataFrame(cells, columns=["layer", "pos"]),
            )  # fmt: skip
        return found.view(len(pair.layers), -1)

    def _residuals(self, tokens: list[int]) -> Any:
        names = [f"blocks.{layer}.hook_resid_post" for layer in range(self.bridge.cfg.n_layers)]
        return self.bridge.run_with_cache(torch.tensor([tokens]), names_filter=names)[1]

    def _batched(self, pair: SweepInput, resume: bool) -> Tensor:
        """All positions of a layer in one batch, from the start or from the patched residual on."""
        n = torch.arange(len(pair.clean))
        rows, found = torch.tensor([pair.corrupted] * len(n)), []
        with torch.no_grad():
            clean, corrupted = self._residuals(pair.clean), self._residuals(pair.corrupted)
            last = self.bridge.cfg.n_layers - 1
            for layer in pair.layers:
                name = f"blocks.{layer}.hook_resid_post"

                def write(x: Tensor, hook: Any, name: str = name) -> Tensor:
                    x = x.clone()
                    x[n, n] = clean[name][0, n]
                    return x

                if resume and layer < last:
                    patched = write(corrupted[name].expand(len(n), -1, -1), None)
                    logits = self.bridge(patched, start_at_layer=layer + 1)
                else:
                    logits = self.bridge.run_with_hooks(rows, fwd_hooks=[(name, write)])
                found.append(pair.difference(logits[:, -1]))
        return torch.stack(found)

    def heads(self, pairs: HeadsInput) -> Variants:
        return {"patching helper": lambda: self._heads(pairs)}

    def _heads(self, pairs: HeadsInput) -> Tensor:
        import pandas
        from transformer_lens import patching

        cells = [(layer, head) for layer in pairs.layers for head in range(pairs.n_heads)]
        with torch.no_grad():
            source = self.bridge.run_with_cache(pairs.clean, names_filter=lambda name: name.endswith("hook_z"))[1]
            found = patching.generic_activation_patch(
                self.bridge, pairs.corrupted, source, lambda logits: pairs.difference(logits).mean(),
                patching.layer_head_vector_patch_setter, "z",
                index_df=pandas.DataFrame(cells, columns=["layer", "head_index"]),
            )  # fmt: skip
        return found.view(len(pairs.layers), -1)

    def generation(self, job: GenerationInput) -> Variants:
        name = f"blocks.{job.layer}.hook_resid_post"

        def run() -> list[int]:
            with torch.no_grad(), self.bridge.hooks(fwd_hooks=[(name, lambda x, hook: x + job.vector)]):
                out = self.bridge.generate(job.ids, max_new_tokens=job.n_tokens, do_sample=False, verbose=False)
            return out[0, job.ids.shape[1] :].tolist()

        return {"own loop": run}


class NNsight(Peer):
    """`TransformersModel` (its `LanguageModel` is a deprecated name for it) around the model."""

    label = "nnsight"

    def __init__(self, hf: Any, tokenizer: Any) -> None:
        from nnsight import TransformersModel

        self.lens: Any = TransformersModel(hf, task="text-generation", tokenizer=tokenizer)

    def capture(self, ids: Tensor, layer: int) -> Variants:
        def default() -> Tensor:
            with torch.no_grad(), self.lens.trace(ids):
                kept = self.lens.model.layers[layer].output.save()
            return kept

        def stopped() -> Tensor:
            with torch.no_grad(), self.lens.trace(ids) as tracer:
                kept = self.lens.model.layers[layer].output.save()
                tracer.stop()
            return kept

        return {"default": default, "tracer.stop()": stopped}

    def sweep(self, pair: SweepInput) -> Variants:
        return {"one batch a layer": lambda: self._sweep(pair)}

    def _sweep(self, pair: SweepInput) -> Tensor:
        n = torch.arange(len(pair.clean))
        rows, found = torch.tensor([pair.corrupted] * len(n)), []
        with torch.no_grad():
            with self.lens.trace(torch.tensor([pair.clean])):
                clean = [block.output[0].save() for block in self.lens.model.layers].save()
            for layer in pair.layers:
                with self.lens.trace(rows):
                    self.lens.model.layers[layer].output[n, n] = clean[layer][n]
                    logits = self.lens.output.logits[:, -1].save()
                found.append(pair.difference(logits))
        return torch.stack(found)

    def generation(self, job: GenerationInput) -> Variants:
        def run() -> list[int]:
            arguments = {"max_new_tokens": job.n_tokens, "do_sample": False, "pad_token_id": 0}
            with torch.no_grad(), self.lens.generate(job.ids, **arguments) as tracer:
                for _ in tracer.iter[: job.n_tokens]:
                    self.lens.model.layers[job.layer].output[:] += job.vector
                tokens = tracer.result.save()
            return tokens[0, job.ids.shape[1] :].tolist()

        return {"its generate": run}
