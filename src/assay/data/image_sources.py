"""Where pictures of claims come from: drawn scenes, drawn cars in pairs, and one's own files.

1. `SceneSource` (`data/images.py`): wheels or windows, drawn, with near misses.
2. `CarSource`: the same car with all parts (clean) and without some (corrupted): `wheels`, `windows`, or `both`. A template is
   one background. `ood` has patches of photographs behind.
3. `PictureSource`: a file of labelled pictures, JSON Lines or CSV, split by connected groups as text files are:

    {"image": "photos/one.jpg", "label": 1, "group": "street 3"}          optional: "near_miss": true

4. `PicturePairs`: a file of pairs of pictures and the classes whose odds should fall from clean to corrupted:

    {"clean": "a.png", "corrupted": "b.png", "answer": "sports car", "group": "street 3"}     optional: "foil"

   Classes are names or numbers of the model's own, several joined by "|"; without a foil they are compared with all others.
Paths are relative to the file. A picture is known by its content, wherever it lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from assay.data.images import DRAWING, SCENES, SceneSource, car_names, known_file
from assay.data.rows import SUFFIXES, Layout, one_text, read_rows
from assay.data.splits import Division, divide, spread
from assay.data.whereabouts import file_of, file_record
from assay.errors import TaskError, bad_argument
from assay.records import Example, Pair, digest

CARS = "cars"
WITHOUT = {"wheels": "windows", "windows": "wheels", "both": "neither"}  # what is taken away -> what is left
PER_TEMPLATE = 4
SPLIT_TEMPLATES = {"discover": 12, "tune": 16, "confirm": 32, "ood": 16}
PICTURES, PAIRS = ("image", "label", "group"), ("clean", "corrupted", "answer", "group")


@dataclass(frozen=True)
class CarSource:
    """Drawn cars with and without some parts. `classes`: names or numbers of the classes that mean car."""

    classes: tuple[str, ...]
    without: str = "both"

    def __post_init__(self) -> None:
        if self.without not in WITHOUT:
            raise bad_argument("without", self.without, ", ".join(WITHOUT))
        if not self.classes:
            raise bad_argument("classes", "none", "the names or numbers of the model's classes that mean car")

    @property
    def name(self) -> str:
        return "cars" if self.without == "both" else f"cars without {self.without}"

    def record(self) -> dict[str, Any]:
        return {"type": CARS, "name": self.name, "corruption": self.without, "classes": list(self.classes)}

    def digest(self, split: str, n: int, seed: int) -> str:
        return digest([DRAWING, self.items(split, n, seed)])

    def items(self, split: str, n: int, seed: int) -> list[Pair]:
        """Up to n pairs of a split, templates in turn."""
        if split not in SPLIT_TEMPLATES:
            raise bad_argument("split", split, ", ".join(SPLIT_TEMPLATES))
        n = min(n, PER_TEMPLATE * SPLIT_TEMPLATES[split])
        names = [car_names(n, seed, parts, SPLIT_TEMPLATES[split], split) for parts in ("both", WITHOUT[self.without])]
        return [Pair(clean, corrupted, self.classes, (), f"{CARS}/{clean.split('/')[2]}")
                for clean, corrupted in zip(*names, strict=True)]  # fmt: skip

    def n_templates(self, split: str) -> int:
        return SPLIT_TEMPLATES[split]

    def dropped(self) -> dict[str, int]:
        return {}


class _File:
    """What sources of one's own pictures have in common. `path`: the file that lists them."""

    kind = ""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        return self.path.name

    def record(self) -> dict[str, Any]:
        self._divided()  # refuses a file that does not fit
        return {"type": self.kind, **file_record(self.path)}

    def digest(self, split: str, n: int, seed: int) -> str:
        """Hash of the contents of a split's pictures and their labels."""
        return digest(self.items(split, n, seed))

    def items(self, split: str, n: int, seed: int) -> list[Any]:
        """Up to n items of a split. Raises TaskError when there are none."""
        found = self._divided().splits[split]
        if not found or (isinstance(found[0], Example) and len({item.label for item in found}) < 2):
            raise TaskError(f"{self.name}: too little fell to the split {split!r}; a claim needs about 30 groups (8 each in"
                            " confirm and ood), of labelled pictures with both labels, and groups that share a picture count"
                            " as one.")  # fmt: skip
        return spread(found, n)

    def n_templates(self, split: str) -> int:
        return len({item.template for item in self._divided().splits[split]})

    def dropped(self) -> dict[str, int]:
        return dict(self._divided().dropped)

    def _divided(self) -> Division[Any]:
        found = self.path.stat() if self.path.exists() else None
        return _divided(self.kind, self.path.resolve(), 0 if found is None else found.st_mtime_ns)


