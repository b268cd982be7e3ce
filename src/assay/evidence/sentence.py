"""One plain sentence per verdict, and what the verdict does not show.

The sentence names the subject, the task, what was done and how large the effect was. It is made from
the same records as the verdict and never says more than they do.
"""

from collections.abc import Iterator, Sequence

from assay.evidence.gates.base import GATES
from assay.evidence.source import PICTURES
from assay.records import Claim, GateResult, Plan

KIND_WORDS = {"z": "attention head", "mlp_out": "MLP layer", "attn_out": "attention layer", "block": "channel"}
NO_READER = "That it sees more than a reader of the model's output would: no such reader was compared."
KIND_LIMITS = {
    "uses": (
        "What the direction stands for, or that a property can be read from it: that is another claim (represents, decodes).",
        "That no other direction carries the behaviour, or that erasing leaves activations the model could have by itself.",
    ),
    "steers": (
        "That the model itself uses this direction: that is another claim (uses).",
        "That it is the best way to steer: a plain instruction may do more. Nor what happens in long generations.",
    ),
    "connects": (
        "That nothing else drives the second feature, or that the first drives nothing else.",
        "What either feature stands for: that is another claim (represents).",
    ),
    "connects by an edge": (
        "What is carried, or that the reader needs nothing else: most readers are fed by many writers.",
        "That the edge is stronger than others, or that the task needs it: that is another claim (mediates).",
        "Anything about what the two prompts of a pair have in common, or about other corruptions of the task.",
    ),
    "decodes": (
        "That the model uses what can be read here: that is another claim (uses).",
        "That it is stored in this form, or only here.",
    ),
    "explains": (
        "That the feature does in the output what the explanation says: the output side was not tested.",
        "That this is the only explanation that fits, or that it names what the model means.",
    ),
    "detects": (
        "That it catches what somebody built to get past it: only the searches that were run.",
        "That it works in families of situations that were not sampled.",
        NO_READER,
    ),
    "reconstructs": (
        "What any of its latents stands for: that is another claim (represents, explains).",
        "That it is good for other uses than the one named, or that it is the only such dictionary.",
    ),
    "represents": (
        "That the model uses this feature: that is another claim (uses).",
        "That the concept is stored nowhere else, or that the feature has no second meaning outside the data.",
    ),
}
WHY = {
    "underpowered": "the data are too few or too noisy to tell",
    "conflicting gates": "some tests say yes and others do not",
    "ablation-dependent": "the answer depends on how the parts are switched off",
    "redundant": "other parts can do the same job, so switching these off changes little",
    "non-unique": "random parts of the same kind do about as well",
    "lexical": "reading the words alone does about as well",
    "search incomplete": "nobody finished looking for counterexamples",
    "counterexamples": "too many prompts go the wrong way",
    "instrument": "the measurement itself did not pass its checks",
    "behaviour absent": "the model does not show the behaviour on every part of the test data",
}

WHY_OF_PICTURES = {**WHY, "lexical": "reading brightness, colours and a thumbnail alone does about as well",
                   "counterexamples": "too many pictures go the wrong way"}  # fmt: skip
DRAWN = "Anything about photographs: the pictures were drawn."


