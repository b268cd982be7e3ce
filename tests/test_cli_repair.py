"""`assay repair`: a planted fault is repaired, at no price, at a price, or not; rights, log, ledger, card and mistakes."""

import json

import pytest
import torch
import transformers
from click.testing import CliRunner

from assay import permissions
from assay.atlas.store import Atlas
from assay.cli.repair import repair
from assay.errors import SiteError, TaskError, UsageError
from assay.model.load import load_model
from assay.steer import rank_one, repair_checks
from assay.steer import repair as repair_module
from assay.steer.directions import from_vector
from assay.steer.files import save_direction
from assay.testing.compiler import tokenizer_of

WORDS = ("?", *(f"w{number}" for number in range(150)))
FOLLOWS = {"w8": "w90", "w9": "w99", "w10": "w95"}
D, NEURON, SHARP, LEVEL, PUSH = 32, 5, 10.0, 4.5, 3.0
REASON = ("--allow", "modify", "--reason", "w8 must be followed by w90")


def planted():
    """A GPT-2 that goes on with what `FOLLOWS`, but for one neuron that makes it say w99 after w8."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(WORDS), n_embd=D, n_layer=2, n_head=4, n_positions=64,
                                     tie_word_embeddings=False, bos_token_id=0, eos_token_id=0)  # fmt: skip
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        hf.transformer.wte.weight.mul_(100.0)
        embeddings = hf.transformer.wte.weight
        centred = embeddings - embeddings.mean(1, keepdim=True)
        unit = centred / centred.norm(dim=1, keepdim=True)
        at = {word: number for number, word in enumerate(WORDS)}
        hf.lm_head.weight.zero_()
        for word, after in FOLLOWS.items():
            hf.lm_head.weight[at[after]] = unit[at[word]]
        mlp = hf.transformer.h[1].mlp
        mlp.c_fc.weight[:, NEURON], mlp.c_fc.bias[NEURON] = SHARP * unit[at["w8"]], -SHARP * LEVEL
        mlp.c_proj.weight[NEURON] = PUSH * (unit[at["w9"]] - unit[at["w8"]])
    return hf


def pairs(n=40, answer=" w90", foil=" w99", subjects=("w20", "w21"), kind="w8"):
    rows = []
    for number in range(n):
        frame = f"w{30 + number} [P] w{31 + number // 2} [K]"
        for subject in subjects:
            clean, other = (frame.replace("[P]", subject).replace("[K]", last) for last in (kind, "w9"))
            rows.append({"clean": clean, "corrupted": other, "answer": answer, "foil": foil, "template": frame,
                         "labels": {"subject": clean.index(subject)}})  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Model, fault, neighbours and ordinary text in one folder."""
    folder = tmp_path_factory.mktemp("repair")
    planted().save_pretrained(folder / "model")
    tokenizer_of(WORDS).save_pretrained(folder / "model")
    write(folder / "fault.jsonl", pairs())
    write(folder / "spoiled.jsonl", pairs(10, " w99", " w90"))  # what is right only as long as the neuron is there
    write(folder / "others.jsonl", pairs(10, " w95", kind="w10"))
    text = [" ".join(WORDS[40 + (7 * n + 3 * k) % 100] for k in range(30)) for n in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    return folder


@pytest.fixture(autouse=True)
def there(made, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path_factory.getbasetemp() / "repair-cache"))
    monkeypatch.delenv("ASSAY_ALLOW", raising=False)
    for file in made.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)


def run(*words, **more):
    return CliRunner().invoke(repair, list(words), **more)


BASE = ("model", "--file", "fault.jsonl", "--text", "text.jsonl", "--tokens", "1500", "--quiet")
NEURONS = (*BASE, "--method", "scale-neurons", "--units", f"mlp_act.1.{NEURON}")


