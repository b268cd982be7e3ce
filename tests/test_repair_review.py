"""Repairs where mistakes hide: half precision, square matrices, files that read back otherwise, links, rights, broken logs."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from click.testing import CliRunner

from assay import permissions
from assay.cli.repair import repair
from assay.data.prepare import NothingLeft
from assay.errors import ModelError, SiteError, StoreError, TamperedError, UsageError
from assay.model.load import load_model
from assay.records import Pair
from assay.steer import export, rank_one, weights
from assay.steer.directions import from_vector
from assay.steer.files import save_direction
from assay.steer.repair import Candidate, RepairPlan, check_plan, choose, require_usable
from assay.steer.repair_checks import Bars, Fault, judge
from assay.testing.compiler import tokenizer_of
from conftest import tiny_hf, wrap

WORDS = ("?", *(f"w{number}" for number in range(198)))
HALVES = (torch.bfloat16, torch.float16)


def worded(family="llama", dtype=torch.float32):
    return load_model(tiny_hf(family).to(dtype), tokenizer=tokenizer_of(WORDS))


def task(n=10, answer=" w90", foil=" w99"):
    return [Pair(f"w1 w{20 + n} w8", f"w1 w{20 + n} w9", (answer,), (foil,), f"t{n}") for n in range(n)]


# weights in half precision -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", ["gpt2", "neox", "opt"])
def test_a_square_matrix_lies_as_it_is_used_in_half_precision(family, dtype):
    """Output projections of attention are square: their transpose fits as well, and is another map."""
    hf = tiny_hf(family)
    model = wrap(hf.to(dtype))
    found = weights.matrix_of(model, model.layout.blocks[0].o_proj or "")
    assert found.inputs_first == (family == "gpt2") and found.rows.shape == (32, 32)
    changed = weights.scale_units(model, ["z.0.1"], 0.0).model
    weight = dict(changed.hf.named_parameters())[f"{found.path}.weight"].detach()
    head = weight[8:16] if found.inputs_first else weight[:, 8:16]
    assert not head.any() and torch.count_nonzero(weight) == weight.numel() - head.numel()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_direction_is_gone_in_half_precision_or_refused(dtype):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    unit = direction.double() / direction.norm()
    model = wrap(tiny_hf("gpt2").to(dtype))
    changed = weights.project_out(model, direction).model
    ids = [[5, 9, 30, 7, 11, 42]]
    for site in ("attn_out.1", "resid_post.2"):
        before, after = (one.capture(ids, site).flat(site).double() for one in (model, changed))
        assert (after @ unit).norm() < 0.02 * (before @ unit).norm()
    with pytest.raises(SiteError, match="word_embeddings_layernorm"):
        weights.project_out(wrap(tiny_hf("bloom").to(dtype)), direction)


# export ------------------------------------------------------------------------------------------


def test_an_export_is_checked_weight_by_weight(tmp_path, monkeypatch):
    """In bfloat16 a lost edit may be less than what rounding explains in logits."""
    model = worded(dtype=torch.bfloat16)
    changed = weights.scale_units(model, ["mlp_act.0.1"], 0.5)
    monkeypatch.setattr(changed.model.hf, "save_pretrained", model.hf.save_pretrained)  # saves what was there before
    with pytest.raises(ModelError, match="mlp.down_proj.weight is another"):
        export.export(changed, tmp_path / "model", lambda facts: {})
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_checkpoint_stay_open_to_all(tmp_path):
    model = worded()
    model.tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ messages }}!"}
    folder = export.export(weights.scale_units(model, ["z.0.1"], 0.0), tmp_path / "model", lambda facts: {"a.md": "a"}).folder
    inside = folder / "additional_chat_templates"
    assert inside.stat().st_mode & 0o777 == 0o755 and (inside / "tool_use.jinja").stat().st_mode & 0o777 == 0o644
    again = transformers.AutoTokenizer.from_pretrained(folder)
    assert again.chat_template == model.tokenizer.chat_template


def test_a_linked_target_is_followed(tmp_path):
    changed = weights.scale_units(worded(), ["z.0.1"], 0.0)
    (tmp_path / "real").mkdir()
    for name, to in (("empty", "real"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(to)
        export.export(changed, tmp_path / name, lambda facts: {})
        assert (tmp_path / name).is_symlink() and (tmp_path / to / "model.safetensors").is_file()
        with pytest.raises(UsageError, match="not empty"):
            export.check_target(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    for bad in (tmp_path / ("a" * 300), tmp_path / "loop", tmp_path / "real" / "model.safetensors" / "x"):
        with pytest.raises(StoreError, match="--out"):
            export.check_target(bad)


INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_repair_review import worded
from assay.steer import export, weights
signal.signal(signal.SIGINT, signal.default_int_handler)
def stop(facts):
    os.kill(os.getpid(), signal.SIGINT)
    return {}
export.export(weights.scale_units(worded(), ["z.0.1"], 0.0), Path(sys.argv[1]) / "model", stop)
"""


