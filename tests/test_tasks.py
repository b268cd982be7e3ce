"""Tasks: what generators promise, splits that share nothing, own files, what a model can do."""

import csv
import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.special import logsumexp

from assay import load_task, prepare
from assay.cli.tasks import tasks as command
from assay.data import task_files
from assay.data.generators.base import fill, next_word
from assay.data.measure import measure_task
from assay.data.metrics import METRICS, kl
from assay.data.prepare import PreparedTask
from assay.data.tasks import SPLITS, TASKS, Draw, Task, n_templates
from assay.data.vocabulary import vocabulary_words
from assay.errors import TaskError, UsageError
from assay.records import Pair
from assay.statistics import interval

BUNDLED = ("capitals", "greater_than", "induction", "ioi", "language", "opinion", "pronouns", "sva")
FEWEST = {"discover": 10, "tune": 8, "confirm": 20, "ood": 10}
CASES = [(name, split) for name in BUNDLED for split in SPLITS]
ROW = {"clean": "a b", "corrupted": "a c", "answer": " d", "foil": " e", "template": "t"}


def words_of(node):
    """Every text in a nested table of words."""
    if isinstance(node, str):
        return [node]
    return [word for item in (node.values() if isinstance(node, dict) else node) for word in words_of(item)]


def runs(frame, length=5):
    """Word sequences of a frame between slots."""
    pieces = [re.findall(r"[a-z']+", piece.lower()) for piece in re.split(r"\[[A-Z]\]", frame)]
    return {tuple(words[i : i + length]) for words in pieces for i in range(len(words) - length + 1)}


# what is bundled ---------------------------------------------------------------------------------


def test_bundled_tasks_have_enough_templates():
    assert set(BUNDLED) <= set(TASKS.names())
    for name, split in CASES:
        frames = TASKS.get(name).frames[split]
        assert n_templates(name, split) == len(frames) == len(set(frames)) >= FEWEST[split], (name, split)


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_share_no_frame_and_no_word(name):
    task = TASKS.get(name)
    for one, other in itertools.permutations(SPLITS, 2):
        assert not set().union(*map(runs, task.frames[one])) & set().union(*map(runs, task.frames[other]))
        words = set(map(str.lower, words_of(task.words[one])))
        assert not words & set(map(str.lower, words_of(task.words[other])))
        in_frames = set(re.findall(r"[a-z]+", " ".join(task.frames[other]).lower()))
        assert not words & in_frames, (one, other)


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_pairs_of_two_splits_share_nothing(name, seed):
    for corruption in TASKS.get(name).corruptions:
        seen = {split: load_task(name, split, 60, seed, corruption) for split in SPLITS}
        for one, other in itertools.combinations(SPLITS, 2):
            for things in (lambda p: [p.template], lambda p: p.entities, lambda p: [p.clean, p.corrupted]):
                left, right = ({thing for pair in seen[split] for thing in things(pair)} for split in (one, other))
                assert left and right and not left & right, (corruption, one, other)


@pytest.mark.parametrize("name, split", CASES)
def test_pairs_are_reproducible_balanced_and_different(name, split):
    for corruption in TASKS.get(name).corruptions:
        pairs = load_task(name, split, 50, 3, corruption)
        assert pairs[:20] == load_task(name, split, 20, 3, corruption)
        assert pairs != load_task(name, split, 50, 4, corruption)
        assert len({(p.clean, p.corrupted) for p in pairs}) == 50
        counts = Counter(p.template for p in pairs)
        assert max(counts.values()) - min(counts.values()) <= 1
        for pair in pairs:
            assert pair.clean != pair.corrupted and "[" not in pair.clean.replace("return [", "")
            for at, other in pair.labels.values():
                assert not pair.clean[at].isspace() and not pair.corrupted[other].isspace()


