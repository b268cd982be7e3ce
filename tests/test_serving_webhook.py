"""The webhook: addresses that are none, receivers that speak no HTTP or nothing at all, and how long an end may take."""

import contextlib
import socket
import threading
import time

import pytest

from assay.errors import UsageError
from assay.serving import webhook as module
from assay.serving.start import start
from assay.serving.webhook import Webhook
from serving_server import wait_for

pytestmark = pytest.mark.whole


@contextlib.contextmanager
def receiver(*answers):
    """A port that gives each connection the next answer, the last one to all others; None: never an answer. Yields the address
    and how often it was called."""
    listening, calls, held = socket.create_server(("127.0.0.1", 0)), [], []

    def run():
        with contextlib.suppress(OSError):
            while True:
                link, _ = listening.accept()
                answer = answers[min(len(calls), len(answers) - 1)]
                calls.append(answer)
                if answer is None:
                    held.append(link)
                    continue
                link.recv(1 << 16)
                link.sendall(answer)
                link.close()

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", calls
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        for link in held:
            link.close()


GOOD = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("answer", [
    b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 two hundred\r\n\r\n", b"", b"HTTP/1.1 200 " + b"x" * 70_000,
])  # fmt: skip
def test_an_answer_that_is_no_http_is_a_failure_like_others(answer, monkeypatch):
    monkeypatch.setattr(module, "TRIES", 1)
    told = []
    with receiver(answer, GOOD) as (url, _):
        hook = Webhook(url, told.extend)
        hook.send({"id": "a"})
        hook.send({"id": "b"})
        wait_for(lambda: len(told) == 2, 10)
        hook.close()
    assert [(event["kind"], event["alert"]) for event in told] == [("webhook failed", "a"), ("webhook delivered", "b")]


@pytest.mark.parametrize("url", [
    "ftp://x", "http://", "http:///x", "http://[::1", "http://[nothing]/", "http://localhost:abc/", "http://localhost:99999/",
    "http://localhost:0/", "http://h ost/x", "http://host/a b", "http://host/x\n", " http://host/", "http://user:word@host/",
    "http://user@host/", "http://host/\u00fc", "localhost:80",
])  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_written(glass, tmp_path, url):
    with pytest.raises(UsageError, match=r"^--webhook: got .*For example https://"):
        start(glass, [], tmp_path / "log", webhook=url)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://localhost", "HTTPS://h.example:8443/a%20b?c=d", "http://[::1]:80/x", "http://127.0.0.1:1/"])
def test_an_address_of_any_form_is_taken(url):
    hook = Webhook(url, print)
    hook.close()
    assert hook.url == url


def test_an_end_takes_no_longer_than_said_and_every_alert_is_told_once(monkeypatch):
    monkeypatch.setattr(module, "ENDING", 0.5)
    told = []
    with receiver(None) as (url, _):  # takes every connection, and says nothing
        hook = Webhook(url, told.extend)
        for at in range(module.ROOM + 3):
            hook.send({"id": at})
        began = time.monotonic()
        hook.close()
        assert time.monotonic() - began < 2
    assert sorted(event["alert"] for event in told) == list(range(module.ROOM + 3))
    assert [event["kind"] for event in told] == ["webhook full"] * 3 + ["webhook failed"] * module.ROOM
    assert "the server ended" in told[-1]["why"]
    hook._thread.join(10)  # what it was sending is not told again
    assert not hook._thread.is_alive() and len(told) == module.ROOM + 3


@pytest.mark.parametrize("good", [False, True])
def test_at_the_end_each_alert_that_waits_is_tried_once(good):
    told = []
    with receiver(b"HTTP/1.1 500 No\r\n\r\n", GOOD if good else b"HTTP/1.1 500 No\r\n\r\n") as (url, calls):
        hook = Webhook(url, told.extend)
        for at in range(20):
            hook.send({"id": at})
        wait_for(lambda: len(calls) == 1)  # the first waits for its second try, the others for the first
        time.sleep(0.1)
        hook.close()
    assert len(calls) == 21
    kind = "webhook delivered" if good else "webhook failed"
    assert [(event["kind"], event["alert"]) for event in told] == [(kind, at) for at in range(20)]


def test_a_receiver_that_trickles_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    listening, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def run():
        link, _ = listening.accept()
        link.recv(1 << 16)
        with contextlib.suppress(OSError):
            link.send(b"HTTP/1.1 ")
            while not over.wait(0.05):  # for ever: only whoever called can end it
                link.send(b"a")

    threading.Thread(target=run, daemon=True).start()
    problem = module._post(f"http://127.0.0.1:{listening.getsockname()[1]}/", {"id": "x"})
    over.set()
    listening.close()
    assert problem
