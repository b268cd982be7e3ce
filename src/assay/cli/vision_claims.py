"""`assay vision find|claim|test|feeds|page`: from channels that respond to a verdict about them, and its pictures."""

from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options
from assay.cli.given import number, pairs, settings_of
from assay.errors import bad_argument

EXIT_NOT_AS_REQUIRED = 1
CAR_PARTS = ("wheels", "windows")
# of claims that channels carry a class: a random set costs as much as the claimed one
FEW: dict[str, Any] = {"tune": 32, "confirm": 64, "ood": 32, "draws": 19}
classes_option = click.option("--classes", default=None, metavar="A,B", help="Classes by name or number. Lite0: its ten cars.")
set_option = click.option("--set", "settings", multiple=True, metavar="NAME=X", help="tune, confirm, ood (items), alpha, draws")


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.option("--site", required=True, help="A map of the model: assay vision check MODEL.")
@click.option("--n", default=3, show_default=True, help="Channels to report.")
@click.option("--claims", default=1, show_default=True, help="Of how many, best first, it is claimed that they stand for DATA.")
@classes_option
@set_option
@common_options
def find(
    common: Common, name: str, data: str, site: str, n: int, claims: int, classes: str | None, settings: tuple[str, ...]
) -> None:  # fmt: skip
    """Channels of --site that respond to DATA: wheels, windows, or a file of labelled pictures (JSONL, CSV).

    They are chosen on discover pictures and measured on tune. Claims are stated and locked: that the best stand for DATA and,
    for wheels and windows, that all of them carry the car classes when these parts are there. Then: assay vision test.
    """
    from dataclasses import asdict

    from assay.atlas.store import Atlas
    from assay.data.image_sources import CarSource, PicturePairs, picture_source
    from assay.evidence.claims import record_look
    from assay.model.image_load import load_image_model
    from assay.vision.channels import find_channels

    source = None if data == "cars" else picture_source(data)
    if source is None or isinstance(source, PicturePairs):
        raise bad_argument("DATA", data, "wheels, windows, or a file of labelled pictures (image, label, group)")
    store = Atlas(common.atlas)
    model = load_image_model(name, common.device)
    chosen = class_names(model, classes, needed=False) if data in CAR_PARTS else ()
    found = find_channels(model, source, site, n, common.seed)
    seen = [item for split in ("discover", "tune") for item in source.items(split, 1 << 30, common.seed)]
    record_look(store, model.digest, f"vision find {data} at {site}", seen)
    with common.progress("stating") as report:
        stated = []
        for place, row in enumerate(found[: max(0, claims)]):
            report(f"channel {row.channel}", place, claims)
            stated.append(_state(common, store, model, source, model.unit(site, row.channel), "represents", settings))
        if chosen and claims > 0:
            report("what feeds the classes", claims, claims + 1)
            names = [model.unit(site, row.channel) for row in found]
            stated.append(_state(common, store, model, CarSource(chosen, data), names, "mediates", settings))
    record = {"model": name, "concept": data, "site": site, "channels": [asdict(row) for row in found],
              "claims": [_row(each) for each in stated]}  # fmt: skip
    lines = [f"{model.unit(site, row.channel)}: AUROC {row.auroc:.2f} on fresh pictures, {row.near:.2f} against near misses"
             f" (chosen by {row.chosen_by:.2f})" for row in found]  # fmt: skip
    common.emit(record, lambda: "\n".join([*lines, *map(_line, stated), *(["next: assay vision test"] if stated else [])]))


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("data", metavar="DATA")
@click.argument("subject", metavar="SUBJECT")
@click.option("--kind", default="represents", show_default=True, help="represents, mediates or decodes")
@classes_option
@click.option("--without", default=None, help="Of cars: what the other picture lacks, wheels, windows or both.")
@click.option("--sesoi", multiple=True, metavar="GATE=X", help="Smallest effect of interest, e.g. necessity=0.3.")
@set_option
@common_options
def claim(
    common: Common, name: str, data: str, subject: str, kind: str, classes: str | None, without: str | None,
    sesoi: tuple[str, ...], settings: tuple[str, ...],
) -> None:  # fmt: skip
    """State a claim about SUBJECT (block.PATH.CHANNEL, several separated by commas) of an image MODEL on DATA, and lock it.

    represents: DATA is wheels, windows, or a file of labelled pictures (image, label, group). decodes: the same, SUBJECT is a
    whole site. mediates: DATA is cars, or a file of pairs (clean, corrupted, answer, group).
    """
    from assay.atlas.store import Atlas
    from assay.data.image_sources import picture_source
    from assay.model.image_load import load_image_model

    if data != "cars":
        picture_source(data)  # refused before the model is loaded
    model = load_image_model(name, common.device)
    source = picture_source(data, class_names(model, classes) if data == "cars" else (), without)
    bars = {key: number("--sesoi", key, value) for key, value in pairs("--sesoi", sesoi).items()}
    names = [part.strip() for part in subject.split(",")]
    found = _state(common, Atlas(common.atlas), model, source, names if kind == "mediates" else subject, kind, settings, bars)
    common.emit(_row(found), lambda: f"{_line(found)}\nnext: assay vision test {found.claim.id}")


