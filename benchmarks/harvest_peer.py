"""SAELens' `ActivationsStore` beside bare truncated passes, in the interpreter that has it: `harvest.py --peer` calls this.

    PYTHON harvest_peer.py MODEL rows.npy LAYER ROUNDS THREADS

MODEL is a folder in the format of Hugging Face, `rows.npy` holds token ids, rows of one length. `bare`: the module cut off
after the layer, in batches of 16 rows; `store`: batches of 2,048 tokens from a store that is filled, in its own batches of 16
rows, with its defaults else. The two take turns; what is compared is CPU seconds for a token that went through the model.
Prints JSON.
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import environment

BATCH, ROWS = 2048, 16


def main() -> None:
    """One JSON record: by round the CPU and wall seconds a token."""
    folder, rows, layer, rounds, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
    environment.prepare()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import numpy as np
    import sae_lens
    import torch
    from datasets import Dataset
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.training.activations_store import ActivationsStore
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    ids = np.load(rows)
    ids = ids[: len(ids) // ROWS * ROWS]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()
    name, context, width = f"model.layers.{layer}", ids.shape[1], model.config.hidden_size
    hooked = HookedProxyLM(model, AutoTokenizer.from_pretrained(folder), hook_names=[name])
    store = ActivationsStore(
        hooked, Dataset.from_dict({"input_ids": ids.tolist()}), streaming=False, hook_name=name, hook_head_index=None,
        context_size=context, d_in=width, n_batches_in_buffer=ROWS, total_training_tokens=10**9, store_batch_size_prompts=ROWS,
        train_batch_size_tokens=BATCH, prepend_bos=False, normalize_activations="none", device=torch.device("cpu"),
        dtype="float32",
    )  # fmt: skip
    seen = 0

    def count(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal seen
        seen += (args[0] if args else kwargs["input_ids"]).numel()

    model.model.register_forward_pre_hook(count, with_kwargs=True)
    groups = [torch.from_numpy(ids[start : start + ROWS].astype("int64")) for start in range(0, len(ids), ROWS)]
    layers, kept = model.model.layers, []

    @torch.no_grad()
    def bare() -> None:
        kept.clear()
        model.model.layers = layers[: layer + 1]
        handle = model.model.layers[layer].register_forward_hook(lambda m, a, out: kept.append(_first(out).clone()))
        for group in groups:
            model.model(input_ids=group, use_cache=False)
        handle.remove()
        model.model.layers = layers

    @torch.no_grad()
    def stored() -> None:
        for _ in range(max(1, ids.size // BATCH)):
            next(store)

    def timed(run: Callable[[], None]) -> list[float]:
        before, cpu, wall = seen, time.process_time(), time.perf_counter()
        run()
        tokens = seen - before
        return [(time.process_time() - cpu) / tokens, (time.perf_counter() - wall) / tokens, tokens]

    with torch.no_grad():
        bare()
        given = store.get_activations(groups[0])
        error = float((given - kept[0]).norm() / kept[0].norm())
        stored()  # fills the buffer
    taken = [[timed(run) for run in ((bare, stored) if turn % 2 == 0 else (stored, bare))] for turn in range(rounds)]
    turns = [pair if turn % 2 == 0 else pair[::-1] for turn, pair in enumerate(taken)]
    record = {"version": sae_lens.__version__, "torch": torch.__version__, "relative_error": error, "tokens": int(ids.size),
              "bare": [pair[0] for pair in turns], "store": [pair[1] for pair in turns]}  # fmt: skip
    sys.stdout.write(json.dumps(record) + "\n")


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


if __name__ == "__main__":
    main()
