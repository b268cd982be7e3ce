"""The command line: help is quick, every command has the common options, mistakes are one line and exit 2."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from assay.cli.common import check_json_target, check_place, write_json
from assay.cli.main import NOUNS, cli
from assay.errors import UsageError
from assay.files import write_file
from assay.testing import planted_induction
from assay_process import run
from planted_task import write_task

pytestmark = pytest.mark.whole

ASSAY = [sys.executable, "-m", "assay"]


def commands(group=cli, path=()):
    import click

    for name in NOUNS if group is cli else group.commands:
        command = group.get_command(click.Context(group), name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def test_places_that_cannot_be_written_are_refused_before_the_work_and_devices_are_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    nowhere = [(place, folder) for place in ("x" * 300, "/proc/there", "file/x", "a\0b") for folder in (True, False)]
    for place, folder in (*nowhere, ("file", True), (os.devnull, True), (".", False)):
        with pytest.raises(UsageError, match="--out"):
            check_place("--out", place, folder)
    for place in (*(place for place, _ in nowhere), ".", "new/x"):
        with pytest.raises(UsageError, match="--json"):
            check_json_target(place)
    for fine in ("file", "x", os.devnull, "-", None):
        check_json_target(fine)
    for place, folder in (("new/x", False), ("new/x", True), (".", True), (os.devnull, False)):
        check_place("--out", place, folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    reading, writing = os.pipe()
    write_json({"a": 1}, f"/dev/fd/{writing}")
    assert json.loads(os.read(reading, 99)) == {"a": 1}
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write_file(fifo, b"told")
    assert os.read(reader, 99) == b"told" and stat.S_ISFIFO(fifo.stat().st_mode)
    for handle in (reading, writing, reader):
        os.close(handle)


def test_help_does_not_import_torch():
    code = "import sys; from assay.cli.main import cli; import assay; cli(['--help'], standalone_mode=False);" \
           " print('torch' in sys.modules, 'duckdb' in sys.modules, 'numpy' in sys.modules)"  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False False False")


@pytest.mark.parametrize("path, command", list(commands()), ids=lambda x: " ".join(x) if isinstance(x, tuple) else "")
def test_every_command_has_the_common_options_and_help(path, command):
    names = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--seed", "--device", "--atlas", "--quiet"} <= names
    assert command.help and CliRunner().invoke(cli, [*path, "--help"]).exit_code == 0


@pytest.mark.parametrize("words, said", [
    (["pach"], "Did you mean 'patch'?"),
    (["patch", "glass-en"], "TASK, --file: got 'neither'"),
    (["patch", "glass-en", "iio"], "Did you mean 'ioi'?"),
    (["circuit", "find", "glass-en", "iio"], "Did you mean 'ioi'?"),
    (["patch", "glass-en", "ioi", "--split", "confirm"], "sealed"),
    (["patch", "glass-em", "ioi"], "Did you mean 'glass-en'?"),
    (["patch", "glass-en", "ioi", "--site", "resid"], "allowed:"),
    (["patch", "glass-en", "--file", "none.jsonl"], "none.jsonl"),
    (["claim", "test", "c-1", "--atlas", "nowhere"], "there is none here"),
    (["claim", "list", "--atlas", "nowhere"], "there is none here"),
    (["claim", "state", "glass-en", "ioi", "z.0.0", "--set", "size=3"], "--set: got 'size'"),
    (["claim", "state", "glass-en", "ioi", "z.0.0", "--sesoi", "necessity"], "NAME=VALUE"),
    (["claim", "state", "glass-en", "ioi", "hidden_states[3]"], "resid_pre.k"),
    (["demo", "--task", "iio"], "Did you mean 'ioi'?"),
    (["models", "--json", "/nowhere/x.json"], "--json"),
])  # fmt: skip
def test_mistakes_are_one_line_and_exit_2(words, said, tmp_path, monkeypatch):
    done = run(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The planted model as a directory, and a task file."""
    place = tmp_path_factory.mktemp("work")
    model = planted_induction()
    model.hf.save_pretrained(place / "model")
    model.tokenizer.save_pretrained(place / "model")
    write_task(place / "task.jsonl")
    return place


