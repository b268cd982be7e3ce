"""Every gate of *mediates* on a circuit that is true and on one that only this gate tells from it."""

import copy
import functools

import numpy as np
import pytest
import torch

from assay import clamp
from assay.circuits.patch import first_difference
from assay.data.prepare import prepare
from assay.data.tasks import load_task
from assay.evidence.batched_controls import by_first_layer
from assay.evidence.circuits_instrument import Instrument, Setup, site_means
from assay.evidence.gates import evaluate, get_gate
from assay.evidence.mediates import all_units, random_sets, set_effects, units_of
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.model.load import load_model
from assay.sites import Site
from assay.testing import circuit_models, planted_induction
from circuit_tasks import source
from test_mediates import raw_run, raw_z

pytestmark = pytest.mark.whole

SMALL = Settings(tune=18, confirm=48, ood=40, draws=6, control_pairs=2)
TRUE = "z.0.0,z.1.0,z.1.1"


@functools.cache
def verdict_on(model, sites, quantifier="tends", halves=False):
    store, data = MemoryStore(), source(halves)
    claim, _ = state_claim(store, model, data, sites, statement=Statement("mediates", quantifier), settings=SMALL)
    return test_claim(store, claim.id, model, source=data)


def gates_of(verdict):
    return {gate["name"]: gate for gate in verdict.gates if gate["split"] == "confirm"}


def failing(verdict):
    return {gate["name"].split("@")[0] for gate in verdict.gates if gate["required"] and not gate["passed"]}


@pytest.fixture(scope="module")
def model():
    return planted_induction()


@pytest.fixture(scope="module")
def true_verdict(model):
    return verdict_on(model, TRUE)


def instrument_on(model, task, units, draws=0, positions="all", pairs=9):
    chosen, pool = units_of(model, units), all_units(model, units_of(model, units)[0].name)
    sets = random_sets(pool, chosen, draws, 0)[0] if draws else []
    setup = Setup(chosen, tuple(unit for unit in pool if unit not in chosen), tuple(sets),
                  site_means(model, task.clean, chosen), "logit_diff", positions, pairs)  # fmt: skip
    return Instrument(model, task, list(range(len(task))), setup)


# batched controls --------------------------------------------------------------------------------


def test_batched_controls_equal_raw_hooks_one_set_at_a_time(model):
    task = prepare(source().items("confirm", 8, 0), model)
    instrument = instrument_on(model, task, TRUE, draws=6)
    for how, base, values in (("resample", task.clean, task.corrupted), ("restore", task.corrupted, task.clean)):
        for units, got in zip(instrument.random_sets, instrument.many(instrument.random_sets, how), strict=True):
            for row, (answer,), (foil,) in zip(range(len(task)), task.answers, task.foils, strict=True):
                writes = {layer: [(u.index, raw_z(model, values[row], layer, u.index)) for u in units if u.layer == layer]
                          for layer in (0, 1)}  # fmt: skip
                logits = raw_run(model, base[row], writes)
                assert got[row] == pytest.approx(float(logits[answer] - logits[foil]), abs=1e-4)


@pytest.mark.parametrize("positions", ["all", "last"])
def test_prompts_that_fill_a_pass_alone_give_the_same_numbers(glass, positions):
    """Forty sets on a real model: the shared prefix is cut off, passes resume; plain hooks run everything."""
    task = prepare(load_task("ioi", "confirm", 6, 0), glass)
    instrument = instrument_on(glass, task, "z.1.0,z.2.1", draws=40, positions=positions)
    sets = instrument.random_sets
    assert len(sets) == 40 and len(by_first_layer(sets)) > 1
    got = instrument.many(sets, "restore")
    for units, values in list(zip(sets, got, strict=True))[::5]:
        expected = hooked(glass, task, units, positions)
        assert values == pytest.approx(expected, abs=1e-4)
        assert instrument.patched(units, "restore") == pytest.approx(expected, abs=1e-4)


def hooked(model, task, units, positions):
    """Restoring by pre-hooks on the output projections, one prompt at a time, every layer run."""
    size, found, kept = model.dims.d_head, [], {}
    projections = {layer: model.hf.model.layers[layer].self_attn.o_proj for layer in {u.layer for u in units}}

    def keep(layer):
        return lambda module, args: kept.update({layer: args[0].clone()})

    def write(layer):
        def hook(module, args):
            x = args[0].clone()
            at = slice(None) if positions == "all" else slice(-1, None)
            for unit in units:
                if unit.layer == layer:
                    part = slice(unit.index * size, (unit.index + 1) * size)
                    x[:, at, part] = kept[layer][:, at, part]
            return (x,)

        return hook

    for clean, corrupted, (answer,), (foil,) in zip(task.clean, task.corrupted, task.answers, task.foils, strict=True):
        for make, prompt in ((keep, clean), (write, corrupted)):
            handles = [p.register_forward_pre_hook(make(layer)) for layer, p in projections.items()]
            with torch.no_grad():
                logits = model.hf(torch.tensor([prompt])).logits[0, -1]
            for handle in handles:
                handle.remove()
        found.append(float(logits[answer] - logits[foil]))
    return found


