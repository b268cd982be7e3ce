"""Claims on a corpus that was read once: items, units, small p-values, and many claims together as one by one."""

import itertools

import numpy as np
import pytest
import torch
from scipy import sparse

from assay import statistics as s
from assay.errors import EvidenceError, TaskError
from assay.evidence import bulk
from assay.evidence.claims import audit
from assay.evidence.corpus_windows import Codes, CorpusHost, CorpusSource, CorpusTexts, PartTexts, apart, near_misses
from assay.evidence.memory import MemoryStore
from assay.evidence.rules import rule_of, said
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.sparse_units import DenseUnits, SparseUnits
from assay.explain.rules import fires
from assay.mapping.claims import Screened, supportable

pytestmark = pytest.mark.whole

WORDS = [f" w{number}" for number in range(60)]
SETTINGS = Settings(tune=480, confirm=640, ood=640, draws=19, options={"whole_corpus": True},
                    search={"rival units": 0, "polysemy": 0}, resamples=4000)  # fmt: skip
PARTS = {"tune": 30, "confirm": 40, "ood": 40}


def part_of(name, documents, rng, length=30):
    ids = rng.integers(8, len(WORDS), (documents, length))
    ids[:, 1:][rng.random((documents, length - 1)) < 0.3] = -1
    ids[ids < 0] = rng.integers(0, 8, int((ids < 0).sum()))
    return PartTexts(tuple(f"{name}-{number}" for number in range(documents)),
                     tuple(tuple(WORDS[place] for place in row) for row in ids), ids.reshape(-1))  # fmt: skip


def rule(*words):
    return {"type": "prefix", "any": [[{"is": "token", "of": [f" w{word}" for word in words]}]]}


def codes_of(part, rng, noise=0.0, width=40):
    """Unit i < 8 is on at word i; unit 8 at word 0 and, as often, anywhere; the others anywhere."""
    n = len(part.tokens)
    dense = np.zeros((n, width), np.float32)
    for word in range(8):
        dense[part.tokens == word, word] = rng.random(int((part.tokens == word).sum())) + 1
    dense[:, 8] = dense[:, 0] * 1.5
    stray = rng.permutation(n)[: int((part.tokens == 0).sum() * 2)]
    dense[stray, 8] = 2.0
    dense[:, 9:] = (rng.random((n, width - 9)) < 0.04) * rng.random((n, width - 9))
    flip = rng.random(n) < noise
    dense[flip, :8] = 0
    return Codes(sparse.csr_array(dense), np.ones(n, bool))


def world(seed=0, noise=0.02, sealed=True):
    rng = np.random.default_rng(seed)
    parts = {name: part_of(name, n, rng) for name, n in PARTS.items()}
    texts = CorpusTexts("words", parts, lambda record, part: np.concatenate(fires(record, parts[part].pieces)))
    codes = {name: codes_of(part, rng, noise) for name, part in parts.items() if sealed or name == "tune"}
    twins = {name: codes_of(part, rng, 1.0) for name, part in parts.items()}
    identity = {"name": "words", "source": "planted", "digest": f"{seed:064d}", "passport": {"model": "words"}}
    return texts, CorpusHost(texts, codes, identity, lambda scheme, part: twins[part],
                             {f"mlp_act.0.{unit}": unit for unit in range(40)})  # fmt: skip


def wanted(texts, unit, *words, near=(20, 21, 22)):
    record = rule(*words)
    subject = {"feature": f"mlp_act.0.{unit}", "rule": record}
    return bulk.Wanted(subject, CorpusSource(texts, record, near), Statement("explains"))


def all_of(texts, host, claims, settings=SETTINGS):
    store = MemoryStore()
    ids = bulk.state_many(store, host, claims, settings)
    sources = {name: each.source for name, each in zip(ids, claims, strict=True)}
    bulk.pay_many(store, ids, sources)
    bulk.test_many(store, host, ids, sources)
    return store, ids


@pytest.fixture(scope="module")
def planted():
    return world()


@pytest.fixture(scope="module")
def many(planted):
    texts, host = planted
    claims = [wanted(texts, unit, unit) for unit in range(1, 6)]
    claims += [wanted(texts, 6, 7), wanted(texts, 8, 0), wanted(texts, 12, 7)]
    return claims, *all_of(texts, host, claims)


