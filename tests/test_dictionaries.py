"""Dictionaries: sparse sums against dense autograd, every architecture trains, scales fold, kept ones come back."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from assay.errors import ShapeError, StoreError, UsageError
from assay.features import kept
from assay.features.architectures.jumprelu import jump, step
from assay.features.codes import above, bag, codes_of, from_arrays, join, read, spread, to_arrays, top_batch, top_k
from assay.features.describe import describe
from assay.features.dictionary import ARCHITECTURES, Spec, Stage, make_dictionary
from assay.features.stream import Paired, TensorStream
from assay.features.train import TrainPlan, forget, k_scale, rate, refit, train

SAES = ("topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated")
D, WIDTH, K = 12, 32, 4


def planted(n=4096, d=D, features=24, l0=3, seed=1):
    """Activations with known features, off centre and of another scale than 1."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(features, d, generator=generator), dim=1)
    on = torch.rand(n, features, generator=generator) < l0 / features
    sizes = 0.5 + torch.rand(n, features, generator=generator)
    return 7 * ((on * sizes) @ rows + 2 * rows[0])


def left(y, found):
    """Fraction of variance unexplained."""
    return float((y - found).square().sum() / (y - y.mean(0)).square().sum())


def spec_of(architecture, **changes):
    sizes = {"crosscoder": {"sizes": (D // 2, D // 2)}, "clt": {"layers": 2}}.get(architecture, {})
    centred = architecture != "clt"
    given = {"k": K, "options": sizes, "centred": centred, "inputs": ("acts",), "outputs": ("acts",), **changes}
    return Spec(architecture, WIDTH, D, D, **given)


def started(architecture, x, **changes):
    dictionary = make_dictionary(spec_of(architecture, **changes))
    dictionary.start(x, x, torch.Generator().manual_seed(3))
    return dictionary


# codes -------------------------------------------------------------------------------------------


def test_selections_are_the_largest():
    pre = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    by_token = codes_of(torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1.0))
    assert torch.equal(top_k(pre, 3).latents.view(50, 3).sort(1).values, by_token.latents.view(50, 3))
    chosen = top_batch(pre, 3)
    assert len(chosen.latents) == 150
    bar = pre.flatten().topk(150).values.min()
    assert torch.equal(codes_of((pre >= bar).float()).latents, join([codes_of(_mask(chosen, pre))]).latents)


def test_a_batch_may_put_all_it_has_into_one_token():
    pre = torch.full((8, 64), -1.0)
    pre[2] = torch.arange(64) + 1.0
    chosen = top_batch(pre, 4)
    assert chosen.offsets.diff().tolist() == [0, 0, 32, 0, 0, 0, 0, 0]
    assert set(chosen.latents.tolist()) == set(range(32, 64))


def _mask(pairs, like):
    found = torch.zeros_like(like)
    found[pairs.tokens, pairs.latents] = 1.0
    return found


@pytest.mark.parametrize("choose", [lambda p: top_k(p, 5), lambda p: top_batch(p, 5), lambda p: above(p, 0.7)])
def test_sums_over_active_pairs_are_those_of_dense_autograd(choose):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 8, generator=g, dtype=torch.float64), torch.randn(30, 9, generator=g, dtype=torch.float64)
    shapes = {"encoder": (20, 8), "bias": (20,), "shift": (8,), "decoder": (20, 9)}
    sparse = {n: torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for n, s in shapes.items()}
    dense = {n: value.detach().clone().requires_grad_() for n, value in sparse.items()}
    pre = (x - sparse["shift"]) @ sparse["encoder"].T + sparse["bias"]
    pairs = choose(pre.detach())
    values = read(pre.detach(), x, sparse["encoder"], sparse["bias"], sparse["shift"], pairs).relu()
    (y - spread(values, sparse["decoder"], pairs)).square().sum().backward()
    full = (x - dense["shift"]) @ dense["encoder"].T + dense["bias"]
    (y - (full.relu() * _mask(pairs, full)) @ dense["decoder"]).square().sum().backward()
    for name in shapes:
        assert torch.allclose(sparse[name].grad, dense[name].grad, rtol=1e-9, atol=1e-9), name


def test_codes_survive_a_file_and_a_matrix():
    dense = torch.relu(torch.randn(9, 300, generator=torch.Generator().manual_seed(0)) - 1.5).half().float()
    dense[4] = 0
    codes = codes_of(dense)
    assert torch.equal(codes.dense(), dense)
    assert torch.equal(from_arrays(to_arrays(codes), 300).dense(), dense)
    assert torch.equal(torch.from_numpy(codes.scipy().toarray()), dense)
    assert torch.equal(codes.only([1, 5]).dense().nonzero()[:, 1].unique(), dense[:, [1, 5]].any(0).nonzero().flatten() * 4 + 1)
    assert bag(codes.values[:0], codes.latents[:0], torch.zeros(4, dtype=torch.long), torch.ones(300, 2)).shape == (3, 2)


# architectures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "crosscoder", "clt"])
def test_gradients_of_the_objective_are_numerical_ones(architecture):
    x = planted(64)
    x = (x / x.norm(dim=1).mean()).double()
    dictionary = started(architecture, x.float()).double()
    stage = Stage(0, 10, float((x - x.mean(0)).square().sum(1).mean()), dead=torch.arange(WIDTH) < 5)
    with torch.no_grad():
        chosen = dictionary.choose(dictionary.pre(x), stage)
    dictionary.choose = lambda pre, stage: chosen  # the selection is not part of the gradient
    _check_gradients(dictionary, x, stage)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_gradients_of_dense_objectives_are_numerical_ones(architecture):
    x = planted(64)
    x = (x / x.norm(dim=1).mean()).double()
    dictionary = started(architecture, x.float()).double()
    _check_gradients(dictionary, x, Stage(0, 10, 1.0, 0.1), skip=("W_dec", "b_dec", "W_enc") if architecture == "gated" else ())


def _check_gradients(dictionary, x, stage, skip=()):
    dictionary.objective(x, x, stage).loss.backward()
    error_free = {}
    generator = torch.Generator().manual_seed(5)
    for name, parameter in dictionary.named_parameters():
        if name in skip:  # parts of its loss are cut off from these on purpose
            continue
        along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        along /= along.norm()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * along
                losses.append(float(_main_loss(dictionary, x, stage)))
                parameter -= sign * 1e-6 * along
        error_free[name] = ((losses[0] - losses[1]) / 2e-6, float((_main_grad(dictionary, x, stage, parameter) * along).sum()))
    assert error_free
    for name, (numerical, given) in error_free.items():
        assert given == pytest.approx(numerical, rel=1e-4, abs=1e-7), name


def _main_loss(dictionary, x, stage):
    """Without the loss of dead latents, whose target is held fixed."""
    return dictionary.objective(x, x, replace(stage, dead=None)).loss


def _main_grad(dictionary, x, stage, parameter):
    with torch.enable_grad():
        return torch.autograd.grad(_main_loss(dictionary, x, stage), parameter)[0]


def test_dead_latents_learn_from_the_error_alone():
    x = planted(256)
    x = x / x.norm(dim=1).mean()
    dictionary = started("topk", x)
    dead = torch.zeros(WIDTH, dtype=torch.bool)
    dead[[3, 8]] = True
    error = (x - dictionary.reconstruct(x)).detach().requires_grad_()
    dictionary.aux(x, error, Stage(0, 10, 1.0, dead=dead)).backward()
    touched = (dictionary.W_enc.grad != 0).any(1)
    assert touched.nonzero().flatten().tolist() == [3, 8]
    assert dictionary.b_dec.grad is None and dictionary.b_enc.grad is None
    assert dictionary.W_dec.grad[~dead].abs().max() == 0


def test_a_threshold_learns_from_what_is_near_it():
    pre = torch.tensor([0.2, 0.45, 0.55, 2.0], requires_grad=True)
    threshold = torch.full((4,), 0.5, requires_grad=True)
    values = jump(pre, threshold, torch.tensor(0.2))
    values.sum().backward()
    assert values.tolist() == pytest.approx([0, 0, 0.55, 2.0])
    assert pre.grad.tolist() == [0, 0, 1, 1]
    assert threshold.grad.tolist() == pytest.approx([0, -2.5, -2.5, 0])  # -threshold / bandwidth where it is near
    other = torch.full((4,), 0.5, requires_grad=True)
    count = step(pre.detach(), other, torch.tensor(0.2))
    count.sum().backward()
    assert count.tolist() == [0, 0, 1, 1] and other.grad.tolist() == pytest.approx([0, -5, -5, 0])


@pytest.mark.parametrize("architecture", sorted(name for name in ARCHITECTURES.names() if ARCHITECTURES.get(name).trains))
def test_every_registered_architecture_trains_folds_and_is_kept(architecture, tmp_path):
    x = planted()
    found = train(TensorStream({"acts": x}), [spec_of(architecture)], TrainPlan(tokens=40_000, batch=256, lr=1e-2))[0]
    first, last = found.history[0], found.history[-1]
    assert last.fvu < 0.5 and last.fvu < first.fvu
    dictionary = found.dictionary
    assert left(x, dictionary.reconstruct(x)) < 0.6  # on raw activations, after folding
    assert torch.allclose(dictionary.decode(dictionary.encode(x)), dictionary.decode(dictionary.codes(x)), atol=1e-4)
    kept.save(dictionary, tmp_path / "it")
    again = kept.load(tmp_path / "it")
    assert again.digest == dictionary.digest and again.name == dictionary.name and again.spec == dictionary.spec
    assert torch.equal(again.reconstruct(x), dictionary.reconstruct(x))
    half = kept.load(kept.save(dictionary, tmp_path / "half", "fp16"))
    assert float((half.reconstruct(x) - dictionary.reconstruct(x)).norm() / x.norm()) < 0.05


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu", "batchtopk"])
def test_so_many_latents_are_active_as_were_asked_for(architecture):
    plan = TrainPlan(tokens=200_000, batch=256, lr=5e-3)
    x = planted(8192)
    found = train(TensorStream({"acts": x[:4096]}), [spec_of(architecture)], plan)[0]
    l0 = float(found.dictionary.codes(x[4096:]).l0.mean())
    assert K / 1.6 < l0 < K * 1.6


@pytest.mark.parametrize(("architecture", "options"), [("relu", {}), ("gated", {}), ("jumprelu", {"penalty": "tanh"})])
def test_without_k_the_weight_of_the_penalty_stays_and_decides(architecture, options):
    found, spec = [], spec_of(architecture, k=None, options=options)
    for sparsity in (0.01, 0.3):
        plan = TrainPlan(tokens=40_000, batch=256, lr=5e-3, sparsity=sparsity)
        found.append(train(TensorStream({"acts": planted()}), [spec], plan)[0].history)
        assert {line.sparsity for line in found[-1]} == {sparsity}
    assert found[1][-1].l0 < 0.7 * found[0][-1].l0
    with pytest.raises(UsageError, match="Its penalty aims at"):
        train(TensorStream({"acts": planted()}), [spec_of("jumprelu", k=None)], TrainPlan(tokens=512, batch=256))


def test_progress_says_loss_fvu_l0_and_dead():
    told, plan = [], TrainPlan(tokens=1024, batch=512)
    one, two = (train(TensorStream({"acts": planted()}), [spec_of(name) for name in names], plan, None,
                      lambda words, done, of: told.append(words)) for names in (("relu",), ("relu", "topk")))  # fmt: skip
    last, pair = one[0].history[-1], [each.history[-1] for each in two]
    assert told[1] == f"loss {last.loss:.3f}, FVU {last.fvu:.3f}, L0 {last.l0:.0f}, dead {last.dead:.0%}"
    assert last.loss > last.fvu
    low, high = sorted(line.loss for line in pair)
    assert told[3].startswith(f"loss {low:.3f} to {high:.3f}, FVU ")


def test_only_some_latents_may_be_used_up_to_a_prefix():
    with pytest.raises(UsageError, match="prefixes"):
        make_dictionary(spec_of("matryoshka", options={"prefixes": (0.5, 0.2)}))
    found = train(TensorStream({"acts": planted()}), [spec_of("matryoshka")], TrainPlan(tokens=100_000, batch=256, lr=5e-3))[0]
    dictionary, x = found.dictionary, planted()
    codes = dictionary.codes(x)
    shares = [float((x - dictionary.decode(codes.only(range(size)))).square().sum()) for size in dictionary.sizes]
    assert shares == sorted(shares, reverse=True)


def test_a_transcoder_reads_one_site_and_writes_another():
    x = planted(6000)
    generator = torch.Generator().manual_seed(8)
    y = torch.relu(x @ torch.randn(D, 10, generator=generator)) * 0.1 + x @ torch.randn(D, 10, generator=generator)
    spec = Spec("topk", 64, D, 10, k=3, inputs=("mlp_in.3",), outputs=("mlp_out.3",), centred=False)
    stream = TensorStream({"mlp_in.3": x, "mlp_out.3": y})
    plain, skip = train(stream, [spec, replace(spec, skip=True)], TrainPlan(tokens=150_000, batch=256, lr=5e-3))
    shares = [left(y, one.dictionary.reconstruct(x)) for one in (plain, skip)]
    assert shares[0] < 0.35 and shares[1] < shares[0]
    assert plain.dictionary.spec.transcodes
    with pytest.raises(UsageError, match="recipe"):
        refit(plain.dictionary, x)


def test_a_crosscoder_tells_shared_latents_from_those_of_one_site():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(3, 12, D, generator=generator), dim=2)
    on = (torch.rand(8000, 3, 12, generator=generator) < 0.06).float() * (0.5 + torch.rand(8000, 3, 12, generator=generator))
    shared = torch.einsum("nf,fd->nd", on[:, 0], rows[0])
    a = shared + torch.einsum("nf,fd->nd", on[:, 1], rows[1])
    b = 3 * (torch.einsum("nf,fd->nd", on[:, 0], rows[2]) + torch.einsum("nf,fd->nd", on[:, 2], rows[1]))
    stream = Paired({"base": TensorStream({"acts": a}), "tuned": TensorStream({"acts": b})})
    assert stream.sites == ("base:acts", "tuned:acts")
    spec = Spec("crosscoder", 48, 2 * D, 2 * D, k=3, inputs=stream.sites, outputs=stream.sites, options={"sizes": (D, D)})
    found = train(stream, [spec], TrainPlan(tokens=400_000, batch=512, lr=5e-3))[0].dictionary
    shares = found.shares()
    alive = found.encode(torch.cat([a, b], 1)).gt(0).float().mean(0) > 0.005
    best = shares[alive].max(1).values
    assert int((best > 0.9).sum()) >= 12 and int((best < 0.75).sum()) >= 6
    for one, column in zip(describe(found).alone, shares.T, strict=True):
        assert one.count == int((column > 0.9).sum()) >= 6 and one.most[0] == (int(column.argmax()), float(column.max()))


