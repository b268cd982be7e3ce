"""Records made up for report tests: shapes of real sweeps and verdicts, with hostile text inside."""

import math

import numpy as np

from assay.records import PatchResult, TaskSummary
from assay.report.context import DemoReport

HOSTILE = "</script><img src=x onerror=alert(1)>$\\frac{1$&{{7*7}}\x1b[31m"
TOKENS = ["<|endoftext|>", "When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John",
          " gave", " a", " drink", " to", "\n"]  # fmt: skip


def sweep(
    layers: int = 30, columns: int = 16, axis: str = "positions", *, peak: float = 1.0, direction: str = "denoise",
    holes: bool = False, task: str = "ioi",
) -> PatchResult:  # fmt: skip
    """A sweep whose effect moves from column 2 to the last column at two thirds of the depth."""
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.02 * peak, (layers, columns))
    depth = np.arange(layers) / max(1, layers - 1)
    if layers == 1:
        effect[0, rng.choice(columns, 12, replace=False)] += rng.normal(0, 0.3 * peak, 12)
    elif axis == "heads":
        effect[layers // 2, columns // 3], effect[layers - 5, 1], effect[layers - 7, columns - 1] = 0.4, 0.3, -0.2
        effect *= peak
    else:
        effect[:, min(2, columns - 2)] += peak / (1 + np.exp(20 * (depth - 0.6)))
        effect[:, -1] += peak / (1 + np.exp(-20 * (depth - 0.65)))
    if direction == "noise":
        effect = 1 - effect
    if holes:
        effect[: layers // 3, 0] = math.nan
    low, high = effect - 0.06, effect + 0.06
    plan = {"site": "z" if axis == "heads" else "resid_post", "positions": "all", "direction": direction,
            "method": "exact", "metric": "logit_diff", "model": "smollm2-135m", "task": task}  # fmt: skip
    names = [str(number) for number in range(columns)]
    return PatchResult(plan, list(range(layers)), axis, names, effect.tolist(), low.tolist(), high.tolist(),
                       3.1, -2.9, 40, {"no shared length": 2}, {"cells_without_difference": 60})  # fmt: skip


def tasks() -> list[TaskSummary]:
    return [TaskSummary("ioi", 200, {"different length": 3}, 0.965, 3.12, 2.8, 3.5, 24),
            TaskSummary("greater-than", 150, {}, 0.71, 0.9, 0.5, 1.3, 12),
            TaskSummary("induction", 180, {}, 0.52, 0.05, -0.1, 0.2, 9)]  # fmt: skip


def gate(name: str, estimate: float, sesoi: float, passed: bool, group: str = "", **more) -> dict:
    split = "ood" if name.endswith("@ood") else "confirm"
    return {"name": name, "estimate": estimate, "low": estimate - 0.08, "high": estimate + 0.07, "sesoi": sesoi,
            "p": 0.0002 if passed else 0.41, "passed": passed, "required": True, "group": group or name.split("@")[0],
            "split": split, "K": 14, "N": 140, **more}  # fmt: skip


def controls(seed: int) -> dict:
    draws = np.random.default_rng(seed).normal(0.04, 0.03, 20)
    return {"tables": {"per_control": {f"random.restored.{k:02d}": float(v) for k, v in enumerate(draws)}, "draws": 20}}


def supported() -> dict:
    return {
        "claim": "c1a9f0", "kind": "mediates", "verdict": "supported", "reasons": [], "qualifiers": [],
        "sentence": "Supported: 3 attention heads (z.15.3, z.23.8, z.25.1) of smollm2-135m carry the task 'ioi':"
                    " switching them off removes 48% of the effect and restoring them alone brings back 41%,"
                    " more than any of 20 random sets of the same size, on 14 sentence patterns that were not"
                    " used to find them.",
        "gates": [gate("behaviour", 3.1, 0.5, True, required=False),
                  gate("necessity.resample", 0.48, 0.2, True), gate("necessity.mean", 0.44, 0.2, True),
                  gate("sufficiency", 0.41, 0.2, True),
                  gate("random.sufficiency", 0.30, 0.05, True, "random", **controls(1)),
                  gate("necessity.resample@ood", 0.39, 0.2, True), gate("sufficiency@ood", 0.36, 0.2, True),
                  gate("complement", 0.55, 0.8, False, required=False)],
        "does_not_show": ["What these parts compute, or that they have no other job.",
                          "That they are the only parts, or the smallest set, that could do this."],
        "decision": {"p": 0.0004, "p_adjusted": 0.0008, "alpha": 0.05, "reads": 1, "family": {"c2": 1.0}},
        "counterexamples": {"hits": 6, "candidates": 140, "share": 6 / 140, "low": 0.016, "high": 0.09,
                            "verified": 6, "worst": [{"clean": "Then, Amy and Tom" + HOSTILE, "corrupted": "Then, Amy",
                                                      "template": "t7", "score": -1.2, "status": "verified"}]},
        "unexplained": {"confirm": {"share": 0.59, "raw": 0.59}, "ood": {"share": 0.64, "raw": 0.64}},
        "split": {"discover": 60, "tune": 40, "confirm": 140, "ood": 140},
    }  # fmt: skip


def refuted() -> dict:
    return {
        "claim": "c77b21", "kind": "mediates", "verdict": "refuted", "reasons": ["below SESOI"], "qualifiers": [],
        "sentence": "Refuted: 3 attention heads (z.2.0, z.4.4, z.9.1) of smollm2-135m do not carry the task 'ioi' as"
                    " claimed: restoring them alone brings back 1% of the effect, less than the 20% claimed.",
        "gates": [gate("necessity.resample", 0.02, 0.2, False), gate("sufficiency", 0.01, 0.2, False),
                  gate("random.sufficiency", -0.05, 0.05, False, "random", **controls(2))],
        "does_not_show": ["That these parts do nothing: only that the effect is smaller than required."],
    }  # fmt: skip


def undecided() -> dict:
    return {"claim": HOSTILE, "kind": "mediates", "verdict": "inconclusive", "reasons": ["underpowered"],
            "qualifiers": ["reused split"], "gates": [{"name": HOSTILE, "estimate": None, "low": None, "high": None,
            "sesoi": 0.2, "p": None, "passed": False}], "sentence": HOSTILE}  # fmt: skip


def demo(**changes) -> DemoReport:
    """A whole report, hostile text where users and models can put text."""
    tokens = [*TOKENS[:4], HOSTILE, *TOKENS[5:]]
    return DemoReport(**{**dict(
        model={"name": "smollm2-135m", "digest": "ab" * 32, "dtype": "float32", "device": "cpu", "kernel": "sdpa",
               "prepend_bos": False, "versions": {"torch": "2.13.0", "transformers": "5.2"}},
        date="23 November 2026", tasks=tasks(), positions=sweep(), tokens=tokens, heads=sweep(30, 9, "heads"),
        attribution_correlation=0.93, claims=[supported(), refuted()], unexplained=supported()["unexplained"],
        ledger={"stated": 2, "looks": 14, "tried": 2, "supported": 1, "refuted": 1, "inconclusive": 0},
        run={"timings": {"tasks": 3.2, "positions": 21.4, "heads": 18.0}, "cached": {"tasks": True},
             "commands": [{"command": "assay demo", "what": "Make this report again."},
                          {"command": "assay patch smollm2-135m ioi --site z", "what": "Only the map of heads."},
                          "assay claim list"]},
    ), **changes})  # fmt: skip
