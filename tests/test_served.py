"""Residual streams from a server that speaks vLLM's protocol of hidden states: those of the model here, or refused.

The server is our own, with the model of the test inside. It writes late, under a lock, as vLLM's connector does.
"""

import fcntl
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from assay.cli.main import cli
from assay.errors import ModelError, SiteError, UsageError
from assay.features.engines import opener_of
from assay.features.harvest import HarvestPlan, harvest
from assay.features.shards import Shards
from assay.model.edits import zero
from assay.scale.served import open_served
from conftest import tiny
from test_harvest import Given, on_disk, some_texts  # noqa: F401

LAYERS = (2, 1)  # as vLLM counts: 2 is what enters layer 2, the end of layer 1


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # as many as ask at once; the default of 5 resets the others


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Quiet."""

    def do_GET(self):
        self.answer({"data": [{"id": name} for name in self.server.names]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.code != 200 or body["model"] != self.server.names[0] or body["max_tokens"] != 1:
            self.answer({"message": "no"}, self.server.code if self.server.code != 200 else 404)
            return
        tokens = [*self.server.before, *body["prompt"]]
        with self.server.guard, torch.no_grad():
            found = self.server.hf(torch.tensor([tokens]), output_hidden_states=True).hidden_states
            path = self.server.folder / f"{self.server.made}.safetensors"
            self.server.made += 1
        states = torch.stack([found[layer][0] for layer in LAYERS], 1).to(self.server.dtype).contiguous()
        with open(f"{path}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.answer({"choices": [{"text": ""}], "kv_transfer_params": {"hidden_states_path": str(path)}})
            time.sleep(0.01)
            save_file({"hidden_states": states, "token_ids": torch.tensor(tokens)}, path)

    def answer(self, record, code=200):
        data = json.dumps(record).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def serve(tmp_path):
    """Starts a server of a model; returns (address, the server, to be changed)."""
    running = []

    def start(hf):
        server = Server(("127.0.0.1", 0), Handler)
        (tmp_path / "states").mkdir(exist_ok=True)
        server.hf, server.folder, server.made, server.guard = hf, tmp_path / "states", 0, threading.Lock()
        server.names, server.code, server.before, server.dtype = ["the-model"], 200, [], torch.float32
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}", server

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def rows_of(n: int) -> list[list[int]]:
    return [torch.randint(64, (n + row,), generator=torch.Generator().manual_seed(row)).tolist() for row in range(3)]


def test_states_are_those_of_the_model_at_layers_that_were_found_out(serve):
    model = tiny("llama")
    url, server = serve(model.hf)
    served = open_served(model, url)
    assert {str(site): column for site, column in served.engine.columns.items()} == {"resid_post.1": 0, "resid_post.0": 1}
    rows = rows_of(5)
    got, expected = (each.capture(rows, ["resid_post.0"]) for each in (served, model))
    for a, b in zip(got.rows("resid_post.0"), expected.rows("resid_post.0"), strict=True):
        torch.testing.assert_close(a, b)
    assert list(server.folder.iterdir()) == [] and server.made > len(rows)
    for wrong in (lambda: served.logits(rows), lambda: served.capture(rows, ["resid_post.0"], edits=[zero("resid_post.0")]),
                  lambda: served.generate(rows), lambda: served.walk(rows, ["resid_post.0"], lambda site, value: value),
                  lambda: served.gradients(rows, ["resid_post.0"], lambda logits, _: logits[:, 0]),
                  lambda: opener_of(served)):  # fmt: skip
        with pytest.raises(UsageError, match="served|opener"):
            wrong()
    with pytest.raises(SiteError, match="the server gives"):
        served.capture(rows, ["mlp_out.0"])


def test_servers_of_something_else_are_refused(serve):
    model = tiny("llama")
    url, server = serve(tiny("llama", seed=5).hf)
    with pytest.raises(ModelError, match="none of .* residual streams"):
        open_served(model, url)
    server.hf, server.before = model.hf, [1]
    with pytest.raises(ModelError, match="as they were sent"):
        open_served(model, url)
    server.before, server.code = [], 500
    with pytest.raises(ModelError, match="answers 500"):
        open_served(model, url)
    server.names = ["a", "b"]
    with pytest.raises(ModelError, match="one model"):
        open_served(model, url)
    with pytest.raises(ModelError, match="does not answer"):
        open_served(model, "http://127.0.0.1:9")


def test_a_served_harvest_is_that_of_the_model_and_another_one_in_name(serve, on_disk, tmp_path):  # noqa: F811
    from assay.model.load import load_model

    model = load_model(on_disk / "model")
    url, server = serve(model.hf)
    corpus, plan = Given(some_texts(3, 12)), HarvestPlan(context=16, shard_tokens=100, dtype="fp32")
    site = "resid_post.0"
    here = harvest(model, corpus, [site], tmp_path / "here", plan)
    there = harvest(open_served(model, url), corpus, [site], tmp_path / "there", plan)
    for a, b in zip(Shards(there.folder).rows(), Shards(here.folder).rows(), strict=True):
        assert torch.equal(a.tokens, b.tokens)
    x, y = (next(Shards(found.folder).batches(64))[site] for found in (there, here))
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    assert there.manifest["identity"]["model"]["attention"] == "served by vllm"
    with pytest.raises(UsageError, match="attention"):
        harvest(model, corpus, [site], tmp_path / "there", plan)
    server.dtype = torch.bfloat16
    settings = ["--site", site, "--tokens", "200", "--context", "16", "--out", str(tmp_path / "cli"), "--quiet", "--json", "-",
                "--atlas", str(tmp_path / "atlas")]  # fmt: skip
    arguments = ["harvest", "--served", url, str(on_disk / "model"), str(on_disk / "corpus.jsonl"), *settings]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and json.loads(done.output)["passport"]["dtype"] == "bfloat16"
