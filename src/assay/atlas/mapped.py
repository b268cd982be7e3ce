"""Reading the mapped features of an atlas: pages, tables, searches, and what changed between two sets.

    mapped = Mapped("./atlas")
    mapped.sets()
    mapped.page("", "latent.topk.12").record.contexts

1. A page reads slices of one shard, a few rows of two SQLite files, and the database only for claims that are about the
   feature: its cost does not grow with the number of features. Everything is opened for one answer and closed after it.
2. A set is named by its id, by the beginning of one where no other begins so, or by "" for the newest.
3. A set that is mapped again while it is read is read again from its new folder.

Writing: `MappedWriter` for whole sets; `note` for what is said of features later.
"""

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import numpy as np
from numpy.typing import NDArray

from assay.atlas import search
from assay.atlas.contexts_store import Shard
from assay.atlas.database import FILE, engine
from assay.atlas.mapped_diff import SHOWN, Change, MapDiff, Side, compare
from assay.atlas.mapped_records import (
    Effect,
    FeaturePage,
    FeatureRecord,
    Histogram,
    Hit,
    LinkedClaim,
    Near,
    SetRecord,
    histogram_of,
    participation,
    quantiles_of,
    record_of,
    to_text,
)  # fmt: skip
from assay.atlas.mapped_writer import FOLDER, NOTES, TRIES, MappedWriter, current, read_sets
from assay.atlas.notes import Link, Notes
from assay.atlas.store import Atlas
from assay.errors import StoreError, bad_argument, missing
from assay.explain.records import Explanation, Score

__all__ = ["Change", "Effect", "FeaturePage", "FeatureRecord", "Histogram", "Hit", "LinkedClaim", "MapDiff", "Mapped",
           "MappedWriter", "Near", "SetRecord", "histogram_of", "participation", "quantiles_of"]  # fmt: skip
T = TypeVar("T")
HELD = 10_000  # claims kept in mind
PLANE = 1200  # features of a set that are shown by their meaning
BROKEN = (FileNotFoundError, sqlite3.DatabaseError, duckdb.Error)  # files that are gone, or are none


