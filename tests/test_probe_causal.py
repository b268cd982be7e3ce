"""The causal follow-up on models in which it is written what is used and what comes back, and against raw hooks."""

import copy
import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from assay.data.metrics import Metric
from assay.data.prepare import prepare
from assay.data.prepare_concept import prepare_concept
from assay.errors import ShapeError, TaskError, UsageError
from assay.evidence.features import direction
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.model.load import load_model
from assay.probe import causal
from assay.probe.baselines import groups_of
from assay.probe.causal import Behaviour, CausalPlan, follow_up
from assay.probe.path import can_fold, folds_of
from assay.probe.variants import energy
from assay.sites import parse_site
from assay.testing.probe_worlds import FILLERS, VOCABULARY, part, probe_world

pytestmark = pytest.mark.whole

PLAN = CausalPlan(draws=5, control_tasks=2, control_items=2, rounds=2, later=2)
SITE = "resid_post.0"


@pytest.fixture(scope="module")
def worlds():
    return {kind: probe_world(kind) for kind in ("used", "returning", "redundant")}


def texts_of(world, what):
    return {split: prepare_concept(world.texts[what].items(split, 200, 0), world.model) for split in ("tune", "confirm")}


def pairs_of(world, n=100):
    return {split: prepare(world.pairs.items(split, n, 0), world.model) for split in ("tune", "confirm")}


def followed(world, what, vector=None, plan=PLAN, **given):
    vector = part(what) if vector is None else vector
    return follow_up(world.model, (SITE, vector), pairs_of(world), texts_of(world, what), plan, **given)


@pytest.fixture(scope="module")
def reports(worlds):
    cases = (("used", "mood"), ("used", "colour"), ("returning", "mood"), ("redundant", "mood"))
    return {case: followed(worlds[case[0]], case[1]) for case in cases}


# what was written in -----------------------------------------------------------------------------


def test_a_property_that_is_read_and_used(reports):
    report = reports["used", "mood"]
    assert (report.readable, report.used, report.steers) == (True, "yes", "yes")
    assert (report.left_over, report.cleared, report.came_back) == (False, 1, ())
    assert report.erased.share.value == pytest.approx(1.0, abs=0.01)  # nothing else tells the sides apart
    assert report.pushed.share.value == pytest.approx(1.0, abs=0.15) and report.pushed.as_read > 0.8
    assert "the difference depends on it" in report.sentence


def test_a_property_that_can_be_read_and_is_not_used(reports):
    """Colour goes with the answer in every pair and is read without error; nothing reads it."""
    report = reports["used", "colour"]
    assert report.readable and report.reads.value > 0.95
    assert (report.used, report.steers, report.cleared, report.came_back) == ("no", "no", 1, ())
    assert abs(report.erased.share.value) < 0.01 and abs(report.pushed.share.value) < 0.01
    assert not report.erased.beats and "does not depend on it" in report.sentence


def test_a_property_that_is_computed_again(worlds, reports):
    """Gone at the site, back one layer later; what is left of the behaviour is what layer 1 writes anew."""
    report = reports["returning", "mood"]
    assert report.erased.share.value == pytest.approx(worlds["returning"].share, abs=0.02) and report.used == "yes"
    assert report.came_back == ("resid_post.1", "resid_post.2") and report.cleared == 1 and not report.left_over
    assert report.rounds[1].auroc[SITE].value < 0.65 < 0.95 < report.rounds[1].auroc["resid_post.1"].value
    assert "computed again" in report.sentence


def test_a_property_that_is_written_twice(worlds, reports):
    """Left over at the site itself, through the second direction; with both gone so is the behaviour."""
    report = reports["redundant", "mood"]
    assert (report.left_over, report.cleared, report.came_back) == (True, 2, ())
    first, second = report.rounds[1].share.value, report.rounds[2].share.value
    assert first == pytest.approx(worlds["redundant"].share, abs=0.03) and second > first + 0.15
    again = max((pool for pool in report.erased.pools), key=lambda pool: pool.strongest)
    assert again.name == "orthogonal_probe"  # the probe trained after the erasure found the second direction


def test_a_random_direction_is_neither(worlds):
    vector = torch.randn(64, generator=torch.Generator().manual_seed(5))
    report = followed(worlds["used"], "mood", vector, dataclasses.replace(PLAN, rounds=1))
    assert report.used != "yes" and report.steers != "yes"
    assert report.left_over and report.cleared is None and report.came_back == ()  # it erased nothing
    assert "can still be read there" in report.sentence


