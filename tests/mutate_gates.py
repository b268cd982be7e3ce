"""Does a test notice when a gate is gone? One run of the tests per gate and mutation.

    python tests/mutate_gates.py                    every gate
    python tests/mutate_gates.py firing near_miss   these

Two mutations: `removed` (the gate is not registered, as if its file had been deleted) and `passes` (its contrast
is far above any bar, whatever was measured). A mutation is caught when some test fails; one that survives
is printed, and the exit code is 1. Tests that name the gate run first, so most mutations fall in seconds; tests that
only list what is registered do not count.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

MUTATIONS = ("removed", "passes")
TESTS = Path(__file__).parent


def main() -> int:
    """Table of gates and mutations; 1 when some mutation survives."""
    parser = argparse.ArgumentParser(description="Remove each gate in turn and see whether a test fails.")
    parser.add_argument("gates", nargs="*", help="names; none: all")
    parser.add_argument("--mutation", choices=MUTATIONS, action="append", help="only this one")
    options = parser.parse_args()
    import assay.evidence  # noqa: F401  (registers all gates)
    from assay.evidence.gates import GATES

    survived = []
    for gate in options.gates or GATES.names():
        for mutation in options.mutation or MUTATIONS:
            start = time.monotonic()
            caught = _caught(gate, mutation)
            sys.stdout.write(f"{gate:<28} {mutation:<8} {caught or 'SURVIVED'}  ({time.monotonic() - start:.0f} s)\n")
            sys.stdout.flush()
            survived += [] if caught else [(gate, mutation)]
    sys.stdout.write(f"{len(survived)} survived\n")
    return 1 if survived else 0


def _caught(gate: str, mutation: str) -> str:
    """The first test that fails, or nothing."""
    files = sorted(TESTS.glob("test_*.py"), key=lambda path: (f'"{gate}"' not in path.read_text(), path.stat().st_size))
    likely = [str(path) for path in files if _about_evidence(path)]
    environment = {**os.environ, "ASSAY_MUTATE_GATE": f"{mutation}:{gate}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-k", "not listed", *likely],
                          capture_output=True, text=True, env=environment, cwd=TESTS.parent)  # fmt: skip
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0].removeprefix("FAILED ").removeprefix("ERROR ") if failed else ""


def _about_evidence(path: Path) -> bool:
    return "assay.evidence" in path.read_text()


if __name__ == "__main__":
    sys.exit(main())
