"""The jobs of `circuits.py` in circuitkit, for an interpreter that has it: `python circuits_peer.py PAIRS.json`.

Its own documented functions on a model that its own loader made: `attribute` (EAP, EAP-IG-inputs), `Graph.apply_topn` and
`evaluate_graph`, all pairs in one batch. They take texts; the token ids of each text are handed to them in place of their
tokeniser's, so that both tools read the same. Last line printed: JSON with CPU seconds, ratios to plain passes of the same
model in the same process (its own F and FB, with the switches off that its hooks need, which make every pass slower), and
the metric of the clean prompts. Scores go into the npz.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

SWITCHES = ("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "ungroup_grouped_query_attention")
SHARE = 0.01  # of edges, in the circuit that is evaluated


def main(path: str) -> None:
    """Measure everything once, after one pass to warm up."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    given = json.loads(Path(path).read_text(encoding="utf-8"))
    import circuitkit
    from circuitkit.backends.eap.attribute import attribute
    from circuitkit.backends.eap.evaluate import evaluate_graph
    from circuitkit.backends.eap.graph import Graph

    model: Any = circuitkit.load_model(given["model"], dtype="float32", device="cpu")
    clean, corrupted = (torch.tensor(given[name]) for name in ("clean", "corrupted"))
    prompts = (("clean", clean), ("corrupted", corrupted))
    texts = {f"{name} {row}": ids for name, rows in prompts for row, ids in enumerate(rows)}
    model.to_tokens = lambda inputs, **_: torch.stack([texts[text] for text in inputs])
    labels = torch.tensor([given["answers"], given["foils"]]).T
    n = len(clean)
    batches = [([f"clean {row}" for row in range(n)], [f"corrupted {row}" for row in range(n)], labels)]

    def each(logits: Any, *_: Any) -> Any:
        at_end = logits[:, -1].gather(1, labels)
        return at_end[:, 0] - at_end[:, 1]

    def summed(*arguments: Any) -> Any:
        return each(*arguments).sum()

    def forward() -> Any:
        with torch.no_grad():
            return each(model(clean))

    def backward() -> None:
        kept: list[Any] = []

        def start(x: Any, hook: Any) -> Any:
            kept.append(x.detach().requires_grad_(True))
            return kept[0]

        for parameter in model.parameters():
            parameter.requires_grad_(False)
        with model.hooks(fwd_hooks=[("hook_embed", start)]):
            torch.autograd.grad(each(model(clean)).sum(), kept[0])
        for parameter in model.parameters():
            parameter.requires_grad_(True)

    switches = {name: getattr(model.cfg, name) for name in SWITCHES}
    for name in SWITCHES:
        setattr(model.cfg, name, False)
    metric = forward()
    backward()
    f, fb = cpu(forward), cpu(backward)
    for name, value in switches.items():
        setattr(model.cfg, name, value)
    scores, found = {}, {}
    graph = Graph.from_model(model)
    for name, method, steps, floor in (
        ("EAP", "EAP", None, f + fb), ("EAP-IG", "EAP-IG-inputs", given["steps"], 2 * f + given["steps"] * fb),
    ):  # fmt: skip
        seconds = cpu(lambda method=method, steps=steps: attribute(
            model, graph, batches, summed, method, ig_steps=steps, quiet=True))  # fmt: skip
        found[name] = {"seconds": seconds, "ratio": seconds / floor}
        scores[name] = graph.scores.detach().numpy().copy()
    graph.apply_topn(int(SHARE * int(graph.real_edge_mask.sum())), absolute=True)
    seconds = cpu(lambda: evaluate_graph(model, graph, batches, each, quiet=True))
    found["evaluation"] = {"seconds": seconds, "ratio": seconds / f}
    np.savez(given["scores"], **scores)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    found |= {"version": version("circuitkit"), "F": f, "FB": fb, "peak": peak, "clean": metric.tolist()}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def cpu(run: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    main(sys.argv[1])
