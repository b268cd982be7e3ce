"""SAELens folders: `cfg.json` and `sae_weights.safetensors` (also `sparsity.safetensors`), of version 6 and before.

1. W_enc (d_in, latents), W_dec (latents, d_out). `apply_b_dec_to_input`: centred. A gated one has b_gate, b_mag and r_mag,
   magnitudes by W_enc exp(r_mag). Matching pursuit has W_dec and b_dec only, and b_dec counts only where it is taken off.
2. topk with `rescale_acts_by_decoder_norm`: latents are pre x decoder norm and decoder rows count as unit. Read so that
   latents are the same: norms go into the encoder. batchtopk and matryoshka are kept as jumprelu with one threshold.
3. `normalize_activations`: layer_norm and constant_norm_rescale are done to each token in use, which is kept
   (`input_norm`). expected_average_only_in needs the factor of `activation_scaler.json`, and is folded:
   W_enc s, W_dec / s, b_dec / s. Without the factor, or with whitening that is not folded, the folder is refused.
4. Before version 6 the config is flat, with other names for some keys; activation_fn "topk" makes it a topk.

5. abstopk keeps the k largest magnitudes with their signs (AbsTopK, arXiv 2510.00404). Its m latents are read as 2m of a
   topk: j where the latent is positive, m + j (encoder, bias and decoder row negative) where it is negative. The k largest
   of those are the same, and each has one meaning.
6. temporal: the encoder is W_dec where `tied_weights`, and inputs of it are divided by 4 d_in; both go into W_enc. With
   `activation_normalization_factor` f, W_enc is times f, W_dec and b_dec over f, and the 1e-6 of norms over f, too.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from assay.errors import bad_argument
from assay.features.architectures.temporal import EPS
from assay.features.dictionary import Dictionary, Spec
from assay.features.formats.base import FORMATS, OWN, Format, Found, hook_names, known_hook, known_site, own_part
from assay.features.formats.plain import SCALED, Plain, again, free_rows, plain, unplain, write_json, write_safetensors
from assay.features.formats.reading import Config, Numbers, read_config, read_safetensors, tensor_names, words

CONFIG, WEIGHTS, SPARSITY, SCALER = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "activation_scaler.json"
FLAT_BEFORE, VERSION = 6, "6.0.0"
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
SINGLE = ("standard", "gated", "topk", "abstopk", "jumprelu", "batchtopk", "matryoshka_batchtopk", "matching_pursuit",
          "temporal")  # fmt: skip
SITES, BLOCK = {"q": "q_target", "k": "k_ctx", "v": "v_ctx", "o": "c_proj"}, "attn_layers.{}.{}.{}"  # of a temporal
SIGNED = "its latents have signs: latent j is here where it is positive, {width} + j where it is negative"
NORMS, RESCALE = {"layer_norm": "layer", "constant_norm_rescale": "root"}, "constant_scalar_rescale"
STREAMS = ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")  # what writing weights write
OTHER_HOOK = "no site: hook_name is before the gain of the norm, hf_hook_name ({}) is another tensor"
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn",
           "hook_point_layer": "hook_layer"}  # fmt: skip
HARMLESS = words("""
    act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient b_dec_init_method
    begin_batch_token begin_sequence_token cached_activations_path checkpoint_path compile_llm compile_sae
    context_size d_head dataset_path dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold
    dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init
    device disable_concat_sequences dtype eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens
    expansion_factor feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method
    finetuning_tokens from_pretrained_path hook_eval hook_layer hook_layer_out hook_point_eval
    init_encoder_as_decoder_transpose initial_decoder_norm is_dataset_tokenized jumprelu_bandwidth
    jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale k l0_coefficient
    l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb
    log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger lp_norm lr lr_decay_steps lr_end
    lr_scheduler lr_scheduler_name lr_warm_up_steps matryoshka_widths model_batch_size model_class_name
    model_kwargs model_name mse_loss_normalization n_batches_in_buffer n_checkpoints
    n_eval_batches n_eval_seqs n_heads n_restart_cycles neuronpedia_id noise_magnitude normalize_sae_decoder
    output_path pre_act_loss_coefficient prepend_bos resample_batches resume resume_from_checkpoint run_name
    sae_compilation_mode sae_lens_training_version save_final_checkpoint scale_sparsity_penalty_by_decoder_norm seed
    seqpos_slice sequence_separator_token store_batch_size store_batch_size_prompts streaming target_l0
    tokens_per_buffer topk_threshold_lr total_training_tokens train_batch_size train_batch_size_tokens training_tokens
    use_cached_activations use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity
    wandb_id wandb_log_frequency wandb_project
