"""Rivals and behaviours from outside the claim: a language model that only reads the texts, other tasks, solved prompts."""

import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from assay.calibrate.scored import state
from assay.data.generators.base import TASKS, Task, fill_pair
from assay.errors import EvidenceError, TaskError, UsageError
from assay.evidence.black_box import BlackBox, black_box, scores_in, shown
from assay.evidence.card import check_card, make_card
from assay.evidence.endpoint import Endpoint
from assay.evidence.features import direction
from assay.evidence.gates import get_gate
from assay.evidence.kinds import KINDS
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.steers import Steering
from assay.records import Example, Plan, digest, plain
from assay.testing.checks import Planted, check_gate, tried
from assay.testing.effect_models import FILLERS, TOPICS, mood_source, neutral_texts, part_direction, planted_effects
from assay.testing.score_worlds import STATING, monitored_world

pytestmark = pytest.mark.whole
WATCHED = Settings(tune=460, confirm=480, ood=400, draws=3)
MOODS = Settings(tune=16, confirm=40, ood=36, draws=9, options={"neutral": neutral_texts(20)})


# a reader of the texts ---------------------------------------------------------------------------


@pytest.fixture
def reader():
    """A local OpenAI-compatible server; `state["answer"]` says what it thinks of a text."""
    state: dict = {"answer": lambda text: 50, "asked": [], "keys": [], "break": lambda n: False}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
            texts = [json.loads(text) for text in re.findall(r'^\d+\. (".*")$', prompt, re.M)]
            state["asked"].append(prompt)
            state["keys"].append(self.headers.get("Authorization"))
            scores = [state["answer"](text) for text in texts]
            said = "no idea" if state["break"](len(texts)) else "Here: " + json.dumps({"scores": scores})
            reply = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state["options"] = {"reader_url": f"http://127.0.0.1:{server.server_port}/v1", "reader_model": "m-1"}
    yield state
    server.shutdown()
    server.server_close()


def says_so(text: str) -> int:
    """A perfect reader of what is stated."""
    return 95 if set(STATING) & set(text.split()) else 5


def watched(reader, case):
    return Planted("detects", case.model, case.source, case.subject, replace(WATCHED, options=reader["options"]))


def reads_words():
    """A monitor of the stating words themselves, and nothing else."""
    world = monitored_world(3, reads="said")
    assert world.axis is not None
    monitor = direction("resid_post.0", world.axis.tolist())
    return Planted("detects", world.world, world.source, {"feature": monitor}, WATCHED)


def test_a_monitor_must_beat_a_reader_of_the_texts(reader):
    reader["answer"] = says_so
    false = reads_words()
    check_gate("black_box", watched(reader, state(3)), replace(false, settings=replace(WATCHED, options=reader["options"])))
    (prompt, *_) = reader["asked"]
    assert prompt.count(" yes\n") + prompt.count(" no\n") == 16 and "JSON only" in prompt


def test_a_perfect_reader_leaves_the_monitor_lexical(reader):
    case = state(3)
    members = {item.text: item.label for items in case.source.splits.values() for item in items}
    reader["answer"] = lambda text: 99 if members[text] else 1
    store = MemoryStore()
    claim, _ = state_claim(store, case.model, case.source, case.subject, statement=Statement("detects"),
                           settings=replace(WATCHED, options=reader["options"]))  # fmt: skip
    asked = len(reader["asked"])
    verdict = test_claim(store, claim.id, case.model, source=case.source)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("lexical",))
    assert asked and len(reader["asked"]) > asked  # on tune before anything sealed was read
    assert not any("no such reader" in said for said in verdict.does_not_show)
    card = make_card(store, claim.id)
    check_card(card)
    less = plain({**card, "plan": {**card["plan"], "gates": [g for g in card["plan"]["gates"] if g["name"] != "black_box"]}})
    less = {**less, "digest": digest({key: value for key, value in less.items() if key != "digest"})}
    with pytest.raises(EvidenceError):  # the reader that was named cannot be left out afterwards
        check_card(less)


