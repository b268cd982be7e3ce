"""Claims about pictures, on a net with a known answer: channel 0 sees lines that fall, and only channel 0 feeds class 0."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from assay.atlas.store import Atlas
from assay.data.image_sources import CarSource, PicturePairs, PictureSource, picture_source
from assay.data.images import SceneSource, bare, load_images, on_background
from assay.errors import AssayError, ReproduceError, TaskError, UsageError
from assay.evidence.image_circuits import ImageInstrument, class_score, matched, prepare_pictures
from assay.evidence.replay import replay_claim
from assay.evidence.run import Settings, Statement, state_claim
from assay.evidence.run import test_claim as decide
from assay.model.image_tail import tail_of
from assay.model.image_untrained import untrained_image_model
from assay.model.images import ImageEdit, ImageModel, Pixels

GROUPS, WIDTH = 44, 32


class Net(nn.Module):
    """Channel 0 sees a line that falls, not one that rises; 1 to 31 cannot tell left from right. Class k: mean of channel k."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act = nn.Conv2d(1, WIDTH, 5, padding=2), nn.ReLU()
        self.out = nn.Linear(WIDTH, 4)
        with torch.no_grad():
            falls = torch.eye(5) - torch.eye(5).flip(1)
            self.a.weight.copy_(self.a.weight + self.a.weight.flip(3))
            self.a.weight[0, 0] = 0.15 * falls
            self.a.bias.zero_()
            self.out.weight.copy_(torch.diag(torch.tensor([120.0, 0.1, 0.1, 0.1])) @ torch.eye(4, WIDTH))

    def forward(self, x):
        return self.out(self.act(self.a(x)).mean((2, 3)))