""")


def recognises(path: Path) -> bool:
    """A folder with its two files, or either file."""
    folder = _folder(path)
    return (
        (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and "encoder.weight" not in tensor_names(folder / WEIGHTS)
    )


def _folder(path: Path) -> Path:
    return path.parent if path.name in (CONFIG, WEIGHTS) else path


# reading -----------------------------------------------------------------------------------------


def read(path: Path) -> Dictionary:
    """The dictionary. Raises UsageError."""
    folder = _folder(path)
    config = read_config(folder / CONFIG)
    about = config.inner("metadata")
    own = about.values.get(OWN) or {}
    if not isinstance(own, dict):
        raise bad_argument(f"{CONFIG}: metadata: {OWN}", type(own).__name__, "an object")
    version = about.values.get("sae_lens_version") or config.get("sae_lens_version", (str, type(None)), None)
    if _flat(version):
        config = _modern(config)
    architecture = config.get("architecture", str, "standard")
    if architecture not in (*SINGLE, *TRANSCODERS):
        raise bad_argument(f"{CONFIG}: architecture", architecture, ", ".join((*SINGLE, *TRANSCODERS)))
    numbers = read_safetensors(folder / WEIGHTS)
    found = _read(folder, config, about, architecture, numbers)
    found.own = own
    left = config.done(HARMLESS)
    settings = {key: value for key, value in {**left, **about.values}.items() if key != OWN}
    found.source.update({"format": "saelens", "from": folder.name, "architecture": architecture, "version": version,
                         "settings": settings})  # fmt: skip
    if (folder / SPARSITY).is_file():
        _firing(folder, found, config.size("d_sae"))
    return found.dictionary()


def _flat(version: Any) -> bool:
    """Whether a config is from before version 6."""
    found = re.match(r"(\d+)", str(version or ""))
    return found is None or int(found[1]) < FLAT_BEFORE


def _modern(config: Config) -> Config:
    """A flat config in the names of version 6."""
    values = {
        RENAMED.get(key, key): value for key, value in config.values.items() if key not in ("metadata", "sae_lens_version")
    }
    new = Config(config.where, values)
    kwargs = new.get("activation_fn_kwargs", dict, {})
    function = new.choice("activation_fn", ("relu", "topk"), "relu", "Another activation would be another dictionary.")
    if function == "topk":
        values["architecture"], values["k"] = "topk", kwargs.get("k", values.get("k"))
    if unknown := sorted(set(kwargs) - {"k"}):
        raise bad_argument(f"{CONFIG}: activation_fn_kwargs", unknown, "k")
    if isinstance(values.get("normalize_activations"), bool):
        values["normalize_activations"] = "expected_average_only_in" if values["normalize_activations"] else "none"
    values.setdefault("reshape_activations", "hook_z" if "hook_z" in str(values.get("hook_name", "")) else "none")
    return new


def _read(folder: Path, config: Config, about: Config, architecture: str, numbers: Numbers) -> Found:
    transcoder = architecture in TRANSCODERS
    d_in, width = config.size("d_in"), config.size("d_sae")
    d_out = config.size("d_out") if transcoder else d_in
    centred = bool(config.get("apply_b_dec_to_input", bool, True))
    if transcoder and centred:
        raise bad_argument(f"{CONFIG}: apply_b_dec_to_input", True, "false for transcoders")
    known = ("none", "expected_average_only_in", "covariance_whitening", *NORMS)
    norm = config.choice("normalize_activations", (*known, *([RESCALE] if architecture == "temporal" else [])), "none")
    if transcoder and norm in NORMS:
        raise bad_argument(f"{CONFIG}: normalize_activations", norm, "none for transcoders",
                           "It would not be undone at the output, whose size is another.")  # fmt: skip
    if norm == "covariance_whitening":
        raise bad_argument(f"{CONFIG}: normalize_activations", norm, "none", "Fold the whitening in SAELens and save again.")
    config.choice("finetuning_scaling_factor", (False,), False, "Scaled latents cannot be read.")
    reshape = config.choice("reshape_activations", ("none", "hook_z"), "none")
    options: dict[str, Any] = {"input_norm": NORMS[norm]} if norm in NORMS else {}
    if architecture == "temporal":
        rule, state, k, more = _temporal(config, numbers, width, d_in, norm == RESCALE)
    else:
        rule, state, k, more = _numbers(config, architecture, numbers, width, d_in, d_out, centred)
    if signed := architecture == "abstopk":
        state |= {name: torch.cat([state[name], -state[name]]) for name in ("W_enc", "b_enc", "W_dec")}
    rescaled = rule in ("topk", "batchtopk") and bool(config.get("rescale_acts_by_decoder_norm", bool, False))
    if norm == "expected_average_only_in":
        state, more = _scaled(state, more, _factor(folder), rescaled)
    if rescaled:
        state = _unit(state)
    inputs, outputs, hooks, early = _sites(config, about, transcoder)
    options.update(more)
    spec = Spec(rule, len(state["W_dec"]), d_in, d_out, k, inputs, outputs, centred, "skip" in architecture, options=options)
    source: dict[str, Any] = {"hooks": hooks}
    assumed = ["decoder norms were put into the encoder, as the file says latents count them"] if rescaled else []
    if signed:
        assumed.append(SIGNED.format(width=width))
    if reshape == "hook_z":
        assumed.append("heads are concatenated, head after head")
    if early and hooks.get("hf_hook_name"):
        assumed.append(OTHER_HOOK.format(hooks["hf_hook_name"]))
    processed = _processed(about, config)
    if processed.pop("center_writing_weights", False) and inputs and inputs[0].split(".")[0] in STREAMS:
        assumed.append(_centred_stream(spec, state))
    if processed := {key: value for key, value in processed.items() if value not in (False, None)}:
        assumed.append(f"the model it was trained on was loaded with {processed}, which is not done here")
    return Found(spec, state, source, assumed, _name(about, config, width), before_gain=early)


def _processed(about: Config, config: Config) -> dict[str, Any]:
    """How the model was changed when it was loaded. Raises UsageError for what is no object."""
    key, kinds = "model_from_pretrained_kwargs", (dict, type(None))
    return dict(config.get(key, kinds, None) or about.get(key, kinds, None) or {})


def _centred_stream(spec: Spec, state: dict[str, Tensor]) -> str:
    """Let the encoder read the raw stream as the one without its mean over features, in which nothing else differs where norms
    take it off (LayerNorm). Raises UsageError for encoders into which that cannot be put."""
    if spec.options.get("input_norm") == "layer":
        return "center_writing_weights: its inputs are centred anyway"
    if spec.architecture not in ("relu", "topk", "batchtopk", "jumprelu") or spec.options.get("input_norm"):
        raise bad_argument(f"{CONFIG}: model_from_pretrained_kwargs", "center_writing_weights",
                           "none for this architecture, or none at all",
                           "It reads a stream without its mean over features, which the model here has not.")  # fmt: skip
    raw = state["W_enc"]
    state["W_enc"] = raw - raw.mean(1, keepdim=True)
    if spec.centred:
        state["b_enc"] = state["b_enc"] + (state["W_enc"] - raw) @ state["b_dec"]
    return ("center_writing_weights: the encoder takes off the mean over features, which its model's stream had not;"
            " its reconstruction has none")  # fmt: skip


def _numbers(
    config: Config, architecture: str, numbers: Numbers, width: int, d_in: int, d_out: int, centred: bool
) -> tuple[str, dict[str, Tensor], int | None, dict[str, Any]]:
    """(architecture here, its numbers, k, options)."""
    state = {"W_dec": numbers.take("W_dec", width, d_out), "b_dec": numbers.take("b_dec", d_out)}
    k, options = None, {}
    if architecture == "matching_pursuit":
        options = {"residual_threshold": float(config.number("residual_threshold", 1e-2)),
                   "steps": config.get("max_iterations", (int, type(None)), None),
                   "stop_on_repeat": bool(config.get("stop_on_duplicate_support", bool, True))}  # fmt: skip
        state["W_enc"] = state["W_dec"]
        if not centred:
            state["b_dec"] = torch.zeros(d_out)  # which SAELens adds only where it was taken off
        numbers.done()
        return "matching_pursuit", state, None, options
    state["W_enc"] = numbers.take("W_enc", d_in, width).T.contiguous()
    rule = {"standard": "relu", "transcoder": "relu", "skip_transcoder": "relu", "gated": "gated", "topk": "topk",
            "abstopk": "topk"}.get(
        architecture, "jumprelu")  # fmt: skip
    if rule == "gated":
        state |= {
            "b_enc": numbers.take("b_gate", width),
            "r_mag": numbers.take("r_mag", width),
            "b_mag": numbers.take("b_mag", width),
        }
    else:
        state["b_enc"] = numbers.take("b_enc", width)
    if rule == "topk":
        k = config.size("k")
    if rule == "jumprelu":
        state["threshold"], rule, k = _threshold(config, architecture, numbers, width)
    if "skip" in architecture:
        state["W_skip"] = numbers.take("W_skip", d_out, d_in)
    if "scaling_factor" in numbers and not bool((numbers.take("scaling_factor", width) == 1).all()):
        raise bad_argument(f"{WEIGHTS}: scaling_factor", "factors other than 1", "1", "Scaled latents cannot be read.")
    numbers.done()
    return rule, state, k, options


def _temporal(
    config: Config, numbers: Numbers, width: int, d: int, rescaled: bool
) -> tuple[str, dict[str, Tensor], int | None, dict[str, Any]]:
    """Of a temporal: (architecture here, its numbers, k, options)."""
    blocks, bottleneck = config.size("n_attn_layers", 1), config.size("bottleneck_factor", 64)
    tied, topk = config.get("tied_weights", bool, True), config.choice("sae_diff_type", ("topk", "relu"), "topk") == "topk"
    k, factor = config.get("kval_topk", (int, type(None)), None), float(config.number("activation_normalization_factor", 1.0))
    factor = factor if rescaled else 1.0
    if factor <= 0:
        raise bad_argument(f"{CONFIG}: activation_normalization_factor", factor, "above 0")
    state = {"W_dec": numbers.take("W_dec", width, d), "b_dec": numbers.take("b_dec", d)}
    encoder = state["W_dec"] if tied else numbers.take("W_enc", d, width).T
    state["W_enc"] = encoder * (factor / (4 * d))
    sizes = {"q": width // bottleneck, "k": width // bottleneck, "v": width, "o": width}
    for site, rows in sizes.items():
        for kind, shape in (("weight", (rows, width)), ("bias", (rows,))):
            parts = [numbers.take(BLOCK.format(block, SITES[site], kind), *shape) for block in range(blocks)]
            state[f"{'W' if kind == 'weight' else 'b'}_{site}"] = torch.stack(parts)
    numbers.done()
    if tied and not config.get("apply_b_dec_to_input", bool, True):
        state["b_dec"] = torch.zeros(d)  # which SAELens adds only where it was taken off, or the encoder is not tied
    state |= {name: state[name] / factor for name in ("W_dec", "b_dec")}
    options = {"heads": config.size("n_heads", 8), "blocks": blocks, "bottleneck": bottleneck, "tied": tied,
               "eps": EPS / factor}  # fmt: skip
    return "temporal", state, k if topk else None, options


def _threshold(config: Config, architecture: str, numbers: Numbers, width: int) -> tuple[Tensor, str, int | None]:
    if architecture in ("batchtopk", "matryoshka_batchtopk"):
        scalar = numbers.take("topk_threshold") if "topk_threshold" in numbers else numbers.take("threshold", width)[0]
        return scalar, "batchtopk", int(config.number("k"))
    if "log_threshold" in numbers:
        return numbers.take("log_threshold", width).exp(), "jumprelu", None
    return numbers.take("threshold", width), "jumprelu", None


def _factor(folder: Path) -> float:
    """The factor inputs were scaled by, which only a checkpoint keeps."""
    if not (folder / SCALER).is_file():
        raise bad_argument(f"{CONFIG}: normalize_activations", "expected_average_only_in", "none",
                           f"The factor is not in the folder ({SCALER} is missing). In SAELens, call "
                           "fold_activation_norm_scaling_factor and save again.")  # fmt: skip
    factor = read_config(folder / SCALER).number("scaling_factor")
    if factor <= 0:
        raise bad_argument(f"{SCALER}: scaling_factor", factor, "above 0")
    return float(factor)


def _scaled(
    state: dict[str, Tensor], options: dict[str, Any], factor: float, rescaled: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Numbers and options for scaled inputs as those for raw ones; latents keep their units."""
    state = {**state, "W_enc": state["W_enc"] * factor, "W_dec": state["W_dec"] / factor, "b_dec": state["b_dec"] / factor}
    if rescaled and "threshold" in state:
        state["threshold"] = state["threshold"] / factor  # in units of value x decoder norm
    lengths = {name: value / factor for name, value in options.items() if name in ("residual_threshold", "eps")}
    return state, {**options, **lengths}


