"""Concepts: what generators promise, own files, sources, and the command line of claims about them."""

import json
import re
import subprocess
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from assay.cli.given import options_of, rule_of, settings_of, subject_of
from assay.cli.main import cli
from assay.data import concept_files
from assay.data.concept_generators.base import PATTERN
from assay.data.concepts import CONCEPTS, SPLITS, Concept, Word, load_concept, n_frames
from assay.data.corpora import open_corpus
from assay.data.prepare_concept import prepare_concept, unreadable
from assay.data.vectors import read_corpus, read_vector
from assay.errors import AssayError, TaskError, UsageError
from assay.evidence.features import direction
from assay.evidence.kinds import KINDS
from assay.evidence.run import Settings
from assay.evidence.search import searches_for
from assay.evidence.source import ConceptSource, Population, Source, find_source, source_of
from assay.records import Example

pytestmark = pytest.mark.whole

BUNDLED = ("animals", "people", "plurals", "tense")
FRAMES = {"discover": 8, "tune": 8, "confirm": 20, "ood": 12}
WORDS = {"discover": 8, "tune": 8, "confirm": 20, "ood": 12}
NEAR = 8  # words: fewer could never support a claim about near misses
CASES = [(name, split) for name in BUNDLED for split in SPLITS]
ROW = {"text": "The dog slept.", "label": 1, "group": "g"}
OTHER = {"text": "The cup fell.", "label": 0, "group": "h"}


def runs(frame, length=5):
    pieces = [re.findall(r"[a-z']+", piece.lower()) for piece in frame.split("[X]")]
    return {tuple(words[i : i + length]) for words in pieces for i in range(len(words) - length + 1)}


# what is bundled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, split", CASES)
def test_there_are_enough_frames_and_words(name, split):
    concept = CONCEPTS.get(name)
    roles = Counter(word.role for word in concept.words[split])
    assert n_frames(name, split) == len(set(concept.frames[split])) >= FRAMES[split]
    assert roles["member"] >= WORDS[split] and roles["plain"] >= WORDS[split] and roles["near"] >= NEAR
    assert len({word.text.lower() for word in concept.words[split]}) == sum(roles.values())


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_share_no_frame_and_no_word(name):
    concept = CONCEPTS.get(name)
    for one, other in permutations(SPLITS, 2):
        assert not set().union(*map(runs, concept.frames[one])) & set().union(*map(runs, concept.frames[other]))
        words = {part for word in concept.words[one] for part in (*word.text.lower().split(), word.entity)} - {"is"}
        assert not words & {part for word in concept.words[other] for part in (*word.text.lower().split(), word.entity)}
        assert not words & set(re.findall(r"[a-z]+", " ".join(concept.frames[other]).lower())), (one, other)


@pytest.mark.parametrize("name, split", CASES)
def test_examples_are_reproducible_balanced_and_different(name, split):
    found = load_concept(name, split, 120, 3)
    assert found[:17] == load_concept(name, split, 17, 3) and found != load_concept(name, split, 120, 4)
    assert len({example.text for example in found}) == 120 and sum(example.label for example in found) == 60
    assert sum(example.near_miss for example in found) == 20 and not any(e.near_miss and e.label for e in found)
    members, words = Counter(), Counter()
    for example in found:
        word = next(w for w in CONCEPTS.get(name).words[split] if example.template.replace("[X]", w.text) == example.text)
        end = example.template.index("[X]") + len(word.text)
        assert example.position == end - 1 and example.entities == (word.entity,)
        assert (example.label, example.near_miss) == (int(word.role == "member"), word.role == "near")
        members[example.template, example.label] += 1
        words[word.role, word.text] += 1
    for role in set(PATTERN):  # words of one role are used equally often
        used = [n for (of, _), n in words.items() if of == role]
        assert max(used) - min(used) <= 1
    for frame in CONCEPTS.get(name).frames[split]:
        assert members[frame, 0] and members[frame, 1]


def test_forms_of_one_word_differ_in_nothing_but_the_form():
    for name in ("plurals", "tense"):
        for split in SPLITS:
            words = CONCEPTS.get(name).words[split]
            roles = {entity: {w.role for w in words if w.entity == entity} for entity in {w.entity for w in words}}
            assert all(found in ({"member", "plain"}, {"near"}) for found in roles.values())


