"""Documents to parts, units to codes, codes to windows: against brute force, and the same after a kill."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.corpora import Corpus, Document
from assay.data.duplicates import near_duplicates
from assay.data.splits import spans_of
from assay.errors import ReproduceError, ShapeError, SiteError, StoreError, UsageError
from assay.explain import reading as work
from assay.explain.chosen import choose
from assay.explain.pieces import Pieces
from assay.explain.reading import ReadPlan, open_reading, read_features
from assay.explain.records import FIRING
from assay.explain.sampling import SamplePlan, coactivation, joint_firing, neighbours, samples
from assay.explain.split import PARTS, SHARES, shared_passages, split_documents
from assay.explain.units import nearest, of_dictionary, of_directions, of_heads, of_neurons
from assay.features.dictionary import Spec, make_dictionary
from assay.model.untrained import untrained_model
from assay.testing.compiler import tokenizer_of
from conftest import tiny, tiny_hf

WORDS = ("?", *(f"w{number}" for number in range(150)))
MANY = tuple(f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst")
PLAN = ReadPlan(tokens=6000, context=24, per_document=60, file_tokens=700)
WINDOWS = SamplePlan(top=4, quantile=4, random=4, near=4, other=4, before=5, after=3, least=2)


class Given(Corpus):
    """Documents that a test has written down."""

    def __init__(self, texts, name="given"):
        self.name, self.given = name, [Document(f"d{number}", text) for number, text in enumerate(texts)]

    @property
    def digest(self):
        return f"digest of {self.name} {self.given}"

    def read(self):
        return iter(self.given)


def some_texts(seed=0, n=160, least=20, longest=70, words=WORDS[1:]):
    """Zipf-like word salad: common words are common."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, len(words) + 1)
    return [" ".join(rng.choice(words, size=size, p=weights / weights.sum())) for size in rng.integers(least, longest, size=n)]


def model_with_words(seed=0):
    model = tiny("llama", seed)
    model.tokenizer = tokenizer_of(WORDS)
    return model


def dictionary_of(model, site="resid_post.1", width=48, seed=0):
    rng = torch.Generator().manual_seed(seed)
    made = make_dictionary(Spec("topk", width, 32, 32, k=6, inputs=(site,), outputs=(site,), skip_first=1), "made")
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(width, 32, generator=rng))
        made.W_dec.copy_(torch.randn(width, 32, generator=rng))
    made.requires_grad_(False)
    return made


@pytest.fixture(scope="module")
def model():
    return model_with_words()


@pytest.fixture(scope="module")
def dictionary(model):
    return dictionary_of(model)


@pytest.fixture(scope="module")
def corpus():
    return Given(some_texts())


@pytest.fixture(scope="module")
def read(model, dictionary, corpus, tmp_path_factory):
    return read_features(model, of_dictionary(dictionary), corpus, tmp_path_factory.mktemp("read"), PLAN)


def row_by_hooks(model, tokens):
    """What one row alone gives by plain hooks on the module: residual streams, neurons, heads' inputs."""
    kept, handles = {}, []

    def keep(name, value):
        kept[name] = value if torch.is_tensor(value) else value[0]

    for n, layer in enumerate(model.hf.model.layers):
        handles += [
            layer.register_forward_hook(lambda m, a, out, n=n: keep(f"resid_post.{n}", out)),
            layer.register_forward_pre_hook(lambda m, a, k, n=n: keep(f"resid_pre.{n}", a or k["hidden_states"]),
                                            with_kwargs=True),
            layer.mlp.down_proj.register_forward_pre_hook(lambda m, a, n=n: keep(f"mlp_act.{n}", a)),
            layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a, n=n: keep(f"z.{n}", a)),
        ]
    try:
        with torch.no_grad():
            model.hf(torch.tensor([list(map(int, tokens))]))
    finally:
        for handle in handles:
            handle.remove()
    return {site: x[0].float() for site, x in kept.items()}


def all_by_hooks(model, part):
    """Every site of every token of a part, row by row."""
    rows = [row_by_hooks(model, row.tokens) for row in part.rows]
    return {site: torch.cat([row[site] for row in rows]) for site in rows[0]}


def limit_of(reading, guard):
    return reading.manifest["limits"]["factor"] * reading.manifest["limits"]["medians"][guard]


# documents to parts -------------------------------------------------------------------------------


def varied(text, rng):
    """The same text with two words changed."""
    words = text.split()
    for at in rng.choice(len(words), 2, replace=False):
        words[at] = "other"
    return " ".join(words)


