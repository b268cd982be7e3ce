"""Gates that are planned where a claim's options name what they need: how often do they let a falsehood by?

1. Per option: `null` claims (nothing is there), `false` ones that only these gates should stop, and `true` ones, all with the
   option set, so that the gates decide. A ladder is not asked for: most bars leave no room for one and a half of them.
2. second_corpus: units that follow a rule in the claim's own texts; in the bundled texts about animals they are d standard
   deviations higher on members. AUROC = Phi(d / sqrt 2): .5 (another meaning there), .7 (on the bar), .784.
3. output: a direction that is read and one that nothing reads. The model's twenty words are no corpus for *represents*, so
   that other gates of that kind stop these claims too: look at how often the two gates pass.
4. interchange: a part that carries all of the behaviour, or half: enough for erasure, and half of the answers change (the bar).
5. scrub: an induction circuit, with the head that feeds it and without.
6. generation: a push that makes texts say "yes", and one so large that they say nothing else.

`off_target`, `reader_url` and `whole_corpus` are not here: they need a second task of the same model, a language model
elsewhere, and a corpus on disk.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import norm

from assay.calibrate.base import Calibration, Case, Family, Outcome
from assay.calibrate.effects import SETTINGS, along_part, planted_model, random_along
from assay.calibrate.mediates import INERT, PLAIN, induction_model, pairs
from assay.calibrate.rates import LEAST_POWER, MOST_FALSE, failed, upper95
from assay.calibrate.scored import D_ON_THE_BAR
from assay.evidence.run import Settings
from assay.evidence.second_corpus import OPTION, whole_of
from assay.evidence.source import ConceptSource, MemorySource
from assay.evidence.steers import Steering
from assay.records import Example
from assay.registry import Registry
from assay.statistics import clopper_pearson
from assay.testing.effect_ladders import mood_pairs, two_roads
from assay.testing.effect_models import FILLERS, MOODS, mood_source
from assay.testing.score_worlds import OWN, explained_world, normal

SECOND = "animals"
COUNTS = {"null": 60, "false": 15, "true": 15}


@dataclass(frozen=True)
class Named:
    """Claims with an option: the gates that it asks for, and a calibration of their kind without a ladder."""

    gates: tuple[str, ...]
    calibration: Calibration


NAMED: Registry[Named] = Registry("calibrated option")


def _family(truth: Any, make: Callable[[int], Case], **changes: Any) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()), **changes)


def _add(option: str, kind: str, gates: tuple[str, ...], settings: Settings, *families: Family) -> None:
    quick = dict.fromkeys(COUNTS, 1)
    NAMED.add(option, Named(gates, Calibration(kind, gates[0], families, settings, COUNTS, quick, name=option)))


# a second corpus ---------------------------------------------------------------------------------


@cache
def _second_texts() -> dict[str, int]:
    """Texts of the second corpus and their labels."""
    return {item.text: int(item.label) for item in whole_of(ConceptSource(SECOND), 0)}


@cache
def _animals() -> tuple[str, ...]:
    """The words that name its members."""
    found = {item.entities[0] for item in whole_of(ConceptSource(SECOND), 0) if item.label == 1}
    return tuple(sorted(found))


def _in_both(seed: int, distance: float, unit: int = 0) -> Case:
    planted, labels = explained_world(seed), _second_texts()
    own = planted.world.vector_of

    def vector_of(text: str) -> np.ndarray:
        acts = own(text)
        if text in labels:
            acts[0] = distance * labels[text] + normal(f"{seed} second {text}", 1)[0]
        return acts

    world = replace(planted.world, vector_of=vector_of, marks=(*planted.world.marks, distance))
    rule = {"type": "lexicon", "words": [*OWN, *_animals()]}
    truth = {"second_corpus": float(norm.cdf(distance / 2**0.5))} if unit == 0 else {}
    return Case(world, planted.source, {"feature": f"mlp_act.0.{unit}", "rule": rule, "text": "animals"}, truth)


def follows_no_rule(seed: int) -> Case:
    """A unit that follows the rule in neither corpus."""
    return _in_both(seed, 0.0, unit=1 + seed % 40)


def another_meaning_there(seed: int) -> Case:
    """A unit that follows the rule, and means nothing of the kind in the second corpus."""
    return _in_both(seed, 0.0)


def on_the_bar_there(seed: int) -> Case:
    """A unit that follows the rule, and ranks at .7 in the second corpus."""
    return _in_both(seed, D_ON_THE_BAR)


def in_both(seed: int) -> Case:
    """A unit that follows the rule, and ranks at .784 in the second corpus."""
    return _in_both(seed, 1.5 * D_ON_THE_BAR)


_add(OPTION, "explains", ("second_corpus",), Settings(tune=256, confirm=320, ood=224, draws=9, options={OPTION: SECOND}),
     _family("null", follows_no_rule), _family("false", another_meaning_there), _family("false", on_the_bar_there),
     _family("true", in_both))  # fmt: skip


# the output side ---------------------------------------------------------------------------------


def _moods(seed: int) -> MemorySource:
    """Texts that end in "ask": members have a p-word, others an n-word, in every split two words of their own."""
    splits = {}
    for split, n, first in (("tune", 10, 0), ("confirm", 16, 2), ("ood", 12, 4)):
        rng = random.Random(f"{split} {seed}")
        splits[split] = [
            Example(" ".join([*rng.sample(FILLERS, 4), rng.choice(MOODS[1 if label else -1][first : first + 2]), "ask"]),
                    label, f"{split} {number}")
            for number in range(n) for label in (0, 1) * 3
        ]  # fmt: skip
    return MemorySource(f"moods {seed}", splits)


def random_words(seed: int) -> Case:
    """A random direction, said to say "yes"."""
    return Case(planted_model(), _moods(seed), random_along(seed))


def read_and_not_written(seed: int) -> Case:
    """The property can be read along it; adding it says nothing."""
    return Case(planted_model(), _moods(seed), along_part(0, "copy"))


def read_and_written(seed: int) -> Case:
    """The part that the answer is read from."""
    return Case(planted_model(), _moods(seed), along_part(0, "mood"))


_add("output", "represents", ("output.shift", "output.random"),
     Settings(tune=60, confirm=96, ood=72, draws=9, options={"output": ["yes"]}),
     _family("null", random_words), _family("false", read_and_not_written), _family("true", read_and_written))  # fmt: skip


# interchange -------------------------------------------------------------------------------------


@cache
def _half():
    return two_roads(0.5)


def random_exchange(seed: int) -> Case:
    """A random direction."""
    return Case(planted_model(), mood_source(seed), random_along(seed))


def changes_half(seed: int) -> Case:
    """A part that carries half of the behaviour: the answer changes in half of the pairs, which is the bar."""
    return Case(_half(), mood_pairs(seed), along_part(0, "mood"))


def changes_the_answer(seed: int) -> Case:
    """The part that carries the behaviour."""
    return Case(planted_model(), mood_source(seed), along_part(0, "mood"))


_EXCHANGE = replace(SETTINGS, draws=9, options={**SETTINGS.options, "interchange": True})
_add("interchange", "uses", ("interchange.accuracy", "interchange.random", "interchange.untrained"), _EXCHANGE,
     _family("null", random_exchange),
     _family("false", changes_half, settings=replace(_EXCHANGE, tune=48, confirm=80, ood=56, control_pairs=4)),
     _family("true", changes_the_answer))  # fmt: skip


# scrubbing ---------------------------------------------------------------------------------------


def inert_head(seed: int) -> Case:
    """One of the heads whose weights are all zero."""
    return Case(induction_model(PLAIN), pairs(seed), INERT[seed % len(INERT)])


def without_what_feeds_it(seed: int) -> Case:
    """Both induction heads, without the head that feeds them."""
    return Case(induction_model(PLAIN), pairs(seed), "z.1.0,z.1.1")


def all_of_it(seed: int) -> Case:
    """Both induction heads and the head that feeds them."""
    return Case(induction_model(PLAIN), pairs(seed), "z.0.0,z.1.0,z.1.1")


_add("scrub", "mediates", ("scrubbing", "scrubbing.random"),
     Settings(tune=24, confirm=80, ood=56, draws=6, control_pairs=1, options={"scrub": True}),
     _family("null", inert_head), _family("false", without_what_feeds_it), _family("true", all_of_it))  # fmt: skip


# generated texts ---------------------------------------------------------------------------------


def _pushed(seed: int, feature: Any, strength: float) -> Case:
    grid = (-strength, -strength / 2, strength / 2, strength)
    return Case(planted_model(), mood_source(seed), Steering(feature, grid))


def random_push(seed: int) -> Case:
    """A random direction, three times."""
    return _pushed(seed, random_along(seed + 500), 3.0)


def says_nothing_else(seed: int) -> Case:
    """The part that carries the behaviour, eight times: texts say "yes" and nothing else."""
    return _pushed(seed, along_part(0, "mood"), 8.0)


def says_it(seed: int) -> Case:
    """The part that carries the behaviour, three times."""
    return _pushed(seed, along_part(0, "mood"), 3.0)


_add("generation", "steers", ("generation",),
     replace(SETTINGS, draws=9, options={**SETTINGS.options, "generation": "^ ?yes"}),
     _family("null", random_push), _family("false", says_nothing_else), _family("true", says_it))  # fmt: skip


# what came out -----------------------------------------------------------------------------------


def named_rates(named: Named, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Per family: claims, those supported, those whose named gates pass, and those that fail these gates and no other."""
    by = {family.name: [o for o in outcomes if o.family == family.name] for family in named.calibration.families}
    return {"kind": named.calibration.kind, "gates": list(named.gates),
            "families": {family.name: {"truth": family.truth, "what": family.what, **_counted(named.gates, by[family.name])}
                         for family in named.calibration.families}}  # fmt: skip


def judged_named(found: Mapping[str, Any], say: Callable[[str], None] = lambda text: None) -> bool:
    """Whether no more null claims are supported than promised, and true ones pass these gates; says what is not so."""
    families = found["families"].values()
    null = [family for family in families if family["truth"] == "null"]
    bad = [f"{family['what']}: upper bound {family['upper95']:.3f}" for family in null if family["upper95"] > MOST_FALSE]
    bad += [f"{family['what']}: the gates pass in {family['pass']} of {family['n']}" for family in families
            if family["truth"] == "true" and family["pass"] < LEAST_POWER * family["n"]]  # fmt: skip
    for text in bad:
        say(text)
    return not bad


def _counted(gates: Sequence[str], outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    n, supported = len(outcomes), sum(o.verdict == "supported" for o in outcomes)
    fails = [{label.partition("@")[0] for label in failed(o)} for o in outcomes]
    low, high = clopper_pearson(supported, n)
    return {"n": n, "supported": supported, "upper95": upper95(supported, n), "low": low, "high": high,
            "pass": sum(not names & set(gates) for names in fails),
            "only": sum(bool(names) and names <= set(gates) for names in fails)}  # fmt: skip
