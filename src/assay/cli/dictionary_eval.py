"""`assay dictionary eval DICTIONARY --model MODEL --corpus CORPUS`."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options, engine_options, model_options
from assay.errors import bad_argument

ROWS = ("FVU", "explained variance", "explained variance, mean of ratios", "explained variance, error centred",
        "FVU, all tokens", "L0", "dead", "dense", "duplicates", "CE recovered, against mean", "CE recovered, against zero",
        "KL recovered, against mean", "KL recovered, against zero", "CE", "CE, model alone", "CE, mean", "CE, zero",
        "CE, every position")  # fmt: skip
PROBE_TEXTS, CONTEXT = 200, 256
ELSEWHERE = ("engine", "workers", "figure", "seconds", "concepts", "letters")  # options that change no number that is kept


def corpus_options(command: Any) -> Any:
    """How a corpus is read, as `assay harvest` has it."""
    documents = click.option("--documents", type=click.Choice(["file", "block", "line"]),
                             help="What a document is in text files.")(command)  # fmt: skip
    return click.option("--text-key", default="text", show_default=True, help="Key or column of JSONL, CSV and Parquet.")(
        documents)  # fmt: skip


@click.command("eval")
@click.argument("dictionary", metavar="DICTIONARY")
@click.option("--model", "name", required=True, metavar="MODEL", help="The model it is of.")
@click.option("--beside", metavar="MODEL", help="The other model, of a crosscoder between two.")
@click.option("--corpus", required=True, metavar="CORPUS", help="A packaged corpus, a file, a folder; see harvest.")
@corpus_options
@click.option("--tokens", default=50_000, show_default=True, type=click.IntRange(16), help="Held-out tokens to read.")
@click.option("--loss-tokens", default=16_384, show_default=True, type=click.IntRange(0),
              help="Of them spliced, to the end of a batch; 0 for none.")  # fmt: skip
@click.option("--context", type=click.IntRange(2), help="Tokens of a text at a time. Default: 256, or what the model reads.")
@click.option("--frozen/--no-frozen", default=True, help="Beside it: the recipe with a decoder that stays random.")
@click.option("--untrained/--no-untrained", default=True, help="Beside it: the recipe on an untrained model.")
@click.option("--control-tokens", default=100_000, show_default=True, type=click.IntRange(256), help="Controls are trained on.")
@click.option("--second", "seconds", multiple=True, metavar="DICTIONARY", help="Of another seed, to compare; may be repeated.")
@click.option("--concept", "concepts", multiple=True, metavar="CONCEPT", help="Sparse probes; of three: removal (TPP), too.")
@click.option("--letters", is_flag=True, help="Absorption of first letters, on the model's own words.")
@click.option("--figure", metavar="FILE", help="Draw it: .png or .svg")
@engine_options
@model_options
@common_options
def evaluate(common: Common, dictionary: str, name: str, corpus: str, **given: Any) -> None:
    """How good is DICTIONARY on text it was not trained on, beside what needs no learning?

    DICTIONARY is a folder or file of any known format, or a name in the atlas. Documents of CORPUS that training holds
    out are read; the others train the controls. Interrupted, the same command goes on where it was.
    """
    from assay.atlas.features import record_evaluation
    from assay.atlas.store import Atlas
    from assay.data.corpora import open_corpus
    from assay.features import evaluate as ev
    from assay.features.absorption import letter_words
    from assay.features.engines import opener_at
    from assay.scale.ray_engine import engine_of

    engine = engine_of(given["engine"], common.device, given["workers"], common.note)
    opener = opener_at(name, device=common.device, dtype=given["dtype"], prepend_bos=given["prepend_bos"])
    figure_to = _figure_target(given["figure"])
    one = opened(common, dictionary)
    others = [opened(common, each) for each in given["seconds"]]
    for text, other in zip(given["seconds"], others, strict=True):
        theirs, ours = (f"{'+'.join(spec.inputs)} to {'+'.join(spec.outputs)}" for spec in (other.spec, one.spec))
        if theirs != ours or other.spec.d_out != one.spec.d_out:
            raise bad_argument("--second", f"{text}, of {theirs}, {other.spec.d_out} wide", f"{ours}, {one.spec.d_out} wide")
    texts = concept_texts(given["concepts"], common.seed)
    whole = open_corpus(corpus, text_key=given["text_key"], documents=given["documents"])
    holdout, unsure = _division(one, whole)
    model = common.load(name, given["dtype"], given["prepend_bos"])
    host = _host(common, one, model, given)
    if given["letters"]:
        letter_words(model)  # its error, before any long work
    given["context"] = given["context"] or min(map(readable, _each(host)))
    held = held_out(model, whole.part("heldout", holdout), given["context"], given["tokens"])
    if len(held.names) < 2:
        raise bad_argument("--tokens", given["tokens"], "enough for two held-out documents",
                           f"{held.n_tokens} tokens of one were read: some are for fitting, some for scores.")  # fmt: skip
    plan = ev.EvaluationPlan(loss_tokens=given["loss_tokens"], seed=common.seed)
    folder = _folder(common, one, host, whole, given)
    check_place("--atlas", folder, True)
    controls = replace(_controls(common, one, host, whole.part("train", holdout), given, folder), seeds=tuple(others))
    with common.progress("evaluating", held.n_tokens) as report:
        found = ev.evaluate(one, held, host, plan, controls, report, engine, opener, folder)
    further = _further(common, model, one, controls, texts, given["letters"], found.limits) if texts or given["letters"] else {}
    found = replace(found, further=further, notes=(*found.notes, *unsure))
    record = {**found.json(), "corpus": whole.part("heldout", holdout).record()}
    record_evaluation(Atlas(common.atlas), one.digest, record)
    common.emit(record, lambda: shown(record))
    if figure_to is not None:
        from assay.report.dictionary_figures import evaluation_figure
        from assay.report.figures import save_figure

        save_figure(evaluation_figure(found), figure_to)
        common.note(f"figure: {figure_to}")
    shutil.rmtree(folder, ignore_errors=True)


def opened(common: Common, given: str) -> Any:
    """A dictionary from a path, or of that name in the atlas."""
    from assay.atlas.features import FOLDER, safe_name
    from assay.features.formats import load_dictionary

    place = common.atlas / FOLDER
    kept = place / safe_name(given)
    if given and Path(given).exists():
        return load_dictionary(Path(given))
    if not given or not kept.is_dir():
        names = sorted(each.name for each in place.iterdir() if each.is_dir()) if place.is_dir() else []
        said = f"a file or folder that exists, or a dictionary of this atlas: {', '.join(names[:20]) or 'it has none'}"
        raise bad_argument("dictionary", given, said)
    return load_dictionary(kept)


def _division(one: Any, whole: Any) -> tuple[float, list[str]]:
    """(share of documents that was held out when the dictionary was trained, what is not known of that)."""
    from assay.data.corpora import HOLDOUT

    stream = one.provenance.get("stream") or {}
    streams = [stream, *(each for each in stream.values() if isinstance(each, Mapping))]
    trained = [each["corpus"] for each in streams if isinstance(each.get("corpus"), Mapping)]
    same = [float(each.get("holdout", 0)) for each in trained if each.get("digest") == whole.digest]
    if same and min(same) <= 0:
        said = f"{one.name} was trained on all of this corpus."
        raise bad_argument("--corpus", whole.name, "text it was not trained on", said)
    if same:
        return min(same), []
    read = " and ".join(dict.fromkeys(str(each.get("name")) for each in trained))
    told = f"It was trained on {read}, read or divided in another way" if read else "What it was trained on is not known"
    return HOLDOUT, [f"{told}: whether these texts were part of it cannot be told."]


def _host(common: Common, one: Any, model: Any, given: Mapping[str, Any]) -> Any:
    """The model, or both models of a crosscoder between two: by their digests where it knows them, else in their order."""
    from assay.features.held_out import SideBySide

    names = list(dict.fromkeys(site.partition(":")[0] for site in (*one.spec.inputs, *one.spec.outputs) if ":" in site))
    if given["beside"] is None:
        if names:
            raise bad_argument("--beside", "nothing", f"the second of its models: its sites are of {' and '.join(names)}")
        return model
    if len(names) != 2:
        raise bad_argument("--beside", given["beside"], "a crosscoder between two models", f"{one.name} reads one.")
    for option, wanted in (("--concept", given["concepts"]), ("--letters", given["letters"])):
        if wanted:
            raise bad_argument(option, "two models", "a dictionary of one model")
    if given["engine"] is not None:
        raise bad_argument("--engine", given["engine"], "no engine where two models are read")
    other = common.load(given["beside"], given["dtype"], given["prepend_bos"])
    kept = [one.provenance.get("stream", {}).get(name, {}).get("model", {}).get("digest") for name in names]
    pair = (other, model) if kept == [other.digest, model.digest] else (model, other)
    return SideBySide(dict(zip(names, pair, strict=True)))


def _each(host: Any) -> list[Any]:
    """The one model, or both."""
    from assay.features.held_out import SideBySide

    return list(host.models.values()) if isinstance(host, SideBySide) else [host]


def readable(model: Any) -> int:
    """256, or as many positions as the model has."""
    from assay.model.context import context_length

    return min(CONTEXT, context_length(model.hf) or CONTEXT)


def held_out(model: Any, corpus: Any, context: int, tokens: int) -> Any:
    """Rows of a corpus with the document of each."""
    from assay.data.corpus_rows import packed
    from assay.features.held_out import HeldOut

    rows = packed(model, corpus, context, tokens)
    return HeldOut.of([row.tokens.tolist() for row in rows], [row.name for row in rows])


def concept_texts(names: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Examples for fitting and for scores; sealed splits are left alone. A file is divided as claims divide it."""
    from assay.data.concepts import CONCEPTS, all_examples, load_concept

    found: dict[str, Any] = {}
    for name in names:
        if name in CONCEPTS:
            sides = tuple(load_concept(name, split, PROBE_TEXTS, seed) for split in ("discover", "tune"))
        else:
            splits = all_examples(name).splits
            sides = (splits["discover"], splits["tune"])
        for split, side in zip(("discover", "tune"), sides, strict=True):
            if len({example.label for example in side}) < 2:
                raise bad_argument("--concept", f"{name}, whose {split} split has one class", "members and others in both",
                                   "Give more examples, in more groups.")  # fmt: skip
        found[Path(name).stem] = sides
    return found


