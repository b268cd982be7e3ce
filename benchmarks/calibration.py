"""The battery's published error rates: the full calibration, and the tables of docs/calibration.md.

    .venv/bin/python benchmarks/calibration.py [--kind K ...] [--n N] [--seed S] [--update-docs]    # K: a kind, or an option
    .venv/bin/python benchmarks/calibration.py --speed [--update-docs]    # 300 null claims, timed, nothing kept
    .venv/bin/python benchmarks/calibration.py --recheck 2    # do the first claims of every family come out as they did?

Outcomes are kept (user cache, by the hash of the code), so an interrupted run goes on. Writes
src/assay/evidence/error_rates.json, which ships with the release, and with --update-docs the tables.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from assay.calibrate import CALIBRATIONS, NAMED, calibrate
from assay.calibrate.base import Outcome, try_case
from assay.calibrate.named import judged_named
from assay.calibrate.rates import judged
from assay.calibrate.run import code_digest, kept_outcomes
from assay.calibrate.tables import markdown
from assay.model.cache import cache_dir

ROOT = Path(__file__).parent.parent
RATES = ROOT / "src" / "assay" / "evidence" / "error_rates.json"
PAGE = ROOT / "docs" / "calibration.md"
BEGIN = "<!-- tables: begin, written by benchmarks/calibration.py --update-docs -->"
END = "<!-- tables: end -->"
PROMISED = 60.0  # CPU seconds for 300 null claims on planted activations


def main() -> int:
    """Run, write, and say whether the promises hold (exit code 1 when not)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", action="append", default=[], choices=[*CALIBRATIONS.names(), *NAMED.names()])
    parser.add_argument("--n", type=int, help="claims per family instead of the calibration's own numbers")
    parser.add_argument("--seed", type=int, default=0, help="of the first claim of each family")
    parser.add_argument("--update-docs", action="store_true", help="only the tables, when given with --no-run")
    parser.add_argument("--no-run", action="store_true", help="write the tables from error_rates.json")
    parser.add_argument("--speed", action="store_true", help="time the null claims of represents instead")
    parser.add_argument("--recheck", type=int, metavar="N",
                        help="run the first N claims of every family again and compare them with those that the tables count")
    given = parser.parse_args()
    record = json.loads(RATES.read_text()) if RATES.exists() else {"kinds": {}}
    holds = True
    if given.speed:
        record["speed"] = timed()
        RATES.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        holds = record["speed"]["cpu_seconds"] < PROMISED
    elif given.recheck:
        record, holds = rechecked(record, [kind for kind in given.kind or CALIBRATIONS.names() if kind not in NAMED.names()],
                                  given.recheck)  # fmt: skip
    elif not given.no_run:
        record, holds = measured(given.kind or [*CALIBRATIONS.names(), *NAMED.names()], given.n, given.seed)
    if given.update_docs:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{markdown(record)}\n{END}{rest.partition(END)[2]}")
    return 0 if holds else 1


def measured(kinds: list[str], n: int | None, seed: int) -> tuple[dict, bool]:
    """Kind by kind, written after each: what else the record has by then stays."""
    record, holds = {}, True
    for kind in kinds:
        start = time.process_time()
        found = calibrate([kind], full=True, n=n, seed=seed, keep=cache_dir() / "calibration", report=progress)
        part = "named" if kind in NAMED.names() else "kinds"
        rates = found[part][kind]
        rates["cpu_seconds"] = round(time.process_time() - start, 1)
        rates["code"] = found["code"]
        record = json.loads(RATES.read_text()) if RATES.exists() else {}
        parts = {name: {**record.get(name, {}), **found[name]} for name in ("kinds", "named")}
        record = {**record, **found, **parts}
        RATES.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        judge = judged_named if part == "named" else judged
        holds = judge(rates, lambda text, kind=kind: sys.stderr.write(f"{kind}: {text}\n")) and holds
    return record, holds


def rechecked(record: dict, kinds: list[str], n: int) -> tuple[dict, bool]:
    """The first n kept claims of every family, by the code that the tables are from, run again by the code as it is now: the
    same verdict, reasons, estimates and p-values of every required gate? Counted beside the rates, which stay. Where only
    an interval is another one, the kind's lines on coverage are old: `intervals` counts claims whose intervals are the same."""
    holds = True
    for kind in kinds:
        calibration, known = CALIBRATIONS.get(kind), record["kinds"].get(kind)
        path = cache_dir() / "calibration" / f"{kind}-{known['code'] if known else ''}.jsonl"
        old = {(outcome.family, outcome.seed): outcome for outcome in kept_outcomes(path)}
        if not known or not old:
            sys.stderr.write(f"{kind}: no claims kept by the code of its table\n")
            continue
        plan = [(family, seed) for family in calibration.families
                for seed in sorted(seed for name, seed in old if name == family.name)[:n]]  # fmt: skip
        same = intervals = 0
        for place, (family, seed) in enumerate(plan):
            now, before = counted(try_case(calibration, family, seed)), counted(old[family.name, seed])
            same += now[0] == before[0]
            intervals += now[1] == before[1]
            progress(f"{kind}, again", place + 1, len(plan))
        known["rechecked"] = {"claims": len(plan), "same": same, "intervals": intervals, "code": code_digest()[:16]}
        RATES.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        sys.stderr.write(f"{kind}: {same} of {len(plan)} claims came out as they did\n")
        holds = holds and same == len(plan)
    return record, holds


def counted(outcome: Outcome) -> tuple[tuple, list]:
    """What the tables are made of: verdict, reasons, every required gate's estimate and p; and its interval. Numbers to six
    digits: models run in float32."""
    gates = {label: [round(value, 6) if isinstance(value, float) else value for value in numbers]
             for label, numbers in sorted(outcome.gates.items()) if numbers[5]}  # fmt: skip
    decided = [(label, estimate, p, passed) for label, (estimate, _, _, p, passed, _) in gates.items()]
    return (outcome.verdict, outcome.reasons, outcome.only, decided), [(label, row[1:3]) for label, row in gates.items()]


def timed() -> dict:
    """All null claims of *represents* at full count, from planting to verdict, in one process: CPU and wall time."""
    calibration = CALIBRATIONS.get("represents")
    plan = [(family, seed) for family in calibration.families if family.truth == "null"
            for seed in range(calibration.full["null"])]  # fmt: skip
    try_case(calibration, *plan[0])  # imports
    wall, cpu = time.perf_counter(), time.process_time()
    for place, (family, seed) in enumerate(plan):
        try_case(calibration, family, seed)
        progress("null claims", place + 1, len(plan))
    return {"claims": len(plan), "cpu_seconds": round(time.process_time() - cpu, 1),
            "wall_seconds": round(time.perf_counter() - wall, 1), "load": round(os.getloadavg()[0], 1),
            "cores": os.cpu_count(), "code": code_digest()[:16]}  # fmt: skip


def progress(label: str, done: int, total: int) -> None:
    """A line that is written over."""
    sys.stderr.write(f"\r{label}: {done} of {total}    " + "\n" * (done == total))


if __name__ == "__main__":
    sys.exit(main())
