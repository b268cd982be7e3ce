"""Claim cards: made from stored records, checked before they are believed, one self-contained page."""

import copy
import json
import re
import shutil
from html.parser import HTMLParser

import duckdb
import pytest
from click.testing import CliRunner

from assay.atlas.store import FILE, Atlas
from assay.cli.main import cli
from assay.errors import EvidenceError, ModelError, ReproduceError, TamperedError, UsageError
from assay.evidence import card as cards
from assay.evidence import claims
from assay.evidence.card import check_card, import_card, make_card, read_card
from assay.evidence.run import Settings, state_claim, test_claim
from assay.evidence.source import Source
from assay.records import digest
from assay.report.card import card_html, card_json, card_markdown
from assay.report.card_figures import gate_rows, null_of
from assay.report.card_view import NOT_CALIBRATED, card_view
from assay.testing import planted_induction
from planted_task import write_task

SMALL = Settings(tune=16, confirm=32, ood=24, draws=4, control_pairs=1)
HOSTILE = "<script>alert('x')</script> {{ 7*7 }} [a](javascript:b) \x1b[31m"


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """One tested claim and one that was only stated."""
    folder = tmp_path_factory.mktemp("cards")
    store, model = Atlas(folder / "atlas"), planted_induction()
    source = Source(str(write_task(folder / "task.jsonl")))
    tested, _ = state_claim(store, model, source, "z.0.1", settings=SMALL)
    test_claim(store, tested.id, model)
    state_claim(store, model, source, "z.1.0", settings=SMALL)
    return store


@pytest.fixture(scope="module")
def made(atlas):
    return make_card(atlas, atlas.claims()[0].id)


@pytest.fixture
def card(made):
    return copy.deepcopy(made)


def sealed(card):
    """A card with its own hash put right, as whoever edits it would do."""
    return {**card, "digest": digest({key: value for key, value in card.items() if key != "digest"})}


def reentered(card):
    """A card whose ledger entries name its records as they are now, with hashes put right."""
    records = cards.records_of(card)
    right = {"state": digest(records.claim), "lock": records.plan.lock,
             "evidence": claims.evidence_digest(records.evidence, records.counterexamples),
             "verdict": digest(records.verdict)}  # fmt: skip
    for entry in card["ledger"]["entries"]:
        if entry["kind"] in right:
            entry["body"]["digest"] = right[entry["kind"]]
        entry["hash"] = digest({key: entry[key] for key in ("index", "time", "kind", "body", "previous")})
    return sealed(card)


# the round trip ---------------------------------------------------------------------------------


def test_a_card_goes_out_and_comes_in_and_counts_as_nobody_s_own(card, tmp_path):
    other, path = Atlas(tmp_path / "other"), tmp_path / "card.json"
    path.write_text(card_json(card))
    import_card(other, read_card(path))
    name = card["claim"]["id"]
    (item,) = other.listing()[0]
    assert item.imported and item.verdict == card["verdict"]["verdict"] == "refuted"
    counts = other.tally()
    assert counts["imported"] == 1 and counts["stated"] == counts["tried"] == counts["refuted"] == counts["tickets"] == 0
    ticket = next(entry["body"] for entry in card["ledger"]["entries"] if entry["kind"] == "ticket")
    clusters = next(entry["body"]["clusters"] for entry in card["ledger"]["entries"] if entry["kind"] == "data")
    assert other.reads(ticket["subject"], ticket["data"], clusters) == 0 and other.sharing("x", clusters) == []
    assert other.verify() == [] and make_card(other, name) == card
    with pytest.raises(EvidenceError, match="already"):
        import_card(other, card)


def test_the_card_of_an_untested_claim_says_so(atlas):
    card = make_card(atlas, atlas.claims()[1].id)
    assert card["evidence"] is None and card["verdict"] is None and check_card(card).verdict is None
    assert "not tested" in card_html(card) and "Nothing" not in card_view(card)["leaks"]


def test_no_card_is_made_of_records_that_do_not_hold(atlas, tmp_path):
    import shutil

    copied = Atlas(shutil.copytree(atlas.path, tmp_path / "copy"))
    with copied.writing() as db:
        db.execute("UPDATE claims SET body = replace(body, 'tend to', 'always')")
    with pytest.raises(TamperedError, match="No card is made"):
        make_card(copied, copied.claims()[0].id)


