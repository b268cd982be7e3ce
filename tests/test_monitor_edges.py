"""Monitors where scores tie, texts repeat, templates put words in odd places, and replies end before they are read."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import stats

from assay.cli.monitor import monitor as command
from assay.data.chat import opening, reply_end
from assay.errors import LengthError, UsageError
from assay.monitor import evaluate as evaluating
from assay.monitor import watch as watching
from assay.monitor.calibrate import calibrate
from assay.monitor.evaluate import evaluate
from assay.monitor.files import save_monitor
from assay.monitor.fit import FitPlan, fit
from assay.monitor.reading import reply_scores, score
from assay.monitor.records import Head, Monitor, bindings
from assay.monitor.suffix import suffix_search
from assay.monitor.talks import messages_as_talk, texts_as_talks
from assay.monitor.thresholds import rounding, threshold
from assay.monitor.units import Pooling
from assay.monitor.watch import watch
from conftest import tiny
from test_monitor import planted, worded

pytestmark = pytest.mark.whole

# thresholds --------------------------------------------------------------------------------------


def test_a_last_digit_is_no_alarm():
    """Half of the texts share their largest score; another batch moves it by what rounding moves."""
    draw = np.random.default_rng(0)
    scores = np.r_[np.full(150, 12.4), draw.normal(0, 3, 150).clip(max=12)]
    made = threshold("reply", scores, 0.01)
    assert not any(made.alert(12.4 * (1 + noise)) for noise in draw.uniform(-1e-6, 1e-6, 100))
    assert made.alert(12.4 + 3 * rounding(scores)) and made.alarms == 0


def test_with_ties_the_interval_is_of_what_alerts():
    """One text in twenty has the largest score, so the true rate of what alerts is 0, and the interval holds it."""
    draw = np.random.default_rng(1)
    made = threshold("reply", np.where(draw.random(2995) < 0.05, 10.0, draw.normal(0, 1, 2995)), 0.01)
    assert (made.alarms, made.low) == (0, 0) and 0 < made.high < 0.0105
    held = 0
    for _ in range(300):  # one score in 250 lies above the tie: some of the ties are among those that would alert
        values = draw.normal(0, 1, 1000)
        values = np.where(values > stats.norm.isf(0.004), values, np.where(values > 2, 2.0, values))
        made = threshold("reply", values, 0.02)
        real = stats.norm.sf(made.value) if made.value > stats.norm.isf(0.004) else 0.004
        held += bool(made.low <= real <= made.high)
    assert held >= 274  # 95% of 300 is 285, three standard errors are 11


def test_without_ties_nothing_but_a_last_digit_changes():
    values = np.random.default_rng(2).standard_normal(600)
    made = threshold("reply", values, 0.02)
    low, high = stats.beta.ppf([0.025, 0.975], made.alarms + 1, 600 - made.alarms)
    ordered = np.sort(values)[::-1]
    assert (made.low, made.high) == (low, high)
    assert ordered[made.alarms] < made.value <= ordered[made.alarms] + 1e-4


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def fitted(model):
    return fit(model, planted(), "sevens", "the token 7", FitPlan(sites=("resid_post.0",), ensemble=1, pooling="max"))


def test_copies_promise_no_more_than_the_texts_do(model, fitted):
    benign = [talk for talk in planted(1, 600) if talk.label == 0]
    once, often = (calibrate(fitted, model, texts, 0.02).thresholds["reply"] for texts in (benign, benign * 10))
    assert (often.n, often.low, often.high) == (300, once.low, once.high) and often.value == pytest.approx(once.value)


def test_a_text_that_comes_often_does_not_alert_each_time(model, fitted):
    """As traffic does: the benign text with the largest score is a fifth of what was given, and stays below."""
    benign = [talk for talk in planted(1, 600) if talk.label == 0]
    made = calibrate(fitted, model, benign, 0.05)
    loudest = benign[int(reply_scores(score(model, made, benign)).argmax())]
    again = calibrate(fitted, model, [*benign, *[loudest] * 75], 0.05)
    assert made.thresholds["reply"].value < again.thresholds["reply"].value
    assert not again.thresholds["reply"].alert(float(reply_scores(score(model, again, [loudest]))[0]))
    assert again.card["slices"]["reply"][0]["n"] <= 300 and again.card["benign"]["texts"] == 300


# templates ---------------------------------------------------------------------------------------

TURNS = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {{ m.content }}\n{% endif %}{% endfor %}[assistant]"
LAST = ("{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}] {% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content }} {% endif %}{{ m.content }}\n{% endif %}{% endfor %}[assistant]")  # fmt: skip


@pytest.mark.parametrize("template", [TURNS, LAST])
def test_a_system_text_hides_nothing_that_was_said(glass, monkeypatch, template):
    """Templates that drop it, or write it into the last turn: judged is from the user's first word on."""
    monkeypatch.setattr(glass.tokenizer, "chat_template", template)
    said = [{"role": role, "content": text} for role, text in (("user", "hello there"), ("assistant", "yes"), ("user", "so"))]
    for first in ([], [{"role": "system", "content": "Be good."}]):
        messages = [*first, *said]
        ids = glass.tokens(glass.tokenizer.apply_chat_template(messages, tokenize=False))[0]
        assert glass.text(ids[opening(glass, messages, ids) :]).strip().startswith("hello there")


