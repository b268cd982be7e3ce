"""Methods on image models against raw PyTorch hooks, closed forms and planted pictures."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from assay.cli.main import cli
from assay.data.image_sets import classes_of, image_set
from assay.data.image_sources import picture_source
from assay.data.images import load_images
from assay.errors import LayoutError, SiteError, TaskError, UsageError
from assay.features.kept import load
from assay.model.image_load import LiteBlock
from assay.model.images import ImageEdit, ImageModel, Pixels
from assay.vision.attribution import attribute_channels
from assay.vision.dictionary import ChannelPlan, harvest_channels, train_on_channels
from assay.vision.examples import examples
from assay.vision.patching import patch_pictures
from assay.vision.pointing import cells_inside, inside_auroc
from assay.vision.probing import probe_sites
from assay.vision.targets import Target, parse_target
from assay.vision.visualise import VisualisePlan, check, picture, visualise
from assay.vision.weights import effective_weights

PIXELS = Pixels(16, 1, (0.5,), (0.5,))


class Net(nn.Module):
    """Expand, depthwise and project with batch norms that do something, twice, and a linear map of means."""

    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.one, self.two = LiteBlock(4, 4, 3, 1, 3), LiteBlock(4, 6, 3, 2, 2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Sigmoid()) if gate else None
        self.last = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 3)
        for norm in (m for m in self.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0.3, 0.3)
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.2, 1.0)

    def forward(self, x):
        x = self.two(self.one(self.stem(x)))
        x = self.last(x if self.gate is None else x * self.gate(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> ImageModel:
    torch.manual_seed(0)
    return ImageModel(Net(), PIXELS)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))


def hooked(model: ImageModel, module: nn.Module, change, images) -> torch.Tensor:
    """Logits with a module's output put through `change`, by a plain hook."""
    with module.register_forward_hook(lambda m, i, o: change(o.clone())), torch.no_grad():
        out = model.hf(model.pixels.normalise(images))
    return getattr(out, "logits", out)


# weights -----------------------------------------------------------------------------------------


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> torch.Tensor:
    return conv.weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]