def test_a_planted_fault_is_repaired_and_exported(tmp_path):
    done = run(*NEURONS, "--neighbours", "others.jsonl", "--out", "new/fixed", *REASON, "--json", "done.json")
    assert done.exit_code == 0, done.output + repr(done.exception)
    record = json.loads((tmp_path / "done.json").read_text())
    assert record["verdict"] == "repaired", record["reasons"]
    assert record["settings"] == {"factor": 0.0}
    assert "REPAIRED" in done.stdout and "checkpoint: fixed" in done.stdout
    told = {(check["name"], check["about"]): check for check in record["checks"]}
    for split in ("confirm", "ood", "paraphrases"):
        gain, kept = told[f"fault, {split}", "gain"], told[f"fault, {split}, other prompt", "same"]
        assert (gain["before"], gain["after"], gain["passed"]) == (0.0, 1.0, True) and gain["templates"] >= 8
        assert (kept["before"], kept["after"], kept["passed"]) == (1.0, 1.0, True)
    assert told["neighbours", "same"]["after"] == 1.0 and told["ordinary text", "small"]["after"] < 1e-4
    assert [trial["settings"]["factor"] for trial in record["trials"]] == [0.0, 0.5, 1.5, 2.0]
    assert record["trials"][0]["met"] == 3 > record["trials"][2]["met"]
    assert [one["name"] for one in record["weights"]] == ["transformer.h.1.mlp.c_proj.weight"]
    assert record["said_in_full"] == {"before": 0.0, "after": 1.0}
    fixed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "fixed")
    own = load_model("model")
    row = own.hf.transformer.h[1].mlp.c_proj.weight.clone()
    row[NEURON] = 0
    assert torch.equal(fixed.transformer.h[1].mlp.c_proj.weight, row)
    assert load_model("new/fixed").digest == record["digest_after"] != record["digest_before"] == own.digest
    card = (tmp_path / "new" / "fixed" / "README.md").read_text()
    kept = json.loads((tmp_path / "new" / "fixed" / "repair.json").read_text())
    asked, first, last = permissions.entries(tmp_path / "atlas")
    for word in ("**repaired**", record["digest_before"], record["digest_after"], first["hash"], "w8 must be followed by w90"):
        assert word in card
    assert kept["checks"] == record["checks"] and kept["audit"] == first["hash"] and "base_model:" in card
    assert [entry["action"] for entry in (asked, first, last)] == ["repair run", "repair: export begins", "repair: exported"]
    assert first["why"] == "w8 must be followed by w90" and first["role"] == "modify"
    assert last["body"]["entry"] == first["hash"] and last["body"]["digest"] == record["digest_after"]
    looks = [entry["body"]["what"] for entry in Atlas(tmp_path / "atlas").entries() if entry["kind"] == "look"]
    assert [look.split(", ")[1] for look in looks] == ["tune", "confirm", "ood", "neighbours"]


def test_a_price_is_named_and_can_be_refused(tmp_path):
    words = (*NEURONS, "--factor", "0", "--neighbours", "spoiled.jsonl", "--out", "fixed", *REASON)
    done = run(*words, "--require", "repaired", "--json", "-")
    record = json.loads(done.stdout)
    assert done.exit_code == 1 and record["verdict"] == "repaired at a price" and record["out"] is None
    assert len(record["reasons"]) == 1 and "neighbours: right 100% before, 0% after" in record["reasons"][0]
    assert "changed" in record["reasons"][0] and not (tmp_path / "fixed").exists()
    assert run(*words, "--require", "price").exit_code == 0 and (tmp_path / "fixed" / "README.md").is_file()


def test_another_neuron_repairs_nothing(tmp_path):
    done = run(*BASE, "--method", "scale-neurons", "--units", "mlp_act.1.6,mlp_act.0.5", "--factor", "0", "--json", "-")
    record = json.loads(done.stdout)
    assert done.exit_code == 0 and record["verdict"] == "not repaired" and "rose by +0 points" in record["reasons"][0]
    asked, entry = permissions.entries(tmp_path / "atlas")
    assert (asked["action"], asked["role"]) == ("repair run", "intervene")
    assert (entry["action"], entry["role"], entry["body"]["verdict"]) == ("repair: dry run", "intervene", "not repaired")
    kept = {"atlas", "fault.jsonl", "model", "others.jsonl", "spoiled.jsonl", "text.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("method,more", [
    ("mean-ablate-neurons", ("--units", f"mlp_act.1.{NEURON}")),
    ("mean-ablate-heads", ("--units", "z.0.1")),
    ("scale-heads", ("--units", "z.0.1,z.1.*", "--factor", "0.5")),
    ("project-out", ("--direction", "along.safetensors")),
    ("project-out", ("--direction", "along.safetensors", "--layer", "1")),
    ("rank-one", ("--layer", "0,1", "--steps", "3", "--strength", "1")),  # what layer 1 writes there is read by nobody
    ("rank-one", ("--layer", "1", "--steps", "3", "--strength", "1", "--subject", "end")),
])  # fmt: skip
def test_every_method_runs(method, more):
    model = load_model("model")
    save_direction(from_vector(model, model.hf.lm_head.weight[100].detach(), "resid_post.1"), "along.safetensors")
    done = run(*BASE, "--method", method, *more, "--json", "-")
    assert done.exit_code == 0, repr(done.exception)
    record = json.loads(done.stdout)
    assert record["weights"] and all(one["change"] > 0 for one in record["weights"])
    if method == "rank-one" and "0,1" in more:
        assert record["settings"]["layer"] == 0
    if method == "mean-ablate-neurons":  # the neuron is silent in ordinary text
        assert record["verdict"] == "repaired"


