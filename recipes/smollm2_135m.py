"""The dictionaries that come with Assay for smollm2-135m, made again: one pass over text for all of them.

    python recipes/smollm2_135m.py --out DIR [--tokens 2400000]

1. Text: the packaged corpus `mixed` (news, essays, reviews, ...), its training part, rows of 256 tokens.
2. One SAE of the residual stream at a middle layer (`resid_post.15`, 4,096 latents, 32 active) and a transcoder for
   every MLP (`mlp_in.L` to `mlp_out.L`, 416 latents, 16 active on average): what fits into 40 MB of fp16.
3. The model runs in bfloat16, and what it holds is kept as fp16; the dictionaries train in fp32.
4. First and massive positions are left out. Interrupted, the same command goes on from its last kept state.

`DIR` is laid out as the package ships it: `resid_post.15/`, `transcoders/LL/`, and `training.json` with the history.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from assay.data.corpora import open_corpus
from assay.features import kept
from assay.features.dictionary import Spec
from assay.features.harvest import LiveStream
from assay.features.train import TrainPlan, train
from assay.files import write_file
from assay.model.load import load_model

MODEL, CORPUS, CONTEXT = "smollm2-135m", "mixed", 256
MIDDLE, LAYERS, D = 15, 30, 576
SAE = {"width": 4096, "k": 32}
TRANSCODER = {"width": 416, "k": 16}


def specs() -> dict[str, Spec]:
    """Folder and spec of every dictionary."""
    residual = (f"resid_post.{MIDDLE}",)
    found = {residual[0]: Spec("batchtopk", d_in=D, d_out=D, inputs=residual, outputs=residual, **SAE)}
    for layer in range(LAYERS):
        sites = (f"mlp_in.{layer}",), (f"mlp_out.{layer}",)
        found[f"transcoders/{layer:02d}"] = Spec("batchtopk", d_in=D, d_out=D, inputs=sites[0], outputs=sites[1],
                                                 centred=False, **TRANSCODER)  # fmt: skip
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all, and write them as fp16."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=2_400_000)
    parser.add_argument("--checkpoint-every", type=int, default=20)
    given = parser.parse_args(arguments)
    wanted = specs()
    sites = list(dict.fromkeys(site for spec in wanted.values() for site in (*spec.inputs, *spec.outputs)))
    model, corpus = load_model(MODEL, dtype="bfloat16"), open_corpus(CORPUS).part("train")
    stream = LiveStream(model, corpus, sites, given.tokens, context=CONTEXT, keep="fp16")
    plan = TrainPlan(tokens=min(given.tokens, stream.n_tokens), checkpoint_every=given.checkpoint_every)
    names = [f"{MODEL}-{folder.replace('/', '-')}" for folder in wanted]
    with Progress(console=Console(stderr=True)) as bar:
        job = bar.add_task("training", total=plan.steps)

        def show(words: str, done: int, steps: int) -> None:
            bar.update(job, description=words, completed=done, total=steps)

        found = train(stream, list(wanted.values()), plan, given.out / "state", show, names)
    for folder, made in zip(wanted, found, strict=True):
        kept.save(made.dictionary, given.out / folder, "fp16")
    history = {folder: [asdict(line) for line in made.history] for folder, made in zip(wanted, found, strict=True)}
    write_file(given.out / "training.json", json.dumps({"plan": asdict(plan), "history": history}).encode())


if __name__ == "__main__":
    main()