@click.command()
@click.argument("claims", metavar="[CLAIM]...", nargs=-1)
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless every verdict is this, and not exploratory.")
@common_options
def test(common: Common, claims: tuple[str, ...], name: str | None, require: str | None) -> None:
    """Read the sealed pictures of each CLAIM, once, and decide; without CLAIM: of all in the atlas that are not tested yet."""
    import sys

    from assay.atlas.store import Atlas
    from assay.cli.claim import load_claimed
    from assay.evidence.run import test_claim
    from assay.evidence.sentence import of_pictures
    from assay.report.terminal import verdict_panel

    store = Atlas(common.atlas)
    stated = [store.claim(each) for each in claims or untested(store)]
    if wrong := [each.id for each in stated if not of_pictures(each)]:
        raise bad_argument("CLAIM", wrong[0], "claims about pictures", f"Try: assay claim test {wrong[0]}")
    models: dict[str, Any] = {}
    verdicts = []
    for each in stated:
        digest = each.subject["digest"]
        models[digest] = models.get(digest) or load_claimed(common, each, name, "float32", None)
        with common.progress(f"testing {each.id}") as report:
            verdicts.append(test_claim(store, each.id, models[digest], report))
    common.emit([verdict.to_json() for verdict in verdicts], lambda: _panels(verdicts, verdict_panel))
    if require and not all(v.verdict == require and "exploratory" not in v.qualifiers for v in verdicts):
        sys.exit(EXIT_NOT_AS_REQUIRED)


@click.command()
@click.argument("name", metavar="MODEL")
@click.argument("channels", metavar="CHANNELS")
@click.option("--data", default="cars", show_default=True, help="cars, or a file of pairs (clean, corrupted, answer, group).")
@classes_option
@click.option("--without", default=None, help="Of cars: what the pictures of the mean lack: wheels, windows or both.")
@click.option("--n", default=32, show_default=True, help="Pairs of discover pictures.")
@click.option("--draws", default=19, show_default=True, help="Random sets of channels with like mean and spread.")
@common_options
def feeds(
    common: Common, name: str, channels: str, data: str, classes: str | None, without: str | None, n: int, draws: int
) -> None:  # fmt: skip
    """Set CHANNELS of one site (block.PATH.1,block.PATH.2) to their mean on pictures without the parts: how much do the
    classes fall, and how much with random channels of like mean and spread? A measurement, no claim."""
    from dataclasses import asdict

    from assay.data.image_sources import picture_source
    from assay.data.images import images_for
    from assay.evidence.image_circuits import by_site, channels_of, prepare_pictures
    from assay.model.image_load import load_image_model
    from assay.vision.channels import feeds as measured

    model = load_image_model(name, common.device)
    source = picture_source(data, class_names(model, classes) if data == "cars" else (), without)
    sites = by_site(channels_of(model, [part.strip() for part in channels.split(",")]))
    if len(sites) != 1:
        raise bad_argument("CHANNELS", ", ".join(sites), "channels of one site")
    task = prepare_pictures(model, source.items("discover", n, common.seed))
    if len(set(task.answers)) > 1:
        raise bad_argument("--data", data, "pairs with the same answer, here")
    clean, corrupted = (images_for(model.pixels, [getattr(pair, run) for pair in task.pairs])
                        for run in ("clean", "corrupted"))  # fmt: skip
    ((site, chosen),) = sites.items()
    found = measured(model, clean, task.templates, corrupted, site, chosen, task.answers[0], draws, common.seed)
    made = found.contrast
    record = {"model": name, "data": source.name, "classes": list(task.answers[0]), **asdict(found)}
    common.emit(record, lambda: (
        f"{len(chosen)} channels of {site} at their mean: the classes fall by {found.effect:.2f} nats;"
        f" {draws} random sets: {sum(found.random) / draws:.2f} on average, {max(found.random):.2f} at most\n"
        f"more than random: {made.estimate:+.2f} ({_bound(made.low)} to {_bound(made.high)}), p {made.p_above:.3g};"
        f" rank p {found.rank:.3g}"
    ))  # fmt: skip