def test_an_interrupt_while_writing_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path), os.path.dirname(__file__)], capture_output=True)
    assert done.returncode == -signal.SIGINT and b"KeyboardInterrupt" in done.stderr
    assert list(tmp_path.iterdir()) == []


# plans and judging -------------------------------------------------------------------------------


@pytest.mark.parametrize("plan,said", [
    (RepairPlan("scale-heads", ("z.0.1",), (float("nan"),)), "--factor"),
    (RepairPlan("scale-heads", ("z.0.1",), (1.0, float("inf"))), "--factor"),
    (RepairPlan("scale-heads", ("z.0.1",), layers=(0,)), "--layer"),
    (RepairPlan("rank-one", strengths=(0.5, 0.0)), "--strength"),
    (RepairPlan("rank-one", strengths=()), "--strength"),
    (RepairPlan("project-out"), "--direction"),
])  # fmt: skip
def test_plans_are_refused_before_anything_is_read(plan, said):
    with pytest.raises(UsageError, match=said):
        check_plan(wrap(tiny_hf("llama")), plan)


def test_a_fault_the_model_cannot_be_asked_about_is_refused():
    fault = Fault("fault", {"discover": task(), "tune": task(), "confirm": task(answer=" hello", foil=" there"), "ood": []})
    with pytest.raises(NothingLeft, match="none of 10 pairs"):
        require_usable(worded(), fault, RepairPlan("scale-heads", ("z.0.1",)))


def test_a_model_that_broke_is_no_traceback_and_never_chosen():
    model = worded()
    broken = weights.scale_units(model, ["z.0.1"], 1e30)
    same, other = weights.scale_units(model, ["z.0.1"], 1.0), weights.scale_units(model, ["z.0.1"], -30.0)
    assert not same.changes and other.changes
    fault = Fault("fault", {"confirm": task(), "ood": []}, texts=["w1 w2 w3"])
    with torch.no_grad():
        dict(broken.model.hf.named_parameters())["lm_head.weight"].mul_(float("inf"))
    with pytest.raises(ModelError, match="the changed model gives numbers that are not finite"):
        judge(model, broken.model, fault, Bars())
    from assay.data.prepare import prepare

    candidates = [Candidate({"n": n}, lambda made=made: made) for n, made in enumerate((broken, same, other))]
    best, trials = choose(model, candidates, prepare(task(), model), [[1, 2, 3, 4]], Bars())
    assert best == 2 and trials[0].met == 0 and trials[0].kl == float("inf")


def test_a_subject_is_a_whole_word_wherever_the_label_points():
    pair = Pair("w1 florida w2", "w1 florida w3", (" w5",), (" w6",), "t", {"subject": (6, 6)})
    assert rank_one.subject_of(pair, "subject", 0) == ("florida", 9)
    many = Pair("w1 new zealand w2", "w1 x w2", (" w5",), (" w6",), "t", {"subject": (5, 3), "subject_end": (9, 3)})
    assert rank_one.subject_of(many, "subject", 0) == ("new zealand", 13)


# the command -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model and a fault."""
    model = worded()
    export.export(weights.scale_units(model, ["z.0.0"], 0.5), tmp_path / "model", lambda facts: {})
    rows = [{"clean": f"w{n} w{n + 50} w8", "corrupted": f"w{n} w{n + 50} w9", "answer": " w90", "foil": " w99",
             "template": f"t{n}", "labels": {"subject": 0}} for n in range(40)]  # fmt: skip
    (tmp_path / "fault.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASSAY_ALLOW", raising=False)
    return tmp_path