# what is refused --------------------------------------------------------------------------------


def nudge(card):
    """One measured number that decides a gate."""
    columns = card["evidence"]["tables"]["confirm"]["columns"]
    columns["restored"] = [value + 13 for value in columns["restored"]]


EDITS = {
    "the verdict": (lambda c: c["verdict"].update(verdict="supported"), "the verdict .supported. does not follow"),
    "a sentence": (lambda c: c["verdict"].update(sentence="Supported: yes"), "reasons or numbers differ"),
    "a number": (nudge, "the gates do not follow from the measurements"),
    "a gate": (lambda c: c["evidence"]["gates"][0].update(estimate=0.9), "the gates do not follow"),
    "a bar": (lambda c: c["plan"]["gates"][0].update(sesoi=-9.0), "not those that were locked"),
    "the statement": (lambda c: c["claim"].update(statement="z.0.1 does everything"), "not those that were locked"),
    "the plan's lock": (lambda c: c["plan"].update(lock="0" * 64), "not those that were locked"),
    "the reads": (lambda c: c["evidence"].update(reads=0), "the evidence counts 0 reads"),
    "the model": (lambda c: c["evidence"]["run"].update(digest="other"), "another model"),
    "a deviation left out": (lambda c: c["deviations"].append(
        {"claim": c["claim"]["id"], "what": "a", "why": "b", "created": "", "sesoi": {}}), "deviations are not those"),
    "a replication made up": (lambda c: c["replications"].append(
        {"claim": c["claim"]["id"], "who": "a", "where": "b", "same": True, "before": "", "verdict": "", "moved": [],
         "created": "", "passport": {}}), "replications are not those"),
    "counterexamples hidden": (lambda c: c["counterexamples"].clear(), "does not follow"),
    "columns of nonsense": (lambda c: c["evidence"]["tables"]["confirm"]["columns"].update(
        clean=[None] * len(c["evidence"]["tables"]["confirm"]["templates"])), "do not follow|cannot be derived"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_an_edited_card_is_refused_with_what_does_not_follow(card, what):
    edit, said = EDITS[what]
    edit(card)
    with pytest.raises(TamperedError, match="hash does not match"):
        check_card(card)
    with pytest.raises(TamperedError, match=said):
        check_card(reentered(card))  # even when every hash around it was put right


def test_an_edited_ledger_entry_is_refused(card):
    card["ledger"]["entries"][0]["body"]["statement"] = "nicer"
    with pytest.raises(TamperedError, match="ledger entry .* was edited"):
        check_card(sealed(card))


def relocked(card):
    """A card with a lock of its own making, and everything that names it."""
    records = cards.records_of(card)
    lock = claims.lock_of(records.claim, records.plan)
    card["plan"]["lock"] = card["evidence"]["lock"] = lock
    records = cards.records_of(card)
    return reentered({**card, "verdict": cards.plain(claims.ruled(
        records.claim, records.plan, records.evidence, records.counterexamples, deviations=(), family={}))})  # fmt: skip


@pytest.mark.parametrize("edit, said", [
    (lambda plan: plan["gates"].pop([gate["name"] for gate in plan["gates"]].index("sufficiency")), "leaves out the required"),
    (lambda plan: next(g for g in plan["gates"] if g["name"] == "sufficiency").update(required=False), "leaves out"),
    (lambda plan: plan["levels"].update(confirm=0.9), "has the levels"),
])  # fmt: skip
def test_a_plan_that_asks_less_than_the_battery_is_refused(card, edit, said):
    edit(card["plan"])
    records = cards.records_of(card)
    card["evidence"]["gates"] = cards.plain(claims.derive_gates(records.plan, records.evidence.tables))
    with pytest.raises(TamperedError, match=said):
        check_card(relocked(card))


def with_resamples(card, n):
    for gate in card["plan"]["gates"]:
        gate["options"]["resamples"] = n


@pytest.mark.parametrize(("n", "refused"), [(4000, False), (99, True), (True, True)])
def test_a_claim_that_is_one_of_many_may_draw_more_for_its_p_and_not_less(card, n, refused):
    with_resamples(card, n)
    records = cards.records_of(card)
    assert bool([said for said in cards.plan_problems(records.claim, records.plan) if "another way" in said]) == refused


@pytest.mark.parametrize("edit, said", [
    (lambda c: c.pop("deviations"), "'deviations' is missing"),  # mandatory, even when empty
    (lambda c: c.update(extra=1), "'extra' is unknown"),
    (lambda c: c.update(version=9), "Update Assay"),
    (lambda c: c.update(format="x"), "no claim card"),
    (lambda c: c["claim"].update(version="1"), r"card.claim.version: got '1'; allowed: int"),
    (lambda c: c["plan"].pop("metric"), "card.plan.metric is missing"),
    (lambda c: c["plan"]["gates"][0].update(code="import os"), "unknown field 'code'"),
    (lambda c: c["evidence"]["tables"]["confirm"]["columns"]["clean"].pop(), "one per item"),
    (lambda c: c["plan"]["gates"][0]["options"].update(draws=10**12), "allowed: up to"),
    (lambda c: c.update(verdict=[]), "allowed: an object"),
])  # fmt: skip
def test_what_has_not_the_form_of_a_card_is_refused_with_its_place(card, edit, said):
    edit(card)
    with pytest.raises(EvidenceError, match=said):
        check_card(sealed(card))


@pytest.mark.parametrize("content, said", [
    (b"{", "no JSON"), (b"[" * 100_000, "no JSON"), (b'{"a": NaN}', "NaN is no number"), (b"\xff\xfe", "no JSON"),
    (b"[]", "no claim card"), (b"\x80\x04\x95.", "no JSON"),
])  # fmt: skip
def test_files_that_are_no_cards_are_refused(tmp_path, content, said):
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match=said):
        read_card(path)


def test_a_card_that_is_too_large_is_not_even_read(tmp_path, monkeypatch):
    path = tmp_path / "card.json"
    path.write_text("{}")
    monkeypatch.setattr(cards, "MOST_BYTES", 1)
    with pytest.raises(EvidenceError, match="allowed: up to"):
        read_card(path)
    with pytest.raises(EvidenceError, match="cannot be read"):
        read_card(tmp_path / "none.json")


# the page ---------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Elements of a page, with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_has_every_part_and_loads_nothing(card):
    page = card_html(card)
    for part in ("Gates", "Counterexamples", "What was searched", "Rivals", "Splits", "Leak check", "Family and correction",
                 "Power", "How often this battery errs", "Deviations from the plan", "Replications",
                 "What this does not show", "Scope", "assay claim replay", card["verdict"]["sentence"][:30]):  # fmt: skip
        assert part in page.replace("&#39;", "'"), part
    tags = Tags(page).found
    assert "script" not in [tag for tag, _ in tags]
    links = [value for _, attributes in tags for key, value in attributes.items() if key.endswith(("src", "href")) and value]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)", page) and "Content-Security-Policy" in page