def test_a_cross_layer_transcoder_writes_to_later_layers():
    x = torch.cat([planted(6000, d=6), planted(6000, d=6, seed=9)], 1)
    first, second = x.split(6, 1)
    y = torch.cat([torch.relu(first[:, :3]), torch.relu(second[:, :3]) + 0.5 * torch.relu(first[:, :3])], 1)
    spec = Spec("clt", 64, 12, 6, k=8, inputs=("a",), outputs=("b",), centred=False, options={"layers": 2})
    found = train(TensorStream({"a": x, "b": y}), [spec], TrainPlan(tokens=200_000, batch=256, lr=5e-3))[0].dictionary
    assert left(y, found.reconstruct(x)) < 0.4
    codes = found.encode(x)
    assert codes[:, 32:].abs().sum() > 0
    latent = int(codes[:, 32:].sum(0).argmax()) + 32
    assert found.directions()[latent, :3].abs().max() == 0  # nothing writes to an earlier layer


# training ----------------------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls():
    plan = TrainPlan(tokens=100 * 10, batch=10, warmup=0.1, decay=0.2, lr=1.0)
    rates = [rate(plan, step) for step in range(plan.steps)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and rates[50] == 1
    assert rates[-1] == pytest.approx(0.05)


def test_k_falls_from_where_an_architecture_begins_or_the_plan_says():
    plan = TrainPlan(tokens=100 * 10, batch=10)
    assert [k_scale(plan, 4, step, 2.0) for step in (0, 5, 10, 99)] == pytest.approx([2, 1.5, 1, 1])
    assert k_scale(replace(plan, k_start=12), 4, 0, 2.0) == 3 and k_scale(replace(plan, k_start=4), 4, 0, 2.0) == 1
    assert k_scale(plan, None, 0, 2.0) == k_scale(replace(plan, k_anneal=0.0), 4, 0, 2.0) == k_scale(plan, 4, 0) == 1
    stream, plan = TensorStream({"acts": planted()}), TrainPlan(tokens=256 * 40, batch=256)
    for architecture, first in (("topk", K), ("batchtopk", 2 * K), ("matryoshka", K)):
        found = train(stream, [spec_of(architecture)], plan)[0]
        assert [line.l0 for line in found.history[:1] + found.history[-1:]] == pytest.approx([first, K], rel=0.05)
        assert found.dictionary.provenance["plan"]["k_start"] == first
    with pytest.raises(UsageError, match="k_start: got 0; allowed: 1 or more"):
        TrainPlan(k_start=0)


def test_a_recipe_that_says_nothing_of_its_first_k_had_the_same_k_throughout():
    plan = TrainPlan(tokens=256 * 30, batch=256)
    found, plain = (train(TensorStream({"acts": planted()}), [spec_of("batchtopk")], each)[0].dictionary
                    for each in (plan, replace(plan, k_start=K)))  # fmt: skip
    assert found.digest != plain.digest and found.refit(planted()).digest == found.digest
    found.provenance["plan"]["k_start"] = None  # as it was written before
    assert found.refit(planted()).digest == plain.digest


def test_jumprelu_aims_at_twice_k_first_and_never_at_more_than_there_are():
    made = make_dictionary(spec_of("jumprelu"))
    x = planted(512)
    made.start(x, x, torch.Generator().manual_seed(0))
    said = []
    for scale in (1.0, 2.0, 1e9):
        stage = Stage(0, 10, 1.0, 1.0, None, scale)
        with torch.no_grad():
            pairs = made.choose(made.scores(x), stage)
            l0 = float((made.pre(x) > made.threshold).sum() / len(x))
        said.append(made.objective(x, x, stage).penalty)
        assert said[-1] == pytest.approx(6 * (l0 / min(K * scale, made.width) - 1) ** 2, rel=1e-4, abs=1e-6)
        assert pairs.n_tokens == 512
    assert said[0] < said[1] < said[2]


def test_training_that_was_stopped_ends_with_the_same_numbers(tmp_path):
    stream = TensorStream({"acts": planted()})
    specs = [spec_of("topk"), spec_of("jumprelu"), spec_of("batchtopk", k=6)]
    plan = TrainPlan(tokens=256 * 60, batch=256, checkpoint_every=20)
    whole = train(stream, specs, plan)

    class Stop(Exception):
        pass

    def stop(words, done, steps):
        if done == 47:
            raise Stop

    with pytest.raises(Stop):
        train(stream, specs, plan, tmp_path, stop)
    seen = []
    again = train(stream, specs, plan, tmp_path, lambda words, done, steps: seen.append(done))
    assert seen[0] == 41 and not list(tmp_path.iterdir())
    for one, other in zip(whole, again, strict=True):
        assert one.dictionary.digest == other.dictionary.digest and one.history == other.history


def test_the_state_of_another_run_is_refused(tmp_path):
    stream, plan = TensorStream({"acts": planted()}), TrainPlan(tokens=256 * 30, batch=256, checkpoint_every=10)

    def stop(words, done, steps):
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stream, [spec_of("topk")], plan, tmp_path, stop)
    with pytest.raises(UsageError, match=r"plan\.lr"):
        train(stream, [spec_of("topk")], replace(plan, lr=1e-4), tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="not a kept state"):
        train(stream, [spec_of("topk")], plan, tmp_path)


