"""Rival units: other units of the site that do what the claimed score does.

1. Activations of the whole site on the confirm split; per unit, with the sign that suits it, the AUROC and the
   share of non-members above the median member.
2. A unit is a rival when both are at least as good as the claimed score's and reach the bars of the plan's gates
   *detection* and *firing*.
3. Rivals are listed, the best first, with how many units were compared.

Chosen and judged on the same items, so the list is long rather than short. A rival does not make a claim false; it
makes "this unit" one of several.
"""

import numpy as np
from numpy.typing import NDArray

from assay.evidence.hosts import as_host
from assay.evidence.hunting.labels import as_claimed
from assay.evidence.hunting.reading import nothing
from assay.evidence.scored import ScoreSetup
from assay.evidence.search.base import Found, Hunt, SearchMethod, register_search
from assay.evidence.search.corpus_mining import KINDS

LISTED = 20


@as_claimed
def find(hunt: Hunt) -> Found:
    """Units at least as good as the claim."""
    scores = hunt.columns["score"]
    if not isinstance(hunt.setup, ScoreSetup) or hunt.setup.host is not None or any(score is None for score in scores):
        return nothing("activations of single items cannot be read")
    member = np.array(hunt.data.labels) == 1
    if member.all() or not member.any() or hunt.budget == 0:
        return nothing("members or non-members are missing, or there is no budget")
    acts = as_host(hunt.model).read(hunt.setup.site, hunt.data).double().numpy()
    claimed = merits(np.array(scores, dtype=float)[:, None], member, two_sided=False)[:, 0]
    merit = merits(acts, member)
    bars = {gate.name: gate.sesoi for gate in hunt.plan.gates}
    good = (merit[0] >= max(claimed[0], bars.get("detection", 0.0))) & (merit[1] <= claimed[1])
    subject = hunt.claim.subject
    own = (subject.get("feature") or subject.get("monitor", {}).get("feature") or {}).get("index")
    order = [int(unit) for unit in np.argsort(-merit[0], kind="stable") if good[unit] and unit != own]
    listed = [{"unit": unit, "auroc": float(merit[0, unit]), "firing": float(merit[1, unit])} for unit in order[:LISTED]]
    notes = {"rivals": listed, "n_rivals": len(order), "claimed": {"auroc": float(claimed[0]), "firing": float(claimed[1])}}
    return Found(acts.shape[1], 0, passes=len(hunt.data), notes=notes)


def merits(
    acts: NDArray[np.float64], member: NDArray[np.bool_], two_sided: bool = True
) -> NDArray[np.float64]:
    """(AUROC, share of non-members above the median member) per column, (2, units), turned to its better side."""
    from scipy.stats import rankdata

    inside, outside = int(member.sum()), int((~member).sum())
    area = (rankdata(acts, axis=0)[member].sum(0) - inside * (inside + 1) / 2) / (inside * outside)
    sign = np.where(area < 0.5, -1.0, 1.0) if two_sided else np.ones(acts.shape[1])
    turned = acts * sign
    above = (turned[~member] > np.median(turned[member], axis=0)).mean(0)
    return np.stack([np.where(sign < 0, 1 - area, area), above])


register_search(SearchMethod("rival units", KINDS, find))
