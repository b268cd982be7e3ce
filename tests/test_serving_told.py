"""What a server says of itself and of replies: markers in streams, positions, what was shown, turns found, no silent end."""

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx2
import pytest

import assay.model.stream as stream_module
from assay import add
from assay.data.chat import chat_text
from assay.data.turns import places
from assay.errors import UsageError
from assay.monitor.reading import score
from assay.monitor.talks import Talk, messages_as_talk
from assay.serving.asked import read_chat
from assay.serving.reply import sha
from assay.serving.start import start
from assay.serving.worker import Settings
from serving_server import SITE, direction, greedy, monitor, serving, wait_for

pytestmark = pytest.mark.whole

CHAT = "/v1/chat/completions"


class Closed:
    """A pipe whose reader has gone."""

    def write(self, text):
        raise BrokenPipeError(32, "gone")

    def flush(self):
        raise BrokenPipeError(32, "gone")


def test_a_closed_standard_error_stops_no_server(glass, tmp_path, monkeypatch):
    made = monitor(glass, reply=1e6)
    made = replace(made, bound={**made.bound, "expires": (datetime.now(UTC) + timedelta(seconds=1)).isoformat()})
    with serving(glass, [made], tmp_path) as running:
        monkeypatch.setattr(sys, "stderr", Closed())
        assert running.wait("state")[0]["state"].startswith("uncalibrated: it expired")
        assert running.post(CHAT, json=running.body()).status_code == 200
        assert running.service.worker.failed == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_has_ended_is_told_and_takes_nothing(glass, tmp_path, monkeypatch):
    with serving(glass, [monitor(glass, reply=1e6)], tmp_path) as running:
        worker = running.service.worker
        monkeypatch.setattr(worker, "_turn", lambda: (_ for _ in ()).throw(SystemExit))
        wait_for(lambda: not worker._thread.is_alive())
        health = httpx2.get(f"{running.url}/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        refused = running.post(CHAT, json=running.body())
        assert refused.status_code == 503 and "has ended" in refused.json()["error"]["message"]


def test_a_steered_stream_says_so_from_its_first_steered_text_to_its_error(glass, tmp_path):
    settings = Settings(action="steer", units=("token",), seconds=0.8)
    with serving(glass, [monitor(glass, token=-1e6)], tmp_path, settings, steering=[add(SITE, direction(glass) * 3)],
                 pace=0.05) as running:  # fmt: skip
        lines = running.post(CHAT, json=running.body(max_tokens=60, stream=True), timeout=20).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        assert "error" in chunks[-1]
        assert [mark["what"] for mark in chunks[-1]["assay"]["disclosure"]] == ["steered"]
        marked = ["disclosure" in chunk.get("assay", {}) for chunk in chunks[1:]]
        first = marked.index(True)
        assert first <= 2 and all(marked[first:])  # the token that alerted was picked before


def test_the_official_client_keeps_the_marker_of_a_stream(glass, tmp_path):
    settings = Settings(action="steer", units=("token",))
    with serving(glass, [monitor(glass, token=-1e6)], tmp_path, settings,
                 steering=[add(SITE, direction(glass) * 3)]) as running:  # fmt: skip
        asked = {key: value for key, value in running.body().items() if key != "max_tokens"}
        with running.client().chat.completions.stream(**asked, max_completion_tokens=12) as stream:
            message = next(each.snapshot.choices[0].message for each in stream
                           if each.type == "chunk" and each.chunk.choices[0].finish_reason)  # fmt: skip
        assert list(message.model_extra["assay"]["disclosure"]) == ["steered"]
        again = [*running.body()["messages"], message.model_dump(), {"role": "user", "content": "And?"}]
        assert running.post(CHAT, json=running.body(messages=again)).status_code == 200  # as a client sends it back


@pytest.mark.parametrize(("pieces", "stop", "want"), [
    (["Hi", " -", "-", "-", "-", "-", " end"], "-- end", "Hi ---"), (["x", "\n", "\n", "\n", "END"], "\n\nEND", "x\n"),
    (["Hello", " .", ".", ".", ".", "END"], "...END", "Hello ."),
    (["Hello", " .", ".", " and on"], "...END", "Hello .. and on"),
])  # fmt: skip
def test_text_before_a_stop_text_is_shown_and_scored(glass, tmp_path, monkeypatch, pieces, stop, want):
    ids = [token for piece in pieces for token in glass.tokenizer(piece, add_special_tokens=False)["input_ids"]]
    monkeypatch.setattr(stream_module.Stream, "_pick",
                        lambda self, row, logits, generator: ids[len(row.new)] if len(row.new) < len(ids) else 2)  # fmt: skip
    with serving(glass, [monitor(glass, reply=1e6)], tmp_path) as running:
        body = {"model": "glass-en", "prompt": "Once upon", "max_tokens": len(ids), "temperature": 0, "stop": stop,
                "assay": {"token_scores": True}}  # fmt: skip
        choice = running.post("/v1/completions", json=body).json()["choices"][0]
        assert choice["text"] == want
        shown = next(n for n in range(len(ids) + 1) if len(glass.text(ids[:n])) >= len(want))
        assert len(choice["assay"]["token_scores"]["hand"]) == shown  # no token of the stop text alone


def test_the_log_says_what_the_client_got(glass, tmp_path):
    body = {"model": "glass-en", "prompt": "Once upon", "max_tokens": 24, "temperature": 0}
    settings = Settings(action="block", units=("token",), keep_text=True)
    with serving(glass, [monitor(glass, token=5.0)], tmp_path / "block", settings) as running:
        choice = running.post("/v1/completions", json=body).json()["choices"][0]
        end = running.wait("end")[0]
        assert (choice["text"], choice["finish_reason"]) == ("", "content_filter")
        assert (end["text"], end["shown"]) == ("", sha("")) and end["withheld"] == sha(end["withheld_text"])
        streamed = running.post("/v1/completions", json={**body, "stream": True}).text
        end = running.wait("end", 2)[1]
        chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert (end["text"], end["shown"]) == (text, sha(text)) and "withheld" not in end
    with serving(glass, [monitor(glass, token=1e6)], tmp_path / "late",
                 Settings(units=("token",), keep_text=True, seconds=0.4), pace=0.05) as running:  # fmt: skip
        assert running.post("/v1/completions", json=body, timeout=20).status_code == 504
        end = running.wait("end")[0]
        assert (end["text"], end["finish"]) == ("", "timeout") and end["withheld_text"]


def test_steering_because_of_a_prompt_begins_with_the_reply(glass, tmp_path):
    settings = Settings(action="steer", units=("token",), judge=("prompt",))
    with serving(glass, [monitor(glass, token=-1e6)], tmp_path, settings,
                 steering=[add(SITE, direction(glass) * 3)]) as running:  # fmt: skip
        found = running.post(CHAT, json=running.body()).json()
        prompt = found["usage"]["prompt_tokens"]
        assert running.wait("steered")[0]["from"] == prompt
        assert f"from position {prompt}" in json.dumps(found["choices"][0]["assay"]["disclosure"])


@pytest.mark.parametrize("extra", [
    {"name": "Bob"}, {"tool_calls": [{"id": "1"}]}, {"prefix": True}, {"function_call": {"name": "f"}},
    {"content": [{"type": "text", "text": "Hi", "cache_control": 1}]},
])  # fmt: skip
def test_what_would_change_an_answer_is_refused_in_messages_too(glass, tmp_path, extra):
    with serving(glass, [], tmp_path) as running:
        found = running.post(CHAT, json=running.body(messages=[{"role": "user", "content": "Hi", **extra}]))
        assert found.status_code == 400 and found.json()["error"]["param"].startswith("messages[0]")
        idle = {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": [], "name": None}
        assert running.post(CHAT, json=running.body(messages=[{"role": "user", "content": "Hi", **idle}])).status_code == 200
        found = running.post(CHAT, json=running.body(stream=True, stream_options={"include_usage": True, "foo": 1}))
        assert found.status_code == 400 and "foo" in found.json()["error"]["message"]


def test_two_monitors_of_one_name_are_refused(glass, tmp_path):
    with pytest.raises(UsageError, match="hand"):
        start(glass, [monitor(glass), monitor(glass, seed=2)], tmp_path)


# where earlier turns lie -------------------------------------------------------------------------


def said(*words):
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(words)]


@pytest.mark.parametrize("words", [
    ("Pick a or b.", "a", "Why?"), ("You", "help", "Why?"), ("user", "assistant", "x", "user", "y"),
    ("Hi", "So it is.\n", "And?"), ("Is it", "- yes", "and", "x", "y"), ("  Hi", " two  spaces ", "x"),
    ("Assistant:", "User: Assistant: no", "x"),
])  # fmt: skip
@pytest.mark.parametrize("template", ["plain", "marks"])
def test_turns_of_a_request_are_those_that_monitors_are_calibrated_on(glass, monkeypatch, words, template):
    if template == "marks":
        monkeypatch.setattr(glass.tokenizer, "chat_template", "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n"
                            "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}", raising=False)  # fmt: skip
    messages = said(*words)
    messages = messages if messages[-1]["role"] == "user" else [*messages, {"role": "user", "content": "x"}]
    asked = read_chat(glass, "x", {"model": "x", "messages": messages, "max_tokens": 4}, 99)
    got = [glass.text(list(asked.prompts[0][a:b])).strip() for a, b in asked.turns]
    assert got == [words[at].strip() for at in range(1, len(words), 2)]
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    talk = messages_as_talk(glass, messages[: last + 1])
    if template == "plain":
        assert asked.turns == talk.turns
        assert [asked.prompts[0][a:b] for a, b in asked.turns] == [talk.ids[a:b] for a, b in talk.turns]


def test_a_served_conversation_has_the_score_of_one_that_is_read(glass, tmp_path):
    made = monitor(glass, conversation=1e6)
    with serving(glass, [made], tmp_path, Settings(units=("conversation",))) as running:
        for words in (("Pick a or b.", "a", "Why?"), ("Did he?", "Yes", "Why?"), ("Was it?", "So it is.\n", "And?")):
            found = running.post(CHAT, json=running.body(messages=said(*words), max_tokens=12)).json()["choices"][0]
            prompt = glass.tokens(chat_text(glass, said(*words)))[0]
            ids = [*prompt, *greedy(glass, prompt, 12)]
            talk = Talk(tuple(ids), (*messages_as_talk(glass, said(*words)[:2]).turns, (len(prompt), len(ids))))
            want = score(glass, made, [talk])[0].units["conversation"][0]
            assert found["assay"]["monitors"][0]["units"]["conversation"]["score"] == pytest.approx(want, abs=2e-3)


@pytest.mark.slow
def test_turns_of_a_real_template_in_letters_of_several_tokens(smollm2):
    messages = said("é 🦊", "🦊🦊 né", "なに", "日本", "You", "help", "x")
    ids = smollm2.tokens(chat_text(smollm2, messages))[0]
    found = places(smollm2, messages, ids)
    assert [smollm2.text(ids[a:b]) for a, b in found] == [message["content"] for message in messages]
    talk = messages_as_talk(smollm2, messages[:6])
    assert [place for place, message in zip(found, messages, strict=True) if message["role"] == "assistant"] == list(talk.turns)


def test_a_long_conversation_is_decoded_a_few_times_and_not_once_for_every_token(glass, monkeypatch):
    messages = said(*["What is the best way to do it"] * 511)
    ids = glass.tokens(chat_text(glass, messages))[0]
    real, decoded = glass.text, []
    monkeypatch.setattr(glass, "text", lambda tokens: (decoded.append(len(tokens)), real(tokens))[1])
    found = places(glass, messages, ids)
    assert None not in found and [glass.text(ids[a:b]).strip() for a, b in found[:4]] == ["What is the best way to do it"] * 4
    assert all(a[1] <= b[0] for a, b in zip(found, found[1:], strict=False))
    assert sum(decoded) < 30 * len(ids)


def test_a_template_that_writes_otherwise_is_searched(glass, monkeypatch):
    upper = "{% for m in messages %}[{{ m.role }}] {{ m.content.split('|')[-1] }}\n{% endfor %}"
    monkeypatch.setattr(glass.tokenizer, "chat_template", upper, raising=False)
    messages = said("Hello", "thought|Right you are", "Why")
    ids = glass.tokens(chat_text(glass, messages))[0]
    found = places(glass, messages, ids)
    assert found[1] is None and glass.text(ids[slice(*found[2])]).strip() == "Why"