def test_near_copies_are_in_one_part_and_parts_share_nothing():
    rng = np.random.default_rng(1)
    texts = [" ".join(rng.choice(MANY, size)) for size in rng.integers(40, 80, 200)]
    texts += [varied(text, rng) for text in texts[:60]]
    given_texts = [(f"d{number}", text) for number, text in enumerate(texts)]
    found = split_documents(given_texts, seed=2)
    assert set(found.homes) == {name for name, _ in given_texts} and found.joined >= 120 and not found.dropped
    for number in range(60):
        assert found.homes[f"d{number}"] == found.homes[f"d{200 + number}"]
    homes = [found.homes[name] for name, _ in given_texts]
    assert all(homes[i] == homes[j] for i, j in near_duplicates(texts))
    assert set(homes) == set(PARTS)
    share = {part: homes.count(part) / len(homes) for part in PARTS}
    assert all(abs(share[part] - SHARES[part]) < 0.12 for part in PARTS)
    shuffled = split_documents([given_texts[n] for n in rng.permutation(len(given_texts))], seed=2)
    assert dict(shuffled.homes) == dict(found.homes)
    assert dict(split_documents(given_texts, seed=3).homes) != dict(found.homes)


def test_more_documents_move_none():
    texts = [(f"d{n}", text) for n, text in enumerate(some_texts(5, 300, 30, 60))]
    few, many = split_documents(texts[:200]), split_documents(texts)
    assert few.groups >= 100 and all(many.homes[name] == home for name, home in few.homes.items())


def test_a_passage_in_the_middle_joins_documents_and_a_phrase_of_all_joins_none():
    fresh = [" ".join(f"u{doc}x{n}" for n in range(400)) for doc in range(40)]
    passage = " ".join(f"p{n}" for n in range(40))
    texts = [*fresh]
    for doc in (3, 17, 31):
        words = texts[doc].split()
        texts[doc] = " ".join([*words[:200], passage, *words[200:]])
    assert not near_duplicates(texts)  # too long and too different for whole texts to show it
    pairs, phrases = shared_passages(texts)
    assert pairs == [(3, 17), (3, 31)] and phrases == 0
    found = split_documents([(str(n), text) for n, text in enumerate(texts)])
    assert found.homes["3"] == found.homes["17"] == found.homes["31"]
    licence = " ".join(f"l{n}" for n in range(33))
    pairs, phrases = shared_passages([f"{text} {licence}" for text in fresh])
    assert pairs == [] and phrases == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=14), min_size=2, max_size=7))
def test_passages_are_those_of_brute_force(rows):
    texts = [" ".join(f"a{word}" for word in row) for row in rows]
    spans = [spans_of(text, 3) for text in texts]
    holders = {}
    for number, found in enumerate(spans):
        for span in found:
            holders.setdefault(span, []).append(number)
    wanted = sorted({(who[0], other) for who in holders.values() if len(who) <= 4 for other in who[1:]})
    assert shared_passages(texts, 3, 4) == (wanted, sum(len(who) > 4 for who in holders.values()))


def test_another_corpus_is_ood_without_copies_of_this_one():
    texts, others = some_texts(6, 120, 30, 60), some_texts(7, 30, 30, 60)
    shares = {"shown": 0.5, "scored": 0.3, "tune": 0.1, "confirm": 0.1}
    found = split_documents([(f"d{n}", text) for n, text in enumerate(texts)], shares,
                            outside=[(f"o{n}", text) for n, text in enumerate([*others, texts[4], texts[9]])])  # fmt: skip
    assert set(found.of("ood")) == {f"o{n}" for n in range(30)}
    assert found.dropped == dict.fromkeys(("o30", "o31"), "a near copy of a document of the main corpus")


def test_one_group_of_copies_does_not_take_all():
    rng = np.random.default_rng(0)
    base = some_texts(8, 1, 60, 61)[0]
    texts = [*(varied(base, rng) for _ in range(40)), *some_texts(9, 60, 30, 60)]
    found = split_documents([(f"d{n}", text) for n, text in enumerate(texts)])
    assert len(found.dropped) == 39 and len(found.homes) == 61 and set(found.homes.values()) == set(PARTS)


def test_few_documents_reach_every_part_and_too_few_are_refused():
    texts = [(f"d{n}", text) for n, text in enumerate(some_texts(10, 9, 30, 60))]
    assert set(split_documents(texts).homes.values()) == set(PARTS)
    with pytest.raises(UsageError, match="4 that are no copies.*5 or more"):
        split_documents(texts[:4])
    with pytest.raises(UsageError, match="names twice"):
        split_documents([*texts, texts[0]])
    for shares in ({"shown": 0.5}, {"shown": 0.5, "held": 0.5}, {"shown": 1.2, "tune": -0.2}):
        with pytest.raises(UsageError, match="shares"):
            split_documents(texts, shares)


# text ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_level():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["the cat sat on the mat, naïve café 日本", "  the end.\n\nthe"], trainer)
    model = model_with_words()
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    return model


@pytest.fixture(scope="module")
def sentence_piece():
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])  # fmt: skip
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    made.train_from_iterator(["the cat sat on the mat, naive cafe", "the end. the"], trainer)
    model = model_with_words()
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    return model


