"""Claims as cards of a page, and the words that go with them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from assay.app.blocks import Card, Counter, Fact, Gate, Inline, Tone, href
from assay.records import Counterexample
from assay.report.card_view import card_view
from assay.report.cells import visible

if TYPE_CHECKING:
    from assay.app.workspace import Workspace
    from assay.atlas.store import Atlas

MOST_COUNTER, LONGEST = 10, 400
VERDICTS = ("supported", "refuted", "inconclusive", "not tested")
TONES: dict[str, Tone] = {"supported": "good", "refuted": "bad", "inconclusive": "warn"}
LEDGER = (("stated", "claims stated"), ("tried", "claims tested"), ("supported", "supported"), ("refuted", "refuted"),
          ("inconclusive", "inconclusive"), ("not tested", "nothing to test"), ("looks", "looks outside of tests"),
          ("tickets", "times sealed data were read"), ("deviations", "deviations from a plan"),
          ("replications", "replications"), ("failed replications", "replications that failed"),
          ("imported", "imported from others"))  # fmt: skip


def card_of(workspace: "Workspace", claim: str) -> Card:
    """The card of one claim, own or imported. Raises MissingRecord for an unknown one."""

    def read() -> Card:
        with workspace.store as store:
            return _card(store, claim)

    return workspace.known(("card", claim), read)


def _card(store: "Atlas", claim: str) -> Card:
    """What has changed since the verdict is said as far as it costs nothing to know: other code of the rule or of gates."""
    from assay.evidence.stale import changed_code

    theirs = store.imported(claim)
    if theirs is not None:
        twin = dict(theirs["verdict"] or _untested(theirs["claim"]))
        twin["qualifiers"] = [*twin["qualifiers"], "imported"]
        return _from_twin(theirs["claim"]["statement"], twin, [_hit(hit) for hit in theirs["counterexamples"]], None)
    stated, verdict = store.claim(claim), store.verdict(claim)
    record = {"id": stated.id, "kind": stated.kind, "statement": stated.statement}
    twin = _untested(record) if verdict is None else vars(verdict)  # read, not changed
    if changed_code(store.plan(claim), verdict):
        twin = {**twin, "qualifiers": [*twin["qualifiers"], "stale"]}
    verb = "claim_test" if verdict is None else "claim_replay"
    hits = [_hit(hit) for hit in store.counterexamples(claim)]
    return _from_twin(stated.statement, twin, hits, verb)


def _untested(claim: Mapping[str, Any]) -> dict[str, Any]:
    return {"claim": claim["id"], "kind": claim["kind"], "verdict": "not tested", "reasons": ["confirm unread"],
            "qualifiers": [], "gates": [], "sentence": f"Not tested: {claim['statement']}",
            "does_not_show": ["Anything about the model: no test took place."]}  # fmt: skip


def _from_twin(statement: str, twin: Mapping[str, Any], hits: list[Counter], verb: str | None) -> Card:
    card: Card = {
        "id": twin["claim"], "statement": statement, "kind": twin["kind"], "verdict": twin["verdict"],
        "sentence": twin["sentence"].replace(repr(statement), "this claim"),  # it stands right above
        "reasons": list(twin["reasons"]), "qualifiers": list(twin["qualifiers"]),
        "gates": [gate_of(gate) for gate in twin["gates"]],
        "counterexamples": sorted(hits, key=lambda hit: hit["score"] or 0.0)[:MOST_COUNTER],
        "href": href("claim", claim=twin["claim"]), "shows_not": list(twin["does_not_show"]),
    }  # fmt: skip
    return {**card, "rerun": {"verb": verb, "arguments": {"claim": twin["claim"]}}} if verb else card


def gate_of(gate: Mapping[str, Any]) -> Gate:
    """A gate of a verdict's JSON twin; its split is behind the @ of its name."""
    name, _, split = str(gate["name"]).partition("@")
    return {"name": name, "split": split or "confirm", "estimate": gate.get("estimate"), "low": gate.get("low"),
            "high": gate.get("high"), "sesoi": gate.get("sesoi"), "p": gate.get("p"), "passed": bool(gate["passed"]),
            "required": bool(gate.get("required", True))}  # fmt: skip


def _hit(hit: Counterexample | Mapping[str, Any]) -> Counter:
    found = hit if isinstance(hit, Mapping) else vars(hit)
    pieces = [str(piece)[:40] for piece, _ in found.get("tokens") or ()]
    text = visible(str(found["clean"]), LONGEST)
    counter: Counter = {"score": found["score"], "status": str(found["status"]), "text": text}
    return {**counter, "pieces": pieces} if pieces else counter


def ledger_facts(counts: Mapping[str, int]) -> list[Fact]:
    """The ledger's counts: how much was tried stands beside how much was found."""
    found: list[Fact] = []
    for name, label in LEDGER:
        fact: Fact = {"label": label, "value": counts.get(name, 0)}
        if name in VERDICTS:
            fact["href"] = href("claims", verdict=name)
        if name in TONES and counts.get(name):
            fact["tone"] = TONES[name]
        found.append(fact)
    return found


def newest_claims(workspace: "Workspace", offset: int, limit: int, choice: Mapping[str, Any]) -> tuple[list[Any], int]:
    """Claims of a choice (verdict, kind), newest first, and how many there are. The store lists oldest first."""
    verdict, kind = choice.get("verdict", ""), choice.get("kind", "")

    def read() -> tuple[list[Any], int]:
        with workspace.store as store:
            total = store.listing(1, 0, verdict, kind)[1]
            last = max(0, total - offset)
            first = max(0, last - limit)
            return (store.listing(last - first, first, verdict, kind)[0][::-1] if last > first else []), total

    return workspace.known(("claims", offset, limit, verdict, kind), read)


def whole_card(workspace: "Workspace", claim: str) -> dict[str, Any]:
    """What the page of one claim shows besides its card. Raises StoreError, TamperedError."""
    from assay.evidence.card import make_card

    def read() -> dict[str, Any]:
        with workspace.store as store:
            return card_view(make_card(store, claim))

    return workspace.known(("whole card", claim), read)


def first_steps(*commands: tuple[str, str]) -> list[Inline]:
    """What to run on an empty atlas: commands with a word about each."""
    lines: list[Inline] = [["Nothing was measured in this atlas yet. What you can run:"]]
    return [*lines, *([{"text": command, "strong": True}, f" – {words}"] for command, words in commands)]

