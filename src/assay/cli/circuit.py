"""`assay circuit heads|find|test|edge|show|export|import|coactive`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from assay.cli.coactive import coactive
from assay.cli.common import Common, common_options, model_options, task_source
from assay.errors import UsageError, bad_argument

FORMATS = ("assay", "eap-json", "eap-pt", "mib", "graphml")
EXIT_NOT_AS_REQUIRED = 1
SHOWN = 12


@click.group()
def circuit() -> None:
    """From a behaviour to a tested subgraph: find a circuit, test it, draw it, exchange it with other tools."""


circuit.add_command(coactive)


@circuit.command()
@click.argument("name", metavar="MODEL")
@click.argument("task", metavar="TASK", required=False)
@click.option("--file", "task_file", metavar="FILE", help="Your own task, JSONL or CSV.")
@click.option("--method", default="eap-ig", show_default=True, help="eap-ig, eap, atp, exact, information-flow or relevance")
@click.option("--level", default=None, help="edge or node. Default: edge; of atp and relevance: node.")
@click.option("--positions", default="all", show_default=True,
              help="all, or labels: nodes at classes of positions, of eap and eap-ig.")  # fmt: skip
@click.option("--target", default=0.85, show_default=True, help="Share of the effect on tune that the circuit must carry.")
@click.option("--steps", type=int, default=None, help="Of eap-ig. Default: as many as its residual asks for, pair by pair.")
@click.option("--grad-drop", is_flag=True, help="Of eap: a backward pass per layer, so that what cancels shows.")
@click.option("--n", default=20, show_default=True, help="Pairs to find it on (discover).")
@click.option("--tune", default=16, show_default=True, help="Pairs to choose its size on.")
@click.option("--confirm", default=60, show_default=True, help="Pairs the claim will be tested on.")
@click.option("--ood", default=30, show_default=True, help="Pairs of further templates it will be tested on.")
@click.option("--draws", default=19, show_default=True, help="Random circuits the claim will be compared with.")
@click.option("--corruption", default=None, help="Of a bundled task; see: assay tasks")
@click.option("--all-scores", is_flag=True, help="Keep scores of edges outside of the circuit too; a MIB folder needs them.")
@click.option("--out", metavar="DIR", help="Circuit and pictures go here instead of ATLAS/circuits.")
@model_options
@common_options
def find(
    common: Common, name: str, task: str | None, task_file: str | None, level: str | None, out: str | None, dtype: str,
    prepend_bos: bool | None, **given: Any,
) -> None:  # fmt: skip
    """Find the circuit of MODEL that carries TASK, and state the claim that it does.

    Edges (or nodes) are scored on discover, the size is chosen on tune. Nothing sealed is read: test it next. Finished
    scores are kept in the atlas: an interrupted search goes on from there.
    """
    from assay.atlas.circuits import Search, search_circuit
    from assay.atlas.store import Atlas
    from assay.circuits.find import FindPlan, level_of
    from assay.evidence.source import Source

    source = Source(task_source(task, task_file), given["corruption"])
    plan = FindPlan(given["method"], level_of(given["method"], level), given["target"], steps=given["steps"], seed=common.seed,
                    grad_drop=given["grad_drop"], positions=given["positions"])  # fmt: skip
    plan.check()
    search = Search(plan, given["n"], *(given[size] for size in ("tune", "confirm", "ood", "draws")))
    pairs = search.pairs(source)
    model = common.load(name, dtype, prepend_bos)
    store = Atlas(common.atlas)
    with common.progress("circuit") as advance:
        kept = search_circuit(store, model, source, search, pairs, advance, folder=Path(out) if out else None,
                              others=given["all_scores"])  # fmt: skip
    claim = kept.claim.id if kept.claim else ""
    paths = [kept.path, *_pictures(kept.path, kept.circuit, kept.found)]
    for warning in kept.warnings:
        common.note(f"warning: {warning}")
    again = _verdict_word(store, claim) if kept.before else None
    record = {**_record(kept, claim, paths), "stated_before": kept.before}
    common.emit(record, lambda: _found_text(kept.found, claim, name, paths, again))


def _verdict_word(store: Any, claim: str) -> str:
    """The verdict a claim has."""
    verdict = store.verdict(claim)
    return "not tested yet" if verdict is None else verdict.verdict


def _pictures(path: Path, made: Any, found: Any) -> list[Path]:
    """Write the circuit as a page and a still picture, and its curve, beside its file; where they are."""
    from assay.files import write_file
    from assay.report.circuit_figures import RandomCircuits, circuit_figure, circuit_page, faithfulness_figure
    from assay.report.figures import save_figure

    curves, points = list(found.curves.values()), found.curves["resample"].points
    random = RandomCircuits("random: matched, walks", tuple(points[n].share for n in found.controls),
                            tuple(tuple(values) for values in found.controls.values()))  # fmt: skip
    folder, stem = path.parent, path.stem
    page = folder / f"{stem}.html"
    write_file(page, circuit_page(made, curves, random).encode())
    pictures = {f"{stem}.svg": circuit_figure(made), f"{stem}-curve.svg": faithfulness_figure(curves, random),
                f"{stem}-curve.png": faithfulness_figure(curves, random)}  # fmt: skip
    return [page, *(save_figure(figure, folder / file) for file, figure in pictures.items())]


def _record(kept: Any, claim: str, paths: Sequence[Path]) -> dict[str, Any]:
    from assay.circuits.formats import circuit_json
    from assay.records import plain

    found = kept.found
    held = found.attribution
    return {
        **circuit_json(kept.circuit), "claim": claim, "warnings": list(kept.warnings), "rival": list(found.rival),
        "curves": {name: plain(curve) for name, curve in found.curves.items()},
        "controls": {found.curves["resample"].points[number].n_edges: values for number, values in found.controls.items()},
        "verified": None if found.verified is None else plain(found.verified),
        "stability": None if found.stability is None else plain(found.stability),
        "resampled": None if found.resampled is None else {**plain(found.resampled), "meets_bar": found.resampled.meets_bar[0]},
        "steps": held.steps.tolist(), "residual": held.residual.tolist(), "files": [str(path) for path in paths],
        "plan": {**asdict(found.plan), "claim": claim},
    }  # fmt: skip


def _found_text(found: Any, claim: str, name: str, paths: Sequence[Path], again: str | None = None) -> str:
    """What was found, in words. `again`: the verdict of the claim, where it was stated by an earlier search."""
    from assay.circuits.stability import BAR
    from assay.cli.circuit_measures import areas_text, curve_record

    point = found.curves["resample"].points[found.chosen]
    signed = dict(zip(found.attribution.names, found.attribution.scores.tolist(), strict=True))
    strongest = sorted(found.parts, key=lambda part: -abs(signed[part]))
    lines = [
        f"{len(found.parts)} {found.plan.level}s ({point.n_edges} of {found.graph.n_edges} edges,"
        f" {point.n_edges / found.graph.n_edges:.1%}) by {found.plan.method}",
        "share of the effect on tune that they carry alone:",
        *(f"  {how:<9} {_share(curve.points[found.chosen].f)}" for how, curve in found.curves.items()),
        f"  random circuits of the same make: {', '.join(f'{value:.0%}' for value in found.controls.get(found.chosen, []))}",
        f"  not explained: {_share(point.unexplained)}",
        *_beside(point),
        *areas_text(curve_record(found.curves["resample"])),
    ]  # fmt: skip
    if found.stability is not None:
        lines.append(f"split-half Jaccard of the top as many: {found.stability.jaccard[0].mean:.2f}"
                     f" (chance {found.stability.chance[0]:.2f})")  # fmt: skip
    if found.resampled is not None:
        said = "reached" if found.resampled.meets_bar[0] else "not reached"
        lines.append(f"Jaccard of {found.resampled.n_draws} resamples of the {found.resampled.unit}s with each other:"
                     f" {found.resampled.between[0].mean:.2f} (proposed bar {BAR}: {said})")  # fmt: skip
    if found.plan.method != "exact" and found.verified is not None and found.verified.agreement["mean"].pearson is not None:
        lines.append(f"estimates against exact patching, {len(found.verified.parts)} {found.plan.level}s:"
                     f" Pearson {found.verified.agreement['mean'].pearson:.2f}")  # fmt: skip
    lines.append("strongest:")
    lines += [f"  {label:<24} {signed[label]:+.3f}" for label in strongest[:SHOWN]]
    lines += [f"written: {path}" for path in paths]
    if again is None:
        lines.append(f"stated: {claim} (found by looking; not tested yet)")
    else:
        lines.append(f"the same circuit was stated with the same plan before: {claim} ({again}); no second claim was made")
    if again in (None, "not tested yet"):
        lines.append(f"next: assay circuit test {name} {paths[0]}")
    return "\n".join(lines)


def _beside(point: Any) -> list[str]:
    """How near a circuit's predictions are to the model's own."""
    if point.kl is None or point.agree is None:
        return []
    return [f"  same most likely token as the model on {point.agree.value:.0%} of the pairs, KL {point.kl.value:.2f} nats"]


def _share(estimate: Any) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.0%}"
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"


@circuit.command("test")
@click.argument("name", metavar="MODEL")
@click.argument("path", metavar="CIRCUIT")
@click.option("--task", default=None, help="A bundled task or a file: for a circuit that no claim is stated about yet.")
@click.option("--format", "form", default="assay", show_default=True, help="assay or eap (files of EAP-IG and MIB)")
@click.option("--tests", default=44, show_default=True,
              help="Random circuits for the tests of Shi et al., on tune pairs; 0: none. Below 44 none is shown.")  # fmt: skip
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@model_options
@common_options
def test_(
    common: Common, name: str, path: str, task: str | None, form: str, tests: int, require: str | None, dtype: str,
    prepend_bos: bool | None,
) -> None:  # fmt: skip
    """Test the claim about CIRCUIT (a file, a claim, or the name or task of a kept circuit) on sealed data, once, and decide.

    Beside the verdict: areas over sizes (CPR, CMD) of the file's curve, and the five tests of Shi et al. on tune pairs.
    They describe the circuit; the gates decide.
    """
    import sys

    from assay.atlas.circuits import check_same, keep_tested, kept_circuit
    from assay.atlas.linked import link_tested
    from assay.atlas.store import Atlas
    from assay.cli.circuit_measures import areas_record, shi_tests
    from assay.evidence.run import test_claim
    from assay.records import plain
    from assay.report.terminal import verdict_panel

    if tests < 0:
        raise bad_argument("--tests", tests, "0 or more")
    store = Atlas(common.atlas)
    named = path.startswith("c-") and not Path(path).exists()
    if named and task is not None:
        raise bad_argument("--task", task, f"nothing: {path} is a claim, which names its own")
    if not named and not Path(path).exists():
        path = str(kept_circuit(store, name, path))
    stated = store.claim(path if named else _claim_in(path, form)) if task is None else None
    model = common.load(name, dtype, prepend_bos)
    held = None if named else _read(model, path, form)
    if stated is None:
        stated = _state(common, store, model, held, str(task))
    elif held is not None:
        check_same(held, stated, Path(path))
    with common.progress("testing") as report:
        verdict = test_claim(store, stated.id, model, report)
    kept = keep_tested(store, model, stated, held)
    link_tested(store, stated.id)
    pages = [_page(Path(path), kept)] if kept else []
    areas = None if held is None else areas_record(held)
    found = shi_tests(common, store, model, stated, tests) if tests else None
    record = {**verdict.to_json(), "circuit": None if kept is None else str(kept), "files": [str(file) for file in pages],
              "areas": areas, "shi": None if found is None else {**plain(found), "against": found.against()}}  # fmt: skip
    common.emit(record, lambda: _verdict_text(verdict_panel(verdict.to_json()), pages, areas, found))
    if require and (verdict.verdict != require or "exploratory" in verdict.qualifiers):
        sys.exit(EXIT_NOT_AS_REQUIRED)


def _page(path: Path, kept: Path) -> Path:
    """The picture beside a circuit's file, else the one beside the file that the atlas keeps; drawn where there is none."""
    from assay.circuits.formats import read_circuit
    from assay.files import write_file
    from assay.report.circuit_figures import circuit_page

    beside, page = path.with_suffix(".html"), kept.with_suffix(".html")
    if path.is_file() and beside.exists():
        return beside
    if not page.exists():
        write_file(page, circuit_page(read_circuit(kept)).encode())
    return page