def test_where_nothing_of_the_messages_is_written_everything_is_judged(glass, monkeypatch):
    monkeypatch.setattr(glass.tokenizer, "chat_template", "Once upon a time.[assistant]")
    ids = glass.tokens("Once upon a time.[assistant]")[0]
    assert opening(glass, [{"role": "user", "content": "hello"}], ids) == 1


# replies -----------------------------------------------------------------------------------------


def alarming(model):
    """A monitor that alerts for every token that it reads."""
    head = Head("resid_post.1", np.zeros(model.dims.d_model, np.float32), 5.0)
    made = Monitor("m", "w", (head,), Pooling("max"), {**bindings(model), "expires": "2099-01-01T00:00:00+00:00"})
    bars = {unit: replace(threshold(unit, np.zeros(60), 0.05), value=1.0) for unit in ("reply", "conversation")}
    return replace(made, thresholds=bars)


def test_a_reply_of_which_no_token_was_read_does_not_alert(glass):
    one, longer = (watch(glass, alarming(glass), ["The girl said"], n)[0] for n in (1, 2))
    assert (one.scores, one.units, one.alerts, one.prompt_score) == ((), {}, (), 5.0)
    assert longer.scores == (5.0,) and longer.alerts == ("reply", "conversation")


def test_what_follows_the_end_of_a_turn_is_not_judged(glass, monkeypatch):
    """Without a template a reply ends at the next "User:", as it is shown; what the model writes on belongs to nobody."""
    tail = glass.tokens(" fine.\nUser: and a bear")[0][glass.prepend_bos :]
    cut = next(n for n in range(len(tail)) if "\nUser:" in glass.text(tail[:n]))
    real = glass.generate(["User: hi\nAssistant:"], max_new_tokens=len(tail), sites=["resid_post.1"])
    made = SimpleNamespace(prompts=real.prompts, tokens=[tail], texts=[glass.text(tail)], activations=real.activations)
    monkeypatch.setattr(watching.Model, "generate", lambda self, *given, **options: made)
    found = watch(glass, alarming(glass), ["hi"], len(tail), chat=True)[0]
    assert found.reply == "fine." and "".join(found.pieces).strip() == "fine." and len(found.scores) < cut
    assert reply_end(glass, made.texts[0]) == made.texts[0].index("\nUser:")


def test_scores_that_are_no_numbers_are_numbers_in_a_reply(glass, monkeypatch):
    made = alarming(glass)
    monkeypatch.setattr(Monitor, "token_scores", lambda self, acts: np.full(len(next(iter(acts.values()))), np.nan))
    found = watch(glass, made, ["The girl said"], 4)[0]
    assert all(np.isfinite(found.scores)) and found.alerts == ("reply", "conversation") and np.isfinite(found.prompt_score)


