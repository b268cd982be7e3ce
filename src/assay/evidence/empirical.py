"""The empirical null: what the instrument says on a user's own model when nothing is there.

1. Negative-control claims (random directions and units, labels that mean nothing) are tested on the model. Each
   gives an estimate with a known true value, its standard error and a p-value.
2. The systematic error is fitted by maximum likelihood: estimate - truth ~ Normal(mean, sd^2 + error^2)
   (Schuemie et al. 2014, empirical calibration as used by OHDSI). `calibrated_p` judges an estimate against it.
3. Where more than twice alpha of the controls come out below alpha, and that is no accident (exact binomial test),
   the instrument misbehaves on this model: claims of the kinds concerned get no verdict until it is looked into.
4. Every calibration is a *look* in the ledger, under a name of its own, so the latest is found without a search.

A well-behaved null shows that this instrument does not invent findings on this model's activations with these
texts. It does not show that a supported claim is true.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import optimize, stats

from assay.evidence.ledger import Ledger
from assay.evidence.source import clusters

MISBEHAVES = "instrument: empirical null misbehaves"
FEWEST = 20


@dataclass(frozen=True)
class EmpiricalNull:
    """Negative controls on one model, summarised. `mean`, `sd`: of the systematic error of the `gate`'s estimate;
    `false_positives`: controls with p <= alpha; `supported`: controls that got through the whole battery."""

    gate: str
    kinds: tuple[str, ...]
    n: int
    false_positives: int
    supported: int
    alpha: float
    mean: float
    sd: float

    @property
    def rate(self) -> float:
        """Share of controls that look significant."""
        return self.false_positives / self.n if self.n else 0.0

    @property
    def misbehaves(self) -> bool:
        """More than twice alpha, and more than chance gives."""
        worst = max(self.false_positives, self.supported)
        if self.n < FEWEST or worst <= 2 * self.alpha * self.n:
            return False
        return bool(stats.binomtest(worst, self.n, self.alpha, alternative="greater").pvalue <= 0.05)


def fit_null(deviations: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """(mean, sd) of the systematic error, from estimates minus truths and their standard errors."""
    gaps, noise = np.asarray(deviations, float), np.maximum(np.asarray(errors, float), 1e-9)
    if len(gaps) < 2:
        return 0.0, 0.0

    def minus_log_likelihood(parameters: np.ndarray) -> float:
        mean, sd = parameters[0], np.exp(parameters[1])
        return float(-stats.norm.logpdf(gaps, mean, np.hypot(sd, noise)).sum())

    start = np.array([gaps.mean(), np.log(max(gaps.std(), 1e-6))])
    found = optimize.minimize(minus_log_likelihood, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    return float(found.x[0]), float(np.exp(found.x[1]))


def calibrated_p(estimate: float, error: float, sesoi: float, null: EmpiricalNull) -> float:
    """One-sided p of "the effect is at most its bar", with the systematic error of the empirical null."""
    spread = max(float(np.hypot(null.sd, error)), 1e-12)
    return float(stats.norm.sf((estimate - sesoi - null.mean) / spread))


# in the ledger -----------------------------------------------------------------------------------


def name_of(model: str) -> str:
    """Under what a model's calibrations are filed."""
    return f"calibration of {model}"


def record_null(store: Ledger, model: str, null: EmpiricalNull, items: Sequence[Any], what: str) -> None:
    """File a calibration of a model (its digest), and the texts it looked at."""
    store.append("look", {"what": f"calibrate: {null.n} negative controls on {what}", "model": model,
                          "clusters": clusters(items), "n": len(items), "claim": name_of(model),
                          "empirical_null": asdict(null)})  # fmt: skip


def null_of(store: Ledger, model: str, kind: str) -> EmpiricalNull | None:
    """The latest calibration of a model that concerns a claim kind: one with too few controls to say anything does
    not take the place of one that says something."""
    bodies = [entry["body"].get("empirical_null") for entry in store.entries_of(name_of(model))]
    found = [EmpiricalNull(**{**body, "kinds": tuple(body["kinds"])}) for body in bodies if body and kind in body["kinds"]]
    return next((null for null in reversed(found) if null.n >= FEWEST), found[-1] if found else None)


def instrument_flags(store: Ledger, model: str, kind: str) -> tuple[str, ...]:
    """Why claims of this kind get no verdict on this model; empty when they do, or nobody has calibrated it."""
    null = null_of(store, model, kind)
    if null is None or not null.misbehaves:
        return ()
    return (f"{MISBEHAVES} ({max(null.false_positives, null.supported)} of {null.n} negative controls at alpha"
            f" {null.alpha:g}; see assay calibrate MODEL)",)  # fmt: skip
