"""Pictures of files: what is read is what a person sees, and memory does not grow with them."""

import gc
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from assay.data import images
from assay.data.image_files import read_image
from assay.data.images import load_images
from assay.errors import TaskError
from assay.model.images import Fit

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def test_grey_of_16_bits_is_the_same_grey(tmp_path):
    deep = RAMP.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + deep.astype(">u2").tobytes())
    for name in ("deep.png", "deep.tif", "deep.pgm"):
        assert np.array_equal(np.asarray(read_image(tmp_path / name)), RAMP[..., None].repeat(3, 2)), name


def test_pixels_that_do_not_say_what_is_white_are_refused(tmp_path):
    Image.fromarray((RAMP / 255).astype(np.float32)).save(tmp_path / "floats.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "long.tif")
    for name, said in (("floats.tif", "floats"), ("long.tif", "whole numbers of 32 bits")):
        with pytest.raises(TaskError, match=rf"{name}: its pixels are {said}.*allowed: 8 bits.*Save it as PNG"):
            load_images([str(tmp_path / name)], 8)


def test_the_turn_that_a_camera_wrote_down_is_done(tmp_path):
    upright = Image.fromarray(RAMP[..., None].repeat(3, 2))
    turned, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise when it is shown
    turned.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path / "turned.png")), np.asarray(upright))


def test_what_is_transparent_is_white(tmp_path):
    red = np.zeros((4, 4, 4), np.uint8)
    red[..., 0], red[:2, :, 3], red[2, :, 3] = 200, 255, 128
    Image.fromarray(red).save(tmp_path / "alpha.png")
    Image.fromarray(np.array([[0, 90]], np.uint8)).save(tmp_path / "key.png", transparency=0)
    seen = np.asarray(read_image(tmp_path / "alpha.png"))
    assert seen[0, 0].tolist() == [200, 0, 0] and seen[3, 0].tolist() == [255] * 3
    assert np.abs(seen[2, 0].astype(int) - [227, 127, 127]).max() <= 1
    assert np.asarray(read_image(tmp_path / "key.png"))[0].tolist() == [[255] * 3, [90] * 3]


def test_a_picture_of_too_many_pixels_and_a_file_that_is_none_are_errors_in_words(tmp_path, monkeypatch):
    Image.fromarray(RAMP).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(TaskError, match="large.png: too many pixels.*64 pixels.*allowed: 40 at most.*smaller"):
        load_images([str(tmp_path / "large.png")], 8)
    for name in ("text.png", "none.png"):
        with pytest.raises(TaskError, match=f"{name}: not a picture"):
            load_images([str(tmp_path / name)], 8)


def test_memory_does_not_grow_with_a_folder_of_photographs(tmp_path):
    rng, side = np.random.default_rng(0), 700
    names = [str(tmp_path / f"{number}.bmp") for number in range(24)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(name)
    for fit in (None, Fit(36, 32)):
        images._from_file.cache_clear()
        gc.collect()
        tracemalloc.start()
        for name in names:
            assert load_images([name], 32, fit=fit).shape == (1, 3, 32, 32)
        now, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert now < side * side * 3 < 24 * side * side * 3 / 4 and peak < 8 * side * side * 3
    kept = images._from_file.cache_info()
    assert kept.currsize == len(names) and kept.maxsize == images.KEPT
    first = load_images(names[:1], 32, fit=Fit(36, 32))
    first += 1  # what is kept is not handed out
    assert float(load_images(names[:1], 32, fit=Fit(36, 32)).max()) <= 1 and torch.isfinite(first).all()
