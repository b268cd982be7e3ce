"""Directions against written-in truths, closed forms, scikit-learn and numpy."""

import json

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from assay.data.prepare import PreparedTask, prepare
from assay.data.prepare_concept import PreparedConcept
from assay.errors import ModelError, ShapeError, SiteError, UsageError
from assay.features.dictionary import Spec, make_dictionary
from assay.records import Example, Pair
from assay.steer.apply import Steering, edits, residual_norm
from assay.steer.directions import (
    coherence,
    from_concept,
    from_file,
    from_latent,
    from_pairs,
    from_vector,
    separability,
)
from assay.steer.learned import LearnPlan, Loss, learned
from assay.testing.effect_models import mood_source, neutral_texts, part_direction, planted_effects
from conftest import tiny

NORM = 31.7  # about the mean residual norm of the planted model


@pytest.fixture(scope="module")
def planted():
    """A model that uses `mood` and has `copy`, the same property along another direction, which nothing reads."""
    return planted_effects()


@pytest.fixture(scope="module")
def pairs(planted):
    return {split: prepare(mood_source().items(split, 32, 0), planted) for split in ("discover", "tune")}


def concept(n=24, seed=0):
    """Ragged token lists of two classes, each read at a position of its own."""
    rng = np.random.default_rng(seed)
    examples, tokens, at = [], [], []
    for row in range(n):
        label = row % 2
        ids = rng.integers(3, 199, rng.integers(3, 9)).tolist()
        at.append(int(rng.integers(1, len(ids))))
        ids[at[-1]] = int(rng.integers(20, 40) if label else rng.integers(60, 80))
        examples.append(Example(f"text {row}", label, f"t{row // 4}"))
        tokens.append(ids)
    return PreparedConcept(examples, tokens, at, {})


