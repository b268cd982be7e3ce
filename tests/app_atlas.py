"""A small real atlas for tests of the app: one tested claim, one stated, and two mapped sets whose numbers are made here.

Texts of the features hold markup and control characters: what shows them must treat them as text.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from assay.atlas.mapped import FeatureRecord, MappedWriter, SetRecord, histogram_of, quantiles_of
from assay.atlas.store import Atlas
from assay.evidence.run import Settings, state_claim, test_claim
from assay.evidence.source import Source
from assay.explain.records import Explanation, Score, Window
from assay.testing import planted_induction
from planted_task import write_task

HOSTILE = "<img src=x onerror=alert(1)>"
SMALL = Settings(tune=16, confirm=32, ood=24, draws=4, control_pairs=1)
N = 30
SUMMARY = {"unexplained": {"active_latents": 0.75, "variance": {"share": 0.4, "low": 0.3, "high": 0.5}, "tokens": 0.9},
           "shares": {"active_latents": 0.25, "variance": 0.6, "tokens": 0.1},
           "scores": {"detection": {"value": 0.8, "shuffled": 0.5, "untrained": 0.6}}}  # fmt: skip


@dataclass(frozen=True)
class AppAtlas:
    """Where it is, its model, ids of the tested and the stated claim, the newest set, and an older one of a tuned copy."""

    path: Path
    model: Any
    tested: str
    stated: str
    set: str
    older: str


_SHARED: list[AppAtlas] = []


def shared_app_atlas(factory: Any) -> AppAtlas:
    """The atlas of this test run, made once. It is for reading; who changes it works on a copy."""
    if not _SHARED:
        _SHARED.append(make_app_atlas(factory.mktemp("app")))
    return _SHARED[0]


def make_app_atlas(folder: Path) -> AppAtlas:
    """State two claims, test one, and write the mapped sets."""
    store, model = Atlas(folder / "atlas"), planted_induction()
    source = Source(str(write_task(folder / "task.jsonl")))
    tested, _ = state_claim(store, model, source, "z.0.1", settings=SMALL)
    test_claim(store, tested.id, model)
    stated, _ = state_claim(store, model, source, "z.1.0", settings=SMALL)
    about = SetRecord(model=model.name, model_digest=model.digest, unit="latent", site="resid_post.1", corpus="made here",
                      dictionary="tiny", dictionary_digest="d" * 64, units=N, tokens=10_000, created="2026-01-01")  # fmt: skip
    records = [record(place, tested.id if place == 3 else "") for place in range(N)]
    older = replace(about, model="tuned", model_digest="e" * 64, created="2025-12-31", units=N - 5)
    with MappedWriter(store, about) as writer:
        writer.add(records)
        writer.finish(SUMMARY)
    with MappedWriter(store, older) as writer:
        writer.add([replace(each, claims=(), density=each.density * (1 + (each.index == 1))) for each in records[: N - 5]])
        writer.finish({})
    return AppAtlas(folder / "atlas", model, tested.id, stated.id, about.id, older.id)


def record(place: int, claim: str = "") -> FeatureRecord:
    """Feature `place`: even ones have an explanation."""
    rng = np.random.default_rng(place)
    values = rng.gamma(2.0, 1.0, 200)
    name = f"latent.tiny.{place}"
    said = (Explanation(name, f"fires on the word w{place} {HOSTILE}", "lexical/1"),) if place % 2 == 0 else ()
    scores = (Score(name, "lexical/1", "detection", 0.5 + place / 100, 0.5, 40, 2, 0.45 + place / 100, 0.55 + place / 100,
                    shuffled=0.5, untrained=0.55),) if said else ()  # fmt: skip
    whys = (*("top",) * 9, "quantile", "random", "coactive", "other")
    windows = [window(place, number, why) for number, why in enumerate(whys)]
    return FeatureRecord(
        name=name, index=place, density=0.001 * (place + 1), largest=float(values.max()), fired=200,
        histogram=histogram_of(values), quantiles=quantiles_of(values), promoted=((" yes", 1.5), (HOSTILE, 0.5)),
        suppressed=((" no", -1.0),), spread={"neurons": 5.0 + place}, top_tokens=((f" w{place}", 0.8),),
        neighbours=((f"latent.tiny.{(place + 1) % N}", 0.9),), coactive=((f"latent.tiny.{(place + 2) % N}", 0.4),),
        explanations=said, scores=scores, contexts=tuple(windows), claims=(claim,) if claim else (),
        why_not="" if said else "no rule found",
    )  # fmt: skip


def window(place: int, number: int, why: str) -> Window:
    """A window of eight tokens; it is on at the middle one where `why` says so."""
    on = why in ("top", "quantile", "random")
    pieces = (" the", HOSTILE, "\x07", " of", f" w{place}", "\n", " and", f" n{number}")
    values = tuple(2.0 + number / 10 if on and at == 4 else 0.0 for at in range(8))
    return Window(tuple(range(8)), pieces, values, 4, f"document {number}", 40 + number, why)
