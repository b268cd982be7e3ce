"""The offline explainer: conditions along rows and on texts alike, bits by hand, planted rules found, none in noise."""

import json
import math
import random
import string

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import NeedsExtra, UsageError
from assay.evidence.rules import rule_of as evidence_rule
from assay.evidence.rules import rule_words as evidence_words
from assay.explain import conditions
from assay.explain.conditions import KINDS, condition_bits, usable
from assay.explain.lexical import LexicalPlan, explain_lexical, table_of
from assay.explain.reading import CodedPart
from assay.explain.records import Window
from assay.explain.rules import fires, fires_in, holds, rule_bits, rule_of, rule_words
from assay.explain.search import Cells, Searcher, SearchPlan
from assay.explain.table import make_table
from assay.explain.views import Prefix, Row, prefix_of, view
from assay.records import Example

PIECES = [" the", "The", " walk", "ing", "'", "'s", '"', " (", ")", "[", "]", "\n", "\n\n", " ", "12", ",", "5", ".", " U",
          "SA", " don", "’", "t", "日", "本語", "http", "://", "x.y", "", "`", "é", "_", "a", "B", "“", "”", "\t", " of", "{",
          "}"]  # fmt: skip
pieces = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40)


# along a row as on the text ------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(pieces)
def test_views_along_a_row_are_those_of_its_prefixes(row):
    for along, prefix in zip(Row(row).views, Row(row).prefixes(), strict=True):
        alone = view(prefix)
        assert (along.word, list(along.earlier), along.start, along.end) == (
            alone.word, list(alone.earlier), alone.start, alone.end)  # fmt: skip
        assert along.token == alone.token and along.tail(9) == prefix.text[-9:]


@settings(max_examples=60, deadline=None)
@given(pieces)
def test_every_kind_along_a_row_is_what_it_is_on_the_text(row):
    for kind in usable():
        assert list(kind.along(Row(row))) == [kind.values(prefix) for prefix in Row(row).prefixes()], kind.name


@settings(max_examples=60, deadline=None)
@given(pieces, st.randoms())
def test_rules_and_tables_agree_with_texts(row, draw):
    """A random rule of values that occur: along the row, on every prefix, and by the table of two rows."""
    table = make_table([row, PIECES], ["one", "two"])
    found = list(table.number)

    def condition():
        kind, value = draw.choice(found)
        return {"is": kind, "of": [value, *([draw.choice([v for k, v in found if k == kind])] * draw.randrange(2))]}

    record = {"type": "prefix", "any": [[condition() for _ in range(draw.randrange(1, 3))] for _ in range(2)],
              "not": [condition()] * draw.randrange(2)}  # fmt: skip
    along = fires(record, [row, PIECES])
    assert np.array_equal(np.concatenate(along), table.fires(record))
    for own, said in zip((row, PIECES), along, strict=True):
        assert said.tolist() == [holds(record, prefix) for prefix in Row(own).prefixes()]


def test_what_comes_after_is_never_seen():
    random.seed(0)
    for _ in range(20):
        row = [random.choice(PIECES) for _ in range(30)]
        for kind in usable():
            assert list(kind.along(Row(row)))[:12] == list(kind.along(Row(row[:12]))), kind.name


# kinds one by one ----------------------------------------------------------------------------------


def value(kind, text, token=""):
    return KINDS.get(kind).values(Prefix(text + token, len(text)))


