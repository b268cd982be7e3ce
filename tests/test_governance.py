"""Every surface asks for a role and writes down what it does, before it does it; edited answers say that they are."""

import json
import time
from dataclasses import replace
from pathlib import Path

import anyio
import click
import numpy as np
import pytest
from click.testing import CliRunner
from mcp.client import Client

from app_atlas import shared_app_atlas
from app_server import running
from assay import permissions, signing
from assay.app import monitors
from assay.app.documents import make_document
from assay.app.mcp import make_server
from assay.app.results import kept_result
from assay.app.verbs import run_verb, verbs
from assay.app.views import Views
from assay.app.workspace import Workspace
from assay.atlas.store import Atlas
from assay.audit import records as audit_records
from assay.cli.main import cli
from assay.cli.roles import COMMANDS
from assay.errors import StoreError, UsageError
from assay.model.load import load_model
from assay.monitor.drift import Drift
from assay.monitor.files import load_monitor, save_monitor
from assay.monitor.reading import score
from assay.monitor.records import Head, Monitor, bindings
from assay.monitor.talks import texts_as_talks
from assay.monitor.thresholds import Threshold
from assay.monitor.units import Pooling
from assay.serving.start import start
from assay.steer.weights import copy_model
from assay.testing import planted_induction
from test_cli_repair import NEURON, WORDS, pairs, planted, tokenizer_of, write

TEXT = "w3 w7 w1 w9 w3 w7"
REASON = "w8 must be followed by w90"
ACTS = {"monitor serve": ("--on-alert", "steer")}  # without it nothing is edited
NOT_EDITED = {"claim_state", "claim_test", "claim_replay", "circuit_test", "map"}  # verdicts and plans, not a model's output


