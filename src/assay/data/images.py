"""Pictures for vision: rendered scenes with known contents, and pictures from files.

1. A scene has a name that says nothing of its contents (`wheels/confirm/t03/9f2c01`): concept, split, template, and a hash
   that seeds everything drawn, the label included. The same name gives the same picture.
2. A template is one background (colours, texture, or a patch of a photograph) with one place and size: members, near misses
   and plain negatives are drawn on the same background, so a background cannot tell them apart.
3. Near misses look like members: for `wheels` discs, rings, clocks, flowers and targets; for `windows` plain panels, framed
   pictures, chessboards, screens and doors. Other negatives: stars, blobs, lines, or nothing.
4. `ood` has backgrounds and styles that no other split has: patches of photographs, bicycle wheels, curtained windows.
5. `car_scene`: a car seen from the side, with or without wheels and windows.

Rendered scenes are drawings: what holds on them need not hold on photographs. Files are read by `data/image_files.py` and
fitted to a model's size as its own processor does it (`Fit`) or, where it has none, by their middle square. Kept in memory
are drawings, and pictures of files once they are small.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.data.image_files import read_image
from assay.data.splits import spread
from assay.errors import TaskError, bad_argument
from assay.model.images import Fit, Pixels
from assay.records import Example, digest

SCENES = ("wheels", "windows")
TEMPLATES = {"discover": 12, "tune": 16, "confirm": 28, "ood": 14}
PER_TEMPLATE, SIZE, OVER = 8, 224, 2
KEPT = 256  # small pictures of files in memory
BY_CONTENT, FILES = "picture:", dict[str, Path]()  # pictures of files, by content
DRAWING = 1  # goes up when the same name would give another picture
BARE = "bare"  # in the place of a scene's hash: its background with nothing on it
PLAIN_STYLES = ("flat", "fade", "noise", "stripes", "blobs", "road", "bricks")


@dataclass(frozen=True)
class SceneSource:
    """A rendered concept as a source of claims. `data`: wheels or windows."""

    data: str

    def __post_init__(self) -> None:
        if self.data not in SCENES:
            raise bad_argument("concept", self.data, ", ".join(SCENES))

    @property
    def name(self) -> str:
        return self.data

    def record(self) -> dict[str, Any]:
        return {"type": "scenes", "name": self.data}

    def digest(self, split: str, n: int, seed: int) -> str:
        return digest([DRAWING, self.items(split, n, seed)])

    def items(self, split: str, n: int, seed: int) -> list[Example]:
        """Up to n scenes of a split, spread over its templates: half members, a quarter near misses."""
        if split not in TEMPLATES:
            raise bad_argument("split", split, ", ".join(TEMPLATES))
        return spread(list(_scenes(self.data, split, seed)), n)

    def n_templates(self, split: str) -> int:
        return TEMPLATES[split]

    def dropped(self) -> dict[str, int]:
        return {}


def images_for(pixels: Pixels, names: Sequence[str]) -> Tensor:
    """Pictures (n, channels, size, size) in 0..1 as a model takes them. Raises TaskError."""
    return load_images(names, pixels.size, pixels.channels, pixels.fit)


def load_images(names: Sequence[str], size: int, channels: int = 3, fit: Fit | None = None) -> Tensor:
    """Pictures (n, channels, size, size) in 0..1 of scene names, `image:` texts or paths. Raises TaskError.

    What `fit` makes of a picture (None: its middle square) is scaled to `size`.
    """
    out = []
    for name in names:
        drawn = _drawn(name)
        picture = _from_file(name, size, fit) if drawn is None else _fitted(_image(drawn), size, fit)
        out.append(picture.mean(1, keepdim=True) if channels == 1 else picture)
    return torch.cat(out)


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


@lru_cache(maxsize=1024)
def _drawn(name: str) -> np.ndarray | None:
    """A scene, a car or a digit (h, h, 3) in 0..255; None for the name of a file."""
    parts = name.split("/")
    if len(parts) == 4 and parts[0] in SCENES and parts[1] in TEMPLATES:
        return render(name)
    if len(parts) == 4 and parts[0] == "cars":
        return car_scene(name)
    if len(parts) == 3 and parts[0] == "digits" and parts[1] in ("train", "test") and parts[2].isdigit():
        return _digit(parts[1], int(parts[2]))
    return None


@lru_cache(maxsize=KEPT)
def _from_file(name: str, size: int, fit: Fit | None) -> Tensor:
    if name.startswith(BY_CONTENT) and name not in FILES:
        raise TaskError(f"{name}: this picture's file was not read here; give the list of pictures that names it.")
    return _fitted(read_image(FILES.get(name, Path(name.removeprefix("image:")))), size, fit)


def _fitted(image: Any, size: int, fit: Fit | None) -> Tensor:
    """A picture of Pillow as (1, 3, size, size) in 0..1."""
    whole = np.asarray(_middle(image) if fit is None else fit.of(image))
    picture = torch.tensor(whole, dtype=torch.float32).permute(2, 0, 1)[None] / 255
    if picture.shape[-1] != size:
        picture = torch.nn.functional.interpolate(picture, (size, size), mode="bilinear", antialias=True)
    return picture


def _middle(image: Any) -> Any:
    """The largest square in the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def known_file(path: Path) -> str:
    """A picture's file under the name of its content, by which `load_images` finds it. Raises TaskError for no file."""
    try:
        name = BY_CONTENT + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise TaskError(f"{path}: not a file that can be read ({error}).") from error
    FILES[name] = path
    return name