TEXTS = ("the cat sat", "  the end.\n\nthe", "naïve café 日本語 🙂👩‍👩‍👧 x", "é", "日", "the \ufffd end", "", " a  b ")


def test_pieces_add_up_to_the_text_with_characters_of_several_tokens(byte_level):
    pieces = Pieces(byte_level)
    for text in TEXTS:
        ids = byte_level.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = pieces.of(ids)
        assert len(found) == len(ids) and "".join(found) == text
    ids = byte_level.tokenizer("x日y", add_special_tokens=False)["input_ids"]
    assert pieces.of(ids) in (["x", "", "", "日", "y"], ["x", "", "日", "y"], ["x", "日", "y"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 260), max_size=12))
def test_pieces_of_any_bytes_add_up_to_what_the_tokenizer_decodes(byte_level, ids):
    found = Pieces(byte_level).of(ids)
    assert len(found) == len(ids) and "".join(found) == (byte_level.tokenizer.decode(ids) if ids else "")


def test_blanks_in_mid_document_are_kept(sentence_piece):
    pieces = Pieces(sentence_piece)
    for text in TEXTS:
        ids = sentence_piece.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(pieces.of(ids, begins=True)) == sentence_piece.tokenizer.decode(ids)
        for cut in range(1, len(ids)):
            rows = pieces.of(ids[:cut], begins=True) + pieces.of(ids[cut:])
            if "\ufffd" not in "".join(rows):  # a character cut in two by the row is in neither
                assert "".join(rows) == text.replace("\ufffd", "") or "\ufffd" in text


# units to codes -----------------------------------------------------------------------------------


def test_codes_are_those_of_plain_hooks(read, model, dictionary):
    assert read.parts == ("shown", "scored", "tune") and read.units[5] == "latent.made.5"
    limit = limit_of(read, "resid_post.1")
    for name in read.parts:
        part = read.part(name)
        x = all_by_hooks(model, part)["resid_post.1"]
        keep = (x.norm(dim=1) <= limit).numpy() & (part.positions > 0)
        wanted = dictionary.encode(x).numpy() * keep[:, None]
        assert np.array_equal(part.typical, keep)
        assert np.allclose(part.codes.toarray(), wanted, atol=1e-4) and part.codes.dtype == np.float32
        assert (part.codes.data > 0).all() and part.codes.has_sorted_indices
        assert part.n_tokens == read.n_tokens(name) == part.starts[-1]


def test_rows_are_the_documents_without_a_gap(read, corpus, model):
    texts = {document.id: document.text for document in corpus.documents()}
    seen = set()
    for name in PARTS:
        assert not seen & set(read.documents(name))
        seen |= set(read.documents(name))
    assert sum(read.n_tokens(name) for name in PARTS) >= PLAN.tokens
    part = read.part("shown")
    for document, rows in itertools.groupby(range(part.n_rows), key=lambda number: part.row(number).document):
        rows = list(rows)
        text = "".join(part.row_text(number) for number in rows)
        assert texts[document].startswith(text) and len(text.split()) >= min(58, len(texts[document].split()) - 1)
        place = 0
        for number in rows:
            row = part.row(number)
            assert row.place == place and len(row.tokens) <= 24
            inside = slice(part.starts[number], part.starts[number + 1])
            assert "".join(part.pieces[inside]) == part.row_text(number) and (part.row_of[inside] == number).all()
            assert model.tokenizer(part.row_text(number))["input_ids"] == row.tokens.tolist()
            place += len(row.tokens)


def test_files_one_by_one_are_the_part(read):
    for name in read.parts:
        files, whole = list(read.iter_parts(name)), read.part(name)
        assert len(files) > 1 or name == "tune"
        assert np.array_equal(np.concatenate([file.tokens for file in files]), whole.tokens)
        assert sum((abs(a) for a in [(sum(file.codes.nnz for file in files) - whole.codes.nnz)]), 0) == 0
        assert np.array_equal(np.concatenate([file.codes.toarray() for file in files]), whole.codes.toarray())
        assert [piece for file in files for piece in file.pieces] == whole.pieces
        assert [row.document for file in files for row in file.rows] == [row.document for row in whole.rows]


