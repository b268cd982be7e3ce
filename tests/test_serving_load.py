"""Many clients, slow ones and gone ones, kills and failures: what the log then holds, and that nobody waits for another."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import openai
import pytest

from assay import permissions
from assay.errors import StoreError, UsageError
from assay.model.written import Written
from assay.monitor.records import Baseline
from assay.monitor.units import Pooling, unit_scores
from assay.serving import access as access_module
from assay.serving import log as log_module
from assay.serving import server as server_module
from assay.serving import webhook as webhook_module
from assay.serving.log import Log
from assay.serving.webhook import Webhook
from assay.serving.worker import Settings
from serving_server import SITE, TOKEN, events, greedy, monitor, serving, token_scores, wait_for

pytestmark = pytest.mark.whole

CHAT = "/v1/chat/completions"
STREAMS = 32


def prompts(n):
    words = ["The", "old", "man", "went", "to", "the", "sea", "and", "saw", "a", "great", "white", "ship", "with", "masts"]
    return [" ".join(words[at % 7 : at % 7 + 2 + at % 11]) for at in range(n)]


@pytest.mark.whole
def test_32_streams_at_a_time_lose_nothing(glass, tmp_path):
    texts = prompts(STREAMS)
    tokens = [glass.tokens(text)[0] for text in texts]
    lengths = [10 + at % 9 for at in range(STREAMS)]
    want = [greedy(glass, ids, n) for ids, n in zip(tokens, lengths, strict=True)]

    async def one(client, at):
        asked = {"model": "glass-en", "prompt": texts[at], "max_tokens": lengths[at], "temperature": 0}
        stream = await client.completions.create(**asked, stream=True)
        parts = [part async for part in stream]
        return "".join(part.choices[0].text for part in parts), parts[-1].assay["reply"]

    async def everybody():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client:
            return await asyncio.gather(*(one(client, at) for at in range(STREAMS)))

    made = monitor(glass, reply=1e6)
    with serving(glass, [made], tmp_path, Settings(rows=12, waiting=STREAMS)) as server:  # more than there are rows
        found = asyncio.run(everybody())
        assert server.service.worker.taken == 0
    assert [text for text, _ in found] == [glass.text(ids) for ids in want]
    kept = events(tmp_path)
    for at, (_, reply) in enumerate(found):
        mine = [e for e in kept if e.get("reply") == reply]
        assert [e["kind"] for e in (mine[0], mine[-1])] == ["begin", "end"] and mine[-1]["finish"] == "length"
        scores = np.concatenate([e["scores"]["hand"] for e in mine if e["kind"] == "scores"])
        np.testing.assert_allclose(scores, token_scores(glass, made, tokens[at] + want[at])[1:], rtol=2e-3, atol=2e-4)
    assert len([e for e in kept if e["kind"] == "begin"]) == STREAMS
    whole = (tmp_path / "audit.jsonl").read_text()
    assert not any(text in whole for text in texts) and not any(text in whole for text, _ in found)  # no texts unless asked for


def test_texts_are_kept_where_that_is_asked_for(glass, tmp_path):
    with serving(glass, [], tmp_path, Settings(keep_text=True)) as server:
        answer = server.post("/v1/completions", json={"model": "glass-en", "prompt": "Once", "max_tokens": 5}).json()
        assert server.events("begin")[0]["text"] == "Once" and server.wait("end")[0]["text"] == answer["choices"][0]["text"]


def test_stop_texts_are_not_part_of_what_is_judged(glass, tmp_path):
    ids = glass.tokens("Once upon")[0]
    tokens = greedy(glass, ids, 24)
    text = glass.text(tokens)
    stop = text[20:26]  # over more than one token
    made = monitor(glass, pooling="segment", reply=1e6)
    with serving(glass, [made], tmp_path) as server:
        body = {"model": "glass-en", "prompt": "Once upon", "max_tokens": 24, "temperature": 0, "stop": stop}
        (choice,) = server.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == text[: text.find(stop)] and choice["finish_reason"] == "stop"
    written, shown = Written(glass.text), 0
    while len(written.text) < text.find(stop):
        written.push(tokens[shown])
        shown += 1
    scores = token_scores(glass, made, ids + tokens)[len(ids) : len(ids) + shown]
    units = choice["assay"]["monitors"][0]["units"]
    assert units["reply"]["score"] == pytest.approx(unit_scores([scores], Pooling("segment"))["reply"][0], rel=1e-3)


# clients -------------------------------------------------------------------------------------------


def test_a_client_that_goes_frees_its_row(glass, tmp_path):
    with serving(glass, [monitor(glass, reply=1e6)], tmp_path, Settings(rows=1), pace=0.03) as server:
        for stream in (True, False):
            link = server.raw(json.dumps(server.body(max_tokens=90, stream=stream, temperature=1, seed=3)).encode())
            n = len(server.events("begin"))
            server.wait("scores", 3)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of a killed client
            link.close()
            assert server.wait("end", n + (not n))[-1]["finish"] == "cancelled"
            assert wait_for(lambda: server.service.worker.taken == 0)
        assert server.post(CHAT, json=server.body()).is_success  # the row is free
        assert [e["finish"] for e in server.wait("end", 3)] == ["cancelled", "cancelled", "length"]


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_client_that_leaves_before_the_last_token_is_judged_by_what_it_read(glass, tmp_path, pooling):
    hook, made = Hook(fails=0), monitor(glass, pooling=pooling, reply=-1e6, conversation=-1e6)
    made = replace(made, baseline=Baseline(np.zeros(3), SITE, np.zeros((1, glass.dims.d_model)), np.zeros((3, 1))))
    acting = Settings(units=("reply", "conversation"))
    with serving(glass, [made], tmp_path, acting, pace=0.03, webhook=hook.url) as server:
        link = server.raw(json.dumps(server.body(max_tokens=90, stream=True, stop=["\0"])).encode())
        server.wait("scores", 4)
        assert not server.events("alert")  # of a mean nothing is known before the end
        link.close()
        (end,), alerts = server.wait("end"), server.events("alert")
        assert end["finish"] == "cancelled" and [alert["unit"] for alert in alerts] == ["reply", "conversation"]
        assert [e["kind"] for e in server.events()].index("end") > [e["kind"] for e in server.events()].index("alert")
        assert len(server.wait("webhook delivered", 2)) == 2
        (armed,) = server.service.worker.readers.armed
        assert armed.scores == []  # drift does not count it
        assert server.post(CHAT, json=server.body()).is_success and len(armed.scores) == 1
    hook.shutdown()
    assert [body["id"] for body in hook.got[:2]] == [alert["id"] for alert in alerts]
    units = end["monitors"][0]["units"]
    scores = np.concatenate([e["scores"]["hand"] for e in events(tmp_path, "scores") if e["reply"] == end["reply"]])
    judged = scores[end_of_prompt(tmp_path, end) : alerts[0]["position"]]
    assert len(judged) >= end["tokens"] - 2 and alerts[0]["score"] == units["reply"]["score"]
    if pooling == "mean":
        assert units["reply"]["score"] == pytest.approx(judged.mean(), rel=1e-3)


def end_of_prompt(folder, end):
    """How many of the logged scores of a reply are of its prompt."""
    return next(e["tokens"] for e in events(folder, "begin") if e["reply"] == end["reply"]) - 1


@pytest.mark.parametrize("seconds, finish", [(0.5, "timeout"), (300.0, "failed")])
def test_a_reply_that_is_cut_by_the_server_is_judged_too(glass, tmp_path, seconds, finish):
    acting = Settings(seconds=seconds)
    with serving(glass, [monitor(glass, reply=-1e6)], tmp_path, acting, pace=0.03) as server:
        with pytest.raises(openai.APIError):
            for _ in server.client().chat.completions.create(**server.body(max_tokens=90, temperature=1, stream=True)):
                if finish == "failed" and server.service.worker.stream.running:
                    server.service.worker.stream.step = lambda: 1 / 0
        assert [event["finish"] for event in server.wait("end")] == [finish]
        assert [alert["unit"] for alert in server.events("alert")] == ["reply"]


def test_a_client_that_reads_nothing_delays_nobody(glass, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, "SLOWEST", 1.0)
    with serving(glass, [], tmp_path, small_buffers=True) as server:
        slow = server.raw(json.dumps(server.body(max_tokens=90, n=8, stream=True, temperature=1, stop=["\0"])).encode())
        server.wait("begin", 8)
        began = time.monotonic()
        assert server.client().chat.completions.create(**server.body()).choices[0].finish_reason == "length"
        assert time.monotonic() - began < 10
        assert len(server.wait("end", 9)) == 9  # its replies were finished and logged, though nobody read them
        time.sleep(2)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        slow.settimeout(15)
        received = b""
        while part := slow.recv(1 << 16):
            received += part
        assert b"data: {" in received and b"[DONE]" not in received  # let go of, not served to the end
        slow.close()


def test_a_body_that_trickles_in_is_let_go_of_when_its_time_is_over(glass, tmp_path, monkeypatch):
    monkeypatch.setattr(access_module, "SLOWEST", 0.5)
    with serving(glass, [], tmp_path) as server:
        link = socket.create_connection(("127.0.0.1", server.port))
        link.sendall((f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nAuthorization: Bearer {TOKEN}\r\n"
                      "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n").encode())  # fmt: skip
        link.settimeout(0.1)
        answer, began = b"", time.monotonic()
        while not answer and time.monotonic() - began < 5:
            link.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = link.recv(1 << 12)
        link.close()
        assert b" 408 " in answer.splitlines()[0] and time.monotonic() - began < 3


def test_more_than_may_wait_are_refused_and_none_is_lost(glass, tmp_path):
    with serving(glass, [], tmp_path, Settings(rows=2, waiting=2), pace=0.03) as server:
        body = json.dumps(server.body(max_tokens=90, stream=True, temperature=1)).encode()
        links = [server.raw(body) for _ in range(4)]
        server.wait("begin", 4)
        with pytest.raises(openai.RateLimitError, match="Too many requests") as full:
            server.client().chat.completions.create(**server.body())
        assert full.value.response.headers["retry-after"] == "1" and full.value.code == "queue_full"
        with pytest.raises(openai.BadRequestError, match="5 replies in one request; .* at most 4") as never:
            server.client().chat.completions.create(**server.body(n=5))
        assert never.value.param == "n"  # trying again would not help
        for link in links:
            link.close()
        assert wait_for(lambda: server.service.worker.taken == 0)
        assert server.post(CHAT, json=server.body()).is_success


def test_a_request_has_its_time(glass, tmp_path):
    with serving(glass, [], tmp_path, Settings(seconds=0.05), pace=0.03) as server:
        answer = server.post(CHAT, json=server.body(max_tokens=90, temperature=1, n=8))
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        with pytest.raises(openai.APIError, match="more than 0.05 seconds"):
            list(server.client().chat.completions.create(**server.body(max_tokens=90, temperature=1, n=8, stream=True)))
        assert {e["finish"] for e in server.wait("end", 16)} == {"timeout"}


def test_what_breaks_inside_fails_what_runs_and_nothing_else(glass, tmp_path, capsys):
    with serving(glass, [], tmp_path) as server:
        stream, step, join = server.service.worker.stream, server.service.worker.stream.step, server.service.worker.stream.join
        stream.step = lambda: 1 / 0
        answer = server.post(CHAT, json=server.body(n=3))
        assert (answer.status_code, "ZeroDivisionError" in answer.text) == (500, True)
        stream.step, stream.join = step, lambda *_: (_ for _ in ()).throw(UsageError("prompt: too long"))
        answer = server.post(CHAT, json=server.body(n=3))
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "prompt: too long")
        stream.join = join
        assert server.post(CHAT, json=server.body()).is_success and server.service.worker.taken == 0
        assert [event["finish"] for event in server.wait("end", 4)] == ["failed"] * 3 + ["length"]
    assert "ZeroDivisionError" in capsys.readouterr().err


# alerts --------------------------------------------------------------------------------------------


class Hook(HTTPServer):
    """Receives alerts; answers the first `fails` of them with 500."""

    def __init__(self, fails):
        self.fails, self.got = fails, []
        super().__init__(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/alerts"


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append(body)
        self.send_response(500 if len(self.server.got) <= self.server.fails else 204)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_alerts_reach_the_webhook_although_it_fails_at_first(glass, tmp_path):
    hook = Hook(fails=1)
    with serving(glass, [monitor(glass, reply=-1e6)], tmp_path, webhook=hook.url) as server:
        (choice,) = server.post(CHAT, json=server.body()).json()["choices"]
        (told,) = server.wait("webhook delivered")
    hook.shutdown()
    (alert,) = choice["assay"]["alerts"]
    assert [body["id"] for body in hook.got] == [alert["id"]] * 2 and told["tries"] == 2
    assert hook.got[1]["unit"] == "reply" and "text" not in hook.got[1]


def test_a_webhook_that_never_answers_loses_nothing_of_the_log(monkeypatch):
    told = []
    monkeypatch.setattr(webhook_module, "ROOM", 2)
    monkeypatch.setattr(webhook_module, "SECONDS", 0.2)
    held = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    hook = Webhook(f"http://127.0.0.1:{held.getsockname()[1]}/", told.extend)
    for at in range(6):
        hook.send({"id": str(at)})
    hook.close()
    held.close()
    assert sorted(event["alert"] for event in told) == [str(at) for at in range(6)]  # each is told, once
    assert {event["kind"] for event in told} == {"webhook full", "webhook failed"}


# the log -------------------------------------------------------------------------------------------


def test_nothing_is_shown_when_the_log_cannot_be_written(glass, tmp_path, monkeypatch):
    with serving(glass, [monitor(glass, reply=1e6)], tmp_path) as server:
        assert server.post(CHAT, json=server.body()).is_success

        def full(*_):
            raise StoreError("no space left")

        monkeypatch.setattr(log_module, "record", full)
        answer = server.post(CHAT, json=server.body())
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert "no space left" in answer.text and server.post(CHAT, json=server.body()).status_code == 503
        assert wait_for(lambda: server.service.worker.taken == 0)


def test_events_are_written_in_order_and_told_after(tmp_path):
    log, told = Log(tmp_path, permissions.Grant("read")), []
    for at in range(300):
        log.put([{"kind": "x", "at": at}], lambda failed, at=at: told.append((at, failed, len(events(tmp_path, "x")))))
    log.close()
    assert [event["at"] for event in events(tmp_path, "x")] == list(range(300))
    assert [(at, failed) for at, failed, _ in told] == [(at, None) for at in range(300)]
    assert all(there > at for at, _, there in told)  # on the disk before anybody hears of it
    late = []
    log.put([{"kind": "x"}], late.append)
    assert late == ["the log is closed"] and len(events(tmp_path, "x")) == 300


def test_a_server_that_ends_lets_replies_finish(glass, tmp_path):
    with serving(glass, [], tmp_path) as server:
        link = server.raw(json.dumps(server.body(max_tokens=60, stream=True)).encode())
        server.wait("begin")
        server.server.should_exit = True
        received = b""
        while part := link.recv(1 << 16):
            received += part
    assert b"data: [DONE]" in received
    assert [e["kind"] for e in events(tmp_path)][-2:] == ["end", "server ended"]


LAUNCH = "import sys; from assay.cli.main import cli; cli(sys.argv[1:], standalone_mode=False)"


def launch(folder, *options):
    """The command in a process of its own; its record once it listens."""
    out = folder / "served.json"
    out.unlink(missing_ok=True)
    arguments = ["monitor", "serve", "glass-en", "--port", "0", "--log", str(folder / "log"), "--atlas", str(folder / "atlas"),
                 "--json", str(out), "--quiet", *options]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", LAUNCH, *arguments], env={**os.environ, "ASSAY_SERVE_TOKEN": TOKEN},
                               stdout=subprocess.DEVNULL)  # fmt: skip
    return process, wait_for(lambda: json.loads(out.read_text()) if out.exists() else None, 90)


@pytest.mark.whole
def test_a_killed_server_has_logged_all_it_showed_and_goes_on(glass, tmp_path):
    from assay.monitor.files import save_monitor

    file = save_monitor(monitor(glass, reply=1e6), tmp_path / "hand.safetensors")
    process, record = launch(tmp_path, "--monitor", str(file), "--rows", "4")
    client = openai.OpenAI(base_url=record["address"], api_key=TOKEN, max_retries=0)
    texts, broken = {}, []

    def read(at):
        body = {"model": "glass-en", "prompt": prompts(16)[at], "max_tokens": 100, "temperature": 0,
                "extra_body": {"assay": {"token_scores": True}}}  # fmt: skip
        try:
            for part in client.completions.create(stream=True, **body):
                texts.setdefault(part.id, []).append((part.choices[0].text, getattr(part, "assay", {}).get("token_scores", {})))
        except Exception:  # whatever the client makes of a connection that broke
            broken.append(at)

    threads = [threading.Thread(target=read, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(texts) >= 4)  # four are made at a time; the others wait, and are cut off for certain
    process.kill()
    process.wait()
    for thread in threads:
        thread.join()
    assert permissions.verify(tmp_path / "log") == [] and len(texts) >= 4 and broken
    scores = {}
    for event in events(tmp_path / "log", "scores"):
        scores.setdefault(event["reply"].partition("/")[0], []).extend(event["scores"]["hand"])
    for name, parts in texts.items():
        shown = [x for _, each in parts for x in each.get("hand", [])]
        kept = scores[name.partition("-")[2]]
        assert shown and any(kept[at : at + len(shown)] == shown for at in range(len(kept)))  # all that was seen
    before = (tmp_path / "log" / "audit.jsonl").read_bytes()
    process, record = launch(tmp_path)
    client = openai.OpenAI(base_url=record["address"], api_key=TOKEN)
    answer = client.completions.create(model="glass-en", prompt="Once", max_tokens=3)
    assert answer.usage.completion_tokens == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(30) is not None
    assert permissions.verify(tmp_path / "log") == []
    assert (tmp_path / "log" / "audit.jsonl").read_bytes().startswith(before)  # the same chain goes on
    assert [e["kind"] for e in events(tmp_path / "log")][-1] == "server ended"
