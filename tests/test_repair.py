"""Changed weights are the edits they stand for, rank-one edits do what their formula says, exports are plain checkpoints."""

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

from assay.data.prepare import prepare
from assay.data.splits import divide, leaks
from assay.data.task_files import read_task
from assay.errors import ModelError, SiteError, TaskError, UsageError
from assay.model.edits import patch, project_out, scale
from assay.model.load import load_model
from assay.records import Pair
from assay.sites import parse_site
from assay.steer import export, rank_one, repair, repair_checks, weights
from assay.testing.compiler import tokenizer_of
from conftest import FAMILIES, tiny, tiny_hf, wrap

ROOT = Path(__file__).parent.parent
IDS = [[5, 9, 30, 7, 11, 42], [8, 2, 77, 120, 4], [33, 90, 12, 60, 61, 62, 63]]
POST_NORMED = ("gemma2", "gemma3", "olmo2")
WORDS = ("?", *(f"w{number}" for number in range(198)))
ANSWERS = {"w40": "w90", "w41": "w91", "w42": "w92"}
FRAMES = ("w1 [K] w2 [P] w4", "w5 w6 [K] w7 [P]", "[K] w11 w12 w13 [P] w14")


def randomised(family, seed=3):
    """A tiny model whose biases and position embeddings are not 0, as random weights of most classes leave them."""
    hf = tiny_hf(family)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return wrap(hf, family)


def direction_of(model, seed=0):
    return torch.randn(model.dims.d_model, generator=torch.Generator().manual_seed(seed))


def logits(model, edits=()):
    return torch.cat([model.logits([ids], positions="all", edits=edits)[0] for ids in IDS])


def fact_pair(frame, word):
    """What follows `word` after one kind of question; after the other kind another word is right."""
    clean, other = (frame.replace("[K]", kind).replace("[P]", word) for kind in ("w8", "w9"))
    return Pair(clean, other, (f" {ANSWERS[word]}",), (" w99",), frame, {"subject": (clean.index(word), other.index(word))})


# weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in (*POST_NORMED, "mixtral", "bloom")])
def test_projecting_weights_is_projecting_every_writer(family):
    model = randomised(family)
    before, digest = logits(model), model.fresh_digest()
    direction = direction_of(model)
    changed = weights.project_out(model, direction)
    sites = ["resid_pre.0", *(f"{name}.{layer}" for layer in range(model.n_layers) for name in ("attn_out", "mlp_out"))]
    wanted = logits(model, [project_out(site, direction) for site in sites])
    got = logits(changed.model)
    assert (wanted - before).abs().max() > 1e-2
    assert torch.allclose(got, wanted, atol=2e-4 * float(wanted.abs().max()))
    assert model.fresh_digest() == digest and torch.equal(logits(model), before)  # the original is as it was
    assert changed.model.fresh_digest() != digest
    names = {change.name for change in changed.changes}
    assert all(change.rank == 1 and change.change > 0 for change in changed.changes)
    own, copy = dict(model.hf.named_parameters()), dict(changed.model.hf.named_parameters())
    assert {name for name in own if not torch.equal(own[name], copy[name])} == names


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_named_layers_only(family):
    model, direction = randomised(family), direction_of(randomised(family))
    changed = weights.project_out(model, direction, layers=[1])
    wanted = logits(model, [project_out("attn_out.1", direction), project_out("mlp_out.1", direction)])
    assert torch.allclose(logits(changed.model), wanted, atol=2e-4 * float(wanted.abs().max()))
    assert len({change.name.partition(".weight")[0].partition(".bias")[0] for change in changed.changes}) == 2


def test_tied_embeddings_are_untied_and_said():
    hf = tiny_hf("gpt2")
    assert hf.lm_head.weight is hf.transformer.wte.weight
    model = wrap(hf, "gpt2")
    changed = weights.project_out(model, direction_of(model))
    copy = changed.model.hf
    assert torch.equal(copy.lm_head.weight, hf.lm_head.weight) and not copy.config.tie_word_embeddings
    assert any("tied" in note for note in changed.notes) and hf.config.tie_word_embeddings
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= {change.name for change in changed.changes}


