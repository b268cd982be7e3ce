"""The endpoint with the official client: answers, scores, actions, refusals, and the log of it all."""

from dataclasses import replace

import httpx2
import numpy as np
import openai
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay import add
from assay.data.chat import chat_text
from assay.errors import AssayError, UsageError
from assay.model.stream import Picking, Stream
from assay.monitor.calibrate import calibrate
from assay.monitor.drift import baseline
from assay.monitor.reading import BROKEN
from assay.monitor.talks import texts_as_talks
from assay.monitor.units import POOLINGS, unit_scores
from assay.serving.access import LARGEST, Guard, token_for
from assay.serving.refused import Refused
from assay.serving.start import start
from assay.serving.watch import WINDOW, Armed, Watch
from assay.serving.webhook import Webhook
from assay.serving.worker import Settings
from serving_server import SITE, TOKEN, direction, events, greedy, monitor, serving, token_scores, wait_for
from test_serving_load import prompts

pytestmark = pytest.mark.whole

HELLO = [{"role": "user", "content": "The old man"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(glass, tmp_path_factory):
    """Two monitors: one that cannot alert, one without a threshold."""
    monitors = [monitor(glass, reply=1e6, token=1e6), monitor(glass, "bare", "attention", seed=2)]
    with serving(glass, monitors, tmp_path_factory.mktemp("serving")) as running:
        yield running


# answers -------------------------------------------------------------------------------------------


def test_the_official_client_gets_what_the_model_says(server, glass):
    client, prompt = server.client(), glass.tokens(chat_text(glass, HELLO))[0]
    want = greedy(glass, prompt, 24)
    whole = client.chat.completions.create(model="glass-en", messages=HELLO, max_tokens=24, temperature=0)
    assert whole.choices[0].message.content == glass.text(want)
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), len(want))
    assert whole.choices[0].finish_reason == "length" and whole.object == "chat.completion"
    parts = list(client.chat.completions.create(model="glass-en", messages=HELLO, max_tokens=24, temperature=0, stream=True,
                                                stream_options={"include_usage": True}))  # fmt: skip
    assert "".join(p.choices[0].delta.content or "" for p in parts if p.choices) == glass.text(want)
    assert len([p for p in parts if p.choices and p.choices[0].delta.content]) > 12  # as it is made, not at the end
    assert parts[-1].usage == whole.usage and parts[-2].choices[0].finish_reason == "length"
    assert len({p.id for p in parts}) == 1 and parts[0].choices[0].delta.role == "assistant"


def test_completions_take_texts_tokens_and_several_of_them(server, glass):
    client, texts = server.client(), ["Once upon", "The sea was very calm"]
    ids = [glass.tokens(text)[0] for text in texts]
    want = [glass.text(greedy(glass, prompt, 6)) for prompt in ids]
    for prompt in (texts, ids):
        found = client.completions.create(model="glass-en", prompt=prompt, max_tokens=6, temperature=0)
        assert [choice.text for choice in found.choices] == want
        assert [choice.index for choice in found.choices] == [0, 1]
    assert found.usage.prompt_tokens == sum(map(len, ids)) and found.usage.completion_tokens == 12
    streamed = ["", ""]
    for part in client.completions.create(model="glass-en", prompt=texts, max_tokens=6, temperature=0, stream=True):
        streamed[part.choices[0].index] += part.choices[0].text
    assert streamed == want
    assert client.completions.create(model="glass-en", prompt="Once").usage.completion_tokens == 16


def test_a_seed_repeats_a_reply_and_choices_differ(server):
    def ask(seed):
        ask_for = server.client().chat.completions.create
        found = ask_for(model="glass-en", messages=HELLO, max_tokens=12, n=3, seed=seed, top_p=0.9)
        return [choice.message.content for choice in found.choices]

    assert ask(4) == ask(4) != ask(5) and len(set(ask(4))) == 3


def test_stop_texts_end_a_reply_before_them(server, glass):
    text = glass.text(greedy(glass, glass.tokens("Once upon")[0], 24))
    stop = text[20:23]
    ask = {"model": "glass-en", "prompt": "Once upon", "max_tokens": 24, "temperature": 0}
    found = server.client().completions.create(**ask, stop=[stop, "@@"])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (text[: text.find(stop)], "stop")


