"""Documentation that fails when it is stale: tutorials run, commands and public names are described."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import assay
import assay.evidence
from assay.evidence.gates import GATES
from assay.evidence.kinds import KINDS
from assay.sites import GLOBAL_SITES, LAYER_SITES

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_tutorials_run_from_top_to_bottom(page, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    names: dict = {}
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) >= 4
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        for line in text.splitlines():
            assert line.startswith("$ assay ")
            done = subprocess.run(line.removeprefix("$ ").split(), capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip(), line


def test_commands_page_is_what_the_commands_say():
    code = "import sys; sys.path.insert(0, 'docs'); import commands; print(commands.page())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == (ROOT / "docs" / "commands.md").read_text().strip(), "run: make docs"


def test_gates_page_is_what_the_code_says():
    code = "import sys; sys.path.insert(0, 'docs'); import gates; print(gates.page())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    page = (ROOT / "docs" / "gates.md").read_text()
    assert done.stdout.strip() == page.strip(), "run: make docs"
    assert all(f"`{gate.name}`" in page for gate in GATES) and all(f"## Kind: {name}\n" in page for name in KINDS.names())


def test_every_command_and_option_says_what_it_is():
    """Each has a help text, which is what docs/commands.md is made of."""
    code = ("import sys; sys.path.insert(0, 'docs'); import click, commands\n"
            "for path, command in commands.walk(commands.cli, ()):\n"
            "    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]\n"
            "    if silent or not command.help: print(' '.join(path), silent)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == ""


def test_every_site_is_in_the_glossary_or_the_tour():
    text = (ROOT / "docs" / "glossary.md").read_text() + (ROOT / "docs" / "tour.md").read_text()
    names = (*LAYER_SITES, *GLOBAL_SITES, "latent.<dictionary>", "block.<path>", "path:<module>")
    assert [name for name in names if name not in text] == []


@pytest.mark.slow
def test_the_site_builds_with_every_page_in_a_menu(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("index.html", "gates/index.html", "reference/evidence/index.html", "tutorials/01_first_finding/index.html"):
        assert (tmp_path / "site" / page).is_file(), page


def test_every_public_name_is_in_the_docs():
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md")) + (ROOT / "README.md").read_text()
    assert [name for name in assay.__all__ if not re.search(rf"\b{name}\b", text)] == []
    assert all(getattr(assay, name) is not None for name in assay.__all__)


def test_links_between_pages_lead_somewhere():
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