def run(*words):
    return CliRunner().invoke(repair, ["model", "--file", "fault.jsonl", "--quiet", *words])


HEADS = ("--method", "scale-heads", "--units", "z.0.1", "--factor", "0")


def test_no_name_is_no_way_around_the_permission(folder, monkeypatch):
    (folder / "empty").mkdir()
    monkeypatch.chdir(folder / "empty")
    done = CliRunner().invoke(repair, ["../model", "--file", "../fault.jsonl", *HEADS, "--out", "", "--atlas", "../at"])
    assert isinstance(done.exception, UsageError) and "--out" in str(done.exception)
    assert not list((folder / "empty").iterdir())


@pytest.mark.parametrize("more,said", [
    (("--layer", "0"), "--layer"), (("--strength", "2"), "--strength"), (("--subject", "end"), "--subject"),
    (("--steps", "5"), "--steps"), (("--factor", "nan"), "--factor"),
])  # fmt: skip
def test_what_a_method_does_not_read_is_refused(folder, more, said):
    done = run(*HEADS, *more)
    assert isinstance(done.exception, UsageError) and str(done.exception).startswith(said)
    assert not (folder / "atlas").exists()  # nothing was looked at


def test_directions_of_other_models_and_plain_vectors_are_explained(folder):
    other = wrap(tiny_hf("llama", seed=1), "other")
    save_direction(from_vector(other, torch.ones(32), "resid_post.1"), folder / "other.safetensors")
    torch.save(torch.ones(32), folder / "plain.pt")
    for file, kind, said in (("other.safetensors", UsageError, "one made on other"), ("plain.pt", UsageError, "--save FILE"),
                             ("none.safetensors", StoreError, "No such file")):  # fmt: skip
        done = run("--method", "project-out", "--direction", file)
        assert isinstance(done.exception, kind) and said in str(done.exception) and "allow=" not in str(done.exception)


# the log -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    {"body": None}, {"body": []}, {"time": 5}, {"who": None}, {"why": {}}, {"hash": 3}, {"index": True},
    {"body": {"number": float("nan")}},
])  # fmt: skip
def test_lines_of_another_form_are_no_traceback(tmp_path, change):
    permissions.record(tmp_path, "repair", {"number": 1})
    entry = json.loads((tmp_path / "audit.jsonl").read_text())
    (tmp_path / "audit.jsonl").write_text(json.dumps({**entry, **change}) + "\n")
    for call in (permissions.verify, lambda at: permissions.record(at, "repair", {})):
        with pytest.raises(TamperedError):
            call(tmp_path)
    done = CliRunner().invoke(repair, ["log", "--atlas", str(tmp_path)])
    assert isinstance(done.exception, TamperedError)


def test_an_edited_body_is_shown_and_said(tmp_path):
    permissions.record(tmp_path, "repair", {"fault": "capitals", "method": "rank-one", "verdict": "repaired"})
    entry = json.loads((tmp_path / "audit.jsonl").read_text())
    (tmp_path / "audit.jsonl").write_text(json.dumps({**entry, "body": {"verdict": ["x"]}}) + "\n")
    done = CliRunner().invoke(repair, ["log", "--verify", "--atlas", str(tmp_path)])
    assert done.exit_code == 3 and "was edited" in done.output
    assert "no log" in CliRunner().invoke(repair, ["log", "--verify", "--atlas", str(tmp_path / "none")]).output


def test_a_log_that_is_being_written_to_holds(tmp_path, monkeypatch):
    """Entries that come between the reading of the head and of the log are not "added past it"."""
    permissions.record(tmp_path, "first", {})
    real, more = permissions.entries, [3]

    def meanwhile(folder):
        if more:
            for number in range(more.pop()):
                permissions.record(tmp_path, "meanwhile", {"number": number})
        return real(folder)

    monkeypatch.setattr(permissions, "entries", meanwhile)
    assert permissions.verify(tmp_path) == [] and not more