def test_the_model_and_its_monitors_are_listed(server):
    client = server.client()
    (model,) = client.models.list().data
    assert model.id == "glass-en" == client.models.retrieve("glass-en").id
    states = {each["monitor"]: each["state"] for each in model.assay["monitors"]}
    assert states == {"hand": "calibrated", "bare": "uncalibrated: no threshold was set on benign data"}
    assert httpx2.get(server.url + "/health").json()["status"] == "ok"


# scores --------------------------------------------------------------------------------------------


def test_scores_are_those_of_a_plain_pass(server, glass):
    prompt = glass.tokens(chat_text(glass, HELLO))[0]
    body = server.body(max_tokens=10, assay={"token_scores": True})
    (choice,) = server.post(CHAT, json=body).json()["choices"]
    tokens = greedy(glass, prompt, 10)
    want = token_scores(glass, server.service.worker.readers.armed[0].monitor, prompt + tokens)
    about = choice["assay"]
    np.testing.assert_allclose(about["token_scores"]["hand"], want[len(prompt) :], rtol=1e-3, atol=1e-4)
    hand, bare = about["monitors"]
    assert hand["units"]["reply"]["score"] == pytest.approx(want[len(prompt) :].mean(), rel=1e-3)
    assert (hand["units"]["reply"]["threshold"], hand["units"]["reply"]["above"]) == (1e6, False)
    assert (bare["state"].split(":")[0], bare["units"]["reply"]["above"]) == ("uncalibrated", None)
    logged = [e for e in server.events("scores") if e["reply"] == about["reply"]]
    places = [e["from"] + at for e in logged for at in range(len(e["scores"]["hand"]))]
    assert places == list(range(1, len(prompt) + 10)) and len(logged) < 5  # every token once, in order, many at a time
    np.testing.assert_allclose(np.concatenate([e["scores"]["hand"] for e in logged]), want[1:], rtol=1e-3, atol=1e-4)


def test_a_conversation_holds_what_was_said_before(server, glass):
    before = [*HELLO, {"role": "assistant", "content": "went to sea"}, {"role": "user", "content": "And then?"}]
    (choice,) = server.post(CHAT, json=server.body(messages=before)).json()["choices"]
    start = len(glass.tokens(chat_text(glass, HELLO))[0])
    said = len(glass.tokenizer(" went to sea", add_special_tokens=False)["input_ids"])
    prompt = glass.tokens(chat_text(glass, before))[0]
    acts = {SITE: glass.capture([prompt + greedy(glass, prompt, 8)], SITE)[SITE][0].numpy()}
    for place, armed in enumerate(server.service.worker.readers.armed):  # mean, and attention
        scores, logits = armed.monitor.token_scores(acts), armed.monitor.token_logits(acts)
        parts = slice(start, start + said), slice(len(prompt), None)
        keys = None if logits is None else [logits[part] for part in parts]
        want = unit_scores([scores[part] for part in parts], armed.monitor.pooling, keys)
        units = choice["assay"]["monitors"][place]["units"]
        assert all(units[unit]["score"] == pytest.approx(want[unit][-1], rel=1e-3) for unit in ("reply", "conversation"))


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), st.sampled_from(POOLINGS), st.floats(-4, 4))
@settings(max_examples=150, deadline=None)
def test_units_alert_exactly_where_the_whole_reply_says_so(scores, pooling, bar):
    """Of a reply that is over: a unit alerted while it was made if and only if one of its kind is above the bar."""
    class Hand:  # a model is not needed
        digest = tokenizer_digest = "x"
        dtype, dims = "float32", type("d", (), {"d_model": 3})
        tokenizer = None

    made = monitor(Hand(), pooling=pooling, token=bar, segment=bar, reply=bar, conversation=bar)  # type: ignore[arg-type]
    watch = Watch([Armed(made, "calibrated")], ("token", "segment", "reply", "conversation"), ("reply",), 4)
    keys = np.sin(np.array(scores))
    watch.prompts(0, np.ones(3), None, np.ones(3))
    alerts = [alert for at, score in enumerate(scores) for alert in watch.token(0, score, 4 + at, None, float(keys[at]))]
    alerts += watch.end(0, 3 + len(scores))
    units = unit_scores([np.array(scores)], made.pooling, [keys])
    for unit, values in units.items():
        assert any(a.unit == unit for a in alerts) == bool((values > bar).any()), unit
    firsts = [a for a in alerts if a.unit == "token"]
    assert not firsts or firsts[0].position == 4 + int(np.argmax(np.array(scores) > bar))
    assert len([a for a in alerts if a.unit in ("reply", "conversation")]) <= 2


