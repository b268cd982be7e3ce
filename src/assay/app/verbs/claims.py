"""`claim_kinds`, `claim_state`, `claim_test`, `verify`: state what is believed, spend sealed data on it, check what is kept.

A claim that was stated with the same words, data and plan before is not stated again. A claim that is tested again is charged:
the k-th read of the same data for the same subject is decided at alpha / k², and the verdict says so.
"""

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app import directions, explore, stating
from assay.app.arguments import integer, record, string, strings
from assay.app.blocks import claims, column, facts, table, text
from assay.app.verbs import Report, Result, verb
from assay.errors import ReproduceError, bad_argument
from assay.records import canonical, plain

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.evidence.run import Settings
    from assay.evidence.source import Population
    from assay.model.model import Model
    from assay.records import Claim, Plan, Verdict

LATENT = re.compile(r'"latent\.([^"]+)"')
SETTINGS = ("tune", "confirm", "ood", "draws", "seed")
GATE = ("name", "split", "estimate", "low", "high", "sesoi", "p", "passed", "required")
DEFAULTS = {"tune": 48, "confirm": 128, "ood": 64, "draws": 99}


@verb("claim_kinds", "read", "What can be claimed, and the gates each kind must pass, with their smallest effect of interest.",
      kind=string("Only this kind."))  # fmt: skip
