"""Finding features: by the words of their explanations, by meaning, by token, and as a sorted and filtered table.

Made once from the shards of a set, in the folder of the set, each in a form that other tools read:

1. `features.parquet`: a row per feature with the numbers people sort by (`row` is its place in the set). Scores are those of
   its first explanation, one column `score_<scorer>` each; spreads are columns `spread_<basis>`.
2. `tokens.parquet`: (token, folded, role, value, row), sorted by token: a search reads the stretches it is in. Roles: *fires*
   (value: share of the feature's firings), *promotes*, *suppresses*. `folded`: without spaces around it, lower-cased.
3. `index.sqlite`: names and first texts by row, and a full-text index (FTS5) of all explanations, ranked by BM25.
4. `meaning.npy`: fp16 unit vectors of the explanations (`index_meaning`), compared one stretch at a time.
"""

import hashlib
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from assay.atlas.contexts_store import Shard
from assay.atlas.database import QUIET, interrupts
from assay.errors import StoreError, UsageError, bad_argument
from assay.files import write_file

ROLES = {"fires": "top_tokens", "promotes": "promoted", "suppresses": "suppressed"}
FEATURES, TOKENS, INDEX, MEANING, COUNTS = "features.parquet", "tokens.parquet", "index.sqlite", "meaning.npy", "counts.json"
TEXTS = "CREATE VIRTUAL TABLE texts USING fts5(body, content='', tokenize='unicode61')"
STRETCH = 32_768  # rows of vectors compared at a time
ENCODED = 4096  # texts per call of the encoder, which puts those of one length together
SORT_MEMORY = "1GB"
PLAIN = {"row": "UINTEGER", "name": "VARCHAR", "unit": "BIGINT", "density": "DOUBLE", "largest": "DOUBLE",
         "fired": "BIGINT", "contexts": "UINTEGER", "explained": "BOOLEAN", "explainer": "VARCHAR", "text": "VARCHAR",
         "why_not": "VARCHAR"}  # fmt: skip
Report = Callable[[int], Any]
Encode = Callable[[Sequence[str]], NDArray[np.floating[Any]]]