@pytest.mark.parametrize("family,named", [
    ("gemma2", "post_attention_layernorm"), ("gemma3", "post_attention_layernorm"), ("olmo2", "post_attention_layernorm"),
    ("mixtral", "mixture of experts"), ("bloom", "word_embeddings_layernorm"),
])  # fmt: skip
def test_what_weights_cannot_do_is_refused_by_name(family, named):
    model = randomised(family)
    with pytest.raises(SiteError, match=named):
        weights.project_out(model, direction_of(model))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mixtral"])
def test_scaled_heads_and_neurons(family):
    model = randomised(family)
    units = ["z.0.1", "z.2.3", "z.2.0", "mlp_act.1.5", "mlp_act.1.40", "mlp_act.0.0"]
    for factor in (0.0, -1.5):
        changed = weights.scale_units(model, units, factor)
        wanted = logits(model, [scale(unit, factor) for unit in units])
        assert torch.allclose(logits(changed.model), wanted, atol=2e-4 * float(wanted.abs().max()))
        assert (wanted - logits(model)).abs().max() > 1e-4
    assert len(changed.changes) == 4 and max(change.rank for change in changed.changes) == 2 * model.dims.d_head


def test_experts_have_no_neurons_to_scale():
    with pytest.raises(SiteError, match="experts"):
        weights.scale_units(tiny("mixtral"), ["mlp_act.0.1"], 0.0)
    assert weights.scale_units(tiny("mixtral"), ["z.0.1"], 0.0).changes


@pytest.mark.parametrize("family", ["gpt2", "neox", "opt", "phi", "bloom", "llama", "qwen3", "granite", "olmo2", "gemma2"])
def test_mean_ablation_is_a_patch_with_the_mean(family):
    model = randomised(family)
    units = ["z.0.1", "z.2.3"] + (["mlp_act.1.5", "mlp_act.1.6"] if family in ("gpt2", "neox", "opt", "phi", "llama") else [])
    means = weights.unit_means(model, units, IDS)
    direct = torch.cat([row[1:] for row in model.capture(IDS, "z.0.1").rows(parse_site("z.0.1"))]).double().mean(0)
    assert torch.allclose(means[parse_site("z.0.1")], direct)
    changed = weights.ablate_units(model, units, means)
    wanted = logits(model, [patch(site, value.float()) for site, value in means.items()])
    assert torch.allclose(logits(changed.model), wanted, atol=2e-4 * float(wanted.abs().max()))
    assert (wanted - logits(model)).abs().max() > 1e-4


def test_no_bias_and_no_switch_is_refused():
    model = tiny("mistral")
    with pytest.raises(SiteError, match="no bias"):
        weights.ablate_units(model, ["z.0.1"], weights.unit_means(model, ["z.0.1"], IDS))


def test_weights_that_layers_share_are_refused():
    hf = tiny_hf("llama")
    hf.model.layers[2].mlp.down_proj.weight = hf.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match="layers.2.mlp.down_proj"):
        weights.scale_units(wrap(hf), ["mlp_act.0.3"], 0.0)