class Mapped:
    """The mapped features of one atlas. Nothing is held open between two answers; safe to use from several threads."""

    def __init__(self, atlas: Atlas | str | Path) -> None:
        self.atlas = atlas if isinstance(atlas, Atlas) else Atlas(atlas)
        self._claims: tuple[Any, dict[str, LinkedClaim]] = (None, {})

    # sets ------------------------------------------------------------------------------------

    def sets(self) -> list[SetRecord]:
        """Every set, newest first; none in an atlas without any, or where there is no atlas."""
        return [record for record, _, _ in read_sets(self.atlas.path)]

    def set(self, name: str = "") -> SetRecord:
        """A set by its id or the beginning of it; "" for the newest. Raises UsageError with what there is."""
        if name and (found := current(self.atlas.path, name)) is not None:
            return found[0]
        sets = self.sets()
        found = [each for each in sets if each.id.startswith(name)]
        if not found or (name and len(found) > 1):
            there = ", ".join(each.id for each in (found or sets)[:5]) or "none in this atlas yet"
            raise (bad_argument if found else missing)("set", name, there, "Make one: assay map MODEL")
        return found[0]

    def _in(self, name: str, use: Callable[[SetRecord, Path, int], T]) -> T:
        """What `use` makes of a set, its folder and the size of its shards."""
        wanted = self.set(name).id
        for _ in range(TRIES - 1):
            try:
                if (found := current(self.atlas.path, wanted)) is not None:
                    return use(*found)
            except BROKEN:  # replaced meanwhile: once more, from the new folder
                continue
        found = current(self.atlas.path, wanted)
        try:
            return use(*(found or (self.set(wanted), Path(), 1)))
        except BROKEN as error:
            why = str(error).partition("\n")[0]
            raise StoreError(f"atlas {self.atlas.path}: set {wanted} is not whole ({why})."
                             " Map the model again: assay map MODEL") from error  # fmt: skip

    def _notes(self, record: SetRecord) -> Notes:
        return Notes(self.atlas.path / FOLDER / record.id / NOTES)

    # one feature -----------------------------------------------------------------------------

    def page(self, set_name: str, feature: str | int) -> FeaturePage:
        """Everything of one feature, by its name or its row. Raises UsageError for one that is not in the set."""
        return self._in(set_name, lambda record, folder, shard: self._page(record, folder, shard, feature))

    def _page(self, about: SetRecord, folder: Path, shard: int, feature: str | int) -> FeaturePage:
        with closing(search.Index(folder)) as index:
            row = _row(index, about, feature)
            opened = Shard(folder / f"{row // shard:06d}.safetensors")
            record = record_of(opened.record(row % shard), opened.windows(row % shard))
            texts = index.first_texts([name for name, _ in (*record.neighbours, *record.coactive)])
        nears = [tuple(Near(name, value, texts.get(name, "")) for name, value in pairs)
                 for pairs in (record.neighbours, record.coactive)]  # fmt: skip
        noted = self._notes(about).of(record.name)
        whole = replace(record, explanations=_newest(record.explanations, noted.explanations),
                        scores=_newest(record.scores, noted.scores), claims=noted.claims, circuits=noted.circuits,
                        effects=noted.effects)  # fmt: skip
        return FeaturePage(about, row, whole, self.claims(noted.claims), noted.circuits, noted.effects, *nears)

    def neighbours(self, set_name: str, feature: str | int) -> tuple[Near, ...]:
        """The features whose decoder rows are most like this one's."""
        return self.page(set_name, feature).neighbours

    def coactive(self, set_name: str, feature: str | int) -> tuple[Near, ...]:
        """The features that are on where this one is."""
        return self.page(set_name, feature).coactive

    def circuits_of(self, set_name: str, feature: str | int) -> tuple[str, ...]:
        """Circuits and graphs this feature is in."""
        return self.page(set_name, feature).circuits

    def claims_of(self, set_name: str, feature: str | int) -> tuple[LinkedClaim, ...]:
        """Claims about this feature, with the verdict that stands."""
        return self.page(set_name, feature).claims

    def claims(self, ids: Sequence[str]) -> tuple[LinkedClaim, ...]:
        """Claims by id. The database is read again when it has changed since they were read."""
        stamp = _stamp(self.atlas.path)
        if self._claims[0] != stamp or len(self._claims[1]) > HELD:
            self._claims = (stamp, {})
        held = self._claims[1]
        if missing := [claim for claim in ids if claim not in held]:
            held.update(_claims_in(self.atlas, missing))
        return tuple(held[claim] for claim in ids)

    def features_of_claim(self, claim: str) -> list[tuple[str, str]]:
        """(set, feature) of every feature that a claim is linked to."""
        return [(record.id, feature) for record in self.sets()
                for feature, _ in self._notes(record).features_of("claim", claim)]  # fmt: skip

    def records(self, set_name: str = "", contexts: bool = True) -> Iterator[FeatureRecord]:
        """Every feature record of a set, in order, one shard open at a time; without later notes."""
        about, folder, shard = self._in(set_name, lambda *found: found)
        for path in search.shard_paths(folder, about.features, shard):
            opened = Shard(path)
            for place, body in enumerate(opened.records()):
                yield record_of(body, opened.windows(place) if contexts else ())

    # tables and searches ---------------------------------------------------------------------

    def rows(
        self, set_name: str = "", sort: str = "row", offset: int = 0, limit: int = 50, filters: Mapping[str, Any] | None = None
    ) -> tuple[list[dict[str, Any]], int]:
        """A part of the table of features, and how many there are of this choice.

        `sort`: a column, -column for largest first: row, name, density, largest, fired, contexts, explained, score_<scorer>,
        spread_<basis>. `filters`: column -> a value or (low, high), None for no bound; beside them *query* (words of
        explanations), *verdict* (features with a claim that stands so), *claimed* (True or False), *effect* (a task) and
        *circuit*. Raises UsageError for others.
        """
        if offset < 0 or limit < 0:
            raise bad_argument("offset, limit", f"{offset}, {limit}", "0 or more")
        return self._in(set_name, lambda record, folder, _: self._rows(record, folder, sort, offset, limit, filters or {}))

    def _rows(
        self, about: SetRecord, folder: Path, sort: str, offset: int, limit: int, filters: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], int]:
        with closing(search.Index(folder)) as index:
            among, outside = self._allowed(about, index, filters)
            left = {name: value for name, value in filters.items() if name not in LINKED}
            with engine() as db:
                rows, total = search.chosen_rows(db, folder, sort, offset, limit, left, among, outside)
            return [index.columns(row) for row in rows], total

    def _allowed(
        self, about: SetRecord, index: search.Index, filters: Mapping[str, Any]
    ) -> tuple[NDArray[np.uint32] | None, NDArray[np.uint32] | None]:
        """Rows that filters by links and words allow, and rows they rule out; None where they say nothing."""
        notes, among, outside = self._notes(about), [], None
        if "query" in filters:
            among.append(set(index.matching(filters["query"])) | set(index.rows(self._later(notes, filters["query"])).values()))
        if filters.get("claimed") is False:
            outside = np.array(sorted(index.rows({name for name, _ in notes.pairs("claim")}).values()), np.uint32)
        elif "claimed" in filters:
            among.append(set(index.rows({name for name, _ in notes.pairs("claim")}).values()))
        if (standing := self._with_verdict(about, index, filters.get("verdict", ""))) is not None:
            among.append(set(standing))
        for kind in ("effect", "circuit"):
            if kind in filters:
                among.append(set(index.rows(name for name, _ in notes.features_of(kind, filters[kind])).values()))
        both = set.intersection(*among) if among else None
        return (None if both is None else np.array(sorted(both), np.uint32)), outside

    def _with_verdict(self, about: SetRecord, index: search.Index, verdict: str) -> Collection[int] | None:
        """Rows of features with a claim that stands so; None where no verdict is asked for."""
        if not verdict:
            return None
        return set(index.rows({name for name, stands in self._verdicts(self._notes(about)) if stands == verdict}).values())

    def _verdicts(self, notes: Notes) -> list[tuple[str, str]]:
        """(feature, verdict) of every claim that is linked."""
        pairs = notes.pairs("claim")
        stands = _verdicts_in(self.atlas, [claim for _, claim in pairs])
        return [(feature, stands.get(claim, "not here")) for feature, claim in pairs]

    @staticmethod
    def _later(notes: Notes, query: str) -> dict[str, str]:
        """Features with a later explanation that holds all words of a query, and its text."""
        held = notes.texts()
        return dict(held[place] for place in search.holding(query, [text for _, text in held]))

    def find_text(self, query: str, set_name: str = "", limit: int = 20, verdict: str = "") -> list[Hit]:
        """Features whose explanations hold all words of a query, most relevant first (BM25). Later explanations come last.

        "Phrases in quotes" and beginnings* are understood. `verdict`, here and in other searches: only features with a claim
        that stands so. Raises UsageError for a query without words.
        """

        def use(record: SetRecord, folder: Path, _: int) -> list[Hit]:
            with closing(search.Index(folder)) as index:
                among = self._with_verdict(record, index, verdict)
                found = [each for each in index.match(query, limit if among is None else -1) if _within(among, each[0])]
                met = {row for row, _ in found}
                later = [Hit(record.id, name, row, 0.0, text, "words")
                         for name, text in self._later(self._notes(record), query).items()
                         if (row := index.row(name)) is not None and row not in met and _within(among, row)]  # fmt: skip
                return [*_hits(index, record, found[:limit], "words"), *later][:limit]

        return self._in(set_name, use)

    def find_similar(
        self, text: str, set_name: str = "", limit: int = 20, encode: search.Encode | None = None, verdict: str = ""
    ) -> list[Hit]:  # fmt: skip
        """Features whose explanations mean the most similar to a text: cosine of sentence vectors.

        `encode`: the encoder that the index was made with; default the packaged one. Raises UsageError where there is no index.
        """

        def use(record: SetRecord, folder: Path, _: int) -> list[Hit]:
            if not (folder / search.MEANING).is_file():
                raise bad_argument("set", record.id, "one with an index of meanings", "Make it: assay atlas index")
            vector = np.asarray((encode or packaged_encoder())([text]))[0]
            with closing(search.Index(folder)) as index:
                among = self._with_verdict(record, index, verdict)
                return _hits(index, record, search.nearest(folder, vector, limit, among), "meaning")

        return self._in(set_name, use)

    def plane(self, set_name: str = "", most: int = PLANE) -> list[tuple[Hit, float, float]]:
        """Features with an explanation, or some of them, each with its place where like meanings lie near each other.

        `why`: the verdicts of claims about it. Raises UsageError where there is no index of meanings.
        """

        def use(record: SetRecord, folder: Path, _: int) -> list[tuple[Hit, float, float]]:
            rows, places = search.plane(folder, most)
            verdicts = self._by_feature(record)
            with closing(search.Index(folder)) as index:
                held = [index.columns(row) for row in rows]
            return [(Hit(record.id, each["name"], row, 0.0, each["text"], ", ".join(verdicts.get(each["name"], ()))), x, y)
                    for each, row, (x, y) in zip(held, rows, places.tolist(), strict=True)]  # fmt: skip

        return self._in(set_name, use)

    def by_token(
        self, token: str, set_name: str = "", role: str = "fires", exact: bool = False, limit: int = 20, verdict: str = ""
    ) -> list[Hit]:  # fmt: skip
        """Features that fire on a token (value: share of their firings), or that promote or suppress it (`role`).

        Case and spaces around the token count only with `exact`.
        """

        def use(record: SetRecord, folder: Path, _: int) -> list[Hit]:
            with closing(search.Index(folder)) as index:
                among = self._with_verdict(record, index, verdict)
                with engine() as db:
                    found = search.rows_by_token(db, folder, token, role, exact, limit, among)
                return [_hit(index, record, row, value, f"{role} {text!r}") for row, value, text in found]

        return self._in(set_name, use)

    def by_task(self, task: str, set_name: str = "", limit: int = 20, verdict: str = "") -> list[Hit]:
        """Features by the size of their effect on a task, largest first. Raises UsageError for a task without any."""
        return self._linked("effect", task, set_name, limit, verdict)

    def by_circuit(self, circuit: str, set_name: str = "", limit: int = 20, verdict: str = "") -> list[Hit]:
        """Features that are in a circuit or graph. Raises UsageError for one without any."""
        return self._linked("circuit", circuit, set_name, limit, verdict)

    def _linked(self, kind: str, target: str, set_name: str, limit: int, verdict: str) -> list[Hit]:
        def use(record: SetRecord, folder: Path, _: int) -> list[Hit]:
            notes = self._notes(record)
            found = notes.features_of(kind, target, -1 if verdict else limit)
            if not found:
                there = ", ".join(name for name, _ in notes.targets(kind)[:8]) or "none in this set yet"
                raise missing(kind, target, there)
            with closing(search.Index(folder)) as index:
                rows, among = index.rows(name for name, _ in found), self._with_verdict(record, index, verdict)
                kept = [(rows[name], value) for name, value in found if name in rows and _within(among, rows[name])]
                return [_hit(index, record, row, float(value or 0.0), kind) for row, value in kept[:limit]]

        return self._in(set_name, use)

    # summaries -------------------------------------------------------------------------------

    def summary(self, set_name: str = "") -> dict[str, Any]:
        """What is known of a set: its record, counts of features, verdicts of their claims, and what links there are.

        {"set", "features": {"all", "mapped", "active", "explained", "claimed", "supported", "refuted", "inconclusive"},
        "why_not": {reason: n}, and what the mapping itself summed up (shares, unexplained, scores, cost, ..)}.
        """

        def use(record: SetRecord, folder: Path, _: int) -> dict[str, Any]:
            counts, notes = search.counts_of(folder), self._notes(record)
            standing = self._verdicts(notes)
            features = {"all": record.units or record.features, "mapped": record.features, "active": counts.get("active", 0),
                        "explained": counts.get("explained", 0), "claimed": len({name for name, _ in standing})}  # fmt: skip
            for verdict in ("supported", "refuted", "inconclusive"):
                features[verdict] = len({name for name, stands in standing if stands == verdict})
            reasons = {name.removeprefix("why_not: "): n for name, n in counts.items() if name.startswith("why_not: ")}
            links = {kind: dict(notes.targets(kind)) for kind in ("circuit", "effect")}
            return {**record.summary, "set": record.id, "features": features, "why_not": reasons, **links}

        return self._in(set_name, use)

    def diff(
        self,
        a: str,
        b: str,
        other: "Mapped | None" = None,
        how: str = "",
        pairs: Sequence[tuple[str, str, float]] = (),
        limit: int = SHOWN,
    ) -> MapDiff:
        """What changed from set `a` of this atlas to set `b` of this or another one (see `mapped_diff`).

        `how`: *name*, *tokens* or *given* (with `pairs`: name in a, name in b, similarity); default: by name where both are of
        the same units, else by what they fire on. Raises UsageError for others.
        """
        other = other or self

        def use(record: SetRecord, folder: Path, _: int) -> MapDiff:
            one = Side(record, folder, self._by_feature(record))
            with engine() as db:
                return other._in(b, lambda second, place, _: compare(
                    db, one, Side(second, place, other._by_feature(second)), how, pairs, limit))  # fmt: skip

        return self._in(a, use)

    def _by_feature(self, record: SetRecord) -> dict[str, tuple[str, ...]]:
        """Verdicts of the claims about every feature that has some."""
        found: dict[str, set[str]] = {}
        for feature, verdict in self._verdicts(self._notes(record)):
            found.setdefault(feature, set()).add(verdict)
        return {feature: tuple(sorted(verdicts)) for feature, verdicts in found.items()}

    # writing ---------------------------------------------------------------------------------

    def note(
        self,
        set_name: str,
        explanations: Sequence[Explanation] = (),
        scores: Sequence[Score] = (),
        claims: Mapping[str, Sequence[str]] | None = None,
        circuits: Mapping[str, Sequence[str]] | None = None,
        effects: Mapping[str, Sequence[Effect]] | None = None,
    ) -> None:
        """Keep what is said of mapped features later, in one transaction; `claims`, `circuits`, `effects`: by feature.

        Raises UsageError for features that are not in the set; nothing is kept then.
        """
        links: list[Link] = [("claim", name, claim, None, "{}") for name, ids in (claims or {}).items() for claim in ids]
        links += [("circuit", name, circuit, None, "{}") for name, ids in (circuits or {}).items() for circuit in ids]
        links += [("effect", name, each.task, float(each.value), to_text(each))
                  for name, found in (effects or {}).items() for each in found]  # fmt: skip
        names = {link[1] for link in links} | {each.feature for each in (*explanations, *scores)}

        def use(record: SetRecord, folder: Path, _: int) -> None:
            with closing(search.Index(folder)) as index:
                for name in sorted(names):
                    _row(index, record, name)
            self._notes(record).add(links, explanations, scores)

        self._in(set_name, use)

    def link(self, set_name: str, kind: str, target: str, units: Mapping[str, float | Effect | None]) -> int:
        """Link a circuit (with a weight or None) or effects on a task to those of some units that a set has; how many."""

        def use(record: SetRecord, folder: Path, _: int) -> int:
            with closing(search.Index(folder)) as index:
                known = index.rows(units)
            links: list[Link] = [_linked(kind, name, target, found) for name, found in units.items() if name in known]
            if links:
                self._notes(record).add(links)
            return len(links)

        return self._in(set_name, use)

    def link_claims(self, claims: Sequence[str] = ()) -> int:
        """Link claims to the mapped features that they name (by site, of the same model), and give how many links there are.

        `claims`: ids; default all of the atlas. For claims stated by other ways than the mapping.
        """
        about = _sites_in(self.atlas, claims)
        return sum(self._in(record.id, lambda found, folder, _: self._link(found, folder, about)) for record in self.sets())

    def _link(self, record: SetRecord, folder: Path, about: Sequence[tuple[str, str, str]]) -> int:
        with closing(search.Index(folder)) as index:
            links: list[Link] = [("claim", site, claim, None, "{}") for claim, model, site in about
                                 if model == record.model_digest and index.row(site) is not None]  # fmt: skip
        if links:
            self._notes(record).add(links)
        return len(links)

    def index_meaning(
        self,
        set_name: str = "",
        encode: search.Encode | None = None,
        encoder: str = "",
        report: search.Report | None = None,
    ) -> None:
        """Make the index of `find_similar` over all explanations of a set, later ones included; resumable.

        `encode`: texts -> (text, d) unit vectors, with its name in `encoder`; default the packaged sentence encoder.
        """

        def use(record: SetRecord, folder: Path, _: int) -> None:
            later: dict[str, str] = {}
            for feature, text in self._notes(record).texts():
                later[feature] = f"{later.get(feature, '')} {text}".strip()
            with closing(search.Index(folder)) as index, closing(index.texts()) as held:
                texts = (f"{text} {later.get(name, '')}".strip() for name, text in held)
                search.index_meaning(folder, texts, record.features, encode or packaged_encoder(), encoder or ENCODER, report)

        self._in(set_name, use)


