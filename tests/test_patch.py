"""Sweeps against one cell at a time with raw hooks; the command line."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from assay import PatchPlan, load_task, patch_sweep, prepare
from assay.circuits.patch import has_effect, normalised
from assay.data.prepare import PreparedTask
from assay.errors import TaskError, UsageError
from assay.records import Pair
from conftest import tiny


def task(n=3, ragged=False):
    rng = np.random.default_rng(0)
    lengths = [5 + (i if ragged else 0) for i in range(n)]
    clean = [rng.integers(20, 190, k).tolist() for k in lengths]
    corrupted = [row[:2] + [150 + i] + row[3:] for i, row in enumerate(clean)]
    pair = Pair("a", "b", ("x",), ("y",), "t")
    return PreparedTask([pair] * n, clean, corrupted, [(7,)] * n, [(8,)] * n, {}, {}, {"at": [2] * n})


def raw_run(model, ids, path=None, hook=None, before=False):
    handle = None
    if path:
        module = model.hf.get_submodule(path)
        handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -1]
    if handle:
        handle.remove()
    return float(logits[7] - logits[8])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_position_sweep_equals_brute_force(direction):
    model, t = tiny("llama", 1), task()
    result = patch_sweep(model, t, PatchPlan(direction=direction, n_bootstrap=50))
    base, source = (t.corrupted, t.clean) if direction == "denoise" else (t.clean, t.corrupted)
    clean, corrupted = (np.mean([raw_run(model, ids) for ids in side]) for side in (t.clean, t.corrupted))
    for layer in range(3):
        path = f"model.layers.{layer}"
        for position in range(5):
            got = []
            for b, s in zip(base, source, strict=True):
                kept = {}
                raw_run(model, s, path, lambda m, a, o, kept=kept: kept.update(x=o.clone()))

                def write(m, a, out, kept=kept, position=position):
                    out = out.clone()
                    out[:, position] = kept["x"][:, position]
                    return out

                got.append(raw_run(model, b, path, write))
            want = (np.mean(got) - corrupted) / (clean - corrupted)
            assert result.effect[layer][position] == pytest.approx(want, abs=2e-4)
    assert result.checks["cells_without_difference"] >= 3 * 3 * 2  # the shared prefix


def test_head_sweep_equals_brute_force():
    model, t = tiny("llama", 1), task(ragged=True)
    result = patch_sweep(model, t, PatchPlan(site="z", n_bootstrap=50))
    clean, corrupted = (np.mean([raw_run(model, ids) for ids in side]) for side in (t.clean, t.corrupted))
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        path, got = f"model.layers.{layer}.self_attn.o_proj", []
        for b, s in zip(t.corrupted, t.clean, strict=True):
            kept = {}
            raw_run(model, s, path, lambda m, a, kept=kept: kept.update(x=a[0].clone()), before=True)

            def write(m, a, kept=kept, head=head):
                x = a[0].clone()
                x[..., head * 8 : head * 8 + 8] = kept["x"][..., head * 8 : head * 8 + 8]
                return (x,)

            got.append(raw_run(model, b, path, write, before=True))
        assert result.effect[layer][head] == pytest.approx((np.mean(got) - corrupted) / (clean - corrupted), abs=2e-4)


def test_ragged_positions_count_from_the_end():
    result = patch_sweep(tiny("gpt2", 1), task(ragged=True), PatchPlan(n_bootstrap=20))
    assert result.columns == ["-7", "-6", "-5", "-4", "-3", "-2", "-1"]
    assert result.effect[2][-1] == pytest.approx(1.0, abs=1e-4)  # the last block's last position is everything


@pytest.mark.parametrize("site", ["components", "mlp_act.1", "k", "resid_pre"])
def test_other_grids_run_and_last_component_is_bounded(site):
    result = patch_sweep(tiny("qwen2", 1), task(), PatchPlan(site=site, n_bootstrap=20))
    grid = np.array(result.effect)
    assert grid.shape == (len(result.layers), len(result.columns)) and np.isfinite(grid).all()
    assert (np.array(result.low) <= np.array(result.high)).all()  # three pairs: every bound is known


def test_attribution_is_the_first_order_estimate():
    """For small differences the estimate converges to exact patching."""
    model, t = tiny("llama", 1), task()
    for row in range(3):  # scale down the embedding difference: first order becomes exact
        model.hf.model.embed_tokens.weight.data[150 + row] = (
            model.hf.model.embed_tokens.weight.data[t.clean[row][2]] + 1e-3 * torch.randn(32)
        )
    plan = PatchPlan(n_bootstrap=20)
    exact = patch_sweep(model, t, plan)
    estimate = patch_sweep(model, t, PatchPlan(method="attribution", n_bootstrap=20))
    np.testing.assert_allclose(estimate.effect, exact.effect, atol=0.05)
    assert estimate.checks["correlation_with_exact"] > 0.99


def test_no_effect_to_locate_is_an_error():
    t = task()
    same = PreparedTask(t.pairs, t.clean, t.clean, t.answers, t.foils, {}, {}, {})
    with pytest.raises(TaskError, match="no effect to locate"):
        patch_sweep(tiny("llama"), same)
    with pytest.raises(UsageError, match="allowed: denoise or noise"):
        patch_sweep(tiny("llama"), t, PatchPlan(direction="up"))


def test_an_effect_that_is_only_rounding_is_no_effect():
    clean = np.array([2.5549953, 2.4524977])
    mirror = clean[::-1]
    assert not has_effect(clean, mirror)
    assert not has_effect(clean, mirror + np.array([2e-6, 0]))  # what summing in another order does
    assert has_effect(clean, clean - 1e-4) and has_effect(clean * 1e-6, clean * 0.9e-6)


def test_normalised_ignores_missing_cells():
    values = np.array([[[1.0, np.nan]], [[3.0, 4.0]]])
    effect, low, high = normalised(values, np.array([4.0, 4.0]), np.array([0.0, 0.0]), 200, 0)
    np.testing.assert_allclose(effect, [[0.5, 1.0]])
    assert low[0, 0] == 0.25 and high[0, 0] == 0.75
    assert np.isnan([low[0, 1], high[0, 1]]).all()  # a cell that one pair has: no spread is known


def assay(*arguments):
    return subprocess.run([sys.executable, "-m", "assay", *arguments], capture_output=True, text=True)


@pytest.mark.whole
def test_help_does_not_import_torch():
    code = "import sys, assay.cli.main; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    assert "patch" in assay("--help").stdout


@pytest.mark.whole
def test_user_mistakes_end_in_one_line():
    for arguments, says in ((("ptch",), "Did you mean 'patch'"), (("patch", "no-such-model", "ioi"), "no-such-model"),
                            (("patch", "glass-en", "nope"), "not bundled")):  # fmt: skip
        done = assay(*arguments)
        assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.whole
def test_patch_command_writes_json_and_picture(tmp_path):
    rows = [{"clean": f"the {a} said", "corrupted": f"the {b} said", "answer": " the", "foil": " a", "template": a}
            for a, b in (("King", "Queen"), ("Rabbit", "Mouse"), ("Cat", "Turtle"))]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.json"
    done = assay("patch", "glass-en", "--file", str(tmp_path / "t.jsonl"), "--json", str(out), "--atlas", str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert {"model", "task", "site", "metric", "n_pairs", "clean", "corrupted", "layers", "positions", "effect",
            "low", "high"} <= set(record)  # fmt: skip
    assert record["n_pairs"] == 3 and np.isfinite(record["effect"]).all()
    assert list((tmp_path / "figures").glob("*.png"))
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~mask  # readable as any other file of this user


@pytest.mark.whole
def test_model_check_command(tmp_path):
    done = assay("model", "check", "glass-en", "--json", "-")
    record = json.loads(done.stdout)
    assert done.returncode == 0 and record["proved"] and {"site", "proved", "equation", "error"} == set(record["sites"][0])


@pytest.mark.slow
def test_the_real_model_does_ioi_and_all_sites_are_proved(smollm2):
    assert smollm2.proof.proved and len(smollm2.proof.sites) == 30 * 13 + 3
    t = prepare(load_task("ioi", n=20), smollm2)
    scores = smollm2.score(t.clean, t.metric())
    assert len(t) >= 18 and float((scores > 0).float().mean()) > 0.9
    text = smollm2.generate("The capital of France is", max_new_tokens=3).texts[0]
    assert text.startswith(" Paris")
