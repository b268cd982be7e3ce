"""`assay app` as people start it: a process that says where it is, answers, and ends when asked to."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from click.testing import CliRunner

from assay import permissions
from assay.cli.main import cli


@pytest.mark.whole
def test_the_command_serves_says_where_and_ends_on_ctrl_c(tmp_path):
    place = tmp_path / "app.json"
    command = [sys.executable, "-m", "assay", "app", "--port", "0", "--no-browser", "--atlas", str(tmp_path / "atlas"),
               "--json", str(place), "--allow", "read", "--model", "glass-en"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    deadline = time.monotonic() + 120
    while not place.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    said = json.loads(place.read_text())
    assert said["address"].startswith("http://127.0.0.1:") and said["url"] == f"{said['address']}/#token={said['token']}"
    asked = urllib.request.Request(f"{said['address']}/api/pages", headers={"Authorization": f"Bearer {said['token']}"})
    with urllib.request.urlopen(asked, timeout=60) as answer:
        found = json.load(answer)
    assert (found["role"], found["model"]) == ("read", "glass-en")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and said["url"] in out and "Traceback" not in err
    started = list(permissions.entries(tmp_path / "atlas"))[0]
    assert started["action"] == "app start" and said["token"] not in json.dumps(started)


def run(*arguments):
    found = CliRunner().invoke(cli, ["app", "--no-browser", *arguments])
    return str(found.exception)


def test_mistakes_are_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert "--port 0" in run("--port", port) and port in run("--port", port)
    assert "--token" in run("--host", "0.0.0.0")
    assert "at least 16" in run("--token", "short")
    assert "--host" in run("--host", "no.such.host.invalid", "--token", "x" * 20)
    assert "read, intervene, modify" in run("--allow", "all")
    (tmp_path / "file").write_text("no atlas")
    assert "cannot be written" in run("--port", "0", "--atlas", str(tmp_path / "file"))
    assert "nothing-like-it" in run("--port", "0", "--model", str(tmp_path / "nothing-like-it"))
