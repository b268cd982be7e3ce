"""The replication suite on the models at hand: the table of docs/replications.md.

    python benchmarks/replications.py [--only NAME ..] [--model MODEL ..] [--atlas DIR] [--update-docs]

The same as `assay replicate all --model MODEL`, written as a table. What the atlas holds already is not measured again, so an
interrupted run goes on.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import environment

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table: begin, written by benchmarks/replications.py -->", "<!-- table: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["all"])
    parser.add_argument("--model", nargs="+", metavar="MODEL", default=["smollm2-135m"])
    parser.add_argument("--atlas", default="atlas-replications", metavar="DIR")
    parser.add_argument("--update-docs", action="store_true")
    given = parser.parse_args(arguments)
    environment.prepare()
    models = [word for name in given.model for word in ("--model", name)]
    command = [sys.executable, "-m", "assay", "replicate", *given.only, *models, "--atlas", given.atlas, "--json", "-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    text = table(json.loads(done.stdout)["replications"])
    sys.stdout.write(text + "\n")
    if given.update_docs:
        page = ROOT / "docs" / "replications.md"
        before, _, rest = page.read_text().partition(BEGIN)
        page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")
    return 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per finding, its figures and claims below each other."""
    lines = ["| finding | outcome | measured here | bar |", "|---|---|---|---|"]
    for row in rows:
        cells = [(f"{each['name']}: {_number(each)}", f"{each['side']} {each['bar']:g}") for each in row["found"]["figures"]]
        cells += [(f"claim: {each['statement']}", each["verdict"]) for each in row["found"]["claims"]]
        cells = cells or [(row["why"], "")]
        for place, (measured, bar) in enumerate(cells):
            head = (f"`{row['name']}`", f"**{row['outcome']}**") if place == 0 else ("", "")
            lines.append(f"| {head[0]} | {head[1]} | {measured} | {bar} |")
    seconds = sum(row["seconds"] for row in rows)
    models = ", ".join(sorted({row["model"] for row in rows}))
    return "\n".join([*lines, "", f"On {models}; {seconds:.0f} seconds on one core, proofs and loading not counted."])


def _number(each: Mapping[str, Any]) -> str:
    between = "" if each["low"] is None else f" ({each['low']:.2f} to {each['high']:.2f}; {each['clusters']} clusters)"
    return f"{each['value']:.2f}{between}"


if __name__ == "__main__":
    sys.exit(main())