def test_sets_are_ordered_by_their_first_layer():
    sets = [(Site("z", layer, number),) for number in range(20) for layer in (3, 1)]
    blocks = by_first_layer(sets)
    assert [len(block) for block in blocks] == [20, 20] and {sets[n][0].layer for n in blocks[0]} == {1}
    assert len(by_first_layer(sets[:8])) == 1  # too few for passes of their own
    assert first_difference([1, 2, 3], [1, 5, 3]) == 1 and first_difference([1, 2], [1, 2]) == 1


# gates -------------------------------------------------------------------------------------------


def test_the_true_circuit_passes_every_gate_but_minimality(true_verdict):
    gates = gates_of(true_verdict)
    assert true_verdict.verdict == "supported"
    assert {name for name, gate in gates.items() if not gate["passed"]} == {"complement", "minimality"}
    assert gates["minimality"]["tables"]["failing"] == ["z.0.0"]  # the same in both runs: see the gate's docstring
    assert not gates["right_sign"]["required"]


def test_zeros_that_point_the_other_way_make_it_ablation_dependent():
    model = circuit_models.ablation_sensitive()
    verdict = verdict_on(model, "z.1.2", halves=True)
    gates = gates_of(verdict)
    assert gates["ablation.zero"]["estimate"] < 0 < gates["necessity.mean"]["estimate"]
    assert failing(verdict) == {"ablation.zero"}
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("ablation-dependent",))
    assert verdict_on(model, "z.1.0,z.1.1,z.1.2", halves=True).verdict == "supported"


def test_opposite_effects_that_cancel_are_no_usually():
    model = circuit_models.cancelling()
    assert verdict_on(model, "z.1.2").verdict == "supported"  # in the mean it does
    usually = verdict_on(model, "z.1.2", "usually")
    assert usually.verdict != "supported" and failing(usually) == {"right_sign"}
    assert verdict_on(model, TRUE + ",z.1.2", "usually").verdict == "supported"


def test_one_of_two_that_each_do_the_whole_job_is_neither_supported_nor_refuted():
    model = circuit_models.redundant()
    assert verdict_on(model, "z.1.0,z.1.1").verdict == "supported"
    alone = verdict_on(model, "z.1.0")
    assert alone.verdict == "inconclusive" and "ablation-dependent" in alone.reasons


def test_redundant_where_all_others_do_the_whole_job_as_well():
    """Nothing falls without it, it alone restores everything, and so does everything else."""
    verdict = verdict_on(circuit_models.redundant(one_sided=True), "z.1.0", halves=True)
    assert verdict.verdict == "inconclusive" and "redundant" in verdict.reasons
    assert {"sufficiency", "complement"} <= {name for name, gate in gates_of(verdict).items() if gate["passed"]}


def test_a_rank_uses_the_ninth_decile_and_counts_ties_against_the_claim(true_verdict, model):
    gates = gates_of(true_verdict)
    assert gates["rank.necessity"]["tables"]["rank_p"] == pytest.approx(1 / 7)
    plan = get_gate("rank.sufficiency").plan()
    n = 12
    columns = {"clean": [1.0] * n, "corrupted": [0.0] * n, "restored": [0.5] * n,
               **{f"random.restored.{k:02d}": [k / 10] * n for k in range(10)}}  # fmt: skip
    table = {"templates": [str(k) for k in range(n)], "columns": columns}
    found = evaluate(plan, "confirm", table, 0.05, 0)
    assert found.tables["compared_with"] == "random.restored.08"
    assert found.estimate == pytest.approx(0.5 - 0.8) and found.tables["at_least_as_strong"] == 5
    assert found.tables["rank_p"] == pytest.approx(6 / 11)


def test_half_of_a_pair_is_neither_complete_nor_equivalent_nor_unique(model):
    gates = gates_of(verdict_on(model, "z.1.0"))
    assert not gates["equivalence.least"]["passed"] and gates["equivalence.most"]["passed"]
    assert not gates["random.necessity"]["passed"] and not gates["rank.necessity"]["passed"]
    decoy = gates_of(verdict_on(model, "z.0.1"))
    assert not decoy["isolation"]["passed"] and not decoy["completeness"]["passed"]


def test_random_sets_that_do_as_well_are_listed(model, true_verdict):
    found = verdict_on(model, "z.1.0").counterexamples["methods"]["rival sets"]
    assert found["notes"]["rivals"][0]["parts"] == ["z.1.1"] and found["notes"]["n_rivals"] == 1  # its exact copy
    assert found["notes"]["rivals"][0]["restored"] == pytest.approx(0.5, abs=0.1) and found["hits"] == 0
    none = true_verdict.counterexamples["methods"]["rival sets"]
    assert none["notes"]["n_rivals"] == 0 and none["tried"] == 6


