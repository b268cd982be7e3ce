"""Published findings tried again: the outcome is a function of figures and verdicts; measurements against raw PyTorch."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel

from assay.atlas.store import Atlas
from assay.cli.main import cli
from assay.data.prepare import prepare
from assay.evidence.run import Settings
from assay.evidence.source import ConceptSource
from assay.model.model import Model
from assay.model.untrained import untrained_model
from assay.records import Pair
from assay.replicate.base import FINDINGS, Lab, Sizes
from assay.replicate.findings import attention_sinks, successor_heads
from assay.replicate.findings.function_vectors import _Prompts
from assay.replicate.parts import losses, passages, restored
from assay.replicate.records import Figure, Found, figure, outcome_of
from assay.replicate.records import Tested as ClaimTested
from assay.replicate.run import replicate
from assay.report.replication_figures import EDGE, beyond, replication_figure
from assay.testing.formation import Formation, train_copiers
from conftest import wrap

pytestmark = pytest.mark.whole

NAMES = [str(n) for n in range(12)]
SUPPORTED, REFUTED, SHORT = (ClaimTested("c-1", "it does", verdict) for verdict in ("supported", "refuted", "inconclusive"))


def around(centre: float, bar: float = 0.0, side: str = "above") -> Figure:
    return figure("a figure", [centre + 0.1 * (-1) ** n for n in range(12)], NAMES, bar, side)  # type: ignore[arg-type]


@pytest.mark.parametrize(("found", "outcome", "said"), [
    (Found((around(1.0),), (SUPPORTED,)), "reproduced", "every claim is supported"),
    (Found((around(-1.0, side="below"),)), "reproduced", "every figure"),
    (Found((around(-1.0),), (SUPPORTED,)), "not reproduced", "expected above 0"),
    (Found((around(1.0, side="below"), around(1.0))), "not reproduced", "expected below 0"),
    (Found((around(1.0),), (REFUTED,)), "not reproduced", "claim c-1 was refuted"),
    (Found((around(1.0),), (SHORT,)), "open", "c-1 is inconclusive"),
    (Found((around(0.0),)), "open", "expected above 0"),
    (Found(), "open", "nothing was measured"),
    (Found((around(1.0),), lacks="it has no heads"), "not tried", "it has no heads"),
])  # fmt: skip
def test_the_outcome_follows_from_figures_and_verdicts(found: Found, outcome: str, said: str):
    got, why = outcome_of(found)
    assert got == outcome and said in why


def test_one_cluster_decides_nothing():
    one = figure("alone", [5.0, 5.1], ["a", "a"], 0.0)
    assert one.clusters == 1 and not one.holds and outcome_of(Found((one,)))[0] == "open"


def test_against_is_corrected_for_the_number_of_figures():
    """A p of .04 against one figure counts alone, and not among five."""
    weak = replace(around(0.0), p=1.0, p_against=0.04)
    rest = [replace(around(1.0), p_against=1.0)] * 4
    assert outcome_of(Found((weak,)))[0] == "not reproduced"
    assert outcome_of(Found((weak, *rest)))[0] == "open"


def test_every_finding_says_what_was_published_and_how_it_is_measured():
    assert len(FINDINGS.names()) >= 14
    for one in FINDINGS:
        assert one.name == one.name.lower() and min(map(len, (one.title, one.paper))) > 8
        assert min(map(len, (one.published, one.method, one.differs))) > 40
        assert any(year in one.paper for year in map(str, range(2020, 2027)))


# measurements ------------------------------------------------------------------------------------


def test_attention_to_the_first_position_and_the_cost_of_dimensions(glass, tmp_path):
    texts = glass.tokens(passages(3))
    lab = Lab(glass, Atlas(tmp_path))
    hf = glass.hf
    before = hf.config._attn_implementation
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        seen = [hf(input_ids=torch.tensor([row]), output_attentions=True).attentions[2:] for row in texts]
    expected = [float(torch.stack([layer[0, :, 1:, 0].mean() for layer in layers]).mean()) for layers in seen]
    hf.set_attn_implementation(before)
    assert attention_sinks._to_first(lab, texts) == pytest.approx(expected, abs=1e-5)

    layer, dims = glass.n_layers // 2, [0, 3]
    site = f"resid_post.{layer}"

    def silence(module, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, 0, dims] = 0.0
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    block = next(module for name, module in hf.named_modules() if name.endswith(f".{layer}") and "attn" not in name)
    row = torch.tensor([texts[0]])
    with torch.no_grad():
        plain = loss_of(hf(input_ids=row).logits[0], texts[0])
        handle = block.register_forward_hook(silence)
        broken = loss_of(hf(input_ids=row).logits[0], texts[0])
        handle.remove()
    assert attention_sinks._cost(lab, texts[0], site, dims) == pytest.approx(broken - plain, abs=1e-4)
    assert losses(glass, texts[:1], 1) == pytest.approx([plain], abs=1e-4)


def loss_of(logits: torch.Tensor, tokens: list[int]) -> float:
    """Mean of -log p of tokens 2, 3, .."""
    return float(torch.nn.functional.cross_entropy(logits[1:-1], torch.tensor(tokens[2:])))


def test_what_a_set_restores(glass):
    """All that writes to the stream, from the clean run, brings everything back; nothing of it brings back nothing."""
    pair = Pair("The cat sat on the", "The dog sat on the", (" mat",), (" sun",), "t", {}, ())
    task = prepare([pair, replace(pair, clean="The cat ran to the", corrupted="The dog ran to the")], glass)
    last = f"resid_post.{glass.n_layers - 1}"
    metric = task.metric("logit_diff")
    gap = (glass.score(task.clean, metric) - glass.score(task.corrupted, metric)).double()
    assert restored(glass, task, [last]) == pytest.approx((gap / gap.mean()).tolist(), abs=1e-4)


def test_a_planted_successor_head_is_found_and_others_are_not(tmp_path):
    """A stock model whose only head of layer 1 maps each token to the next one, written by hand."""
    lab = Lab(successor_model(), Atlas(tmp_path))
    ids = list(range(2, 12))
    hits = successor_heads._hits(lab, ids, 0, 1)
    assert bool(hits[1, 0].all())
    assert float(hits[1, 1].double().mean()) < 0.5 and float(hits[0].double().mean()) == 0.0


def successor_model():
    """Llama with 2 layers, one-hot embeddings, no MLP: in layer 1 head 0 writes the next token, head 1 the same token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    d, vocab = 32, 16
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, hidden_size=d, intermediate_size=8, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=2, head_dim=16))  # fmt: skip
    with torch.no_grad():
        torch.manual_seed(0)
        for name, value in hf.named_parameters():
            if "norm" not in name:
                value.copy_(1e-3 * torch.randn_like(value))
        eye = torch.eye(vocab)
        hf.model.embed_tokens.weight[:, :vocab] += eye
        hf.lm_head.weight[:, :vocab] += eye
        attention: Any = hf.model.get_submodule("layers.1.self_attn")
        attention.v_proj.weight[:16, :vocab] += eye
        attention.o_proj.weight[:vocab, :16] += 3 * eye.roll(1, 0)
        attention.v_proj.weight[16:, :vocab] += eye
        attention.o_proj.weight[:vocab, 16:] += 3 * eye
    return wrap(hf.eval())


