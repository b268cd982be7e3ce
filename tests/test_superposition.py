"""Superposition: closed forms, brute force, and toy models whose phases are known."""

import math

import numpy as np
import pytest
import torch

from assay.errors import ShapeError, UsageError
from assay.features import superposition as S
from assay.report.superposition_figures import interference_plot, phase_map, polygons
from assay.testing import toy_phases
from conftest import tiny

TETRAHEDRON = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


def polygon(n: int) -> torch.Tensor:
    turns = 2 * math.pi * torch.arange(n) / n
    return torch.stack([turns.cos(), turns.sin()], 1)


# measures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, each", [
    (torch.eye(3), 1.0), (torch.tensor([[1.0], [-1.0]]), 1 / 2), (polygon(3), 2 / 3), (polygon(5), 2 / 5),
    (TETRAHEDRON, 3 / 4), (7.0 * TETRAHEDRON, 3 / 4),
])  # fmt: skip
def test_dimensionality_in_closed_form(weights, each):
    found = S.dimensionality(weights)
    assert torch.allclose(found, torch.full_like(found, each))


def test_dimensionality_never_adds_up_to_more_than_there_is(monkeypatch):
    weights = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 2, 50)[:, None]
    weights[3] = 0
    found = S.dimensionality(weights)
    brute = [0.0 if i == 3 else float((r @ r) / sum(((r / r.norm()) @ w) ** 2 for w in weights.double()))
             for i, r in enumerate(weights.double())]  # fmt: skip
    assert np.allclose(found, brute) and found[3] == 0 and float(found.sum()) <= 7 + 1e-9
    monkeypatch.setattr(S, "CHUNK", 4)
    assert torch.allclose(S.dimensionality(weights), found)


def test_participation_ratio():
    rows = torch.tensor([[0.0, 3, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0], [1, 1, 0, 0]])
    assert S.participation_ratio(rows).tolist() == [1.0, 4.0, 0.0, 2.0]
    drawn = S.participation_ratio(torch.randn(400, 900, generator=torch.Generator().manual_seed(0)))
    assert abs(float(drawn.mean()) / S.random_spread(900) - 1) < 0.02


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_effective_dimensions_from_eigenvalues(shape):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * torch.linspace(0.1, 3, shape[1])
    l = np.linalg.eigvalsh(np.cov(rows.double().numpy().T))  # noqa: E741
    assert S.effective_dimensions(rows) == pytest.approx(l.sum() ** 2 / (l**2).sum(), rel=1e-9)


def test_interference_is_that_of_every_pair(monkeypatch):
    rows = torch.randn(23, 5, generator=torch.Generator().manual_seed(2))
    rows[4] = 0
    kept = rows[rows.norm(dim=1) > 0].double()
    units = kept / kept.norm(dim=1, keepdim=True)
    cosines = (units @ units.T)[*torch.triu_indices(22, 22, 1)].abs()
    monkeypatch.setattr(S, "CHUNK", 7)
    found = S.interference(rows)
    assert (found.n, found.d, sum(found.histogram)) == (22, 5, 22 * 21 // 2)
    assert found.mean_square == pytest.approx(float(cosines.square().mean()), rel=1e-5)
    assert found.largest == pytest.approx(float(cosines.max()), rel=1e-5)
    nearest = ((units @ units.T).abs() - torch.eye(22)).max(1).values.mean()
    assert found.nearest == pytest.approx(float(nearest), rel=1e-5)
    assert all(abs(q - float(cosines.quantile(level))) < 0.03 for q, level in zip(found.quantiles[:2], S.QUANTILES[:2]))
    assert found.largest >= found.welch == pytest.approx(math.sqrt(17 / (5 * 21)))
    assert interference_plot(found).get_axes()


def test_interference_of_known_frames():
    assert S.interference(torch.eye(6)).largest == 0 and S.interference(torch.eye(6)).welch == 0
    simplex = S.interference(TETRAHEDRON)  # meets the bound
    assert simplex.largest == pytest.approx(simplex.welch) == pytest.approx(1 / 3)
    many = S.interference(torch.randn(2000, 64, generator=torch.Generator().manual_seed(9)))
    assert many.mean_square == pytest.approx(1 / 64, rel=0.02) == pytest.approx(many.random_mean_square, rel=0.02)
    with pytest.raises(UsageError, match="2 or more"):
        S.interference(torch.zeros(3, 4))


def test_a_latent_on_one_neuron_and_on_all():
    neurons = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3))).Q
    found = S.spread_over_neurons(torch.stack([neurons[2], neurons.sum(0)]), neurons)
    assert torch.allclose(found, torch.tensor([1.0, 8.0], dtype=torch.float64), atol=1e-4)
    assert S.spread_over_neurons(torch.eye(3)).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ShapeError, match=r"allowed: \(neuron, 5\)"):
        S.spread_over_neurons(torch.ones(2, 5), neurons)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_against_raw_activations(family):
    model = tiny(family)
    texts = [[5, 9, 3, 17, 6, 8], [4, 8, 15, 16, 23], [42, 7, 7, 12]]
    acts = model.capture(texts, ["mlp_act.1", "mlp_out.1", "resid_post.1"])
    written = S.neuron_outputs(model, 1)
    moved = acts.flat("mlp_out.1")[0] - acts.flat("mlp_out.1")[1]  # without a bias
    assert torch.allclose((acts.flat("mlp_act.1")[0] - acts.flat("mlp_act.1")[1]) @ written, moved, atol=1e-5)
    (found,) = S.layer_summaries(model, [texts[:2], texts[2:]], [1])
    kept = torch.cat([row[1:] for row in acts.rows("mlp_act.1")]).double()
    stream = torch.cat([row[1:] for row in acts.rows("resid_post.1")])
    centred = kept - kept.mean(0)
    kurtosis = (centred.pow(4).mean(0) / centred.square().mean(0).square()).median()
    assert found.n_tokens == len(kept) == 12
    assert found.filled == pytest.approx(S.effective_dimensions(kept), rel=1e-6)
    assert found.stream_filled == pytest.approx(S.effective_dimensions(stream), rel=1e-4)
    assert found.neurons_per_token == pytest.approx(float(S.participation_ratio(kept).mean()), rel=1e-5)
    assert found.kurtosis == pytest.approx(float(kurtosis), rel=1e-4)
    with pytest.raises(UsageError, match="no tokens"):
        S.layer_summaries(model, [[[3]]], [1])


