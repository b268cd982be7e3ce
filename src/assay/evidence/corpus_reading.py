"""A reading as what claims are tested on: its parts as text, its codes, its untrained twins.

1. Rows of all parts lie in the folder of a reading from the start, so their texts and what rules say of them are known before
   any model reads the sealed ones (`assay.evidence.corpus_windows`).
2. What a rule says at every token comes from tables of its conditions, one for each kind, made once per part when a rule asks
   for it; rules of other types are applied to the text of every prefix.
3. A claim names the reading by its digest and the name of its folder; `evidence.source` finds it where it was last seen.
4. Who measures a claim again gives the model: rows are read anew, not taken from the codes that were kept (`host_again`).
"""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from assay.data.whereabouts import keep_in_mind, last_seen, placeless
from assay.errors import ReproduceError
from assay.evidence.corpus_windows import Codes, CorpusHost, CorpusSource, CorpusTexts, Lazy, PartTexts
from assay.evidence.features import direction
from assay.evidence.rules import Ruled, rule_of
from assay.explain.conditions import Kind
from assay.explain.lexical import table_of
from assay.explain.reading import CodedPart, Reading, open_reading
from assay.explain.rules import TYPE as PREFIX
from assay.explain.rules import fires_where
from assay.explain.table import Table
from assay.model.model import Model
from assay.records import canonical

PARTS = ("tune", "confirm", "ood")
TWIN_SEEDS = {"all": 0, "permuted": 1}  # as the kind *explains* numbers them
KEPT = 64  # verdicts held at a time


def texts_of(part: CodedPart) -> PartTexts:
    """Rows of a part as text."""
    starts = part.starts.tolist()
    pieces = tuple(tuple(part.pieces[start:end]) for start, end in zip(starts[:-1], starts[1:], strict=True))
    return PartTexts(tuple(part.names[number] for number in part.documents.tolist()), pieces, np.asarray(part.tokens))


class RuleTables:
    """What rules say at all tokens of a reading's parts. The last verdicts are kept."""

    def __init__(self, reading: Reading, parts: Mapping[str, PartTexts]) -> None:
        self._reading, self._parts = reading, parts
        self._tables: dict[tuple[str, str], Table] = {}
        self._kept: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    def __call__(self, rule: Mapping[str, Any], part: str) -> np.ndarray:
        key = (canonical(dict(rule)), part)
        if key not in self._kept:
            self._kept[key] = self._said(rule, part)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _said(self, rule: Mapping[str, Any], part: str) -> np.ndarray:
        if rule.get("type") == PREFIX:
            return fires_where(rule, lambda condition: self._table(part, condition.kind).met(condition))
        texts, said = self._parts[part], rule_of(rule)
        prefixes = [texts.prefix(token) for token in range(len(texts.tokens))]
        return np.array(said([Ruled(text, 0, "", (), start) for text, start in prefixes]), bool)

    def _table(self, part: str, kind: Kind) -> Table:
        if (part, kind.name) not in self._tables:
            self._tables[part, kind.name] = table_of(self._reading.as_text(part), [kind])
        return self._tables[part, kind.name]


def corpus_texts(reading: Reading, parts: tuple[str, ...] = PARTS) -> CorpusTexts:
    """The parts that claims need. Nothing sealed is read by a model for it."""
    found = {name: texts_of(reading.as_text(name)) for name in parts}
    keep_in_mind(reading.digest, reading.folder)
    record = {"reading": reading.digest, "folder": reading.folder.name, "corpus": reading.manifest["identity"]["corpus"],
              "ood": reading.manifest["identity"]["ood"]}  # fmt: skip
    corpus = str(reading.manifest["identity"]["corpus"]["name"])
    before = {name: texts_of(reading.as_text(name)) for name in ("shown", "scored")}
    return CorpusTexts(corpus, found, RuleTables(reading, found), record, before)


def corpus_host(texts: CorpusTexts, reading: Reading, model: Model) -> CorpusHost:
    """The codes of a reading as a host of features. Parts are opened when they are asked for; twins read when they are."""
    return CorpusHost(texts, Opened(reading), identity_of(model, model.digest), Twins(reading, model), columns_of(reading))