def test_too_many_pairs_and_wrong_arguments():
    words = {"discover": ["x", "y"]}
    task = Task("small", "two words", ("swap",), {"discover": ["[A] is"]}, words, two_words)
    assert len(task.pairs(n=2)) == 2
    with pytest.raises(UsageError, match="n: got 3; allowed: at most about 2"):
        task.pairs(n=3)
    for arguments, says in (({"split": "test"}, "split: got 'test'; allowed: discover, tune"),
                            ({"corruption": "abd"}, "corruption: got 'abd'; allowed: swap, abc, names"),
                            ({"n": 0}, "n: got 0")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            load_task("ioi", **arguments)
    with pytest.raises(TaskError, match="Did you mean 'pronouns'"):
        load_task("pronoun")
    with pytest.raises(TaskError, match="not bundled and no such file"):
        load_task("x" * 5000)


def two_words(draw: Draw) -> Pair:
    a, b = draw.rng.sample(draw.words, 2)
    return Pair(fill(draw.frame, {"A": a})[0], fill(draw.frame, {"A": b})[0], (f" {a}",), (f" {b}",), draw.frame)


def test_a_third_party_task_is_one_registration(tmp_path):
    frames = {split: [f"{split} [A] is"] for split in SPLITS}
    task = Task("theirs", "from elsewhere", ("swap",), frames, {split: list("xyz") for split in SPLITS}, two_words)
    TASKS.add("theirs", task)
    try:
        assert load_task("theirs", "ood", n=3)[0].template == "ood [A] is" and n_templates("theirs", "ood") == 1
        assert {"task": "theirs", "title": "from elsewhere", "corruptions": ["swap"],
                "templates": dict.fromkeys(SPLITS, 1)} in run_json()  # fmt: skip
        with pytest.raises(UsageError, match="a name that is not taken"):
            TASKS.add("theirs", Task("theirs", "another", ("swap",), frames, {}, two_words))
    finally:
        TASKS._items.pop("theirs")


def test_fill_gives_offsets_of_the_first_use():
    text, places = fill("[[A], [B]] [A]!", {"A": "red", "B": "blue"})
    assert text == "[red, blue] red!" and places == {"A": 1, "B": 6}
    assert [next_word(frame, "x") for frame in ("a", "a >", "a\n", 'a "', "<li>")] == [" x", " x", "x", "x", "x"]


# each task, by its own definition ----------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("corruption", ["swap", "abc", "names"])
def test_ioi(split, corruption):
    pairs, names = load_task("ioi", split, 40, 2, corruption), set(words_of(TASKS.get("ioi").words[split]))
    orders = Counter()
    for pair in pairs:
        said, other = ([w for w in re.findall(r"\w+", text) if w in names] for text in (pair.clean, pair.corrupted))
        io, s = pair.answers[0].strip(), pair.foils[0].strip()
        assert said in ([io, s, s], [s, io, s])
        orders[pair.template, said[0] == io] += 1
        if corruption == "names":
            assert len(set(other)) == 3 and not set(other) & {io, s}
        else:
            assert other[:2] == said[:2] and (other[2] == io if corruption == "swap" else other[2] not in (io, s))
        at = {label: pair.clean[offset:] for label, (offset, _) in pair.labels.items()}
        assert at["IO"].startswith(io) and at["S1"].startswith(s) and at["S2"].startswith(s)
        assert pair.labels["S1"][0] < pair.labels["S2"][0] and pair.corrupted[pair.labels["S2"][1] :].startswith(other[2])
        assert set(said + other) == set(pair.entities)
    for template in {pair.template for pair in pairs}:
        assert abs(orders[template, True] - orders[template, False]) <= 1  # ABBA and BABA


def test_greater_than():
    for pair in load_task("greater_than", "confirm", 60, 1):
        century, year = re.search(r"(\d\d)(\d\d)", pair.clean).groups()
        assert pair.clean.endswith(century) and pair.corrupted == pair.clean.replace(century + year, f"{century}01", 1)
        assert set(pair.answers) == {f"{n:02}" for n in range(100) if n > int(year)}
        assert set(pair.foils) == {f"{n:02}" for n in range(100) if n <= int(year)}
        assert pair.clean[pair.labels["year"][0] :].startswith(year) and century + year in pair.entities


def test_agreement_pronouns_and_capitals():
    table = {form: (number, noun) for nouns in (TASKS.get("sva").words["tune"]["nouns"],)
             for noun in nouns for number, form in enumerate(noun)}  # fmt: skip
    plural = Counter()
    for pair in load_task("sva", "tune", 40):
        subject, attractor = (re.match(r"\w+", pair.clean[pair.labels[k][0] :])[0] for k in ("subject", "attractor"))
        flipped = re.match(r"\w+", pair.corrupted[pair.labels["subject"][1] :])[0]
        assert table[subject][0] != table[attractor][0] and table[flipped] == (1 - table[subject][0], table[subject][1])
        assert (pair.answers, pair.foils) == (((" has",), (" have",)), ((" have",), (" has",)))[table[subject][0]]
        plural[table[subject][0]] += 1
    assert plural[0] == plural[1] == 20
    names = TASKS.get("pronouns").words["ood"]
    for pair in load_task("pronouns", "ood", 24):
        right, wrong = pair.answers[0].strip(), pair.foils[0].strip()
        assert {right, wrong} == {"he", "she"} and pair.entities[0] in names[right] and pair.entities[1] in names[wrong]
        assert pair.corrupted == pair.clean.replace(*pair.entities)
    capital = dict(TASKS.get("capitals").words["confirm"])
    for pair in load_task("capitals", "confirm", 40):
        country, other = pair.entities[0], pair.entities[2]
        assert pair.answers == (f" {capital[country]}",) and pair.foils == (f" {capital[other]}",)
        assert pair.corrupted == pair.clean.replace(country, other)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("corruption", ["replace", "exchange"])
def test_induction_continues_what_was_said_before(split, corruption):
    def continues(text, word):
        """Whether the first earlier place where the text's longest repeated ending stood goes on with word."""
        size = next(k for k in range(len(text) - 1, 0, -1) if text.find(text[-k:]) < len(text) - k)
        return text[text.find(text[-size:]) + size :].startswith(word)

    for pair in load_task("induction", split, 60, 5, corruption):
        (answer,), (foil,) = pair.answers, pair.foils
        assert continues(pair.clean, answer) and continues(pair.corrupted, foil)
        at, before = pair.labels["copied"][0], pair.labels["before"][0]
        assert pair.clean[at:].startswith(answer.strip()) and not pair.clean[before + 1 : at].strip()
        same_words = Counter(re.findall(r"\w+", pair.clean)) == Counter(re.findall(r"\w+", pair.corrupted))
        assert same_words == (corruption == "exchange")


def test_random_tokens_survive_the_round_trip(glass):
    words = vocabulary_words(glass)
    assert min(map(len, words.values())) > 40 and len(set(words_of(words))) == len(words_of(words))
    for word in words_of(words)[::7]:
        (token,) = glass.tokens(f" {word}")[0]
        assert glass.text([token]) == f" {word}"
    task = TASKS.get("induction")
    own = Task("own", task.title, task.corruptions, {"tune": ["the [A] [B] [X] [Y] [A] [B]"]}, words, task.make)
    prepared = prepare(own.pairs("tune", 20), glass)
    start = len(glass.tokens("the")[0])
    assert len(prepared) == 20 and {len(ids) for ids in prepared.clean} == {start + 6}
    for ids, (answer,), (foil,) in zip(prepared.clean, prepared.answers, prepared.foils, strict=True):
        assert ids[start + 1 : start + 3] == [ids[-1], answer] and foil not in ids


# alignment and answers ---------------------------------------------------------------------------


class Stub:
    """A tokenizer that cuts text by a pattern; every piece is one token."""

    name = "stub"

    def __init__(self, pattern, texts, bos=False):
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        pieces = [piece for text in texts for piece in re.findall(pattern, text)]
        self.vocab = {piece: i for i, piece in enumerate(dict.fromkeys(["<s>", "<unk>", *pieces]))}
        made = Tokenizer(models.WordLevel(self.vocab, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        self.tokenizer, self.bos = PreTrainedTokenizerFast(tokenizer_object=made), [0] if bos else []

    def tokens(self, prompts):
        items = [prompts] if isinstance(prompts, str) else prompts
        return [[*self.bos, *self.tokenizer(item, add_special_tokens=False)["input_ids"]] for item in items]

    def ids(self, *pieces):
        return [self.vocab[piece] for piece in pieces]


WORDS = r" ?[A-Za-z.,]+"
SHORT = r" ?[A-Z][a-z]| ?[a-z.,]+"  # a capital and one letter, then the rest: longer names are more tokens


def reason(pair, model):
    with pytest.raises(TaskError) as caught:
        prepare([pair], model)
    (found,) = caught.value.dropped
    return found


def one(clean, corrupted, answers=(" x",), foils=(" y",), **more):
    return Pair(clean, corrupted, answers, foils, "t", **more)


def test_equal_counts_at_different_places_are_not_aligned():
    texts = ["Jo met Anna and Al", "Anna met Jo and Al", " x y", "Al met Jo and Al"]
    model = Stub(SHORT, texts)
    assert [len(ids) for ids in model.tokens(texts)[:2]] == [6, 6]
    assert reason(one(texts[0], texts[1]), model) == "words of clean and corrupted stand at different tokens"
    assert reason(one(texts[0], texts[3]), model) == "clean and corrupted have different numbers of tokens"
    assert len(prepare([one(texts[3], texts[3].replace("Jo", "Ed"))], Stub(SHORT, [*texts, " Ed"]))) == 1


def test_other_numbers_of_words_are_aligned_only_where_the_rest_stands_still():
    clean, corrupted, moved = "see New York a b", "see Bratislava a b", "see old Bratislava a"
    model = Stub(r" Brat|islava| ?[A-Za-z]+", [clean, corrupted, moved])
    assert [len(ids) for ids in model.tokens([clean, corrupted, moved])] == [5, 5, 5]
    assert len(prepare([one(clean, corrupted, (" old",), (" a",))], model)) == 1
    assert reason(one(clean, moved, (" see",), (" old",)), model) == "words of clean and corrupted stand at different tokens"


def test_labels_count_bos_and_must_agree():
    texts = ["Al and Jo met. Al saw", "Al and Jo met. Jo saw", " Jo Al"]
    labels = {"IO": (7, 7), "S2": (15, 15)}
    pair = one(texts[0], texts[1], (" Jo",), (" Al",), labels=labels)
    for bos in (False, True):
        prepared = prepare([pair, pair], Stub(WORDS, texts, bos))
        assert prepared.labels == {"IO": [2 + bos] * 2, "S2": [4 + bos] * 2, "end": [5 + bos] * 2}
    moved = one(texts[0], texts[1], (" Jo",), (" Al",), labels={"IO": (7, 15)})
    assert reason(moved, Stub(WORDS, texts)) == "words of clean and corrupted stand at different tokens"


def test_single_answers_are_scored_where_they_differ():
    texts = ["go to", "come to", " New York", " New Delhi", " Rome"]
    model = Stub(r" ?[A-Za-z]+", texts)
    prepared = prepare([one("go to", "come to", (" New York",), (" New Delhi",))], model)
    assert prepared.clean == [model.ids("go", " to", " New")] and prepared.corrupted == [model.ids("come", " to", " New")]
    assert prepared.answers == [tuple(model.ids(" York"))] and prepared.foils == [tuple(model.ids(" Delhi"))]
    assert prepared.labels["end"] == [2]
    assert prepared.notes == {"scored on the first token in which answer and foil differ": 1}
    assert reason(one("go to", "come to", (" New York",), (" New",)), model) == "answer or foil begins with the other"


def test_sets_are_scored_on_first_tokens_and_shared_ones_left_out():
    digits = Stub(r"\d| ?[a-z]+", ["from 1732 to 17", "from 1701 to 17", *map(str, range(10))])
    pair = one("from 1732 to 17", "from 1701 to 17", tuple(f"{n:02}" for n in range(33, 100)),
               tuple(f"{n:02}" for n in range(33)))  # fmt: skip
    prepared = prepare([pair, pair], digits)
    assert prepared.answers == [tuple(digits.ids(*"456789"))] * 2  # each once: 40 to 49 begin with the same token
    assert prepared.foils == [tuple(digits.ids(*"012"))] * 2
    assert prepared.notes == {"first tokens left out: they begin an answer and a foil": 2, "scored on first tokens": 2}
    pairs = Stub(r"\d\d| ?[a-z]+| ", [pair.clean, pair.corrupted, *(f"{n:02}" for n in range(100))])
    whole = prepare([pair], pairs)
    assert len(whole.answers[0]) == 67 and len(whole.foils[0]) == 33 and whole.notes == {}
    triples = Stub(r"\d{1,3}| ?[a-z]+| ", [pair.clean, pair.corrupted, *map(str, range(1000))])
    assert reason(pair, triples) == "answer or foil merges with the prompt's last token"  # 17|33 is read 173|3


def test_one_side_empty_drops_the_pair_and_merging_texts_are_counted():
    texts = ["they say", "we say", " a b", " a c", " d", "ing", "we saying", "they saying"]
    model = Stub(r" ?[a-z]+", texts)
    assert reason(one("they say", "we say", (" a b", " a"), (" a c",)), model) == "no first token tells answers from foils"
    prepared = prepare([one("they say", "we say", (" d", "ing"), (" a", " a b"))], model)
    assert prepared.answers == [tuple(model.ids(" d"))] and prepared.foils == [tuple(model.ids(" a"))]
    assert prepared.notes == {"answers or foils left out: they merge with the prompt's last token": 1,
                              "scored on first tokens": 1}  # fmt: skip
    assert reason(one("they say", "we say", ("ing",), (" a",)), model) == "answer or foil merges with the prompt's last token"


def test_pairs_that_cannot_be_used_are_dropped_and_counted():
    model = Stub(WORDS, ["Al said", "Jo said", " so", " no", "Al said so"])
    good = one("Al said", "Jo said", (" so",), (" no",))
    bad = {
        "empty prompt": one("", "Al said"),
        "clean and corrupted are the same": one("Al said", "Al said"),
        "an answer is also a foil": one("Al said", "Jo said", (" so",), (" no", " so")),
        "the prompt already ends with the answer": one("Al said so", "Jo said so", (" so",), (" no",)),
        "clean and corrupted have the same tokens": one("Xi said", "Yu said", (" so",), (" no",)),  # both unknown
        "clean and corrupted have different numbers of tokens": one("Al said", "Al said so", (" so",), (" no",)),
        "answer or foil begins with the other": one("Al said", "Jo said", (" huh",), (" hum",)),  # both unknown
    }
    prepared = prepare([good, *bad.values(), good], model)
    assert prepared.dropped == dict.fromkeys(bad, 1) and prepared.pairs == [good, good]
    with pytest.raises(TaskError, match=r"none of 2 pairs can be used with stub \(empty prompt: 2\)"):
        prepare([bad["empty prompt"]] * 2, model)
    ends = one("in 1605 to 16", "in 1601 to 16", ("16", "17"), ("04", "03"))  # not a mistake: 1616 is later than 1605
    assert len(prepare([ends], Stub(r"\d\d| ?[a-z]+| ", [ends.clean, ends.corrupted, "17", "04", "03"]))) == 1


@pytest.mark.parametrize("name", BUNDLED)
def test_labels_hold_the_words_on_a_small_vocabulary(glass, name):
    try:
        prepared = prepare(load_task(name, "discover", 40), glass)
    except TaskError as error:
        assert "pairs can be used" in str(error) and sum(error.dropped.values()) == 40
        return
    check_labels(prepared, glass)
    assert len(prepared) + sum(prepared.dropped.values()) == 40


def check_labels(prepared, model):
    """Every label's token begins the labelled word in clean, and stands at the same place in corrupted."""
    for row, pair in enumerate(prepared.pairs):
        assert len(prepared.clean[row]) == len(prepared.corrupted[row])
        for label, (at, other) in pair.labels.items():
            place = prepared.labels[label][row]
            for ids, text, offset in ((prepared.clean, pair.clean, at), (prepared.corrupted, pair.corrupted, other)):
                before = model.text(ids[row][:place]).removeprefix("<|endoftext|>")
                assert len(before) <= offset < len(before) + len(model.text([ids[row][place]]))
                assert text.startswith(before)


# metrics and what a model can do -----------------------------------------------------------------


def test_metrics_against_numpy():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(3, 11)) * 3
    answers, foils = [[1, 2], [0, -1], [5, 6]], [[3, -1], [4, 7], [9, 10]]
    p = np.exp(z - logsumexp(z, -1, keepdims=True))
    for row in range(3):
        a, f = ([i for i in ids[row] if i >= 0] for ids in (answers, foils))
        want = {"logit_diff": logsumexp(z[row, a]) - logsumexp(z[row, f]), "prob": p[row, a].sum(),
                "prob_diff": p[row, a].sum() - p[row, f].sum(), "loss": -np.log(p[row, a].sum()),
                "rank": (z[row] > z[row, a].max()).sum()}  # fmt: skip
        for name, value in want.items():
            got = METRICS[name](torch.tensor(z), torch.tensor(answers), torch.tensor(foils))[row]
            assert float(got) == pytest.approx(value, rel=1e-6)
    other = rng.normal(size=(3, 11))
    q = np.exp(other - logsumexp(other, -1, keepdims=True))
    want = (p * (np.log(p) - np.log(q))).sum(-1)
    np.testing.assert_allclose(kl(torch.tensor(z), torch.tensor(other)).numpy(), want, rtol=1e-4)


def test_a_metric_of_ones_own():
    task = PreparedTask([one("a", "b")] * 2, [[1], [2]], [[3], [4]], [(0, 2), (1,)], [(3,), (0, 4)], {}, {})
    logits = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def mean_answer(logits, answers, foils):
        return torch.stack([row[ids[ids >= 0]].mean() for row, ids in zip(logits, answers, strict=True)])

    metric = task.metric(mean_answer)
    want = torch.stack([logits[0, [0, 2]].mean(), logits[1, 1]])
    torch.testing.assert_close(metric(logits, torch.tensor([0, 1])), want)
    torch.testing.assert_close(metric.select([1, 0])(logits.flip(0), torch.tensor([0, 1])), want.flip(0))
    assert metric.name == "mean_answer" and task.metric(lambda z, a, f: z[:, 0]).name == "<lambda>"
    with pytest.raises(UsageError, match=r"metric 'f': got \(2, 5\); allowed: a tensor \(2,\)"):
        task.metric(SimpleFunction())(logits, torch.tensor([0, 1]))
    with pytest.raises(UsageError, match="Did you mean 'logit_diff'"):
        task.metric("logitdiff")


class SimpleFunction:
    """A function object that returns logits as they are."""

    __name__ = "f"

    def __call__(self, logits, answers, foils):
        return logits


def test_measure_counts_templates_not_prompts():
    scores = [3.0, 1.0, -1.0, 0.0, 2.0]
    pairs = [Pair(str(i), "b", (" x",), (" y",), template) for i, template in enumerate("aaabc")]
    task = PreparedTask(pairs, [[i] for i in range(5)], [[9]] * 5, [(0,)] * 5, [(1,)] * 5, {"why": 2}, {})

    def score(prompts, metric):
        logits = torch.tensor([[scores[ids[0]], 0.0] for ids in prompts])
        return metric(logits, torch.arange(len(prompts)))

    summary = measure_task(SimpleNamespace(score=score), task, "mine")
    assert summary.accuracy == pytest.approx(3 / 5)  # a tie is not right
    assert summary.logit_diff == pytest.approx((1 + 0 + 2) / 3)
    assert (summary.low, summary.high) == pytest.approx(interval([1.0, 0.0, 2.0]))
    assert (summary.task, summary.n_pairs, summary.n_templates, summary.dropped) == ("mine", 5, 3, {"why": 2})
    alone = PreparedTask(pairs[:3], task.clean[:3], [[9]] * 3, [(0,)] * 3, [(1,)] * 3, {}, {})
    assert np.isnan([measure_task(SimpleNamespace(score=score), alone).low]).all()


# one's own file ----------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


def line(**changes):
    return json.dumps({**ROW, **changes})


@pytest.mark.parametrize("content, says", [
    ("{", "line 2: not JSON"), ("[]", "line 2: got list; allowed: an object"), ("3", "line 2: got int"),
    ("[" * 100_000, "line 2: not JSON"), (line(clean=3), "line 2, field 'clean': got 3; allowed: a text"),
    (line(corrupted=""), "field 'corrupted': got ''"), (line(answer=[]), r"field 'answer': got \[\]"),
    (line(foil=[" a", 3]), "field 'foil': got 3; allowed: a text, or a list"), (line(answer=None), "field 'answer': got None"),
    ('{"clean":"a","corrupted":"b","answer":" c","foil":" d"}', "field 'template': got None.*independence"),
    (line(clean="\ud800"), "field 'clean': half of a surrogate pair"),
    (line(labels=[1]), r"field 'labels': got \[1\]"), (line(labels={"x": 3}), "'x' is 3; allowed: the offset"),
    (line(labels={"x": [0, True]}), "'x' is "), (line(labels={"x": [0, 1, 2]}), "'x' is "),
    (line(labels={"x": -1}), "'x' is -1"), (line(entities=[""]), "field 'entities': got ''"),
    (line(clean={"a": "b" * 500}), r"field 'clean': got \{'a': 'b{10,60}\.\.\."),
])  # fmt: skip
def test_json_lines_errors_name_line_and_field(tmp_path, content, says):
    with pytest.raises(TaskError, match=says):
        load_task(write(tmp_path / "task.jsonl", line() + "\n" + content))


HEADER = "clean,corrupted,answer,foil,template\n"


@pytest.mark.parametrize("content, says", [
    ("clean,corrupted,answer,foil\na,b, c, d\n", "line 1: the header has no field 'template'"),
    ("clean;corrupted;answer;foil;template\n", "has no field 'clean', .*Separate the fields by commas"),
    ("clean," + HEADER, "line 1, field 'clean': it is in the header twice"),
    (HEADER + "a,b, c, d,t\na,b,c, c, d,t\n", "line 3: 6 cells; allowed: 5.*double quotes"),
    (HEADER + '"a\nb\nc",b, c, d,t\na,b, c\n', "line 5: 3 cells; allowed: 5"),
    (HEADER + '"a\nb",b, c, d,t\n\na,b,, d,t\n', "line 5, field 'answer': got ''"),
    ("text,class,group\n", "Name the columns clean, corrupted"),
    (HEADER + 'a,"b, c, d,t\n', "line 2: not CSV"), (HEADER, "it has no pairs. Write one row a line"),
    (HEADER + 'a,"b"x, c, d,t\n', "line 2: not CSV"),
])  # fmt: skip
def test_csv_errors_name_line_and_field(tmp_path, content, says):
    with pytest.raises(TaskError, match=says):
        load_task(write(tmp_path / "task.csv", content))


def test_files_that_are_no_task_files(tmp_path, monkeypatch):
    for name, content, says in (
        ("a.jsonl", b"", "it has no pairs. Write one JSON object a line"), ("b.jsonl", "\n \n", "it has no pairs"),
        ("c.jsonl", b"\xff\xfe\x00\x01", "byte 0 is not UTF-8"), ("d.csv", b"clean\xe9", "byte 5 is not UTF-8"),
        ("e.json", line(), "got suffix '.json'; allowed: .jsonl or .csv"), ("f", line(), "got suffix ''"),
        ("g.jsonl", b"\x00\x00\x00", "line 1: not JSON"), ("h.csv", b"\x00\x00", "line 1: "),
    ):  # fmt: skip
        with pytest.raises(TaskError, match=says):
            load_task(write(tmp_path / name, content))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(TaskError, match="it is not a file"):
        load_task(str(tmp_path / "folder.csv"))
    with pytest.raises(TaskError, match="no such file"):
        load_task(str(tmp_path / "absent.csv"))
    monkeypatch.setattr(task_files, "LARGEST", 10)
    with pytest.raises(TaskError, match="bytes; allowed: 10"):
        load_task(write(tmp_path / "big.jsonl", line()))


def test_json_lines_and_csv_say_the_same(tmp_path):
    texts = {"clean": 'He said: "a,\nb" \u2028 é', "corrupted": "He said: c", "note": "x", "answer": " d", "foil": " e",
             "template": " t "}  # fmt: skip
    with open(tmp_path / "t.csv", "w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([texts.keys(), texts.values(), []])
    table = str(tmp_path / "t.csv")
    jsonl = write(tmp_path / "t.JSONL", "\ufeff" + json.dumps(texts, ensure_ascii=False) + "\r\n\r\n")
    want = Pair(texts["clean"], texts["corrupted"], (" d",), (" e",), " t ")
    assert load_task(table) == load_task(jsonl) == [want] and n_templates(table) == 1


def test_labels_entities_and_lists_of_a_file(tmp_path):
    rows = [line(answer=[" d", " f"], labels={"x": 2, "y": [0, 1]}, entities=["b", "c"]), line(template="u"), line()]
    first, *others = load_task(write(tmp_path / "t.jsonl", "\n".join(rows)))
    assert first.answers == (" d", " f") and first.labels == {"x": (2, 2), "y": (0, 1)} and first.entities == ("b", "c")
    assert others[0] == Pair("a b", "a c", (" d",), (" e",), "u") and n_templates(str(tmp_path / "t.jsonl")) == 2


# the command -------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(command, [*map(str, arguments), "--quiet"], catch_exceptions=True)


def run_json(*arguments):
    done = run(*arguments, "--json", "-")
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def test_the_list_needs_no_torch():
    code = "import sys; from assay.cli.main import cli; cli(['tasks'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
    assert "ioi" in done.stdout and "corruptions: swap, abc, names; templates: 10 discover" in done.stdout
    rows = {row["task"]: row for row in run_json()}
    assert set(BUNDLED) <= set(rows) and rows["sva"]["templates"]["confirm"] == n_templates("sva", "confirm")


def test_the_list_reads_a_file_and_refuses_what_is_unknown(tmp_path):
    path = write(tmp_path / "t.jsonl", "\n".join([line(), line(clean="x b"), line(template="u")]))
    assert run_json("--file", path) == [{"task": path, "title": "your own, 3 pairs", "corruptions": [],
                                        "templates": {"all": 2}}]  # fmt: skip
    assert isinstance(run("--task", "iio").exception, TaskError)
    assert isinstance(run("glass-en", "--file", tmp_path / "none.csv").exception, TaskError)
    assert run("--n", 0).exit_code == 2


def test_the_table_of_a_model(tmp_path, glass):
    rows = [{"clean": f"the {a} said", "corrupted": f"the {b} said", "answer": " to", "foil": " of", "template": a[0]}
            for a, b in (("King", "Queen"), ("Rabbit", "Mouse"), ("Cat", "Turtle"), ("Queen", "King"))]  # fmt: skip
    path = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)))
    common = ("glass-en", "--file", path, "--atlas", tmp_path)
    (record,) = run_json(*common)
    assert {"task", "n_pairs", "dropped", "accuracy", "logit_diff", "low", "high", "n_templates", "split"} <= set(record)
    kept = prepare(load_task(path), glass)
    means = {}
    for pair, ids, (answer,), (foil,) in zip(kept.pairs, kept.clean, kept.answers, kept.foils, strict=True):
        with torch.no_grad():
            logits = glass.hf(input_ids=torch.tensor([ids])).logits[0, -1]
        means.setdefault(pair.template, []).append(float(logits[answer] - logits[foil]))
    assert record["logit_diff"] == pytest.approx(np.mean([np.mean(found) for found in means.values()]), abs=1e-4)
    assert record["accuracy"] == np.mean([value > 0 for found in means.values() for value in found])
    assert record["n_pairs"] == len(kept) and record["n_templates"] == len(means) and record["split"] == "all"
    shown = run(*common, "--task", "pronouns", "--task", "ioi", "--n", 8).stdout
    assert "accuracy" in shown and "dropped: " in shown and ("ioi: no behaviour" in shown or "%" in shown)