def test_a_model_with_learned_positions_is_asked_for_no_more_than_it_has():
    model = tiny("gpt2")
    most = model.hf.config.n_positions
    assert len(model.generate([[3, 4, 5]], max_new_tokens=most - 2).tokens[0]) == most - 2
    with pytest.raises(LengthError, match=f"got {most - 1} after 3 tokens of prompt 0; allowed: at most {most - 2}"):
        model.generate([[3, 4, 5]], max_new_tokens=most - 1)


def test_a_suffix_is_sought_for_the_beginning_of_a_long_text(glass):
    text, score = suffix_search(worded(glass, " was"), glass, "the cat was in the garden " * 60, -1e9, 0)
    assert len(glass.tokens(text)[0]) <= 128 and np.isfinite(score)


# the question in words ---------------------------------------------------------------------------


def asked(glass, monkeypatch, favourite):
    """What the question in words scores where the model always says `favourite`."""
    token = glass.tokens(favourite)[0][-1]

    def logits(self, prompts):
        out = torch.full((len(prompts), self.dims.d_vocab), -20.0)
        out[:, token] = 20.0
        return out

    monkeypatch.setattr(evaluating.Model, "logits", logits)
    monkeypatch.setattr(evaluating, "_whole", lambda model, word: {" Yes": token, " yes": 7, " No": 8, " no": 9}.get(word))
    return evaluating._asked(worded(glass, " was"), glass, texts_as_talks(glass, ["the cat", "a dog"]))


def test_without_a_template_the_answer_has_a_space(glass, monkeypatch):
    assert min(asked(glass, monkeypatch, " was")) > 10


def test_a_model_that_does_not_answer_is_not_measured(glass, monkeypatch):
    monkeypatch.setattr(evaluating, "LEAST_MASS", 1.1)
    with pytest.raises(UsageError, match="hardly ever answers"):
        asked(glass, monkeypatch, " was")


def test_one_token_for_both_words_is_no_answer(glass, monkeypatch):
    monkeypatch.setattr(evaluating, "_whole", lambda model, word: 3)
    with pytest.raises(UsageError, match="no tokens for the words yes and no"):
        evaluating._asked(worded(glass, " was"), glass, texts_as_talks(glass, ["the cat", "a dog"]))


def test_words_of_several_tokens_are_no_answers(glass):
    assert evaluating._whole(glass, " was") == glass.tokens(" was")[0][-1] and evaluating._whole(glass, " was was") is None


def test_broken_answers_leave_the_rest_measured(model, fitted, monkeypatch):
    benign = [talk for talk in planted(1, 600) if talk.label == 0]
    armed = calibrate(fitted, model, benign, 0.05)
    monkeypatch.setattr(evaluating, "_asked", lambda monitor, model, talks: [float("nan")] * len(talks))
    assert evaluate(armed, model, planted(3, 60)).baselines["asked in words"]["auroc"] == 0.5


def test_a_long_reply_is_refused_in_words():
    model = tiny("gpt2")
    with pytest.raises(LengthError):
        watch(model, alarming(model), [[3, 4]], 10_000, chat=False)


def test_messages_of_a_dropped_system_text_are_calibrated(glass, monkeypatch):
    monkeypatch.setattr(glass.tokenizer, "chat_template", TURNS)
    talk = messages_as_talk(glass, [{"role": "system", "content": "Be good."}, {"role": "user", "content": "hello"}])
    assert glass.text(talk.ids[talk.turns[0][0] :]).strip().startswith("hello")


def test_watch_writes_numbers(tmp_path, glass):
    path = save_monitor(alarming(glass), tmp_path / "m.safetensors")
    done = CliRunner().invoke(command, ["watch", str(path), "glass-en", "--prompt", "The cat", "--tokens", "1", "--json", "-",
                                        "--quiet", "--atlas", str(tmp_path / "atlas")])  # fmt: skip
    assert json.loads(done.stdout)[0]["units"] == {}, done.output
