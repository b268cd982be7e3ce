"""Ray workers and one process: the same bytes, through kills; object stores; nothing done twice."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import map_world
from assay.atlas import mapped
from assay.atlas.store import Atlas
from assay.cli.main import cli
from assay.errors import StoreError, UsageError
from assay.features import spliced, sums
from assay.features.dictionary import Spec, make_dictionary
from assay.features.encode import encode_shards, read_codes
from assay.features.engines import HERE, Where, opened_there, opener_at
from assay.features.evaluate import EvaluationPlan, evaluate
from assay.features.harvest import HarvestPlan, harvest
from assay.features.held_out import HeldOut
from assay.features.kept import save
from assay.features.shards import Shards, open_shard, read_tensors
from assay.files import folder_of, names_in, size_of
from assay.mapping.run import MapPlan, MapRun, run_map
from assay.mapping.units import find_units
from assay.model.model import Model
from assay.scale import ray_engine
from assay.scale.ray_engine import AHEAD, TRIES, RayEngine, engine_of, room
from test_harvest import Given, command, model_with_words, on_disk, shards_in, some_texts  # noqa: F401

SITES = ["resid_post.1", "mlp_out.2"]
LOGITS = 200 * 64  # of a batch: 64 tokens at a time
HASTY = f"""
from assay.cli.main import main
from assay.features import spliced, sums
spliced.LOGITS, sums.EVERY = {LOGITS}, 0.0
main()
"""
PLAN = HarvestPlan(context=16, shard_tokens=100)
pytestmark = pytest.mark.whole


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path_factory.mktemp("own")))


@pytest.fixture(scope="module")
def cluster():
    """Two processors for all tests here."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield RayEngine(threads=1)
    ray.shutdown()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model, a corpus, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("whole")
    os.environ["ASSAY_CACHE"] = str(folder / "cache")
    model, corpus = model_with_words(), Given(some_texts(3, 120))
    return model, corpus, harvest(model, corpus, SITES, folder / "acts", PLAN)


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[sc]*-*.safetensors"))}


def told(manifest):
    return {name: value for name, value in manifest.items() if name != "made_with"}


def small_dictionary():
    torch.manual_seed(0)
    made = make_dictionary(Spec("topk", 64, 32, 32, 4, ("resid_post.1",), ("resid_post.1",)), "small")
    with torch.no_grad():
        made.W_enc.normal_()
    return made


# the same bytes ----------------------------------------------------------------------------------


def test_two_workers_and_one_process_write_the_same_shards_and_codes(cluster, whole, tmp_path):
    model, corpus, one = whole
    done: list[int] = []
    many = harvest(model, corpus, SITES, tmp_path / "acts", PLAN, lambda stage, n, of: done.append(n), cluster)
    assert len(one.manifest["shards"]) > 10 and files_in(many.folder) == files_in(one.folder)
    assert told(many.manifest) == told(one.manifest)
    assert sum(done) >= many.manifest["tokens"]
    here = encode_shards(small_dictionary(), Shards(one.folder), tmp_path / "here", 150)
    there = encode_shards(small_dictionary(), Shards(many.folder), tmp_path / "there", 150, engine=cluster)
    assert here == there and len(here["parts"]) > 5
    assert files_in(tmp_path / "here") == files_in(tmp_path / "there")


def test_codes_that_a_killed_run_finished_are_taken_up(whole, tmp_path):
    model, corpus, one = whole
    wanted = encode_shards(small_dictionary(), Shards(one.folder), tmp_path, 150)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("codes-*")}
    record = json.loads((tmp_path / "codes.json").read_text())
    (tmp_path / "codes.json").write_text(json.dumps({**record, "parts": record["parts"][:1], "done": False}))
    (tmp_path / record["parts"][3]["file"]).write_bytes(b"torn")
    assert encode_shards(small_dictionary(), Shards(one.folder), tmp_path, 150) == wanted
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("codes-*")}
    assert [name for name in after if after[name] != before[name]] == [record["parts"][3]["file"]]
    assert sum(len(part.tokens) for part in read_codes(tmp_path)) == one.manifest["tokens"]


