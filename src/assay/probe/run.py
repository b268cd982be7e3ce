"""Where is a property readable, and better than by what?

    report = probe(model, "sentiment", ProbePlan(positions=("concept",)))

1. Two halves. `choose` reads discover and tune only: a probe at every site and position, fitted on both, scored on tune rows
   in folds that keep groups together; penalty by log loss, site and position by AUROC. `measure` then reads confirm and ood
   once, with everything fixed. Whoever states a claim does so in between.
2. Baselines (`baselines.py`) run on the same rows, folds and choices. The margin of a site is its AUROC on confirm minus that
   of the baseline that is strongest there, on the same rows, drawn by group.
3. Of the chosen probe: calibration and abstention, bits per label, what fewer groups would have given, selectivity, and how
   much better it looked on tune than it is (a maximum over many sites is too good).
4. Rows that share a template, text or entity with rows used for fitting are refused.

Numbers of sites that were not chosen are a map, not findings: many are looked at. Readable is not used.
"""

from assay.data.concepts import CONCEPTS, all_examples, load_concept
from assay.data.splits import SPLITS, spread
from assay.model.model import Model
from assay.probe.choose import Candidate, Examples, Keep, ProbePlan, Progress, Selection, choose
from assay.probe.measure import measure
from assay.probe.records import ProbeReport
from assay.records import Example

__all__ = ["Candidate", "ProbePlan", "ProbeReport", "Selection", "choose", "measure", "probe", "split_concept"]


def probe(
    model: Model, concept: str | Examples, plan: ProbePlan | None = None, progress: Progress | None = None,
    keep: Keep | None = None,
) -> ProbeReport:  # fmt: skip
    """Choose on discover and tune, measure on confirm and ood. `concept`: a name, a file, or examples by split.

    `keep(key)`: where activations are kept. Screening, no claim: that needs a ledger (`assay probe`). Raises UsageError,
    SiteError, TaskError.
    """
    plan = plan or ProbePlan()
    splits = split_concept(concept, plan.n, plan.seed) if isinstance(concept, str) else concept
    chosen = choose(model, {split: splits[split] for split in ("discover", "tune") if split in splits}, plan,
                    concept if isinstance(concept, str) else "given examples", progress, keep)  # fmt: skip
    return measure(model, chosen, {split: splits[split] for split in ("confirm", "ood") if split in splits}, progress, keep)


def split_concept(concept: str, n: int | None = None, seed: int = 0) -> dict[str, list[Example]]:
    """Examples of a bundled or packaged concept or of a file, by split, at most n of each."""
    whole = all_examples(concept).splits
    sizes = {split: min(n or len(whole[split]), len(whole[split])) for split in SPLITS if whole.get(split)}
    if concept in CONCEPTS:
        return {split: load_concept(concept, split, size, seed) for split, size in sizes.items()}
    return {split: spread(whole[split], size) for split, size in sizes.items()}