def test_an_interrupted_run_goes_on_from_what_was_finished():
    words = (*BASE, "--method", "rank-one", "--layer", "0,1", "--steps", "2", "--json", "-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repair_checks, "_text_check", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*words).exit_code != 0
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((rank_one, "find_values"), (repair_checks, "_part"), (repair_module, "_tried")):
            patch.setattr(module, name, lambda *_, **__: pytest.fail("done again"))
        again = run(*words)
        assert again.exit_code == 0, repr(again.exception)
    record, whole = json.loads(again.stdout), json.loads(run(*words, "--atlas", "other").stdout)
    for name in ("checks", "trials", "settings", "weights", "verdict", "digest_after"):
        assert record[name] == whole[name], name


def test_rights_are_asked_before_anything(tmp_path, monkeypatch):
    for words, said in (
        (("--out", "fixed"), "--allow modify"),
        (("--out", "fixed", "--allow", "modify"), "--reason"),
        (("--out", "fixed", "--allow", "modify", "--reason", "no"), "--reason"),
        (("--allow", "read"), "--allow intervene"),
        (("--allow", "everything"), "--allow: got"),
    ):
        done = run("no-such-model", *NEURONS[1:], *words)
        assert isinstance(done.exception, UsageError) and said in str(done.exception), said
    monkeypatch.setenv("ASSAY_ALLOW", "read")
    assert isinstance(run(*NEURONS).exception, UsageError)
    assert not (tmp_path / "atlas").exists() and not (tmp_path / "fixed").exists()


@pytest.mark.parametrize("words,kind,said", [
    ((*BASE, "--method", "scale-neurons"), UsageError, "--units"),
    ((*BASE, "--method", "scale-neurons", "--units", "z.0.1"), UsageError, "mlp_act.LAYER"),
    ((*BASE, "--method", "scale-neurons", "--units", "mlp_act.7.1"), SiteError, "mlp_act"),
    ((*BASE, "--method", "scale-heads", "--units", "z.0"), UsageError, "z.LAYER"),
    ((*BASE, "--method", "rank-one", "--units", "z.0.1"), UsageError, "--units"),
    ((*BASE, "--method", "rank-one", "--factor", "2"), UsageError, "--factor"),
    ((*BASE, "--method", "rank-one", "--layer", "9"), SiteError, "resid_post"),
    ((*BASE, "--method", "rank-one", "--subject", "country"), TaskError, "country"),
    ((*BASE, "--method", "project-out"), UsageError, "--direction"),
    ((*BASE, "--method", "rank-one", "--direction", "x.safetensors"), UsageError, "--direction"),
    (("model", "--method", "rank-one"), UsageError, "TASK"),
    (("model", "--fault", "capitols", "--method", "rank-one"), TaskError, "Did you mean 'capitals'"),
    (("model", "--fault", "animals", "--method", "rank-one"), UsageError, "concept"),
    ((*NEURONS, "--factor", "1"), UsageError, "changes weights"),
    ((*NEURONS, "--out", "model", *REASON), UsageError, "not empty"),
    ((*NEURONS, "--out", "/proc/here", *REASON), UsageError, "--out"),
])  # fmt: skip
def test_mistakes_are_named(words, kind, said, tmp_path):
    done = run(*words)
    assert isinstance(done.exception, kind) and said in str(done.exception), repr(done.exception)
    logged = [entry["action"] for entry in permissions.entries(tmp_path / "atlas")]
    assert permissions.verify(tmp_path / "atlas") == [] and logged == ["repair run"] * (tmp_path / "atlas").exists()


def test_facts_of_other_subjects_are_refused(tmp_path):
    rows = [{**row, "entities": [row["clean"].split()[1]]} for row in pairs(12, subjects=tuple(f"w{n}" for n in range(10, 22)))]
    write(tmp_path / "apart.jsonl", rows)
    done = run("model", "--file", "apart.jsonl", *BASE[3:], "--method", "rank-one")
    assert isinstance(done.exception, TaskError) and "'entities'" in str(done.exception), repr(done.exception)


def test_the_log_is_shown_and_checked(tmp_path):
    assert "0 entries" in run("log").stdout
    for number in range(3):
        permissions.record("atlas", "repair: dry run", {"number": number}, permissions.Grant("modify", "a good reason"))
    done = run("log", "--verify", "--json", "log.json")
    assert done.exit_code == 0 and "3 entries; the chain holds" in done.stdout and "a good reason" in done.stdout
    assert json.loads((tmp_path / "log.json").read_text())["whole"]
    lines = (tmp_path / "atlas" / "audit.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "atlas" / "audit.jsonl").write_text("".join([lines[0], *lines[2:]]))
    done = run("log", "--verify")
    assert done.exit_code == 3 and "missing or moved" in done.stdout


def test_help_is_that_of_the_command():
    assert "--method" in run("--help").stdout and "assay repair log" in run("--help").stdout
