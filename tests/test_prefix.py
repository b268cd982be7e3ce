"""A shared prefix is run once, and nothing but the amount of work changes."""

from contextlib import contextmanager

import pytest
import torch

from assay import add, patch, zero
from assay.model import prefix
from assay.model.model import Model
from conftest import FAMILIES, tiny

SHARED = [7 + 3 * i % 150 for i in range(34)]
PROMPTS = [SHARED + [60 + 11 * row + i for i in range(3 + row % 3)] for row in range(5)]
LATE = [-3, -1]


def difference(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return logits[:, 3] - logits[:, 4]


@contextmanager
def without_reuse(model: Model):
    width, model.layout.prefix_width = model.layout.prefix_width, 0
    try:
        yield
    finally:
        model.layout.prefix_width = width


@contextmanager
def work(model: Model, layer: int = -1):
    """Counts the tokens that go through one block."""
    count: list[int] = []

    def hook(module: object, args: tuple, kwargs: dict) -> None:
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        count.append(hidden.shape[0] * hidden.shape[1])

    block = model.hf.get_submodule(model.layout.blocks[layer].path)
    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_reuse_equals_a_run_without(family: str) -> None:
    model, push = tiny(family), torch.randn(32, generator=torch.Generator().manual_seed(1))
    assert model.layout.prefix_width > 0
    edits = [
        add("resid_post.1", push, positions=[-2], rows=[1, 3]),
        zero("z.2.1", positions="last"),
        add("k.1", 0.5, positions=[35]),
    ]
    sites = ["resid_post.1", "q.1", "mlp_out.2", "attn_out.1.2"]

    def everything() -> list[torch.Tensor]:
        acts = model.capture(PROMPTS, sites, positions=LATE, edits=edits)
        start = model.checkpoint(PROMPTS, [1])
        return [
            *(acts.flat(site) for site in acts),
            model.score(PROMPTS, difference, edits=edits),
            model.score(PROMPTS, difference, edits=edits, resume=start),
            model.logits(PROMPTS, edits=edits[:1]),
            model.logits(PROMPTS, positions=LATE),
        ]

    with work(model) as done:
        reused = everything()
    with without_reuse(model), work(model) as plain:
        whole = everything()
    assert sum(done) < 0.6 * sum(plain)  # one pass (the checkpoint) needs every position
    for got, want in zip(reused, whole, strict=True):
        torch.testing.assert_close(got, want, atol=5e-5, rtol=2e-4)


def test_an_edit_in_front_shortens_the_prefix_and_one_at_the_start_forbids_it() -> None:
    model, rest = tiny("llama"), sum(map(len, PROMPTS)) - 5 * len(SHARED)
    padded = 5 * (len(PROMPTS[2]) - len(SHARED))
    for position, expected in ((26, 26 + padded + 5 * 8), (36, 34 + padded), (0, padded + 5 * 34)):
        edit = patch("resid_post.0", torch.ones(32), positions=[position], rows=[2])
        with work(model) as done:
            got = model.score(PROMPTS, difference, edits=[edit])
        assert sum(done) == expected >= rest
        with without_reuse(model):
            torch.testing.assert_close(got, model.score(PROMPTS, difference, edits=[edit]), atol=1e-5, rtol=1e-4)
    everywhere = [zero("z.1.0"), zero("pattern.1.0", positions="last")]
    for edit in everywhere:
        with work(model) as done:
            model.score(PROMPTS, difference, edits=[edit])
        assert len(done) == 1


def test_edits_of_prompts_in_another_batch_do_not_matter() -> None:
    model = tiny("gpt2")
    model.memory_budget = 1 << 20  # several batches
    edit = zero("resid_post.1", positions=[2], rows=[0])
    got = model.score(PROMPTS * 6, difference, edits=[edit])
    with without_reuse(model):
        torch.testing.assert_close(got, model.score(PROMPTS * 6, difference, edits=[edit]), atol=1e-5, rtol=1e-4)


def test_the_prefix_is_run_once_for_all_batches_and_resumed_above() -> None:
    model, many = tiny("llama"), PROMPTS * 30
    with work(model) as done:
        model.score(many, difference)
    assert done.count(34) == 1 and len(done) > 3
    start = model.checkpoint(many)
    edit = add("resid_post.1", torch.ones(32), positions="last")
    with work(model, 0) as below, work(model, 2) as above:
        model.score(many, difference, edits=[edit], resume=start)
    assert sum(above) < 0.3 * sum(map(len, many)) and below.count(34) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_a_checkpoint_run_their_own_first_tokens_once(family: str) -> None:
    model, generator = tiny(family), torch.Generator().manual_seed(2)
    prompts = [torch.randint(5, 150, (26 + row,), generator=generator).tolist() for row in range(4)]
    start, rows = model.checkpoint(prompts, [1, 2]), [0, 3, 1, 2] * 9
    value = torch.randn(36, 29 - 20, 32, generator=generator)

    def both(resume) -> list[torch.Tensor]:
        edits = [patch("resid_pre.1", value, list(range(20, 29))), patch("attn_out.2", value, list(range(20, 29)))]
        kept = None if resume is None else resume.select(rows)
        return [model.score([prompts[row] for row in rows], difference, edits=[edit], resume=kept) for edit in edits]

    with work(model) as done:
        reused = both(start)
    with without_reuse(model), work(model) as plain:
        whole = both(start)
    assert sum(done) == 4 * 20 + 2 * 36 * 9 and sum(plain) == 2 * 36 * 29
    for got, same, want in zip(reused, whole, both(None), strict=True):
        torch.testing.assert_close(got, same, atol=5e-5, rtol=2e-4)
        torch.testing.assert_close(got, want, atol=5e-5, rtol=2e-4)


def test_a_prefix_too_large_to_keep_is_run_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "KEPT_BYTES", 1000)
    model, prompts = tiny("llama"), [[7 + row, *SHARED] for row in range(4)]
    start = model.checkpoint(prompts, [1]).select([0, 1, 2, 3] * 8)
    with work(model) as done:
        model.score(prompts * 8, difference, edits=[zero("z.1", positions=[30])], resume=start)
    assert sum(done) == 32 * 35


