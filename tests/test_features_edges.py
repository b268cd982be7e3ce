"""Ends of what measures dictionaries: two concepts, large dictionaries, values beyond half precision, unlike documents."""

import string

import numpy as np
import pytest
import torch
import transformers as T
from scipy import stats
from tokenizers import Tokenizer, decoders, models, normalizers

from assay.data.corpora import open_corpus
from assay.errors import CorpusError, UsageError
from assay.features.absorption import absorption, hierarchy_gap, letter_words, main_latents
from assay.features.agreement import agreement
from assay.features.codes import Codes, Pairs, from_arrays, to_arrays
from assay.features.cost import cost
from assay.features.evaluate import Controls, EvaluationPlan, evaluate
from assay.features.held_out import HeldOut
from assay.features.labelled import Labelled
from assay.features.sparse_probing import (
    _accuracy,
    _balanced_rows,
    linear_probe,
    mean_gaps,
    sparse_probing,
    spurious_removal,
    targeted_perturbation,
    used_latents,
)
from assay.features.spliced import divergence
from assay.model.model import Model
from conftest import tiny
from test_trace import transcoder

AXES = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]


def texts(classes, seed):
    """Sixty texts of each class; latent c is on for class c alone."""
    draw = torch.Generator().manual_seed(seed)
    own = torch.arange(60 * classes) // 60
    latents = torch.zeros(len(own), 16)
    latents[torch.arange(len(own)), own] = 3 + torch.rand(len(own), generator=draw)
    latents[:, 8:] = torch.rand(len(own), 8, generator=draw)
    x = latents @ AXES + 0.05 * torch.randn(len(own), 16, generator=draw)
    labels = {name: (own == at).numpy() for at, name in enumerate("abcd"[:classes])}
    return Labelled(x, x, latents, labels, [str(number % 7) for number in range(len(own))])


def test_of_two_concepts_tpp_says_nothing_and_of_three_it_finds_specific_latents():
    two = targeted_perturbation(texts(2, 1), texts(2, 2), AXES, removed=(1,))
    assert two.scores == () and "opposites" in two.why and two.base > 0.9
    three = targeted_perturbation(texts(3, 1), texts(3, 2), AXES, removed=(1,))
    assert three.scores[0][1] > 0.15 and not three.why


def test_a_property_of_all_texts_or_of_none_is_refused_by_tpp():
    for part in ("fit", "held"):
        given = {"fit": texts(3, 1), "held": texts(3, 2)}
        given[part].labels["a"][:] = False
        with pytest.raises(UsageError, match=rf"texts \({part}\): got 'a: all or none'"):
            targeted_perturbation(given["fit"], given["held"], AXES, removed=(1,))


def test_a_latent_that_is_always_on_takes_over_nobody():
    """A constant in the code, however large, is in the mean: members whose latent is silent are not spoken for by it."""
    fit, held = texts(3, 1), texts(3, 2)
    for part in (fit, held):
        part.codes[:, 15] = 100.0
    held.codes[:30, 0] = 0.0
    tilted = AXES.clone()
    tilted[15] = 0.3 * AXES[0] + 0.95 * AXES[15]
    found = absorption(fit, held, tilted, "a")
    assert found.main == (0,) and found.silent == pytest.approx(0.5, abs=0.02) and found.absorbed == 0
    held.codes[:30, 9] = 4.0  # a latent that does speak for them
    tilted[9] = AXES[0]
    fit.codes[:, 9], held.codes[30:, 9] = 0.0, 0.0
    assert absorption(fit, held, tilted, "a").absorbed == pytest.approx(0.5, abs=0.02)


def test_a_dictionary_without_a_latent_for_a_concept_has_no_main_one():
    fit, held = texts(3, 1), texts(3, 2)
    dead = [Labelled(part.x, part.y, torch.zeros_like(part.codes), part.labels, part.clusters) for part in (fit, held)]
    found = absorption(*dead, AXES, "a")
    assert found.main == () and found.splits == 0 and found.silent == 1 and found.absorbed == 0
    for part in dead:
        part.labels["half"] = np.arange(len(part.x)) % 2 == 0
    assert hierarchy_gap(*dead, "a", "half") is None
    against = Labelled(fit.x, fit.y, fit.codes[:, 1:3], fit.labels, fit.clusters)  # on for b and for c alone
    assert main_latents(against, "a") == ()
    tied = torch.zeros(len(fit.x), 3000)
    tied[:60] = 1.0
    assert main_latents(Labelled(fit.x, fit.y, tied, fit.labels, fit.clusters), "a") == (0,)


