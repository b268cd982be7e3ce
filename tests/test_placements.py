"""Placements and shuffles against scikit-learn, scipy and enumeration."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from assay.evidence.gates.shuffled import shuffled_means
from assay.statistics import comparison_groups, placements, summarise, weaker

SCORES = st.lists(st.integers(0, 5), min_size=6, max_size=24)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_mean_placement_of_a_template_is_its_auroc(scores, rng):
    labels = [1, 0] + [rng.choice([0, 1]) for _ in scores[2:]]
    placed = [value for value in placements(scores, labels, ["t"] * len(scores)) if value is not None]
    assert np.mean(placed) == pytest.approx(roc_auc_score(labels, scores))
    assert len(placed) == sum(labels)


def test_members_are_compared_inside_their_template():
    scores, labels = [1, 0, 11, 10], [1, 0, 0, 1]
    assert placements(scores, labels, ["a", "a", "b", "b"]) == [1.0, None, None, 0.0]


def test_items_without_a_score_are_left_out_on_both_sides():
    scores, labels = [1.0, None, 0.5, None, 2.0], [1, 1, 0, 0, 0]
    assert placements(scores, labels, ["t"] * 5) == [0.5, None, None, None, None]
    assert placements([None, None], [1, 0], ["t", "t"]) == [None, None]


def test_templates_of_one_label_are_compared_with_all_others():
    scores, labels, groups = [3, 4, 1, 2], [1, 1, 0, 0], ["a", "b", "c", "d"]
    assert comparison_groups(labels, groups) == [""] * 4
    assert placements(scores, labels, groups) == [1.0, 1.0, None, None]


def test_shuffles_stay_inside_templates_and_centre_on_one_half():
    rng = np.random.default_rng(0)
    templates = [f"t{i // 10}" for i in range(100)]
    labels = [i % 2 for i in range(100)]
    level = np.array([int(name[1:]) for name in templates]) * 10.0  # templates differ hugely, labels do not
    null = shuffled_means(level + rng.standard_normal(100), labels, templates, 400)
    assert abs(null.mean() - 0.5) < 0.01 and null.std() < 0.06
    assert np.array_equal(null, shuffled_means(level + np.random.default_rng(0).standard_normal(100), labels, templates, 400))


def test_the_shuffle_distribution_is_the_enumerated_one():
    scores, labels = [0.3, 1.2, 0.7, 2.0, 1.1], [1, 1, 0, 0, 0]
    exact = sorted(roc_auc_score([int(i in two) for i in range(5)], scores) for two in itertools.combinations(range(5), 2))
    drawn = shuffled_means(scores, labels, ["t"] * 5, 4000)
    assert set(np.round(drawn, 6)) == set(np.round(exact, 6))
    assert np.mean(drawn) == pytest.approx(np.mean(exact), abs=0.02)


def test_the_weaker_of_two_groupings_counts():
    values = [0.9, 0.1, 0.8, 0.2, 0.9, 0.1, 0.8, 0.2]
    by_template = summarise(values, list("aabbccdd"), 0.2)
    by_word = summarise(values, list("xyxyxyxy"), 0.2)
    both = weaker(by_template, by_word)
    assert both.p_above == max(by_template.p_above, by_word.p_above) > by_template.p_above
    assert both.sample["K"] == 2 and both.estimate == by_template.estimate
    assert both.low == min(by_template.low, by_word.low) and both.high == max(by_template.high, by_word.high)
