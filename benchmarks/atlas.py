"""Pages and searches of an atlas with many mapped features: how long, how much memory, how many bytes.

    python benchmarks/atlas.py                                          5,000 features, in a temporary folder
    python benchmarks/atlas.py --features 1000000 --folder DIR          about 13 GB, removed at the end; --keep to leave them
    python benchmarks/atlas.py --app ATLAS                              the app's whole pages of features that were mapped

1. Another process writes the features: rows of real shape (records with histogram, tokens, neighbours, an explanation with
   its rule and five scores; contexts of 25 tokens with three activations; pieces drawn by Zipf's law from 49,152), a claim for
   every fifth feature and an effect on a task for every tenth. The texts are made up; the code that writes and reads them is
   the package's.
2. Pages of random features are asked for by name: as they come, the same ones again, and *cold*: the kernel is first told to
   drop the files of the atlas from its cache (posix_fadvise), so that all of the page is read from the disk.
   With --app: the documents the app makes of random features of the newest set, and of all that have a claim, with its card.
3. Searches, warm. Wall time beside the CPU time of this process; memory is what it holds beyond imports and the first page.
"""

import argparse
import gc
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from assay.atlas.contexts_store import Block
from assay.atlas.database import start_engine
from assay.atlas.mapped import FeatureRecord, Mapped, MappedWriter, SetRecord, histogram_of, quantiles_of
from assay.atlas.mapped_records import record_text
from assay.atlas.store import Atlas
from assay.cli.main import COLLECTED
from assay.explain.records import WHY, Explanation, Score

VOCABULARY, DOCUMENTS, ACTIVE, WIDTH, SHARD, POOL = 49_152, 20_000, 3, 384, 1024, 4
SCORERS = ("detection", "fuzzing", "simulation", "embedding", "intruder")
WORDS = ("after", "before", "number", "bracket", "name", "city", "verb", "question", "quoted", "line", "start", "capital",
         "code", "month", "year", "plural", "negation", "comma", "url", "title", "river", "price", "colour",
         "animal")  # fmt: skip
VERDICTS = ("supported", "refuted", "inconclusive")