def test_text_of_others_stays_text(card):
    card["claim"]["statement"] = card["verdict"]["sentence"] = HOSTILE
    card["counterexamples"] = [{**card["counterexamples"][0], "clean": HOSTILE, "tokens": [[HOSTILE, -1.0]]}]
    card["deviations"] = [{"claim": "c", "what": HOSTILE, "why": HOSTILE, "created": "", "sesoi": {}}]
    page, text = card_html(card), card_markdown(card)
    assert "script" not in [tag for tag, _ in Tags(page).found] and "{{ 7*7 }}" in page
    assert "\x1b" not in page and "\x1b" not in text
    assert "<script>" not in re.sub(r"`[^`]*`", "", text).replace("\\<", "")  # in code spans it is text anyway


def test_ten_worst_counterexamples_are_shown_token_by_token(card):
    hit = card["counterexamples"][0]
    card["counterexamples"] = [{**hit, "score": float(n), "clean": f"text {n}", "tokens": [["to", 0.5], ["ken", -1.0]]}
                               for n in range(12, 0, -1)]  # fmt: skip
    worst = card_view(card)["worst"]
    assert [row["clean"] for row in worst] == [f"text {n}" for n in range(1, 11)]
    assert [(t["text"], t["sign"], t["tint"]) for t in worst[0]["tokens"]] == [("to", "up", "50"), ("ken", "down", "100")]


