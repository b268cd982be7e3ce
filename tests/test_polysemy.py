"""Contexts against brute force; concepts of units that were planted; latents as subjects of claims."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from assay.data.corpus_rows import packed
from assay.errors import CorpusError, ModelError, ReproduceError, SiteError, TaskError, UsageError
from assay.evidence.hosts import as_host
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.features import contexts as C
from assay.features import opened
from assay.features.codes import codes_of
from assay.features.dictionary import Spec, make_dictionary
from assay.features.polysemy import Polysemy, PolysemyPlan, Pool, UnitTexts, polysemy, polysemy_of
from assay.features.sentences import encoder_of
from assay.records import Example
from assay.report.superposition_figures import concepts_plot
from assay.testing.polysemantic import polysemantic_world
from assay.testing.topics import TOPICS, mixed_texts, topic_texts
from conftest import tiny

RNG = np.random.default_rng(0)
ROWS = [(RNG.integers(3, 199, RNG.integers(2, 14)).tolist(), f"doc{number // 2}") for number in range(24)]
PLAN = C.ContextPlan(top=3, sample=5, before=2, after=1)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


# contexts ----------------------------------------------------------------------------------------


def test_top_contexts_are_those_of_brute_force(model, monkeypatch):
    units = C.site_units(model, "mlp_act.1", [4, 9, 60])
    found = C.read_contexts(units, ROWS, PLAN)
    best: dict[int, dict[str, tuple]] = {0: {}, 1: {}, 2: {}}
    for ids, document in ROWS:
        acts = model.capture([ids], "mlp_act.1").flat("mlp_act.1")
        for column, unit in enumerate((4, 9, 60)):
            for position in range(1, len(ids)):
                value = float(acts[position, unit])
                if value > best[column].get(document, (-1e9,))[0]:
                    window = tuple(ids[max(0, position - 2) : position + 2])
                    best[column][document] = (value, window, min(2, position), position)
    for column, unit in enumerate(found.units):
        want = sorted(((*one, document) for document, one in best[column].items()), key=lambda one: -one[0])[:3]
        got = [(c.value, c.tokens, c.at, c.position, c.document) for c in unit.top]
        assert [one[1:] for one in got] == [one[1:] for one in want]
        assert np.allclose([one[0] for one in got], [one[0] for one in want], atol=1e-5)
        assert unit.largest == got[0][0]
    assert (found.n_tokens, found.n_documents) == (sum(len(ids) for ids, _ in ROWS), 12)
    monkeypatch.setattr(C, "BATCH", 10)
    again = C.read_contexts(units, iter(ROWS), PLAN)
    for a, b in zip(found.units, again.units):
        assert [(c.tokens, c.position) for c in a.sample] == [(c.tokens, c.position) for c in b.sample]
        assert len({c.document for c in a.sample}) == 5
        assert [c.value for c in a.sample] == sorted((c.value for c in a.sample), reverse=True)


def test_the_negative_side_of_a_neuron(model):
    low = C.read_contexts(C.site_units(model, "mlp_act.1", [4], sign=-1), ROWS, PLAN).units[0]
    every = [float(v) for ids, _ in ROWS for v in model.capture([ids], "mlp_act.1").flat("mlp_act.1")[1:, 4]]
    assert low.largest == pytest.approx(-min(every), abs=1e-5)


def test_latents_are_read_where_the_dictionary_is_for(model):
    made = dictionary(model, "resid_post.0", skip_first=2)
    size = [float(x.norm()) for ids, _ in ROWS for x in model.capture([ids], "resid_post.0").flat("resid_post.0")]
    object.__setattr__(made.spec, "norm_limit", float(np.quantile(size, 0.8)))
    found = C.read_contexts(C.latent_units(model, made, [1, 5]), ROWS, C.ContextPlan(top=2, sample=0))
    for latent, unit in zip((1, 5), found.units):
        values = []
        for ids, _ in ROWS:
            acts = model.capture([ids], "resid_post.0").flat("resid_post.0").float()
            codes = made.encode(acts)[:, latent] * made.typical(acts, torch.arange(len(ids)))
            values += codes.tolist()
        assert unit.name == f"latent.{made.name}.{latent}"
        assert unit.fired == sum(v > 0 for v in values) > 0 and unit.largest == pytest.approx(max(values), abs=1e-5)
    assert made.spec.inputs == ("resid_post.0",)
    with pytest.raises(UsageError, match="no input site"):
        C.latent_units(model, make_dictionary(Spec("relu", 4, 32, 32)))


class Fake:
    """One unit that fires with its position's number."""

    names = ("fake",)

    def firings(self, rows):
        for ids in rows:
            yield C.Firings(np.zeros(len(ids), int), np.arange(len(ids)), np.arange(1.0, len(ids) + 1))