def test_an_alert_comes_back_only_after_quiet():
    class Hand:
        digest = tokenizer_digest = "x"
        dtype, dims = "float32", type("d", (), {"d_model": 3})
        tokenizer = None

    made = monitor(Hand(), token=0.5)  # type: ignore[arg-type]
    watch = Watch([Armed(made, "calibrated")], ("token",), ("reply",), 1)
    scores = [1, 1, 0, 1] + [0] * 15 + [1] + [0] * 16 + [1, 1]
    found = [bool(watch.token(0, score, at)) for at, score in enumerate(scores)]
    assert [at for at, told in enumerate(found) if told] == [0, len(scores) - 2]


@pytest.mark.parametrize(("opening", "alerts"), [(1, [1, 3]), (2, [3]), (4, [])])
def test_the_prompt_is_judged_from_its_first_word_on(opening, alerts):
    class Hand:
        digest = tokenizer_digest = "x"
        dtype, dims = "float32", type("d", (), {"d_model": 3})
        tokenizer = None

    made = monitor(Hand(), token=0.5)  # type: ignore[arg-type]
    watch = Watch([Armed(made, "calibrated")], ("token",), ("prompt",), 5, opening=opening)
    found = watch.prompts(0, np.array([1.0, 0.0, 1.0, 0.0]))
    assert [alert.position for alert in found] == alerts[:1], "the next in a row is not told again"


# actions -------------------------------------------------------------------------------------------


def bar_of(glass, prompt, n=20):
    """A monitor's seed, a bar that is first passed at one token well within the reply, and which token that is."""
    tokens = prompt + greedy(glass, prompt, n)
    for seed in range(50):
        scores = token_scores(glass, monitor(glass, seed=seed), tokens)[len(prompt) :]
        first = int(np.argmax(scores))
        if 4 < first < n - 4:
            return seed, float((scores[first] + np.max(scores[:first])) / 2), first
    raise AssertionError("no such direction")


def test_blocking_ends_a_reply_before_what_alerted(glass, tmp_path):
    prompt = glass.tokens(chat_text(glass, HELLO))[0]
    seed, bar, first = bar_of(glass, prompt)
    with serving(glass, [monitor(glass, seed=seed, token=bar)], tmp_path, Settings("block", ("token",))) as server:
        create = server.client().chat.completions.create
        whole = create(model="glass-en", messages=HELLO, max_tokens=20, temperature=0)
        parts = list(create(model="glass-en", messages=HELLO, max_tokens=20, temperature=0, stream=True))
        assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("", "content_filter")
        assert "".join(p.choices[0].delta.content or "" for p in parts) == glass.text(greedy(glass, prompt, first))
        about = parts[-1].choices[0].model_extra | parts[-1].model_extra
        assert parts[-1].choices[0].finish_reason == "content_filter"
        (mark,) = about["assay"]["disclosure"]
        assert (mark["what"], mark["modified"]) == ("blocked", True) and "hand" in mark["why"]
        (alert,) = about["assay"]["alerts"]
        assert (alert["unit"], alert["position"]) == ("token", len(prompt) + first)
        assert alert["threshold"] == pytest.approx(bar, rel=1e-4) and alert["score"] > bar
        assert wait_for(lambda: server.service.worker.taken == 0 and not server.service.worker.stream.busy)
        ends = server.events("end")
        assert [e["finish"] for e in ends] == ["content_filter"] * 2 and ends[0]["disclosure"] == ["blocked"]
        assert len(server.events("alert")) == 2


