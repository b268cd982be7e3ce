"""*mediates* on models whose weights were written by hand.

The ladder's binding gate is necessity by mean ablation (bar .2): z.1.0 does the share s of the copying, three other
heads the rest; the norms are made constant, so that resample ablation and restoring move exactly the share s of
the effect and mean ablation, which takes the answer away but does not write the foil, s/2. Effects of .5, 1, 1.5
and 2 bars are shares of .2, .4, .6 and .8. How strongly a word is copied varies by half of its mean.
"""

import random
from functools import cache, partial

from assay.calibrate.base import CALIBRATIONS, Calibration, Case, Family, ladder
from assay.evidence.run import Settings
from assay.evidence.source import MemorySource
from assay.model.load import load_model
from assay.records import Pair
from assay.testing import circuit_models
from assay.testing.gates_models import reverse_heads
from assay.testing.induction import Induction, planted_induction, repeated_pairs
from assay.testing.programs import PROGRAMS, Program

SETTINGS = Settings(tune=24, confirm=80, ood=56, draws=6, control_pairs=4)
TEMPLATES = {"discover": 4, "tune": 6, "confirm": 20, "ood": 14}
PER_TEMPLATE = 4
PLAIN = Induction()
INERT = ("z.0.2", "z.0.3", "z.1.2", "z.1.3")
HARD = {"dormant_path": ("loud", (1.0, 2.0, 4.0)), "cancelling": ("hurts", (0.3, 0.6, 1.0)),
        "redundant": ("limit", (0.6, 0.8, 1.0)), "ablation_sensitive": ("constant", (0.6, 0.75, 0.9))}  # fmt: skip


def pairs(seed: int) -> MemorySource:
    """Fresh repeated sequences, templates of their own per split."""
    found = {split: repeated_pairs(n, PER_TEMPLATE, seed, f"{split} ") for split, n in TEMPLATES.items()}
    return MemorySource(f"repeated words {seed}", found)


def halves(seed: int) -> MemorySource:
    """Fresh repeated sequences whose answers are words of the first half, and foils of the second."""
    rng = random.Random(f"halves-{seed}")
    return MemorySource(f"halves {seed}", {split: circuit_models.repeats(rng, split, n, PER_TEMPLATE, True)
                                           for split, n in TEMPLATES.items()})  # fmt: skip


@cache
def induction_model(plan: Induction):
    """The model of a plan, made once."""
    return planted_induction(plan)


@cache
def other_order():
    """The plain model with its heads in reverse order: another basis, the same function."""
    model = planted_induction(PLAIN)
    reverse_heads(model.hf)
    return load_model(model.hf, tokenizer=model.tokenizer)


@cache
def hard_model(name: str, difficulty: int):
    """One of `circuit_models`, of one of three difficulties."""
    what, values = HARD[name]
    return getattr(circuit_models, name)(**{what: values[difficulty]})


def inert_head(seed: int) -> Case:
    """One of the heads whose weights are all zero."""
    return Case(induction_model(PLAIN), pairs(seed), INERT[seed % len(INERT)])


def inert_set(seed: int) -> Case:
    """Three inert heads at once."""
    return Case(induction_model(PLAIN), pairs(seed), ",".join(INERT[:seed % 4] + INERT[seed % 4 + 1 :]))


def mlp(seed: int) -> Case:
    """An MLP, whose weights are noise of almost no size."""
    return Case(induction_model(PLAIN), pairs(seed), f"mlp_out.{seed % 2}")


def decoy(seed: int) -> Case:
    """The answer can be read from it, nothing reads it."""
    return Case(induction_model(PLAIN), pairs(seed), "z.0.1")


def one_copy(seed: int) -> Case:
    """One of two exact copies, claimed alone."""
    return Case(induction_model(PLAIN), pairs(seed), f"z.1.{seed % 2}")


def smallest_copy(seed: int) -> Case:
    """The weakest of four copies."""
    return Case(induction_model(Induction(copies=(0.1, 0.4, 0.3, 0.2), linear=True)), pairs(seed), "z.1.0")


def dormant_path(seed: int) -> Case:
    """It writes the answer where nothing reads it, beside a path that nothing takes."""
    return Case(hard_model("dormant_path", seed % 3), pairs(seed), "z.1.2")


