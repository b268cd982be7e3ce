"""`assay trace`: the attribution graph of one prompt, through transcoders."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from assay.cli.common import Common, common_options, model_options
from assay.errors import bad_argument

SHOWN = 12
TRACING = ("nodes", "edges", "logits", "mass", "targets", "most", "similar", "validate")
SUFFIX = {"assay": ".json", "neuronpedia": ".neuronpedia.json", "graphml": ".graphml"}


@click.command()
@click.argument("name", metavar="MODEL", required=False)
@click.option("--prompt", default=None, help="The text whose next token is explained.")
@click.option("--dictionaries", "folders", metavar="DIR", multiple=True,
              help="A transcoder, or a folder of them; repeatable. Default: what comes with a packaged model.")  # fmt: skip
@click.option(
    "--from", "source", metavar="FILE", help="Instead of a model: a graph file, of Assay, circuit-tracer or Neuronpedia."
)
@click.option("--format", "form", default="assay", show_default=True, help="assay, neuronpedia or graphml")
@click.option("--nodes", default=0.8, show_default=True, help="Share of influence that the nodes kept must have.")
@click.option("--edges", default=0.98, show_default=True, help="Share of edge influence that the edges kept must have.")
@click.option("--logits", default=10, show_default=True, help="Most logits to explain.")
@click.option("--mass", default=0.95, show_default=True, help="Probability that the logits explained need not exceed.")
@click.option("--target", "targets", multiple=True, help="A token to explain instead, as it follows the prompt.")
@click.option("--most", default=8192, show_default=True, help="Most latents to trace.")
@click.option("--similar", default=0.7, show_default=True, help="Cosine from which latents are proposed as one group.")
@click.option("--validate", default=16, show_default=True, help="Latents to change in the model to test the graph; 0: none.")
@click.option("--out", metavar="DIR", help="Graph, page and picture go here instead of ATLAS/graphs.")
@model_options
@common_options
def trace(
    common: Common, name: str | None, prompt: str | None, folders: tuple[str, ...], source: str | None, form: str,
    dtype: str, prepend_bos: bool | None, out: str | None, **given: Any,
) -> None:  # fmt: skip
    """Which latents make MODEL say what it says next after --prompt: an attribution graph.

    MLPs are replaced by transcoders and their errors; attention patterns and norms are held as they are on this prompt. The
    graph is tested by switching latents off in the model.
    """
    from assay.circuits.trace_formats import FORMATS

    if form not in FORMATS:
        raise bad_argument("--format", form, ", ".join(FORMATS))
    folder = common.atlas / "graphs" if out is None else Path(out)
    if source is not None:
        graph = _read(source, name, prompt, folders)
    else:
        graph = _traced(common, name, prompt, folders, dtype, prepend_bos, given)
    paths = _write(folder, graph, form)
    if source is None:
        _keep(common, graph, paths[0])
    for note in graph.notes:
        common.note(f"note: {note}")
    common.emit(_record(graph, paths), lambda: _text(graph, paths))


def _read(source: str, name: str | None, prompt: str | None, folders: Sequence[str]) -> Any:
    from assay.circuits.trace_formats import read_trace

    if name is not None or prompt is not None or folders:
        raise bad_argument("--from", "a file and a model, prompt or dictionaries", "a file alone", "It holds its own.")
    context = click.get_current_context()
    said = [f"--{name.removesuffix('s') if name == 'targets' else name}" for name in TRACING
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]  # fmt: skip
    if said:
        raise bad_argument("--from", f"a file and {', '.join(said)}", "a file alone", "It was traced and pruned already.")
    return read_trace(source)


def _traced(
    common: Common, name: str | None, prompt: str | None, folders: Sequence[str], dtype: str, prepend_bos: bool | None,
    given: dict[str, Any],
) -> Any:  # fmt: skip
    """The pruned graph, with groups proposed and its test."""
    from dataclasses import replace

    from assay.circuits.trace import TracePlan, decoders_of, trace
    from assay.circuits.trace_graph import check_cosine, check_shares, suggest_supernodes
    from assay.circuits.trace_validate import ValidatePlan, validate_trace

    if prompt is not None and not prompt:
        raise bad_argument("--prompt", prompt, "a text of one token or more")
    if "" in folders:
        raise bad_argument("--dictionaries", "", "a folder or file that exists")
    if name is None or prompt is None:
        raise bad_argument(
            "MODEL, --prompt", "not both", "both, or --from FILE", 'Try: assay trace MODEL --prompt "The capital of"'
        )
    plan = TracePlan(given["logits"], given["mass"], given["most"])
    plan.check()
    check_shares(given["nodes"], given["edges"])
    check_cosine(given["similar"])
    if given["validate"] < 0:
        raise bad_argument("--validate", given["validate"], "0 or more")
    dictionaries = load_transcoders(name, folders)
    model = common.load(name, dtype, prepend_bos)
    plan = replace(plan, targets=tuple(_token(model, prompt, text) for text in given["targets"]))
    with common.progress("tracing") as advance:
        whole = trace(model, prompt, dictionaries, plan, progress=advance)
    graph = whole.prune(given["nodes"], given["edges"])
    graph = graph.grouped(suggest_supernodes(graph, decoders_of(graph, dictionaries), given["similar"]))
    if given["validate"] and bool(whole.of("latent").any()):
        with common.progress("testing", 2 * given["validate"]) as advance:
            found = validate_trace(
                model, dictionaries, whole, ValidatePlan(given["validate"], seed=common.seed), progress=advance
            )
        graph = replace(graph, validation=found.json())
    return graph


def load_transcoders(name: str, folders: Sequence[str]) -> list[Any]:
    """Transcoders in folders, or those that come with a packaged model, by layer. Raises UsageError when there are none."""
    from assay.circuits.trace_run import is_transcoder
    from assay.features.kept import shipped

    found = [d for folder in folders for d in _in(Path(folder))] if folders else shipped(name)
    kept = [d for d in found if is_transcoder(d)]
    if not kept:
        what = f"{len(found)} dictionaries, no transcoder" if found else "no dictionaries"
        where = "in " + ", ".join(folders) if folders else f"shipped for {name}"
        raise bad_argument("--dictionaries", f"{what} {where}", "folders of transcoders, mlp_in.L to mlp_out.L",
                           "Train some: assay dictionary train --help")  # fmt: skip
    return sorted(kept, key=lambda d: int(d.spec.outputs[0].split(".")[1]))


def _in(path: Path) -> list[Any]:
    """The dictionary at a path, of any known format, or those in a folder."""
    from assay.features.formats import FORMATS, circuit_tracer, load_dictionary
    from assay.features.kept import JSON

    def known(place: Path) -> bool:
        return any(one.recognises(place) for one in FORMATS)

    if not path.exists():
        raise bad_argument("--dictionaries", str(path), "a folder or file that exists")
    if files := circuit_tracer.layers(path):
        return [load_dictionary(file) for file in files]
    if path.is_file() or known(path):
        return [load_dictionary(path)]
    inside = sorted(found.parent for found in path.glob(f"**/{JSON}")) or [
        place for place in sorted(path.iterdir()) if known(place)
    ]
    return [load_dictionary(place) for place in inside]


def _token(model: Any, prompt: str, text: str) -> int:
    """The one token that a text is after the prompt."""
    before, after = model.tokens([prompt, prompt + text])
    if after[: len(before)] != before or len(after) != len(before) + 1:
        raise bad_argument("--target", text, "a text that is one token after the prompt, leading space included")
    if after[-1] == model.tokenizer.unk_token_id and text != model.tokenizer.unk_token:
        raise bad_argument("--target", text, "a token that the model has", f"It is {model.tokenizer.unk_token} for this one.")
    return after[-1]


def _write(folder: Path, graph: Any, form: str) -> list[Path]:
    from assay.circuits.trace_formats import slug, trace_json, write_trace
    from assay.files import write_file
    from assay.records import digest
    from assay.report.figures import save_figure
    from assay.report.trace_figures import title_of, trace_figure, trace_page

    stem = f"{slug(f'{Path(graph.model).name} {title_of(graph)}')}-{digest(trace_json(graph))[:8]}"  # no two graphs in one file
    written = [write_trace(folder / f"{stem}{SUFFIX[form]}", graph, form)]
    page = folder / f"{stem}.html"
    write_file(page, trace_page(graph).encode())
    return [*written, page, save_figure(trace_figure(graph), folder / f"{stem}.svg")]


def _keep(common: Common, graph: Any, path: Path) -> None:
    """A row of the atlas: what its page says first."""
    from assay.atlas.features import record_graph
    from assay.atlas.linked import link_graph
    from assay.atlas.store import Atlas
    from assay.circuits.trace_formats import trace_json
    from assay.records import digest

    record = trace_json(graph)
    body = {key: value for key, value in record.items() if key not in ("nodes", "edges")}
    name = digest(record)[:16]
    record_graph(Atlas(common.atlas), name, graph.model, str(graph.prompt), path, body)
    link_graph(Atlas(common.atlas), name, graph)


def _record(graph: Any, paths: Sequence[Path]) -> dict[str, Any]:
    from assay.circuits.trace_formats import trace_json

    return {**trace_json(graph), "files": [str(path) for path in paths]}


def _text(graph: Any, paths: Sequence[Path]) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.report.trace_figures import about, label_of, scores_words, title_of, validation_rows

    counts = {kind: int(graph.of(kind).sum()) for kind in ("latent", "error")}
    lines = [f"{graph.model}: {title_of(graph)}",
             f"{counts['latent']} latents and {counts['error']} errors kept, {graph.n_edges} direct effects",
             scores_words(graph)]  # fmt: skip
    logits = [node for node in graph.nodes if node.kind == "logit"]
    lines += ["", "what would come next"] + [
        f"  {node.probability or 0:6.1%}  {label_of(graph, node)}" for node in logits[:SHOWN]
    ]
    parts: list[Any] = [Text("\n".join(lines))]
    order = [at for at in graph.influence.argsort(descending=True).tolist() if graph.nodes[at].kind == "latent"]
    if order:
        table = Table("latent", "where", "influence", title="The most influential latents", title_justify="left")
        for at in order[:SHOWN]:
            node = graph.nodes[at]
            table.add_row(Text(label_of(graph, node)), Text(about(graph, node)), f"{float(graph.influence[at]):.3g}")
        parts.append(table)
    if graph.validation:
        table = Table("changes of", "Pearson", "Spearman", "slope", "n", "pairs", title_justify="left",
                      title="Latents switched off in the model: predicted against measured")  # fmt: skip
        for row in validation_rows(graph):
            table.add_row(row["what"], row["pearson"], row["spearman"], row["slope"], row["n"], row["pairs"])
        parts.append(table)
    parts.append(Text("\n".join(f"written: {path}" for path in paths)))
    return Group(*parts)