ENCODER = "minilm"
LINKED = ("query", "claimed", "verdict", "effect", "circuit")


def packaged_encoder() -> search.Encode:
    """The packaged sentence encoder as a function of texts."""
    from assay.model.encoders import SentenceEncoder

    encoder = SentenceEncoder(ENCODER)
    return lambda texts: encoder(texts).numpy()


def _linked(kind: str, name: str, target: str, found: float | Effect | None) -> Link:
    effect = isinstance(found, Effect)
    return kind, name, target, float(found.value) if effect else found, to_text(found) if effect else "{}"


def _row(index: search.Index, about: SetRecord, feature: str | int) -> int:
    if isinstance(feature, int):
        if not 0 <= feature < about.features:
            raise missing("feature", feature, f"rows 0 to {about.features - 1} of set {about.id}")
        return feature
    row = index.row(feature)
    if row is None:
        raise missing("feature", feature, f"names in set {about.id}, as {', '.join(index.like(feature)) or 'none'}")
    return row


def _hit(index: search.Index, record: SetRecord, row: int, value: float, why: str) -> Hit:
    columns = index.columns(row)
    return Hit(record.id, columns["name"], row, value, columns["text"], why)


def _hits(index: search.Index, record: SetRecord, found: Sequence[tuple[int, float]], why: str) -> list[Hit]:
    return [_hit(index, record, row, value, why) for row, value in found]


