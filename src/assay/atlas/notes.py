"""What is said of features after they were mapped, in `features/<set>/notes.sqlite`, which stays when a set is mapped again.

1. *Links*: a feature's claims, circuits and effects on tasks, one row each; a link given twice is there once, as last given.
2. Explanations and scores that came later (`assay explain` on some features): one per feature, explainer (and scorer).

SQLite, because a page reads a few rows of it while others write: one writer at a time, others wait up to ten seconds.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.atlas.mapped_records import LINKS, Effect, FeatureRecord, explanation_of, score_of, to_text
from assay.errors import StoreError, bad_argument
from assay.explain.records import Explanation, Score

PATIENCE = 10.0  # seconds
TABLES = (
    "CREATE TABLE IF NOT EXISTS links (kind TEXT, feature TEXT, target TEXT, value REAL, body TEXT,"
    " PRIMARY KEY (feature, kind, target)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS links_target ON links (kind, target, value)",
    "CREATE TABLE IF NOT EXISTS explanations (feature TEXT, explainer TEXT, text TEXT, body TEXT,"
    " PRIMARY KEY (feature, explainer)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS scores (feature TEXT, explainer TEXT, scorer TEXT, body TEXT,"
    " PRIMARY KEY (feature, explainer, scorer)) WITHOUT ROWID",
)
Link = tuple[str, str, str, float | None, str]  # kind, feature, target, value, body


@dataclass(frozen=True)
class Noted:
    """What is noted of one feature. `claims`: ids; `explanations`, `scores`: later ones."""

    claims: tuple[str, ...] = ()
    circuits: tuple[str, ...] = ()
    effects: tuple[Effect, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    scores: tuple[Score, ...] = ()


class Notes:
    """The notes of one set. The file is made by the first write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self, write: bool) -> Iterator[sqlite3.Connection]:
        place = f"{self.path.absolute().as_uri()}?mode={'rwc' if write else 'ro'}"
        try:
            with closing(sqlite3.connect(place, uri=True, timeout=PATIENCE)) as db, db:
                yield db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}. Wait for the other writer, or restore the file from a copy.") from error

    def _rows(self, query: str, *given: Any) -> list[Any]:
        if not self.path.is_file():
            return []
        with self._open(write=False) as db:
            return db.execute(query, given).fetchall()

    # writing ---------------------------------------------------------------------------------

    def add(self, links: Sequence[Link] = (), explanations: Sequence[Explanation] = (), scores: Sequence[Score] = ()) -> None:
        """All of these in one transaction; what is there under the same key is replaced."""
        if unknown := {link[0] for link in links} - set(LINKS):
            raise bad_argument("kind", sorted(unknown), ", ".join(LINKS))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._open(write=True) as db:
            for table in TABLES:
                db.execute(table)
            db.executemany("INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?)", links)
            db.executemany("INSERT OR REPLACE INTO explanations VALUES (?, ?, ?, ?)",
                           [(each.feature, each.explainer, each.text, to_text(each)) for each in explanations])  # fmt: skip
            db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)",
                           [(each.feature, each.explainer, each.scorer, to_text(each)) for each in scores])  # fmt: skip

    # reading ---------------------------------------------------------------------------------

    def of(self, feature: str) -> Noted:
        """All that is noted of a feature; links with the largest value first."""
        if not self.path.is_file():
            return Noted()
        with self._open(write=False) as db:
            links = db.execute("SELECT kind, target, body FROM links WHERE feature = ? AND kind IN (?, ?, ?)"
                               " ORDER BY abs(value) DESC, target", [feature, *LINKS]).fetchall()  # fmt: skip
            told = db.execute("SELECT body FROM explanations WHERE feature = ? ORDER BY explainer", [feature]).fetchall()
            scored = db.execute("SELECT body FROM scores WHERE feature = ? ORDER BY explainer, scorer", [feature]).fetchall()
        claims, circuits = (tuple(target for kind, target, _ in links if kind == wanted) for wanted in ("claim", "circuit"))
        return Noted(claims, circuits, tuple(Effect(**json.loads(body)) for kind, _, body in links if kind == "effect"),
                     tuple(explanation_of(json.loads(body)) for (body,) in told),
                     tuple(score_of(json.loads(body)) for (body,) in scored))  # fmt: skip

    def features_of(self, kind: str, target: str, limit: int = -1) -> list[tuple[str, float | None]]:
        """(feature, value) linked to a target, largest size of value first. `limit` -1: all."""
        return self._rows("SELECT feature, value FROM links WHERE kind = ? AND target = ?"
                          " ORDER BY abs(value) DESC, feature LIMIT ?", kind, target, limit)  # fmt: skip

    def targets(self, kind: str) -> list[tuple[str, int]]:
        """(target, features) of a kind of link."""
        return self._rows("SELECT target, count(*) FROM links WHERE kind = ? GROUP BY target ORDER BY target", kind)

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """Every (feature, target) of a kind of link."""
        return self._rows("SELECT feature, target FROM links WHERE kind = ?", kind)

    def texts(self) -> list[tuple[str, str]]:
        """(feature, text) of every later explanation."""
        return self._rows("SELECT feature, text FROM explanations ORDER BY feature, explainer")


def links_from(record: FeatureRecord) -> list[Link]:
    """The links that a feature record brings along."""
    effects = [("effect", record.name, each.task, float(each.value), to_text(each)) for each in record.effects]
    return [*(("claim", record.name, claim, None, "{}") for claim in record.claims),
            *(("circuit", record.name, circuit, None, "{}") for circuit in record.circuits), *effects]  # fmt: skip