def test_too_many_examples_and_wrong_arguments():
    words = {"discover": [Word("a", "member", "a"), Word("b", "plain", "b")]}
    small = Concept("small", "two words", {"discover": ["say [X]"]}, words)
    assert [example.text for example in small.examples(n=2)] == ["say a", "say b"]
    with pytest.raises(UsageError, match="n: got 3; allowed: at most 2"):
        small.examples(n=3)
    with pytest.raises(UsageError, match="split: got 'test'; allowed: discover, tune"):
        load_concept("animals", "test")
    with pytest.raises(UsageError, match="n: got 0"):
        load_concept("animals", n=0)
    with pytest.raises(TaskError, match="Did you mean 'animals'"):
        load_concept("animal")


def test_the_whole_word_is_read(glass):
    for name in BUNDLED:
        found = prepare_concept(load_concept(name, "confirm", 60), glass)
        assert len(found) == 60 and found.dropped == {}
        for example, ids, at in zip(found.examples, found.tokens, found.at, strict=True):
            before = glass.text(ids[:at]).removeprefix("<|endoftext|>")
            upto = glass.text(ids[: at + 1]).removeprefix("<|endoftext|>")
            assert len(before) <= example.position < len(upto) and example.text.startswith(upto)


def test_what_cannot_be_read_is_counted(glass):
    good = Example("a dog", 1, "t", position=3)
    bad = [Example("", 0, "t"), Example("a  b", 0, "t", position=1)]
    assert sum(unreadable([good, bad[0]], glass).values()) == 1
    assert prepare_concept([good, bad[0], good], glass).examples == [good, good]
    with pytest.raises(TaskError, match="none of 1 examples can be used with glass-en.*empty text: 1"):
        prepare_concept([bad[0]], glass)


# one's own file ----------------------------------------------------------------------------------


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize("row, says", [
    ("{", "line 2: not JSON"), ("[]", "line 2: got list; allowed: an object with text, label, group"),
    ({**ROW, "text": ""}, "line 2, field 'text': got ''"), ({**ROW, "text": 3}, "field 'text': got 3"),
    ({**ROW, "label": 2}, "line 2, field 'label': got 2; allowed: 0 or 1"), ({**ROW, "label": 1.0}, "'label': got 1.0"),
    ({**ROW, "label": [1]}, r"'label': got \[1\]"), ({"text": "a", "group": "g"}, "'label': got None"),
    ({"text": "a", "label": 1}, "field 'group': got None.*independence"),
    ({**ROW, "position": 14}, "field 'position': got 14; allowed: .* 0 to 13"), ({**ROW, "position": True}, "got True"),
    ({**ROW, "position": -1}, "got -1"), ({**ROW, "near_miss": "maybe"}, "'near_miss': got 'maybe'; allowed: true or false"),
    ({**ROW, "near_miss": True}, "field 'near_miss': got true with label 1"),
    ({**ROW, "entities": [""]}, "field 'entities': got ''"), ({**ROW, "entities": 3}, "'entities': got 3"),
    ({**ROW, "document": 3}, "'document': got 3"), ('{"text": "\\ud800", "label": 1, "group": "g"}', "surrogate"),
])  # fmt: skip
def test_file_errors_name_line_and_field(tmp_path, row, says):
    with pytest.raises(TaskError, match=says):
        load_concept(write(tmp_path / "c.jsonl", OTHER, row))


@pytest.mark.parametrize("rows, says", [
    (["text,label\n"], "line 1: the header has no field 'group'"), (["text,label,group", "a,1"], "line 2: 2 cells; allowed: 3"),
    (["text,label,group,position", "a,1,g,x"], "line 2, field 'position': got 'x'"),
    (["text,label,group,near_miss,near_miss"], "'near_miss': it is in the header twice"),
    (["text,label,group", "a,1,g"], "field 'label': no line has 0"), ([""], "it has no examples. Write one row a line"),
])  # fmt: skip
def test_csv_errors_name_line_and_field(tmp_path, rows, says):
    with pytest.raises(TaskError, match=says):
        load_concept(write(tmp_path / "c.csv", *rows))


def test_json_lines_and_csv_say_the_same(tmp_path):
    rows = [{**ROW, "position": 6, "document": "d"}, {**OTHER, "near_miss": True, "entities": ["cup", "fall"]}]
    jsonl = write(tmp_path / "c.jsonl", *rows)
    table = write(tmp_path / "c.csv", "text,label,group,position,near_miss,entities,document,other",
                  "The dog slept.,1,g,6,,,d,x", "The cup fell.,0,h,,true,cup; fall,,x")  # fmt: skip
    want = [Example("The dog slept.", 1, "g", ("dog", "document d"), 6),
            Example("The cup fell.", 0, "h", ("cup", "fall"), None, True)]  # fmt: skip
    assert load_concept(jsonl) == load_concept(table) == want and n_frames(table) == 2