def test_without_a_reader_the_gate_is_not_planned_and_the_card_says_so():
    found = tried(Planted("detects", *(lambda case: (case.model, case.source, case.subject))(state(3)), WATCHED))
    assert found.verdict.verdict == "supported" and "black_box" not in {gate.name for gate in found.plan.gates}
    assert any("no such reader was compared" in said for said in found.verdict.does_not_show)


def test_a_reader_that_answers_nonsense_is_no_rival(reader):
    reader["break"] = lambda n: True
    found = tried(watched(reader, state(3)))
    assert (found.verdict.verdict, found.verdict.reasons) == ("inconclusive", ("instrument",))
    assert any("black_box was not measured" in note for note in found.verdict.decision["notes"])


def test_texts_are_asked_for_again_one_by_one(reader, monkeypatch):
    monkeypatch.setenv("ASSAY_READER_KEY", "k-9")
    reader["break"], reader["answer"] = lambda n: n > 1, lambda text: len(text)
    tune = [Example(f"text {n}", n % 2, "t") for n in range(30)]
    box = black_box({**reader["options"], "reader_question": "Is it odd?"}, tune, 0)
    assert box is not None and box.scores([Example("abc", 1, ""), Example("defgh", 0, "")]) == [3.0, 5.0]
    assert len(reader["asked"]) == 3 and reader["asked"][0].startswith("Is it odd?") and reader["keys"] == ["Bearer k-9"] * 3
    assert "k-9" not in json.dumps(box.record())


def test_a_reader_that_is_not_there_stops_the_claim_before_it_is_locked():
    case, store = state(3), MemoryStore()
    settings = replace(WATCHED, options={"reader_url": "http://127.0.0.1:9/v1", "reader_model": "m"})
    with pytest.raises(EvidenceError, match=r"reader: http://127.0.0.1:9/v1"):
        state_claim(store, case.model, case.source, case.subject, statement=Statement("detects"), settings=settings)
    assert store.claims() == []


@pytest.mark.parametrize("options", [{"reader_url": "http://a/v1"}, {"reader_model": "m"}, {"reader_question": "is it?"}])
def test_half_a_reader_is_refused(options):
    with pytest.raises(UsageError, match="reader_url and reader_model together"):
        black_box(options, [Example("a", 1, ""), Example("b", 0, "")], 0)


def test_what_the_reader_sees_and_what_counts_as_an_answer():
    assert shown(Example("the old yak is here", 1, "", position=9)) == "the old [[yak]] is here"
    assert scores_in('so {"scores": [1, 100.0]}', 2) == [1.0, 100.0]
    for reply in ('{"scores": [1]}', '{"scores": [1, 101]}', '{"scores": [true, 1]}', '{"scores": ["1", 2]}', "{", "[1, 2]"):
        assert scores_in(reply, 2) is None
    assert BlackBox(Endpoint("http://u:p@a/v1", "m"), "q", "s").record()["endpoint"] == "http://a/v1"
    table = {"templates": ["a"] * 10, "columns": {"label": [1, 0] * 5, "score": [1, 0] * 5, "reader": [1, 0] * 4 + [1, None]}}
    gate = get_gate("black_box")
    assert gate.contrast(table, gate.plan()).notes == {"monitor": 1.0, "reader": 1.0, "unanswered": 1}
    with pytest.raises(KeyError):
        gate.contrast({**table, "columns": {**table["columns"], "reader": [1.0] * 8 + [None, None]}}, gate.plan())


# other tasks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return planted_effects()


@pytest.fixture
def hues():
    """Another task of the planted model: which topic was named, "red" or "blue"."""

    def make(draw):
        sides = [(draw.rng.choice(TOPICS[sign]), f" {said}") for sign, said in ((1, "red"), (-1, "blue"))]
        (topic, answer), (other, foil) = sides[:: -1 if draw.flip else 1]
        return fill_pair(draw, {"T": topic}, {"T": other}, (answer,), (foil,), {"topic": "T"}, (topic, other))

    frames = {split: [f"{' '.join(FILLERS[(8 * place + row + n) % 24] for n in range(4))} [T] {FILLERS[5 * row % 24]} ask"
                      for row in range(8)] for place, split in enumerate(("discover", "tune", "confirm", "ood"))}  # fmt: skip
    TASKS.add("hues", Task("hues", "topics", ("swap",), frames, dict.fromkeys(frames, {}), make))
    yield {**MOODS.options, "off_target": ["hues"]}
    TASKS._items.pop("hues")


