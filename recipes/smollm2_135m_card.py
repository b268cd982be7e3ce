"""Judge the dictionaries that come with smollm2-135m on text they were not trained on, and write their card.

    python recipes/smollm2_135m_card.py --of DIR [--tokens 8000] [--control-tokens 200000]

1. Held-out documents of the corpus they were trained on. The SAE: `evaluate` with its loss spliced into the model, a frozen
   decoder and an untrained model beside it. The transcoders: one pass for all, FVU, L0, dead latents, principal axes beside.
2. All transcoders at once in place of their MLPs, at typical positions: cross-entropy against that of the model and of
   MLPs replaced by their mean.
3. `DIR/evaluation.json` holds everything, `DIR/CARD.md` says it in a page.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from smollm2_135m import CONTEXT, CORPUS, LAYERS, MIDDLE, MODEL

from assay.data.corpora import open_corpus
from assay.data.corpus_rows import packed
from assay.evidence.hosts import untrained_model
from assay.features import kept
from assay.features.dictionary import Dictionary
from assay.features.evaluate import Controls, EvaluationPlan, evaluate, same_recipe
from assay.features.harvest import LiveStream
from assay.features.held_out import HeldOut
from assay.features.stream import TensorStream
from assay.files import write_file
from assay.model.edits import patch
from assay.model.load import load_model
from assay.model.model import Model


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate all, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--control-tokens", type=int, default=200_000)
    given = parser.parse_args(arguments)
    model, held = load_model(MODEL), open_corpus(CORPUS).part("heldout")
    rows = packed(model, held, CONTEXT, given.tokens)
    texts = HeldOut.of([row.tokens.tolist() for row in rows], [row.name for row in rows])
    sae = kept.load(given.of / f"resid_post.{MIDDLE}")
    transcoders = [kept.load(given.of / "transcoders" / f"{layer:02d}") for layer in range(LAYERS)]
    found = {"tokens": given.tokens, "sae": judged_sae(sae, model, texts, given),
             **judged_transcoders(transcoders, model, texts)}  # fmt: skip
    size = sum(file.stat().st_size for file in given.of.rglob("dictionary.safetensors"))
    write_file(given.of / "evaluation.json", (json.dumps(found, indent=1) + "\n").encode())
    write_file(given.of / "CARD.md", card(found, size, sae).encode())


def judged_sae(sae: Dictionary, model: Model, texts: HeldOut, given: Any) -> dict[str, Any]:
    """As `assay dictionary eval` does."""
    corpus = open_corpus(CORPUS).part("train")
    twin = untrained_model(model, "all", 0)
    streams = [LiveStream(host, corpus, list(sae.spec.inputs), given.control_tokens, context=CONTEXT) for host in (model, twin)]
    frozen = same_recipe(sae, streams[0], tokens=given.control_tokens, frozen=True)
    again = same_recipe(sae, streams[1], tokens=given.control_tokens)
    return evaluate(sae, texts, model, EvaluationPlan(loss_tokens=given.tokens // 2), Controls(frozen, (twin, again))).json()


def judged_transcoders(found: Sequence[Dictionary], model: Model, texts: HeldOut) -> dict[str, Any]:
    """Each on the same tokens, and all of them in place of the MLPs."""
    sites = [site for one in found for site in (*one.spec.inputs, *one.spec.outputs)]
    acts = model.capture([list(row) for row in texts.rows], sites)
    positions = torch.cat([torch.arange(len(row)) for row in texts.rows])
    layers = []
    for one in found:
        x, y = acts.flat(one.spec.inputs[0]).float(), acts.flat(one.spec.outputs[0]).float()
        keep = one.typical(x, positions) & (y.norm(dim=1) <= (one.spec.target_limit or float("inf")))
        stream = TensorStream({one.spec.inputs[0]: x[keep], one.spec.outputs[0]: y[keep]})
        layers.append(evaluate(one, stream).json())
    return {"transcoders": layers, "spliced": spliced(found, model, texts)}


def spliced(found: Sequence[Dictionary], model: Model, texts: HeldOut, most: int = 4) -> dict[str, float]:
    """Cross-entropy a token of a few texts: the model, all MLPs replaced by transcoders, all by their mean.

    Layer by layer: each transcoder reads what the MLPs before it, already replaced, give.
    """
    rows = [list(row) for row in texts.rows[:most]]

    def loss(edits: list[Any]) -> float:
        logits = model.logits(rows, positions="all", edits=edits).log_softmax(-1)
        parts = [-logits[n, torch.arange(len(row) - 1), torch.tensor(row[1:])] for n, row in enumerate(rows)]
        return float(torch.cat(parts).mean())

    def replaced(make: Any) -> list[Any]:
        edits: list[Any] = []
        for one in found:
            inside, outside = one.spec.inputs[0], one.spec.outputs[0]
            acts = model.capture(rows, [inside, outside], edits=edits)
            x, y = acts[inside], acts[outside].clone()
            for n, row in enumerate(rows):
                now, then = x[n, : len(row)].float(), y[n, : len(row)]
                keep = one.typical(now, torch.arange(len(row))) & (then.norm(dim=1) <= (one.spec.target_limit or float("inf")))
                then[keep] = make(one, now[keep]).to(then.dtype)
            edits.append(patch(outside, y))
        return edits

    means = {one.spec.inputs[0]: one.b_dec for one in found}
    return {"model": loss([]), "transcoders": loss(replaced(lambda one, x: one.reconstruct(x))),
            "mean": loss(replaced(lambda one, x: means[one.spec.inputs[0]].expand(len(x), -1)))}  # fmt: skip


def card(found: dict[str, Any], size: int, made: Dictionary) -> str:
    """One page."""
    sae, names = found["sae"], ("FVU", "L0", "dead", "dense", "CE recovered, against mean", "KL recovered, against mean")
    lines = [
        f"# Dictionaries for {MODEL}", "",
        f"One SAE of `resid_post.{MIDDLE}` and a transcoder for each of {LAYERS} MLPs, {size / 1e6:.1f} MB of fp16 together,"
        f" trained on {made.provenance['trained_tokens']:,} tokens. Made by `recipes/smollm2_135m.py`, judged by"
        " `recipes/smollm2_135m_card.py`.", "",
        "They are small and have seen little text: good for a first look at how such graphs work, not for conclusions about"
        " this model. What a transcoder leaves out is in the error nodes of every graph.", "",
        f"## The SAE, on {sae['typical']:,} held-out tokens of {sae['documents']} documents", "",
        "| | " + " | ".join(column["name"] for column in sae["columns"]) + " |",
        "|---" * (1 + len(sae["columns"])) + "|",
    ]  # fmt: skip
    for name in names:
        cells = [column["measures"].get(name) for column in sae["columns"]]
        lines.append(f"| {name} | " + " | ".join("" if cell is None else f"{cell['value']:.3f}" for cell in cells) + " |")
    lines += ["", *(f"{note}" for note in sae["notes"]), "", "## The transcoders", "",
              "Axes are those of the output, which they see; a transcoder has to compute it from the input.", "",
              "| layer | FVU | FVU of as many principal axes | L0 | dead |", "|---|---|---|---|---|"]  # fmt: skip
    for layer, one in enumerate(found["transcoders"]):
        own, axes = one["columns"][0]["measures"], one["columns"][1]["measures"]
        cells = [own["FVU"], axes.get("FVU"), own["L0"], own["dead"]]
        lines.append(f"| {layer} | " + " | ".join("" if cell is None else f"{cell['value']:.2f}" for cell in cells) + " |")
    loss = found["spliced"]
    share = (loss["mean"] - loss["transcoders"]) / (loss["mean"] - loss["model"])
    lines += ["", f"All of them at once in place of the MLPs: cross-entropy {loss['transcoders']:.2f}, the model"
              f" {loss['model']:.2f}, all MLPs at their mean {loss['mean']:.2f}: {share:.0%} recovered.", ""]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
