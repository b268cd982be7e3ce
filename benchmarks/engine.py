"""Engine speed and memory against limits and peers, all in one process and taking turns.

    python benchmarks/engine.py                   prints two Markdown tables
    python benchmarks/engine.py --quick           few rounds, fewer layers of heads, memory on the small model
    python benchmarks/engine.py --update-docs     also puts them into docs/benchmarks.md
    make bench                                    the last, with peers, in an environment of its own

Numbers are compared before a case is timed; where they differ it is not timed, and the run ends with
exit code 1. Ctrl-C prints what is measured so far. Documentation is only rewritten by a whole run.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import environment

MODEL, SMALL = "smollm2-135m", "glass-en"
ALL = ("capture", "sweep", "heads", "attribution", "generation", "memory")


@dataclass
class Results:
    """What is known so far."""

    facts: dict[str, Any] = field(default_factory=dict)
    speed: list[Any] = field(default_factory=list)
    memory: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it finished, 1 when numbers differ, 130 when it was interrupted."""
    options = _options(arguments)
    environment.prepare()
    import report

    command = " ".join(["python benchmarks/engine.py", *(sys.argv[1:] if arguments is None else arguments)])
    results = Results()
    try:
        _measure(options, results)
    except KeyboardInterrupt:
        results.interrupted = True
        _say("interrupted: the tables hold what was measured before")
    what = results.facts, results.speed, results.memory
    if results.facts:
        sys.stdout.write(report.markdown(command, *what))
        if options.json:
            options.json.write_text(report.as_json(command, *what), encoding="utf-8")
    if results.interrupted or results.failures:
        return 130 if results.interrupted else 1
    if options.update_docs:
        report.update_docs(report.markdown(command, *what))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Engine speed and memory against limits and peers.")
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured here")
    parser.add_argument("--update-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--only", action="append", metavar="CASE", choices=ALL,
                        help=f"measure this only; repeat for more: {', '.join(ALL)}")  # fmt: skip
    parser.add_argument("--no-peers", action="store_true", help="leave installed peers out")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own)")
    options = parser.parse_args(arguments)
    if options.update_docs and (options.quick or options.only):
        parser.error("--update-docs takes a whole run: leave --quick and --only out")
    return options


def _measure(options: argparse.Namespace, results: Results) -> None:
    """One row after the other into `results`, so that an interrupt keeps what is done."""
    import cases
    import peers
    import report
    import torch
    from memory import SIZES, in_own_process

    from assay import load_model

    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = options.only or ALL
    model = load_model(MODEL)
    tools = [peers.PlainHooks(model.hf)] if options.no_peers else peers.load_peers(model)
    facts = {"model": MODEL, "threads": torch.get_num_threads(), "quick": options.quick,
             "peers": len(tools) > 1, "versions": environment.versions()}  # fmt: skip
    results.facts = facts
    for name in (name for name in wanted if name != "memory"):
        try:
            row = cases.measure(cases.CASES[name](model, tools, options.quick))
        except AssertionError as error:
            results.failures.append(str(error))
            _say(f"not timed, {error}")
            continue
        results.speed.append(row)
        _say(report.speed_table([row], facts).splitlines()[-1])
    for positions in ("last", "all") if "memory" in wanted else ():
        for prompts in SIZES:
            size = in_own_process(SMALL if options.quick else MODEL, prompts, positions)
            results.memory.append(size)
            _say(report.memory_table([size]).splitlines()[-1])


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