# units -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_sparse_units_are_dense_units(seed, dtype):
    rng = np.random.default_rng(seed)
    values = ((rng.random((50, 30)) < rng.random(30)) * rng.integers(1, 6, (50, 30))).astype(np.float32)
    values[:, 3], values[:, 4] = 0, 2.0
    values *= np.float32(rng.random()) * 10.0 ** float(rng.integers(-30, 30))
    member = rng.random(50) < 0.3
    dense, thin = DenseUnits(torch.tensor(values)), SparseUnits(sparse.csr_array(values.astype(dtype)))
    np.testing.assert_allclose(thin.ranks_of(member), dense.ranks_of(member))
    np.testing.assert_array_equal(thin.alive, dense.alive)
    for density in (0.01, 0.2, 0.5, 0.97):
        for one, other in zip(thin.cut(density), dense.cut(density), strict=True):
            np.testing.assert_allclose(one, other)
    for unit, at in itertools.product(range(30), (-1, 0, 2.5)):
        assert thin.share_above(unit, at) == pytest.approx(dense.share_above(unit, at))


# small p-values ----------------------------------------------------------------------------------


def brute(row, bar, draws, seed):
    """Both tests, resample by resample."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (draws, len(row)))
    flip = (1 + ((signs * (row - bar)).sum(1) >= (row - bar).sum() - 1e-9).sum()) / (1 + draws)
    error, hits = row.std(ddof=1) / np.sqrt(len(row)), 0
    for _ in range(draws):
        again = rng.choice(row, len(row))
        spread = again.std(ddof=1) / np.sqrt(len(row))
        hits += (again.mean() - row.mean()) / max(spread, s.FLOOR * error) >= (row.mean() - bar) / error
    return max(flip, (1 + hits) / (1 + draws))


@pytest.mark.parametrize(("k", "rate", "bar"), [(30, 0.8, 0.6), (60, 0.72, 0.6), (15, 0.85, 0.6), (40, 0.9, 0.75)])
def test_small_p_is_what_drawing_gives(k, rate, bar):
    row = (np.random.default_rng(k).random((k, 2)) < rate).mean(1)
    draws = 6000
    got, want = s.small_p(row, bar, draws), brute(row, bar, draws, 5)
    assert abs(got - want) < 5 * np.sqrt(max(want, 1 / draws) / draws) + 1e-3
    assert got >= 1 / (1 + draws)


def test_small_p_reaches_its_floor_without_a_draw_and_not_below():
    rng = np.random.default_rng(0)
    row = np.where(rng.random(120) < 0.97, 1.0, 0.5)
    assert s.small_p(row, 0.6, 100_000) == 1 / 100_001
    assert s.p_values(row, 0.6)[0] == 1 / 2000
    assert s.small_p(np.full(30, 0.9), 0.6, 10_000) == 1 / 10_001
    assert s.small_p(np.full(30, 0.5), 0.6, 10_000) == 1.0


def test_more_draws_change_nothing_that_is_not_small():
    values, names = (np.random.default_rng(3).random(80) < 0.68).astype(float).tolist(), [f"t{n // 2}" for n in range(80)]
    usual, fine = s.summarise(values, names, 0.6), s.summarise(values, names, 0.6, draws=20_000)
    assert usual == fine
    assert usual.p_above > s.SMALL


def test_small_p_is_not_too_small_where_nothing_is_there():
    """Nulls at the bar: p below .01 in about one of a hundred, with the fine draws as with the usual ones."""
    rng = np.random.default_rng(1)
    p = np.array([s.small_p((rng.random((40, 2)) < 0.7).mean(1), 0.7, 4000, seed) for seed in range(600)])
    assert (p <= 0.01).mean() <= 0.025
    assert (p <= 0.05).mean() <= 0.09


def test_draws_are_enough_for_the_family():
    assert bulk.draws_for(1, 0.05) == s.DRAWS
    draws = bulk.draws_for(1500, 0.05)
    assert s.holm([1 / (1 + draws)] * 1500)[0] <= 0.05 / 1.9


# items -------------------------------------------------------------------------------------------


def test_items_are_labelled_as_the_text_says(planted):
    texts, _ = planted
    record = rule(3)
    items = CorpusSource(texts, record, (20,)).items("confirm", 640, 0)
    fresh = rule_of(record)(items)
    assert [item.label for item in items] == fresh == said(record, items)
    assert 20 < sum(fresh) < len(items) / 2
    assert {item.template for item in items} == set(texts.parts["confirm"].names)
    fewer = CorpusSource(texts, record, (20,)).items("confirm", 160, 0)
    assert len({item.template for item in fewer}) == 10 and {item.text for item in fewer} <= {item.text for item in items}
    assert max(sum(item.label for item in items if item.template == name) for name in texts.parts["confirm"].names) == 2
    assert any(item.near_miss for item in items) and not any(item.near_miss and item.label for item in items)
    assert said(rule(4), items) == rule_of(rule(4))(items) != fresh


def test_items_need_no_activation_and_sealed_parts_give_none():
    open_texts, host = world(sealed=False)
    full_texts, full = world()
    source, same = CorpusSource(open_texts, rule(1)), CorpusSource(full_texts, rule(1))
    assert source.digest("confirm", 640, 0) == same.digest("confirm", 640, 0)
    with pytest.raises(EvidenceError, match="confirm"):
        host.load(source.items("confirm", 640, 0))
    assert len(full.load(same.items("confirm", 640, 0))) == len(same.items("confirm", 640, 0)) > 80


def test_codes_are_read_at_the_item(planted):
    texts, host = planted
    data = host.load(CorpusSource(texts, rule(2)).items("ood", 90, 0))
    acts = host.read("mlp_act.0", data)
    for row, item in enumerate(data.examples):
        _, token = item.place
        np.testing.assert_array_equal(acts[row].numpy(), host.codes["ood"].values[[token]].toarray()[0])
        assert item.text.endswith(WORDS[texts.parts["ood"].tokens[token]])


def test_a_text_of_another_corpus_is_dropped(planted):
    texts, host = planted
    other, _ = world(seed=9)
    with pytest.raises(TaskError, match="none of"):
        host.load(CorpusSource(other, rule(2)).items("ood", 30, 0))


def test_near_misses_are_beside_members_or_of_the_given_tokens():
    part = PartTexts(("a",), ((" x", " y", " z", " y", " q"),), np.array([1, 2, 3, 2, 4]))
    on = np.array([False, True, False, False, False])
    assert near_misses(part, on, np.ones(5, bool), (4,)).tolist() == [True, False, True, False, True]


def test_documents_that_share_eight_words_with_an_earlier_part_are_left_out():
    shared = tuple(f" s{n}" for n in range(9))
    parts = {"tune": PartTexts(("a", "b"), (shared, (" u",) * 9), np.zeros(18, int)),
             "confirm": PartTexts(("c", "d"), ((" v", *shared), tuple(f" t{n}" for n in range(9))),
                                  np.zeros(19, int))}  # fmt: skip
    assert apart(parts) == {"tune": {"a", "b"}, "confirm": {"d"}}
    texts = CorpusTexts("x", parts, lambda record, part: np.zeros(len(parts[part].tokens), bool))
    assert CorpusSource(texts, rule(1)).leaks("tune", "confirm") == {}


# many claims -------------------------------------------------------------------------------------


def test_true_rules_are_supported_and_wrong_ones_are_not(many):
    _, store, ids = many
    verdicts = [store.verdict(name).verdict for name in ids]
    assert verdicts[:5] == ["supported"] * 5
    assert "supported" not in verdicts[5:]
    for name in (ids[5], ids[7]):
        failed = {gate["name"] for gate in store.verdict(name).gates if gate["required"] and not gate["passed"]}
        assert {"detection", "near_detection", "corpus.precision"} <= failed


def test_a_unit_that_is_on_elsewhere_fails_on_the_whole_corpus_only(many):
    """Unit 8 follows word 0 and is on at twice as many other tokens, few of which are drawn as items."""
    _, store, ids = many
    gates = {gate["name"]: gate for gate in store.verdict(ids[6]).gates}
    assert gates["sensitivity"]["passed"] and gates["detection"]["passed"]
    assert gates["corpus.precision"]["estimate"] < 0.5
    found = store.evidence(ids[6]).search["methods"]["corpus codes"]
    assert found["complete"] and found["hits"] > found["tried"] / 2


def test_the_search_tries_every_token(many, planted):
    texts, host = planted
    _, store, ids = many
    notes = store.evidence(ids[0]).search["methods"]["corpus codes"]["notes"]
    on = store.plan(ids[0]).settings["controls"]["on"]
    free = texts.free["confirm"]
    acts = host.codes["confirm"].values.toarray()[:, 1] > on
    rule_on = texts.parts["confirm"].tokens == 1
    assert notes["fires"] == int((acts & free).sum()) and notes["rule"] == int((rule_on & free).sum())
    assert notes["both"] == int((acts & rule_on & free).sum())


def test_together_is_one_by_one(many, planted):
    texts, host = planted
    claims, store, ids = many
    single, names = MemoryStore(), []
    for each in claims:
        claim, _ = state_claim(single, host, each.source, each.subject, statement=each.statement, settings=SETTINGS)
        names.append(claim.id)
    for name, each in zip(names, claims, strict=True):
        test_claim(single, name, host, source=each.source)
    for name, other in zip(ids, names, strict=True):
        one, two = store.verdict(name), single.verdict(other)
        assert (one.verdict, one.reasons, one.qualifiers) == (two.verdict, two.reasons, two.qualifiers)
        assert one.decision["p"] == two.decision["p"] and one.decision["p_adjusted"] == two.decision["p_adjusted"]
        assert [gate["p"] for gate in one.gates] == [gate["p"] for gate in two.gates]
        assert len(one.decision["family"]) == len(claims) - 1


def test_records_hold(many):
    _, store, ids = many
    assert [problem for name in ids for problem in audit(store, name)] == []


def test_every_claim_is_paid_for_before_any_is_read(many):
    _, store, _ = many
    kinds = [entry["kind"] for entry in store.entries()]
    last_lock, first_ticket = max(n for n, k in enumerate(kinds) if k == "lock"), kinds.index("ticket")
    last_data, first_evidence = max(n for n, k in enumerate(kinds) if k == "data"), kinds.index("evidence")
    assert last_lock < first_ticket and last_data < first_evidence


def test_what_is_done_is_not_done_again(many, planted):
    texts, host = planted
    claims, store, ids = many
    before = store.entry_count()
    assert bulk.state_many(store, host, claims, SETTINGS) == ids
    sources = {name: each.source for name, each in zip(ids, claims, strict=True)}
    bulk.pay_many(store, ids, sources)
    bulk.test_many(store, host, ids, sources)
    assert store.entry_count() == before


def test_a_killed_test_uses_its_tickets(planted):
    texts, host = planted
    claims = [wanted(texts, unit, unit) for unit in range(3)]
    store = MemoryStore()
    ids = bulk.state_many(store, host, claims, SETTINGS)
    sources = {name: each.source for name, each in zip(ids, claims, strict=True)}
    bulk.pay_many(store, ids, sources)
    bulk.pay_many(store, ids, sources)
    bulk.test_many(store, host, ids[:1], {ids[0]: sources[ids[0]]})
    waiting = store.verdict(ids[0])
    assert waiting.decision["family"] == dict.fromkeys(ids[1:], 1.0)  # read, or about to be: they count with p = 1
    bulk.test_many(store, host, ids, sources)
    assert store.tally()["tickets"] == 3
    assert all(store.verdict(name).decision["reads"] == 1 for name in ids)
    assert set(store.verdict(ids[0]).decision["family"].values()) != {1.0}


def test_precision_is_over_all_documents_of_a_part():
    """Members in 3 documents of 10, firing in all, and items drawn from those with members first: the rule names 0.3."""
    rng, parts, codes = np.random.default_rng(0), {}, {}
    for name, n in {"tune": 30, "confirm": 200, "ood": 200}.items():
        made = part_of(name, n, rng)
        ids, step, document = made.tokens.copy(), np.arange(len(made.tokens)) % 30, np.repeat(np.arange(n), 30)
        ids[ids == 0] = 9
        ids[(step == 7) & (document < 0.3 * n)] = 0
        rows = tuple(tuple(WORDS[word] for word in row) for row in ids.reshape(n, 30))
        parts[name] = PartTexts(made.documents, rows, ids)
        dense = np.zeros((len(ids), 40), np.float32)
        dense[(ids == 0) | ((step == 15) & (document >= 0.3 * n)), 0] = 1.5
        dense[:, 1:] = (rng.random((len(ids), 39)) < 0.04) * rng.random((len(ids), 39))
        codes[name] = Codes(sparse.csr_array(dense), np.ones(len(ids), bool))
    texts = CorpusTexts("words", parts, lambda record, part: np.concatenate(fires(record, parts[part].pieces)))
    identity = {"name": "w", "source": "p", "digest": "0" * 64, "passport": {"model": "w"}}
    host = CorpusHost(texts, codes, identity, lambda scheme, part: codes[part], {f"mlp_act.0.{u}": u for u in range(40)})
    store, ids = all_of(texts, host, [wanted(texts, 0, 0)])
    gates = {gate.name: gate for gate in store.evidence(ids[0]).gates if gate.split == "confirm"}
    assert gates["corpus.precision"].estimate == pytest.approx(0.3, abs=0.03) and gates["corpus.precision"].sample["K"] == 200
    assert gates["corpus.recall"].estimate == 1


def test_claims_with_too_few_documents_for_the_correction_are_not_stated():
    def at(documents):
        return Screened(f"u{documents}", 0.9, 0.9, (documents, 40), "")

    kept = supportable([at(8), *[at(9)] * 9, at(30)], 0.05)
    # eleven claims need 2^-K <= .05 / 11, K >= 8: all can; with a hundred more, K >= 12
    assert not any(each.why_not for each in kept)
    many = supportable([at(8), at(11), at(12), *[at(30)] * 100], 0.05)
    assert [bool(each.why_not) for each in many[:3]] == [True, True, False] and not any(each.why_not for each in many[3:])