@pytest.mark.whole
def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    program = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(0, {os.path.dirname(__file__)!r})
torch.set_num_threads(1)
from pathlib import Path
from test_dictionaries import planted, spec_of
from assay.features.train import TrainPlan, train
from assay.features.stream import TensorStream
plan = TrainPlan(tokens=256 * 400, batch=256, checkpoint_every=7)
made = train(TensorStream({{"acts": planted()}}), [spec_of("batchtopk")], plan, Path(sys.argv[1]),
             lambda words, done, steps: print(done, flush=True))
print("digest", made[0].dictionary.digest)
"""

    def run(folder, kill_after=None):
        process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if kill_after is not None and len(lines) == kill_after:
                time.sleep(0.01)
                process.send_signal(signal.SIGKILL)
                break
        process.wait()
        return lines

    expected = run(tmp_path / "whole")[-1]
    run(tmp_path / "cut", 100)
    run(tmp_path / "cut", 60)
    last = run(tmp_path / "cut")
    assert int(last[0]) > 100 and last[-1] == expected


def test_divergence_is_said_early():
    with pytest.raises(UsageError, match="diverged at step .* lower learning rate"):
        train(TensorStream({"acts": planted()}), [spec_of("relu")], TrainPlan(tokens=256 * 300, batch=256, lr=30.0, clip=1e9))
    bad = planted()
    bad[700] = float("nan")
    with pytest.raises(UsageError, match="diverged"):
        train(TensorStream({"acts": bad}), [spec_of("topk")], TrainPlan(tokens=256 * 30, batch=256))


@pytest.mark.parametrize("architecture, options", [
    ("relu", {"anneal": "x"}), ("matryoshka", {"prefixes": 0.5}), ("matryoshka", {"prefixes": ["a", 1]}),
    ("jumprelu", {"bandwidth": -1}), ("jumprelu", {"bandwidth": float("nan")}), ("clt", {"layers": "x"}),
    ("crosscoder", {"sizes": 3}), ("matching_pursuit", {"steps": 0}), ("matching_pursuit", {"stop_on_repeat": 1}),
])  # fmt: skip
def test_settings_of_the_wrong_kind_are_named(architecture, options):
    with pytest.raises(UsageError, match=f"option {next(iter(options))}: got .*; allowed: "):
        make_dictionary(Spec(architecture, 64, D, D, k=4, options=options))


def test_descriptions_and_plans_that_cannot_be_are_named():
    good = Spec("topk", 64, D, D, k=4).json()
    for changes, said in (({"width": "64"}, "spec: width"), ({"d_in": None}, "spec: d_in"), ({"options": 3}, "spec"),
                          ({"k": "4"}, "spec"), ({"inputs": 3}, "spec")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            Spec.of({**good, **changes})
    for name, value in (("lr", math.inf), ("clip", math.nan), ("sparsity", math.nan), ("sparsity", math.inf)):
        with pytest.raises(UsageError, match=name):
            TrainPlan(**{name: value})
    with pytest.raises(UsageError, match="skip: got True"):
        train(TensorStream({"acts": planted(300)}), [Spec("topk", 64, D, D, k=4, skip=True)], TrainPlan(tokens=300, batch=100))


def test_what_a_stream_lacks_is_said():
    stream = TensorStream({"acts": planted()})
    with pytest.raises(UsageError, match="site.*acts"):
        train(stream, [spec_of("topk", inputs=("resid_post.3",), outputs=("resid_post.3",))], TrainPlan())
    with pytest.raises(UsageError, match="d_in"):
        train(stream, [replace(spec_of("topk"), d_in=9, d_out=9)], TrainPlan())
    with pytest.raises(UsageError, match="Did you mean 'topk'"):
        make_dictionary(spec_of("topkk"))
    with pytest.raises(UsageError, match="options"):
        make_dictionary(spec_of("topk", options={"tau": 1}))


def test_a_refit_is_the_same_recipe_on_other_activations():
    found = train(TensorStream({"acts": planted()}), [spec_of("topk")], TrainPlan(tokens=60_000, batch=256))[0].dictionary
    other = planted(seed=11) * 3
    again = found.refit(other)
    assert again.spec.k == K and again.digest != found.digest
    assert left(other, again.reconstruct(other)) < 0.6


def test_batches_of_a_stream_are_numbered_and_whole():
    x = torch.arange(10.0)[:, None]
    stream = TensorStream({"acts": x})
    run = stream.batches(4, seed=3)
    first = [next(run)["acts"].flatten().tolist() for _ in range(8)]
    for start in range(8):
        assert next(stream.batches(4, 3, start))["acts"].flatten().tolist() == first[start]
    tokens = sum(first, [])
    assert sorted(tokens[:10]) == sorted(tokens[10:20]) == x.flatten().tolist() and tokens[:10] != tokens[10:20]


# use and files -----------------------------------------------------------------------------------


def test_massive_and_first_positions_are_left_alone():
    dictionary = make_dictionary(spec_of("topk", norm_limit=5.0, skip_first=1))
    x = torch.ones(4, D)
    x[2] *= 100
    assert dictionary.typical(x, torch.tensor([0, 1, 2, 3])).tolist() == [False, True, False, True]


def test_wrong_shapes_and_damaged_folders_are_refused(tmp_path):
    dictionary = started("topk", planted(64))
    with pytest.raises(ShapeError, match=f"token, {D}"):
        dictionary.codes(torch.zeros(3, D + 1))
    folder = kept.save(dictionary, tmp_path / "it")
    record = json.loads((folder / "dictionary.json").read_text())
    record["spec"]["width"] = 5
    (folder / "dictionary.json").write_text(json.dumps(record))
    with pytest.raises(StoreError, match="not the numbers"):
        kept.load(folder)
    with pytest.raises(StoreError, match="no dictionary"):
        kept.load(tmp_path / "nothing")
    other = started("topk", planted(64, seed=5))
    kept.save(dictionary, folder)
    description = (folder / "dictionary.json").read_text()
    kept.save(other, tmp_path / "other")
    from safetensors.torch import load_file, save_file

    probes = {name: x for name, x in load_file(folder / "dictionary.safetensors").items() if name.startswith("probe")}
    mixed = {**load_file(tmp_path / "other" / "dictionary.safetensors"), **probes}
    save_file(mixed, folder / "dictionary.safetensors")
    (folder / "dictionary.json").write_text(description)
    with pytest.raises(StoreError, match="not what was kept"):
        kept.load(folder)


def damaged(folder, how):
    """A kept dictionary with other numbers beside what was kept of it."""
    from safetensors.torch import load_file, save_file

    path, numbers = folder / "dictionary.safetensors", load_file(folder / "dictionary.safetensors")
    fires = kept.load(folder).codes(numbers["probe.inputs"]).dense().any(0).tolist()
    silent = fires.index(False)
    if how == "infinite":
        numbers["W_dec"][silent, 0] = torch.inf
    elif how == "changed where no probe fires":
        numbers["W_dec"][silent, 0] += 1
    else:
        numbers["W_enc"] = torch.randn(WIDTH, D)
        numbers["probe.outputs"][0, 0] = torch.nan
    save_file(numbers, path)


@pytest.mark.parametrize(("how", "said"), [("infinite", "W_dec has numbers that are not finite"),
                                           ("changed where no probe fires", "not what was kept"),
                                           ("a probe that says nothing", "probe.outputs|not what was kept")])  # fmt: skip
def test_numbers_that_changed_are_refused_even_where_no_probe_fires(tmp_path, how, said):
    folder = kept.save(started("topk", planted(64)), tmp_path / "it")
    damaged(folder, how)
    with pytest.raises(StoreError, match=said):
        kept.load(folder)


@pytest.mark.parametrize(("key", "value"), [
    ("name", None), ("name", 3), ("digest", None), ("digest", "0" * 64), ("format", -1), ("format", 2), ("format", "1"),
    ("spec.architecture", None), ("spec.architecture", [1]), ("spec.width", 10**12), ("spec.norm_limit", -1),
    ("spec.norm_limit", 0),
])  # fmt: skip
def test_descriptions_that_were_changed_are_refused_in_words(tmp_path, key, value):
    folder = kept.save(started("topk", planted(64)), tmp_path / "it")
    record = json.loads((folder / "dictionary.json").read_text())
    inner = record["spec"] if key.startswith("spec.") else record
    inner[key.removeprefix("spec.")] = value
    (folder / "dictionary.json").write_text(json.dumps(record))
    with pytest.raises((StoreError, UsageError)):
        kept.load(folder)
    del inner[key.removeprefix("spec.")]
    (folder / "dictionary.json").write_text(json.dumps(record))
    if key != "spec.norm_limit":
        with pytest.raises((StoreError, UsageError)):
            kept.load(folder)


def test_a_state_that_cannot_be_deleted_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be deleted"):
        forget(tmp_path / "file" / "inside")