def main() -> int:
    """Build, time, print."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--features", type=int, default=5_000)
    options.add_argument("--contexts", type=int, default=100)
    options.add_argument("--tokens", type=int, default=25)
    options.add_argument("--pages", type=int, default=200)
    options.add_argument("--folder", type=Path, help="Where; default: a temporary folder.")
    options.add_argument("--keep", action="store_true", help="Do not remove the atlas.")
    options.add_argument("--kept", type=Path, help="The folder an earlier run kept; one that was killed is finished first.")
    options.add_argument("--app", type=Path, metavar="ATLAS", help="Time the app's pages of a real map; nothing is written.")
    given = options.parse_args()
    if given.app is not None:
        app_pages(given.app, given.pages)
        return 0
    folder = given.kept or Path(tempfile.mkdtemp(dir=given.folder))
    out(f"in {folder}")
    try:
        place = folder / "atlas"
        shape = (given.features, given.contexts, given.tokens)
        seconds = 0.0 if Mapped(place).sets() else timed(lambda: in_another_process(build, place, *shape))
        out(f"{shape[0]:,} features x {shape[1]} contexts x {shape[2]} tokens, written in {seconds:.0f} s\n")
        for kind, size in sizes(place).items():
            out(f"  {kind}: {size / 1e6:,.0f} MB")
        read(place, given)
    finally:
        if not given.keep:
            shutil.rmtree(folder)
    return 0


def read(place: Path, given: argparse.Namespace) -> None:
    """Times of pages and searches."""
    gc.set_threshold(COLLECTED, 10, 10)  # as every command of Assay does, `assay app` too
    mapped, draw = Mapped(place), random.Random(1)
    names = [name(draw.randrange(given.features)) for _ in range(2 * given.pages)]
    start_engine()  # as the app does when it starts
    mapped.page("", names[0])
    before = memory()
    out("\n| one page, ms | p50 | p95 | max | CPU p50 | CPU p95 |\n|---|---|---|---|---|---|")
    warm = [both(lambda each=each: mapped.page("", each)) for each in names[: given.pages]]
    again = [both(lambda each=each: mapped.page("", each)) for each in names[: given.pages]]
    cold = [after_dropping(place, lambda each=each: mapped.page("", each)) for each in names[given.pages :]]
    out(line("as they come", warm) + "\n" + line("the same ones again", again) + "\n" + line("cold", cold))
    size = len(json.dumps(mapped.page("", names[0]).to_json()))
    out(f"\nA page as JSON: {size / 1e3:.0f} kB. Memory grew by {(memory() - before) / 1e3:.0f} MB.\n")
    out("| search, ms | p50 | p95 | max | CPU p50 | CPU p95 | found |\n|---|---|---|---|---|---|---|")
    for what, run in searches(mapped, given.features).items():
        found = run()
        out(line(what, [both(run) for _ in range(9)]) + f" {len(found)} |")
    out(f"\nMemory grew by {(memory() - before) / 1e3:.0f} MB in all.")


def app_pages(place: Path, n: int) -> None:
    """Times of the app's documents of features: random ones, then all of the first thousand claimed ones."""
    from assay.app.documents import make_document
    from assay.app.workspace import Workspace

    gc.set_threshold(COLLECTED, 10, 10)
    workspace, mapped = Workspace(place), Mapped(place)
    one = mapped.set()
    names = [each.name for each in mapped.records(one.id)]
    claimed = [each.claim for each in Atlas(place).listing(limit=1000)[0]]
    subjects = {Atlas(place).claim(each).subject["sites"][0] for each in claimed}
    groups = {"random features": random.Random(1).sample(names, min(n, len(names))),
              "with a claim": [each for each in names if each in subjects]}  # fmt: skip
    make_document(workspace, "feature", {"set": one.id, "feature": names[0]})
    out(f"{len(names):,} features of {one.model}\n\n| ms | p50 | p95 | max | CPU p50 | CPU p95 |\n|---|---|---|---|---|---|")
    for what, chosen in groups.items():
        made = [both(lambda each=each: make_document(workspace, "feature", {"set": one.id, "feature": each}))
                for each in chosen]  # fmt: skip
        if made:
            out(line(f"{what} ({len(made)})", made))