def test_one_class_and_counts_that_mean_nothing_are_refused():
    fit, held = texts(3, 1), texts(3, 2)
    one = Labelled(fit.x, fit.y, fit.codes, {**fit.labels, "a": np.ones(180, bool)}, fit.clusters)
    for call in (lambda: absorption(one, held, AXES, "a"), lambda: absorption(fit, one, AXES, "a"),
                 lambda: hierarchy_gap(one, held, "a", "b"), lambda: sparse_probing(fit, one, "a")):  # fmt: skip
        with pytest.raises(UsageError, match="one class of 'a'"):
            call()
    with pytest.raises(UsageError, match=r"ks: got \[0\]"):
        sparse_probing(fit, held, "a", (0,))
    with pytest.raises(UsageError, match=r"removed: got \[-1\]"):
        targeted_perturbation(fit, held, AXES, removed=(-1,))
    with pytest.raises(UsageError, match=r"removed: got \[-1\]"):
        spurious_removal(fit, held, AXES, "a", "b", removed=(-1,))
    with pytest.raises(UsageError, match="words: got 19; allowed: 20 or more"):
        letter_words(tiny("llama"), 19)


@pytest.mark.parametrize("name", ["x", "y", "codes", "scaled"])
def test_numbers_that_are_not_finite_are_refused_where_texts_are_made(name):
    given = texts(2, 1)
    parts = {each: getattr(given, each).clone() for each in ("x", "y", "codes")} | {"scaled": given.codes.clone()}
    parts[name][7, 3] = float("nan")
    with pytest.raises(UsageError, match=f"texts: {name}: got 'numbers that are not finite in 1 of 120 texts, e.g. text 7'"):
        Labelled(parts["x"], parts["y"], parts["codes"], given.labels, given.clusters, parts["scaled"])


@pytest.mark.parametrize("rate", [0.5, 0.3, 0.8])
def test_the_mean_of_scr_is_that_of_texts_as_they_are_scored(rate):
    """Set to their mean over all texts, rare latents leave texts past the threshold again."""
    made = []
    for seed in (0, 1):
        draw = np.random.default_rng(seed)
        labels = {name: draw.random(4000) < rate for name in ("a", "b")}
        codes = np.stack([labels["a"] * 1.5, labels["b"] * 4.0], 1)
        y = codes @ np.eye(2, 6) + 0.5 * draw.standard_normal((4000, 6))
        tensors = [torch.tensor(each, dtype=torch.float32) for each in (y, y, codes)]
        made.append(Labelled(*tensors, labels, [str(number) for number in range(4000)]))
    fit, held = made
    agree, even, scored = fit.label("a") == fit.label("b"), *(_balanced_rows(part, "a", "b") for part in made)
    biased, oracle = (linear_probe(fit.y[rows], fit.label("a")[rows]) for rows in (np.flatnonzero(agree), even))

    def right(probe, to=None):
        y = held.y[scored].clone()
        if to is not None:
            y[:, 1] += to - held.codes[scored, 1]  # latent 1 is coordinate 1
        said, truth = y.numpy() @ probe[0] + probe[1] > 0, held.label("a")[scored]
        return (said[truth].mean() + (~said[~truth]).mean()) / 2

    base, best = right(biased), right(oracle)
    of_even, of_all = ((right(biased, fit.codes[rows, 1].mean()) - base) / (best - base) for rows in (even, slice(None)))
    found = spurious_removal(fit, held, torch.eye(2, 6), "a", "b", (1,), "mean")
    assert found.scores == ((1, pytest.approx(of_even, abs=0.01)),) and found.base == pytest.approx(base, abs=0.001)
    assert of_even > 0.5 and (rate == 0.5 or of_even > of_all + 0.1)


def balanced_without_each(said, truth, clusters):
    for name in dict.fromkeys(clusters):
        kept = np.array([each != name for each in clusters])
        yield (said[kept & truth].mean() + (~said[kept & ~truth]).mean()) / 2