def test_weights_are_the_product_of_kernels_with_norms_folded_in(net):
    """Pointwise, depthwise, pointwise, and the skip beside them: sum over m of P[t, m] D[m] E[m, s], plus t = s."""
    one: LiteBlock = net.hf.one
    E, D, P = (folded(part[0], part[1])[..., :, :].detach() for part in (one.expand, one.depthwise, one.project))
    expected = torch.einsum("tm,myx,ms->tsyx", P[:, :, 0, 0], D[:, 0], E[:, :, 0, 0])
    expected[:, :, 1, 1] += torch.eye(4)
    found = effective_weights(net, "block.stem", "block.one")
    torch.testing.assert_close(found.kernel, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(effective_weights(net, "block.stem.2", "block.one.1").kernel, expected[1:2, 2:3])
    t, s = found.strongest(1)[0]
    assert float(expected[t, s].norm()) == pytest.approx(float(expected.flatten(2).norm(dim=2).max()), rel=1e-4)
    assert not any("forward" in module.__dict__ for module in net.hf.modules())


def test_weights_are_refused_where_something_multiplies_or_the_order_is_wrong(net):
    torch.manual_seed(0)
    gated = ImageModel(Net(gate=True), PIXELS)
    with pytest.raises(LayoutError, match="multiplies"):
        effective_weights(gated, "block.two", "block.last")
    with pytest.raises(UsageError, match="after block.one"):
        effective_weights(net, "block.one", "block.stem")


# edges -------------------------------------------------------------------------------------------


def test_first_order_is_exact_where_the_path_is_linear(net, images):
    found = attribute_channels(net, images, images * 0.5, "block.two", parse_target(net, "logit:1"), check=6)
    torch.testing.assert_close(found.scores[:, list(found.chosen)], found.exact, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.scores.sum(1), found.total, rtol=1e-3, atol=1e-5)
    assert found.pearson == pytest.approx(1, abs=1e-3)


def test_exact_edges_equal_raw_hooks_and_agree_with_first_order_through_relus(net, images):
    reference = (images + 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    target = parse_target(net, "block.two.3")
    found = attribute_channels(net, images, reference, "block.stem", target, check=[2, 0, 1, 3], batch=4)
    held = []
    hooked(net, net.hf.stem, lambda out: held.append(out.clone()) or out, reference)

    def patch(out):
        out[:, 2] = held[0][:, 2]
        return out

    values = []
    for change in (lambda out: out, patch):
        with net.hf.two.register_forward_hook(lambda m, i, o: values.append(o.clone())):
            hooked(net, net.hf.stem, change, images)
    expected = (values[0] - values[1])[:, 3].mean((1, 2))
    torch.testing.assert_close(found.exact[:, 0].float(), expected, rtol=1e-3, atol=1e-6)
    assert found.pearson is not None and found.pearson > 0.8
    with pytest.raises(UsageError, match="source"):
        attribute_channels(net, images, reference, "block.last", target)


# patching ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_of_channels_and_places_equals_raw_hooks(net, images, direction):
    clean, corrupted, target = images[:2], images[2:4], parse_target(net, "logit:0")
    held = {}
    logits = {}
    for name, part in (("clean", clean), ("corrupted", corrupted)):
        logits[name] = hooked(net, net.hf.two, lambda out, name=name: held.setdefault(name, out), part)[:, 0]
    run, other = (corrupted, "clean") if direction == "denoise" else (clean, "corrupted")
    by_channel = patch_pictures(net, clean, corrupted, "block.two", target, "channel", direction, batch=4)
    by_place = patch_pictures(net, clean, corrupted, "block.two", target, "place", direction, cell=4)
    assert by_channel.shape == (6,) and by_place.shape == (2, 2)

    def channel(out):
        out[:, 5] = held[other][:, 5]
        return out

    def place(out):
        out[:, :, 4:8, 0:4] = held[other][:, :, 4:8, 0:4]
        return out

    for found, unit, change in ((by_channel, 5, channel), (by_place, 2, place)):
        got = hooked(net, net.hf.two, change, run)[:, 0]
        moved = got - logits["corrupted"] if direction == "denoise" else logits["clean"] - got
        expected = moved / (logits["clean"] - logits["corrupted"])
        torch.testing.assert_close(found.effect[:, unit].float(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.whole, torch.ones(2).double(), rtol=1e-4, atol=1e-4)


def test_patching_of_heads_and_tokens_of_a_vit_equals_raw_hooks(images):
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32, image_size=16,
                       patch_size=4, num_channels=1, num_labels=5)  # fmt: skip
    model = ImageModel(ViTForImageClassification(config), PIXELS)
    clean, corrupted, target = images[:1], images[1:2], parse_target(model, "logit:2")
    point = model.layout.points["z.0"]
    module = model.hf.get_submodule(point.path)
    held = []
    with module.register_forward_pre_hook(lambda m, given: held.append(given[0].clone())):
        ends = [model.hf(model.pixels.normalise(x)).logits[0, 2].detach() for x in (clean, corrupted)]

    def head(m, given):
        value = given[0].clone()
        value[:, :, 8:12] = held[0][:, :, 8:12]
        return (value,)

    def token(m, given):
        value = given[0].clone()
        value[:, 7] = held[0][:, 7]
        return (value,)

    for by, unit, change in (("channel", 2, head), ("place", 7, token)):
        found = patch_pictures(model, clean, corrupted, "z.0", target, by)
        with module.register_forward_pre_hook(change), torch.no_grad():
            got = model.hf(model.pixels.normalise(corrupted)).logits[0, 2]
        expected = (got - ends[1]) / (ends[0] - ends[1])
        assert float(found.effect[0, unit]) == pytest.approx(float(expected), rel=1e-3, abs=1e-4)


def test_pairs_that_do_not_differ_are_left_out_or_refused(net, images):
    clean, corrupted = images[:3].clone(), images[3:].clone()
    corrupted[1] = clean[1]
    found = patch_pictures(net, clean, corrupted, "block.two", parse_target(net, "logit:0"))
    assert found.pairs == (0, 2)
    with pytest.raises(UsageError, match="same on both"):
        patch_pictures(net, clean[1:2], clean[1:2], "block.two", parse_target(net, "logit:0"))


# visualisation -----------------------------------------------------------------------------------


class Template(nn.Module):
    """Logit c is the mean of the picture times template c; the third is dead on almost every picture."""

    def __init__(self) -> None:
        super().__init__()
        y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
        self.w = nn.Parameter(torch.stack([x, y, (y.abs() < 0.5).float() - (x.abs() < 0.5).float()]))
        self.map = nn.Conv2d(3, 3, 1)
        nn.init.dirac_(self.map.weight)
        nn.init.zeros_(self.map.bias)
        self.bias = nn.Parameter(torch.tensor([0.0, 0.0, -0.05]))

    def forward(self, x):
        return torch.relu(self.map(x * self.w[None]).mean((2, 3)) + self.bias) + 0 * x.sum()


def test_a_visualisation_is_the_template_of_a_linear_unit_and_the_same_for_the_same_seed(images):
    model = ImageModel(Template(), PIXELS)
    plan = VisualisePlan(steps=60, jitter=0.0, scale=0.0, rotate=0.0, seed=3)
    for c in (0, 2):  # the third has no gradient on faint noise
        target = Target("block.map", c)
        found = visualise(model, target, plan)
        drawn, template = found.image[0] - 0.5, model.hf.w[c].detach()
        agree = (drawn.sign() == template.sign())[template.abs() > 0.1].float().mean()
        assert float(agree) > 0.8 and found.moved
        checked = check(model, found, target, images)
        assert checked.above_all and checked.highest < found.activation and checked.rank == pytest.approx(1 / 3)
        assert found.activation <= float(template.abs().mean()) + 1e-5  # what no picture can exceed
    assert torch.equal(found.image, visualise(model, target, plan).image)
    assert not torch.equal(found.image, visualise(model, target, VisualisePlan(60, jitter=0, scale=0, rotate=0)).image)


def test_coefficients_of_frequencies_are_the_inverse_transform():
    """One coefficient at (0, 3) gives a cosine of three periods across, before the sigmoid."""
    weights = torch.zeros(1, 1, 16, 9, 2)
    weights[0, 0, 0, 3, 0] = 1.0
    x = torch.arange(16) / 16
    wave = torch.logit(picture(weights, 16)[0, 0])
    expected = 2 * torch.cos(2 * torch.pi * 3 * x) / 16 * 16 / 3
    torch.testing.assert_close(wave, expected.expand(16, 16), rtol=1e-4, atol=1e-4)


# pictures ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """40 grey pictures with noise, half of them with a bright square at a place of their own; near misses have a dark one."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        pixels = rng.integers(90, 130, (16, 16)).astype(np.uint8)
        bright = number % 2
        y, x = rng.integers(1, 11, 2)
        if bright or number % 4 == 0:
            pixels[y : y + 4, x : x + 4] = 250 if bright else 5
        path = tmp_path / f"g{number // 4}" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append({"image": str(path.relative_to(tmp_path)), "label": bright, "group": f"g{number // 4}",
                     "near_miss": not bright and number % 4 == 0})  # fmt: skip
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


class Bright(nn.Module):
    """Channel 0 answers bright squares, channel 1 nothing in particular."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.out = nn.Conv2d(1, 2, 4, stride=2, padding=1), nn.ReLU(), nn.Linear(2, 2)
        with torch.no_grad():
            self.conv.weight[0], self.conv.bias[0] = 1 / 16, -0.2

    def forward(self, x):
        return self.out(self.act(self.conv(x)).amax((2, 3)))


def test_examples_find_planted_squares_and_show_where(folder):
    torch.manual_seed(0)
    model = ImageModel(Bright(), PIXELS)
    items = image_set(str(folder / "own.jsonl"), 40)
    found = examples(model, parse_target(model, "block.act.0"), items, top=20, quantiles=3, random=4, seed=1)
    tops = [one for one in found.shown if one.kind == "top"]
    assert all(one.label == 1 for one in tops) and found.n == 40
    for one in tops[:5]:
        picture = load_images([one.name], 16, 1)
        raw = []
        with model.hf.act.register_forward_hook(lambda m, i, o, raw=raw: raw.append(o[0, 0].clone())):
            model.logits(picture)
        torch.testing.assert_close(one.heat, raw[-1])
        y, x = divmod(int(picture[0, 0].argmax()), 16)  # the square's first bright pixel
        assert abs(one.peak[0] * 16 - (y + 2)) <= 2.5 and abs(one.peak[1] * 16 - (x + 2)) <= 2.5
    quantiles = [one.value for one in found.shown if one.kind == "quantile"]
    assert quantiles == sorted(quantiles) and quantiles[-1] == tops[0].value
    by_folder = image_set(str(folder), 100)
    assert len(by_folder) == 40 and {item.template for item in by_folder} == {f"g{i}" for i in range(10)}


def test_two_folders_are_labels_and_probes_of_them_say_so(folder, tmp_path, monkeypatch):
    """The second in the order of the alphabet is label 1; each folder is one group, so single pictures are held out."""
    rows = [json.loads(line) for line in (folder / "own.jsonl").read_text().splitlines()]
    for names in (("cats", "dogs"), ("0", "1")):
        for number, row in enumerate(rows):
            place = tmp_path / "sorted" / "".join(names) / names[row["label"]] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes((folder / row["image"]).read_bytes())
        source = str(tmp_path / "sorted" / "".join(names))
        assert classes_of(source) == names
        assert {(item.label, item.template) for item in image_set(source, 40)} == set(enumerate(names))
    (tmp_path / "sorted" / "catsdogs" / "more.png").write_bytes((folder / rows[0]["image"]).read_bytes())
    assert classes_of(str(tmp_path / "sorted" / "catsdogs")) is None and classes_of(str(folder)) is None
    torch.manual_seed(0)
    monkeypatch.setattr("assay.model.image_load.load_image_model", lambda *_: ImageModel(Bright(), PIXELS, "bright"))
    ask = ["vision", "probe", "bright", "--images", source, "--site", "block.act", "--out", str(tmp_path)]
    with pytest.raises(UsageError, match=r'--by picture.*"image": "cats/one.jpg", "label": 1, "group"'):
        CliRunner().invoke(cli, ask, catch_exceptions=False)
    done = CliRunner().invoke(cli, [*ask, "--by", "picture"], catch_exceptions=False)
    assert done.exit_code == 0 and "label 0: 0/, label 1: 1/" in done.output and "40 pictures, 20 members" in done.output
    with pytest.raises(UsageError, match="names no groups"):
        picture_source(source)


def test_probes_read_a_planted_square_and_not_dealt_labels(folder):
    torch.manual_seed(0)
    model = ImageModel(Bright(), PIXELS)
    items = image_set(str(folder / "own.jsonl"), 40)
    found = probe_sites(model, items, ["block.act", "block.conv.0"])
    assert found.groups == 10 and [one.site for one in found.sites] == ["block.act", "block.conv"]
    act = found.sites[0]
    assert act.auroc.value > 0.95 and act.near is not None and act.near.value > 0.9
    assert act.over_pixels.value == pytest.approx(act.auroc.value - found.pixels.value) and act.shuffled < 0.8
    with pytest.raises(UsageError, match="2 groups"):
        probe_sites(model, [item for item in items if item.template == "g0"], ["block.act"])


def test_a_dictionary_on_channels_reads_raw_columns_and_beats_its_frozen_decoder(folder, net):
    items = image_set(str(folder), 40)
    vectors = harvest_channels(net, items[:1], "block.two", 64)
    raw = []
    with net.hf.two.register_forward_hook(lambda m, i, o: raw.append(o[0].clone())):
        net.logits(load_images([items[0].text], 16, 1))
    torch.testing.assert_close(vectors, raw[-1].flatten(1).T)
    plan = ChannelPlan(width=12, k=2, per_image=32, vectors=6_000, batch=256)
    found = train_on_channels(net, items, "block.two", plan)
    columns = {each.name: each.measures for each in found.columns}
    assert set(columns) == {"dictionary", "frozen decoder", "principal axes", "raw coordinates", "untrained model"}
    assert columns["dictionary"]["FVU"].value < columns["frozen decoder"]["FVU"].value
    assert columns["dictionary"]["L0"].value == pytest.approx(2, abs=0.1) == columns["principal axes"]["L0"].value
    assert found.train + found.held == 40 * 32 and 0 < found.held < found.train


def test_an_interrupted_dictionary_goes_on_and_is_the_same(folder, net, tmp_path):
    items, plan = image_set(str(folder), 12), ChannelPlan(width=12, k=2, per_image=8, vectors=16 * 56, batch=16)
    whole = train_on_channels(net, items, "block.two", plan).dictionary
    out, seen = tmp_path / "kept", []

    def stop(words, done, of):
        seen.append((done, of))
        if (done, of) == (53, 56):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_on_channels(net, items, "block.two", plan, out, stop)
    with pytest.raises(UsageError, match="another run"):
        train_on_channels(net, items, "block.stem", plan, out)
    seen.clear()
    again = train_on_channels(net, items, "block.two", plan, out, lambda words, done, of: seen.append((done, of))).dictionary
    assert (51, 56) in seen and (50, 56) not in seen[: seen.index((51, 56))]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in again.state_dict().items())


def test_pointing_counts_pairs_of_cells_inside_and_outside():
    maps = torch.randint(0, 4, (3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    inside = cells_inside([(0.0, 0.0, 0.5, 0.25), (0.6, 0.6, 0.7, 0.7)], 4, 4)  # two cells, and one whose middle is inside
    assert inside.nonzero().tolist() == [[0, 0], [0, 1], [2, 2]]
    for channel, got in zip(maps, inside_auroc(maps, inside)):
        a, b = channel[inside][:, None], channel[~inside][None]
        assert float(got) == pytest.approx(float(((a > b) + 0.5 * (a == b)).mean()))


def test_sets_and_targets_that_are_none_are_named(net, tmp_path):
    with pytest.raises(UsageError, match="wheels, windows, cars"):
        image_set("cat", 5)
    with pytest.raises(UsageError, match="sealed for claims"):
        image_set("wheels:confirm", 5)
    with pytest.raises(TaskError, match="no picture below"):
        image_set(str(tmp_path), 5)
    for text in ("block.two", "block.two.1@9,0", "logit:3", "logit:0+1+2"):
        with pytest.raises(UsageError):
            parse_target(net, text)
    with pytest.raises(SiteError, match="0 to 5"):
        parse_target(net, "block.two.6")
    assert parse_target(net, "block.two.1@7,0").name == "block.two.1@7,0"


def test_values_with_as_many_channels_as_images_are_not_cut_by_batches(net, images):
    value = torch.arange(6.0)[:, None, None]  # channels, and six pictures
    whole = net.logits(images, [ImageEdit("block.two", value)], batch=6)
    torch.testing.assert_close(net.logits(images, [ImageEdit("block.two", value)], batch=4), whole)
    with pytest.raises(SiteError, match="0 to 5"):
        net.logits(images, [ImageEdit("block.two", 0.0, channels=(6,))])


@pytest.mark.whole
def test_commands_write_pictures_and_json(tmp_path, monkeypatch):
    """On a folder that `save_pretrained` made: a net nobody has seen."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], num_channels=3,
                                              num_labels=4)).save_pretrained(tmp_path / "net")  # fmt: skip
    (tmp_path / "net" / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    monkeypatch.chdir(tmp_path)
    site = "block.resnet.encoder.stages.0"
    for arguments in (
        ["visualise", "net", "logit:1", "--steps", "3", "--images", "photographs"],
        ["examples", "net", f"{site}.2", "--images", "wheels", "--n", "6"],
        ["probe", "net", "--images", "wheels", "--n", "16", "--site", site, "--folds", "2"],
        [
            "dictionary",
            "net",
            "--site",
            site,
            "--images",
            "wheels",
            "--n",
            "8",
            "--width",
            "16",
            "--k",
            "2",
            "--vectors",
            "999",
            "--save",
            "kept",
        ],
        ["weights", "net", "--source", "block.resnet.embedder", "--target", site],
        ["edges", "net", "logit:1", "--source", site, "--images", "wheels", "--against", "blank", "--n", "2", "--exact", "4"],
        ["patch", "net", "logit:1", "--site", site, "--clean", "wheels", "--corrupted", "windows", "--n", "2", "--by", "place"],
    ):
        done = CliRunner().invoke(cli, ["vision", *arguments, "--quiet", "--json", "out.json"], catch_exceptions=False)
        record = json.loads((tmp_path / "out.json").read_text()) if done.exit_code == 0 else {}
        assert done.exit_code == 0 and (tmp_path / record["picture"]).stat().st_size > 1000, (arguments, done.output)
    assert load(tmp_path / "kept").spec.inputs == (site,)
    with pytest.raises(UsageError, match="without a dictionary"):
        CliRunner().invoke(cli, ["vision", "dictionary", "net", "--site", site, "--save", "kept"], catch_exceptions=False)
