"""What a second reader of the probe code found: labels that leaked into tune, bounds without width, refusals that came late."""

import os
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from assay.atlas.database import Database
from assay.cli.main import cli
from assay.data.concept_statements import PLACES, truth
from assay.data.prepare import beginnings, prepare
from assay.data.prepare_concept import PreparedConcept, prepare_concept
from assay.errors import AssayError, StoreError, TaskError
from assay.probe.baselines import Rows, majority
from assay.probe.choose import Fitting
from assay.probe.measure import check_sealed
from assay.probe.path import folds_of
from assay.probe.read import Read
from assay.probe.run import ProbePlan, choose
from assay.probe.scores import auroc, auroc_difference
from assay.probe.words import _use
from assay.records import Example, Pair
from assay.report.figures import save_figure
from assay.testing.probe_worlds import probe_world

pytestmark = pytest.mark.whole

KINDS = ("linear", "mean_difference", "pca", "lda", "k_sparse")
PLAN = ProbePlan(positions=("last",), encoder="none", untrained=False, n=60)


# scores ------------------------------------------------------------------------------------------


def noise(seed):
    """Activations that know nothing, in groups of one label and of many sizes: folds have other shares of members."""
    rng = np.random.default_rng(seed)
    sizes, members = rng.integers(1, 12, 24), rng.permutation(np.arange(24) < 8)
    labels, groups = np.repeat(members, sizes).astype(np.int64), np.repeat(np.arange(24), sizes).astype(str)
    pool = SimpleNamespace(labels=labels, groups=tuple(groups))
    fitting = Fitting(pool, np.ones(len(labels), bool), PLAN, folds_of(labels, groups, 5, 0))  # type: ignore[arg-type]
    return fitting, rng.standard_normal((len(labels), 8)) * 0.01, labels


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_at_chance_on_tune_whatever_the_probe_knows_of_the_shares_of_labels(kind):
    found = []
    for seed in range(24):
        fitting, values, labels = noise(seed)
        fit = fitting._linear([values], labels, None)[0] if kind == "linear" else fitting._other(values, labels, kind)
        found.append(fitting.on_tune(fit.at("resid_post.0", "last", False, kind)).value)
    mean, error = float(np.mean(found)), float(np.std(found, ddof=1)) / len(found) ** 0.5
    assert mean < 0.5 + 2.5 * error and abs(mean - 0.5) < 0.06, (mean, error)


def test_one_answer_for_all_is_at_chance_on_tune():
    fitting, _, labels = noise(0)
    assert np.ptp(fitting.prior) > 0.02  # there is something to leak
    rows = Rows(PreparedConcept([], [], [], {}), labels, (), Read((), (), {}))
    assert fitting.on_tune(majority(rows)).value == 0.5


def test_a_perfect_score_beside_chance_on_a_few_groups_has_a_margin_with_width():
    labels, groups = np.array([0, 1] * 4), [f"g{n}" for n in range(8)]
    perfect, chance = labels.astype(float), np.zeros(8)
    found, alone = auroc_difference(perfect, chance, labels, groups), auroc(perfect, labels, groups)
    assert alone.low is not None and found.low is not None and found.high is not None
    assert found.value == 0.5 and found.low == pytest.approx(alone.low - 0.5) and found.high == 0.5
    other = auroc_difference(chance, perfect, labels, groups)
    assert (other.value, other.low) == (-0.5, -0.5) and other.high == pytest.approx(0.5 - alone.low)
    same = auroc_difference(perfect, perfect, labels, groups)
    assert same.low is not None and same.low < 0 < (same.high or 0)


def test_a_label_in_one_group_has_no_interval():
    labels, scores = np.array([1, 1, 1, 0, 0, 0]), np.array([0.9, 0.2, 0.8, 0.1, 0.7, 0.3])
    groups = ["a", "a", "a", "b", "b", "b"]
    assert auroc(scores, labels, groups).low is None and auroc_difference(scores, -scores, labels, groups).high is None
    assert auroc(scores, labels, list("abcdef")).low is not None


# texts -------------------------------------------------------------------------------------------


def test_texts_beyond_the_context_are_left_out_wherever_labelled_texts_are_prepared(glass, monkeypatch):
    texts = [Example("The dog slept.", 1, "a"), Example("The dog slept. " * 5, 0, "b")]
    short, long = map(len, prepare_concept(texts, glass).tokens)
    monkeypatch.setattr(glass.hf.config, "max_position_embeddings", long - 1)
    found = prepare_concept(texts, glass)
    why = f"longer than the model's {long - 1} tokens"
    assert list(map(len, found.tokens)) == [short] and found.dropped == {why: 1}
    pairs = [Pair(each.text + " He", each.text.replace("dog", "cat") + " He", (" ran",), (" sat",), each.template)
             for each in texts]  # fmt: skip
    assert prepare(pairs, glass).dropped == {why: 1}
    assert list(map(len, beginnings(glass, [each.text for each in texts]))) == [short, long - 1]


