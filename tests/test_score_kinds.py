"""*decodes*, *explains* and *detects* on planted truths: what must pass passes, what must not is stopped by its gate."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from assay.data.concepts import load_concept
from assay.errors import AssayError, TaskError, UsageError
from assay.evidence.cautions import clusters_with, warnings_of
from assay.evidence.deployment import alarms_per_hit, precision_at, precision_table
from assay.evidence.detects import benign_threshold
from assay.evidence.explains import best_threshold
from assay.evidence.features import direction
from assay.evidence.gates.base import evaluate, get_gate
from assay.evidence.gates.near_detection import balanced
from assay.evidence.kinds import KINDS, ChecksTexts
from assay.evidence.memory import MemoryStore
from assay.evidence.monitors import halves
from assay.evidence.probes import (
    FitData,
    choose_c,
    fit_linear,
    fit_mean,
    held_out,
    online_bits,
)
from assay.evidence.redaction import redact, telling_words
from assay.evidence.rules import rule_of
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.source import MemorySource
from assay.probe.control import control_labels, unit_of
from assay.records import Example
from assay.statistics import certificate, summarise_exact
from assay.testing.score_worlds import (
    OTHER,
    OWN,
    STATING,
    coin,
    decodable_world,
    explained_world,
    monitored_world,
)

pytestmark = pytest.mark.whole


def verdict_on(kind, world, source, subject, **settings):
    store = MemoryStore()
    claim, _ = state_claim(store, world, source, subject, statement=Statement(kind), settings=Settings(**settings))
    return test_claim(store, claim.id, world, source=source)


def gates_of(verdict, split="confirm"):
    return {gate["name"].split("@")[0]: gate for gate in verdict.gates if gate["split"] == split}


def failed(verdict):
    """Required gates that did not pass on confirm."""
    return {name for name, gate in gates_of(verdict).items() if gate["required"] and not gate["passed"]}


def auroc(scores, labels):
    return roc_auc_score(labels, scores)


# decodes -----------------------------------------------------------------------------------------


@cache
def decoded(**world):
    planted = decodable_world(0, **world)
    return verdict_on("decodes", planted.world, planted.source, "resid_post.0", tune=140, confirm=160, ood=140)


def test_a_property_that_is_written_is_decoded():
    verdict = decoded()
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert "ranks a member above" in verdict.sentence
    assert any("uses" in line for line in verdict.does_not_show)
    gates = gates_of(verdict)
    assert all(gates[name]["passed"] for name in ("capacity.mean", "capacity.mlp", "code_length"))
    assert gates["code_length"]["estimate"] > 0.8  # of one bit
    assert gates["selectivity"]["tables"]["control"] < 0.65


def test_a_probe_that_remembers_words_fails_on_words_held_out():
    verdict = decoded(coding="identity")
    assert verdict.verdict != "supported"
    gates = gates_of(verdict)
    assert gates["detection"]["estimate"] < 0.7 and not gates["code_length"]["passed"]
    assert not gates["capacity.mean"]["passed"] and not gates["capacity.mlp"]["passed"]


def test_selectivity_stops_a_probe_that_remembers_words_seen_before():
    """Words recur under no name, so nothing leaks by the record; the probe looks perfect, and so do random labels."""
    verdict = decoded(coding="identity", shared=True, told=False)
    gates = gates_of(verdict)
    assert verdict.verdict == "refuted" and gates["detection"]["passed"] and gates["shuffled"]["passed"]
    assert "selectivity" in failed(verdict) and gates["selectivity"]["tables"]["control"] > 0.85


def test_words_that_recur_under_their_name_are_a_leak():
    verdict = decoded(coding="identity", shared=True)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert any("entity" in note for note in verdict.decision["notes"])


def test_what_only_a_stronger_probe_reads_is_not_decoded_linearly():
    planted = decodable_world(0, coding="xor", strength=4.0, n_words=40)
    verdict = verdict_on("decodes", planted.world, planted.source, "resid_post.0", tune=230, confirm=240, ood=200)
    gates = gates_of(verdict)
    assert verdict.verdict != "supported" and not gates["detection"]["passed"]
    assert gates["capacity.mlp"]["passed"] and not gates["capacity.mean"]["passed"]


def test_an_untrained_language_model_decodes_words_it_has_met_and_no_others():
    """The trap: on random weights a probe is perfect while words recur, and at chance once they are held out."""
    model, kind = untrained_words(60), KINDS.get("decodes")
    tune = kind.load(model, word_texts("tune", range(24), True))
    plan: Any = SimpleNamespace(settings={"seed": 0, "draws": 3, "options": {}})
    setup, _ = kind.prepare(model, plan, {"sites": ["resid_post.0"], "probe": {"type": "linear"}}, tune)
    gates = [get_gate(name).plan(kind="decodes") for name in ("detection", "selectivity", "untrained")]

    def found(nouns, told):
        data = kind.load(model, word_texts("confirm", nouns, told))
        table = {"templates": data.templates, "words": data.words, "columns": kind.measure(model, data, setup, gates)}
        return {gate.name: result for gate in gates if (result := evaluate(gate, "confirm", table, 0.05, 0))}

    met, fresh = found(range(24), False), found(range(30, 60), True)
    assert (met["detection"].estimate or 0) > 0.9 and met["detection"].p_above < 0.05
    assert met["selectivity"].tables["control"] > 0.9 and met["selectivity"].p_above > 0.5
    assert met["untrained"].p_above > 0.05
    assert (fresh["detection"].estimate or 1) < 0.7 and fresh["detection"].p_above > 0.05


def untrained_words(n):
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from assay.model.load import load_model

    names = [f"n{number}" for number in range(n)] + [f"f{number}" for number in range(40)]
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="f0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(names), n_positions=16, n_embd=64, n_layer=1, n_head=2, bos_token_id=0,
                                     eos_token_id=0)  # fmt: skip
    return load_model(transformers.GPT2LMHeadModel(config).eval(),
                      tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words))  # fmt: skip


def word_texts(split, nouns, told):
    first = {"tune": 0, "confirm": 10, "ood": 20}[split]
    return [Example(f"f{first + frame} f{30 + frame % 5} n{noun} f3", int(coin(f"class {noun}")), f"{split} {frame}",
                    (f"n{noun}",) if told else (), len(f"f{first + frame} f{30 + frame % 5} "))
            for frame in range(10) for noun in nouns if coin(f"{split} {frame} {noun}", 0.7)]  # fmt: skip


def test_the_linear_probe_is_standardised_logistic_regression():
    rng = np.random.default_rng(0)
    acts = rng.standard_normal((80, 6)) * [1, 5, 0.1, 2, 1, 1] + 3
    labels = (acts[:, 1] + rng.standard_normal(80) > 3).astype(int)
    ours = fit_linear(FitData(torch.tensor(acts), labels.tolist(), []), 0.1, 0)(torch.tensor(acts)).numpy()
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8)).fit(acts, labels).decision_function(acts)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_regularisation_and_thresholds_come_from_units_held_out():
    """Labels fixed per word, and nothing but the word to read: perfect on its own words, chance on others."""
    rng = np.random.default_rng(1)
    words = [f"w{number // 6}" for number in range(180)]
    vectors = {word: rng.standard_normal(60) for word in words}
    acts = torch.tensor(np.stack([vectors[word] for word in words]) + 0.1 * rng.standard_normal((180, 60)))
    labels = control_labels(words, 0, 0).tolist()
    data = FitData(acts, labels, words)
    assert auroc(fit_linear(data, 1.0, 0)(acts), labels) == 1.0
    assert 0.25 < auroc(held_out(data, "linear", 1.0, 0), labels) < 0.75
    rows = FitData(acts, labels, [str(row) for row in range(180)])
    assert choose_c(data, 0) <= 1e-3 < choose_c(rows, 0)  # by word nothing is worth fitting, by row everything is


def test_the_code_length_starts_from_tune_and_learns():
    tune = FitData(torch.zeros(20, 3), [0, 1] * 10, [])
    plain = online_bits(tune, FitData(torch.zeros(8, 3), [1, 0] * 4, [f"u{n}" for n in range(8)]), 1.0, blocks=1)
    assert plain == pytest.approx([1.0] * 8)  # nothing to read: one bit per label
    told = torch.tensor([[-1.0], [1.0]] * 60)
    bits = online_bits(FitData(told[:20], [0, 1] * 10, []), FitData(told, [0, 1] * 60, [f"u{n}" for n in range(120)]), 1.0)
    assert sum(bits) / 120 < 0.15


def test_the_unit_is_the_entity_the_word_read_or_the_last_word():
    assert unit_of(Example("A dog barks", 1, "t", ("Cat",))) == "cat"
    assert unit_of(Example("A dog barks", 1, "t", (), 2)) == "dog"
    assert unit_of(Example("A dog barks.", 1, "t")) == "barks"
    assert unit_of(Example("?!", 1, "t")) == "?!"
    units = ["a", "b", "a", "c"]
    labels = control_labels(units, 0, 0)
    assert labels[0] == labels[2] and {tuple(control_labels(list("abcdefgh"), draw, 0)) for draw in range(5)} != {(0,) * 8}
    middle = fit_mean(FitData(torch.tensor([[0.0], [2.0]]), [0, 1], []), 1.0, 0)
    assert middle(torch.tensor([[1.0], [3.0]])).tolist() == [0.0, 4.0]


def test_selectivity_is_task_minus_control():
    def table(control):
        rows = [(f"t{t}", label, score) for t in range(9) for label, score in ((1, 2.0), (1, 1.0), (0, 0.5), (0, 0.0))]
        labels, scores = [float(row[1]) for row in rows], [row[2] for row in rows]
        return {"templates": [row[0] for row in rows], "words": None,
                "columns": {"label": labels, "score": scores, "control.label.0": labels,
                            "control.score.0": control(labels)}}  # fmt: skip

    plan = get_gate("selectivity").plan(kind="decodes")
    memory = evaluate(plan, "confirm", table(lambda labels: labels), 0.05, 0)
    chance = evaluate(plan, "confirm", table(lambda labels: [0.0] * len(labels)), 0.05, 0)
    below = evaluate(plan, "confirm", table(lambda labels: [-label for label in labels]), 0.05, 0)
    assert memory and chance and below
    assert (memory.estimate, chance.estimate, below.estimate) == (0.0, 0.5, 0.5)  # worse than chance is no better
    assert memory.p_above == 1.0 and chance.p_above < 0.05


NOT_SITES = ("resid_post.0.3", ["resid_post.0", "resid_post.1"], {"site": "resid_post.0", "probe": "forest"},
             {"site": "resid_post.0", "layers": 3})  # fmt: skip


@pytest.mark.parametrize("given", NOT_SITES)
def test_decodes_refuses_what_is_not_a_whole_site(given):
    with pytest.raises(UsageError):
        KINDS.get("decodes").subject(None, given)


# explains ----------------------------------------------------------------------------------------

LEXICON = {"type": "lexicon", "words": list(OWN)}


@cache
def explained(words=OWN, draws=19, **world):
    planted = explained_world(0, **world)
    subject = {"feature": "mlp_act.0.0", "rule": {"type": "lexicon", "words": list(words)}, "text": "small hunters"}
    return verdict_on("explains", planted.world, planted.source, subject, tune=256, confirm=320, ood=224, draws=draws)


def test_the_right_rule_explains():
    verdict = explained()
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert any("output side" in line for line in verdict.does_not_show)
    assert {"near_detection", "precision", "sensitivity", "shuffled_explanation", "discrimination"} <= gates_of(verdict).keys()


def test_the_wrong_rule_is_refuted():
    assert explained(words=OTHER).verdict == "refuted"


@pytest.mark.parametrize(
    ("gate", "world"),
    [
        ("near_detection", {"look_alike": True}),
        ("discrimination", {"copies": 3, "units": 96, "draws": 80}),
        ("untrained", {"lexical_twin": True}),
    ],
)
def test_one_gate_alone_stops_an_explanation(gate, world):
    verdict = explained(**world)
    assert failed(verdict) == {gate} and verdict.verdict == "refuted"


@pytest.mark.parametrize(
    ("gate", "world"),
    [("sensitivity", {"missed": 0.6}), ("precision", {"second": True}), ("shuffled_explanation", {"copies": 20})],
)
def test_a_partial_explanation_is_stopped(gate, world):
    verdict = explained(**world)
    assert gate in failed(verdict) and verdict.verdict != "supported"
    assert gates_of(verdict)["detection"]["passed"] or gate == "sensitivity"


def test_members_are_what_the_rule_says_not_what_the_labels_say():
    """Texts without labels of their own: only the rule decides, in the gates and in the search."""
    planted = explained_world(0)
    bare = {split: [Example(e.text, 0, e.template, e.entities, e.position, e.near_miss) for e in items]
            for split, items in planted.source.splits.items()}  # fmt: skip
    verdict = verdict_on("explains", planted.world, MemorySource("bare", bare), {"feature": "mlp_act.0.0", "rule": LEXICON},
                         tune=256, confirm=320, ood=224)  # fmt: skip
    assert verdict.verdict == "supported" and verdict.counterexamples["hits"] < 5


def test_a_rule_that_says_the_same_of_a_whole_split_is_refused_when_stated():
    """Words of one split of a concept are in no other: a list that fits tune says nothing on confirm."""
    subject = KINDS.get("explains").subject(None, {"feature": "mlp_act.0.0", "rule": {"type": "lexicon", "words": ["cat"]}})
    texts = {split: load_concept("animals", split, 60) for split in ("tune", "confirm")}
    kind = KINDS.get("explains")
    assert isinstance(kind, ChecksTexts)
    kind.check_texts(subject, "tune", texts["tune"])
    with pytest.raises(TaskError, match="confirm: the text has one of cat in none of 60 texts.*held out"):
        kind.check_texts(subject, "confirm", texts["confirm"])
    planted, store = explained_world(0), MemoryStore()
    with pytest.raises(TaskError, match="in all of 64 texts"):
        state_claim(store, planted.world, planted.source, {"feature": "mlp_act.0.0", "rule": {"type": "regex", "pattern": "."}},
                    statement=Statement("explains"), settings=Settings(tune=64, confirm=64, ood=64))  # fmt: skip
    assert store.entry_count() == 0


def test_rules_say_on_or_off():
    texts = [Example(text, label, "t") for text, label in (("A Badger!", 0), ("badgered", 1), ("none", 1))]
    assert rule_of({"type": "lexicon", "words": ["badger"]})(texts) == [1, 0, 0]
    assert rule_of({"type": "regex", "pattern": "badger"})(texts) == [1, 1, 0]
    assert rule_of({"type": "concept"})(texts) == [0, 1, 1]
    for wrong in ({"type": "lexicon", "words": "badger"}, {"type": "lexicon", "words": []}, {"type": "regex", "pattern": "("},
                  {"type": "regex"}, {"type": "oracle"}):  # fmt: skip
        with pytest.raises(AssayError):
            rule_of(wrong)


def test_thresholds_and_balance_agree_with_references():
    scores, labels = [0.1, 0.4, 0.35, 0.8, 0.9], [0, 0, 0, 1, 1]
    assert best_threshold(scores, labels) == pytest.approx(0.6)
    rng = np.random.default_rng(2)
    on, said = rng.integers(0, 2, 40).astype(float).tolist(), rng.integers(0, 2, 40).astype(float).tolist()
    values = balanced(on, said, said, ["one"] * 40)
    assert np.mean([v for v in values if v is not None]) == pytest.approx(balanced_accuracy_score(said, on))


# detects -----------------------------------------------------------------------------------------

SIZES = {"tune": 460, "confirm": 480, "ood": 400}


@cache
def detected(monitor="feature", threshold=None, few=False, **world):
    sizes = {"tune": 460, "confirm": 350, "ood": 350} if few else SIZES
    planted = monitored_world(0, benign={"tune": 260, "confirm": 150, "ood": 150} if few else None, **world)
    assert planted.axis is not None
    feature = {"feature": direction("resid_post.0", planted.axis.tolist())}
    named = feature if monitor == "feature" else {"site": "resid_post.0", "probe": monitor}
    subject = {**named, "threshold": threshold, "evidence": list(STATING)}
    return verdict_on("detects", planted.world, planted.source, subject, **sizes)


@pytest.mark.parametrize("monitor", ["feature", "linear"])
def test_a_monitor_of_the_state_is_supported(monitor):
    verdict = detected(monitor)
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    gates = gates_of(verdict)
    assert gates["families"]["tables"]["families"] == 5 and gates["false_alarms"]["K"] == 330
    assert gates["false_alarms"]["tables"]["precision_at"].keys() == {"0.1", "0.01", "0.001", "0.0001"}


@pytest.mark.parametrize(
    ("gate", "world", "state"),
    [
        ("families", {"weak": 0.5}, "inconclusive"),
        ("false_alarms", {"alarms": 0.05}, "refuted"),
        ("untrained", {"twin": True}, "refuted"),
        ("evidence_removed", {"reads": "words"}, "inconclusive"),
        ("random.direction", {"width": 1}, "inconclusive"),
    ],
)
def test_one_gate_alone_stops_a_monitor(gate, world, state):
    verdict = detected(**world)
    assert failed(verdict) == {gate} and verdict.verdict == state


def test_a_monitor_of_words_anybody_can_read_is_lexical():
    verdict = detected(reads="said")
    assert failed(verdict) == {"lexical", "evidence_removed"} and "lexical" in verdict.reasons


def test_a_threshold_too_high_finds_nothing():
    verdict = detected(threshold=50.0)
    assert verdict.verdict == "refuted" and {"recall", "families"} == failed(verdict)


def test_too_few_benign_texts_say_how_many_more():
    """200 silent clusters are not the 299 that a certificate takes; nothing else is missing."""
    verdict = detected(few=True)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("underpowered",))
    assert failed(verdict) == {"false_alarms"} and verdict.decision["more_clusters"] == 299 - 200


def test_a_certificate_that_cannot_be_given_is_said_before_anything_is_read():
    planted = monitored_world(0, benign={"tune": 260, "confirm": 150, "ood": 150})
    settings = Settings(tune=460, confirm=350, ood=350, draws=3)
    subject = {"feature": direction("resid_post.0", planted.axis.tolist())}
    for bars, said in (({}, ["299 groups of benign texts in confirm (200 there)", "0.98 is the most"]),
                       ({"false_alarms": 0.98}, [])):  # fmt: skip
        store = MemoryStore()
        _, plan = state_claim(store, planted.world, planted.source, subject, statement=Statement("detects"),
                              settings=settings, sesoi=bars)  # fmt: skip
        told = [warning for warning in warnings_of(plan, planted.source) if "cannot be supported" in warning]
        assert len(told) == bool(said) and all(part in told[0] for part in said)
        assert all(entry["kind"] not in ("ticket", "data") for entry in store.entries())
    assert 0.98**200 < 0.05 < 0.99**200 and 0.98**200 < 0.1


def test_clusters_are_those_that_a_gate_will_count():
    crossed = [Example(f"{word} {frame}", int(word == "a"), f"f{frame}", (word,)) for word in "abc" for frame in range(6)]
    assert clusters_with(crossed, 0) == 2  # six frames, and two words that recur in them
    assert clusters_with([Example(f"t{n}", n % 2, f"f{n}") for n in range(10)], 0) == 5


def test_random_contrast_pairs_know_nothing_of_the_labels():
    """Of 99 deals of 48 texts the luckiest agrees with the labels; of deals in halves none does."""
    member, rng = np.arange(48) < 21, np.random.default_rng(0)
    dealt = np.array([halves(member, rng) for _ in range(99)])
    agree = dealt[:, member].mean(1) - dealt[:, ~member].mean(1)
    free = [rng.permutation(member) for _ in range(99)]
    assert abs(agree).max() < 0.05 < max(label[member].mean() - label[~member].mean() for label in free)
    assert len({tuple(label) for label in dealt}) == 99 and set(dealt.sum(1)) <= {23, 24, 25}
    assert all(sorted(halves(np.array([True, False]), rng)) == [0, 1] for _ in range(20))


def test_the_certificate_is_the_exact_binomial():
    names = [f"c{number}" for number in range(320)]
    clean = summarise_exact([1.0] * 320, names, 0.99)
    assert clean.p_above == pytest.approx(0.99**320) and clean.p_below == 1.0
    assert clean.low == pytest.approx(1 - binomtest(0, 320).proportion_ci(method="exact").high)
    some = summarise_exact([0.0] * 9 + [1.0] * 311, names, 0.99)
    assert some.p_below == pytest.approx(binomtest(9, 320, 0.01, alternative="greater").pvalue)
    assert some.p_above == pytest.approx(binomtest(9, 320, 0.01, alternative="less").pvalue)
    assert (certificate(0.0, 0.99), certificate(0.0, 0.99, 0.1), certificate(0.02, 0.99)) == (299, 230, None)
    copies = summarise_exact([1.0] * 640, [*names, *names], 0.99)
    assert copies.p_above == clean.p_above  # two texts of one document are one observation


def test_thresholds_come_from_benign_texts():
    benign, few = list(np.arange(1000.0)), list(np.arange(100.0))
    high = benign_threshold([*benign, 500.0, 600.0], [0] * 1000 + [1, 1])
    alarms = sum(score > high for score in benign)
    here, next_one = (binomtest(n, 1000, 0.01, alternative="less").pvalue for n in (alarms, alarms + 1))
    assert here <= 0.05 < next_one
    assert benign_threshold([*few, 50.0], [0] * 100 + [1]) == 99.0
    assert benign_threshold([*few, 199.0], [0] * 100 + [1]) == 149.0  # a gap: halfway up


def test_redaction_takes_the_words_and_moves_the_position():
    example = Example("They secretly met. Secretly!", 1, "t", position=14)
    less = redact(example, ["secretly"])
    assert less and less.text == "They met. !" and less.text[less.position or 0] == "m" == example.text[14]
    assert redact(Example("secretly", 1, "t"), ["secretly"]) is None and redact(example, []) == example
    taken = redact(Example("They secretly met.", 1, "t", position=7), ["secretly"])
    assert taken and taken.position == 4  # the word that was read is gone: what stands before it
    texts = ["plan secretly now"] * 20 + ["plan openly now"] * 20
    assert telling_words(texts, [1] * 20 + [0] * 20) == ["secretly"]


def test_precision_falls_with_prevalence():
    assert precision_at(0.01, 0.95, 0.01) == pytest.approx(0.0095 / (0.0095 + 0.0099))
    assert alarms_per_hit(0.5, 1.0, 0.0) == 1.0 and alarms_per_hit(0.1, 0.0, 0.1) is None
    assert precision_at(0.0, 0.9, 0.0) == 0.0 and list(precision_table(0.9, 0.01, [0.5])) == ["0.5"]
    with pytest.raises(UsageError):
        precision_at(1.5, 0.9, 0.1)