@pytest.mark.parametrize("kind", ["neuron", "negative", "head", "direction"])
def test_units_with_a_value_everywhere(model, corpus, tmp_path, kind):
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(1)) * 7
    made = {"neuron": lambda: of_neurons(model, "mlp_act.1", [3, 9, 60]), "head": lambda: of_heads(model, "attn_out.1.*"),
            "negative": lambda: of_neurons(model, "mlp_act.1.3,mlp_act.2.5", sign=-1),
            "direction": lambda: of_directions(model, "resid_post.1", vectors)}[kind]()  # fmt: skip
    plan = ReadPlan(tokens=3000, context=24, per_document=60, fires=0.05)
    found = read_features(model, made, corpus, tmp_path / "read", plan)
    part = found.part("shown")
    acts = all_by_hooks(model, part)
    guard = {"neuron": ["resid_pre.1"], "negative": ["resid_pre.1", "resid_pre.2"], "head": ["resid_pre.1"],
             "direction": ["resid_post.1"]}[kind]  # fmt: skip
    keep = (part.positions > 0) & np.all([(acts[site].norm(dim=1) <= limit_of(found, site)).numpy() for site in guard], 0)
    if kind == "neuron":
        raw = acts["mlp_act.1"][:, [3, 9, 60]]
        assert found.units == ("mlp_act.1.3", "mlp_act.1.9", "mlp_act.1.60")
    elif kind == "negative":
        raw = -torch.stack([acts["mlp_act.1"][:, 3], acts["mlp_act.2"][:, 5]], 1)
    elif kind == "head":
        weight = model.hf.model.layers[1].self_attn.o_proj.weight.detach()
        heads = acts["z.1"].unflatten(1, (4, 8))
        raw = torch.einsum("thk,dhk->thd", heads, weight.unflatten(1, (4, 8))).norm(dim=2)
        assert found.units == tuple(f"attn_out.1.{head}" for head in range(4)) and found.neighbours() is None
    else:
        raw = acts["resid_post.1"] @ (vectors / vectors.norm(dim=1, keepdim=True)).T
    raw = raw.numpy()
    thresholds, means = found.levels()
    n = int(keep.sum())
    for unit in range(raw.shape[1]):
        ordered = np.sort(raw[keep, unit])[::-1]
        assert thresholds[unit] == pytest.approx(ordered[int(0.05 * n) - 1 : int(0.05 * n) + 1].mean(), abs=1e-5)
        mean = raw[keep, unit].mean() if kind == "direction" else 0.0
        assert means[unit] == pytest.approx(mean, abs=1e-5)
        value = raw[:, unit] - mean
        wanted = np.where(keep & (raw[:, unit] > thresholds[unit]) & (value > 0), value, 0)
        got = part.codes[:, [unit]].toarray().ravel()
        assert np.abs(got - wanted).max() < 1e-4 and (got > 0).sum() <= 0.05 * n
        if kind != "negative":
            assert (got > 0).sum() == int(0.05 * n)


def test_neurons_point_where_the_down_projection_does(model):
    units = of_neurons(model, "mlp_act.2", [1, 7])
    assert torch.equal(units.decoder(), model.hf.model.layers[2].mlp.down_proj.weight.detach().T[[1, 7]])
    assert of_heads(model, "z.0.2").names == ("attn_out.0.2",) and of_heads(model, "attn_out.0.2").decoder() is None


def test_wrong_units_are_named(model, dictionary, corpus, tmp_path):
    with pytest.raises(SiteError, match="attn_out.LAYER.HEAD"):
        of_heads(model, "resid_post.1")
    with pytest.raises(UsageError, match="0 to 63"):
        of_neurons(model, "mlp_act.1", [64])
    with pytest.raises(ShapeError, match=r"\(1 or more, 32\)"):
        of_directions(model, "resid_post.1", torch.ones(2, 5))
    with pytest.raises(UsageError, match="zero or not finite"):
        of_directions(model, "resid_post.1", torch.zeros(1, 32))
    with pytest.raises(UsageError, match="no input site"):
        of_dictionary(make_dictionary(Spec("relu", 4, 32, 32)))
    with pytest.raises(UsageError, match="context"):
        read_features(model, of_dictionary(dictionary), corpus, tmp_path / "a", ReadPlan(context=65))
    with pytest.raises(UsageError, match="documents: got '3 that"):
        read_features(model, of_dictionary(dictionary), Given(some_texts(0, 3)), tmp_path / "b", PLAN)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="letter.txt"):
        read_features(model, of_dictionary(dictionary), corpus, tmp_path / "c", PLAN)
    with pytest.raises(StoreError, match="no reading there"):
        open_reading(tmp_path / "nothing")


# sealed, twins, refusals --------------------------------------------------------------------------


def test_sealed_parts_are_read_when_asked_for(model, dictionary, corpus, tmp_path):
    found = read_features(model, of_dictionary(dictionary), corpus, tmp_path / "read", PLAN)
    with pytest.raises(UsageError, match="read_more"):
        found.part("confirm")
    assert not list((tmp_path / "read").glob("codes-confirm*"))
    rows = {name: found.documents(name) for name in PARTS}
    again = open_reading(tmp_path / "read")
    with pytest.raises(UsageError, match="opened from its folder"):
        again.read_more(model)
    with pytest.raises(ReproduceError, match="digest"):
        again.read_more(model, source=of_dictionary(dictionary_of(model, seed=5)))
    with pytest.raises(ReproduceError, match="model"):
        again.read_more(model_with_words(3), source=of_dictionary(dictionary))
    again.read_more(model, source=of_dictionary(dictionary))
    assert again.parts == PARTS and {name: again.documents(name) for name in PARTS} == rows
    x = all_by_hooks(model, again.part("confirm"))["resid_post.1"]
    keep = again.part("confirm").typical
    assert np.allclose(again.part("confirm").codes.toarray(), dictionary.encode(x).numpy() * keep[:, None], atol=1e-4)


