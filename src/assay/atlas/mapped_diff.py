"""What changed between two sets of mapped features: base and fine-tuned, one seed and another, of one atlas or of two.

1. *Pairs*: by name, where both sets are of the same units (one dictionary on two models, neurons of two checkpoints); by what
   they fire on, where units of two dictionaries share no names: cosine of the features' shares of firings by token, and each
   must be the other's nearest; or as given (matched by decoder rows or by firing together, see `assay.mapping.compare`).
2. Of each pair: density of both, and whether one is more than `FACTOR` times the other; overlap of what they fire on,
   sum of min / sum of max of the shares by token, and whether it is below `OVERLAP`; whether the explanation reads
   otherwise; verdicts of the claims about them, and whether they differ.
3. A pair without any of these is *same*, any other *changed*; features without a partner are *only in* their set.

Shares by token are of the tokens that each record keeps; they say nothing of rarer ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from duckdb import DuckDBPyConnection as Connection

from assay.atlas.mapped_records import SetRecord
from assay.atlas.search import FEATURES, TOKENS, parquet
from assay.errors import bad_argument
from assay.records import plain

HOW = ("name", "tokens", "given")
FACTOR, OVERLAP, NEAREST = 1.5, 0.5, 0.3  # density; tokens; smallest cosine of a pair matched by tokens
BLOCK = 2048  # features compared with all others at a time
SHOWN = 100
Pair = tuple[int, int, float]


@dataclass(frozen=True)
class Change:
    """A pair. `similarity`: what it was matched by, 1 for a name. `changes`: which of density, tokens, explanation, verdict."""

    a: str
    b: str
    similarity: float
    density: tuple[float, float]
    overlap: float | None
    text: tuple[str, str]
    verdicts: tuple[tuple[str, ...], tuple[str, ...]]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class MapDiff:
    """Two sets compared. `counts`: pairs, same, changed, only_a, only_b, and pairs by what changed. Lists are the first ones:
    `changed` those with most changes and least overlap, `only_a` and `only_b` (name, text) those that fire most."""

    a: SetRecord
    b: SetRecord
    how: str
    counts: Mapping[str, int]
    changed: tuple[Change, ...] = ()
    only_a: tuple[tuple[str, str], ...] = ()
    only_b: tuple[tuple[str, str], ...] = ()
    bars: Mapping[str, float] = field(default_factory=lambda: {"density": FACTOR, "overlap": OVERLAP, "nearest": NEAREST})

    def to_json(self) -> dict[str, Any]:
        """The machine-readable twin."""
        return {**plain(self), "a": {"id": self.a.id, **plain(self.a)}, "b": {"id": self.b.id, **plain(self.b)}}


@dataclass(frozen=True)
class Side:
    """One set to compare: its record, its folder, and verdicts of the claims about its features."""

    record: SetRecord
    folder: Path
    verdicts: Mapping[str, tuple[str, ...]]


def compare(db: Connection, a: Side, b: Side, how: str, given: Sequence[tuple[str, str, float]], limit: int) -> MapDiff:
    """Compare two sets. Raises UsageError for an unknown way, or names that are not there."""
    how = how or (("name" if _same_units(a.record, b.record) else "tokens") if not given else "given")
    if how not in HOW:
        raise bad_argument("how", how, ", ".join(HOW))
    if how == "name" and not _same_units(a.record, b.record):
        raise bad_argument("how", "name, of different units", "tokens, or pairs that are given",
                           "Equal names mean equal features only where the dictionary or the site is the same.")  # fmt: skip
    db.execute("CREATE OR REPLACE TEMP TABLE pairs (a UINTEGER, b UINTEGER, similarity DOUBLE)")
    if how == "name":
        db.execute(f"INSERT INTO pairs SELECT x.row, y.row, 1.0 FROM {parquet(a.folder, FEATURES)} x JOIN"
                   f" {parquet(b.folder, FEATURES)} y ON x.name = y.name")  # fmt: skip
    else:
        pairs = by_tokens(db, a.folder, b.folder) if how == "tokens" else _rows(db, a, b, given)
        columns = [list(column) for column in zip(*pairs, strict=True)] or [[], [], []]
        db.execute("INSERT INTO pairs SELECT unnest(?::UINTEGER[]), unnest(?::UINTEGER[]), unnest(?::DOUBLE[])", columns)
    return _diff(db, a, b, how, limit)


def _same_units(a: SetRecord, b: SetRecord) -> bool:
    same_dictionary = a.dictionary_digest == b.dictionary_digest
    return a.unit == b.unit and same_dictionary and (bool(a.dictionary_digest) or a.site == b.site)


def _rows(db: Connection, a: Side, b: Side, given: Sequence[tuple[str, str, float]]) -> list[Pair]:
    places = []
    for side, names in ((a, [each[0] for each in given]), (b, [each[1] for each in given])):
        query = f"SELECT name, row FROM {parquet(side.folder, FEATURES)} WHERE name IN (SELECT unnest(?::VARCHAR[]))"
        found = dict(db.execute(query, [names]).fetchall())
        if unknown := [name for name in names if name not in found]:
            raise bad_argument("pairs", ", ".join(unknown[:3]), f"names of features of set {side.record.id}")
        places.append([found[name] for name in names])
    return [(one, other, float(each[2])) for one, other, each in zip(*places, given, strict=True)]


def by_tokens(db: Connection, a: Path, b: Path, least: float = NEAREST) -> list[Pair]:
    """(row of a, row of b, cosine) of features that are each other's nearest by what they fire on, at least `least` near."""
    words: dict[str, int] = {}
    one, other = (_shares(db, folder, words) for folder in (a, b))
    width = len(words)
    for held in (one, other):
        held.resize((held.shape[0], max(width, 1)))
    forward, backward = _nearest(one, other), _nearest(other, one)
    return [(row, place, near) for row, (place, near) in enumerate(forward)
            if near >= least and backward[place][0] == row]  # fmt: skip