def test_padding_is_named(model):
    gates = gates_of(verdict_on(model, "z.1.0,z.1.1,z.1.2"))
    assert gates["minimality"]["tables"]["failing"] == ["z.1.2"]
    assert gates["minimality"]["tables"]["share_failing"] == pytest.approx(1 / 3)
    assert gates["stability"]["estimate"] == pytest.approx(2 / 3)
    lean = gates_of(verdict_on(model, "z.1.0,z.1.1"))
    assert lean["minimality"]["passed"] and lean["stability"]["estimate"] == 1.0
    assert lean["minimality"]["estimate"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("gate, how", [("planted.everything", "restore"), ("planted.nothing", "same")])
def test_a_broken_instrument_withholds_the_verdict(model, monkeypatch, gate, how):
    honest = Instrument._edit

    def broken(self, unit, way, rows):
        edit = honest(self, unit, way, rows)
        if way == how and (how == "same" or unit.name == "resid_pre"):
            return type(edit)(edit.site, edit.op, edit.value * 0.2, edit.positions, edit.rows)
        return edit

    monkeypatch.setattr(Instrument, "_edit", broken)
    verdict = verdict_on.__wrapped__(model, "z.1.0,z.1.1")
    assert not gates_of(verdict)[gate]["passed"]
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))


def test_a_batched_path_that_differs_from_the_plain_one_withholds_the_verdict(model, monkeypatch):
    from assay.evidence import circuits_instrument

    honest = circuits_instrument.score_sets
    monkeypatch.setattr(circuits_instrument, "score_sets", lambda bench, sets: honest(bench, sets) * 0.5)
    verdict = verdict_on.__wrapped__(model, "z.1.0,z.1.1")
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))


def test_a_sum_of_an_unread_and_a_dormant_direction_fools_a_subspace_patch_but_not_the_battery():
    model = circuit_models.dormant_path()
    task = prepare(source().items("confirm", 16, 0), model)
    moved = []
    for clean, corrupted, (answer,), (foil,) in zip(task.clean, task.corrupted, task.answers, task.foils, strict=True):
        towards = torch.zeros(circuit_models.D_MODEL)
        for part in ("unread", "dormant"):
            towards[circuit_models.at(part, answer)], towards[circuit_models.at(part, foil)] = 1.0, -1.0
        towards = towards / towards.norm()
        value = float(model.capture([clean], "resid_post.1")["resid_post.1"][0, -1] @ towards)
        patched = model.logits([corrupted], edits=[clamp("resid_post.1", towards, value, "last")])[0]
        before = model.logits([corrupted])[0]
        moved.append(float(patched[answer] - patched[foil] - (before[answer] - before[foil])))
    assert np.mean(moved) > 0.5
    assert set_effects(model, task, "z.1.2") == pytest.approx({"necessity.mean": 0, "necessity.resample": 0,
                                                               "sufficiency": 0}, abs=1e-3)  # fmt: skip
    assert verdict_on(model, "z.1.2").verdict == "refuted"


# rewrites that change nothing --------------------------------------------------------------------


def test_verdict_numbers_do_not_change_under_rewrites_that_preserve_the_function(glass):
    task = prepare(load_task("sva", "confirm", 12, 0), glass)
    config = copy.deepcopy(glass.hf.config)
    config.tie_word_embeddings = False
    hf = type(glass.hf)(config).eval()
    hf.load_state_dict(glass.hf.state_dict())
    rotation = torch.linalg.qr(torch.randn(glass.dims.d_model, glass.dims.d_model,
                                           generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]  # fmt: skip
    order = [3, 2, 0, 1]
    circuit_models.permute_heads(hf, 1, order)
    neurons = torch.randperm(glass.dims.d_mlp, generator=torch.Generator().manual_seed(1))
    circuit_models.rewrite_neurons(hf, 2, neurons.tolist(), torch.linspace(0.5, 2.0, len(neurons)))
    circuit_models.rotate_residual(hf, rotation.float())
    twin = load_model(hf, tokenizer=glass.tokenizer, prepend_bos=glass.prepend_bos)
    assert torch.allclose(twin.logits(task.clean), glass.logits(task.clean), atol=1e-3)
    assert twin.digest != glass.digest
    here, there = set_effects(glass, task, "z.1.0,z.2.1"), set_effects(twin, task, f"z.1.{order.index(0)},z.2.1")
    assert there == pytest.approx(here, abs=1e-3)
    assert set_effects(twin, task, "mlp_out.2") == pytest.approx(set_effects(glass, task, "mlp_out.2"), abs=1e-3)
    assert set_effects(twin, task, "z.1.0,z.2.1") != pytest.approx(here, abs=1e-3)  # the heads did move