def test_mistakes_are_named():
    model = tiny("llama")
    for call, words in (
        (lambda: weights.project_out(model, torch.zeros(32)), "norm 0"),
        (lambda: weights.project_out(model, torch.ones(31)), r"\(32,\)"),
        (lambda: weights.project_out(model, torch.ones(32), layers=[]), "none"),
        (lambda: weights.scale_units(model, ["resid_post.1"], 0.0), "heads"),
        (lambda: weights.scale_units(model, ["z.1"], 0.0), "heads"),
        (lambda: weights.scale_units(model, ["z.9.1"], 0.0), "z.9"),
        (lambda: weights.scale_units(model, [], 0.0), "units"),
        (lambda: weights.scale_units(model, ["z.0.0"], float("nan")), "finite"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


# rank-one ----------------------------------------------------------------------------------------


def memory(n_keys=6, d_in=12, d_out=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(d_in, d_out, generator=generator, dtype=torch.float64)
    keys = torch.randn(n_keys, d_in, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, d_in, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 3, d_in)
    return rows, keys, torch.randn(n_keys, d_out, generator=generator, dtype=torch.float64), noise.T @ noise / 200


@pytest.mark.parametrize("n", [1, 3])
def test_the_closed_form_maps_keys_to_values(n):
    rows, keys, values, moment = memory()
    change = rank_one.rank_update(rows, keys[:n], values[:n], moment)
    assert torch.allclose(keys[:n] @ (rows + change), values[:n])
    assert int(torch.linalg.matrix_rank(change)) == n
    if n == 1:  # Meng et al. 2022: (v - W k) (C^-1 k)^T / ((C^-1 k)^T k)
        towards = torch.linalg.inv(moment) @ keys[0]
        assert torch.allclose(change, torch.outer(towards, values[0] - keys[0] @ rows) / (towards @ keys[0]))


def test_the_change_is_the_smallest_as_ordinary_keys_see_it():
    rows, keys, values, moment = memory()
    change = rank_one.rank_update(rows, keys[:2], values[:2], moment)

    def seen(x):
        return float(torch.trace(x.T @ moment @ x))

    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(keys[:2].T).Q
    for _ in range(50):  # any other change that gives the same values
        other = torch.randn(change.shape, generator=generator, dtype=torch.float64)
        other = other - basis @ (basis.T @ other)
        assert torch.allclose(keys[:2] @ (rows + change + other), values[:2])
        assert seen(change + 0.01 * other) > seen(change)
    plain = rank_one.rank_update(rows, keys[:2], values[:2], torch.eye(len(moment)))
    assert seen(plain) > 1.05 * seen(change)


def test_a_planted_memory_is_rewritten_and_its_neighbours_stay():
    """Orthogonal keys in a moment that knows them: one association is rewritten, none of the others moves."""
    keys = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    values = torch.randn(10, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rows = keys.T @ values
    wanted = values.clone()
    wanted[4] = 7.0
    change = rank_one.rank_update(rows, keys[4:5], wanted[4:5], keys.T @ keys / 10)
    assert torch.allclose(keys @ (rows + change), wanted)
    for bad, words in (((rows, keys[[1, 1]], values[:2], torch.eye(10)), "depend"),
                       ((rows, keys[:1], values[:1], torch.zeros(10, 10)), "positive definite")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            rank_one.rank_update(*bad)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "granite", "neox"])
def test_facts_are_written_into_any_family(family):
    """Random models: the answers become likely, the down-projection alone changes, each key gives its value."""
    model = load_model(randomised(family).hf, tokenizer=tokenizer_of(WORDS))
    pairs = [fact_pair(frame, word) for frame in FRAMES[:2] for word in ANSWERS]
    facts = rank_one.facts_of(model, pairs, prefixes=["w3 w9"])
    assert [fact.subject for fact in facts] == list(ANSWERS) and all(len(fact.keys) == 4 for fact in facts)
    place = facts[0].keys[0]
    assert model.text([place.tokens[place.place]]).strip() == "w40"
    moment = rank_one.key_moments(model, [1], IDS * 10)[1]
    acts = torch.cat([row[1:] for row in model.capture(IDS, "mlp_act.1").rows(parse_site("mlp_act.1"))]).double()
    raw = acts.T @ acts / len(acts)
    assert torch.allclose(moment, raw + 1e-2 * raw.diagonal().mean() * torch.eye(len(raw)), atol=1e-6)
    plan = rank_one.ValuePlan(steps=25, rate=1.0, reach=100.0, kl=0.1, decay=0.01)
    written = rank_one.find_values(model, 1, facts, moment, plan)
    assert written.loss[1] < written.loss[0] - 0.3
    changed = rank_one.write_facts(model, written)
    path = rank_one.down_path(model, 1)
    assert [change.name for change in changed.changes] == [f"{path}.weight"] and changed.changes[0].rank == len(facts)
    old, new = (weights.matrix_of(one, path).rows for one in (model, changed.model))
    assert torch.allclose(written.keys @ new, written.keys @ old + written.deltas.double(), atol=1e-4)
    task = prepare(pairs, model)
    before, after = (one.score(task.clean, task.metric("loss")).mean() for one in (model, changed.model))
    assert after < before - 0.2


def test_gradients_of_the_value_are_those_of_an_edit():
    """The loss at a given change of the value is the loss of a run with that vector added by an ordinary hook."""
    model = load_model(randomised("llama").hf, tokenizer=tokenizer_of(WORDS))
    facts = rank_one.facts_of(model, [fact_pair(FRAMES[0], "w40")])
    job = rank_one._Job(model, 1, facts)
    theta = torch.randn(1, 32, generator=torch.Generator().manual_seed(5)).requires_grad_(True)
    loss = job.backward(theta, torch.ones(1, 1), torch.ones(1), rank_one.ValuePlan(kl=0.0, decay=0.0))
    (spot, target), = facts[0].train  # fmt: skip

    def hooked(vector):
        def hook(module, args, out):
            out = out.clone()
            out[0, spot.place] += vector
            return out

        handle = model.hf.get_submodule(rank_one.down_path(model, 1)).register_forward_hook(hook)
        try:
            logits = model.hf(torch.tensor([spot.tokens])).logits[0, -1]
        finally:
            handle.remove()
        return -logits.log_softmax(-1)[target[0]]

    again = theta.detach().clone().requires_grad_(True)
    want = hooked(again[0])
    want.backward()
    assert abs(loss - float(want)) < 1e-5 and torch.allclose(theta.grad, again.grad, atol=1e-6)


def test_subjects_are_found_and_mistakes_named():
    model = load_model(randomised("llama").hf, tokenizer=tokenizer_of(WORDS))
    many = Pair("w1 new zealand w2", "w1 old zealand w2", (" w5",), (" w6",), "t", {"subject": (3, 3), "subject_end": (8, 8)})
    assert rank_one.subject_of(many, "subject", 0) == ("new zealand", 13)
    named = Pair("w1 sri lanka w2", "w1 x w2", (" w5",), (" w6",), "t", {"country": (3, 3)}, ("sri lanka",))
    assert rank_one.subject_of(named, "country", 0) == ("sri lanka", 11) and rank_one.subject_of(named, "country", 1)[0] == "x"
    assert rank_one.subject_label([named]) == "country"
    bare = Pair("w1 w2", "w1 w3", (" w5",), (" w6",), "t")
    with pytest.raises(TaskError, match="--subject"):
        rank_one.facts_of(model, [bare])
    long = Pair("w1 " * 70 + "w2", "w1 " * 70 + "w3", (" w5",), (" w6",), "t")
    model.hf.config.max_position_embeddings = 64
    with pytest.raises(TaskError, match="no prompt of discover fits into the 64 tokens"):
        rank_one.facts_of(model, [long], "end")
    (fact,) = rank_one.facts_of(model, [bare, long], "end", ["w1 " * 63])
    assert [len(spot.tokens) for spot in (*fact.keys, *fact.keep)] == [len(model.tokens("w1 w2")[0])]
    assert fact.keys[0].place == len(fact.keys[0].tokens) - 1 and fact.subject == ""
    with pytest.raises(SiteError, match="experts"):
        rank_one.down_path(tiny("mixtral"), 0)


# export ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen3"])
@pytest.mark.parametrize("method", ["project", "ablate"])
def test_an_export_loads_in_plain_transformers(family, method, tmp_path):
    model = load_model(randomised(family).hf, tokenizer=tokenizer_of(WORDS))
    if method == "project":
        changed = weights.project_out(model, direction_of(model))
    else:
        changed = weights.ablate_units(model, ["z.0.1"], weights.unit_means(model, ["z.0.1"], IDS))
    done = export.export(changed, tmp_path / "new" / "model", lambda facts: {"README.md": f"# {facts['digest']}"})
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "model")
    for ids in IDS:
        assert torch.equal(plain(torch.tensor([ids])).logits, changed.model.hf(torch.tensor([ids])).logits)
    assert done.digest in (tmp_path / "new" / "model" / "README.md").read_text() and done.error == 0
    assert load_model(tmp_path / "new" / "model").digest == done.digest == changed.model.digest != model.digest
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "model").get_vocab() == model.tokenizer.get_vocab()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model"]
    with pytest.raises(UsageError, match="not empty"):
        export.export(changed, tmp_path / "new" / "model", lambda facts: {})


def test_a_killed_export_leaves_no_half_model(tmp_path):
    model = load_model(randomised("llama").hf, tokenizer=tokenizer_of(WORDS))
    changed = weights.scale_units(model, ["z.0.1"], 0.0)
    (tmp_path / ".model.tmp-old").mkdir()  # of a run that was killed without a chance to clean up

    def interrupted(facts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export.export(changed, tmp_path / "model", interrupted)
    assert not (tmp_path / "model").exists() and not list(tmp_path.glob(".model.tmp-*"))
    assert export.export(changed, tmp_path / "model", lambda facts: {}).folder.is_dir()


def test_a_checkpoint_that_reads_back_otherwise_is_refused(tmp_path):
    """A weight that `save_pretrained` does not keep: a buffer the class makes anew."""
    model = load_model(randomised("llama").hf, tokenizer=tokenizer_of(WORDS))
    changed = weights.scale_units(model, ["z.0.1"], 0.0)
    changed.model.hf.model.rotary_emb.inv_freq.mul_(1.5)
    with pytest.raises(ModelError, match="read back"):
        export.export(changed, tmp_path / "model", lambda facts: {})
    assert list(tmp_path.iterdir()) == []


# measuring and deciding --------------------------------------------------------------------------


def test_text_change_is_kl_and_loss_of_plain_runs():
    model, other = randomised("gpt2"), randomised("gpt2", seed=4)
    lost, loss = repair_checks.text_change(model, other, IDS)
    for ids, got, moved in zip(IDS, lost, loss, strict=True):
        old, new = (one.hf(torch.tensor([ids])).logits[0].log_softmax(-1) for one in (model, other))
        want = torch.nn.functional.kl_div(new, old, log_target=True, reduction="sum") / len(ids)
        assert got == pytest.approx(float(want), rel=1e-3) and got > 0
        after, before = (torch.nn.functional.nll_loss(logp[:-1], torch.tensor(ids[1:])) for logp in (new, old))
        assert moved == pytest.approx(float(after - before), abs=1e-5)
    assert max(repair_checks.text_change(model, model, IDS)[0]) == 0.0


def test_paraphrases_are_the_same_pairs_behind_other_text():
    pairs = [Pair(f"w1 w2{n} w8", f"w1 w3{n} w8", (" w4",), (" w5",), f"t{n}", {"subject": (3, 3)}) for n in range(3)]
    found = repair_checks.paraphrased(pairs, ("w50 w51.", "w60."))
    assert [pair.clean for pair in found] == ["w50 w51. w1 w20 w8", "w60. w1 w21 w8", "w50 w51. w1 w22 w8"]
    for pair, was in zip(found, pairs, strict=True):
        assert [text[place:] for text, place in zip(pair.texts, pair.labels["subject"])] == [text[3:] for text in was.texts]
        assert (pair.template, pair.answers, pair.foils) == (was.template, was.answers, was.foils)


def test_an_answer_is_said_when_generation_says_it():
    model = load_model(randomised("llama").hf, tokenizer=tokenizer_of(WORDS))
    pairs, wanted = [], []
    for number in range(12):
        prompt = f"w{number} w{number + 20} w8"
        tokens = model.generate([prompt], max_new_tokens=2).tokens[0]
        if len(tokens) < 2:  # it stopped
            continue
        says = model.text(tokens)
        answer = says if number % 3 else f"{says.split()[0]} w149"  # its first token alone is not enough
        wanted.append(answer == says)
        pairs.append(Pair(prompt, "w1", (f" {answer}",), (" w99",), "t"))
    assert 0 < sum(wanted) < len(wanted)
    assert repair_checks.said_in_full(model, pairs) == sum(wanted) / len(wanted)
    assert repair_checks.said_in_full(model, []) is None
    assert len(repair.examples(model, model, pairs, tokens=4)) == 4
    model.hf.config.max_position_embeddings = 4  # prompts have three tokens: an answer of one fits
    assert repair_checks.said_in_full(model, pairs) is None and repair.examples(model, model, pairs, tokens=4) == ()


def shares_check(name="fault, confirm", about="gain", before=0.1, after=0.9, n=10):
    """A check of made-up answers: `before` and `after` are shares of 10 prompts per template."""
    right = [[float(place < 10 * share) for _ in range(n) for place in range(10)] for share in (before, after)]
    templates = [f"t{number}" for number in range(n) for _ in range(10)]
    return repair_checks._share_check(name, about, right, templates, repair_checks.Bars(), 0)


def text_check(passed=True):
    return repair_checks.Check("ordinary text", "small", 40, 40, 0.0, 0.01, 0.01, 0.008, 0.012, 0.02, 0.001, passed)


@pytest.mark.parametrize("more,verdict,said", [
    ({}, "repaired", "stayed within its bars"),
    ({"same": dict(before=1.0, after=0.5)}, "repaired at a price", "other prompt: right 100% before, 50% after"),
    ({"text": False}, "repaired at a price", "ordinary text: KL"),
    ({"ood": dict(after=0.3)}, "repaired at a price", "fault, ood: right 10% before, 30% after"),
    ({"gain": dict(after=0.3)}, "not repaired", "rose by +20 points"),
    ({"gain": dict(before=0.9, after=0.9)}, "not repaired", "there was no fault: 90%"),
    ({"right": dict(after=0.6)}, "not repaired", "more than 75% is not shown"),
    ({"gain": dict(n=5)}, "not repaired", "5 templates"),
])  # fmt: skip
def test_the_verdict_follows_from_the_bars(more, verdict, said):
    checks = [
        shares_check(**more.get("gain", {})), shares_check(about="right", **more.get("right", {})),
        shares_check("fault, confirm, other prompt", "same", **{"before": 1.0, "after": 1.0, **more.get("same", {})}),
        shares_check("fault, ood", **more.get("ood", {})), text_check(more.get("text", True)),
        repair_checks.Check("task of another tokenizer", "same", 0, 0, None, None, None, None, None, 0.1, 1.0, False),
    ]  # fmt: skip
    got, reasons, sentence = repair_checks.decide(checks, repair_checks.Bars())
    assert got == verdict and said in sentence and bool(reasons) == (verdict != "repaired")


def test_equivalence_is_shown_not_assumed():
    """A change that is not significant is not "unchanged": with few templates or noisy ones the check is not passed."""
    assert shares_check(about="same", before=0.8, after=0.8).passed
    assert not shares_check(about="same", before=0.8, after=0.8, n=3).passed
    assert not shares_check(about="same", before=0.8, after=0.9).passed  # at the bar
    assert not shares_check(about="same", before=0.8, after=0.3).passed


# the worked repair -------------------------------------------------------------------------------


def recipe():
    spec = importlib.util.spec_from_file_location("repair_capitals", ROOT / "recipes" / "repair_capitals.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_worked_fault_has_the_same_facts_in_all_splits(tmp_path):
    recipe().main(["--out", str(tmp_path)])
    splits = divide(read_task(tmp_path / "fault.jsonl")).splits
    assert leaks([*splits["discover"], *splits["tune"]], [*splits["confirm"], *splits["ood"]]) == {}
    for split, pairs in splits.items():
        assert {rank_one.subject_of(pair, "subject", 0)[0] for pair in pairs} == set(recipe().FAULTS), split
        assert len({pair.template for pair in pairs}) >= {"discover": 3, "tune": 5, "confirm": 8, "ood": 8}[split]


@pytest.mark.slow
def test_the_worked_fault_is_one_of_the_model(smollm2, tmp_path):
    recipe().main(["--out", str(tmp_path)])
    task = prepare(divide(read_task(tmp_path / "fault.jsonl")).splits["discover"], smollm2)
    clean, other = (smollm2.score(prompts, task.metric()) for prompts in (task.clean, task.corrupted))
    assert float((clean > 0).float().mean()) < 0.2 and float((other < 0).float().mean()) > 0.9
