"""Faithfulness, hypothesis tests and stability on circuits whose answers are known in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from assay.circuits import faithfulness as fa
from assay.circuits import hypotheses as hy
from assay.circuits import stability as sta
from assay.circuits.graph import make_graph
from assay.circuits.guards import NoDifference
from assay.circuits.patch import normalised
from assay.circuits.random_circuits import walks
from assay.circuits.subgraph import Bench
from assay.data.prepare import PreparedTask
from assay.errors import UsageError
from assay.records import Pair, canonical
from conftest import tiny

GRAPH = make_graph(2, 1, (False, False))
MIB = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5]


class Fake:
    """A bench whose metric is `rule(mask as floats, pair)`."""

    metric, ablation, graph = "logit_diff", "resample", GRAPH

    def __init__(self, rule, n=24, n_templates=8):
        self.rule = rule
        self.task = SimpleNamespace(templates=[f"t{i % n_templates}" for i in range(n)])
        exists = GRAPH.exists
        self.clean, self.empty = self.scores([exists])[0], self.scores([torch.zeros_like(exists)])[0]

    def scores(self, masks):
        n = len(self.task.templates)
        return np.array([[self.rule(mask.double(), pair) for pair in range(n)] for mask in masks])

    def outputs(self, masks, names):
        one = self.scores(masks)
        other = {"kl": (self.clean - one) ** 2, "agree": (np.abs(one - self.clean) < 0.5).astype(float)}
        return {name: other.get(name, one) for name in names}


def additive(weights, noise=0.0, n=24):
    """Sum of kept edges' weights, times a factor of the pair, above a base of the pair."""
    w = torch.zeros(GRAPH.exists.shape, dtype=torch.float64)
    for edge, weight in weights.items():
        w[GRAPH.edge(edge)] = weight
    rng = np.random.default_rng(0)
    factor, base = 1 + 0.3 * rng.normal(size=n), -2 + rng.normal(size=n)
    mine = noise * rng.normal(size=(n, *w.shape))
    return Fake(lambda mask, pair: base[pair] + factor[pair] * float((mask * w).sum())
                + float((mask * torch.from_numpy(mine[pair])).sum()), n=n)  # fmt: skip


WEIGHTS = {"embed->q.0.0": 1.0, "z.0.0->v.1.0": 2.0, "mlp_out.1->logits": 3.0, "embed->logits": 4.0}
OR = ("z.0.0->logits", "z.0.1->logits")


def either(mask, pair):
    return (1 + 0.1 * pair) * float(max(mask[GRAPH.edge(OR[0])], mask[GRAPH.edge(OR[1])]))


def both(mask, pair):
    return (1 + 0.1 * pair) * float(min(mask[GRAPH.edge(OR[0])], mask[GRAPH.edge(OR[1])]))


# faithfulness ------------------------------------------------------------------------------------


def test_faithfulness_of_an_additive_circuit_is_its_share_of_the_weights():
    bench, edges = additive(WEIGHTS), list(WEIGHTS)
    masks = [GRAPH.mask(edges[:n]) for n in (1, 2, 3, 4)]
    found = fa.faithfulness(bench, masks, selection="abs")
    assert [p.f.value for p in found.points] == pytest.approx([0.1, 0.3, 0.6, 1.0])
    assert [p.unexplained.value for p in found.points] == pytest.approx([0.9, 0.7, 0.4, 0.0])
    assert [p.n_edges for p in found.points] == [1, 2, 3, 4] and found.selection == "abs"
    assert found.points[0].share == pytest.approx(1 / GRAPH.n_edges) == found.points[0].nominal
    for p in found.points:  # the factor of a pair stands above and below: no spread at all
        assert (p.f.low, p.f.high) == pytest.approx((p.f.value, p.f.value))
    direct = bench.scores(masks)
    assert found.points[1].kl.value == pytest.approx(((direct[1] - bench.clean) ** 2).mean())
    assert found.points[3].agree.value == 1 > found.points[0].agree.value
    canonical(found)  # a record: no NaN, no array


