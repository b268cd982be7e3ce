"""`assay map`: from a model to an atlas of features that are explained, scored and tested."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from assay.cli.common import Common, common_options, engine_options, model_options
from assay.errors import bad_argument

SCORERS = "detection,fuzzing,simulation,intruder"


def unit_options(command: Any) -> Any:
    """What is mapped: a dictionary, neurons, heads or directions."""
    for option in (
        click.option("--at", metavar="SITE", help="With --directions: where they are read."),
        click.option("--directions", metavar="FILE", help="Vectors (n, d) as .npy or .safetensors, with --at SITE."),
        click.option("--heads", metavar="L", help="Heads of a layer: the norm of what each adds to the residual stream."),
        click.option("--site", metavar="SITE", help="Neurons of a site: mlp_act.3."),
        click.option("--dictionary", metavar="NAME|PATH", help="Latents. Default: what is shipped with the model."),
    ):
        command = option(command)
    return command


def endpoint_options(command: Any) -> Any:
    """Who explains, and what it may cost."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what an endpoint would cost at most; ask nothing."),
        click.option("--price-out", default=0.0, help="Per million reply tokens."),
        click.option("--price-in", default=0.0, help="Per million prompt tokens."),
        click.option("--budget-money", type=float, help="Most that may be spent, with prices."),
        click.option("--budget-tokens", type=int, help="Most tokens that may be asked and answered. An endpoint that"
                     " is not on this machine needs this cap or the next."),
        click.option("--prompt", default="contrast", show_default=True, help="top, contrast, output or both."),
        click.option("--explainer", default="lexical", show_default=True, metavar="NAME", help="lexical, or openai:MODEL@URL"),
    ):
        command = option(command)
    return command


@click.command("map")
@click.argument("name", metavar="MODEL")
@unit_options
@click.option("--corpus", default="mixed", show_default=True, help="Packaged, a file or a folder. See: assay harvest --list")
@click.option("--ood", default="brown", show_default=True, help="Another that claims must hold on; same: more of the first.")
@click.option("--tokens", default=200_000, show_default=True, type=click.IntRange(1000), help="Read from the corpora in all.")
@click.option("--features", default=None, metavar="K|NAMES", help="So many drawn by --seed, or names. Default: all.")
@click.option("--scorers", default=SCORERS, show_default=True, help="Also: embedding, intervention (slow).")
@click.option("--baseline", default=128, show_default=True, type=click.IntRange(0),
              help="Units of an untrained twin to score; an endpoint is asked about them, too.")  # fmt: skip
@click.option("--topics", is_flag=True, help="Rules may also say what a text is about, by sentence embeddings; slower.")
@click.option("--concepts", default="", metavar="NAMES", help="Labelled concepts (names, files, bundled):"
              " the unit that tells each best is claimed to represent it, and tested.")  # fmt: skip
@click.option("--alpha", default=0.05, show_default=True, help="Level of the claims.")
@endpoint_options
@engine_options
@model_options
@common_options
def map_(common: Common, name: str, dtype: str, prepend_bos: bool | None, **given: Any) -> None:
    """Explain, score and test every feature of MODEL, and say what share of it is explained, and what is not.

    Stages: read, explain, score, lock the claims, pay for sealed data, read them, test, write the atlas. Interrupted, the same
    command goes on; no call to an endpoint is paid twice.
    """
    from assay.atlas.store import Atlas
    from assay.features.engines import Where, opener_at
    from assay.mapping.concepts import names_of
    from assay.mapping.run import MapRun, run_map
    from assay.mapping.units import find_units
    from assay.scale.ray_engine import engine_of

    check_cap(given)
    plan = plan_of(given, common.seed)
    engine = engine_of(given["engine"], common.device, given["workers"], common.note)
    opener = opener_at(name, device=common.device, dtype=dtype, prepend_bos=prepend_bos)
    model = common.load(name, dtype, prepend_bos)
    units = find_units(model, atlas=common.atlas,
                       **{key: given[key] for key in ("dictionary", "site", "heads", "directions", "at")})  # fmt: skip
    run = MapRun(model, units, Atlas(common.atlas), plan, where=Where(engine, opener), concepts=names_of(given["concepts"]))
    with ExitStack() as stack:
        run.report = stack.enter_context(common.progress("mapping"))
        if plan.explainer != "lexical":
            run.asker = asker_of(given, run.folder / "calls", stack)
        if given["dry_run"]:
            record = dry_run(run)
            stack.close()
            common.emit(record, lambda: estimate_words(record))
            return
        record = run_map(run)
    common.emit(record, lambda: shown(record, str(common.atlas)))


def plan_of(given: dict[str, Any], seed: int) -> Any:
    """The plan that the options ask for. Raises UsageError."""
    from assay.explain.endpoint import Endpoint
    from assay.mapping.run import MapPlan, names_in

    features: int | tuple[str, ...] | None = None
    if given["features"] is not None:
        features = int(given["features"]) if given["features"].isdigit() else names_in(given["features"])
    if given["explainer"] != "lexical" and not given["explainer"].startswith("openai:"):
        raise bad_argument("--explainer", given["explainer"], "lexical, or openai:MODEL@URL")
    explainer = given["explainer"] if given["explainer"] == "lexical" else Endpoint.named(given["explainer"]).text
    return MapPlan(given["corpus"], None if given["ood"] == "same" else given["ood"], given["tokens"], features=features,
                   explainer=explainer, prompt=given["prompt"], scorers=names_in(given["scorers"]),
                   baseline=given["baseline"], alpha=given["alpha"], seed=seed, topics=given["topics"])  # fmt: skip