def test_twins_read_the_same_rows(read, model, dictionary):
    twin = read.read_twins(model, "all", ("shown",), seed=4)
    assert twin.parts == ("shown",) and np.array_equal(twin.part("shown").tokens, read.part("shown").tokens)
    x = all_by_hooks(untrained_model(model, "all", 4), twin.part("shown"))["resid_post.1"]
    wanted = dictionary.encode(x).numpy() * twin.part("shown").typical[:, None]
    assert np.allclose(twin.part("shown").codes.toarray(), wanted, atol=1e-4)
    assert not np.allclose(wanted, read.part("shown").codes.toarray(), atol=0.1)
    assert read.manifest["identity"]["twin"] is None and twin.digest != read.digest


def test_another_reading_in_the_same_folder_is_refused(read, model, dictionary, corpus):
    same = read_features(model, of_dictionary(dictionary), corpus, read.folder, PLAN)
    assert same.digest == read.digest
    with pytest.raises(UsageError, match="units.digest"):
        read_features(model, of_dictionary(dictionary_of(model, seed=9)), corpus, read.folder, PLAN)
    with pytest.raises(UsageError, match="corpus.digest"):
        read_features(model, of_dictionary(dictionary), Given(some_texts(1)), read.folder, PLAN)
    with pytest.raises(UsageError, match="plan.context"):
        read_features(model, of_dictionary(dictionary), corpus, read.folder, ReadPlan(tokens=6000, context=25, per_document=60))


def test_another_corpus_as_ood(model, dictionary, corpus, tmp_path):
    other = Given(some_texts(77, 40), "other")
    found = read_features(model, of_dictionary(dictionary), corpus, tmp_path / "read", PLAN, ood=other)
    assert all(name.startswith("ood:d") for name in found.documents("ood"))
    assert found.manifest["split"]["ood"] == "another corpus"
    assert abs(found.n_tokens("ood") - 0.15 * PLAN.tokens) < 100
    assert found.manifest["identity"]["ood"]["name"] == "other"


def test_documents_do_not_hang_on_the_order_of_the_corpus(model):
    texts = some_texts(12, 80)
    one, _ = choose(model, Given(texts), 1500, 60, 24, 0)
    other, _ = choose(model, Given(texts[::-1]), 1500, 60, 24, 0)
    assert [document.text for document in one] == [document.text for document in other]
    assert 1500 <= sum(document.n_tokens for document in one) < 1560
    long, each = choose(model, Given(some_texts(13, 3, 400, 500)), 1200, 60, 24, 0)
    assert each > 60 and sum(document.n_tokens for document in long) >= 1100


# killed -------------------------------------------------------------------------------------------

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_reading import *
model = model_with_words()
units = of_dictionary(dictionary_of(model)) if sys.argv[3] == "latents" else of_neurons(model, "mlp_act.1")
plan = ReadPlan(tokens=6000, context=24, per_document=60, file_tokens=250, parts=PARTS)
read_features(model, units, Given(some_texts()), sys.argv[2], plan, lambda *said: print(*said, flush=True))
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != ".lock"}


@pytest.mark.whole
@pytest.mark.parametrize("kind", ["latents", "neurons"])
def test_a_killed_reading_goes_on_to_the_same_bytes(model, dictionary, corpus, tmp_path, kind):
    units = of_dictionary(dictionary) if kind == "latents" else of_neurons(model, "mlp_act.1")
    plan = ReadPlan(tokens=6000, context=24, per_document=60, file_tokens=250, parts=PARTS)
    read_features(model, units, corpus, tmp_path / "whole", plan)
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(Path(__file__).parent), str(out), kind], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True)  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    for line in child.stdout:
        if line.startswith("reading scored"):
            break
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, child.stderr.read()
    before = json.loads((out / "reading.json").read_text())["parts"]
    assert before["shown"]["done"] and not before.get("ood", {}).get("done")
    there = {path.name: path.stat().st_mtime_ns for path in out.glob("codes-shown*")}
    stray = out / ".codes-tune-00000.safetensors.half"
    stray.write_bytes(b"half")
    time.sleep(0.02)
    found = read_features(model, units, corpus, out, plan)
    assert contents(out) == contents(tmp_path / "whole") and found.parts == PARTS and not stray.exists()
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("codes-shown*")} == there  # nothing was read twice


def test_a_damaged_file_is_told_and_read_again(model, dictionary, corpus, tmp_path):
    found = read_features(model, of_dictionary(dictionary), corpus, tmp_path / "read", PLAN)
    good = contents(found.folder)
    file = found.folder / "codes-shown-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"oops")
    with pytest.raises(StoreError, match="codes-shown-00001"):
        open_reading(found.folder).part("shown")
    read_features(model, of_dictionary(dictionary), corpus, found.folder, PLAN)
    assert contents(found.folder) == good


