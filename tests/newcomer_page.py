"""Run by the python of an environment that has the wheel: a page of the tutorials from top to bottom, as a reader would.

    python newcomer_page.py PAGE.md

Python blocks share their names; every line of a console block is an `assay` command that must end well and say something.
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.M | re.S)


def run(page: Path) -> None:
    names: dict = {"__name__": "__main__"}
    blocks = BLOCK.findall(page.read_text())
    assert len(blocks) >= 4, f"{page}: {len(blocks)} blocks"
    for kind, text in blocks:
        if kind == "python":
            exec(compile(text, str(page), "exec"), names)
            continue
        for line in text.splitlines():
            assert line.startswith("$ assay "), line
            done = subprocess.run(line.removeprefix("$ ").split(), capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            assert done.stdout.strip(), line


if __name__ == "__main__":
    run(Path(sys.argv[1]))