def claim_kinds(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.evidence.gates import gates_for
    from assay.evidence.kinds import KINDS
    from assay.evidence.search import searches_for

    rows = []
    for name in [arguments["kind"]] if "kind" in arguments else KINDS.names():
        kind = KINDS.get(name)
        words = sys.modules[type(kind).__module__].__doc__ or name
        gates = [{"name": gate.name, "sesoi": gate.bars.get(name, gate.sesoi), "group": gate.group,
                  "required": not callable(gate.required) and not gate.asked and gate.required}
                 for gate in gates_for(name)]  # fmt: skip
        rows.append({"kind": name, "about": words.strip().splitlines()[0].rstrip("."), "gates": gates,
                     "subject": " ".join((kind.subject.__doc__ or "").split()),
                     "searches": [method.name for method in searches_for(name)]})  # fmt: skip
    shown = [{"kind": row["kind"], "about": row["about"],
              "gates": ", ".join(f"{gate['name']} > {gate['sesoi']:g}" for gate in row["gates"] if gate["required"])}
             for row in rows]  # fmt: skip
    return {"record": rows, "blocks": [table("kinds", [column("kind", "kind"), column("about", "what is said"),
                                                      column("gates", "must pass")], shown)]}  # fmt: skip


@verb("claim_state", "intervene", "State a claim and lock its plan. Measures tune items only; confirm and ood stay sealed until"
      " claim_test. What is locked cannot be changed: narrow it with `parent`.", long=True, required=("data", "kind"),
      model=explore.model_name(), data=explore.data_name("task or concept"),
      kind=string("mediates, represents, decodes, uses, connects, steers, explains, detects or reconstructs. See claim_kinds."),
      sites=strings("What it is about: heads and layers (z.L.H, mlp_out.L, resid_post.L) or edges for mediates, a site for"
                    " decodes, units (mlp_act.L.N, latent.NAME.N) for represents, uses, detects; two for connects."),
      subject=record('Instead of sites, the parts of the subject, e.g. {"feature": "mlp_act.3.17", "rule": {"type": "lexicon",'
                     ' "words": ["the"]}} for explains. A dictionary, and in place of a feature a'
                     ' direction ("direction": NAME, "sign": 1 or -1), is given by its name.'),
      quantifier=string("How much is said.", "tends", ("tends", "usually", "always")),
      statement=string("The claim in your words.", longest=1000), parent=string("The claim that this one narrows."),
      corruption=string("Of a bundled task. Default: its first."),
      tune=integer("Items to fix directions and sizes on.", DEFAULTS["tune"], 1, 2000),
      confirm=integer("Items to test it on.", DEFAULTS["confirm"], 1, 4000),
      ood=integer("Items of further templates to test it on.", DEFAULTS["ood"], 1, 4000),
      draws=integer("Random controls.", DEFAULTS["draws"], 1, 1000), sesoi=record("Smallest effect of interest by gate."),
      options=record("What the kind wants besides."), search=record("Candidates that counterexample searches may try."),
      seed=explore.seed())  # fmt: skip
def claim_state(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.evidence.kinds import KINDS, check_items
    from assay.evidence.run import Statement
    from assay.evidence.source import find_source

    kind, settings = KINDS.get(arguments["kind"]), settings_of(arguments)
    source = find_source(explore.known_data(workspace, arguments["data"]), arguments.get("corruption"))
    check_items(kind, source.items("tune", settings.tune, settings.seed), source.name)
    words = Statement(arguments["kind"], arguments["quantifier"], arguments.get("statement", ""), arguments.get("parent"))
    bars = {str(name): _number("sesoi", value) for name, value in arguments.get("sesoi", {}).items()}
    report("loading the model", 0, 2)
    with workspace.using(arguments.get("model")) as model:
        given = subject_of(workspace, model, arguments)
        stating.check_subject(model, arguments["kind"], given)
        report("measuring tune items", 1, 2)
        stated = stating.state(workspace.store, model, source, given, words, bars, settings)
    claim, plan, warnings = stated.claim, stated.plan, list(stated.warnings)
    found = {"claim": claim.id, "statement": claim.statement, "kind": claim.kind, "lock": plan.lock, "warnings": warnings,
             "stated_before": stated.before, "splits": plan.splits, "mde": plan.mde, "next": "claim_test",
             "required": {gate.name: gate.sesoi for gate in plan.gates if gate.required}}  # fmt: skip
    return {"record": found, "blocks": _stated_blocks(claim, plan, warnings)}


@verb("claim_test", "intervene", "Test a locked claim on confirm and ood, and decide. Sealed data are read and charged: a"
      " second read of the same data for the same subject is decided at a stricter level.", long=True, spends=True,
      required=("claim",), claim=string("Its id, c-…", longest=40), model=explore.model_name())  # fmt: skip
def claim_test(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    return tested(workspace, arguments["claim"], arguments.get("model"), report)


@verb("claim_replay", "intervene", "Measure a tested claim again from its plan and compare: the same verdict and numbers? No"
      " new evidence: the data are the same. What comes out is kept as a replication.", long=True, required=("claim",),
      claim=string("Its id, c-…", longest=40), model=explore.model_name())  # fmt: skip
def claim_replay(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay.evidence.replay import replay_claim

    stated, source, model = _ready(workspace, arguments["claim"], arguments.get("model"))
    report("loading the model", 0, 1)
    with workspace.using(model) as loaded:
        found = replay_claim(workspace.store, stated.id, loaded, lambda label, done, total: report(label, done, total),
                             source=source, who=workspace.actor)  # fmt: skip
    said = "The same verdict and numbers." if found.same else "It differs."
    kept = {"claim": stated.id, "same": found.same, "before": found.before, "again": found.again.verdict,
            "moved": list(found.moved)}  # fmt: skip
    return {"record": kept, "blocks": [text("replay", said, *found.moved, title=f"Replay of {stated.id}")]}


@verb("verify", "read", "Check ledger and audit log, and derive every verdict again from stored tables: what does not hold?",
      claim=string("Only this claim.", longest=40))  # fmt: skip
def verify(workspace: "Workspace", arguments: explore.Arguments, report: Report) -> Result:
    from assay import permissions
    from assay.evidence.claims import audit

    if workspace.is_empty:
        return {"record": {"ok": True, "problems": [], "entries": 0, "claims": 0},
                "blocks": [text("verify", "No atlas yet: nothing was stated or measured.")]}  # fmt: skip
    with workspace.store as store:
        problems, n = store.verify(), store.entry_count()
        chosen = [arguments["claim"]] if "claim" in arguments else store.claim_ids()
    for number, name in enumerate(chosen):
        report("claims", number, len(chosen))
        with store:  # a claim at a time: pages are read in between
            problems += audit(store, name)
    problems += [f"audit log: {each}" for each in permissions.verify(workspace.atlas)]
    found = {"ok": not problems, "problems": problems, "entries": n, "claims": len(chosen)}
    said = problems or [f"{n} ledger entries and {len(chosen)} claims: all verdicts follow."]
    return {"record": found, "blocks": [text("verify", *said, title="What is kept holds" if not problems else "Tampered")]}


# shared with other verbs ---------------------------------------------------------------------------


def tested(workspace: "Workspace", claim_id: str, name: str | None, report: Report) -> Result:
    """Test a claim and show its card. `name`: of its model, where that is not the workspace's own."""
    from assay.app.cards import card_of
    from assay.atlas.linked import link_tested
    from assay.evidence.run import test_claim

    stated, source, model = _ready(workspace, claim_id, name)
    report("loading the model", 0, 1)
    with workspace.using(model) as loaded:
        verdict = test_claim(workspace.store, claim_id, loaded, lambda label, done, total: report(label, done, total),
                             source=source)  # fmt: skip
    link_tested(workspace.store, claim_id)
    return {"record": verdict_record(workspace, verdict, stated), "blocks": [claims("verdict", [card_of(workspace, claim_id)])]}


def verdict_record(workspace: "Workspace", verdict: "Verdict", stated: "Claim") -> dict[str, Any]:
    """A verdict without the tables it was made from, and the tally of the ledger."""
    whole = verdict.to_json()
    gates = [{key: gate.get(key) for key in GATE} for gate in whole["gates"]]
    return {**whole, "gates": gates, "statement": stated.statement, "tally": workspace.counts()}


def _ready(workspace: "Workspace", claim_id: str, name: str | None) -> "tuple[Claim, Population, str | None]":
    """A claim, its data, and the name of its model; its dictionaries are open."""
    from assay.evidence.source import source_of

    stated = workspace.store.claim(claim_id)
    source = source_of(stated.task)
    open_dictionaries(workspace, stated.subject)
    own = stated.subject["model"]
    return stated, source, name or (own if own in workspace.models() else None)


def settings_of(arguments: explore.Arguments) -> "Settings":
    """Sizes, draws, seed and what the kind wants besides. Raises UsageError."""
    from assay.evidence.run import Settings
    from assay.evidence.search import SEARCHES

    search = {str(name): int(_number("search", value)) for name, value in arguments.get("search", {}).items()}
    for method in search:
        SEARCHES.get(method)
    sizes = {name: arguments[name] for name in SETTINGS}
    settings = Settings(**sizes, options=dict(arguments.get("options", {})), search=search)
    settings.check()
    return settings


def subject_of(workspace: "Workspace", model: "Model", arguments: explore.Arguments) -> Any:
    """What the kind's `subject` takes: sites, or an object of parts. Latents and dictionaries it names are opened, a saved
    direction becomes a feature; one that is the only part is the subject itself."""
    parts, sites = arguments.get("subject"), arguments.get("sites")
    if (parts is None) == (not sites):
        raise bad_argument("sites, subject", "both" if sites else "neither", "one of them", "See claim_kinds.")
    known = {row["name"] for row in workspace.dictionaries()}
    for name in dict.fromkeys(LATENT.findall(canonical(parts or sites))):
        workspace.dictionary(name if name in known else name.rpartition(".")[0] or name)
    if parts is None:
        return sites[0] if sites and len(sites) == 1 else sites
    named = {key: workspace.dictionary(str(parts[key])) for key in ("dictionary", "second") if parts.get(key) is not None}
    rest = {key: value for key, value in parts.items() if key not in ("direction", "sign")}
    if "direction" not in parts:
        return {**rest, **named}
    feature = _feature(workspace, model, parts)
    return {**rest, **named, "feature": feature} if rest else feature


def _feature(workspace: "Workspace", model: "Model", parts: Mapping[str, Any]) -> Any:
    """A saved direction as a feature, turned round where sign is -1."""
    from assay.evidence.features import direction

    sign = parts.get("sign", 1)
    if sign not in (1, -1):
        raise bad_argument("sign", sign, "1 or -1")
    found = directions.saved(workspace, model, str(parts["direction"]))
    return direction(found.site, sign * found.vector)


def open_dictionaries(workspace: "Workspace", subject: Mapping[str, Any]) -> None:
    """Open the dictionaries that a claim is about. Raises ReproduceError for one that is not kept here."""
    from assay.evidence.dictionaries import is_open

    for part in ("dictionary", "second"):
        about = subject.get(part)
        if not about or is_open(about["digest"]):
            continue
        if about["digest"] not in {row["digest"] for row in workspace.dictionaries()}:
            raise ReproduceError(f"dictionary {about['name']} ({about['digest'][:12]}): not kept in this atlas. Test the claim"
                                 " on the command line, with --dictionary PATH.")  # fmt: skip
        workspace.dictionary(about["digest"])


def _stated_blocks(claim: "Claim", plan: "Plan", warnings: list[str]) -> list[Any]:
    gates = [{"gate": gate.name, "bar": gate.sesoi, "decides": "required" if gate.required else "reported",
              "mde": plan.mde.get(gate.name)} for gate in plan.gates]  # fmt: skip
    said = [text("stated-warnings", *warnings, title="Before you test it")] if warnings else []
    return [
        facts("stated", [{"label": "claim", "value": claim.id, "href": f"#/claim?claim={claim.id}"},
                         {"label": "says", "value": claim.statement}, {"label": "locked", "value": plan.lock[:16]},
                         *({"label": name, "value": f"{part['n']} items of {part['templates']} templates"}
                           for name, part in plan.splits.items())], title="Stated and locked", help="claim"),
        *said,
        table("stated-gates", [column("gate", "gate"), column("bar", "must beat", "number", "smallest effect of interest"),
                               column("decides", "decides"),
                               column("mde", "smallest excess found 80% of the time", "number")], gates),
    ]  # fmt: skip


def _number(argument: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_argument(argument, plain(value), "numbers by name")
    return float(value)