def test_a_prompt_that_alerts_gets_no_text(glass, tmp_path):
    monitors = [monitor(glass, reply=-1e6)]
    with serving(glass, monitors, tmp_path, Settings("block", judge=("prompt",))) as server:
        parts = list(server.client().chat.completions.create(model="glass-en", messages=HELLO, max_tokens=9, stream=True))
        assert "".join(p.choices[0].delta.content or "" for p in parts) == ""
        assert parts[-1].choices[0].finish_reason == "content_filter"
        assert server.events("alert")[0]["part"] == "prompt"


def test_steering_begins_where_the_alert_was(glass, tmp_path):
    push = 8 * direction(glass)
    edits = [add("resid_post.2", push, phase="generated")]
    prompt = glass.tokens(chat_text(glass, HELLO))[0]
    seed, bar, first = bar_of(glass, prompt)
    made, acting = monitor(glass, seed=seed, token=bar), Settings("steer", ("token",))
    with serving(glass, [made], tmp_path, acting, steering=edits) as server:
        found = server.client().chat.completions.create(model="glass-en", messages=HELLO, max_tokens=20, temperature=0)
    stream = Stream(glass, [SITE])
    row, tokens = stream.join(prompt, Picking(20)), []
    while stream.busy:
        for step in stream.step():
            tokens += [] if step.token is None else [step.token]
            if step.start == len(prompt) + first:
                stream.edit(row, edits)
    text = glass.text(tokens)
    assert found.choices[0].message.content == text != glass.text(greedy(glass, prompt, 20))
    (mark,) = found.choices[0].assay["disclosure"]  # type: ignore[attr-defined]
    assert mark["what"] == "steered" and found.choices[0].finish_reason == "length"
    (event,) = events(tmp_path, "steered")
    assert event["from"] == len(prompt) + first + 1


def test_an_uncalibrated_monitor_never_acts_and_that_is_said(glass, tmp_path):
    other = monitor(glass, reply=-1e6)
    other = type(other)(**{**vars(other), "bound": {**other.bound, "model": "another"}})
    for action in ("block", "steer"):
        with pytest.raises(UsageError, match="calibrated with another model"):
            start(glass, [other], tmp_path / "no", Settings(action), steering=[add(SITE, direction(glass))])
    with serving(glass, [other], tmp_path / "log") as server:
        (choice,) = server.post(CHAT, json=server.body()).json()["choices"]
        assert choice["assay"]["alerts"] == [] and choice["assay"]["monitors"][0]["state"].startswith("uncalibrated")
        assert choice["assay"]["monitors"][0]["units"]["reply"]["score"] != 0


def test_a_monitor_whose_date_passes_while_it_serves_is_disarmed_and_that_is_said(glass, tmp_path):
    with serving(glass, [monitor(glass, reply=-1e6)], tmp_path) as server:
        about = server.post(CHAT, json=server.body()).json()["choices"][0]["assay"]
        assert about["alerts"] and about["monitors"][0]["state"] == "calibrated"
        (armed,) = server.service.worker.readers.armed
        armed.monitor = replace(armed.monitor, bound={**armed.monitor.bound, "expires": "2026-01-02T00:00:00+00:00"})
        armed.expires = 0.0
        about = server.post(CHAT, json=server.body()).json()["choices"][0]["assay"]
        assert not about["alerts"] and about["monitors"][0]["state"].startswith("uncalibrated: it expired at 2026-01-02")
        assert [e["state"] for e in server.events("state")] == [about["monitors"][0]["state"]]


def test_whoever_relies_on_a_monitor_is_told_when_it_promises_nothing_any_more(glass, tmp_path, capsys):
    sent: list[dict] = []
    with serving(glass, [monitor(glass, reply=1e6)], tmp_path, Settings("block")) as server:
        worker = server.service.worker
        worker.webhook = type("Hook", (), {"send": lambda _, alert: sent.append(alert), "close": lambda _: None})()
        assert httpx2.get(f"{server.url}/health").json() == {"status": "ok", "replies": 0, "monitors": {"hand": "calibrated"}}
        (armed,) = worker.readers.armed
        armed.monitor = replace(armed.monitor, bound={**armed.monitor.bound, "expires": "2026-01-02T00:00:00+00:00"})
        armed.expires = 0.0
        server.post(CHAT, json=server.body())
        health = httpx2.get(f"{server.url}/health").json()
    assert health["status"] == "unprotected" and health["monitors"]["hand"].startswith("uncalibrated: it expired")
    assert [event["state"] for event in sent] == [health["monitors"]["hand"]] and sent[0]["id"] and sent[0]["kind"] == "state"
    assert "monitor 'hand' is uncalibrated: it expired" in capsys.readouterr().err


