"""Dictionary architectures: one file each; importing this package registers them."""

from assay.features.architectures import (
    batchtopk,
    clt,
    clt_jumprelu,
    crosscoder,
    gated,
    groupmax,
    jumprelu,
    matching_pursuit,
    matryoshka,
    relu,
    temporal,
    topk,
)

__all__ = ["batchtopk", "clt", "clt_jumprelu", "crosscoder", "gated", "groupmax", "jumprelu", "matching_pursuit",
           "matryoshka", "relu", "temporal", "topk"]  # fmt: skip
