"""A ledger of many claims: what one append, one page of the list and one set of reads cost, and memory to verify it.

    python benchmarks/ledger.py                     100,000 claims, about 600,000 entries, in a temporary folder
    python benchmarks/ledger.py --claims 10000

1. Claims, plans, verdicts and a whole, valid chain are written in bulk; index tables follow by the migration's
   own queries. Every claim is charged to a subject of its own; 50 claims share the data of one confirm split.
2. Every operation is timed as one process would meet it (opening the database included), then again inside
   `with atlas:`; wall time and CPU time of the process are printed, medians over the rounds.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from assay.atlas.index import EMPTY_HEAD
from assay.atlas.migrations import MARKS_OF_LEDGER, SETS_OF_LEDGER, STANDING_OF_VERDICTS, migrate
from assay.atlas.store import FILE, HEAD, Atlas
from assay.evidence.claims import family_of
from assay.evidence.ledger import Entry, next_entry
from assay.records import canonical, digest

SHARING, CLUSTERS, TIME = 50, 24, "2026-01-01T00:00:00.000+00:00"
VERDICTS = ("supported", "refuted", "inconclusive")


def main() -> int:
    """Build, time, print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--claims", type=int, default=100_000)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--no-verify", action="store_true", help="Leave out the check of the whole ledger.")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        atlas = Atlas(Path(folder) / "atlas")
        seconds = timed(lambda: build(atlas, given.claims))
        size = (atlas.path / FILE).stat().st_size / 1e6
        out(f"{given.claims} claims, {atlas.entry_count()} entries, {size:.0f} MB, built in {seconds:.0f} s\n")
        out("| operation, median ms | alone | its CPU | inside `with atlas:` | its CPU |\n|---|---|---|---|---|")
        for name, run in operations(atlas, given.claims).items():
            alone = medians(run, given.rounds)
            with atlas:
                run()
                inside = medians(run, given.rounds)
            out(f"| {name} | {alone[0]:.1f} | {alone[1]:.1f} | {inside[0]:.1f} | {inside[1]:.1f} |")
        if not given.no_verify:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            problems: list[str] = []
            seconds = timed(lambda: problems.extend(atlas.verify()))
            more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            out(f"\nverify: {seconds:.0f} s, {len(problems)} problems, peak memory grew by {more:.0f} MB")
            out("\n".join(problems[:5]))
            return 1 if problems else 0
    return 0


