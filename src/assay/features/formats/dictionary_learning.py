"""dictionary_learning folders: `ae.pt` (a state dictionary, read as tensors only) and `config.json`.

1. AutoEncoder: encoder.weight (latents, d), decoder.weight (d, latents), `bias` taken off inputs and added to outputs.
   AutoEncoderNew: decoder.bias, nothing taken off. GatedAutoEncoder: decoder_bias, gate_bias, mag_bias, r_mag.
2. AutoEncoderTopK and BatchTopKSAE have the same tensors (b_dec, k, threshold): only the config tells them apart. The first
   takes k per token; the second what is above its threshold, or all that is positive where the threshold is not set (-1).
3. JumpReluAutoEncoder: W_enc (d, latents), W_dec (latents, d), a threshold per latent, nothing taken off inputs.
   MatryoshkaBatchTopKSAE: the same names with one threshold and group_sizes, b_dec taken off.

Their `AutoEncoder.from_pretrained` brings decoder rows to norm 1 unless told not to: latents are then times those norms.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import bad_argument
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import FORMATS, OWN, Format, Found, known_site, layer_of, own_part
from assay.features.formats.plain import SCALED, Plain, again, free_rows, plain, unplain, write_json, write_torch
from assay.features.formats.reading import Config, Numbers, read_config, read_torch, words

CONFIG, WEIGHTS = "config.json", "ae.pt"
CLASSES = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "JumpReluAutoEncoder",
           "MatryoshkaBatchTopKSAE")  # fmt: skip
TRAINERS = {
    "StandardTrainer": "AutoEncoder",
    "PAnnealTrainer": "AutoEncoder",
    "StandardTrainerAprilUpdate": "AutoEncoder",
    "StandardTrainerNew": "AutoEncoderNew",
    "GatedSAETrainer": "GatedAutoEncoder",
    "GatedAnnealTrainer": "GatedAutoEncoder",
    "TopKTrainer": "AutoEncoderTopK",
    "TrainerTopK": "AutoEncoderTopK",
    "BatchTopKTrainer": "BatchTopKSAE",
    "JumpReluTrainer": "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKTrainer": "MatryoshkaBatchTopKSAE",
}
HARMLESS = words("""
    activation_queue_length adaptive_sparsity_penalty anneal_end anneal_start auxk_alpha auxk_coeff bandwidth dataset
    decay_start device group_fractions group_weights initial_sparsity_penalty k_anneal_steps l1_penalty lm_name lr
    model_name n_sparsity_updates norm_factor p_end p_start resample_steps seed sparsity_function
    sparsity_loss_queue_length sparsity_penalty sparsity_queue_length sparsity_warmup_steps steps
    steps_before_annealing submodule target_l0 threshold_beta threshold_start_step top_k_aux trainer_class
    wandb_entity wandb_name wandb_project warmup_steps
""")
BUFFER = words("""
    add_special_tokens ctx_len d_submodule dataset device layer max_activation_norm_multiple model_name n_ctxs
    out_batch_size refresh_batch_size remove_bos
