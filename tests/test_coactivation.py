"""Co-activation: counts equal dense ones, intervals hold their level, a common cause is no connection."""

import json
import random

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from click.testing import CliRunner

from assay.circuits import coactivation as co
from assay.circuits.firing import site_firing, switched
from assay.cli.coactive import coactive
from assay.errors import SiteError, TaskError, UsageError
from assay.features.codes import codes_of
from assay.features.dictionary import Spec, make_dictionary
from assay.features.opened import close_latents, open_latents
from assay.sites import parse_site
from assay.testing.compiler import Compiler
from conftest import tiny

pytestmark = pytest.mark.whole  # against references that take their time

WORDS = tuple(f"w{number}" for number in range(12))


class Dense:
    """A firing matrix that is known: text t is the list [t, t, ..]."""

    def __init__(self, matrices):
        self.matrices = matrices
        self.features = tuple(f"f{n}" for n in range(matrices[0].shape[1]))

    def __call__(self, texts):
        return sp.csr_array(np.concatenate([self.matrices[ids[0]] for ids in texts]))

    @property
    def texts(self):
        return [[number] * len(matrix) for number, matrix in enumerate(self.matrices)]


def random_firing(rng, n_texts=40, width=7, rate=0.3, lengths=(1, 30)):
    return Dense([rng.random((rng.integers(*lengths), width)) < rate for _ in range(n_texts)])


@pytest.mark.parametrize("lag", [0, 2])
def test_counts_equal_dense_ones(lag, monkeypatch):
    monkeypatch.setattr(co, "BATCH", 37)
    firing = random_firing(np.random.default_rng(0))
    plan = co.CoactivationPlan(skip=2, lag=lag, blocks=6)
    found = co.count(firing, firing.texts, plan, [f"d{n // 3}" for n in range(40)])
    together, first, tokens = np.zeros((6, 7, 7), int), np.zeros((6, 7), int), np.zeros(6, int)
    for number, matrix in enumerate(firing.matrices):
        block, a = number // 3 % 6, matrix[2:]
        tokens[block] += len(a)
        first[block] += a.sum(0)
        for i in range(7):
            for j in range(7):
                if i < j or (lag and i != j):
                    together[block, i, j] += sum(a[t, i] and a[t : t + lag + 1, j].any() for t in range(len(a)))
    assert (found.tokens == tokens).all() and (found.first == first).all()
    assert (np.stack([part.toarray() for part in found.together]) == together).all()
    assert found.total.dtype == np.int64 and (found.total.toarray() == together.sum(0)).all()


def test_circular_shifts_keep_what_every_text_has():
    firing = random_firing(np.random.default_rng(1))
    plan = co.CoactivationPlan(blocks=40)
    plain, shifted = (co.count(firing, firing.texts, plan, None, shift) for shift in (None, 3))
    assert (plain.first == shifted.first).all() and (plain.tokens == shifted.tokens).all()
    assert (plain.total.toarray() != shifted.total.toarray()).any()


def test_pairs_equal_closed_forms_and_delete_one_by_hand():
    firing = random_firing(np.random.default_rng(2), n_texts=12, width=4, lengths=(20, 30))
    found = co.pairs_of(co.count(firing, firing.texts, co.CoactivationPlan(skip=0, blocks=12)))
    assert found.screened == len(found) == 6

    def phi(rows):
        return np.corrcoef(np.concatenate([firing.matrices[row] for row in rows]).T)

    left = np.stack([phi([row for row in range(12) if row != out]) for out in range(12)])
    error = np.sqrt(11 / 12 * ((left - left.mean(0)) ** 2).sum(0))
    whole = np.concatenate(firing.matrices).astype(float)
    for row, (i, j) in enumerate(zip(found.first, found.second, strict=True)):
        pmi = np.log((whole[:, i] * whole[:, j]).mean() / whole[:, i].mean() / whole[:, j].mean())
        assert found.pmi[row] == pytest.approx(pmi) and found.phi[row] == pytest.approx(phi(range(12))[i, j])
        assert found.phi_high[row] - found.phi[row] == pytest.approx(2.200985 * error[i, j], rel=1e-5)
        assert found.expected[row] == pytest.approx(whole[:, i].sum() * whole[:, j].sum() / len(whole))


