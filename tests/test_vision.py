"""Image models against raw PyTorch hooks and closed forms."""

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from assay.data.images import SceneSource, load_images
from assay.errors import ShapeError, SiteError
from assay.evidence.image_circuits import class_score
from assay.model.image_load import EfficientNetLite0
from assay.model.images import ImageEdit, ImageModel, Pixels
from assay.vision.channels import feeds

TINY = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    image_size=16,
    patch_size=4,
    num_channels=1,
    num_labels=5,
)


class Small(nn.Module):
    """Linear but for one ReLU, with an in-place one and a part that is never read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.b, self.unread, self.out = nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 2, 1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.act(self.a(x))
        self.unread(x)
        return self.out(self.b(x).mean((2, 3)))


@pytest.fixture
def small() -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(Small(), Pixels(16, 1, (0.5,), (0.5,)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def test_sites_capture_and_edits_equal_raw_hooks(small, images):
    assert "block.unread" in small.layout.absent and "block.b" in small.layout.points
    raw = []
    with small.hf.b.register_forward_hook(lambda m, i, o: raw.append(o.clone())):
        clean = small.hf(small.pixels.normalise(images)).detach()
    assert torch.equal(small.capture(images, ["block.b"], batch=5)["block.b"], raw[0])
    assert torch.equal(small.capture(images, ["block.b.2"], batch=5)["block.b.2"], raw[0][:, 2])
    mask = torch.zeros(16, 16)
    mask[3:7, 2:9] = 1

    def patch(module, given, out):
        out = out.clone()
        out[:, 2, 3:7, 2:9] = 1.5
        return out

    with small.hf.b.register_forward_hook(patch):
        expected = small.hf(small.pixels.normalise(images)).detach()
    got = small.logits(images, [ImageEdit("block.b.2", 1.5, mask=mask)])
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(got, clean) and not small.hf.b._forward_hooks
    other = small.capture(images.flip(0), ["block.b"])["block.b"]
    patched = small.logits(images, [ImageEdit("block.b", other)], batch=2)
    torch.testing.assert_close(patched, small.logits(images.flip(0)))


def test_mistakes_are_named(small, images):
    with pytest.raises(SiteError, match="0 to 3"):
        small.capture(images, ["block.b.9"])
    with pytest.raises(SiteError, match="do not depend"):
        small.capture(images, ["block.unread"])
    with pytest.raises(ShapeError):
        small.logits(images, [ImageEdit("block.b", torch.zeros(7))])
    with pytest.raises(ShapeError, match="images"):
        small.logits(images[..., :8])


@pytest.mark.parametrize(
    "hf",
    [
        lambda: ViTForImageClassification(ViTConfig(**TINY)),
        lambda: Dinov2ForImageClassification(Dinov2Config(**TINY, mlp_ratio=2)),
    ],
)
def test_a_vit_has_the_transformer_sites_and_its_parts_add_up(hf, images):
    torch.manual_seed(0)
    model = ImageModel(hf(), Pixels(16, 1, (0.5,), (0.5,)))
    names = [
        f"{name}.{layer}"
        for layer in (0, 1)
        for name in ("resid_pre", "attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_act", "mlp_out", "resid_post")
    ]
    assert set(names) <= set(model.layout.points), model.layout.absent
    got = model.capture(images, names)
    for layer in (0, 1):
        parts = got[f"resid_pre.{layer}"] + got[f"attn_out.{layer}"] + got[f"mlp_out.{layer}"]
        torch.testing.assert_close(parts, got[f"resid_post.{layer}"])
    assert model.capture(images, ["z.1.3"])["z.1.3"].shape == (5, 17, 4)
    assert not torch.allclose(model.logits(images, [ImageEdit("z.1.3", 0.0)]), model.logits(images))


def test_feeds_tells_the_channel_that_carries_a_class(images):
    torch.manual_seed(0)
    module = Small()
    with torch.no_grad():
        module.out.weight.zero_()
        module.out.weight[0, 2] = 5.0
    model = ImageModel(module, Pixels(16, 1, (0.5,), (0.5,)))
    images = torch.rand(16, 1, 16, 16)
    templates = [str(i // 2) for i in range(16)]
    reference = torch.zeros(2, 1, 16, 16)
    carries = feeds(model, images, templates, reference, "block.b", [2], [0], draws=9)
    does_not = feeds(model, images, templates, reference, "block.b", [1], [0], draws=9)
    assert all(abs(effect) < 1e-5 for effect in carries.random) and abs(carries.effect) > 0.1
    assert abs(does_not.effect) < 1e-5


def test_feeds_reads_units_of_a_transformer(images):
    torch.manual_seed(0)
    model = ImageModel(ViTForImageClassification(ViTConfig(**TINY)), Pixels(16, 1, (0.5,), (0.5,)))
    found = feeds(model, images, list("aabbc"), torch.zeros(2, 1, 16, 16), "resid_post.0", [3], [0], draws=2)
    mean = model.capture(torch.zeros(2, 1, 16, 16), ["resid_post.0"])["resid_post.0"][..., 3].mean()
    moved = model.logits(images, [ImageEdit("resid_post.0", float(mean), channels=(3,))])
    falls = (class_score(model.logits(images), [0]) - class_score(moved, [0])).mean()
    assert found.effect == pytest.approx(float(falls), abs=1e-6) and len(found.random) == 2


def test_scenes_are_the_same_for_the_same_name_and_balanced_in_every_template():
    items = SceneSource("wheels").items("tune", 128, 0)
    for template in {item.template for item in items}:
        mine = [item for item in items if item.template == template]
        assert sum(item.label for item in mine) == 4 and sum(item.near_miss for item in mine) == 2
    names = [item.text for item in items[:2]]
    assert torch.equal(load_images(names, 64), load_images(names, 64))


def test_lite0_has_the_parameters_of_the_published_net():
    net = EfficientNetLite0().eval()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