""")
PLACES = {
    "resid_pre": "resid_pre",
    "resid_post": "resid_post",
    "resid": "resid_post",
    "resid_out": "resid_post",
    "mlp": "mlp_out",
    "mlp_out": "mlp_out",
    "attn": "attn_out",
    "attn_out": "attn_out",
    "attention": "attn_out",
}


def recognises(path: Path) -> bool:
    """A folder with ae.pt, or that file."""
    return (_folder(path) / WEIGHTS).is_file()


def _folder(path: Path) -> Path:
    return path.parent if path.name in (WEIGHTS, CONFIG) else path


# reading -----------------------------------------------------------------------------------------


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    folder = _folder(path)
    numbers = read_torch(folder / WEIGHTS)
    config = read_config(folder / CONFIG) if (folder / CONFIG).is_file() else Config(CONFIG, {})
    trainer, buffer = config.inner("trainer"), config.inner("buffer")
    own = config.get(OWN, dict, {})
    config.done(())
    kind = _kind(trainer, numbers)
    found = _read(kind, trainer, numbers)
    inputs, outputs = _sites(trainer, buffer)
    left = {**trainer.done(HARMLESS), **buffer.done(BUFFER)}
    found.spec = Spec(**{**found.spec.json(), "inputs": inputs, "outputs": outputs})
    found.own, found.name = (
        own,
        "-".join(filter(None, (str(trainer.values.get("lm_name") or ""), *inputs, str(found.spec.width)))),
    )
    found.source.update({"format": "dictionary_learning", "from": folder.name, "class": kind, "settings": left})
    return found.dictionary()


def _kind(trainer: Config, numbers: Numbers) -> str:
    """Which class the numbers are of: as the config says, or as their names show."""
    said = str(trainer.get("dict_class", str, "") or TRAINERS.get(str(trainer.values.get("trainer_class") or ""), ""))
    said = re.sub(r"^<class '(.*)'>$", r"\1", said).rpartition(".")[2]
    if said:
        if said not in CLASSES:
            raise bad_argument(f"{CONFIG}: trainer: dict_class", said, ", ".join(CLASSES))
        return said
    names = {"bias": "AutoEncoder", "decoder.bias": "AutoEncoderNew", "gate_bias": "GatedAutoEncoder",
             "group_sizes": "MatryoshkaBatchTopKSAE", "W_enc": "JumpReluAutoEncoder"}  # fmt: skip
    for name, kind in names.items():
        if name in numbers:
            return kind
    raise bad_argument(f"{CONFIG}: trainer: dict_class", "nothing", "AutoEncoderTopK, BatchTopKSAE",
                       f"The tensors of {WEIGHTS} do not tell which it is: keep the config beside them.")  # fmt: skip


def _read(kind: str, trainer: Config, numbers: Numbers) -> Found:
    modules = kind not in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
    width, d = numbers.shape("encoder.weight") if modules else tuple(reversed(numbers.shape("W_enc")))
    for key, size in (("activation_dim", d), ("dict_size", width)):
        if (said := trainer.size(key, size)) != size:
            raise bad_argument(f"{CONFIG}: trainer: {key}", said, f"{size}, as the tensors")
    if modules:
        state = {
            "W_enc": numbers.take("encoder.weight", width, d),
            "W_dec": numbers.take("decoder.weight", d, width).T.contiguous(),
        }
    else:
        state = {"W_enc": numbers.take("W_enc", d, width).T.contiguous(), "W_dec": numbers.take("W_dec", width, d)}
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}.get(kind, "b_dec")
    state["b_dec"] = numbers.take(bias, d)
    if kind == "GatedAutoEncoder":
        state |= {"b_enc": numbers.take("gate_bias", width), "r_mag": numbers.take("r_mag", width),
                  "b_mag": numbers.take("mag_bias", width)}  # fmt: skip
    else:
        state["b_enc"] = numbers.take("encoder.bias" if modules else "b_enc", width)
    rule, k, options, assumed = _selection(kind, trainer, numbers, state, width)
    numbers.done()
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return Found(Spec(rule, width, d, d, k, centred=centred, options=options), state, {}, assumed)


def _selection(
    kind: str, trainer: Config, numbers: Numbers, state: dict[str, Tensor], width: int
) -> tuple[str, int | None, dict[str, Any], list[str]]:
    """(architecture here, k, options, what was assumed); thresholds go into the numbers."""
    rule = {"AutoEncoder": "relu", "AutoEncoderNew": "relu", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk",
            "BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "matryoshka"}.get(kind, "jumprelu")  # fmt: skip
    if rule == "jumprelu":
        state["threshold"] = numbers.take("threshold", width)
        trainer.get("k", object, None)
        return rule, None, {}, []
    if rule in ("relu", "gated"):
        return rule, None, {}, []
    k = int(numbers.take("k")) if "k" in numbers else trainer.size("k")
    if (said := trainer.size("k", k)) != k:
        raise bad_argument(f"{CONFIG}: trainer: k", said, f"{k}, as the tensors")
    threshold = numbers.take("threshold") if "threshold" in numbers else torch.tensor(-1.0)
    if rule == "topk":
        return rule, k, {}, ["the threshold is not used: their encode takes k per token"] if float(threshold) >= 0 else []
    state["threshold"] = threshold.clamp_min(0.0)
    assumed = (
        ["threshold: not set in the file, so all that is positive is active, as in their encode"]
        if float(threshold) < 0
        else []
    )
    options: dict[str, Any] = {}
    said_sizes = trainer.get("group_sizes", list, None)
    if rule == "matryoshka":
        sizes = [int(size) for size in numbers.take("group_sizes", *numbers.shape("group_sizes", 1))]
        if min(sizes) < 1 or sum(sizes) != width or said_sizes not in (None, sizes):
            raise bad_argument(f"{WEIGHTS}: group_sizes", sizes, f"sizes of groups, {width} latents in all, as in the config")
        options = {"prefixes": [sum(sizes[: end + 1]) / width for end in range(len(sizes) - 1)] + [1.0]}
    return rule, k, options, assumed


def _sites(trainer: Config, buffer: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Inputs and outputs where they are named in a way that is known here."""
    layer, name = trainer.get("layer", object, None), str(trainer.get("submodule_name", object, None) or "")
    side = buffer.choice("io", ("in", "out", "in_and_out"), "out")
    match = re.fullmatch(r"([a-z_]+?)_?(?:layer_?(\d+))?", name)
    place = PLACES.get(match[1], "") if match else ""
    number = layer if isinstance(layer, int) else int(match[2]) if match and match[2] else None
    if number is not None and place:
        if side == "out":
            return (f"{place}.{number}",), (f"{place}.{number}",)
        if place == "mlp_out":
            inputs = (f"mlp_in.{number}",)
            return inputs, (f"mlp_out.{number}",) if side == "in_and_out" else inputs
    site = known_site(name) if side == "out" else ""
    return ((site,), (site,)) if site else ((), ())


