"""`assay steer MODEL`."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, check_place, common_options, model_options
from assay.cli.steer_given import Asked, behaviour_name
from assay.errors import AssayError, bad_argument

EXIT_NOT_AS_REQUIRED = 1
PAIRS = {"discover": 44, "tune": 33, "confirm": 48, "ood": 26}
QUICK = {"discover": 44, "tune": 22, "confirm": 24, "ood": 12}
QUICK_GRID = (0.1, 0.2, 0.4)
ACCEPTED = ("model", "tokenizer", "site")
ROLES = ("read", "intervene", "modify")
FARTHEST = 100.0  # a dose beyond it makes numbers that are not finite
NO_BEHAVIOUR = "no behaviour is named (--behaviour TASK, or --file FILE with your own), so only text was looked at"


@click.command()
@click.argument("name", metavar="MODEL")
@click.option("--direction", "file", metavar="FILE", help="A saved direction, or a plain vector (.safetensors, .npy, .json).")
@click.option("--feature", metavar="SITE.N", help="A neuron, mlp_act.L.N, or a latent, latent.NAME.N with --dictionary.")
@click.option("--concept", metavar="CONCEPT", help="Labelled texts, bundled or a file: a direction is made from them.")
@click.option("--behaviour", metavar="TASK",
              help="What it should change. Default: the task that goes with the concept; without one only text is looked at.")
@click.option("--file", "task_file", metavar="FILE", help="Your own behaviour: a task, JSONL or CSV.")
@click.option("--method", default=None, 
              help="mean_difference, pca, linear, lda, k_sparse or learned. Default: mean_difference.")  # fmt: skip
@click.option("--at", default="marked", show_default=True, help="Where texts of a concept are read: marked, last or mean.")
@click.option("--site", default=None, help="Default: resid_post of a layer that tune chooses; of a file: its own.")
@click.option("--dictionary", metavar="PATH", help="The dictionary of a latent.")
@click.option("--mode", default="add", show_default=True, help="add, clamp, project_out, cap or floor")
@click.option("--strength", "strengths", multiple=True, type=float, metavar="DOSE",
              help="Fraction of the residual norm; may be given again; both signs are tried. Default: .05 to .5.")  # fmt: skip
@click.option("--condition", metavar="FILE", help="A saved direction: steer only where its read-out is above --threshold.")
@click.option("--threshold", type=float, default=None, help="Default: the middle that the condition's card keeps.")
@click.option("--positions", default="all", show_default=True, help="all or last")
@click.option("--phase", default="all", show_default=True, 
              help="all, prompt, generated, or last: generated and what predicts it")  # fmt: skip
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="Shown unsteered, steered and randomly pushed.")
@click.option("--max-new-tokens", default=40, show_default=True, help="Written after every --prompt.")
@click.option("--side-effects/--no-side-effects", default=True, show_default=True, help="Other tasks, and refusal.")
@click.option("--draws", default=100, show_default=True, 
              help="Random directions of equal norm; with fewer than 99 none can be beyond the 99th percentile.")  # fmt: skip
@click.option("--judge", default="minilm", show_default=True, help="Of what is written, by text alone: minilm or words.")
@click.option("--texts", "texts_file", metavar="FILE", help="Ordinary texts, one a line, instead of the bundled English ones.")
@click.option("--claim/--no-claim", "claimed", default=True, show_default=True,
              help="State that it steers the behaviour, and test that on confirm and ood.")  # fmt: skip
@click.option("--selective", is_flag=True, help="The claim also says that the other tasks stay as they are.")
@click.option("--quick", is_flag=True, help="Fewer pairs and strengths, and no claim.")
@click.option("--allow", multiple=True, metavar="WHAT", help="Take a direction of another model, tokenizer or site; or a role.")
@click.option("--save", metavar="FILE", help="Write the direction that was chosen, .safetensors.")
@click.option("--require", type=click.Choice(["supported"]), help="Exit 1 unless the verdict is this, and not exploratory.")
@click.option("--out", metavar="DIR", help="Pictures go here instead of ATLAS/figures.")
@model_options
@common_options
def steer(common: Common, name: str, dtype: str, prepend_bos: bool | None, **given: Any) -> None:
    """Push MODEL along a direction: what it does at every dose, what else it changes, where text breaks.

    Layer and strength are chosen on tune pairs; the claim that it steers is locked and tested before anything else reads
    confirm pairs, on which all numbers are reported. Where no behaviour is named, only text is looked at. Finished parts are
    kept in the atlas: an interrupted run goes on there.
    """
    from assay.atlas.steers import KeptSteering
    from assay.atlas.store import Atlas
    from assay.cli.steer_given import directions_of, judge_of, labelled
    from assay.data.prepare import prepare
    from assay.evidence.claims import record_look
    from assay.evidence.source import Source
    from assay.permissions import require
    from assay.steer.files import read_direction, save_direction
    from assay.steer.run import Behaviour, choose_direction, confirm

    asked, accepted = _asked(given), tuple(set(given["allow"]) & set(ACCEPTED))
    require("intervene", granted=next((each for each in given["allow"] if each in ROLES), None))
    task = behaviour_name(asked, given["behaviour"], given["task_file"])
    if task is None and (option := next((each for each in ("selective", "require") if given[each]), None)):
        raise bad_argument(f"--{option}", "without a behaviour", "with --behaviour TASK or --file FILE: claims are about one")
    plan, sizes = _plan(common, given), QUICK if given["quick"] else PAIRS
    texts = None if asked.concept is None else labelled(asked.concept, common.seed)
    source = None if task is None else Source(task)
    pairs = {} if source is None else {split: source.items(split, sizes[split], common.seed) for split in ("discover", "tune")}
    model = common.load(name, dtype, prepend_bos)
    condition = given["condition"] and (read_direction(given["condition"], model, accepted), given["threshold"])
    judge = judge_of(given["judge"], texts, pairs) if texts or pairs else None
    with common.progress("steering") as advance:
        found = directions_of(asked, model, texts, lambda: prepare(pairs["discover"], model), plan, advance,
                              condition[0] if condition else None)  # fmt: skip
    if asked.method == "learned" and not given["strengths"]:  # the dose it was trained with is tried too
        trained = float(found[0].card["dose"])
        plan = replace(plan, strengths=tuple(sorted({*plan.grid, trained, -trained})))
    if source is None:
        return _without_behaviour(common, model, name, found, plan, judge, texts, given, condition or None)
    kept = KeptSteering(common.atlas, _key(model, plan, source, sizes, judge, condition, common.seed))
    store = Atlas(common.atlas)
    behaviour = Behaviour(source.name, prepare(pairs["tune"], model), judge=judge)
    with common.progress("steering") as advance:
        chosen = choose_direction(model, found, behaviour, plan, advance, kept, condition or None)
    seen = [*(each for split in (texts or {}).values() for each in split), *pairs["tune"], *pairs["discover"]]
    record_look(store, model.digest, f"steer {source.name} {chosen.direction.name}", seen)
    others, requests, notes = _side_effects(common, model, source.data, given["side_effects"])
    claim = _claim(common, store, model, source, chosen, plan, sizes, given, others or {})
    sealed = source.items("confirm", sizes["confirm"], common.seed)
    record_look(store, model.digest, f"steer report {source.name} {chosen.direction.name}", sealed)
    behaviour = replace(behaviour, confirm=prepare(sealed, model), others=others, requests=requests)
    with common.progress("steering") as advance:
        report = confirm(model, chosen, behaviour, plan, advance, kept)
    if kept.found:
        many = "measurement was" if kept.found == 1 else "measurements were"
        common.note(f"{kept.found} finished {many} kept in the atlas by an earlier run.")
    record = {**report.json(), "claim": claim, "notes": notes, "plan": _plan_record(plan, sizes), "passport": model.passport()}
    record["saved"] = str(save_direction(chosen.direction, given["save"])) if given["save"] else None
    record["files"] = _files(report, record, Path(given["out"]) if given["out"] else common.atlas / "figures", name)
    common.emit(record, lambda: _shown(report, record))
    if given["require"] and (claim.get("verdict") != given["require"] or "exploratory" in claim.get("qualifiers", ())):
        sys.exit(EXIT_NOT_AS_REQUIRED)


# what is asked for -------------------------------------------------------------------------------


def _asked(given: Mapping[str, Any]) -> Asked:
    """The direction as asked for, checked before anything is loaded."""
    if unknown := [each for each in given["allow"] if each not in (*ACCEPTED, *ROLES)]:
        raise bad_argument("--allow", unknown[0], f"{', '.join(ACCEPTED)} (of a saved direction) or a role: {', '.join(ROLES)}")
    if given["selective"] and not (given["side_effects"] and given["claimed"]):
        raise bad_argument("--selective", "given", "with side effects and a claim: it is about both")
    for option in ("selective", "require"):
        if given[option] and (why := _cannot_claim(given)):
            raise bad_argument(f"--{option}", "given", f"where a claim is stated; here: {why}")
    if given["threshold"] is not None and given["condition"] is None:
        raise bad_argument("--threshold", given["threshold"], "with --condition FILE")
    if given["save"] and not given["save"].lower().endswith(".safetensors"):
        raise bad_argument("--save", given["save"], "a .safetensors file")
    if given["save"]:
        check_place("--save", given["save"], folder=False)
    asked = Asked(given["file"], given["feature"], given["concept"], given["method"], given["at"], given["site"],
                  given["dictionary"], tuple(each for each in given["allow"] if each in ACCEPTED))  # fmt: skip
    asked.check()
    for option in ("file", "condition"):
        if given[option] is not None and not Path(given[option]).is_file():
            raise bad_argument("--direction" if option == "file" else "--condition", given[option], "a file that exists")
    return asked


def _plan(common: Common, given: Mapping[str, Any]) -> Any:
    """The plan, checked before anything is loaded."""
    import torch

    from assay.steer.apply import Steering
    from assay.steer.directions import Direction
    from assay.steer.run import SteerPlan

    doses = given["strengths"] or (QUICK_GRID if given["quick"] and given["mode"] != "project_out" else ())
    if 0.0 in doses:
        raise bad_argument("--strength", 0.0, "doses that are not 0: no steering is always measured beside them")
    if far := [dose for dose in doses if abs(dose) > FARTHEST]:
        raise bad_argument("--strength", far[0], f"at most {FARTHEST:g} times the residual norm")
    few: dict[str, Any] = {"openings": 8, "max_new_tokens": 16} if given["quick"] else {}
    if given["texts_file"] is not None:
        few["texts"] = _texts(given["texts_file"])
    grid = tuple(sorted({sign * dose for dose in doses for sign in (1, -1)})) or None
    plan = SteerPlan(
        mode=given["mode"], positions=given["positions"], phase=given["phase"], strengths=grid, draws=given["draws"],
        prompts=given["prompts"], shown_tokens=given["max_new_tokens"], seed=common.seed, **few,
    )  # fmt: skip
    Steering(Direction("resid_post.0", torch.ones(1), 1.0, "none"), plan.mode, 1.0, plan.positions, plan.phase)  # refuses it
    if plan.positions not in ("all", "last"):
        raise bad_argument("--positions", plan.positions, "all or last")
    if given["judge"] not in ("words", "minilm"):
        raise bad_argument("--judge", given["judge"], "words or minilm")
    return plan


def _texts(path: str) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise bad_argument("--texts", path, "a file of UTF-8 text, one ordinary text a line") from error
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def _plan_record(plan: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    from assay.records import digest, plain

    return {**plain(plan), "grid": list(plan.grid), "pairs": dict(sizes), "texts": {"n": len(plan.texts),
            "digest": digest(list(plan.texts))}}  # fmt: skip


def _key(model: Any, plan: Any, source: Any, sizes: Mapping[str, int], judge: Any, condition: Any, seed: int) -> str:
    """Hash of everything that finished measurements depend on, but the direction."""
    from importlib.metadata import version

    from assay.records import digest

    data = [] if source is None else [source.digest(split, sizes[split], seed) for split in ("tune", "confirm")]
    on = None if not condition else [condition[0].digest, condition[1]]
    shown = replace(plan, prompts=(), shown_tokens=1)  # not kept
    return digest([version("assay"), model.digest, model.tokenizer_digest, shown, list(plan.grid), data, dict(sizes),
                   judge and judge.record(), on, seed])  # fmt: skip


def _side_effects(common: Common, model: Any, behaviour: str, wanted: bool) -> tuple[Any, Any, list[str]]:
    """Other tasks, requests for the refusal overlap, and what could not be had."""
    if not wanted:
        return None, None, ["side effects were not measured (--no-side-effects)"]
    from assay.cli.steer_given import other_tasks, requests_of

    others, notes = other_tasks(behaviour, model, common.seed)
    try:
        return others, requests_of(model, common.seed), notes
    except AssayError as error:
        return others, None, [*notes, f"refusal was not looked at: {error}"]


def _without_behaviour(
    common: Common, model: Any, name: str, found: Any, plan: Any, judge: Any, texts: Any, given: Mapping[str, Any],
    condition: Any,
) -> None:  # fmt: skip
    """What a push does to text: no effect is measured, and no claim is stated."""
    from assay.atlas.steers import KeptSteering
    from assay.atlas.store import Atlas
    from assay.evidence.claims import record_look
    from assay.report.steer_text import save_text_files
    from assay.steer.files import save_direction
    from assay.steer.text_only import steer_text

    kept = KeptSteering(common.atlas, _key(model, plan, None, {}, judge, condition, common.seed))
    others, requests, notes = _side_effects(common, model, "", given["side_effects"])
    with common.progress("steering") as advance:
        shown = max(given["strengths"], key=abs) if given["strengths"] else None
        report = steer_text(model, found, plan, judge, others, requests, condition, advance, kept, shown)
    if texts:
        seen = [each for split in texts.values() for each in split]
        record_look(Atlas(common.atlas), model.digest, f"steer text {report.direction['name']}", seen)
    record = {**report.json(), "claim": {"verdict": "not stated", "reasons": [NO_BEHAVIOUR], "qualifiers": []}, "notes": notes,
              "plan": _plan_record(plan, {}), "passport": model.passport(), "saved": None}  # fmt: skip
    if given["save"]:
        (direction,) = (each for each in found if each.name == report.direction["name"])
        record["saved"] = str(save_direction(direction, given["save"]))
    folder = Path(given["out"]) if given["out"] else common.atlas / "figures"
    record["files"] = save_text_files(report, record, folder, f"steer-{Path(name).name}-text")

    def show() -> Any:
        from assay.report.steer_terminal import text_view

        return text_view(report, record)

    common.emit(record, show)


# the claim ---------------------------------------------------------------------------------------


def _claim(
    common: Common, store: Any, model: Any, source: Any, chosen: Any, plan: Any, sizes: Mapping[str, int],
    given: Mapping[str, Any], others: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The claim that the chosen direction steers the behaviour, stated and tested; or why there is none."""
    if why := _no_claim(chosen, given):
        return {"verdict": "not stated", "reasons": [why], "qualifiers": []}
    from assay.evidence.cautions import warnings_of
    from assay.evidence.features import direction
    from assay.evidence.known import state_once
    from assay.evidence.run import Settings, Statement, test_claim
    from assay.evidence.steers import Steering

    strength = chosen.choice.strength
    vector = chosen.direction.vector if strength > 0 else -chosen.direction.vector
    subject = Steering(direction(chosen.direction.site, vector), chosen.claimed)
    options: dict[str, Any] = {"neutral": list(plan.unseen)} if given["texts_file"] else {}
    if given["selective"] and (done := [name for name in others if _does(model, name)]):
        options["off_target"] = done
    settings = Settings(tune=sizes["tune"], confirm=sizes["confirm"], ood=sizes["ood"], seed=common.seed,
                        positions=chosen.how.positions, options=options)  # fmt: skip
    with common.progress("stating the claim"):
        claim, locked, before = state_once(store, model, source, subject, statement=Statement("steers"), settings=settings)
    if (verdict := store.verdict(claim.id)) is not None:
        return {**verdict.to_json(), "stated_before": True}
    for warning in () if before else warnings_of(locked):
        common.note(f"warning: {warning}")
    with common.progress("testing the claim") as advance:
        return test_claim(store, claim.id, model, advance).to_json()