def test_log_probability_of_the_answer():
    prompts = _Prompts([[1], [2], [3]], [0, 2, 1])
    logits = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    got = prompts.metric(logits, torch.tensor([2, 1]))
    assert torch.allclose(got, torch.stack([logits[0].log_softmax(-1)[1], logits[1].log_softmax(-1)[2]]))


def test_the_steepest_tenth_is_a_share_of_the_whole_rise():
    jump = Formation(0, tuple([0.0] * 10 + [0.6] * 11), (1.0,))
    slow = Formation(0, tuple(n * 0.03 for n in range(21)), (1.0,))
    flat = Formation(0, (0.05,) * 21, (1.0,))
    assert (jump.steepest, flat.steepest) == (1.0, 0.0) and slow.steepest == pytest.approx(0.1)


def test_training_copiers_is_the_same_for_the_same_seed():
    one, again, other = (train_copiers(1, 20, [seed])[0] for seed in (3, 3, 4))
    assert one == again and one.loss != other.loss and one.loss[-1] < one.loss[0]


# whole findings ----------------------------------------------------------------------------------


def test_a_model_that_learned_nothing_has_no_sinks_and_no_induction_heads(glass, tmp_path):
    lab = Lab(untrained_model(glass, "all", 0), Atlas(tmp_path), sizes=Sizes(pairs=16, texts=8))
    sinks = replicate(lab, "attention-sinks")
    assert sinks.outcome == "not reproduced" and "expected above" in sinks.why
    heads = replicate(lab, "induction-heads")
    assert heads.outcome == "not tried" and "no head looks behind" in heads.why