def _shares(db: Connection, folder: Path, words: dict[str, int]) -> Any:
    """Unit vectors of the shares of firings by token, one row per feature; `words` gets the columns."""
    count = db.execute(f"SELECT count(*) FROM {parquet(folder, FEATURES)}").fetchone()
    n = int(count[0]) if count else 0
    held = db.execute(f"SELECT row, token, value FROM {parquet(folder, TOKENS)} WHERE role = 'fires'").fetchall()
    columns = [words.setdefault(token, len(words)) for _, token, _ in held]
    parts = ([value for _, _, value in held], ([row for row, _, _ in held], columns))
    found = sp.csr_matrix(parts, shape=(n, max(len(words), 1)), dtype=np.float64)
    norms = np.sqrt(np.asarray(found.multiply(found).sum(1)).reshape(-1))
    return sp.csr_matrix(sp.diags(np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)) @ found)


def _nearest(one: Any, other: Any) -> list[tuple[int, float]]:
    """For each row the row of the other set with the largest cosine, the first of equal ones."""
    found: list[tuple[int, float]] = []
    for start in range(0, one.shape[0], BLOCK):
        near = sp.csr_matrix(one[start : start + BLOCK] @ other.T)
        for row in range(len(near.indptr) - 1):
            part = slice(near.indptr[row], near.indptr[row + 1])
            values, places = near.data[part], near.indices[part]
            best = values.max(initial=0.0)
            found.append((int(places[values == best].min()), float(best)) if best > 0 else (-1, 0.0))
    return found


