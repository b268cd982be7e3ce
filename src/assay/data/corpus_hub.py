"""Data sets of the Hugging Face hub as corpora: `hub:NAME[:CONFIG[:SPLIT]]:COLUMN`, streamed.

1. The repository's present commit is asked for once and pinned: it is part of the digest, and what is read.
2. `datasets` streams one split; one column of it is the text. Nothing is kept on disk.
3. An empty CONFIG is the default one; SPLIT is "train" where none is given. No code of the data set is run.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from assay.data.corpora import Corpus, Document
from assay.errors import CorpusError, NeedsExtra

FORM = "hub:NAME[:CONFIG[:SPLIT]]:COLUMN"


class Hub(Corpus):
    """One column of one split of a hub data set. Raises CorpusError for a name of another form."""

    def __init__(self, spelled: str) -> None:
        parts = spelled.removeprefix("hub:").split(":")
        if not 2 <= len(parts) <= 4 or not parts[0] or not parts[-1]:
            raise CorpusError(f"corpus {spelled!r}: allowed: {FORM}, e.g. hub:wikitext:wikitext-2-raw-v1:train:text.")
        self.repo, self.column = parts[0], parts[-1]
        self.config = parts[1] or None if len(parts) > 2 else None
        self.split = parts[2] or "train" if len(parts) > 3 else "train"
        self.name = spelled
        self.licence = "see the data set's card"

    @cached_property
    def revision(self) -> str:
        """The commit that is read."""
        from huggingface_hub import HfApi

        try:
            found = HfApi().dataset_info(self.repo).sha
        except Exception as error:  # whatever the client raises offline, for a wrong name or a closed repository
            raise self._cannot_read(error) from error
        if not found:
            raise CorpusError(f"corpus {self.name!r}: the hub names no commit for it.")
        return found

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.name, self.revision]).encode()).hexdigest()

    def read(self) -> Iterator[Document]:
        number = -1
        rows = iter(self._rows())
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise self._cannot_read(error) from error
            number += 1
            if self.column not in row:
                raise CorpusError(f"corpus {self.name!r}: no column {self.column!r}; there are {sorted(row)[:12]}.")
            yield Document(str(number), row[self.column] if isinstance(row[self.column], str) else "")

    def _rows(self) -> Any:
        try:
            from datasets import load_dataset  # type: ignore[import-not-found]
        except ImportError as error:
            raise NeedsExtra("Reading data sets of the hub", "hub") from error
        try:
            return load_dataset(self.repo, self.config, split=self.split, streaming=True, revision=self.revision)
        except CorpusError:
            raise
        except Exception as error:
            raise self._cannot_read(error) from error

    def _cannot_read(self, error: BaseException) -> CorpusError:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return CorpusError(f"corpus {self.name!r}: the hub cannot be read ({type(error).__name__}: {reason[:200]}). Check the"
                           f" name ({FORM}) and the network; or save it as JSONL or Parquet and give that file.")  # fmt: skip