def test_bounds_of_balanced_accuracy_leave_out_clusters_of_one_class():
    draw = np.random.default_rng(3)
    truth = np.repeat([True] * 6 + [False] * 20, 10)
    said = np.where(draw.random(260) < 0.85, truth, ~truth)
    clusters = [str(number // 10) for number in range(260)]
    found, left = _accuracy(said, truth, clusters), np.array(list(balanced_without_each(said, truth, clusters)))
    reach = stats.t.ppf(0.975, 25) * np.sqrt(25 / 26 * ((left - left.mean()) ** 2).sum())
    assert found.value == pytest.approx((said[truth].mean() + (~said[~truth]).mean()) / 2)
    assert (found.high - found.low) / 2 == pytest.approx(reach)
    alone = _accuracy(said, truth, ["members" if own else name for own, name in zip(truth, clusters, strict=True)])
    assert alone.value == found.value and alone.low is None  # without its one cluster there is no class


def test_axes_of_few_texts_are_no_more_than_there_are():
    draw = torch.Generator().manual_seed(0)
    sizes = 30 * 0.8 ** torch.arange(64.0)
    x = [5 + torch.randn(20, 64, generator=draw) * sizes for _ in range(2)]
    labels = {"a": np.arange(20) % 2 == 0}
    fit, held = (Labelled(each, each, each.relu(), labels, [str(n) for n in range(20)]) for each in x)
    found = [each for each in sparse_probing(fit, held, "a", (19, 64)) if each.features == "principal axes"]
    assert [len(each.chosen) for each in found] == [19, 19]  # of 20 texts


def test_features_that_do_not_vary_have_no_gap_and_tiny_ones_have():
    member = np.arange(40) < 13
    values = torch.full((40, 1), 0.1)
    assert mean_gaps(values, member).tolist() == [0.0]
    values[:13] = torch.nextafter(values[:13], torch.tensor(1.0))  # the same, added up in another order
    assert mean_gaps(values, member).tolist() == [0.0] and linear_probe(values, member)[0].tolist() == [0.0]
    varied = torch.tensor(member, dtype=torch.float32)[:, None] + torch.rand(40, 1, generator=torch.Generator().manual_seed(0))
    assert mean_gaps(1e-10 * varied, member).item() == pytest.approx(mean_gaps(varied, member).item(), rel=1e-4)
    weights, bias = linear_probe(1e-10 * varied, member)
    assert ((1e-10 * varied.numpy().astype(float) @ weights + bias > 0) == member).mean() > 0.9


def test_bits_of_values_do_not_stop_at_the_logarithm_of_the_sample():
    draw = torch.Generator().manual_seed(0)
    rates = torch.tensor([0.5, 0.5])
    exact = [0.5 * np.log2(np.pi * np.e / 2) - np.log2((12 * 0.01 * error) ** 0.5) for error in (1e-2, 1e-4, 1e-8)]
    for n in (1000, 100_000):
        sizes = torch.randn(n, generator=draw).abs()
        found = [cost(rates, sizes, error, 0, 1).values for error in (1e-2, 1e-4, 1e-8)]
        assert found == pytest.approx(exact, abs=0.15)
    two = torch.tensor([1.0, 2.0]).repeat(500)
    assert cost(rates, two, 1e-8, 0, 1).values == pytest.approx(1)  # two values are one bit, however fine the step
    with pytest.raises(UsageError, match="error: got nan"):
        cost(rates, two, float("nan"), 0, 1)


def test_tokens_that_never_occur_add_nothing_to_a_divergence():
    truth, found = (torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    whole = divergence(truth[:, :4].log_softmax(-1), found[:, :4].log_softmax(-1))
    truth[:, 4] = found[:, 4] = -torch.inf
    assert bool((whole > 0).all())
    assert torch.allclose(divergence(truth.log_softmax(-1), found.log_softmax(-1)), whole, atol=1e-6)


@pytest.mark.parametrize(("n", "most"), [(700, 500), (1200, 450), (300, 6000)])
def test_the_same_latents_in_another_order_agree_however_many_they_are(n, most):
    a = torch.randn(n, 32, generator=torch.Generator().manual_seed(n))
    found = agreement(a, a[torch.randperm(n)], most=most)
    assert found.mcc == pytest.approx(1, abs=1e-5) and found.shared == 1 and found.sampled == (n > most)
    other = agreement(a, torch.randn(n, 32, generator=torch.Generator().manual_seed(1)), most=most)
    assert other.mcc == pytest.approx(other.chance_mcc, abs=0.03) and other.mmcs == pytest.approx(other.chance_mmcs, abs=0.03)


@pytest.mark.parametrize("values", [[7e4, 1.0, 1e6], [1e-9, 3e-9, 2e-10], [3.0, 0.5, 1e-9, 2.0]])
def test_codes_keep_values_that_half_precision_cannot(values):
    codes = Codes(Pairs(torch.tensor([0, len(values)]), torch.arange(len(values)), 8), torch.tensor(values))
    arrays = to_arrays(codes)
    again = from_arrays(arrays, 8).values
    assert again.tolist() == pytest.approx(values, rel=1e-3, abs=1e-7 * max(values))
    assert arrays["values"].dtype == (np.float16 if max(values) == 3.0 else np.float32)


def rows(sizes):
    draw = torch.Generator().manual_seed(3)
    return HeldOut.of([torch.randint(5, 190, (size,), generator=draw).tolist() for size in sizes])


@pytest.mark.parametrize("sizes", [[2, 60, 60, 60] * 8, [60, 2, 2, 2] * 8, [60, 2], [2, 60], [40] + [2] * 50, [2] * 50 + [40]])
def test_documents_are_divided_by_their_tokens_where_they_are_unlike(sizes):
    fit, held = rows(sizes).divided(0.25)
    assert fit.n_tokens + held.n_tokens == sum(sizes) and not set(fit.documents) & set(held.documents)
    if len(sizes) == 32:
        assert 0.12 < fit.n_tokens / sum(sizes) < 0.5
    same = rows([30] * 40).divided(0.25)[0]
    assert same.documents == tuple(str(number) for number in range(0, 40, 4))  # as ever


def test_few_tokens_for_means_and_axes_are_told():
    model = tiny("llama")
    plan = EvaluationPlan(loss_tokens=0)
    notes = {n: evaluate(transcoder(1), rows([20] * n), model, plan, Controls()).notes for n in (8, 80)}
    assert any("few for 32 dimensions" in note for note in notes[8]) and not any("few for" in note for note in notes[80])


def test_words_of_tokenizers_that_drop_the_first_space_have_first_letters():
    draw = np.random.default_rng(0)
    words = sorted({first + "".join(draw.choice(list("defgh"), 5)) for first in "abc" for _ in range(300)})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *(("▁" + word, -5.0) for word in words), ("▁", -6.0),
             *((letter, -9.0) for letter in string.ascii_lowercase)]  # fmt: skip
    made = Tokenizer(models.Unigram(vocab, unk_id=0))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])  # fmt: skip
    tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    config = T.LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                           vocab_size=len(vocab), bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = Model(hf=T.AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer, name="sp", source="test",
                  prepend_bos=True, bos_id=1)  # fmt: skip
    letters, sides = letter_words(model, 60)
    assert letters == ["a", "b", "c"] and all(len(side) > 100 for side in sides)


