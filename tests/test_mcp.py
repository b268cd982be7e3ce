"""Agents over a real client and a real server process: an honest one gets to a verdict, a cheating one is seen."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import duckdb
import pytest
from mcp import Client, StdioServerParameters
from starlette.testclient import TestClient

from assay import permissions
from assay.app.arguments import schema
from assay.app.mcp import PATH, bounded, http_app, make_server, shortened, tool_of
from assay.app.verbs import VERBS, Verb, verbs
from assay.app.workspace import Workspace
from assay.evidence.source import Source
from assay.testing import planted_induction
from planted_task import write_task

pytestmark = pytest.mark.whole

SMALL = {"tune": 8, "confirm": 32, "ood": 24, "draws": 4}
ASSAY = str(Path(sys.executable).parent / "assay")
SLOW = 300.0  # seconds for one call on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose heads are known, and its task."""
    place = tmp_path_factory.mktemp("agents")
    model = planted_induction()
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    write_task(place / "task.jsonl")
    return place


class Agent:
    """A scripted agent: it decides by what the tools answer."""

    def __init__(self, client):
        self.client, self.heard = client, []

    async def call(self, name, **arguments):
        """The record of a verb that worked."""
        found = await self.ask(name, **arguments)
        assert not found.is_error, found.content[0].text
        assert json.loads(found.content[0].text) == found.structured_content
        return found.structured_content["record"]

    async def ask(self, name, **arguments):
        async def progress(done, total, message):
            self.heard.append((name, done, message))

        return await self.client.call_tool(name, arguments, progress_callback=progress, read_timeout_seconds=SLOW)

    async def page(self, uri):
        found = await self.client.read_resource(uri)
        return json.loads(found.contents[0].text)


def server(folder, atlas, *more):
    command = ["mcp", "--atlas", atlas, "--model", "model", *more]
    env = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "XDG_CACHE_HOME", "HF_HOME") if name in os.environ}
    return StdioServerParameters(command=ASSAY, args=command, cwd=folder, env=env)


def cli(folder, *arguments):
    return subprocess.run([ASSAY, *arguments], capture_output=True, text=True, cwd=folder)


# an honest agent ---------------------------------------------------------------------------------


async def investigate(agent):
    """Observe, suppose, state, test, report."""
    seen = await agent.call("measure_task", task="task.jsonl")
    if not seen["behaviour"]:
        return None
    moved = await agent.call("patch", task="task.jsonl", site="z", n=8)
    heads = [f"z.{cell['layer']}.{cell['head']}" for cell in moved["strongest"] if cell["low"] > 0.1]
    stated = await agent.call("claim_state", data="task.jsonl", kind="mediates", sites=heads, **SMALL)
    before = await agent.call("verify")
    verdict = await agent.call("claim_test", claim=stated["claim"])
    return {"heads": heads, "stated": stated, "verdict": verdict, "before": before, "checked": await agent.call("verify")}


def test_an_honest_agent_gets_from_a_question_to_a_verdict(folder):
    async def session():
        async with Client(server(folder, "honest", "--actor", "scripted")) as client:
            agent = Agent(client)
            tools = (await client.list_tools()).tools
            found = await investigate(agent)
            report = await agent.page(f"assay://pages/claim?claim={found['stated']['claim']}")
            kept = [each.uri for each in (await client.list_resources()).resources if each.uri.startswith("assay://results/")]
            return tools, found, report, agent.heard, await agent.page(kept[0])

    tools, found, report, heard, kept = anyio.run(session)
    assert {tool.name for tool in tools} == set(verbs().names())
    assert found["heads"] == ["z.1.0", "z.1.1"]  # what was written into the weights
    assert found["verdict"]["verdict"] == "supported" and found["verdict"]["qualifiers"] == []
    assert found["before"]["ok"] and found["checked"]["ok"] and found["checked"]["claims"] == 1
    card = next(block for block in report["blocks"] if block["type"] == "claims")["cards"][0]
    assert card["verdict"] == "supported" and card["shows_not"] and report["counts"]["supported"] == 1
    assert [message for name, _, message in heard if name == "claim_test"]  # it said how far it was
    assert kept["head"]["verb"] in ("patch", "measure_task") and kept["blocks"]
    assert cli(folder, "claim", "verify", "--atlas", "honest").returncode == 0
    log = list(permissions.entries(folder / "honest"))
    assert permissions.verify(folder / "honest") == [] and {entry["body"]["actor"] for entry in log} == {"scripted"}
    assert [entry["action"] for entry in log if entry["action"] in verbs()] == [
        "measure_task", "patch", "claim_state", "verify", "claim_test", "verify"]  # fmt: skip