def test_neurons_that_write_nothing_overlap_with_none():
    """A pruned neuron has no direction; overlap of the others by hand."""
    model = tiny("llama")
    with torch.no_grad():
        model.hf.model.layers[1].mlp.down_proj.weight[:, 3] = 0.0
    rows = S.neuron_outputs(model, 1)
    rows = torch.cat([rows[:3], rows[4:]])
    units = rows / rows.norm(dim=1, keepdim=True)
    squares = (units @ units.T).square()[~torch.eye(len(rows), dtype=torch.bool)].mean()
    (found,) = S.layer_summaries(model, [[[5, 9, 3, 17, 6, 8]]], [1])
    assert found.output_interference == pytest.approx(float(squares) * rows.shape[1], rel=1e-4)


# toy models --------------------------------------------------------------------------------------


def test_five_features_in_two_dimensions_make_a_pentagon():
    toys = toy_phases.train_toys(5, 2, [0.05] * 3, steps=1200)
    for weights in toys.weights:
        found = S.dimensionality(weights)
        assert torch.allclose(found, torch.full_like(found, 0.4), atol=0.02) and abs(float(found.sum()) - 2) < 0.01
    assert polygons(toys.weights.numpy(), ["a", "b", "c"]).get_axes()


def test_sparser_features_share_dimensions():
    toys = toy_phases.train_toys(40, 6, [1.0, 0.1, 0.02], steps=600)
    per = S.dimensions_per_feature(toys.weights)
    assert abs(float(per[0]) - 1) < 0.1 and float(per[0]) > 1.5 * float(per[1]) > 2 * float(per[2])


def test_candidate_losses_are_the_closed_form():
    """The three losses of the module's text, summed over a quadrature with the best bias."""
    p, r = 0.3, 0.6
    points, weights = toy_phases.quadrature(torch.tensor([p]), nodes=64)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    biases = torch.linspace(0, 1, 201)

    def least(row):
        w = torch.tensor(row)[:, None]
        outs = points @ w @ w.T
        per = [min(float((weights[0] * (torch.relu(outs[:, i] + b) - points[:, i]).square()).sum()) for b in biases)
               for i in (0, 1)]  # fmt: skip
        return per[0] + r * per[1]

    alone = p / 3 - p * p / 4
    assert least([1.0, 0.0]) == pytest.approx(r * alone, rel=0.02)
    assert least([0.0, 1.0]) == pytest.approx(alone, rel=0.02)
    w = torch.tensor([[1.0], [-1.0]])
    error = ((torch.relu(points @ w @ w.T) - points).square() * torch.tensor([1.0, r])).sum(1)
    assert float((weights[0] * error).sum()) == pytest.approx((1 + r) * p * p / 6, rel=0.02)


def test_phases_are_those_that_losses_predict():
    density, importance = np.geomspace(0.05, 1, 5).tolist(), [0.2, 0.9, 3.0]
    found = toy_phases.phases(density, importance, steps=400)
    assert found.agreement >= 0.8
    assert (found.phase[:, 0] == 2).all() and found.phase[0, -1] == 0 and found.phase[-1, -1] == 1
    assert phase_map(density, importance, found.phase, toy_phases.PHASES, found.expected).get_axes()
    again = toy_phases.phases(density, importance, steps=400)
    assert (again.phase == found.phase).all()


@pytest.mark.parametrize("density", [[], [0.0], [1.5]])
def test_densities_are_probabilities(density):
    with pytest.raises(UsageError, match="above 0"):
        toy_phases.train_toys(3, 2, density)
    with pytest.raises(UsageError, match="above 0"):
        toy_phases.phases(density, [1.0])
