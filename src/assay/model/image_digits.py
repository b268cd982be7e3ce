"""Small image models trained in seconds on scikit-learn's digits (1,797 pictures of 8x8, upscaled to 16x16).

1. Pictures 0 to 1,346 are for training, the rest is held out (`digit_images("test")`).
2. `digits-cnn`: three convolutions with batch norm; `digits-vit`: a two-layer ViT of `transformers`. AdamW, fixed seed,
   small shifts as augmentation.
3. Weights are kept in the cache as safetensors, under the versions they were trained with: other versions train again.

Their accuracy on held-out pictures is printed by training; they are for tests and tutorials, not for claims about vision.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from assay.model.cache import cached, say
from assay.model.images import ImageModel, Pixels

PIXELS = Pixels(16, 1, (0.5,), (0.5,))
N_TRAIN, EPOCHS, RECIPE = 1347, {"digits-cnn": 12, "digits-vit": 30}, 1


class DigitsCNN(nn.Module):
    """Three convolutions, mean over places, one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.conv3 = nn.Sequential(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU())
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.conv3(self.conv2(self.conv1(x))).amax((2, 3)))


@lru_cache(maxsize=2)
def digit_images(part: str = "train") -> tuple[Tensor, Tensor]:
    """(pictures (n, 1, 16, 16) in 0..1, digits (n,)) of `train` or `test`."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = F.interpolate(torch.tensor(data.images / 16.0, dtype=torch.float32)[:, None], scale_factor=2, mode="bilinear")
    rows = slice(0, N_TRAIN) if part == "train" else slice(N_TRAIN, None)
    return images[rows].clamp(0, 1), torch.tensor(np.asarray(data.target)[rows], dtype=torch.long)


def trained_on_digits(name: str) -> ImageModel:
    """The model of that name, trained when it is first used."""
    recipe = f"{name} {RECIPE} {torch.__version__} {EPOCHS[name]}"
    manifest = {
        "name": name,
        "source": "trained on scikit-learn's digits",
        "sha256": hashlib.sha256(recipe.encode()).hexdigest(),
    }

    def build(work: Path, folder: Path) -> int:
        module = make_digits_net(name)
        say(f"training {name}, once")
        say(f"{name}: {train_digits(module, EPOCHS[name]):.1%} of held-out digits right")
        save_file({key: value.contiguous() for key, value in module.state_dict().items()}, folder / "model.safetensors")
        return sum(p.numel() for p in module.parameters())

    module = make_digits_net(name)
    module.load_state_dict(load_file(cached(name, manifest, build) / "model.safetensors"))
    return ImageModel(module, PIXELS, name, manifest["source"], {digit: str(digit) for digit in range(10)})


def make_digits_net(name: str, seed: int = 0) -> nn.Module:
    """The untrained net of that name."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "digits-cnn":
            return DigitsCNN()
        from transformers import ViTConfig, ViTForImageClassification

        config: Any = dict(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=16, patch_size=4,
            num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
        return ViTForImageClassification(ViTConfig(**config))


def train_digits(module: nn.Module, epochs: int, seed: int = 0) -> float:
    """Train in place; the share of held-out digits that it gets right."""
    images, digits = digit_images("train")
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for rows in order.split(64)[: len(images) // 64]:
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            loss = F.cross_entropy(_logits(module, images[rows].roll(shift, (2, 3))), digits[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    module.eval()
    held, truth = digit_images("test")
    with torch.no_grad():
        return float((_logits(module, held).argmax(1) == truth).float().mean())


def _logits(module: nn.Module, images: Tensor) -> Tensor:
    out = module(PIXELS.normalise(images))
    return getattr(out, "logits", out)