def test_one_writer(read, model, dictionary, corpus):
    with work._writing(read.folder), pytest.raises(StoreError, match="another process"):
        read_features(model, of_dictionary(dictionary), corpus, read.folder, PLAN)


# together and near --------------------------------------------------------------------------------


def test_phi_is_the_correlation_of_being_on(read):
    part = read.part("shown")
    on = (part.codes.toarray()[part.typical] > 0).astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        wanted = np.nan_to_num(np.corrcoef(on.T), nan=0.0)
    np.fill_diagonal(wanted, -1)
    units, phi = coactivation(read, 5)
    for unit in range(len(wanted)):
        best = np.sort(wanted[unit])[::-1][:5]
        assert np.allclose(phi[unit], np.maximum(best, 0), atol=1e-6)
        for other, value in zip(units[unit], phi[unit]):
            assert (other == -1 and value == 0) or wanted[unit, other] == pytest.approx(value, abs=1e-6)
    assert (phi[:, 0] > 0.05).sum() > 10


def test_phi_of_many_pairs_is_measured_on_a_part(read):
    codes = read.part("shown").codes
    units, phi = joint_firing(codes, 3)
    _, rough = joint_firing(codes, 3, pairs=int(0.5 * (np.diff(codes.indptr) ** 2).sum()))
    assert not np.array_equal(phi, rough) and abs(phi[:, 0] - rough[:, 0]).mean() < 0.08


def test_neighbours_are_those_of_brute_force(read, dictionary):
    rows = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    cosines = rows @ rows.T
    cosines.fill_diagonal_(-2)
    wanted = cosines.sort(dim=1, descending=True)
    for found, values in (neighbours(dictionary, 16), read.neighbours(), nearest(dictionary.W_dec, 16, rows=7)):
        assert np.array_equal(found, wanted.indices[:, :16].numpy())
        assert np.allclose(values, wanted.values[:, :16].numpy(), atol=1e-6)
    found, values = nearest(torch.eye(2), 4)
    assert found.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]] and (values == 0).all()


# windows ------------------------------------------------------------------------------------------


def test_windows_are_what_the_rows_say(read):
    found = samples(read, WINDOWS)
    made = list(found)
    assert len(made) > 30 and len(made) + len(found.dropped) == 48
    sides = {"shown": read.part("shown"), "scored": read.part("scored")}
    rows = {name: {(part.row(n).document, part.row(n).place): n for n in range(part.n_rows)} for name, part in sides.items()}
    for sample in made:
        column = read.column(sample.feature)
        assert not {w.document for w in sample.shown} & {w.document for w in sample.scored}
        assert not {w.tokens for w in sample.shown} & {w.tokens for w in sample.scored}
        for name, windows in (("shown", sample.shown), ("scored", sample.scored)):
            part = sides[name]
            dense = part.codes[:, [column]].toarray().ravel()
            for window in windows:
                number = next(n for (document, _), n in rows[name].items() if document == window.document
                              and _is_at(part, n, window))  # fmt: skip
                begin, end = part.starts[number], part.starts[number + 1]
                at = begin + window.position
                first, last = max(begin, at - 5), min(end, at + 4)
                assert window.tokens == tuple(part.tokens[first:last].tolist()) and window.at == at - first
                assert window.values == tuple(dense[first:last].tolist())
                assert window.pieces == tuple(part.pieces[first:last])
                assert window.prefix == "".join(part.pieces[begin : at + 1]) and part.typical[at]
                assert (window.value > 0) == (window.why in FIRING) and (window.why in FIRING or not window.fires)
        part = sides["shown"]
        dense = part.codes[:, [column]].toarray().ravel()
        assert sample.fired == (dense > 0).sum() and sample.largest == dense.max()
        assert sample.density == pytest.approx((dense > 0).sum() / part.typical.sum())
        best = {}
        for token in np.flatnonzero(dense):
            best[part.document_of[token]] = max(best.get(part.document_of[token], 0), dense[token])
        top = [window for window in sample.shown if window.why == "top"]
        if len(best) >= 4:
            assert [w.value for w in top] == sorted(best.values(), reverse=True)[:4] and len({w.document for w in top}) == 4


def _is_at(part, number, window):
    begin, end = part.starts[number], part.starts[number + 1]
    at = begin + window.position
    first = at - window.at
    return at < end and tuple(part.tokens[first : first + len(window.tokens)]) == window.tokens and tuple(
        part.pieces[begin:first]) == window.lead  # fmt: skip