def _folder(common: Common, one: Any, model: Any, corpus: Any, given: Mapping[str, Any]) -> Path:
    """Where the same command finds what it had trained and measured before it was killed."""
    from assay.records import canonical

    asked = {name: value for name, value in given.items() if name not in ELSEWHERE}
    what = {"dictionary": one.digest, "model": model.digest, "corpus": corpus.record(), "seed": common.seed,
            "device": common.device, **asked}  # fmt: skip
    return common.atlas / "evaluating" / hashlib.sha256(canonical(what).encode()).hexdigest()[:16]


def _controls(common: Common, one: Any, model: Any, corpus: Any, given: Mapping[str, Any], folder: Path) -> Any:
    """Trained here, on the part of the corpus that is not held out; what is in `folder` already is not trained again."""
    from assay.evidence.hosts import untrained_model
    from assay.features import kept
    from assay.features.evaluate import Controls, same_recipe

    tokens, frozen, untrained = given["control_tokens"], None, None

    def trained(host: Any, label: str, **options: Any) -> Any:
        place = folder / label.replace(" ", "-")
        if kept.is_kept(place):
            return kept.load(place)
        stream = _stream(one, host, corpus, given, folder / f"{label.replace(' ', '-')}-acts")
        with common.progress(label) as report:
            made = same_recipe(one, stream, seed=common.seed, tokens=tokens, report=report, folder=place, **options)
        return kept.load(kept.save(made, place))

    if given["frozen"]:
        frozen = trained(model, "frozen decoder", frozen=True)
    if given["untrained"]:
        twins = [untrained_model(each, "all", common.seed + number) for number, each in enumerate(_each(model))]
        twin = replace(model, models=dict(zip(model.models, twins, strict=True))) if len(twins) > 1 else twins[0]
        untrained = (twin, trained(twin, "untrained model"))
    return Controls(frozen, untrained)


