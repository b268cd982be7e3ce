"""Data sets with one planted fault each: the fault is named, what it does to a probe is seen, and the remedy works.

The model is one that reads whole texts and knows one property, mood. Where labels are coins there is nothing to find, so
whatever a probe finds beyond chance is the fault's own.
"""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from assay.data.concept_flags import concept_flags
from assay.data.concepts import divide_examples
from assay.data.prepare_concept import prepare_concept
from assay.data.splits import SPLITS
from assay.errors import TaskError
from assay.model.untrained import untrained_model
from assay.probe.measure import OPTIMISM
from assay.probe.path import fit_path
from assay.probe.read import read_all
from assay.probe.run import ProbePlan, probe
from assay.records import Example
from assay.testing.probe_worlds import FILLERS, KNOWN, _texts, probe_world

pytestmark = pytest.mark.whole

CS = (1e-3, 1e-1, 10.0)
PLAN = ProbePlan(sites=["resid_post.0", "resid_post.2"], encoder="none", untrained=False, Cs=CS)
WORDS = (*FILLERS, *(word for word, (what, _) in KNOWN.items() if what == "colour"))
SIZES = {"discover": 40, "tune": 80, "confirm": 120, "ood": 60}


@pytest.fixture(scope="module")
def world():
    return probe_world("used")


@pytest.fixture(scope="module")
def moods(world):
    return {split: world.texts["mood"].items(split, 500, 0) for split in SPLITS}


def text_of(rng, n=9):
    return " ".join([*rng.sample(WORDS, n), "ask"])


def coins(seed=0, sizes=SIZES):
    """Texts of fillers, each its own template, and a coin for a label."""
    rng = random.Random(seed)
    return {split: [Example(text_of(rng), rng.randrange(2), f"{split} {number}") for number in range(n)]
            for split, n in sizes.items()}  # fmt: skip


def names(splits):
    return [flag.name for flag in concept_flags(splits)]


def held_out(model, examples, groups, site="resid_post.0", position="last"):
    """AUROC of probes in folds of groups (None: rows), penalty by log loss."""
    prepared = prepare_concept(examples, model)
    labels = np.array(prepared.labels)
    path = fit_path(read_all(model, prepared, [site], (position,)).stacked(position), labels, groups, CS)
    return roc_auc_score(labels, path.held_out[0, path.log_loss(labels)[0].argmin()])


def test_a_clean_set_raises_no_flag(world, moods):
    assert names(moods) == [] and names(coins()) == []
    found = probe(world.model, moods, PLAN)
    assert found.flags == () and found.chosen.confirm.value > 0.95 and found.chosen.margin.low > 0.2
    nothing = probe(world.model, coins(), PLAN).chosen.confirm
    assert 0.35 < nothing.value < 0.65


def test_near_copies_on_two_sides(world):
    """Texts of tune come again in confirm with one word changed. There is nothing to find, and the probe finds it."""
    leaked, rng = coins(sizes={"discover": 20, "tune": 60, "confirm": 80, "ood": 20}), random.Random(1)
    for number, one in enumerate(leaked["tune"]):
        words = one.text.split()
        words[rng.randrange(9)] = rng.choice([word for word in WORDS if word not in words])
        leaked["confirm"][number] = replace(leaked["confirm"][number], text=" ".join(words), label=one.label)
    assert names(leaked) == ["duplicate_leakage"]
    (flag,) = concept_flags(leaked)
    assert sum(split == "confirm" for split, _ in flag.rows) > 0.95 * len(leaked["tune"])
    plan = replace(PLAN, Cs=(1.0,))  # free to memorise
    found = probe(world.model, leaked, plan)
    assert "duplicate_leakage" in [flag.name for flag in found.flags]
    assert found.chosen.confirm.value > 0.65 > found.chosen.tune.value + 0.1
    whole = divide_examples([one for split in SPLITS for one in leaked[split]])
    assert "duplicate_leakage" not in names(whole.splits)
    assert probe(world.model, whole.splits, plan).chosen.confirm.value < 0.6


def documents(n=32, each=8):
    """Texts of one document share six words; labels are coins of the document."""
    rng, found = random.Random(2), []
    for number in range(n):
        own, label = rng.sample(WORDS, 6), rng.randrange(2)
        for _ in range(each):
            words = [*own, *rng.sample([word for word in WORDS if word not in own], 4)]
            rng.shuffle(words)
            found.append(Example(" ".join([*words, "ask"]), label, f"document {number}"))
    return found


