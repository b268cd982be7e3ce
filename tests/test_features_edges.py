"""Ends of what measures dictionaries: two concepts, large dictionaries, values beyond half precision, unlike documents."""

import string

import numpy as np
import pytest
import torch
import transformers as T
from tokenizers import Tokenizer, decoders, models, normalizers

from assay.data.corpora import open_corpus
from assay.errors import CorpusError, UsageError
from assay.features.absorption import letter_words
from assay.features.agreement import agreement
from assay.features.codes import Codes, Pairs, from_arrays, to_arrays
from assay.features.evaluate import Controls, EvaluationPlan, evaluate
from assay.features.held_out import HeldOut
from assay.features.labelled import Labelled
from assay.features.sparse_probing import _balanced_rows, targeted_perturbation, used_latents
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
