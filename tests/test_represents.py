"""The kind *represents* on worlds whose truth is planted: what must pass passes, what must not does not."""

import numpy as np
import pytest

from assay.evidence.features import direction
from assay.evidence.memory import MemoryStore
from assay.evidence.run import Settings, Statement, state_claim, test_claim
from assay.testing import planted_world

SETTINGS = Settings(tune=96, confirm=240, ood=168, draws=9)


def verdict_on(planted, vector, store=None, **sesoi):
    store = store or MemoryStore()
    claim, _ = state_claim(store, planted.world, planted.source, direction(planted.world.site, vector),
                           statement=Statement("represents"), settings=SETTINGS, sesoi=sesoi)  # fmt: skip
    return test_claim(store, claim.id, planted.world, source=planted.source)


def gates_of(verdict):
    return {gate["name"]: gate for gate in verdict.gates}


@pytest.fixture(scope="module")
def planted():
    return planted_world(0)


def test_the_planted_direction_is_supported(planted):
    verdict = verdict_on(planted, planted.concept)
    assert (verdict.verdict, verdict.reasons) == ("supported", ())
    assert "Supported" in verdict.sentence and "ranks a member above" in verdict.sentence


def test_a_random_direction_is_refuted(planted):
    vector = np.random.default_rng(5).standard_normal(len(planted.concept))
    assert verdict_on(planted, vector).verdict == "refuted"


def test_a_correlated_twin_is_not_supported(planted):
    verdict = verdict_on(planted, planted.world.directions[1])
    assert verdict.verdict == "refuted"
    assert not gates_of(verdict)["near_miss"]["passed"]


def test_two_meanings_are_not_one(planted):
    """A unit that also fires for a frequent other feature passes detection; firing on non-members stops it."""
    vector = planted.concept + planted.world.directions[2]
    gates = gates_of(verdict_on(planted, vector))
    assert gates["detection"]["passed"] and not gates["firing"]["passed"]
