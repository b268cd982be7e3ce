"""`assay concepts [MODEL]`: what there is, how a file is split, what is wrong with it, what of it a tokenizer can read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import click

from assay.cli.common import Common, common_options, model_options
from assay.records import Example


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@click.option("--concept", "chosen", multiple=True, metavar="NAME",
              help="Only this one; may be given again. A packaged one is fetched if it is not there.")  # fmt: skip
@click.option("--file", "files", multiple=True, metavar="FILE", help="Your own concept, JSONL or CSV.")
@click.option("--n", default=120, show_default=True, type=click.IntRange(1), help="Examples of each bundled concept and split.")
@click.option("--flags/--no-flags", default=None,
              help="Look for leaks, confounds and wrong labels. Default: in files only.")  # fmt: skip
@model_options
@common_options
def concepts(
    common: Common, name: str | None, chosen: tuple[str, ...], files: tuple[str, ...], n: int, flags: bool | None,
    dtype: str, prepend_bos: bool | None,
) -> None:  # fmt: skip
    """List the concepts: members, near misses, frames and words of every split.

    Packaged concepts are only named until they are fetched: at first use, or with --concept NAME. With MODEL also how
    many examples its tokenizer can read. No split is shown to the model: only texts and tokens are counted. With
    --flags, and for files: near copies and groups on two sides, labels that length or punctuation tells, labels that
    look wrong, too few groups, uneven labels.
    """
    from assay.data.concepts import CONCEPTS

    wanted = [*chosen, *files]
    shown = [_shown(concept, n, common.seed, bool(wanted)) for concept in wanted or CONCEPTS.names()]
    model = None if name is None else common.load(name, dtype, prepend_bos)
    with common.progress("concepts", len(shown)) as advance:
        rows = []
        for one in shown:
            rows.append(_row(one, model, one.name in files if flags is None else flags, common.seed))
            advance(1)
    common.emit(rows, lambda: "\n".join(line for row in rows for line in _lines(row)))


@dataclass(frozen=True)
class _Shown:
    """A concept to list: examples by split (none when it is not fetched), and where a packaged one is from."""

    name: str
    title: str
    splits: Mapping[str, Sequence[Example]]
    left_out: Mapping[str, int] = field(default_factory=dict)
    package: Mapping[str, Any] | None = None


def _shown(concept: str, n: int, seed: int, fetch: bool) -> _Shown:
    """A file is read whole, so that its mistakes are found here. Of a packaged concept all examples are shown."""
    from assay.data.concepts import CONCEPTS, PackagedConcept, divide_examples, load_concept

    if concept not in CONCEPTS:
        examples = load_concept(concept)
        divided = divide_examples(examples)
        return _Shown(concept, f"your own, {len(examples)} examples", divided.splits, divided.dropped)
    known = CONCEPTS.get(concept)
    if not isinstance(known, PackagedConcept):
        return _Shown(concept, known.title, {split: known.examples(split, n, seed) for split in known.splits})
    if not fetch and known.fetched is None:
        return _Shown(concept, known.title, {}, package=known.described())
    division = known.division
    return _Shown(concept, known.title, division.splits, division.dropped, known.described())


def _row(shown: _Shown, model: Any, flags: bool, seed: int) -> dict[str, Any]:
    """A row of the list."""
    rows = {split: {**_counts(examples), **({} if model is None else _read(examples, model))}
            for split, examples in shown.splits.items()}  # fmt: skip
    row = {"concept": shown.name, "title": shown.title, "splits": rows, "left_out": dict(shown.left_out),
           "model": None if model is None else model.name, "package": shown.package}  # fmt: skip
    return {**row, "flags": _flags(shown, seed)} if flags and shown.splits else row


def _flags(shown: _Shown, seed: int) -> list[dict[str, Any]]:
    """Flags of all examples; of a bundled concept more are looked at than are listed."""
    from assay.data.concept_flags import concept_flags
    from assay.data.concepts import CONCEPTS, all_examples

    splits = all_examples(shown.name).splits if shown.name in CONCEPTS else shown.splits
    return [asdict(flag) for flag in concept_flags(splits, seed=seed)]


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
    lines = [f"{row['concept']}  {row['title']}", *_package_lines(row)]
    width = max(map(len, row["splits"]), default=0)
    unit = "frames" if row["package"] is None else "groups"
    for split, counts in row["splits"].items():
        usable = "" if row["model"] is None else f"; {counts['usable']} usable with {row['model']}"
        why = "".join(f"; {n} dropped: {reason}" for reason, n in counts.get("dropped", {}).items())
        sealed = split in ("confirm", "ood")
        few = f"; fewer than 8 {unit}: no claim can be supported" if sealed and counts["frames"] < 8 else ""
        lines.append(f"  {split:<{width}}  {counts['examples']} examples: {counts['members']} members, {counts['near_misses']}"
                     f" near misses; {counts['frames']} {unit}, {counts['words']} words{usable}{why}{few}")  # fmt: skip
    lines += [f"  {n} examples are in no split: {why}" for why, n in row["left_out"].items()]
    return [*lines, *_flag_lines(row)]


def _package_lines(row: dict[str, Any]) -> list[str]:
    if row["package"] is None:
        return []
    sources, megabytes = row["package"]["sources"], row["package"]["download_megabytes"]
    where = f"from {', '.join(sources)} ({megabytes} MB)" if sources else "made by rule, nothing to fetch"
    waits = "" if row["splits"] else "; not fetched yet: fetched at first use" if sources else "; made at first use"
    return [f"  {where}{waits}; licence: {row['package']['licence']}",
            f"  groups: {row['package']['groups']}; near misses: {row['package']['near_misses']}"]  # fmt: skip


def _flag_lines(row: dict[str, Any]) -> list[str]:
    if "flags" not in row:
        return []
    return [f"  ! {flag['name']}: {flag['message']}" for flag in row["flags"]] or ["  no flags"]
