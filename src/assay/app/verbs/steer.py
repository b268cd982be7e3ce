"""`generate` and `dose`: what a push along a direction does, text by text and dose by dose.

Both read discover and tune only. That a direction steers a behaviour is a claim (kind steers): `dose` says how to state it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.app import directions, explore
from assay.app.arguments import integer, number, string
from assay.app.blocks import Line, Mark, Side, column, facts, line, table, text, texts
from assay.app.results import keep_result
from assay.app.verbs import Report, Result, verb

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.model.model import Model
    from assay.steer.run import Chosen

SIDES = ("unsteered", "steered", "random")
HALF = "\ufffd"  # stands for a letter whose tokens are not all there
SIZES = {"discover": 44, "tune": 33}


@verb("generate", "intervene", "Continue a text unsteered, steered along a direction, and pushed along a random direction of"
      " equal size.", long=True, changes="steered", required=("prompt",), model=explore.model_name(),
      prompt=string("The text to continue.", longest=4000), direction=directions.SAVED, feature=directions.FEATURE,
      concept=directions.CONCEPT, site=directions.SITE,
      dose=number("Fraction of the residual norm; negative: the other way.", 0.2, -5, 5),
      max_new_tokens=integer("Tokens to write.", 32, 1, 256), seed=explore.seed())  # fmt: skip
def generate(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.data.ordinary import TEXTS
    from assay.steer.apply import residual_norm
    from assay.steer.effects import How, Push, random_directions
    from assay.steer.fluency import check_room

    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        explore.look_at_texts(workspace, model, "generate", [arguments["prompt"]])
        (direction,) = directions.directions_of(workspace, model, "generate", arguments)
        (ids,) = model.tokens([arguments["prompt"]])
        check_room(model, [ids], arguments["max_new_tokens"])
        how = How(residual_norm(model, direction.site, TEXTS[:20]))
        drawn = random_directions(model, direction, model.tokens(list(TEXTS[:12])), 1, arguments["seed"])
        pushes = [Push(direction, 0.0), Push(direction, arguments["dose"]), Push(next(iter(drawn.values())), arguments["dose"])]
        written = _written(model, ids, pushes, how, arguments["max_new_tokens"], report)
    shown: list[Side] = [{"label": side, "pieces": [arguments["prompt"], new]}
                         for side, new in zip(SIDES, written, strict=True)]  # fmt: skip
    record = {"model": model.name, "direction": direction.name, "site": direction.site, "dose": arguments["dose"],
              "norm": how.norm, **dict(zip(SIDES, written, strict=True))}  # fmt: skip
    blocks = [texts("generated", shown, title="Side by side", note="One text shows what can happen, not what usually does.")]
    return keep_result(workspace.atlas, "generate", arguments, model.digest, f"“{arguments['prompt'][:50]}”",
                       {"record": record, "blocks": blocks})  # fmt: skip


def _written(model: "Model", ids: Sequence[int], pushes: Sequence[Any], how: Any, most: int, report: Report) -> list[str]:
    """Greedy continuations under every push, a token at a time.

    A letter may be of several tokens: what ends inside one is told when the rest is there.
    """
    from assay.model.stream import Picking, Stream
    from assay.steer.effects import pushed_edits

    stream = Stream(model, width=len(pushes))
    sides = {}
    for side, push in enumerate(pushes):
        edits = [replace(edit, value=edit.value[0]) for edit in pushed_edits([push], how, 1)]
        sides[stream.join(ids, Picking(most), edits)] = side
    new: list[list[int]] = [[] for _ in pushes]
    said = [""] * len(pushes)
    while stream.busy:
        for step in stream.step():
            side = sides[step.row]
            new[side] += [] if step.token is None else [step.token]
            whole = model.text(new[side])
            settled = whole if step.finish else whole.rstrip(HALF)
            if settled.startswith(said[side]):
                report.piece(SIDES[side], settled[len(said[side]) :])
                said[side] = settled
        report("writing", max(map(len, new)), most)
    return [model.text(tokens) for tokens in new]


@verb("dose", "intervene", "Dose and response on tune: the effect on a task at every strength, damage to ordinary text, and"
      " where text breaks. Chooses layer and strength; sealed data are not read.", long=True, changes="steered",
      required=("task",),
      model=explore.model_name(), task=explore.data_name("task"), direction=directions.SAVED, feature=directions.FEATURE,
      concept=directions.CONCEPT, site=directions.SITE,
      mode=string("How it is applied.", "add", ("add", "clamp", "project_out", "cap", "floor")),
      openings=integer("Texts that are continued at every dose.", 6, 1, 16), seed=explore.seed())  # fmt: skip
def dose(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.data.prepare import prepare
    from assay.steer.run import Behaviour, SteerPlan, choose_direction

    source = explore.task_of(workspace, arguments["task"])
    pairs = source.items("tune", SIZES["tune"], arguments["seed"])
    plan = SteerPlan(mode=arguments["mode"], openings=arguments["openings"], max_new_tokens=16, shown_tokens=1,
                     seed=arguments["seed"])  # fmt: skip
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        found = directions.directions_of(workspace, model, "dose", arguments, many=True)
        prepared = prepare(pairs, model)
        explore.look(workspace, model, f"dose {source.name}", prepared.pairs)
        kept = _kept(workspace, model, plan, source, arguments)
        chosen = choose_direction(model, found, Behaviour(source.name, prepared), plan,
                                  lambda label, done, of: report(label, done, of), kept)
        stem = f"dose-{Path(model.name).name}-{Path(source.name).stem}"
        name = directions.save(workspace, chosen.direction, stem)
        record = _dose_record(chosen, source.name, name)
        return keep_result(workspace.atlas, "dose", arguments, model.digest, f"{source.name}: {chosen.direction.site}",
                           {"record": record, "blocks": dose_blocks(chosen, record)})  # fmt: skip


def _kept(workspace: "Workspace", model: "Model", plan: Any, source: Any, arguments: explore.Arguments) -> Any:
    """Where finished measurements are kept, so that the same call goes on from there."""
    from assay.atlas.steers import KeptSteering
    from assay.records import digest

    data = source.digest("tune", SIZES["tune"], arguments["seed"])
    key = ["verb dose", model.digest, model.tokenizer_digest, plan, list(plan.grid), data]
    return KeptSteering(workspace.atlas, digest(key))


def _dose_record(chosen: "Chosen", task: str, name: str) -> dict[str, Any]:
    strength = chosen.choice.strength
    claim = None
    if chosen.choice.works and chosen.how.mode == "add":
        claim = {"kind": "steers", "data": task, "subject": {"direction": name, "sign": 1 if strength > 0 else -1,
                                                           "strengths": chosen.claimed}}  # fmt: skip
    return {
        "task": task, "direction": name, "site": chosen.direction.site, "strength": strength, "works": chosen.choice.works,
        "why": chosen.choice.why, "slope": chosen.curve.slope, "reversed": chosen.curve.reversed, "cliffs": chosen.curve.cliffs,
        "points": [{"dose": point.strength, "effect": point.effect.mean, "low": point.effect.low, "high": point.effect.high,
                    "kl": point.kl, "perplexity": point.perplexity, "distinct": point.distinct, "broken": list(point.broken)}
                   for point in chosen.curve.points],
        "layers": [{"site": each.site, "effect": each.effect, "strength": each.strength} for each in chosen.screened],
        "claim": claim,
    }  # fmt: skip


def dose_blocks(chosen: "Chosen", record: dict[str, Any]) -> list[Any]:
    """The curve, where text breaks, and what to do next."""
    series: list[Line] = [{"label": "effect", "points": [
        {"x": row["dose"], "y": row["effect"], "low": row["low"], "high": row["high"]} for row in record["points"]]}]
    harm: list[Line] = [{"label": "KL on ordinary text", "points": [{"x": row["dose"], "y": row["kl"]}
                                                                   for row in record["points"]]}]  # fmt: skip
    marks: list[Mark] = [{"x": record["strength"], "label": "chosen"}]
    broken: list[Mark] = [{"x": at, "label": "text breaks"} for at in record["cliffs"].values() if at is not None]
    marks = [*marks, *broken]
    rows = [{**row, "effect": {"value": row["effect"], "low": row["low"], "high": row["high"]},
             "broken": "; ".join(row["broken"])} for row in record["points"]]  # fmt: skip
    columns = [column("dose", "dose", "number"), column("effect", "effect", "interval"), column("kl", "KL", "number"),
               column("perplexity", "perplexity ratio", "number"), column("distinct", "distinct-2 ratio", "number"),
               column("broken", "broken text")]  # fmt: skip
    clear = record["works"] and any(row["dose"] == record["strength"] and (row["low"] or 0) > 0 for row in record["points"])
    said = ("It works on tune." if clear else
            "On tune the effect at the chosen dose cannot be told from none: a claim about it will hardly be supported."
            if record["works"] else "It does not work on tune: state no claim about it.")  # fmt: skip
    return [
        facts("dose-facts", [{"label": "direction", "value": record["direction"]}, {"label": "at", "value": record["site"]},
                             {"label": "chosen dose", "value": record["strength"], "note": record["why"],
                              "tone": "good" if clear else "warn"},
                             {"label": "prompts that go the other way", "value": record["reversed"]}]),
        line("dose-curve", series, {"label": "dose (share of the residual norm)"},
             {"label": "effect (1: the task's own contrast)"}, marks=marks, title="Dose and effect, on tune", help="dose"),
        line("dose-harm", harm, {"label": "dose"}, {"label": "nats per token"}, marks=marks, title="Damage to ordinary text"),
        table("dose-rows", columns, rows),
        text("dose-next", said, "The dose was chosen on this curve, so the curve is no evidence: state a claim of kind steers,"
                                " and test it (claim_state, claim_test)."),
    ]  # fmt: skip
