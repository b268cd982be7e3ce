"""`assay concepts [MODEL]`: what is bundled, how a file is split, and what of it a model's tokenizer can read."""

from collections.abc import Sequence
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.records import Example


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--concept", "chosen", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option("--file", "files", multiple=True, metavar="FILE", help="Your own concept, JSONL or CSV.")
@click.option("--n", default=120, show_default=True, type=click.IntRange(1), help="Examples of each bundled concept and split.")
@model_options
@common_options
def concepts(
    common: Common, name: str | None, chosen: tuple[str, ...], files: tuple[str, ...], n: int, dtype: str,
    prepend_bos: bool | None,
) -> None:  # fmt: skip
    """List the concepts: members, near misses, frames and words of every split.

    With MODEL also how many examples its tokenizer can read, and how many tokens the words have. No split is
    shown to the model: only texts and tokens are counted.
    """
    from assay.data.concepts import CONCEPTS

    names = [*chosen, *files] or CONCEPTS.names()
    splits = {concept: _splits(concept, n, common.seed) for concept in names}
    model = None if name is None else common.load(name, dtype, prepend_bos)
    rows = [_describe(concept, *splits[concept], model) for concept in names]
    common.emit(rows, lambda: "\n".join(line for row in rows for line in _lines(row)))


def _splits(concept: str, n: int, seed: int) -> tuple[str, dict[str, list[Example]], dict[str, int]]:
    """(title, examples by split, left out by reason). A file is read whole, so that its mistakes are found here."""
    from assay.data.concepts import CONCEPTS, load_concept
    from assay.data.splits import divide

    if concept in CONCEPTS:
        known = CONCEPTS.get(concept)
        return known.title, {split: known.examples(split, n, seed) for split in known.splits}, {}
    examples = load_concept(concept)
    divided = divide(examples)
    return f"your own, {len(examples)} examples", divided.splits, divided.dropped


def _describe(
    concept: str, title: str, splits: dict[str, list[Example]], left_out: dict[str, int], model: Any
) -> dict[str, Any]:
    """A row of the list."""
    rows = {split: {**_counts(examples), **({} if model is None else _read(examples, model))}
            for split, examples in splits.items()}  # fmt: skip
    return {"concept": concept, "title": title, "splits": rows, "left_out": left_out,
            "model": None if model is None else model.name}  # fmt: skip


def _counts(examples: Sequence[Example]) -> dict[str, Any]:
    return {
        "examples": len(examples), "members": sum(example.label for example in examples),
        "near_misses": sum(example.near_miss for example in examples),
        "frames": len({example.template for example in examples}),
        "words": len({entity for example in examples for entity in example.entities}),
    }  # fmt: skip


def _read(examples: Sequence[Example], model: Any) -> dict[str, Any]:
    """How many of the examples can be read with this tokenizer; why not the others."""
    from assay.data.prepare_concept import unreadable

    dropped = unreadable(examples, model)
    return {"usable": len(examples) - sum(dropped.values()), "dropped": dropped}


def _lines(row: dict[str, Any]) -> list[str]:
    width = max(map(len, row["splits"]))
    lines = [f"{row['concept']}  {row['title']}"]
    for split, counts in row["splits"].items():
        usable = "" if row["model"] is None else f"; {counts['usable']} usable with {row['model']}"
        why = "".join(f"; {n} dropped: {reason}" for reason, n in counts.get("dropped", {}).items())
        few = "; fewer than 8 frames: no claim can be supported" if split in ("confirm", "ood") and counts["frames"] < 8 else ""
        lines.append(f"  {split:<{width}}  {counts['examples']} examples: {counts['members']} members, {counts['near_misses']}"
                     f" near misses; {counts['frames']} frames, {counts['words']} words{usable}{why}{few}")  # fmt: skip
    return [*lines, *(f"  {n} examples are in no split: {why}" for why, n in row["left_out"].items())]