def test_a_claim_from_statement_to_verification(folder):
    common = ("--atlas", "atlas", "--quiet", "--json", "-")
    sizes = [word for pair in ("tune=16", "confirm=48", "ood=36", "draws=8", "control_pairs=2") for word in ("--set", pair)]
    done = run("claim", "state", "model", "task.jsonl", "z.0.0,z.1.0,z.1.1", *sizes, *common, cwd=folder)
    assert done.returncode == 0, done.stderr
    stated = json.loads(done.stdout)
    again = json.loads(run("claim", "state", "model", "task.jsonl", "z.0.0,z.1.0,z.1.1", *sizes, *common, cwd=folder).stdout)
    assert (again["claim"], stated["stated_before"], again["stated_before"]) == (stated["claim"], False, True)
    tested = run("claim", "test", stated["claim"], "--require", "supported", *common, cwd=folder)
    record = json.loads(tested.stdout)
    assert tested.returncode == 0 and record["verdict"] == "supported"
    assert {"claim", "kind", "verdict", "reasons", "qualifiers", "gates", "sentence"} <= set(record)
    assert {"name", "estimate", "low", "high", "sesoi", "p", "passed"} <= set(record["gates"][0])

    wrong = json.loads(run("claim", "state", "model", "task.jsonl", "z.0.1", *sizes, *common, cwd=folder).stdout)
    refused = run("claim", "test", wrong["claim"], "--require", "supported", "--atlas", "atlas", cwd=folder)
    assert refused.returncode == 1 and "refuted" in refused.stdout and "does not show" in refused.stdout

    listed = json.loads(run("claim", "list", *common, cwd=folder).stdout)
    assert [item["verdict"] for item in listed["claims"]] == ["supported", "refuted"]
    assert listed["counts"]["supported"] == listed["counts"]["refuted"] == 1
    shown = run("claim", "show", stated["claim"], "--atlas", "atlas", cwd=folder)
    assert "necessity.resample" in shown.stdout and stated["lock"] in shown.stderr
    assert run("claim", "verify", "--atlas", "atlas", cwd=folder).returncode == 0

    replayed = run("claim", "replay", stated["claim"], *common, cwd=folder)
    assert replayed.returncode == 0 and json.loads(replayed.stdout)["same"] is True
    assert run("claim", "replay", stated["claim"], "--model", "glass-en", "--atlas", "atlas", cwd=folder).returncode == 4

    import duckdb

    with duckdb.connect(str(folder / "atlas" / "atlas.duckdb")) as db:
        db.execute("UPDATE verdicts SET body = replace(body, '\"refuted\"', '\"supported\"')")
    caught = run("claim", "verify", "--atlas", "atlas", cwd=folder)
    assert caught.returncode == 3 and "not the one in the ledger" in caught.stdout
    assert run("claim", "replay", wrong["claim"], "--atlas", "atlas", cwd=folder).returncode == 3


IMPORTING = """
import os, signal, sys, time
from assay.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main.NOUNS["slow"] = ("slow:command", "A module that is interrupted while it is imported.")
main.main()
"""
SLOW = """
import os, signal, time, click
for _ in range(int(os.environ["PRESSED"])):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
print("imported whole", flush=True)

@click.command()
def command():
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        raise RecursionError("what a library says that was cut off")
"""


@pytest.mark.parametrize("pressed, said", [(1, "imported whole"), (2, "")])
def test_ctrl_c_during_an_import_waits_for_its_end_unless_pressed_again(tmp_path, pressed, said):
    (tmp_path / "slow.py").write_text(SLOW)
    done = subprocess.run([sys.executable, "-c", IMPORTING, "slow"], capture_output=True, text=True, cwd=tmp_path, timeout=25,
                          env={**os.environ, "PRESSED": str(pressed)})  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (130, said), done.stderr
    assert "Ctrl-C again stops at once" in done.stderr
    assert "The same command again" in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_sweep_goes_on_where_it_was(folder, tmp_path):
    words = ["patch", "model", "--file", "task.jsonl", "--site", "z", "--atlas", str(tmp_path), "--json", "-"]
    whole = json.loads(run(*words, cwd=folder).stdout)
    assert whole["checks"]["layers_reused"] == 0 and whole["n_pairs"] == 160
    again = json.loads(run(*words, cwd=folder).stdout)
    assert again["checks"]["layers_reused"] == 2
    assert again["effect"] == whole["effect"] and again["low"] == whole["low"]
    kept = sorted((tmp_path / "sweeps").rglob("*.safetensors"))
    kept[0].write_bytes(b"half a fi")  # a damaged file counts as not there
    assert json.loads(run(*words, cwd=folder).stdout)["checks"]["layers_reused"] == 1
    other = json.loads(run(*words, "--direction", "noise", cwd=folder).stdout)
    assert other["checks"]["layers_reused"] == 0  # another measurement


def test_ctrl_c_says_so_and_exits_130(folder, tmp_path):
    words = ["patch", "model", "--file", "task.jsonl", "--site", "mlp_act.1", "--atlas", str(tmp_path)]
    process = subprocess.Popen([*ASSAY, *words, "--site", "resid_post"], cwd=folder, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1"})  # fmt: skip
    for _ in range(600):
        if list(tmp_path.rglob("*.safetensors")) or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    if process.returncode == 130:
        assert "The same command again" in said and "Traceback" not in said