def _stream(one: Any, host: Any, corpus: Any, given: Mapping[str, Any], folder: Path) -> Any:
    """What a control is trained on: the running model; of two models harvests in `folder`, of tokens typical in both."""
    from assay.features.harvest import HarvestPlan, LiveStream, harvest
    from assay.features.shards import Shards, typical_in_all
    from assay.features.stream import Paired

    sites = list(dict.fromkeys((*one.spec.inputs, *one.spec.outputs)))
    tokens, context = given["control_tokens"], given["context"]
    if len(_each(host)) == 1:
        return LiveStream(host, corpus, sites, tokens, context=context)
    made = []
    for name, model in host.models.items():
        own = [site.removeprefix(f"{name}:") for site in sites if site.startswith(f"{name}:")]
        harvest(model, corpus, own, folder / name, HarvestPlan(tokens=tokens, context=context))
        made.append(Shards(folder / name))
    return Paired(dict(zip(host.models, typical_in_all(made), strict=True)))


def _further(
    common: Common, model: Any, one: Any, controls: Any, texts: Mapping[str, Any], letters: bool, limits: Mapping[str, Any]
) -> dict[str, Any]:
    """Concept scores of the dictionary and of its controls, as plain values; on the untrained model by limits of its own."""
    from assay.features.concept_scores import concept_scores, limits_from
    from assay.features.evaluate import FROZEN, OWN, UNTRAINED

    ways = {OWN: (model, one)}
    if controls.frozen is not None:
        ways[FROZEN] = (model, controls.frozen)
    if controls.untrained is not None:
        ways[UNTRAINED] = controls.untrained
    found = {}
    with common.progress("concepts", len(ways)) as advance:
        for name, (host, each) in ways.items():
            own = None if name == UNTRAINED else limits_from(limits)
            scores = concept_scores(host, each, texts, letters=letters, limits=own)
            probes = {concept: [asdict(probe) for probe in some] for concept, some in scores.probes.items()}
            found[name] = {"probes": probes,
                           "removal": None if scores.removal is None else asdict(scores.removal),
                           "letters": [asdict(letter) for letter in scores.letters]}  # fmt: skip
            advance(1)
    return found