def _diff(db: Connection, a: Side, b: Side, how: str, limit: int) -> MapDiff:
    """Counts and the first rows, from the pairs."""
    db.execute("CREATE OR REPLACE TEMP TABLE verdicts (side VARCHAR, name VARCHAR, verdicts VARCHAR)")
    for name, side in (("a", a), ("b", b)):
        if side.verdicts:
            db.execute("INSERT INTO verdicts SELECT ?, unnest(?::VARCHAR[]), unnest(?::VARCHAR[])",
                       [name, list(side.verdicts), [", ".join(each) for each in side.verdicts.values()]])  # fmt: skip
    db.execute(f"CREATE OR REPLACE TEMP TABLE compared AS {_compared(a.folder, b.folder)}")
    flags = ("density", "tokens", "explanation", "verdict")
    changes = " + ".join(f"{flag}_changed::INTEGER" for flag in flags)
    sums = ", ".join(f"coalesce(sum({flag}_changed::INTEGER), 0)" for flag in flags)
    row = db.execute(f"SELECT count(*), coalesce(sum(({changes} > 0)::INTEGER), 0), {sums} FROM compared").fetchone()
    pairs, changed, *each = (int(number) for number in row or (0,) * 6)
    only = {side: _only(db, folder, side, limit) for side, folder in (("a", a.folder), ("b", b.folder))}
    counts = {"pairs": pairs, "same": pairs - changed, "changed": changed, "only_a": only["a"][1], "only_b": only["b"][1],
              **dict(zip(flags, each, strict=True))}  # fmt: skip
    rows = db.execute(f"SELECT * FROM compared WHERE {changes} > 0 ORDER BY {changes} DESC, overlap NULLS LAST, a"
                      f" LIMIT {int(limit)}").fetchall()  # fmt: skip
    return MapDiff(a.record, b.record, how, counts, tuple(_change(row, flags) for row in rows), only["a"][0], only["b"][0])


def _compared(a: Path, b: Path) -> str:
    """A query with one row per pair: names, similarity, densities, overlap, texts, verdicts, and what changed."""
    fires = "SELECT p.a, p.b, t.token, t.value FROM pairs p JOIN {file} t ON t.row = p.{side} WHERE t.role = 'fires'"
    one, other = (fires.format(file=parquet(folder, TOKENS), side=side) for side, folder in (("a", a), ("b", b)))
    return f"""
        WITH shares AS (
            SELECT coalesce(x.a, y.a) AS a, coalesce(x.b, y.b) AS b, coalesce(x.value, 0) AS v, coalesce(y.value, 0) AS w
            FROM ({one}) x FULL OUTER JOIN ({other}) y ON x.a = y.a AND x.b = y.b AND x.token = y.token),
        in_common AS (SELECT a, b, sum(least(v, w)) / sum(greatest(v, w)) AS overlap FROM shares GROUP BY a, b),
        held AS (
            SELECT f.name AS a, g.name AS b, p.similarity, f.density AS density_a, g.density AS density_b, o.overlap,
                   f.text AS text_a, g.text AS text_b, coalesce(v.verdicts, '') AS verdicts_a,
                   coalesce(w.verdicts, '') AS verdicts_b
            FROM pairs p JOIN {parquet(a, FEATURES)} f ON f.row = p.a JOIN {parquet(b, FEATURES)} g ON g.row = p.b
            LEFT JOIN in_common o ON o.a = p.a AND o.b = p.b
            LEFT JOIN verdicts v ON v.side = 'a' AND v.name = f.name LEFT JOIN verdicts w ON w.side = 'b' AND w.name = g.name)
        SELECT *, greatest(density_a, density_b) > {FACTOR} * least(density_a, density_b) AS density_changed,
               coalesce(overlap < {OVERLAP}, false) AS tokens_changed, text_a <> text_b AS explanation_changed,
               verdicts_a <> verdicts_b AS verdict_changed FROM held
    """


def _only(db: Connection, folder: Path, side: str, limit: int) -> tuple[tuple[tuple[str, str], ...], int]:
    """The features of a set that are in no pair, those that fire most first, and how many there are."""
    where = f"FROM {parquet(folder, FEATURES)} WHERE row NOT IN (SELECT {side} FROM pairs)"
    count = db.execute(f"SELECT count(*) {where}").fetchone()
    rows = db.execute(f"SELECT name, text {where} ORDER BY density DESC, row LIMIT {int(limit)}").fetchall()
    return tuple(rows), int(count[0]) if count else 0


def _change(row: Sequence[Any], flags: Sequence[str]) -> Change:
    a, b, similarity, density_a, density_b, overlap, text_a, text_b, verdicts_a, verdicts_b, *changed = row
    verdicts = tuple(tuple(each.split(", ")) if each else () for each in (verdicts_a, verdicts_b))
    changes = tuple(flag for flag, is_so in zip(flags, changed, strict=True) if is_so)
    return Change(a, b, similarity, (density_a, density_b), overlap, (text_a, text_b), (verdicts[0], verdicts[1]), changes)