def sentence(
    claim: Claim, plan: Plan, verdict: str, reasons: Sequence[str], gates: Sequence[GateResult]
) -> str:
    """The verdict in words for someone who does not work in the field."""
    if claim.kind != "mediates":
        return plain_sentence(claim, verdict, reasons, gates)
    who, task = f"{subject_words(claim)} of {claim.subject['model']}", f"the task {claim.task['name']!r}"
    patterns = "backgrounds" if of_pictures(claim) else "sentence patterns"
    one = len(claim.subject["sites"]) == 1 or who.startswith("a circuit")
    carries, them = ("carries", "it") if one else ("carry", "them")
    if verdict == "not tested":
        why = "the model does not show the behaviour" if "behaviour absent" in reasons else "no test data were read"
        return f"Not tested: whether {who} {carries} {task} could not be asked, because {why}."
    if verdict == "refuted":
        does = "does" if one else "do"
        return f"Refuted: {who} {does} not carry {task} as claimed: {_failures(gates, reasons, them, patterns)}."
    if verdict == "inconclusive":
        why = whys(claim, reasons)
        return f"Undecided: whether {who} {carries} {task} is open, because {why}."
    off, back = _estimate(gates, "necessity.resample"), _estimate(gates, "sufficiency")
    return (f"Supported: {who} {carries} {task}: switching {them} off removes {off} of the effect and restoring {them}"
            f" alone brings back {back}, more than {_draws(gates)} of the same size, on {_clusters(gates)} {patterns}"
            " that were not used to find them.")  # fmt: skip


def plain_sentence(claim: Claim, verdict: str, reasons: Sequence[str], gates: Sequence[GateResult]) -> str:
    """The verdict of a kind without words of its own: its statement, and what its gates say."""
    said = f"{claim.statement!r} (about {claim.subject['model']})"
    if verdict == "not tested":
        why = "what it is about does not happen" if "behaviour absent" in reasons else "no test data were read"
        return f"Not tested: {said}, because {why}."
    if verdict == "inconclusive":
        return f"Undecided: {said}, because {whys(claim, reasons)}."
    required = [gate for gate in gates if gate.required and gate.estimate is not None]
    if verdict == "refuted":
        if "below SESOI" not in reasons or not required:
            return f"Refuted: {said}: it was claimed always, and cases were found where it fails."
        deciding = [gate for gate in required if gate.group not in ("random", "lexical")]  # controls alone never refute
        worst = min(deciding or required, key=lambda gate: gate.p_below)
        where = "" if worst.split == "confirm" else f" on {worst.split} data"
        return f"Refuted: {said}: {gate_words(worst)}{where}; {_share(worst.sesoi)} was claimed."
    told = [words for gate in required if gate.split == "confirm" and (words := gate_words(gate))]
    return f"Supported: {said}: {', '.join(told[:3])}, on {_clusters(gates)} groups of {items_word(claim)} not used to find it."


def of_pictures(claim: Claim) -> bool:
    """Whether the claim's items are pictures."""
    return claim.task.get("type") in PICTURES


def items_word(claim: Claim) -> str:
    """What a claim's items are."""
    return "pictures" if of_pictures(claim) else "texts"


def whys(claim: Claim, reasons: Sequence[str]) -> str:
    """Reason codes in words."""
    words = WHY_OF_PICTURES if of_pictures(claim) else WHY
    return "; ".join(words.get(reason, reason) for reason in reasons)


def gate_words(gate: GateResult) -> str:
    """What a gate found, in words; its name and number where it has no words."""
    says = GATES.get(gate.name).says if gate.name in GATES else ""
    return says.format(estimate=_share(gate.estimate)) if says else f"{gate.name} is {_share(gate.estimate)}"


def _share(value: float | None) -> str:
    return "an unknown share" if value is None else _percent(value) if abs(value) <= 2 else f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{round(value, 2) + 0.0:.0%}"  # no "-0%"


