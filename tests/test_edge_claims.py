"""Claims that an edge connects: on models whose edges were written, and every number against raw hooks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from assay.circuits.edge_reading import partners, read_edge
from assay.circuits.graph import graph_of
from assay.data.prepare import PreparedTask
from assay.errors import SiteError, TaskError, UsageError
from assay.evidence import claims, edge_link
from assay.evidence.edge_link import EdgeLink, edge_of, other_edges
from assay.evidence.gates import gates_for, get_gate
from assay.evidence.kinds import KINDS
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.evidence.source import MemorySource
from assay.records import Example, Pair
from assay.testing.checks import Planted, check_gate, check_pure, tried
from assay.testing.edge_truth import TRUTHS
from edge_reference import Run
from test_attribute import setting

pytestmark = pytest.mark.whole

SETTINGS = Settings(tune=24, confirm=48, ood=48, draws=19, control_pairs=1)
REQUIRED = ("edge.arrives", "edge.effect", "edge.own_pair", "edge.random")
FAMILIES = ["llama", "gpt2", "gemma2", "neox", "olmo2", "granite"]
EDGES = ["embed->q.0.1", "embed->mlp_in.0", "z.0.1->k.2.1", "z.0.3->v.1.0", "mlp_out.0->mlp_in.1", "mlp_out.1->q.2.3",
         "z.2.3->logits", "mlp_out.2->logits", "embed->logits"]  # fmt: skip


def known(name):
    """A model with known edges, and its pairs by split, no text in two of them."""
    truth, seen, splits = TRUTHS.get(name), set(), {}
    for seed, (split, n) in enumerate({"tune": 12, "confirm": 24, "ood": 24}.items()):
        pairs = [pair for pair in truth.pairs(n, 4, seed) if not {pair.clean, pair.corrupted} & seen]
        seen |= {text for pair in pairs for text in pair.texts}
        splits[split] = [replace(pair, template=f"{split} {pair.template}") for pair in pairs]
    return truth, truth.model(), MemorySource(name, splits)


@pytest.fixture(scope="module")
def induction():
    return known("induction-8")


def verdict_of(setting, edge, settings=SETTINGS, **words):
    _, model, source = setting
    store = MemoryStore()
    claim, plan = state_claim(store, model, source, edge, statement=Statement("connects", **words), settings=settings)
    verdict = test_claim(store, claim.id, model, source=source)
    assert claims.same_verdict(claims.rederive(store, claim.id), verdict)  # from stored columns, without a model
    return verdict, plan.settings["controls"]


def gates_of(verdict):
    return {gate["name"]: gate for gate in verdict.gates}


# truth -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edge", TRUTHS.get("induction-8").edges)
def test_a_written_edge_of_the_llama_is_supported(induction, edge):
    verdict, controls = verdict_of(induction, edge)
    gates = gates_of(verdict)
    assert verdict.verdict == "supported", (verdict.reasons, verdict.decision["notes"])
    assert gates["edge.arrives"]["estimate"] == pytest.approx(0.9 if "logits" in edge else 1.0, abs=0.02)
    assert gates["edge.effect"]["estimate"] == pytest.approx(1.0 if "logits" in edge else 1 / 3, abs=0.1)  # of three kinds
    assert controls["direction"] == "noise" and edge not in controls["random"]
    assert "comes in by it" in verdict.sentence and "most readers are fed by many writers" in verdict.does_not_show[0]


@pytest.mark.parametrize("edge", ["z.0.1->k.1.0", "z.0.0->k.1.1", "embed->v.0.1", "embed->q.1.2", "embed->k.1.0",
                                  "z.1.2->logits", "mlp_out.0->v.1.0", "mlp_out.1->logits"])  # fmt: skip
def test_an_edge_of_the_same_kind_that_was_not_written_is_refuted(induction, edge):
    verdict, _ = verdict_of(induction, edge)
    failed = {gate["name"] for gate in verdict.gates if gate["required"] and not gate["passed"]}
    assert verdict.verdict == "refuted" and "edge.effect" in failed
    assert gates_of(verdict)["edge.twice"]["estimate"] > 0.999 and gates_of(verdict)["edge.nothing"]["estimate"] > 0.999


def test_a_reader_that_hears_and_does_nothing_is_not_connected(induction):
    """The key of the decoys reads what the previous-token head writes: it arrives, and nothing depends on it."""
    gates = gates_of(verdict_of(induction, "z.0.0->k.1.1")[0])
    assert gates["edge.arrives"]["passed"] and not gates["edge.effect"]["passed"]


@pytest.mark.parametrize("name, direction", [("or_gate", "denoise"), ("and_gate", "noise")])
def test_the_inputs_of_a_gate_are_seen_in_the_direction_in_which_they_show(name, direction):
    setting = known(name)
    for edge in ("embed->v.0.3", "z.0.2->mlp_in.0"):
        verdict, controls = verdict_of(setting, edge)
        gates = gates_of(verdict)
        shown = {way: gates[f"edge.{way}"]["estimate"] for way in ("noise", "denoise")}
        assert verdict.verdict == "supported" and controls["direction"] == direction
        assert shown.pop(direction) == pytest.approx(1, abs=0.01) and shown.popitem()[1] == pytest.approx(0, abs=0.01)
    assert verdict_of(setting, "z.0.1->mlp_in.0")[0].verdict == "refuted"


def test_an_edge_that_works_against_the_behaviour_is_an_edge():
    setting = known("negative")
    verdict, controls = verdict_of(setting, "z.1.3->logits")
    gates = gates_of(verdict)
    assert verdict.verdict == "supported" and controls["sign"] == controls["arrives"] == -1.0
    assert gates["edge.effect"]["estimate"] == pytest.approx(1, abs=0.02)
    assert gates["edge.noise"]["estimate"] == pytest.approx(-1, abs=0.02)
    plain, _ = verdict_of(setting, "z.0.3->logits")
    assert plain.verdict == "supported" and gates_of(plain)["edge.direct"]["estimate"] == pytest.approx(4 / 3, abs=0.05)


def test_an_edge_that_is_only_backed_up_is_not_supported():
    """The backup head says nothing in either run: no exchange of its edge alone shows."""
    assert verdict_of(known("backup"), "z.1.3->logits")[0].verdict == "refuted"


def test_pairs_that_do_not_need_the_edge_are_no_counterexamples_of_a_tendency(induction):
    tends, _ = verdict_of(induction, "z.0.0->k.1.0")
    always, _ = verdict_of(induction, "z.0.0->k.1.0", quantifier="always")
    assert tends.verdict == "supported" and tends.counterexamples["hits"] == 0
    assert always.verdict == "refuted" and "counterexample" in always.reasons


# gates -------------------------------------------------------------------------------------------


def planted(setting, edge):
    _, model, source = setting
    return Planted("connects", model, source, edge, SETTINGS)


@pytest.mark.parametrize("gate", REQUIRED)
def test_every_required_gate_passes_a_truth_and_stops_a_falsehood(induction, gate):
    check_gate(gate, planted(induction, "z.0.0->k.1.0"), planted(induction, "z.0.1->k.1.0"))


def test_a_plan_has_the_gates_of_its_subject_alone(induction):
    found = tried(planted(induction, "z.1.0->logits"))
    names = {gate.name for gate in found.plan.gates}
    assert names == {gate.name for gate in gates_for("connects") if gate.name.startswith("edge.")}
    assert {gate.name for gate in found.plan.gates if gate.required} == set(REQUIRED)
    check_pure(found, names)


def judged(name, **columns):
    """The contrast of a gate on one template of four pairs."""
    found = {key.replace("__", "."): list(map(float, values)) for key, values in columns.items()}
    table = {"templates": ["t"] * 4, "columns": {"clean": [2.0] * 4, "corrupted": [-2.0] * 4, **found}}
    return get_gate(name).contrast(table, get_gate(name).plan())


def test_one_of_several_working_edges_is_still_one_and_one_like_all_others_is_none():
    """Against the middle one of the others; the strongest is reported."""
    others = {f"random__edge__{number:02d}": [value] * 4 for number, value in enumerate((0, 4, 0.04, -4, 0))}
    found = judged("edge.random", edge__effect=[2] * 4, **others)
    assert found.values == pytest.approx([0.49] * 4) and found.notes["draws"] == 5
    assert judged("edge.strongest", edge__effect=[2] * 4, **others).values == pytest.approx([-0.5] * 4)
    alike = {f"random__edge__{number:02d}": [2] * 4 for number in range(5)}
    assert judged("edge.random", edge__effect=[2] * 4, **alike).values == [0] * 4
    with pytest.raises(KeyError):
        judged("edge.random", edge__effect=[2] * 4)


def test_what_another_pair_s_value_does_as_well_is_not_of_the_pair():
    columns = {"edge__change": [2, 0, 1, 1], "edge__own": [1, 0, 1, 0], "edge__other": [1, 0, 1, 0]}
    assert judged("edge.arrives", **columns).values == [1, 0, 1, 0] and judged("edge.own_pair", **columns).values == [0] * 4
    with pytest.raises(KeyError, match="nothing changes"):
        judged("edge.arrives", **{**columns, "edge__change": [0] * 4})


@pytest.mark.parametrize("gate, name", [("edge.nothing", "nothing"), ("edge.twice", "twice")])
def test_an_instrument_that_is_off_gives_no_verdict(induction, monkeypatch, gate, name):
    honest = getattr(EdgeLink, name)

    def off(self):
        found = honest(self)
        key = sorted(found)[-1]
        return {**found, key: [None if value is None else value + 20 for value in found[key]]}

    monkeypatch.setattr(EdgeLink, name, off)
    verdict, _ = verdict_of(induction, "z.0.0->k.1.0")
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("instrument",))
    assert any(gate in note for note in verdict.decision["notes"])


def test_no_effect_on_sealed_pairs_is_not_tested(induction):
    truth, model, source = induction
    turned = {**source.splits, "confirm": [replace(pair, clean=pair.corrupted, corrupted=pair.clean)
                                           for pair in source.splits["confirm"]]}  # fmt: skip
    verdict, _ = verdict_of((truth, model, MemorySource("turned", turned)), "z.1.0->logits")
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("behaviour absent",))


# numbers -----------------------------------------------------------------------------------------


def reading_by_hooks(reference, base, source, edge, other, first):
    """(carried, change, other, whole) from raw hooks in float64."""
    writer, reader = edge.split("->")
    of, to = reference.plain(base), reference.plain(source)
    key = ("final", -1) if reader == "logits" else ("read", reader)

    def read(run):
        return run.seen[key][0, -1:] if reader == "logits" else run.seen[key][0]

    share = torch.zeros(len(reference.writers), len(reference.readers), dtype=torch.double)
    share[reference.writers.index(writer), reference.readers.index(reader)] = 1.0
    changed = read(to) - read(of)
    by = read(reference.run(base, share, reference.changes(to, of))) - read(of)
    fake = Run(of.metric, {name: value.clone() for name, value in of.seen.items()})
    kinds = {"embed": ("entry", 0)} if writer == "embed" else {}
    layer = None if writer == "embed" else int(writer.split(".")[1])
    at = kinds.get(writer) or (("z", layer) if writer[0] == "z" else ("mlp", layer))
    shift = len(other) - len(base)
    start = max(first, -shift)
    fake.seen[at][0, start:] = reference.plain(other).seen[at][0, start + shift :]
    elsewhere = read(reference.run(base, share, reference.changes(fake, of))) - read(of)
    if writer == "embed":
        run = reference.run(base, entry=to.seen["entry", 0])
    elif writer[0] == "z":
        run = reference.run(base, edit={at: reference.with_heads(to.seen[at], layer, [int(writer.split(".")[2])])})
    else:
        run = reference.run(base, edit={at: lambda _: to.seen[at]})
    whole = read(run) - read(of)
    return [float((x * changed).sum()) for x in (by, changed, elsewhere, whole)]


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize("family", FAMILIES)
def test_readings_equal_raw_hooks(family, direction):
    """Whichever norms, projections and shared keys a family has, and whatever lengths the prompts."""
    model, task, reference = setting(family)
    base, source = (task.clean, task.corrupted) if direction == "noise" else (task.corrupted, task.clean)
    partner = partners(task, base)
    assert len({len(ids) for ids in base}) > 1
    for edge in EDGES:
        got = read_edge(model, task, edge, direction)
        first = [next(i for i in range(len(a)) if a[i] != b[i]) for a, b in zip(base, source, strict=True)]
        want = np.array([reading_by_hooks(reference, base[i], source[i], edge, base[partner[i]], first[i])
                         for i in range(len(task))])  # fmt: skip
        columns = np.stack([x.numpy() for x in (got.carried, got.change, got.other, got.whole)], 1)
        np.testing.assert_allclose(columns, want, atol=2e-4 * np.abs(want).max(), err_msg=edge)
        assert np.abs(want[:, 0]).max() > 1e-4  # no test of zeros


def test_columns_of_a_claim_equal_raw_hooks():
    """The numbers that are stored, effects and controls included."""
    model, task, reference = setting("llama")
    edge = "z.0.1->k.2.1"
    drawn, _, _ = other_edges(graph_of(model), edge_of(model, edge), 3, 0)
    setup = edge_link.EdgeSetup(edge_of(model, edge), "denoise", -1.0, -1.0, tuple(drawn), "logit_diff", len(task))
    link = EdgeLink(model, task, setup)
    columns = {**link.runs(), **link.arrived(), **link.effects(), **link.controls(), **link.twice(), **link.nothing()}
    pairs = list(zip(task.clean, task.corrupted, strict=True))
    noise = [-reference.exact(clean, corrupted, edge) for clean, corrupted in pairs]
    denoise = [reference.exact(corrupted, clean, edge) for clean, corrupted in pairs]
    others = [[reference.exact(corrupted, clean, str(other)) for clean, corrupted in pairs] for other in drawn]
    size = max(map(abs, columns["clean"]))
    close = {"abs": 1e-4 * size}
    assert columns["edge.noise"] == columns["edge.exact"] == pytest.approx(noise, **close)
    assert columns["edge.circuit"] == pytest.approx(noise, **close)
    assert columns["edge.denoise"] == pytest.approx(denoise, **close)
    assert columns["edge.effect"] == pytest.approx([-x for x in denoise], **close)  # the sign of the plan
    for number, values in enumerate(others):
        assert columns[f"random.edge.{number:02d}"] == pytest.approx(values, **close)
    assert columns["edge.nothing"] == pytest.approx([0.0] * len(task), **close)
    read = read_edge(model, task, edge, "denoise")
    assert columns["edge.own"] == pytest.approx((-read.carried).tolist()) and min(columns["edge.change"]) > 0


def test_partners_are_of_the_same_template_and_length_where_there_are_such():
    prompts = [[1, 2], [1, 2], [3, 4], [5, 6, 7], [3, 5]]
    pairs = [Pair("a", "b", ("x",), ("y",), template) for template in ("s", "s", "t", "s", "s")]
    task = PreparedTask(pairs, prompts, prompts, [(7,)] * 5, [(8,)] * 5, {}, {})
    assert partners(task, prompts) == [4, 4, 4, 4, 0]  # 1 has the same text as 0; 2 and 3 have none of their own kind
    assert partners(task.select([0, 1]), prompts[:2]) == [0, 1]


# what can be asked -------------------------------------------------------------------------------


def test_controls_are_other_edges_of_the_same_kind_and_distance(induction):
    _, model, _ = induction
    graph = graph_of(model)

    def pool(edge, n=99):
        drawn, rule, size = other_edges(graph, edge_of(model, edge), n, 0)
        assert len(drawn) == min(n, size) and edge not in map(str, drawn)
        return {str(other) for other in drawn}, rule

    assert pool("z.0.0->k.1.0") == ({f"z.0.{head}->k.1.1" for head in (1, 2, 3)}, "same kind, as many layers apart")
    assert pool("embed->v.1.0")[0] == {"embed->v.1.1"}  # there is one embedding
    assert pool("mlp_out.0->logits") == ({"mlp_out.1->logits"}, "same kind")
    assert pool("mlp_out.0->mlp_in.1")[1] == "into the same reader"
    assert pool("embed->logits")[1] == "into the same reader" and len(pool("embed->logits")[0]) == 10


@pytest.mark.parametrize("subject, message", [
    ("z.0.0->k.1.7", "reader of this model"), ("z.1.0->k.0.0", "before its reader"), ("z.0.0->", "site"),
    (["z.0.0->k.1.0", "z.1.0->logits"], "one edge"),
])  # fmt: skip
def test_what_is_no_edge_is_refused(induction, subject, message):
    with pytest.raises((UsageError, SiteError), match=message):
        KINDS.get("connects").subject(induction[1], subject)


def test_an_edge_needs_pairs_all_positions_and_no_options_of_features(induction):
    _, model, source = induction

    def state(source, **changes):
        state_claim(MemoryStore(), model, source, "z.0.0->k.1.0", statement=Statement("connects"),
                    settings=replace(SETTINGS, **changes))  # fmt: skip

    with pytest.raises(UsageError, match="positions"):
        state(source, positions="last")
    with pytest.raises(UsageError, match="none, for an edge"):
        state(source, options={"lag": 1})
    texts = {split: [Example(f"w1 w{n}", n % 2, f"{split}{n}") for n in range(8)] for split in source.splits}
    with pytest.raises(UsageError, match="pairs of prompts"):
        state(MemorySource("texts", texts))
    ends = [replace(pair, clean=pair.clean + pair.answers[0], corrupted=pair.corrupted + pair.answers[0])
            for pair in source.splits["tune"]]  # fmt: skip
    with pytest.raises(TaskError):
        state(MemorySource("ends", {**source.splits, "tune": ends}))


def test_pairs_that_do_not_fit_have_no_value_and_the_others_keep_theirs(induction):
    _, model, source = induction
    items = source.items("confirm", 6, 0)
    longer = replace(items[1], corrupted=items[1].corrupted + " w3")
    kind = KINDS.get("connects")
    setup = edge_link.EdgeSetup(edge_of(model, "z.1.0->logits"), "noise", 1.0, 1.0, (), "logit_diff", 1)
    gates = [get_gate("edge.effect").plan()]
    whole, mixed = (kind.measure(model, kind.load(model, rows), setup, gates)["edge.effect"]
                    for rows in (items, [items[0], longer, *items[2:]]))  # fmt: skip
    assert mixed[1] is None and [mixed[0], *mixed[2:]] == pytest.approx([whole[0], *whole[2:]], abs=1e-4)
