"""Scorers against hand computation, references and scripted judges; what features do to the next token against raw hooks."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from assay.errors import SiteError, UsageError
from assay.explain import output_side
from assay.explain.endpoint import Asker, Endpoint
from assay.explain.executed import Executed
from assay.explain.output_side import Changes, Contexts, Output, Token, clamped, contexts_of, direct, written
from assay.explain.prompts import CLOSE, OPEN
from assay.explain.reading import CodedPart
from assay.explain.records import Cost, Explanation, Sample, Score
from assay.explain.rules import fires_in
from assay.explain.scorers import (
    SCORERS,
    deranged,
    fuzzing,
    intruder,
    score_features,
    summarise,
)
from assay.explain.scorers.base import Unscored, asked, draw_of
from assay.explain.scorers.intervals import auroc, balanced, correlation, share
from assay.explain.tools import Tools
from assay.explain.units import of_dictionary, of_directions, of_heads, of_neurons
from assay.features.dictionary import Spec, make_dictionary
from assay.testing.explained import check_scorer, planted_sample, planted_window, planted_windows
from conftest import tiny as made_tiny
from judge_server import completion, data_of, judge

pytestmark = pytest.mark.whole

tiny = cache(made_tiny)
EXECUTED = ("detection", "fuzzing", "simulation", "intruder")
CHANCE = {"detection": 0.5, "fuzzing": 0.5, "simulation": 0.0, "intruder": 0.2, "embedding": 0.5, "intervention": 0.5}
F = planted_sample("f", " word", " words", n=40)


def on_token(*tokens):
    return {"type": "prefix", "any": [[{"is": "token", "of": list(tokens)}]]}


def rule(*tokens, feature="f"):
    return Explanation(feature, "fires on " + " ".join(tokens), "lexical/1", on_token(*tokens))


def said(text="it is on at word", feature="f"):
    return Explanation(feature, text, "openai:judge/top/1")


def scores(explanation, own, *scorers, tools=None, **more):
    return {score.scorer: score for score in score_features([(explanation, own)], scorers, tools or Tools(), **more)}


# rules ---------------------------------------------------------------------------------------------


def test_every_scorer_is_registered_with_its_chance():
    assert {name: SCORERS.get(name).chance for name in SCORERS.names()} == CHANCE


def test_a_perfect_rule_and_one_that_never_fires():
    found = scores(rule(" word"), F, *EXECUTED)
    assert [found[name].value for name in ("detection", "fuzzing", "intruder")] == [1, 1, 1]
    predicted = np.concatenate([[float(piece == " word") for piece in item.pieces] for item in F.scored])
    true = np.concatenate([item.values for item in F.scored])
    assert (
        found["simulation"].value == pytest.approx(np.corrcoef(predicted, true)[0, 1], abs=1e-9)
        and found["simulation"].value > 0.9
    )
    none = scores(Explanation("f", "no rule found", "lexical/1"), F, *EXECUTED)
    assert {name: score.value for name, score in none.items()} == {name: pytest.approx(CHANCE[name]) for name in EXECUTED}
    assert all(
        score.failed == 0 and score.low is not None and score.low <= score.value <= score.high for score in none.values()
    )


@pytest.mark.parametrize(
    "tokens", [(" words",), (" word", " stone"), (" river",), (" word", " words", " stone"), (" river", " word")]
)
def test_rules_against_references(tokens):
    found = scores(rule(*tokens), F, *EXECUTED)
    truth = [item.fires for item in F.scored]
    fires = [any(piece in tokens for piece in item.pieces) for item in F.scored]
    assert found["detection"].value == pytest.approx(balanced_accuracy_score(truth, fires))
    predicted = np.concatenate([[float(piece in tokens) for piece in item.pieces] for item in F.scored])
    true = np.concatenate([item.values for item in F.scored])
    assert found["simulation"].value == pytest.approx(np.corrcoef(predicted, true)[0, 1])
    assert found["detection"].n == 80 and found["detection"].detail["windows"] == {
        "top": 20,
        "random": 20,
        "similar": 20,
        "other": 20,
    }


def test_marks_that_are_moved_or_beside_are_caught_by_the_rule_alone():
    own = asked(F, rule(" word"), Tools())
    items = fuzzing.marks(own, np.random.default_rng(0))
    right, wrong = ([item for item in items if item.right is side] for side in (True, False))
    assert len(right) == 20 and len(wrong) == 20 + 40
    assert all(item.window.values[place] > 0 for item in right for place in item.at)
    assert not any(item.window.values[place] > 0 for item in wrong for place in item.at)
    assert {len(item.at) for item in items} == {1}
    silent = [item for item in wrong if not item.window.fires]
    assert all(item.window.at in item.at for item in silent)
    # a rule that fires at the near word, too, takes the marks beside it for right: 20 of 60 wrong ones
    assert scores(rule(" word", " words"), F, "fuzzing")["fuzzing"].value == pytest.approx((1 + 40 / 60) / 2)


def test_a_rule_picks_intruders_by_hand():
    own = asked(F, rule(" word"), Tools())
    made = intruder.trials(own, draw_of(F, Tools(), 6))
    assert len(made) == 10 and all(sum(item.fires for item in trial.windows) == 4 for trial in made)
    assert all(not trial.windows[trial.intruder].fires for trial in made)
    used = [id(item) for trial in made for item in trial.windows]
    assert len(used) == len(set(used)) == 50 and len({trial.intruder for trial in made}) > 2
    won = intruder.executed(rule(" word", " words"), made, Tools())
    assert won == [0.2 if " words" in trial.windows[trial.intruder].pieces else 1.0 for trial in made]
    some = intruder.executed(rule(" the"), made, Tools())
    for trial, got in zip(made, some, strict=True):
        silent = [place for place, item in enumerate(trial.windows) if " the" not in item.pieces]
        assert got == (0.2 if not silent else 1 / len(silent) if trial.intruder in silent else 0)


def test_shuffled_explanations_are_of_other_features_and_score_at_chance():
    many = [planted_sample(f"f{n}", f" word{n}", f" words{n}", seed=n, density=0.001 * (1 + n % 7)) for n in range(24)]
    made = [rule(f" word{n}", feature=f"f{n}") for n in range(24)]
    others = deranged(made, {each.feature: each.density for each in many})
    assert set(others) == {each.feature for each in many}
    assert (
        all(other.feature != name for name, other in others.items()) and len({each.feature for each in others.values()}) == 24
    )
    for score in score_features(zip(made, many, strict=True), EXECUTED, Tools(), others):
        assert score.shuffled == pytest.approx(CHANCE[score.scorer]) and score.value > 0.9
    assert not deranged(made[:1], {"f0": 0.1})
    same = [replace(made[0], feature=f"f{n}") for n in range(3)]
    assert not deranged(same, {f"f{n}": 0.1 for n in range(3)})


def test_explanations_are_exchanged_among_features_of_like_density():
    made = [rule(f" word{n}", feature=f"f{n}") for n in range(64)]
    density = {f"f{n}": 10.0 ** -(n // 16) for n in range(64)}
    assert all(density[other.feature] == density[name] for name, other in deranged(made, density).items())
    empty = [Explanation(f"f{n}", "no rule found", "lexical/1") for n in range(32)] + made[32:]
    assert not any(other.text == "no rule found" for other in deranged(empty, density).values())


def test_what_shares_documents_is_refused_and_copies_are_left_out():
    shared = replace(F, scored=(*F.scored, replace(F.scored[0], document=F.shown[3].document)))
    with pytest.raises(UsageError, match="shown and scored"):
        scores(rule(" word"), shared, "detection")
    copies = tuple(replace(item, document=f"copy{n}") for n, item in enumerate(F.shown[:7]))
    found = scores(rule(" word"), replace(F, scored=(*F.scored, *copies)), "detection")["detection"]
    assert found.n == 80 and found.detail["left_out"] == 7
    skipped = {}
    silent = replace(F, scored=tuple(item for item in F.scored if not item.fires))
    assert scores(rule(" word"), silent, *EXECUTED, skipped=skipped) == {} and set(skipped) == {
        ("f", name) for name in EXECUTED
    }
    with pytest.raises(UsageError, match="detection, embedding"):
        scores(rule(" word"), F, "oracle")
    with pytest.raises(UsageError, match="openai"):
        scores(said(), F, "detection")


def test_rules_on_a_part_that_was_cut_once_say_the_same_as_on_texts():
    draw = np.random.default_rng(0)
    words = ["The", " old", " man", "'s", " (", "a", ' "b', '"', ")", "\n", " 12", " old", "ly", ".", " Über"]
    rows = [[words[place] for place in draw.integers(len(words), size=length)] for length in (30, 12, 25, 30)]
    documents = ["a", "a", "b", "c"]
    pieces = [piece for row in rows for piece in row]
    ids = np.array([words.index(piece) for piece in pieces], np.int32)
    starts = np.cumsum([0, *map(len, rows)])
    raw = [piece.encode() for piece in pieces]
    ends, typical = np.cumsum([len(each) for each in raw]), np.ones(len(ids), bool)
    part = CodedPart("scored", ids, starts, np.array([0, 0, 1, 2]), ("a", "b", "c"), np.zeros(4, int), typical, None,
                     b"".join(raw), ends)  # fmt: skip
    windows = []
    for row, document in zip(rows, documents, strict=True):
        for at in range(0, len(row), 3):
            first, end = max(0, at - 6), min(len(row), at + 4)
            made = replace(planted_window(row[first:end], (), document, "other", at=at - first), position=at)
            tokens = tuple(words.index(piece) for piece in row[first:end])
            windows.append(replace(made, lead=tuple(row[:first]), tokens=tokens))
    fast = Executed(part)
    assert all(fast.start(item) is not None for item in windows)
    other = replace(windows[0], document="elsewhere")
    brackets, quotes = {"is": "brackets", "of": ["1"]}, {"is": "quotes", "of": ["inside"]}
    rules = [
        on_token(" old", "ly"),
        {"type": "prefix", "any": [[brackets], [quotes]], "not": [{"is": "token", "of": ["."]}]},
        {"type": "prefix", "any": [[{"is": "echo", "of": ["1"]}, {"is": "previous", "of": ["old"]}]]},
    ]
    fired = 0
    for record in rules:
        want, got = fires_in(record, [*windows, other]), fast(record, [*windows, other])
        assert all(np.array_equal(one, two) for one, two in zip(want, got, strict=True))
        fired += sum(int(row.sum()) for row in got)
    assert fired > 20


def bags_of_tools():
    tools = Tools(changes=effects([f"f{n}" for n in range(6)]))
    tools.__dict__["encode"] = Bags([f"word{n}" for n in range(6)])
    return tools


@pytest.mark.parametrize("name", list(CHANCE))
def test_the_public_checks_hold_for_every_scorer(name):
    check_scorer(name, bags_of_tools())


def test_the_public_checks_find_scorers_that_are_wrong(monkeypatch):
    """One that rewards silence, one that ignores what is said, one that answers at random, one that sees what is shown."""
    plain = SCORERS.get("detection").question
    numbers = iter(range(10**6))

    def with_value(change):
        def question(explanation, own, tools):
            made = plain(explanation, own, tools)
            return replace(made, finish=lambda replies: change(made.finish(replies)))

        return question

    wrong = {
        "silence": with_value(lambda outcome: replace(outcome, failed=0)),
        "the same": with_value(lambda outcome: replace(outcome, value=0.7, low=0.6, high=0.8)),
        "again": with_value(lambda outcome: replace(outcome, value=outcome.value + 1e-6 * next(numbers), high=2.0)),
        "refused": lambda e, s, t: plain(e, replace(s, shown=()), t),
    }
    for what, question in wrong.items():
        monkeypatch.setitem(SCORERS._items, "detection", replace(SCORERS.get("detection"), question=question))
        with pytest.raises(AssertionError, match={"silence": "counted", "the same": "others'"}.get(what, what)):
            check_scorer("detection")
        monkeypatch.undo()


# judges --------------------------------------------------------------------------------------------


def tokens_marked(text):
    return [part.split(CLOSE)[0] for part in text.split(OPEN)[1:]]


def perfect(body):
    """Knows that features are on at the word that the claim ends with, and nothing else."""
    claim, *items = data_of(body)
    word = " " + claim["claim"].split()[-1]
    has = [
        word in [" " + each.strip(",.") for each in item.get("text", "").replace(OPEN, "").replace(CLOSE, "").split()]
        for item in items
    ]
    user = body["messages"][-1]["content"]
    if '"right"' in user:
        return {"right": [int(tokens_marked(item["text"]) == [word]) for item in items]}
    if '"strength"' in user:
        return {"strength": [10 * int(token == word) for token in items[0]["tokens"]]}
    if "all of these texts but one" in user:
        return {"number": (has.index(False) if False in has else 0) + 1}
    if "promoted" in user:
        return {"number": next((number for number, item in enumerate(items, 1) if word in item["promoted"]), 1)}
    return {"on": [int(each) for each in has]}


class Guess:
    """Answers at random."""

    def __init__(self):
        self.draw = np.random.default_rng(0)

    def __call__(self, body):
        _, *items = data_of(body)
        user = body["messages"][-1]["content"]
        flips = self.draw.integers(2, size=len(items)).tolist()
        if '"strength"' in user:
            return {"strength": self.draw.integers(11, size=len(items[0]["tokens"])).tolist()}
        if '"number"' in user and '"on"' not in user and '"right"' not in user:
            return {"number": int(self.draw.integers(1, len(items) + 1))}
        return {"right": flips} if '"right"' in user else {"on": flips}


JUDGED = ("detection", "fuzzing", "simulation", "intruder", "intervention")


def effects(features, documents=("x1", "x2")):
    """Every feature fN promotes ` wordN`, token N."""
    outputs = {name: Output(name, "clamped", (Token(n, f" word{n}", 1.0),), (), documents) for n, name in enumerate(features)}
    values = np.stack([np.full((len(documents), len(features)), -0.1) + np.eye(len(features))[n] for n in range(len(features))])
    return Changes(tuple(features), outputs, tuple(range(len(features))), values, documents)


MANY = [planted_sample(f"f{n}", f" word{n}", f" words{n}", seed=100 + n, n=24) for n in range(8)]


def judged(tmp_path, answer, make=None, features=MANY):
    with judge(lambda body: completion(json.dumps(answer(body)) if make is None else make)) as server:
        with Asker(Endpoint(server.url, "judge"), tmp_path) as asker:
            tools = Tools(asker=asker, changes=effects([each.feature for each in MANY]))
            made = [said(f"on at word{n}", f"f{n}") for n, _ in enumerate(features)]
            found = list(score_features(zip(made, features, strict=True), JUDGED, tools, deranged(made, dict.fromkeys(
                [each.feature for each in features], 0.1))))  # fmt: skip
    return summarise(found), found, server


def test_a_judge_that_knows_scores_one_and_shuffled_explanations_chance(tmp_path):
    means, found, server = judged(tmp_path, perfect)
    for name in ("detection", "fuzzing", "intruder", "intervention"):
        assert means[name].value == 1 and means[name].failed == 0, name
    assert means["simulation"].value > 0.9
    assert abs(means["detection"].shuffled - 0.5) < 0.03 and abs(means["fuzzing"].shuffled - 0.5) < 0.03
    assert abs(means["simulation"].shuffled) < 0.03
    assert sum((score.cost for score in found), start=Zero()).calls == len(server.asked) == len(set(server.prompts))


class Zero(Cost):
    """So that costs can be added up."""

    def __add__(self, other):
        return Zero(**vars(self.plus(other)))


def test_a_judge_that_guesses_scores_chance(tmp_path):
    means, found, _ = judged(tmp_path, Guess())
    for name in JUDGED:
        own = [score.value for score in found if score.scorer == name]
        reach = 4 * np.std(own) / math.sqrt(len(own))
        assert abs(means[name].value - CHANCE[name]) < reach, name
        assert means[name].failed == 0


@pytest.mark.parametrize("reply", ["I cannot say", '{"on": [1, 1]}', "", '{"number": 17, "strength": ["a"], "right": true}'])
def test_what_is_no_answer_is_wrong_and_counted(tmp_path, reply):
    means, found, _ = judged(tmp_path, None, reply, MANY[:2])
    for score in found:
        assert score.value == 0 and score.failed == score.n > 0, score.scorer
        assert score.low is None or score.low <= 0 <= score.high


def test_half_of_the_answers_missing_halves_the_score(tmp_path):
    seen = []

    def half(body):
        seen.append(body)
        return perfect(body) if len(seen) % 2 else "?"

    with judge(lambda body: completion(json.dumps(half(body)))) as server:
        with Asker(Endpoint(server.url, "judge", together=1), tmp_path) as asker:
            found = scores(said("on at word0", "f0"), MANY[0], "detection", "simulation", "intruder", tools=Tools(asker=asker))
    assert found["detection"].failed == found["detection"].n / 2 and 0.3 < found["detection"].value < 0.7
    assert found["simulation"].failed == 10
    assert found["simulation"].value == pytest.approx(found["simulation"].detail["r_of_answered"] / 2)


def test_an_explainer_without_words_is_wrong_everywhere_and_nothing_is_asked(tmp_path):
    with judge(lambda body: completion("{}")) as server, Asker(Endpoint(server.url, "judge"), tmp_path) as asker:
        found = scores(said("", "f0"), MANY[0], "detection", "simulation", tools=Tools(asker=asker))
    assert not server.asked and all(score.value == 0 and score.failed == score.n for score in found.values())


def test_prompts_do_not_give_the_answer_away(tmp_path):
    """On and off windows look alike to a judge: same marks, same fields, mixed order, as many of both."""
    bodies = []

    def keep(body):
        bodies.append(body)
        return perfect(body)

    judged(tmp_path, keep, features=MANY[:1])
    for body in bodies:
        claim, *items = data_of(body)
        assert len({tuple(item) for item in items}) == 1
        assert not any(word in json.dumps(items) for word in ("similar", "random", "other-", "scored"))
    answers = [perfect(body) for body in bodies if '"on"' in body["messages"][-1]["content"]]
    order = [each for answer in answers for each in answer["on"]]
    assert 0.4 < np.mean(order) < 0.6 and order != sorted(order) and order != sorted(order, reverse=True)


# other scorers -------------------------------------------------------------------------------------


class Bags:
    """An encoder by letters of the word asked for: windows with the word are close to an explanation that has it."""

    record = {"name": "bags"}

    def __init__(self, words=("word", "words", "stone", "river", "house")):
        self.words = words

    def __call__(self, texts):
        found = np.array([[text.split().count(word) + 1e-3 for word in self.words] for text in texts])
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_embedding_is_the_auroc_of_cosines():
    tools = Tools()
    tools.__dict__["encode"] = Bags()
    for text in ("word", "stone river", "house"):
        found = scores(said(text), F, "embedding", tools=tools)["embedding"]
        own = asked(F, said(text), tools)
        vectors = Bags()([text, *(item.text for item in (*own.on, *own.off))])
        want = roc_auc_score([1] * len(own.on) + [0] * len(own.off), vectors[1:] @ vectors[0])
        assert found.value == pytest.approx(want) and found.low <= found.value <= found.high
    assert scores(said("word"), F, "embedding", tools=tools)["embedding"].value > 0.8
    assert scores(Explanation("f", "no rule found", "lexical/1"), F, "embedding", tools=tools)["embedding"].value == 0.5


@pytest.mark.slow
def test_embedding_with_the_kept_encoder():
    given = [
        ([" The", " cat", " slept"], {1}, "top"),
        ([" A", " kitten", " purred"], {1}, "top"),
        ([" The", " budget", " passed"], set(), "other"),
        ([" Taxes", " rose", " again"], set(), "other"),
    ]
    own = Sample(
        "f", 0.1, 2.0, 4, (), tuple(planted_window(each[0], each[1], f"d{n}", each[2]) for n, each in enumerate(given))
    )
    assert scores(said("cats and kittens"), own, "embedding")["embedding"].value == 1


def test_lists_of_tokens_are_told_from_others_effects():
    names = [each.feature for each in MANY]
    changes = effects(names)
    own = Output("f3", "direct", (Token(3, " word3", 1.0),), (Token(4, " word4", -1.0),), ("shown-1",))
    good = replace(rule(" word3", feature="f3"), output=own.json())
    found = scores(good, MANY[3], "intervention", tools=Tools(changes=changes))["intervention"]
    assert found.value == 1 and found.detail["by"] == "tokens" and found.n == 2
    # an explanation of f7 fits f3 as it fits all but f7 and f6: above one of seven others, below one, tied with five
    other = replace(good, output=Output("f7", "direct", (Token(7, "", 1.0),), (Token(6, "", -1.0),)).json())
    assert scores(other, MANY[3], "intervention", tools=Tools(changes=changes))["intervention"].value == pytest.approx(
        (1 + 2.5) / 7
    )
    with pytest.raises(UsageError, match="documents that are not scored"):
        scores(
            replace(good, output=replace(own, documents=("x2",)).json()), MANY[3], "intervention", tools=Tools(changes=changes)
        )
    skipped = {}
    assert not scores(good, MANY[3], "intervention", skipped=skipped) and "not measured" in skipped["f3", "intervention"]
    tools = Tools(changes=changes)
    tools.__dict__["encode"] = lambda texts: np.array([[float(f"word{n}" in text.split()) for n in range(8)] for text in texts])
    assert scores(rule(" word3", feature="f3"), MANY[3], "intervention", tools=tools)["intervention"].value == 1


def test_untrained_scores_stand_beside():
    twins = [
        replace(each, scored=tuple(replace(item, values=tuple(np.roll(item.values, 3))) for item in each.scored))
        for each in MANY
    ]
    made = [rule(f" word{n}", feature=f"f{n}") for n in range(8)]
    own = list(score_features(zip(made, MANY, strict=True), EXECUTED, Tools()))
    untrained = list(score_features(zip(made, twins, strict=True), EXECUTED, Tools()))
    means = summarise(own, untrained)
    assert means["simulation"].value > 0.9 > 0.2 > means["simulation"].untrained
    assert means["detection"].json()["untrained"] == pytest.approx(
        np.mean([s.value for s in untrained if s.scorer == "detection"])
    )
    alone = summarise([Score("f", "x", "detection", 0.7, 0.5, 3)])["detection"]
    assert alone.low is None and alone.shuffled is None and alone.untrained is None


# intervals -----------------------------------------------------------------------------------------


def test_balanced_accuracy_by_hand_and_documents_count_once():
    value, low, high = balanced([True] * 4 + [False] * 2, [True, True, True, False, True, False], list("abcdef"))
    assert value == pytest.approx((0.75 + 0.5) / 2)
    exact = [stats.binomtest(*each).proportion_ci(0.975, "exact") for each in ((3, 4), (1, 2))]
    assert (low, high) == (pytest.approx(sum(e.low for e in exact) / 2), pytest.approx(sum(e.high for e in exact) / 2))
    one = balanced([True] * 30 + [False] * 30, [True] * 60, ["a"] * 30 + ["b"] * 30)
    many = balanced([True] * 30 + [False] * 30, [True] * 60, [str(n) for n in range(60)])
    assert one[1] < 0.05 and many[1] > 0.85 and one[0] == many[0] == 1
    assert share([1, 1, 0.5, 0])[1:] == (pytest.approx(stats.binomtest(2, 4).proportion_ci(0.95, "exact").low),
                                         pytest.approx(stats.binomtest(3, 4).proportion_ci(0.95, "exact").high))  # fmt: skip


def test_intervals_cover():
    draw, hits, correlated, ranked = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        right = [bool(each) for each in draw.random(40) < 0.8]
        _, low, high = balanced([True] * 20 + [False] * 20, right, [str(n) for n in range(40)])
        hits += low <= 0.8 <= high
        x = draw.normal(size=(40, 8))
        y = 0.5 * x + math.sqrt(0.75) * draw.normal(size=(40, 8))
        _, low, high = correlation(list(x), list(y), [str(n) for n in range(40)])
        correlated += low <= 0.5 <= high
        _, low, high = auroc(
            draw.normal(1, 1, 25).tolist(),
            draw.normal(0, 1, 25).tolist(),
            [f"a{n}" for n in range(25)],
            [f"b{n}" for n in range(25)],
        )
        ranked += low <= stats.norm.cdf(1 / math.sqrt(2)) <= high
    assert hits >= 190 and correlated >= 178 and ranked >= 175  # 95% of 200 is 190; percentile bootstraps fall a little short


def test_auroc_and_correlation_are_the_usual_ones():
    draw = np.random.default_rng(1)
    on, off = draw.integers(5, size=13).tolist(), draw.integers(4, size=9).tolist()
    assert auroc(on, off, list("abcdefghijklm"), list("abcdefghi"))[0] == pytest.approx(
        roc_auc_score([1] * 13 + [0] * 9, on + off)
    )
    x, y = [draw.normal(size=n) for n in (3, 9, 4)], [draw.normal(size=n) for n in (3, 9, 4)]
    assert correlation(x, y, list("aba"))[0] == pytest.approx(np.corrcoef(np.concatenate(x), np.concatenate(y))[0, 1])
    assert correlation([np.ones(4)], [draw.normal(size=4)], ["a"]) == (0.0, None, None)
    assert correlation([np.full(4, 1e8)], [draw.normal(size=4)], ["a"])[0] == 0


# output side ---------------------------------------------------------------------------------------

CONTEXTS = Contexts(((5, 9, 3, 17, 8), (40, 2, 77), (100, 3, 3, 60, 12, 9), (7, 8, 9, 10)), ("a", "b", "c", "d"))
FAMILY = ["llama", "gpt2", "gemma2", "granite"]


def ends(model, contexts, change=None):
    """log p of the next token by the model itself, with a hook on module `change[0]`'s output or input at the last position."""
    found = []
    for ids in contexts.tokens:
        handles = []
        if change is not None:
            handles = [change(model)]
        with torch.no_grad():
            found.append(model.hf(input_ids=torch.tensor([ids])).logits[0, -1].double())
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def block_adds(layer, vector):
    """A raw hook: what a block returns, at the last position, plus a vector."""

    def attach(model):
        module = model.hf.get_submodule(model.layout.blocks[layer].path)

        def hook(_, __, out):
            x = out[0] if isinstance(out, tuple) else out
            x = x.clone()
            x[:, -1] += vector
            return (x, *out[1:]) if isinstance(out, tuple) else x

        return module.register_forward_hook(hook)

    return attach