@pytest.fixture(scope="module")
def chosen():
    world = probe_world("used")
    splits = {split: list(items)[:60] for split, items in world.texts["mood"].splits.items()}
    return world.model, choose(world.model, {split: splits[split] for split in ("discover", "tune")}, PLAN), splits


def test_what_cannot_be_measured_is_refused_from_the_texts_alone(chosen):
    model, selection, splits = chosen
    check_sealed(model, selection, {"confirm": splits["confirm"], "ood": splits["ood"]})
    members = [example for example in splits["confirm"] if example.label]
    with pytest.raises(TaskError, match=r"usable examples of confirm have one label; .* 1 left out: empty text"):
        check_sealed(model, selection, {"confirm": [*members, Example("", 0, "new")]})
    with pytest.raises(TaskError, match="confirm shares"):
        check_sealed(model, selection, {"confirm": splits["tune"]})


def test_a_town_of_that_name_makes_no_false_statement():
    countries = [{"iso": code, "name": name, "capital": capital, "population": 9e6, "continentcode": place, "neighbours": ""}
                 for code, name, capital, place in _places()]  # fmt: skip
    cities = [{"name": capital, "countrycode": code, "population": 2e6} for code, _, capital, _ in _places()]
    cities += [{"name": capital, "countrycode": _places()[(n + 1) % 26][0], "population": 2e4}
               for n, (_, _, capital, _) in enumerate(_places())]  # fmt: skip
    there = {(row["countrycode"], row["name"]) for row in cities}
    codes = {name: code for code, name, _, _ in _places()}
    frames = {frame for some in PLACES.values() for frame in some}
    found = [each for some in truth(countries, cities).values() for each in some if each.template in frames]
    wrong = [each.text for each in found if not each.label and (codes[each.entities[0]], each.entities[1]) in there]
    assert len(found) > 50 and not wrong


def _places():
    """Countries of two continents, each with a capital whose name is also that of a town in the next one."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [(f"{letter}{letter}", f"{letter}landia", f"Port{letter.lower()}ville", "EU" if n % 2 else "AS")
            for n, letter in enumerate(letters)]  # fmt: skip


@pytest.mark.parametrize(
    ("verdict", "reasons", "said"),
    [("supported", [], "(uses) holds for sva: it depends"),
     ("not_tested", ["behaviour absent"], "(behaviour absent) for sva. Followed up, which is a look and no test: it depends"),
     ("inconclusive", ["few"], "stays open (few) for sva. Followed up, which is a look and no test: it depends")],
)  # fmt: skip
def test_a_follow_up_is_no_verdict(verdict, reasons, said):
    assert said in _use({"verdict": {"verdict": verdict, "reasons": reasons}, "task": "sva",
                         "follow_up": {"sentence": "it depends."}})  # fmt: skip


# the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [(("--out", "file/inside"), "--out: got 'file/inside'; allowed: a folder"),
     (("--atlas", "file"), "--atlas: got 'file'"), (("--seed", "-1"), "seed: got -1"),
     (("--seed", "4294967296"), "seed: got 4294967296"),
     (("--require", "supported", "--no-claim"), "--require: got 'with --no-claim'"),
     (("--causal", "sva", "--probe", "mlp"), "--causal: got 'with --probe mlp'"),
     (("--causal", "sva", "--dictionary", "x"), "--causal: got 'with --dictionary'"),
     (("--site", ""), "site ''"), (("--causal", "sva", "--site", "z.*"), "site: got 'z.0'")],
)  # fmt: skip
def test_what_could_only_fail_at_the_end_is_refused_at_the_start(tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(cli, ["probe", "glass-en", "plurals", "--encoder", "none", "--quiet", *given])
    assert isinstance(done.exception, AssayError) and said in str(done.exception)
    assert not (tmp_path / "atlas").exists()


def test_a_picture_that_cannot_be_written_is_an_error_in_words(tmp_path):
    from matplotlib.figure import Figure

    (tmp_path / "file").write_text("")
    (tmp_path / "there.png").mkdir()
    for place in (tmp_path / "file" / "x.png", tmp_path / "there.png"):
        with pytest.raises(StoreError, match="cannot be written"):
            save_figure(Figure(), place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.png"]


def test_ctrl_c_during_a_query_of_the_atlas_is_an_interruption(tmp_path):
    store = Database(tmp_path)
    with store.writing() as db:
        db.execute("CREATE TABLE kept (n INTEGER)")
    done = threading.Event()

    def press(db) -> None:  # the engine looks for signals between tasks only, and one task of a query may be all of it
        done.wait(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        if not done.wait(3):
            db.interrupt()

    with pytest.raises(KeyboardInterrupt), store.writing() as db:
        db.execute("INSERT INTO kept VALUES (1)")
        pressing = threading.Thread(target=press, args=(db,))
        pressing.start()
        try:
            db.execute("SELECT count(*) FROM range(100000000) a, range(100000) b").fetchall()
        finally:
            done.set()
    pressing.join()
    with store.reading() as db:
        assert db is not None and db.execute("SELECT count(*) FROM kept").fetchone() == (0,)
    with pytest.raises(RuntimeError, match="another"), store.reading():
        raise RuntimeError("another")
