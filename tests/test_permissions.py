"""Who may do what; a log that shows edits, deletions and killed writers, and takes many writers at once."""

import json
import os
import subprocess
import sys

import pytest

from assay import permissions
from assay.errors import TamperedError, UsageError

WRITER = """
import sys
from assay import permissions
for number in range(int(sys.argv[3])):
    permissions.record(sys.argv[1], "write", {"by": sys.argv[2], "number": number})
"""


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv("ASSAY_ALLOW", raising=False)


def test_roles_include_those_below():
    for has, needs in (("read", "read"), ("intervene", "read"), ("modify", "intervene"), (None, "intervene")):
        assert permissions.require(needs, granted=has).role == needs
    grant = permissions.require("modify", granted="modify", reason="  the capital is wrong ")
    assert grant == permissions.Grant("modify", "the capital is wrong")
    for has, needs in (("read", "intervene"), ("intervene", "modify"), (None, "modify")):
        with pytest.raises(UsageError, match=f"ASSAY_ALLOW={needs}, or --allow {needs} where"):
            permissions.require(needs, granted=has, reason="a good reason")


@pytest.mark.parametrize("reason", [None, "", "   ", "because", "!!!! .... ????"])
def test_modify_needs_a_reason_in_words(reason):
    with pytest.raises(UsageError, match="--reason"):
        permissions.require("modify", granted="modify", reason=reason)


def test_the_variable_grants_and_the_flag_goes_first(monkeypatch):
    monkeypatch.setenv("ASSAY_ALLOW", "modify")
    assert permissions.require("modify", reason="a good reason").role == "modify"
    with pytest.raises(UsageError):
        permissions.require("modify", reason="a good reason", granted="read")
    monkeypatch.setenv("ASSAY_ALLOW", "read")
    with pytest.raises(UsageError, match="'read'"):
        permissions.require("intervene")
    for bad in ("Modify", "all"):
        monkeypatch.setenv("ASSAY_ALLOW", bad)
        with pytest.raises(UsageError, match="ASSAY_ALLOW: got"):
            permissions.require("read")
    with pytest.raises(UsageError, match="--allow: got"):
        permissions.granted_role("root")
    with pytest.raises(UsageError, match="role: got"):
        permissions.require("write")


def filled(folder, n=4):
    grant = permissions.Grant("modify", "a good reason")
    return [permissions.record(folder, "repair", {"number": number, "text": "ä"}, grant) for number in range(n)]


def test_entries_say_who_when_what_and_why(tmp_path):
    made = filled(tmp_path / "new" / "atlas")
    kept = list(permissions.entries(tmp_path / "new" / "atlas"))
    assert kept == made and permissions.verify(tmp_path / "new" / "atlas") == []
    one = kept[2]
    assert (one["index"], one["role"], one["action"], one["why"]) == (2, "modify", "repair", "a good reason")
    assert one["who"] and one["time"].startswith("20") and one["body"] == {"number": 2, "text": "ä"}
    assert one["previous"] == kept[1]["hash"] and kept[0]["previous"] == permissions.GENESIS
    assert permissions.verify(tmp_path / "nothing") == [] and list(permissions.entries(tmp_path / "nothing")) == []


def lines_of(folder):
    return (folder / "audit.jsonl").read_text().splitlines(keepends=True)


def edit_reason(lines):
    return [lines[0], lines[1].replace("a good reason", "another one"), *lines[2:]]


@pytest.mark.parametrize("change,words", [
    (edit_reason, "entry 1 was edited"),
    (lambda lines: [lines[0], *lines[2:]], "missing or moved"),
    (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "does not follow"),
    (lambda lines: lines[:-1], "deleted at the end"),
    (lambda lines: [], "deleted at the end"),
    (lambda lines: [*lines, lines[-1], lines[-1]], "added past it"),
])  # fmt: skip
def test_any_change_is_seen(tmp_path, change, words):
    filled(tmp_path)
    lines = lines_of(tmp_path)
    (tmp_path / "audit.jsonl").write_text("".join(change(lines)))
    assert any(words in problem for problem in permissions.verify(tmp_path))


