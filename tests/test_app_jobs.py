"""Jobs: progress, cancel, resume, events, and what is left of them when the server is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from app_server import running
from assay import permissions
from assay.app.arguments import integer, schema, string
from assay.app.jobs import MOST_QUEUED, Jobs, TooMany
from assay.app.verbs import VERBS, Verb
from assay.app.workspace import Busy, Workspace
from assay.errors import StoreError, TaskError, UsageError


def count(workspace, arguments, report):
    """Counts to n, one step a file, and goes on from the files that are there; waits at `gate` while that file is there."""
    workspace.atlas.mkdir(parents=True, exist_ok=True)
    made = 0
    for step in range(arguments["n"]):
        path = workspace.atlas / f"step-{step}"
        while (workspace.atlas / "gate").exists() and step == arguments["n"] // 2:
            report("waiting", step, arguments["n"])
            time.sleep(0.01)
        if not path.exists():
            path.write_text("")
            made += 1
        report("counting", step + 1, arguments["n"])
    report.piece("plain", "do")
    report.piece("plain", "ne")
    report.partial([{"type": "text", "id": "half", "paragraphs": [["half"]]}])
    return {"record": {"made": made}, "blocks": [{"type": "text", "id": "all", "paragraphs": [["all"]]}]}


def fail(workspace, arguments, report):
    if arguments.get("how") == "words":
        raise TaskError("task x: it cannot be done. Give another.")
    raise ZeroDivisionError("inside")


@pytest.fixture(scope="module", autouse=True)
def verbs_of_tests():
    VERBS._items["count_test"] = Verb("count_test", "read", "Counts.", schema(("n",), n=integer("To.", None, 0, 1000)), count,
                                      long=True)  # fmt: skip
    VERBS._items["fail_test"] = Verb("fail_test", "read", "Fails.", schema((), how=string("How.")), fail, long=True)
    VERBS._items["edit_test"] = Verb("edit_test", "intervene", "Edits.", schema(), count, long=True)
    yield
    for name in ("count_test", "fail_test", "edit_test"):
        del VERBS._items[name]


@pytest.fixture
def place(tmp_path):
    return tmp_path / "atlas"


def test_a_long_verb_becomes_a_job_with_events_and_a_result(place):
    with running(Workspace(place, actor="tester")) as client:
        job = client.post("/api/verbs/count_test", {"n": 3}).json["job"]
        done = client.wait(job, "done")
        events = client.events(job)
        assert client.get("/api/jobs").json["jobs"][0]["id"] == job
    assert done["result"]["record"] == {"made": 3} and (done["done"], done["total"]) == (3, 3)
    assert done["started"] and done["ended"] and "server" not in done
    names = [name for name, _ in events]
    assert names == ["progress"] * 4 + ["piece", "piece", "blocks", "done"]
    assert [data["done"] for name, data in events if name == "progress"] == [0, 1, 2, 3]
    assert "".join(data["text"] for name, data in events if name == "piece") == "done"
    assert events[-1][1]["result"] == done["result"]
    assert [entry["action"] for entry in permissions.entries(place)] == ["count_test"]


def test_events_go_on_after_the_last_one_that_was_seen(place):
    with running(Workspace(place)) as client:
        job = client.post("/api/verbs/count_test", {"n": 3}).json["job"]
        client.wait(job, "done")
        assert [name for name, _ in client.events(job, after=6)] == ["blocks", "done"]


def test_events_come_while_the_job_runs(place):
    place.mkdir()
    (place / "gate").write_text("")
    with running(Workspace(place)) as client:
        job = client.post("/api/verbs/count_test", {"n": 4}).json["job"]
        client.wait(job, "running")
        found = []
        reader = threading.Thread(target=lambda: found.extend(client.events(job)))
        reader.start()
        time.sleep(0.3)
        (place / "gate").unlink()
        reader.join(20)
    assert found[-1][0] == "done" and any(data.get("message") == "waiting" for _, data in found)


def test_a_cancelled_job_keeps_what_was_done_and_resumes_from_there(place):
    place.mkdir()
    (place / "gate").write_text("")
    with running(Workspace(place)) as client:
        job = client.post("/api/verbs/count_test", {"n": 6}).json["job"]
        client.wait(job, "running")
        while not (place / "step-2").exists():
            time.sleep(0.01)
        assert client.post(f"/api/jobs/{job}/cancel").status == 200
        client.wait(job, "cancelled")
        assert client.events(job)[-1][0] == "cancelled"
        assert client.post(f"/api/jobs/{job}/cancel").status == 400
        (place / "gate").unlink()
        assert client.post(f"/api/jobs/{job}/resume").json["state"] in ("queued", "running", "done")
        assert client.wait(job, "done")["result"]["record"] == {"made": 3}
        assert client.post(f"/api/jobs/{job}/resume").status == 400
    actions = [entry["action"] for entry in permissions.entries(place)]
    assert actions == ["count_test", "job cancel", "job resume", "count_test"]


def test_a_waiting_job_is_cancelled_without_having_run(place):
    place.mkdir()
    (place / "gate").write_text("")
    with running(Workspace(place)) as client:
        first = client.post("/api/verbs/count_test", {"n": 2}).json["job"]
        second = client.post("/api/verbs/fail_test").json["job"]
        assert client.post(f"/api/jobs/{second}/cancel").json["state"] == "cancelled"
        (place / "gate").unlink()
        client.wait(first, "done")
        assert client.get(f"/api/jobs/{second}").json["started"] == ""


def test_failures_are_said_in_words_and_defects_keep_their_insides(place, capsys):
    with running(Workspace(place)) as client:
        said = client.wait(client.post("/api/verbs/fail_test", {"how": "words"}).json["job"], "failed")
        defect = client.wait(client.post("/api/verbs/fail_test").json["job"], "failed")
        after = client.wait(client.post("/api/verbs/count_test", {"n": 1}).json["job"], "done")
    assert said["error"]["message"] == "task x: it cannot be done. Give another."
    assert "ZeroDivisionError" in defect["error"]["message"] and "inside" not in defect["error"]["message"]
    assert "inside" in capsys.readouterr().err and after["result"]["record"] == {"made": 1}


def test_wrong_arguments_and_roles_are_refused_before_a_job_is_made(place):
    with running(Workspace(place, role="read")) as client:
        assert client.post("/api/verbs/count_test", {"n": -1}).status == 400
        assert client.post("/api/verbs/count_test", {}).status == 400
        assert client.post("/api/verbs/edit_test").status == 403
        assert client.get("/api/jobs").json == {"jobs": []}


def test_a_job_of_a_higher_role_cannot_be_resumed_by_a_lower_one(place):
    with running(Workspace(place, role="intervene")) as client:
        job = client.post("/api/verbs/edit_test").json["job"]
        client.wait(job, "failed")  # the verb misses an argument
    with running(Workspace(place, role="read")) as client:
        client.post(f"/api/jobs/{job}/resume")
        assert "needs the role 'intervene'" in client.wait(job, "failed")["error"]["message"]


def test_only_so_many_jobs_wait_and_one_that_is_not_resumed_stays_as_it_was(place):
    place.mkdir()
    jobs = Jobs(Workspace(place))
    try:
        failed = jobs.add("fail_test", {})
        while failed.state != "failed":
            time.sleep(0.01)
        (place / "gate").write_text("")
        first = jobs.add("count_test", {"n": 2})
        while first.state == "queued":
            time.sleep(0.01)
        for _ in range(MOST_QUEUED):
            jobs.add("count_test", {"n": 2})
        with pytest.raises(TooMany, match=f"allowed: {MOST_QUEUED}"):
            jobs.add("count_test", {"n": 2})
        with pytest.raises(TooMany):
            jobs.resume(failed.id)
        assert jobs.get(failed.id).state == "failed"
    finally:
        jobs.close()
    assert sorted({job.state for job in jobs.listing()}) == ["failed", "interrupted"]


def test_a_server_that_ends_interrupts_its_job_and_the_next_one_resumes_it(place):
    place.mkdir()
    (place / "gate").write_text("")
    with running(Workspace(place)) as client:
        job = client.post("/api/verbs/count_test", {"n": 6}).json["job"]
        client.wait(job, "running")
        while not (place / "step-2").exists():
            time.sleep(0.01)
    (place / "gate").unlink()
    with running(Workspace(place)) as client:
        assert client.get(f"/api/jobs/{job}").json["state"] == "interrupted"
        assert client.events(job) == [("interrupted", {"state": "interrupted"})]
        client.post(f"/api/jobs/{job}/resume")
        assert client.wait(job, "done")["result"]["record"] == {"made": 3}


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = {paths!r}
from test_app_jobs import VERBS, Verb, count, schema, integer
from assay.app.jobs import Jobs
from assay.app.workspace import Workspace
VERBS._items["count_test"] = Verb("count_test", "read", "Counts.", schema(("n",), n=integer("To.")), count, long=True)
jobs = Jobs(Workspace({atlas!r}))
print(jobs.add("count_test", {{"n": 6}}).id, flush=True)
time.sleep(60)
"""