def columns_of(reading: Reading) -> dict[str, int]:
    """Column of every unit, by its name and by the one that claims have for it: resid_post.3[7] is resid_post.3.7 there, and
    directions go by the hash of their numbers."""
    rows, (site, *_) = reading.vectors(), reading.manifest["identity"]["units"].get("sites", [""])
    if rows is not None:
        return {**reading.numbers, **{direction(site, row).name: column for column, row in enumerate(rows)}}
    return {each: column for name, column in reading.numbers.items() for each in (name, name.replace("[", ".").rstrip("]"))}


def identity_of(model: Model, digest: str) -> dict[str, Any]:
    """What a host says of the model that made its codes."""
    return {"name": model.name, "source": placeless(str(model.source), digest), "digest": digest,
            "tokenizer": model.tokenizer_digest, "passport": model.passport()}  # fmt: skip


def host_again(texts: CorpusTexts, model: Any) -> CorpusHost:
    """A host whose codes the model makes anew, in a folder that is gone with it: a part, of the model or of an untrained twin,
    when it is asked for. Raises ReproduceError where the reading is not here, or cannot be made again."""
    if not isinstance(model, Model):
        raise ReproduceError(f"{texts.name}: claims on a whole corpus are measured with a language model; got {model.name}.")
    kept = reading_of(texts.record)
    anew = Anew(kept, model)
    identity = identity_of(model, model.fresh_digest())
    return CorpusHost(texts, Lazy(texts.parts, anew.part), identity, anew.twin, columns_of(kept))


class Anew:
    """A reading that is read again, a part when it is asked for."""

    def __init__(self, kept: Reading, model: Model) -> None:
        self.kept, self.model = kept, model

    @cached_property
    def reading(self) -> Reading:
        """In a folder of its own."""
        return self.kept.anew(self.model)

    def part(self, name: str) -> Codes:
        """Codes of the model."""
        return codes_of(self.reading.read_more(self.model, (name,)).part(name))

    def twin(self, scheme: str, part: str) -> Codes:
        """Codes of an untrained twin."""
        return codes_of(self.reading.read_twins(self.model, scheme, (part,), TWIN_SEEDS[scheme]).part(part))


class Opened(dict[str, Codes]):
    """Codes of the parts that are read, opened when they are asked for."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def __contains__(self, part: object) -> bool:
        return part in self.reading.parts

    def __missing__(self, part: str) -> Codes:
        self[part] = codes_of(self.reading.part(part))
        return self[part]


class Twins:
    """(scheme, part) -> codes of an untrained twin, kept on disk beside the reading."""

    def __init__(self, reading: Reading, model: Model) -> None:
        self.reading, self.model = reading, model
        self._kept: dict[tuple[str, str], Codes] = {}

    def __call__(self, scheme: str, part: str) -> Codes:
        if (scheme, part) not in self._kept:
            twin = self.reading.read_twins(self.model, scheme, (part,), TWIN_SEEDS[scheme])
            self._kept[scheme, part] = codes_of(twin.part(part))
        return self._kept[scheme, part]


def codes_of(part: CodedPart) -> Codes:
    """Values and which tokens the units are meant for."""
    return Codes(part.codes, np.asarray(part.typical, bool))


_FOUND: dict[str, CorpusTexts] = {}


def source_again(record: Mapping[str, Any]) -> CorpusSource:
    """The source of a claim from its record. Raises ReproduceError where the reading is not here any more."""
    wanted = str(record["reading"])
    if wanted not in _FOUND:
        found = corpus_texts(reading_of(record))
        _FOUND.clear()
        _FOUND[wanted] = found
    return CorpusSource(_FOUND[wanted], record["rule"], tuple(record["near"]))


def reading_of(record: Mapping[str, Any]) -> Reading:
    """The reading that a claim names. Raises ReproduceError where it is not here any more."""
    wanted = str(record["reading"])
    places = [last_seen(wanted), Path(str(record["folder"]))]
    reading = next((found for place in places if place is not None and (found := _reading_at(place, wanted))), None)
    if reading is None:
        raise ReproduceError(f"reading {record['folder']}: it is neither where it was last seen nor in this folder"
                             f" (digest {wanted[:12]}). Map the model again: assay map MODEL")  # fmt: skip
    return reading


def _reading_at(place: Path, wanted: str) -> Reading | None:
    if not (place / "reading.json").is_file():
        return None
    reading = open_reading(place)
    return reading if reading.digest == wanted else None