def does_not_show(claim: Claim, verdict: str, gates: Sequence[GateResult] = ()) -> tuple[str, ...]:
    """What a reader must not take from this verdict."""
    if verdict == "not tested":
        return ("Anything about the model: no test took place.",)
    if verdict == "refuted":
        return (
            "That these parts do nothing: only that the effect is smaller than the plan required.",
            "That they play no role in other tasks, other corruptions or other models.",
        )
    if verdict == "inconclusive":
        return ("That the claim is false.", "That the claim is true: more data or other tests are needed.")
    if claim.kind != "mediates":
        edge = claim.kind == "connects" and "reader" in claim.subject
        limits = KIND_LIMITS.get("connects by an edge" if edge else claim.kind, ())
        if any(gate.name == "black_box" for gate in gates):
            limits = tuple(limit for limit in limits if limit != NO_READER)
        drawn = (DRAWN,) if claim.task.get("type") in ("scenes", "cars") else ()
        return (*limits, *drawn, f"That it holds for other {items_word(claim)} than those sampled, or for other models.")
    if of_pictures(claim):
        drawn = (DRAWN,) if claim.task.get("type") in ("scenes", "cars") else ()
        return (
            "What these channels compute, or that they have no other job.",
            "That they are the only channels, or the smallest set, that could do this.",
            *drawn,
            "That it holds for other changes of a picture, for other pictures than those sampled, or for other models.",
        )
    return (
        "What these parts compute, or that they have no other job.",
        "That they are the only parts, or the smallest set, that could do this.",
        f"That it holds for {_corruptions(claim)}, for other wordings than those sampled, or for other models.",
        "That the same holds inside a longer text or a conversation.",
        *_only_with_corrupted(gates),
    )


def _only_with_corrupted(gates: Sequence[GateResult]) -> Iterator[str]:
    """A circuit that does the task only with what the two prompts share around it."""
    for gate in gates:
        if gate.group == "kept alone" and gate.split == "confirm" and gate.p_above > 0.05 and gate.estimate is not None:
            outside = "its mean" if gate.name.endswith("mean") else "zero"
            yield (f"That they do it on their own: with everything else at {outside} they keep {gate.estimate:.0%} of the"
                   " effect; they need what the two prompts of a pair have in common.")  # fmt: skip


def _corruptions(claim: Claim) -> str:
    made = claim.task.get("corruption")
    return f"corruptions other than {made!r}" if made else "other corrupted prompts than those in the file"


def subject_words(claim: Claim) -> str:
    """The claim's sites in words: "2 attention heads (z.3.1, z.4.0)"."""
    sites = claim.subject["sites"]
    if edges := sum("->" in str(site) for site in sites):
        nodes = len({end for site in sites for end in str(site).split("->")})
        return f"a circuit of {edges} edges among {nodes} parts" + (f" and {len(sites) - edges} nodes" * (edges < len(sites)))
    if len({str(site).split(".")[0] for site in sites}) > 1:
        return f"a circuit of {len(sites)} nodes"
    word = KIND_WORDS.get(str(sites[0]).split(".")[0], "residual site")
    shown = ", ".join(sites[:6]) + (f" and {len(sites) - 6} more" if len(sites) > 6 else "")
    return f"{len(sites)} {word}{'s' * (len(sites) > 1)} ({shown})"


def _estimate(gates: Sequence[GateResult], name: str) -> str:
    found = [gate.estimate for gate in gates if gate.name == name and gate.split == "confirm"]
    return "an unknown share" if not found or found[0] is None else _percent(found[0])


def _draws(gates: Sequence[GateResult]) -> str:
    counts = [gate.tables.get("draws", 0) for gate in gates if gate.group == "random"]
    n = max(counts, default=0)
    return f"the best of {n} random sets" if n > 1 else "a random set"


def _clusters(gates: Sequence[GateResult]) -> int:
    return max((gate.sample.get("K", 0) for gate in gates if gate.split == "confirm"), default=0)


def _failures(gates: Sequence[GateResult], reasons: Sequence[str], them: str, patterns: str) -> str:
    if "below SESOI" not in reasons:
        return "it was claimed always, and prompts were found where it fails"
    low = [gate for gate in gates if gate.required and gate.group not in ("random", "ablation") and gate.estimate is not None]
    worst = min(low, key=lambda gate: gate.p_below)
    words = {"necessity": f"switching {them} off removes", "sufficiency": f"restoring {them} alone brings back"}
    what = words.get(worst.group, f"{worst.name} is")
    where = "" if worst.split == "confirm" else f" (on {worst.split} {patterns})"
    return f"{what} {_percent(worst.estimate or 0.0)} of the effect{where}, less than the {worst.sesoi:.0%} that was claimed"