def _does(model: Any, task: str) -> bool:
    """Whether a claim can name a task as one that should stay as it is: the model must do it."""
    from assay.evidence.effects import other_tasks

    try:
        return bool(other_tasks(model, [task], ()))
    except AssayError:
        return False


def _cannot_claim(given: Mapping[str, Any]) -> str | None:
    """Why no claim can be stated with these options, if none can."""
    if not given["claimed"] or given["quick"]:
        return f"not asked for ({'--quick' if given['quick'] else '--no-claim'})"
    if given["mode"] != "add" or given["phase"] != "all" or given["condition"]:
        return "claims that a direction steers are about adding it, in all phases and without a condition"
    return None


def _no_claim(chosen: Any, given: Mapping[str, Any]) -> str | None:
    """Why no claim is stated, if none is."""
    return _cannot_claim(given) or (None if chosen.choice.works else chosen.choice.why)


# what is shown -----------------------------------------------------------------------------------


def _files(report: Any, record: Mapping[str, Any], folder: Path, name: str) -> list[str]:
    """Write the page and its pictures; where they are."""
    from assay.files import write_file
    from assay.report.figures import save_figure
    from assay.report.steer_figures import dose_figure, items_figure, steer_page

    stem = f"steer-{Path(name).name}-{Path(report.behaviour).stem}-{report.direction['name'].replace('#', '-')}"
    page = folder / f"{stem}.html"
    write_file(page, steer_page(report, record).encode())
    pictures = {f"{stem}-dose.png": dose_figure(report), f"{stem}-dose.svg": dose_figure(report),
                f"{stem}-items.svg": items_figure(report)}  # fmt: skip
    return [str(page), *(str(save_figure(figure, folder / file)) for file, figure in pictures.items())]


def _shown(report: Any, record: Mapping[str, Any]) -> Any:
    from assay.report.steer_terminal import steer_view

    return steer_view(report, record)
