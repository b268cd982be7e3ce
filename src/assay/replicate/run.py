"""Try a published finding on a model.

    lab = Lab(model, Atlas("atlas"))
    found = replicate(lab, "induction-heads")
    found.outcome, found.why

What a finding cannot be tried on ends as *not tried*, with the reason: a site the model does not have, a task that its
tokenizer or its ability does not allow, texts longer than it can read, data that cannot be had here.
"""

import time

from assay.errors import CorpusError, LengthError, SiteError, TaskError
from assay.passport import run_passport
from assay.replicate import findings  # noqa: F401  (registers them)
from assay.replicate.base import FINDINGS, Lab
from assay.replicate.records import Found, Replication, outcome_of


def replicate(lab: Lab, name: str) -> Replication:
    """One finding on one model. Raises UsageError for an unknown name."""
    one, start = FINDINGS.get(name), time.perf_counter()
    try:
        found = one.run(lab)
    except (SiteError, TaskError, CorpusError, LengthError) as error:
        found = Found(lacks=str(error))
    outcome, why = outcome_of(found)
    passport = {**lab.model.passport(), **run_passport({"finding": name, "seed": lab.seed, "sizes": lab.sizes})}
    return Replication(name, one.title, one.paper, one.published, one.method, one.differs,
                       lab.model.name if one.needs_model else "models of its own", outcome, why, found,
                       time.perf_counter() - start, passport)  # fmt: skip