@pytest.fixture
def net() -> ImageModel:
    return ImageModel(Net(), Pixels(16, 1, (0.0,), (1.0,)), "net", labels={0: "falls", 1: "one"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of 44 backgrounds with a falling line, a rising one (near miss), or none; and pairs with and without it."""
    place, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows, pairs = [], []
    for group in range(GROUPS):
        base = np.clip(rng.integers(60, 120, (1, 1, 1)) + rng.normal(0, 2, (16, 16, 3)), 0, 255)
        names = {}
        for number, kind in enumerate(("falls", "rises", "rises", "falls", "rises", "rises", "falls", "none")):
            picture, (y, x) = base + rng.normal(0, 1, base.shape), rng.integers(0, 16, 2)
            line = np.arange(8)
            if kind != "none":  # over the edge and back: no place tells one from the other
                picture[(y + line) % 16, (x + (line if kind == "falls" else 7 - line)) % 16] = rng.integers(140, 250)
            names[kind] = f"{group}-{number}-{kind}.png"
            Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(place / names[kind])
            rows.append({"image": names[kind], "label": int(kind == "falls"), "near_miss": kind == "rises",
                         "group": f"g{group}"})  # fmt: skip
        pairs.append({"clean": names["falls"], "corrupted": names["none"], "answer": "falls", "group": f"g{group}"})
    (place / "lines.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return place


def test_a_channel_that_sees_falling_lines_is_supported_and_another_is_not(net, folder, tmp_path):
    store, source = Atlas(tmp_path), PictureSource(str(folder / "lines.jsonl"))
    found = {}
    for channel in (0, 3):
        claim, _ = state_claim(store, net, source, f"block.act.{channel}", statement=Statement("represents"),
                               settings=Settings(draws=30))  # fmt: skip
        found[channel] = decide(store, claim.id, net)
    assert found[0].verdict == "supported", [gate for gate in found[0].gates if not gate["passed"]]
    assert found[3].verdict in ("refuted", "inconclusive")
    gates = {gate["name"]: gate for gate in found[0].gates}
    assert {"near_miss", "untrained", "random.direction", "lexical", "detection"} <= set(gates)
    assert "pictures" in found[0].sentence
    assert replay_claim(store, found[0].claim, net).same


def test_only_the_channel_that_feeds_a_class_carries_it(net, folder, tmp_path):
    store, source = Atlas(tmp_path), PicturePairs(str(folder / "pairs.jsonl"))
    verdicts = {}
    for channel in (0, 5):
        claim, _ = state_claim(store, net, source, [f"block.act.{channel}"], settings=Settings(48, 64, 48, draws=5))
        verdicts[channel] = decide(store, claim.id, net)
    assert verdicts[0].verdict == "supported", (verdicts[0].reasons, verdicts[0].gates)
    assert "backgrounds" in verdicts[0].sentence and "channel" in verdicts[0].sentence
    assert verdicts[5].verdict == "refuted"
    net.hf.out.weight.data[0, 0] = 1
    with pytest.raises(ReproduceError):
        replay_claim(store, verdicts[0].claim, net)


def test_the_instrument_equals_raw_hooks(net, folder):
    source = PicturePairs(str(folder / "pairs.jsonl"))
    from assay.evidence.circuits_instrument import Setup

    task = prepare_pictures(net, source.items("tune", 6, 0))
    mean = torch.full((1, WIDTH, 1, 1), 0.25)
    setup = Setup(("block.act.0",), ("block.act.1",), (), {"block.act": mean}, "logit_diff", "all", 1)
    found = ImageInstrument(net, task, range(len(task)), setup)
    images = [load_images([getattr(pair, run) for pair in task.pairs], 16) for run in ("clean", "corrupted")]
    values = [net.hf.act(net.hf.a(x.mean(1, keepdim=True))).detach() for x in images]

    def expected(base, other, place):
        mixed = values[base].clone()
        mixed[:, place] = other
        logits = net.hf.out(mixed.mean((2, 3))).detach().double()
        return (logits[:, 0] - logits[:, 1:].logsumexp(1) + np.log(3)).tolist()

    assert found.ablated(("block.act.0",), "resample") == pytest.approx(expected(0, values[1][:, 0], 0), abs=1e-5)
    assert found.ablated(("block.act.0",), "mean") == pytest.approx(expected(0, 0.25, 0), abs=1e-5)
    assert found.ablated(("block.act.0",), "zero") == pytest.approx(expected(0, 0.0, 0), abs=1e-5)
    assert found.restored(("block.act.0",)) == pytest.approx(expected(1, values[0][:, 0], 0), abs=1e-5)
    assert found.restored((found.everything(),)) == pytest.approx(found.clean, abs=1e-5)
    assert found.patched(("block.act.0",), "same") == pytest.approx(found.corrupted, abs=1e-5)


class Around(Net):
    """A skip connection passes by the map."""

    def forward(self, x):
        return super().forward(x) + x.mean()


def test_a_tail_is_the_rest_of_the_run_or_there_is_none(net):
    images = torch.rand(5, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    tail, values = tail_of(net, "block.a"), net.capture(images, ["block.a"])["block.a"]
    assert tail is not None and torch.equal(tail.logits(values), net.logits(images))
    changed = values.clone()
    changed[:, 0] = 1.5
    assert torch.equal(tail.logits(changed), net.logits(images, [ImageEdit("block.a", 1.5, channels=(0,))]))
    assert "forward" not in net.hf.a.__dict__
    around = ImageModel(Around(), net.pixels)
    assert tail_of(around, "block.a") is None


def test_matched_channels_are_near_and_others():
    acts = torch.arange(12.0).reshape(1, 12, 1, 1).expand(4, 12, 2, 2)
    for drawn in matched(acts, (0, 1), 20, 0):
        assert not {0, 1} & set(drawn) and max(drawn) <= 11 and len(set(drawn)) == 2
    assert class_score(torch.zeros(1, 5), [0, 1]).item() == pytest.approx(0, abs=1e-6)


def test_an_untrained_twin_is_another_and_alive(net):
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    bn = ImageModel(nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 3)),
                    Pixels(16, 1, (0.0,), (1.0,)))  # fmt: skip
    for model in (net, bn):
        for scheme in ("all", "permuted"):
            twin = untrained_image_model(model, scheme, 1)
            assert twin.digest != model.digest and twin.logits(images).std(0).max() > 0
            assert torch.equal(twin.logits(images), untrained_image_model(model, scheme, 1).logits(images))
    ends = untrained_image_model(bn, "blocks", 1).hf
    assert torch.equal(ends[0].weight, bn.hf[0].weight) and torch.equal(ends[4].weight, bn.hf[4].weight)
    assert not bn.hf.training and torch.equal(bn.hf[1].running_mean, torch.zeros(8))


def test_backgrounds_are_taken_apart():
    items = SceneSource("wheels").items("tune", 16, 0)
    member = next(item for item in items if item.label)
    name, home = member.text, member.text.split("/")[2]
    other = "t05" if home != "t05" else "t06"
    a, b, c = load_images([name, on_background(name, home), on_background(name, other)], 64)
    assert torch.equal(a, b) and not torch.equal(a, c)
    empty = load_images([bare(name)], 64)[0]
    assert 0 < (a - empty).abs().amax(0).gt(0.05).float().mean() < 0.6


def test_cars_differ_only_in_what_is_taken_away():
    for pair in CarSource(("1",), "wheels").items("confirm", 4, 0):
        clean, corrupted = load_images(pair.texts, 64)
        changed = (clean - corrupted).abs().amax(0) > 0.02
        assert 0 < changed.float().mean() < 0.2 and not changed[:20].any()


def test_mistakes_about_pictures_are_named(net, folder, tmp_path):
    store, source = Atlas(tmp_path), PictureSource(str(folder / "lines.jsonl"))
    for subject, kind in (("block.act", "mediates"), ("block.none.1", "represents"), ("block.act.32", "represents"),
                          ("block.act.0", "detects")):  # fmt: skip
        with pytest.raises(AssayError):
            data = PicturePairs(str(folder / "pairs.jsonl")) if kind == "mediates" else source
            state_claim(store, net, data, subject, statement=Statement(kind), settings=Settings(draws=3))
    (folder / "bad.jsonl").write_text('{"image": "missing.png", "label": 1, "group": "a"}')
    with pytest.raises(TaskError, match="line 1, field 'image'"):
        picture_source(str(folder / "bad.jsonl"))
    with pytest.raises(UsageError, match="wheels, windows, cars"):
        picture_source("wheel")
    with pytest.raises(UsageError, match="class"):
        prepare_pictures(net, CarSource(("purple",)).items("tune", 2, 0))


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    """A tiny vision transformer in a folder, as people have them."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("models") / "tiny-vit"
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16,
                       patch_size=4, num_channels=1, num_labels=3)  # fmt: skip
    ViTForImageClassification(config).save_pretrained(place)
    facts = {"size": {"height": 16, "width": 16}, "image_mean": [0.5], "image_std": [0.5]}
    (place / "preprocessor_config.json").write_text(json.dumps(facts))
    return place


def test_from_finding_to_a_page_on_the_command_line(vit_folder, folder, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from assay.cli.main import cli

    def run(*words):
        done = CliRunner().invoke(cli, [*words, "--quiet"])
        assert done.exit_code == 0, (words, done.output, done.exception)
        return done.stdout

    def refused(*words):
        return str(CliRunner().invoke(cli, [*words, "--quiet"]).exception)

    monkeypatch.chdir(tmp_path)
    lines, sizes = str(folder / "lines.jsonl"), ("tune=40", "confirm=64", "ood=48", "draws=9")
    cheap = [word for size in sizes for word in ("--set", size)]
    found = json.loads(run("vision", "find", str(vit_folder), lines, "--site", "mlp_act.0", "--n", "2", *cheap, "--json", "-"))
    assert len(found["channels"]) == 2 and found["claims"][0]["kind"] == "represents"
    named = ("vision", "claim", str(vit_folder), str(folder / "pairs.jsonl"), "mlp_act.0.3", "--kind", "mediates")
    assert "'falls'" in refused(*named) and "LABEL_0" in refused(*named)
    assert "wheels, windows" in refused("vision", "find", str(vit_folder), "cars", "--site", "mlp_act.0")
    verdicts = json.loads(run("vision", "test", "--json", "-"))
    assert [each["claim"] for each in verdicts] == [found["claims"][0]["claim"]]
    assert verdicts[0]["verdict"] in ("refuted", "inconclusive")
    assert "the same verdict" in run("claim", "replay", verdicts[0]["claim"])
    run("claim", "verify")
    run("vision", "page", "--out", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert verdicts[0]["sentence"][:30] in page.replace("&#39;", "'") and "data:image/png" in page
    assert 'src="http' not in page
    assert "a claim about pictures" in refused("vision", "test")