class NotWritten(StoreError):
    """Stands for an audit log that cannot be written."""


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CONFIG", str(tmp_path / "config"))
    for name in ("ASSAY_ALLOW", "ASSAY_REQUIRE_SIGNATURE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def commands(group=cli, name=""):
    """(what is typed after assay, the command) of all commands."""
    context = click.Context(group)
    for word in group.list_commands(context):
        found = group.get_command(context, word)
        whole = f"{name} {word}".strip()
        if isinstance(found, click.Group):
            yield from commands(found, whole)
        else:
            yield whole, found


def smallest_call(name, command, tmp_path):
    """Words that the parser takes: something for everything that is required, and what makes it act."""
    (tmp_path / "some.txt").touch()
    words = [*ACTS.get(name, ())]
    for each in command.params:
        if not each.required:
            continue
        value = each.type.choices[0] if isinstance(each.type, click.Choice) else "1" if each.type.name != "path" else "some.txt"
        words += [each.opts[0], value] if isinstance(each, click.Option) else [value]
    return words


def smallest_arguments(found):
    """Arguments that the schema takes."""
    needed = [*found.parameters.get("required", ()), *(["reason"] if found.role == "modify" else [])]
    parts = {name: found.parameters["properties"][name] for name in needed}
    return {name: part["enum"][0] if "enum" in part else "a reason in words" if part["type"] == "string" else {}
            for name, part in parts.items()}  # fmt: skip


def entries(atlas):
    return list(permissions.entries(atlas))


# the command line --------------------------------------------------------------------------------


def test_every_command_declares_its_role_and_no_other_does():
    assert {name for name, _ in commands()} == set(COMMANDS)
    assert set(COMMANDS.values()) <= set(permissions.ROLES)


@pytest.mark.parametrize("name", sorted(name for name, role in COMMANDS.items() if role != "read"))
def test_a_command_that_intervenes_writes_it_down_first_and_is_refused_to_readers(name, tmp_path, monkeypatch):
    command = dict(commands())[name]
    words = [*name.split(), *smallest_call(name, command, tmp_path), "--quiet"]

    def unwritable(*given):
        raise NotWritten("no")

    monkeypatch.setenv("ASSAY_ALLOW", "read")
    refused = CliRunner().invoke(cli, words).exception
    assert isinstance(refused, UsageError) and "needs the role" in str(refused)
    assert not (tmp_path / "atlas").exists()
    (tmp_path / "atlas").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(permissions, "record", unwritable)
        patch.delenv("ASSAY_ALLOW")
        assert isinstance(CliRunner().invoke(cli, words).exception, NotWritten)  # nothing was done before
    assert isinstance(CliRunner().invoke(cli, words).exception, UsageError)
    (entry,) = entries(tmp_path / "atlas")
    assert entry["action"] == f"refused: {name}" and "needs the role" in entry["body"]["why"]


@pytest.mark.parametrize("words, role", [
    ((), "intervene"), (("--out", "fixed", "--allow", "modify", "--reason", REASON), "modify"),
])  # fmt: skip
def test_a_repair_that_was_killed_before_it_read_anything_is_in_the_log(words, role, tmp_path, monkeypatch):
    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("assay.cli.repair.Job", killed)
    call = ["repair", "no-such-model", "--file", "fault.jsonl", "--method", "rank-one"]
    CliRunner().invoke(cli, [*call, *words])
    (entry,) = entries(tmp_path / "atlas")
    assert (entry["action"], entry["role"], entry["why"]) == ("repair run", role, REASON if words else "")
    assert entry["body"]["arguments"]["fault_file"] == "fault.jsonl"
    for more in (("--out", "fixed"), ("--out", "fixed", "--allow", "modify"), ("--allow", "everything")):
        assert isinstance(CliRunner().invoke(cli, [*call, *more]).exception, UsageError)
    assert [each["action"] for each in entries(tmp_path / "atlas")[1:]] == ["refused: repair run"] * 3


def test_the_key_of_a_server_is_not_in_the_log(tmp_path):
    (tmp_path / "atlas").mkdir()
    words = ["monitor", "serve", "no-such-model", "--token", "a" * 40, "--webhook", "https://x/secret"]
    for more in ((*ACTS["monitor serve"], "--allow", "read"), ACTS["monitor serve"], ()):
        assert CliRunner().invoke(cli, [*words, *more, "--port", "0"]).exception is not None
    log = (tmp_path / "atlas" / permissions.LOG).read_text()
    assert [each["action"] for each in entries(tmp_path / "atlas")] == ["refused: monitor serve", "monitor serve"]
    assert "no-such-model" in log and "a" * 40 not in log and "secret" not in log


def test_a_mistake_leaves_no_atlas_behind_but_never_takes_an_entry_from_one(tmp_path):
    words = ["sign", "card", "nothing", "--atlas", "new/atlas"]
    assert isinstance(CliRunner().invoke(cli, words).exception, UsageError)
    assert not (tmp_path / "new" / "atlas").exists()
    permissions.record(tmp_path / "new" / "atlas", "first", {})
    assert isinstance(CliRunner().invoke(cli, words).exception, UsageError)
    assert [entry["action"] for entry in entries(tmp_path / "new" / "atlas")] == ["first", "sign card"]
    permissions.record(tmp_path / "other", "first", {})
    (tmp_path / "other" / "something").touch()
    permissions.forget_only_entry(tmp_path / "other")
    assert len(entries(tmp_path / "other")) == 1 and not permissions.verify(tmp_path / "other")


def test_the_entry_of_a_command_has_its_arguments(tmp_path):
    (tmp_path / "note.txt").touch()
    CliRunner().invoke(cli, ["sign", "key"])
    done = CliRunner().invoke(cli, ["sign", "card", "note.txt", "--days", "3", "--atlas", "here"])
    assert done.exit_code == 0
    (entry,) = entries(tmp_path / "here")
    assert (entry["action"], entry["role"]) == ("sign card", "intervene")
    assert entry["body"] == {"actor": "command line", "arguments": {"path": "note.txt", "days": 3.0}}
    long = CliRunner().invoke(cli, ["sign", "trust", "x" * 9000, "--name", "x", "--atlas", "here"])
    assert isinstance(long.exception, UsageError)
    assert entries(tmp_path / "here")[1]["body"]["cut"] > 9000 and not permissions.verify(tmp_path / "here")


@pytest.mark.parametrize("words", [("--days", "nan"), ("--days", "inf"), ("--key", "\udcff")])
def test_odd_arguments_are_logged_and_refused_in_words(words, tmp_path):
    (tmp_path / "note.txt").touch()
    CliRunner().invoke(cli, ["sign", "key", "--atlas", "here"])
    assert isinstance(CliRunner().invoke(cli, ["sign", "card", "note.txt", *words, "--atlas", "here"]).exception, UsageError)
    assert len(entries(tmp_path / "here")) == 2 and not permissions.verify(tmp_path / "here")


def test_reading_a_sealed_split_is_no_reading_command(tmp_path):
    words = ["tasks", "--split", "confirm", "--quiet"]
    CliRunner().invoke(cli, words)
    (entry,) = entries(tmp_path / "atlas")
    assert (entry["action"], entry["body"]["arguments"]["split"]) == ("tasks", "confirm")
    assert "needs the role" in str(CliRunner(env={"ASSAY_ALLOW": "read"}).invoke(cli, words).exception)


def test_reading_commands_write_no_entry(tmp_path):
    assert CliRunner().invoke(cli, ["tasks"]).exit_code == 0
    assert not (tmp_path / "atlas").exists()


# verbs: the app, its API, agents -----------------------------------------------------------------


def test_every_verb_declares_a_role_and_what_it_changes():
    own = [found for found in verbs() if found.run.__module__.startswith("assay.")]  # other tests register theirs
    assert len(own) > 30
    for found in own:
        assert found.role in permissions.ROLES
        above = found.role != "read" and found.name not in NOT_EDITED
        assert bool(found.changes) == above, found.name
        assert found.changes in ("", *permissions.CHANGED)
    assert {found.name for found in verbs() if found.role == "modify"} == {"repair"}


@pytest.mark.parametrize("name", sorted(found.name for found in verbs()))
def test_a_verb_is_written_down_before_it_runs(name, tmp_path, monkeypatch):
    found = verbs().get(name)
    given = smallest_arguments(found)
    workspace = Workspace(tmp_path / "atlas", role="modify")

    def unwritable(*given):
        raise NotWritten("no")

    with monkeypatch.context() as patch:
        patch.setattr(permissions, "record", unwritable)
        with pytest.raises(NotWritten):
            run_verb(workspace, name, given)
    if found.role != "read":
        below = permissions.ROLES[permissions.ROLES.index(found.role) - 1]
        with pytest.raises(UsageError, match="needs the role"):
            run_verb(Workspace(tmp_path / "atlas", role=below), name, given)
        (entry,) = entries(tmp_path / "atlas")
        assert entry["action"] == f"refused: {name}"


@pytest.fixture(scope="module")
def model():
    return planted_induction()


def test_what_an_edited_model_said_is_marked_in_the_api_to_agents_and_when_it_is_kept(model, tmp_path):
    given = {"prompt": TEXT, "feature": "mlp_act.0.1", "max_new_tokens": 2}
    workspace = Workspace(tmp_path / "atlas", role="intervene", loaded=model)
    done = run_verb(workspace, "generate", given)
    assert done["disclosure"]["modified"] is True and done["disclosure"]["what"] == "steered"
    assert kept_result(workspace.atlas, done["head"]["id"])["head"]["disclosure"] == done["disclosure"]
    page = make_document(workspace, "steer", {"result": done["head"]["id"]})
    assert page["blocks"][0]["id"] == "disclosure" and "pushed" in page["blocks"][0]["paragraphs"][0][0]
    assert "disclosure" not in run_verb(workspace, "live", {"text": TEXT})

    async def asked():
        async with Client(make_server(workspace)) as client:
            return await client.call_tool("generate", given), await client.call_tool("live", {"text": TEXT})

    edited, plain = anyio.run(asked)
    assert edited.structured_content["disclosure"] == done["disclosure"] and edited.content[0].text.startswith('{"disclosure"')
    assert "disclosure" not in plain.structured_content
    with running(workspace) as client:
        job = client.post("/api/verbs/generate", given).json["job"]
        assert client.wait(job, "done")["result"]["disclosure"] == done["disclosure"]


@pytest.fixture
def repaired(tmp_path):
    """The folder of a model whose weights were changed, as an export leaves it."""
    planted().save_pretrained(tmp_path / "fixed")
    tokenizer_of(WORDS).save_pretrained(tmp_path / "fixed")
    (tmp_path / "fixed" / signing.REPAIRED).write_text('{"verdict": "repaired"}')
    return tmp_path / "fixed"


def test_what_a_repaired_model_said_is_marked_wherever_it_is_asked(repaired, model, tmp_path):
    workspace = Workspace(tmp_path / "atlas", model=str(repaired), role="intervene")
    done = run_verb(workspace, "live", {"text": TEXT})
    told = done["disclosure"]
    assert (told["modified"], told["what"], told["by"]) == (True, "weights", "live")
    assert told["models"] == {"fixed": "a repair: see its card"}
    kept = kept_result(workspace.atlas, done["head"]["id"])
    said = [[permissions.CHANGED["weights"]], ["fixed: a repair: see its card."]]
    assert kept["head"]["disclosure"] == told and kept["blocks"][0]["paragraphs"] == done["blocks"][0]["paragraphs"] == said
    given = {"prompt": TEXT, "feature": "mlp_act.0.1", "max_new_tokens": 2}
    both = run_verb(workspace, "generate", given)
    assert both["disclosure"]["what"] == "steered" and both["disclosure"]["also"]["what"] == "weights"
    page = make_document(workspace, "steer", {"result": both["head"]["id"]})
    assert [block["paragraphs"] for block in page["blocks"][:2]] == [[[permissions.CHANGED["steered"]]], said]

    async def asked():
        async with Client(make_server(workspace)) as client:
            return await client.call_tool("live", {"text": TEXT})

    found = anyio.run(asked)
    assert found.structured_content["disclosure"] == told and found.content[0].text.startswith('{"disclosure"')
    with running(workspace) as client:
        assert client.post("/api/verbs/live", {"text": TEXT}).json["disclosure"] == told
        job = client.post("/api/verbs/generate", given).json["job"]
        assert client.wait(job, "done")["result"]["disclosure"] == both["disclosure"]
    assert "disclosure" not in run_verb(workspace, "tasks", {})  # no model was used
    other = Workspace(tmp_path / "atlas", role="read", loaded=model)
    assert "disclosure" not in run_verb(other, "live", {"text": TEXT})


def test_a_repaired_model_is_known_to_be_one_where_it_is_served_copied_or_handed_over(repaired, model, tmp_path):
    found = load_model(repaired)
    handed = load_model(found.hf, tokenizer=found.tokenizer)
    assert found.modified == copy_model(found).modified == handed.modified == "a repair: see its card"
    assert model.modified == ""
    for each, modified in ((found, found.modified), (model, "")):
        service = start(each, [], tmp_path / f"log-{bool(modified)}")
        try:
            assert service.worker.settings.modified == modified
        finally:
            service.close()


def test_an_unknown_change_is_no_disclosure():
    with pytest.raises(UsageError, match="what"):
        permissions.disclosure("improved")


# modify ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faulty")
    planted().save_pretrained(folder / "model")
    tokenizer_of(WORDS).save_pretrained(folder / "model")
    return load_model(folder / "model")


def test_a_repair_through_the_api_needs_role_and_reason_and_leaves_the_whole_trail(faulty, tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    write(tmp_path / "fault.jsonl", pairs())
    text = [" ".join(WORDS[40 + (7 * n + 3 * k) % 100] for k in range(30)) for n in range(60)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    given = {"task": "fault.jsonl", "method": "scale-neurons", "units": f"mlp_act.1.{NEURON}", "factors": ["0"],
             "text": "text.jsonl", "tokens": 1500, "export": "fixed"}  # fmt: skip
    atlas = tmp_path / "atlas"
    with running(Workspace(atlas, role="intervene", loaded=faulty)) as client:
        assert client.post("/api/verbs/repair", {**given, "reason": REASON}).status == 403
    with running(Workspace(atlas, role="modify", loaded=faulty)) as client:
        for reason in ({}, {"reason": "because"}):
            assert client.post("/api/verbs/repair", {**given, **reason}).status == 400
        job = client.post("/api/verbs/repair", {**given, "reason": REASON}).json["job"]
        done = client.wait(job, "done", "failed", seconds=60)
    assert done["state"] == "done", done["error"]
    record = done["result"]["record"]
    assert record["verdict"] == "repaired" and done["result"]["disclosure"]["what"] == "weights"
    assert load_model(atlas / "repaired" / "fixed").digest == record["digest_after"] != faulty.digest
    log = [(entry["action"], entry["role"], entry["why"]) for entry in entries(atlas) if "repair" in entry["action"]]
    assert [row[:2] for row in log[:3]] == [("refused: repair", "read")] * 3
    assert log[-3:] == [("repair", "modify", REASON), ("repair: export begins", "modify", REASON),
                        ("repair: exported", "modify", REASON)]  # fmt: skip
    looks = [entry["body"]["what"] for entry in Atlas(atlas).entries() if entry["kind"] == "look"]
    assert [look.split(", ")[1] for look in looks] == ["tune", "confirm", "ood"]
    again = Workspace(atlas, role="modify", loaded=faulty)
    for name in ("../out", "a/b", ".hidden", "fixed", ""):
        with pytest.raises(UsageError, match="export|not empty"):
            run_verb(again, "repair", {**given, "reason": REASON, "export": name})
    assert not permissions.verify(atlas)


# page views --------------------------------------------------------------------------------------


def copied(tmp_path, tmp_path_factory):
    import shutil

    made = shared_app_atlas(tmp_path_factory)
    shutil.copytree(made.path, tmp_path / "atlas")
    return tmp_path / "atlas", made


def test_pages_that_were_seen_are_in_the_log_and_do_not_wait_for_it(tmp_path, tmp_path_factory):
    atlas, made = copied(tmp_path, tmp_path_factory)
    before = len(entries(atlas))
    workspace = Workspace(atlas, role="read", actor="Ada")
    with running(workspace) as client:
        client.get("/api/pages/overview")
        client.get(f"/api/pages/claim?claim={made.tested}")
        client.get("/api/pages/claim/export.html?claim=" + made.tested)
        assert client.get("/api/pages/nowhere").status == 404

    async def read():
        async with Client(make_server(workspace)) as client:
            await client.read_resource("assay://pages/glossary")

    anyio.run(read)
    workspace.views.flush()
    found = [entry for entry in entries(atlas)[before:] if entry["action"] == "pages viewed"]
    seen = [view for entry in found for view in entry["body"]["views"]]
    assert [view["page"] for view in seen] == ["overview", "claim", "claim", "glossary"]
    assert seen[1]["params"] == {"claim": made.tested} and all(entry["body"]["actor"] == "Ada" for entry in found)
    assert {entry["role"] for entry in found} == {"read"} and not permissions.verify(atlas)


def test_views_are_written_after_a_while_when_there_are_many_and_not_for_nothing():
    told = []
    views = Views(told.append, every=0.05)
    views.flush()
    views.note("overview", {"q": "x" * 1000})
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(told[0]["views"][0]["params"]["q"]) == 200
    views = Views(told.append, every=1000)
    for number in range(501):
        views.note("feature", {"n": number})
    assert len(told) == 2 and len(told[1]["views"]) == 500
    views.flush()
    assert [view["params"]["n"] for view in told[2]["views"]] == [500]


def test_a_log_that_cannot_be_written_is_said_once_and_pages_go_on(caplog):
    def unwritable(body):
        raise StoreError("read-only")

    views = Views(unwritable, every=1000)
    for _ in range(3):
        views.note("overview", {})
        views.flush()
    assert [record.getMessage() for record in caplog.records] == ["page views are not in the audit log: read-only"]


# monitors and audits in the app ------------------------------------------------------------------


def monitor_of(model, value, **more):
    generator = np.random.default_rng(0)
    heads = (Head("resid_post.0", generator.normal(size=model.dims.d_model) / 10, -0.5),)
    bound = {**bindings(model), "created": "2026-01-01T00:00:00+00:00", "expires": "2126-01-01T00:00:00+00:00"}
    threshold = Threshold("reply", value, 0.01, 500, 1, 0.0005, 0.011)
    return Monitor("repeats", "repeated words", heads, Pooling(), bound, {"reply": threshold}, card={"auroc": 0.9}, **more)


def test_a_text_is_watched_with_the_monitors_own_numbers(model, tmp_path):
    workspace = Workspace(tmp_path / "atlas", role="read", loaded=model)
    path = tmp_path / "atlas" / monitors.MONITORS / "repeats.safetensors"
    save_monitor(monitor_of(model, -100.0), path)
    done = run_verb(workspace, "monitor_watch", {"monitor": "repeats", "text": TEXT})
    record = done["record"]
    (want,) = score(model, load_monitor(path, model), texts_as_talks(model, [TEXT]))
    assert record["scores"][0] is None and record["scores"][1:] == want.units["token"].tolist()
    assert {row["unit"]: row["score"] for row in record["units"]} == {
        unit: float(scores.max()) for unit, scores in want.units.items()}  # fmt: skip
    assert record["alerts"] == ["reply"] and record["state"] == "calibrated" and record["signature"].endswith("unsigned")
    save_monitor(monitor_of(model, 100.0), path)
    assert run_verb(workspace, "monitor_watch", {"monitor": "repeats", "text": TEXT})["record"]["alerts"] == []
    for name in ("nothing", "../repeats", str(path)):
        with pytest.raises(UsageError, match="monitor"):
            run_verb(workspace, "monitor_watch", {"monitor": name, "text": TEXT})


def expired(found):
    return replace(found, bound={**found.bound, "expires": "2026-01-02T00:00:00+00:00"})


def foreign(found):
    return replace(found, bound={**found.bound, "model": "0" * 64})


def drifted(found):
    return replace(found, drifted="drift in scores")


@pytest.mark.parametrize("change, why", [(expired, "expired"), (foreign, "another model"), (drifted, "drift in scores")])
def test_a_monitor_that_does_not_count_raises_no_alert(model, tmp_path, change, why):
    workspace = Workspace(tmp_path / "atlas", role="read", loaded=model)
    save_monitor(change(monitor_of(model, -100.0)), tmp_path / "atlas" / monitors.MONITORS / "repeats.safetensors")
    done = run_verb(workspace, "monitor_watch", {"monitor": "repeats", "text": TEXT})
    record, blocks = done["record"], {block["id"]: block for block in done["blocks"]}
    assert record["state"].startswith("uncalibrated: ") and why in record["state"]
    (row,) = [each for each in record["units"] if each["unit"] == "reply"]
    assert row["score"] > row["threshold"] and record["alerts"] == [] and not row["alert"]
    (shown,) = [each for each in blocks["watch-units"]["rows"] if each["unit"].startswith("reply")]
    assert shown["alert"] == "none: uncalibrated"
    told = {item["label"]: (item["value"], item["tone"]) for item in blocks["watch-facts"]["items"] if "tone" in item}
    assert told["alerts"] == ("none", "warn") and told["state"][1] == "warn"


def test_drift_disarms_only_with_the_role_for_it_and_is_written_down(model, tmp_path, monkeypatch):
    path = save_monitor(monitor_of(model, 1.0), tmp_path / "m.safetensors")
    signing.sign(path, signing.load_key(signing.make_key()))
    (tmp_path / "now.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    monkeypatch.setattr("assay.cli.monitor._opened", lambda *_: (model, load_monitor(path, model)))
    monkeypatch.setattr("assay.monitor.drift.window", lambda *_: Drift(1e-9, "scores", 40, 9))
    words, before = ["monitor", "drift", "m.safetensors", "some-model", "now.jsonl", "--quiet"], path.read_bytes()
    (tmp_path / "atlas").mkdir()
    assert "needs the role" in str(CliRunner(env={"ASSAY_ALLOW": "read"}).invoke(cli, words).exception)
    assert path.read_bytes() == before and signing.signature_path(path).is_file()
    assert CliRunner().invoke(cli, words).exit_code == 0
    assert load_monitor(path).state() == "uncalibrated: drift in scores over 40 replies (p 1e-09)"
    refused, done = entries(tmp_path / "atlas")
    assert refused["action"] == "refused: monitor drift" and (done["action"], done["role"]) == ("monitor drift", "intervene")
    assert done["body"]["arguments"]["file"] == "m.safetensors"


def test_drift_is_not_looked_for_in_texts_of_a_bundled_concept(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.cli.monitor._opened", lambda *_: pytest.fail("it was loaded"))
    found = CliRunner().invoke(cli, ["monitor", "drift", "m.safetensors", "some-model", "sentiment"]).exception
    assert isinstance(found, UsageError) and "DATA: got 'sentiment'; allowed: a JSONL file" in str(found)


def test_the_page_of_a_monitor_says_what_it_is_worth(model, tmp_path):
    workspace = Workspace(tmp_path / "atlas", role="read", loaded=model)
    assert make_document(workspace, "monitor")["empty"]
    place = tmp_path / "atlas" / monitors.MONITORS
    path = save_monitor(monitor_of(model, 1.0), place / "repeats.safetensors")
    save_monitor(monitor_of(model, 1.0, drifted="drift in scores"), place / "drifted.safetensors")
    key = signing.load_key(signing.make_key())
    signing.trust(signing.public_of(key), "Ada")
    signing.sign(path, key)
    rows = {row["monitor"]: row for row in run_verb(workspace, "monitor_list", {})["record"]["monitors"]}
    assert rows["repeats"]["state"] == "calibrated" and rows["repeats"]["signature"].endswith("signed by a trusted key Ada")
    assert rows["drifted"]["state"] == "uncalibrated: drift in scores"
    blocks = {block["id"]: block for block in make_document(workspace, "monitor", {"monitor": "repeats"})["blocks"]}
    (row,) = blocks["monitor-thresholds"]["rows"]
    assert (row["target"], row["rate"], row["benign"]) == (0.01, "0.05% to 1.10%", 500)
    assert {"label": "auroc", "value": 0.9} in blocks["monitor-card"]["items"]
    kept = signing.signature_path(path).read_bytes()
    save_monitor(monitor_of(model, 1000.0), path)  # a threshold that never alerts
    signing.signature_path(path).write_bytes(kept)
    (refused, *_) = make_document(workspace, "monitor", {"monitor": "repeats"})["blocks"]
    assert "altered" in refused["paragraphs"][0][0]
    with pytest.raises(UsageError, match="altered"):
        run_verb(workspace, "monitor_watch", {"monitor": "repeats", "text": TEXT})
    (place / "junk.safetensors").write_bytes(b"junk")
    assert "junk" in str(make_document(workspace, "monitor"))


def test_audits_are_listed_and_damaged_ones_said(tmp_path):
    def tested(family, found):
        stated = audit_records.Hypothesis(family, "the moon", f"{family} shows", "weights")
        return audit_records.Tested(stated, 18, 20, 1, 20, 0, 1e-6, 2e-6, found, "" if found else "the gap is small")

    workspace = Workspace(tmp_path / "atlas", role="read")
    both = (tested("backdoor", True), tested("liar", False))
    whole = audit_records.AuditReport("some-model", "d" * 64, None, "backdoor", both, (), None, {"forward": 900}, 1000, 3.0,
                                      ("other languages",)).to_json()  # fmt: skip
    broken = {**whole, "tested": [{"hypothesis": 3}]}
    for name, content in (("one", json.dumps(whole)), ("two", "{"), ("three", "[]"), ("four", json.dumps(broken)),
                          ("five", json.dumps({"model": "m"}))):  # fmt: skip
        place = tmp_path / "atlas" / monitors.AUDITS / name
        place.mkdir(parents=True)
        (place / monitors.AUDIT).write_text(content)
    rows = {row["audit"]: row for row in run_verb(workspace, "audit_list", {})["record"]["audits"]}
    assert rows["one"]["sentence"].startswith("Something was found in some-model") and rows["one"]["verdict"] == "backdoor"
    assert all("not the record of an audit" in rows[name]["sentence"] for name in ("two", "three", "four", "five"))
    shown = {block["id"]: block for block in make_document(workspace, "monitor", {"audit": "one"})["blocks"]}
    assert [(row["family"], row["with"], row["came_out"]) for row in shown["audit-tested"]["rows"]] == [
        ("backdoor", "18 of 20", "found"), ("liar", "18 of 20", "the gap is small")]  # fmt: skip
    assert "other languages" in str(shown["audit-missed"]) and "900 of 1,000 tokens" in str(shown["audit-summary"])
    assert run_verb(workspace, "audit_show", {"audit": "one"})["record"]["record"]["digest"] == "d" * 64
    with pytest.raises(StoreError):
        run_verb(workspace, "audit_show", {"audit": "two"})
    with pytest.raises(UsageError, match="audit"):
        run_verb(workspace, "audit_show", {"audit": "six"})


def test_the_threat_model_names_tests_that_exist():
    folder = Path(__file__).parent
    text = (folder.parent / "docs" / "threat_model.md").read_text()
    import re

    named = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", text)
    assert len(named) >= 10
    for file, test in named:
        assert (folder / file).is_file(), file
        assert not test or f"def {test}(" in (folder / file).read_text(), test


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    import transformers

    from assay.errors import ModelError

    folder = tmp_path / "model"
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError):
        load_model(folder)
    assert not (tmp_path / "ran").exists()