def test_what_searches_say_besides_and_rivals_that_they_list_are_shown(card):
    methods = card["evidence"]["search"]["methods"]
    methods["rival sets"] = {"tried": 4, "hits": 0, "complete": True, "notes": {
        "n_rivals": 2, "rivals": [{"parts": ["z.1.0", "z.1.1"], "drop": 0.5, "restored": 0.25}]}}  # fmt: skip
    methods["lexical rival"] = {"notes": {"narrower": "fires on the words 'cat'"}}
    methods["corpus mining"] = {"notes": {"skipped": "no corpus was given"}}
    methods["strange"] = {"notes": ["of", "others"]}
    methods["stranger"] = {"notes": {"n_rivals": {}, "rivals": [1, {"x": [2]}]}}
    view = card_view(card)
    assert "rival sets: 2 do as well: z.1.0, z.1.1 drop 0.50 restored 0.25." in view["rivals"]
    assert "lexical rival: fires on the words 'cat'." in view["searched"]
    assert "corpus mining: looked at nothing: no corpus was given." in view["searched"]
    page = card_html(card)
    assert "no corpus was given" in page and "no corpus was given" in card_markdown(card) and "restored 0.25" in page


def test_of_a_pair_the_card_says_what_it_stands_against_and_its_shortest_form(card):
    tokens = [["a", 0.0], ["b", 1.0]]
    hit = {**card["counterexamples"][0], "corrupted": "the other prompt", "minimal": "short", "tokens": tokens}
    card["counterexamples"] = [hit]
    for page in (card_html(card), card_markdown(card)):
        assert all(part in page for part in ("the other prompt", "shortest form that still fails", "short"))


def test_controls_are_drawn_relative_to_the_strongest():
    gate = {"tables": {"per_control": {"a": 0.2, "b": 0.5}, "strongest": "b"}}
    assert null_of(gate) == pytest.approx([-0.3, 0.0])
    assert null_of({"tables": {"null": [0.4, 0.6], "quantile95": 0.55}}) == pytest.approx([-0.15, 0.05])
    assert null_of({"tables": {"per_control": {"z.0.0": 0.2}}}) == []  # parts of the subject are no controls


def test_deciding_gates_come_first_and_confirm_before_ood():
    gates = [{"name": "x@ood", "split": "ood", "required": False}, {"name": "x", "split": "confirm", "required": False},
             {"name": "y", "split": "confirm", "required": True}]  # fmt: skip
    assert [[gate["name"] for gate in row] for row in gate_rows(gates)] == [["y"], ["x", "x@ood"]]


def test_error_rates_are_shown_where_the_kind_was_calibrated(card, monkeypatch, tmp_path):
    card["error_rates"] = None
    assert card_view(card)["rates"] == [NOT_CALIBRATED] and NOT_CALIBRATED in card_markdown(card)
    rates = {"version": "0.1", "kinds": {"mediates": {"null": {"n": 200, "supported": 3, "upper95": 0.038},
             "power": [{"effect_in_sesoi": 1.5, "n": 50, "supported": 45}]}}}  # fmt: skip
    (tmp_path / cards.RATES).write_text(json.dumps(rates))
    monkeypatch.setattr(cards.resources, "files", lambda _: tmp_path)
    card["error_rates"] = cards.error_rates("mediates")
    assert cards.error_rates("steers") is None
    said = card_view(card)["rates"]
    assert "3 of 200, at most 4%" in said[0] and "45 of 50" in said[1]


def test_a_stale_card_says_why(card):
    card["stale"] = ["the rule was version 0, it is 1 now"]
    page = card_html(card)
    assert "the rule was version 0" in page and ">stale<" in page


# commands ---------------------------------------------------------------------------------------