def _unit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the norms of decoder rows in the encoder."""
    norms = state["W_dec"].norm(dim=1)
    return {**state, "W_enc": state["W_enc"] * norms[:, None], "b_enc": state["b_enc"] * norms,
            "W_dec": state["W_dec"] / norms.clamp_min(1e-12)[:, None]}  # fmt: skip


def _sites(config: Config, about: Config, transcoder: bool) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Any], bool]:
    """Inputs and outputs as sites where they are known ones, how the file calls them, whether they are before a norm's gain.

    Before the gain there is no module, so a name of one (`hf_hook_name`) beside it is of another tensor: no site then.
    """
    keys = ("hook_name", "hook_name_out", "hf_hook_name", "hf_hook_name_out", "hook_head_index", "hook_head_index_out")
    said = {key: about.values[key] if key in about.values else config.get(key, object, None) for key in keys}
    ends, early = [], False
    for name, head in (("hook_name", "hook_head_index"), ("hook_name_out", "hook_head_index_out")):
        site, before = known_hook(said[name])
        index, early = said[head], early or before
        ends.append(known_site(f"{site}.{index}") if site and isinstance(index, int) and not isinstance(index, bool) else site)
    inputs = (ends[0],) if ends[0] and not (early and said["hf_hook_name"]) else ()
    outputs = ((ends[1],) if ends[1] else ()) if transcoder or said["hook_name_out"] else inputs
    return (inputs, outputs if inputs else (), {key: value for key, value in said.items() if value is not None}, early)


def _name(about: Config, config: Config, width: int) -> str:
    said = [about.values.get(key) or config.values.get(key) for key in ("model_name", "hook_name")]
    return "-".join([*(str(one) for one in said if one), str(width)])


def _firing(folder: Path, found: Found, width: int) -> None:
    """The firing rates beside the numbers."""
    logs = read_safetensors(folder / SPARSITY).take("sparsity", width)
    rates = 10.0**logs
    found.source["firing"] = {"mean": float(rates.mean()), "never": int((rates <= 1e-10).sum()),
                              "active": float(rates.sum())}  # fmt: skip


# writing -----------------------------------------------------------------------------------------


def lacks(dictionary: Dictionary) -> str:
    """Why it has no place here."""
    if dictionary.architecture == "temporal":
        scaled = dictionary.spec.options.get("eps", EPS) != EPS and dictionary.input_norm != "none"
        return f"eps {dictionary.spec.options['eps']} of normalised inputs: there it is {EPS}" if scaled else ""
    if why := unplain(dictionary):
        return why
    if dictionary.architecture == "groupmax":
        return "no architecture of SAELens takes the largest of each group"
    spec, is_transcoder = dictionary.spec, dictionary.spec.skip or dictionary.spec.d_in != dictionary.spec.d_out
    if is_transcoder and dictionary.architecture in ("topk", "gated", "matching_pursuit"):
        return f"its transcoders are relu or jumprelu, not {dictionary.architecture}"
    if is_transcoder and spec.centred and spec.d_in != spec.d_out:
        return "a transcoder takes nothing off its inputs"
    return (
        f"its transcoders do not normalise inputs by {dictionary.input_norm!r}"
        if is_transcoder and dictionary.input_norm != "none"
        else ""
    )


def write(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a folder; what differs there."""
    if dictionary.architecture == "temporal":
        return _write_temporal(dictionary, folder)
    made, notes = plain(dictionary), []
    assert made is not None
    spec = dictionary.spec
    reads, writes = hook_names(dictionary)
    transcoder = spec.skip or spec.d_in != spec.d_out or (reads != writes and made.rule in ("relu", "jumprelu"))
    transcoder = transcoder and dictionary.input_norm == "none"
    made = made.shifted(False) if transcoder else made
    if made.rule == "topk" and free_rows(dictionary):
        made = made.unit()
        notes.append(SCALED)
    if dictionary.architecture in ("batchtopk", "matryoshka"):
        notes.append(f"{dictionary.architecture} is jumprelu there, as SAELens keeps it: the same latents in use")
    if reads != writes and not transcoder:
        notes.append("it is an SAE of one site there; the output's name is in the metadata")
    architecture = _architecture(made, transcoder)
    config = {
        **_head(dictionary, architecture, made.centred),
        **({"d_out": spec.d_out} if transcoder else {}),
        **_settings(dictionary, made),
    }
    tensors = _tensors(made)
    config["metadata"] = {**_metadata(dictionary), OWN: own_part(dictionary, again(dictionary, made))}
    write_safetensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, config)
    return notes