def check_cap(given: dict[str, Any]) -> None:
    """Raises UsageError where an endpoint elsewhere, which may cost money, could be asked without end."""
    from assay.explain.endpoint import Endpoint

    if given["explainer"].startswith("openai:") and not given["dry_run"]:
        endpoint = Endpoint.named(given["explainer"])
        if not endpoint.here and given["budget_tokens"] is None and given["budget_money"] is None:
            raise bad_argument("--budget-tokens, --budget-money", "neither", f"a cap on what {endpoint.address} may be asked",
                               "Give one of them. What it would cost at most: the same command with --dry-run.")  # fmt: skip


def asker_of(given: dict[str, Any], folder: Path, stack: ExitStack) -> Any:
    """The endpoint with its journal and budget, or what takes its place in a dry run."""
    from assay.explain.budget import Budget, Prices
    from assay.explain.endpoint import Asker, DryRun, Endpoint

    endpoint = Endpoint.named(given["explainer"])
    if given["dry_run"]:
        return DryRun(endpoint, Prices(given["price_in"], given["price_out"]), folder)
    budget = Budget(given["budget_tokens"], given["budget_money"], given["price_in"], given["price_out"])
    return stack.enter_context(Asker(endpoint, folder, budget))


def dry_run(run: Any) -> dict[str, Any]:
    """What explaining and scoring would ask for; the corpus is read, nothing is asked, no claim is stated."""
    from dataclasses import asdict

    from assay.mapping.run import would_cost

    if run.asker is None:
        return {"explainer": run.plan.explainer, "expected": {"calls": 0}, "at_most": {"calls": 0}, "kept": 0}
    estimate = would_cost(run)
    return {"explainer": run.plan.explainer, **{name: asdict(value) if hasattr(value, "calls") else value
                                                for name, value in vars(estimate).items()}}  # fmt: skip


def estimate_words(record: dict[str, Any]) -> str:
    """An estimate in one line."""
    lines = [f"{record['explainer']}: nothing was asked."]
    for name, value in record.items():
        if isinstance(value, dict):
            counts = ", ".join(f"{key.replace('_', ' ')} {count:g}" for key, count in value.items())
            lines.append(f"{name.replace('_', ' ')}: {counts}")
        elif name != "explainer":
            lines.append(f"{name.replace('_', ' ')}: {value}")
    return "\n".join(lines)


def shown(record: dict[str, Any], atlas: str) -> Any:
    """The summary in the terminal: what is unexplained first."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from assay.report.story import percent

    def share(value: float | None) -> str:
        return "not defined" if value is None else percent(value)

    features, left, shares = record["features"], record["unexplained"], record["shares"]
    parts: list[Any] = [Text("Unexplained", style="bold")]
    words = {"active_latents": "of active units", "variance": "of variance", "tokens": "of corpus tokens"}
    for name, what in words.items():
        parts.append(Text(f"  {share(left[name])} {what} (explained by supported claims: {share(shares[name])})"))
    parts += [Text("\nUnits", style="bold"), Text("  " + ", ".join(f"{count} {name}" for name, count in features.items()))]
    for title, counts in (("Dropped", record["dropped"]), ("Explained but not claimed", record["not_claimed"]),
                          ("Verdicts, why", record["reasons"])):  # fmt: skip
        if counts:
            parts += [Text(f"\n{title}", style="bold"), Text("\n".join(f"  {n}: {why}" for why, n in counts.items()))]
    if concepts := record.get("concepts"):
        parts += [Text("\nWhat stands for a concept", style="bold"), *(Text(f"  {concept_words(each)}") for each in concepts)]
    table = Table(box=None, pad_edge=False)
    for column in ("scorer", "mean", "shuffled", "untrained", "chance", "features", "failed"):
        table.add_column(column, justify="left" if column == "scorer" else "right")
    for name, score in record["scores"].items():
        numbers = [score["value"], score["shuffled"], score["untrained"], score["chance"]]
        cells = ("" if value is None else f"{value:.2f}" for value in numbers)
        table.add_row(name, *cells, str(score["features"]), str(score["failed"]))
    parts += [Text("\nScores, and what they are worth", style="bold"), table]
    if (cost := record["cost"])["calls"]:
        tokens = cost["prompt_tokens"] + cost["reply_tokens"]
        lost = cost.get("lost", {}).get("calls", 0)
        parts.append(Text(f"\nPaid by all runs of this map: {cost['calls']} calls, {tokens} tokens,"
                          f" {cost['money']:.4g} in money; {lost} calls without a reply"))  # fmt: skip
    if record["meanings"]:
        parts.append(Text(f"\nNot found by meaning: {record['meanings']} Once it is there: assay atlas index"))
    seconds = record["seconds"]
    parts += [Text(f"\n{sum(seconds.values()):.0f} s: " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items())),
              Text(f"read it: assay app --atlas {atlas}")]  # fmt: skip
    return Group(*parts)


def concept_words(each: dict[str, Any]) -> str:
    """A concept, and what came of it."""
    name, unit, said = each["concept"], each["feature"], each["why_not"]
    if said:
        return f"{name}: not claimed, {said}"
    return f"{name}: {unit}, AUROC {each['auroc']:.2f} on discover; claim {each['claim']}: {each['verdict']}"

