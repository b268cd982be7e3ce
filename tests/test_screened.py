"""Looking in bf16 first: what is found is what the whole fp32 product has, and the bound it rests on holds."""

import pytest
import torch

from assay.features import dictionary, screened
from assay.features.codes import above, top_batch, top_k, values_at
from assay.features.dictionary import Spec, make_dictionary
from assay.features.screened import Lowered, Screened, U, few_largest, multiplies_bf16, worth_it
from assay.features.stream import TensorStream
from assay.features.train import TrainPlan, train

fast = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no bf16 products, so that nothing is screened")


def drawn(case, n=70, width=512, d=96, seed=0):
    """Inputs, encoder and bias that are hard for bf16 in one way or another."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, d, generator=generator), torch.randn(width, d, generator=generator)
    b = torch.randn(width, generator=generator)
    if case == "offset":  # nearly all of x is one direction that nothing reads
        x, w = x + 100 * torch.nn.functional.one_hot(torch.tensor(3), d), w.index_fill(1, torch.tensor([3]), 0.0)
    if case == "bias":  # sums of large numbers that nearly cancel
        w[:, 0], x[:, 0], b = 50.0, 20.0, b - 1000.0
    if case == "twins":  # latents that differ by less than bf16 can say
        w[width // 2 :], b[width // 2 :] = w[: width // 2] * (1 + 2.0**-13), b[: width // 2]
    if case == "scales":
        w, b = w * torch.logspace(-3, 2, width)[:, None], b * torch.logspace(-3, 2, width)
    if case == "tokens":
        x = x * torch.logspace(-4, 4, n)[:, None]
    return x, w, b


CASES = ("plain", "offset", "bias", "twins", "scales", "tokens")


@fast
@pytest.mark.parametrize("case", CASES)
def test_the_bound_is_above_every_error(case):
    for seed in range(5):
        x, w, b = drawn(case, seed=seed)
        exact = x.double() @ w.double().T + b.double()
        for less in (0.0, 3.0, w.norm(dim=1)):
            rough, bound = Screened(x, w, b).rough(less)
            error = (rough.double() - (exact - less)).abs()
            assert bool((error <= bound[:, None].double() + U * rough.double().abs()).all())
            assert not torch.equal(rough.double(), exact - less), "there is an error to bound"


@fast
@pytest.mark.parametrize("case", CASES)
def test_what_is_found_is_what_the_whole_product_has(case):
    k = 8
    for seed in range(5):
        x, w, b = drawn(case, seed=seed)
        pre, dense = Screened(x, w, b), torch.nn.functional.linear(x, w, b)
        slack = 1e-5 * (x.norm(dim=1)[:, None] * w.norm(dim=1).max() + b.abs().max())  # of fp32 sums in another order
        best = values_at(dense, top_k(pre, k)).view(-1, k).sort(1).values
        assert bool(((best - dense.topk(k).values.flip(1)).abs() <= slack).all())
        found, whole = top_batch(pre, k), top_batch(dense, k)
        a, e = values_at(dense, found).sort().values, values_at(dense, whole).sort().values
        assert len(a) == len(e)
        assert bool(((a - e).abs() <= float(slack.max())).all())
        for threshold in (0.7 * float(dense.max(1).values.median()), dense.max(0).values * 0.7):
            got, want = above(pre, threshold), above(dense, threshold)
            both = set(zip(got.tokens.tolist(), got.latents.tolist(), strict=True)) ^ set(
                zip(want.tokens.tolist(), want.latents.tolist(), strict=True))  # fmt: skip
            limit = torch.as_tensor(threshold).expand(w.shape[0])
            assert all(abs(float(dense[t, j] - limit[j])) <= float(slack[t]) for t, j in both)
            assert len(want.latents) > 0


@fast
def test_no_latent_outside_the_contenders_is_above_the_ceiling():
    opened = 0
    for case in CASES:
        x, w, b = drawn(case)
        exact = x.double() @ w.double().T + b.double()
        values, latents, ceiling = Screened(x, w, b).largest(16)
        torch.testing.assert_close(values.double(), exact.gather(1, latents), rtol=1e-4, atol=1e-3)
        others = exact.scatter(1, latents, -torch.inf).max(1).values
        assert bool((others <= ceiling).all())
        opened += int((values.topk(8).values[:, -1] <= ceiling).sum())
    assert opened > 0, "some tokens need the whole product, so that way is tried above"


@fast
@pytest.mark.parametrize("architecture, options", [("topk", {}), ("topk", {"decoder": "free"}), ("batchtopk", {})])
def test_codes_are_made_part_by_part_of_one_encoder_in_bf16(architecture, options, monkeypatch):
    x, w, b = drawn("plain", n=170, width=1024, d=128)
    one = make_dictionary(Spec(architecture, len(w), w.shape[1], w.shape[1], k=8, options=options))
    one.load_state_dict({**one.state_dict(), "W_enc": w, "b_enc": b})
    if architecture == "batchtopk":
        one.threshold.fill_(25.0)
    whole, made, plain = one.codes(x), [], Lowered.of
    monkeypatch.setattr(Lowered, "of", lambda encoder: made.append(1) or plain(encoder))
    monkeypatch.setattr(dictionary, "CHUNK", 50 * len(w))
    parts = one.codes(x)
    assert len(x) > 3 * 50 and parts.n_tokens == whole.n_tokens
    assert len(made) == (1 if not options else 1 + -(-len(x) // 50))  # a free decoder's norms are in what is compared
    torch.testing.assert_close(parts.dense(), whole.dense(), rtol=1e-5, atol=1e-5 * float(whole.values.max()))


def test_without_bf16_no_more_is_made_at_a_time_than_a_part(monkeypatch):
    monkeypatch.setattr(dictionary, "worth_it", lambda *given: False)
    monkeypatch.setattr(dictionary, "CHUNK", 50 * 256)
    one, made = make_dictionary(Spec("topk", 256, 32, 32, k=8)), []
    plain = one.pre
    monkeypatch.setattr(one, "pre", lambda x: made.append(len(x)) or plain(x))
    one.codes(torch.randn(120, 32))
    assert made == [50, 50, 20]


@pytest.mark.parametrize("threads", [1, screened.THREADS + 1])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])
def test_the_few_largest_of_a_row(kind, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for width in (512, 513, 128):
        rough = torch.randn(20, width, generator=torch.Generator().manual_seed(1)).to(kind)
        values, places = few_largest(rough, 24)
        assert torch.equal(rough.gather(1, places), values)
        assert torch.equal(values.sort(1).values, rough.topk(24).values.sort(1).values)
        assert all(len(set(row)) == 24 for row in places.tolist())


def test_of_no_tokens_none_are_the_largest():
    assert top_k(torch.zeros(0, 512), 8).latents.shape == (0,)


def test_the_few_largest_where_few_are_positive():
    generator = torch.Generator().manual_seed(3)
    rough = torch.randn(6, 512, generator=generator).bfloat16()
    rough[0] = -rough[0].abs() - 1
    rough[1, 5:] = -rough[1, 5:].abs()
    rough[2] = -0.0
    for rows in (rough, rough[3:], rough.float(), rough.t().contiguous().t()):  # with rows of negative numbers, and without
        values, places = few_largest(rows, 24)
        assert torch.equal(rows.gather(1, places), values)
        assert torch.equal(values.float().sort(1).values, rows.float().topk(24).values.sort(1).values)


@fast
@pytest.mark.parametrize("case", CASES)
def test_values_of_what_was_chosen_are_made_once(case, monkeypatch):
    x, w, b = drawn(case)
    bar = 0.7 * float((x @ w.T + b).max(1).values.median())
    for choose in (top_k, top_batch, above):
        pre = Screened(x, w, b)
        pairs = choose(pre, bar if choose is above else 8)
        again = Screened(x, w, b).at(pairs.tokens, pairs.latents.clone())
        made, plain = [], screened.dots
        monkeypatch.setattr(screened, "dots", lambda *given, plain=plain, made=made: made.append(1) or plain(*given))
        kept = values_at(pre, pairs)
        monkeypatch.undo()
        size = x.norm(dim=1)[pairs.tokens] * w.norm(dim=1)[pairs.latents] + b[pairs.latents].abs()
        assert bool(made) is not bool(pre.made) and (pre.made or choose is not top_k)  # others may need all
        assert bool(((kept - again).abs() <= 1e-5 * size).all())


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka", "jumprelu", "crosscoder"])
def test_training_and_use_are_the_same_either_way(architecture, monkeypatch):
    apart = []
    for seed in (2, 3, 4):
        generator = torch.Generator().manual_seed(seed)
        atoms = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
        codes = torch.rand(3000, 48, generator=generator) * (torch.rand(3000, 48, generator=generator) < 0.1)
        acts = codes @ atoms + 0.01 * torch.randn(3000, 32, generator=generator)
        options = {"sizes": (16, 16)} if architecture == "crosscoder" else {}
        spec = Spec(architecture, 128, 32, 32, 4, inputs=("acts",), outputs=("acts",), options=options)
        made = {}
        for way in (False, True):
            monkeypatch.setattr(screened, "SMALLEST", (1, 1, 1))
            monkeypatch.setattr(screened, "multiplies_bf16", lambda way=way: way)
            assert worth_it(acts, torch.zeros(128, 32), 4) is way
            made[way] = train(TensorStream({"acts": acts}), [spec], TrainPlan(tokens=256 * 40, batch=256))[0].dictionary
        whole, first = made[False], made[True]
        apart.append(float((whole.reconstruct(acts) - first.reconstruct(acts)).norm() / whole.reconstruct(acts).norm()))
        monkeypatch.setattr(screened, "multiplies_bf16", lambda: True)
        seen = first.codes(acts)
        monkeypatch.setattr(screened, "multiplies_bf16", lambda: False)
        assert torch.equal(seen.latents.sort().values, first.codes(acts).latents.sort().values)
        torch.testing.assert_close(seen.dense(), first.codes(acts).dense(), rtol=1e-4, atol=1e-5)
    assert sorted(apart)[1] < 1e-5 and max(apart) < 0.02  # a tie that rounding decides, once in several runs, goes its own way