def _head(dictionary: Dictionary, architecture: str, centred: bool) -> dict[str, Any]:
    """The keys that every config has."""
    norms = {here: there for there, here in NORMS.items()}
    return {"architecture": architecture, "d_in": dictionary.spec.d_in, "d_sae": dictionary.spec.width, "dtype": "float32",
            "device": "cpu", "apply_b_dec_to_input": centred, "reshape_activations": "none",
            "normalize_activations": norms.get(dictionary.input_norm, "none")}  # fmt: skip


def _write_temporal(dictionary: Dictionary, folder: Path) -> Sequence[str]:
    """Write a temporal; nothing differs there."""
    spec, state = dictionary.spec, {name: value.detach() for name, value in dictionary.state_dict().items()}
    options, factor = {"heads": 8, "blocks": 1, "bottleneck": 64, "tied": False, "eps": EPS, **spec.options}, 1.0
    if options["eps"] != EPS:
        factor = EPS / options["eps"]
    tensors = {"W_dec": state["W_dec"] * factor, "b_dec": state["b_dec"] * factor}
    if not options["tied"]:
        tensors["W_enc"] = state["W_enc"].T * (4 * spec.d_in / factor)
    for site, name in SITES.items():
        for block in range(options["blocks"]):
            tensors[BLOCK.format(block, name, "weight")] = state[f"W_{site}"][block]
            tensors[BLOCK.format(block, name, "bias")] = state[f"b_{site}"][block]
    config = {**_head(dictionary, "temporal", spec.centred), "n_heads": options["heads"], "n_attn_layers": options["blocks"],
              "bottleneck_factor": options["bottleneck"], "tied_weights": options["tied"], "kval_topk": spec.k,
              "sae_diff_type": "relu" if spec.k is None else "topk", "activation_normalization_factor": factor}  # fmt: skip
    if factor != 1.0:
        config["normalize_activations"] = RESCALE
    write_safetensors(folder / WEIGHTS, tensors)
    write_json(folder / CONFIG, {**config, "metadata": {**_metadata(dictionary), OWN: own_part(dictionary)}})
    return []