def run(*arguments, code=0):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_the_commands_hand_a_claim_over(atlas, card, tmp_path):
    name, here, there = card["claim"]["id"], atlas.path, tmp_path / "there"
    for suffix in ("html", "md", "json"):
        run("claim", "export", name, "--out", tmp_path / f"card.{suffix}", "--atlas", here, "--quiet")
        assert (tmp_path / f"card.{suffix}").stat().st_size > 1000
    with pytest.raises(UsageError, match="out.*card.pdf"):
        CliRunner().invoke(cli, ["claim", "export", name, "--out", "card.pdf", "--atlas", str(here)], catch_exceptions=False)
    run("claim", "import", tmp_path / "card.json", "--atlas", there, "--quiet")
    listed = json.loads(run("claim", "list", "--atlas", there, "--json", "-").output)
    assert listed["claims"][0]["imported"] and listed["counts"]["imported"] == 1 and listed["total"] == 1
    shown = json.loads(run("claim", "show", name, "--atlas", there, "--json", "-").output)
    assert shown["verdict"] == "refuted" and shown["qualifiers"][-1] == "imported"
    edited = json.loads((tmp_path / "card.json").read_text())
    edited["verdict"]["verdict"] = "supported"
    (tmp_path / "edited.json").write_text(json.dumps(edited))
    with pytest.raises(TamperedError) as told:
        edited_path = str(tmp_path / "edited.json")
        CliRunner().invoke(cli, ["claim", "import", edited_path, "--atlas", str(there)], catch_exceptions=False)
    assert told.value.exit_code == 3 and Atlas(there).tally()["imported"] == 1


def test_a_claim_whose_records_do_not_hold_is_not_shown(atlas, card, tmp_path):
    here, name = shutil.copytree(atlas.path, tmp_path / "copy"), card["claim"]["id"]
    run("claim", "show", name, "--atlas", here)
    with duckdb.connect(str(here / FILE)) as db:
        db.execute("UPDATE verdicts SET body = replace(body, '\"refuted\"', '\"supported\"')")
    with pytest.raises(TamperedError, match="the stored verdict is not the one in the ledger.*assay claim verify"):
        CliRunner().invoke(cli, ["claim", "show", name, "--atlas", str(here)], catch_exceptions=False)
    run("claim", "verify", "--atlas", here, code=3)


def test_a_model_that_is_not_to_be_had_here_is_exit_code_4(atlas, card, tmp_path, monkeypatch):
    from assay.cli import claim as commands

    def gone(self, name, dtype, prepend_bos):
        raise ModelError(f"model {name!r}: not found.")

    monkeypatch.setattr(commands.Common, "load", gone)
    monkeypatch.setattr(commands, "model_of", lambda stated: "somewhere/else")
    for command in ("replay", "test"):
        with pytest.raises(ReproduceError, match="cannot be loaded here. Give it with --model.*somewhere/else") as told:
            CliRunner().invoke(cli, ["claim", command, card["claim"]["id"], "--atlas", str(atlas.path)], catch_exceptions=False)
        assert told.value.exit_code == 4
    with pytest.raises(ModelError, match="'mine': not found"):  # a wrong --model is the user's mistake
        CliRunner().invoke(cli, ["claim", "replay", card["claim"]["id"], "--model", "mine", "--atlas", str(atlas.path)],
                           catch_exceptions=False)  # fmt: skip


def test_anchor_list_and_deviate_on_the_command_line(atlas, card, tmp_path):
    here, name = shutil.copytree(atlas.path, tmp_path / "copy"), card["claim"]["id"]
    run("claim", "anchor", "--out", tmp_path / "head.json", "--atlas", here)
    run("claim", "deviate", name, "--what", "a bar", "--why", "because", "--sesoi", "sufficiency=0.1", "--atlas", here)
    checked = json.loads(run("claim", "anchor", "--check", tmp_path / "head.json", "--atlas", here, "--json", "-").output)
    assert checked["ok"]
    (tmp_path / "head.json").write_text(json.dumps({"count": 2, "hash": "0" * 64}))
    run("claim", "anchor", "--check", tmp_path / "head.json", "--atlas", here, code=3)
    listed = json.loads(run("claim", "list", "--atlas", here, "--verdict", "refuted", "--json", "-").output)
    (row,) = listed["claims"]
    assert "deviation: a bar (because)" in run("claim", "show", name, "--atlas", here).output
    assert row["claim"] == name and row["qualifiers"] == ["exploratory"] and listed["counts"]["deviations"] == 1
    assert listed["counts"]["stated"] == 2 and listed["total"] == 1  # the counts are always of all
