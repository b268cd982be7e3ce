"""Probing from texts to a report: what is read, what is chosen by what, what is refused; on a model where the truth is written.

In `probe_world` a property of a word early in the text is written at the last token by layer 0. So it can be read at the last
token from resid_post.0 on, in words that were never met, and neither at `embed`, nor from words, nor in an untrained twin.
"""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from assay.data.prepare_concept import prepare_concept
from assay.errors import TaskError, UsageError
from assay.probe import measure as measure_module
from assay.probe import read as reading
from assay.probe.baselines import groups_of, surface_features
from assay.probe.control import control_labels
from assay.probe.measure import OPTIMISM, difference_of, optimism_flags
from assay.probe.read import position_names, read_all
from assay.probe.run import ProbePlan, choose, measure, probe
from assay.probe.scores import Estimate
from assay.records import Example
from assay.testing.probe_worlds import part, probe_world

pytestmark = pytest.mark.whole

PLAN = ProbePlan(positions=("last",), encoder="none", n=80)
TEXTS = [Example("the cat sat on a mat", 1, "a", position=4), Example("one two three", 0, "b"),
         Example("we saw the old house by the sea", 1, "c", position=11), Example("no", 0, "d")]  # fmt: skip


@pytest.fixture(scope="module")
def world():
    return probe_world("used")


@pytest.fixture(scope="module")
def splits(world):
    return {split: list(items) for split, items in world.texts["mood"].splits.items()}


@pytest.fixture(scope="module")
def report(world, splits):
    return probe(world.model, splits, PLAN)


def test_near_misses_are_scored_as_if_they_were_the_only_negatives(world, splits):
    marked = {split: [replace(one, near_miss=not one.label and n % 3 == 0) for n, one in enumerate(items)]
              for split, items in splits.items()}  # fmt: skip
    chosen = choose(world.model, {split: marked[split] for split in ("discover", "tune")}, PLAN)
    whole, alone = (measure(world.model, chosen, {"confirm": confirm}) for confirm in (
        marked["confirm"], [one for one in marked["confirm"] if one.label or one.near_miss]))  # fmt: skip
    for one, other in zip((*whole.scores, *whole.baselines), (*alone.scores, *alone.baselines), strict=True):
        assert one.near == other.near and (one.near is None or one.near == other.confirm)
    assert whole.baseline("bag_of_words").near is not None and whole.baseline("shuffled").near is None
    assert whole.chosen.near.n < whole.chosen.confirm.n == whole.rows["confirm"]["rows"]
    assert set(whole.rows) == set(splits) - {"ood"}


def test_without_near_misses_there_is_no_such_number(report):
    assert all(score.near is None for score in (*report.scores, *report.baselines))
    assert report.json()["scores"][0]["near"] is None


# reading -----------------------------------------------------------------------------------------


def raw(model, ids, module):
    """What a module gives for one text, by a plain hook: (token, d)."""
    kept = []
    hook = module.register_forward_hook(lambda _, args, out: kept.append((out[0] if isinstance(out, tuple) else out).detach()))
    try:
        with torch.no_grad():
            model.hf(input_ids=torch.tensor([ids]))
    finally:
        hook.remove()
    return kept[0].reshape(len(ids), -1).numpy()


def test_every_position_is_what_plain_hooks_give_one_text_at_a_time(glass):
    longer = [example for example in TEXTS if len(example.text) > 2]
    prepared = prepare_concept(longer, glass)
    places = ("concept", "last", "-2", "mean", "max")
    found = read_all(glass, prepared, ["embed", "resid_post.1"], places)
    tokens = read_all(glass, prepared, ["resid_post.1"], ("attention",)).X["resid_post.1"]["attention"]
    for site, module in (("embed", glass.hf.model.embed_tokens), ("resid_post.1", glass.hf.model.layers[1])):
        for row, ids in enumerate(prepared.tokens):
            whole = raw(glass, ids, module)
            expected = {"concept": whole[prepared.at[row]], "last": whole[-1], "-2": whole[-2], "mean": whole[1:].mean(0),
                        "max": whole[1:].max(0)}  # fmt: skip
            for place in places:
                assert np.allclose(found.X[site][place][row], expected[place], atol=1e-4), (site, place, row)
            if site != "embed":
                assert np.allclose(tokens[row], whole, atol=1e-4)


