"""A cluster that runs already, reached by ray:// from another folder than its own, with a token."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from assay.cli.main import cli
from test_harvest import command, on_disk  # noqa: F401
from test_scale import files_in

pytestmark = pytest.mark.whole


def free_ports(n: int) -> list[int]:
    """Above those that Ray gives its workers."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def head(tmp_path):
    """(its address, what its drivers need in their environment): `ray start --head`, stopped by its own process."""
    port, client, agent = free_ports(3)
    folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds sockets
    given = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    options = {"port": port, "ray-client-server-port": client, "dashboard-agent-listen-port": agent, "num-cpus": 2,
               "node-ip-address": "127.0.0.1", "include-dashboard": "false", "min-worker-port": 0, "max-worker-port": 0,
               "object-store-memory": 100 << 20, "temp-dir": folder}  # fmt: skip
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
             *(f"--{name}={value}" for name, value in options.items())],
            env={**os.environ, **given}, cwd=folder, stdout=log, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        end = time.monotonic() + 120
        while not answers(client):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "head.log").read_text()[-2000:]
            time.sleep(0.1)
        yield f"ray://127.0.0.1:{client}", given
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_harvest_by_ray_client_with_relative_paths_has_the_bytes_of_one_process(
    head, on_disk, tmp_path, monkeypatch  # noqa: F811
):  # fmt: skip
    address, given = head
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "own"))
    shutil.copytree(on_disk, tmp_path / "there")
    environment = {**os.environ, **given, "ASSAY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    arguments = [*command(Path("there"), Path("many")), "--tokens", "3000"]
    for _ in range(4):  # on a busy machine Ray gives up starting a driver's server after half a minute
        done = subprocess.run([*arguments, "--engine", address], env=environment, cwd=tmp_path, capture_output=True, text=True)
        if "Initialization failure" not in done.stderr and "timeout" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-2000:]
    torch.set_num_threads(1)
    one = [*command(tmp_path / "there", tmp_path / "one")[3:], "--tokens", "3000"]
    assert CliRunner().invoke(cli, one, catch_exceptions=False).exit_code == 0
    assert len(files_in(tmp_path / "one")) > 10 and files_in(tmp_path / "many") == files_in(tmp_path / "one")