def test_large_and_missing_files_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "c.jsonl", ROW, OTHER)
    monkeypatch.setattr(concept_files, "LARGEST", 10)
    with pytest.raises(TaskError, match="bytes; allowed: 10"):
        load_concept(path)
    with pytest.raises(TaskError, match="no such file"):
        load_concept(str(tmp_path / "absent.csv"))


# sources -----------------------------------------------------------------------------------------


def own_file(tmp_path, frames=40, words=1):
    rows = [{"text": f"Frame {f} has word{f}x{w} in it.", "label": (w + k) % 2, "group": f"g{f}", "entities": [f"w{f}x{w}x{k}"]}
            for f in range(frames) for w in range(words) for k in (0, 1)]  # fmt: skip
    for number, row in enumerate(rows):
        row["text"] += f" {number}"
    return write(tmp_path / "own.jsonl", *rows)


def test_a_concept_is_a_source_and_found_again(tmp_path):
    for name in ("animals", own_file(tmp_path)):
        source = find_source(name)
        assert isinstance(source, ConceptSource) and isinstance(source, Population) and source.dropped() == {}
        assert {**source.record(), "type": "concept", "name": Path(name).name} == source.record()
        assert source_of(source.record()) == source and source.name == Path(name).name
        assert source.items("confirm", 16, 0) == source_of(source.record()).items("confirm", 16, 0)
        assert {example.label for example in source.items("tune", 8, 0)} == {0, 1}
        assert source.digest("confirm", 16, 0) != source.digest("ood", 16, 0)
        with pytest.raises(UsageError, match="sealed"):
            source.explore("confirm", 4, 0)
    assert (source.n_templates("confirm"), len(source.explore(None, 1, 0))) == (16, 80)


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    source = ConceptSource(own_file(tmp_path))
    before = source.digest("confirm", 20, 0)
    own_file(tmp_path, frames=44)
    assert source.digest("confirm", 20, 0) != before


def test_data_are_told_apart_by_their_fields(tmp_path):
    pair = {"clean": "a b", "corrupted": "a c", "answer": " d", "foil": " e", "template": "t"}
    assert isinstance(find_source("ioi"), Source) and isinstance(find_source(write(tmp_path / "t.jsonl", pair)), Source)
    assert isinstance(find_source(write(tmp_path / "c.csv", "label,text,group", "1,a,g")), ConceptSource)
    with pytest.raises(TaskError, match="Did you mean 'animals'.*Tasks: .*concepts: "):
        find_source("animalz")
    with pytest.raises(UsageError, match="corruption: got 'abc'; allowed: none for animals"):
        find_source("animals", "abc")
    with pytest.raises(TaskError, match="no example fell to the split 'tune'|only label"):
        find_source(own_file(tmp_path, frames=2)).items("tune", 4, 0)


# the command line --------------------------------------------------------------------------------


def run(*words):
    return CliRunner().invoke(cli, [*map(str, words), "--quiet"])


def test_the_list_needs_no_torch():
    code = "import sys; from assay.cli.main import cli; cli(['concepts'], standalone_mode=False); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n"), done.stderr
    assert "animals" in done.stdout and "confirm   120 examples: 60 members, 20 near misses; 20 frames, 50 words" in done.stdout


def test_a_file_is_listed_as_it_is_split(tmp_path, glass):
    rows = [{"text": f"frame {f} has word{w}", "label": w % 2, "group": f"f{f}", "entities": [f"w{w}"]}
            for f in range(10) for w in range(20)]  # fmt: skip
    path = write(tmp_path / "own.jsonl", *rows)
    (row,) = json.loads(run("concepts", "glass-en", "--file", path, "--json", "-").stdout)
    counts = row["splits"]
    assert sum(found["examples"] for found in counts.values()) + sum(row["left_out"].values()) == 200
    assert (counts["confirm"]["frames"], counts["confirm"]["words"], counts["confirm"]["examples"]) == (4, 8, 32)
    assert all(found["usable"] == found["examples"] for found in counts.values()) and row["model"] == "glass-en"
    said = run("concepts", "--file", path).stdout
    assert "fewer than 8 frames: no claim can be supported" in said and "examples are in no split: its words" in said


def test_kinds_are_listed_with_their_gates():
    rows = {row["kind"]: row for row in json.loads(run("claim", "kinds", "--json", "-").stdout)}
    gates = {gate["name"]: gate for gate in rows["represents"]["gates"]}
    assert gates["detection"] == {"name": "detection", "group": "detection", "sesoi": 0.7, "required": True,
                                  "precondition": False}  # fmt: skip
    assert not gates["rival"]["required"] and "misfits" in [found["name"] for found in rows["represents"]["search"]]
    assert all(gate["required"] in (True, False, None) for row in rows.values() for gate in row["gates"])
    said = run("claim", "kinds", "mediates").stdout
    assert "necessity.mean" in said and "detection" not in said