def at(*parts, weights=None):
    return direction("resid_post.0", part_direction(*parts, weights=weights))


@pytest.mark.parametrize("kind", ["uses", "steers"])
def test_a_change_that_moves_another_task_is_no_claim_about_this_one(model, hues, kind):
    grid = (-4, -2, -1, 1, 2, 4)
    made = (lambda *parts: [at(part) for part in parts]) if kind == "uses" else lambda *parts: Steering(at(*parts), grid)
    settings = replace(MOODS, options=hues)
    true, false = (Planted(kind, model, mood_source(), made(*parts), settings) for parts in (("mood",), ("mood", "topic")))
    check_gate("off_target", true, false)
    found = tried(false)
    gate = found.gate("off_target")
    assert found.verdict.verdict == "refuted" and gate.tables["most"].startswith("hues.")
    assert kind == "steers" or gate.tables["per_control"]["hues.erased"] == pytest.approx(-0.5, abs=0.05)  # half way


def test_other_tasks_must_be_others_and_must_be_done(model, hues):
    def state_with(options, source=None):
        return state_claim(MemoryStore(), model, source or mood_source(), at("mood"), statement=Statement("uses"),
                           settings=replace(MOODS, options=options))  # fmt: skip

    with pytest.raises(TaskError):
        state_with({**hues, "off_target": ["capitals"]})
    with pytest.raises(UsageError, match="of: "):
        state_with({**hues, "off_target": ["nothing of the kind"]})
    TASKS.add("dull", replace(TASKS.get("hues"), name="dull", make=lambda draw: replace(
        TASKS.get("hues").make(draw), answers=(" blue",), foils=(" red",))))  # fmt: skip
    try:
        with pytest.raises(TaskError, match="does not do the task 'dull'"):
            state_with({**hues, "off_target": ["dull"]})
    finally:
        TASKS._items.pop("dull")
    own = replace(mood_source(), splits={split: [replace(pair, template=TASKS.get("hues").frames["tune"][0]) for pair in pairs]
                                         for split, pairs in mood_source().splits.items()})  # fmt: skip
    with pytest.raises(UsageError, match="other than the claim's own"):
        state_with(hues, own)


# solved prompts ----------------------------------------------------------------------------------


def test_steering_is_compared_with_solved_prompts(model):
    kind: Any = KINDS.get("steers")
    plan = Plan("", "steers", (), {}, "logit_diff", {}, "", dict(vars(MOODS)), {}, {}, "")
    tune, data = (kind.load(model, mood_source().items(split, 16, 0)) for split in ("tune", "confirm"))
    subject = kind.subject(model, Steering(at("mood"), (-4, -2, -1, 1, 2, 4)))
    setup, _ = kind.prepare(model, plan, subject, tune)
    gates = [get_gate("steering.few_shot").plan()]
    assert len(setup.shots) > 24 and "few_shot" in kind.measure(model, data, setup, gates)
    assert "few_shot" not in kind.measure(model, data, replace(setup, shots=[*setup.shots] * 2), gates)  # it reads 40 tokens
    two = setup.shots[: len(tune.clean[0]) + 1]  # the first solved prompt
    columns = kind.measure(model, data, replace(setup, shots=two), gates)
    assert two[len(tune.clean[0])] == tune.answers[0][0]
    for row in (0, 7):
        logits = model.hf(torch.tensor([[*two, *data.clean[row]]])).logits[0, -1]
        wanted = (logits[data.answers[row]] - logits[data.foils[row]]).item()
        assert columns["few_shot"][row] == pytest.approx(wanted, abs=1e-4)
    table = {"templates": data.templates, "columns": columns}
    by_examples = get_gate("steering.few_shot").contrast(table, gates[0]).notes["by_examples"]
    moved = [told - clean for told, clean in zip(columns["few_shot"], columns["clean"], strict=True)]
    span = sum(columns["clean"]) - sum(columns["corrupted"])
    assert by_examples == pytest.approx(sum(moved) / span, abs=1e-6)