def test_what_monitors_did_to_a_reply_is_no_drift(glass, tmp_path):
    """Of a steered reply, and of one that is blocked at its end, nothing is counted."""
    edits = [add("resid_post.2", direction(glass), phase="generated")]
    made = calibrate(monitor(glass), glass, texts_as_talks(glass, prompts(77)), 0.05, ("reply", "token"))
    for action, unit, bar, counted in (("steer", "token", -1e6, 0), ("block", "reply", -1e6, 0), ("log", "reply", -1e6, 1)):
        bars = {name: replace(held, value=bar) for name, held in made.thresholds.items()}
        acting = Settings(action, (unit,))
        with serving(glass, [replace(made, thresholds=bars)], tmp_path / action, acting, steering=edits) as server:
            server.post(CHAT, json=server.body())
            server.wait("end")
            (armed,) = server.service.worker.readers.armed
            assert len(armed.scores) == counted, action


def test_a_probability_is_given_where_labelled_data_made_it_one(glass, tmp_path):
    made = monitor(glass, reply=1e6)
    for card, given_ in (({}, False), ({"odds_texts": ["x"]}, True)):
        with serving(glass, [replace(made, card=card)], tmp_path / str(given_)) as server:
            (choice,) = server.post(CHAT, json=server.body()).json()["choices"]
            assert ("probability" in choice["assay"]["monitors"][0]["units"]["reply"]) == given_


def test_activations_that_are_no_numbers_alert_and_are_kept(glass, tmp_path):
    """As where half precision overflows: one such reply is told like any other, and the server goes on."""
    with serving(glass, [monitor(glass, "hand", "max", reply=5.0)], tmp_path) as server:
        vectors = server.service.worker.readers._vectors
        vectors[SITE] = np.full_like(vectors[SITE], np.nan)
        for _ in range(2):
            (choice,) = server.post(CHAT, json=server.body()).json()["choices"]
            assert [alert["score"] for alert in choice["assay"]["alerts"]] == [BROKEN]
        assert len(server.wait("end", 2)) == 2


def test_drift_disarms_a_monitor():
    class Hand:
        digest = tokenizer_digest = "x"
        dtype, dims = "float32", type("d", (), {"d_model": 3})
        tokenizer = None

    made, random = monitor(Hand(), reply=1.0), np.random.default_rng(0)  # type: ignore[arg-type]
    means = random.normal(size=(300, 3))
    made = type(made)(**{**vars(made), "baseline": baseline(means @ made.heads[0].weight, means, SITE)})
    for shift, drifted in ((0.0, False), (1.5, True)):
        armed = Armed(made, "calibrated")
        seen = random.normal(size=(WINDOW, 3)) + shift
        changes = [armed.add(float(mean @ made.heads[0].weight), mean) for mean in seen]
        assert [change is not None for change in changes] == [False] * (WINDOW - 1) + [drifted]
        assert armed.calibrated != drifted
        if drifted:
            assert "drift" in armed.state and armed.state == changes[-1]["state"]  # type: ignore[index]


# refusals ------------------------------------------------------------------------------------------


def test_errors_have_the_form_of_the_api(server):
    client = server.client()
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="does not exist here") as missing:
        ask(model="gpt-4", messages=HELLO)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.AuthenticationError, match="token"):
        openai.OpenAI(base_url=server.url + "/v1", api_key="wrong", max_retries=0).models.list()
    for wrong, param in [
        ({"messages": []}, "messages"), ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        ({"max_tokens": 0}, "max_tokens"), ({"temperature": 3}, "temperature"), ({"top_p": "high"}, "top_p"), ({"n": 99}, "n"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"logprobs": True}, "logprobs"), ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 1}, "frequency_penalty"), ({"logprobs": 0}, "logprobs"), ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"surprise": 1}, "surprise"), ({"seed": 1.5}, "seed"),
        ({"stream": "yes"}, "stream"), ({"assay": {"x": 1}}, "assay"), ({"max_tokens": 4000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "sea " * 3000}]}, "max_tokens"),
    ]:  # fmt: skip
        answer = server.post(CHAT, json=server.body(**wrong))
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), wrong
    idle = server.body(logprobs=False, frequency_penalty=0, user="me", response_format={"type": "text"})
    assert server.post(CHAT, json=idle).is_success