@pytest.mark.parametrize(("kind", "text", "token", "wanted"), [
    ("token", "I saw", " the", (" the",)),
    ("word", "She walk", "ing", ("walking",)),
    ("word", "He said ", " ", ()),
    ("word", "It is John", "'s", ("john's",)),
    ("previous", "in the", " House", ("the",)),
    ("previous", "end.\n", "New", ("\n",)),
    ("previous_2", "one of", " the", ("one",)),
    ("previous_class", "out of", " town", ("preposition",)),
    ("word_class", "out", " Of", ("preposition",)),
    ("previous_case", "in New", " York", ("capitalised text",)),
    ("pair", "in The", " House", ("The  House",)),
    ("case", "", " NATO", ("text in capitals",)),
    ("case", "", " I", ("single capitals",)),
    ("case", "", "iPhone", ("mixed-case text",)),
    ("case", "", "3rd", ("lower-case text",)),
    ("case", "", "42", ("digits",)),
    ("case", "", "),", ("marks",)),
    ("number", "about 1,2", "50", ("0,000",)),
    ("number", "at 12:3", "0", ("00:00",)),
    ("number", "no", "ne", ()),
    ("ending_3", "walk", "ing", ("ing",)),
    ("ending_3", "", "ing", ()),
    ("beginning_2", "", " Unhappy", ("un",)),
    ("place_in_word", "walk", "ing", ("goes on",)),
    ("place_in_word", "I", " walk", ("begins",)),
    ("place_in_sentence", "All is said. Then", " came", ("2",)),
    ("place_in_line", "a b\nc", " d", ("2",)),
    ("place_in_text", "a b", " c", ("3-4",)),
    ("line_opens", "x\n- an", " item", ("-",)),
    ("line_opens", "x\n12. an", " item", ("0",)),
    ("line_opens", "x\nan", " item", ()),
    ("brackets", "f(a, g[", "1", ("2",)),
    ("brackets", "f(a)", ".", ("0",)),
    ("brackets", "a) b", ")", ("0",)),
    ("inside", "f(a, g[", "1", ("[",)),
    ("quotes", 'He said "go', " on", ("inside",)),
    ("quotes", 'He said "go"', " on", ("outside",)),
    ("quotes", 'He said "go\n', "On", ("outside",)),
    ("span", "see http://a.b/c", "/d", ("web address",)),
    ("span", "mail me@ho", "me", ("e-mail address",)),
    ("span", "the `x", "y", ("code",)),
    ("span", "a <b cl", "ass", ("tag",)),
    ("echo", "red cat, red", " cat", ("2",)),
    ("echo", "red cat, red", " dog", ("new",)),
    ("echo", "a b c d a b c", " d", ("3 or more",)),
    ("seen_ago", "cat dog", " Cat", ("2",)),
    ("seen_ago", "cat cat", " cat", ("1",)),
    ("near", "The famous old lighthouse on the", " hill", ("famous", "old", "lighthouse")),
    ("script", "слово", " ещё", ("Cyrillic",)),
    ("length", "", " house", ("5-8",)),
])  # fmt: skip
def test_kinds(kind, text, token, wanted):
    assert value(kind, text, token) == wanted


def test_language_is_that_of_the_words_before():
    german = "Der Hund liegt unter dem Tisch und schläft, weil er heute sehr lange gelaufen ist"
    french = "Le chien dort sous la table parce que la journée était longue et que le soleil"
    assert value("language", german, " .") == ("de",)
    assert value("language", french, " .") == ("fr",)
    assert value("language", "Hund", " liegt") == ()


def test_topic_is_the_one_whose_sentence_is_nearest(monkeypatch):
    """An encoder that counts two words: the topics are told apart by them, and by whole stretches of sixteen items."""
    count = lambda texts: torch.tensor([[float(text.lower().count(word)) for word in ("food", "song")] for text in texts])  # noqa: E731
    monkeypatch.setattr(conditions, "_topics", lambda: (count, torch.tensor([[1.0, 0.0], [0.0, 1.0]])))
    monkeypatch.setattr(conditions, "TOPICS", {"food": "", "music": ""})
    conditions.topic_of.cache_clear()
    text = "a song " * 8 + "food " * 20
    assert value("topic", text[:56], " now") == ("music",) and value("topic", text, " now") == ("food",)
    assert value("topic", "a song", " now") == ()
    conditions.topic_of.cache_clear()
    assert "topic" not in {kind.name for kind in usable()} and "topic" in {kind.name for kind in usable(costly=True)}


def test_a_missing_package_is_named_and_its_kind_left_out(monkeypatch):
    monkeypatch.setattr(conditions, "find_spec", lambda name: None)
    assert "language" not in {kind.name for kind in usable()}
    with pytest.raises(NeedsExtra, match="language"):
        rule_of({"type": "prefix", "any": [[{"is": "language", "of": ["de"]}]]})