def test_what_a_model_lacks_is_said(glass, tmp_path):
    lab = Lab(glass, Atlas(tmp_path), sizes=Sizes(pairs=16, texts=8))
    assert "no dictionary comes with" in replicate(lab, "polysemantic-neurons").why
    assert replicate(lab, "polysemantic-neurons").outcome == "not tried"


@pytest.mark.parametrize("heads, layers, length", [(1, 1, 64), (2, 2, 64)])
def test_no_finding_breaks_on_a_small_model(heads, layers, length, glass, tmp_path):
    """One head, one layer, few learned positions: what cannot be tried is said, and the others come out."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(glass.tokenizer), n_embd=32, n_layer=layers, n_head=heads, n_positions=length)
    model = Model(GPT2LMHeadModel(config).eval(), glass.tokenizer, "small", "test", False, None)
    sizes = Sizes(pairs=12, texts=6, tokens=2000, units=4, models=2, claim=Settings(tune=16, confirm=32, ood=16, draws=4))
    lab = Lab(model, Atlas(tmp_path), sizes=sizes)
    found = {name: replicate(lab, name) for name in FINDINGS.names() if FINDINGS.get(name).needs_model}
    assert found["attention-sinks"].outcome == "not tried" and f"at most {length}" in found["attention-sinks"].why
    assert found["random-networks"].outcome == "not tried" and "one document" in found["random-networks"].why
    assert {one.outcome for one in found.values()} <= {"not tried", "open", "not reproduced"} and len(found) >= 12


def test_models_of_their_own_need_no_other(tmp_path, glass):
    made = replicate(Lab(glass, Atlas(tmp_path), sizes=Sizes(models=5)), "superposition-phases")
    assert made.model == "models of its own" and made.outcome == "reproduced", made.why
    assert len(made.found.figures) == 3 and all(each.clusters == 5 for each in made.found.figures)


def test_a_claim_is_stated_and_tested_once(glass, tmp_path):
    """A finding that runs again takes the verdict that is there; the sealed data are not read again."""
    lab = Lab(glass, Atlas(tmp_path), sizes=Sizes(claim=Settings(tune=16, confirm=32, ood=16, draws=4)))
    asked = ("represents", ConceptSource("animals"), "mlp_act.1.4", "it tends to fire on animals")
    first, entries = lab.tested(*asked), lab.store.entry_count()
    assert lab.tested(*asked) == first and lab.store.entry_count() == entries
    assert first.verdict == lab.store.verdict(first.claim).verdict and len(lab.store.claims()) == 1


def test_the_picture_has_a_row_per_figure():
    from dataclasses import asdict

    rows = [{"name": "x", "found": asdict(Found((around(1.0), around(1.0, side="below"))))}]
    axes = replication_figure(rows).axes[0]
    assert len(axes.get_yticks()) == 2
    assert beyond(rows[0]["found"]["figures"][0]) == EDGE and beyond(rows[0]["found"]["figures"][1]) == -EDGE
    flat = {"value": 0.5, "low": 0.25, "high": 0.75, "bar": 0.25, "side": "above"}
    assert beyond(flat) == pytest.approx(1.0)


def test_the_command_lists_runs_and_keeps(tmp_path):
    run = CliRunner().invoke
    listed = json.loads(run(cli, ["replicate", "--json", "-"]).output)
    assert {row["name"] for row in listed} == set(FINDINGS.names())
    words = ["replicate", "attention-sinks", "--model", "glass-en", "--atlas", str(tmp_path), "--quiet", "--json", "-"]
    first, second = (json.loads(run(cli, words).stdout) for _ in range(2))
    assert first == second  # seconds too: it was not measured again
    (row,) = first["replications"]
    assert row["outcome"] in ("reproduced", "not reproduced", "open") and len(row["found"]["figures"]) == 3
    assert (tmp_path / "figures" / "replications.png").stat().st_size > 1000
    again = json.loads(run(cli, [*words, "--again"]).stdout)
    assert again["replications"][0]["found"] == row["found"] and again["replications"][0]["seconds"] != row["seconds"]


def test_an_unknown_finding_is_named(tmp_path):
    found = CliRunner().invoke(cli, ["replicate", "induction-head", "--atlas", str(tmp_path)])
    assert found.exit_code != 0 and "induction-heads" in str(found.exception)
    assert not list(tmp_path.glob("kept"))