@pytest.mark.parametrize("status, headers, content", [
    (400, {}, b"{"), (400, {}, b"[]"), (400, {}, b'{"n": NaN}'), (400, {}, b"\xff\xfe"), (400, {}, b"[" * 100_000),
    (400, {}, b'{"model": "glass-en", "messages": [{"role": "user", "content": "a \\ud800"}]}'),
    (415, {"Content-Type": "text/plain"}, b"{}"), (413, {}, b" " * (LARGEST + 1)),
    (421, {"Host": "evil.example"}, b"{}"), (403, {"Origin": "http://evil.example"}, b"{}"),
    (403, {"Sec-Fetch-Site": "cross-site"}, b"{}"), (401, {"Authorization": "Bearer nothing"}, b"{}"),
])  # fmt: skip
def test_what_is_no_request_is_refused(server, status, headers, content):
    answer = server.post(CHAT, headers={"Content-Type": "application/json", **headers}, content=content)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"


def test_unknown_addresses_and_methods(server):
    assert server.post("/v1/embeddings", json={}).status_code == 404
    assert httpx2.get(server.url + CHAT, headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 405
    assert httpx2.get(server.url + "/v1/models").status_code == 401


NAMES = ["messages", "max_tokens", "stop", "n", "stream", "seed", "temperature", "tools", "user", "x"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
@settings(max_examples=60, deadline=None)
def test_no_body_breaks_the_reading(glass, given_):
    from assay.serving.asked import read_chat, read_completion

    for read, body in ((read_chat, given_), (read_completion, {**given_, "prompt": given_.get("messages")})):
        try:
            asked = read(glass, "glass-en", {"model": "glass-en", **body}, 64)
            assert 1 <= len(asked.picks) <= 8 and asked.picks[0].max_new_tokens <= 64
        except Refused as problem:
            assert problem.status in (400, 404) and problem.body()["error"]["param"]


def test_a_server_off_loopback_wants_a_token():
    for host, given_ in (("0.0.0.0", None), ("127.0.0.1", "short"), ("::", None)):
        with pytest.raises(UsageError, match="--token"):
            token_for(host, given_)
    assert len(token_for("127.0.0.1", None)) > 30
    guard = Guard(None, "t" * 16, "0.0.0.0")  # type: ignore[arg-type]
    assert guard._knows("10.1.2.3:80") and not guard._knows("evil.example") and not guard._knows("[bad")


@pytest.mark.parametrize("wrong, name", [
    (lambda m: Settings("explode"), "action"), (lambda m: Settings(units=("word",)), "units"),
    (lambda m: Settings(rows=0), "rows"), (lambda m: start(m, [], "x", Settings("block")), "--on-alert"),
    (lambda m: start(m, [], "x", Settings("steer")), "--on-alert"), (lambda m: start(m, [], "x", most=0), "--max-tokens"),
    (lambda m: start(m, [monitor(m, token=1.0)], "x", Settings("block")), "--unit"),
    (lambda m: start(m, [monitor(m, token=1.0)], "x"), "--unit"), (lambda m: Settings(units=()), "units"),
    (lambda m: start(m, [monitor(m, conversation=1.0)], "x", Settings(units=("conversation",), judge=("prompt",))), "--unit"),
    (lambda m: Webhook("ftp://x", lambda _: None), "--webhook"),
])  # fmt: skip
def test_actions_that_could_not_be_kept_are_refused(glass, wrong, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{name}: got"):
        wrong(glass)
    assert not list(tmp_path.iterdir())


def test_steering_needs_its_role(glass, tmp_path):
    with pytest.raises(UsageError, match="needs the role 'intervene'"):
        made, edits = monitor(glass, reply=1.0), [add(SITE, direction(glass))]
        start(glass, [made], tmp_path, Settings("steer"), steering=edits, role="read")


# templates, changed models, the command ------------------------------------------------------------


TEMPLATE = ("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
            "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip


def test_the_model_s_own_template_is_used_and_may_refuse(glass, monkeypatch):
    from assay.serving.asked import read_chat

    plain = read_chat(glass, "g", {"model": "g", "messages": HELLO}, 20)
    assert plain.stops == ("\nUser:",) and plain.texts == ("User: The old man\nAssistant:",)
    monkeypatch.setattr(glass.tokenizer, "chat_template", TEMPLATE)
    last = {"role": "user", "content": [{"type": "text", "text": "Why"}]}
    talk = [*HELLO, {"role": "assistant", "content": "went out"}, last]
    asked = read_chat(glass, "g", {"model": "g", "messages": talk, "stop": "x"}, 20)
    assert asked.texts == ("[user] The old man\n[assistant] went out\n[user] Why\n[assistant]",) and asked.stops == ("x",)
    assert glass.text(asked.prompts[0][asked.opening :]).strip().startswith("The old man\n[assistant]")
    ((start, stop),) = asked.turns
    assert "went out" in glass.text(asked.prompts[0][start - 1 : stop + 2])
    with pytest.raises(Refused, match="no system here") as problem:
        read_chat(glass, "g", {"model": "g", "messages": [{"role": "developer", "content": "x"}, *HELLO]}, 20)
    assert problem.value.status == 400


def test_a_changed_model_says_so_in_every_answer(glass, tmp_path):
    with serving(glass, [], tmp_path, Settings(modified="an edit of layer 2")) as server:
        for body in (server.body(n=2), server.body()):
            for choice in server.post(CHAT, json=body).json()["choices"]:
                (mark,) = choice["assay"]["disclosure"]
                assert (mark["what"], mark["why"]) == ("weights", "an edit of layer 2")
    assert {tuple(event["disclosure"]) for event in events(tmp_path, "end")} == {("weights",)}


@pytest.mark.parametrize("arguments, problem", [
    (["--on-alert", "explode"], "action: got 'explode'"), (["--host", "0.0.0.0"], "--token"),
    (["--monitor", "none"], "no such file"), (["--token", "short"], "--token"),
    (["--direction", "x"], "with --on-alert steer"), (["--on-alert", "steer"], "--direction FILE"),
    (["--on-alert", "block"], "--monitor FILE"), (["--unit", "x"], "units: got 'x'"),
    (["--allow", "read", "--on-alert", "steer"], "needs the role 'intervene'"), (["--judge", "x"], "judge: got 'x'"),
    (["--webhook", "http://[::1"], "--webhook: got"),
])  # fmt: skip
def test_what_the_command_cannot_do_is_said_before_it_listens(arguments, problem, tmp_path, monkeypatch):
    from assay.cli.main import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSAY_SERVE_TOKEN", raising=False)
    with pytest.raises(AssayError, match=problem):
        cli(["monitor", "serve", "glass-en", "--port", "0", *arguments], standalone_mode=False)


def test_a_saved_direction_becomes_the_edits_of_what_comes(glass, tmp_path):
    from assay.cli.monitor_serve import _steering
    from assay.data.ordinary import TEXTS
    from assay.steer.apply import residual_norm
    from assay.steer.directions import Direction
    from assay.steer.files import save_direction

    unit = direction(glass) / direction(glass).norm()
    made = Direction(SITE, unit, 2.0, "by hand", model_digest=glass.digest, tokenizer_digest=glass.tokenizer_digest)
    file = str(save_direction(made, tmp_path / "d.safetensors"))
    (away,) = _steering(glass, file, "project_out", 1.0)
    assert (away.op, away.phase, str(away.site), float(away.value)) == ("fade", "generated", SITE, 0.0)
    (push,) = _steering(glass, file, "add", -0.5)
    torch.testing.assert_close(push.value, -0.5 * residual_norm(glass, SITE, TEXTS) * unit, rtol=1e-4, atol=1e-5)
    assert _steering(glass, None, "add", 1.0) == []