def _newest(first: Sequence[T], later: Sequence[T]) -> tuple[T, ...]:
    """Records of the mapping, each replaced by a later one of the same explainer (and scorer), and the other later ones."""

    def key(each: Any) -> tuple[str, str]:
        return each.explainer, getattr(each, "scorer", "")

    held = {key(each): each for each in first}
    held.update({key(each): each for each in later})
    return tuple(held.values())


def _stamp(path: Path) -> Any:
    """What changes when the database does."""
    found = []
    for name in (FILE, f"{FILE}.wal"):
        try:
            state = os.stat(path / name)
            found.append((state.st_mtime_ns, state.st_size))
        except OSError:
            found.append(None)
    return found


def _within(among: Collection[int] | None, row: int) -> bool:
    """Whether a row is allowed; None allows all."""
    return among is None or row in among


def _claims_in(atlas: Atlas, ids: Sequence[str]) -> dict[str, LinkedClaim]:
    found = {claim: LinkedClaim(claim, "", "", "not here") for claim in ids}
    if not (atlas.path / FILE).is_file():
        return found
    among = f"IN ({', '.join('?' * len(ids))})"  # three lookups: a join of them takes twice as long
    with atlas.reading() as db:
        own = db.execute(f"SELECT id, kind, statement FROM claims WHERE id {among}", ids).fetchall()
        stands = dict(db.execute(f"SELECT claim, verdict FROM standing WHERE claim {among}", ids).fetchall())
        others = db.execute(f"SELECT claim, kind, statement, verdict FROM imports WHERE claim {among}", ids).fetchall()
    found |= {claim: LinkedClaim(claim, kind, said, stands.get(claim, "not tested")) for claim, kind, said in own}
    return found | {row[0]: LinkedClaim(*row) for row in others}


