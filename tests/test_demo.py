"""The demo, as a newcomer runs it: a finding with both verdicts, a page, and an honest second run."""

import json
import re
import subprocess
import sys

import pytest

import assay_process
from assay.demo import choose_heads, wrong_heads
from assay.records import PatchResult

pytestmark = pytest.mark.whole


def demo(folder, *words):
    return subprocess.run([sys.executable, "-m", "assay", "demo", "--json", "out.json", *words],
                          cwd=folder, capture_output=True, text=True)  # fmt: skip


@pytest.mark.slow
def test_the_demo_tests_a_right_and_a_wrong_claim_and_keeps_what_is_finished(tmp_path):
    first = demo(tmp_path)
    assert first.returncode == 0, first.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    right, wrong = record["claims"]
    assert (right["verdict"], wrong["verdict"]) == ("supported", "refuted")
    assert len(record["unexplained"]) == 4 and all(0 <= share < 1 for share in record["unexplained"].values())
    assert {task["task"] for task in record["tasks"]} >= {"ioi", "induction", "sva", "capitals"}
    features = record["run"]["map"]["features"]
    decided = sum(features[how] for how in ("supported", "refuted", "inconclusive"))
    assert features["mapped"] == 256 and features["claimed"] == decided > 0
    assert record["ledger"]["stated"] == 2 + features["claimed"] and record["ledger"]["looks"] >= 9
    for part in ("What the model can do", "Which heads move it", "refuted", "does not show", "Still unexplained"):
        assert part in first.stdout
    page = (tmp_path / record["report"]).read_text()
    assert right["sentence"][:60] in page and "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert not any(record["run"]["cached"].values())

    again = demo(tmp_path)
    second = json.loads((tmp_path / "out.json").read_text())
    assert second["run"]["cached"].keys() == record["run"]["cached"].keys() and all(second["run"]["cached"].values())
    assert second["ledger"]["looks"] == record["ledger"]["looks"]  # what is kept is not looked at again
    assert [claim["claim"] for claim in second["claims"]] == [right["claim"], wrong["claim"]]
    assert [c["verdict"] for c in second["claims"]] == ["supported", "refuted"]
    assert second["ledger"]["tickets"] == record["ledger"]["tickets"] == 2 + features["claimed"]
    assert "assay app" in again.stdout
    assert "taken from the atlas, not measured again" in again.stdout
    assert assay_process.run("claim", "verify", cwd=tmp_path).returncode == 0


class Sites:
    """Just the sites of a model with 4 layers of 3 heads."""

    def sites(self, wanted):
        texts = [wanted] if isinstance(wanted, str) else wanted
        layers = range(4) if texts == ["z.*.*"] else [int(text.split(".")[1]) for text in texts]
        return [f"z.{layer}.{head}" for layer in layers for head in range(3)]


class Run:
    model, seed = Sites(), 0


def test_wrong_heads_are_in_the_same_layers_and_none_of_the_chosen():
    chosen = ["z.1.0", "z.1.2", "z.3.1"]
    wrong = wrong_heads(Run(), chosen)
    assert len(wrong) == 3 and not set(wrong) & set(chosen)
    assert {name.split(".")[1] for name in wrong} <= {"1", "3"}
    crowded = [f"z.{layer}.{head}" for layer in (0, 1) for head in (0, 1)]
    assert len(wrong_heads(Run(), crowded)) == 4  # two heads are left in these layers: the rest from elsewhere


def test_the_smallest_set_with_a_margin_is_chosen(monkeypatch):
    from contextlib import contextmanager

    import assay.demo as module

    sizes = []

    def effects(model, task, sites):
        sizes.append(len(sites))
        return {"necessity.mean": 0.2 * len(sites), "necessity.resample": 0.5, "sufficiency": 0.1 * len(sites)}

    monkeypatch.setattr(module, "set_effects", effects)
    monkeypatch.setattr(module, "prepare", lambda pairs, model: pairs)

    class Looking(Run):
        task = "ioi"

        @contextmanager
        def step(self, name, total=None):
            yield lambda n: None

        def once(self, step, what, task, measure):
            return measure()

    effect = [[0.5, -0.3, 0.1], [0.4, 0.0, 0.2]]
    heads = PatchResult({}, [4, 9], "heads", ["0", "1", "2"], effect, effect, effect, 1.0, 0.0, 4, {})
    assert choose_heads(Looking(), heads) == ["z.4.0", "z.9.0", "z.9.2"]
    assert sizes == [2, 3]