def test_masks_are_cut_to_edges_of_the_graph_and_sizes_reported_as_kept():
    mask = GRAPH.mask(["embed->logits"])
    mask[~GRAPH.exists] = True
    found = fa.faithfulness(additive(WEIGHTS), [mask], selection="signed", nominal=[0.5])
    assert found.points[0].n_edges == 1 and found.points[0].nominal == 0.5
    assert found.points[0].share == pytest.approx(1 / GRAPH.n_edges)
    assert found.nominal.cmd.value != pytest.approx(found.actual.cmd.value)


def test_intervals_are_those_of_a_bootstrap_over_template_sums():
    rng = np.random.default_rng(1)
    templates = [f"t{i}" for i in rng.integers(0, 9, 40)]
    clean, empty = 3 + rng.normal(size=40), rng.normal(size=40)
    scores = np.stack([0.5 * clean + 0.5 * rng.normal(size=40), clean + 0.1 * rng.normal(size=40)])
    found = fa.faithfulness_of(scores, clean, empty, templates, n_edges=[1, 2], n_all=9, selection="abs", n_bootstrap=400)
    names = sorted(set(templates))
    sums = [np.array([x[..., [t == name for t in templates]].sum(-1) for name in names]) for x in (scores, clean, empty)]
    value, low, high = normalised(sums[0][:, None], sums[1], sums[2], 400, 0)  # the sweep's, with a template as a pair
    assert [p.f.value for p in found.points] == pytest.approx(value[0].tolist())
    assert [p.f.low for p in found.points] == pytest.approx(low[0].tolist())
    assert [p.f.high for p in found.points] == pytest.approx(high[0].tolist())
    assert found.points[0].unexplained.low == pytest.approx(1 - high[0, 0])


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, hits, n_sets = np.random.default_rng(2), 0, 200
    templates = [f"t{i // 3}" for i in range(60)]
    for _ in range(n_sets):
        effect = np.repeat(2 + rng.normal(size=20), 3) + 0.2 * rng.normal(size=60)
        part = 0.6 * effect + np.repeat(0.5 * rng.normal(size=20), 3)
        point = fa.faithfulness_of(part[None], effect, np.zeros(60), templates, n_edges=[1], n_all=9, selection="abs",
                                   n_bootstrap=300).points[0]  # fmt: skip
        hits += point.f.low <= 0.6 <= point.f.high
    assert 0.87 < hits / n_sets < 0.985  # rows instead of templates: about .75


def test_one_template_gives_no_interval_and_says_so():
    found = fa.faithfulness_of(np.ones((1, 4)), np.full(4, 2.0), np.zeros(4), ["t"] * 4, n_edges=[1], n_all=9, selection="abs")
    assert found.points[0].f == fa.Estimate(0.5, None, None) and found.nominal.cmd.low is None
    assert "one template" in found.warnings[0]


def curve(f):
    """A record whose f is given, on the grid of shares up to one half."""
    n = 16
    clean, scores = np.full(n, 4.1), np.outer(f, np.full(n, 7.4)) - 3.3
    return fa.faithfulness_of(scores, clean, np.full(n, -3.3), [f"t{i}" for i in range(n)], n_all=70651, selection="abs",
                              n_edges=[round(k * 70651) for k in MIB], nominal=MIB)  # fmt: skip