def test_all_sites_and_positions_come_from_one_pass_over_the_tokens(glass, monkeypatch):
    prepared = prepare_concept(TEXTS, glass)
    seen = []
    original = glass.walk
    monkeypatch.setattr(glass, "walk", lambda tokens, *a, **k: (seen.extend(tokens), original(tokens, *a, **k))[1])
    read_all(glass, prepared, "resid_post.*,embed,mlp_out.*", ("concept", "mean"))
    assert sorted(map(tuple, seen)) == sorted(map(tuple, prepared.tokens))


def test_parts_that_were_finished_are_not_read_again(glass, monkeypatch):
    monkeypatch.setattr(reading, "PART", 1)
    prepared, kept = prepare_concept(TEXTS, glass), {}

    class Store:
        def get(self, part):
            return kept.get(part)

        def put(self, part, values):
            kept[part] = dict(values)

    def stop(n):
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_all(glass, prepared, "resid_post.*", ("concept", "max"), Store(), stop)
    passes, original = [], glass.walk
    monkeypatch.setattr(glass, "walk", lambda *a, **k: (passes.append(1), original(*a, **k))[1])
    again = read_all(glass, prepared, "resid_post.*", ("concept", "max"), Store())
    whole = read_all(glass, prepared, "resid_post.*", ("concept", "max"))
    assert len(passes) == 2 + 4
    for site in whole.sites:
        for place in whole.positions:
            assert np.array_equal(again.X[site][place], whole.X[site][place])


@pytest.mark.parametrize("asked, said", [(["middle"], "concept, last"), (["2"], "concept, last"), ([], "concept, last")])
def test_unknown_positions_are_named(asked, said):
    with pytest.raises(UsageError, match=said):
        position_names(asked)


def test_positions_have_one_spelling():
    assert position_names(["-1", "last", "-03", "mean"]) == ("last", "-3", "mean")


def test_a_position_that_some_text_lacks_is_refused_with_the_text(glass):
    with pytest.raises(UsageError, match="'no' has"):
        read_all(glass, prepare_concept(TEXTS, glass), "resid_post.0", ("-9",))


def test_texts_beyond_the_context_are_dropped_and_counted(glass, monkeypatch):
    lengths = list(map(len, prepare_concept(TEXTS, glass).tokens))
    monkeypatch.setattr(glass.hf.config, "max_position_embeddings", max(lengths) - 1)
    left, lost = prepare_concept(TEXTS, glass), lengths.count(max(lengths))
    assert len(left) == 4 - lost and left.dropped == {f"longer than the model's {max(lengths) - 1} tokens": lost}


# groups and baselines ----------------------------------------------------------------------------


def test_groups_are_components_or_words_where_everything_is_crossed():
    nested = [Example(f"{word} {n}", n % 2, f"t{word}", (word,)) for word in "abcdefgh" for n in range(2)]
    assert len(set(groups_of(nested))) == 8
    words = list(enumerate("stuvwxyz"))
    crossed = [Example(f"{frame} {word}", number % 2, frame, (word,)) for frame in "ABC" for number, word in words]
    assert set(groups_of(crossed)) == {f"e:{word}" for word in "stuvwxyz"}
    others = [Example(f"text {n}", n % 2, f"g{n}") for n in range(10)]
    same = [Example("one text", 1, "x"), *others, Example("one text", 1, "y")]
    assert groups_of(same)[0] == groups_of(same)[-1]
    near = [Example(f"the old fox jumped over the lazy {dog} behind a fence", 1, dog) for dog in ("dog", "dogs")]
    found = groups_of([*near, *others])
    assert found[0] == found[1] and len(set(found)) == 11


def test_surface_features_see_no_words():
    one, two = surface_features(["The good cat ran!", "The poor dog sat!"])
    assert np.array_equal(one, two) and not np.array_equal(one, surface_features(["the good cat ran"])[0])


# the report --------------------------------------------------------------------------------------


def test_a_property_that_is_written_is_found_where_it_is_written(report):
    assert report.best.startswith("resid_post.") and report.chosen.confirm.value > 0.95
    assert report.chosen.margin.low > 0.1
    by_site = {score.site: score for score in report.scores}
    assert by_site["embed"].confirm.value == 0.5  # the last token is the same in all texts
    assert all(by_site[f"resid_post.{layer}"].confirm.value > 0.9 for layer in range(3))


