"""Language models as hosts of features: what is read, where, and what an untrained twin keeps."""

import pytest
import torch

from assay.errors import ShapeError, SiteError, TaskError, UsageError
from assay.evidence.features import direction, feature_of
from assay.evidence.hosts import as_host, untrained_model
from assay.records import Example

TEXTS = [Example("the cat sat on a mat", 1, "a", position=4), Example("one two three", 0, "b"),
         Example("we saw the old house", 1, "b", position=11)]  # fmt: skip


@pytest.fixture(scope="module")
def host(glass):
    return as_host(glass)


def test_activations_are_read_at_the_examples_token(host, glass):
    """Against raw hooks: one prompt at a time, the position of the token that holds the character."""
    data = host.load(TEXTS)
    got = host.read("resid_post.1", data)
    kept: list[torch.Tensor] = []
    hook = glass.hf.model.layers[1].register_forward_hook(
        lambda module, args, out: kept.append((out[0] if isinstance(out, tuple) else out).detach().clone())
    )
    try:
        for ids, at in zip(data.tokens, data.at, strict=True):
            with torch.no_grad():
                glass.hf(input_ids=torch.tensor([ids]))
            assert torch.allclose(got[len(kept) - 1], kept[-1][0, at], atol=1e-5)
    finally:
        hook.remove()
    assert "cat" in glass.text([data.tokens[0][data.at[0]]]) or data.at[0] < len(data.tokens[0]) - 1
    assert data.at[1] == len(data.tokens[1]) - 1


def test_an_offset_outside_every_token_is_dropped_and_counted(host):
    data = host.load([*TEXTS, Example("a b", 0, "c", position=50)])
    assert len(data) == 3 and sum(data.dropped.values()) == 1
    with pytest.raises(TaskError, match="none of 1 examples"):
        host.load([Example("a b", 0, "c", position=50)])


@pytest.mark.parametrize("scheme", ["all", "blocks", "permuted"])
def test_untrained_twins_keep_what_the_scheme_says(glass, scheme):
    before = {name: weight.clone() for name, weight in glass.hf.named_parameters()}
    twin = untrained_model(glass, scheme, 3)
    again, other = untrained_model(glass, scheme, 3), untrained_model(glass, scheme, 4)
    assert twin.digest == again.digest != other.digest
    assert all(torch.equal(weight, before[name]) for name, weight in glass.hf.named_parameters())  # the trained one stays
    embedding = twin.hf.get_input_embeddings().weight
    assert torch.equal(embedding, glass.hf.get_input_embeddings().weight) == (scheme == "blocks")
    inner = dict(twin.hf.named_parameters())["model.layers.0.mlp.up_proj.weight"]
    trained = before["model.layers.0.mlp.up_proj.weight"]
    assert not torch.equal(inner, trained)
    if scheme == "permuted":
        assert torch.equal(inner.flatten().sort().values, trained.flatten().sort().values)
    assert as_host(twin).read("resid_post.0", as_host(twin).load(TEXTS)).isfinite().all()
    with pytest.raises(UsageError, match="allowed: all, blocks, permuted"):
        untrained_model(glass, "none", 0)


def test_features_have_one_name_and_refuse_what_does_not_fit():
    assert feature_of("mlp_act.1.17").name == "mlp_act.1.17"
    one, same = direction("resid_post.1", [3.0, 4.0]), direction("resid_post.1", [6.0, 8.0])
    assert one.name == same.name and one.vector == (0.6, 0.8)
    assert feature_of(one.record()) == one
    with pytest.raises(SiteError, match="one unit"):
        feature_of("mlp_act.1")
    with pytest.raises(UsageError, match="not all zero"):
        direction("resid_post.1", [0.0, 0.0])
    with pytest.raises(ShapeError, match="got 2 numbers; allowed: 3"):
        one.direction(3)
    with pytest.raises(ShapeError, match="allowed: 0 to 3"):
        feature_of("mlp_act.1.17").direction(4)