def test_codes_that_went_missing_are_made_again(whole, tmp_path):
    one = whole[2]
    wanted = encode_shards(small_dictionary(), Shards(one.folder), tmp_path, 150)
    (tmp_path / wanted["parts"][2]["file"]).unlink()
    (tmp_path / wanted["parts"][4]["file"]).write_bytes(b"short")
    assert encode_shards(small_dictionary(), Shards(one.folder), tmp_path, 150) == wanted
    assert sum(len(part.tokens) for part in read_codes(tmp_path)) == one.manifest["tokens"]


def test_a_dictionary_that_reads_texts_begins_anew_with_each(whole, tmp_path):
    shards = Shards(whole[2].folder)
    options = {"heads": 2, "bottleneck": 8}
    dictionary = make_dictionary(Spec("temporal", 64, 32, 32, 4, ("resid_post.1",), ("resid_post.1",), options=options))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in dictionary.parameters():
            value.normal_()
    encode_shards(dictionary, shards, tmp_path, 150)
    parts = [dense for part in read_codes(tmp_path) for dense in part.codes.dense().split(part.lengths.tolist())]
    texts = list(shards.rows())
    assert len(parts) == len(texts) > 20
    for text, found in zip(texts, parts, strict=True):
        alone = dictionary.encode(text.values["resid_post.1"].float())
        assert torch.allclose(found[text.positions > 0], alone[text.positions > 0], rtol=1e-3, atol=1e-3)  # kept as fp16


ENCODES = """
import sys
from pathlib import Path
from assay.features.encode import encode_shards
from assay.features.kept import load
from assay.features.shards import Shards
from assay.scale.ray_engine import RayEngine
encode_shards(load(Path(sys.argv[1])), Shards(sys.argv[2]), sys.argv[3], 50, engine=RayEngine(workers=2, threads=1))
"""


def told_by(process):
    """What it wrote to stderr, but that a busy machine is slow to start workers."""
    return [line for line in process.communicate()[1].splitlines() if "workers have started" not in line]


def test_codes_whose_driver_is_killed_are_gone_on_with(whole, tmp_path):
    model, corpus, one = whole
    save(small_dictionary(), tmp_path / "small")
    out = tmp_path / "codes"
    process = subprocess.Popen([sys.executable, "-c", ENCODES, str(tmp_path / "small"), str(one.folder), str(out)],
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True)  # fmt: skip
    while process.poll() is None and len(list(out.glob("codes-*"))) < 6:
        time.sleep(0.001)
    process.kill()
    assert told_by(process) == [] and process.returncode == -signal.SIGKILL
    time.sleep(2)  # workers without a driver end by themselves
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("codes-*")}
    torch.set_num_threads(1)
    found = encode_shards(small_dictionary(), Shards(one.folder), out, 50)
    assert 6 <= len(before) < len(found["parts"])
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert found == encode_shards(small_dictionary(), Shards(one.folder), tmp_path / "whole", 50)
    assert files_in(out) == files_in(tmp_path / "whole")


def test_two_workers_and_one_process_evaluate_alike(cluster, whole):
    model, _, one = whole
    texts = list(Shards(one.folder).rows())
    held = HeldOut.of([text.tokens.tolist() for text in texts], [text.name for text in texts])
    plan = EvaluationPlan(batch=200, loss_tokens=600)
    dictionary = small_dictionary()
    here = evaluate(dictionary, held, model, plan)
    there = evaluate(dictionary, held, model, plan, engine=cluster)
    assert here.json() == there.json() and here.of()["CE"].value > 0 and here.tokens > 5 * plan.batch


