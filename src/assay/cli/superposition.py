"""`assay superposition MODEL CORPUS`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.cli.common import Common, check_place, common_options, model_options
from assay.cli.dictionary_eval import corpus_options, readable
from assay.cli.dictionary_eval import opened as open_dictionary

if TYPE_CHECKING:
    from assay.features.contexts import ContextPlan, UnitContexts, Units
    from assay.features.dictionary import Dictionary
    from assay.model.model import Model

POOL, MOMENT_TOKENS, BATCH = 400, 8192, 16  # random contexts; tokens of layer summaries; rows read at a time
AROUND = 1024  # tokens before or after one, at most
CONTEXT = 128  # tokens of a row
LABEL = "screening, not a claim: what a unit stands for is stated with: assay claim state --kind represents"


class _Rows:
    """Rows of a corpus as (token ids, what counts as one document), read anew each time."""

    def __init__(self, kept: Any, per: str) -> None:
        self.kept, self.per = kept, per

    def __iter__(self) -> Any:
        for row in self.kept:
            yield row.tokens.tolist(), row.name if self.per == "document" else row.number


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("corpus", metavar="CORPUS")
@click.option("--site", default=None, metavar="SITE", help="Units that are looked at. Default: mlp_act of the middle layer.")
@click.option("--layers", default=None, metavar="L,L:L,*", help="MLPs that are summarised. Default: that of the site.")
@click.option("--dictionary", "path", default=None, metavar="DICTIONARY",
              help="A dictionary file, or a name in the atlas: its latents beside the units.")  # fmt: skip
@click.option("--units", default=10, show_default=True, type=click.IntRange(1), help="Drawn at random from the site.")
@click.option("--unit", "named", multiple=True, type=click.IntRange(0), metavar="N", help="This unit (or latent); repeatable.")
@click.option("--negative", is_flag=True, help="Where units are most negative, not most positive.")
@click.option("--encoder", default="minilm", show_default=True, help="Contexts alike by: minilm (meaning) or tfidf (wording).")
@click.option("--tokens", default=50_000, show_default=True, type=click.IntRange(2), help="Read from the corpus at most.")
@click.option("--context", type=click.IntRange(2), help=f"Tokens of a row. Default: {CONTEXT}, or what the model reads.")
@click.option("--per", default="document", show_default=True, type=click.Choice(["document", "row"]),
              help="Contexts of a unit are from so many different ones.")  # fmt: skip
@click.option("--top", default=40, show_default=True, type=click.IntRange(8, POOL // 2), help="Contexts of a unit.")
@click.option("--before", default=16, show_default=True, type=click.IntRange(0, AROUND),
              help="Tokens before the one that fires.")  # fmt: skip
@click.option("--after", default=8, show_default=True, type=click.IntRange(0, AROUND), help="Tokens after it.")
@corpus_options
@click.option("--out", metavar="DIR", help="Pictures go here instead of ATLAS/figures.")
@model_options
@common_options
def superposition(
    common: Common, name: str, corpus: str, site: str | None, layers: str | None, path: str | None, units: int,
    named: tuple[int, ...], negative: bool, encoder: str, tokens: int, context: int | None, per: str,
    documents: str | None, text_key: str, out: str | None, dtype: str, prepend_bos: bool | None, **sizes: int,
) -> None:  # fmt: skip
    """How many unrelated concepts units of MODEL respond to on CORPUS, and how much is in superposition.

    Per unit: clusters of its top contexts that are more alike than random contexts. Per layer: dimensions filled, neurons
    active, interference. With --dictionary the same of latents, their directions, and over how many neurons each is spread.
    """
    from assay.data.corpora import open_corpus
    from assay.data.corpus_rows import packed
    from assay.features.contexts import ContextPlan, latent_units, site_units
    from assay.features.dictionary import of_another_model
    from assay.features.sentences import encoder_of
    from assay.records import digest

    folder = Path(out) if out else common.atlas / "figures"
    check_place("--atlas", common.atlas, folder=True)
    opened = open_corpus(corpus, text_key=text_key, documents=documents)
    dictionary = None if path is None else open_dictionary(common, path)
    model = common.load(name, dtype, prepend_bos)
    chosen = encoder_of(encoder)
    looked = site or f"mlp_act.{model.n_layers // 2}"
    sign = -1 if negative else 1
    plan = ContextPlan(top=sizes["top"], sample=0, before=sizes["before"], after=sizes["after"], seed=common.seed)
    sources: list[Units] = [site_units(model, looked, _drawn(site_units(model, looked).only, units, named, common.seed), sign)]
    if dictionary is not None:
        sources.append(latent_units(model, dictionary, _drawn(range(dictionary.width), units, named, common.seed)))
        if other := of_another_model(dictionary, model.passport()):
            common.note(other)
    summarised = _layer_numbers(model, layers, looked)
    kept = packed(model, opened, context or min(CONTEXT, readable(model)), tokens=tokens)
    rows = _Rows(kept, per)
    found = [_contexts(common, source, rows, plan) for source in sources]
    record: dict[str, Any] = {
        "label": LABEL, "model": model.name, "corpus": opened.record(), "tokens": kept.n_tokens, "per": per,
        "site": looked, "sign": sign,
        "encoder": chosen.record, "plan": vars(plan), **_polysemy(common, model, found, rows, plan, chosen),
        "layers": _layers(common, model, summarised, kept),
        "dictionary": None if dictionary is None else _geometry(model, dictionary), "passport": model.passport(),
    }  # fmt: skip
    told = {"model": model.digest, **{key: value for key, value in record.items() if key not in ("found", "passport")}}
    stem = f"superposition-{Path(name).name}-{looked}-{digest(told)[:8]}"  # no two results in one picture
    record["figures"] = [str(file) for file in _figures(record, dictionary, folder, stem)]
    common.emit({key: value for key, value in record.items() if key != "found"}, lambda: shown(record))


def _drawn(known: Sequence[int], n: int, named: Sequence[int], seed: int) -> list[int]:
    """The units that were named, else so many at random."""
    if named:
        return list(named)
    import numpy as np

    return sorted(np.random.default_rng([seed, 33]).permutation(len(known))[:n].tolist())


def _contexts(common: Common, source: "Units", rows: _Rows, plan: "ContextPlan") -> "tuple[UnitContexts, ...]":
    from assay.features.contexts import read_contexts

    with common.progress(f"reading {source.names[0].rpartition('.')[0]}", rows.kept.n_tokens) as advance:
        return read_contexts(source, rows, plan, advance).units


def _polysemy(
    common: Common, model: "Model", found: Sequence[Any], rows: _Rows, plan: "ContextPlan", encoder: Any
) -> dict[str, Any]:
    """{"units", "latents", "too_few", "found"}; units with fewer than 8 different contexts are named, not judged."""
    from assay.errors import TaskError
    from assay.features.contexts import random_contexts, texts_of
    from assay.features.polysemy import FEWEST, polysemy, unit_texts
    from assay.records import plain

    pool = list(dict.fromkeys(texts_of(model, random_contexts(rows, POOL, plan))))
    most = len(pool) // 2
    if most < plan.top:
        common.note(f"--top {plan.top}: the corpus gives {len(pool)} random contexts, so each unit has {most} at most."
                    " Read more of it (--tokens), or take several of one document (--per row).")  # fmt: skip
    if most < FEWEST:
        raise TaskError(f"the corpus gives {len(pool)} random contexts, one per {rows.per}; {2 * FEWEST} are needed at least."
                        " Read more of it (--tokens), or take several of one document (--per row).")  # fmt: skip
    every = [unit_texts(model, unit, most) for group in found for unit in group]
    able = [unit for unit in every if len(unit.texts) >= FEWEST]
    with common.progress("comparing contexts", len(able)) as advance:
        told = polysemy(able, encoder, pool, progress=advance) if able else []
    records = [plain(one) for one in told]
    latents = [one for one in records if one["unit"].startswith("latent.")]
    return {"random_contexts": len(pool), "units": [one for one in records if one not in latents], "latents": latents,
            "too_few": [unit.name for unit in every if len(unit.texts) < FEWEST], "found": told}  # fmt: skip


def _layer_numbers(model: "Model", layers: str | None, site: str) -> list[int]:
    from assay.errors import SiteError, bad_argument
    from assay.sites import parse_site

    if layers is not None:
        try:
            sites = model.sites([f"mlp_act.{part.strip()}" for part in layers.split(",")])
        except SiteError as error:
            raise bad_argument("--layers", layers, f"layers of 0 to {model.n_layers - 1}: 3, 2:5, *", str(error)) from error
        return [found.layer for found in sites if found.layer is not None]
    layer = parse_site(site).resolve(model.n_layers).layer
    return [] if layer is None else [layer]


def _layers(common: Common, model: "Model", layers: Sequence[int], rows: Any) -> list[dict[str, Any]]:
    from itertools import islice

    from assay.features.superposition import layer_summaries

    if not layers:
        return []
    width = max(1, int(rows.lengths.max()))
    few = [rows.tokens(row).tolist() for row in islice(range(len(rows)), max(1, MOMENT_TOKENS // width))]
    with common.progress("summing layers", len(few)) as advance:
        batches = [few[start : start + BATCH] for start in range(0, len(few), BATCH)]
        return [vars(one) for one in layer_summaries(model, _told(batches, advance), layers)]


def _told(batches: Sequence[Any], advance: Any) -> Any:
    for batch in batches:
        yield batch
        advance(len(batch))


def _geometry(model: "Model", dictionary: "Dictionary") -> dict[str, Any]:
    """Directions of a dictionary: interference, and over how many neurons latents are spread."""
    from assay.features.superposition import interference, neuron_outputs, random_spread, spread_over_neurons
    from assay.sites import parse_site

    directions, outputs = dictionary.directions(), dictionary.spec.outputs
    several = int((directions.norm(dim=1) > 0).sum()) > 1
    found: dict[str, Any] = {"name": dictionary.name, "digest": dictionary.digest, "width": dictionary.width,
                             "interference": vars(interference(directions)) if several else None, "neurons": None}  # fmt: skip
    site = parse_site(outputs[0]) if len(outputs) == 1 else None
    if site is None or site.layer is None or site.name not in ("mlp_act", "mlp_out", "resid_post"):
        return found
    spread = spread_over_neurons(directions, None if site.name == "mlp_act" else neuron_outputs(model, site.layer))
    low, middle, high = spread.double().quantile(spread.new_tensor([0.05, 0.5, 0.95]).double()).tolist()
    found["neurons"] = {"layer": site.layer, "n": model.dims.d_mlp, "median": middle, "low": low, "high": high,
                        "random": random_spread(model.dims.d_mlp)}  # fmt: skip
    return found


def _figures(record: dict[str, Any], dictionary: "Dictionary | None", folder: Path, stem: str) -> list[Path]:
    from assay.features.superposition import Interference
    from assay.report.figures import save_figure
    from assay.report.superposition_figures import concepts_plot, interference_plot

    made = {}
    if record["found"]:
        made["concepts"] = concepts_plot(record["found"], f"{record['model']}, {record['encoder']['name']}")
    if dictionary is not None and record["dictionary"]["interference"]:
        made["interference"] = interference_plot(Interference(**record["dictionary"]["interference"]), dictionary.name)
    return [save_figure(figure, folder / f"{stem}-{kind}{suffix}")
            for kind, figure in made.items() for suffix in (".png", ".svg")]  # fmt: skip


# words -------------------------------------------------------------------------------------------


def shown(record: dict[str, Any]) -> Any:
    """The terminal's view."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.report.cells import visible

    head = f"{record['tokens']} tokens of {record['corpus']['name']}; compared with {record['random_contexts']} random contexts"
    parts: list[Any] = [Text(head), Text(record["label"], style="dim")]
    units = Table("unit", "contexts", "concepts", "95%", "p", "", "token", "what they are about", box=None, pad_edge=False)
    for one in (*record["units"], *record["latents"]):
        about = "; ".join(" ".join(concept["words"]) for concept in one["found"])
        token = "" if one["token"] is None else f"{visible(one['token'], 12)} {one['token_share']:.0%}"
        units.add_row(*map(Text, (one["unit"], str(one["n"]), str(one["concepts"]), f"{one['low']} to {one['high']}",
                                  f"{one['p']:.2g}", one["label"], token, visible(about, 60))))  # fmt: skip
    parts.append(units)
    if record["too_few"]:
        parts.append(Text(f"too few contexts to say anything: {', '.join(record['too_few'])}", style="dim"))
    parts += [Text(line) for line in (*map(layer_line, record["layers"]), *dictionary_lines(record["dictionary"]))]
    return Group(*parts, *(f"picture: {file}" for file in record["figures"]))