def test_groups_are_of_different_documents_and_near_misses_are_near(read):
    part = read.part("shown")
    both = coactivation(read, 8)[0]
    near = read.neighbours()[0]
    for sample in itertools.islice(samples(read, WINDOWS), 20):
        column = read.column(sample.feature)
        for why in ("top", "quantile", "random", "other"):
            group = [w for w in sample.shown if w.why == why]
            assert len({w.document for w in group}) == len(group) or sample.fired < 30
        for why, partners in (("coactive", both[column]), ("neighbour", near[column][:8])):
            for window in (w for w in sample.shown if w.why == why):
                at = _token(part, window)
                assert any(unit >= 0 and part.codes[at, unit] > 0 for unit in partners)
        alike = [w for w in sample.shown if w.why == "similar"]
        dense = part.codes[:, [column]].toarray().ravel()
        ids = set(part.tokens[dense > 0].tolist())
        assert not alike or any(w.tokens[w.at] in ids for w in alike)


def _token(part, window):
    number = next(n for n in range(part.n_rows) if part.row(n).document == window.document and _is_at(part, n, window))
    return int(part.starts[number] + window.position)


def test_one_unit_alone_gets_the_same_windows(read):
    every = {sample.feature: sample for sample in samples(read, WINDOWS)}
    name = list(every)[7]
    (alone,) = samples(read, WINDOWS, [name])
    of = samples(read, WINDOWS, [name]).of(name)
    assert alone.shown == every[name].shown == of.shown and alone.scored == every[name].scored
    assert alone.neighbours == every[name].neighbours and alone.coactive == every[name].coactive
    with pytest.raises(UsageError, match="latent.made.47"):
        samples(read, WINDOWS, ["latent.other.1"])


# a world with known features ----------------------------------------------------------------------


def planted(model):
    """Latents on the embedding that fire at the words of a set, and nowhere else: the rows of a pseudo-inverse."""
    sets = [("w0", "w1"), ("w1", "w2"), ("w40",), ("w149",), ("w3", "w4", "w5"), ("w3",)]
    words = sorted({word for found in sets for word in found} | {f"w{n}" for n in range(6, 25)})
    table = model.hf.get_input_embeddings().weight.detach()
    known = table[[WORDS.index(word) for word in words]]
    made = make_dictionary(Spec("relu", len(sets), 32, 32, inputs=("embed",), outputs=("embed",)), "planted")
    marks = torch.tensor([[float(word in found) for word in words] for found in sets])
    with torch.no_grad():
        made.W_enc.copy_(marks @ torch.linalg.pinv(known).T)
        made.b_enc.fill_(-0.5)
        made.W_dec.copy_(torch.eye(6, 32))
    return made.requires_grad_(False), sets, words


def test_windows_asked_for_again_are_remembered_and_the_same(read):
    again = open_reading(read.folder)  # nothing is remembered yet
    first, second, kept = ([vars(each) for each in samples(reading, WINDOWS)] for reading in (again, again, read))
    assert second == first == kept and len(first) > 20
    assert set(again.chosen) == {WINDOWS} and len(again.chosen[WINDOWS]) >= len(first)
    other = SamplePlan(**{**vars(WINDOWS), "seed": WINDOWS.seed + 1})
    assert [vars(each) for each in samples(again, other)] != first


def test_planted_features_fire_where_they_were_planted(model, tmp_path):
    dictionary, sets, words = planted(model)
    rng = np.random.default_rng(20)
    words = [word for word in words if word != "w149"]
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(30, 70, 200)]
    found = read_features(model, of_dictionary(dictionary), Given(texts), tmp_path / "read", PLAN)
    part = found.part("shown")
    for unit, wanted in enumerate(sets):
        on = part.codes[:, [unit]].toarray().ravel() > 0
        truth = np.array([piece.strip() in wanted for piece in part.pieces]) & part.typical
        assert np.array_equal(on, truth)
    made = samples(found, WINDOWS)
    by_name = {sample.feature: sample for sample in made}
    assert made.dropped == {"latent.planted.3": "never fires in the part shown"} and len(by_name) == 5
    first = by_name["latent.planted.0"]
    assert first.coactive[0][0] == "latent.planted.1"  # both at w1
    assert by_name["latent.planted.5"].coactive[0][0] == "latent.planted.4"
    for window in first.scored:
        assert (window.pieces[window.at].strip() in sets[0]) == window.fires
        if window.why == "coactive":
            assert window.pieces[window.at].strip() == "w2"
    with pytest.raises(UsageError, match="not read|which are read"):
        found.part("ood")


def test_units_that_are_never_off_are_dropped_with_the_reason(model, corpus, tmp_path):
    made = make_dictionary(Spec("relu", 2, 32, 32, inputs=("resid_post.0",), outputs=("resid_post.0",)), "always")
    with torch.no_grad():
        made.b_enc.copy_(torch.tensor([5.0, -1e9]))
    found = samples(read_features(model, of_dictionary(made.requires_grad_(False)), corpus, tmp_path / "read", PLAN), WINDOWS)
    assert list(found) == []
    assert found.dropped == {"latent.always.0": "hardly ever off: no window without it was found",
                             "latent.always.1": "never fires in the part shown"}  # fmt: skip


