"""What a probe run says in words: which claim holds, and what is not shown."""

from collections.abc import Mapping
from typing import Any

from assay.probe.records import NOT_SHOWN, ProbeReport
from assay.probe.scores import Estimate

DECODES = {
    "supported": "The claim that it is readable (decodes) holds",
    "refuted": "The claim that it is readable (decodes) does not hold",
    "inconclusive": "Whether it is readable (decodes) stays open",
}
USES = {
    "supported": "The claim that the model uses it (uses) holds",
    "refuted": "The claim that the model uses it (uses) does not hold",
    "inconclusive": "Whether the model uses it (uses) stays open",
}


def sentence(report: ProbeReport, claim: Mapping[str, Any], causal: Mapping[str, Any] | None) -> str:
    """Which of *decodes* and *uses* holds, with the numbers it rests on, in plain words."""
    best = report.chosen
    verdict = claim.get("verdict")
    why = f" ({', '.join(claim['reasons'])})" if verdict != "supported" and claim.get("reasons") else ""
    held = DECODES.get(str(verdict), "Whether it is readable (decodes) was not tested as a claim")
    rivals = {"bag of words": report.over_words, report.best_baseline.replace("_", " "): best.margin}
    gaps = ", and ".join(f"{_gap(gap)} {name}" for name, gap in rivals.items())
    read = (f"{_a(report.probe.replace('_', ' '))} probe at {report.best} tells members of {report.concept} from others in"
            f" texts it has not seen with AUROC {_number(best.confirm)}, which is {gaps}")  # fmt: skip
    return f"{held}{why}: {read}. {_use(causal)}"


def _use(causal: Mapping[str, Any] | None) -> str:
    if causal is None:
        return "Whether the model uses what can be read (uses) was not tested."
    verdict = causal["verdict"]
    why = f" ({', '.join(verdict['reasons'])})" if verdict["verdict"] != "supported" and verdict["reasons"] else ""
    held = USES.get(verdict["verdict"], "Whether the model uses it (uses) could not be tested")
    told = ":" if verdict["verdict"] == "supported" else ". Followed up, which is a look and no test:"
    return f"{held}{why} for {causal['task']}{told} {causal['follow_up']['sentence']}"


def not_shown(claim: Mapping[str, Any], causal: Mapping[str, Any] | None) -> list[str]:
    """What follows from none of it: the limits that the verdicts name, or those of any probe."""
    own = claim.get("does_not_show") or NOT_SHOWN
    return list(dict.fromkeys([*own, *((causal or {}).get("verdict", {}).get("does_not_show") or ())]))


def _a(kind: str) -> str:
    """The kind of a probe with its article; LDA and MLP are spelled letter by letter."""
    return f"an {kind.upper() if len(kind) == 3 else kind}" if kind in ("lda", "mlp", "attention") else f"a {kind}"


def _number(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def _gap(found: Estimate) -> str:
    """ "0.13 (0.08 to 0.18) better than", or that it is not."""
    if found.low is None or found.low <= 0:
        return f"{found.value:+.2f}{_bounds(found)}, not clearly better than"
    return f"{found.value:.2f}{_bounds(found)} better than"


def _bounds(found: Estimate) -> str:
    return "" if found.low is None or found.high is None else f" ({found.low:.2f} to {found.high:.2f})"
