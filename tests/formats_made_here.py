"""Dictionaries of every architecture with numbers that show mistakes: no two biases, norms or thresholds alike."""

import torch

from assay.features.dictionary import Dictionary, Spec, make_dictionary

D, WIDTH, K, OUT = 6, 12, 3, 5
ONE, ACROSS = {"inputs": ("resid_post.3",), "outputs": ("resid_post.3",)}, {"inputs": ("mlp_in.3",), "outputs": ("mlp_out.3",)}


def made(architecture: str, seed: int = 0, threshold: float = 0.8, **changes) -> Dictionary:
    """One with random numbers; the scalar threshold of a batchtopk family is `threshold`."""
    given = {"k": K if architecture in ("topk", "batchtopk", "matryoshka", "groupmax", "clt", "crosscoder") else None, **ONE,
             "skip_first": 2, "norm_limit": 30.0, **changes}  # fmt: skip
    spec = Spec(architecture, given.pop("width", WIDTH), given.pop("d_in", D), given.pop("d_out", D), **given)
    dictionary = make_dictionary(spec, f"my {architecture}")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in dictionary.named_parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * (0.3 if value.dim() == 1 else 0.7))
            if name == "threshold":
                value.abs_()
        if architecture == "matching_pursuit":
            dictionary.W_dec.div_(dictionary.W_dec.norm(dim=1, keepdim=True))
            dictionary.W_enc.copy_(dictionary.W_dec)
            dictionary.b_enc.zero_()
        if architecture in ("batchtopk", "matryoshka", "clt", "crosscoder"):
            dictionary.threshold.fill_(threshold)
    dictionary.requires_grad_(False)
    dictionary.provenance = {"model": "tiny", "corpus": "none"}
    return dictionary


def every() -> dict[str, Dictionary]:
    """By a name that says what is special."""
    free, skip = {"options": {"decoder": "free"}}, {"centred": False, "d_out": OUT, "skip": True, **ACROSS}
    found = {name: made(name, seed) for seed, name in enumerate(
        ("relu", "jumprelu", "gated", "topk", "batchtopk", "matryoshka", "groupmax", "matching_pursuit"))}  # fmt: skip
    found |= {f"{name} raw input": made(name, 20 + seed, centred=False) for seed, name in enumerate(
        ("relu", "jumprelu", "gated", "topk", "batchtopk", "groupmax"))}  # fmt: skip
    found |= {f"{name} free": made(name, 30 + seed, **free) for seed, name in enumerate(("topk", "batchtopk", "groupmax"))}
    found |= {
        f"{name} skip transcoder": made(name, 40 + seed, **skip) for seed, name in enumerate(("relu", "jumprelu", "batchtopk"))
    }
    found |= {
        f"{name} transcoder": made(name, 50 + seed, **{**skip, "skip": False}) for seed, name in enumerate(("relu", "jumprelu"))
    }
    found |= {
        f"{name} same-size transcoder": made(name, 60 + seed, centred=False, **ACROSS)
        for seed, name in enumerate(("topk", "relu"))
    }
    found["topk same-size skip transcoder"] = made("topk", 70, centred=False, skip=True, **ACROSS)
    found["relu layer norm"] = made("relu", 71, options={"input_norm": "layer"})
    found["topk root norm"] = made("topk", 72, options={"input_norm": "root"})
    small = {"heads": 2, "bottleneck": 3}
    found["temporal"] = made("temporal", 77, k=K, options={**small, "blocks": 2, "eps": 1e-5})
    found["temporal layer norm"] = made("temporal", 78, centred=False, options={**small, "input_norm": "layer"})
    found["relu square"] = made("relu", 73, width=D)
    layers = {
        "inputs": ("mlp_in.0", "mlp_in.1"),
        "outputs": ("mlp_out.0", "mlp_out.1"),
        "centred": False,
        "options": {"layers": 2},
    }
    found["clt"], found["clt_jumprelu"] = made("clt", 74, **layers), made("clt_jumprelu", 75, **layers)
    found["crosscoder"] = made("crosscoder", 76, options={"sizes": (D // 2, D // 2)}, inputs=("a", "b"), outputs=("a", "b"))
    return found


def inputs(d: int = D) -> torch.Tensor:
    """A batch of tokens off the origin."""
    return torch.randn(64, d, generator=torch.Generator().manual_seed(9)) * 2 + 0.5
