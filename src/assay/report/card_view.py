"""Turns a claim card into what its page shows: words and rows. No markup, no decisions."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from assay.report import story
from assay.report.cells import visible
from assay.report.story import chance, number, percent

MOST_HITS, MOST_TOKENS = 10, 80
NOT_CALIBRATED = "This kind of claim is not calibrated in the version that made the card: how often it errs is not known."
Card = Mapping[str, Any]


def card_view(card: Card) -> dict[str, Any]:
    """Everything on the page."""
    claim, plan, evidence = card["claim"], card["plan"], card["evidence"] or {}
    verdict = card["verdict"] or _untested(claim)
    base = story.claim_card(verdict)
    stale = list(card["stale"])
    view = {
        **base, "notes": note_rows(base), "tables": gate_tables(base["gates"]), "digest": card["digest"],
        "statement": claim["statement"],
        "qualifiers": [*base["qualifiers"], *(["stale"] if stale else [])], "stale": stale,
        "scope": scope_rows(claim, plan), "search": search_rows(evidence), "searched": searched_rows(evidence),
        "worst": worst_rows(card), "counterexample_words": counterexample_words(verdict),
        "rivals": rival_rows(claim, verdict, evidence),
        "splits": split_rows(plan, evidence), "leaks": leak_words(evidence), "family": family_rows(verdict),
        "power": power_rows(plan, verdict), "rates": rate_rows(card["error_rates"]),
        "deviations": deviation_rows(card["deviations"]), "replications": replication_rows(card["replications"]),
        "replay": replay_rows(claim, card), "passport": story.passport_rows(passport_of(evidence)),
        "counts": card["ledger"].get("counts", {}), "exported": card["exported"], "assay": card["assay"],
        "lock": plan["lock"],
    }  # fmt: skip
    return {**{name: shown(value) for name, value in view.items()}, "verdict_json": verdict}


def _untested(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {"claim": claim["id"], "kind": claim["kind"], "verdict": "not tested", "reasons": ["confirm unread"],
            "qualifiers": [], "gates": [], "sentence": f"Not tested: {claim['statement']}",
            "does_not_show": ["Anything about the model: no test took place."], "decision": {},
            "counterexamples": {}}  # fmt: skip


def shown(value: Any) -> Any:
    """Text of others with control characters as marks, at any depth."""
    if isinstance(value, str):
        return visible(value, 4000)
    if isinstance(value, Mapping):
        return {shown(key): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return value


def note_rows(base: Mapping[str, Any]) -> list[str]:
    """Why the verdict is what it is; of a refutation, the gates that refute."""
    notes = base["notes"]
    return [f"Significantly below the bar: {', '.join(notes)}."] if notes and base["verdict"] == "refuted" else list(notes)


def gate_tables(gates: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(title, rows) of gates that decide and of those that inform; a row has a gate on all its splits."""
    rows: dict[str, dict[str, Any]] = {}
    for gate in gates:
        name, _, split = str(gate["name"]).partition("@")
        row = rows.setdefault(name, {"name": name, "required": gate["required"], "sesoi": gate["sesoi"], "splits": []})
        row["splits"].append({**gate, "split": split or "confirm"})
    titles = (("Gates that decide", True), ("Gates that inform", False))
    tables = [(title, [row for row in rows.values() if row["required"] is required]) for title, required in titles]
    return [(title, found) for title, found in tables if found]


# scope and data ----------------------------------------------------------------------------------