@pytest.mark.parametrize(
    "f, linear, log, cpr",
    [
        ([0.00, 0.00, 0.00, 0.65, 0.77, 0.88, 0.96, 0.97, 1.00], 0.028, 0.366, 0.97),
        ([0.56, 0.56, 0.82, 0.81, 0.87, 0.84, 1.00, 0.98, 1.00], 0.018, 0.151, 0.98),
        ([0.00, 0.00, 1.31, 1.50, 1.71, 1.97, 2.10, 2.17, 2.16], 0.843, 0.830, 1.84),
        ([1.21, 1.62, 2.18, 2.40, 2.53, 2.69, 2.68, 2.70, 2.66], 1.242, 1.294, 2.24),
    ],
)
def test_areas_are_those_measured_on_a_real_model(f, linear, log, cpr):
    """SmolLM2-135M, indirect objects; areas there were made from unrounded f."""
    areas = curve(f).nominal
    assert areas.cmd.value == pytest.approx(linear, abs=0.003)
    assert areas.cmd_log.value == pytest.approx(log, abs=0.003)
    assert areas.cpr.value == pytest.approx(cpr, abs=0.01)


def test_linear_cmd_hides_total_failure_at_small_sizes_and_log_shows_it():
    measured = [0.00, 0.00, 0.00, 0.65, 0.77, 0.88, 0.96, 0.97, 1.00]
    failing, repaired = curve(measured), curve([1.0] * 3 + measured[3:])
    assert failing.nominal.cmd.value - repaired.nominal.cmd.value < 0.01  # f = 0 or 1 below 1%: no matter
    assert failing.nominal.cmd_log.value - repaired.nominal.cmd_log.value > 0.25
    assert any("hides" in warning for warning in failing.warnings) and not any("hides" in w for w in repaired.warnings)


def test_log_area_is_a_mean_over_the_log_axis():
    shares = np.array([0.01, 0.1, 1.0])
    assert fa.area(shares, np.array([[1.0, 1.0, 1.0]]), log=True) == pytest.approx([1])
    assert fa.area(shares, np.array([[0.0, 1.0, 1.0]]), log=True) == pytest.approx([0.75])
    assert fa.area(shares, np.array([[0.0, 1.0, 1.0]])) == pytest.approx([0.045 + 0.9])


def test_more_than_the_model_is_not_clipped_but_for_display():
    bench = additive({**WEIGHTS, "z.0.1->logits": -5.0})
    point = fa.faithfulness(bench, [GRAPH.mask(WEIGHTS)], selection="signed").points[0]
    assert point.f.value == pytest.approx(2) and point.unexplained.value == pytest.approx(-1) and point.shown.value == 0


def test_what_cannot_be_measured_is_refused():
    flat = Fake(lambda mask, pair: 1.0)
    with pytest.raises(NoDifference):
        fa.faithfulness(flat, [GRAPH.mask(OR)], selection="abs")
    bench = additive(WEIGHTS)
    with pytest.raises(UsageError, match="selection"):
        fa.faithfulness(bench, [GRAPH.mask(OR)], selection="")
    with pytest.raises(UsageError, match="n_edges"):
        fa.faithfulness(bench, [GRAPH.mask(OR), GRAPH.mask(OR[:1])], selection="abs")
    with pytest.raises(UsageError, match="nominal"):
        fa.faithfulness(bench, [GRAPH.mask(OR)], selection="abs", nominal=[0.1, 0.2])


# completeness and minimality ---------------------------------------------------------------------


def test_additive_circuit_is_complete_up_to_what_it_leaves_out():
    found = fa.completeness(additive(WEIGHTS), GRAPH.mask(list(WEIGHTS)[1:]), n_subsets=6)
    assert len(found.cuts) == 8
    assert all(cut.gap.value == pytest.approx(0.1) for cut in found.cuts)  # whatever is cut on both sides
    assert found.complement.value == pytest.approx(0.1) and found.cuts[1].name == "the circuit"


def test_backup_outside_of_the_circuit_makes_it_incomplete_though_faithful():
    found = fa.completeness(Fake(either), GRAPH.mask(OR[:1]), n_subsets=3)
    nothing, whole = found.cuts[:2]
    assert nothing.gap.value == pytest.approx(0) and nothing.circuit.value == pytest.approx(1)
    assert whole.gap.value == pytest.approx(1) and found.worst is whole
    inside = fa.completeness(Fake(either), GRAPH.mask(OR), n_subsets=8)
    assert abs(inside.worst.gap.value) < 1e-9  # with both inside, nothing is missing