def test_a_rewritten_entry_with_a_fresh_hash_breaks_the_chain(tmp_path):
    filled(tmp_path)
    lines = [json.loads(line) for line in lines_of(tmp_path)]
    lines[1]["why"] = "another one"
    lines[1]["hash"] = permissions._hash(lines[1])
    (tmp_path / "audit.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert permissions.verify(tmp_path) == ["entry 2 does not follow the entry before it"]


def test_a_cut_log_is_not_written_to(tmp_path):
    filled(tmp_path)
    whole = lines_of(tmp_path)
    for kept in (whole[:-1], [], edit_reason(whole[::-1])[::-1][:3] + [whole[3].replace("repair", "nothing")]):
        (tmp_path / "audit.jsonl").write_text("".join(kept))
        with pytest.raises(TamperedError, match="repair log --verify"):
            filled(tmp_path, 1)
        assert "".join(lines_of(tmp_path)) == "".join(kept)
    (tmp_path / "audit.jsonl").write_text("".join(whole))
    (tmp_path / "audit.head").write_text("{")
    with pytest.raises(TamperedError, match="audit.head"):
        permissions.verify(tmp_path)
    (tmp_path / "audit.head").unlink()
    assert permissions.verify(tmp_path) == ["the head (audit.head) is missing"]
    (tmp_path / "audit.jsonl").write_text("no entry\n")
    with pytest.raises(TamperedError, match="line 1"):
        permissions.verify(tmp_path)


def test_half_a_line_of_a_killed_writer_is_dropped_and_said(tmp_path):
    filled(tmp_path, 2)
    with (tmp_path / "audit.jsonl").open("a") as file:
        file.write('{"action":"rep')
    assert permissions.verify(tmp_path) == [] and len(list(permissions.entries(tmp_path))) == 2
    filled(tmp_path, 1)
    kept = list(permissions.entries(tmp_path))
    assert [entry["action"] for entry in kept] == ["repair", "repair", permissions.LOST, "repair"]
    assert kept[2]["body"]["bytes"] == 14 and permissions.verify(tmp_path) == []


def test_a_writer_killed_before_the_head_is_no_problem(tmp_path):
    filled(tmp_path, 2)
    head = (tmp_path / "audit.head").read_bytes()
    filled(tmp_path, 1)
    (tmp_path / "audit.head").write_bytes(head)
    assert permissions.verify(tmp_path) == []
    filled(tmp_path, 1)
    assert permissions.verify(tmp_path) == [] and len(list(permissions.entries(tmp_path))) == 4
    os.remove(tmp_path / "audit.head")
    with pytest.raises(TamperedError):
        filled(tmp_path, 1)


def test_long_entries_are_found_again(tmp_path):
    for _ in range(3):
        permissions.record(tmp_path, "repair", {"weights": ["x" * 100] * 3000})
    assert permissions.verify(tmp_path) == [] and [one["index"] for one in permissions.entries(tmp_path)] == [0, 1, 2]


def test_many_writers_at_once(tmp_path):
    running = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(number), "8"]) for number in range(4)]
    assert [one.wait(timeout=60) for one in running] == [0] * 4
    kept = list(permissions.entries(tmp_path))
    assert len(kept) == 32 and permissions.verify(tmp_path) == []
    for number in range(4):
        assert [one["body"]["number"] for one in kept if one["body"]["by"] == str(number)] == list(range(8))


SHORT = """
import resource, sys
from pathlib import Path
from assay import permissions
from assay.errors import StoreError
folder = Path(sys.argv[1])
for number in range(3):
    permissions.record(folder, "x", {"n": number})
size = (folder / "audit.jsonl").stat().st_size + 100
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
try:
    permissions.record(folder, "x", {"n": "must be on the disk" * 9})
except StoreError:
    print(permissions.verify(folder))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(permissions.record(folder, "x", {})["index"], permissions.verify(folder))
"""


def test_a_disk_that_takes_a_part_of_an_entry_has_none_of_it(tmp_path):
    done = subprocess.run([sys.executable, "-c", SHORT, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "3 []"], done.stderr