def test_rows_of_one_group_on_two_sides(world):
    """Split by row a probe knows documents again; split by document there is nothing."""
    examples = documents()
    by_row = {split: examples[start::4] for start, split in enumerate(SPLITS)}
    assert "group_leakage" in names(by_row)
    with pytest.raises(TaskError, match="template"):
        probe(world.model, by_row, PLAN)
    by_document = held_out(world.model, examples, [one.template for one in examples])
    assert by_document < 0.6 and held_out(world.model, examples, None) > by_document + 0.2
    divided = divide_examples(examples).splits
    assert not {"group_leakage", "duplicate_leakage"} & set(names(divided))
    assert "one_label_groups" in names(divided)  # documents of one label each: count documents, not texts


def test_members_that_are_longer(world):
    rng = random.Random(3)
    longer = {split: [replace(one, text=text_of(rng, rng.randrange(11, 16) if one.label else rng.randrange(5, 10)))
                      for one in found] for split, found in coins().items()}  # fmt: skip
    assert names(longer) == ["length_confound"]
    found = probe(world.model, longer, PLAN)
    assert [flag.name for flag in found.flags] == ["length_confound"]
    assert found.best_baseline == "length_punctuation" and found.baseline("length_punctuation").confirm.value > 0.95
    assert found.chosen.confirm.value > 0.65  # by itself it looks like a finding
    assert found.chosen.margin.low <= 0  # beside the baseline it is none


def test_wrong_labels(world):
    """What words and probe are surest of, and what is said, differ; the rows that are named are the wrong ones."""
    moods: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for seed in range(3):
        for split, found in _texts("mood", seed).items():
            moods[split] += [replace(one, template=f"{one.template}/{seed}") for one in found]
    rng = random.Random(4)
    wrong = {(split, number) for split, found in moods.items() for number in range(len(found)) if rng.random() < 0.15}
    noisy = {split: [replace(one, label=1 - one.label) if (split, number) in wrong else one for number, one in enumerate(found)]
             for split, found in moods.items()}  # fmt: skip
    assert names(noisy) == ["label_noise"] and names(moods) == []
    found = probe(world.model, noisy, PLAN)
    assert [flag.name for flag in found.flags] == ["label_noise"]
    for flag in (*concept_flags(noisy), *found.flags):
        assert len(set(flag.rows) & wrong) > 0.8 * len(flag.rows) > 0
    assert found.chosen.confirm.value < probe(world.model, moods, PLAN).chosen.confirm.value - 0.05


def test_the_best_of_many_layers(world):
    """Nothing is there; the best of many cells looks good on what it was chosen by, and the report says so."""
    twin = untrained_model(world.model, "all", 0)
    splits = coins(8, {"tune": 40, "confirm": 200})
    found = probe(twin, splits, replace(PLAN, sites=["z.1.*", "z.2.*"], positions=("last", "-2", "-3", "-4", "-5")))
    assert len(found.scores) == 40
    flag = next(flag for flag in found.flags if flag.name == OPTIMISM)
    assert found.chosen.tune.value > 0.65 and flag.low is not None and flag.low > 0 and "40 cells" in flag.message
    assert abs(found.chosen.confirm.value - 0.5) < 0.12
    one = probe(twin, splits, replace(PLAN, sites=["z.1.0"]))
    assert OPTIMISM not in [flag.name for flag in one.flags]


def test_an_untrained_model_decodes_until_words_are_held_out(world):
    """Read at the word itself, in every frame: new frames prove nothing, new words do."""
    rng, words = random.Random(6), [word for word, (what, _) in KNOWN.items() if what == "mood"]
    examples = []
    for number in range(5):
        frame = rng.sample(FILLERS, 6)
        start = " ".join(frame[:3])
        examples += [Example(" ".join([start, word, *frame[3:], "ask"]), int(KNOWN[word][1] > 0), f"frame {number}", (word,),
                             position=len(start) + 1) for word in words]  # fmt: skip
    twin = untrained_model(world.model, "all", 1)
    frames, entities = [one.template for one in examples], [one.entities[0] for one in examples]
    assert held_out(twin, examples, frames, position="concept") > 0.95
    assert held_out(twin, examples, entities, position="concept") < 0.65
    assert held_out(world.model, examples, entities, position="concept") > 0.95