def test_words_become_settings_options_and_subjects(tmp_path):
    assert settings_of({"tune": "8", "alpha": "0.1", "positions": "last"}, Settings()) == {"tune": 8, "alpha": 0.1,
                                                                                          "positions": "last"}  # fmt: skip
    assert options_of({"a": "3", "b": "[1, 2]", "c": "some words"}) == {"a": 3, "b": [1, 2], "c": "some words"}
    assert subject_of("mlp_act.1.2", (), {}) == "mlp_act.1.2"
    assert subject_of("mlp_out.1", (), {"probe": "mlp"}) == {"site": "mlp_out.1", "probe": "mlp"}
    numbers = [3.0, 0.0, 4.0]
    np.save(tmp_path / "d.npy", np.array([numbers]))
    save_file({"a": torch.tensor(numbers), "b": torch.ones(2)}, tmp_path / "d.safetensors")
    (tmp_path / "d.json").write_text(json.dumps({"vector": numbers}))
    files = [str(tmp_path / "d.npy"), f"{tmp_path / 'd.safetensors'}:a", str(tmp_path / "d.json")]
    for source in files:
        assert read_vector(source) == numbers
        assert subject_of("mlp_out.1", [source], {}) == direction("mlp_out.1", numbers)
    assert len(subject_of("mlp_out.1", files, {})) == 3
    assert [one.site for one in subject_of("mlp_out.0, mlp_out.1", files[:2], {})] == ["mlp_out.0", "mlp_out.1"]
    assert subject_of("z.0.0,z.1.1", (), {}) == ["z.0.0", "z.1.1"]
    assert subject_of("mlp_act.1.2", (), {"strengths": [1, 2]}) == {"feature": "mlp_act.1.2", "strengths": [1, 2]}
    assert subject_of("mlp_out.1", files[:1], {"x": 1}) == {"feature": direction("mlp_out.1", numbers), "x": 1}
    for wrong in ((("a,b,c"), files[:2], {}), ("z.0.0,z.1.1", (), {"x": 1})):
        with pytest.raises(UsageError, match="got 2"):
            subject_of(*wrong)


def test_rules_have_short_forms(glass):
    assert [rule_of(text) for text in ("concept", "/dogs?/", "dog, cat", '{"type": "regex", "pattern": "x"}')] == [
        {"type": "concept"}, {"type": "regex", "pattern": "dogs?"}, {"type": "lexicon", "words": ["dog", "cat"]},
        {"type": "regex", "pattern": "x"}]  # fmt: skip
    subjects = {"explains": ("mlp_act.0.3", {"rule": rule_of("concept")}),
                "steers": ("mlp_act.0.3", {"strengths": [-2, -1, 1, 2]}),
                "decodes": ("mlp_out.1", {"probe": "mean"}), "detects": ("mlp_out.1", {"probe": "linear"}),
                "connects": ("mlp_act.0.3,mlp_act.1.2", {}), "uses": ("mlp_act.0.3", {}), "mediates": ("z.0.0,z.1.0", {}),
                "represents": ("mlp_act.0.3", {})}  # fmt: skip
    for kind, (subject, parts) in subjects.items():
        assert KINDS.get(kind).subject(glass, subject_of(subject, (), parts))["sites"]


@pytest.mark.parametrize("content, name, says", [
    (b"[1, 2", "d.json", "it cannot be read"), (b"{}", "d.json", "got a NoneType; allowed: one list of finite numbers"),
    (b"[1, NaN]", "d.json", "finite"), (b"[[1], [2]]", "d.json", "got a list of 2"), (b"x", "d.npy", "it cannot be read"),
    (b"x" * 20, "d.safetensors", "it cannot be read"), (b"", "d.pt", "allowed: a .safetensors, .npy, .json file"),
])  # fmt: skip
def test_a_file_that_is_no_direction_is_refused(tmp_path, content, name, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(says)):
        read_vector(str(tmp_path / name))


def test_a_pickle_is_never_opened(tmp_path):
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="it cannot be read"):
        read_vector(str(tmp_path / "d.npy"))