def test_baselines_that_cannot_know_do_not(report):
    numbers = report.json()["baselines"]
    assert numbers["majority"] == numbers["embedding_layer"] == 0.5 and numbers["sentence_embedding"] is None
    assert report.baseline("sentence_embedding").note == "not measured: not asked for"
    for name in ("length_punctuation", "bag_of_words", "untrained", "shuffled", "control_task"):
        assert numbers[name] < 0.8, name
    assert report.selectivity > 0.2
    assert report.code_length["best"]["gain"] > 0.3 > report.code_length["untrained"]["gain"]


def test_memory_is_asked_for_on_words_that_were_met_and_by_the_labels_that_were_learned():
    """Probes that know the control labels of the words they met by heart, and nothing else; draw 1 could not be fitted."""
    words = [f"w{n % 40}" for n in range(120)]
    examples = [Example(f"{n} {word}", n % 2, f"g{n}", (word,)) for n, word in enumerate(words)]
    met, labels = set(words[:20]), np.array([example.label for example in examples])

    def knows(draw):
        by_heart = np.array([2 * label - 1 if word in met else 0 for word, label in zip(words, control_labels(words, draw, 7))])
        return SimpleNamespace(score=lambda rows: by_heart)

    held = SimpleNamespace(rows=SimpleNamespace(prepared=SimpleNamespace(examples=examples)), seed=0,
                           masks={"confirm": np.ones(120, bool)}, labels=lambda _: labels,
                           groups=lambda _: [example.template for example in examples])  # fmt: skip
    chosen = SimpleNamespace(draws={"control_task": {0: knows(0), 2: knows(2)}}, plan=SimpleNamespace(seed=7),
                             pool=SimpleNamespace(prepared=SimpleNamespace(examples=examples[:20])),
                             best=SimpleNamespace(fitted=SimpleNamespace(score=lambda rows: labels.astype(float))))  # fmt: skip
    control, selectivity = measure_module._control_task(held, chosen)
    assert control.confirm.value == 1.0 and control.confirm.n == 60 and selectivity == 0.0
    assert "60 of 120 rows" in control.note and "mean of 2 draws" in control.note
    chosen.pool.prepared.examples = examples[:5]
    control, _ = measure_module._control_task(held, chosen)
    assert control.confirm.n == 120 and "only 15 of 120" in control.note


def test_the_json_has_the_keys_that_scripts_rely_on(report):
    record = report.json()
    assert {"site", "best", "scores", "baselines"} <= set(record)
    assert record["site"] == "embed,resid_post.*" and record["best"] in {score["site"] for score in record["scores"]}
    for score in record["scores"]:
        assert {"site", "auroc", "low", "high"} <= set(score) and score["low"] <= score["auroc"] <= score["high"]
    assert set(record["baselines"]) == {"majority", "length_punctuation", "bag_of_words", "sentence_embedding",
                                        "embedding_layer", "untrained", "shuffled", "control_task"}  # fmt: skip
    assert record["rows"]["confirm"]["rows"] == 112 and {"ece", "brier", "abstention", "bins"} <= set(record["calibration"])


