"""Activations as streams and on disk: equal to plain hooks, every token once, the same after any restart."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from assay.data.corpora import Corpus, Document
from assay.errors import AssayError, CorpusError, SiteError, StoreError, UsageError
from assay.features import harvest as work
from assay.features.blocks import Order
from assay.features.harvest import HarvestPlan, LiveStream, harvest
from assay.features.massive import Limits
from assay.features.shards import Shards, typical_in_all
from assay.features.stream import Paired
from assay.files import sha256_of
from assay.model.load import load_model
from assay.testing.compiler import tokenizer_of
from conftest import tiny, tiny_hf

WORDS = ("?", *(f"w{number}" for number in range(150)))
SITES = ("resid_post.1", "mlp_out.2", "z.0")
HUGE = "w7"  # a word whose embedding is enormous where a test says so


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path_factory.mktemp("own")))


class Given(Corpus):
    """Documents that a test has written down."""

    def __init__(self, texts, name="given"):
        self.name, self.given = name, [Document(f"d{number}", text) for number, text in enumerate(texts)]

    @property
    def digest(self):
        return f"digest of {self.name} {self.given}"

    def read(self):
        return iter(self.given)


def some_texts(seed=0, n=40, longest=50, words=tuple(word for word in WORDS[1:] if word != HUGE)):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(words, size=size)) for size in rng.integers(1, longest, size=n)]


def model_with_words(family="llama", huge=False):
    model = tiny(family)
    model.tokenizer = tokenizer_of(WORDS)
    if huge:
        with torch.no_grad():
            model.hf.get_input_embeddings().weight[WORDS.index(HUGE)] *= 3000
    return model


def first_of(out):
    return out[0] if isinstance(out, tuple) else out


def by_hooks(model, tokens):
    """(token, feature) at SITES of one row run alone, by plain hooks on the module."""
    kept = {}
    layers = model.hf.model.layers
    handles = [
        layers[1].register_forward_hook(lambda m, a, out: kept.__setitem__("resid_post.1", first_of(out))),
        layers[2].mlp.register_forward_hook(lambda m, a, out: kept.__setitem__("mlp_out.2", out)),
        layers[0].self_attn.o_proj.register_forward_pre_hook(lambda m, a: kept.__setitem__("z.0", a[0])),
        layers[2].register_forward_pre_hook(lambda m, a, k: kept.__setitem__("resid_pre.2", a[0] if a else k["hidden_states"]),
                                            with_kwargs=True),
        layers[2].post_attention_layernorm.register_forward_hook(lambda m, a, out: kept.__setitem__("mlp_in.2", out)),
    ]  # fmt: skip
    try:
        with torch.no_grad():
            model.hf(torch.tensor([list(map(int, tokens))]))
    finally:
        for handle in handles:
            handle.remove()
    return {site: x[0].reshape(len(tokens), -1) for site, x in kept.items()}


def expected(model, rows, sites=SITES):
    """All tokens past the first of each row, {site: (token, d)}."""
    found = [by_hooks(model, row.tokens) for row in rows]
    return {site: torch.cat([each[site][1:] for each in found]) for site in sites}


def match(found, wanted):
    """For each row of `found` the one row of `wanted` that is equal to it; AssertionError for any other number."""
    distances = torch.cdist(found.double(), wanted.double())
    nearest, where = distances.min(1)
    assert float(nearest.max()) < 1e-4
    return where


def epoch_of(stream, seed=0, size=64):
    count = -(-stream.n_tokens // size)
    batches = list(itertools.islice(stream.batches(size, seed), count))
    return {site: torch.cat([batch[site] for batch in batches])[: stream.n_tokens] for site in stream.sites}


# the order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_an_order_holds_every_token_once_an_epoch_and_begins_anywhere(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 9, size=rng.integers(1, 40))
    sizes[0] += 1
    order = Order(sizes, int(rng.integers(1, 30)), seed)
    starts = np.cumsum(sizes) - sizes

    def tokens(start, count):
        found = []
        for block in order.blocks(start):
            inside = np.concatenate([np.arange(starts[unit], starts[unit] + sizes[unit]) for unit in block.units])
            found += inside[block.order].tolist()
            if len(found) >= count:
                return found[:count]

    n = int(sizes.sum())
    three = tokens(0, 3 * n)
    for epoch in range(3):
        assert sorted(three[epoch * n : (epoch + 1) * n]) == list(range(n))
    if n > 6:
        assert three[:n] != three[n : 2 * n]
    for start in rng.integers(0, 2 * n, size=12).tolist():
        assert tokens(start, n) == three[start : start + n]


def test_blocks_are_no_larger_than_asked_by_more_than_a_unit():
    sizes = np.random.default_rng(0).integers(0, 50, size=400)
    blocks = list(itertools.islice(Order(sizes, 200, 1).blocks(0), 30))
    assert max(sizes[block.units].sum() for block in blocks) < 200 + 50
    assert len({int(unit) for block in blocks[:5] for unit in block.units}) == sum(len(block.units) for block in blocks[:5])


def test_an_order_without_tokens_is_refused():
    with pytest.raises(StoreError, match="no token"):
        Order(np.zeros(3, int), 10, 0)


# a running model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [70, 100_000])
def test_a_live_stream_gives_what_hooks_see_every_token_once_with_sites_in_step(buffer):
    model, corpus = model_with_words(), Given(some_texts())
    stream = LiveStream(model, corpus, SITES, context=16, holdout=0.2, buffer_tokens=buffer)
    wanted = expected(model, stream.rows)
    assert stream.sites == SITES and stream.sizes == {"resid_post.1": 32, "mlp_out.2": 32, "z.0": 32}
    assert stream.n_tokens == len(wanted["z.0"])
    held = {document.id for document in corpus.part("heldout", 0.2).documents()}
    assert held and not held & {row.name for row in stream.rows}
    for seed in (0, 1):
        found = epoch_of(stream, seed)
        where = match(found["resid_post.1"], wanted["resid_post.1"])
        assert sorted(where.tolist()) == list(range(stream.n_tokens))
        for site in SITES:
            assert torch.allclose(found[site], wanted[site][where], atol=1e-5)
    first, second = (epoch_of(stream, seed)["z.0"] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [1, 37, 5000])
def test_a_live_stream_begins_at_any_batch_with_the_same_bits(size):
    stream = LiveStream(model_with_words(), Given(some_texts()), SITES, context=16, buffer_tokens=90)
    count = {1: 200, 37: 80, 5000: 2}[size]
    batches = list(itertools.islice(stream.batches(size, 5), count))
    assert all(len(x) == size for batch in batches for x in batch.values())
    for start in sorted({0, 1, count // 2, count - 1}):
        again = next(stream.batches(size, 5, start))
        assert all(torch.equal(again[site], batches[start][site]) for site in SITES)
    other = LiveStream(model_with_words(), Given(some_texts()), SITES, context=16, buffer_tokens=90)
    again = next(other.batches(size, 5, count - 1))
    assert all(torch.equal(again[site], batches[-1][site]) for site in SITES)


def test_batches_mix_documents():
    stream = LiveStream(model_with_words(), Given(some_texts(n=60)), ["resid_post.1"], context=16, holdout=0.0)
    rows = torch.cat([torch.full((len(row.tokens) - 1,), row.document) for row in stream.rows])
    where = match(next(stream.batches(200))["resid_post.1"], expected(stream.model, stream.rows)["resid_post.1"])
    assert len(rows[where].unique()) > 40


@pytest.mark.parametrize("keep, tolerance", [("fp16", 1e-3), ("bf16", 8e-3)])
def test_a_smaller_buffer_keeps_values_to_its_precision(keep, tolerance):
    model, corpus = model_with_words(), Given(some_texts(n=10))
    whole, small = (LiveStream(model, corpus, ["resid_post.1"], context=16, keep=kind) for kind in ("fp32", keep))
    a, b = (next(stream.batches(50))["resid_post.1"] for stream in (whole, small))
    assert b.dtype == torch.float32 and 0 < float((a - b).abs().max()) < tolerance * float(a.abs().max())
    assert small.block_tokens == whole.block_tokens == 65_536
    narrow = LiveStream(model, corpus, ["resid_post.1"], context=16, keep="fp16", buffer_bytes=6400)
    assert narrow.block_tokens == 6400 // (32 * 2)


def test_a_record_is_plain_and_says_what_was_read():
    stream = LiveStream(model_with_words(), Given(some_texts()), "resid_post.1", 100, context=16)
    record = json.loads(json.dumps(dict(stream.record)))
    assert record["corpus"]["split"] == "train" and record["tokens"] == 100
    assert record["model"]["digest"] == stream.model.digest
    assert record["limits"]["norm_limits"]["resid_post.1"] == stream.norm_limits["resid_post.1"]


def test_what_cannot_be_streamed():
    model, corpus = model_with_words(), Given(some_texts())
    for wrong, kind in (
        (dict(sites=["pattern.0"]), SiteError), (dict(sites=["logits"]), SiteError), (dict(sites=["resid_post.9"]), SiteError),
        (dict(keep="fp8"), UsageError), (dict(factor=0.5), UsageError), (dict(skip_first=-1), UsageError),
        (dict(context=1000), UsageError), (dict(skip_first=16), CorpusError), (dict(holdout=1.0), UsageError),
    ):  # fmt: skip
        with pytest.raises(kind):
            LiveStream(model, corpus, **{"sites": SITES, "context": 16, **wrong})
    for size, start in ((0, 0), (8, -1)):
        with pytest.raises(UsageError):
            next(LiveStream(model, corpus, SITES, context=16).batches(size, 0, start))


# massive positions -------------------------------------------------------------------------------


def texts_with_huge():
    texts = some_texts(3)
    return [text if number % 4 else f"{text} {HUGE} w2" for number, text in enumerate(texts)]


def test_massive_positions_are_those_above_ten_medians_and_are_not_given():
    model = model_with_words(huge=True)
    stream = LiveStream(model, Given(texts_with_huge()), ["resid_post.1", "mlp_in.2"], context=64, holdout=0.0)
    rows = list(stream.rows)
    norms = torch.cat([by_hooks(model, row.tokens)["resid_post.1"][1:].norm(dim=1) for row in rows])
    ids = torch.cat([torch.tensor(row.tokens.astype(int))[1:] for row in rows])
    huge = ids == WORDS.index(HUGE)
    assert 5 < huge.sum() < 20 and (norms[huge].min() > 20 * norms[~huge].max())
    assert stream.norm_limits["resid_post.1"] == pytest.approx(10 * float(norms.median()), rel=1e-4)
    limit = pytest.approx(stream.norm_limits["resid_post.1"])
    assert stream.limits.json()["guards"] == {"mlp_in.2": {"site": "resid_pre.2", "limit": limit}}
    wanted = torch.cat([by_hooks(model, row.tokens)["resid_post.1"][1:] for row in rows])
    where = match(epoch_of(stream)["resid_post.1"], wanted)
    counts = torch.bincount(where, minlength=len(wanted))
    assert (counts[huge] == 0).all() and (counts[~huge] >= 1).all()
    assert counts.sum() == stream.n_tokens == len(wanted)  # the places of massive tokens are taken by others
    free = LiveStream(model, Given(texts_with_huge()), ["resid_post.1"], context=64, holdout=0.0, factor=None)
    assert free.norm_limits == {"resid_post.1": None}
    assert (torch.bincount(match(epoch_of(free)["resid_post.1"], wanted), minlength=len(wanted)) == 1).all()


def test_a_norm_hides_massive_positions_and_the_guard_finds_them():
    model = model_with_words(huge=True)
    sites = model.sites(["mlp_in.2"])
    stream = LiveStream(model, Given(texts_with_huge()), sites, context=64, holdout=0.0)
    rows = [row.tokens for row in stream.rows]
    ids = torch.from_numpy(np.concatenate(rows).astype(int))
    _, massive = work.read_rows(model, rows, sites, stream.limits, "fp32")
    assert massive.tolist() == (ids == WORDS.index(HUGE)).tolist()
    blind = Limits(1, 10.0, stream.limits.medians, {"mlp_in.2": "mlp_in.2"}, stream.sizes)
    _, seen = work.read_rows(model, rows, sites, blind, "fp32")
    assert not seen.any()  # by its own norm nothing shows: the guard is needed


def test_shares_of_variance_are_those_of_all_tokens(tmp_path):
    model = model_with_words(huge=True)
    found = harvest(model, Given(texts_with_huge()), ["resid_post.1", "mlp_in.2"], tmp_path,
                    HarvestPlan(context=24, dtype="fp32", holdout=0.0, shard_tokens=150))  # fmt: skip
    shards = Shards(tmp_path)
    rows = list(shards.rows())
    positions, typical = (torch.cat([getattr(row, name) for row in rows]) for name in ("positions", "typical"))
    kinds = {"first": positions == 0, "massive": (positions > 0) & ~typical, "typical": typical}
    for site in shards.sites:
        x = torch.cat([by_hooks(model, row.tokens)[site] for row in rows]).double()
        around = (x - x.mean(0)).square().sum(1)
        for kind, where in kinds.items():
            told = found.manifest["massive"][site][kind]
            assert told["tokens"] == int(where.sum()) > 0
            assert told["share_of_variance"] == pytest.approx(float(around[where].sum() / around.sum()), rel=1e-5, abs=1e-9)
            assert told["mean_square"] == pytest.approx(float(x[where].square().sum(1).mean()), rel=1e-5)
    assert found.manifest["massive"]["resid_post.1"]["massive"]["share_of_variance"] > 0.5
    assert shards.n_tokens == int(typical.sum())


def test_fp16_that_would_overflow_is_refused_and_bf16_is_not(tmp_path):
    model = model_with_words(huge=True)
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[WORDS.index(HUGE)] *= 1e4
    plan = HarvestPlan(context=24, holdout=0.0)
    with pytest.raises(UsageError, match="bf16 or fp32.*65504"):
        harvest(model, Given(texts_with_huge()), ["resid_post.1"], tmp_path / "a", plan)
    harvest(model, Given(texts_with_huge()), ["resid_post.1"], tmp_path / "b", HarvestPlan(**{**vars(plan), "dtype": "bf16"}))
    assert max(float(row.values["resid_post.1"].float().abs().max()) for row in Shards(tmp_path / "b").rows()) > 65504


def test_values_that_are_not_finite_are_an_error(tmp_path):
    model = model_with_words()
    with torch.no_grad():
        model.hf.get_input_embeddings().weight[WORDS.index(HUGE)] = float("nan")
    with pytest.raises(AssayError, match="not finite"):
        harvest(model, Given(texts_with_huge()), ["resid_post.1"], tmp_path, HarvestPlan(context=24))


# shards ------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    model = model_with_words()
    plan = HarvestPlan(context=16, dtype="fp32", holdout=0.1, shard_tokens=150)
    return model, harvest(model, Given(some_texts()), list(SITES), tmp_path / "acts", plan), plan


def test_shards_hold_what_hooks_see_with_tokens_places_and_documents(kept):
    model, found, plan = kept
    shards = Shards(found.folder)
    assert len(found.manifest["shards"]) > 4
    rows = work.packed(model, Given(some_texts()).part("train", 0.1), 16)
    read = list(shards.rows())
    assert sorted(row.number for row in read) == list(range(len(rows)))
    for row in read:
        source = rows[row.number]
        assert (row.name, row.document, row.place) == (source.name, source.document, source.place)
        assert row.tokens.tolist() == source.tokens.tolist()
        assert row.typical.tolist() == [False] + [True] * (len(row.tokens) - 1)
        for site, x in by_hooks(model, row.tokens).items():
            if site in SITES:
                assert torch.allclose(row.values[site], x, atol=1e-5)
    assert [row.number for row in itertools.islice(shards.rows(7), 3)] == [row.number for row in read[7:10]]
    assert list(shards.rows(len(read))) == []


@pytest.mark.parametrize("buffer", [60, 100_000])
def test_shards_give_every_typical_token_once_an_epoch_from_any_start(kept, buffer):
    model, found, _ = kept
    shards = Shards(found.folder, buffer_tokens=buffer)
    wanted = {site: torch.cat([row.values[site][row.typical] for row in shards.rows()]) for site in SITES}
    assert shards.n_tokens == len(wanted["z.0"])
    batches = list(itertools.islice(shards.batches(33, 2), 60))
    flat = {site: torch.cat([batch[site] for batch in batches])[: shards.n_tokens] for site in SITES}
    where = match(flat["resid_post.1"], wanted["resid_post.1"])
    assert sorted(where.tolist()) == list(range(shards.n_tokens))
    assert all(torch.equal(flat[site], wanted[site][where]) for site in SITES)
    for start in (0, 1, 23, 24, 59):
        again = next(Shards(found.folder, buffer_tokens=buffer).batches(33, 2, start))
        assert all(torch.equal(again[site], batches[start][site]) for site in SITES)
    assert not torch.equal(next(shards.batches(33, 3))["z.0"], batches[0]["z.0"])


def test_shards_of_some_sites_and_what_they_say_of_themselves(kept):
    _, found, _ = kept
    shards = Shards(found.folder, ("z.0",))
    assert shards.sites == ("z.0",) and set(next(shards.batches(5))) == {"z.0"} == set(next(shards.rows()).values)
    assert shards.norm_limits["z.0"] == found.manifest["limits"]["norm_limits"]["z.0"] and shards.skip_first == 1
    assert json.loads(json.dumps(dict(shards.record)))["corpus"]["holdout"] == 0.1
    with pytest.raises(UsageError, match="resid_post.1"):
        Shards(found.folder, ("resid_post.0",))


def test_two_models_side_by_side_give_values_of_the_same_tokens(tmp_path):
    """What is massive in one model is left out of both, and every pair is of one token."""
    plan, texts = HarvestPlan(context=24, dtype="fp32", holdout=0.0, shard_tokens=150), texts_with_huge()
    models = {name: model_with_words(huge=huge) for name, huge in (("base", False), ("tuned", True))}
    for name, model in models.items():
        harvest(model, Given(texts), ["resid_post.1"], tmp_path / name, plan)
    alone = [Shards(tmp_path / name) for name in models]
    assert alone[0].n_tokens > alone[1].n_tokens
    with pytest.raises(UsageError, match="typical_in_all"):
        Paired(dict(zip(models, alone, strict=True)))
    both = Paired(dict(zip(models, typical_in_all(alone), strict=True)))
    assert both.n_tokens == alone[1].n_tokens
    batch = next(both.batches(both.n_tokens, seed=3))
    rows = [list(each.rows()) for each in alone]
    where = [match(batch[f"{name}:resid_post.1"], torch.cat([row.values["resid_post.1"] for row in some]))
             for name, some in zip(models, rows, strict=True)]  # fmt: skip
    ids = [torch.cat([row.tokens for row in some]) for some in rows]
    assert torch.equal(*where) and not bool((ids[0][where[0]] == WORDS.index(HUGE)).any())
    harvest(models["base"], Given(texts), ["resid_post.1"], tmp_path / "other", HarvestPlan(**{**vars(plan), "seed": 1}))
    with pytest.raises(UsageError, match="--shard-tokens"):
        typical_in_all([alone[0], Shards(tmp_path / "other")])


def test_running_models_side_by_side_are_of_the_same_tokens_or_refused():
    models = {name: model_with_words(huge=huge) for name, huge in (("base", False), ("tuned", True))}

    def streams(**changes):
        given = {"context": 24, "holdout": 0.0, "factor": None, **changes}
        return {name: LiveStream(model, Given(texts_with_huge()), ["resid_post.1"], **given) for name, model in models.items()}

    with pytest.raises(UsageError, match="factor=None"):  # each would replace its own massive tokens by others
        Paired(streams(factor=10.0))
    good = streams()
    with pytest.raises(UsageError, match="same buffer"):
        Paired({**good, "tuned": streams(buffer_tokens=100)["tuned"]})
    batch = next(Paired(good).batches(50))
    where = [match(batch[f"{name}:resid_post.1"], expected(models[name], stream.rows, ["resid_post.1"])["resid_post.1"])
             for name, stream in good.items()]  # fmt: skip
    assert torch.equal(*where)


def test_the_manifest_names_every_file_with_its_hash(kept):
    model, found, _ = kept
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["identity"]["model"]["digest"] == model.digest and manifest["made_with"]["versions"]["torch"]
    assert sum(shard["tokens"] for shard in manifest["shards"]) == manifest["tokens"]
    for shard in manifest["shards"]:
        assert sha256_of(found.folder / shard["file"]) == shard["sha256"]
        with safe_open(found.folder / shard["file"], "pt") as opened:
            assert len(opened.get_tensor("tokens")) == shard["tokens"]
            assert int(opened.get_tensor("typical").sum()) == shard["typical"]


@pytest.mark.parametrize("damage, said", [("flip", "damaged"), ("cut", "bytes, expected"), ("gone", "is missing")])
def test_damaged_shards_are_found_and_made_again(kept, damage, said):
    model, found, plan = kept
    file = sorted(found.folder.glob("shard-*"))[2]
    good = {path.name: path.read_bytes() for path in found.folder.glob("shard-*")}
    content = bytearray(good[file.name])
    content[len(content) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(content if damage == "flip" else content[:-9])
    with pytest.raises(StoreError, match=said) as caught:
        shards = Shards(found.folder)
        list(itertools.islice(shards.batches(64), 20))
    assert file.name in str(caught.value)
    if damage == "flip":
        assert next(Shards(found.folder, verify=False).batches(4))
        with pytest.raises(StoreError, match="damaged"):
            Shards(found.folder).check()
    again = harvest(model, Given(some_texts()), list(SITES), found.folder, plan)
    assert again.resumed == len(good) - 1
    assert {path.name: path.read_bytes() for path in found.folder.glob("shard-*")} == good
    Shards(found.folder).check()


def test_folders_that_are_no_finished_harvest(kept, tmp_path):
    _, found, _ = kept
    with pytest.raises(StoreError, match="assay harvest"):
        Shards(tmp_path / "nothing")
    file = found.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    for change, said in (({"status": "running"}, "not finished"), ({"format": 99}, "format 99"), ({"assay": "x"}, "not the")):
        file.write_text(json.dumps({**manifest, **change}))
        with pytest.raises(StoreError, match=said):
            Shards(found.folder)
    file.write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Shards(found.folder)


def test_another_harvest_is_refused_with_what_differs(kept, tmp_path):
    model, found, plan = kept
    corpus = Given(some_texts())
    for said, change in {
        "sites": dict(sites=["z.0"]), "corpus.digest": dict(corpus=Given(some_texts(9))), "dtype: 'fp32' there, 'fp16' now":
        dict(plan=HarvestPlan(**{**vars(plan), "dtype": "fp16"})), "tokens: None there, 100 now":
        dict(plan=HarvestPlan(**{**vars(plan), "tokens": 100})), "model.digest": dict(model=model_with_words(huge=True)),
        "corpus.holdout": dict(plan=HarvestPlan(**{**vars(plan), "holdout": 0.2})),
    }.items():  # fmt: skip
        given = {"model": model, "corpus": corpus, "sites": list(SITES), "folder": found.folder, "plan": plan, **change}
        with pytest.raises(UsageError, match=said):
            harvest(**given)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="thesis.txt"):
        harvest(model, corpus, list(SITES), tmp_path / "full", plan)
    with work._writing(found.folder), pytest.raises(StoreError, match="another process"):
        with work._writing(found.folder):
            pass


def test_a_finished_harvest_is_not_run_again(kept, monkeypatch):
    model, found, plan = kept
    monkeypatch.setattr(work, "read_rows", None)
    again = harvest(model, Given(some_texts()), list(SITES), found.folder, plan)
    assert again.resumed == len(found.manifest["shards"]) and again.manifest == found.manifest


def test_paths_of_modules_can_be_harvested(tmp_path):
    model = model_with_words()
    harvest(model, Given(some_texts()), ["path:model.layers.1.mlp:out"], tmp_path, HarvestPlan(context=16, dtype="fp32"))
    other = LiveStream(model, Given(some_texts()), ["mlp_out.1"], context=16)
    shards = Shards(tmp_path)
    found = torch.cat([row.values["path:model.layers.1.mlp:out"][1:] for row in shards.rows()])
    where = match(epoch_of(other)["mlp_out.1"], found)
    assert sorted(where.tolist()) == list(range(len(found)))


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "neox", "opt"])
def test_other_families(family, tmp_path):
    model = model_with_words(family)
    stream = LiveStream(model, Given(some_texts()), ["resid_pre.1", "mlp_out.1", "final_norm"], context=16, holdout=0.0)
    wanted = [model.capture([row.tokens.tolist()], ["resid_pre.1", "mlp_out.1", "final_norm"]) for row in stream.rows]
    found = epoch_of(stream)
    for site in stream.sites:
        every = torch.cat([each[site][0, 1:] for each in wanted])
        assert sorted(match(found[site], every).tolist()) == list(range(stream.n_tokens))


# killed ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A model and a corpus as another process finds them."""
    folder = tmp_path_factory.mktemp("there")
    hf, tokenizer = tiny_hf("llama"), tokenizer_of(WORDS)
    hf.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = (json.dumps({"text": text}) for text in some_texts(5, n=900))
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    return folder


