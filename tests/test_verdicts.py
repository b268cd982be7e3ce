"""The rule, clause by clause, on evidence made by hand."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import EvidenceError
from assay.evidence.run import failing_share
from assay.evidence.verdicts import decide, excuse
from assay.records import Claim, Counterexample, Evidence, GatePlan, GateResult, Plan
from assay.statistics import clopper_pearson

CLAIM = Claim("c1", 1, None, "mediates", "z.0.0 tends to carry t", "tends",
              {"model": "m", "digest": "d", "sites": ["z.0.0"], "positions": "all"},
              {"name": "t", "corruption": None}, "positive")  # fmt: skip
NAMES = {"behaviour.margin": ("behaviour", 0.0, False), "necessity.mean": ("necessity", 0.2, True),
         "necessity.resample": ("necessity", 0.2, True), "sufficiency": ("sufficiency", 0.2, True),
         "random.sufficiency": ("random", 0.05, True), "complement": ("complement", 0.8, False)}  # fmt: skip
PLAN = Plan("c1", "mediates", tuple(GatePlan(n, g, s, r) for n, (g, s, r) in NAMES.items()), {}, "logit_diff",
            {"confirm": 0.05, "ood": 0.1}, "f", {"seed": 0}, {"method": "m"}, {}, "1", "lock")  # fmt: skip


def gate(name: str, split: str, estimate: float, p: float, p_below: float = 1.0, k: int = 12) -> GateResult:
    group, sesoi, required = NAMES[name]
    return GateResult(name, split, group, required, sesoi, estimate, estimate - 0.1, estimate + 0.1, p, p_below,
                      {"K": k, "N": 5 * k, "sd": 0.3})  # fmt: skip


def evidence(changes: dict | None = None, k: int = 12, **more) -> Evidence:
    """All gates pass, but for `changes`: {(name, split): (estimate, p, p_below)}."""
    gates = []
    for name in NAMES:
        for split in ("confirm", "ood"):
            default = (0.1, 1.0, 1.0) if name == "complement" else (0.6, 0.001, 1.0)
            gates.append(gate(name, split, *(changes or {}).get((name, split), default), k=k))
    whole = dict(search={"complete": True, "hits": 0, "candidates": 60}, data={}, reads=1, flags=())
    return Evidence("c1", "lock", {}, {}, tuple(gates), **{**whole, **more})


def ruling(changes: dict | None = None, claim: Claim = CLAIM, hits=(), family=None, **more):
    return decide(claim, PLAN, evidence(changes, **more), hits, family=family)


def test_everything_passing_is_supported():
    verdict = ruling()
    assert (verdict.verdict, verdict.reasons, verdict.qualifiers) == ("supported", (), ())
    assert "switching it off removes 60%" in verdict.sentence
    assert verdict.unexplained["confirm"]["not_restored"] == pytest.approx(0.4)


@pytest.mark.parametrize("name", [n for n, (_, _, required) in NAMES.items() if required])
@pytest.mark.parametrize("split", ["confirm", "ood"])
def test_every_required_gate_is_needed_on_both_sealed_splits(name, split):
    assert ruling({(name, split): (0.25, 0.2, 0.9)}).verdict == "inconclusive"


def test_ood_is_judged_at_its_own_level():
    assert ruling({("sufficiency", "ood"): (0.4, 0.08, 1.0)}).verdict == "supported"
    assert ruling({("sufficiency", "confirm"): (0.4, 0.08, 1.0)}).verdict == "inconclusive"


def test_a_gate_significantly_below_its_bar_refutes():
    verdict = ruling({("sufficiency", "confirm"): (0.01, 1.0, 0.001)})
    assert (verdict.verdict, verdict.reasons) == ("refuted", ("below SESOI",))
    assert "restoring it alone brings back 1%" in verdict.sentence


def test_refuting_is_corrected_over_the_gates():
    """Eight required gates and splits: .03 alone is not enough to say no."""
    assert ruling({("sufficiency", "confirm"): (0.1, 1.0, 0.03)}).verdict == "inconclusive"


def test_a_wide_interval_never_refutes():
    assert ruling({("sufficiency", "confirm"): (-0.2, 0.9, 0.2)}).verdict == "inconclusive"


def test_fewer_than_eight_clusters_can_never_be_supported():
    verdict = ruling(k=7)
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("underpowered",))
    assert any("7 clusters, 8 needed" in note for note in verdict.decision["notes"])


def test_ablations_that_disagree_are_called_dependent():
    verdict = ruling({("necessity.mean", "confirm"): (0.0, 1.0, 0.0005)})
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("ablation-dependent",))


def test_a_rival_as_good_is_non_unique_and_not_false():
    verdict = ruling({("random.sufficiency", "confirm"): (-0.2, 1.0, 0.0005)})
    assert (verdict.verdict, verdict.reasons, verdict.qualifiers) == ("inconclusive", ("non-unique",), ("non-unique",))


def test_work_done_twice_is_redundant():
    changes = {(f"necessity.{how}", "confirm"): (0.0, 1.0, 0.0005) for how in ("mean", "resample")}
    verdict = ruling({**changes, ("complement", "confirm"): (0.95, 0.001, 1.0)})
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("redundant",))
    assert ruling(changes).verdict == "refuted"  # without a second carrier, switching off had to matter


def test_no_finished_search_no_support():
    verdict = ruling(search={"complete": False, "hits": 0, "candidates": 0})
    assert (verdict.verdict, verdict.reasons) == ("inconclusive", ("search incomplete",))


def test_always_is_refuted_by_one_verified_counterexample():
    always = replace(CLAIM, quantifier="always")
    hit = Counterexample("c1", "clean", "corrupted", "t", "sufficiency", -1.0, "above 0", "verified")
    found = {"complete": True, "hits": 1, "candidates": 60}
    assert ruling(claim=always, hits=[hit], search=found).verdict == "refuted"
    assert ruling(claim=always, hits=[replace(hit, status="open")], search=found).verdict == "supported"
    assert ruling(hits=[hit], search=found).verdict == "supported"  # "tends" survives one


def test_usually_allows_a_tenth_of_wrong_signs_and_no_more():
    usually = replace(CLAIM, quantifier="usually")
    assert ruling(claim=usually, search={"complete": True, "hits": 12, "candidates": 60}).reasons == ("counterexamples",)


def searched(hits: int, tried: int, hunted: int = 0) -> dict:
    """A search record: one sampled method, and one that hunts."""
    methods = {"drawn": {"tried": tried, "hits": hits, "sampled": True},
               "hunted": {"tried": 60, "hits": hunted, "sampled": False}}  # fmt: skip
    return {"complete": True, "hits": hits, "candidates": tried, "methods": methods}


class Items:
    """240 items of 20 templates."""

    templates, words = [f"t{row // 12}" for row in range(240)], None

    def __len__(self):
        return len(self.templates)


def test_failures_of_one_template_count_as_one_observation():
    """9 of 240 are under a tenth if they are spread over templates, and may be more if they are all of one."""
    apart, alike = (failing_share(Items(), failed) for failed in ([20 * number for number in range(9)], list(range(9))))
    assert apart["high"] < 0.1 < alike["high"]
    assert failing_share(Items(), [])["high"] == pytest.approx(clopper_pearson(0, 240)[1])
    for share, verdict in ((apart, "supported"), (alike, "inconclusive")):
        methods = {"wrong sign": {"sampled": True, "hits": 9, "tried": 240, **share}}
        found = ruling(claim=replace(CLAIM, quantifier="usually"),
                       search={"complete": True, "hits": 9, "candidates": 240, "methods": methods})  # fmt: skip
        assert (found.verdict, found.counterexamples["high"]) == (verdict, share["high"])


def test_tends_does_not_survive_that_most_items_fail():
    assert ruling(search=searched(30, 60)).verdict == "supported"
    assert ruling(search=searched(36, 60)).verdict == "supported"  # more than half, but not significantly
    assert ruling(search=searched(39, 60)).reasons == ("counterexamples",)
    assert ruling(search=searched(0, 60, hunted=60)).verdict == "supported"  # hunting for failures is no sample


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["tends", "usually", "always"]), st.integers(0, 60), st.integers(0, 60), st.integers(0, 3),
    st.integers(0, 3), st.sampled_from([0.001, 0.2]), st.sampled_from([1.0, 0.0005]),
)  # fmt: skip
def test_more_counterexamples_never_raise_a_verdict(quantifier, hits, more, verified, opened, p, p_below):
    """Property: from supported over undecided to refuted, hits only lead down."""
    rank = {"refuted": 0, "inconclusive": 1, "not tested": 1, "supported": 2}
    claim, changes = replace(CLAIM, quantifier=quantifier), {("sufficiency", "confirm"): (0.5, p, p_below)}
    hit = Counterexample("c1", "clean", "corrupted", "t", "sufficiency", -1.0, "above 0", "verified")
    found = [hit] * verified + [replace(hit, status="open")] * opened
    few = ruling(changes, claim=claim, search=searched(min(hits, more), 60))
    many = ruling(changes, claim=claim, search=searched(max(hits, more), 60, hunted=30), hits=found)
    assert rank[many.verdict] <= rank[few.verdict]
    assert set(few.reasons) <= set(many.reasons) or many.verdict == "refuted"


def test_reading_again_divides_the_level():
    changes = {("sufficiency", "confirm"): (0.4, 0.03, 1.0)}
    assert ruling(changes).verdict == "supported"
    verdict = ruling(changes, reads=2)
    assert (verdict.verdict, verdict.qualifiers) == ("inconclusive", ("reused split",))


def test_however_often_it_is_read_the_levels_have_a_finite_sum():
    levels = [ruling({}, reads=k).decision["alpha"] for k in range(1, 400)]
    assert levels[0] == 0.05 and levels[1] == pytest.approx(0.05 / 4) and levels == sorted(levels, reverse=True)
    assert sum(levels[1:]) < 0.65 * 0.05  # alpha / k would have come to 5.6 alpha by now
    late = [ruling({("sufficiency", "ood"): (0.4, 0.09, 1.0)}, reads=reads).verdict for reads in (1, 2)]
    assert late == ["supported", "inconclusive"]  # ood is charged like confirm


def test_holm_over_claims_on_the_same_split():
    changes = {("sufficiency", "confirm"): (0.4, 0.03, 1.0)}
    assert ruling(changes, family={"c2": 0.5}).verdict == "inconclusive"
    assert ruling(changes, family={"c2": 0.01}).verdict == "supported"  # the other spends its share first


def test_nothing_to_explain_is_not_tested():
    assert decide(CLAIM, PLAN, None).verdict == "not tested"
    verdict = ruling({("behaviour.margin", "confirm"): (0.0, 0.4, 0.4)})
    assert (verdict.verdict, verdict.reasons) == ("not tested", ("behaviour absent",))


def test_instrument_problems_withhold_the_verdict():
    assert ruling(flags=("leak: confirm shares 1 template with tune",)).reasons == ("instrument",)
    whole = evidence()
    lacking = replace(whole, gates=tuple(g for g in whole.gates if g.name != "necessity.mean"))
    assert decide(CLAIM, PLAN, lacking).reasons == ("instrument",)


def test_looked_at_before_is_exploratory():
    assert ruling(data={"confirm": {"looked": ["patch"]}}).qualifiers == ("exploratory",)


def test_evidence_of_another_plan_and_unknown_rules_are_refused():
    with pytest.raises(EvidenceError, match="belongs to another"):
        decide(CLAIM, replace(PLAN, lock="other"), evidence())
    with pytest.raises(EvidenceError, match="rule version"):
        decide(CLAIM, PLAN, evidence(), rule_version="0")


def test_excuses_look_at_the_same_split_only():
    low = gate("necessity.mean", "confirm", 0.0, 1.0, 0.001)
    assert excuse(low, [low, gate("necessity.resample", "ood", 0.9, 0.001)], 0.05) is None