def layer_line(one: dict[str, Any]) -> str:
    """One layer in words."""
    return (f"layer {one['layer']}: a token is spread over {one['neurons_per_token']:.0f} of {one['n_neurons']} neurons;"
            f" activations fill {one['filled']:.0f} dimensions (the stream {one['stream_filled']:.0f} of {one['d_model']});"
            f" squared cosines of neuron outputs {one['output_interference']:.2f} x random; kurtosis {one['kurtosis']:.1f}")


def dictionary_lines(one: dict[str, Any] | None) -> list[str]:
    """A dictionary's directions in words."""
    if one is None:
        return []
    cosines, neurons = one["interference"], one["neurons"]
    lines = [f"{one['name']}: {cosines['n']} directions in {cosines['d']} dimensions; the nearest other one has |cosine|"
             f" {cosines['nearest']:.2f} in the mean (random {cosines['random_nearest']:.2f})" if cosines else
             f"{one['name']}: it has no two directions that are not zero, so nothing interferes"]  # fmt: skip
    if neurons:
        lines.append(f"a latent is spread over {neurons['median']:.0f} neurons of layer {neurons['layer']} (90% of them"
                     f" {neurons['low']:.0f} to {neurons['high']:.0f}; random directions {neurons['random']:.0f})")  # fmt: skip
    return lines
