"""Neurons answer to several unrelated things, latents of a dictionary to fewer."""

import random

from assay.data.corpus_rows import packed
from assay.features.contexts import (
    ContextPlan,
    latent_units,
    random_contexts,
    read_contexts,
    site_units,
    texts_of,
)
from assay.features.kept import is_shipped, shipped
from assay.features.polysemy import FEWEST, Polysemy, polysemy, unit_texts
from assay.features.sentences import encoder_of
from assay.replicate.base import Lab, finding
from assay.replicate.records import Found, figure

CORPUS, CONTEXT, POOL = "brown", 64, 300


@finding(
    "polysemantic-neurons",
    title="Neurons are polysemantic, dictionary latents less so",
    paper="Bricken et al. 2023 (Towards Monosemanticity); Cunningham et al. 2023, arXiv 2309.08600",
    published="Judges rate latents of sparse dictionaries as far more interpretable than neurons of the layer they come"
    " from.",
    method="Random neurons and random latents of the same layer. Contexts in which each fires most are clustered by"
    " meaning against a null of random contexts: share of units with two or more concepts, and share with none"
    " that stands out.",
    differs="No judge rates anything: meaning is what a small sentence encoder sees. It needs a dictionary that comes"
    " along.",
)
def polysemantic_neurons(lab: Lab) -> Found:
    if not is_shipped(lab.model.name):
        return Found(lacks=f"no dictionary comes with {lab.model.name}")
    dictionary = next((each for each in shipped(lab.model.name) if not each.spec.transcodes), None)
    if dictionary is None:
        return Found(lacks=f"no autoencoder comes with {lab.model.name}, only transcoders")
    layer = lab.model.sites(list(dictionary.spec.inputs))[0].layer
    site, rng = f"mlp_act.{layer}", random.Random(f"polysemy-{lab.seed}")
    kept = packed(lab.model, CORPUS, CONTEXT, tokens=lab.sizes.tokens)
    rows = [(row.tokens.tolist(), row.number) for row in kept]
    plan = ContextPlan(top=24, sample=0, before=16, after=8, seed=lab.seed)
    neurons = site_units(lab.model, site, sorted(rng.sample(list(site_units(lab.model, site).only), lab.sizes.units)))
    latents = latent_units(lab.model, dictionary, sorted(rng.sample(range(dictionary.width), 2 * lab.sizes.units)))
    units = [unit_texts(lab.model, unit) for source in (neurons, latents) for unit in read_contexts(source, rows, plan).units]
    able = [unit for unit in units if len(unit.texts) >= FEWEST]
    pool = list(dict.fromkeys(texts_of(lab.model, random_contexts(rows, POOL, plan))))
    told = polysemy(able, encoder_of("minilm"), pool) if able else []
    sides = [[one for one in told if one.unit.startswith("latent.") is wanted] for wanted in (False, True)]
    if min(map(len, sides)) < 2:
        return Found(lacks="too few neurons or latents fire in this text")
    one = [[float(each.concepts == 1 or each.label == "one token") for each in side] for side in sides]
    base = sum(one[0]) / len(one[0])
    return Found(
        (figure("share of latents with one concept or one token, less that of neurons", [value - base for value in one[1]],
                [each.unit for each in sides[1]], 0.1),),
        notes=(f"{len(sides[0])} neurons of {site}, {len(sides[1])} latents; neurons with several concepts"
               f" {_several(sides[0]):.2f}, latents {_several(sides[1]):.2f}",),
    )  # fmt: skip


def _several(told: list[Polysemy]) -> float:
    return sum(each.label == "several concepts" for each in told) / len(told)
