"""The newcomer's path: what the README says to type can be typed, and works from a built wheel without the source tree.

Every command of the README is parsed by the command line itself, with all its options. Tutorials run from top to bottom, and
commands of the README that take seconds, with an `assay` that was installed from a wheel and sees no source tree.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest

from assay.cli.main import cli

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
QUICK = ("models", "claim kinds", "replicate", "organism list", "tasks glass-en",
         "claim state glass-en animals mlp_act.1.4 --kind represents", "claim list", "claim verify")  # fmt: skip


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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel, which sees the packages of this one but not its assay."""
    home = tmp_path_factory.mktemp("env")
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    site = next((home / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text(next(p for p in sys.path if p.endswith("site-packages")) + "\n")
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
    for words in QUICK:
        done = in_it(installed, tmp_path, "-m", "assay", *words.split(), "--quiet")
        assert done.returncode == 0, f"assay {words}\n{done.stderr}"
        assert done.stdout.strip(), words