def cancelling(seed: int) -> Case:
    """It helps on half of the words and hurts on the others; claimed to do it usually."""
    return Case(hard_model("cancelling", seed % 3), pairs(seed), "z.1.2", quantifier="usually")


def ablation_sensitive(seed: int) -> Case:
    """Without its values the answer is lost, with zeros in their place it is found."""
    return Case(hard_model("ablation_sensitive", seed % 3), halves(seed), "z.1.2")


def one_is_enough(seed: int) -> Case:
    """One of two that each do the whole job."""
    return Case(hard_model("redundant", seed % 3), pairs(seed), f"z.1.{seed % 2}")


def decoy_elsewhere(seed: int) -> Case:
    """The decoy of a model whose heads were put in another order."""
    return Case(other_order(), pairs(seed), "z.0.2")


def circuit_elsewhere(seed: int) -> Case:
    """The whole circuit of a model whose heads were put in another order."""
    return Case(other_order(), pairs(seed), "z.0.3,z.1.3,z.1.2")


def whole_circuit(seed: int) -> Case:
    """Previous-token head and both copies."""
    return Case(induction_model(PLAIN), pairs(seed), "z.0.0,z.1.0,z.1.1")


def both_copies(seed: int) -> Case:
    """All induction heads, without the head before them."""
    return Case(induction_model(PLAIN), pairs(seed), "z.1.0,z.1.1")


def _program(seed: int) -> tuple[Program, MemorySource]:
    """A program and texts of which none is in two splits. Not `brackets`: zeros mean "balanced" to it, so that what its
    heads do depends on the ablation, as the gates say; nor `reverse`, whose score is the same for every text."""
    name = ("count", "most_frequent", "previous")[seed % 3]
    program, seen = _compiled(name), set()
    found: dict[str, list[Pair]] = {}
    for split, n in TEMPLATES.items():
        made = program.pairs(seed, n, PER_TEMPLATE, f"{split} ")
        found[split] = [pair for pair in made if not seen & set(pair.texts)]
        seen |= {text for pair in made for text in pair.texts}
    return program, MemorySource(f"{name} {seed}", found)


@cache
def _compiled(name: str) -> Program:
    return PROGRAMS[name]()


def compiled_circuit(seed: int) -> Case:
    """The heads of a compiled program."""
    program, source = _program(seed)
    return Case(program.model, source, ",".join(program.heads))


def idle_head_of_a_program(seed: int) -> Case:
    """A head of a compiled program that was not written."""
    program, source = _program(seed)
    return Case(program.model, source, f"z.0.{1 + seed % 3}")


def rung(seed: int, effect: float) -> Case:
    """z.1.0 with a share of the copying that puts necessity.mean at `effect` bars."""
    share = 0.4 * effect
    plan = Induction(copies=(share, *[(1 - share) / 3] * 3), linear=True, spread=0.5)
    truth = {"necessity.mean": share / 2, "necessity.resample": share, "sufficiency": share}
    return Case(induction_model(plan), pairs(seed), "z.1.0", truth)


def _family(truth, make) -> Family:
    return Family(make.__name__.replace("_", " "), truth, make, " ".join((make.__doc__ or "").split()))


FAMILIES = (
    *map(partial(_family, "null"), (inert_head, inert_set, mlp, idle_head_of_a_program)),
    *map(partial(_family, "false"), (decoy, one_copy, smallest_copy, dormant_path, cancelling, ablation_sensitive)),
    *map(partial(_family, "false"), (one_is_enough, decoy_elsewhere)),
    *map(partial(_family, "true"), (whole_circuit, both_copies, compiled_circuit, circuit_elsewhere)),
    *ladder(rung, "one of four copying heads with a known share"),
)

CALIBRATIONS.add("mediates", Calibration(
    "mediates", "necessity.mean", FAMILIES, SETTINGS,
    full={"null": 15, "false": 10, "true": 10, "ladder": 25}, quick={"null": 2, "false": 1, "true": 1, "ladder": 2},
    note="share of the effect lost when the subject is set to its mean; bar .2",
))  # fmt: skip