def test_a_fitted_direction_holds_most_of_it_and_is_not_taken_for_two(worlds):
    """A probe is never quite what was written: something is left over at the site, and nothing comes back later."""
    world = worlds["used"]
    texts = texts_of(world, "mood")["tune"]
    acts = np.stack([raw(world.model, ids, layer=0)[at].numpy() for ids, at in zip(texts.tokens, texts.at)])
    weights = probe(0.1).fit(acts, texts.labels)[-1].coef_[0] / acts.std(0)
    report = followed(world, "mood", weights)
    assert report.used == "yes" and 0.8 < report.erased.share.value < 1
    assert report.left_over and report.cleared == 2 and report.came_back == ()
    assert report.rounds[2].share.value > 0.85


@pytest.mark.whole
def test_claims_say_the_same(worlds):
    """*decodes* holds for both properties, *uses* for one of them."""
    world, store = worlds["used"], MemoryStore()
    rng = np.random.default_rng(0)
    neutral = [" ".join(rng.choice(FILLERS, 8)) for _ in range(20)]
    settings = Settings(tune=80, confirm=112, ood=96, draws=5, control_pairs=1)
    ordinary = dataclasses.replace(settings, options={"neutral": neutral})
    for what, used in (("mood", "supported"), ("colour", "refuted")):
        claim, _ = state_claim(store, world.model, world.texts[what], SITE, statement=Statement("decodes"), settings=settings)
        assert test_claim(store, claim.id, world.model, source=world.texts[what]).verdict == "supported"
        subject = direction(SITE, part(what))
        claim, _ = state_claim(store, world.model, world.pairs, subject, statement=Statement("uses"), settings=ordinary)
        assert test_claim(store, claim.id, world.model, source=world.pairs).verdict == used


# against raw hooks -------------------------------------------------------------------------------


def raw(model, ids, change=None, layer=None):
    """Logits (pos, vocab) with the stream after block 0 changed; the stream (pos, d) after a layer where asked for."""
    blocks, found = model.hf.model.layers, {}
    handles = []
    if change is not None:
        handles.append(blocks[0].register_forward_hook(lambda m, a, out: _with(out, change(_hidden(out)[0])[None])))
    if layer is not None:
        handles.append(blocks[layer].register_forward_hook(lambda m, a, out: found.update(x=_hidden(out)[0].clone())))
    with torch.no_grad():
        logits = model.hf(torch.tensor([ids])).logits[0]
    for handle in handles:
        handle.remove()
    return logits if layer is None else found["x"]


def _hidden(out):
    return out[0] if isinstance(out, tuple) else out


def _with(out, hidden):
    return (hidden, *out[1:]) if isinstance(out, tuple) else hidden


def means_of(model, prompts):
    """Mean after block 0 at the first position and at later ones."""
    runs = [raw(model, ids, layer=0) for ids in prompts]
    return torch.stack([x[0] for x in runs]).mean(0), torch.cat([x[1:] for x in runs]).mean(0)


def erased(means, u, gain=1.0):
    first, later = means

    def change(x):
        middle = torch.stack([first, *[later] * (len(x) - 1)])
        return x - gain * ((x - middle) @ u)[:, None] * u

    return change


@pytest.fixture(scope="module")
def mixed(worlds):
    """A direction that is used in part, in a world where it comes back: no number is 0 or 1."""
    world = worlds["returning"]
    u = part("mood") + 0.5 * part("colour") + 0.3 * part("mood_word")
    return world, u / u.norm(), causal._Study(world.model, (SITE, 3 * u), pairs_of(world), texts_of(world, "mood"),
                                              PLAN, lambda *a: None)  # fmt: skip


