"""`map`: features of the model explained by rules, scored, claimed and tested, as `assay map` does it; resumable.

Explanations by a language model are for the command line: what a page or an agent asks for never makes this program call an
address of its choosing.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import explore
from assay.app.arguments import integer, string, strings
from assay.app.blocks import Fact, facts, href, links, unexplained
from assay.app.results import keep_result
from assay.app.sets import share_words, unexplained_of
from assay.app.verbs import Report, Result, verb
from assay.errors import missing

if TYPE_CHECKING:
    from assay.app.workspace import Workspace

SAME = "same"


@verb("map", "intervene", "Explain features of the model by rules, score the rules, claim those that pass a screen and test"
      " them on sealed text; the share that stays unexplained. Cancelled, the same call goes on.", long=True, spends=True,
      model=explore.model_name(),
      dictionary=string("Whose latents, by name. Default: the one that comes with the model.", longest=400),
      site=string("Neurons of this site instead, mlp_act.L.", longest=100),
      heads=string("Heads of this layer instead.", longest=20),
      corpus=string("A packaged corpus. Default: mixed.", "mixed", longest=100),
      ood=string("Another that claims must hold on, too; same: more of the first.", "brown", longest=100),
      tokens=integer("Tokens to read in all.", 200_000, 1000, 4_000_000),
      features=integer("So many drawn by seed. Default: all.", None, 1, 1_000_000),
      baseline=integer("Units of an untrained twin that are scored beside.", 128, 0, 4096),
      concepts=strings("Labelled concepts: the unit that tells each best is claimed to represent it, and tested.", 20, 400),
      seed=explore.seed())  # fmt: skip
def map_features(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.mapping.run import MapPlan, MapRun, run_map
    from assay.mapping.units import find_units

    concepts = tuple(explore.concept_of(workspace, name).data for name in arguments.get("concepts", ()))
    ood = None if arguments["ood"] == SAME else _corpus("ood", arguments["ood"])
    plan = MapPlan(_corpus("corpus", arguments["corpus"]), ood, arguments["tokens"], features=arguments.get("features"),
                   baseline=arguments["baseline"], seed=arguments["seed"])  # fmt: skip
    given = {name: arguments[name] for name in ("site", "heads") if name in arguments}
    if "dictionary" in arguments:
        given["dictionary"] = workspace.dictionary(arguments["dictionary"])
    report("loading the model", 0, 1)
    with workspace.using(arguments.get("model")) as model:
        run = MapRun(model, find_units(model, **given), workspace.store, plan, concepts=concepts,
                     report=lambda what, done, of: report(what, done, of))  # fmt: skip
        summary = run_map(run)
    record = {key: value for key, value in summary.items() if key != "passport"}
    return keep_result(workspace.atlas, "map", arguments, model.digest, f"map of {summary['dictionary']}",
                       {"record": record, "blocks": map_blocks(summary)})  # fmt: skip


def _corpus(argument: str, name: str) -> str:
    from assay.data.corpus_packages import PACKAGES

    if name not in PACKAGES:
        raise missing(argument, name, ", ".join(PACKAGES), "Corpora of your own: assay map, on the command line.")
    return name


def _concept(each: Mapping[str, str]) -> Fact:
    """What came of a concept."""
    shown: Fact = {"label": each["concept"], "value": each["verdict"] or each["why_not"], "note": each["feature"]}
    if each["claim"]:
        shown["href"] = href("claim", claim=each["claim"])
    return shown


def map_blocks(summary: Mapping[str, Any]) -> list[Any]:
    """What is not explained, what was counted, and where to read on."""
    found, concepts = summary["features"], [_concept(each) for each in summary.get("concepts", ())]
    return [
        unexplained("map-unexplained", unexplained_of(summary), title="Not explained", help="unexplained"),
        facts("map-facts", [
            {"label": "mapped", "value": found["mapped"]}, {"label": "active", "value": found["active"]},
            {"label": "with an explanation", "value": share_words(found["explained"], found["active"]), "help": "explanation"},
            *({"label": name, "value": found[name]} for name in ("claimed", "supported", "refuted", "inconclusive")),
        ], title="What was found"),
        *([facts("map-concepts", concepts, title="What stands for a concept", help="represents")] if concepts else []),
        links("map-next", [{"label": "Read the map", "href": href("search", set=summary["set"])}]),
    ]  # fmt: skip