def shard_paths(folder: Path, features: int, shard: int) -> list[Path]:
    """The shards of a set, in order."""
    return [folder / f"{number:06d}.safetensors" for number in range(-(-features // shard))]


# making -------------------------------------------------------------------------------------------


def build(folder: Path, set_id: str, features: int, shard: int, report: Report) -> None:
    """Make index.sqlite, features.parquet, tokens.parquet and counts.json. Raises UsageError for two features of one name."""
    for name in (INDEX, FEATURES, TOKENS):
        (folder / name).unlink(missing_ok=True)
    spool, extra, counts = folder / "spool.ndjson", set(), Counter()
    with closing(sqlite3.connect(folder / INDEX)) as db, spool.open("w", encoding="utf-8") as lines:
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF",
                          "CREATE TABLE features (row INTEGER PRIMARY KEY, name TEXT, said TEXT, body TEXT, texts TEXT)",
                          TEXTS):  # fmt: skip
            db.execute(statement)
        row = 0
        for path in shard_paths(folder, features, shard):
            opened = Shard(path)
            each = zip(opened.records(), opened.n_windows(), strict=True)
            held = [_columns(number, record, n) for number, (record, n) in enumerate(each, row)]
            for columns, record, texts in held:
                extra |= set(columns) - set(PLAIN)
                _count(counts, columns)
                body = json.dumps(columns)
                lines.write(f"{body[:-1]}, {json.dumps(record)[1:]}\n")
                db.execute("INSERT INTO features VALUES (?, ?, ?, ?, ?)",
                           (columns["row"], columns["name"], columns["text"], body, texts))  # fmt: skip
                if texts:
                    db.execute("INSERT INTO texts (rowid, body) VALUES (?, ?)", (columns["row"], texts))
            row += len(held)
            db.commit()
            report(len(held))
        # what is said of ten neighbours is read from the index alone: on a cold disk every further place costs milliseconds
        db.execute("CREATE INDEX features_name ON features (name, said)")
        if twice := db.execute("SELECT name FROM features GROUP BY name HAVING count(*) > 1 LIMIT 3").fetchall():
            raise bad_argument("name", ", ".join(name for (name,) in twice), f"names that no other feature of set {set_id} has")
        db.execute("INSERT INTO texts (texts) VALUES ('optimize')")
        db.commit()
    _write_tables(folder, spool, sorted(extra))
    spool.unlink()
    write_file(folder / COUNTS, json.dumps(counts).encode())


def _columns(row: int, record: Mapping[str, Any], contexts: int) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Columns of one feature, its tokens by role, and all texts about it."""
    first = record["explanations"][0] if record["explanations"] else {"text": "", "explainer": ""}
    columns = {"row": row, "name": record["name"], "unit": record["index"], "contexts": contexts,
               **{name: record[name] for name in ("density", "largest", "fired", "why_not")},
               "explained": bool(first["text"]), "explainer": first["explainer"], "text": first["text"]}  # fmt: skip
    scores = {f"score_{each['scorer']}": each["value"] for each in record["scores"] if each["explainer"] == first["explainer"]}
    spreads = {f"spread_{basis}": value for basis, value in record["spread"].items()}
    tokens = {role: record[key] for role, key in ROLES.items()}
    return {**columns, **scores, **spreads}, tokens, " ".join(each["text"] for each in record["explanations"])


def _count(counts: Counter[str], columns: Mapping[str, Any]) -> None:
    counts.update(features=1, active=int(columns["fired"] > 0), explained=int(columns["explained"]))
    if columns["why_not"]:
        counts[f"why_not: {columns['why_not']}"] += 1


def counts_of(folder: Path) -> dict[str, int]:
    """Counts of a set: features, active, explained, and "why_not: REASON"."""
    return json.loads((folder / COUNTS).read_text())


def _write_tables(folder: Path, spool: Path, extra: Sequence[str]) -> None:
    kinds = {**PLAIN, **dict.fromkeys(extra, "DOUBLE")}
    pairs = dict.fromkeys(ROLES, "JSON[][]")
    columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in kinds.items())
    given = "{" + ", ".join(f"{_text(name)}: {_text(kind)}" for name, kind in {**kinds, **pairs}.items()) + "}"
    rows = f"read_json({_text(str(spool))}, format='newline_delimited', columns={given}, maximum_object_size=100000000)"
    settings = {"threads": 1, "memory_limit": SORT_MEMORY, "temp_directory": str(folder / "sorting"),
                "preserve_insertion_order": False}  # fmt: skip
    with interrupts(), closing(duckdb.connect(config=settings)) as db:
        db.execute(QUIET)
        names = ", ".join(_quoted(name) for name in kinds)
        if spool.stat().st_size:
            db.execute(f"COPY (SELECT {names} FROM {rows} ORDER BY row) TO {_text(str(folder / FEATURES))} (FORMAT parquet,"
                       " COMPRESSION zstd)")  # fmt: skip
        else:
            db.execute(f"CREATE TABLE none ({columns})")
            db.execute(f"COPY none TO {_text(str(folder / FEATURES))} (FORMAT parquet)")
        parts = " UNION ALL ".join(f"SELECT row, '{role}' AS role, unnest({role}) AS pair FROM {rows}" for role in ROLES)
        parts = parts if spool.stat().st_size else "SELECT 0::UINTEGER AS row, '' AS role, NULL::JSON[] AS pair WHERE false"
        db.execute("COPY (SELECT pair[1]->>'$' AS token, lower(trim(token)) AS folded, role, CAST(pair[2] AS DOUBLE) AS value,"
                   f" row FROM ({parts}) ORDER BY folded, role, value DESC, row) TO {_text(str(folder / TOKENS))}"
                   " (FORMAT parquet, COMPRESSION zstd)")  # fmt: skip


def parquet(folder: Path, name: str) -> str:
    """A file of a set as a table in a query. Raises FileNotFoundError where it is gone."""
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(path)
    return f"read_parquet({_text(str(path))})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


# by words -----------------------------------------------------------------------------------------


class Index:
    """The names and texts of one set, open for reading; close it after use."""

    def __init__(self, folder: Path) -> None:
        path = folder / INDEX
        if not path.is_file():
            raise FileNotFoundError(path)
        self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)

    def close(self) -> None:
        self._db.close()

    def row(self, name: str) -> int | None:
        """The place of a feature in the set."""
        found = self._db.execute("SELECT row FROM features WHERE name = ?", [name]).fetchone()
        return None if found is None else found[0]

    def rows(self, names: Iterable[str]) -> dict[str, int]:
        """Places of features by name; unknown ones are left out."""
        query = "SELECT name, row FROM features WHERE name IN (SELECT value FROM json_each(?))"
        return dict(self._db.execute(query, [json.dumps(list(names))]).fetchall())

    def columns(self, row: int) -> dict[str, Any]:
        """The columns of a feature."""
        found = self._db.execute("SELECT body FROM features WHERE row = ?", [row]).fetchone()
        if found is None:
            raise bad_argument("row", row, "a row of the set")
        return json.loads(found[0])

    def first_texts(self, names: Sequence[str]) -> dict[str, str]:
        """The first text about each of some features; unknown ones are left out."""
        query, given = "SELECT name, {} FROM features WHERE name IN (SELECT value FROM json_each(?))", [json.dumps(names)]
        try:
            return dict(self._db.execute(query.format("said"), given).fetchall())
        except sqlite3.OperationalError:  # a set of an earlier version
            return dict(self._db.execute(query.format("json_extract(body, '$.text')"), given).fetchall())

    def texts(self) -> Generator[tuple[str, str], None, None]:
        """(name, all explanations) of every feature, in order."""
        yield from self._db.execute("SELECT name, texts FROM features ORDER BY row")

    def like(self, name: str, limit: int = 5) -> list[str]:
        """Names that begin as this one does, or the first ones."""
        query = "SELECT name FROM features WHERE name >= ? ORDER BY name LIMIT ?"
        rows = self._db.execute(query, [name, limit]).fetchall()
        return [each for (each,) in rows or self._db.execute(query, ["", limit]).fetchall()]

    def match(self, query: str, limit: int = -1) -> list[tuple[int, float]]:
        """(row, relevance) of features whose explanations hold all words of the query, best first."""
        rows = self._db.execute("SELECT rowid, -rank FROM texts WHERE texts MATCH ? ORDER BY rank LIMIT ?",
                                [words_query(query), limit])  # fmt: skip
        return rows.fetchall()

    def matching(self, query: str) -> list[int]:
        """Rows of all features that `match` would give, in no order."""
        return [row for (row,) in self._db.execute("SELECT rowid FROM texts WHERE texts MATCH ?", [words_query(query)])]


def words_query(query: str) -> str:
    """A query in words as FTS5 reads it: all words, "phrases in quotes", a word with * for what begins so.

    Raises UsageError for one without letters or digits.
    """
    parts = [phrase or word for phrase, word in re.findall(r'"([^"]*)"|([^\s"]+)', query.replace("\0", " "))]
    parts = [part for part in parts if any(each.isalnum() for each in part)]
    if not parts:
        raise bad_argument("query", query, "words", "Signs are found as tokens: assay atlas find --token TOKEN")
    return " ".join(f'"{part.rstrip("*")}"' + "*" * part.endswith("*") for part in parts)


def holding(query: str, texts: Sequence[str]) -> list[int]:
    """Which of some texts hold all words of a query, by the rules of `words_query`."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(TEXTS)
        db.executemany("INSERT INTO texts (rowid, body) VALUES (?, ?)", enumerate(texts))
        found = db.execute("SELECT rowid FROM texts WHERE texts MATCH ? ORDER BY rowid", [words_query(query)])
        return [place for (place,) in found]


# as a table ---------------------------------------------------------------------------------------


def columns_of(db: duckdb.DuckDBPyConnection, folder: Path) -> dict[str, str]:
    """Columns of features.parquet and their kinds."""
    rows = db.execute(f"DESCRIBE SELECT * FROM {parquet(folder, FEATURES)}").fetchall()
    return {row[0]: row[1] for row in rows}


def chosen_rows(
    db: duckdb.DuckDBPyConnection,
    folder: Path,
    sort: str,
    offset: int,
    limit: int,
    filters: Mapping[str, Any],
    among: NDArray[np.integer[Any]] | None = None,
    outside: NDArray[np.integer[Any]] | None = None,
) -> tuple[list[int], int]:
    """Rows of a part of the sorted table, and how many there are of this choice.

    `sort`: a column, with - before it for largest first. `filters`: column -> a value, or (low, high) with None for no bound.
    `among`, `outside`: rows that are allowed, or not. Raises UsageError for what is no column.
    """
    known, descends, column = columns_of(db, folder), sort.startswith("-"), sort.removeprefix("-")
    for name in (column, *filters):
        if name not in known:
            raise bad_argument("column", name, ", ".join(known))
    wheres, given = _wheres(filters)
    for word, rows in (("IN", among), ("NOT IN", outside)):
        if rows is not None:
            wheres.append(f"row {word} (SELECT unnest(?::UINTEGER[]))")
            given.append(rows.tolist())
    chosen = f"FROM {parquet(folder, FEATURES)} WHERE {' AND '.join(wheres) or 'true'}"
    total = db.execute(f"SELECT count(*) {chosen}", given).fetchone()
    order = f"{_quoted(column)} {'DESC' if descends else 'ASC'} NULLS LAST, row"
    rows = db.execute(f"SELECT row {chosen} ORDER BY {order} LIMIT {int(limit)} OFFSET {int(offset)}", given).fetchall()
    return [row for (row,) in rows], int(total[0]) if total else 0


def _wheres(filters: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    wheres, given = [], []
    for name, wanted in filters.items():
        low, high = wanted if isinstance(wanted, tuple | list) else (wanted, wanted)
        exact = not isinstance(wanted, tuple | list)
        for sign, bound in [("=", low)] if exact else [(">=", low), ("<=", high)]:
            if bound is not None:
                wheres.append(f"{_quoted(name)} {sign} ?")
                given.append(bound)
    return wheres, given


def rows_by_token(
    db: duckdb.DuckDBPyConnection, folder: Path, token: str, role: str, exact: bool, limit: int,
    among: Collection[int] | None = None,
) -> list[tuple[int, float, str]]:  # fmt: skip
    """(row, value, token) of features that fire on, promote or suppress a token, largest size of value first.

    `among`: rows that are allowed.
    """
    if role not in ROLES:
        raise bad_argument("role", role, ", ".join(ROLES))
    where = "folded = lower(trim(?)) AND token = ?" if exact else "folded = lower(trim(?))"
    allowed = "" if among is None else " AND row IN (SELECT unnest(?::UINTEGER[]))"
    return db.execute(
        f"SELECT row, arg_max(value, abs(value)), arg_max(token, abs(value)) FROM {parquet(folder, TOKENS)} WHERE {where}"
        f" AND role = ?{allowed} GROUP BY row ORDER BY max(abs(value)) DESC, row LIMIT {int(limit)}",
        [token, *[token] * exact, role, *([] if among is None else [sorted(among)])],
    ).fetchall()


# by meaning ---------------------------------------------------------------------------------------


def index_meaning(
    folder: Path, texts: Iterator[str], features: int, encode: Encode, encoder: str, report: Report | None = None
) -> None:
    """Vectors of the texts of all features, in order ("" for none: a row of zeros), as fp16 in `meaning.npy`.

    Goes on after the last finished stretch of a killed run over the same texts. Equal texts are encoded once per stretch.
    """
    report = report or (lambda _: None)
    part, state = folder / "meaning.part.npy", folder / "meaning.part.json"
    held, hashed, done = None, hashlib.sha256(encoder.encode()), 0
    kept = _state(state, part, features)
    for batch in _batches(texts, STRETCH // 8):
        hashed.update(json.dumps(batch).encode())
        key, end = hashed.hexdigest(), done + len(batch)
        if kept.get(str(end)) != key:
            vectors = _encoded(batch, encode)
            if held is None:
                held = _memmap(part, kept, features, vectors.shape[1])
            held[done:end] = vectors
            held.flush()
            kept[str(end)] = key
            write_file(state, json.dumps(kept).encode())
        done = end
        report(len(batch))
    if done != features:
        raise bad_argument("texts", f"{done} of them", f"one for each of {features} features")
    if features:
        part.rename(folder / MEANING)
        write_file(folder / "meaning.json", json.dumps({"encoder": encoder, "texts": hashed.hexdigest()}).encode())
    state.unlink(missing_ok=True)


def _state(path: Path, part: Path, features: int) -> dict[str, str]:
    """Stretches that a killed run finished; none where its vectors are not those of so many features."""
    try:
        rows = np.load(part, mmap_mode="r", allow_pickle=False).shape[0]
        return dict(json.loads(path.read_text())) if rows == features else {}
    except (OSError, ValueError, TypeError):
        return {}


def _memmap(part: Path, kept: dict[str, str], features: int, width: int) -> Any:
    if kept:
        held = np.load(part, mmap_mode="r+", allow_pickle=False)
        if held.shape != (features, width):
            raise bad_argument("encode", f"vectors of {width} numbers", f"{held.shape[1]}, as {part} has from the same encoder",
                               f"Remove {part} and begin again.")  # fmt: skip
        return held
    return np.lib.format.open_memmap(part, "w+", np.float16, (features, width))


def _encoded(batch: Sequence[str], encode: Encode) -> NDArray[np.float16]:
    different = sorted(set(batch) - {""}, key=lambda text: (len(text), text))
    parts = [np.asarray(encode(different[at : at + ENCODED]), np.float32) for at in range(0, len(different), ENCODED)]
    place = {text: number for number, text in enumerate(different)}
    width = parts[0].shape[1] if parts else np.asarray(encode(["none"])).shape[1]
    table = np.concatenate([*parts, np.zeros((1, width), np.float32)])
    return table[[place.get(text, -1) for text in batch]].astype(np.float16)


def _batches(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def meanings(folder: Path) -> NDArray[np.float16]:
    """Vectors of the explanations of a set, on disk. Raises UsageError where there is no index, StoreError for a broken one."""
    try:
        return np.load(folder / MEANING, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UsageError(f"set in {folder}: has no index of meanings yet. Make it: assay atlas index") from error
    except ValueError as error:
        raise StoreError(f"{folder / MEANING}: is not readable ({error}). Make it again: assay atlas index") from error


def nearest(
    folder: Path, vector: NDArray[np.floating[Any]], limit: int, among: Collection[int] | None = None
) -> list[tuple[int, float]]:  # fmt: skip
    """(row, cosine) of the features whose explanations mean the most similar; `among`: rows that are allowed.

    Raises UsageError where there is no index.
    """
    table = meanings(folder)
    wanted = np.asarray(vector, np.float32).reshape(-1)
    if wanted.shape[0] != table.shape[1]:
        raise bad_argument("vector", f"{len(wanted)} numbers", f"{table.shape[1]}, as the index of this set has")
    found = np.concatenate([table[at : at + STRETCH].astype(np.float32) @ wanted for at in range(0, len(table), STRETCH)])
    if among is not None:
        outside = np.ones(len(found), bool)
        outside[sorted(among)] = False
        found[outside] = -np.inf
    best = np.argpartition(-found, min(limit, len(found)) - 1)[:limit]
    best = best[np.lexsort((best, -found[best]))]
    return [(int(row), float(found[row])) for row in best if np.isfinite(found[row]) and found[row] != 0]


def plane(folder: Path, most: int) -> tuple[list[int], NDArray[np.float64]]:
    """Rows of up to so many features that have an explanation, spread evenly over the set, and their places (row, 2) on the
    plane in which their meanings differ most: the first two principal components. Raises as `meanings` does."""
    table = meanings(folder)
    rows = np.unique(np.linspace(0, max(0, len(table) - 1), min(most, len(table))).round().astype(np.int64))
    vectors = np.asarray(table[rows], np.float64)
    rows, vectors = rows[vectors.any(1)], vectors[vectors.any(1)]
    if len(rows) < 3 or vectors.shape[1] < 2:
        return [], np.zeros((0, 2))
    centred = vectors - vectors.mean(0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    return rows.tolist(), centred @ (axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]]))