def test_confirm_numbers_are_those_of_the_one_probe_fitted_before(world, splits, report):
    """Against scikit-learn on what is read at the chosen site, all of it again by hand."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    seen = prepare_concept([*splits["discover"], *splits["tune"]], world.model)
    held = prepare_concept(splits["confirm"], world.model)
    x, y = (read_all(world.model, part, [report.best], ("last",)).X[report.best]["last"].astype(float) for part in (seen, held))
    scaler = StandardScaler().fit(x)
    fitted = LogisticRegression(C=report.chosen.C, tol=1e-8, max_iter=10_000).fit(scaler.transform(x), seen.labels)
    expected = roc_auc_score(held.labels, fitted.decision_function(scaler.transform(y)))
    assert report.chosen.confirm.value == pytest.approx(expected, abs=1e-3)
    cosine = np.dot(report.reading.direction, fitted.coef_[0] / scaler.scale_)
    assert cosine / np.linalg.norm(report.reading.direction) / np.linalg.norm(fitted.coef_[0] / scaler.scale_) > 0.999


def test_the_path_and_the_difference_of_means_are_those_of_scikit_learn(world, splits, report):
    from sklearn.metrics import roc_auc_score

    seen = prepare_concept([*splits["discover"], *splits["tune"]], world.model)
    held = prepare_concept(splits["confirm"], world.model)
    x, y = (read_all(world.model, part, [report.best], ("last",)).X[report.best]["last"].astype(float) for part in (seen, held))
    member = np.array(seen.labels) == 1
    between = x[member].mean(0) - x[~member].mean(0)
    found = report.agreement
    assert found.mean_difference.value == pytest.approx(roc_auc_score(held.labels, y @ between), abs=1e-6)
    towards = report.reading.direction
    assert found.cosine == pytest.approx(between @ towards / np.linalg.norm(between) / np.linalg.norm(towards), abs=1e-6)
    assert 0.2 < found.stability < 1 and len(report.path) == len(PLAN.Cs)
    best = min(report.path, key=lambda one: one.log_loss)
    assert best.C == report.chosen.C and best.auroc == pytest.approx(report.chosen.tune.value, abs=1e-9)
    record = report.json()
    assert record["path"][0].keys() == {"C", "log_loss", "auroc"} and record["agreement"]["stability"] == found.stability


def test_directions_of_halves_agree_where_there_is_one_and_not_in_noise():
    from assay.probe.agreement import agreement
    from assay.probe.estimators import PROBES

    rng = np.random.default_rng(0)
    y, groups = np.arange(400) % 2, [f"g{row // 2}" for row in range(400)]
    signal = rng.standard_normal((400, 40)) + 3 * y[:, None] * np.eye(40)[0]
    noise = rng.standard_normal((400, 40))
    for x, low, high in ((signal, 0.8, 1.0), (noise, -0.4, 0.4)):
        fitted = PROBES.get("lda")().fit(x[:200], y[:200])
        found = agreement(PROBES.get("lda"), fitted.direction_, x[:200], y[:200], groups[:200], x[200:], y[200:], groups[200:])
        assert low <= found.stability <= high
    assert agreement(PROBES.get("lda"), fitted.direction_, x, y, y.astype(str).tolist(), x, y, groups).stability is None


def test_confirm_has_no_say_in_what_is_chosen(world, splits, report):
    """With the labels of confirm dealt out anew everything chosen stays, and only confirm goes to chance."""
    rng = random.Random(3)
    drawn = [each.label for each in splits["confirm"]]
    rng.shuffle(drawn)
    wrong = [replace(each, label=label) for each, label in zip(splits["confirm"], drawn, strict=True)]
    other = probe(world.model, {**splits, "confirm": wrong}, PLAN)
    assert (other.best, other.position, other.chosen.C) == (report.best, report.position, report.chosen.C)
    assert [score.tune for score in other.scores] == [score.tune for score in report.scores]
    assert abs(other.chosen.confirm.value - 0.5) < 0.2 and other.chosen.ood == report.chosen.ood
    assert OPTIMISM in {flag.name for flag in other.flags} and OPTIMISM not in {flag.name for flag in report.flags}


def test_a_leak_between_fitting_and_confirm_is_refused(world, splits):
    chosen = choose(world.model, {"tune": splits["tune"]}, replace(PLAN, untrained=False))
    leaking = [*splits["confirm"], replace(splits["tune"][0], text=splits["confirm"][0].text + " ask", entities=())]
    with pytest.raises(TaskError, match="confirm shares 1 template with discover or tune"):
        measure(world.model, chosen, {"confirm": leaking})
    with pytest.raises(TaskError, match="entity"):
        measure(world.model, chosen, {"confirm": [*splits["confirm"], replace(splits["tune"][0], template="z", text="f1 ask")]})


@pytest.mark.parametrize("kind, least", [("mean_difference", 0.95), ("lda", 0.95), ("k_sparse", 0.8), ("mlp", 0.9)])
def test_other_probes_find_it_too(world, splits, kind, least):
    plan = replace(PLAN, probe=kind, sites="resid_post.0", untrained=False, k=12)
    found = probe(world.model, splits, plan)
    assert found.best == "resid_post.0" and found.chosen.confirm.value > least
    if kind == "mean_difference":
        direction = found.reading.direction
        assert direction @ part("mood").numpy() / np.linalg.norm(direction) > 0.9
    assert (found.reading.direction is None) == (kind == "mlp")


def test_attention_pools_over_tokens(world, splits):
    few = {split: items[:80] for split, items in splits.items()}
    plan = replace(PLAN, probe="attention", positions=("attention",), sites="resid_post.0", untrained=False)
    found = probe(world.model, few, plan)
    assert found.best == "resid_post.0" and found.chosen.confirm.value > 0.8 and found.code_length == {}


def test_several_positions_make_a_map_and_the_best_is_one_of_them(world, splits):
    found = probe(world.model, splits, replace(PLAN, positions=("-2", "mean", "last"), sites="resid_post.0:2", untrained=False))
    assert len(found.scores) == 6 and {score.position for score in found.scores} == {"-2", "mean", "last"}
    top = max(found.scores, key=lambda score: score.tune.value)
    assert (found.best, found.position) == (top.site, top.position)


def test_the_untrained_twin_chooses_its_position_too(world, splits):
    places = ("-2", "mean", "last")
    alone = [probe(world.model, splits, replace(PLAN, positions=(place,), sites="resid_post.0:2")) for place in places]
    both = probe(world.model, splits, replace(PLAN, positions=places, sites="resid_post.0:2"))
    for name in ("untrained", "embedding_layer"):
        (found,), each = ([score for score in both.baselines if score.name == name],
                          [next(score for score in one.baselines if score.name == name) for one in alone])  # fmt: skip
        assert found.tune.value == max(one.tune.value for one in each)


def test_what_is_kept_is_used_again(world, splits, monkeypatch):
    stores = {}

    class Store(dict):
        def put(self, part, values):
            self[part] = values

    keep = lambda key: stores.setdefault(key, Store())  # noqa: E731
    first = probe(world.model, splits, replace(PLAN, sites="resid_post.0"), keep=keep)
    assert len(stores) == 4  # seen and sealed, of the model and of its twin
    passes = []
    monkeypatch.setattr(type(world.model), "walk", lambda *a, **k: passes.append(1))
    assert probe(world.model, splits, replace(PLAN, sites="resid_post.0"), keep=keep).json() == first.json() and not passes


# optimism ----------------------------------------------------------------------------------------


def estimate(value, reach):
    return Estimate(value, value - reach, value + reach, 100, 20, "")


@pytest.mark.parametrize("tune, confirm, flagged", [((0.8, 0.1), (0.5, 0.1), True), ((0.8, 0.1), (0.74, 0.1), False),
                                                    ((0.8, 0.1), (0.9, 0.1), False)])  # fmt: skip
def test_optimism_is_flagged_where_it_is_more_than_noise(report, tune, confirm, flagged):
    gap = difference_of(estimate(*tune), estimate(*confirm))
    assert gap.high - gap.value == pytest.approx(math.hypot(tune[1], confirm[1]))

    class Chosen:
        best = type("Best", (), {"site": "resid_post.1", "tune": estimate(*tune)})
        candidates = (1, 2, 3)

    assert bool(optimism_flags(Chosen, estimate(*confirm))) is flagged  # type: ignore[arg-type]


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change, said", [
    ({"probe": "forest"}, "mean_difference"), ({"probe": "attention"}, "attention"), ({"folds": 1}, "2 on"),
    ({"positions": ("attention",)}, "attention"), ({"encoder": "bert"}, "minilm"), ({"Cs": (0.0,)}, "above 0"),
    ({"n": 0}, "1 on"), ({"alpha": 1.0}, "between"),
])  # fmt: skip
def test_wrong_plans_are_named(change, said):
    with pytest.raises(UsageError, match=said):
        replace(PLAN, **change).check()


def test_three_groups_a_split_are_enough_to_run_and_are_flagged(world, splits):
    few = {split: [each for each in items if int(each.template.split()[1]) < 3] for split, items in splits.items()}
    found = probe(world.model, {split: few[split] for split in ("tune", "confirm")}, replace(PLAN, sites="resid_post.0"))
    assert "few_groups" in {flag.name for flag in found.flags} and found.chosen.ood is None
    assert found.rows["confirm"]["rows"] == 24 and found.rows["confirm"]["members"] == 12
    assert found.chosen.confirm.value > 0.7


def test_missing_splits_are_named(world, splits):
    with pytest.raises(TaskError, match="tune"):
        probe(world.model, {"confirm": splits["confirm"]}, PLAN)
    with pytest.raises(TaskError, match="confirm"):
        probe(world.model, {"tune": splits["tune"]}, replace(PLAN, sites="resid_post.0", untrained=False))


def test_one_label_in_tune_is_refused(world, splits):
    one = [each for each in splits["tune"] if each.label]
    with pytest.raises(TaskError, match="label 0"):
        choose(world.model, {"discover": splits["discover"], "tune": one}, PLAN)