def searches(mapped: Mapped, n: int) -> dict[str, Callable[[], Any]]:
    """What people ask for."""
    vector = np.random.default_rng(7).standard_normal(WIDTH)
    encode = lambda texts: np.stack([vector / np.linalg.norm(vector)] * len(texts))  # noqa: E731
    middle = name(n // 2)
    return {
        "table: the densest 50": lambda: mapped.rows(sort="-density")[0],
        "table: 50 from the middle, by score, active": lambda: mapped.rows(
            sort="-score_detection", offset=n // 2, filters={"fired": (1, None)})[0],
        "table: refuted, largest first": lambda: mapped.rows(sort="-largest", filters={"verdict": "refuted"})[0],
        "words: a rare one": lambda: mapped.find_text(f"w{n // 3}"),
        "words: two common ones": lambda: mapped.find_text("bracket city"),
        "words: one in every eighth text": lambda: mapped.find_text("bracket"),
        "meaning": lambda: mapped.find_similar("x", encode=encode),
        "token: a rare one": lambda: mapped.by_token(" w40000"),
        "token: the most common one": lambda: mapped.by_token(" w0"),
        "task effect": lambda: mapped.by_task("task 4"),
        "neighbours": lambda: mapped.neighbours("", middle),
        "summary": mapped.summary,
    }  # fmt: skip


# rows of real shape -------------------------------------------------------------------------------


def build(place: Path, n: int, contexts: int, tokens: int) -> None:
    """A whole atlas, a shard at a time."""
    atlas = Atlas(place)
    claims(atlas, n)
    record = SetRecord("bench", "0" * 64, "latent", "resid_post.12", "made up", "bench-dictionary", "1" * 64, units=n)
    shape = json.loads(record_text(one_record()))
    with MappedWriter(atlas, record, SHARD) as writer:
        for start in range(writer.done, n, SHARD):
            rows = range(start, min(start + SHARD, n))
            draw = np.random.default_rng(start)
            writer.add_block(block(shape, rows, contexts, tokens, n, draw), links(rows, draw))
        writer.finish({"shares": {"active_latents": 0.4}})
    Mapped(atlas).index_meaning(encode=unit_vectors, encoder="random")


def one_record() -> FeatureRecord:
    """A record with every field as full as a real one."""
    values = np.random.default_rng(0).lognormal(0, 1, 500)
    rule = {"type": "prefix", "any": [[{"is": "token", "texts": [" w1", " w2"]}, {"is": "after", "texts": ["("]}]], "not": []}
    explanation = Explanation("x", "x", "lexical/1", rule, {"rule": 40.0, "with": 1200.5, "without": 3100.25})
    scores = [Score("x", "lexical/1", scorer, 0.7, 0.5, 40, 0, 0.6, 0.8, 0.51, 0.5) for scorer in SCORERS]
    pairs = tuple((f" w{rank}", 1.5 - rank / 10) for rank in range(10))
    return FeatureRecord("x", 0, 0.01, 9.0, 500, histogram_of(values), quantiles_of(values), pairs, pairs,
                         {"residual": 310.2, "neurons": 41.0}, pairs, pairs, pairs, (explanation,), tuple(scores))  # fmt: skip


def block(shape: dict[str, Any], rows: range, contexts: int, tokens: int, n: int, draw: np.random.Generator) -> Block:
    """One shard. Contexts are drawn for `POOL` shards and then come again; records are drawn for each feature."""
    columns, favourite, used, documents = drawn(len(rows), contexts, tokens, rows.start // SHARD % POOL)
    texts = [record(shape, row, favourite[place], n, draw) for place, row in enumerate(rows)]
    return Block(texts, columns, used, documents)


@cache
def drawn(n: int, contexts: int, tokens: int, seed: int) -> tuple[dict[str, Any], list[list[int]], list[Any], list[str]]:
    """Columns of the contexts of n features, the ten favourite pieces of each, the pieces and the documents they are from."""
    windows, draw = n * contexts, np.random.default_rng(seed)
    pieces = np.minimum(draw.zipf(1.2, windows * tokens) - 1, VOCABULARY - 1)
    favourite = np.minimum(draw.zipf(1.2, (n, 10)) - 1, VOCABULARY - 1)
    at = np.full(windows, tokens * 2 // 3)
    pieces[np.arange(windows) * tokens + at] = favourite[np.repeat(np.arange(n), contexts), draw.integers(0, 3, windows)]
    used, held = np.unique(pieces, return_inverse=True)
    documents = draw.choice(DOCUMENTS, 2_000, replace=False)
    places = np.sort(draw.permuted(np.tile(np.arange(tokens), (windows, 1)), axis=1)[:, :ACTIVE], axis=1)
    columns = {
        "window_start": np.arange(n + 1, dtype=np.int64) * contexts,
        "token_start": (np.arange(windows + 1) * tokens).astype(np.uint32),
        "value_start": (np.arange(windows + 1) * ACTIVE).astype(np.uint32),
        "at": at.astype(np.uint16), "position": draw.integers(0, 128, windows).astype(np.uint32),
        "document": draw.integers(0, len(documents), windows).astype(np.uint32),
        "why": draw.integers(0, len(WHY), windows).astype(np.uint8), "tokens": held.astype(np.uint16),
        "value_at": places.reshape(-1).astype(np.uint16), "values": draw.lognormal(0, 1, windows * ACTIVE).astype(np.float32),
    }  # fmt: skip
    pairs = [(int(token), f" w{token}") for token in used]
    return columns, favourite.tolist(), pairs, [f"document {number}" for number in documents]


def record(shape: dict[str, Any], row: int, favourite: list[int], n: int, draw: np.random.Generator) -> str:
    """The JSON of one feature."""
    words = [WORDS[place] for place in draw.integers(0, len(WORDS), 3)]
    numbers = draw.random(16).round(6).tolist()
    top = [[f" w{token}", numbers[place] / (place + 1)] for place, token in enumerate(favourite)]
    others = [[name(int(other)), numbers[place]] for place, other in enumerate(draw.integers(0, n, 10))]
    text = f"fires on ' w{favourite[0]}' {words[0]} {words[1]}; also on ' w{row}' {words[2]}"
    return json.dumps({
        **shape, "name": name(row), "index": row, "density": numbers[10] / 20, "largest": 20 * numbers[11],
        "fired": int(1e4 * numbers[12]), "top_tokens": top, "promoted": top[::-1], "suppressed": [[t, -v] for t, v in top],
        "neighbours": others, "coactive": others[::-1], "explanations": [{**shape["explanations"][0], "feature": name(row),
        "text": text}], "scores": [{**score, "feature": name(row), "value": numbers[place]} for place, score in
        enumerate(shape["scores"])], "spread": {"residual": 500 * numbers[13], "neurons": 60 * numbers[14]},
    })  # fmt: skip


def links(rows: range, draw: np.random.Generator) -> list[tuple[str, str, str, float | None, str]]:
    """A claim for every fifth feature, an effect on one of eight tasks for every tenth."""
    effects = [("effect", name(row), f"task {row % 8}", float(value), json.dumps({"task": f"task {row % 8}", "value": value}))
               for row, value in zip(rows[::10], draw.normal(0, 1, len(rows[::10])).tolist(), strict=True)]  # fmt: skip
    return [*(("claim", name(row), f"c{row}", None, "{}") for row in rows if row % 5 == 0), *effects]


def claims(atlas: Atlas, n: int) -> None:
    """The claims of every fifth feature, with verdicts, in bulk."""
    with atlas.writing() as db:
        statement = "'Feature ' || i || ' is explained by its rule.'"
        db.execute(f"INSERT OR IGNORE INTO claims SELECT 'c' || i, 1, NULL, 'explains', '2026-01-01', {statement}, '{{}}'"
                   " FROM range(0, ?, 5) r(i)", [n])  # fmt: skip
        db.execute("INSERT OR IGNORE INTO standing SELECT 'c' || i, list_extract(?::VARCHAR[], 1 + (i // 5) % 3), 0.01"
                   " FROM range(0, ?, 5) r(i)", [list(VERDICTS), n])  # fmt: skip


def unit_vectors(texts: Any) -> Any:
    """Random unit vectors, in place of an encoder."""
    found = np.random.default_rng(len(texts[0])).standard_normal((len(texts), WIDTH), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def name(row: int) -> str:
    return f"latent.bench-dictionary.{row}"


# measuring ----------------------------------------------------------------------------------------


def in_another_process(run: Callable[..., Any], *given: Any) -> None:
    """So that its memory is not counted here."""
    process = multiprocessing.get_context("spawn").Process(target=run, args=given)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def timed(run: Callable[[], Any]) -> float:
    """Wall time of a run."""
    return both(run)[0]


def both(run: Callable[[], Any]) -> tuple[float, float]:
    """Wall time and CPU time of a run."""
    start, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - cpu


def after_dropping(place: Path, run: Callable[[], Any]) -> tuple[float, float]:
    """Times of a run that finds nothing of the atlas in the cache of the kernel."""
    for path in place.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
    return both(run)


def sizes(place: Path) -> dict[str, int]:
    """Bytes by kind of file."""
    found: dict[str, int] = {}
    for path in place.rglob("*"):
        if path.is_file():
            kind = "records and contexts" if path.suffix == ".safetensors" else path.name
            found[kind] = found.get(kind, 0) + path.stat().st_size
    return dict(sorted(found.items(), key=lambda each: -each[1])) | {"in all": sum(found.values())}


def memory() -> float:
    """Memory of this process that is its own and no map of a file, in kB."""
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return float(status["RssAnon"].split()[0])


def line(what: str, seconds: list[tuple[float, float]]) -> str:
    """A row of a table, in milliseconds: median, 95th percentile and largest of wall times, then of CPU times."""
    wall, cpu = ([1000 * each for each in sorted(column)] for column in zip(*seconds, strict=True))
    late = min(len(wall) - 1, int(0.95 * len(wall)))
    numbers = (statistics.median(wall), wall[late], wall[-1], statistics.median(cpu), cpu[late])
    return f"| {what} | {' | '.join(f'{number:.1f}' for number in numbers)} |"


def out(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
