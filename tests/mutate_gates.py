"""Does a test notice when a gate is gone? Every gate, two mutations.

    python tests/mutate_gates.py                    every gate
    python tests/mutate_gates.py firing near_miss   these
    python tests/mutate_gates.py --keep FILE --update-docs    every gate, and the table in docs/calibration.md

1. Mutations: `removed` (the gate is not registered, as if its file had been deleted) and `passes` (its contrast is far above
   any bar, whatever was measured). One is caught when some test fails; that test is printed. One that survives makes the exit
   code 1.
2. Tests whose code names the gate run first; only where all of them pass do the other tests about evidence run. A test that
   fails without the mutation, too, does not count; nor do those that only list what is registered, or need the 135M model.
3. Imports are made once: every mutation is a fork of this process, and changes the registry before tests are collected.
4. `--keep`: a line per mutation that was tried; those that are there are not tried again.
"""

import argparse
import ast
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest

MUTATIONS = ("removed", "passes")
PASSED = "passed"
TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "calibration.md"
BEGIN, END = "<!-- mutations: begin, written by tests/mutate_gates.py --update-docs -->", "<!-- mutations: end -->"


class FirstFailure:
    """Remembers the test, or the file, that failed first."""

    found = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.found = self.found or (report.nodeid if report.failed else "")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.found = self.found or (report.nodeid if report.failed else "")


def main() -> int:
    """One line per gate and mutation; 1 when some mutation survives."""
    parser = argparse.ArgumentParser(description="Remove each gate in turn and see whether a test fails.")
    parser.add_argument("gates", nargs="*", help="names; none: all")
    parser.add_argument("--mutation", choices=MUTATIONS, action="append", help="only this one")
    parser.add_argument("--keep", type=Path, help="a file to keep results in, and to go on from")
    parser.add_argument("--update-docs", action="store_true", help="write the table (of every gate)")
    given = parser.parse_args()
    if given.update_docs and given.gates:
        parser.error("--update-docs is for all gates")
    import assay.evidence  # noqa: F401  (registers all gates)
    import assay.testing.checks  # noqa: F401
    from assay.evidence.gates import GATES

    names, kept = named_in_tests(), known(given.keep)
    found: dict[tuple[str, str], str] = {}
    for mutation in given.mutation or MUTATIONS:
        for gate in given.gates or GATES.names():
            start = time.monotonic()
            test = found[gate, mutation] = kept.get((gate, mutation)) or caught(gate, mutation, names)
            sys.stdout.write(f"{gate:<24} {mutation:<8} {test or 'SURVIVED'}  ({time.monotonic() - start:.0f} s)\n")
            sys.stdout.flush()
            if given.keep and test and (gate, mutation) not in kept:
                with given.keep.open("a") as file:
                    file.write(json.dumps([gate, mutation, test]) + "\n")
    survived = sum(not test for test in found.values())
    sys.stdout.write(f"{survived} of {len(found)} survived\n")
    if given.update_docs:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n{table(found)}\n{END}{rest.partition(END)[2]}")
    return 1 if survived else 0


def known(path: Path | None) -> dict[tuple[str, str], str]:
    """Mutations that were caught before: (gate, mutation) -> the test."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {(gate, mutation): test for gate, mutation, test in map(json.loads, lines)}


def named_in_tests() -> dict[str, list[str]]:
    """Strings in test functions, and in functions of their file that they name -> node ids of the tests, the shortest first.
    Of an f-string the part before its first value."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in about_evidence():
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        for name, node in functions.items():
            if name.startswith("test_"):
                named = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & functions.keys()
                length = (node.end_lineno or node.lineno) - node.lineno
                for text in set().union(*(strings(functions[each]) for each in {name, *named})):
                    found.setdefault(text, []).append((length, f"{path}::{name}"))
    return {text: [test for _, test in sorted(tests)] for text, tests in found.items()}


def strings(node: ast.AST) -> set[str]:
    """String constants; an f-string is what it begins with and a star."""
    parts = list(ast.walk(node))
    first = [part.values[0] for part in parts if isinstance(part, ast.JoinedStr) and part.values]
    whole = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    return whole | {f"{part.value}*" for part in first if isinstance(part, ast.Constant)}


def about_evidence() -> list[Path]:
    """Test files that use the battery, the smallest first."""
    files = [path for path in TESTS.glob("test_*.py") if "assay.evidence" in path.read_text() and path.name != "test_docs.py"]
    return sorted(files, key=lambda path: path.stat().st_size)


def caught(gate: str, mutation: str, names: dict[str, list[str]]) -> str:
    """The first test that fails because of the mutation, or nothing."""
    family = f"{gate.partition('.')[0]}.*"
    for tests in (names.get(gate, []) + names.get(family, []), [str(path) for path in about_evidence()]):
        broken: list[str] = []
        while tests and (test := failure(f"{mutation}:{gate}", tests, broken)):
            if sound(test):
                return test
            broken.append(test)
    return ""


@cache
def sound(test: str) -> bool:
    """Whether a test passes where nothing is changed."""
    return not failure("", [test])


def failure(mutation: str, tests: list[str], without: Sequence[str] = ()) -> str:
    """The first of these tests that fails in a fork of this process in which a gate is changed; nothing where none does."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, run(mutation, tests, without).encode())
        finally:
            os._exit(0)  # a fork returns nowhere
    os.close(write)
    with open(read) as said:
        found = said.read()
    os.waitpid(child, 0)
    if not found:
        raise SystemExit(f"{mutation}: the tests did not run")
    return "" if found == PASSED else found


def run(mutation: str, tests: list[str], without: Sequence[str]) -> str:
    """The first test that fails, PASSED where none does, nothing where they did not run. Types are not checked: that would
    need the package to be imported anew."""
    os.environ["ASSAY_MUTATE_GATE"], seen = mutation, FirstFailure()
    options = ["-x", "-o", "addopts=-q --strict-markers", "-p", "no:cacheprovider", "-m", "not slow", "-k", "not listed"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main([*options, *(f"--deselect={test}" for test in without), *tests], plugins=[seen])
    return seen.found or (PASSED if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) else "")


def table(found: dict[tuple[str, str], str]) -> str:
    """One line per gate: the test that notices each mutation."""
    tried = list(dict.fromkeys(mutation for _, mutation in found))
    rows = [["gate", *(f"{mutation}: caught by" for mutation in tried)], ["---"] * (1 + len(tried))]
    rows += [[f"`{gate}`", *(shown(found[gate, mutation]) for mutation in tried)]
             for gate in dict.fromkeys(gate for gate, _ in found)]  # fmt: skip
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{sum(map(bool, found.values()))} of {len(found)} mutations are caught.\n\n{lines}"


def shown(test: str) -> str:
    """A test, as a reader finds it."""
    file, _, name = test.removeprefix("tests/").partition("::")
    return f"`{file}`, {name.removeprefix('test_').partition('[')[0].replace('_', ' ')}" if test else "**nothing**"


if __name__ == "__main__":
    sys.exit(main())