# records and errors --------------------------------------------------------------------------------

OF_THE = {"type": "prefix", "any": [[{"is": "token", "of": [" the"]}, {"is": "previous", "of": ["of", "in"]}]],
          "not": [{"is": "brackets", "of": ["1"]}]}  # fmt: skip


@pytest.mark.parametrize("record", [
    {"type": "prefix"},
    {"type": "prefix", "any": []},
    {"type": "prefix", "any": [[]]},
    {"type": "prefix", "any": ["token"]},
    {"type": "prefix", "any": [[{"is": "token", "of": "the"}]]},
    {"type": "prefix", "any": [[{"is": "tokn", "of": ["the"]}]]},
    {"type": "prefix", "any": [[{"is": "token", "of": [3]}]]},
    {"type": "prefix", "any": [[{"is": "token", "of": []}]]},
    {"type": "prefix", "any": [[{"is": "token", "of": ["a"], "extra": 1}]]},
    {"type": "prefix", "any": [[{"is": "token", "of": ["a"]}]], "not": {}},
    {"type": "regex", "any": [[{"is": "token", "of": ["a"]}]]},
    ["prefix"],
])  # fmt: skip
def test_what_is_no_rule_is_refused_with_a_reason(record):
    with pytest.raises(UsageError, match="allowed"):
        rule_of(record)


def test_a_rule_in_words_and_through_json():
    assert rule_words(OF_THE) == "fires on the token ' the' after 'of' or 'in'; but not inside 1 bracket"
    assert rule_words(json.loads(json.dumps(OF_THE))) == rule_words(OF_THE)


def test_a_rule_in_a_claim():
    """Texts that end with the token read: `position` is where it begins; other texts are cut into chunks."""
    rule = evidence_rule(OF_THE)
    texts = [("out of the", None, 1), ("out of the", 6, 1), ("out of the", 7, 0), ("out of the house", 8, 1),
             ("out of the house", None, 0), ("out (of the", None, 0), ("see the", 3, 0), ("", None, 0)]  # fmt: skip
    examples = [Example(text, 0, "t", position=position) for text, position, _ in texts]
    assert rule(examples) == [wanted for *_, wanted in texts]
    assert evidence_words(OF_THE) == "what was read ends in the token ' the' after 'of' or 'in'; but not inside 1 bracket"
    assert holds(OF_THE, "out of the") and not holds(OF_THE, "see the")
    assert conditions.holds({"is": "token", "of": [" the"]}, "out of the")
    assert prefix_of(Example("walking", 0, "t", position=4)) == Prefix("walking", 4)


def test_windows_are_judged_with_what_was_read_before_them():
    window = Window((1, 2, 3), (" the", " man", " the"), (0.0, 0.0, 0.0), 0, "d", 2, "top", lead=("out", " of"))
    assert [said.tolist() for said in fires_in(OF_THE, [window])] == [[True, False, False]]


# bits ----------------------------------------------------------------------------------------------


def test_bits_of_a_rule_by_hand():
    sizes = {"token": 1000, "previous": 500, "brackets": 5, "case": 8}
    two_of_500 = math.log2(500 * 499 / 2)
    assert condition_bits({"is": "previous", "of": ["of", "in"]}, sizes) == pytest.approx(2 + 3 + two_of_500)
    conditions = (2 + 1 + math.log2(1000)) + (2 + 3 + two_of_500) + (2 + 1 + math.log2(5))
    assert rule_bits(OF_THE, sizes) == pytest.approx(1 + 3 + 3 + conditions)  # 1 alternative, 2 conditions, 1 exception


def test_bits_of_firings_are_those_of_telling_them_one_by_one():
    cells, draw = Cells(60), np.random.default_rng(0)
    for n, k in ((1, 0), (7, 3), (60, 59), (60, 0)):
        fired = draw.permutation([1] * k + [0] * (n - k))
        told, seen = 0.0, 0
        for at, one in enumerate(fired):
            likely = (seen + 1) / (at + 2)
            told -= math.log2(likely if one else 1 - likely)
            seen += one
        assert cells.cell(n, k) == pytest.approx(told)
        assert cells.cell(n, k) == pytest.approx(math.log2(n + 1) + math.log2(math.comb(n, k)))