def test_a_corpus_is_one_text_a_line(tmp_path):
    (tmp_path / "c.txt").write_text("one\n\n two \n")
    assert read_corpus(tmp_path / "c.txt") == ["one", "two"]
    assert read_corpus(tmp_path / write(tmp_path / "c.jsonl", {"text": "one\ntwo"}, {"text": " "})) == ["one\ntwo"]
    for name, content in (("a.txt", b"\n"), ("b.txt", b"\xff"), ("c.jsonl", b'{"txt": 3}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AssayError):
            read_corpus(tmp_path / name)
    with pytest.raises(UsageError, match="no such file. Allowed: a file of one text a line, .jsonl, .csv, or one of brown"):
        read_corpus("nothing")


def test_a_packaged_corpus_goes_by_its_name(tmp_path, monkeypatch):
    assert read_corpus("wikipedia") == [document.text for document in open_corpus("wikipedia").documents()]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikipedia").write_text("a file of that name comes first\n")
    assert read_corpus("wikipedia") == ["a file of that name comes first"]


@pytest.mark.parametrize("words, says", [
    (["animals", "mlp_act.0.1", "--kind", "represent"], "Did you mean 'represents'"),
    (["animalz", "mlp_act.0.1", "--kind", "represents"], "Did you mean 'animals'"),
    (["animals", "mlp_act.0", "--kind", "represents"], "allowed: one unit"),
    (["animals", "z.0.0"], "a task (pairs of prompts) for kind mediates"),
    (["ioi", "mlp_act.0.1", "--kind", "represents"], "a concept (labelled texts) for kind represents"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--set", "size=3"], "--set: got 'size'; allowed: tune"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--set", "tune=many"], "--set tune: got 'many'; allowed: a whole"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--set", "tune=1", "--set", "tune=2"], "got 'tune' twice"),
    (["animals", "mlp_out.0", "--kind", "represents", "--direction", "none.npy"], "no such file"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--search", "luck=3"], "luck"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--option", "x"], "NAME=VALUE"),
    (["animals", "mlp_act.0.1", "--kind", "represents", "--corruption", "abc"], "none for animals"),
    (["ioi", "mlp_act.0.1", "--kind", "steers", "--part", "strength=3"], "subject: got 'strength'; allowed: feature"),
    (["animals", "mlp_out.0", "--kind", "decodes", "--part", "probe=huge"], "probe: got 'huge'"),
])  # fmt: skip
def test_mistakes_are_one_line(words, says, tmp_path):
    done = run("claim", "state", "glass-en", *words, "--atlas", str(tmp_path / "atlas"))
    assert isinstance(done.exception, AssayError) and says in str(done.exception), done.exception
    assert "\n" not in str(done.exception) and done.exception.exit_code == 2


def searches(budget):
    """Every counterexample search of the kind with a small budget: what they find is tested elsewhere."""
    return [word for method in searches_for("represents") for word in ("--search", f"{method.name}={budget}")]


def test_a_claim_about_a_neuron_and_a_direction_from_statement_to_verdict(tmp_path, glass):
    np.save(tmp_path / "d.npy", np.random.default_rng(0).standard_normal(glass.dims.d_model))
    atlas = ("--atlas", str(tmp_path / "atlas"), "--json", "-")
    sizes = [*(word for pair in ("tune=24", "confirm=48", "ood=26", "draws=3") for word in ("--set", pair)), *searches(2)]
    for subject in (["mlp_act.0.5"], ["mlp_out.0", "--direction", str(tmp_path / "d.npy")]):
        stated = run("claim", "state", "glass-en", "animals", *subject, "--kind", "represents", *sizes, *atlas)
        assert stated.exit_code == 0, stated.exception
        record = json.loads(stated.stdout)
        assert record["record"]["task"] == {"type": "concept", "name": "animals"} and record["left_out"] == {}
        (tmp_path / "corpus.txt").write_text("A dog ran home.\nThe chair broke.")
        tested = run("claim", "test", record["claim"], "--corpus", str(tmp_path / "corpus.txt"), *atlas)
        assert tested.exit_code == 0, tested.exception
        assert json.loads(tested.stdout)["verdict"] in ("refuted", "inconclusive")


def test_too_few_frames_are_said_at_once_and_never_supported(tmp_path, glass):
    path = own_file(tmp_path, frames=16, words=6)
    atlas = ("--atlas", str(tmp_path / "atlas"), "--json", "-")
    few = ("--set", "tune=12", "--set", "draws=2", *searches(0))
    stated = json.loads(run("claim", "state", "glass-en", path, "mlp_act.0.5", "--kind", "represents", *few, *atlas).stdout)
    assert any("confirm: 6 templates; fewer than 8 can never be supported, so 2 more" in said for said in stated["warnings"])
    verdict = json.loads(run("claim", "test", stated["claim"], *atlas).stdout)
    assert verdict["verdict"] != "supported"