def test_short_prefixes_and_whole_captures_are_left_alone() -> None:
    model = tiny("llama")
    calls = (
        lambda: model.score([[5, 6, 7, 8], [5, 6, 7, 9]], difference),
        lambda: model.capture(PROMPTS, "resid_post.1"),
        lambda: model.capture(PROMPTS, "pattern.1", positions="last"),
        lambda: model.logits([PROMPTS[0]]),
        lambda: model.gradients(PROMPTS, "resid_post.1", difference),
    )
    for call in calls:
        with work(model, 1) as done:
            call()
        assert len(done) == 1


def test_capture_low_in_the_model_does_not_run_the_prefix_above() -> None:
    model = tiny("llama")
    with work(model, 1) as above:
        model.capture(PROMPTS, "resid_post.0", positions="last")
    assert above == []


@pytest.mark.parametrize("where", ["in the prefix", "in the rest"])
def test_nothing_is_left_behind_when_a_pass_is_interrupted(where: str) -> None:
    model = tiny("qwen2")
    prompts, fired = PROMPTS * 2, []
    start = model.checkpoint(prompts, [1])

    def interrupt(*_: object) -> None:
        fired.append(1)
        if len(fired) > (where == "in the rest"):
            raise KeyboardInterrupt

    handle = model.hf.get_submodule("model.layers.2").register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.score(prompts, difference, edits=[zero("z.1.1", positions="last")], resume=start)
    handle.remove()
    assert not [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)]
    assert not model.engine.busy


def test_what_a_proof_says_nothing_about_is_never_cut() -> None:
    from transformers import MistralConfig, Phi3Config

    hf = tiny("mistral").hf
    assert prefix.provable_width(hf, 7) == 4096  # its sliding window
    hf.config = MistralConfig(sliding_window=4)
    assert prefix.provable_width(hf, 7) > 4096  # slid during the proof
    rope = dict(rope_type="longrope", short_factor=[1.0] * 4, long_factor=[2.0] * 4, rope_theta=1e4)
    config = Phi3Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=8, vocab_size=99,
                        pad_token_id=0, rope_parameters=rope, original_max_position_embeddings=16)  # fmt: skip
    from transformers import Phi3ForCausalLM

    assert prefix.provable_width(Phi3ForCausalLM(config), 7) == 0
