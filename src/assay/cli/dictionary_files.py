"""`assay dictionary import|export|show`: dictionaries as files of any known format."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from assay.cli.common import Common, common_options
from assay.cli.harvest import harvest_line
from assay.errors import bad_argument

if TYPE_CHECKING:
    from assay.features.dictionary import Dictionary

FORMAT_HELP = ("native, saelens, dictionary_learning, sparsify, gemma_scope, gemma_scope_2, llama_scope, circuit_tracer."
               " Default: found by content.")  # fmt: skip
BARS = 24  # columns of a histogram


@click.command("import")
@click.argument("path")
@click.option("--format", "format_name", metavar="NAME", help=FORMAT_HELP)
@click.option("--out", metavar="DIR", help="A folder to write, instead of ATLAS/dictionaries.")
@click.option("--name", default="", help="Of the dictionary. Default: as the files say.")
@click.option("--model", default="", help="The model it was trained on, where the files do not say.")
@click.option("--site", default="", metavar="SITE", help="What it reads, where the files do not say.")
@click.option("--target", default="", metavar="SITE", help="What it reconstructs. Default: what it reads.")
@click.option("--fold", metavar="MODEL", help="Fold in the gain of MODEL's norm, of what reads before it.")
@click.option("--kept-as", default="fp32", show_default=True, help="fp32 or fp16")
@common_options
def import_(
    common: Common,
    path: str,
    format_name: str | None,
    out: str | None,
    name: str,
    model: str,
    site: str,
    target: str,
    fold: str | None,
    kept_as: str,
) -> None:
    """Read the dictionary at PATH (a folder or file of another tool) and keep it in Assay's own form.

    Nothing in the files is executed. Any setting or tensor that is not understood is an error that names it.
    """
    from assay.features import kept
    from assay.features.formats import FORMATS, detect, load_dictionary

    found = FORMATS.get(format_name) if format_name else detect(path)
    dictionary = load_dictionary(path, found.name)
    if fold and site:
        raise bad_argument("--site", site, "nothing beside --fold", "Its files say which norm it reads.")
    dictionary = _folded(common, dictionary, fold) if fold else _placed(dictionary, site, target)
    model = model or fold or ""
    dictionary.given_name = name or dictionary.name
    model = model or _model_of(dictionary)
    if model:
        dictionary.provenance.setdefault("model", model)
    if out:
        folder = kept.save(dictionary, _empty(out), kept_as)
    else:
        from assay.atlas.features import keep_dictionary
        from assay.atlas.store import Atlas

        folder = keep_dictionary(Atlas(common.atlas), dictionary, model, kept_as)
    assumed = dictionary.provenance.get("imported", {}).get("assumed", [])
    digest = kept.read_record(folder)["digest"]
    record = {"format": found.name, "name": dictionary.name, "folder": str(folder), "model": model, "digest": digest,
              "spec": dictionary.spec.json(), "provenance": dictionary.provenance, "assumed": assumed}  # fmt: skip
    lines = [f"{dictionary.name}: {_kind(dictionary)}, from {found.title}", f"  written: {folder}"]
    common.emit(record, lambda: "\n".join([*lines, *(f"  assumed: {one}" for one in assumed)]))


@click.command()
@click.argument("source", metavar="DICTIONARY")
@click.option("--format", "format_name", metavar="NAME", required=True, help=FORMAT_HELP.rpartition(" Default")[0])
@click.option("--out", metavar="DIR", required=True, help="A new or empty folder.")
@common_options
def export(common: Common, source: str, format_name: str, out: str) -> None:
    """Write DICTIONARY (a folder, or a name in the atlas) in the form of another tool, which makes the same latents of it."""
    from assay.features.formats import FORMATS, write_dictionary

    FORMATS.get(format_name)
    dictionary = opened_source(common, source)
    written = write_dictionary(dictionary, _empty(out), format_name)
    record = {"name": dictionary.name, "digest": dictionary.digest, "format": written.format, "folder": str(written.folder),
              "files": sorted(str(file.relative_to(written.folder)) for file in written.folder.rglob("*") if file.is_file()),
              "notes": list(written.notes)}  # fmt: skip
    common.emit(
        record,
        lambda: "\n".join(
            [
                f"{dictionary.name}: written for {FORMATS.get(format_name).title}",
                f"  written: {written.folder}",
                *(f"  note: {one}" for one in written.notes),
            ]
        ),
    )


@click.command()
@click.argument("source", metavar="DICTIONARY")
@click.option("--bar", default=0.9, show_default=True, help="Cosine from which two decoder rows are near-duplicates.")
@common_options
def show(common: Common, source: str, bar: float) -> None:
    """What DICTIONARY is: a folder or file of any known format, or a name in the atlas."""
    from assay.features.describe import describe
    from assay.features.formats import detect, holders

    if not 0 < bar < 1:
        raise bad_argument("--bar", bar, "between 0 and 1")
    dictionary = opened_source(common, source)
    found = describe(dictionary, bar)
    evaluation, trained_on = _evaluation(common, dictionary), _harvests(common, dictionary)
    record = {"name": dictionary.name, "format": detect(source).name if Path(source).exists() else "native",
              "digest": dictionary.digest, "spec": dictionary.spec.json(), "provenance": dictionary.provenance,
              "formats": holders(dictionary), **asdict(found), "evaluation": evaluation, "harvests": trained_on}  # fmt: skip
    common.emit(record, lambda: "\n".join(_shown(dictionary, record)))


# what they share ---------------------------------------------------------------------------------


def opened_source(common: Common, source: str) -> "Dictionary":
    """A dictionary by path, or by its name in the atlas. Raises UsageError."""
    from assay.features.formats import load_dictionary

    if Path(source).exists():
        return load_dictionary(source)
    from assay.atlas.features import dictionaries
    from assay.atlas.store import Atlas

    rows = {row["name"]: row["folder"] for row in dictionaries(Atlas(common.atlas))}
    if source not in rows:
        names = ", ".join(rows) or f"none is in {common.atlas}"
        raise bad_argument("DICTIONARY", source, f"a folder or file that exists, or a name in the atlas: {names}")
    return load_dictionary(rows[source])


def _empty(folder: str) -> Path:
    """A folder with nothing in it. Raises UsageError."""
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise bad_argument("--out", folder, "a new or empty folder", "Nothing is written over other files.")
    return path


def _placed(dictionary: "Dictionary", site: str, target: str) -> "Dictionary":
    """With sites given by hand, where its files name none. Raises UsageError where they name others."""
    from assay.features.formats.base import waiting
    from assay.sites import parse_site

    if target and not site:
        raise bad_argument("--site", "nothing", "the site it reads, beside --target")
    if not site:
        return dictionary
    if waits := waiting(dictionary)[0]:
        raise bad_argument("--site", site, "--fold MODEL",
                           f"It reads {', '.join(waits)} before the gain of the norm, and that is no site.")  # fmt: skip
    inputs, outputs = (str(parse_site(site)),), (str(parse_site(target or site)),)
    said = (dictionary.spec.inputs, dictionary.spec.outputs)
    if said[0] and said != (inputs, outputs):
        raise bad_argument("--site, --target", f"{inputs[0]}, {outputs[0]}", f"{', '.join(said[0])}, {', '.join(said[1])}",
                           "The files name them.")  # fmt: skip
    dictionary.spec = replace(dictionary.spec, inputs=inputs, outputs=outputs)
    assumed = dictionary.provenance.get("imported", {}).get("assumed", [])
    assumed[:] = [one for one in assumed if not one.startswith("sites:")] + [f"sites {inputs[0]}, {outputs[0]}: given by hand"]
    return dictionary


def _folded(common: Common, dictionary: "Dictionary", name: str) -> "Dictionary":
    """With the gain, and the bias, of the norm of a model that it reads. Raises UsageError where that model has none there."""
    from assay.features.formats import folded
    from assay.features.formats.base import waiting
    from assay.sites import Site, parse_site

    waits, _ = waiting(dictionary)
    if len(waits) != 1:
        raise bad_argument("--fold", name, "no model", "Its files do not say that it reads before the gain of one norm.")
    model, site = common.load(name, "float32", None), parse_site(waits[0])
    if site not in model.layout.points:
        raise bad_argument("--fold", name, f"a model with {site}, which the dictionary reads")
    norm = model.readers().norm(Site("logits") if site.name == "final_norm" else site)
    if norm.module is None:
        raise bad_argument("--fold", name, f"a model with a norm before {site}", "This one reads the stream as it is there.")
    if dictionary.spec.d_in != len(norm.gain):
        raise bad_argument("--fold", name, f"a model of width {dictionary.spec.d_in}", f"This one has {len(norm.gain)}.")
    return folded(dictionary, norm.gain, norm.bias)


def _model_of(dictionary: "Dictionary") -> str:
    """The model its provenance or the other tool's settings name."""
    said = dictionary.provenance.get("imported", {}).get("settings", {})
    read = (dictionary.provenance.get("stream") or {}).get("model") or {}
    found = [dictionary.provenance.get("model"), read.get("model") if isinstance(read, dict) else read,
             *(said.get(key) for key in ("model_name", "lm_name", "model"))]  # fmt: skip
    return next((str(one) for one in found if one), "")


