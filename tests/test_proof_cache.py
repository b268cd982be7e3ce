"""Kept proofs: used for the very model that was proved, and for no other."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama import modeling_llama

from assay.errors import LayoutError
from assay.model import cache, proofs, prove
from assay.model.model import Model
from conftest import FAMILIES, tiny_hf, wrap

pytestmark = pytest.mark.whole


@pytest.fixture(autouse=True)
def proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """A cache of its own, and the modules that were proved (not read from it)."""
    monkeypatch.setattr(proofs, "cache_dir", lambda: tmp_path)
    log: list[nn.Module] = []

    def counted(hf: nn.Module, pad_id: int = 0) -> prove.Proof:
        log.append(hf)
        return prove.prove(hf, pad_id)

    monkeypatch.setattr(proofs, "prove", counted)
    yield log


def files() -> list[Path]:
    return sorted(proofs.folder().glob("*")) if proofs.folder().is_dir() else []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_kept_proof_is_the_proof(family: str, proved: list[nn.Module]) -> None:
    first, again = wrap(tiny_hf(family)), wrap(tiny_hf(family))
    measured, kept = first.proof, again.proof
    assert proved == [first.hf]
    assert kept.layout == measured.layout
    assert (kept.sites, kept.absent) == (measured.sites, measured.absent)
    ids = [[5, 6, 7, 8], [9, 8]]
    assert torch.equal(first.capture(ids, "z.1").flat("z.1"), again.capture(ids, "z.1").flat("z.1"))


def test_check_always_proves_and_refreshes(proved: list[nn.Module]) -> None:
    model = wrap(tiny_hf("llama"))
    old = model.proof
    files()[0].unlink()
    new = model.check()
    assert len(proved) == 2 and len(files()) == 1
    assert model.proof is new is not old and model.engine.layout is new.layout


def other_weights(hf: nn.Module) -> None:
    hf.get_parameter("model.layers.1.mlp.down_proj.weight").data[0, 0] += 1e-3


def other_setting(hf: nn.Module) -> None:
    hf.get_submodule("model.layers.1.self_attn").scaling *= 1.01


def other_buffer(hf: nn.Module) -> None:
    hf.get_buffer("model.rotary_emb.inv_freq")[1] *= 1.01


def other_config(hf: nn.Module) -> None:
    hf.config.use_cache = False  # type: ignore[union-attr]


def other_kernel(hf: nn.Module) -> None:
    hf.set_attn_implementation("eager")  # type: ignore[operator]


def other_dtype(hf: nn.Module) -> None:
    hf.to(torch.bfloat16)


def other_class(hf: nn.Module) -> None:
    norm = hf.get_submodule("model.norm")
    norm.__class__ = type("LlamaRMSNorm", (type(norm),), {"forward": lambda self, x: 2 * F.rms_norm(x, (32,))})


@pytest.mark.parametrize("change", [
    other_weights, other_setting, other_buffer, other_config, other_kernel, other_dtype, other_class,
])  # fmt: skip
def test_any_other_model_is_proved(change: object, proved: list[nn.Module]) -> None:
    healthy = wrap(tiny_hf("llama"))
    healthy.proof  # noqa: B018
    double = wrap(tiny_hf("llama"))
    change(double.hf)  # type: ignore[operator]
    double.proof  # noqa: B018
    assert proved == [healthy.hf, double.hf]


def test_the_weights_of_the_moment_count_not_a_digest_read_before(proved: list[nn.Module]) -> None:
    wrap(tiny_hf("llama")).proof  # noqa: B018
    model = wrap(tiny_hf("llama"))
    before = model.digest
    other_weights(model.hf)
    model.proof  # noqa: B018
    assert len(proved) == 2
    assert wrap(model.hf).digest != before


def swapped_forward(original: object):
    """A forward that leaves the last block's sum out of step with its parts."""

    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        return original(self, *args, **kwargs) * 1.5  # type: ignore[operator]

    return forward