def scope_rows(claim: Mapping[str, Any], plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the claim is about, and nothing beyond it."""
    subject, task = claim["subject"], claim["task"]
    rows = [("claim", claim["statement"]), ("quantifier", claim["quantifier"]),
            ("model", f"{subject.get('model')} ({str(subject.get('digest'))[:16]}…)"),
            ("tokenizer", f"{subject['tokenizer'][:16]}…" if subject.get("tokenizer") else "not named"),
            ("sites", _listed(subject.get("sites", ()))), ("positions", str(subject.get("positions", "–"))),
            ("data", ", ".join(f"{key} {value}" for key, value in task.items() if value is not None
                              and not isinstance(value, Mapping | list))),
            ("metric", str(plan["metric"])), ("version", _version(claim)), ("stated", claim["created"] or "–"),
            ("locked", f"{plan['lock'][:16]}…")]  # fmt: skip
    return [(name, visible(value, 400)) for name, value in rows]


def _version(claim: Mapping[str, Any]) -> str:
    return f"{claim['version']}" + (f", narrows {claim['parent']}" if claim["parent"] else "")


def _listed(names: Sequence[Any], most: int = 12) -> str:
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def split_rows(plan: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every split as locked, and as read where it was."""
    rows = []
    for name, locked in plan["splits"].items():
        read = (evidence.get("data") or {}).get(name, {})
        dropped = read.get("dropped")
        looked = len(read.get("looked") or ())
        rows.append({"split": name, "items": str(read.get("pairs", locked["n"])),
                     "clusters": str(read.get("clusters", locked["templates"])),
                     "dropped": "–" if dropped is None else str(sum(dropped.values())),
                     "looked": ("yes" if looked else "no") if read else "–",
                     "digest": f"{locked['digest'][:12]}…"})  # fmt: skip
    return rows


def leak_words(evidence: Mapping[str, Any]) -> str:
    """The leak check in one sentence."""
    if not evidence:
        return "Leak check: nothing was read yet."
    leaks = [flag for flag in evidence["flags"] if flag.startswith("leak")]
    others = [flag for flag in evidence["flags"] if not flag.startswith("leak")]
    said = "; ".join(leaks) if leaks else "no template, word or text of confirm or ood was seen before"
    return f"Leak check: {said}." + (f" Instrument: {'; '.join(others)}." if others else "")


# counterexamples ---------------------------------------------------------------------------------


def worst_rows(card: Card) -> list[dict[str, Any]]:
    """The ten worst counterexamples, token by token where their tokens were kept."""
    hits = sorted(card["counterexamples"], key=lambda hit: hit["score"])[:MOST_HITS]
    return [{"score": number(hit["score"]), "gate": hit["gate"], "status": hit["status"], "expected": hit["expected"],
             "method": hit.get("method", ""), "clean": visible(hit["clean"], 400), "corrupted": visible(hit["corrupted"], 400),
             "minimal": visible(hit.get("minimal", ""), 400), "tokens": token_rows(hit.get("tokens") or ())}
            for hit in hits]  # fmt: skip


def token_rows(tokens: Sequence[Sequence[Any]]) -> list[dict[str, str]]:
    """Tokens with their scores and the strength of their tint, 0 to 100."""
    scores = [abs(float(score)) for _, score in tokens if score is not None]
    most = max(scores, default=0.0) or 1.0
    return [{"text": visible(str(token), 40), "score": number(score), "sign": "down" if (score or 0) < 0 else "up",
             "tint": f"{100 * abs(float(score or 0)) / most:.0f}"} for token, score in tokens[:MOST_TOKENS]]  # fmt: skip


def counterexample_words(verdict: Mapping[str, Any]) -> str:
    """How many there are, of how many."""
    found = verdict.get("counterexamples") or {}
    if not found:
        return "No search was run."
    n, share = found.get("candidates"), percent(found.get("share"))
    bounds = f"{percent(found.get('low'))} to {percent(found.get('high'))}"
    return (f"{found['hits']} of {n} sampled items go against the claim ({share}; 95% interval {bounds});"
            f" {found['verified']} failed again when measured alone.")  # fmt: skip


def search_rows(evidence: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every search method: what it tried, found, cost, and what finding nothing bounds."""
    methods = (evidence.get("search") or {}).get("methods", {})
    return [{"method": name, "tried": str(found.get("tried", "–")), "hits": str(found.get("hits", "–")),
             "passes": str(found.get("passes", "–")), "finished": "yes" if found.get("complete") else "no",
             "bound": "–" if found.get("bound_if_none") is None else f"below {percent(found['bound_if_none'])}"}
            for name, found in methods.items() if isinstance(found, Mapping)]  # fmt: skip


def searched_rows(evidence: Mapping[str, Any]) -> list[str]:
    """What searches found that is no failure, and why some looked at nothing."""
    found = []
    for name, notes in _notes(evidence):
        if notes.get("skipped"):
            found.append(f"{name}: looked at nothing: {notes['skipped']}.")
        if notes.get("failed"):
            found.append(f"{name}: {notes['failed']}")
        found += [f"{name}: {notes[key]}." for key in ("narrower", "lexical") if notes.get(key)]
        if "median_tokens" in notes:
            found.append(f"{name}: half of the members need no more than {notes['median_tokens']} tokens.")
        if "attacked" in notes:
            found.append(f"{name}: {notes.get('got_past')} of {notes['attacked']} attacked texts got past.")
    return found


def _notes(evidence: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The notes of every search that has some; cards of others may have anything there."""
    methods = (evidence.get("search") or {}).get("methods", {})
    found = [(name, method.get("notes")) for name, method in methods.items() if isinstance(method, Mapping)]
    return [(name, notes) for name, notes in found if isinstance(notes, Mapping)]


def rival_rows(claim: Mapping[str, Any], verdict: Mapping[str, Any], evidence: Mapping[str, Any]) -> list[str]:
    """Rivals named in the claim, gates that compared with rivals, and rivals that a search listed."""
    found = [f"{rival}: named in the claim" for rival in claim["rivals"]]
    for gate in verdict["gates"]:
        if gate.get("group") == "rival":
            beaten = "beaten" if gate["passed"] else "not beaten: the claim is not unique"
            found.append(f"{gate['name']}: the claim's lead is {number(gate['estimate'])}"
                         f" ({story.interval(gate.get('low'), gate.get('high'))}); {beaten}")  # fmt: skip
    for name, notes in _notes(evidence):
        if "n_rivals" in notes:
            rivals = [rival for rival in notes.get("rivals") or () if isinstance(rival, Mapping)]
            shown = "; ".join(map(_rival_words, rivals[:5]))
            found.append(f"{name}: {notes['n_rivals']} do as well{f': {shown}' if shown else ''}.")
    return found or ["None was named or measured."]


def _rival_words(rival: Mapping[str, Any]) -> str:
    """What a rival is, and its numbers."""
    said = [_listed(value, 4) if isinstance(value, list) else f"{name} {number(value) if isinstance(value, float) else value}"
            for name, value in rival.items()]  # fmt: skip
    return " ".join(said)


# decision ----------------------------------------------------------------------------------------


def family_rows(verdict: Mapping[str, Any]) -> list[str]:
    """Claims sharing the confirm data, the correction over them, and how often the data were read."""
    decision = verdict.get("decision") or {}
    if "p" not in decision:
        return ["Not decided yet."]
    n = len(decision.get("family") or {}) + 1
    return [f"{n} claim{'s share' if n > 1 else ' uses'} these confirm data; Holm's correction over {n}.",
            f"p of this claim {chance(decision['p'])} (largest over its required gates),"
            f" {chance(decision['p_adjusted'])} corrected.",
            f"Level {decision['alpha']:.3g}: these data were read {decision['reads']} time{'s' * (decision['reads'] != 1)}"
            " for this subject, and the level is divided by the square of that."]  # fmt: skip


def power_rows(plan: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[dict[str, str]]:
    """Per required gate and split: clusters, items, intraclass correlation, smallest detectable effect."""
    return [{"gate": gate["name"], "K": str(gate.get("K", "–")), "N": str(gate.get("N", "–")), "icc": number(gate.get("icc")),
             "planned": number(plan["mde"].get(gate["name"])), "found": number(gate.get("mde80"))}
            for gate in verdict["gates"] if gate.get("required", True)]  # fmt: skip


def rate_rows(rates: Mapping[str, Any] | None) -> list[str]:
    """The battery's own error rates for this kind."""
    if not rates:
        return [NOT_CALIBRATED]
    null = rates.get("null") or {}
    found = [f"False claims called supported: {null.get('supported')} of {null.get('n')}, at most"
             f" {percent(null.get('upper95'))} with 95% confidence (version {rates.get('version')})."]  # fmt: skip
    for step in rates.get("power") or ():
        found.append(f"True claims of {number(step.get('effect_in_sesoi'), 1)} times the bar called supported:"
                     f" {step.get('supported')} of {step.get('n')}.")  # fmt: skip
    return found


def deviation_rows(deviations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The list, which is there even when it is empty."""
    rows = []
    for found in deviations:
        bars = ", ".join(f"{name} {bar:g}" for name, bar in found["sesoi"].items())
        rows.append(f"{found['what']}; because {found['why']}{f' (bars now: {bars})' if bars else ''} [{found['created']}]")
    return rows or ["None."]


def replication_rows(replications: Sequence[Mapping[str, Any]]) -> list[str]:
    """Who measured it again, where, and what came out; failures in the same words."""
    rows = []
    for found in replications:
        came = "the same verdict and numbers" if found["same"] else f"it differs: {found['verdict']} (was {found['before']})"
        moved = f"; {'; '.join(found['moved'][:5])}" if found["moved"] else ""
        rows.append(f"{found['who']}, {found['where']}, {found['created']}: {came}{moved}")
    return rows or ["None yet."]


def replay_rows(claim: Mapping[str, Any], card: Card) -> list[dict[str, str]]:
    """What to type to check it."""
    name = shlex.quote(str(claim["id"]))
    again, whole = "Derive gates and verdict again from this card's JSON form.", "In its atlas: measure everything again."
    return [{"command": f"assay claim import {name}.json", "what": again},
            {"command": f"assay claim replay {name}", "what": whole}]  # fmt: skip


def passport_of(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The passport without what is shown elsewhere."""
    run = dict(evidence.get("run") or {})
    return {name: value for name, value in run.items() if name not in ("resolved", "command")}
