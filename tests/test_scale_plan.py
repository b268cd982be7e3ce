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


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3", "gemma2", "phi3", "opt", "mixtral"])
def test_weights_of_a_layer_are_those_the_model_has(family):
    config = FAMILIES[family]()
    shape = Shape.of(config.to_dict(), family)
    ends = ("embed", "wte", "wpe", "lm_head", "router", "mlp.gate.")
    matrices = sum(p.numel() for name, p in tiny_hf(family).named_parameters()
                   if p.dim() > 1 and not any(end in name for end in ends))  # fmt: skip
    assert shape.layers * shape.weights == matrices
    assert (shape.used < shape.weights) == (family == "mixtral")


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
    for wrong in (lambda: plan(Job(shape, 0, 256)), lambda: plan(job, gpu="tpu"), lambda: plan(Job(shape, 1, 1, 1, layers=9))):
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
    done = CliRunner().invoke(cli, [*arguments[:1], str(tmp_path), *arguments[2:6]])
    assert "error on other runs" in done.output and "assumed:" in done.output
    for wrong in (tmp_path / "bad.json", tmp_path / "none.json"):
        with pytest.raises(UsageError, match="MODEL"):
            read_shape(wrong, "m")