def on_background(name: str, template: str) -> str:
    """A scene's name with its drawing on the background of another template of its split (`t03`)."""
    concept, split, _, drawing = name.split("/")
    return f"{concept}/{split}/{template}/{drawing}@{name.split('/')[2]}"


def bare(name: str) -> str:
    """The background of a scene with nothing on it."""
    return f"{name.rpartition('/')[0]}/{BARE}"


def _digit(part: str, number: int) -> np.ndarray:
    """One of scikit-learn's digits (16, 16, 3) in 0..255."""
    from assay.model.image_digits import digit_images

    images = digit_images(part)[0]
    if number >= len(images):
        raise TaskError(f"digits/{part}/{number}: allowed: 0 to {len(images) - 1}.")
    return (images[number, 0] * 255).round().byte().numpy()[..., None].repeat(3, 2)


# scenes ------------------------------------------------------------------------------------------


@lru_cache(maxsize=32)
def _scenes(concept: str, split: str, seed: int) -> tuple[Example, ...]:
    """All scenes of a split: per template four members, two near misses and two others, in an order that tells nothing."""
    found = []
    for template in range(TEMPLATES[split]):
        place, wanted, number = f"{concept}/{split}/t{template:02d}", {"member": 4, "near": 2, "other": 2}, 0
        while any(wanted.values()):
            name = f"{place}/{hashlib.sha256(f'{place}{seed}{number}'.encode()).hexdigest()[:10]}"
            role, number = role_of(name), number + 1
            if wanted[role]:
                wanted[role] -= 1
                found.append(Example(name, int(role == "member"), place, near_miss=role == "near"))
    return tuple(found)


def role_of(name: str) -> str:
    """member, near or other: what a scene's name seeds."""
    return ("member", "member", "near", "other")[_rng(name, "role").integers(4)]


def render(name: str) -> np.ndarray:
    """A scene (224, 224, 3) in 0..255; also one that is drawn `on_background`, or `bare`."""
    concept, split, template, code = name.split("/")
    fixed = _rng(f"{concept}/{split}/{template}", "template")
    canvas = background(fixed, split == "ood")
    if code == BARE:
        return _down(canvas)
    code, _, home = code.partition("@")
    drawn = f"{concept}/{split}/{home or template}/{code}"
    role, rng = role_of(drawn), _rng(drawn, "drawing")
    radius = fixed.uniform(0.16, 0.3) * SIZE * OVER * rng.uniform(0.9, 1.1)
    centre = (np.array([0.5, 0.5]) + fixed.uniform(-0.15, 0.15, 2) + rng.uniform(-0.02, 0.02, 2)) * SIZE * OVER
    shapes = DRAWINGS[concept]
    kinds = shapes[f"{role} ood"] if role == "member" and split == "ood" else shapes[role]
    kinds[rng.integers(len(kinds))](canvas, centre, radius, rng)
    return _down(canvas)


