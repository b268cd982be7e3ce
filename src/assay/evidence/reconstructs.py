"""*reconstructs*: this dictionary stands in for the activations of a site, for a named use.

1. A claim names a site, a dictionary (anything with `encode` and `decode`) and what it is good for: listing
   features, steering, or standing in the loss. "Faithful at large" cannot be claimed.
2. On tune: mean and variance of the activations, directions that were never fitted (`random_dictionaries.py`),
   the same recipe on an untrained twin where the dictionary can be refitted, a probe for the concept in the data.
3. On confirm and ood: how much variance and, where the host behaves, how much of the behaviour the
   reconstruction keeps; whether random directions with as many latents do as well; whether an untrained twin is
   reconstructed as well; what is lost when the error is replaced by another example's; whether a second
   dictionary has the same latents.

Explained variance is necessary only: .71 of it went with 9% true features (Korznikov et al. 2026). None of the
gates says what a latent means: that is a claim of its own (*represents*, *explains*).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.evidence.dictionaries import USES, Dictionary, DictionaryInstrument, DictionarySetup, behaves, known, opened
from assay.evidence.gates.base import get_gate
from assay.evidence.hosts import Host, as_host
from assay.evidence.kinds import KINDS, Columns, Progress
from assay.evidence.random_dictionaries import baselines, unit
from assay.evidence.sparse_probes import sparse_probes
from assay.records import Example, GatePlan, Plan, digest


class Reconstructs:
    """The kind *reconstructs*, as the trial uses it."""

    name = "reconstructs"
    score = "explained"

    def subject(self, model: Any, given: Any) -> dict[str, Any]:
        """From {"site", "dictionary", "use"} and, if there is one, "second". Raises UsageError for another use."""
        use, dictionary, second = given.get("use"), opened(given["dictionary"]), given.get("second")
        if use not in USES:
            raise bad_argument("use", use, ", ".join(USES), "A dictionary is claimed to be good for one use.")
        if use != USES[0] and not behaves(as_host(model)):
            raise bad_argument("use", use, USES[0], "This host only holds activations: it does nothing with them.")
        record = {"name": dictionary.name, "digest": dictionary.digest, "width": dictionary.width,
                  "refits": hasattr(dictionary, "refit")}  # fmt: skip
        other = None if second is None else {"name": second.name, "digest": opened(second).digest}
        return {"sites": [str(given["site"])], "dictionary": record, "second": other, "use": use}

    def words(self, subject: Mapping[str, Any], quantifier: str, data: str) -> str:
        """The claim as one sentence."""
        adverb = {"tends": "tends to stand", "usually": "usually stands", "always": "always stands"}[quantifier]
        return f"{subject['dictionary']['name']} {adverb} in for {subject['sites'][0]}, for {subject['use']}, on {data}"

    def load(self, model: Any, items: Sequence[Example]) -> PreparedConcept:
        """Examples ready to be read."""
        return as_host(model).load(items)

    def prepare(
        self, model: Any, plan: Plan, subject: Mapping[str, Any], tune: PreparedConcept
    ) -> tuple[DictionarySetup, dict[str, Any]]:
        """Everything measured on tune. Raises UsageError when the dictionary is not open."""
        host, site, seed = as_host(model), subject["sites"][0], plan.settings["seed"]
        dictionary = known(subject["dictionary"])
        second = None if subject["second"] is None else known(subject["second"])
        acts = host.read(site, tune)
        mean, total = moments(acts)
        random = baselines(acts - mean, dictionary.width, seed)
        codes, member = dictionary.encode(acts), torch.tensor(tune.labels).bool()
        truth = getattr(host, "directions", None)
        twin = refitted(host, site, dictionary, tune, seed)
        setup = DictionarySetup(
            site, dictionary, mean, total, acts - dictionary.decode(codes), codes.mean(0), random, twin, second,
            concept_probe(acts, member), best_latent(codes, member),
            None if truth is None else unit(torch.as_tensor(truth, dtype=torch.float32)), seed,
            sparse_probes(dictionary.encode, acts, member),
        )  # fmt: skip
        record = {"total": round(total, 6), "main": setup.main, "random": {name: _hash(x) for name, x in random.items()},
                  "untrained": setup.twin is not None}  # fmt: skip
        return setup, record

    def measure(
        self, model: Any, data: PreparedConcept, setup: DictionarySetup, gates: Sequence[GatePlan],
        report: Progress | None = None,
    ) -> Columns:  # fmt: skip
        """All columns the gates need."""
        instrument = DictionaryInstrument(as_host(model), data, setup)
        columns: Columns = {}
        for number, gate in enumerate(gates):
            columns.update(get_gate(gate.name).measure(instrument, gate))
            if report:
                report("measuring", number + 1, len(gates))
        return columns


def moments(acts: Float[Tensor, "example d"]) -> tuple[Float[Tensor, " d"], float]:
    """Mean, and mean squared distance from it."""
    mean = acts.mean(0)
    return mean, float((acts - mean).square().sum(1).mean())


def refitted(
    host: Host, site: str, dictionary: Any, tune: PreparedConcept, seed: int
) -> tuple[Host, Dictionary, Tensor, float] | None:
    """The dictionary's recipe on an untrained twin, where it has one."""
    if not hasattr(dictionary, "refit"):
        return None
    twin = host.untrained("all", seed)
    acts = twin.read(site, tune)
    return twin, dictionary.refit(acts), *moments(acts)


def concept_probe(acts: Float[Tensor, "example d"], member: Tensor) -> Float[Tensor, " d"]:
    """Unit difference of class means; zeros when a class is empty."""
    if not member.any() or member.all():
        return torch.zeros(acts.shape[1])
    return unit((acts[member].mean(0) - acts[~member].mean(0))[None])[0]


def best_latent(codes: Float[Tensor, "example latent"], member: Tensor) -> int:
    """The latent whose mean differs most between members and others, in its own standard deviations."""
    if not member.any() or member.all():
        return 0
    gap = codes[member].mean(0) - codes[~member].mean(0)
    return int((gap / codes.std(0).clamp_min(1e-9)).argmax())


def _hash(values: Tensor) -> str:
    return digest([round(float(x), 4) for x in values.flatten()[:4096]])[:12]


KINDS.add("reconstructs", Reconstructs())