def command(on_disk, out):
    settings = {"--tokens": "12000", "--context": "16", "--shard-tokens": "200", "--out": str(out),
                "--atlas": str(out.parent / "atlas")}  # fmt: skip
    what = [str(on_disk / "model"), str(on_disk / "corpus.jsonl"), "--site", "resid_post.1", "--site", "mlp_out.2", "--quiet"]
    return [sys.executable, "-m", "assay", "harvest", *what, *itertools.chain(*settings.items())]


def shards_in(out: Path):
    return sorted(path for path in out.glob("shard-*")) if out.exists() else []


def run_until(arguments, out, count, signal_number, wait, environment):
    """Start a run, and send it a signal when so many shards are there (and a moment later); its exit code."""
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    while process.poll() is None and len(shards_in(out)) < count:
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal_number)
    process.communicate()
    return process.returncode


@pytest.mark.whole
def test_a_killed_harvest_goes_on_to_the_same_bytes(on_disk, tmp_path):
    environment = {**os.environ, "ASSAY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command(on_disk, tmp_path / "whole"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wanted = {path.name: path.read_bytes() for path in shards_in(tmp_path / "whole")}
    assert len(wanted) > 40
    out, chance, codes = tmp_path / "killed", random.Random(time.time_ns()), []
    for goal in sorted(chance.sample(range(1, 40), 3)):
        codes.append(run_until(command(on_disk, out), out, goal, signal.SIGKILL, chance.random() * 0.02, environment))
    codes.append(run_until(command(on_disk, out), out, 45, signal.SIGINT, 0.0, environment))
    assert codes[:3] == [-signal.SIGKILL] * 3 and codes[3] == 130, codes
    with pytest.raises(StoreError, match="not finished"):
        Shards(out)
    done = subprocess.run([*command(on_disk, out), "--json", str(tmp_path / "done.json")], env=environment, capture_output=True)
    assert done.returncode == 0
    assert 40 <= json.loads((tmp_path / "done.json").read_text())["resumed"] < len(wanted)
    assert {path.name: path.read_bytes() for path in shards_in(out)} == wanted
    assert not list(out.glob(".shard-*"))
    told = [json.loads((folder / "manifest.json").read_text()) for folder in (tmp_path / "whole", out)]
    for manifest in told:
        manifest.pop("made_with")
    assert told[0] == told[1]
    assert sum(len(row.tokens) for row in Shards(out).rows()) == 12000
    read = load_model(on_disk / "model")
    row = next(Shards(out).rows())
    assert torch.allclose(row.values["resid_post.1"].float(), by_hooks(read, row.tokens)["resid_post.1"], atol=2e-3)
    shutil.rmtree(tmp_path / "cache")