def test_shares_equal_raw_hooks(mixed):
    world, u, study = mixed
    model, tasks = world.model, pairs_of(world)
    report = study.report()
    means = means_of(model, [*tasks["tune"].clean, *tasks["tune"].corrupted])
    texts = texts_of(world, "mood")["tune"]
    ends = np.array([float(raw(model, ids, layer=0)[at] @ u) for ids, at in zip(texts.tokens, texts.at)])
    label = np.array(texts.labels) == 1
    gap = ends[label].mean() - ends[~label].mean()
    assert report.push_norm == pytest.approx(abs(gap), rel=1e-4)

    def gaps(change_of):
        """clean minus corrupted of every pair; change_of(+1) changes clean prompts, change_of(-1) corrupted ones."""
        task, out = tasks["confirm"], []
        for clean, corrupted, (a,), (b,) in zip(task.clean, task.corrupted, task.answers, task.foils):
            sides = [raw(model, ids, change_of(side))[-1] for side, ids in ((1, clean), (-1, corrupted))]
            out.append(float((sides[0][a] - sides[0][b]) - (sides[1][a] - sides[1][b])))
        return np.array(out)

    templates = np.array(tasks["confirm"].templates)
    base = gaps(lambda side: None)
    assert report.behaviour.value == pytest.approx(base.mean(), rel=1e-4)  # equally many pairs per template

    def by_template(values):
        return np.mean([values[templates == name].mean() for name in sorted(set(templates))])

    left = gaps(lambda side: erased(means, u))
    assert report.erased.share.value == pytest.approx(by_template(base - left) / base.mean(), abs=1e-4)
    both = [gaps(lambda side, way=way: lambda x: x - side * way * gap * u) for way in (1, -1)]
    best = np.maximum(base - both[0], base - both[1])
    assert report.pushed.share.value == pytest.approx(by_template(best) / (2 * base.mean()), abs=1e-4)
    way = (base - both[0] < base - both[1]).astype(int)
    sides = (tasks["confirm"].clean, tasks["confirm"].corrupted)
    low, high = (np.array([float((raw(model, ids, layer=0) @ u).mean()) for ids in side]) for side in sides)
    read = (low < high).astype(int)
    assert report.pushed.as_read == pytest.approx(np.mean(way == read))

    control = study.controls([])["isotropic.02"]  # a control erased with the same mean squared change
    centre, centred = study.moved
    gain = (energy(u[None], centred) / energy(control, centred)) ** 0.5
    prompts = [*tasks["tune"].clean, *tasks["tune"].corrupted]
    sizes = [sum(float((raw(model, ids, layer=0) - raw(model, ids, erased(means, v, g), 0)).square().sum()) for ids in prompts)
             for v, g in ((u, 1.0), (control[0], gain))]  # fmt: skip
    assert sizes[1] == pytest.approx(sizes[0], rel=1e-3)
    pool = next(pool for pool in report.erased.pools if pool.name == "isotropic")
    shares = []
    for name, vector in study.controls([]).items():
        if name.startswith("isotropic"):
            gain = (energy(u[None], centred) / energy(vector, centred)) ** 0.5
            drop = (base - gaps(lambda side: erased(means, vector[0], gain))) / base.mean()  # noqa: B023
            first = [drop[np.flatnonzero(templates == name)[:2]].mean() for name in sorted(set(templates))]  # control_items
            shares.append(np.mean(first))
    assert (pool.mean, pool.strongest) == (pytest.approx(np.mean(shares), abs=1e-4), pytest.approx(max(shares), abs=1e-4))


def test_probes_trained_anew_equal_scikit_learn_on_hooked_activations(mixed):
    world, u, study = mixed
    rounds, basis, _ = study.search()
    texts = texts_of(world, "mood")
    means = means_of(world.model, texts["tune"].tokens)
    acts = {split: np.stack([raw(world.model, ids, erased(means, u), 1)[at].numpy() for ids, at in zip(data.tokens, data.at)])
            for split, data in texts.items()}  # fmt: skip
    labels = {split: np.array(data.labels) for split, data in texts.items()}
    fold = folds_of(labels["tune"], study.groups["tune"], causal.FOLDS, 0)
    losses = {}
    for c in causal.CS:
        odds = np.zeros(len(fold))
        for number in set(fold):
            seen = fold != number
            fitted = probe(c).fit(acts["tune"][seen], labels["tune"][seen])
            odds[~seen] = fitted.decision_function(acts["tune"][~seen])
        losses[c] = np.logaddexp(0, np.where(labels["tune"] == 1, -odds, odds)).mean()
    best = probe(min(losses, key=losses.__getitem__)).fit(acts["tune"], labels["tune"])
    wanted = roc_auc_score(labels["confirm"], best.decision_function(acts["confirm"]))
    assert rounds[1].auroc["resid_post.1"].value == pytest.approx(wanted, abs=0.005)
    tune = texts["tune"]
    site = np.stack([raw(world.model, ids, erased(means, u), 0)[at].numpy() for ids, at in zip(tune.tokens, tune.at)])
    between = torch.tensor(site[labels["tune"] == 1].mean(0) - site[labels["tune"] == 0].mean(0))
    assert abs(float(between @ basis[1] / between.norm())) == pytest.approx(1, abs=1e-4)  # what the second round erases
    assert abs(float(basis[0] @ basis[1])) < 1e-6
    twice = study.read("tune", basis)[0]  # and then the class means are the same
    gap = twice[labels["tune"] == 1].mean(0) - twice[labels["tune"] == 0].mean(0)
    assert np.linalg.norm(gap) < 1e-4 * float(between.norm())