def test_q_counts_pairs_never_seen_together():
    matrices = [np.zeros((40, 5), bool) for _ in range(20)]
    for number, matrix in enumerate(matrices):
        matrix[number % 7 : number % 7 + 6, :2] = True
        matrix[30, 2] = matrix[32, 3] = matrix[34, 4] = True
    matrices[3][0, 0] = matrices[5][39, 1] = True
    firing = Dense(matrices)
    found = co.pairs_of(co.count(firing, firing.texts, co.CoactivationPlan(skip=0)))
    assert len(found) == 1 and found.screened == 10
    assert found.q[0] == pytest.approx(10 * found.p[0]) and found.q[0] < 1e-6
    assert found.phi_low[0] < found.phi[0] < found.phi_high[0] <= 1


def clustered(rng, n_texts, joint):
    """Two features whose rates differ from text to text on their own; with `joint`, a shared part."""
    matrices = []
    for _ in range(n_texts):
        rates = rng.beta(2, 6, size=2)
        both = rng.random(40) < joint
        matrices.append((rng.random((40, 2)) < rates) | both[:, None])
    return Dense(matrices)


@pytest.mark.parametrize("joint", [0.0, 0.1])
def test_intervals_cover(joint):
    plan = co.CoactivationPlan(skip=0)
    big = clustered(np.random.default_rng(99), 20_000, joint)
    truth = co.pairs_of(co.count(big, big.texts, plan))
    hits, small, n = np.zeros(2), 0, 200
    for seed in range(n):
        firing = clustered(np.random.default_rng(seed), 60, joint)
        found = co.pairs_of(co.count(firing, firing.texts, plan))
        hits += [found.phi_low[0] <= truth.phi[0] <= found.phi_high[0], found.pmi_low[0] <= truth.pmi[0] <= found.pmi_high[0]]
        small += found.p[0] < 0.05
    assert (hits >= 0.88 * n).all() and (hits <= 0.995 * n).all(), hits
    assert small <= 0.1 * n if joint == 0 else small > 0.9 * n


def grouped(seed, groups=3, size=4, n_texts=60):
    """Features of a group fire together, at places of their own group."""
    rng = np.random.default_rng(seed)
    matrices = []
    for _ in range(n_texts):
        source = np.repeat(rng.random((40, groups)) < 0.15, size, 1)
        matrices.append((source & (rng.random(source.shape) < 0.8)) | (rng.random(source.shape) < 0.02))
    return Dense(matrices)


def test_communities_are_found_and_the_null_has_none_of_them():
    firing = grouped(0)
    found = co.coactivation(firing, firing.texts, co.CoactivationPlan(nulls=9))
    assert found.communities.groups == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11))
    assert found.pairs.screened == 66 and len(found.listed) == 18
    assert found.communities.modularity == pytest.approx(2 / 3, abs=0.03)  # three equal groups: 1 - 3 (1/3)^2
    assert max(found.communities.null) < found.communities.modularity and found.communities.p == 0.1
    assert sum(found.communities.null_listed) <= 9  # of 9 x 66


def test_a_group_without_a_path_inside_of_it_is_taken_apart(monkeypatch):
    firing = grouped(0)
    counted = co.pairs_of(co.count(firing, firing.texts, co.CoactivationPlan()))
    listed = counted.listed(0.05)
    groups, modularity = co.communities_of(counted, listed)
    joined = [{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7}]
    monkeypatch.setattr(co.nx.community, "louvain_communities", lambda *_, **__: joined)
    assert co.communities_of(counted, listed) == (groups, modularity) and len(groups) == 3


