"""The output side of a feature: does adding it make the model say certain words?

1. The option `output` names words. Their log-odds are measured as the next token after the token at which a text is read:
   their first tokens against the tokens whose logits were nearest to theirs, so that a change of temperature moves both.
2. The feature is added at that token along the direction it is read along, by as much as members lie above non-members on
   tune. A latent is added along its decoder's direction, where its dictionary writes.
3. Random directions of equal norm are added in the same way, on the first text of every template.

What the words are is the claim's own; that adding a feature moves them does not show that the model uses it (*uses*). Input
and output of a feature can differ. (FADE, Puri et al. 2025; Gur-Arieh et al. 2025.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from assay.data.metrics import Metric
from assay.data.prepare_concept import PreparedConcept
from assay.errors import bad_argument
from assay.evidence.effects import control_rows, per_pool, record_of, spread_over
from assay.evidence.features import Feature
from assay.evidence.hosts import Host, ModelHost
from assay.features.opened import dictionary_at, is_latent, scales
from assay.model.model import Model
from assay.probe.variants import Place, place_of, pushed, random_subspaces, run_variants
from assay.records import digest

OPTION = "output"
MATCHED = 4  # tokens nearest to the words
PROMPTS_AT_ONCE = 64
Columns = dict[str, list[float | None]]


@dataclass(frozen=True, eq=False)
class OutputSide:
    """What is fixed before sealed data are read: where and what is added, the words' tokens, and random directions."""

    model: Model
    place: Place
    vector: Float[Tensor, " d"]
    words: tuple[int, ...]
    random: Mapping[str, Float[Tensor, " d"]]
    kept: dict[int, Columns] = field(default_factory=dict)

    def columns(self, data: PreparedConcept) -> Columns:
        """`output.before`, `output.after` and `output.random.NAME`: the words' log-odds after every text."""
        if id(data) not in self.kept:
            self.kept[id(data)] = self._measure(data)
        return self.kept[id(data)]

    def record(self) -> dict[str, Any]:
        """What the plan locks of it."""
        return {OPTION: {"site": str(self.place.site), "words": list(self.words), "norm": float(f"{self.vector.norm():.3g}"),
                         "random": record_of({name: row[None] for name, row in self.random.items()}),
                         "vector": digest([round(float(x), 4) for x in self.vector])[:12]}}  # fmt: skip

    def _measure(self, data: PreparedConcept) -> Columns:
        prompts = [ids[: at + 1] for ids, at in zip(data.tokens, data.at, strict=True)]
        metric = Metric("logit_diff", [self.words] * len(prompts), self._matched(prompts))
        after = run_variants(self.model, prompts, metric, self.place, [pushed(self.vector)])[0]
        rows = control_rows(data.templates, 1)
        found = run_variants(self.model, [prompts[row] for row in rows], metric.select(rows), self.place,
                             [pushed(row) for row in self.random.values()])  # fmt: skip
        return {"output.before": self.model.score(prompts, metric).tolist(), "output.after": after.tolist(),
                **{f"output.random.{name}": spread_over(rows, values, len(prompts))
                   for name, values in zip(self.random, found.tolist(), strict=True)}}  # fmt: skip

    def _matched(self, prompts: Sequence[list[int]]) -> list[tuple[int, ...]]:
        """Per prompt, the tokens whose logits are nearest to the words' highest, the words left out."""
        found: list[tuple[int, ...]] = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            for logits in self.model.logits(prompts[start : start + PROMPTS_AT_ONCE]).float():
                own = torch.tensor(self.words, device=logits.device)
                apart = (logits - logits[own].max()).abs().index_fill(0, own, float("inf"))
                found.append(tuple(apart.topk(MATCHED, largest=False).indices.tolist()))
        return found


def output_side(
    host: Host, options: Mapping[str, Any], feature: Feature, tune: PreparedConcept, labels: Sequence[int],
    draws: int, seed: int,
) -> OutputSide | None:  # fmt: skip
    """What measures the words that the options name; None where they name none. `labels`: 1 for members of tune.

    Raises UsageError on hosts without texts of their own, for words without a token, for latents that are written to several
    sites, and SiteError for a site that cannot be added to.
    """
    if OPTION not in options:
        return None
    if type(host) is not ModelHost or host.model.tokenizer is None:
        raise bad_argument(f"option {OPTION}", options[OPTION], "nothing for this host: it says no words")
    model = host.model
    site, towards = added_along(host, feature, tune)
    place = place_of(model, site, "last")
    acts = host.read(site, tune)
    member = torch.tensor(list(labels)).bool()
    score = host.read(feature.site, tune)
    if is_latent(feature.site):
        score = score * scales(feature.site, lambda source: host.read(source, tune))
    score = score @ feature.direction(score.shape[1])
    size = float(score[member].mean() - score[~member].mean()) if 0 < int(member.sum()) < len(member) else 0.0
    drawn = random_subspaces(acts - acts.mean(0), (towards / towards.norm())[None], per_pool(draws), seed)
    norm = abs(size) * float(towards.norm())
    return OutputSide(model, place, size * towards, word_tokens(model, options[OPTION]),
                      {name: norm * basis[0] for name, basis in drawn.items()})  # fmt: skip


def added_along(host: Host, feature: Feature, tune: PreparedConcept) -> tuple[str, Float[Tensor, " d"]]:
    """(site, direction) of one unit of a feature: its own, or for a latent its decoder's."""
    if not is_latent(feature.site):
        return feature.site, feature.direction(host.read(feature.site, tune).shape[1])
    dictionary = dictionary_at(feature.site)
    if len(dictionary.spec.outputs) != 1:
        raise bad_argument(f"option {OPTION}", feature.name, "a latent that is written to one site",
                           f"This one is written to {len(dictionary.spec.outputs)}.")  # fmt: skip
    return dictionary.spec.outputs[0], dictionary.directions()[feature.index or 0]


def word_tokens(model: Model, words: Sequence[str]) -> tuple[int, ...]:
    """The first token of every word, as it follows a text. Raises UsageError for a word without one."""
    found = []
    for word in words:
        ids = model.tokenizer(f" {word.strip()}", add_special_tokens=False)["input_ids"]
        if not ids or ids[0] == getattr(model.tokenizer, "unk_token_id", None):
            raise bad_argument(f"option {OPTION}", word, "words that the model's tokenizer knows")
        found.append(int(ids[0]))
    return tuple(dict.fromkeys(found))