def neuron_adds(model_layer, unit, size):
    """A raw hook: the input of the down-projection, one coordinate at the last position, plus a number."""

    def attach(model):
        module = model.hf.get_submodule(model.layout.blocks[model_layer].down)

        def hook(_, args):
            x = args[0].clone()
            (x if x.dim() == 3 else x[None])[:, -1, unit] += size
            return (x, *args[1:])

        return module.register_forward_pre_hook(hook)

    return attach


def directions(model, site, n=3, seed=0):
    vectors = torch.randn(n, model.dims.d_model, generator=torch.Generator().manual_seed(seed))
    return of_directions(model, site, vectors)


@pytest.mark.parametrize("family", FAMILY)
def test_direct_effects_are_derivatives_of_the_logits(family):
    model = tiny(family)
    last = model.n_layers - 1
    units = directions(model, f"resid_post.{last}")
    found = list(direct(model, written(model, units), CONTEXTS, top=200))
    step = 1e-2
    for output, vector in zip(found, units.written, strict=True):
        up, down = (ends(model, CONTEXTS, block_adds(last, side * step * vector)) for side in (1, -1))
        want = ((up - down) / (2 * step)).mean(0)
        want -= want.mean()
        if family == "gemma2":  # a soft cap bends logits; with small ones it is a factor near 1
            assert want.abs().max() > 0
        if family == "granite":
            want = want * model.hf.config.logits_scaling
        got = {token.id: token.value for token in (*output.promoted, *output.suppressed)}
        assert len(got) == 199
        values = torch.tensor([got[token] for token in range(199)], dtype=torch.double)
        assert (values - want).norm() < 2e-2 * want.norm()
        assert [token.value for token in output.promoted] == sorted([t.value for t in output.promoted], reverse=True)
        assert all(token.value < 0 for token in output.suppressed) and output.documents == CONTEXTS.documents


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_direct_effects_of_neurons_point_where_the_model_goes(family):
    model = tiny(family)
    last = model.n_layers - 1
    found = list(direct(model, written(model, of_neurons(model, f"mlp_act.{last}", [3, 17])), CONTEXTS, top=200))
    for output, unit in zip(found, (3, 17), strict=True):
        up, down = (ends(model, CONTEXTS, neuron_adds(last, unit, side * 1e-2)) for side in (1, -1))
        want = (up - down).mean(0)
        want -= want.mean()
        got = {token.id: token.value for token in (*output.promoted, *output.suppressed)}
        values = torch.tensor([got[token] for token in range(199)], dtype=torch.double)
        cosine = float(torch.nn.functional.cosine_similarity(values, want, dim=0))
        assert cosine > (0.999 if family != "gemma2" else 0.9)  # behind a norm its own divisor is taken as fixed


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("layer", [0, 2])
def test_clamped_directions_do_what_raw_hooks_do(family, layer):
    model = tiny(family)
    units = directions(model, f"resid_post.{layer}")
    targets = dict(zip(units.names, (3.0, -2.0, 0.5), strict=True))
    plain = ends(model, CONTEXTS).log_softmax(-1)
    found = clamped(model, written(model, units), CONTEXTS, targets, tokens=range(199), top=12)
    assert found.features == units.names and found.documents == CONTEXTS.documents and found.values.shape == (3, 4, 199)
    acts = model.capture([list(ids) for ids in CONTEXTS.tokens], f"resid_post.{layer}", positions="last")
    x = acts[model.sites(f"resid_post.{layer}")[0]][:, 0].float()
    for row, (name, vector) in enumerate(zip(units.names, units.written, strict=True)):
        now = x @ vector
        now = now - now.mean()
        after = []
        for place, ids in enumerate(CONTEXTS.tokens):
            one = Contexts((ids,), ("a",))
            after.append(ends(model, one, block_adds(layer, (targets[name] - now[place]) * vector))[0])
        change = torch.stack(after).log_softmax(-1) - plain
        assert np.allclose(found.values[row], change.numpy(), atol=3e-3)
        p = torch.stack(after).softmax(-1)
        assert found.outputs[name].detail["kl"] == pytest.approx(float((p * change).sum(1).mean()), rel=1e-3, abs=1e-6)
        up, down = (p * change).mean(0), (-plain.exp() * change).mean(0)
        for tokens, key in ((found.outputs[name].promoted, up), (found.outputs[name].suppressed, down)):
            assert {token.id for token in tokens} == set(key.topk(12).indices.tolist())
            assert all(token.value == pytest.approx(float(change[:, token.id].mean()), abs=1e-4) for token in tokens)