@click.command()
@click.option("--out", default="vision.html", show_default=True, metavar="FILE", help="The page.")
@click.option("--model", "name", default=None, metavar="MODEL", help="Where the model is now, if it moved.")
@click.option("--pictures", default=6, show_default=True, help="Pictures per row: members, near misses, others.")
@common_options
def page(common: Common, out: str, name: str | None, pictures: int) -> None:
    """Pictures and verdicts of the atlas's claims about pictures, as one HTML page that needs nothing else."""
    from assay.atlas.store import Atlas
    from assay.cli.claim import load_claimed
    from assay.files import write_file
    from assay.report.vision_page import ClaimSeen, render_vision
    from assay.vision.claims import seen

    check_place("--out", out, folder=False)
    store, models = Atlas(common.atlas), dict[str, Any]()
    shown: list[ClaimSeen] = []
    for stated in picture_claims(store):
        digest = stated.subject["digest"]
        models[digest] = models.get(digest) or load_claimed(common, stated, name, "float32", None)
        verdict = store.verdict(stated.id)
        shown.append(ClaimSeen(stated, None if verdict is None else verdict.to_json(), seen(models[digest], stated, pictures)))
    if not shown:
        raise bad_argument("--atlas", str(common.atlas), "an atlas with claims about pictures", "See: assay vision find")
    write_file(Path(out), render_vision(shown).encode())
    common.emit({"page": out, "claims": [each.claim.id for each in shown]}, lambda: f"{len(shown)} claims: {out}")


# what they share ---------------------------------------------------------------------------------


def class_names(model: Any, given: str | None, needed: bool = True) -> tuple[str, ...]:
    """The classes of --classes, or Lite0's cars. Raises UsageError for another model without them."""
    from assay.evidence.image_circuits import classes_of
    from assay.model.image_load import CARS, LITE0

    names = tuple(part.strip() for part in (given or "").split(",") if part.strip())
    if not names and model.name == LITE0.name:
        names = tuple(map(str, CARS))
    if not names and needed:
        raise bad_argument("--classes", "nothing", f"names or numbers of classes of {model.name}, 0 to {model.n_classes - 1}")
    return tuple(map(str, classes_of(model, names)))


def picture_claims(store: Any) -> list[Any]:
    """Claims about pictures, in the order they were stated."""
    from assay.evidence.sentence import of_pictures

    return [claim for claim in map(store.claim, store.claim_ids()) if of_pictures(claim)]


def untested(store: Any) -> list[str]:
    """Claims about pictures without a verdict. Raises UsageError when there are none."""
    found = [claim.id for claim in picture_claims(store) if store.verdict(claim.id) is None]
    if not found:
        raise bad_argument("CLAIM", "nothing", "a claim about pictures", "None waits for a test. See: assay vision find")
    return found


def _state(
    common: Common, store: Any, model: Any, source: Any, subject: Any, kind: str, given: tuple[str, ...],
    bars: dict[str, float] | None = None,
) -> Any:  # fmt: skip
    from dataclasses import replace

    from assay.app import stating
    from assay.evidence.kinds import KINDS, check_items
    from assay.evidence.run import Settings, Statement

    default = replace(Settings(seed=common.seed), **(FEW if kind == "mediates" else {}))
    settings = replace(default, **settings_of(pairs("--set", given), default))
    check_items(KINDS.get(kind), source.items("tune", settings.tune, common.seed), source.name)
    stating.check_subject(model, kind, subject, "SUBJECT")
    text = f"a linear probe at {subject} tends to tell {source.name} on fresh backgrounds" if kind == "decodes" else ""
    found = stating.state(store, model, source, subject, Statement(kind, text=text), bars or {}, settings)
    for warning in found.warnings:
        common.note(f"warning: {warning}")
    return found


def _row(found: Any) -> dict[str, Any]:
    return {"claim": found.claim.id, "kind": found.claim.kind, "statement": found.claim.statement, "lock": found.plan.lock,
            "stated_before": found.before, "warnings": list(found.warnings)}  # fmt: skip


def _line(found: Any) -> str:
    return f"claim {found.claim.id} ({found.claim.kind}): {found.claim.statement}{', stated before' * found.before}"


def _panels(verdicts: Any, panel: Any) -> Any:
    from rich.console import Group

    return Group(*(panel(verdict.to_json()) for verdict in verdicts))


def _bound(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


VISION_CLAIM_COMMANDS = (find, claim, test, feeds, page)
