"""The grammar: round trips, other tools' spellings, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assay.errors import SiteError
from assay.sites import GLOBAL_SITES, INDEXED, LAYER_SITES, parse_site, parse_sites

layer_site = st.builds(lambda n, layer: f"{n}.{layer}", st.sampled_from(LAYER_SITES), st.integers(-99, 99))
indexed = st.builds(lambda n, a, b: f"{n}.{a}.{b}", st.sampled_from(sorted(INDEXED)), st.integers(0, 99), st.integers(0, 9999))


@given(st.one_of(layer_site, indexed, st.sampled_from(GLOBAL_SITES)))
def test_canonical_form_round_trips(text):
    assert str(parse_site(text)) == text
    assert parse_site(parse_site(text)) == parse_site(text)


@given(st.text(max_size=30))
def test_anything_is_a_site_or_a_site_error(text):
    try:
        site = parse_site(text)
    except SiteError:
        return
    assert parse_site(str(site)) == site


@pytest.mark.parametrize("spelled, canonical", [
    ("blocks.9.hook_resid_post", "resid_post.9"), ("blocks.2.attn.hook_z", "z.2"), ("L9.resid_post", "resid_post.9"),
    ("blocks.4.hook_mlp_in", "resid_mid.4"),
    ("layers.9", "resid_post.9"), ("h.3", "resid_post.3"), ("z.9.h3", "z.9.3"), ("neurons.4.7", "mlp_act.4.7"),
    ("path:model.layers.9.mlp:out", "path:model.layers.9.mlp:out"), ("latent.sae.12", "latent.sae.12"),
])  # fmt: skip
def test_other_spellings(spelled, canonical):
    assert str(parse_site(spelled)) == canonical


@pytest.mark.parametrize("text, says", [
    ("hidden_states[3]", "final norm"), ("blocks.3.ln2.hook_normalized", "before the gain .* Write mlp_in.3"),
    ("blocks.3.ln1.hook_normalized", "Write attn_in.3"), ("ln_final.hook_normalized", "Write final_norm"),
    ("resid_pots.3", "resid_post"), ("resid_post", "layer is missing"),
    ("resid_post.3.1", "no index"), ("embed.3", "takes no layer"), ("z.a", "not a number"), ("path:x", "path:<module"),
])  # fmt: skip
def test_refusals_say_what_to_do(text, says):
    with pytest.raises(SiteError, match=says):
        parse_site(text)


def test_sets():
    assert [str(s) for s in parse_sites("resid_post.*", 3)] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert [str(s) for s in parse_sites("z.1:3.*", 4, {"z": 2})] == ["z.1.0", "z.1.1", "z.2.0", "z.2.1"]
    assert [str(s) for s in parse_sites(["resid_post.-1"], 5)] == ["resid_post.4"]
    with pytest.raises(SiteError, match="outside the model"):
        parse_sites("resid_post.9", 3)