def dictionary_of(site, d, width=16, outputs=None, d_out=None, **options):
    generator = torch.Generator().manual_seed(1)
    spec = Spec("topk", width, d, d_out or d, k=4, inputs=(site,), outputs=outputs or (site,), centred=d_out is None,
                options=options)  # fmt: skip
    made = make_dictionary(spec, "planted")
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return made


@pytest.mark.parametrize("norm", ["none", "layer", "root"])
def test_clamped_latents_are_set_whatever_they_were(norm):
    model = tiny("llama")
    made = dictionary_of("resid_post.1", 32, input_norm=norm)
    units = of_dictionary(made)
    found = clamped(model, written(model, units), CONTEXTS, dict.fromkeys(units.names, 2.0), tokens=range(199))
    x = model.capture([list(ids) for ids in CONTEXTS.tokens], "resid_post.1", positions="last")
    x = x[model.sites("resid_post.1")[0]][:, 0].float()
    now, scale = made.encode(x), {"none": torch.ones(len(x)), "layer": x.std(1), "root": x.norm(dim=1) / 32**0.5}[norm]
    assert (now > 0).any() and (now == 0).any()
    plain = ends(model, CONTEXTS).log_softmax(-1)
    for unit in range(16):
        added = (scale * (2.0 - now[:, unit]))[:, None] * made.directions()[unit]
        after = [ends(model, Contexts((ids,), ("a",)), block_adds(1, added[place]))[0]
                 for place, ids in enumerate(CONTEXTS.tokens)]  # fmt: skip
        assert np.allclose(found.values[unit], (torch.stack(after).log_softmax(-1) - plain).numpy(), atol=3e-3)