def test_independent_features_are_not_listed():
    firing = random_firing(np.random.default_rng(5), n_texts=60, width=20, rate=0.1, lengths=(20, 40))
    found = co.coactivation(firing, firing.texts, co.CoactivationPlan(nulls=0))
    assert found.pairs.screened == 190 and len(found.listed) <= 2 and found.communities.p is None


# a model in which it is known what drives what ---------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """MLP 0: neurons 0 and 1 fire on w0-w2; only neuron 0 writes what neuron 0 of MLP 1 reads. Neuron 1 is the witness.
    Other neurons of MLP 1 read other words straight from the embedding."""
    program = Compiler(WORDS, 24, 2)
    signal, junk = program.part("signal", 1), program.part("junk", len(WORDS))
    program.select(0, "position", "position", np.zeros((24, 24)), "token", junk)

    def reads(start):
        return {program.at("token", (start + step) % 12): 1.0 + 0.3 * step for step in range(3)}

    program.neuron(0, reads(0), 0.0, {program.at(signal): 1.0})
    program.neuron(0, reads(0), 0.0, {program.at(junk): 0.1})
    program.neuron(1, {program.at(signal): 2.0}, 0.0, {program.at("output"): 1.0})
    for start in range(3, 12):
        program.neuron(1, reads(start), 0.0, {program.at("output", start): 1.0})
    return program.model()


@pytest.fixture(scope="module")
def corpus():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(8, 20))) for _ in range(80)]


def test_a_driver_is_connected_and_a_witness_only_correlated(planted, corpus):
    texts = planted.tokens(corpus)
    firing = site_firing(planted, "mlp_act.1,mlp_act.0", texts[:20], threshold=0.5)
    assert firing.features[:2] == ("mlp_act.0.0", "mlp_act.0.1") and firing.place(10) == (co.Site("mlp_act", 1), 0)
    found = co.coactivation(firing, texts[20:], co.CoactivationPlan(nulls=0))
    listed = {(int(found.pairs.first[row]), int(found.pairs.second[row])) for row in found.listed}
    assert {(0, 10), (1, 10), (0, 1)} <= listed
    driver, witness = co.check_pairs(firing, texts[20:], [(0, 10), (1, 10)])
    assert driver.label == "connected" and driver.low > 1 and driver.n_matched == 9
    assert witness.label == "correlated only" and abs(witness.difference) < 0.01
    assert driver.documents == witness.documents == sum(bool(set(ids[1:]) & {0, 1, 2}) for ids in texts[20:])
    with pytest.raises(SiteError, match="not computed before"):
        co.check_pairs(firing, texts[20:], [(10, 0)])
    with pytest.raises(SiteError, match="not computed before"):
        co.check_pairs(firing, texts[20:], [(0, 1)])


@pytest.fixture
def latents(planted):
    """A dictionary of each MLP whose latents are its neurons."""
    size, sites = planted.dims.d_mlp, []
    for layer in (0, 1):
        spec = Spec("relu", size, size, size, inputs=(f"mlp_act.{layer}",), outputs=(f"mlp_act.{layer}",), centred=False)
        made = make_dictionary(spec, f"same{layer}")
        for name, value in (("W_enc", torch.eye(size)), ("W_dec", torch.eye(size)), ("b_enc", 0.0), ("b_dec", 0.0)):
            getattr(made, name).data[:] = value
        sites.append(open_latents(made))
    yield sites
    for site in sites:
        close_latents(site.removeprefix("latent."))


def test_latents_that_are_neurons_are_counted_and_switched_off_like_them(planted, corpus, latents):
    texts = planted.tokens(corpus)
    neurons, others = (site_firing(planted, sites, texts[:20], threshold=0.5) for sites in ("mlp_act.0,mlp_act.1", latents))
    assert others.features == tuple(f"latent.same{name.removeprefix('mlp_act.')}" for name in neurons.features)
    differ = (neurons(texts[20:40]).toarray() != others(texts[20:40]).toarray()).any(1).nonzero()[0]
    assert set(differ) <= set(np.cumsum([0, *map(len, texts[20:39])]))  # first tokens are not the dictionary's
    mixed = site_firing(planted, [latents[0], "mlp_act.1"], texts[:20], threshold=0.5)
    for pair in ((0, 10), (1, 10)):
        want, *got = (co.check_pairs(firing, texts[20:50], [pair])[0] for firing in (neurons, others, mixed))
        for checked in got:
            assert (checked.label, checked.documents) == (want.label, want.documents)
            assert checked.difference == pytest.approx(want.difference, abs=1e-5)
    with pytest.raises(SiteError, match="whole sites"):
        site_firing(planted, f"{latents[0]}.3", texts[:20])
    with pytest.raises(SiteError, match="no dictionary 'none' is open"):
        site_firing(planted, "latent.none", texts[:20])


@pytest.mark.parametrize("norm", ["layer", "root"])
def test_a_latent_of_normalised_inputs_is_switched_off_by_what_it_adds(norm):
    model, generator = tiny("llama"), torch.Generator().manual_seed(0)
    spec = Spec("topk", 16, 32, 32, k=4, inputs=("resid_post.0",), outputs=("resid_post.0",), skip_first=0,
                options={"input_norm": norm})  # fmt: skip
    made = make_dictionary(spec, "normed")
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    site, acts = parse_site(open_latents(made)), model.capture([[5, 7, 9], [8, 3]], "resid_post.0")
    x = acts.flat("resid_post.0").float()
    codes = made.encode(x)
    off = model.capture([[5, 7, 9], [8, 3]], "resid_post.0", edits=[switched(model, acts, site, 3, -codes[:, 3])])
    less = made.reconstruct(x) - made.reconstruct(x, codes=codes_of(codes * (torch.arange(16) != 3)))
    close_latents("normed")
    assert bool((codes[:, 3] > 0).any()) and torch.allclose(off.flat("resid_post.0"), x - less, atol=1e-4)


def test_the_fall_equals_raw_hooks(planted, corpus):
    texts = planted.tokens(corpus)
    firing = site_firing(planted, ["mlp_act.0", "mlp_act.1"], texts[:20], threshold=0.5)
    (checked,) = co.check_pairs(firing, texts[20:50], [(0, 10)])
    off, spread = firing.levels[co.Site("mlp_act", 0)].off[0], firing.levels[co.Site("mlp_act", 1)].spread[0]
    blocks, falls = planted.hf.transformer.h, []

    def switched(_, args):
        x = args[0].clone()
        x[0, 1:, 0] = torch.where(x[0, 1:, 0] > 0.5, off, x[0, 1:, 0])
        return (x,)

    for ids in texts[20:50]:
        read = []
        keep = [blocks[layer].mlp.c_proj.register_forward_pre_hook(
                    lambda _, args, read=read: read.append(args[0][0, :, 0].clone()))
                for layer in (0, 1)]  # fmt: skip
        with torch.no_grad():
            planted.hf(torch.tensor([ids]))
            keep.append(blocks[0].mlp.c_proj.register_forward_pre_hook(switched))
            planted.hf(torch.tensor([ids]))
        for hook in keep:
            hook.remove()
        on = (read[0] > 0.5) & (torch.arange(len(ids)) >= 1)
        if on.any():
            peak = read[1].masked_fill(~on, -1e9).argmax()
            falls.append(float((read[1] - read[3])[peak] / spread))
    assert checked.documents == len(falls) and checked.fall == pytest.approx(np.mean(falls), rel=1e-4)


def test_firing_equals_quantiles_of_raw_values():
    model = tiny("llama")
    texts = [[random.Random(n).randrange(3, 199) for _ in range(9 + n % 4)] for n in range(12)]
    firing = site_firing(model, "mlp_act.1", texts[:6], quantile=0.8, skip=2)
    values = torch.cat([model.capture([ids], "mlp_act.1")["mlp_act.1"][0, 2:] for ids in texts[:6]])
    levels = firing.levels[co.Site("mlp_act", 1)]
    assert np.allclose(levels.threshold, np.quantile(values.numpy(), 0.8, axis=0), atol=1e-6)
    assert torch.allclose(levels.off, values.median(0).values)
    dense = torch.cat([model.capture([ids], "mlp_act.1")["mlp_act.1"][0] for ids in texts[6:]]) > levels.threshold
    assert (firing(texts[6:]).toarray() == dense.numpy()).mean() > 0.999  # batches of other lengths round differently


@pytest.mark.parametrize("low, high, documents, label", [
    (0.2, 0.5, 20, "connected"), (-0.5, -0.2, 20, "connected"), (-0.05, 0.05, 20, "correlated only"),
    (0.05, 0.3, 20, "undecided"), (0.2, 0.5, 7, "undecided"), (None, None, 1, "undecided"),
])  # fmt: skip
def test_labels(low, high, documents, label):
    assert co.label_of(low, high, documents) == label


def test_mistakes_are_told():
    model = tiny("llama")
    with pytest.raises(UsageError, match="quantile"):
        site_firing(model, "mlp_act.1", [[1, 2, 3]], quantile=1.5)
    with pytest.raises(SiteError, match="whole sites"):
        site_firing(model, "z.1", [[1, 2, 3]])
    with pytest.raises(UsageError, match="blocks"):
        co.CoactivationPlan(blocks=1)
    firing = random_firing(np.random.default_rng(0))
    with pytest.raises(TaskError, match="1 document"):
        co.count(firing, firing.texts, co.CoactivationPlan(), ["same"] * 40)
    with pytest.raises(UsageError, match="documents"):
        co.count(firing, firing.texts, co.CoactivationPlan(), ["few"])


@pytest.mark.whole
def test_the_command(planted, corpus, latents, tmp_path):
    planted.hf.save_pretrained(tmp_path / "model")
    planted.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("\n".join(corpus))
    words = [str(tmp_path / "model"), str(tmp_path / "corpus.txt"), "--site", "mlp_act.0", "--site", "mlp_act.1", "--threshold",
             "0.5", "--nulls", "2", "--check", "2", "--atlas", str(tmp_path / "atlas"), "--quiet"]  # fmt: skip
    done = CliRunner().invoke(coactive, [*words, "--json", "-"], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert done.exit_code == 0 and record["screened"] > 0 and "not individually confirmed" in record["label"]
    labels = {(row["first"], row["second"]): row["label"] for row in record["checked"]}
    assert labels == {("mlp_act.0.0", "mlp_act.1.0"): "connected", ("mlp_act.0.1", "mlp_act.1.0"): "correlated only"}
    shown = CliRunner().invoke(coactive, words, catch_exceptions=False)
    assert "mlp_act.1.0" in shown.stdout and "pairs screened" in shown.stdout and "correlated only" in shown.stdout

    from assay.atlas.store import Atlas
    from assay.features.kept import save
    from assay.features.opened import dictionary_at

    kept = save(dictionary_at(latents[0]), tmp_path / "same0")
    close_latents("same0")
    words[3] = latents[0]
    both = CliRunner().invoke(coactive, [*words, "--dictionary", str(kept), "--json", "-"], catch_exceptions=False)
    found = {(row["first"], row["second"]): row["label"] for row in json.loads(both.stdout)["checked"]}
    assert found == {("latent.same0.0", "mlp_act.1.0"): "connected", ("latent.same0.1", "mlp_act.1.0"): "correlated only"}

    looks = [entry for entry in Atlas(tmp_path / "atlas").entries() if entry["kind"] == "look"]
    assert len(looks) == 3 and looks[0]["body"]["what"].startswith("coactive") and looks[0]["body"]["n"] == 80