def test_a_killed_evaluation_goes_on_to_the_same_numbers(on_disk, tmp_path, monkeypatch):  # noqa: F811
    """Its driver is killed while a control is trained and while workers read: what was kept is not made again."""
    environment = {**os.environ, "ASSAY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    save(small_dictionary(), tmp_path / "small")
    settings = {"--tokens": "6000", "--context": "16", "--loss-tokens": "4000", "--control-tokens": "60000"}
    what = ["eval", str(tmp_path / "small"), "--model", str(on_disk / "model"), "--corpus", str(on_disk / "corpus.jsonl")]
    arguments = ["dictionary", *what, *itertools.chain(*settings.items()), "--quiet", "--atlas"]
    kept, marks = tmp_path / "killed" / "evaluating", []
    for file in ("frozen-decoder/dictionary.json", "moments.safetensors", "scores.safetensors"):
        started = [sys.executable, "-c", HASTY, *arguments, str(tmp_path / "killed"), "--engine", "ray"]
        process = subprocess.Popen(started, env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not list(kept.glob(f"*/{file}")):
            time.sleep(0.002)
        process.kill()
        assert told_by(process) == [] and process.returncode == -signal.SIGKILL
        marks.append({path: path.stat().st_mtime_ns for path in kept.glob("*/*/dictionary.json")})
        time.sleep(2)  # workers without a driver end by themselves
    assert len(marks[0]) == 1 and len(marks[2]) == 2 and marks[0].items() <= marks[1].items() == marks[2].items()
    torch.set_num_threads(1)
    monkeypatch.setattr(spliced, "LOGITS", LOGITS)
    told = []
    for place in ("killed", "whole"):
        words = [*arguments, str(tmp_path / place), "--json", str(tmp_path / f"{place}.json")]
        assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
        told.append(json.loads((tmp_path / f"{place}.json").read_text()))
        assert not list((tmp_path / place / "evaluating").iterdir())
    assert told[0] == told[1] and told[0]["typical"] > 8 * 64


def test_what_another_evaluation_kept_is_not_taken_up(on_disk, tmp_path, monkeypatch):  # noqa: F811
    """Stopped with a control and begun again without it: nothing of the first is in the way."""
    monkeypatch.setattr(sums, "EVERY", 0.0)
    monkeypatch.setattr(spliced, "LOGITS", LOGITS)
    save(small_dictionary(), tmp_path / "small")
    arguments = ["dictionary", "eval", str(tmp_path / "small"), "--model", str(on_disk / "model"), "--corpus",
                 str(on_disk / "corpus.jsonl"), "--tokens", "300", "--context", "16", "--loss-tokens", "100", "--no-untrained",
                 "--control-tokens", "4096", "--quiet", "--atlas", str(tmp_path / "atlas")]  # fmt: skip
    plain = sums.KeptSums.keep

    def stopped(kept, found, batches, last=False):
        plain(kept, found, batches, last)
        if batches == 2:
            raise UsageError("enough")

    monkeypatch.setattr(sums.KeptSums, "keep", stopped)
    with pytest.raises(UsageError, match="enough"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    monkeypatch.setattr(sums.KeptSums, "keep", plain)
    assert CliRunner().invoke(cli, [*arguments, "--no-frozen"], catch_exceptions=False).exit_code == 0
    assert len(list((tmp_path / "atlas" / "evaluating").iterdir())) == 1
    assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    assert not list((tmp_path / "atlas" / "evaluating").iterdir())


# killed workers ----------------------------------------------------------------------------------


def test_a_killed_worker_loses_only_the_job_it_was_at(cluster, tmp_path):
    def make():
        def work(job):
            if job == 5 and not (tmp_path / "died").exists():
                (tmp_path / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if not (tmp_path / f"done{job}").exists():  # as makers of shards do: an answer may be lost, a file is not
                (tmp_path / f"done{job}").touch()
                with open(tmp_path / "log", "a") as log:
                    log.write(f"{job}\n")
            return job * job

        return work

    assert sorted(cluster.run(make, range(12))) == [job * job for job in range(12)]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(12))
    assert (tmp_path / "died").exists()


def test_a_job_that_kills_every_worker_ends_the_run_with_its_number(cluster, tmp_path, monkeypatch):
    tries = TRIES - 1  # a death less than else: each takes a process to start
    monkeypatch.setattr(ray_engine, "TRIES", tries)

    def make():
        def work(job):
            if job == 3:
                with open(tmp_path / "deaths", "a") as log:
                    log.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return job

        return work

    with pytest.raises(StoreError, match=f"job 3: {tries} workers died"):
        list(cluster.run(make, range(6)))
    deaths = (tmp_path / "deaths").read_text()  # the first may be put on a job just done; then it is alone
    assert len(deaths) in (tries, tries + 1)


def test_what_a_job_raises_and_back_pressure(cluster):
    taken: list[int] = []

    def jobs():
        for number in range(20):
            taken.append(number)
            yield number

    def make():
        def work(job):
            if job == 12:
                raise UsageError("job twelve: not this one.")
            return job

        return work

    results = cluster.run(make, jobs())
    for finished in range(1, 6):
        next(results)
        assert len(taken) <= 2 * AHEAD + finished
    with pytest.raises(UsageError, match="job twelve"):
        list(results)


def test_a_harvest_whose_worker_is_killed_has_the_same_bytes(cluster, whole, tmp_path):
    model, corpus, one = whole
    parts = (model.hf, model.tokenizer, model.name, model.source, model.prepend_bos, model.bos_id)
    out, marker = tmp_path / "acts", tmp_path / "died"

    def opener():
        def end():
            while len(list(out.glob("shard-*"))) < 4:
                time.sleep(0.002)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=end, daemon=True).start()
        return Model(*parts)

    many = harvest(model, corpus, SITES, out, PLAN, engine=cluster, opener=opener)
    assert marker.exists() and files_in(out) == files_in(one.folder) and told(many.manifest) == told(one.manifest)
    again = harvest(model, corpus, SITES, out, PLAN)
    assert again.resumed == len(again.manifest["shards"])


def test_a_worker_with_another_model_is_refused(whole):
    model, _, _ = whole
    with pytest.raises(UsageError, match="the files differ"):
        opened_there(lambda: model_with_words("qwen2"), model.digest)


def test_a_killed_driver_leaves_shards_that_the_next_run_takes_up(on_disk, tmp_path):  # noqa: F811
    elsewhere = "127.0.0.1:1"  # --engine ray is a cluster of its own, whatever others there are
    environment = {**os.environ, "ASSAY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": elsewhere}
    out = tmp_path / "acts"
    process = subprocess.Popen([*command(on_disk, out), "--engine", "ray"], env=environment, stderr=subprocess.PIPE)
    while process.poll() is None and len(shards_in(out)) < 8:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(2)  # workers without a driver end by themselves
    before = {path.name: path.stat().st_mtime_ns for path in shards_in(out)}
    assert len(before) >= 8 and json.loads((out / "manifest.json").read_text())["status"] == "running"
    torch.set_num_threads(1)  # as the run that was killed
    for place in (out, tmp_path / "whole"):
        arguments = [*command(on_disk, place)[3:], "--json", str(tmp_path / f"{place.name}.json")]
        assert CliRunner().invoke(cli, arguments, catch_exceptions=False).exit_code == 0
    assert json.loads((tmp_path / "acts.json").read_text())["resumed"] == len(before)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert files_in(out) == files_in(tmp_path / "whole")


def test_workers_get_a_cache_that_does_not_depend_on_their_folder(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASSAY_CACHE", "own")
    assert list(cluster.run(lambda: lambda job: os.environ["ASSAY_CACHE"], [1])) == [str(tmp_path / "own")]


def test_engines_that_are_none():
    assert engine_of(None) is None
    for text in ("spark", "ray:/x"):
        with pytest.raises(UsageError, match="--engine"):
            engine_of(text)
    with pytest.raises(UsageError, match="--workers"):
        engine_of(None, workers=2)


def test_more_workers_than_fit_are_refused(cluster):
    with pytest.raises(UsageError, match=r"--workers: got 3; allowed: 1 to 2"):
        next(RayEngine(workers=3, threads=1).run(lambda: abs, [1]))


def test_workers_fit_machine_by_machine():
    machines = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 4.0}, {"GPU": 1.0}]
    assert [room(machines, threads) for threads in (1, 2, 3, 4)] == [6, 2, 2, 0]
    assert room(machines, 1, gpus=1) == 3 and room(machines, 2, gpus=1) == 1


def test_jobs_go_to_workers_that_started_and_waiting_is_told(cluster, monkeypatch):
    """The processors are another's, who gives back one."""
    import ray

    monkeypatch.setattr(ray_engine, "PATIENCE", 0.2)
    list(cluster.run(lambda: abs, range(8)))
    assert len(cluster.crew) == 2
    said: list[str] = []

    def note(text):
        said.append(text)
        ray.kill(cluster.crew.pop())

    late = RayEngine(threads=1, workers=2, note=note)
    assert sorted(late.run(lambda: abs, range(8))) == list(range(8))
    assert len(said) == 1 and said[0].startswith("0 of 2 workers have started")
    for worker in late.crew:
        ray.kill(worker)


def test_relative_paths_are_the_drivers(cluster, whole, on_disk, tmp_path, monkeypatch):  # noqa: F811
    """Workers are in another folder: harvest, encode, eval and map name theirs whole."""
    import ray

    for worker in cluster.crew:  # they hold the processors
        ray.kill(worker)
    cluster.crew.clear()
    torch.set_num_threads(1)
    for name in ("model", "corpus.jsonl"):
        (tmp_path / name).symlink_to(on_disk / name)
    save(small_dictionary(), tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    run = lambda *words: CliRunner().invoke(cli, [*words, "--engine", "ray", "--quiet"], catch_exceptions=False)  # noqa: E731
    harvested = run("harvest", "model", "corpus.jsonl", "--site", "resid_post.1", "--tokens", "800", "--context", "16",
                    "--shard-tokens", "200", "--out", "acts")  # fmt: skip
    assert harvested.exit_code == 0 and len(files_in(tmp_path / "acts")) > 2
    assert run("dictionary", "encode", "small", "acts", "--out", "codes").exit_code == 0
    assert sum(len(part.tokens) for part in read_codes(tmp_path / "codes")) == Shards(tmp_path / "acts").all_tokens
    judged = run("dictionary", "eval", "small", "--model", "model", "--corpus", "corpus.jsonl", "--tokens", "300",
                 "--context", "16", "--loss-tokens", "100", "--no-frozen", "--no-untrained")  # fmt: skip
    assert judged.exit_code == 0, judged.output
    opened: list[Any] = []

    def enough(run):
        opened.append(run.where.opener)
        raise UsageError("enough")

    monkeypatch.setattr("assay.mapping.run.run_map", enough)
    with pytest.raises(UsageError, match="enough"):
        run("map", "model", "--site", "mlp_act.1", "--corpus", "corpus.jsonl")
    assert opened[0].args == (str(tmp_path / "model"),)


def test_names_that_are_no_paths_stay_names(tmp_path, monkeypatch):
    (tmp_path / "glass-en").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [opener_at(name).args for name in ("glass-en", "some/model")] == [("glass-en",), ("some/model",)]


# maps --------------------------------------------------------------------------------------------


KINDS = (".json", ".safetensors")
CODES = "codes-*.safetensors"


def lengths(texts):
    """In place of a sentence encoder."""
    return np.array([[len(text), 1.0] for text in texts], np.float32) / 99


def map_of(folder, where, report=None):
    """The planted map, and the bytes of all that was read, explained and scored for it."""
    model = map_world.model()
    corpora = {"corpus": map_world.corpus(), "ood": map_world.corpus(1, 80, name="other")}
    plan = MapPlan(**corpora, tokens=8000, context=32, baseline=4, features=24)
    units = find_units(model, dictionary=map_world.dictionary(model))
    run = MapRun(model, units, Atlas(folder), plan, report=report, where=where)
    found = run_map(run)
    kept = {path.relative_to(run.folder).as_posix(): path for path in run.folder.rglob("*.*") if path.suffix in KINDS}
    told = {name: found[name] for name in ("features", "shares", "scores", "not_claimed", "reasons", "unexplained", "dropped")}
    tested = {claim.statement: run.atlas.verdict(claim.id) for claim in run.atlas.claims()}
    verdicts = {words: (verdict.verdict, verdict.decision["p"], verdict.decision["reads"]) for words, verdict in tested.items()}
    return {name: path.read_bytes() for name, path in kept.items() if path.name != "stages.json"}, told, verdicts


def test_a_map_by_workers_one_of_them_killed_is_that_of_one_process(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "packaged_encoder", lambda: lengths)
    torch.set_num_threads(1)
    marker = tmp_path / "died"

    def opener():
        def end():
            while len(list((tmp_path / "many").rglob("codes-*"))) < 2:
                time.sleep(0.002)
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        from assay.testing.word_latents import word_model

        threading.Thread(target=end, daemon=True).start()
        return word_model()

    files, told, verdicts = map_of(tmp_path / "one", HERE)
    assert len([name for name in files if "codes-" in name]) > 10 and told["features"]["supported"] > 0
    again, told_again, verdicts_again = map_of(tmp_path / "many", Where(cluster, opener))
    assert marker.exists() and files.keys() == again.keys()
    assert [name for name in files if files[name] != again[name]] == []
    assert (told_again, verdicts_again) == (told, verdicts)


CHILD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
import test_scale
from assay.atlas import mapped
from assay.features.engines import Where
from assay.scale.ray_engine import RayEngine
from assay.testing.word_latents import word_model
torch.set_num_threads(1)
mapped.packaged_encoder = lambda: test_scale.lengths
say = lambda what, done, total: print(what, done, flush=True)
test_scale.map_of(sys.argv[1], Where(RayEngine(workers=2, threads=1), word_model), say)
"""


def test_a_map_whose_driver_is_killed_goes_on_and_is_that_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "packaged_encoder", lambda: lengths)
    torch.set_num_threads(1)
    kept = []
    for stop in ("reading", "scoring"):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "many")], stdout=subprocess.PIPE, text=True,
                                 env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
        assert child.stdout is not None
        read = (tmp_path / "many").rglob
        assert any(line.startswith(stop) and len([*read(CODES)]) > 1 for line in child.stdout), stop
        child.kill()
        child.wait()
        assert child.returncode == -signal.SIGKILL
        time.sleep(2)  # workers without a driver end by themselves
        files = sorted(read(CODES))
        if stop == "reading":
            files.pop().unlink()  # workers may have been faster than the kill: then too, something is left to read
        kept.append({path: path.stat().st_mtime_ns for path in files})
    assert kept[0] and kept[0].items() < kept[1].items()  # what was read is not read again
    again = map_of(tmp_path / "many", HERE)
    assert {path: path.stat().st_mtime_ns for path in kept[1]} == kept[1]
    assert again == map_of(tmp_path / "one", HERE)


# object stores -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    """A bucket of an S3 server on loopback."""
    from moto import server

    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    patch = pytest.MonkeyPatch()
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys}.items():
        patch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem().mkdir("acts")
    yield "s3://acts"
    patch.undo()
    running.stop()


def test_shards_and_codes_in_a_bucket_are_those_on_disk(bucket, whole, tmp_path):
    import s3fs

    model, corpus, one = whole
    place = f"{bucket}/one"
    found = harvest(model, corpus, SITES, place, PLAN)
    store = s3fs.S3FileSystem(use_listings_cache=False)
    kept = {path.rsplit("/", 1)[1]: store.cat(path) for path in store.ls("acts/one")}
    manifest = json.loads(kept.pop("manifest.json"))
    assert kept == files_in(one.folder) and told(manifest) == told(one.manifest)
    pairs = itertools.islice(zip(Shards(place).batches(32), Shards(one.folder).batches(32)), 10)
    assert all(torch.equal(a[site], b[site]) for a, b in pairs for site in SITES)
    here = encode_shards(small_dictionary(), Shards(one.folder), tmp_path, 150)
    assert encode_shards(small_dictionary(), Shards(place), f"{bucket}/codes", 150) == here
    assert all(torch.equal(a.tokens, b.tokens) and torch.equal(a.codes.values, b.codes.values)
               for a, b in zip(read_codes(f"{bucket}/codes"), read_codes(tmp_path), strict=True))  # fmt: skip
    # as after a kill: two shards gone, one not in the manifest, one damaged
    names = sorted(kept)
    store.rm(f"acts/one/{names[1]}")
    store.pipe(f"acts/one/{names[2]}", b"short")
    cut = {**manifest, "status": "running", "shards": manifest["shards"][:-1], "massive": {}}
    store.pipe("acts/one/manifest.json", json.dumps(cut).encode())
    again = harvest(model, corpus, SITES, place, PLAN)
    assert again.resumed == len(names) - 2 and told(again.manifest) == told(one.manifest)
    assert {name: store.cat(f"acts/one/{name}") for name in names} == files_in(one.folder)
    with pytest.raises(UsageError, match="another harvest"):
        harvest(model, corpus, ["resid_post.0"], place, PLAN)
    store.pipe(f"acts/one/{names[0]}", bytes(len(kept[names[0]])))
    with pytest.raises(StoreError, match="damaged"):
        next(Shards(place).batches(32))
    assert found.manifest["status"] == "done"


def test_ray_workers_write_to_a_bucket(bucket, cluster, whole):
    model, corpus, one = whole
    found = harvest(model, corpus, SITES, f"{bucket}/many", PLAN, engine=cluster)
    assert told(found.manifest) == told(one.manifest)


@pytest.fixture
def no_keys(bucket, monkeypatch):
    """An environment in which no client finds any; clients keep theirs, so none is used again."""
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    files = dict.fromkeys(("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"), "/dev/null")
    for name, value in {**files, "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield bucket
    s3fs.S3FileSystem.clear_instance_cache()


def told_of(place, whole):
    """What reading there says, in four ways."""
    model, corpus, _ = whole
    train = ["dictionary", "train", place, "--width", "64"]
    for way in (lambda: harvest(model, corpus, SITES, place, PLAN), lambda: Shards(place), lambda: next(read_codes(place)),
                lambda: CliRunner().invoke(cli, train, catch_exceptions=False)):  # fmt: skip
        with pytest.raises(StoreError) as caught:
            way()
        yield str(caught.value)


def test_a_store_without_keys_is_told_with_the_place_and_what_to_check(no_keys, whole):
    for said in told_of(f"{no_keys}/one", whole):
        assert said.startswith(f"{no_keys}/one/") and "credentials" in said and said.endswith("the keys and the address.")


def test_a_store_that_does_not_answer_is_told_with_the_place_and_what_to_check(no_keys, whole, monkeypatch):
    import s3fs

    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"http://127.0.0.1:{taken.getsockname()[1]}"
    for name, value in {"AWS_ENDPOINT_URL": dead, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for said in told_of("s3://acts/one", whole):
        assert said.startswith("s3://acts/one/") and dead in said and said.endswith("the keys and the address.")


def test_a_store_that_stops_answering_is_told_wherever_it_is_read(whole, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    model, corpus, _ = whole
    place = "memory://going"
    found = harvest(model, corpus, SITES, place, PLAN)
    shards, file = Shards(place), folder_of(place) / found.manifest["shards"][0]["file"]

    def gone(*given, **named):
        raise RuntimeError("gone")

    for name in ("_open", "info", "ls"):
        monkeypatch.setattr(MemoryFileSystem, name, gone)
    for way in (lambda: next(shards.batches(32)), shards.check, lambda: read_tensors(file, ("counts",)),
                lambda: open_shard(file), lambda: size_of(file), lambda: names_in(folder_of(place)),
                lambda: harvest(model, corpus, SITES, place, PLAN)):  # fmt: skip
        with pytest.raises(StoreError, match=r"^memory:/.*going.*cannot be read \(gone\)"):
            way()


def test_stores_that_are_none(whole):
    model, corpus, _ = whole
    with pytest.raises(UsageError, match="folder"):
        harvest(model, corpus, SITES, "nowhere://bucket/acts", PLAN)
