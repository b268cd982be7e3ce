"""Harvests, dictionaries, their evaluations, and attribution graphs in an atlas.

1. A harvest is a folder anywhere and a row with the SHA-256 of its manifest: which model read which corpus at which sites.
2. A dictionary is a folder in `dictionaries/` (see `features.kept`) and a row that says what it is.
3. Evaluations are rows: a dictionary may have many, and all stay.
4. An attribution graph is a file in `graphs/` and a row with what its page says first: prompt, scores, validation.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assay.atlas.store import Atlas
from assay.errors import bad_argument
from assay.features import kept
from assay.features.dictionary import Dictionary
from assay.features.harvest import Harvested
from assay.features.shards import MANIFEST
from assay.files import sha256_of
from assay.records import canonical, digest

FOLDER = "dictionaries"


def record_harvest(atlas: Atlas, found: Harvested) -> str:
    """A harvest that is done; the SHA-256 of its manifest. The same one again replaces its row."""
    manifest, told = sha256_of(found.folder / MANIFEST), found.manifest
    identity, shards = told["identity"], told["shards"]
    body = {**{name: told[name] for name in ("identity", "sites", "dtype", "tokens", "typical", "made_with")},
            "shards": len(shards), "bytes": sum(each["size"] for each in shards),
            "content": _content([each["sha256"] for each in shards])}  # fmt: skip
    names = (identity["model"]["model"], identity["corpus"]["name"])
    with atlas.writing() as db:
        db.execute("INSERT OR REPLACE INTO harvests VALUES (?, ?, ?, ?, ?, ?)",
                   [manifest, *names, _now(), str(found.folder), canonical(body)])  # fmt: skip
    return manifest


def harvests(atlas: Atlas) -> list[dict[str, Any]]:
    """Every harvest of the atlas, oldest first: digest, model, corpus, folder, sites, tokens."""
    return _oldest_first(atlas, "harvests", ("digest", "model", "corpus", "created", "folder"))


def harvests_of(atlas: Atlas, dictionary: Dictionary) -> list[dict[str, Any]]:
    """The harvest a dictionary was trained on, of a crosscoder between two models both, where this atlas knows them."""
    stream = dictionary.provenance.get("stream") or {}
    parts = [stream, *(each for each in stream.values() if isinstance(each, Mapping))]
    contents = {_content(each["shards"]) for each in parts if each.get("from") == "shards"}
    return [row for row in harvests(atlas) if row["content"] in contents] if contents else []


def _content(shards: Sequence[str]) -> str:
    """What a harvest holds: of the SHA-256 of its shards."""
    return digest(list(shards))


def keep_dictionary(atlas: Atlas, dictionary: Dictionary, model: str, dtype: str = "fp32") -> Path:
    """Write a dictionary into the atlas, under its name. Raises UsageError when another one has that name."""
    folder = atlas.path / FOLDER / safe_name(dictionary.name)
    if kept.is_kept(folder) and kept.read_record(folder)["digest"] != kept.as_kept(dictionary, dtype).digest:
        raise bad_argument("name", dictionary.name, "a name that no other dictionary of this atlas has", "Give --name.")
    kept.save(dictionary, folder, dtype)
    note_dictionary(atlas, folder, model)
    return folder


def check_names(atlas: Atlas, names: Sequence[str], dtype: str) -> None:
    """Raises UsageError, before any long work, for names that are taken and a dtype that nothing is kept in."""
    if dtype not in kept.DTYPES:
        raise bad_argument("--kept-as", dtype, ", ".join(kept.DTYPES))
    for name in names:
        if kept.is_kept(atlas.path / FOLDER / safe_name(name)):
            raise bad_argument("--name", name, "a name that no dictionary of this atlas has",
                               "One was trained under it: assay dictionary show NAME")  # fmt: skip


def note_dictionary(atlas: Atlas, folder: Path, model: str) -> None:
    """The row of a kept dictionary, wherever its folder is."""
    record = kept.read_record(folder)
    with atlas.writing() as db:
        db.execute("INSERT OR REPLACE INTO dictionaries VALUES (?, ?, ?, ?, ?, ?)",
                   [record["digest"], record["name"], model, _now(), str(folder), canonical(dict(record))])  # fmt: skip


def dictionaries(atlas: Atlas) -> list[dict[str, Any]]:
    """Every dictionary of the atlas: name, model, folder, spec and the newest evaluation, oldest first."""
    if not (atlas.path / "atlas.duckdb").is_file():
        return []
    with atlas.reading() as db:
        rows = db.execute("SELECT d.digest, d.name, d.model, d.created, d.folder, d.body, (SELECT e.body FROM evaluations e"
                          " WHERE e.dictionary = d.digest ORDER BY e.number DESC LIMIT 1) FROM dictionaries d"
                          " ORDER BY d.created").fetchall()  # fmt: skip
    names = ("digest", "name", "model", "created", "folder")
    return [{**dict(zip(names, row, strict=False)), **json.loads(row[5]), "evaluation": json.loads(row[6]) if row[6] else None}
            for row in rows]  # fmt: skip


def record_evaluation(atlas: Atlas, dictionary: str, body: Mapping[str, Any]) -> None:
    """What was measured of a dictionary (its digest)."""
    with atlas.writing() as db:
        db.execute("INSERT INTO evaluations (dictionary, created, body) VALUES (?, ?, ?)",
                   [dictionary, _now(), canonical(body)])  # fmt: skip


def evaluations(atlas: Atlas, dictionary: str) -> list[dict[str, Any]]:
    """All evaluations of a dictionary (its digest), oldest first."""
    with atlas.reading() as db:
        rows = db.execute("SELECT body FROM evaluations WHERE dictionary = ? ORDER BY number", [dictionary]).fetchall()
    return [json.loads(row[0]) for row in rows]


def record_graph(atlas: Atlas, graph: str, model: str, prompt: str, file: Path, body: Mapping[str, Any]) -> None:
    """An attribution graph that was written to `file`; a graph of the same id is replaced."""
    with atlas.writing() as db:
        db.execute("INSERT OR REPLACE INTO graphs VALUES (?, ?, ?, ?, ?, ?)",
                   [graph, model, prompt, _now(), str(file), canonical(body)])  # fmt: skip


def graphs(atlas: Atlas) -> list[dict[str, Any]]:
    """Every attribution graph of the atlas, oldest first."""
    return _oldest_first(atlas, "graphs", ("id", "model", "prompt", "created", "file"))


def _oldest_first(atlas: Atlas, table: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """All rows of a table: these columns, and what is in the body."""
    if not (atlas.path / "atlas.duckdb").is_file():
        return []
    with atlas.reading() as db:
        rows = db.execute(f"SELECT {', '.join(names)}, body FROM {table} ORDER BY created").fetchall()
    return [{**dict(zip(names, row, strict=False)), **json.loads(row[-1])} for row in rows]


def safe_name(name: str) -> str:
    """A name as the name of a folder."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "dictionary"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