def test_minimality_is_the_share_of_each_edge():
    found = fa.minimality(additive(WEIGHTS), GRAPH.mask([*WEIGHTS, "z.1.0->logits"]), by="edge")
    got = {part.name: part.drop.value for part in found.parts}
    assert got == pytest.approx({**{edge: weight / 10 for edge, weight in WEIGHTS.items()}, "z.1.0->logits": 0.0})
    assert found.idle(0.05) == ["z.1.0->logits"]


def test_a_part_inside_of_what_is_cut_is_put_back_and_its_loss_keeps_its_sign():
    """One K, many seeds: cut with both backups, either of them put back carries all, so its loss is 1, never -1."""
    third = "z.1.0->logits"
    bench = Fake(lambda mask, pair: either(mask, pair) + 0.2 * float(mask[GRAPH.edge(third)]))
    found = [fa.minimality(bench, GRAPH.mask([*OR, third]), by="edge", n_subsets=1, seed=seed) for seed in range(16)]
    losses = np.array([[part.most.value for part in one.parts] for one in found])
    assert losses.min() > -1e-9
    assert ((losses[:, 0] > 0.5) & (losses[:, 1] > 0.5)).any()  # that K was among them


def test_nodes_are_the_edges_out_of_a_writer():
    found = fa.minimality(additive(WEIGHTS), GRAPH.mask(WEIGHTS))
    assert {p.name: p.drop.value for p in found.parts} == pytest.approx({"embed": 0.5, "z.0.0": 0.2, "mlp_out.1": 0.3})
    assert {p.name: p.n_edges for p in found.parts} == {"embed": 2, "z.0.0": 1, "mlp_out.1": 1}


def test_backups_look_idle_until_their_partner_is_cut_and_partners_of_an_and_never_do():
    alone = fa.minimality(Fake(either), GRAPH.mask(OR), by="edge")
    assert alone.idle(0.05) == list(OR)
    tried = fa.minimality(Fake(either), GRAPH.mask(OR), by="edge", n_subsets=6)
    assert tried.idle(0.05) == [] and [part.most.value for part in tried.parts] == pytest.approx([1, 1])
    assert [part.drop.value for part in tried.parts] == pytest.approx([0, 0])
    assert [part.drop.value for part in fa.minimality(Fake(both), GRAPH.mask(OR), by="edge").parts] == pytest.approx([1, 1])


def test_own_groups_are_taken_by_name():
    parts = {"two": GRAPH.mask(list(WEIGHTS)[:2]), "rest": GRAPH.mask(list(WEIGHTS)[2:])}
    found = fa.minimality(additive(WEIGHTS), GRAPH.mask(WEIGHTS), by=parts)
    assert {p.name: p.drop.value for p in found.parts} == pytest.approx({"two": 0.3, "rest": 0.7})
    with pytest.raises(UsageError, match="mask"):
        fa.minimality(additive(WEIGHTS), torch.zeros_like(GRAPH.exists))


# hypothesis tests --------------------------------------------------------------------------------


def uniform_or_larger(p):
    """No level is undercut more often than it may be."""
    return all((np.array(p) <= level).mean() <= stats.binom.ppf(0.9999, len(p), level) / len(p) for level in (0.01, 0.05, 0.2))


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_equivalence_null_is_kept_up_to_its_border(share):
    rng = np.random.default_rng(3)
    p = []
    for _ in range(600):
        signs = np.where(rng.random(60) < share, 1.0, -1.0)
        p.append(hy.equivalence_test(10 + signs * rng.random(60), np.full(60, 10.0)).p)
    assert uniform_or_larger(p)