# a cheating one ----------------------------------------------------------------------------------

WRONG = ["z.0.1", "z.1.2"]  # heads that do nothing here


async def cheat(agent, sealed):
    """Peek, try again until it passes, say it in other words."""
    found = {"refused": [await agent.ask("patch", task="task.jsonl", split="confirm"),
                         await agent.ask("measure_task", task="task.jsonl", split="ood"),
                         await agent.ask("measure_task", task="../task.jsonl"),
                         await agent.ask("claim_test", claim="c-0000000000")]}  # fmt: skip
    found["peek"] = await agent.call("live", text=sealed, site="mlp_act.0")
    tests = []
    for seed, words in enumerate(("these heads carry it", "other texts show it")):
        given = {"data": "task.jsonl", "kind": "mediates", "sites": WRONG, "seed": seed, **SMALL}
        stated = await agent.call("claim_state", statement=words, **given)
        reworded = await agent.call("claim_state", statement=f"{words}, honestly", **given)
        assert reworded["claim"] == stated["claim"] and reworded["stated_before"]  # other words are no other claim
        tests.append(await agent.call("claim_test", claim=stated["claim"]))
    tests.append(await agent.call("claim_test", claim=tests[0]["claim"]))
    return {**found, "tests": tests, "whole": await agent.call("verify")}


@pytest.fixture(scope="module")
def cheated(folder):
    sealed = Source(str(folder / "task.jsonl")).items("confirm", 48, 0)[3].clean

    async def session():
        async with Client(server(folder, "cheat")) as client:
            return await cheat(Agent(client), sealed)

    return anyio.run(session)


def test_peeking_is_refused_said_and_logged(folder, cheated):
    assert all(answer.is_error for answer in cheated["refused"])
    said = [answer.content[0].text for answer in cheated["refused"]]
    assert "sealed" in said[0] and "audit log" in said[0] and "sealed" in said[1] and "working folder" in said[2]
    assert cheated["refused"][0].structured_content["error"]["argument"] == "split"
    logged = [entry["body"] for entry in permissions.entries(folder / "cheat") if entry["action"] == "refused: sealed data"]
    assert [(body["verb"], body["split"]) for body in logged] == [("patch", "confirm"), ("measure_task", "ood")]


def test_saying_it_again_is_charged_and_every_try_is_counted(cheated):
    tests = cheated["tests"]
    assert {test["verdict"] for test in tests} <= {"refuted", "inconclusive"}
    assert [test["decision"]["reads"] for test in tests] == [1, 2, 3]
    assert [test["decision"]["alpha"] for test in tests] == pytest.approx([0.05, 0.05 / 4, 0.05 / 9])
    assert all("exploratory" in test["qualifiers"] for test in tests)  # it had typed a sealed text into the model
    tally = tests[-1]["tally"]
    assert (tally["stated"], tally["tried"], tally["supported"], tally["tickets"]) == (2, 2, 0, 3)


@pytest.mark.parametrize("how", ["delete", "edit", "log"])
def test_failures_cannot_be_made_to_disappear(folder, cheated, how, tmp_path):
    place = tmp_path / "atlas"
    shutil.copytree(folder / "cheat", place)
    assert cheated["whole"]["ok"] and cheated["whole"]["claims"] == 2  # until now nobody had touched it
    if how == "log":
        lines = (place / permissions.LOG).read_text().splitlines(keepends=True)
        (place / permissions.LOG).write_text("".join(line for line in lines if "refused" not in line))
    else:
        with duckdb.connect(str(place / "atlas.duckdb")) as db:
            if how == "delete":
                for table in ("verdicts", "standing", "evidence", "gates", "counterexamples", "plans"):
                    db.execute(f"DELETE FROM {table} WHERE claim = ?", [cheated["tests"][0]["claim"]])
                db.execute("DELETE FROM claims WHERE id = ?", [cheated["tests"][0]["claim"]])
                db.execute("DELETE FROM ledger WHERE body->>'$.claim' = ?", [cheated["tests"][0]["claim"]])
            else:
                db.execute("UPDATE verdicts SET verdict = 'supported', body = replace(body::VARCHAR, '\"verdict\":\"refuted\"',"
                           " '\"verdict\":\"supported\"')::JSON")  # fmt: skip
    if how == "delete":
        assert cli(tmp_path, "claim", "verify", "--atlas", "atlas").returncode == 3
    found = anyio.run(verified, place)
    assert not found["ok"] and found["problems"]


async def verified(atlas):
    async with Client(make_server(Workspace(atlas, role="read"))) as client:
        return (await client.call_tool("verify", {})).structured_content["record"]


