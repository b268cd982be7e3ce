"""Dictionaries: what every SAE, transcoder and crosscoder is, whatever chooses its active latents.

1. pre = (x - shift) W_enc^T + b_enc, with shift = b_dec where the dictionary is `centred` (SAEs), else 0.
2. An architecture chooses which pre-activations are active and what their values are: its one file says how.
3. reconstruction = values W_dec + b_dec (+ x W_skip^T for skip transcoders).
4. In training, inputs and targets are scaled so that E|x| = sqrt(d) for each site; `fold` puts the scales into the
   weights, so that a kept dictionary takes raw activations: the same reconstruction, tested at every save.
5. Training is by `objective`: loss = FVU of the batch + the architecture's penalty + the loss of dead latents.
6. Some positions are not for dictionaries: the first of a text and massive ones (norm above `norm_limit`). A dictionary
   knows which (`typical`), and who splices it into a model leaves those positions as they are.

Sites of inputs and outputs are concatenated along features in their order: one of each for an SAE (the same) and a
transcoder (MLP in, MLP out), several for crosscoders and cross-layer transcoders.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.errors import ShapeError, UsageError, bad_argument
from assay.features.codes import Codes, Pairs, bag, codes_of, contenders, join, read, spread
from assay.features.screened import Scores, Screened, row_blocks, worth_it
from assay.features.world import drawn, world
from assay.registry import Registry

CHUNK = 1 << 23  # pre-activations made at a time where codes are read: 32 MB in fp32


def check_options(options: Mapping[str, Any]) -> None:
    """Raises UsageError for a setting of the wrong kind; which settings an architecture has is for it to say."""
    for name, value in options.items():
        says, fits = OPTIONS.get(name, ("", lambda _: True))
        if not fits(value):
            raise bad_argument(f"option {name}", value, says)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


OPTIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "anneal": ("0 to 1, a share of training", lambda x: _number(x) and 0 <= x <= 1),
    "bandwidth": ("a number, 0 or more (0: from the first batch)", lambda x: _number(x) and x >= 0),
    "prefixes": ("a list of shares of the width, such as [0.25,0.5,1]", lambda x: isinstance(x, list) and all(map(_number, x))),
    "sizes": ("a list of the features of each site", lambda x: isinstance(x, list) and all(map(_whole, x))),
    "layers": ("how many layers, 1 or more", _whole),
    "residual_threshold": ("a number, 0 or more", lambda x: _number(x) and x >= 0),
    "steps": ("1 or more, or null for as many as features", lambda x: x is None or _whole(x)),
    **dict.fromkeys(("heads", "blocks", "bottleneck"), ("1 or more", _whole)),
    "eps": ("a number above 0", lambda x: _number(x) and x > 0),
    "tied": ("true or false", lambda x: isinstance(x, bool)),
    "stop_on_repeat": ("true or false", lambda x: isinstance(x, bool)),
}


@dataclass(frozen=True)
class Spec:
    """What a dictionary is, without its numbers. `k`: active latents per token, chosen or aimed at.

    `inputs` and `outputs`: canonical sites, empty where a file did not say. `skip_first`: positions at the start of
    each text, `norm_limit` and `target_limit`: norms of input and target, above which a position is left alone.
    `options`: further settings of the architecture.
    """

    architecture: str
    width: int
    d_in: int
    d_out: int
    k: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    centred: bool = True
    skip: bool = False
    skip_first: int = 1
    norm_limit: float | None = None
    target_limit: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in self.options.items()}
        object.__setattr__(self, "options", plain)  # as a file gives them back
        check_options(plain)
        for name in ("width", "d_in", "d_out"):
            if getattr(self, name) < 1:
                raise bad_argument(name, getattr(self, name), "1 or more")
        if self.k is not None and not 1 <= self.k <= self.width:
            raise bad_argument("k", self.k, f"1 to {self.width}, the width")
        if self.centred and self.d_in != self.d_out:
            raise bad_argument("centred", True, "False where inputs and outputs differ in size")

    @property
    def transcodes(self) -> bool:
        """Whether what is reconstructed is something else than what is read."""
        return self.inputs != self.outputs

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "inputs": list(self.inputs), "outputs": list(self.outputs), "options": dict(self.options)}

    @staticmethod
    def of(record: Mapping[str, Any]) -> "Spec":
        """From what `json` made. Raises UsageError for a key that is not known, or a value that is none of `json`'s."""
        if unknown := set(record) - set(Spec.__dataclass_fields__):
            raise bad_argument("spec", f"keys {sorted(unknown)}", ", ".join(Spec.__dataclass_fields__))
        if not isinstance(record.get("architecture"), str):
            raise bad_argument("spec: architecture", record.get("architecture"), "the name of one")
        for name in ("width", "d_in", "d_out"):
            if not _whole(record.get(name)):
                raise bad_argument(f"spec: {name}", record.get(name), "1 or more")
        for name in ("inputs", "outputs"):
            sites = record.get(name, ())
            if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
                raise bad_argument(f"spec: {name}", sites, "a list of sites")
        for name in ("norm_limit", "target_limit"):
            if record.get(name) is not None and not (_number(record[name]) and record[name] > 0):
                raise bad_argument(f"spec: {name}", record[name], "a number above 0, or null")
        for name in ("centred", "skip"):
            if not isinstance(record.get(name, True), bool):
                raise bad_argument(f"spec: {name}", record[name], "true or false")
        if (first := record.get("skip_first", 0)) != 0 and not _whole(first):
            raise bad_argument("spec: skip_first", first, "0 or more")
        try:
            return Spec(**{**record, "inputs": tuple(record.get("inputs", ())), "outputs": tuple(record.get("outputs", ()))})
        except (TypeError, AttributeError) as error:
            raise bad_argument("spec", dict(record), "a description as Assay writes it", f"{error}.") from error


