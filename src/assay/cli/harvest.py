"""`assay harvest MODEL CORPUS`."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options, engine_options
from assay.cli.dictionary_eval import CONTEXT, readable
from assay.errors import bad_argument


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@click.argument("corpus", metavar="[CORPUS]", required=False)
@click.option("--site", "sites", multiple=True, metavar="SITE", help="resid_post.15, mlp_out.*; may be given again.")
@click.option("--tokens", type=click.IntRange(2), metavar="N", help="Tokens read from the corpus.")
@click.option("--out", metavar="DIR|s3://BUCKET/DIR", help="Where the activations are kept.")
@click.option("--context", type=click.IntRange(2), help="Tokens of a text at most. Default: 256, or what the model reads.")
@click.option("--dtype", default="fp16", show_default=True, help="On disk: fp16, bf16 or fp32.")
@click.option("--holdout", default=0.05, show_default=True, help="Share of the documents that is left out.")
@click.option("--skip-first", default=1, show_default=True, type=click.IntRange(0), help="First positions that are marked.")
@click.option("--factor", default=10.0, show_default=True, help="Times the median norm a position is massive; 0: none.")
@click.option("--shard-tokens", default=65_536, show_default=True, type=click.IntRange(1), help="In one file at most.")
@click.option("--text-key", default="text", show_default=True, help="Key or column of JSONL, CSV and Parquet.")
@click.option("--documents", type=click.Choice(["file", "block", "line"]), help="What a document is in text files.")
@click.option("--model-dtype", default="float32", show_default=True, help="float32, bfloat16 or float16")
@click.option("--prepend-bos/--no-prepend-bos", default=None, help="Put BOS before texts. Default: per model.")
@click.option("--served", metavar="URL", help="A vLLM server of MODEL that writes out hidden states; see docs/scale.md.")
@click.option("--list", "listing", is_flag=True, help="Name the packaged corpora and end.")
@click.option("--kept", is_flag=True, help="Name the harvests of this atlas and end.")
@engine_options
@common_options
def harvest(
    common: Common, name: str | None, corpus: str | None, sites: tuple[str, ...], tokens: int | None, out: str | None,
    listing: bool, kept: bool, text_key: str, documents: str | None, model_dtype: str, prepend_bos: bool | None,
    engine: str | None, workers: int | None, served: str | None, **options: Any,
) -> None:  # fmt: skip
    """Write what MODEL holds at some sites while it reads CORPUS, for dictionaries to be trained on.

    CORPUS: a packaged one (--list), a file or folder (.txt .md .jsonl .csv .parquet), or hub:NAME[:CONFIG[:SPLIT]]:COLUMN.
    The same command goes on where a run was stopped. What is done is noted in the atlas (--kept).
    """
    if listing or kept:
        (show_list if listing else show_kept)(common)
        return
    given = {"MODEL": name, "CORPUS": corpus, "--site": sites, "--tokens": tokens, "--out": out}
    for argument, value in given.items():
        if not value:
            raise bad_argument(argument, None, "one", "assay harvest MODEL CORPUS --site SITE --tokens N --out DIR")
    from assay.atlas.features import record_harvest
    from assay.atlas.store import Atlas
    from assay.data.corpora import open_corpus
    from assay.features import harvest as work
    from assay.features.engines import opener_at
    from assay.scale.ray_engine import engine_of
    from assay.scale.served import open_served

    check_place("--atlas", common.atlas, folder=True)
    options["factor"] = options["factor"] or None
    plan = work.HarvestPlan(tokens=tokens, seed=common.seed, **{**options, "context": options["context"] or CONTEXT})
    chosen = engine_of(engine, common.device, workers, common.note)
    opened = open_corpus(str(corpus), text_key=text_key, documents=documents)
    model = common.load(str(name), model_dtype, prepend_bos)
    plan = plan if options["context"] else replace(plan, context=readable(model))
    opener: Callable[[], Any] = opener_at(str(name), device=common.device, dtype=model_dtype, prepend_bos=prepend_bos)
    if served is not None:
        opener = partial(_served, opener, served)
        model = open_served(model, served)
    began = time.monotonic()
    with _progress(common) as report:
        found = work.harvest(model, opened, list(sites), str(out), plan, report, chosen, opener)
    record = {**record_of(found, model, time.monotonic() - began), "digest": record_harvest(Atlas(common.atlas), found)}
    if record["tokens"] < (tokens or 0):
        common.note(f"{opened.name} has only {record['tokens']} tokens for this model: all were read")
    common.emit(record, lambda: shown(record))


def _served(opener: Callable[[], Any], url: str) -> Any:
    """In a worker: the model there, read by the same server."""
    from assay.scale.served import open_served

    return open_served(opener(), url)


@contextmanager
def _progress(common: Common) -> Iterator[Callable[[str, int, int], None]]:
    """A bar that tells tokens per second beside what is done."""
    with common.progress("reading") as advance:
        done: dict[str, int] = {}
        began: dict[str, float] = {}

        def report(stage: str, tokens: int, of: int) -> None:
            done[stage] = done.get(stage, 0) + tokens
            seconds = time.monotonic() - began.setdefault(stage, time.monotonic())
            rate = f", {done[stage] / seconds:,.0f} tokens/s" if seconds > 1 else ""
            advance(f"{stage}{rate}", done[stage], of or None)

        yield report


def record_of(found: Any, model: Any, seconds: float) -> dict[str, Any]:
    """The result as plain data."""
    manifest = found.manifest
    shards = manifest["shards"]
    kept = ("sites", "sizes", "dtype", "tokens", "typical", "massive")
    return {"out": str(found.folder), "model": manifest["identity"]["model"]["model"], "corpus": manifest["identity"]["corpus"],
            **{name: manifest[name] for name in kept}, "norm_limits": manifest["limits"]["norm_limits"],
            "guards": manifest["limits"]["guards"], "skip_first": manifest["limits"]["skip_first"], "shards": len(shards),
            "resumed": found.resumed, "bytes": sum(shard["size"] for shard in shards), "seconds": seconds,
            "passport": model.passport()}  # fmt: skip


def shown(record: dict[str, Any]) -> Any:
    """The terminal's view: how much was kept, and what the massive positions hold of it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for place, column in enumerate(("site", "size", "norm limit", "first", "their variance", "massive", "their variance")):
        table.add_column(column, justify="right" if place else "left")
    for site in record["sites"]:
        limit, kinds = record["norm_limits"][site], record["massive"][site]
        cells = [site, str(record["sizes"][site]), "none" if limit is None else f"{limit:.4g}"]
        for kind in ("first", "massive"):
            cells += [str(kinds[kind]["tokens"]), f"{kinds[kind]['share_of_variance']:.1%}"]
        table.add_row(*map(Text, cells))
    resumed = f", {record['resumed']} of them there before" if record["resumed"] else ""
    head = (f"{record['tokens']:,} tokens, {record['typical']:,} of them typical, in {record['shards']} files{resumed}:"
            f" {record['bytes'] / 1e6:,.1f} MB in {record['out']} ({record['dtype']})")  # fmt: skip
    foot = ("First and massive positions are kept but marked: dictionaries are not trained on them."
            f" In the atlas as harvest {record['digest'][:12]}.")  # fmt: skip
    return Group(Text(head), table, Text(foot, style="dim"))


def show_kept(common: Common) -> None:
    """Harvests of the atlas: which model read what, where."""
    from assay.atlas.features import harvests
    from assay.atlas.store import Atlas

    rows = harvests(Atlas(common.atlas))
    common.emit(rows, lambda: "\n".join(harvest_line(row) for row in rows) or f"none in {common.atlas}")


def harvest_line(row: Mapping[str, Any]) -> str:
    """A harvest in words."""
    return (f"{row['digest'][:12]}  {row['model']} on {row['tokens']:,} tokens of {row['corpus']}, {', '.join(row['sites'])}:"
            f" {row['folder']}")  # fmt: skip


def show_list(common: Common) -> None:
    """Packaged corpora with size and licence."""
    from assay.data.corpus_packages import list_corpora

    rows = list_corpora()
    lines = [f"{row['name']:<10} {row['megabytes']:>6.1f} MB  {row['documents']:>6,} documents  {row['about']}\n"
             f"{'':<10} {row['source']}; licence: {row['licence']}; {row['path'] or 'not fetched yet'}"
             for row in rows]  # fmt: skip
    common.emit(rows, lambda: "\n".join(lines))