def test_equivalence_p_is_the_two_tails_of_a_binomial():
    model = np.zeros(20)
    circuit = np.array([1.0] * 16 + [-1.0] * 4)
    found = hy.equivalence_test(circuit, model, eps=0.1)
    direct = sum(stats.binom.pmf(k, 20, 0.6) for k in range(21) if abs(k - 10) >= 6)
    assert found.p == pytest.approx(direct) and found.statistic == pytest.approx(0.3) and found.share == 0.8
    worst = max(sum(stats.binom.pmf(k, 20, q) for k in range(21) if abs(k - 10) >= 6) for q in np.linspace(0.4, 0.6, 41))
    assert found.p == pytest.approx(worst)


def test_equivalence_counts_signs_not_sizes_and_ties_to_neither_side():
    rng = np.random.default_rng(4)
    model = 5 + rng.normal(size=200)
    assert hy.equivalence_test(model.copy(), model).p == 1  # the model itself is equivalent to itself
    assert hy.equivalence_test(model - 0.01, model).p < 1e-6  # a little below, always
    few = model.copy()
    few[:5] -= 1000  # far below, rarely: the mean differs a lot, the sign share does not
    few[5:] += 0.01 * np.where(np.arange(195) % 2, 1, -1)
    assert hy.equivalence_test(few, model).p > 0.5


def test_hsic_is_the_double_sums():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=12), rng.normal(size=12) ** 2
    n = len(x)

    def kernel(v):
        width = np.median([abs(v[i] - v[j]) for i in range(n) for j in range(i)])
        return [[np.exp(-((a - b) ** 2) / (2 * width**2)) for b in v] for a in v]

    k, m = kernel(x), kernel(y)
    one = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n)) / n**2
    two = sum(map(sum, k)) * sum(map(sum, m)) / n**4
    three = sum(k[i][j] * m[i][q] for i in range(n) for j in range(n) for q in range(n)) / n**3
    assert hy.hsic(x, y) == pytest.approx(one + two - 2 * three, rel=1e-9)
    assert hy.independence_test(x, y, n_permutations=5).statistic == pytest.approx(hy.hsic(x, y))
    assert hy.hsic(1000 * x + 3, y) == pytest.approx(hy.hsic(x, y))  # the width is the variable's own


def test_independence_null_is_kept_and_dependence_without_correlation_found():
    rng = np.random.default_rng(6)
    p = [hy.independence_test(rng.exponential(size=20), rng.normal(size=20), n_permutations=99, seed=s).p for s in range(400)]
    assert uniform_or_larger(p) and np.mean(np.array(p) < 0.5) > 0.4  # and not just always large
    x = rng.uniform(-1, 1, 80)
    found = hy.independence_test(x**2 + 0.05 * rng.normal(size=80), x, n_permutations=199)
    assert found.p == 1 / 200  # the smallest it can be, and not 0
    assert hy.independence_test(np.ones(30), rng.normal(size=30), n_permutations=50).p == 1


def test_minimality_null_is_kept_and_idle_edges_found():
    rng = np.random.default_rng(7)
    p = []
    for _ in range(1500):  # at the border: the edge beats random ones in exactly 9 of 10 draws
        p.append(hy.minimality_test(np.array([0.9]), rng.random(50), ["e"]).p)
    assert uniform_or_larger(p)
    found = hy.minimality_test(np.array([5.0, 0.0, 4.0]), rng.random(100), ["a", "b", "c"])
    assert found.idle() == ["b"] and found.p == found.edges[1].p_holm == pytest.approx(3 * found.edges[1].p)
    assert found.edges[1].p == pytest.approx(0.1**100)


@pytest.mark.parametrize("wins, p", [(100, 0.9**100), (90, stats.binom.sf(89, 100, 0.9)), (0, 1.0)])
def test_quantile_test_is_the_upper_tail(wins, p):
    found = hy.quantile_test("sufficiency", np.arange(100) < wins)
    assert found.p == pytest.approx(p) and found.share == wins / 100 and not found.against


def test_quantile_null_is_kept_at_its_border():
    rng = np.random.default_rng(8)
    assert uniform_or_larger([hy.quantile_test("x", rng.random(60) < 0.9).p for _ in range(800)])