def probe(c) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000, tol=1e-8))


def test_rounding_is_not_read():
    """A coordinate that was set to its mean keeps the last bit of what it was: standardised, that would be the property."""
    values = np.random.default_rng(0).standard_normal((200, 6))
    labels = values[:, 2] > 0
    values[:, 2] = np.float32(0.7) + 3e-8 * np.where(labels, 1, -1)
    assert roc_auc_score(labels, probe(1.0).fit(values, labels).decision_function(values)) > 0.99
    clean = causal._without_rounding(values, float(torch.finfo(torch.float32).eps))
    assert np.ptp(clean[:, 2]) == 0 and (clean[:, [0, 1, 3, 4, 5]] == values[:, [0, 1, 3, 4, 5]]).all()
    assert np.ptp(causal._without_rounding(np.full((5, 2), 3.0), 1e-7)) == 0


def test_one_coordinate_is_erased_to_the_last_bit(worlds):
    world = worlds["used"]
    study = causal._Study(world.model, (SITE, torch.eye(64)[9]), pairs_of(world), texts_of(world, "mood"), PLAN, print)
    assert np.ptp(study.read("tune", [])[0][:, 9]) > 0.01 and np.ptp(study.read("tune", [study.unit])[0][:, 9]) == 0


# behaviours --------------------------------------------------------------------------------------


def test_labelled_texts_and_a_metric_are_a_behaviour_too(worlds, reports):
    world, texts = worlds["returning"], texts_of(worlds["returning"], "mood")
    yes, no = (VOCABULARY.index(word) for word in ("yes", "no"))
    metrics = {split: Metric("logit_diff", [(yes,)] * len(data), [(no,)] * len(data)) for split, data in texts.items()}
    behaviour = {split: Behaviour.of_concept(texts[split], metrics[split]) for split in texts}
    report = follow_up(world.model, (SITE, part("mood")), behaviour, texts, PLAN)
    assert report.erased.share.value == pytest.approx(world.share, abs=0.05) and report.used == "yes"
    assert report.pushed.share.value == pytest.approx(reports["returning", "mood"].pushed.share.value, abs=0.1)
    assert report.pushed.as_read == 1.0


def test_contrasts_do_not_depend_on_what_shifts_all_prompts():
    behaviour = Behaviour([[1]] * 5, np.array([1, 1, 1, -1, -1]), list("abcab"), Metric("logit_diff", [], []))
    values = torch.tensor([[3.0, 4.0, 5.0, 1.0, -1.0]])
    assert behaviour.contrast(values).tolist() == [[1.0, 2.0, 3.0, 1.0, 3.0]]  # middle 2
    assert torch.equal(behaviour.contrast(values + 7), behaviour.contrast(values))
    assert behaviour.contrast(values).mean() == 2.0 and behaviour.together(behaviour.contrast(values)).item() == 2.0
    few = behaviour.first(1)
    assert few.clusters == ["a", "b", "c", "a", "b"]
    assert dataclasses.replace(behaviour, clusters=["a"] * 5).first(1).sides.tolist() == [1, -1]
    pairs = dataclasses.replace(behaviour, prompts=[[1]] * 4, sides=np.array([1, 1, -1, -1]), paired=True)
    assert pairs.together(torch.tensor([1.0, 2.0, 3.0, 6.0])).tolist() == [2.0, 4.0]


def test_without_a_behaviour_there_is_nothing_to_explain(worlds):
    world = worlds["used"]
    tasks = {split: dataclasses.replace(task, answers=task.foils, foils=task.answers)
             for split, task in pairs_of(world).items()}  # fmt: skip
    report = follow_up(world.model, (SITE, part("mood")), tasks, texts_of(world, "mood"), PLAN)
    assert (report.used, report.steers, report.erased, report.pushed) == ("no behaviour", "no behaviour", None, None)
    assert report.readable and len(report.rounds) == 3 and "nothing to explain" in report.sentence


