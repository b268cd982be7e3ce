"""Documentation that fails when it is stale: commands and public names are described. Tutorials run in test_newcomer.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import assay
import assay.evidence
import assay.replicate.run  # noqa: F401  (registers findings)
from assay.evidence.gates import GATES
from assay.evidence.kinds import KINDS
from assay.replicate.base import FINDINGS
from assay.sites import GLOBAL_SITES, LAYER_SITES

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent


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


def test_findings_page_is_what_the_findings_say():
    code = "import sys; sys.path.insert(0, 'docs'); import findings; print(findings.page())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    page = (ROOT / "docs" / "findings.md").read_text()
    assert done.stdout.strip() == page.strip(), "run: make docs"
    assert all(f"## `{one.name}`" in page and one.published in page and one.differs in page for one in FINDINGS)


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


def test_every_written_table_has_its_command_on_the_page_of_benchmarks():
    known = (ROOT / "docs" / "benchmarks.md").read_text()
    written = {name for page in (ROOT / "docs").glob("*.md")
               for name in re.findall(r"table: begin, written by benchmarks/(\w+)\.py", page.read_text())}  # fmt: skip
    assert len(written) > 5
    for name in written:
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), name
        assert name == "engine" or f"benchmarks/{name}.py" in known, name