def test_the_true_circuit_passes_all_tests_and_a_padded_and_a_wrong_one_fail_theirs():
    bench = additive(WEIGHTS, noise=0.02, n=40)
    plain = bench.scores  # outside of the circuit only noise of its own: the base of a pair would be shared
    base = bench.empty.copy()
    bench.scores = lambda masks: plain(masks) - base + 0.3 * np.random.default_rng(11).normal(size=base.shape) * [
        [not bool((m & GRAPH.mask(WEIGHTS)).any())] for m in masks]  # fmt: skip
    bench.clean = bench.scores([GRAPH.exists])[0]
    true = hy.all_tests(bench, GRAPH.mask(WEIGHTS), n_random=80, n_permutations=199)
    assert true.against() == [] and true.sufficiency.p < 0.01 and true.partial_necessity.p < 0.01
    adjusted = [true.p_holm[name] for name in true.p_holm]
    raw = [true.equivalence.p, true.independence.p, true.minimality.p, true.sufficiency.p, true.partial_necessity.p]
    assert all(a >= r for a, r in zip(adjusted, raw)) and max(true.p_holm.values()) <= 1
    padded = GRAPH.mask([*WEIGHTS, "z.1.0->logits"])
    flat = additive(WEIGHTS, n=40)
    assert hy.minimal_edges(flat, padded, n_random=80).idle() == ["z.1.0->logits"]
    (other,) = walks(GRAPH, GRAPH.mask(WEIGHTS), 1, 10, n_edges=4, allowed=GRAPH.exists & ~GRAPH.mask(WEIGHTS))
    wrong = hy.all_tests(bench, other.mask, n_random=80)
    assert {"equivalence", "independence", "sufficiency", "partial_necessity"} <= set(wrong.against())


def test_backup_outside_passes_sufficiency_and_fails_necessity_and_independence():
    bench, mask = Fake(either, n=40), GRAPH.mask(OR[:1])
    assert hy.equivalence(bench, mask).p == 1
    assert hy.independence(bench, mask, n_permutations=199).p == 1 / 200
    assert hy.partial_necessity(bench, mask, n_random=50).p > 0.5


def test_templates_can_be_the_unit():
    bench = additive(WEIGHTS)
    assert hy.equivalence(bench, GRAPH.mask(OR), unit="template").n == 8 and hy.equivalence(bench, GRAPH.mask(OR)).n == 24
    with pytest.raises(UsageError, match="unit"):
        hy.independence(bench, GRAPH.mask(OR), unit="row")
    with pytest.raises(UsageError, match="pool"):
        hy.partial_necessity(bench, GRAPH.mask(OR), pool="rest")


# stability ---------------------------------------------------------------------------------------


def test_scores_without_noise_are_stable_and_pure_noise_overlaps_by_chance():
    torch.manual_seed(0)
    templates = [f"t{i // 2}" for i in range(32)]
    firm = torch.randn(2000).expand(32, -1) * torch.linspace(0.5, 2, 32)[:, None]
    for rule in ("abs", "signed"):
        half, again = (f(firm, templates, [20, 100], rule=rule, n_draws=30) for f in (sta.split_half, sta.bootstrap))
        assert [o.mean for o in (*half.jaccard, *again.between, *again.to_all)] == [1.0] * 6
        assert half.rank_correlation.mean == pytest.approx(1) and half.unit == "template" and half.n_units == 16
    noise = torch.randn(32, 2000)
    found = sta.split_half(noise, templates, [100], n_draws=60)
    assert found.jaccard[0].mean == pytest.approx(found.chance[0], abs=0.012) and found.chance[0] == pytest.approx(100 / 3900)
    assert abs(found.rank_correlation.mean) < 0.03
    assert sta.bootstrap(noise, templates, [100]).meets_bar == (False,)
    assert sta.bootstrap(firm, templates, [100]).meets_bar == (True,)
    assert sta.bootstrap(firm, templates, [100], n_draws=99).meets_bar == (None,)


