"""The kind *mediates* on a model whose mechanism is known, against raw hooks, and from lock to verdict."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from assay.atlas.store import Atlas
from assay.data.prepare import prepare
from assay.data.tasks import read_task
from assay.errors import EvidenceError, PlanWarning, ReproduceError, UsageError
from assay.evidence import claims
from assay.evidence.claims import audit, record_look
from assay.evidence.kinds import KINDS
from assay.evidence.ledger import tally
from assay.evidence.mediates import all_units, random_sets, set_effects, site_means, units_of
from assay.evidence.replay import replay_claim
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.search.wrong_sign import wrong_sign_pairs
from assay.evidence.source import Source, leaks, split_items
from assay.testing import planted_induction
from planted_task import write_task

pytestmark = pytest.mark.whole

SMALL = Settings(tune=16, confirm=48, ood=36, draws=8, control_pairs=2)


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return Source(str(write_task(tmp_path_factory.mktemp("task") / "induction.jsonl")))


def run_claim(model, source, atlas, sites, **changes):
    claim, _ = state_claim(atlas, model, source, sites, settings=replace(SMALL, **changes))
    return claim, test_claim(atlas, claim.id, model)


# the model itself -------------------------------------------------------------------------------


def test_the_planted_model_does_what_its_weights_say(model):
    words = torch.randperm(24, generator=torch.Generator().manual_seed(0)).tolist()[:9]
    prompt = words + words[:4]
    acts = model.capture([prompt], ["pattern.0.0", "pattern.1.0", "pattern.1.1"])
    for position in range(1, len(prompt)):
        assert acts["pattern.0.0"][0, position, position - 1] > 0.99  # looks one back
    for head in ("pattern.1.0", "pattern.1.1"):
        assert acts[head][0, -1, 4] > 0.99  # looks after the earlier occurrence of the current word
    assert model.logits([prompt])[0].argmax() == words[4]
    assert model.proof.proved


# measurements against raw hooks -----------------------------------------------------------------


def raw_run(model, prompt, writes):
    """Last logits with z written by plain hooks: {layer: (head, (pos, d_head) values)}."""
    handles = []
    size = model.dims.d_head
    for layer, heads in writes.items():

        def hook(module, args, heads=heads):
            x = args[0].clone()
            for head, value in heads:
                x[0, :, head * size : (head + 1) * size] = value
            return (x,)

        handles.append(model.hf.transformer.h[layer].attn.c_proj.register_forward_pre_hook(hook))
    try:
        with torch.no_grad():
            return model.hf(torch.tensor([prompt])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()


def raw_z(model, prompt, layer, head):
    found = {}
    size = model.dims.d_head
    handle = model.hf.transformer.h[layer].attn.c_proj.register_forward_pre_hook(
        lambda module, args: found.update(z=args[0][0, :, head * size : (head + 1) * size].clone())
    )
    with torch.no_grad():
        model.hf(torch.tensor([prompt]))
    handle.remove()
    return found["z"]


def test_effects_equal_a_loop_with_raw_hooks(model, source):
    """Necessity by resample and by mean, and sufficiency, of {z.1.0, z.0.2}, one prompt at a time."""
    task = prepare(source.items("tune", 10, 0), model)
    units = [(1, 0), (0, 2)]
    first = {u: torch.stack([raw_z(model, p, *u)[0] for p in task.clean]).mean(0) for u in units}
    later = {u: torch.cat([raw_z(model, p, *u)[1:] for p in task.clean]).mean(0) for u in units}
    rows = {"necessity.mean": [], "necessity.resample": [], "sufficiency": []}
    spans = []
    for clean, corrupted, (answer,), (foil,) in zip(task.clean, task.corrupted, task.answers, task.foils):
        value = lambda logits, a=answer, f=foil: (logits[a] - logits[f]).item()  # noqa: E731
        z = {run: {u: raw_z(model, p, *u) for u in units} for run, p in (("clean", clean), ("corrupted", corrupted))}
        mean = {u: torch.stack([first[u], *[later[u]] * (len(clean) - 1)]) for u in units}

        def write(values):
            return {layer: [(h, values[layer, h]) for (at, h) in units if at == layer] for layer in (0, 1)}

        c, b = value(raw_run(model, clean, {})), value(raw_run(model, corrupted, {}))
        spans.append(c - b)
        rows["necessity.mean"].append(c - value(raw_run(model, clean, write(mean))))
        rows["necessity.resample"].append(c - value(raw_run(model, clean, write(z["corrupted"]))))
        rows["sufficiency"].append(value(raw_run(model, corrupted, write(z["clean"]))) - b)
    expected = {}
    for name, values in rows.items():
        shares = np.array(values) / np.mean(spans)
        groups = {t: [s for s, other in zip(shares, task.templates) if other == t] for t in task.templates}
        expected[name] = np.mean([np.mean(group) for group in groups.values()])
    assert set_effects(model, task, "z.1.0,z.0.2") == pytest.approx(expected, abs=1e-4)


def test_means_keep_the_first_position_apart(model):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    (unit,) = units_of(model, "z.0.1")
    first, later = site_means(model, prompts, [unit])[unit]
    z = [raw_z(model, prompt, 0, 1) for prompt in prompts]
    assert torch.allclose(first, torch.stack([x[0] for x in z]).mean(0), atol=1e-6)
    assert torch.allclose(later, torch.cat([x[1:] for x in z]).mean(0), atol=1e-6)


# subjects and controls --------------------------------------------------------------------------


def test_units_are_canonical_and_of_one_kind(model):
    assert [str(u) for u in units_of(model, "z.1.1, L0.z.h2,z.-1.1")] == ["z.0.2", "z.1.1"]
    assert len(units_of(model, "z.1")) == model.n_heads
    for wrong in ("z.0.0,mlp_out.1", "q.0.0", "attn_out.0.1", "pattern.0"):
        with pytest.raises(UsageError):
            units_of(model, wrong)


def test_random_sets_match_layers_while_there_are_enough(model):
    units = units_of(model, "z.0.0,z.1.1")
    sets, moved = random_sets(all_units(model, "z"), units, 6, seed=0)
    assert len(set(sets)) == 6 and moved == 0
    assert all(not set(drawn) & set(units) and [u.layer for u in drawn] == [0, 1] for drawn in sets)
    more, moved = random_sets(all_units(model, "z"), units, 12, seed=0)
    assert len(set(more)) == 12 and moved == 3  # 3 x 3 sets in these layers, the rest from anywhere
    assert random_sets(all_units(model, "mlp_out"), units_of(model, "mlp_out.0,mlp_out.1"), 5, 0) == ([], 0)


def test_wrong_signs_are_found_worst_first():
    columns = {"clean": [2.0, 2.0, 2.0, None], "ablated.resample": [1.0, 3.0, 2.0, 1.0],
               "corrupted": [0.0, 0.0, 0.0, 0.0], "restored": [1.0, 1.0, -5.0, 1.0]}  # fmt: skip
    assert wrong_sign_pairs(columns) == [(2, "sufficiency", -5.0), (1, "necessity.resample", -1.0)]


# splits -----------------------------------------------------------------------------------------


def test_no_template_and_no_text_is_in_two_splits(source):
    pairs = read_task(Path(source.data))
    splits = split_items(pairs)
    assert sum(map(len, splits.values())) == len(pairs)
    names = list(splits)
    for a in names:
        for b in names:
            assert a == b or leaks(splits[a], splits[b]) == {}
    shared = replace(splits["confirm"][0], template=splits["tune"][0].template)
    joined = split_items([*pairs, shared])  # one text under two templates joins their groups
    homes = {split for split, found in joined.items() for p in found
             if p.template in (shared.template, splits["confirm"][0].template)}  # fmt: skip
    assert len(homes) == 1


# claims -----------------------------------------------------------------------------------------


def test_the_true_circuit_is_supported_and_the_decoy_refuted(model, source, tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    claim, verdict = run_claim(model, source, atlas, "z.0.0,z.1.0,z.1.1")
    gates = {gate["name"]: gate for gate in verdict.gates}
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert gates["necessity.resample"]["estimate"] == pytest.approx(1.0, abs=0.02)
    assert gates["sufficiency"]["estimate"] == pytest.approx(1.0, abs=0.02)
    assert verdict.unexplained["confirm"]["not_restored"] == pytest.approx(0.0, abs=0.02)
    assert verdict.unexplained["confirm"]["left_when_ablated"] == pytest.approx(0.0, abs=0.05)
    assert "more than the best of 8 random sets" in verdict.sentence

    decoy, refuted = run_claim(model, source, atlas, "z.0.1")  # the answer can be read from it, nothing uses it
    assert (refuted.verdict, refuted.reasons) == ("refuted", ("below SESOI",))

    copy, alone = run_claim(model, source, atlas, "z.1.0")  # half of a backed-up pair: its twin does as well
    assert alone.verdict == "inconclusive" and "non-unique" in alone.reasons
    assert atlas.verify() == [] and [audit(atlas, c.id) for c in atlas.claims()] == [[], [], []]
    counts = tally(atlas.entries())
    assert (counts["stated"], counts["supported"], counts["refuted"], counts["inconclusive"]) == (3, 1, 1, 1)


def test_a_second_read_is_charged_and_labelled(model, source, tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    claim, first = run_claim(model, source, atlas, "z.1.0,z.1.1")
    again = test_claim(atlas, claim.id, model)
    assert first.qualifiers == () and again.qualifiers == ("reused split",)
    assert again.decision["alpha"] == pytest.approx(0.05 / 4)
    other, _ = state_claim(atlas, model, source, "z.1.0,z.1.1", settings=SMALL)  # stating anew does not help
    assert test_claim(atlas, other.id, model).decision["reads"] == 3


def test_looking_at_sealed_prompts_first_makes_a_claim_exploratory(model, source, tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    record_look(atlas, model.digest, "a sweep over the whole file", source.explore(None, 1, 0))
    assert run_claim(model, source, atlas, "z.1.0,z.1.1")[1].qualifiers == ("exploratory",)
    with pytest.raises(UsageError, match="sealed"):
        source.explore("confirm", 10, 0)


def test_a_killed_test_keeps_its_ticket(model, source, tmp_path, monkeypatch):
    atlas = Atlas(tmp_path / "atlas")
    claim, _ = state_claim(atlas, model, source, "z.1.0,z.1.1", settings=SMALL)
    monkeypatch.setattr(KINDS.get("mediates"), "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), raising=False)
    with pytest.raises(KeyboardInterrupt):
        test_claim(atlas, claim.id, model)
    monkeypatch.undo()
    assert atlas.evidence(claim.id) is None
    verdict = test_claim(atlas, claim.id, model)
    assert verdict.decision["reads"] == 1 and verdict.qualifiers == ()
    assert not model.hf.transformer.h[0].attn.c_proj._forward_pre_hooks


def test_another_model_is_refused(model, source, tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    claim, _ = state_claim(atlas, model, source, "z.1.0", settings=SMALL)
    other = planted_induction()
    assert other.digest == model.digest
    other.hf.transformer.wte.weight.data[0, 0] += 0.01  # not even torch counts this write
    with pytest.raises(ReproduceError, match="is about GPT2LMHeadModel with digest"):
        test_claim(atlas, claim.id, other)
    with torch.no_grad():
        other.hf.transformer.wte.weight[0, 0] -= 0.02
    assert other.digest not in (model.digest, claim.subject["digest"])
    assert [entry["kind"] for entry in atlas.entries()] == ["look", "state", "lock"]  # nothing was read


def test_a_replay_comes_out_the_same_and_a_changed_instrument_shows(model, source, tmp_path, monkeypatch):
    atlas = Atlas(tmp_path / "atlas")
    claim, verdict = run_claim(model, source, atlas, "z.1.0,z.1.1")
    found = replay_claim(atlas, claim.id, model)
    assert found.same and found.again.verdict == verdict.verdict and found.moved == ()
    kind = KINDS.get("mediates")
    honest = kind.measure

    def drifted(*arguments, **options):
        columns = honest(*arguments, **options)
        return {name: [v and v * 1.1 for v in values] if name == "restored" else values for name, values in columns.items()}

    monkeypatch.setattr(kind, "measure", drifted, raising=False)
    changed = replay_claim(atlas, claim.id, model)
    assert not changed.same and any(text.startswith("sufficiency:") for text in changed.moved)
    assert atlas.evidence(claim.id).reads == 1 and len(atlas.claims()) == 1  # a replay is no second read


def test_changed_data_are_refused(model, tmp_path):
    path = write_task(tmp_path / "task.jsonl")
    atlas, source = Atlas(tmp_path / "atlas"), Source(str(path))
    claim, _ = state_claim(atlas, model, source, "z.1.0", settings=SMALL)
    write_task(path, seed=1)
    with pytest.raises(EvidenceError, match="not those the plan was locked on"):
        test_claim(atlas, claim.id, model)


def test_too_few_templates_can_never_be_supported(model, tmp_path):
    source = Source(str(write_task(tmp_path / "few.jsonl", n_templates=12, per_template=8)))
    atlas = Atlas(tmp_path / "atlas")
    with pytest.warns(PlanWarning, match="confirm: . templates; fewer than 8 can never be supported, so . more are needed"):
        claim, plan = state_claim(atlas, model, source, "z.0.0,z.1.0,z.1.1", settings=SMALL)
    assert any("fewer than 8" in warning for warning in claims.warnings_of(plan))
    verdict = test_claim(atlas, claim.id, model)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("underpowered",))


def test_no_behaviour_is_not_tested(model, tmp_path):
    path = write_task(tmp_path / "task.jsonl")
    path.write_text(path.read_text().replace('"answer"', '"x"').replace('"foil"', '"answer"').replace('"x"', '"foil"'))
    verdict = run_claim(model, Source(str(path)), Atlas(tmp_path / "atlas"), "z.1.0")[1]
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("behaviour absent",))


def test_narrowing_makes_a_new_version_of_a_locked_claim(model, source, tmp_path):
    atlas = Atlas(tmp_path / "atlas")
    claim, plan = state_claim(atlas, model, source, "z.1.0,z.1.1", settings=SMALL)
    child, _ = state_claim(atlas, model, source, "z.1.0", statement=Statement(parent=claim.id), settings=SMALL)
    assert (child.version, child.parent) == (2, claim.id)
    with pytest.raises(EvidenceError, match="locked"):
        atlas.record_claim(claim, plan)
    with pytest.raises(EvidenceError, match="differ from what was locked"):
        claims.check_lock(replace(claim, statement="something else"), plan)


@pytest.mark.parametrize("changes", [{"alpha": 0.5}, {"draws": 0}, {"positions": "middle"}, {"metric": "rank"}])
def test_settings_outside_their_limits_are_refused(model, source, tmp_path, changes):
    with pytest.raises(UsageError, match="allowed"):
        state_claim(Atlas(tmp_path / "a"), model, source, "z.1.0", settings=replace(SMALL, **changes))


def test_a_user_can_register_a_kind_and_a_gate(model, source, tmp_path):
    """Six lines in a notebook: a gate that asks whether the units matter for at least half the templates."""
    from assay.evidence.gates import GATES, Contrast, Gate, gates_for
    from assay.evidence.gates.base import column, difference, span

    def contrast(table, gate):
        drop = difference(column(table, "clean"), column(table, "ablated.resample"), span(table))
        return Contrast([None if x is None else float(x > 0.1) for x in drop])

    gate = Gate("share.dropping", "necessity", ("mediates",), 0.5, True, lambda i, g: {}, contrast)
    GATES.add(gate.name, replace(gate, sesoi=0.6))
    with pytest.raises(UsageError, match=r"not taken.*remove\('share.dropping'\)"):
        GATES.add(gate.name, gate)
    GATES.remove(gate.name)  # a cell of a notebook that is run again
    GATES.add(gate.name, gate)
    try:
        assert gate in gates_for("mediates")
        verdict = run_claim(model, source, Atlas(tmp_path / "atlas"), "z.1.0,z.1.1")[1]
        found = {g["name"]: g["estimate"] for g in verdict.gates}
        assert found["share.dropping"] == pytest.approx(1.0)
    finally:
        GATES.remove(gate.name)
    with pytest.raises(UsageError, match="share.dropping"):
        GATES.remove(gate.name)
