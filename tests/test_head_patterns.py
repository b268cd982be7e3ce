"""Attention patterns of heads on repeated tokens: against captured patterns, and on models whose heads are known."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assay.circuits.find import FindPlan, find_circuit
from assay.circuits.head_patterns import agreement, head_patterns, strength_of
from assay.data.prepare import prepare
from assay.errors import UsageError
from assay.model.load import load_model
from assay.testing.compiler import tokenizer_of
from assay.testing.llama_induction import llama_induction, repeated


@pytest.fixture(scope="module")
def model():
    return llama_induction()


def test_written_heads_look_where_they_were_written_to(model):
    found = head_patterns(model, n_texts=12, length=10)
    assert found.strongest("previous", 1)[0][0] == "z.0.0" and found.previous[0, 0] > 0.9
    assert found.strongest("induction", 1)[0][0] == "z.1.0" and found.induction[1, 0] > 0.7
    others = [found.induction[layer, head] for layer in range(2) for head in range(4) if (layer, head) != (1, 0)]
    assert max(others) < 0.4 and found.even == pytest.approx(np.mean([1 / (i + 1) for i in range(10, 20)]), rel=0.1)


def test_scores_are_means_over_the_models_own_patterns():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, attn_implementation="eager")  # fmt: skip
    hf = LlamaForCausalLM(config).eval()
    tokenizer = tokenizer_of([f"w{number}" for number in range(40)])
    found = head_patterns(load_model(hf, tokenizer=tokenizer), n_texts=3, length=6, seed=4)
    generator = torch.Generator().manual_seed(4)
    pool = [i for i in range(40) if i not in tokenizer.all_special_ids]
    rows = [[pool[i] for i in torch.randperm(len(pool), generator=generator)[:6].tolist()] for _ in range(3)]
    patterns = hf(torch.tensor([row + row for row in rows]), output_attentions=True).attentions
    for kind, back in (("previous", 1), ("duplicate", 6), ("induction", 5)):
        for layer in range(2):
            for head in range(4):
                cells = [float(patterns[layer][t, head, i, i - back]) for t in range(3) for i in range(6, 12)]
                assert getattr(found, kind)[layer, head] == pytest.approx(np.mean(cells), abs=1e-5)


def test_a_circuit_found_by_attribution_holds_the_heads_that_look_back(model):
    data = {seed: prepare([pair for pair in repeated(9, 3, seed)], model) for seed in (0, 1)}
    found = find_circuit(model, data[0], data[1], FindPlan())
    strength = strength_of(found.circuit(model, "repeats"))
    patterns = head_patterns(model, n_texts=8, length=10)
    assert agreement(patterns.induction, strength) == 1.0 and strength[1, 1:].max() == 0
    assert agreement(np.zeros((2, 4)), strength) is None


def test_bad_sizes_are_refused(model):
    with pytest.raises(UsageError, match="length"):
        head_patterns(model, length=1)
    with pytest.raises(UsageError, match="length"):
        head_patterns(model, length=4000)
    with pytest.raises(UsageError, match="kind"):
        head_patterns(model, n_texts=1, length=4).strongest("inductive")
