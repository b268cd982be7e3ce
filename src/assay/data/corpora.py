"""Corpora: texts for harvesting and training, read one document at a time and never whole.

    corpus = open_corpus("brown")                    # packaged: see `PACKAGES`
    corpus = open_corpus("notes/")                   # a folder: .txt .md .jsonl .csv .parquet (also .gz of the first four)
    corpus = open_corpus("hub:NAME:COLUMN")          # a data set of the Hugging Face hub, streamed
    train, held = corpus.part("train", 0.05), corpus.part("heldout", 0.05)

1. A corpus has a name, a digest over everything that decides its documents, and `documents(start)`, which gives the
   same documents in the same order each time.
2. `part` divides by document: u = first 8 bytes of SHA-256 of the text / 2^64; held out where u < share. It is the text
   that decides, not its place: copies of one text are always on the same side, in any file, in any order.
3. What a document is: a whole file in a folder of texts; in a single text file a block between blank lines
   (`documents="file"` or "line" for something else); a line of JSONL; a row of CSV or Parquet. Texts of white space
   only are left out.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.errors import CorpusError, bad_argument

PARTS = ("all", "train", "heldout")
HOLDOUT = 0.05  # of the documents are held out, where nothing else is asked


@dataclass(frozen=True)
class Document:
    """One text, and where in its corpus it comes from."""

    id: str
    text: str


class Corpus:
    """Documents in a fixed order. Subclasses say which: `read` and `digest`."""

    name: str = ""
    licence: str = "not stated"

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what `documents` gives."""
        raise NotImplementedError

    def read(self) -> Iterator[Document]:
        """All documents, empty ones too."""
        raise NotImplementedError

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Documents in their order, from number `start` on. Raises CorpusError where one cannot be read."""
        return itertools.islice((document for document in self.read() if document.text.strip()), start, None)

    def part(self, split: str, holdout: float = HOLDOUT) -> "Corpus":
        """"train": without a share of the documents; "heldout": these; "all": everything."""
        if split not in PARTS:
            raise bad_argument("split", split, ", ".join(PARTS))
        if not 0 <= holdout < 1:
            raise bad_argument("holdout", holdout, "0 to 1, 1 excluded", "For instance 0.05.")
        if split == "heldout" and not holdout:
            raise bad_argument("holdout", holdout, "more than 0 where held-out documents are asked for")
        return self if split == "all" or not holdout else Part(self, split, holdout)

    def record(self) -> dict[str, Any]:
        """What a result must say about its corpus."""
        return {"name": self.name, "digest": self.digest, "licence": self.licence, "split": "all", "holdout": 0.0}


class Part(Corpus):
    """The training documents of a corpus, or those held out."""

    def __init__(self, whole: Corpus, split: str, holdout: float) -> None:
        self.whole, self.split, self.holdout = whole, split, holdout
        self.name, self.licence = whole.name, whole.licence

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.whole.digest} {self.split} {self.holdout!r}".encode()).hexdigest()

    def read(self) -> Iterator[Document]:
        wanted = self.split == "heldout"
        return (document for document in self.whole.read() if (draw(document.text) < self.holdout) == wanted)

    def part(self, split: str, holdout: float = HOLDOUT) -> Corpus:
        raise bad_argument("split", split, "one division of a corpus", "Divide the whole corpus instead.")

    def record(self) -> dict[str, Any]:
        return {**self.whole.record(), "split": self.split, "holdout": self.holdout}


def draw(text: str) -> float:
    """A number from 0 to 1 that belongs to a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def open_corpus(name: str | Path | Corpus, *, text_key: str = "text", documents: str | None = None) -> Corpus:
    """The corpus of that name: a packaged one, a file or folder, or `hub:NAME[:CONFIG[:SPLIT]]:COLUMN`.

    `text_key`: key or column of the text in JSONL, CSV and Parquet. `documents`: "file", "block" or "line", what a
    document is in text files; None: a file of a folder, a block of a single file.
    Packaged corpora are fetched at first use. Raises CorpusError for one that cannot be found, read or fetched,
    NeedsExtra for hub data sets where `datasets` is not installed.
    """
    from assay.data.corpus_files import open_files
    from assay.data.corpus_packages import PACKAGES, Packaged

    if isinstance(name, Corpus):
        return name
    spelled = str(name)
    if spelled.startswith("hub:"):
        from assay.data.corpus_hub import Hub

        return Hub(spelled)
    if spelled in PACKAGES and not Path(spelled).exists():
        return Packaged(PACKAGES[spelled])
    if not Path(spelled).exists():
        raise CorpusError(_unknown(spelled, tuple(PACKAGES)))
    return open_files(Path(spelled), text_key, documents)


def _unknown(spelled: str, packaged: tuple[str, ...]) -> str:
    import difflib

    close = difflib.get_close_matches(spelled, packaged, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (f"corpus {spelled!r}: no such file or folder, and no packaged corpus; allowed: a path, one of"
            f" {', '.join(packaged)}, or hub:NAME:COLUMN.{hint} See: assay harvest --list")  # fmt: skip