def test_samples_are_uniform_over_the_quantiles():
    rows = [([7] * 50, number) for number in range(2000)]
    unit = C.read_contexts(Fake(), rows, C.ContextPlan(top=1, sample=1000)).units[0]
    counts = np.bincount([(c.position // 10) for c in unit.sample], minlength=5)
    assert len(unit.sample) == 1000 and (abs(counts - 200) < 60).all()
    bands = unit.bands(4)
    assert list(map(len, bands)) == [250] * 4 and min(c.value for c in bands[0]) >= max(c.value for c in bands[1])
    assert unit.top[0].value == 50 and unit.fired == 100_000
    drawn = C.random_contexts(rows, 500, first=1)
    counts = np.bincount([c.position // 10 for c in drawn], minlength=5)
    assert len(drawn) == 500 and (abs(counts - 100) < 40).all() and min(c.position for c in drawn) >= 1


def test_wrong_units_are_named(model):
    with pytest.raises(SiteError, match="whole sites"):
        C.site_units(model, "mlp_act.1.3")
    with pytest.raises(UsageError, match="0 to 63"):
        C.site_units(model, "mlp_act.1", [64])
    with pytest.raises(UsageError, match="rows"):
        C.read_contexts(Fake(), [], PLAN)


# polysemanticity ---------------------------------------------------------------------------------


def planted(concepts: int, n: int, seed: int, d: int = 48) -> np.ndarray:
    """Contexts about some concepts: a direction each, of the size of the noise; 0: nothing in common."""
    rng = np.random.default_rng([seed, 50 + concepts])
    centres = np.linalg.qr(rng.standard_normal((d, d)))[0][:, : max(1, concepts)].T * (concepts > 0)
    rows = centres[np.arange(n) % max(1, concepts)] + rng.standard_normal((n, d)) / np.sqrt(d)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pool():
    return Pool(planted(0, 300, 99), PolysemyPlan(resamples=20))


@pytest.mark.parametrize("concepts", [1, 2, 3])
def test_planted_units(pool, concepts):
    for seed in range(4):
        found = polysemy_of(planted(concepts, 42, seed), pool, "unit")
        assert found.concepts == concepts and found.low <= concepts <= found.high
        assert found.label == ("one concept" if concepts == 1 else "several concepts")
        assert found.p_coherence <= 0.05 and sum(one.n for one in found.found) >= 36
    if concepts > 1:  # a concept's contexts are those that were planted together
        assert all(len({row % concepts for row in one.rows}) == 1 for one in found.found)


def test_units_without_a_concept(pool):
    found = [polysemy_of(planted(0, 42, seed), pool) for seed in range(20)]
    assert sum(one.concepts > 0 for one in found) <= 3 and sum(one.p_coherence <= 0.05 for one in found) <= 4
    told = polysemy_of(planted(0, 42, 77), pool, tokens=["the"] * 30 + ["a"] * 12)
    assert (told.label, told.token, round(told.token_share or 0, 2)) == ("one token", "the", 0.71)


def test_a_little_in_common_is_no_concept(pool):
    """Significant and negligible: the same direction in all contexts, a tenth of the noise's variance."""
    rng = np.random.default_rng(4)
    towards = rng.standard_normal(48)
    rows = 0.3 * towards / np.linalg.norm(towards) + rng.standard_normal((60, 48)) / np.sqrt(48)
    found = polysemy_of(rows / np.linalg.norm(rows, axis=1, keepdims=True), pool)
    assert found.p_coherence <= 0.05 and 0 < found.coherence < 0.15 and found.concepts == 0


def test_sub_topics_of_one_concept_are_not_several(pool):
    rng = np.random.default_rng(5)
    axes = np.linalg.qr(rng.standard_normal((48, 48)))[0][:, :3].T
    rows = axes[0] + 0.8 * axes[1 + np.arange(40) % 2] + rng.standard_normal((40, 48)) / np.sqrt(48)
    found = polysemy_of(rows / np.linalg.norm(rows, axis=1, keepdims=True), pool)
    assert found.concepts == 1 and found.clusters >= 2


def test_too_little_to_say_anything(pool):
    with pytest.raises(TaskError, match="7 contexts; 8 are needed"):
        polysemy_of(planted(1, 7, 0), pool)
    with pytest.raises(TaskError, match="pool of 300"):
        polysemy_of(planted(1, 200, 0), pool)
    with pytest.raises(UsageError, match="alpha"):
        PolysemyPlan(alpha=0)


def units_of_topics() -> list[UnitTexts]:
    topics = list(TOPICS)
    return [UnitTexts("one", topic_texts(topics[:1], 30, 1)), UnitTexts("two", topic_texts([topics[3], topics[8]], 30, 2)),
            UnitTexts("three", topic_texts([topics[1], topics[6], topics[11]], 36, 3)), UnitTexts("none", mixed_texts(30, 4))]


@pytest.mark.whole
def test_meanings_of_texts():
    plan = PolysemyPlan(resamples=20, draws=49)
    found = {one.unit: one for one in polysemy(units_of_topics(), encoder_of("minilm"), mixed_texts(200, 9), plan)}
    assert {name: one.concepts for name, one in found.items()} == {"one": 1, "two": 2, "three": 3, "none": 0}
    assert found["two"].several > found["one"].several and found["two"].high == 2
    assert found["one"].found[0].words and found["one"].found[0].examples
    assert concepts_plot(list(found.values())).get_axes()


def test_wording_finds_less_but_nothing_that_is_not_there():
    plan = PolysemyPlan(resamples=0, draws=49)
    found = {one.unit: one.concepts for one in polysemy(units_of_topics(), encoder_of("tfidf"), mixed_texts(200, 9), plan)}
    assert found["none"] == 0 and found["one"] == 1 and found["two"] <= 2 and found["three"] <= 3


def test_an_encoder_is_never_exchanged_for_another(monkeypatch, tmp_path):
    from assay.model import encoders

    with pytest.raises(UsageError, match="minilm, tfidf"):
        encoder_of("bert")

    def unreachable(row, work):
        raise ModelError("cannot fetch")

    monkeypatch.setattr(encoders, "fetch_members", unreachable)
    monkeypatch.setattr(encoders, "cached", lambda name, origin, build: build(tmp_path, tmp_path))
    with pytest.raises(ModelError, match="cannot fetch"):
        encoder_of("minilm")


@pytest.mark.whole
def test_sentences_are_means_over_their_own_tokens():
    from assay.model.encoders import SentenceEncoder

    encoder = SentenceEncoder("minilm")
    texts = ["A kitten.", "Stock prices fell sharply in early trading today.", "x"]
    tokenizer, hf = encoder._parts
    for text, got in zip(texts, encoder(texts)):
        with torch.no_grad():
            mean = hf(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert torch.allclose(got, mean / mean.norm(), atol=1e-5)


# latents as subjects -----------------------------------------------------------------------------


def dictionary(model, site, name="tiny", skip_first=0, seed=0):
    width = model.capture([[3]], site).flat(site).shape[-1]
    made = make_dictionary(Spec("relu", 16, width, width, inputs=(site,), outputs=(site,), skip_first=skip_first), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(16, width, generator=generator))
        made.W_dec.copy_(made.W_enc)
    return made


@pytest.fixture
def closing():
    yield
    for name in list(opened._OPEN):
        opened.close_latents(name)


def judged(made, subject):
    store = MemoryStore()
    claim, _ = state_claim(store, made.world, made.source, subject, statement=Statement("represents"),
                           settings=Settings(tune=96, confirm=240, ood=168, draws=30))  # fmt: skip
    return store, claim, test_claim(store, claim.id, made.world, source=made.source)


def test_a_polysemantic_neuron_fails_where_its_latent_passes(closing):
    made = polysemantic_world(3)
    latents = opened.open_latents(made.dictionary)
    store, claim, neuron = judged(made, "mlp_act.0.0")
    assert neuron.verdict == "refuted"
    shown = [hit for hit in store.counterexamples(claim.id) if hit.method == "polysemy"]
    assert shown and all(hit.status == "verified" for hit in shown)
    groups = store.evidence(claim.id).search["methods"]["polysemy"]["notes"]["groups"]
    assert sorted(group["share"] > 0.5 for group in groups) == [False, True]
    store, claim, latent = judged(made, f"{latents}.0")
    assert (latent.verdict, latent.reasons) == ("supported", ())
    assert not [hit for hit in store.counterexamples(claim.id) if hit.method == "polysemy"]
    assert claim.subject["dictionary"]["digest"] == made.dictionary.digest
    assert judged(made, f"{latents}.1")[2].verdict == "refuted"  # the other half of the neuron


def test_a_claim_is_about_the_dictionary_that_was_open(closing):
    made = polysemantic_world(3)
    latents = opened.open_latents(made.dictionary)
    store = MemoryStore()
    claim, _ = state_claim(store, made.world, made.source, f"{latents}.0", statement=Statement("represents"),
                           settings=Settings(tune=48, confirm=96, ood=96, draws=3))  # fmt: skip
    other = polysemantic_world(4).dictionary
    other.given_name = made.dictionary.name
    with pytest.raises(UsageError, match="not taken"):
        opened.open_latents(other)
    opened.close_latents(made.dictionary.name)
    with pytest.raises(SiteError, match="none is open"):
        test_claim(store, claim.id, made.world, source=made.source)
    opened.open_latents(other)
    with pytest.raises(ReproduceError, match="the open one has"):
        test_claim(store, claim.id, made.world, source=made.source)


def test_latents_of_a_language_model_are_codes_of_what_it_reads(glass, closing):
    from assay.evidence.hunting.gradients import embedding_gradients
    from assay.evidence.hunting.reading import Reader
    from assay.evidence.scored import ScoreSetup, projection

    made = dictionary(glass, "resid_post.1", name="three.7", skip_first=1)
    site = opened.open_latents(made)
    host = as_host(glass)
    data = host.load([Example("the cat sat on a mat", 1, "a", position=4), Example("one two three", 0, "b"),
                      Example("the cat", 0, "b", position=0)])  # fmt: skip
    got = host.read(site, data)
    for row, (ids, at) in enumerate(zip(data.tokens, data.at)):
        acts = glass.capture([ids], "resid_post.1").flat("resid_post.1")
        want = made.encode(acts)[at] * (at > 0)
        assert torch.allclose(got[row], want, atol=1e-4)
    assert data.at[2] == 0 and not got[2].any() and got[:2].any()
    claimed = torch.zeros(16)
    claimed[int(got[1].argmax())] = 1.0
    reader = Reader(glass, ScoreSetup(site, projection(claimed), 0.0, 0.0, lambda texts: [0.0] * len(texts)))
    assert reader.scores(data.tokens)[1][data.at[1]] == pytest.approx(float(got[1] @ claimed), rel=1e-4)
    (slope,) = embedding_gradients(reader, data.tokens[1:2], data.at[1:2])
    assert slope.shape == (len(data.tokens[1]), glass.dims.d_model) and float(slope.abs().sum()) > 0


@pytest.mark.parametrize("norm", ["layer", "root"])
def test_latents_of_normalised_inputs_are_searched_and_added_by_what_they_are(glass, closing, norm):
    """Pre-activations are those that are encoded, with their slope; what a latent adds counts the size of each text's token."""
    from assay.evidence.features import Feature
    from assay.evidence.output_side import OPTION, output_side

    width = glass.dims.d_model
    made = make_dictionary(Spec("topk", 16, width, width, k=4, inputs=("resid_post.1",), outputs=("resid_post.1",),
                                skip_first=0, options={"input_norm": norm}), "normed")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    site, host = opened.open_latents(made), as_host(glass)
    data = host.load([Example(f"the {word} sat on a {place}", word == "cat", word) for word in ("cat", "dog", "man")
                      for place in ("mat", "hill")])  # fmt: skip
    x = host.read("resid_post.1", data).requires_grad_(True)
    got, codes = opened.before_selection(site, lambda _: x), made.encode(x.detach())
    assert bool((codes > 0).any()) and torch.allclose(got[codes > 0], codes[codes > 0], rtol=1e-4)
    (slope,) = torch.autograd.grad(got[0, 0], x)
    moved = [opened.before_selection(site, lambda _, sign=sign: x.detach() + sign * 1e-2 * slope)[0, 0].detach()
             for sign in (1, -1)]  # fmt: skip
    assert float(moved[0] - moved[1]) / 2e-2 == pytest.approx(float(slope.square().sum()), rel=1e-2)
    latent = int((codes[:2] > 0).sum(0).argmax())
    made_by = [made.reconstruct(x.detach(), codes=codes_of(part)) for part in (codes, codes * (torch.arange(16) != latent))]
    along = (made_by[0] - made_by[1]) @ made.directions()[latent] / made.directions()[latent].square().sum()
    side = output_side(host, {OPTION: ["cat"]}, Feature(site, latent), data, data.labels, 6, 0)
    assert torch.allclose(side.vector, (along[:2].mean() - along[2:].mean()) * made.directions()[latent], rtol=1e-3, atol=1e-3)


# the command -------------------------------------------------------------------------------------


@pytest.mark.whole
def test_the_command(tmp_path, monkeypatch, glass):
    from assay.cli.main import cli
    from assay.features.kept import save

    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("assay.cli.common.Common.load", lambda *_: glass)
    (tmp_path / "texts.txt").write_text("\n".join(mixed_texts(80, 3)))
    kept = save(dictionary(glass, "mlp_act.1", name="kept"), tmp_path / "kept")
    command = ["superposition", "glass-en", str(tmp_path / "texts.txt"), "--documents", "line", "--site", "mlp_act.1",
               "--unit", "3", "--unit", "5", "--encoder", "tfidf", "--top", "20", "--dictionary", str(kept),
               "--atlas", str(tmp_path / "atlas")]  # fmt: skip
    done = CliRunner().invoke(cli, [*command, "--json", str(tmp_path / "out.json")], catch_exceptions=False)
    assert done.exit_code == 0 and "mlp_act.1.3" in done.output and "random directions" in done.output
    record = json.loads((tmp_path / "out.json").read_text())
    names = [one["unit"] for one in (*record["units"], *record["latents"])]
    assert set(names) | set(record["too_few"]) == {"mlp_act.1.3", "mlp_act.1.5", "latent.kept.3", "latent.kept.5"}
    assert record["encoder"]["name"] == "tfidf" and record["layers"][0]["layer"] == 1 and record["passport"]["model"]
    assert record["dictionary"]["neurons"]["n"] == glass.dims.d_mlp
    assert all((tmp_path / file).is_file() for file in record["figures"])
    assert "--top 20: the corpus gives" not in done.output and "other weights" not in done.output
    strange = dictionary(glass, "mlp_act.1", name="strange")
    strange.provenance = {"stream": {"model": {"model": "another", "digest": "0" * 64, "dtype": "float32"}}}
    save(strange, tmp_path / "kept")
    done = CliRunner().invoke(cli, [*command, "--top", "200", "--json", str(tmp_path / "other.json")], catch_exceptions=False)
    assert "--top 200: the corpus gives" in done.output and "strange was trained on other weights" in done.output
    assert not {*record["figures"]} & {*json.loads((tmp_path / "other.json").read_text())["figures"]}
    with pytest.raises(TaskError, match="--per row"):
        few = [*command[:2], str(tmp_path / "few.txt"), *command[3:]]
        (tmp_path / "few.txt").write_text("one two three four\nfive six seven")
        CliRunner().invoke(cli, few, catch_exceptions=False)


def test_the_command_reads_other_columns_and_no_further_than_the_model(tmp_path, monkeypatch, glass):
    from assay.cli.main import cli

    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("assay.cli.common.Common.load", lambda *_: glass)
    monkeypatch.setattr("assay.cli.dictionary_eval.readable", lambda _: 64)
    monkeypatch.setattr("assay.cli.superposition.readable", lambda _: 64, raising=False)
    read = []
    monkeypatch.setattr("assay.data.corpus_rows.packed", lambda model, corpus, context, tokens: read.append(
        ([document.text for document in corpus.documents()], context)) or packed(model, corpus, context, tokens))  # fmt: skip
    texts = mixed_texts(60, 3)
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in texts))
    command = ["superposition", "glass-en", str(tmp_path / "texts.jsonl"), "--site", "mlp_act.1", "--unit", "3", "--encoder",
               "tfidf", "--top", "20", "--layers", "0", "--atlas", str(tmp_path / "atlas"), "--quiet"]  # fmt: skip
    done = CliRunner().invoke(cli, [*command, "--text-key", "body"], catch_exceptions=False)
    assert done.exit_code == 0 and read == [(texts, 64)], done.output
    with pytest.raises(CorpusError, match="--text-key"):
        CliRunner().invoke(cli, command, catch_exceptions=False)


@pytest.mark.parametrize(("words", "said"), [
    (("--site", "mlp_act.*"), "site: got 'mlp_act.*'; allowed: one site"), (("--layers", "foo"), "--layers: got 'foo'"),
    (("--layers", "9"), "--layers: got '9'; allowed: layers of 0 to "), (("--out", "texts.txt"), "--out: got"),
    (("--dictionary", "nosuch"), "a dictionary of this atlas: mine"), (("--dictionary", "mine"), "latents of mine"),
    (("--dictionary", "wide"), "wide, for 7 features"),
])  # fmt: skip
def test_what_cannot_be_looked_at_is_refused_before_any_text_is_read(tmp_path, monkeypatch, glass, words, said):
    from assay.cli.main import cli
    from assay.features.kept import save

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("assay.cli.common.Common.load", lambda *_: glass)
    (tmp_path / "texts.txt").write_text("\n".join(mixed_texts(80, 3)))
    save(dictionary(glass, "mlp_act.1", name="mine"), tmp_path / "atlas" / "dictionaries" / "mine")
    spec = Spec("relu", 12, 7, 7, inputs=("mlp_act.1",), outputs=("mlp_act.1",))
    save(make_dictionary(spec, "wide"), tmp_path / "atlas" / "dictionaries" / "wide")
    monkeypatch.setattr("assay.data.corpus_rows.packed", lambda *_, **__: pytest.fail("texts were read"))
    command = ["superposition", "glass-en", "texts.txt", "--site", "mlp_act.1", "--unit", "100", "--encoder", "tfidf", *words]
    with pytest.raises(UsageError) as error:
        CliRunner().invoke(cli, command, catch_exceptions=False)
    assert said in str(error.value)


@pytest.mark.parametrize("words", [("--top", "201"), ("--before", "1025"), ("--after", "1000000000000")])
def test_contexts_larger_than_there_can_be_are_refused(tmp_path, words):
    from assay.cli.main import cli

    done = CliRunner().invoke(cli, ["superposition", "glass-en", "texts.txt", *words])
    assert done.exit_code == 2 and "is not in the range" in done.output


def test_records_are_plain(pool):
    from assay.records import plain

    found = polysemy_of(planted(2, 20, 1), pool, "u")
    assert isinstance(found, Polysemy) and json.loads(json.dumps(plain(found)))["found"][0]["rows"]


def test_silhouettes_are_those_of_scikit_learn():
    from sklearn.metrics import silhouette_score

    from assay.features.polysemy import silhouette

    rows = planted(3, 25, 3)
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, 0.0)
    for labels in (np.arange(25) % 3, np.array([7] + [0] * 12 + [1] * 12)):
        assert silhouette(distance, labels) == pytest.approx(silhouette_score(distance, labels, metric="precomputed"), abs=1e-9)