def test_clamped_neurons_heads_and_crosscoders():
    model = tiny("llama")
    plain = ends(model, CONTEXTS).log_softmax(-1)
    neurons = of_neurons(model, ["mlp_act.0.5", "mlp_act.2.7"])
    found = clamped(model, written(model, neurons), CONTEXTS, dict.fromkeys(neurons.names, 1.5), tokens=range(199))
    assert found.features == neurons.names
    for row, (layer, unit) in enumerate(((0, 5), (2, 7))):
        site = model.sites(f"mlp_act.{layer}")[0]
        now = model.capture([list(ids) for ids in CONTEXTS.tokens], site, positions="last")[site][:, 0, unit]
        after = [ends(model, Contexts((ids,), ("a",)), neuron_adds(layer, unit, float(1.5 - now[place])))[0]
                 for place, ids in enumerate(CONTEXTS.tokens)]  # fmt: skip
        assert np.allclose(found.values[row], (torch.stack(after).log_softmax(-1) - plain).numpy(), atol=3e-3)
    both = dictionary_of("resid_pre.1", 32, outputs=("mlp_out.1", "mlp_out.2"), d_out=64)
    (group,) = written(model, of_dictionary(both))
    assert torch.allclose(group.stream, both.directions()[:, :32] + both.directions()[:, 32:])
    assert set(group.vectors) == {"mlp_out.1", "mlp_out.2"}
    assert clamped(model, [group], CONTEXTS, dict.fromkeys(group.names, 1.0)).outputs[group.names[0]].detail["kl"] > 0


