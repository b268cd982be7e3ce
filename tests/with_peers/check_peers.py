"""What Assay writes, read by the peers' own code; and the committed fixtures against what the peers do today (`make peers`)."""

from pathlib import Path

import pytest
import torch
from made_by_peers import CASES, inputs, learning_peer, sparsify_peer
from safetensors.torch import load_file

from assay.features.formats import FORMATS, load_dictionary, write_dictionary
from assay.features.formats.plain import SCALED
from formats_made_here import every
from formats_made_here import inputs as own_inputs

FIXTURES = Path(__file__).parent.parent / "fixtures" / "dictionaries"
MADE = every()


def saelens_peer(folder, x):
    from sae_lens import SAE

    sae = SAE.load_from_disk(folder)
    x = x[None] if sae.cfg.architecture() == "temporal" else x  # one text
    with torch.no_grad():
        return sae.encode(x).flatten(0, -2), sae(x).flatten(0, -2)


PEERS = {"saelens": saelens_peer, "dictionary_learning": learning_peer, "sparsify": sparsify_peer}


PAIRS = [(peer, name) for peer in PEERS for name, one in MADE.items() if not FORMATS.get(peer).lacks(one)]


@pytest.mark.parametrize("peer, name", PAIRS)
def test_a_peer_makes_the_same_of_what_is_written_here(peer, name, tmp_path):
    dictionary = MADE[name]
    written = write_dictionary(dictionary, tmp_path, peer)
    x = own_inputs()
    latents, rebuilt = PEERS[peer](tmp_path, x)
    norms = dictionary.directions().norm(dim=1) if SCALED in written.notes else 1.0
    assert torch.allclose(latents, dictionary.encode(x) * norms, atol=1e-5)
    assert torch.allclose(rebuilt, dictionary.reconstruct(x), atol=1e-5)
    assert float(latents.abs().sum()) > 1


@pytest.mark.parametrize("peer, name, write, run", [(peer, *case) for peer, cases in CASES.items() for case in cases()])
def test_fixtures_are_what_the_peer_does(peer, name, write, run, tmp_path):
    write(tmp_path / name)
    latents, rebuilt = run(tmp_path / name, inputs())
    kept = load_file(FIXTURES / peer / f"{name}.expected.safetensors")
    assert torch.allclose(latents, kept["latents"], atol=1e-6) and torch.allclose(rebuilt, kept["reconstruction"], atol=1e-6)
    dictionary = load_dictionary(tmp_path / name)
    assert torch.allclose(dictionary.encode(inputs()), latents, atol=1e-5)


def test_every_peer_has_dictionaries_here():
    assert {peer: sum(one == peer for one, _ in PAIRS) for peer in PEERS} == {
        "saelens": 26, "dictionary_learning": 16, "sparsify": 8}  # fmt: skip
