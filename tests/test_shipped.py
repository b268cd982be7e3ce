"""The dictionaries that come along for the default model: whole, small enough, and better than nothing on other text."""

import json

import pytest
import torch

from assay.cli import opened
from assay.errors import UsageError
from assay.evidence import dictionaries
from assay.evidence.neutral import TEXTS
from assay.features.kept import JSON, SHIPPED, is_shipped, shipped, shipped_folder

MODEL = "smollm2-135m"


def test_they_are_whole_and_small():
    found = {"+".join((*one.spec.inputs, *one.spec.outputs)): one for one in shipped(MODEL)}
    pairs = {f"mlp_in.{layer}+mlp_out.{layer}" for layer in range(30)}
    assert pairs | {"resid_post.15+resid_post.15"} == set(found)
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 40e6
    for one in found.values():
        assert one.provenance["trained_tokens"] > 100_000 and one.provenance["stream"]["model"]["model"] == MODEL
        assert one.spec.norm_limit is not None and one.spec.skip_first == 1
    assert shipped("another model") == [] and is_shipped(MODEL) and not is_shipped(str(SHIPPED))


@pytest.mark.slow
def test_they_reconstruct_what_they_were_not_trained_on(smollm2):
    by_site = {one.spec.outputs[0]: one for one in shipped(MODEL)}
    sites = [site for one in (by_site["resid_post.15"], by_site["mlp_out.3"], by_site["mlp_out.20"])
             for site in (*one.spec.inputs, *one.spec.outputs)]  # fmt: skip
    acts = smollm2.capture(list(TEXTS), list(dict.fromkeys(sites)))
    positions = torch.cat([torch.arange(len(ids)) for ids in smollm2.tokens(list(TEXTS))])
    for output, most in (("resid_post.15", 0.45), ("mlp_out.3", 0.85), ("mlp_out.20", 0.8)):
        one = by_site[output]
        x, y = acts.flat(one.spec.inputs[0]).float(), acts.flat(output).float()
        keep = one.typical(x, positions)
        x, y = x[keep], y[keep]
        left = float((y - one.reconstruct(x)).square().sum() / (y - y.mean(0)).square().sum())
        assert left < most, output
        assert 0.4 * one.spec.k < float(one.codes(x).l0.mean()) < 2.5 * one.spec.k


def test_a_shipped_dictionary_goes_by_its_name_and_a_claim_finds_it_by_its_digest(tmp_path, monkeypatch):
    """`--dictionary topk-4096` needs no path into this package, nor does the replay of a claim that a map made."""
    monkeypatch.setenv("ASSAY_CACHE", str(tmp_path))  # where nothing was seen before
    records = {path.parent: json.loads(path.read_text()) for path in SHIPPED.glob(f"**/{JSON}")}
    for folder, record in records.items():
        assert shipped_folder(record["name"]) == shipped_folder(record["digest"]) == folder
    assert shipped_folder("nothing") is None
    record = min(records.values(), key=lambda each: each["spec"]["width"])
    monkeypatch.setattr(dictionaries, "_OPEN", {})
    opened.open_all({record["digest"]: record["name"]}, [])
    assert dictionaries.is_open(record["digest"]) and opened.open_dictionary(record["name"]).digest == record["digest"]
    with pytest.raises(UsageError, match="nothing"):
        opened.open_dictionary("nothing")