def test_a_killed_server_leaves_an_interrupted_job_but_a_living_one_is_left_alone(place):
    place.mkdir()
    (place / "gate").write_text("")
    code = KILLED.format(paths=[path for path in sys.path if path], atlas=str(place))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    job = child.stdout.readline().strip()
    while not (place / "step-2").exists():
        time.sleep(0.01)
    here = Jobs(Workspace(place))
    assert here.get(job).state == "running"
    with pytest.raises(UsageError, match="in this server"):
        here.cancel(job)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert here.get(job).state == "interrupted" and here.listing()[0].state == "interrupted"
    (place / "gate").unlink()
    here.resume(job)
    while here.get(job).state != "done":
        time.sleep(0.01)
    assert here.result(job) == {"record": {"made": 3}, "blocks": [{"type": "text", "id": "all", "paragraphs": [["all"]]}]}
    here.close()


def test_damaged_files_of_jobs_are_named_and_hide_no_others(place):
    with running(Workspace(place)) as client:
        job = client.post("/api/verbs/count_test", {"n": 1}).json["job"]
        client.wait(job, "done")
        (place / "jobs" / "20260101-000000-00000000.json").write_text('{"id": 1')
        (place / "jobs" / "20260101-000000-00000001.json").write_text(json.dumps({"state": "running"}))
        assert client.get("/api/jobs/20260101-000000-00000000").status == 409
        assert [each["id"] for each in client.get("/api/jobs").json["jobs"]] == [job]
    with pytest.raises(StoreError, match="cannot be read"):
        Jobs(Workspace(place)).get("20260101-000000-00000001")


def test_the_model_is_busy_in_words_while_another_thread_has_it(place, monkeypatch):
    monkeypatch.setattr("assay.app.workspace.PATIENCE", 0.05)
    workspace = Workspace(place)
    held, end = threading.Event(), threading.Event()

    def hold():
        with workspace.lock:
            held.set()
            end.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    try:
        with pytest.raises(Busy, match="busy"), workspace.using("glass-en"):
            pass
    finally:
        end.set()
        thread.join()
