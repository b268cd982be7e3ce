"""The verb `polysemy` and the page of neurons on units whose number of topics was written in."""

import numpy as np
import pytest

from app_atlas import record
from assay.app.documents import make_document
from assay.app.verbs import Report, run_verb
from assay.app.verbs.polysemy import _drawn
from assay.app.workspace import Workspace
from assay.atlas.mapped import MappedWriter, SetRecord
from assay.atlas.store import Atlas
from assay.errors import TaskError, UsageError
from assay.explain.records import Window

TOPICS = [[f"{topic}{word}" for word in range(6)] for topic in ("sea", "tax", "owl", "jam", "law", "sky", "ore", "gym")]
UNITS, CONTEXTS = 24, 24


def unit(place: int):
    """A third of the units has one topic, a third two, a third a topic for every context."""
    rng, kind = np.random.default_rng(place), place % 3
    own = rng.permutation(len(TOPICS))[:2]
    windows = []
    for number in range(CONTEXTS):
        topic = TOPICS[own[number % (kind + 1)]] if kind < 2 else [f"z{place}q{number}w{word}" for word in range(6)]
        words = [*rng.permutation(topic)[:5].tolist(), f"x{rng.integers(40)}"]
        pieces = tuple(f" {word}" for word in words)
        values = tuple(3.0 - number / 100 if at == 2 else 0.0 for at in range(6))
        windows.append(Window(tuple(range(6)), pieces, values, 2, f"document {number}", number, "top"))
    held = record(place)
    return held.__class__(**{**held.__dict__, "name": f"mlp_act.1.{place}", "contexts": tuple(windows), "neighbours": (),
                             "coactive": ()})  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("polysemy") / "atlas"
    about = SetRecord(model="made", model_digest="m" * 64, unit="neuron", site="mlp_act.1", corpus="made here", units=UNITS)
    with MappedWriter(Atlas(path), about) as writer:
        writer.add([unit(number) for number in range(UNITS)])
        writer.finish({})
    return path


def test_units_are_told_apart_by_their_topics_and_the_page_keeps_what_was_found(place):
    workspace = Workspace(place)
    found = run_verb(workspace, "polysemy", {"units": UNITS, "encoder": "tfidf"})
    concepts = {one["unit"]: one["concepts"] for one in found["record"]["units"]}
    kinds = [[concepts[f"mlp_act.1.{number}"] for number in range(UNITS) if number % 3 == kind] for kind in range(3)]
    assert len(concepts) == UNITS
    assert np.mean([one == 1 for one in kinds[0]]) >= 0.75, kinds
    assert np.mean([one == 2 for one in kinds[1]]) >= 0.75, kinds
    assert np.mean([one == 0 for one in kinds[2]]) >= 0.75, kinds
    shares = found["blocks"][0]["items"]
    assert sum(item["value"] for item in shares) == pytest.approx(1) and all(item["low"] < item["value"] < item["high"]
                                                                             for item in shares if item["value"])  # fmt: skip
    page = make_document(workspace, "neurons")
    kept = [block for block in page["blocks"] if block["id"].startswith("shares")]
    assert kept and kept[0]["items"] == shares  # type: ignore[typeddict-item]


def test_the_draw_is_that_of_its_seed(place):
    mapped = Workspace(place).mapped
    one, again, other = ([unit.name for unit in _drawn(mapped, mapped.set(), 6, seed, Report())] for seed in (3, 3, 4))
    assert one == again and one != other and len(set(one)) == 6


def test_too_few_units_and_wrong_arguments_are_named(place, tmp_path):
    with pytest.raises(UsageError, match="encoder"):
        run_verb(Workspace(place), "polysemy", {"encoder": "magic"})
    about = SetRecord(model="made", model_digest="m" * 64, unit="neuron", site="mlp_act.1", corpus="made here", units=3)
    with MappedWriter(Atlas(tmp_path / "few"), about) as writer:
        writer.add([unit(number) for number in range(3)])
        writer.finish({})
    with pytest.raises(TaskError, match="4 are needed"):
        run_verb(Workspace(tmp_path / "few"), "polysemy", {"encoder": "tfidf"})