def _architecture(made: Plain, transcoder: bool) -> str:
    if transcoder:
        return ("jumprelu_" if made.rule == "jumprelu" else "") + ("skip_" if made.W_skip is not None else "") + "transcoder"
    return {"relu": "standard"}.get(made.rule, made.rule)


def _settings(dictionary: Dictionary, made: Plain) -> dict[str, Any]:
    """The keys of one architecture."""
    options = dictionary.spec.options
    if made.rule == "topk":
        return {"k": dictionary.spec.k, "rescale_acts_by_decoder_norm": False}
    if made.rule == "matching_pursuit":
        return {"residual_threshold": options.get("residual_threshold", 1e-2), "max_iterations": options.get("steps"),
                "stop_on_duplicate_support": options.get("stop_on_repeat", True)}  # fmt: skip
    return {}


def _tensors(made: Plain) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {"W_dec": made.W_dec, "b_dec": made.b_dec}
    if made.rule == "matching_pursuit":
        return {"W_dec": made.W_dec, "b_dec": made.b_dec}
    tensors["W_enc"] = made.W_enc.T
    if made.rule == "gated":
        tensors |= {"b_gate": made.b_enc, "b_mag": made.b_mag, "r_mag": made.r_mag}
    else:
        tensors["b_enc"] = made.b_enc
    tensors |= {"threshold": made.threshold, "W_skip": made.W_skip}
    return {name: value for name, value in tensors.items() if value is not None}


def _metadata(dictionary: Dictionary) -> dict[str, Any]:
    reads, writes = hook_names(dictionary)
    found: dict[str, Any] = {"sae_lens_version": VERSION, "sae_lens_training_version": None, "hook_name": reads,
                             "model_name": dictionary.provenance.get("model")}  # fmt: skip
    if reads != writes:
        found["hook_name_out"] = writes
    return {key: value for key, value in found.items() if value is not None or key == "sae_lens_training_version"}


FORMATS.add("saelens", Format("saelens", "SAELens: cfg.json, sae_weights.safetensors", recognises, read, write, lacks))