class PictureSource(_File):
    """A file of labelled pictures."""

    kind = "pictures"


class PicturePairs(_File):
    """A file of pairs of pictures."""

    kind = "picture pairs"


@lru_cache(maxsize=8)
def _divided(kind: str, path: Path, changed: int) -> Division[Any]:
    return divide(read_pictures(path)) if kind == PictureSource.kind else divide(read_pairs(path))


def read_pictures(path: Path) -> list[Example]:
    """All labelled pictures of a file. Raises TaskError, naming line and field, for anything that does not fit."""
    layout, found = Layout("picture", "picture", PICTURES, ("near_miss",)), []
    for line, row in read_rows(path, layout):
        where = layout.where(path, line)
        label, near = (_flag(row.get(name), name, where) for name in ("label", "near_miss"))
        if near and label:
            raise TaskError(f"{where}, field 'near_miss': got true with label 1; allowed: only with label 0.")
        found.append(Example(_file(row, "image", path, where), label, one_text(row.get("group"), "group", where),
                             near_miss=bool(near)))  # fmt: skip
    return found


def read_pairs(path: Path) -> list[Pair]:
    """All pairs of a file. Raises TaskError, naming line and field, for anything that does not fit."""
    layout, found = Layout("picture pair", "pair", PAIRS, ("foil",)), []
    for line, row in read_rows(path, layout):
        where = layout.where(path, line)
        clean, corrupted = (_file(row, name, path, where) for name in ("clean", "corrupted"))
        found.append(Pair(clean, corrupted, _classes(row.get("answer"), "answer", where),
                          _classes(row["foil"], "foil", where) if row.get("foil") not in (None, "") else (),
                          one_text(row.get("group"), "group", where)))  # fmt: skip
    return found


def _file(row: Mapping[str, Any], name: str, path: Path, where: str) -> str:
    place = path.parent / one_text(row.get(name), name, where)
    if not place.is_file():
        raise TaskError(f"{where}, field {name!r}: no such file {place}; allowed: a picture, its path relative to this file.")
    return known_file(place)


def _flag(value: Any, name: str, where: str) -> int:
    known = {0: 0, 1: 1, "0": 0, "1": 1, "true": 1, "false": 0, **({} if name == "label" else {None: 0, "": 0})}
    if not isinstance(value, str | int | None) or value not in known:
        raise TaskError(f"{where}, field {name!r}: got {value!r}; allowed: 0 or 1.")
    return known[value]


def _classes(value: Any, name: str, where: str) -> tuple[str, ...]:
    given = str(value) if isinstance(value, int) else one_text(value, name, where, "a class's name or number")
    return tuple(part.strip() for part in given.split("|") if part.strip())


def picture_source(data: str, classes: Sequence[str] = (), without: str | None = None) -> Any:
    """The pictures of that name: wheels, windows, cars, or a file of one's own, by the fields of its first row.

    Raises UsageError for a name that is none, TaskError for a file that does not fit.
    """
    if data in SCENES:
        return SceneSource(data)
    if data == CARS:
        return CarSource(tuple(classes), without or "both")
    path = Path(data)
    if path.suffix.lower() not in SUFFIXES:
        hint = 'A folder names no groups: list its pictures, {"image": "cats/one.jpg", "label": 1, "group": "street 3"} a line.'
        raise bad_argument("DATA", data, f"{', '.join(SCENES)}, {CARS}, or a {' or '.join(SUFFIXES)} file of pictures",
                           hint if path.is_dir() else "")  # fmt: skip
    (_, first), *_ = read_rows(path, Layout("picture", "row", (), (*PICTURES, *PAIRS, "near_miss", "foil")))
    source = PicturePairs(data) if "clean" in first else PictureSource(data)
    source.record()
    return source


def picture_source_again(record: Mapping[str, Any]) -> Any:
    """The source that a claim keeps this record of. Raises ReproduceError for a file that is nowhere to be found."""
    kind = record["type"]
    if kind == "scenes":
        return SceneSource(str(record["name"]))
    if kind == CARS:
        return CarSource(tuple(record["classes"]), str(record["corruption"]))
    return (PictureSource if kind == PictureSource.kind else PicturePairs)(file_of(record))