def _figure_target(given: str | None) -> Path | None:
    from assay.report.figures import SUFFIXES

    if given is None:
        return None
    if Path(given).suffix.lower() not in SUFFIXES:
        raise bad_argument("--figure", given, f"a file that ends in {' or '.join(SUFFIXES)}")
    check_place("--figure", given, False)
    return Path(given)


# what is printed ---------------------------------------------------------------------------------


def shown(record: Mapping[str, Any]) -> Any:
    """The terminal's view: measures down, the dictionary and its controls across."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    columns = record["columns"]
    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column["name"].replace(" ", "\n"), justify="right")
    for row in ROWS:
        cells = [_cell(column["measures"].get(row)) for column in columns]
        if any(cells):
            table.add_row(row, *cells)
    inputs, outputs = (", ".join(record[key]) for key in ("inputs", "outputs"))
    head = (f"{record['dictionary']}: {record['architecture']}, {record['width']} latents,"
            f" {inputs if inputs == outputs else f'{inputs} to {outputs}'}; {record['typical']:,} typical of"
            f" {record['tokens']:,} held-out tokens, {record['documents']} documents")  # fmt: skip
    if predictions := record.get("predictions"):
        head += f"; losses over {predictions:,} predictions"
    parts: list[Any] = [Text(head), table, *(Text(line) for line in _lines(record))]
    return Group(*parts, *_concept_tables(record["further"]), *(Text(note, style="dim") for note in record["notes"]))


def _cell(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return ""
    value, low, high = (measure[key] for key in ("value", "low", "high"))
    if low is None or high == low:
        return f"{value:.3f}"
    even = abs(high + low - 2 * value) < 1e-6
    return f"{value:.3f} ±{(high - low) / 2:.3f}" if even else f"{value:.3f} ({low:.3f} to {high:.3f})"


def _lines(record: Mapping[str, Any]) -> list[str]:
    bits = record["bits_per_token"]
    lines = [f"bits per token: {bits['total']:.0f} = which latents {bits['which']:.0f} + values {bits['values']:.0f} + weights"
             f" {bits['weights']:.0f}"]  # fmt: skip
    for number, each in enumerate(record["agreement"]):
        pairs = ", ".join(f"{label} {each[key]:.3f} (chance {each[f'chance_{key}']:.3f})"
                          for label, key in (("matched cosine", "mcc"), ("nearest", "mmcs")))  # fmt: skip
        part = ", a part of its latents against all of the other's" if each["sampled"] else ""
        lines.append(f"second dictionary {number + 1}: {pairs}, shared {each['shared']:.0%}{part}")
    return lines


def _concept_tables(further: Mapping[str, Any]) -> list[Any]:
    """Sparse probes by concept, removal, first letters: ways across."""
    from rich.table import Table

    if not further:
        return []
    table = Table("", *further, box=None, pad_edge=False)
    own = next(iter(further.values()))
    for concept, probes in own["probes"].items():
        for place, probe in enumerate(probes):
            label = f"{concept}: {probe['features']}" + ("" if probe["k"] is None else f", k={probe['k']}") + ", AUROC"
            table.add_row(label, *(f"{way['probes'][concept][place]['auroc']:.3f}" for way in further.values()))
    for place, score in enumerate(own["removal"]["scores"] if own["removal"] else []):
        cells = [f"{way['removal']['scores'][place][1]:.3f}" for way in further.values()]
        table.add_row(f"TPP, {score[0]} latents removed", *cells)
    if own["removal"] and own["removal"]["why"]:
        table.add_row(f"TPP: not said, {own['removal']['why']}")
    for concept in [letter["concept"] for letter in own["letters"]]:
        by_way = [{letter["concept"]: letter for letter in way["letters"]}.get(concept) for way in further.values()]
        cells = ["" if each is None else f"{each['absorbed']:.3f} (silent {each['silent']:.2f}, probe {each['probe']:.2f})"
                 for each in by_way]  # fmt: skip
        table.add_row(f"absorbed, first letter {concept}", *cells)
    return [table]
