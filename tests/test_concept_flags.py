"""Flags of data sets: every planted fault is named, and a clean set raises none."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from assay.data.concept_flags import FLAGS, SUREST, _auroc, _auroc_interval, _extremes, concept_flags
from assay.data.concepts import CONCEPTS, Concept, all_examples
from assay.errors import UsageError
from assay.records import Example

SIZES = {"discover": 12, "tune": 16, "confirm": 24, "ood": 20}  # groups
EACH = 10  # texts of a group


def words(n, seed):
    rng = random.Random(seed)
    return ["".join(rng.choice("bcdfglmnprstvz" if place % 2 else "aeiou") for place in range(7)) for _ in range(n)]


FILLER, GOOD, BAD = words(900, 1), words(25, 2), words(25, 3)


def made(seed=0, strength=0.9, members=0.5, each=EACH):
    """Groups with both labels, texts of 10 to 20 words; some of the words are usual for the label, all are equally long."""
    rng = random.Random(seed)
    splits, start = {}, 0
    for split, groups in SIZES.items():
        splits[split] = []
        for group in range(start, start + groups):
            for number in range(each):
                label = int(number < members * each)
                usual = [rng.choice(GOOD if (rng.random() < strength) == label else BAD) for _ in range(4)]
                text = [*rng.choices(FILLER, k=rng.randint(8, 18)), *usual]
                rng.shuffle(text)
                splits[split].append(Example(" ".join(text).capitalize() + ".", label, f"group {group}"))
        start += groups
    return splits


def changed(splits, change, where=lambda split, number: True):
    return {split: [change(one) if where(split, number) else one for number, one in enumerate(found)]
            for split, found in splits.items()}  # fmt: skip


def flipped(splits, share, seed=0):
    rng = random.Random(seed)
    wrong = {(split, number) for split, found in splits.items() for number in range(len(found)) if rng.random() < share}
    return changed(splits, lambda one: replace(one, label=1 - one.label), lambda split, number: (split, number) in wrong), wrong


def copied(splits, other_label=False):
    """Texts of discover, one word changed, among those of confirm."""
    found = {split: list(some) for split, some in splits.items()}
    for number in range(40):
        one = found["discover"][number]
        text = one.text.replace(one.text.split()[3], FILLER[number], 1)
        found["confirm"][number * 2] = replace(
            found["confirm"][number * 2], text=text, label=1 - one.label if other_label else one.label)  # fmt: skip
    return found


def names(splits, **given):
    return [flag.name for flag in concept_flags(splits, **given)]


def test_clean_sets_raise_no_flag():
    for seed in range(8):
        for strength in (0.5, 0.8, 1.0):  # words tell nothing, something, everything
            assert names(made(seed, strength), seed=seed) == [], (seed, strength)


@pytest.mark.parametrize("name", [name for name in CONCEPTS.names() if isinstance(CONCEPTS.get(name), Concept)])
def test_bundled_concepts_raise_no_flag(name):
    assert names(all_examples(name).splits) == []


def test_copies_across_splits():
    (flag,) = concept_flags(copied(made()))
    assert flag.name == "duplicate_leakage" and {("discover", n) for n in range(40)} <= set(flag.rows)
    assert {("confirm", 2 * n) for n in range(40)} <= set(flag.rows) and len(flag.rows) >= 76
    assert flag.estimate == len(flag.rows) / (EACH * sum(SIZES.values())) and "near copy in another split" in flag.message


def test_groups_and_entities_across_splits():
    splits = made()
    leaked = changed(splits, lambda one: replace(one, template="group 0"), lambda split, n: split == "ood" and n < 30)
    (flag,) = concept_flags(leaked)
    assert flag.name == "group_leakage" and "1 groups and 0 entities" in flag.message
    assert set(flag.rows) == {*(("ood", n) for n in range(30)), *(("discover", n) for n in range(EACH))}
    named = changed(splits, lambda one: replace(one, entities=("rome",)), lambda split, n: n == 0)
    (flag,) = concept_flags(named)
    assert flag.name == "group_leakage" and "0 groups and 1 entities" in flag.message and len(flag.rows) == len(SIZES)


@pytest.mark.parametrize("change", [
    lambda one: replace(one, text=f"{one.text} {' '.join(random.Random(one.text).choices(FILLER, k=7))}")
    if one.label else one,
    lambda one: replace(one, text=one.text.replace(" ", ", ", 5)) if one.label else one,
    lambda one: replace(one, text=one.text.upper()) if one.label else one,
])  # fmt: skip
def test_members_that_differ_in_shape(change):
    rng = random.Random(0)
    splits = changed(made(strength=0.5), change, lambda split, n: rng.random() < 0.6)
    (flag,) = concept_flags(splits)
    assert flag.name == "length_confound" and 0.6 < flag.low < flag.estimate < flag.high


def test_only_what_is_read_counts_as_length():
    """Members are longer, but behind the position that is read."""
    def lengthened(one):
        position = len(one.text) - 2
        return replace(one, position=position, text=f"{one.text} {' '.join(FILLER[:6])}" if one.label else one.text)

    assert names(changed(made(strength=0.5), lengthened)) == []


def test_wrong_labels_are_found_where_words_can_do_the_task():
    splits, wrong = flipped(made(strength=1.0, each=20), 0.15)
    (flag,) = concept_flags(splits)
    assert flag.name == "label_noise" and flag.low <= 0.15 <= flag.high
    assert len(set(flag.rows) & wrong) >= 0.9 * len(flag.rows) > 0  # the rows named are the wrong ones
    assert "where the words are surest" in flag.message


def test_wrong_labels_are_found_with_scores_where_words_cannot():
    splits, wrong = flipped(made(strength=0.5, each=20), 0.12)
    rng = np.random.default_rng(0)
    true = {split: [one.label ^ ((split, n) in wrong) for n, one in enumerate(found)] for split, found in splits.items()}
    scores = {split: rng.normal(2 * np.array(found), 1.0).tolist() for split, found in true.items()}
    assert names(splits) == []
    (flag,) = concept_flags(splits, scores)
    assert flag.name == "label_noise" and "where the scores are surest" in flag.message
    assert len(set(flag.rows) & wrong) >= 0.9 * len(flag.rows)
    assert names(made(strength=0.5, each=20), scores=scores) == []  # hard, not wrong


def test_copies_with_the_other_label_are_noise_and_minimal_pairs_are_not():
    splits = {split: list(found) for split, found in made(strength=0.5).items()}
    for number in range(0, 60, 2):  # a copy in another group of the same split
        one = splits["confirm"][number]
        splits["confirm"][number + EACH * 8] = replace(one, label=1 - one.label, template=f"group {40 + number % 3}",
                                                       text=one.text.upper())  # fmt: skip
    assert "label_noise" in names(splits)
    minimal = {split: [Example(f"{frame} {word} {end}", label, f"{split} {number}", (), len(frame) + len(word))
                       for number, (frame, end) in enumerate(zip(words(n, n), words(n, n + 1), strict=True))
                       for word, label in (("walks", 1), ("walked", 0))] for split, n in SIZES.items()}  # fmt: skip
    assert "label_noise" not in names(minimal)
    equal = {split: [*found, replace(found[0], label=1 - found[0].label)] for split, found in minimal.items()}
    assert "label_noise" in names(equal)


def test_a_score_that_is_misled_is_no_sign_of_wrong_labels():
    """Held out by group, the words of some groups say the opposite: most sure where wrong."""
    splits = made(strength=1.0, each=20)
    rng = np.random.default_rng(0)
    scores = {}
    for split, found in splits.items():
        labels = np.array([one.label for one in found])
        value = rng.normal(3.0 * labels, 1.0)
        odd = rng.random(len(labels)) < 0.1
        scores[split] = np.where(odd, np.where(labels, -8.0, 8.0), value).tolist()
    assert names(splits, scores=scores) == []


def test_groups_with_one_label():
    label = lambda one: int(one.template.rpartition(" ")[2]) % 2  # noqa: E731
    (flag,) = concept_flags(changed(made(strength=0.5), lambda one: replace(one, label=label(one))))
    assert flag.name == "one_label_groups" and flag.estimate == 1.0
    single = changed(made(strength=0.5), lambda one: replace(one, template=one.text))  # every text for itself
    assert names(single) == []


def test_few_groups_and_uneven_labels():
    splits = made()
    few = changed(splits, lambda one: replace(one, template=f"few {len(one.text) % 5}"), lambda split, n: split == "confirm")
    (flag,) = concept_flags(few)
    assert (flag.name, flag.estimate) == ("few_groups", 5.0) and "confirm has 5 groups, fewer than 8" in flag.message
    (flag,) = concept_flags(made(members=0.1))
    assert flag.name == "imbalance" and flag.estimate == 0.1 and "confirm: 10.0% are members" in flag.message


def test_faults_are_named_together_and_in_order():
    splits = copied(made(members=0.1))
    found = names(changed(splits, lambda one: replace(one, template="group 0"), lambda split, n: split == "ood" and n < 9))
    assert found == [name for name in FLAGS if name in ("duplicate_leakage", "group_leakage", "imbalance")]


def test_strange_sets_are_described_not_refused():
    one = Example("only one", 1, "g")
    assert [flag.name for flag in concept_flags({"confirm": [one]})] == ["few_groups", "imbalance"]
    assert {"few_groups"} <= set(names({"discover": [Example("!!", n % 2, f"g{n}") for n in range(6)], "tune": []}))
    with pytest.raises(UsageError, match="splits: got 'no examples'"):
        concept_flags({"tune": []})
    with pytest.raises(UsageError, match="scores: got '0 of split confirm'; allowed: 1, one an example"):
        concept_flags({"confirm": [one]}, {})
    with pytest.raises(UsageError, match="finite"):
        concept_flags({"confirm": [one]}, {"confirm": [float("nan")]})


def test_auroc_and_its_interval():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(labels * 0.8, 1.0), 1)  # with ties
    assert _auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    weights = rng.integers(0, 4, 300).astype(float)
    assert _auroc(scores, labels, weights) == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
    covered = 0
    for seed in range(60):  # 20 texts a group with a shift of their own: the truth is .5
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(40), 5)
        labels = np.repeat(rng.integers(0, 2, 40), 5)
        low, high = _auroc_interval(np.repeat(rng.normal(size=40), 5) + 0.1 * rng.normal(size=200), labels, groups, seed)[1:]
        covered += low <= 0.5 <= high
    assert covered >= 51  # 95% of 60 are 57


def test_extremes_are_counted_by_hand():
    scores, labels = np.arange(40.0), np.array([0] * 20 + [1] * 20)
    labels[[0, 39, 38]] = [1, 0, 1]
    assert _extremes(scores, labels, SUREST) == (4, [39, 0])


def test_groups_larger_than_a_sample_are_cut_not_dropped(monkeypatch):
    monkeypatch.setattr("assay.data.concept_flags.MOST", 240)
    texts = [("no word in a row", "here is a much longer text, with many more words in it")[n % 2] for n in range(1600)]
    examples = [Example(f"{text} {n}", n % 2, f"g{n // 260}") for n, text in enumerate(texts)]
    assert "length_confound" in {flag.name for flag in concept_flags({"discover": examples[:520], "tune": examples[520:]})}
