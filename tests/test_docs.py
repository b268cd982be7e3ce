"""Documentation that fails when it is stale: tutorials run, commands and public names are described."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import assay

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


def test_every_public_name_is_in_the_docs():
    text = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md")) + (ROOT / "README.md").read_text()
    assert [name for name in assay.__all__ if not re.search(rf"\b{name}\b", text)] == []
    assert all(getattr(assay, name) is not None for name in assay.__all__)


def test_links_between_pages_lead_somewhere():
    for page in [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
