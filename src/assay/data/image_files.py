"""A picture's file as it is meant to be seen: upright, three colours, 8 bits each.

1. The turn that a camera wrote down (EXIF) is done.
2. Grey of 16 bits becomes 8: white is 65,535. Floats, and whole numbers of 32 bits, do not say what is white: refused.
3. What is transparent shows white.
"""

from pathlib import Path
from typing import Any

import numpy as np

from assay.errors import TaskError

SIXTEEN = ("PNG", "PPM")  # formats whose mode I is 16 bits
ALLOWED = "allowed: 8 bits a colour, or 16 bits of grey. Save it as PNG."


def read_image(path: Path) -> Any:
    """A file as a picture of Pillow, mode RGB. Raises TaskError."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            return _on_white(_eight_bits(ImageOps.exif_transpose(image), image.format, path))
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise TaskError(f"{path}: too many pixels ({error}) allowed: {limit:,} at most. Make it smaller first.") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise TaskError(f"{path}: not a picture that can be read ({error}).") from error


def _eight_bits(image: Any, form: str | None, path: Path) -> Any:
    """The picture with 8 bits a colour."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and form not in SIXTEEN):
        kind = "floats" if image.mode == "F" else "whole numbers of 32 bits"
        raise TaskError(f"{path}: its pixels are {kind} (mode {image.mode}), which do not say what is white; {ALLOWED}")
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))


def _on_white(image: Any) -> Any:
    """The picture in RGB, white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