def activations(model, prepared, layer):
    """(n, d) by the model's own hidden states, one text at a time."""
    with torch.no_grad():
        runs = [model.hf(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
                for ids in prepared.tokens]  # fmt: skip
    return torch.stack([run[at] for run, at in zip(runs, prepared.at, strict=True)]), runs


# planted truths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mean_difference", "pca"])
def test_a_planted_direction_is_recovered(method):
    model = planted_effects(copy=0.0)
    task = prepare(mood_source().items("tune", 32, 0), model)
    found = from_pairs(model, task, "resid_post.0", method)
    assert float(found.vector @ part_direction("mood")) > 0.99
    assert found.card["along"]["1"] > 1 > -1 > found.card["along"]["0"]  # + is towards the answer
    assert found.card["cosine"] > 0.99 and found.card["auroc"] == 1.0 and found.card["reversed"] == 0.0


@pytest.mark.parametrize("mode", ["add", "set"])
def test_a_learned_direction_is_what_is_used_not_what_can_be_read(planted, pairs, mode):
    """The mean difference cannot tell `mood` from its unread copy; training through the model can."""
    read = from_pairs(planted, pairs["tune"], "resid_post.1")
    assert float(read.vector @ part_direction("copy")) > 0.6
    plan = LearnPlan(mode=mode, dose=0.1)
    found = learned(planted, pairs["tune"], "resid_post.1", pairs["discover"], NORM, neutral_texts(12), plan)
    assert float(found.vector @ part_direction("mood")) > 0.95
    assert abs(float(found.vector @ part_direction("copy"))) < 0.1
    card = found.card
    assert card["held_out"]["after"]["log_odds"] > card["held_out"]["before"]["log_odds"] + 4
    assert mode == "set" or 0 < card["dose"] <= 0.1 + 1e-6
    # applied as the card says, it does on corrupted prompts what it did in training
    task, steering = pairs["discover"], Steering(found, card["mode"], card["dose"])
    steered = planted.score(task.corrupted, task.metric(), edits=edits(steering, NORM))
    both = torch.cat([planted.score(task.clean, task.metric(), edits=edits(steering, NORM)), steered])
    assert float(both.mean()) == pytest.approx(card["held_out"]["after"]["log_odds"], rel=1e-4)
    assert float(steered.min()) > 0 > float(planted.score(task.corrupted, task.metric()).max())


def test_learning_is_deterministic_and_leaves_the_model_as_found(planted, pairs):
    def run():
        return learned(planted, pairs["tune"], "resid_post.0", pairs["discover"], NORM, neutral_texts(4), LearnPlan(steps=10))

    flags = [parameter.requires_grad for parameter in planted.hf.parameters()]
    first, second = run(), run()
    assert torch.equal(first.vector, second.vector) and first.card == second.card
    assert [parameter.requires_grad for parameter in planted.hf.parameters()] == flags
    assert all(parameter.grad is None for parameter in planted.hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in planted.hf.modules())


def test_the_budget_and_the_penalty_hold(planted, pairs):
    def run(**changes):
        plan = LearnPlan(**{"dose": 0.03, "steps": 25, **changes})
        return learned(planted, pairs["tune"], "resid_post.0", pairs["discover"], NORM, neutral_texts(8), plan).card

    free = run(kl_weight=0.0)
    assert free["dose"] == pytest.approx(0.03, rel=1e-5)  # all of the budget is spent
    loose, tight = run(dose=0.5, kl_weight=0.01), run(dose=0.5, kl_weight=300.0)
    assert tight["held_out"]["after"]["kl"] < loose["held_out"]["after"]["kl"] / 2


def test_training_stops_when_held_out_pairs_get_worse_and_keeps_the_best(planted, pairs, monkeypatch):
    """Held-out losses are made up: best at the second measurement, worse ever after."""
    told, states = iter([5.0, 4.0, 3.0, 3.5, 3.6, 3.7, 3.8]), []

    def loss(self, task, state):
        states.append(state.clone())
        return Loss(next(told), 0.0, 0.0)

    monkeypatch.setattr("assay.steer.learned._Training._loss", loss)
    plan = LearnPlan(dose=0.03, every=2, patience=3, kl_weight=0.0)
    found = learned(planted, pairs["tune"], "resid_post.0", pairs["discover"], NORM, (), plan)
    assert (found.card["steps"], found.card["stopped_early"]) == (10, True)
    assert found.card["held_out"]["after"]["total"] == 3.0
    torch.testing.assert_close(found.raw, states[2] * NORM)


def test_learning_says_why_it_cannot(planted, pairs):
    ordinary = neutral_texts(2)

    def run(task=pairs["tune"], held=pairs["discover"], norm=NORM, texts=ordinary, **plan):
        return learned(planted, task, "resid_post.0", held, norm, texts, LearnPlan(**{"steps": 3, "every": 1, **plan}))

    with pytest.raises(ModelError, match="diverged"):
        run(norm=1e38, dose=1e3)
    with pytest.raises(UsageError, match="no step made"):
        run(kl_weight=1e12)
    with pytest.raises(UsageError, match="held_out"):
        run(held=pairs["tune"])
    with pytest.raises(UsageError, match="texts"):
        run(texts=())
    with pytest.raises(UsageError, match="norm"):
        run(norm=0.0)
    for wrong in ({"dose": -1.0}, {"rate": float("nan")}, {"steps": 0}, {"kl_weight": -1.0}, {"mode": "twist"}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            LearnPlan(**wrong)


# readings and fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mean_difference_is_read_at_the_marked_position(family):
    model, prepared = tiny(family), concept()
    x, runs = activations(model, prepared, 0)
    labels = torch.tensor(prepared.labels)
    found = from_concept(model, prepared, "resid_post.0")
    want = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    torch.testing.assert_close(found.raw, want, atol=1e-5, rtol=1e-4)
    assert float(found.vector.norm()) == pytest.approx(1, abs=1e-6)
    assert found.scale == pytest.approx(float(want.norm()), rel=1e-4)
    middle = float((x[labels == 1] @ found.vector).mean() + (x[labels == 0] @ found.vector).mean()) / 2
    assert found.card["threshold"] == pytest.approx(middle, abs=1e-5)
    last = from_concept(model, prepared, "resid_post.0", at="last")
    ends = torch.stack([run[-1] for run in runs])
    torch.testing.assert_close(last.raw, ends[labels == 1].mean(0) - ends[labels == 0].mean(0), atol=1e-5, rtol=1e-4)
    mean = from_concept(model, prepared, "resid_post.0", at="mean")
    inner = torch.stack([run[1:].mean(0) for run in runs])
    torch.testing.assert_close(mean.raw, inner[labels == 1].mean(0) - inner[labels == 0].mean(0), atol=1e-5, rtol=1e-4)
    assert (found.model_digest, found.tokenizer_digest) == (model.digest, None)
    assert found.convention == {"positions": "marked", "sign": "+ is towards label 1", "norm": "unit"}


def test_probes_are_what_scikit_learn_finds():
    model, prepared = tiny("llama"), concept(60)
    x, _ = activations(model, prepared, 1)
    labels = np.array(prepared.labels)
    found = from_concept(model, prepared, "resid_post.1", "lda")
    want = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x.double().numpy(), labels).coef_[0]
    assert float(found.vector.double().numpy() @ want / np.linalg.norm(want)) > 0.999
    linear = from_concept(model, prepared, "resid_post.1", "linear")
    scores = x @ linear.vector
    right = ((scores > linear.card["threshold"]).numpy() == (labels == 1)).mean()
    assert right == pytest.approx(((x @ linear.raw + linear.card["intercept"] > 0).numpy() == (labels == 1)).mean())
    assert right > 0.75
    with pytest.raises(UsageError, match="k_sparse.*no single direction"):
        from_concept(model, prepared, "resid_post.1", "mlp")


def test_pca_of_pairs_is_the_first_singular_vector_with_the_sign_of_the_labels():
    model, rng = tiny("llama"), np.random.default_rng(1)
    clean = [rng.integers(3, 199, 6).tolist() for _ in range(9)]
    corrupted = [[*ids[:-1], int(rng.integers(3, 199))] for ids in clean]
    task = task_of(clean, corrupted)
    x, y = (model.capture(side, "resid_post.1", positions="last")["resid_post.1"][:, 0] for side in (clean, corrupted))
    axis = np.linalg.svd((x - y).double().numpy(), full_matrices=False)[2][0]
    axis = axis if axis @ (x - y).mean(0).numpy() > 0 else -axis
    found = from_pairs(model, task, "resid_post.1", "pca")
    np.testing.assert_allclose(found.vector.numpy(), axis, atol=1e-5)
    swapped = from_pairs(model, task_of(corrupted, clean), "resid_post.1", "pca")
    np.testing.assert_allclose(swapped.vector.numpy(), -axis, atol=1e-5)


def task_of(clean, corrupted):
    pairs = [Pair(f"c{n}", f"d{n}", (" a",), (" b",), f"t{n // 3}") for n in range(len(clean))]
    ends = [len(ids) - 1 for ids in clean]
    return PreparedTask(pairs, clean, corrupted, [(5,)] * len(pairs), [(6,)] * len(pairs), {}, {}, {"end": ends})


def test_what_cannot_be_a_direction_is_refused():
    model, prepared = tiny("llama"), concept(8)
    with pytest.raises(UsageError, match="one label"):
        from_concept(model, prepared.select([0, 2, 4]), "resid_post.0")
    with pytest.raises(UsageError, match="method"):
        from_concept(model, prepared, "resid_post.0", "telepathy")
    with pytest.raises(UsageError, match="at: got 'middle'"):
        from_concept(model, prepared, "resid_post.0", at="middle")
    with pytest.raises(UsageError, match="at: got 'subject'"):
        from_pairs(model, task_of([[5, 6]], [[5, 7]]), "resid_post.0", at="subject")
    for site in ("pattern.0", "q.1", "logits", "mlp_act.0.3"):
        with pytest.raises((UsageError, SiteError), match="site"):
            from_vector(model, [1.0] * 32, site)
    with pytest.raises(SiteError, match="layer 9"):
        from_vector(model, [1.0] * 32, "resid_post.9")
    with pytest.raises(ShapeError, match="31"):
        from_vector(model, [1.0] * 31, "resid_post.0")
    with pytest.raises(UsageError, match="norm 0"):
        from_vector(model, [0.0] * 32, "resid_post.0")
    with pytest.raises(UsageError, match="norm nan"):
        from_vector(model, [float("nan")] * 32, "resid_post.0")


# screening -------------------------------------------------------------------------------------------


def test_coherence_leaves_the_pair_and_its_template_out():
    e = torch.eye(6)
    same = coherence(e[:1].repeat(6, 1), list("aabbcc"))
    assert same == {"pairs": 6, "cosine": pytest.approx(1), "reversed": 0}
    own = coherence(torch.cat([e[:1].repeat(4, 1), e[1:2].repeat(4, 1)]), list("aaaabbbb"))
    assert own["cosine"] == pytest.approx(0)  # each template has a difference of its own: in-sample it would look like .7
    turned = coherence(torch.stack([e[0], e[0], e[0], -e[0]]), list("abcd"))
    assert turned["reversed"] == 0.25 and turned["cosine"] == pytest.approx(0.5)
    noise = coherence(torch.randn(40, 500, generator=torch.Generator().manual_seed(0)), [str(n) for n in range(40)])
    assert abs(noise["cosine"]) < 0.03  # in-sample it would be about 1 / sqrt(40) = .16
    assert coherence(e[:2], ["a", "a"])["cosine"] is None


def test_separability_is_held_out():
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(200, 300, generator=rng), torch.arange(200) % 2
    groups = [f"g{n // 4}" for n in range(200)]
    noise = separability(x, labels, groups)
    assert noise is not None and 0.38 < noise < 0.62  # in-sample it would be 1
    x[labels == 1, 0] += 3.0
    found = separability(x, labels, groups)
    assert found is not None and found > 0.85
    assert separability(x, labels, ["one"] * 200) is None


# other makers ----------------------------------------------------------------------------------------


def test_a_latent_is_its_decoder_row_at_the_site_it_writes_to():
    model = tiny("llama")
    dictionary = make_dictionary(Spec("topk", 7, 32, 64, 2, ("mlp_in.1",), ("mlp_out.1", "mlp_out.2"), centred=False), "two")
    with torch.no_grad():
        dictionary.W_dec.copy_(torch.randn(7, 64, generator=torch.Generator().manual_seed(0)))
    found = from_latent(dictionary, 3, model, "mlp_out.2")
    torch.testing.assert_close(found.raw, dictionary.W_dec.detach()[3, 32:])
    assert (found.site, found.model_digest, found.source["latent"]) == ("mlp_out.2", model.digest, 3)
    assert from_latent(dictionary, 3, site="mlp_out.1").model_digest == ""
    with pytest.raises(UsageError, match="mlp_out.1, mlp_out.2"):
        from_latent(dictionary, 3)
    with pytest.raises(UsageError, match="0 to 6"):
        from_latent(dictionary, 7, site="mlp_out.1")


def test_a_plain_file_gives_the_same_direction(tmp_path):
    model, numbers = tiny("llama"), torch.randn(32).tolist()
    np.save(tmp_path / "v.npy", np.array(numbers))
    (tmp_path / "v.json").write_text(json.dumps({"vector": numbers}))
    found = [from_file(model, str(tmp_path / name), "resid_post.1") for name in ("v.npy", "v.json")]
    assert torch.equal(found[0].vector, found[1].vector) and found[0].digest == found[1].digest
    torch.testing.assert_close(found[0].raw, torch.tensor(numbers))
    assert found[0].source == {"model": "tiny" if model.name == "tiny" else model.name, "kind": "file", "file": "v.npy"}
    back = found[0].flipped()
    x = torch.randn(3, 4, 32)
    torch.testing.assert_close(back.readout(x), -(x @ found[0].vector))
    assert back.name != found[0].name and back.convention["sign"].endswith("flipped")


@pytest.mark.slow
def test_sentiment_steers_the_language_model(smollm2):
    """A mean-difference direction of sentiment, learned on some frames, moves the log-odds of good and bad on others."""
    frames = ["The film was {} and I", "That was a {} meal and we", "My day was {} so I", "What a {} book, it"]
    good, bad = ("wonderful", "great", "lovely", "excellent"), ("terrible", "awful", "horrible", "bad")
    examples, at = [], []
    for number, frame in enumerate(frames):
        for label, words in ((1, good), (0, bad)):
            examples += [Example(frame.format(word), label, str(number)) for word in words]
    tokens = smollm2.tokens([example.text for example in examples])
    at = [len(ids) - 1 for ids in tokens]
    found = from_concept(smollm2, PreparedConcept(examples, tokens, at, {}), "resid_post.15")
    assert found.card["auroc"] > 0.7
    prompts = ["I think that the weather today is very", "Her new job is", "The food in this place is"]
    norm = residual_norm(smollm2, "resid_post.15", prompts)
    ids = [[smollm2.tokens(f" {word}")[0][-1] for word in words] for words in (("good", "great"), ("bad", "terrible"))]
    odds = lambda logits, rows: logits[:, ids[0]].logsumexp(1) - logits[:, ids[1]].logsumexp(1)  # noqa: E731
    scores = [smollm2.score(prompts, odds, edits=edits(Steering(found, "add", s), norm)) for s in (-0.2, 0.0, 0.2)]
    assert bool((scores[0] < scores[1]).all()) and bool((scores[1] < scores[2]).all())
