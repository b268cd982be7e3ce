"""Running a calibration: every family, claim by claim; what is done is kept, so that it can go on later.

    found = calibrate(["represents"], report=print)
    found["kinds"]["represents"]["null"]        # {"n", "supported", "upper95", "families"}

Outcomes are written one a line to a file named after the hash of what decides them: a changed battery never counts old
outcomes as its own. Hashed are the statements of the code that makes planted claims, states, measures and judges them
(`DECIDES`, without `SHOWS`), not comments, docstrings or layout. The engine that runs models is not in it: it is held against
plain hooks elsewhere.
"""

import ast
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import assay
from assay.calibrate.base import CALIBRATIONS, Calibration, Family, Outcome, try_case
from assay.calibrate.named import NAMED, named_rates
from assay.calibrate.rates import rates
from assay.errors import bad_argument
from assay.evidence.verdicts import RULE_VERSION
from assay.passport import one_git_state
from assay.records import plain

Report = Callable[[str, int, int], None]
DECIDES = ("records.py", "statistics.py", "evidence", "testing", "calibrate")
SHOWS = {f"evidence/{name}.py" for name in ("card", "redaction", "replay", "sentence", "stale")} | {
    f"calibrate/{name}.py" for name in ("on_model", "rates", "run", "tables")
}


def calibrate(
    kinds: Sequence[str] = (), *, full: bool = False, n: int | None = None, seed: int = 0,
    keep: Path | None = None, report: Report | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The battery's own error rates. `kinds`: kinds, and options whose gates are to be tried; none: all kinds. `n`: claims per
    family instead of the calibration's own numbers.

    `keep`: a folder for outcomes, so that an interrupted run goes on. Raises UsageError for an unknown kind.
    """

    def made(calibration: Calibration) -> list[Outcome]:
        plan = [(family, seed + place) for family in calibration.families
                for place in range(calibration.count(family, full, n))]  # fmt: skip
        return list(outcomes(calibration, plan, keep, report))

    for kind in kinds:
        if kind not in (known := [*CALIBRATIONS.names(), *NAMED.names()]):
            raise bad_argument("kind", kind, ", ".join(known))
    options = [kind for kind in kinds if kind in NAMED.names()]
    chosen = [CALIBRATIONS.get(kind) for kind in kinds if kind not in options] if kinds else list(CALIBRATIONS)
    return {"kinds": {each.label: rates(each, made(each)) for each in chosen},
            "named": {name: named_rates(NAMED.get(name), made(NAMED.get(name).calibration)) for name in options},
            "rule_version": RULE_VERSION, "version": _version(), "code": code_digest()[:16],
            "mode": "full" if full else "quick", "seed": seed}  # fmt: skip


def outcomes(
    calibration: Calibration, plan: Sequence[tuple[Family, int]], keep: Path | None, report: Report | None
) -> Iterator[Outcome]:
    """One outcome per planned claim, in order; those kept from an earlier run are not made again."""
    done: dict[tuple[str, int], Outcome] = {}
    file: TextIO | None = None
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        path = keep / f"{calibration.label}-{code_digest()[:16]}.jsonl"
        done = {(outcome.family, outcome.seed): outcome for outcome in kept_outcomes(path)}
        file = path.open("a")
        if file.tell():
            file.write("\n")  # after a line that was cut off
    try:
        with one_git_state():
            for place, (family, seed) in enumerate(plan):
                outcome = done.get((family.name, seed))
                if outcome is None:
                    outcome = try_case(calibration, family, seed)
                    if file is not None:
                        file.write(json.dumps(plain(outcome)) + "\n")
                        file.flush()
                if report:
                    report(f"{calibration.label}, {family.name}", place + 1, len(plan))
                yield outcome
    finally:
        if file is not None:
            file.close()


def kept_outcomes(path: Path) -> Iterator[Outcome]:
    """Outcomes of an earlier run; a line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        gates = {name: tuple(values) for name, values in row.pop("gates").items()}
        yield Outcome(**{**row, "gates": gates, "reasons": tuple(row["reasons"]), "only": tuple(row["only"])})


@cache
def code_digest() -> str:
    """SHA-256 of the code that decides what comes out."""
    root, whole = Path(assay.__file__).parent, hashlib.sha256()
    for name in DECIDES:
        at = root / name
        for path in sorted(at.rglob("*.py")) if at.is_dir() else [at]:
            if path.relative_to(root).as_posix() not in SHOWS:
                whole.update(statements(path.read_text()).encode())
    return whole.hexdigest()


def statements(code: str) -> str:
    """What the code does: its syntax tree without docstrings; comments and layout are not in it."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _version() -> str:
    from importlib.metadata import version

    return version("assay")
