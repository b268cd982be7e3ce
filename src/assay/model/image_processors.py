"""How an image model's pictures are prepared, read from its own processor and proved on it.

1. The processor is that of the folder or hub id, made by `transformers` (its Pillow variant where it has one); timm's settings
   are those of the config. No code of the folder is run.
2. Its settings become `Pixels`: resize, cut and interpolation (`Fit`), mean and std. Some classes resize by a rule of their own
   (ConvNeXt and PoolFormer by `crop_pct`, LeViT by 256/224).
3. Proof: a photograph, the same on its side, and a small piece of it, by the processor and by what was read of it, agree to
   `PROVED` of their spread. Pillow against Pillow differs by rounding of floats, Pillow against torchvision by rounding to
   whole numbers between two passes (5e-3 at most); another interpolation by 2e-2, a cut that is one pixel off by 0.2.

What is not understood is refused by name: guessing would be silent.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from assay.errors import ModelError, UsageError
from assay.model.hub import offline
from assay.model.image_sites import first_line
from assay.model.images import FILTERS, Fit, Pixels
from assay.model.load import _quiet

PROVED = 1e-2
FAILURES = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError, IndexError, AssertionError)
STEPS = ("do_flip_channel_order", "rescale_offset", "do_grayscale")  # not done here
KNOWN = {"image_processor_type", "feature_extractor_type", "processor_class", "do_resize", "size", "default_to_square",
         "resample", "do_center_crop", "crop_size", "crop_pct", "do_rescale", "rescale_factor", "do_normalize", "image_mean",
         "image_std", "include_top", "do_convert_rgb", "do_reduce_labels", "data_format", "return_tensors"}  # fmt: skip
SHARP = 384  # ConvNeXt squashes pictures from this size on
Settings = Mapping[str, Any]


def read_pixels(name: str, config: Any, local: bool) -> Pixels:
    """What a model takes, as its own processor does it. Raises ModelError for what is not understood."""
    kept = getattr(config, "pretrained_cfg", None)
    try:
        timm = _timm(name, kept) if kept else None
        processor = _processor(name, local)
        settings = dict(kept or processor.to_dict())
        read = timm or _transformers(name, settings, int(getattr(config, "num_channels", 3)))
        gap = differs(processor, read)
    except (*FAILURES, UsageError) as error:
        raise ModelError(f"{name}: its processor ({'pretrained_cfg' if kept else 'preprocessor_config.json'}) cannot be read or"
                         f" used: {first_line(error)} It says size, crop, mean and std; in Python give"
                         " ImageModel(module, Pixels(..)).") from error  # fmt: skip
    if gap > PROVED:
        other = sorted(key for key, value in settings.items() if key not in KNOWN and value)
        raise ModelError(
            f"{name}: {type(processor).__name__} prepares a photograph otherwise than its size, crop, interpolation, mean and"
            f" std say (relative difference {gap:.2g}; allowed: {PROVED:g}); settings not understood:"
            f" {', '.join(other) or 'none, it is its code'}. In Python prepare pictures yourself and give"
            " ImageModel(module, Pixels(..))."
        )
    return read


def _processor(name: str, local: bool) -> Any:
    from transformers import AutoImageProcessor

    alone = not local and offline()
    with _quiet(local):
        return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False, local_files_only=alone)


def differs(processor: Any, pixels: Pixels) -> float:
    """The largest relative difference between a processor and what was read of it, over three pictures."""
    gaps = []
    for picture in _pictures():
        picture = picture.convert("L") if pixels.channels == 1 else picture
        expected = processor(picture, return_tensors="pt")["pixel_values"][0].float()
        got = pixels.normalise(_prepared(picture.convert("RGB"), pixels))[0]
        if got.shape != expected.shape:
            kind = type(processor).__name__
            raise ValueError(f"{kind} gives pictures of shape {tuple(expected.shape)}; its settings say {tuple(got.shape)}")
        gaps.append(float((got - expected).norm() / (expected - expected.mean()).norm()))
    return max(gaps)


def _pictures() -> list[Any]:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    return [photograph, photograph.transpose(Image.Transpose.ROTATE_90), photograph.crop((200, 100, 291, 165))]


def _prepared(picture: Any, pixels: Pixels) -> Tensor:
    """One picture (1, channel, size, size) in 0..1."""
    assert pixels.fit is not None
    whole = torch.tensor(np.asarray(pixels.fit.of(picture)), dtype=torch.float32).permute(2, 0, 1)[None] / 255
    return whole.mean(1, keepdim=True) if pixels.channels == 1 else whole


def _timm(name: str, kept: Settings) -> Pixels:
    """timm's settings: the side is resized to size / crop_pct, and the middle cut out."""
    channels, *sides = kept["input_size"]
    side, mode, filter = _square(name, sides), kept.get("crop_mode") or "center", kept.get("interpolation") or "bicubic"
    if mode not in ("center", "squash"):
        raise ModelError(f"{name}: its crop_mode is {mode!r}; allowed: center, squash.")
    resize = math.floor(side / (kept.get("crop_pct") or 0.875))
    fit = Fit(resize if mode == "center" else (resize, resize), side, filter, even=True)
    mean, std = kept.get("mean") or (0.485, 0.456, 0.406), kept.get("std") or (0.229, 0.224, 0.225)
    return Pixels(side, channels, tuple(map(float, mean)), tuple(map(float, std)), fit)