def test_split_halves_of_templates_see_what_halves_of_pairs_hide():
    """Every template has edges of its own: pairs of it lie in both halves, the template itself does not."""
    torch.manual_seed(1)
    templates = [f"t{i // 8}" for i in range(64)]
    values = torch.randn(8, 500).repeat_interleave(8, 0) + 0.1 * torch.randn(64, 500)
    by_pair, by_template = (sta.split_half(values, templates, [50], unit=unit).jaccard[0].mean for unit in ("pair", "template"))
    assert by_pair > by_template + 0.2
    assert sta.split_half(values, ["a"] * 64, [50], n_draws=3).unit == "pair"


def test_overlaps_are_those_of_sets_and_ranks_those_of_spearman():
    torch.manual_seed(2)
    scores = torch.randn(6, 40)
    sets = [{int(c) for c in sorted(range(40), key=lambda c: -abs(row[c]))[:7]} for row in scores]
    top = sta.top_cells(scores, 7)
    want = [len(a & b) / len(a | b) for i, a in enumerate(sets) for b in sets[i + 1 :]]
    assert sta.pairwise_jaccard(top).tolist() == pytest.approx(want)
    assert sta.jaccard(top[0], top[1]).item() == pytest.approx(want[0])
    assert sta.top_cells(torch.tensor([[3.0, -5.0, 1.0, -1.0]]), 3, "signed").tolist() == [[True, False, True, False]]
    ranks = [sta._centred_ranks(row) for row in scores]
    assert sta.spearman(ranks[0], ranks[1]) == pytest.approx(stats.spearmanr(scores[0], scores[1])[0])


def test_halves_weigh_pairs_of_their_templates_alike():
    """Two templates, three pairs: halves are known, so scores and overlap are."""
    values = torch.tensor([[4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 2.0, 3.0]])
    found = sta.split_half(values, ["a", "b", "b"], [1, 2], unit="template", n_draws=5)
    assert [o.mean for o in found.jaccard] == pytest.approx([0.0, 1 / 3])  # {0} {1}; {0, 1 or 2} and {1, 2}


def test_stability_refuses_what_it_cannot_do():
    values = torch.randn(4, 10)
    for change in ({"sizes": [11]}, {"sizes": []}, {"rule": "best"}, {"unit": "row"}, {"n_draws": 0}, {"unit": "template"}):
        with pytest.raises(UsageError):
            sta.split_half(values, ["t"] * 4, **{"sizes": [3], **change})


# a real bench ------------------------------------------------------------------------------------


def test_a_real_bench_serves_all_of_it():
    model = tiny("llama", 1)
    rng = np.random.default_rng(0)
    clean = [rng.integers(20, 190, 5).tolist() for _ in range(4)]
    corrupted = [row[:2] + [150 + i] + row[3:] for i, row in enumerate(clean)]
    pairs = [Pair("a", "b", ("x",), ("y",), f"t{i}") for i in range(4)]
    bench = Bench(model, PreparedTask(pairs, clean, corrupted, [(7,)] * 4, [(8,)] * 4, {}, {}, {}))
    exists, empty = bench.graph.exists, torch.zeros_like(bench.graph.exists)
    found = fa.faithfulness(bench, [empty, exists], selection="abs")
    assert [p.f.value for p in found.points] == pytest.approx([0, 1], abs=1e-3)
    assert found.points[1].kl.value == pytest.approx(0, abs=1e-5) and found.points[1].agree.value == 1
    mask = walks(bench.graph, exists, 1, 1, n_edges=30)[0].mask
    whole = fa.completeness(bench, mask, n_subsets=1)
    assert whole.cuts[0].whole.value == pytest.approx(1, abs=1e-3) and whole.cuts[1].circuit.value == pytest.approx(0, abs=1e-3)
    assert hy.equivalence(bench, exists).p == 1
    assert hy.sufficiency(bench, exists, size=30, n_random=30).share == 1