def operations(atlas: Atlas, n: int) -> dict[str, Callable[[], Any]]:
    """What a claim test and a list ask of the ledger."""
    middle = n // 2
    names = clusters(middle)
    return {
        "append a look": lambda: atlas.append("look", {"what": "bench", "model": "m", "clusters": names}),
        "list a page of 50": lambda: atlas.listing(50, middle),
        "list refuted ones": lambda: atlas.listing(50, middle // 4, "refuted"),
        "counts": atlas.tally,
        "reads charged": lambda: atlas.reads(subject(middle), "none", names),
        "looks": lambda: atlas.looks("m", names),
        "family (Holm)": lambda: family_of(atlas, name(middle)),
        "entries of a claim": lambda: atlas.entries_of(name(middle)),
        "number of entries": atlas.entry_count,
    }


def build(atlas: Atlas, n: int) -> None:
    """A whole atlas in bulk, through one file per table."""
    atlas.path.mkdir(parents=True)
    rows = {table: atlas.path / f"{table}.jsonl" for table in ("ledger", "claims", "plans", "verdicts")}
    files = {table: path.open("w") for table, path in rows.items()}
    head = dict(EMPTY_HEAD)
    for entry in entries(n):
        files["ledger"].write(json.dumps({**entry, "body": canonical(entry["body"])}) + "\n")
        head = {"count": entry["index"] + 1, "hash": entry["hash"]}
    for place in range(n):
        claim = {"id": name(place), "version": 1, "parent": None, "kind": "mediates", "statement": f"claim {place}",
                 "quantifier": "tends", "subject": {}, "task": {"name": "t"}, "direction": "positive", "rivals": [],
                 "created": f"{place:09d}"}  # fmt: skip
        files["claims"].write(json.dumps({**claim, "body": canonical(claim)}) + "\n")
        plan = {"claim": name(place), "lock": "l"}
        files["plans"].write(json.dumps({**plan, "body": canonical(plan)}) + "\n")
        files["verdicts"].write(json.dumps({"claim": name(place), "verdict": VERDICTS[place % 3], "rule_version": "1",
                                            "body": canonical(verdict(place))}) + "\n")  # fmt: skip
    for file in files.values():
        file.close()
    fill(atlas.path, rows, head)


def fill(folder: Path, rows: dict[str, Path], head: dict[str, Any]) -> None:
    """Tables from files, index tables from tables."""
    with duckdb.connect(str(folder / FILE)) as db:
        migrate(db)
        typed = {"ledger": '"index", "time", kind, body, previous, hash', "plans": "claim, lock, body",
                 "claims": "id, version, parent, kind, created, statement, body"}  # fmt: skip
        for table, columns in typed.items():
            db.execute(f"INSERT INTO {table} SELECT {columns} FROM {source(rows[table], columns)}")
        columns = "claim, verdict, rule_version, body"
        db.execute(f"INSERT INTO verdicts ({columns}) SELECT {columns} FROM {source(rows['verdicts'], columns)}")
        db.execute("INSERT INTO ledger_head VALUES (?, ?)", [head["count"], head["hash"]])
        derived = {"marks": MARKS_OF_LEDGER, "cluster_sets": SETS_OF_LEDGER, "standing": STANDING_OF_VERDICTS}
        for table, query in derived.items():
            db.execute(f"INSERT INTO {table} {query}")
    (folder / HEAD).write_text(canonical(head))
    for path in rows.values():
        path.unlink()


def source(path: Path, columns: str) -> str:
    """A file of JSON lines as a table of texts; the table it is put into has the types."""
    typed = ", ".join(f"'{column.strip().strip(chr(34))}': 'VARCHAR'" for column in columns.split(","))
    return f"read_json('{path}', format='newline_delimited', columns={{{typed}}})"


def entries(n: int) -> Iterator[Entry]:
    """Six entries per claim, in one chain."""
    last: Entry | None = None
    for place in range(n):
        shared = {"claim": name(place), "ticket": f"{name(place)}-1", "split": "confirm", "subject": subject(place)}
        bodies = (("state", {"claim": name(place), "digest": "d", "statement": f"claim {place}"}),
                  ("lock", {"claim": name(place), "digest": "l"}), ("ticket", {**shared, "data": f"data {place // SHARING}"}),
                  ("data", {**shared, "digest": f"data {place // SHARING}", "clusters": clusters(place)}),
                  ("evidence", {"claim": name(place), "digest": "e", "reads": 1}),
                  ("verdict", {"claim": name(place), "digest": digest(verdict(place)),
                               "verdict": VERDICTS[place % 3]}))  # fmt: skip
        for kind, body in bodies:
            last = next_entry(last, kind, body, TIME)
            yield last


def verdict(place: int) -> dict[str, Any]:
    return {"claim": name(place), "decision": {"p": 0.01}, "rule_version": "1", "verdict": VERDICTS[place % 3]}


def name(place: int) -> str:
    return f"c-{place:010d}"


def subject(place: int) -> str:
    return digest(place)


def clusters(place: int) -> list[str]:
    return sorted(f"{place // SHARING:08d}-{number:07d}" for number in range(CLUSTERS))


def medians(run: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """(wall, CPU) milliseconds, medians over rounds. CPU is that of all threads: what a busy machine leaves alike."""
    wall, cpu = [], []
    for _ in range(rounds):
        start = time.process_time()
        wall.append(1e3 * timed(run))
        cpu.append(1e3 * (time.process_time() - start))
    return statistics.median(wall), statistics.median(cpu)


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
