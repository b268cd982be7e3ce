"""Methods of `assay vision`: visualise, examples, probe, dictionary, weights, edges, patch; each with a picture and JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options
from assay.errors import bad_argument

SET = ("wheels, windows, cars, digits, photographs (a part after a colon: wheels:discover, cars:neither, digits:train), a"
       " folder of pictures, or a file of labelled ones.")  # fmt: skip
IMAGES = click.option("--images", "source", default="wheels", show_default=True, metavar="SET", help=f"Pictures: {SET}")
OUT = click.option("--out", metavar="DIR", help="Pictures go here instead of ATLAS/figures.")
MODEL = click.argument("name", metavar="MODEL")


@click.command()
@MODEL
@click.argument("target", metavar="TARGET")
@IMAGES
@click.option("--n", default=64, show_default=True, help="Pictures of the set to compare with.")
@click.option("--steps", default=256, show_default=True, help="Steps of the optimisation.")
@OUT
@common_options
def visualise(common: Common, name: str, target: str, source: str, n: int, steps: int, out: str | None) -> None:
    """The picture that TARGET responds to most, by optimisation, beside a dataset and beside untrained weights.

    TARGET: block.PATH.CHANNEL, one place of it with @ROW,COLUMN, a unit of a transformer, or logit:CLASS.
    """
    from assay.model.image_untrained import untrained_image_model
    from assay.report.vision_figures import visualisation_figure
    from assay.vision.targets import parse_target
    from assay.vision.visualise import VisualisePlan, check, visualise

    plan = VisualisePlan(steps, seed=common.seed)
    model = _model(common, name)
    goal, pictures = parse_target(model, target), _pictures(model, source, n, common.seed)
    shown = []
    with common.progress("optimising", 2 * steps) as advance:
        for label, each in ((model.name, model), ("untrained weights", untrained_image_model(model, "all", common.seed))):
            found = visualise(each, goal, plan, advance)
            shown.append((label, found, check(each, found, goal, pictures, common.seed)))
    path = _draw(common, out, visualisation_figure(shown), "visualise", model.name, goal.name)
    rows = [_visualised(label, found, checked) for label, found, checked in shown]
    record = {
        "model": model.name,
        "target": goal.name,
        "images": source,
        "plan": asdict(plan),
        "found": rows,
        "picture": str(path),
    }
    common.emit(record, lambda: "\n".join([*(_visualised_text(row) for row in rows), f"picture: {path}"]))


def _visualised(label: str, found: Any, checked: Any) -> dict[str, Any]:
    return {"weights": label, "activation": found.activation, "noise": found.noise, "transformed": found.transformed,
            "moved": found.moved, "history": list(found.history), **asdict(checked)}  # fmt: skip


def _visualised_text(row: dict[str, Any]) -> str:
    verdict = "above" if row["above_all"] else "not above"
    text = (f"{row['weights']}: {row['activation']:.3f} (transformed {row['transformed']:.3f}, noise {row['noise']:.3f});"
            f" {verdict} the best of {row['n']} pictures ({row['highest']:.3f}); {row['z']:+.1f} sd, rank {row['rank']:.2f}"
            f" among {len(row['others'])} random others on it")  # fmt: skip
    return text if row["moved"] else f"{text}; no start had a gradient: this is noise"


@click.command()
@MODEL
@click.argument("target", metavar="TARGET")
@IMAGES
@click.option("--n", default=256, show_default=True, help="Pictures of the set to look through.")
@click.option("--top", default=8, show_default=True, help="Pictures it responds to most.")
@click.option("--quantiles", default=8, show_default=True, help="Pictures from the least to the most.")
@click.option("--random", default=8, show_default=True, help="Pictures drawn from all.")
@click.option("--pool", default="max", show_default=True, help="A picture's number: max or mean over places.")
@OUT
@common_options
def examples(common: Common, name: str, target: str, source: str, n: int, out: str | None, **given: Any) -> None:
    """Pictures of a set by how much TARGET responds, with heat maps of where: top, quantiles, random.

    TARGET: block.PATH.CHANNEL, one place of it with @ROW,COLUMN, a unit of a transformer, or logit:CLASS.
    """
    from assay.data.image_sets import image_set
    from assay.report.vision_figures import examples_figure
    from assay.vision.examples import examples
    from assay.vision.targets import parse_target

    model, items = _model(common, name), image_set(source, n, common.seed)
    with common.progress("reading pictures", len(items)) as advance:
        found = examples(model, parse_target(model, target), items, **given, seed=common.seed, progress=advance)
    path = _draw(common, out, examples_figure(found), "examples", model.name, found.target)
    rows = [{**asdict(one), "heat": None if one.heat is None else one.heat.tolist()} for one in found.shown]
    record = {"model": model.name, "target": found.target, "images": source, "n": found.n, "mean": found.mean, "sd": found.sd,
              "zero": found.zero, "shown": rows, "picture": str(path)}  # fmt: skip
    lines = [
        f"{row['kind']:<9} {row['value']:>9.3f}  above {row['below']:>4.0%}  {row['group']:<20} {row['name']}" for row in rows
    ]
    common.emit(record, lambda: "\n".join([*lines, f"picture: {path}"]))


@click.command()
@MODEL
@IMAGES
@click.option("--site", "sites", multiple=True, help="May be repeated; default: a tenth of all sites, evenly spread.")
@click.option("--n", default=128, show_default=True, help="Pictures of the set.")
@click.option("--pool", default="max", show_default=True, help="Places to one vector: max, mean, or first (token).")
@click.option("--folds", default=5, show_default=True, help="Parts the groups are dealt to.")
@click.option("--by", default="group", show_default=True,
              help="What is held out whole: group (background, digit, folder), or picture: groups leak then.")  # fmt: skip
@OUT
@common_options
def probe(common: Common, name: str, source: str, sites: tuple[str, ...], n: int, pool: str, folds: int, by: str,
          out: str | None) -> None:  # fmt: skip
    """Is it in the picture? Linear probes by site, beside pixels, untrained weights and labels dealt again.

    The label is the set's: a wheel, a window, a digit with a closed loop (0, 6, 8, 9), a file's own, or the second of a
    folder's two sub-folders.
    """
    from dataclasses import replace

    from assay.data.image_sets import classes_of, image_set
    from assay.report.vision_figures import probed_figure
    from assay.vision.probing import probe_sites

    if by not in ("group", "picture"):
        raise bad_argument("by", by, "group, picture")
    model, items = _model(common, name), image_set(source, n, common.seed)
    items = items if by == "group" else [replace(item, template=item.text) for item in items]
    every = list(model.layout.points)
    with common.progress("reading pictures", len(items)) as advance:
        found = probe_sites(model, items, sites or every[:: max(1, len(every) // 10)], pool, folds, common.seed, advance)
    path = _draw(common, out, probed_figure(found), "probe", model.name, source, by)
    classes = classes_of(source)
    record = {"model": model.name, "images": source, "by": by, "labels": classes, **asdict(found), "picture": str(path)}
    said = [f"label 0: {classes[0]}/, label 1: {classes[1]}/"] if classes else []
    common.emit(record, lambda: "\n".join([*said, *_probed_lines(found), f"picture: {path}"]))


def _probed_lines(found: Any) -> list[str]:
    lines = [f"{found.n} pictures, {found.members} members, {found.groups} groups, {found.folds} folds; AUROC",
             f"{'pixels':<44} {_bounds(found.pixels)}{_near(found.pixels_near)}"]  # fmt: skip
    for one in found.sites:
        lines.append(f"{one.site:<44} {_bounds(one.auroc)}{_near(one.near)}  untrained {one.untrained.value:.2f}"
                     f"  more than pixels {_bounds(one.over_pixels, '+')}  dealt again {one.shuffled:.2f}")  # fmt: skip
    return lines


def _near(estimate: Any) -> str:
    return "" if estimate is None else f"  near misses {_bounds(estimate)}"


def _bounds(estimate: Any, sign: str = "") -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{sign}.2f} (no interval)"
    return f"{estimate.value:{sign}.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


@click.command()
@MODEL
@click.option("--site", required=True, help="A map, or a site of a transformer.")
@IMAGES
@click.option("--n", default=128, show_default=True, help="Pictures of the set.")
@click.option("--architecture", default="topk", show_default=True, help="As assay dictionary train has them.")
@click.option("--width", default=256, show_default=True, help="Latents.")
@click.option("--k", default=8, show_default=True, help="Latents that are active at a place.")
@click.option("--per-image", default=32, show_default=True, help="Places read of a picture.")
@click.option("--vectors", default=100_000, show_default=True, help="Vectors seen in training, in all.")
@click.option("--save", metavar="DIR", help="Keep the dictionary here; an interrupted training goes on there.")
@OUT
@common_options
def dictionary(
    common: Common, name: str, site: str, source: str, n: int, save: str | None, out: str | None, **given: Any
) -> None:
    """A dictionary on the channels of --site, with FVU and L0 beside principal axes, a random decoder and untrained weights."""
    from dataclasses import replace

    from assay.data.image_sets import image_set
    from assay.features import kept
    from assay.report.dictionary_figures import evaluation_figure
    from assay.vision.dictionary import ChannelPlan, train_on_channels

    plan, folder = ChannelPlan(**given, seed=common.seed), None if save is None else Path(save)
    if folder is not None and kept.is_kept(folder):
        raise bad_argument("--save", save, "a folder without a dictionary", "This one has one: delete it to train again.")
    if folder is not None:
        check_place("--save", folder, folder=True)
    model, items = _model(common, name), image_set(source, n, common.seed)
    with common.progress("dictionary", 1) as advance:
        found = train_on_channels(model, items, site, plan, folder, advance)
    if folder is not None:
        kept.save(found.dictionary, folder)
    path = _draw(
        common, out, evaluation_figure(replace(found.evaluation, columns=found.columns)), "dictionary", model.name, site
    )
    columns = [{"name": each.name, "says": each.says, "measures": {k: value.json() for k, value in each.measures.items()}}
               for each in found.columns]  # fmt: skip
    record = {"model": model.name, "site": site, "images": source, "plan": asdict(plan), "train": found.train,
              "held": found.held, "columns": columns, "saved": save, "picture": str(path)}  # fmt: skip
    lines = [f"{each.name:<18} FVU {each.measures['FVU'].value:.3f}  L0 {each.measures['L0'].value:.1f}"
             for each in found.columns]  # fmt: skip
    common.emit(
        record, lambda: "\n".join([f"{found.train} vectors to train on, {found.held} held out", *lines, f"picture: {path}"])
    )


@click.command()
@MODEL
@click.option("--source", "start", required=True, help="A map, or one channel of it.")
@click.option("--target", "end", required=True, help="A later map, or one channel of it.")
@click.option("--n", default=16, show_default=True, help="Pairs of channels to show.")
@OUT
@common_options
def weights(common: Common, name: str, start: str, end: str, n: int, out: str | None) -> None:
    """The linear map that convolutions make from one map's channels to another's, activation functions taken out."""
    from assay.report.vision_figures import weights_figure
    from assay.vision.weights import effective_weights

    if n < 1:
        raise bad_argument("n", n, "1 or more")
    model = _model(common, name)
    found = effective_weights(model, start, end)
    path = _draw(common, out, weights_figure(found, n), "weights", model.name, start, end)
    at = {target: row for row, target in enumerate(found.targets)}
    rows = [{"target": t, "source": s, "sum": float(found.total[at[t], found.sources.index(s)]),
             "norm": float(found.norm[at[t], found.sources.index(s)])} for t, s in found.strongest(n)]  # fmt: skip
    record = {"model": model.name, "source": found.source, "target": found.target, "error": found.error,
              "replaced": found.replaced, "size": list(found.kernel.shape[2:]), "edges": rows,
              "picture": str(path)}  # fmt: skip
    lines = [f"{row['source']:>5} to {row['target']:>5}  norm {row['norm']:.4f}  sum {row['sum']:+.4f}" for row in rows]
    words = f"kernel {' x '.join(map(str, found.kernel.shape[2:]))}, affine to {found.error:.1e}"
    common.emit(record, lambda: "\n".join([words, *lines, f"picture: {path}"]))


@click.command()
@MODEL
@click.argument("target", metavar="TARGET")
@click.option("--source", "start", required=True, help="The site whose channels (or heads, units) are scored.")
@click.option("--images", "source", default="cars", show_default=True, metavar="SET", help=f"Pictures: {SET}")
@click.option("--against", default="cars:neither", show_default=True, metavar="SET",
              help="Their references, one each, or blank for grey pictures.")  # fmt: skip
@click.option("--n", default=8, show_default=True, help="Pictures.")
@click.option("--exact", default=32, show_default=True, help="Channels, drawn at random, that are also patched exactly.")
@OUT
@common_options
def edges(common: Common, name: str, target: str, start: str, source: str, against: str, n: int, exact: int,
          out: str | None) -> None:  # fmt: skip
    """How much each channel of --source moves TARGET: gradient times activation difference, checked by exact patching.

    TARGET: block.PATH.CHANNEL, one place of it with @ROW,COLUMN, a unit of a transformer, or logit:CLASS.
    """
    from assay.report.vision_figures import attributed_figure
    from assay.vision.attribution import attribute_channels
    from assay.vision.targets import parse_target

    if exact < 0:
        raise bad_argument("exact", exact, "0 or more")
    model = _model(common, name)
    images, others = _pair(model, source, against, n, common.seed)
    with common.progress("attributing", len(images)) as advance:
        found = attribute_channels(
            model, images, others, start, parse_target(model, target), exact, common.seed, progress=advance
        )
    path = _draw(common, out, attributed_figure(found), "edges", model.name, start, found.target)
    scores, patched = found.scores.mean(0), dict(zip(found.chosen, found.exact.mean(0).tolist(), strict=True))
    rows = [{"channel": c, "score": float(scores[c]), "exact": patched.get(c)} for c in range(len(scores))]
    record = {"model": model.name, "source": found.source, "target": found.target, "images": source, "against": against,
              "total": float(found.total.mean()), "pearson": found.pearson, "spearman": found.spearman, "channels": rows,
              "picture": str(path)}  # fmt: skip
    lines = [f"{model.unit(found.source, c)}: {float(scores[c]):+.4f}" + (f"  exact {patched[c]:+.4f}" if c in patched else "")
             for c in found.strongest(12)]  # fmt: skip
    agree = "no correlation: too few channels, or no spread"
    if found.pearson is not None:
        agree = (
            f"Pearson {found.pearson:.2f}, Spearman {found.spearman:.2f} with exact patching of {len(found.chosen)} channels"
        )
    whole = f"{found.target} differs by {float(found.total.mean()):+.3f}; scores sum to {float(scores.sum()):+.3f}"
    common.emit(record, lambda: "\n".join([whole, agree, *lines, f"picture: {path}"]))


@click.command()
@MODEL
@click.argument("target", metavar="TARGET")
@click.option("--site", required=True, help="Where to patch.")
@click.option("--clean", default="cars", show_default=True, metavar="SET", help=f"Pictures: {SET} Or one picture's file.")
@click.option("--corrupted", default="cars:neither", show_default=True, metavar="SET", help="As many others, pair by pair.")
@click.option("--n", default=4, show_default=True, help="Pairs.")
@click.option("--by", default="channel", show_default=True, help="Units: channel (heads of z), or place (tokens).")
@click.option("--direction", default="denoise", show_default=True,
              help="denoise: clean activations into the corrupted run; noise: the reverse.")  # fmt: skip
@click.option("--cell", default=1, show_default=True, help="Places of a map are patched in squares of this side.")
@OUT
@common_options
def patch(common: Common, name: str, target: str, site: str, clean: str, corrupted: str, n: int, out: str | None,
          **given: Any) -> None:  # fmt: skip
    """Patch every channel or place of --site between pairs of pictures: which carry what makes TARGET differ?

    TARGET: block.PATH.CHANNEL, one place of it with @ROW,COLUMN, a unit of a transformer, or logit:CLASS.
    """
    from assay.report.vision_figures import patched_figure
    from assay.vision.patching import n_runs, patch_pictures
    from assay.vision.targets import parse_target

    model = _model(common, name)
    goal, pair = parse_target(model, target), _pair(model, clean, corrupted, n, common.seed)
    with common.progress("patching", n_runs(model, site, given["by"], given["cell"], len(pair[0]))) as advance:
        found = patch_pictures(model, *pair, site, goal, **given, progress=advance)
    first = found.pairs[0]
    figure = patched_figure(found, pair[0][first], pair[1][first])
    path = _draw(common, out, figure, "patch", model.name, found.site, goal.name, found.by, found.direction)
    mean, flat = found.mean, found.effect.mean(0)
    record = {"model": model.name, "site": found.site, "target": found.target, "by": found.by, "direction": found.direction,
              "shape": list(found.shape), "effect": mean.tolist(), "whole": float(found.whole.mean()),
              "clean": found.clean.tolist(), "corrupted": found.corrupted.tolist(), "pairs": list(found.pairs),
              "left_out": len(pair[0]) - len(found.pairs), "picture": str(path)}  # fmt: skip
    order = flat.abs().argsort(descending=True, stable=True)[:12].tolist()
    lines = [f"{found.by} {_unit(found.shape, unit)}: {float(flat[unit]):+.3f}" for unit in order]
    words = (f"{found.target}: clean {float(found.clean.mean()):.3f}, corrupted {float(found.corrupted.mean()):.3f}; all of"
             f" {found.site} {float(found.whole.mean()):+.3f}; {len(found.pairs)} of {len(pair[0])} pairs differ")  # fmt: skip
    common.emit(record, lambda: "\n".join([words, *lines, f"picture: {path}"]))


METHODS: tuple[click.Command, ...] = (visualise, examples, probe, dictionary, weights, edges, patch)


def _unit(shape: tuple[int, ...], unit: int) -> str:
    return str(unit) if len(shape) == 1 else f"{unit // shape[1]},{unit % shape[1]}"


def _model(common: Common, name: str) -> Any:
    from assay.model.image_load import load_image_model

    return load_image_model(name, common.device)


def _pictures(model: Any, source: str, n: int, seed: int) -> Any:
    """Pictures of a set, or the one of a file, as the model takes them."""
    from assay.data.image_sets import PICTURES, image_set
    from assay.data.images import images_for

    one = Path(source).suffix.lower() in PICTURES
    names = [source] if one else [item.text for item in image_set(source, n, seed)]
    return images_for(model.pixels, names)


def _pair(model: Any, source: str, against: str, n: int, seed: int) -> tuple[Any, Any]:
    """As many pictures of two sets."""
    import torch

    first = _pictures(model, source, n, seed)
    second = torch.full_like(first, 0.5) if against == "blank" else _pictures(model, against, n, seed)
    least = min(len(first), len(second))
    return first[:least], second[:least]


def _draw(common: Common, out: str | None, figure: Any, *names: str) -> Path:
    from assay.report.figures import save_figure

    stem = "-".join(_plain(name) for name in ("vision", *names))
    return save_figure(figure, (Path(out) if out else common.atlas / "figures") / f"{stem}.png")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._@" else "_" for c in Path(name).name)[:60]