def _rng(name: str, what: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{name}|{what}".encode()).digest()[:8], "big"))


def _down(image: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def background(rng: np.random.Generator, photograph: bool) -> Any:
    """A canvas of 448 x 448: a texture, or a patch of one of scikit-learn's two photographs."""
    from PIL import Image

    side = SIZE * OVER
    if photograph:
        source = _photographs()[rng.integers(2)]
        cut = int(rng.integers(150, 400))
        top, left = (int(rng.integers(0, limit - cut)) for limit in source.shape[:2])
        return Image.fromarray(source[top : top + cut, left : left + cut]).resize((side, side), Image.Resampling.BICUBIC)
    style, a, b = PLAIN_STYLES[rng.integers(len(PLAIN_STYLES))], *rng.integers(40, 230, (2, 3)).astype(float)
    y, x = np.mgrid[0:side, 0:side] / side
    share = {
        "flat": np.zeros_like(x),
        "fade": x * rng.uniform(-1, 1) + y,
        "stripes": (np.sin(2 * np.pi * (x + y) * rng.integers(3, 9)) > 0),
        "road": y > rng.uniform(0.55, 0.75),
        "bricks": ((y * 10 % 1 < 0.1) | ((x * 5 + 0.5 * (y * 10 // 1 % 2)) % 1 < 0.05)),
        "noise": rng.random((side, side)),
        "blobs": _blobs(rng, side),
    }[style]
    image = a + (b - a) * np.clip(share, 0, 1)[..., None] + rng.normal(0, 4, (side, side, 1))
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def _blobs(rng: np.random.Generator, side: int) -> np.ndarray:
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 255, (8, 8)).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(coarse) / 255


@lru_cache(maxsize=1)
def _photographs() -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_sample_image

    return tuple(load_sample_image(name) for name in ("china.jpg", "flower.jpg"))


def _pen(canvas: Any) -> Any:
    from PIL import ImageDraw

    return ImageDraw.Draw(canvas)


def _box(c: np.ndarray, rx: float, ry: float | None = None) -> list[float]:
    ry = rx if ry is None else ry
    return [c[0] - rx, c[1] - ry, c[0] + rx, c[1] + ry]


def _grey(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    base = int(rng.integers(low, high))
    return tuple(int(np.clip(base + v, 0, 255)) for v in rng.integers(-8, 9, 3))  # type: ignore[return-value]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(v) for v in rng.integers(30, 240, 3))  # type: ignore[return-value]


def wheel(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """A car wheel: black tyre, bright rim, five to nine spokes, a hub."""
    pen, rim = _pen(canvas), _grey(rng, 150, 220)
    pen.ellipse(_box(c, r), fill=_grey(rng, 15, 40))
    pen.ellipse(_box(c, 0.68 * r), fill=rim)
    n, start, gap = int(rng.integers(5, 10)), rng.uniform(0, 6.3), _grey(rng, 30, 70)
    for spoke in range(n):
        middle, half = start + 2 * np.pi * spoke / n, rng.uniform(0.5, 0.7) * np.pi / n
        wedge = [
            (c[0] + k * r * np.cos(a), c[1] + k * r * np.sin(a))
            for k, a in ((0.24, middle - half), (0.6, middle - half), (0.6, middle + half), (0.24, middle + half))
        ]
        pen.polygon(wedge, fill=gap)
    pen.ellipse(_box(c, 0.12 * r), fill=_grey(rng, 60, 120))


def bicycle_wheel(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """A thin tyre, many thin spokes, what lies behind it shows through."""
    pen, n = _pen(canvas), int(rng.integers(14, 25))
    for spoke in range(n):
        a = 2 * np.pi * spoke / n
        pen.line([c[0], c[1], c[0] + r * np.cos(a), c[1] + r * np.sin(a)], fill=_grey(rng, 150, 200), width=2)
    pen.ellipse(_box(c, r), outline=_grey(rng, 15, 50), width=int(0.09 * r))
    pen.ellipse(_box(c, 0.9 * r), outline=_grey(rng, 150, 200), width=3)
    pen.ellipse(_box(c, 0.07 * r), fill=_grey(rng, 40, 90))


def disc(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    _pen(canvas).ellipse(_box(c, r), fill=_colour(rng) if rng.random() < 0.5 else _grey(rng, 15, 60))


def ring(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    _pen(canvas).ellipse(_box(c, r), outline=_grey(rng, 15, 60), width=int(0.32 * r))


def clock(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen = _pen(canvas)
    pen.ellipse(_box(c, r), fill=_grey(rng, 20, 60))
    pen.ellipse(_box(c, 0.85 * r), fill=_grey(rng, 210, 245))
    for mark in range(12):
        a = mark * np.pi / 6
        pen.line(
            [c[0] + 0.7 * r * np.cos(a), c[1] + 0.7 * r * np.sin(a), c[0] + 0.8 * r * np.cos(a), c[1] + 0.8 * r * np.sin(a)],
            fill=(20, 20, 20),
            width=5,
        )
    for length in (0.45, 0.62):
        a = rng.uniform(0, 6.3)
        pen.line([c[0], c[1], c[0] + length * r * np.cos(a), c[1] + length * r * np.sin(a)], fill=(20, 20, 20), width=7)


def flower(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen, n, colour = _pen(canvas), int(rng.integers(5, 10)), _colour(rng)
    for petal in range(n):
        a = 2 * np.pi * petal / n
        pen.ellipse(_box(c + 0.6 * r * np.array([np.cos(a), np.sin(a)]), 0.38 * r), fill=colour)
    pen.ellipse(_box(c, 0.3 * r), fill=_colour(rng))


def target(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen, colours = _pen(canvas), (_grey(rng, 15, 60), _grey(rng, 190, 240))
    for number, share in enumerate((1.0, 0.68, 0.4, 0.15)):
        pen.ellipse(_box(c, share * r), fill=colours[number % 2])


def pane(canvas: Any, corners: list[tuple[float, float]], rng: np.random.Generator, frame: Any, width: int) -> None:
    """One pane of glass: bluish grey, brighter stripes of reflection, a frame."""
    pen, tone = _pen(canvas), int(rng.integers(60, 150))
    pen.polygon(corners, fill=(tone - 20, tone, tone + 22))
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    for at in (rng.uniform(0.15, 0.35), rng.uniform(0.5, 0.7)):
        wide = rng.uniform(0.06, 0.14)
        top = [(x0 + (x1 - x0) * (at + k), y0 + (y1 - y0) * (at + k)) for k in (0.1, 0.1 + wide)]
        low = [(x3 + (x2 - x3) * (at + k), y3 + (y2 - y3) * (at + k)) for k in (wide - 0.1, -0.1)]
        pen.polygon([*top, *low], fill=(tone + 25, tone + 45, tone + 65))
    pen.line([*corners, corners[0]], fill=frame, width=width)


def car_window(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """The side windows of a car: two slanted panes with a pillar between."""
    frame = _grey(rng, 15, 60)
    (x, y), h = c, 0.55 * r
    pane(
        canvas,
        [(x - 0.55 * r, y - h), (x - 0.04 * r, y - h), (x - 0.04 * r, y + h), (x - 1.1 * r, y + h)],
        rng,
        frame,
        int(0.08 * r),
    )
    pane(
        canvas, [(x + 0.04 * r, y - h), (x + 0.5 * r, y - h), (x + r, y + h), (x + 0.04 * r, y + h)], rng, frame, int(0.08 * r)
    )


def house_window(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """Four panes in a frame."""
    frame, (x, y), w, h = _grey(rng, 200, 250), c, r * rng.uniform(0.6, 0.9), r
    for sx in (-1, 0):
        for sy in (-1, 0):
            x0, y0 = x + sx * w, y + sy * h
            pane(canvas, [(x0, y0), (x0 + w, y0), (x0 + w, y0 + h), (x0, y0 + h)], rng, frame, int(0.1 * r))


def curtained_window(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """A window with a curtain on each side."""
    house_window(canvas, c, r, rng)
    cloth = _colour(rng)
    for side in (-1, 1):
        _pen(canvas).polygon(
            [
                (c[0] + side * 0.8 * r, c[1] - r),
                (c[0] + side * 0.2 * r, c[1] - r),
                (c[0] + side * 0.6 * r, c[1] + r),
                (c[0] + side * 0.8 * r, c[1] + r),
            ],
            fill=cloth,
        )


def panel(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    x, y = c
    h, lean = 0.55 * r, rng.uniform(0, 0.5) * r
    _pen(canvas).polygon([(x - r + lean, y - h), (x + r - lean, y - h), (x + r, y + h), (x - r, y + h)], fill=_colour(rng))


def framed_picture(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen = _pen(canvas)
    pen.rectangle(_box(c, 0.8 * r, r), fill=_colour(rng))
    for _ in range(5):
        pen.ellipse(_box(c + rng.uniform(-0.4, 0.4, 2) * r, rng.uniform(0.1, 0.3) * r), fill=_colour(rng))
    pen.rectangle(_box(c, 0.8 * r, r), outline=_grey(rng, 40, 120), width=int(0.14 * r))


def chessboard(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen, n, colours = _pen(canvas), int(rng.integers(2, 6)), (_grey(rng, 20, 80), _grey(rng, 180, 240))
    step = 1.6 * r / n
    for i in range(n):
        for j in range(n):
            x, y = c[0] - 0.8 * r + i * step, c[1] - 0.8 * r + j * step
            pen.rectangle([x, y, x + step, y + step], fill=colours[(i + j) % 2])


def door(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    pen, wood = _pen(canvas), _colour(rng)
    pen.rectangle(_box(c, 0.55 * r, 1.1 * r), fill=wood, outline=_grey(rng, 20, 80), width=int(0.07 * r))
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        pen.rectangle(_box(c + r * np.array([0.24 * sx, 0.5 * sy]), 0.17 * r, 0.38 * r), outline=_grey(rng, 20, 80), width=4)
    pen.ellipse(_box(c + r * np.array([0.42, 0.05]), 0.06 * r), fill=(200, 180, 60))


def star(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    n, start = int(rng.integers(3, 8)), rng.uniform(0, 6.3)
    points = [
        (
            c[0] + (r if k % 2 else 0.45 * r) * np.cos(start + np.pi * k / n),
            c[1] + (r if k % 2 else 0.45 * r) * np.sin(start + np.pi * k / n),
        )
        for k in range(2 * n)
    ]
    _pen(canvas).polygon(points, fill=_colour(rng))


def scribble(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    points = [tuple(c + rng.uniform(-1, 1, 2) * r) for _ in range(8)]
    _pen(canvas).line(points, fill=_colour(rng), width=int(rng.integers(6, 18)), joint="curve")


def nothing(canvas: Any, c: np.ndarray, r: float, rng: np.random.Generator) -> None:
    """The background alone."""


DRAWINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    "wheels": {
        "member": (wheel,),
        "member ood": (wheel, bicycle_wheel),
        "near": (disc, ring, clock, flower, target),
        "other": (star, scribble, nothing, panel, house_window),
    },
    "windows": {
        "member": (car_window, house_window),
        "member ood": (car_window, house_window, curtained_window),
        "near": (panel, framed_picture, chessboard, door),
        "other": (star, scribble, nothing, disc, wheel),
    },
}


def car_names(n: int, seed: int = 0, parts: str = "both", templates: int = 16, split: str = "") -> list[str]:
    """Names of n car scenes, `cars/<parts>/<split>t<template>/<hash>`; the template is the background.

    The same hashes for all parts. The split "ood" has photographs behind.
    """
    if parts not in ("both", "wheels", "windows", "neither"):
        raise bad_argument("parts", parts, "both, wheels, windows, neither")
    codes = [hashlib.sha256(f"car{split}{seed}{i}".encode()).hexdigest()[:10] for i in range(n)]
    return [f"cars/{parts}/{split}t{i % templates:02d}/{code}" for i, code in enumerate(codes)]


def car_scene(name: str) -> np.ndarray:
    """A car from the side (224, 224, 3) in 0..255; scenes that differ in `parts` alone are equal elsewhere."""
    _, parts, template, code = name.split("/")
    rng, fixed = _rng(code, "car"), _rng(template, "car background")
    canvas, side = background(fixed, template.startswith("ood") or fixed.random() < 0.3), SIZE * OVER
    pen, paint, w = _pen(canvas), _colour(rng), side * rng.uniform(0.7, 0.86)
    x, y, h = (side - w) / 2, side * rng.uniform(0.5, 0.6), w * rng.uniform(0.15, 0.18)
    pen.ellipse([x, y + 1.35 * h, x + w, y + 1.75 * h], fill=(40, 40, 40))
    cabin = [(x + 0.2 * w, y), (x + 0.36 * w, y - 0.85 * h), (x + 0.66 * w, y - 0.85 * h), (x + 0.84 * w, y)]
    pen.polygon(cabin, fill=paint)
    pen.rounded_rectangle([x, y - 0.05 * h, x + w, y + 1.2 * h], radius=0.4 * h, fill=paint)
    pen.line([x + 0.5 * w, y, x + 0.5 * w, y + 1.1 * h], fill=tuple(int(0.6 * v) for v in paint), width=4)
    pen.rectangle([x, y + 0.9 * h, x + w, y + 1.2 * h], fill=tuple(int(0.5 * v) for v in paint))
    pen.ellipse([x + 0.95 * w, y + 0.2 * h, x + 0.995 * w, y + 0.5 * h], fill=(240, 230, 160))
    pen.rectangle([x, y + 0.2 * h, x + 0.03 * w, y + 0.5 * h], fill=(190, 30, 30))
    window, tyre, r = _rng(code, "windows"), _rng(code, "wheels"), 0.52 * h
    if parts in ("both", "windows"):
        t = y - 0.73 * h
        pane(canvas, [(x + 0.365 * w, t), (x + 0.5 * w, t), (x + 0.5 * w, y), (x + 0.25 * w, y)], window, (20, 20, 20), 5)
        pane(canvas, [(x + 0.52 * w, t), (x + 0.65 * w, t), (x + 0.79 * w, y), (x + 0.52 * w, y)], window, (20, 20, 20), 5)
    if parts in ("both", "wheels"):
        for at in (0.2, 0.79):
            wheel(canvas, np.array([x + at * w, y + 1.12 * h]), r, tyre)
    return _down(canvas)


# the surface -------------------------------------------------------------------------------------