# the server itself -------------------------------------------------------------------------------


def test_a_reader_sees_all_tools_and_what_they_need(tmp_path):
    async def session():
        async with Client(make_server(Workspace(tmp_path / "atlas", role="read"))) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            refused = await client.call_tool("claim_test", {"claim": "c-0"})
            unknown = await client.call_tool("claim_tests", {})
            wrong = await client.call_tool("measure_task", {"n": 5})
            templates = (await client.list_resource_templates()).resource_templates
            return tools, refused, unknown, wrong, templates

    tools, refused, unknown, wrong, templates = anyio.run(session)
    assert "Needs the role intervene" in tools["claim_test"].description and tools["claim_test"].annotations.destructive_hint
    assert tools["tasks"].annotations.read_only_hint and "Needs" not in tools["tasks"].description
    assert tools["patch"].input_schema["required"] == ["task"] and tools["patch"].input_schema["additionalProperties"] is False
    assert refused.is_error and "needs the role 'intervene'" in refused.content[0].text
    assert unknown.is_error and "verb" in unknown.content[0].text and wrong.is_error and "task" in wrong.content[0].text
    assert {each.uri_template for each in templates} >= {"assay://pages/glossary", "assay://results/{id}"}
    actions = [entry["action"] for entry in permissions.entries(tmp_path / "atlas")]
    assert actions == ["refused: claim_test", "refused: measure_task"]


def test_resources_lead_to_pages_or_say_what_is_allowed(tmp_path):
    async def session():
        async with Client(make_server(Workspace(tmp_path / "atlas", role="read"))) as client:
            good = await client.read_resource("assay://pages/glossary")
            bad = []
            for uri in ("assay://pages/nowhere", "assay://results/../../etc/passwd", "file:///etc/passwd", "assay://pages/claim"):
                with pytest.raises(Exception) as caught:
                    await client.read_resource(uri)
                bad.append(str(caught.value))
            return good, bad

    good, bad = anyio.run(session)
    assert json.loads(good.contents[0].text)["page"] == "glossary"
    assert all("allowed" in words for words in bad) and not any("root:" in words for words in bad)


def test_over_http_the_token_and_the_host_are_asked_for(tmp_path):
    app = http_app(Workspace(tmp_path / "atlas", role="read"), "t" * 20)
    hello = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}}  # fmt: skip
    accept = {"Accept": "application/json, text/event-stream"}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        good = {**accept, "Authorization": f"Bearer {'t' * 20}"}
        assert client.post(PATH, json=hello, headers=accept).status_code == 401
        assert client.post(PATH, json=hello, headers={**good, "Authorization": "Bearer no"}).status_code == 401
        assert client.post(PATH, json=hello, headers={**good, "Host": "evil.example"}).status_code == 421
        assert client.post(PATH, json=hello, headers={**good, "Origin": "http://evil.example"}).status_code == 403
        answer = client.post(PATH, json=hello, headers=good)
        assert answer.status_code == 200 and '"name":"assay"' in answer.text


def test_a_call_that_was_given_up_stops_at_its_next_step(tmp_path, monkeypatch):
    begun, ended = threading.Event(), threading.Event()

    def endless(workspace, arguments, report):
        begun.set()
        try:
            while True:
                report("working", 1, 2)
        finally:
            ended.set()

    monkeypatch.setitem(VERBS._items, "endless", Verb("endless", "read", "Works on.", schema(), endless, long=True))

    async def session():
        async with Client(make_server(Workspace(tmp_path / "atlas", role="read"))) as client:
            async with anyio.create_task_group() as group:
                group.start_soon(client.call_tool, "endless", {})
                await anyio.to_thread.run_sync(begun.wait, 30)
                group.cancel_scope.cancel()
            return await anyio.to_thread.run_sync(ended.wait, 30)

    assert anyio.run(session)


def test_long_answers_are_cut_and_say_where_the_whole_is():
    text = shortened({"record": "x" * 100_000, "result": "assay://results/patch-0"})
    assert len(text) < 61_000 and text.endswith("whole in assay://results/patch-0")
    assert json.loads(shortened({"record": 1})) == {"record": 1}
    large = {"record": "x" * 500_000, "result": "assay://results/patch-0"}
    assert bounded(large) == {"cut": len(json.dumps(large)), "result": large["result"]}
    assert bounded({"record": 1}) == {"record": 1}
    tool = tool_of(verbs().get("patch"), allowed=True)
    assert tool.name == "patch" and not tool.annotations.read_only_hint and not tool.annotations.open_world_hint
