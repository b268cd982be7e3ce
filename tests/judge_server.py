"""A real HTTP server on loopback that speaks /v1/chat/completions: the stand-in of a paid endpoint, which counts its calls.

Started as a program it prints its port, answers every prompt after `--delay` seconds, and appends a line with the hash of
each prompt that it answered to `--log`.
"""

import argparse
import hashlib
import json
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def data_of(body):
    """The items between the data marks of a prompt."""
    user = body["messages"][-1]["content"]
    lines = user[user.index("\n<data-") :].split("\n")[2:]
    end = next(number for number, line in enumerate(lines) if line.startswith("</data-"))
    return [json.loads(line) for line in lines[:end]]


def completion(content, usage=(7, 3), **message):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    if usage:
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    return 200, json.dumps(body).encode(), {}


class Judge(ThreadingHTTPServer):
    """`answer(body) -> (status, bytes, headers)`. `asked`: bodies of requests; `headers`: of each."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked, self.headers, self.lock, self.at_once, self.most = answer, [], [], threading.Lock(), 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def prompts(self):
        return [hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest() for body in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.at_once += 1
            self.server.most = max(self.server.most, self.server.at_once)
        try:
            status, content, headers = self.server.answer(body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass
        finally:
            with self.server.lock:
                self.server.at_once -= 1

    def log_message(self, *_):
        pass


@contextmanager
def judge(answer):
    server = Judge(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def say(sentence, **usage):
    return lambda body: completion(json.dumps({"explanation": sentence}), **usage)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    given = parser.parse_args()

    def answer(body):
        time.sleep(given.delay)
        with open(given.log, "a") as log:
            log.write(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest() + "\n")
        return completion(json.dumps({"explanation": "x"}))

    server = Judge(answer)
    sys.stdout.write(f"{server.url}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