# finding -------------------------------------------------------------------------------------------

NOUNS = ["cat", "dog", "House", "river", "London", "NASA", "tree", "king", "walking", "singing", "talking", "1984", "stone",
         "Paris", "road"]  # fmt: skip
SMALL = ["of", "in", "on", "the", "a", "and", "with", "is", "was", "he", "she", "it"]


def made_rows(n=200, seed=0):
    """Rows that look like text: words, brackets, punctuation, repeats, line ends; three rows to a document."""
    draw = random.Random(seed)
    extra = ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(3, 7))) for _ in range(300)]
    rows = []
    for _ in range(n):
        row, depth = [], 0
        while len(row) < 60:
            one = draw.random()
            if one < 0.06:
                row.append(" (")
                depth += 1
            elif one < 0.14 and depth:
                row.append(")")
                depth -= 1
            elif one < 0.18:
                row.append(draw.choice([",", ".", "\n"]))
            elif one < 0.25 and row:
                row.append(row[-1])
            elif one < 0.6:
                row.append(f" {draw.choice(SMALL)}")
            elif one < 0.7:
                word = draw.choice(extra)
                row.append(f" {draw.choice([word.upper(), word.capitalize(), str(draw.randrange(1000, 9999))])}")
            else:
                row.append(f" {draw.choice(NOUNS if draw.random() < 0.4 else extra)}")
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def world():
    rows = made_rows()
    documents = [number // 3 for number in range(len(rows))]
    held = made_rows(100, seed=1)
    return make_table(rows, documents, least=2), held


PLANTED = ("set", "bigram", "depth", "again", "capital", "ing", "of_the", "outside", "either", "capitals", "years",
           "pair_again", "line")  # fmt: skip


def words_of(row):
    return [piece.strip() for piece in row]


def truths(rows):
    """What units look for, told by plain code over the pieces; nothing of the module is used."""
    said = {name: [] for name in PLANTED}
    for row in rows:
        words, depth = words_of(row), 0
        for at, word in enumerate(words):
            depth = max(0, depth + (word == "(") - (word == ")"))
            before = words[at - 1] if at else ""
            said["set"].append(word in ("cat", "river", "tree"))
            said["bigram"].append(before == "with" and word == "the")
            said["depth"].append(depth >= 2)
            said["again"].append(bool(at) and word == before and word.isalnum())
            said["capital"].append(word in ("House", "London", "Paris"))
            said["ing"].append(word.endswith("ing") and len(word) > 3)
            said["of_the"].append(word == "the" and before in ("of", "in", "on", "with"))
            said["outside"].append(word in ("he", "she", "it") and depth == 0)
            said["either"].append(word == "NASA" or before == "dog")
            said["capitals"].append(word.isupper() and len(word) > 1)
            said["years"].append(word.isdigit() and len(word) == 4)
            earlier = [(a.lower(), b.lower()) for a, b in zip(words[: at - 1], words[1:at], strict=True)] if at > 1 else []
            said["pair_again"].append((before.lower(), word.lower()) in earlier)
            said["line"].append(bool(at) and row[at - 1] == "\n" and row[at] != "\n")
    return {name: np.array(values) for name, values in said.items()}


def found_at(table, fired, plan=None):
    return Searcher(table, plan or SearchPlan()).find(fired)


def found_in(table, fired, plan=None):
    return found_at(table, np.flatnonzero(fired).astype(np.int32), plan)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("flipped", [0.0, 0.003])
def test_planted_rules_are_found_and_hold_on_text_not_seen(world, name, flipped):
    """Some firings left out and some at random do not hide a rule, nor make it longer."""
    table, held = world
    noise = np.random.default_rng(0).random(len(table)) < flipped
    found = found_in(table, truths(made_rows())[name] ^ noise)
    assert found.record is not None
    said, true = np.concatenate(fires(found.record, held)), truths(held)[name]
    assert (said & true).sum() / said.sum() > 0.97, rule_words(found.record)
    assert (said & true).sum() / true.sum() > 0.97, rule_words(found.record)
    assert len(found.record["any"]) <= 2, rule_words(found.record)


def test_the_rule_and_its_bits_are_what_the_record_says(world):
    table, _ = world
    fired = truths(made_rows())["outside"]
    found = found_in(table, fired)
    assert found.rule == pytest.approx(rule_bits(found.record, table.sizes))
    said = table.fires(found.record)
    assert (found.said, found.hits, found.fired) == (said.sum(), (said & fired).sum(), fired.sum())
    n, k = len(fired), int(fired.sum())
    cell = lambda n, k: math.log2(n + 1) + math.log2(math.comb(n, k))  # noqa: E731
    assert found.without == pytest.approx(cell(n, k))
    assert found.given == pytest.approx(cell(found.said, found.hits) + cell(n - found.said, k - found.hits))


def test_units_that_fire_at_random_get_no_rule(world):
    table, _ = world
    searcher, draw = Searcher(table, SearchPlan()), np.random.default_rng(0)
    for k in [2, 5, 20, 100, 1000, 9000] * 10:
        fired = np.sort(draw.choice(len(table), k, replace=False)).astype(np.int32)
        found = searcher.find(fired)
        assert found.record is None and found.given == found.without and found.rule == 0


def test_tokens_are_looked_up_as_they_are_gone_through(world):
    table, _ = world
    searcher, draw = Searcher(table, SearchPlan()), np.random.default_rng(1)
    for kind in np.unique(table.kind_of).tolist():
        values = np.flatnonzero(table.kind_of == kind)
        chosen = draw.permutation(values)[: draw.integers(1, 20)].tolist()
        tokens = np.sort(draw.permutation(len(table))[: draw.integers(1, 400)]).astype(np.int32)
        lists = [np.intersect1d(table.where(value), tokens) for value in chosen]
        want = [len(set(table.documents[own].tolist())) for own in lists]
        assert searcher._documents_among(chosen, tokens) == searcher._documents(chosen, tokens) == want
        for few in (tokens, tokens[:3], tokens[:0]):
            others = table.where_any(chosen)
            assert searcher._both(few, others).tolist() == np.intersect1d(few, others).tolist()
            assert searcher._both(others, few).tolist() == np.intersect1d(few, others).tolist()
    assert not searcher.marks.any()


def test_what_is_true_of_one_document_alone_is_no_rule():
    """The word fires in its first document, where it stands ten times, and is in the others once."""
    rows = [[" a", " b"] * 20, *([" a", " b", " odd"] for _ in range(20))]
    rows[0] += [" odd"] * 10
    table = make_table(rows, list(range(21)), kinds=[KINDS.get("token")], least=2)
    fired = table.where(table.number["token", " odd"])
    assert found_at(table, fired).record is not None
    assert found_at(table, fired[:10], SearchPlan(least=5)).record is None
    assert found_at(table, fired[:10], SearchPlan(documents=1, least=5)).record is not None


def test_an_ending_that_one_word_has_is_said_by_the_word():
    rows = [[" The", " walking", " man", f" {word}"] for word in ("sings", "reading", "writing", "being", "road", "lake")] * 9
    table = make_table(rows, list(range(len(rows))), kinds=[KINDS.get("word"), KINDS.get("ending_3")], least=2)
    walking = table.where(table.number["word", "walking"])
    assert found_at(table, walking).record["any"] == [[{"is": "word", "of": ["walking"]}]]
    assert found_at(table, table.where(table.number["ending_3", "ing"])).record["any"] == [[{"is": "ending_3", "of": ["ing"]}]]


def test_never_always_and_once_give_no_rule(world):
    table, _ = world
    searcher = Searcher(table, SearchPlan())
    for fired in (np.zeros(0, np.int32), np.arange(len(table), dtype=np.int32), np.array([7], np.int32)):
        assert searcher.find(fired).record is None


def test_the_same_input_gives_the_same_rule_whatever_was_looked_for_before(world):
    table, _ = world
    fired = {name: np.flatnonzero(values).astype(np.int32) for name, values in truths(made_rows()).items()}
    searcher = Searcher(table, SearchPlan())
    first = [searcher.find(one) for one in fired.values()]
    assert [searcher.find(one) for one in reversed(fired.values())] == first[::-1]


def test_a_table_that_lacks_a_kind_says_so():
    table = make_table([[" a", " b"]], ["d"], kinds=[KINDS.get("token")])
    with pytest.raises(UsageError, match="previous"):
        table.fires({"type": "prefix", "any": [[{"is": "previous", "of": ["a"]}]]})


@pytest.mark.parametrize(("rows", "documents"), [([], []), ([[]], [0]), ([["a"]], [])])
def test_no_tokens_and_wrong_lists_are_refused(rows, documents):
    with pytest.raises(UsageError, match="allowed"):
        make_table(rows, documents)


# a whole reading -----------------------------------------------------------------------------------


class MadeReading:
    """What the explainer uses of a reading, over rows and units made here."""

    digest = "0" * 64

    def __init__(self, folder, rows, fired, typical=None):
        self.folder, self.units = folder, tuple(fired)
        text = [piece.encode() for row in rows for piece in row]
        n, names = len(text), tuple(f"doc{number}" for number in range(len(rows)))
        values = np.stack([np.asarray(one, np.float32) for one in fired.values()], 1)
        self.shown = CodedPart(
            "shown", np.zeros(n, np.int64), np.cumsum([0, *map(len, rows)]), np.arange(len(rows)), names, np.zeros(len(rows)),
            np.ones(n, bool) if typical is None else typical, sp.csr_matrix(values), b"".join(text),
            np.cumsum([*map(len, text)]))  # fmt: skip

    def column(self, unit):
        return self.units.index(unit)

    def part(self, name):
        return {"shown": self.shown}[name]


@pytest.fixture
def reading(tmp_path):
    rows = made_rows(80)
    fired = {name: values * 2.5 for name, values in truths(rows).items()}
    fired["noise"] = np.random.default_rng(0).random(len(fired["set"])) < 0.01
    return MadeReading(tmp_path, rows, fired)


def test_a_reading_is_explained_unit_by_unit(reading):
    done = []
    found = list(explain_lexical(reading, plan=LexicalPlan(block=4), report=done.append))
    assert [one.feature for one in found] == list(reading.units) and sum(done) == len(found)
    by_name = {one.feature: one for one in found}
    assert by_name["noise"].rule is None and by_name["noise"].text == "no rule found"
    assert "(" not in by_name["set"].text and by_name["set"].text == rule_words(by_name["set"].rule)
    table = table_of(reading.part("shown"))
    for name in PLANTED:
        said = table.fires(by_name[name].rule)
        assert by_name[name].bits["hits"] == (said & (reading.shown.codes[:, [reading.column(name)]].toarray()[:, 0] > 0)).sum()


def test_a_run_cut_short_goes_on_with_what_is_left(reading, monkeypatch):
    plan, looked = LexicalPlan(block=3), []
    find = Searcher.find
    monkeypatch.setattr(Searcher, "find", lambda self, fired: looked.append(len(fired)) or find(self, fired))
    running = explain_lexical(reading, plan=plan)
    first = [next(running) for _ in range(4)]
    running.close()
    assert len(looked) == 6  # two blocks
    again = list(explain_lexical(reading, plan=plan))
    assert len(looked) == len(reading.units) and again[:4] == first
    kept = sorted(reading.folder.rglob("*.json"))
    kept[0].write_text(kept[0].read_text()[:-20])
    assert list(explain_lexical(reading, plan=plan)) == again and len(looked) > len(reading.units)


def test_tokens_that_are_not_read_teach_nothing(tmp_path):
    """Brackets behind a token that is left out still count; the token itself does not."""
    rows = [[" (", " cat", ")", " dog"] * 5 for _ in range(10)]
    typical = np.array([piece != " (" for row in rows for piece in row])
    fired = np.array([piece == " cat" for row in rows for piece in row])
    (found,) = explain_lexical(MadeReading(tmp_path, rows, {"unit": fired}, typical))
    assert found.bits["without"] == pytest.approx(Cells(150).cell(150, 50))
    assert found.bits["hits"] == found.bits["said"] == 50
