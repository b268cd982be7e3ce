"""Splits and leaks: nothing on two sides, everything accounted for, whatever the data look like."""

from collections import Counter
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.data.concepts import CONCEPTS, Concept, load_concept
from assay.data.splits import DISAGREE, SHARES, SPLITS, deal, divide, leaks, spans_of, spread
from assay.data.tasks import TASKS, load_task
from assay.evidence.source import MemorySource
from assay.records import Example, Pair

FEW = settings(max_examples=60, deadline=None)


def example(text, label=0, template="t", entities=(), **more):
    return Example(text, label, template, tuple(entities), **more)


def crossed(frames, words):
    """Every word in every frame; the first half of the words are members."""
    return [example(f"frame {f} has word {w}", int(w < words // 2), f"f{f}", [f"w{w}"])
            for f in range(frames) for w in range(words)]  # fmt: skip


names = st.integers(0, 12).map(str)
examples = st.lists(
    st.builds(example, text=st.integers(0, 40).map(lambda n: f"text {n}"), label=st.integers(0, 1),
              template=names.map("t{}".format), entities=st.lists(names.map("e{}".format), max_size=3)),
    max_size=60,
)  # fmt: skip
pairs = st.lists(
    st.builds(lambda clean, template, entities: Pair(clean, f"{clean}!", (" a",), (" b",), template, {}, tuple(entities)),
              st.integers(0, 30).map(str), names, st.lists(names.map("e{}".format), max_size=2)),
    max_size=40,
)  # fmt: skip


@FEW
@given(st.one_of(examples, pairs, st.builds(crossed, st.integers(1, 14), st.integers(1, 14))))
def test_nothing_is_on_two_sides_and_every_item_is_accounted_for(items):
    divided = divide(items)
    kept = [item for split in SPLITS for item in divided.splits[split]]
    assert not Counter(kept_key(item) for item in kept) - Counter(kept_key(item) for item in items)
    assert len(kept) + sum(divided.dropped.values()) == len(items)
    for one, other in permutations(SPLITS, 2):
        found = leaks(divided.splits[one], divided.splits[other])
        assert not {"template", "entity", "text"} & set(found), (one, other, found)


@FEW
@given(examples.flatmap(lambda items: st.tuples(st.just(items), st.permutations(items))))
def test_the_order_of_rows_plays_no_part(both):
    items, shuffled = both
    assert divide(items) == divide(shuffled)


def kept_key(item):
    return repr(item)


@FEW
@given(st.integers(40, 120))
def test_many_small_groups_go_one_to_two_to_four_to_three(n):
    items = [example(f"text {i}.{k}", k % 2, f"group {i}") for i in range(n) for k in range(3)]
    divided = divide(items)
    assert divided.dropped == {}
    for split, found in divided.splits.items():
        groups = len({item.template for item in found})
        assert abs(groups - n * SHARES[split] / 10) <= 1.5, (split, groups)


@FEW
@given(st.integers(30, 80), st.integers(30, 80))
def test_labels_are_balanced_where_groups_have_one_label(members, others):
    items = [example(f"text {i}", int(i < members), f"group {i}") for i in range(members + others)]
    share = members / (members + others)
    for split, found in divide(items).splits.items():
        assert abs(sum(item.label for item in found) - share * len(found)) <= 2, split


def test_every_split_gets_something_as_soon_as_there_are_four_groups():
    units = {f"group {n}": [example("x", n % 2, f"group {n}"), example("y", 1 - n % 2)] for n in range(4)}
    assert sorted(deal(units).values()) == sorted(SPLITS)


def test_crossed_words_and_frames_are_held_out_apart():
    items = crossed(20, 40)
    divided = divide(items)
    lost = divided.dropped[DISAGREE]
    assert 0.6 * len(items) < lost < 0.8 * len(items)  # .1^2 + .2^2 + .4^2 + .3^2 = .30 agree
    for split, share in SHARES.items():
        found = divided.splits[split]
        frames, words = {item.template for item in found}, {item.entities[0] for item in found}
        assert (len(frames), len(words)) == (2 * share, 4 * share)
        assert len(found) == len(frames) * len(words)  # all that agree are kept
        assert sum(item.label for item in found) * 2 == len(found)
    assert MemorySource.split("mine", items).dropped() == {DISAGREE: lost}


def test_forms_of_a_word_stay_together_when_words_are_dealt_apart():
    items = [example(f"frame {f} has word {w} {form}", form, f"f{f}", [f"w{w}", f"w{w}s"])
             for f in range(8) for w in range(8) for form in (0, 1)]  # fmt: skip
    for found in divide(items).splits.values():
        words = {entity for item in found for entity in item.entities}
        assert found and all(f"{word.rstrip('s')}s" in words for word in words)


def test_a_document_keeps_its_texts_together_and_too_few_frames_are_not_cut():
    items = [example(f"text {i}", i % 2, f"t{i}", [f"document {i % 30}"]) for i in range(120)]
    homes = {split: {item.entities[0] for item in found} for split, found in divide(items).splits.items()}
    assert sum(map(len, homes.values())) == 30
    one = [example(f"text {i}", i % 2, "only", [f"w{i}"]) for i in range(40)]
    assert divide(one).dropped == {} and sorted(map(len, divide(one).splits.values())) == [0, 0, 0, 40]


def test_a_shared_text_joins_templates_even_when_the_group_is_cut():
    items = [*crossed(12, 12), example("the same", 0, "f0", ["w0"]), example("the same", 1, "f7", ["w9"])]
    divided = divide(items)
    homes = {split for split, found in divided.splits.items() for item in found if item.template in ("f0", "f7")}
    assert len(homes) == 1


# leaks -------------------------------------------------------------------------------------------

LONG = "when the first snow fell on the northern hills everybody stayed at home"


def test_leaks_are_counted_by_kind():
    seen = [example(LONG, 1, "a", ["snow"])]
    assert leaks(seen, [example("other words", 1, "b", ["ice"])]) == {}
    assert leaks(seen, [example("other words", 1, "a", ["ice"])]) == {"template": 1}
    assert leaks(seen, [example("other words", 1, "b", ["snow"])]) == {"entity": 1}
    assert leaks(seen, [example(LONG, 0, "b", ["ice"])]) == {"text": 1}  # not counted again as a span
    assert leaks(seen, [example("they say: When the first snow fell on the northern, hills!", 0, "b")]) == {"8-gram": 1}
    assert leaks(seen, [example("they say: when the first snow fell on the southern hills", 0, "b")]) == {}  # 7 words
    pair = Pair("x", f"{LONG}, and so on", (" a",), (" b",), "c")
    assert leaks(seen, [pair, replace(pair, clean=f"y {LONG}")]) == {"8-gram": 2}


def test_a_format_is_not_a_leak():
    opening = "Read the following sentence and say whether it is about animals:"
    sides = [[example(f"{opening} {side} {i}", i % 2, f"{side}{i}") for i in range(10)] for side in "ab"]
    assert len(spans_of(sides[0][0].text)) > 1 and leaks(*sides) == {}
    assert leaks(sides[0][:7], sides[1]) == {"8-gram": 10}  # too few templates to call it a format
    plain = [example(f"nothing in common {i}", 0, f"c{i}") for i in range(11)]
    assert leaks(sides[0], [*sides[1], *plain]) == {"8-gram": 10}  # not in most templates of both sides


@pytest.mark.parametrize("name", [name for name in CONCEPTS.names() if isinstance(CONCEPTS.get(name), Concept)])
def test_bundled_concepts_do_not_leak(name):
    for one, other in permutations(SPLITS, 2):
        assert leaks(load_concept(name, one, 120), load_concept(name, other, 120)) == {}


@pytest.mark.parametrize("name", TASKS.names())
def test_bundled_tasks_do_not_leak(name):
    for one, other in permutations(SPLITS, 2):
        assert leaks(load_task(name, one, 60), load_task(name, other, 60)) == {}


def test_a_few_items_keep_templates_and_labels():
    items = [example(f"{t}.{i}", int(i < 5), f"t{t}") for t in range(6) for i in range(10)]
    few = spread(items, 12)
    assert Counter((item.template, item.label) for item in few) == Counter((f"t{t}", y) for t in range(6) for y in (0, 1))
    assert sum(item.label for item in spread(items, 6)) == 3 and spread(items, 99)[:12] == few