def _evaluation(common: Common, dictionary: "Dictionary") -> Any:
    """The newest evaluation of it in the atlas, if there is one."""
    if not (common.atlas / "atlas.duckdb").is_file():
        return None
    from assay.atlas.features import evaluations
    from assay.atlas.store import Atlas

    found = evaluations(Atlas(common.atlas), dictionary.digest)
    return found[-1] if found else None


def _harvests(common: Common, dictionary: "Dictionary") -> list[dict[str, Any]]:
    """What it was trained on, where this atlas knows that."""
    from assay.atlas.features import harvests_of
    from assay.atlas.store import Atlas

    return harvests_of(Atlas(common.atlas), dictionary)


def _kind(dictionary: "Dictionary") -> str:
    spec = dictionary.spec
    sites = f"{'+'.join(spec.inputs)}" + (f" -> {'+'.join(spec.outputs)}" if spec.transcodes else "")
    return (
        f"{spec.architecture}, {spec.width:,} latents, {spec.d_in} -> {spec.d_out}"
        f"{'' if spec.k is None else f', k {spec.k}'}{', skip' if spec.skip else ''}, {sites or 'no site named'}"
    )


def _shown(dictionary: "Dictionary", record: dict[str, Any]) -> list[str]:
    twins, spec = record["duplicates"], dictionary.spec
    lines = [
        f"{dictionary.name}: {_kind(dictionary)}",
        f"  format {record['format']}; can be written as {', '.join(record['formats'])}",
        f"  {record['numbers']:,} numbers; digest {record['digest'][:16]}",
        f"  for positions from {spec.skip_first} on"
        + ("" if spec.norm_limit is None else f", norms up to {spec.norm_limit:g}"),
        f"  norms (least, median, greatest): decoder {_numbers(record['decoder_norms'])}; encoder"
        f" {_numbers(record['encoder_norms'])}; b_dec {record['bias_norm']:.3g}",
    ]
    lines += [f"  trained on harvest {harvest_line(row)}" for row in record["harvests"]]
    lines += [f"  {name} (least, median, greatest): {_numbers(values)}" for name, values in record["settings"].items()]
    if record["alone"]:
        rest = spec.width - sum(one["count"] for one in record["alone"])
        lines.append(f"  {rest:,} latents write at several sites; nine tenths of the decoder's norm at one site alone:")
        for one in record["alone"]:
            most = ", ".join(f"{latent} ({share:.2f})" for latent, share in one["most"])
            lines.append(f"    {one['site']}: {one['count']:,}" + (f", {most}" if most else ""))
    if record["tied"] is not None:
        lines.append(f"  encoder and decoder rows: mean cosine {record['tied']:.2f}")
    if record["never_written"]:
        lines.append(f"  {record['never_written']:,} latents write nothing: their decoder rows are zero")
    lines.append(
        f"  near-duplicates: {twins['count']:,} of {twins['looked_at']:,} latents have a decoder cosine above"
        f" {twins['bar']:g} with another"
    )
    lines += [f"    {one} and {other}: {cosine:.3f}" for one, other, cosine in twins["closest"]]
    for key, value in dictionary.provenance.get("imported", {}).items():
        lines += [f"  assumed: {one}" for one in value] if key == "assumed" else []
    return [*lines, *_histogram(record["evaluation"])]


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _histogram(evaluation: Any) -> list[str]:
    """Firing rates, where it was evaluated."""
    rates = (evaluation or {}).get("rates") if isinstance(evaluation, dict) else None
    if not isinstance(rates, dict) or not rates.get("counts"):
        return ["  not evaluated in this atlas: assay dictionary eval"]
    most = max(rates["counts"]) or 1
    rows = zip(rates["edges"], rates["counts"], strict=False)
    return ["  firing rates (log10 from, latents):", f"    never {rates.get('never', 0):,}",
            *(f"    {edge:6.1f} {'#' * round(BARS * count / most)} {count:,}" for edge, count in rows)]  # fmt: skip
