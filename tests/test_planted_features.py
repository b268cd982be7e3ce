"""Planted features: what is drawn is what was asked for, scores know the answer, and training finds it."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from assay.errors import UsageError
from assay.features.dictionary import Spec
from assay.features.train import TrainPlan, train
from assay.testing.planted_features import SITE, PlantedFeatures, World, compared, matching, recovery

pytestmark = pytest.mark.whole


class Oracle:
    """Latents that are the planted features, read from the truth: some missing, some doubled, some silent."""

    def __init__(self, planted, sample, keep, holes=None):
        self.planted, self.sample, self.keep = planted, sample, torch.as_tensor(keep)
        self.codes = sample.values[:, self.keep].clone()
        if holes is not None:
            self.codes[holes] = 0.0

    def scores(self):
        found = self.sample.values @ self.planted.directions + self.planted.mean
        return compared(self.planted, self.sample, self.planted.directions[self.keep], self.codes, found)


@pytest.mark.parametrize("world", [World(), World(zipf=1.0), World(zipf=2.0, mean_l0=20), World(rank=4, correlation=0.4)])
def test_features_are_active_as_often_as_said(world):
    planted = PlantedFeatures(world)
    active = planted.sample(40_000, 0).values > 0
    assert float(active.sum(1).float().mean()) == pytest.approx(world.mean_l0, rel=0.02)
    assert float(planted.rates.sum()) == pytest.approx(world.mean_l0, rel=1e-4) and float(planted.rates.max()) <= 0.4001
    errors = (active.float().mean(0) - planted.rates) / (planted.rates * (1 - planted.rates) / 40_000).sqrt()
    assert float(errors.abs().max()) < 5
    assert bool((planted.rates.diff() <= 1e-7).all())


def test_correlation_makes_features_of_one_factor_fire_together_and_none_does_not():
    for correlation, rank in ((0.0, 0), (0.6, 2)):
        planted = PlantedFeatures(World(n_features=40, width=20, mean_l0=8, rank=rank, correlation=correlation))
        active = (planted.sample(30_000, 0).values > 0).float().numpy()
        phi = np.corrcoef(active.T)
        off = phi[~np.eye(40, dtype=bool)]
        if not rank:
            assert np.abs(off).max() < 0.04
            continue
        wanted = (planted.factors @ planted.factors.T).numpy()[~np.eye(40, dtype=bool)]
        assert np.corrcoef(off, wanted)[0, 1] > 0.95 and off.max() > 0.2 and off.min() < -0.05


def test_children_are_exclusive_need_their_parent_and_scale_with_it():
    world = World(n_features=30, width=40, mean_l0=4, parents=5, children=3, child_rate=0.6, orthogonal=True)
    planted = PlantedFeatures(world)
    values = planted.sample(30_000, 0).values
    for mother in range(5):
        own = values[:, planted.parent == mother]
        assert int((own > 0).sum(1).max()) == 1
        with_parent = values[:, mother] > 0
        assert not bool((own[~with_parent] > 0).any())
        rates = (own[with_parent] > 0).float().mean(0)
        assert float(rates.sum()) == pytest.approx(0.6, abs=0.02) and float(rates.max() - rates.min()) < 0.03
        active = own.sum(1) > 0
        ratio = own.sum(1)[active] / values[active, mother]
        assert float(ratio.min()) >= 0.5 and float(ratio.max()) <= 1.5
    assert torch.allclose(planted.directions @ planted.directions.T, torch.eye(30), atol=1e-5)


def test_tokens_are_what_they_are_made_of_and_batches_come_again():
    planted = PlantedFeatures(World(n_features=20, width=12, mean_l0=2, offset=3.0))
    sample = planted.sample(50, 4)
    assert torch.allclose(sample.acts, sample.values @ planted.directions + planted.mean, atol=1e-5)
    assert float(planted.mean.norm()) == pytest.approx(3) and torch.allclose(planted.directions.norm(dim=1), torch.ones(20))
    values = sample.values[sample.values > 0]
    assert float(values.min()) >= 0.5 and float(values.max()) <= 1.5
    run = planted.batches(8, 1)
    first, second = next(run)[SITE], next(run)[SITE]
    assert torch.equal(next(planted.batches(8, 1, 1))[SITE], second) and not torch.equal(first, second)
    assert not torch.equal(next(planted.batches(8, 2))[SITE], first)
    noisy = PlantedFeatures(World(n_features=20, width=12, mean_l0=2, noise=0.5)).sample(4000, 4)
    rest = noisy.acts - noisy.values @ PlantedFeatures(World(n_features=20, width=12, mean_l0=2)).directions
    assert float(rest.std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("field", "options"), [
    ("parents", {"parents": 100}), ("orthogonal", {"orthogonal": True}), ("correlation", {"correlation": 0.5}),
    ("mean_l0", {"mean_l0": 500.0}), ("mean_l0", {"mean_l0": 0.0}),
])  # fmt: skip
def test_worlds_that_cannot_be_are_refused(field, options):
    with pytest.raises(UsageError, match=field):
        World(**options)


# scores of known dictionaries --------------------------------------------------------------------


def test_the_truth_scores_one_and_half_of_it_half():
    planted = PlantedFeatures(World(n_features=30, width=20, mean_l0=4))
    sample = planted.sample(5000, 1)
    whole = Oracle(planted, sample, range(30)).scores()
    assert whole.mmcs == whole.mcc == pytest.approx(1, abs=1e-5)
    assert (whole.found, whole.f1, whole.unique, whole.false, whole.dead) == (1, 1, 1, 0, 0)
    assert whole.fvu == pytest.approx(0, abs=1e-9) and whole.l0 == pytest.approx(4, rel=0.05)
    assert whole.absorbed is None and whole.leaked is None
    half = Oracle(planted, sample, range(15)).scores()
    assert half.found == half.f1 == pytest.approx(0.5) and half.mcc == pytest.approx(0.5) and half.mmcs > 0.5
    double = Oracle(planted, sample, [*range(30), *range(30)]).scores()
    assert double.unique == 0.5 and double.found == 1
    dead = Oracle(planted, sample, range(30))
    dead.codes[:, :6] = 0.0
    assert dead.scores().dead == pytest.approx(0.2) and dead.scores().found == pytest.approx(0.8)
    assert dead.scores().f1 == pytest.approx(0.8)


def test_directions_that_are_nobodys_are_false():
    planted = PlantedFeatures(World(n_features=10, width=64, mean_l0=2))
    sample = planted.sample(3000, 1)
    noise = torch.randn(10, 64, generator=torch.Generator().manual_seed(3))
    codes = torch.cat([sample.values, sample.values], 1)
    scores = compared(planted, sample, torch.cat([planted.directions, noise]), codes, sample.acts * 0)
    assert scores.false == pytest.approx(0.5) and scores.found == 1 and scores.fvu > 0.99


def test_f1_counts_misses_and_false_alarms():
    planted = PlantedFeatures(World(n_features=10, width=30, mean_l0=3))
    sample = planted.sample(4000, 1)
    oracle = Oracle(planted, sample, range(10))
    rng = torch.Generator().manual_seed(0)
    missed = (torch.rand(sample.values.shape, generator=rng) < 0.3) & (sample.values > 0)
    oracle.codes[missed] = 0.0
    oracle.codes[(torch.rand(sample.values.shape, generator=rng) < 0.1) & (sample.values == 0)] = 1.0
    hits, said, true = ((oracle.codes > 0) & (sample.values > 0)).sum(0), (oracle.codes > 0).sum(0), (sample.values > 0).sum(0)
    precision, recall = hits / said, hits / true
    assert oracle.scores().f1 == pytest.approx(float((2 * precision * recall / (precision + recall)).mean()), rel=1e-5)


def test_absorption_is_what_was_taken_from_the_parent():
    world = World(n_features=40, width=64, mean_l0=1.5, parents=10, child_rate=0.75, orthogonal=True)
    planted = PlantedFeatures(world)
    sample = planted.sample(20_000, 1)
    whole = Oracle(planted, sample, range(40)).scores()
    assert whole.absorbed == 0 and whole.leaked == pytest.approx(0, abs=1e-5)
    holes = torch.zeros_like(sample.values, dtype=torch.bool)
    for mother in range(10):
        child = int((planted.parent == mother).nonzero()[0, 0])
        holes[:, mother] = sample.values[:, child] > 0
    assert Oracle(planted, sample, range(40), holes).scores().absorbed == pytest.approx(1 / 3, abs=0.03)
    mixed = planted.directions.clone()
    mixed[10:] += planted.directions[planted.parent[10:]]
    leaking = compared(planted, sample, mixed, sample.values, sample.acts)
    assert leaking.leaked == pytest.approx(2**-0.5, abs=1e-3)


def test_the_matching_is_scipys_over_active_latents():
    cosines = np.random.default_rng(0).random((12, 9))
    alive = np.arange(12) != 4
    cosines[4] = 2.0  # dead, and nearest to everything
    found = matching(cosines, alive)
    rows, columns = linear_sum_assignment(-cosines[alive])
    assert 4 not in found
    assert np.flatnonzero(alive)[rows].tolist() == found[columns].tolist()


# training finds it -------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"])
def test_every_architecture_finds_most_of_a_small_world(architecture):
    planted = PlantedFeatures(World(n_features=48, width=24, mean_l0=3, offset=2.0))
    spec = Spec(architecture, 48, 24, 24, k=3, inputs=(SITE,), outputs=(SITE,))
    plan = TrainPlan(tokens=700 * 512, batch=512)
    control = TrainPlan(tokens=200 * 512, batch=512, frozen=("W_dec",))
    found, frozen = (recovery(train(planted, [spec], each)[0].dictionary, planted, 5000) for each in (plan, control))
    least = 0.4 if architecture == "matryoshka" else 0.5  # features of one rate have no order that prefixes could follow
    assert found.mmcs > 0.85 and found.found > least and found.mmcs > frozen.mmcs + 0.2
    assert frozen.found == 0 and found.fvu < frozen.fvu