def _verdict_text(panel: Any, files: Sequence[Path], areas: Any = None, tests: Any = None) -> Any:
    from rich.console import Group
    from rich.text import Text

    from assay.cli.circuit_measures import areas_text, tests_text

    lines = [*([] if areas is None else areas_text(areas)), *tests_text(tests), *(f"picture: {file}" for file in files)]
    return Group(panel, *map(Text, lines))


@circuit.command()
@click.argument("name", metavar="MODEL")
@click.argument("path", metavar="CIRCUIT")
@click.argument("edge", metavar="EDGE")
@click.option("--task", default=None, help="A bundled task or a file. Default: the one of the circuit's claim, or of its file.")
@click.option("--quantifier", default="tends", show_default=True, help="tends, usually or always")
@click.option("--tune", default=24, show_default=True, help="Pairs to fix direction and sign on.")
@click.option("--confirm", default=60, show_default=True, help="Pairs to test it on.")
@click.option("--ood", default=30, show_default=True, help="Pairs of further templates to test it on.")
@click.option("--draws", default=19, show_default=True, help="Other edges of the same kind to compare it with.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@model_options
@common_options
def edge(
    common: Common, name: str, path: str, edge: str, task: str | None, quantifier: str, require: str | None, dtype: str,
    prepend_bos: bool | None, **sizes: int,
) -> None:  # fmt: skip
    """State that one EDGE of CIRCUIT (z.3.1->q.5.2) connects, test it on sealed data, once, and decide.

    The writer's output is exchanged for that of the pair's other prompt, in this reader alone: does it arrive there, and
    does the behaviour depend on it, more than on other edges of its kind and more than with another pair's value? For an
    edge that is in no circuit: assay claim state MODEL TASK EDGE --kind connects
    """
    import sys

    from assay.atlas.store import Atlas
    from assay.circuits.formats import read_circuit
    from assay.circuits.graph import graph_of
    from assay.evidence.known import state_once
    from assay.evidence.run import Settings, Statement, test_claim
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    held = read_circuit(path)
    cell = held.graph.edge(edge)
    if not bool(held.mask[cell]):
        strongest = ", ".join(str(held.graph.name(each)) for each in held.strongest()[:4])
        raise bad_argument("EDGE", edge, f"an edge of this circuit, such as {strongest}",
                           "For any other: assay claim state MODEL TASK EDGE --kind connects")  # fmt: skip
    source = _source_of(store, held, task)
    model = common.load(name, dtype, prepend_bos)
    graph_of(model).edge(edge)
    words, settings = Statement("connects", quantifier), replace(Settings(seed=common.seed), **sizes)
    with common.progress("stating the claim"):
        named = str(held.graph.name(cell))
        stated, _, before = state_once(store, model, source, named, statement=words, settings=settings)
    verdict = store.verdict(stated.id)
    if verdict is None:
        with common.progress("testing") as report:
            verdict = test_claim(store, stated.id, model, report)
    record = {**verdict.to_json(), "stated_before": before}
    common.emit(record, lambda: verdict_panel(record))
    if require and (verdict.verdict != require or "exploratory" in verdict.qualifiers):
        sys.exit(EXIT_NOT_AS_REQUIRED)


def _source_of(store: Any, held: Any, task: str | None) -> Any:
    """The pairs a circuit is about: those named, those of its claim, or the task its file names."""
    from assay.evidence.source import Source, source_of

    claim = held.plan.get("claim")
    if task is None and isinstance(claim, str) and claim in store.claim_ids():
        return source_of(store.claim(claim).task)
    if not (task or held.task):
        raise bad_argument("--task", "nothing", "the task that the circuit is about")
    return Source(task or held.task)


def _claim_in(path: str, form: str) -> str:
    from assay.circuits.formats import read_circuit

    claim = read_circuit(path).plan.get("claim") if form == "assay" else None
    if not isinstance(claim, str):
        raise UsageError(f"CIRCUIT: no claim is stated about {path}; name the task it should carry: --task TASK.")
    return claim


def _state(common: Common, store: Any, model: Any, held: Any, task: str) -> Any:
    """The claim that a circuit carries a task."""
    from assay.evidence.known import state_once
    from assay.evidence.run import Settings
    from assay.evidence.source import Source

    settings = Settings(tune=16, confirm=80, ood=40, draws=19, seed=common.seed)
    names = [str(edge) for edge in held.graph.edges(held.mask)]
    return state_once(store, model, Source(task), names, settings=settings)[0]


def _read(model: Any, path: str, form: str) -> Any:
    from assay.circuits.formats import read_circuit, read_eap
    from assay.circuits.graph import graph_of

    if form not in ("assay", "eap"):
        raise bad_argument("--format", form, "assay or eap")
    graph = graph_of(model)
    return read_circuit(path, graph) if form == "assay" else read_eap(path, graph)


@circuit.command()
@click.argument("path", metavar="CIRCUIT")
@common_options
def show(common: Common, path: str) -> None:
    """What a circuit file holds: size, strongest edges, faithfulness."""
    from assay.circuits.formats import circuit_json, read_circuit

    held = read_circuit(path)
    common.emit(circuit_json(held), lambda: _shown(held))


def _shown(held: Any) -> str:
    lines = [f"{held.model} on {held.task}: {int(held.mask.sum())} of {held.graph.n_edges} edges,"
             f" {int(held.writers.sum())} writers"]  # fmt: skip
    lines += [f"  {m.ablation:<9} {m.n_edges:>7} edges  {m.value:.0%}" for m in held.faithfulness]
    scores = [(held.graph.name(cell), float(held.scores[cell])) for cell in held.strongest()[:SHOWN]]
    lines += [f"  {edge!s:<24} {'no score' if score != score else f'{score:+.3f}'}" for edge, score in scores]
    return "\n".join(lines)


@circuit.command()
@click.argument("path", metavar="CIRCUIT")
@click.argument("target", metavar="OUT")
@click.option("--format", "form", default="eap-json", show_default=True, help=", ".join(FORMATS[1:]))
@click.option("--task", default=None, help="Name of the task in MIB folders. Default: the circuit's.")
@click.option("--model", "model_name", default=None, help="Name of the model in MIB folders. Default: the circuit's.")
@click.option("--select", default=None, help="Of MIB: nine circuits by abs or signed score. Default: one file of importances.")
@common_options
def export(
    common: Common, path: str, target: str, form: str, task: str | None, model_name: str | None, select: str | None
) -> None:
    """Write CIRCUIT as a file of another tool: EAP-IG JSON or .pt, a MIB submission folder, GraphML."""
    from assay.circuits import formats

    held = formats.read_circuit(path)
    writers = {"eap-json": formats.write_eap_json, "eap-pt": formats.write_eap_pt, "graphml": formats.write_graphml}
    if select is not None and form != "mib":
        raise bad_argument("--select", select, "nothing but with --format mib")
    if form == "mib":
        name = model_name or held.model
        written = formats.write_mib(target, held, task=task or held.task, model=name, select=select)
        if mismatch := formats.mib_mismatch(held.graph, name):
            common.note(f"note: {mismatch}")
    elif form in writers:
        written = writers[form](target, held)
    else:
        raise bad_argument("--format", form, ", ".join(FORMATS[1:]))
    common.emit({"written": str(written), "format": form}, lambda: f"written: {written}")


@circuit.command("import")
@click.argument("name", metavar="MODEL")
@click.argument("path", metavar="FILE")
@click.argument("target", metavar="OUT")
@click.option("--sign", default=None, help="What a positive score means in FILE: carries or opposes, if it does not say.")
@model_options
@common_options
def import_(common: Common, name: str, path: str, target: str, sign: str | None, dtype: str, prepend_bos: bool | None) -> None:
    """Read an EAP-IG or MIB circuit FILE for MODEL and write it as Assay's own."""
    from assay.circuits.formats import read_eap, write_circuit
    from assay.circuits.graph import graph_of

    model = common.load(name, dtype, prepend_bos)
    held = read_eap(path, graph_of(model), sign=sign)
    held = replace(held, model=model.name, digest=model.digest, d_model=model.dims.d_model)
    for note in held.notes:
        common.note(f"note: {note}")
    written = write_circuit(target, held, others=True)
    edges = int(held.mask.sum())
    common.emit({"written": str(written), "edges": edges, "notes": list(held.notes)},
                lambda: f"{edges} edges\nwritten: {written}\n"
                        f"next: assay circuit test {name} {written} --task TASK")  # fmt: skip


@circuit.command()
@click.argument("name", metavar="MODEL")
@click.argument("path", metavar="[CIRCUIT]", required=False)
@click.option("--n", default=16, show_default=True, help="Random texts, each repeated once.")
@click.option("--length", default=32, show_default=True, help="Tokens that are repeated.")
@model_options
@common_options
def heads(common: Common, name: str, path: str | None, n: int, length: int, dtype: str, prepend_bos: bool | None) -> None:
    """What do MODEL's heads look at, on random tokens that are repeated? With CIRCUIT: are those heads in it?

    Previous-token, duplicate-token and induction scores of every head: mean attention where such a head looks.
    """
    from assay.circuits.formats import read_circuit
    from assay.circuits.graph import graph_of
    from assay.circuits.head_patterns import KINDS, agreement, head_patterns, strength_of

    model = common.load(name, dtype, prepend_bos)
    strength = None if path is None else strength_of(read_circuit(path, graph_of(model)))
    with common.progress("attention patterns"):
        found = head_patterns(model, n, length, common.seed)
    agree = {} if strength is None else {kind: agreement(getattr(found, kind), strength) for kind in KINDS}
    record = {"model": name, **found.json(), **({} if strength is None else {"strength": strength.tolist(), "auroc": agree})}
    common.emit(record, lambda: _heads_text(found, strength, agree))


def _heads_text(found: Any, strength: Any, agree: Any) -> str:
    from assay.circuits.head_patterns import BAR, KINDS

    lines = [f"mean attention in the second copy of {found.length} random tokens ({found.n_texts} texts);"
             f" spread evenly it would be {found.even:.3f}"]  # fmt: skip
    for kind in KINDS:
        lines.append(f"{kind}:")
        for label, score in found.strongest(kind, 6):
            layer, head = map(int, label.split(".")[1:])
            inside = "" if strength is None else f"   in the circuit: {strength[layer, head]:.3f}"
            lines.append(f"  {label:<8} {score:.2f}{inside}")
        if agree.get(kind) is not None:
            lines.append(f"  a head above {BAR} is stronger in the circuit than one below with probability {agree[kind]:.2f}")
    lines.append("a score says where a head looks, not what it does with it: that is for patching and circuits")
    return "\n".join(lines)
