"""What the demo report is made from: plain records, no torch, no drawing.

Verdicts come in as their JSON twins, so a report can be drawn again from files alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from assay.records import PatchResult, TaskSummary


@dataclass(frozen=True)
class DemoReport:
    """One finding about one model, told to a newcomer.

    `model`: its passport. `positions`: a layer x position sweep; `tokens`: one per column of it.
    `heads`: a layer x head sweep; `attribution_correlation`: of its first-order estimate with exact
    patching. `claims`: JSON twins of verdicts, the true claim first. `unexplained`: name -> share
    (a number, or {"share", "low", "high"}). `ledger`: counts of looks, {"tried", "supported",
    "refuted", ..}. `run`: {"timings": {step: seconds}, "cached": {step: bool},
    "commands": [{"command", "what"}]}. `summary`: the opening paragraph; empty = made from the rest.
    """

    model: Mapping[str, Any]
    date: str
    tasks: Sequence[TaskSummary]
    positions: PatchResult
    heads: PatchResult
    claims: Sequence[Mapping[str, Any]]
    tokens: Sequence[str] = ()
    attribution_correlation: float | None = None
    unexplained: Mapping[str, Any] = field(default_factory=dict)
    ledger: Mapping[str, int] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    summary: str = ""


GLOSSARY = (
    ("activation", "A number inside the model while it reads a text. Together they are all it has to work with."),
    ("layer", "The model is a stack of layers. Each reads the running notes about every token and adds to them."),
    ("residual stream", "Those running notes: one list of numbers per token, passed from layer to layer."),
    ("attention head", "A part of a layer that copies information from earlier tokens to the current one."),
    ("clean and corrupted prompt", "Two texts that differ in one detail, which changes the right answer."),
    ("patching", "Running the model on one of the two and overwriting one activation with its value in the other."),
    ("effect", "How far patching moves the answer: 0 = as with the corrupted prompt, 1 = as with the clean one."),
    ("logit difference", "How strongly the model prefers the right next word to the wrong one. Above 0 is right."),
    ("interval", "The range in which the true value plausibly lies: 95% of such ranges contain it."),
    ("gate", "One test that a claim must pass. The bar (SESOI) is the smallest effect worth calling an effect."),
    ("control", "The same test on something that should not matter, such as randomly chosen heads."),
    ("ledger", "A list of everything that was tried, failures included, that cannot be edited unnoticed."),
)