def test_a_look_at_sealed_templates_is_recorded(tmp_path, glass):
    from assay.atlas.store import Atlas

    run_json("glass-en", "--task", "pronouns", "--n", 20, "--atlas", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    run_json("glass-en", "--task", "pronouns", "--n", 20, "--split", "confirm", "--atlas", tmp_path / "a")
    (look,) = [entry["body"] for entry in Atlas(tmp_path / "a").entries() if entry["kind"] == "look"]
    assert look["what"] == "tasks pronouns confirm" and look["n"] == 20
    assert len(look["clusters"]) == 20 + 2 * 20  # the templates, and both texts of every pair


# the real model ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name, split", CASES)
def test_the_real_model_has_the_behaviour(smollm2, name, split):
    prepared = prepare(load_task(name, split, 2 * n_templates(name, split)), smollm2)
    check_labels(prepared, smollm2)
    summary = measure_task(smollm2, prepared, name)
    assert summary.n_pairs >= 0.8 * 2 * n_templates(name, split) and summary.n_templates == n_templates(name, split)
    assert summary.accuracy >= 0.9 and summary.low > 0.5
    for corruption in TASKS.get(name).corruptions:
        pairs = load_task(name, split, 40, 1, corruption)
        assert len(prepare(pairs, smollm2)) >= 30, corruption


@pytest.mark.slow
def test_digits_of_the_real_tokenizer(smollm2):
    prepared = prepare(load_task("greater_than", n=20), smollm2)
    for pair, ids, answers, foils in zip(prepared.pairs, prepared.clean, prepared.answers, prepared.foils, strict=True):
        tens, units = map(int, re.search(r"\d\d(\d)(\d)", pair.clean).groups())
        assert sorted(smollm2.text([token]) for token in answers) == [str(d) for d in range(10) if d > tens]
        assert sorted(smollm2.text([token]) for token in foils) == [str(d) for d in range(10) if d < tens or
                                                                   d == tens and units == 9]  # fmt: skip
        assert smollm2.text(ids) == pair.clean