def test_other_sites_widths_and_positions(worlds):
    """mlp_act is narrower than the stream, and is read at the last token but one."""
    world = worlds["used"]
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    plan = dataclasses.replace(PLAN, position="-2", rounds=1, later=1, control_tasks=1)
    report = follow_up(world.model, ("mlp_act.1", vector), pairs_of(world), texts_of(world, "mood"), plan)
    assert list(report.rounds[0].auroc) == ["mlp_act.1", "resid_post.2"] and report.used == "no"
    sites = ("embed", "mlp_out.1", "resid_post.2", "final_norm")
    later = {site: causal._later(world.model, parse_site(site), 2) for site in sites}
    assert later == {"embed": ["resid_post.0", "resid_post.2"], "mlp_out.1": ["resid_post.1", "resid_post.2"],
                     "resid_post.2": [], "final_norm": []}  # fmt: skip
    last = follow_up(world.model, ("final_norm", part("mood")), pairs_of(world), texts_of(world, "mood"), plan)
    assert last.erased.share.value == pytest.approx(1.0, abs=0.02) and last.came_back == ()


def test_a_model_in_half_precision(worlds):
    world = worlds["returning"]
    half = load_model(copy.deepcopy(world.model.hf).to(torch.bfloat16), tokenizer=world.model.tokenizer)
    report = followed(dataclasses.replace(world, model=half), "mood", plan=dataclasses.replace(PLAN, rounds=1))
    assert report.used == "yes" and report.erased.share.value == pytest.approx(world.share, abs=0.06)
    assert report.cleared == 1 and "resid_post.1" in report.came_back


def test_a_report_is_plain_and_repeats(worlds, reports):
    seen = []
    again = followed(worlds["used"], "mood", progress=lambda what, done, of: seen.append((what, done, of)))
    assert again == reports["used", "mood"]
    record = json.loads(json.dumps(again.json()))
    assert record["used"] == "yes" and record["rounds"][1]["erased"] == 1 and record["erased"]["pools"][0]["above"]["low"] > 0
    assert {what for what, _, _ in seen} == {"erasing", "pushing", "probing again"}
    assert all(done <= of for _, done, of in seen)


def test_control_tasks_that_no_folds_can_hold_are_left_out(worlds, monkeypatch):
    """Random labels of few words may leave one of them a single group: that draw is no control, and no error."""
    world = worlds["used"]
    group = np.array(groups_of(texts_of(world, "mood")["tune"].examples))
    number = np.unique(group, return_inverse=True)[1]
    labels = [(number == 0).astype(np.int64), number % 2]
    monkeypatch.setattr(causal, "control_labels", lambda units, draw, seed: labels[draw])
    assert can_fold(number % 2, group) and not can_fold(number == 0, group)
    (pool,) = [each for each in followed(world, "mood").erased.pools if each.name == "control_task"]
    assert pool.n == 1 and pool.which == "control_task.01"


def test_what_cannot_be_followed_is_refused(worlds):
    world = worlds["used"]
    pairs, texts = pairs_of(world), texts_of(world, "mood")
    with pytest.raises(ShapeError, match="as wide as the site"):
        follow_up(world.model, (SITE, torch.ones(7)), pairs, texts, PLAN)
    with pytest.raises(UsageError, match="non-zero"):
        follow_up(world.model, (SITE, torch.zeros(64)), pairs, texts, PLAN)
    with pytest.raises(UsageError, match="no split tune"):
        follow_up(world.model, (SITE, part("mood")), {"confirm": pairs["confirm"]}, texts, PLAN)
    with pytest.raises(UsageError, match="one vector per position"):
        follow_up(world.model, ("z.0", torch.ones(16)), pairs, texts, PLAN)
    one = texts["tune"].select([row for row, label in enumerate(texts["tune"].labels) if label])
    with pytest.raises(TaskError, match="same label"):
        follow_up(world.model, (SITE, part("mood")), pairs, {**texts, "tune": one}, PLAN)
    with pytest.raises(TaskError, match="same label"):
        Behaviour.of_concept(one, Metric("logit_diff", [], []))
    group = groups_of(texts["tune"].examples)
    lone = next(group[row] for row, label in enumerate(texts["tune"].labels) if label)
    few = texts["tune"].select([row for row, label in enumerate(texts["tune"].labels) if not label or group[row] == lone])
    with pytest.raises(UsageError, match="groups"):
        follow_up(world.model, (SITE, part("mood")), pairs, {**texts, "tune": few}, PLAN)
    for wrong in ({"rounds": 0}, {"draws": 0}, {"dose": 0}, {"least": 1.0}, {"later": -1}, {"control_items": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            CausalPlan(**wrong).check()
    with pytest.raises(UsageError, match="kind"):
        probe_world("usde")