def _transformers(name: str, found: Settings, channels: int) -> Pixels:
    """The settings of a processor of transformers, defaults of its class included."""
    steps = (*STEPS, *(() if found.get("do_normalize") else ("include_top",)))
    if other := [step for step in steps if found.get(step)]:
        raise ModelError(f"{name}: its processor asks for {other[0]}, which is not done here; in Python wrap the module so that"
                         " it does it, and give ImageModel(module, Pixels(..)).")  # fmt: skip
    fit = _fit(name, found)
    return Pixels(fit.side, channels, *_normalisation(name, found), fit)


def _fit(name: str, found: Settings) -> Fit:
    """Resize, cut and interpolation. Raises ModelError where no square of one size comes out."""
    if not found.get("do_resize"):
        raise ModelError(f"{name}: its processor has do_resize false, so that pictures keep their size; allowed: one size.")
    kind, size, filter = str(found["image_processor_type"]), found["size"], FILTERS[int(found.get("resample", 2))]
    if not isinstance(size, dict) or set(size) not in ({"height", "width"}, {"shortest_edge"}):
        raise ModelError(f"{name}: its processor has size {size}; allowed: height and width, or shortest_edge.")
    crop = found.get("crop_size") if found.get("do_center_crop") else None
    cut = None if crop is None else _square(name, [crop.get("height"), crop.get("width")])
    if "height" in size and not kind.startswith("PoolFormer"):
        both = size["height"], size["width"]
        if cut is None:
            _square(name, both)
        return Fit(both, cut, filter)
    short = size.get("shortest_edge") or _square(name, [size["height"], size["width"]])
    if kind.startswith("ConvNext"):
        return Fit((short, short), cut, filter) if short >= SHARP else Fit(int(short / found["crop_pct"]), short, filter)
    if kind.startswith("Levit"):
        short = int(256 / 224 * short)
    if kind.startswith("PoolFormer"):
        short = int(short / found["crop_pct"])
    return Fit(short, cut, filter)


def _square(name: str, sides: Any) -> int:
    """The side of the pictures. Raises ModelError where they are not square or have no size."""
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
        raise ModelError(f"{name}: it takes pictures of size {list(sides)}; allowed: one size, height and width the same.")
    return sides[0]


def _normalisation(name: str, found: Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """mean and std for pictures in 0..1, from settings of a processor that makes (255 x factor - mean) / std of them."""
    scale = found["rescale_factor"] if found.get("do_rescale") else 1
    if not isinstance(scale, int | float) or scale <= 0:
        raise ModelError(f"{name}: preprocessor_config.json has rescale_factor {scale!r}; allowed: a number above 0, as 1/255.")
    factor = 255.0 * scale
    if not found.get("do_normalize"):
        return (0.0,), (1 / factor,)
    mean, std = found.get("image_mean"), found.get("image_std")
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise ModelError(f"{name}: preprocessor_config.json names no image_mean or image_std.")
    std = [value**2 for value in std] if found.get("include_top") else std  # EfficientNet divides twice
    return tuple(value / factor for value in mean), tuple(value / factor for value in std)