@dataclass(frozen=True, eq=False)
class Stage:
    """Where training is. `total`: squared distance from the mean of one token's target, over a first batch.

    `sparsity`: weight of a penalty; `k_scale`: times k latents are active now.
    """

    step: int
    steps: int
    total: float
    sparsity: float = 1.0
    dead: Bool[Tensor, " latent"] | None = None
    k_scale: float = 1.0

    @property
    def share(self) -> float:
        """Of the steps, how many are done."""
        return self.step / max(self.steps, 1)


@dataclass(frozen=True, eq=False)
class Objective:
    """One batch's loss and what it is made of. `pairs`, `values`: what was active."""

    loss: Float[Tensor, ""]
    reconstruction: Float[Tensor, "token d_out"]
    pairs: Pairs
    values: Float[Tensor, " active"]
    penalty: float = 0.0


class Dictionary(nn.Module):
    """Latents for activations. Numbers are fp32; `encode` and `decode` take and give raw activations.

    W_enc (width, d_in), b_enc (width), W_dec (width, d_out), b_dec (d_out), W_skip (d_out, d_in) or None.
    Subclasses say which latents are active: `select` in use, `choose` in training.
    """

    architecture: ClassVar[str] = ""
    option_names: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = True  # else it is only read from files
    stand_in: ClassVar[str] = ""  # what is trained for a control, where it does not train
    reads_texts: ClassVar[bool] = False  # latents of a token depend on those before it: `code_text`, `predict_text`
    unit_decoder: ClassVar[bool] = True  # decoder rows are kept at norm 1 in training
    k_first: ClassVar[float] = 1.0  # times k latents are active at the first step of training, where a plan does not say
    per_latent: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")  # what is divided where latents are

    def __init__(self, spec: Spec, name: str = "") -> None:
        super().__init__()
        if unknown := set(spec.options) - set(self.option_names):
            raise bad_argument("options", sorted(unknown), ", ".join(self.option_names) or f"none for {self.architecture}")
        if spec.options.get("input_norm", "none") not in ("none", *INPUT_NORMS):
            raise bad_argument("input_norm", spec.options["input_norm"], f"none, {', '.join(INPUT_NORMS)}")
        self.spec, self.given_name = spec, name
        self.provenance: dict[str, Any] = {}
        self.W_enc = nn.Parameter(torch.zeros(spec.width, self.encoder_width))
        self.b_enc = nn.Parameter(torch.zeros(spec.width))
        self.make_decoder()
        self.b_dec = nn.Parameter(torch.zeros(spec.d_out))
        self.W_skip = nn.Parameter(torch.zeros(spec.d_out, spec.d_in)) if spec.skip else None

    def make_decoder(self) -> None:
        """The decoder's parameters."""
        self.W_dec = nn.Parameter(torch.zeros(self.spec.width, self.spec.d_out))

    # what it is ------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """How people call it."""
        return self.given_name or f"{self.architecture}-{self.width}"

    @property
    def digest(self) -> str:
        """SHA-256 over its numbers and what decides how they are used."""
        state = hashlib.sha256(json.dumps(self.spec.json(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            state.update(name.encode() + str(tuple(value.shape)).encode())
            state.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    @property
    def width(self) -> int:
        """How many latents."""
        return self.spec.width

    @property
    def encoder_width(self) -> int:
        """How many numbers one latent reads."""
        return self.spec.d_in

    @property
    def screens(self) -> bool:
        """Whether it chooses by size alone, so that only the largest pre-activations need to be made."""
        return False

    @property
    def steered(self) -> bool:
        """Whether the weight of its penalty moves in training until k latents are active."""
        return False

    @property
    def shift(self) -> Float[Tensor, " d_in"] | None:
        """What is taken from inputs before they are encoded."""
        return world().entered(self.b_dec) if self.spec.centred else None

    # use -------------------------------------------------------------------------------------

    def pre(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token latent"]:
        """Pre-activations."""
        return torch.nn.functional.linear(x if self.shift is None else x - self.shift, self.W_enc, self.b_enc)

    @torch.no_grad()
    def scores(self, x: Float[Tensor, "token d_in"]) -> Scores:
        """Pre-activations to choose from, without gradients: all of them, or where it is faster those that are asked for."""
        found = self._screened(x)
        return self.pre(x) if found is None else found

    @torch.no_grad()
    def _screened(self, x: Float[Tensor, "token d_in"]) -> Screened | None:
        """Pre-activations that are made where they are asked for; None where it is faster to make all."""
        if not self.screens or world().slices > 1 or not worth_it(x, self.W_enc, contenders(self.spec.k or 1)):
            return None
        return Screened(x if self.shift is None else x - self.shift, self.W_enc.detach(), self.b_enc.detach())

    def select(self, pre: Scores) -> Codes:
        """Active latents and their values, in use."""
        raise NotImplementedError

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "token d_in"], positions: Int[Tensor, " token"] | None = None) -> Codes:
        """Active latents of tokens. Raises ShapeError for another width.

        `positions` in their texts, one text after the other: for a dictionary that reads texts; without them it is one text.
        """
        if x.dim() != 2 or x.shape[1] != self.spec.d_in:
            raise ShapeError(f"activations: got shape {tuple(x.shape)}; allowed: (token, {self.spec.d_in}).")
        x = x.to(self.b_dec)
        if not len(x):
            return codes_of(x.new_zeros(0, self.width))
        if self.reads_texts:
            return join([self.code_text(text).active() for text in texts_of(self.normed(x)[0], positions)])
        rows = max(1, CHUNK // self.width)
        if (found := self._screened(self.normed(x)[0])) is not None:
            return join([self.select(part).active() for part in found.split(rows)])
        return join([self.code(self.normed(part)[0]).active() for part in x.split(rows)])

    def code(self, x: Float[Tensor, "token d_in"]) -> Codes:
        """Latents of inputs that are normalised already."""
        return self.select(self.scores(x))

    def code_text(self, x: Float[Tensor, "token d_in"]) -> Codes:
        """The same of the tokens of one text, for a dictionary that reads texts."""
        raise NotImplementedError

    def predict_text(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token d_out"]:
        """What such a dictionary reconstructs of a text without latents, from the tokens before."""
        raise NotImplementedError

    @property
    def input_norm(self) -> str:
        """What is done to each token in use: "none", or one of `INPUT_NORMS`."""
        return str(self.spec.options.get("input_norm", "none"))

    def normed(self, x: Float[Tensor, "token d_in"]) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """Inputs as they are encoded, and the scale and mean that bring reconstructions back: y * scale + mean."""
        if self.input_norm == "none":
            return x, 1.0, 0.0
        if self.input_norm == "root":
            scale = x.norm(dim=1, keepdim=True) / math.sqrt(self.spec.d_in)
            return x / scale, scale, 0.0
        mean, spread = x.mean(dim=1, keepdim=True), x.std(dim=1, keepdim=True)
        return (x - mean) / (spread + NORM_EPS), spread, mean

    def encode(
        self, acts: Float[Tensor, "example d_in"], positions: Int[Tensor, " example"] | None = None
    ) -> Float[Tensor, "example latent"]:
        """Latents as a dense matrix; `codes` gives the same in a small part of the space."""
        return self.codes(acts, positions).dense()

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "example latent"] | Codes) -> Float[Tensor, "example d_out"]:
        """Values times decoder rows, plus b_dec. A skip connection is not in it: see `reconstruct`.

        Raises UsageError where inputs are normalised token by token, or latents are of what a text did not predict: they
        alone do not say how large a token was, or what was predicted.
        """
        if self.reads_texts:
            raise bad_argument("latents", f"those of a {self.architecture}", "none of a dictionary that predicts, too",
                               "Use reconstruct(activations, positions).")  # fmt: skip
        if self.input_norm != "none":
            raise bad_argument("latents", f"those of inputs normalised by {self.input_norm!r}", "none of such a dictionary",
                               "Use reconstruct(activations).")  # fmt: skip
        return self.decoded(latents)

    def decoded(self, latents: Float[Tensor, "example latent"] | Codes) -> Float[Tensor, "example d_out"]:
        """`decode`, in the units inputs are encoded in."""
        codes = latents if isinstance(latents, Codes) else codes_of(latents.to(self.b_dec))
        return self.spread(codes.values, codes.pairs) + self.b_dec

    @torch.no_grad()
    def reconstruct(
        self, acts: Float[Tensor, "example d_in"], positions: Int[Tensor, " example"] | None = None, codes: Codes | None = None
    ) -> Float[Tensor, "example d_out"]:
        """What the dictionary makes of activations: decode(codes), what it predicts, and the skip connection if it has one.

        `codes`: of these activations, where they are there already.
        """
        x = acts.to(self.b_dec)
        read, scale, mean = self.normed(x)
        found = self.decoded(self.codes(x, positions) if codes is None else codes)
        if self.reads_texts and len(x):
            found = found + torch.cat([self.predict_text(text) for text in texts_of(read, positions)])
        found = found * scale + mean
        return found if self.W_skip is None else found + x @ self.W_skip.T

    def directions(self) -> Float[Tensor, "latent d_out"]:
        """What each latent adds when it is 1."""
        return self.W_dec.detach()

    @property
    def massive_above(self) -> dict[str, float]:
        """Site -> norm above which training left a token out, where `typical` cannot tell it from the input: the residual
        stream in front of a norm, and each of several sites. Empty where that is not known."""
        stream = self.provenance.get("stream") or {}
        found: dict[str, float] = {}
        for sites in (self.spec.inputs, self.spec.outputs):
            for site in sites:
                name, _, own = site.rpartition(":")
                limits = (stream.get(name, {}) if name else stream).get("limits") or {}
                guard = limits.get("guards", {}).get(own) or {"site": own, "limit": limits.get("norm_limits", {}).get(own)}
                if guard["limit"] is not None and (guard["site"] != own or len(sites) > 1):
                    found[f"{name}:{guard['site']}" if name else guard["site"]] = float(guard["limit"])
        return found

    def typical(self, x: Float[Tensor, "token d_in"], positions: Tensor | None = None) -> Bool[Tensor, " token"]:
        """Which tokens the dictionary is for; `positions` count from the start of each text."""
        keep = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if self.spec.norm_limit is not None:
            keep &= x.float().norm(dim=1) <= self.spec.norm_limit
        return keep if positions is None else keep & (positions.to(x.device) >= self.spec.skip_first)

    # training --------------------------------------------------------------------------------

    def spread(self, values: Float[Tensor, " active"], pairs: Pairs) -> Float[Tensor, "token d_out"]:
        """Values times decoder rows; gradients reach both."""
        if torch.is_grad_enabled():
            return world().total(spread(values, self.W_dec, pairs))
        return world().total(bag(values, pairs.latents, pairs.offsets, self.W_dec))

    def choose(self, pre: Scores, stage: Stage) -> Pairs:
        """Which latents may be active in training; `pre` without gradients."""
        raise NotImplementedError

    def objective(self, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], stage: Stage) -> Objective:
        """Loss of one batch, in scaled units."""
        pairs, values = self.active(x, stage)
        found = self.rebuilt(x, values, pairs)
        loss = fvu(y, found, stage.total) + self.aux(x, y - found.detach(), stage)
        return Objective(loss, found, pairs, values)

    def active(self, x: Tensor, stage: Stage) -> tuple[Pairs, Float[Tensor, " active"]]:
        """Chosen pairs and their values, these with gradients."""
        with torch.no_grad():
            pre = self.scores(x)
            pairs = self.choose(pre, stage)
        return pairs, read(pre, x, self.W_enc, self.b_enc, self.shift, pairs).relu()

    def rebuilt(self, x: Tensor, values: Tensor, pairs: Pairs) -> Float[Tensor, "token d_out"]:
        """The reconstruction, with gradients."""
        found = self.spread(values, pairs) + self.b_dec
        return found if self.W_skip is None else found + x @ self.W_skip.T

    def aux(self, x: Tensor, error: Float[Tensor, "token d_out"], stage: Stage) -> Tensor | float:
        """What dead latents could explain of the error (AuxK, Gao et al. 2024): 1/32 of their FVU of it.

        Their k largest pre-activations, at most d_out / 2, signed; neither the error nor the biases get gradients. With
        d_out / 2 of a few dead latents nearly all take part in every token, and none finds a feature of its own.
        """
        dead = None if stage.dead is None else world().every(stage.dead)
        if dead is None or not bool(dead.any()):
            return 0.0
        rows, latents = x[: world().first(AUX_ROWS)], dead.nonzero().flatten()
        latents = latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(stage.step))[:AUX_LATENTS]]
        k, latents = min(self.aux_k, len(latents)), world().own(latents, self.width)
        shift = self.shift
        centred = rows if shift is None else rows - shift.detach()
        pre = torch.nn.functional.linear(centred, self.W_enc[latents])
        best = pre.topk(min(k, len(latents)), dim=1)
        chosen = best.values * world().largest(best.values.detach(), k)
        found = world().total(torch.zeros_like(pre).scatter(1, best.indices, chosen) @ self.W_dec[latents])
        target = error[: len(rows)]
        return AUX_WEIGHT * (target - found).square().sum() / world().mean(target.square().sum()).clamp_min(1e-12)

    @property
    def aux_k(self) -> int:
        """Dead latents that take part at one token."""
        most = max(self.spec.d_out // 2, 1)
        return most if self.spec.k is None else min(most, self.spec.k)

    # start, constraints, end -----------------------------------------------------------------

    @torch.no_grad()
    def start(self, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """Set all numbers from a first batch of scaled activations: random unit decoder, tied encoder, mean bias.

        An untied target starts with encoder rows of their own and a decoder that is fitted to what they explain.
        """
        if not self.trains or self.input_norm != "none":
            got = f"{self.architecture}, input_norm {self.input_norm}"
            raise bad_argument("spec", got, "an architecture that trains, on inputs as they are", "It is only read from files.")
        d_in, d_out = self.spec.d_in, self.spec.d_out
        self.b_dec.copy_(y.mean(0))
        rows = drawn(self.width, d_in, generator)
        self.W_enc.copy_(rows / rows.norm(dim=1, keepdim=True))
        if self.spec.transcodes or d_in != d_out:
            self.b_enc.copy_(-(self.W_enc @ x.mean(0)))
            decoder = drawn(self.width, d_out, generator)
        else:
            decoder = self.W_enc.detach().clone()
        self.W_dec.copy_(decoder / decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def project(self) -> None:
        """Take from the decoder's gradient what would only change the norm of its rows."""
        if self.unit_decoder and self.W_dec.grad is not None:
            for grad, rows in row_blocks(self.W_dec.grad, self.W_dec):
                grad.addcmul_(rows, (grad * rows).sum(1, keepdim=True), value=-1)

    @torch.no_grad()
    def after_step(self, found: Objective, stage: Stage) -> None:
        """Keep constraints after an optimiser step."""
        if self.unit_decoder:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def settle(self, x: Float[Tensor, "token d_in"]) -> None:
        """Set what only use needs from a batch, by the final weights, in scaled units."""

    @torch.no_grad()
    def fold(self, scale_in: Float[Tensor, " d_in"], scale_out: Float[Tensor, " d_out"]) -> None:
        """From scaled units (x * scale_in, y * scale_out) to raw ones: the reconstruction stays what it was.

        Latents are divided by the mean output scale, so that a decoder of unit rows keeps them where all outputs
        share one scale.
        """
        unit = float(scale_out.mean())
        self.fold_weights(scale_in, scale_out, unit)
        self.b_dec.div_(scale_out)
        if self.W_skip is not None:
            self.W_skip.copy_(self.W_skip * scale_in / scale_out[:, None])
        self.fold_values(unit)

    def fold_weights(self, scale_in: Tensor, scale_out: Tensor, unit: float) -> None:
        """Of encoder and decoder."""
        self.W_enc.copy_(self.W_enc * scale_in / unit)
        self.b_enc.div_(unit)
        self.W_dec.copy_(self.W_dec * unit / scale_out)

    def fold_values(self, unit: float) -> None:
        """Whatever else is in units of latents (thresholds), divided by `unit`."""


INPUT_NORMS = ("layer", "root")  # to mean 0 and standard deviation 1; to norm sqrt(d)
NORM_EPS = 1e-5  # added to a standard deviation
AUX_WEIGHT, AUX_ROWS, AUX_LATENTS = 1 / 32, 512, 1024  # of the dead, so many at a time
ARCHITECTURES: Registry[type[Dictionary]] = Registry("architecture")


def make_dictionary(spec: Spec, name: str = "") -> Dictionary:
    """A dictionary of some architecture, its numbers zero. Raises UsageError for one that is not known."""
    import assay.features.architectures  # noqa: F401  (registers them)

    return ARCHITECTURES.get(spec.architecture)(spec, name)


def of_another_model(dictionary: Dictionary, passport: Mapping[str, Any]) -> str:
    """What to tell of a dictionary that was trained on another model than the one of this passport; empty where it was not,
    or where that is not known. Of two models (`Paired`, and a passport of each by the same name) each is compared."""
    stream = dictionary.provenance.get("stream")
    if not isinstance(stream, Mapping):
        return ""
    if "digest" not in passport:  # of several, by name
        parts = [(stream.get(name), own) for name, own in passport.items()]
        told = [_of_other_weights(dictionary, each, own) for each, own in parts if isinstance(each, Mapping)]
        return " ".join(line for line in told if line)
    return _of_other_weights(dictionary, stream, passport)


def _of_other_weights(dictionary: Dictionary, stream: Mapping[str, Any], passport: Mapping[str, Any]) -> str:
    own = stream.get("model")
    if not isinstance(own, Mapping) or not own.get("digest") or own["digest"] == passport["digest"]:
        return ""
    if own.get("model") == passport["model"] and own.get("dtype") != passport["dtype"]:  # the same weights, rounded
        return ""
    return f"{dictionary.name} was trained on other weights ({own.get('model')}, {own['digest'][:8]}) than it is used on here."


def of_texts(dictionary: Dictionary, then: str) -> UsageError:
    """What to raise where latents are read at single tokens, for a dictionary that reads texts."""
    said = f"{dictionary.name}, a {dictionary.architecture}"
    return bad_argument("dictionary", said, "one whose latents depend on one token", then)


def texts_of(x: Float[Tensor, "token d"], positions: Int[Tensor, " token"] | None) -> Sequence[Float[Tensor, "token d"]]:
    """Tokens of each text, one after the other: a text ends where a position is not the one after the last."""
    if positions is None:
        return [x]
    if len(positions) != len(x):
        raise ShapeError(f"positions: got {len(positions)} for {len(x)} tokens; allowed: one for each token.")
    ends = ((positions[1:] != positions[:-1] + 1).nonzero()[:, 0] + 1).tolist()
    return [x[start:end] for start, end in pairwise([0, *ends, len(x)])]


def fvu(y: Tensor, found: Tensor, total: float) -> Float[Tensor, ""]:
    """Squared error per token over `total`: the fraction of variance unexplained."""
    return torch.nn.functional.mse_loss(found, y, reduction="sum") / (len(y) * total)


def spread_total(y: Float[Tensor, "token d"]) -> float:
    """Mean squared distance from the mean."""
    return max(float((y - y.mean(0)).square().sum(1).mean()), 1e-12)


def site_scales(x: Float[Tensor, "token d"], sizes: Sequence[int]) -> Float[Tensor, " d"]:
    """Per feature the factor that gives each site E|x| = sqrt(d)."""
    parts = [torch.full((size,), math.sqrt(size) / max(float(part.norm(dim=1).mean()), 1e-12))
             for size, part in zip(sizes, x.split(list(sizes), dim=1), strict=True)]  # fmt: skip
    return torch.cat(parts)