def test_latents_are_not_read_where_the_stream_before_a_norm_is_massive(model, corpus, tmp_path):
    """The dictionary's training looked there; tokens against a capture of the stream."""
    made = make_dictionary(Spec("relu", 4, 32, 32, inputs=("mlp_in.1",), outputs=("mlp_in.1",), skip_first=1), "behind")
    with torch.no_grad():
        made.b_enc.fill_(1.0)
    made.requires_grad_(False)
    plain = read_features(model, of_dictionary(made), corpus, tmp_path / "plain", PLAN).part("shown")
    rows = [plain.row(n).tokens.tolist() for n in range(plain.n_rows)]
    norms = model.capture(rows, ["resid_pre.1"]).flat("resid_pre.1").norm(dim=1).numpy()
    limit = float(np.quantile(norms[plain.typical], 0.6))
    made.provenance = {"stream": {"limits": {"guards": {"mlp_in.1": {"site": "resid_pre.1", "limit": limit}}}}}
    part = read_features(model, of_dictionary(made), corpus, tmp_path / "read", PLAN).part("shown")
    assert np.array_equal(part.typical, plain.typical & (norms <= limit)) and 0 < part.typical.sum() < plain.typical.sum()
    assert not part.codes[np.flatnonzero(~part.typical)].nnz


def test_copies_of_windows_are_not_scored(model, tmp_path):
    """A passage too common to join documents: its windows are in both parts, and are scored in none once they were shown."""
    passage = " ".join(f"w{n}" for n in (90, 91, 92, 93, 94, 95, 96, 97, 140, 98, 99, 100, 101, 102, 103, 104)) + " "
    texts = [passage + text for text in some_texts(30, 150, words=WORDS[1:80])]
    dictionary = make_dictionary(Spec("relu", 1, 32, 32, inputs=("embed",), outputs=("embed",)), "one")
    row = model.hf.get_input_embeddings().weight.detach()[WORDS.index("w140")]
    with torch.no_grad():
        dictionary.W_enc.copy_((row / row.square().sum())[None])
        dictionary.b_enc.fill_(-0.9)
    found = samples(read_features(model, of_dictionary(dictionary), Given(texts), tmp_path / "read", PLAN), WINDOWS)
    assert len(found) == 1 and list(found) == []
    assert found.dropped == {"latent.one.0": "fires in the part scored only in copies of shown windows"}


def test_gpt2_and_a_beginning_token(tmp_path):
    from assay.model.model import Model

    model = Model(hf=tiny_hf("gpt2"), tokenizer=tokenizer_of(WORDS), name="tiny", source="test", prepend_bos=True, bos_id=0)
    found = read_features(model, of_neurons(model, "mlp_act.0", [1, 2]), Given(some_texts()), tmp_path / "read", PLAN)
    part = found.part("shown")
    assert all(row.tokens[0] == 0 for row in part.rows) and not part.typical[part.starts[:-1]].any()
    assert all(part.pieces[start] == "" for start in part.starts[:-1])
    weight = model.hf.transformer.h[0].mlp.c_proj.weight.detach()
    assert torch.equal(found.source.decoder(), weight[[1, 2]])


@pytest.mark.slow
def test_a_shipped_dictionary(smollm2, tmp_path):
    from assay.features.kept import shipped

    dictionary = next(one for one in shipped("smollm2-135m") if one.spec.inputs == ("resid_post.15",))
    parts = (("The old man", "A young woman", "Nobody", "My brother", "The dog"),
             ("went to the market in Paris", "(as they say) likes", "wrote to IBM about", "3.14 times saw", "will never eat"),
             ("the red house by the sea", "a café, naïvely — 日本", "Mr. Smith's 12 apples", "all of it again"))  # fmt: skip
    texts = [" ".join(some) + "." for some in itertools.product(*parts)]
    found = read_features(smollm2, of_dictionary(dictionary), Given(texts), tmp_path / "read",
                          ReadPlan(tokens=800, context=32, parts=("shown", "scored")))  # fmt: skip
    part = found.part("shown")
    row = part.row(3)
    acts = smollm2.capture([row.tokens.tolist()], "resid_post.15").flat("resid_post.15")
    wanted = dictionary.encode(acts).numpy() * dictionary.typical(acts, torch.arange(len(acts))).numpy()[:, None]
    got = part.codes[part.starts[3] : part.starts[4]].toarray()
    assert np.allclose(got, wanted, atol=2e-2) and abs((part.codes[part.typical] > 0).sum() / part.typical.sum() - 32) < 12
    given_texts = set(texts)
    assert all(part.row_text(n) in given_texts for n in range(part.n_rows))
    made = list(itertools.islice(samples(found, SamplePlan(least=2)), 20))
    assert len(made) == 20 and all(sample.neighbours and sample.shown and sample.scored for sample in made)