def test_a_head_is_moved_by_what_it_adds_when_it_is_on():
    model = tiny("gpt2")
    heads = of_heads(model, "attn_out.1.2")
    windows = [
        replace(item, tokens=tuple(token % 199 for token in item.tokens)) for item in planted_windows(" word", 6, 0, "d", "top")
    ]
    own = Sample("attn_out.1.2", 0.1, 2.0, 6, tuple(windows), ())
    (group,) = written(model, heads, [own])
    acts = model.capture([list(item.tokens) for item in windows], "attn_out.1.2")
    rows = torch.cat(list(acts.rows(model.sites("attn_out.1.2")[0])))
    on = torch.tensor([value > 0 for item in windows for value in item.values])
    assert torch.allclose(group.stream[0], rows[on].mean(0) - rows[~on].mean(0), atol=1e-5)
    assert list(direct(model, [group], CONTEXTS))[0].promoted
    assert clamped(model, [group], CONTEXTS, {"attn_out.1.2": 5.0}).outputs["attn_out.1.2"].detail["kl"] > 0
    with pytest.raises(UsageError, match="samples of heads"):
        written(model, heads)


def test_what_has_no_direction_is_refused_and_batches_do_not_matter(monkeypatch):
    model = tiny("llama")
    units = of_directions(model, "mlp_act.1", torch.eye(64)[:3])
    groups = written(model, units)
    for made in (groups, written(model, of_dictionary(dictionary_of("attn_in.1", 32)))):
        assert made[0].stream is None
        with pytest.raises(SiteError, match="Clamp it instead"):
            list(direct(model, made))
    with pytest.raises(UsageError, match="targets"):
        clamped(model, groups, CONTEXTS, {})
    with pytest.raises(UsageError, match="finite"):
        clamped(model, groups, CONTEXTS, dict.fromkeys(units.names, float("nan")))
    targets = dict.fromkeys(units.names, 3.0)
    whole = clamped(model, groups, CONTEXTS, targets, tokens=[4, 9])
    monkeypatch.setattr(output_side, "PAIRS", 5)
    assert np.allclose(clamped(model, groups, CONTEXTS, targets, tokens=[4, 9]).values, whole.values, atol=2e-3)
    assert whole.of([9]).shape == (3, 4) and whole.of([9, 5]) is None and whole.of([]) is None


def test_contexts_are_one_per_document_and_end_at_the_token():
    model = made_tiny("llama")
    model.prepend_bos, model.bos_id = True, 1
    found = contexts_of(model, [F], "scored", n=6)
    assert len(set(found.documents)) == 6 and all(name.startswith("scored") for name in found.documents)
    windows = {item.document: item for item in F.scored}
    for tokens, name in zip(found.tokens, found.documents, strict=True):
        assert tokens == (1, *windows[name].tokens[: windows[name].at + 1])
    assert contexts_of(model, [F], "scored", n=6).tokens == found.tokens
    with pytest.raises(UsageError, match="shown or scored"):
        contexts_of(model, [F], "confirm")


def test_too_little_to_score_is_said():
    with pytest.raises(Unscored, match="a trial needs 4"):
        SCORERS.get("intruder").question(rule(" word"), replace(F, scored=(*F.scored[:3], *F.scored[-3:])), Tools())