# writing -----------------------------------------------------------------------------------------


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if why := unplain(dictionary):
        return why
    if dictionary.architecture in ("groupmax", "matching_pursuit"):
        return f"it has no class for {dictionary.architecture}"
    spec = dictionary.spec
    if spec.skip or spec.d_in != spec.d_out:
        return "its dictionaries have one size of inputs and outputs and no skip connection"
    return "it does not normalise inputs in use" if dictionary.input_norm != "none" else ""


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    made, notes = plain(dictionary), []
    assert made is not None
    kind = _class_of(dictionary, made)
    made = made.shifted(kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"))
    if made.rule == "topk" and free_rows(dictionary):
        made = made.unit()
        notes.append(SCALED)
    if kind == "JumpReluAutoEncoder" and dictionary.architecture != "jumprelu":
        notes.append(
            f"{dictionary.architecture} with decoder norms of its own is a JumpReluAutoEncoder there: the same latents in use"
        )
    if kind == "AutoEncoder":
        notes.append("AutoEncoder.from_pretrained brings decoder rows to norm 1 unless normalize_decoder=False")
    spec, where = dictionary.spec, layer_of(dictionary.spec.inputs[0]) if dictionary.spec.inputs else None
    trainer = {
        "dict_class": kind,
        "trainer_class": next(name for name, made_by in TRAINERS.items() if made_by == kind),
        "activation_dim": spec.d_in,
        "dict_size": spec.width,
        "lm_name": dictionary.provenance.get("model"),
        "layer": where,
        "submodule_name": spec.inputs[0] if spec.inputs else None,
        "device": "cpu",
    }
    if kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        trainer["k"] = spec.k
    write_torch(folder / WEIGHTS, _tensors(dictionary, made, kind))
    same = kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE")
    write_json(folder / CONFIG, {"trainer": trainer, OWN: own_part(dictionary, None if same else again(dictionary, made))})
    return notes


def _class_of(dictionary: Dictionary, made: Plain) -> str:
    if made.rule == "relu":
        return "AutoEncoder" if made.centred else "AutoEncoderNew"
    if dictionary.architecture in ("batchtopk", "matryoshka") and not free_rows(dictionary):
        return {"batchtopk": "BatchTopKSAE", "matryoshka": "MatryoshkaBatchTopKSAE"}[dictionary.architecture]
    return {"gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK"}.get(made.rule, "JumpReluAutoEncoder")


def _tensors(dictionary: Dictionary, made: Plain, kind: str) -> dict[str, Tensor]:
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        found = {"W_enc": made.W_enc.T, "b_enc": made.b_enc, "W_dec": made.W_dec, "b_dec": made.b_dec}
    else:
        found = {"encoder.weight": made.W_enc, "decoder.weight": made.W_dec.T}
        found[
            {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias", "GatedAutoEncoder": "decoder_bias"}.get(kind, "b_dec")
        ] = made.b_dec
        found["gate_bias" if kind == "GatedAutoEncoder" else "encoder.bias"] = made.b_enc
    if kind == "GatedAutoEncoder":
        assert made.r_mag is not None and made.b_mag is not None
        found |= {"r_mag": made.r_mag, "mag_bias": made.b_mag}
    if kind == "JumpReluAutoEncoder":
        assert made.threshold is not None
        found["threshold"] = made.threshold
    if kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        found |= {"k": torch.tensor(int(dictionary.spec.k or 0), dtype=torch.int), "threshold": torch.tensor(-1.0)}
    if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        found["threshold"] = dictionary.threshold.detach().float()  # type: ignore[union-attr]
    if kind == "MatryoshkaBatchTopKSAE":
        sizes = torch.tensor(dictionary.sizes)  # type: ignore[arg-type]
        found["group_sizes"] = sizes.diff(prepend=sizes.new_zeros(1))
    return found


FORMATS.add(
    "dictionary_learning",
    Format("dictionary_learning", "dictionary_learning: ae.pt, config.json", recognises, read, write, lacks),
)
