"""The battery's published error rates: the full calibration, and the tables of docs/calibration.md.

    .venv/bin/python benchmarks/calibration.py [--kind K ...] [--n N] [--update-docs]

Outcomes are kept (user cache, by the hash of the code), so an interrupted run goes on. Writes
src/assay/evidence/error_rates.json, which ships with the release, and with --update-docs the tables.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from assay.calibrate import CALIBRATIONS, calibrate
from assay.calibrate.rates import judged
from assay.calibrate.tables import markdown
from assay.model.cache import cache_dir

ROOT = Path(__file__).parent.parent
RATES = ROOT / "src" / "assay" / "evidence" / "error_rates.json"
PAGE = ROOT / "docs" / "calibration.md"
BEGIN = "<!-- tables: begin, written by benchmarks/calibration.py --update-docs -->"
END = "<!-- tables: end -->"


def main() -> int:
    """Run, write, and say whether the promises hold (exit code 1 when not)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", action="append", default=[], choices=CALIBRATIONS.names())
    parser.add_argument("--n", type=int, help="claims per family instead of the calibration's own numbers")
    parser.add_argument("--update-docs", action="store_true", help="only the tables, when given with --no-run")
    parser.add_argument("--no-run", action="store_true", help="write the tables from error_rates.json")
    given = parser.parse_args()
    record = json.loads(RATES.read_text()) if RATES.exists() else {"kinds": {}}
    holds = True
    if not given.no_run:
        record, holds = measured(record, given.kind or CALIBRATIONS.names(), given.n)
    if given.update_docs:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{markdown(record)}\n{END}{rest.partition(END)[2]}")
    return 0 if holds else 1


def measured(record: dict, kinds: list[str], n: int | None) -> tuple[dict, bool]:
    """Kind by kind, written after each: other kinds of the record stay."""
    holds = True
    for kind in kinds:
        start = time.process_time()
        found = calibrate([kind], full=True, n=n, keep=cache_dir() / "calibration", report=progress)
        rates = found["kinds"][kind]
        rates["cpu_seconds"] = round(time.process_time() - start, 1)
        rates["code"] = found["code"]
        record = {**record, **found, "kinds": {**record.get("kinds", {}), kind: rates}}
        RATES.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        holds = judged(rates, lambda text, kind=kind: sys.stderr.write(f"{kind}: {text}\n")) and holds
    return record, holds


def progress(label: str, done: int, total: int) -> None:
    """A line that is written over."""
    sys.stderr.write(f"\r{label}: {done} of {total}    " + "\n" * (done == total))


if __name__ == "__main__":
    sys.exit(main())
