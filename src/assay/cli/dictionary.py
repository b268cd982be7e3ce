"""`assay dictionary train|eval|encode|import|export|show|list`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import click

from assay.cli.common import Common, common_options, engine_options, model_options
from assay.cli.dictionary_eval import corpus_options, evaluate, readable
from assay.cli.dictionary_files import export, import_, show
from assay.errors import bad_argument

LIVE_TOKENS, ANY_LAYERS = 1_000_000, 10_000
WITHOUT_K = "relu, gated, jumprelu with --option penalty=tanh"


@click.group()
def dictionary() -> None:
    """Dictionaries of features: train and judge SAEs, transcoders and crosscoders, exchange them with other tools."""


for command in (evaluate, export, import_, show):
    dictionary.add_command(command)


@dictionary.command()
@click.argument("harvest", metavar="[HARVEST]", required=False)
@click.option("--beside", metavar="HARVEST", help="With --architecture crosscoder: of another model, of the same texts.")
@click.option("--model", "model_name", metavar="MODEL", help="With --corpus, instead of HARVEST: train on the running model.")
@click.option("--corpus", metavar="CORPUS", help="A packaged corpus, a file, a folder, hub:NAME. See: assay harvest --list")
@corpus_options
@click.option("--site", "inputs", multiple=True, metavar="SITE", help="What is read: resid_post.15, mlp_in.* and so on.")
@click.option("--target", "outputs", multiple=True, metavar="SITE", help="What is reconstructed. Default: what is read.")
@click.option("--architecture", default="topk", show_default=True, help="batchtopk, matryoshka, jumprelu, relu, gated, ...")
@click.option("--width", "widths", default="4096", show_default=True, help="Latents. Several, comma-separated, for a sweep.")
@click.option("--k", "ks", default="32", show_default=True,
              help="Active latents per token. Several for a sweep. none (relu, gated, jumprelu with penalty=tanh): as many as"
              " --sparsity leaves.")  # fmt: skip
@click.option("--skip", is_flag=True, help="A linear path beside the latents (transcoders).")
@click.option("--tokens", default=0, help="To train on. Default: one pass over HARVEST; 1,000,000 of a running model.")
@click.option("--batch", default=2048, show_default=True, help="Tokens of a step.")
@click.option("--lr", default=3e-3, show_default=True, help="Learning rate, after the warm-up.")
@click.option("--sparsity", default=0.05, show_default=True,
              help="Weight of the penalty of relu, gated and jumprelu: fixed with --k none, else moved until k are active"
              " (but fixed for jumprelu's own penalty).")  # fmt: skip
@click.option("--optimiser", default="adam", show_default=True, help="adam or signum")
@click.option("--context", type=int, help="Tokens of a text at a time, of a running model. Default: 256, or what it reads.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Further settings of the architecture.")
@click.option("--name", default="", help="Of the dictionary in the atlas. Default: site, architecture, width, k.")
@click.option("--each", is_flag=True, help="A dictionary of its own for each site (and its target), all in one pass.")
@click.option("--divide", type=click.Choice(["batch", "latents"]), default="batch", show_default=True,
              help="With torchrun: what each process has a part of. latents: topk, batchtopk, relu, jumprelu.")  # fmt: skip
@click.option("--kept-as", default="fp32", show_default=True, help="fp32 or fp16")
@model_options
@common_options
def train(common: Common, harvest: str | None, model_name: str | None, corpus: str | None, **given: Any) -> None:
    """Train dictionaries on HARVEST (a folder that assay harvest made), or on a running model. Several widths or k share
    one pass. Interrupted, the same command goes on from its last kept state, and ends with the same numbers. In several
    processes: torchrun --nproc-per-node N -m assay dictionary train HARVEST ..."""
    from assay.atlas.features import check_names, keep_dictionary
    from assay.atlas.store import Atlas
    from assay.features import train as training
    from assay.features.kept import read_record
    from assay.scale.training import joined

    stream, model = _stream(common, harvest, given.pop("beside"), model_name, corpus, given)
    plan = training.TrainPlan(tokens=given["tokens"] or stream.n_tokens, batch=given["batch"], lr=given["lr"],
                              sparsity=given["sparsity"], optimiser=given["optimiser"], seed=common.seed)  # fmt: skip
    specs = _specs(stream, given)
    several = len(specs) > (len({spec.inputs for spec in specs}) if given["each"] else 1)
    names = [_name(spec, given["name"], several, given["each"]) for spec in specs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise bad_argument("--width, --k, --site", f"two dictionaries {twice[0]!r}", "each width, k and site once")
    if 0 < given["tokens"] < plan.batch:
        raise bad_argument("--tokens", given["tokens"], f"{plan.batch} or more, one batch", "Or a smaller --batch.")
    if stream.n_tokens < plan.batch:
        common.note(f"{stream.n_tokens:,} tokens are fewer than a batch of {plan.batch:,}: each is seen several times in one.")
    folder = common.atlas / "training" / names[0]
    with joined(given["divide"], common.device) as group:
        first = group.rank == 0
        store = Atlas(common.atlas) if first else None
        if store is not None and not (folder / training.CHECKPOINT).is_file():  # else some are kept, perhaps: the same ones
            check_names(store, names, given["kept_as"])
        with replace(common, quiet=common.quiet or not first).progress("training", plan.steps) as report:
            found = training.train(stream, specs, plan, folder, report, names, keep=True)
    if store is None:
        return
    folders = [keep_dictionary(store, one.dictionary, model, given["kept_as"]) for one in found]
    training.forget(folder)
    rows = [{"name": one.dictionary.name, "folder": str(folder), "digest": read_record(folder)["digest"],
             "spec": one.dictionary.spec.json(), "history": [asdict(line) for line in one.history], "seconds": one.seconds}
            for one, folder in zip(found, folders, strict=True)]  # fmt: skip
    common.emit({"dictionaries": rows, "plan": asdict(plan)}, lambda: _trained_text(rows))


def _stream(
    common: Common, harvest: str | None, beside: str | None, model: str | None, corpus: str | None, given: dict[str, Any]
) -> Any:
    """The stream to train on, and the name of its model."""
    if (harvest is None) == (model is None or corpus is None):
        raise bad_argument("HARVEST, --model, --corpus", "both or neither", "HARVEST, or --model and --corpus",
                           "Make one: assay harvest MODEL CORPUS --site S --out DIR")  # fmt: skip
    if beside is not None and (harvest is None or given["architecture"] != "crosscoder"):
        raise bad_argument("--beside", beside, "a second harvest, with HARVEST and --architecture crosscoder")
    if harvest is not None:
        from assay.features.shards import Shards

        check_device(common, "cpu", "cuda")
        shards = Shards(harvest)
        return _paired(harvest, beside) if beside else shards, str(shards.record["model"]["model"])
    from assay.data.corpora import open_corpus
    from assay.features.harvest import LiveStream

    sites = list(dict.fromkeys([*given["inputs"], *given["outputs"]]))
    if not sites:
        raise bad_argument("--site", "none", "a site of the model, e.g. resid_post.15", "See: assay model check MODEL")
    loaded = common.load(str(model), given["dtype"], given["prepend_bos"])
    found = [str(site) for site in loaded.sites(sites)]
    tokens = given["tokens"] or LIVE_TOKENS
    context = readable(loaded) if given["context"] is None else given["context"]
    whole = open_corpus(str(corpus), text_key=given["text_key"], documents=given["documents"])
    return LiveStream(loaded, whole.part("train"), found, tokens, context=context), str(model)


def _paired(harvest: str, beside: str) -> Any:
    """Two harvests of the same texts; sites of each begin with the name of its folder."""
    from pathlib import PurePosixPath

    from assay.features.shards import Shards, typical_in_all
    from assay.features.stream import Paired

    names = [PurePosixPath(place).name for place in (harvest, beside)]
    if names[0] == names[1]:
        raise bad_argument("--beside", beside, "a folder of another name", f"Sites are told apart by it: {names[0]}:SITE.")
    return Paired(dict(zip(names, typical_in_all([Shards(harvest), Shards(beside)]), strict=True)))


def check_device(common: Common, *kinds: str) -> None:
    """Raises UsageError for a device that would not be used: without a model not every kind is."""
    if common.device.partition(":")[0] not in kinds:
        raise bad_argument("--device", common.device, f"{' or '.join(kinds)} with HARVEST", "Only models run on other devices.")


def _specs(stream: Any, given: dict[str, Any]) -> list[Any]:
    """One spec for each width and k, and with --each for each site."""
    from assay.features.stream import Paired

    both = isinstance(stream, Paired)
    inputs = _sites(stream, given["inputs"]) or tuple(stream.sites if both else stream.sites[:1])
    outputs = _sites(stream, given["outputs"]) or inputs
    if not given["inputs"] and len(stream.sites) > 1 and not both:
        raise bad_argument("--site", "none", ", ".join(stream.sites), "HARVEST has several.")
    if not given["each"]:
        return _specs_of(stream, inputs, outputs, given)
    if len(inputs) != len(outputs):
        raise bad_argument("--each", f"{len(inputs)} sites and {len(outputs)} targets", "a target for each site")
    pairs = zip(inputs, outputs, strict=True)
    return [spec for one, other in pairs for spec in _specs_of(stream, (one,), (other,), given)]


def _specs_of(stream: Any, inputs: tuple[str, ...], outputs: tuple[str, ...], given: dict[str, Any]) -> list[Any]:
    import assay.features.architectures  # noqa: F401  (registers them)
    from assay.features.dictionary import ARCHITECTURES, Spec, make_dictionary

    d_in, d_out = (sum(stream.sizes[site] for site in sites) for sites in (inputs, outputs))
    options = dict(_option(text) for text in given["options"])
    architecture = given["architecture"]
    if architecture == "crosscoder" and len(inputs) == 1:
        raise bad_argument("--site", inputs[0], "two sites or more for a crosscoder")
    if architecture == "crosscoder":
        options.setdefault("sizes", [stream.sizes[site] for site in inputs])
    if architecture in ("clt", "clt_jumprelu"):
        options.setdefault("layers", len(inputs))
    found = [Spec(architecture, width, d_in, d_out, k, inputs, outputs, inputs == outputs, given["skip"], options=options)
             for width in _numbers("--width", given["widths"]) for k in _active(given["ks"])]  # fmt: skip
    if not ARCHITECTURES.get(architecture).trains:
        raise bad_argument("--architecture", architecture, "one that trains", "It is only read from files.")
    for spec in found:
        made = make_dictionary(spec)  # its own errors, before any long work
        if spec.k is None and not made.steered:
            raise bad_argument("--k", "none", f"1 to {spec.width} for this {architecture}", f"Without k: {WITHOUT_K}.")
    return found


def _sites(stream: Any, given: Sequence[str]) -> tuple[str, ...]:
    """Sites as the stream names them; `mlp_in.*` and `resid_post.3:9` are all of them that it has."""
    from fnmatch import fnmatchcase

    from assay.sites import parse_site, parse_sites

    found: list[str] = []
    for text in given:
        if text in stream.sites:
            names = [text]
        elif "*" in text:
            names = [site for site in stream.sites if fnmatchcase(site, text)]
        elif ":" in text:
            names = [str(site) for site in parse_sites(text, ANY_LAYERS, {})]
        else:
            names = [str(parse_site(text))]
        if not names or not set(names) <= set(stream.sites):
            raise bad_argument("--site, --target", text, ", ".join(stream.sites), "Only harvested sites can be trained on.")
        found += names
    if twice := [site for site in found if found.count(site) > 1]:
        raise bad_argument("--site, --target", ", ".join(found), "each site once", f"{twice[0]} is there several times.")
    return tuple(found)


def _active(text: str) -> list[int | None]:
    """What --k asks for; None for none."""
    return [None if part.strip() == "none" else _numbers("--k", part)[0] for part in text.split(",")]


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in str(text).split(",")]
    except ValueError as error:
        raise bad_argument(option, text, "whole numbers, comma-separated") from error
    if not found or min(found) < 1:
        raise bad_argument(option, text, "1 or more")
    return found


def _option(text: str) -> tuple[str, Any]:
    import json

    name, equals, value = text.partition("=")
    if not equals:
        raise bad_argument("--option", text, "NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _name(spec: Any, given: str, several: bool, each: bool) -> str:
    sites = "+".join(spec.inputs) + ("" if spec.inputs == spec.outputs else "-to-" + "+".join(spec.outputs))
    sizes = f"{spec.width}" + ("" if spec.k is None else f"-k{spec.k}")
    if not given:
        return f"{sites if len(sites) < 60 else sites[:57] + '...'}-{spec.architecture}-{sizes}"
    if each:
        given = f"{given}-{spec.inputs[0]}"
    return f"{given}-{sizes}" if several else given


def _trained_text(rows: Sequence[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        last = row["history"][-1]
        lines.append(f"{row['name']}: FVU {last['fvu']:.3f}, L0 {last['l0']:.1f}, dead {last['dead']:.1%} after"
                     f" {last['tokens']:,} tokens ({row['seconds']:.0f} s)\n  written: {row['folder']}")  # fmt: skip
    lines.append("these are figures of training batches, not of held-out text, and say nothing about what latents mean\n"
                 + (f"next: assay dictionary show {rows[0]['folder']}" if rows[0]["spec"]["architecture"] == "crosscoder" else
                    f"next: assay dictionary eval {rows[0]['folder']} --model MODEL --corpus CORPUS"))  # fmt: skip
    return "\n".join(lines)


@dictionary.command("list")
@common_options
def list_(common: Common) -> None:
    """Dictionaries of this atlas, and what was measured of them."""
    from assay.atlas.features import dictionaries
    from assay.atlas.store import Atlas

    rows = dictionaries(Atlas(common.atlas))
    common.emit(rows, lambda: "\n".join(f"{row['name']}  {row['spec']['architecture']} {row['spec']['width']}"
                                        f"  {row['model']}  {row['folder']}" for row in rows)
                or f"none in {common.atlas}. Train one: assay dictionary train")  # fmt: skip


@dictionary.command()
@click.argument("folder", metavar="DICTIONARY")
@click.argument("harvest", metavar="HARVEST")
@click.option("--out", required=True, metavar="DIR|s3://BUCKET/DIR", help="Where the codes go.")
@engine_options
@common_options
def encode(common: Common, folder: str, harvest: str, out: str, engine: str | None, workers: int | None) -> None:
    """Write HARVEST as sparse latents of DICTIONARY: which are active at which token. Goes on where it was interrupted."""
    from assay.cli.dictionary_files import opened_source
    from assay.features.dictionary import of_another_model
    from assay.features.encode import encode_shards
    from assay.features.shards import Shards
    from assay.scale.ray_engine import engine_of

    check_device(common, "cpu")
    chosen, shards = engine_of(engine, workers=workers, note=common.note), Shards(harvest)
    found = opened_source(common, folder)
    if other := of_another_model(found, shards.record["model"]):
        common.note(other)
    with common.progress("encoding", shards.all_tokens) as advance:
        manifest = encode_shards(found, shards, out, report=advance, engine=chosen)
    parts = manifest["parts"]
    tokens, active, size = (sum(part[name] for part in parts) for name in ("tokens", "active", "bytes"))
    dense = 2 * tokens * manifest["width"]
    common.emit({**manifest, "tokens": tokens, "active": active, "bytes": size, "dense_bytes": dense},
                lambda: f"{tokens:,} tokens, {active / max(tokens, 1):.1f} latents active per token\n{size / 1e6:.1f} MB"
                f" ({dense / max(size, 1):.0f} times less than a dense fp16 matrix)\nwritten: {out}")  # fmt: skip