def test_what_is_no_text_in_a_file_is_named(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "a b"}\n{"text": 5}\n')
    with pytest.raises(CorpusError, match="line 2.*under 'text' is a int, not a text"):
        list(open_corpus(str(path)).documents())


def test_a_piece_is_what_a_token_is_within_a_text(glass):
    made = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁cat", -1.0), ("s", -2.0), ("▁▁", -2.0), ("▁", -3.0)], unk_id=0))
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    model = tiny("llama")
    model.tokenizer = T.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    assert [model.text([token]) for token in (1, 2, 3)] == ["cat", "s", " "]
    assert [model.piece(token) for token in (1, 2, 3, 4)] == [" cat", "s", "  ", " "]
    assert all(glass.piece(token) == glass.text([token]) for token in range(0, 400, 7))


def test_latents_of_a_target_that_goes_with_what_is_spurious_are_not_taken_out():
    """Latent 0 is of the target and leans towards what is spurious, latent 1; nine of ten texts have both or neither."""
    draw = np.random.default_rng(0)
    target = draw.random(800) < 0.5
    spurious = np.where(draw.random(800) < 0.9, target, ~target)
    latents, directions = torch.zeros(800, 16), AXES.clone()
    latents[:, 0], latents[:, 1] = torch.tensor(3.0 * target).float(), torch.tensor(0.8 * spurious).float()
    directions[0] = (AXES[0] + 0.6 * AXES[1]) / 1.36**0.5
    x = latents @ directions
    part = Labelled(x, x, latents, {"t": target, "s": spurious}, [str(number) for number in range(800)])
    probe, even = (AXES[1].double().numpy(), 0.0), _balanced_rows(part, "t", "s")
    assert used_latents(part, directions, probe, "s")[0] == 0 and used_latents(part, directions, probe, "s", even)[0] == 1


def test_latents_are_ranked_as_the_two_scores_are_defined():
    """Four latents: for it, less for it, against it (on without the property, along the probe), and twice against."""
    has = np.arange(40) < 20
    on = torch.tensor(np.stack([3.0 * has, 1.0 * has, 2.0 * ~has, 2.5 * ~has], 1)).float()
    directions = torch.eye(4)[[0, 0, 0, 0]] * torch.tensor([1.0, 1.0, 1.0, -1.0])[:, None]
    x = on @ directions
    part = Labelled(x, x, on, {"p": has}, [str(number) for number in range(40)])
    probe = (np.array([1.0, 0, 0, 0]), 0.0)
    assert used_latents(part, directions, probe, "p") == [0, 1]  # (mean difference, 0 or more) x (direction . probe)
    assert used_latents(part, directions, probe, "p", either=True) == [0, 3, 2, 1]  # by the size of the product