def _sites_in(atlas: Atlas, claims: Sequence[str]) -> list[tuple[str, str, str]]:
    """(claim, digest of its model, a site it names), of some claims or all."""
    if not (atlas.path / FILE).is_file():
        return []
    where = "WHERE id IN (SELECT unnest(?::VARCHAR[]))" if claims else ""
    with atlas.reading() as db:
        return db.execute(
            "SELECT DISTINCT id, body->>'$.subject.digest', unnest(TRY_CAST(body->'$.subject.sites' AS VARCHAR[]))"
            f" FROM claims {where}", [list(claims)] if claims else [],
        ).fetchall()  # fmt: skip


def _verdicts_in(atlas: Atlas, ids: Sequence[str]) -> dict[str, str]:
    if not ids or not (atlas.path / FILE).is_file():
        return {}
    with atlas.reading() as db:
        rows = db.execute(
            "SELECT c.id, coalesce(s.verdict, 'not tested') FROM claims c LEFT JOIN standing s ON s.claim = c.id WHERE c.id IN"
            " (SELECT unnest(?::VARCHAR[])) UNION ALL SELECT claim, verdict FROM imports WHERE claim IN"
            " (SELECT unnest(?::VARCHAR[]))", [list(ids), list(ids)],
        ).fetchall()  # fmt: skip
    return dict(rows)
