"""Drift while serving: of the part that is judged; once found, for all runs of a log until the monitor is calibrated again."""

from dataclasses import replace

import numpy as np
import pytest

from assay.errors import TamperedError, UsageError
from assay.monitor.calibrate import calibrate
from assay.monitor.drift import baseline
from assay.monitor.files import load_monitor, save_monitor
from assay.monitor.talks import texts_as_talks
from assay.permissions import LOG
from assay.serving import watch as watch_module
from assay.serving.drifted import as_left, identity
from assay.serving.start import start
from assay.serving.watch import WINDOW, Armed, Watch
from assay.serving.worker import Settings
from serving_server import SITE, events, monitor, serving
from test_serving_load import prompts

pytestmark = pytest.mark.whole

BENIGN = 77  # prompts that differ
COMPLETIONS = "/v1/completions"


class Hand:
    """A model is not needed."""

    digest = tokenizer_digest = "x"
    dtype, dims = "float32", type("d", (), {"d_model": 3})
    tokenizer = None


@pytest.fixture(scope="module")
def armed(glass):
    """A monitor that was calibrated on prompts alone."""
    return calibrate(monitor(glass), glass, texts_as_talks(glass, prompts(BENIGN)), 0.05, ("reply",))


@pytest.mark.parametrize("judge, prompt, reply, drifted", [
    (("prompt",), 0.0, 3.0, False), (("prompt",), 1.5, 0.0, True),
    (("reply",), 3.0, 0.0, False), (("reply",), 0.0, 1.5, True), (("prompt", "reply"), 3.0, 0.0, False),
    (("prompt", "reply"), 0.0, 1.5, True),
])  # fmt: skip
def test_drift_is_looked_for_in_the_part_that_is_judged(judge, prompt, reply, drifted):
    """Parts of three tokens; `prompt`, `reply`: how far they are from those of the calibration."""
    made, random = monitor(Hand(), reply=1e6), np.random.default_rng(1)  # type: ignore[arg-type]
    weight = made.heads[0].weight
    known = random.normal(size=(300, 3, 3)).mean(1)
    one = Armed(replace(made, baseline=baseline(known @ weight, known, SITE)), "calibrated")
    for at in range(WINDOW):
        watch = Watch([one], ("reply",), judge, 6, opening=3)  # of the prompt's tokens 3, 4 and 5 are judged
        said = random.normal(size=(5, 3)) + prompt
        said[:2] = 100.0  # what the template writes
        watch.prompts(0, said @ weight, said)
        for position, token in enumerate(random.normal(size=(3, 3)) + reply, 6):
            watch.token(0, float(token @ weight), position, token)
        watch.end(0, 8)
        changed = watch.count(0)
        assert (changed is not None) == (drifted and at == WINDOW - 1)
    assert one.calibrated != drifted


def test_a_prompt_counts_once_whatever_the_choices_and_without_a_reply(glass, armed, tmp_path):
    with serving(glass, [armed], tmp_path, Settings(judge=("prompt",))) as server:
        (one,) = server.service.worker.readers.armed
        body = {"model": "glass-en", "prompt": prompts(2), "max_tokens": 2, "n": 4}
        assert len(server.post(COMPLETIONS, json=body).json()["choices"]) == 8 and len(one.scores) == 2
        scored = server.events("end")[0]["monitors"][0]["units"]["prompt"]["score"]
        assert one.scores[0] == pytest.approx(scored, rel=1e-4)
    watch = Watch([one], ("reply",), ("prompt",), 3)
    watch.prompts(0, np.zeros(2), np.zeros((2, glass.dims.d_model)))
    assert watch.count(0) is None and len(one.scores) == 3


def test_a_monitor_of_prompts_stays_armed_and_a_drift_outlives_the_server(glass, armed, tmp_path, monkeypatch):
    """Prompts like those of the calibration. Where they are judged, nothing drifts; replies are something else."""
    monkeypatch.setattr(watch_module, "WINDOW", 40)
    drawn = np.random.default_rng(1).permutation(prompts(BENIGN))[:40].tolist()

    def ask(server):
        for at in range(0, 40, 8):
            body = {"model": "glass-en", "prompt": drawn[at : at + 8], "max_tokens": 8, "temperature": 0}
            assert server.post(COMPLETIONS, json=body).is_success
        return server.service.worker.readers.armed[0].state

    with serving(glass, [armed], tmp_path, Settings(judge=("prompt",))) as server:
        assert ask(server) == "calibrated" and not server.events("state")
    with serving(glass, [armed], tmp_path) as server:
        state = ask(server)
        assert state.startswith("uncalibrated: drift in ")
    (event,) = events(tmp_path, "state")
    assert (event["digest"], event["state"]) == (identity(armed), state) and event["drifted"] in state
    file = save_monitor(armed, tmp_path / "m.safetensors")
    renamed = replace(load_monitor(file, glass), name="another", card={**armed.card, "evasion": {}})
    with serving(glass, [renamed], tmp_path) as server:  # another run, from the file
        assert server.service.worker.readers.armed[0].state == state
        (choice,) = server.post("/v1/chat/completions", json=server.body()).json()["choices"]
        assert choice["assay"]["monitors"][0]["state"] == state
    assert [each["monitors"][0]["state"] for each in events(tmp_path, "server started")] == ["calibrated"] * 2 + [state]
    with pytest.raises(UsageError, match="drift in .*so it cannot block"):
        start(glass, [renamed], tmp_path, Settings("block"))
    assert as_left([armed], tmp_path / "another log")[0].state(glass) == "calibrated"
    other = calibrate(renamed, glass, texts_as_talks(glass, prompts(BENIGN)), 0.1, ("reply",))
    assert identity(other) != identity(armed) and as_left([other], tmp_path)[0].state(glass) == "calibrated"


def test_a_monitor_is_told_by_what_it_is(glass, armed, tmp_path):
    again = load_monitor(save_monitor(armed, tmp_path / "m.safetensors"), glass)
    assert identity(again) == identity(armed) == identity(replace(armed, drifted="drift", name="b", card={}))
    (head,) = armed.heads
    for other in (replace(armed, bound={**armed.bound, "benign": "other texts"}), replace(armed, thresholds={}),
                  replace(armed, bound={**armed.bound, "expires": "2999-01-02T00:00:00+00:00"}),
                  replace(armed, heads=(replace(head, weight=1.01 * head.weight),)), replace(armed, baseline=None)):
        assert identity(other) != identity(armed)


def test_lines_of_the_log_that_are_none_are_told_and_half_ones_left_out(armed, tmp_path):
    (tmp_path / LOG).write_bytes(b'{"text":"\\"drifted\\":"}\n{"half":{"drifted":')
    assert as_left([armed], tmp_path)[0].drifted == ""  # as a text holds the word, and a writer that was killed leaves it
    (tmp_path / LOG).write_bytes(b'{"body":{"events":[{"drifted":1}]}}\n')
    with pytest.raises(TamperedError, match="line 1 is no entry"):
        as_left([armed], tmp_path)