def test_a_double_by_class_is_refused_after_the_healthy_model(proved: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = wrap(tiny_hf("llama"))
    healthy.proof  # noqa: B018
    block = modeling_llama.LlamaDecoderLayer
    monkeypatch.setattr(block, "forward", swapped_forward(block.forward))
    double = wrap(tiny_hf("llama"))
    assert double.digest == healthy.digest
    with pytest.raises(LayoutError):
        double.proof  # noqa: B018
    assert len(proved) == 2 and len(files()) == 1


def test_a_double_with_swapped_projections_is_not_offered_what_the_healthy_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """q is computed by k_proj and k by q_proj: same weights, same config, same class names."""
    family = "neox"
    attention = type(tiny_hf(family).gpt_neox.layers[0].attention)
    healthy, original = wrap(tiny_hf(family)), attention.forward
    assert healthy.proof.proved

    def forward(self: nn.Module, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        dense = self.query_key_value

        class Turned(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                q, k, v = dense(x).unflatten(-1, (4, 3, 8)).unbind(-2)
                return torch.stack([k, q, v], -2).flatten(-3)

        self.__dict__["query_key_value"] = Turned()
        self._modules.pop("query_key_value")
        try:
            return original(self, hidden_states, *args, **kwargs)
        finally:
            self.__dict__.pop("query_key_value")
            self.query_key_value = dense

    monkeypatch.setattr(attention, "forward", forward)
    double = wrap(tiny_hf(family))
    refused = {str(site) for site in double.layout.refused}
    assert {"q.0", "k.0"} <= refused and "z.0" not in refused


@pytest.mark.parametrize("name, value", [
    ("apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (k[:, :1] * 0 + q, k)),
    ("eager_attention_forward", lambda *args, **kwargs: None),
])  # fmt: skip
def test_functions_a_module_calls_count(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_hf("llama")
    before = proofs.proof_key(first, 0, "")
    monkeypatch.setattr(modeling_llama, name, value)
    assert proofs.proof_key(tiny_hf("llama"), 0, "") not in (before, None)


def test_closures_and_constants_of_a_replaced_forward_count(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, block = set(), modeling_llama.LlamaDecoderLayer
    for factor in (1.5, 1.25):
        with monkeypatch.context() as patch:
            original = block.forward
            patch.setattr(block, "forward", lambda self, *a, f=factor, o=original, **k: o(self, *a, **k) * f)
            keys.add(proofs.proof_key(tiny_hf("llama"), 0, ""))
    with monkeypatch.context() as patch:
        patch.setattr(block, "forward", lambda self, *a, **k: original(self, *a, **k) * 2.5)
        keys.add(proofs.proof_key(tiny_hf("llama"), 0, ""))
    keys.add(proofs.proof_key(tiny_hf("llama"), 0, ""))
    assert len(keys) == 4 and None not in keys


def test_a_change_the_key_cannot_see_is_met_by_running(proved: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(tiny_hf("llama")).proof  # noqa: B018
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, *a, **kw: kernel(q * 1.2, k, v, *a, **kw))
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", F.scaled_dot_product_attention)
    with pytest.raises(LayoutError):  # our watch does not know this kernel: no patterns, no blocks
        wrap(tiny_hf("llama")).proof  # noqa: B018
    assert len(proved) == 2


@pytest.mark.parametrize("strange", ["hook", "pre-hook", "forward", "accelerate", "global hook"])
def test_trees_unlike_their_classes_are_neither_read_nor_kept(strange: str, proved: list[nn.Module]) -> None:
    wrap(tiny_hf("llama")).proof  # noqa: B018
    hf, kept = tiny_hf("llama"), files()
    mlp, handle = hf.model.layers[1].mlp, None
    if strange == "hook":
        mlp.register_forward_hook(lambda m, args, out: out)
    elif strange == "pre-hook":
        mlp.register_forward_pre_hook(lambda m, args: args)
    elif strange == "forward":
        mlp.forward = mlp.forward
    elif strange == "accelerate":
        from accelerate.hooks import ModelHook, add_hook_to_module

        add_hook_to_module(mlp, ModelHook())
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: None)
    try:
        assert proofs.proof_key(hf, 0, "") is None
        assert wrap(hf).proof.proved
    finally:
        if handle is not None:
            handle.remove()
    assert len(proved) == 2 and files() == kept


@pytest.mark.parametrize("damage", [
    lambda text: text[:-500], lambda text: "", lambda text: "garbage", lambda text: text.replace("1.0", "2.0", 1),
])  # fmt: skip
def test_a_damaged_file_means_proving_again(damage: object, proved: list[nn.Module]) -> None:
    wrap(tiny_hf("llama")).proof  # noqa: B018
    (file,) = files()
    whole = file.read_text()
    file.write_text(damage(whole))  # type: ignore[operator]
    assert wrap(tiny_hf("llama")).proof.proved
    assert len(proved) == 2 and file.read_text() == whole


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    proved: list[nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(proofs, "cache_dir", lambda: tmp_path / "file")
    for _ in range(2):
        assert wrap(tiny_hf("llama")).proof.proved
    assert len(proved) == 2


def test_old_files_go_and_no_temporary_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "KEPT", 2)
    for seed in range(4):
        wrap(tiny_hf("llama", seed)).proof  # noqa: B018
    assert len(files()) == 2 and all(file.suffix == ".json" for file in files())


def test_the_users_cache_is_where_cache_dir_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "cache_dir", cache.cache_dir)
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "chosen"))
    wrap(tiny_hf("llama")).proof  # noqa: B018
    assert len(list((tmp_path / "chosen" / "proofs").glob("*.json"))) == 1


def test_training_mode_and_grad_flags_survive_reading_a_proof() -> None:
    wrap(tiny_hf("llama")).proof  # noqa: B018
    hf = copy.deepcopy(tiny_hf("llama")).train()
    model: Model = wrap(hf)
    model.proof  # noqa: B018
    assert all(module.training for module in hf.modules())
    assert all(parameter.requires_grad for parameter in hf.parameters())
