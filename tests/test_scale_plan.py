"""Sizing: shapes counted as the models have them, rates fitted and checked on other runs, plans that add up."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from assay.cli.main import cli
from assay.errors import UsageError
from assay.scale import sizing
from assay.scale.sizing import GPUS, Job, Shape, fit, measured, plan, read_shape, work
from conftest import FAMILIES, tiny_hf


def counted(config, gated: bool = True) -> tuple[int, int]:
    """(weights of a layer, those a token uses), by hand."""
    d, heads = config.hidden_size, config.num_attention_heads
    each, shared = getattr(config, "head_dim", None) or d // heads, getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * d
    mlp, experts = (3 if gated else 2) * d * inner, getattr(config, "num_local_experts", None) or 1
    attention = 2 * d * each * (heads + shared) + (d * experts if experts > 1 else 0)
    return attention + experts * mlp, attention + (config.num_experts_per_tok if experts > 1 else 1) * mlp


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3", "gemma2", "phi3", "opt", "mixtral"])
def test_weights_of_a_layer_are_those_that_are_counted_by_hand(family):
    config = FAMILIES[family]()
    shape = Shape.of(config.to_dict(), family)
    assert (shape.weights, shape.used) == counted(config, gated=family not in ("gpt2", "neox", "opt"))
    assert shape.params == sum(p.numel() for p in tiny_hf(family).parameters())
    assert shape.d_attention == config.num_attention_heads * (getattr(config, "head_dim", None) or shape.d_model // 4)


def test_configs_that_no_rule_of_thumb_fits_are_counted_from_their_models():
    """Experts of their own width beside shared and dense ones, one head of keys, no attention at all."""
    small = dict(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64)
    moe = Shape.of(small | dict(model_type="qwen2_moe", num_key_value_heads=2, num_experts=6, num_experts_per_tok=2,
                                moe_intermediate_size=16, shared_expert_intermediate_size=24), "moe")  # fmt: skip
    rest = 2 * 32 * 8 * (4 + 2) + 6 * 32 + 3 * 32 * 24 + 32  # attention, router, the shared expert and its gate
    assert (moe.weights, moe.used) == (rest + 6 * 3 * 32 * 16, rest + 2 * 3 * 32 * 16)
    mixed = Shape.of(small | dict(model_type="deepseek_v3", kv_lora_rank=8, q_lora_rank=None, qk_rope_head_dim=4, n_group=1,
                                  qk_nope_head_dim=4, v_head_dim=8, n_routed_experts=4, num_experts_per_tok=1, topk_group=1,
                                  moe_intermediate_size=16, first_k_dense_replace=1), "mixed")  # fmt: skip
    attention = 32 * 4 * 8 + 32 * (8 + 4) + 8 * 4 * (4 + 8) + 4 * 8 * 32
    sparse = 4 * 32 + 3 * 32 * 16  # router, the shared expert
    assert mixed.used == pytest.approx(attention + (3 * 32 * 64 + 2 * (sparse + 3 * 32 * 16)) / 3)
    assert mixed.weights == pytest.approx(mixed.used + 2 * 3 * 3 * 32 * 16 / 3)
    one = Shape.of(dict(model_type="gpt_bigcode", vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_inner=64), "one")
    assert one.weights == 2 * 32 * (32 + 8) + 2 * 32 * 64
    assert Shape.of(dict(model_type="mamba", vocab_size=50, hidden_size=32, num_hidden_layers=2), "none").d_attention == 0
    for kind in ("t5", "vit", "no_such", None):
        with pytest.raises(UsageError, match="MODEL"):
            Shape.of(small | ({} if kind is None else {"model_type": kind}), "other")


def test_rates_are_found_again_and_errors_are_those_of_other_runs():
    rng = np.random.default_rng(0)
    truth = np.array([2e-11, 5e-10])
    amounts = rng.uniform(1e6, 1e9, (12, 2))
    rows = [(tuple(row), float(row @ truth)) for row in amounts]
    found = fit(rows[:8], rows[8:])
    assert np.allclose(found.seconds, truth, rtol=1e-6) and found.largest_error < 1e-6
    wrong = [(row, 2 * seconds) for row, seconds in rows[8:]]
    assert fit(rows[:8], wrong).errors == pytest.approx([0.5] * 4)


def test_what_was_measured_has_runs_that_were_not_fitted_and_a_1b_among_them():
    rates, record = measured()
    held = [run for run in record["runs"] if run["held"]]
    assert {run["stage"] for run in held} == set(sizing.STAGES) and "1B" in {run.get("model") for run in held}
    assert max(run["work"][0] for run in held if run["stage"] == "harvest") == (
        max(run["work"][0] for run in record["runs"] if run["stage"] == "harvest"))  # fmt: skip
    for name, rate in rates.items():
        assert 0 < rate.largest_error < 0.3, name


def test_plans_add_up():
    shape = Shape("m", 64, 4, 64, 5000, 5000, 100)
    job = Job(shape, 1000, 256, 8)
    one = plan(job)
    rates, _ = measured()
    assert [stage.name for stage in one.stages] == list(sizing.STAGES) and one.dollars is None
    assert one.stages[0].seconds == pytest.approx(1000 * rates["harvest"].per_token(work("harvest", job)))
    assert one.stages[0].disk == 1000 * (2 * 64 + 13) and one.stages[1].memory == 4 * 2 * 64 * 256 * 4 + 4 * 256 * 2048
    assert plan(job, workers=4, dollars=1.0).seconds == pytest.approx(one.seconds / 4)
    assert plan(job, workers=4, dollars=1.0).dollars == pytest.approx(one.seconds / 3600)
    card = GPUS["h100"]
    big = plan(Job(shape, 1000, 1 << 22, 8), gpus=2)
    train = big.stages[1]
    assert train.error is None and train.seconds == pytest.approx(500 * max(
        (2 * 64 * 2**22 + 12 * 8 * 64) / (card.peak * 0.25), 64 * 64 * 2**22 / 2048 / card.bandwidth))  # fmt: skip
    assert any("nothing was measured on a GPU" in text for text in big.assumptions)
    assert plan(Job(shape, 1000, 256, 8, layers=2)).stages[0].operations == one.stages[0].operations / 2
    for wrong in (lambda: plan(Job(shape, 0, 256)), lambda: plan(job, gpu="tpu"), lambda: plan(Job(shape, 1, 1, 1, layers=9)),
                  lambda: plan(Job(shape, 1, 16, 17))):  # fmt: skip
        with pytest.raises(UsageError):
            wrong()


def test_the_command_reads_a_config_alone(tmp_path):
    FAMILIES["llama"]().save_pretrained(tmp_path)
    (tmp_path / "bad.json").write_text('{"hidden_size": 8}')
    arguments = ["plan", str(tmp_path / "config.json"), "--tokens", "1000", "--latents", "128", "--json", "-", "--quiet"]
    done = CliRunner().invoke(cli, [*arguments, "--atlas", str(tmp_path / "atlas")])
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["gpus"] == 0 and told["seconds"] == pytest.approx(sum(stage["seconds"] for stage in told["stages"]))
    few = [*arguments[:5], "16", *arguments[6:], "--atlas", str(tmp_path / "atlas")]  # fewer than are active by default
    asked = [json.loads(CliRunner().invoke(cli, [*few, *more]).output)["seconds"] for more in ((), ("--active", "16"))]
    assert asked[0] == asked[1]
    done = CliRunner().invoke(cli, [*arguments[:1], str(tmp_path), *arguments[2:6]])
    assert "error on other runs" in done.output and "assumed:" in done.output
    for wrong in (tmp_path / "bad.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match="MODEL"):
            read_shape(wrong, "m")
