"""Where an image model's sites are: found from one run, proved on this very model.

1. One run notes what every module got and gave. A module that runs once and gives a square map is a site `block.<path>`,
   (n, channel, h, w) also where the module has its channels last. Lists of equal modules whose inputs and outputs are
   tokens (n, token, d) make a transformer; layers are numbered in the order of the run, over all its stages.
2. Inside a transformer block the sites are found by their equations, not by names: `resid_mid` is the input of the second
   norm; `attn_out` the outermost output t with pre + t = mid (LayerScale included); `mlp_out` the one with mid + t = post;
   `z` the input of the last linear map before mid, its heads proved by silencing one head's values; `mlp_act` the input of
   the last linear map of the block.
3. All sites together: capturing leaves logits bit-identical; setting every site to its own value leaves them bit-identical;
   the gradient of the logits at the site is not zero, so the model reads it.
4. Where a convolution reads a map, its output is the sum over channels: conv(even) + conv(odd) - conv(0) = conv(all).

What fails is absent, with the reason. Patterns, q, k and v of vision transformers are not offered, nor z where attention
works in windows: its rows are no images.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import LayoutError
from assay.model.layout import tolerance


@dataclass(frozen=True)
class ImagePoint:
    """One site: a module's first input or output. `kind`: map or tokens; `heads`: units come in that many groups."""

    path: str
    side: str
    kind: str
    size: int  # channels of a map, units of a token
    order: int
    heads: int = 0
    equation: str = "capture and identity patch leave logits bit-identical; the logits depend on it"
    error: float = 0.0
    reader: str | None = None  # the convolution that reads this map
    last: bool = False  # a map whose module has its channels on the last axis

    @property
    def width(self) -> int:
        """What an index ranges over."""
        return self.heads or self.size

    def take(self, value: Tensor, index: int) -> Tensor:
        """One channel (n, h, w), unit (n, token) or head (n, token, d_head) of a captured tensor."""
        if self.kind == "map":
            return value[:, index]
        return value.unflatten(-1, (self.heads, -1))[..., index, :] if self.heads else value[..., index]

    def select(self, value: Tensor, indices: tuple[int, ...]) -> Tensor:
        """A mask that is true at these channels, units or heads and broadcasts against the tensor."""
        chosen = torch.zeros(self.width, dtype=torch.bool)
        chosen[list(indices)] = True
        if self.heads:
            chosen = chosen.repeat_interleave(self.size // self.heads)
        return chosen.to(value.device)[:, None, None] if self.kind == "map" else chosen.to(value.device)


@dataclass(frozen=True)
class ImageLayout:
    """Proved sites in the order of the run, and what is absent with the reason."""

    points: dict[str, ImagePoint]
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def transformer(self) -> bool:
        """Whether the model has residual-stream sites."""
        return any(name.startswith("resid_post") for name in self.points)


@dataclass(eq=False)
class _Seen:
    """What one module got and gave."""

    order: int
    calls: int
    given: Tensor | None
    out: Tensor | None


def first_tensor(value: Any) -> Any:
    """The tensor itself, or the first of a tuple."""
    return value[0] if isinstance(value, tuple) and value else value


def first_line(error: Exception) -> str:
    """The first line of an error that says something, with the next one after a colon, as a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{' '.join(lines[: 1 + lines[0].endswith(':')]).rstrip('.')}."


def logits_of(out: Any, model: nn.Module) -> Tensor:
    """The logits (n, class) of a model's output. Raises LayoutError where it has none."""
    found = getattr(out, "logits", out)
    if not isinstance(found, Tensor) or found.ndim != 2:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(out).__name__
        raise LayoutError(
            f"{type(model).__name__}: its output is no logits (image, class); got {got}. Load it with its classifier."
        )
    return found


def hook(hf: nn.Module, point: ImagePoint, meet: Any) -> Any:
    """A hook that puts what `meet(tensor)` returns in the place of a site, with the strides that were there (other strides,
    other rounding); maps have their channels first in `meet`."""
    module = hf.get_submodule(point.path)

    def changed(value: Tensor) -> Tensor:
        new = meet(value.movedim(-1, 1)).movedim(1, -1) if point.last else meet(value)
        return new if new.stride() == value.stride() else torch.empty_like(value).copy_(new)

    if point.side == "in":
        return module.register_forward_pre_hook(lambda _, given: (changed(given[0]), *given[1:]))

    def after(_: nn.Module, __: Any, out: Any) -> Any:
        value = changed(first_tensor(out))
        return (value, *out[1:]) if isinstance(out, tuple) else value

    return module.register_forward_hook(after)


def prove_image_layout(hf: nn.Module, x: Tensor) -> ImageLayout:
    """Find and prove the sites of a model on normalised images x (n, channel, h, w). Raises LayoutError."""
    try:
        clean, seen = _observe(hf, x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, KeyError, AttributeError) as error:
        raise LayoutError(f"{type(hf).__name__}: it does not run on pictures of shape {tuple(x.shape[1:])} (channel, height,"
                          f" width): {first_line(error)} Size and channels are those of its processor or of Pixels(..); the"
                          " model's config may say others.") from error  # fmt: skip
    points, absent = _maps(hf, seen, len(x))
    blocks = _transformer_blocks(hf, seen, len(x))
    for layer, path in enumerate(blocks):
        points |= _block_sites(hf, x, seen, path, layer, _n_heads(hf, path), absent)
    if blocks:
        points = {name: p for name, p in points.items() if p.kind == "tokens" or _outside(p.path, blocks)}
        absent = {name: why for name, why in absent.items() if _outside(name.removeprefix("block."), blocks)}
    if not points:
        why = next((f"{name}: {why}" for name, why in absent.items()), "no module gives maps or tokens")
        raise LayoutError(f"{type(hf).__name__}: nothing can be captured; {why}. Sites are square maps (image, channel, h, h)"
                          " and tokens (image, token, d).")  # fmt: skip
    points = dict(sorted(points.items(), key=lambda item: item[1].order))
    return _proved(hf, x, clean, points, absent, seen)


def _observe(hf: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, _Seen]]:
    seen: dict[str, _Seen] = {}
    handles, started = [], {}
    for path, module in hf.named_modules():

        def before(_: nn.Module, given: Any, path: str = path) -> None:
            started[path] = given[0].clone() if given and isinstance(given[0], Tensor) else None

        def after(_: nn.Module, __: Any, out: Any, path: str = path) -> None:
            value, calls = first_tensor(out), seen[path].calls if path in seen else 0
            seen[path] = _Seen(len(seen), calls + 1, started.get(path), value.clone() if isinstance(value, Tensor) else None)

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        with torch.no_grad():
            out = hf(x)
    finally:
        for handle in handles:
            handle.remove()
    return logits_of(out, hf), seen


def _maps(hf: nn.Module, seen: dict[str, _Seen], n: int) -> tuple[dict[str, ImagePoint], dict[str, str]]:
    """Square maps of n images. Shape tells which axis has the channels; where it cannot, what the model is made of may."""
    points, absent = {}, {}
    mixed = any(what.out is not None and what.out.ndim == 4 and isinstance(hf.get_submodule(path), nn.Linear | nn.LayerNorm)
                for path, what in seen.items())  # fmt: skip
    for path, what in seen.items():
        if not path or what.out is None or what.out.ndim != 4:
            continue
        rows, a, b, c = what.out.shape
        if b == 1 and 1 in (a, c):
            continue  # one place
        if what.calls > 1:
            absent[f"block.{path}"] = f"the module runs {what.calls} times in one pass"
        elif rows != n or b not in (a, c):
            absent[f"block.{path}"] = f"its output {tuple(what.out.shape)} is no square map of {n} images"
        elif a == b == c and mixed and not isinstance(hf.get_submodule(path), nn.Conv2d | nn.BatchNorm2d):
            absent[f"block.{path}"] = f"its output {tuple(what.out.shape)} does not tell channels from places"
        else:
            last = b != c
            points[f"block.{path}"] = ImagePoint(path, "out", "map", c if last else a, what.order, last=last)
    return points, absent


def _outside(path: str, blocks: list[str]) -> bool:
    return not any(path == block or path.startswith(f"{block}.") for block in blocks)


def _transformer_blocks(hf: nn.Module, seen: dict[str, _Seen], n: int) -> list[str]:
    """Paths, in the order of the run, of the modules that turn tokens into tokens of the same shape: those of the longest
    list of equal modules, and of the other lists of the same kind."""
    lists: list[tuple[type, list[str]]] = []
    for path, module in hf.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len({type(child) for child in module}) != 1:
            continue
        inner = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        if all(_keeps_tokens(seen.get(each), n) for each in inner):
            lists.append((type(next(module.children())), inner))
    kind = max(lists, key=lambda item: len(item[1]), default=(None, []))[0]
    blocks = [path for each, inner in lists if each is kind for path in inner]
    return sorted(blocks, key=lambda path: seen[path].order)


def _keeps_tokens(what: _Seen | None, n: int) -> bool:
    return (
        what is not None
        and what.calls == 1
        and what.given is not None
        and what.out is not None
        and what.given.ndim == 3
        and len(what.given) == n
        and what.given.shape == what.out.shape
    )


def _n_heads(hf: nn.Module, path: str) -> int:
    config = getattr(hf, "config", None)
    found = getattr(config, "num_attention_heads", None)
    if found is None:
        block = hf.get_submodule(path)
        found = next((m.num_heads for m in block.modules() if isinstance(getattr(m, "num_heads", None), int)), 0)
    return found if isinstance(found, int) else 0


def _block_sites(
    hf: nn.Module, x: Tensor, seen: dict[str, _Seen], path: str, layer: int, heads: int, absent: dict[str, str]
) -> dict[str, ImagePoint]:
    """The sites of one transformer block."""
    block = seen[path]
    pre, post = block.given, block.out
    assert pre is not None and post is not None
    inside = sorted(
        ((name, what) for name, what in seen.items() if name.startswith(f"{path}.") and what.out is not None),
        key=lambda item: item[1].order,
    )
    d, start = pre.shape[-1], min((what.order for _, what in inside), default=block.order)
    points = {
        f"resid_pre.{layer}": ImagePoint(path, "in", "tokens", d, start - 1),
        f"resid_post.{layer}": ImagePoint(path, "out", "tokens", d, block.order),
    }
    norms = [
        (name, what)
        for name, what in inside
        if "Norm" in type(hf.get_submodule(name)).__name__ and what.given is not None and what.given.shape == pre.shape
    ]
    second = next(((name, what) for name, what in norms if not torch.equal(what.given, pre)), None)  # type: ignore[arg-type]
    if second is None or second[1].given is None:
        absent |= {
            f"{name}.{layer}": "no norm inside the block reads the stream after attention"
            for name in ("resid_mid", "attn_out", "mlp_out", "z", "mlp_act")
        }
        return points
    mid, turn = second[1].given, second[1].order
    points[f"resid_mid.{layer}"] = ImagePoint(second[0], "in", "tokens", d, turn - 1)
    points[f"mlp_in.{layer}"] = ImagePoint(second[0], "out", "tokens", d, turn)
    first = next(((name, what) for name, what in norms if torch.equal(what.given, pre)), None)  # type: ignore[arg-type]
    if first:
        points[f"attn_in.{layer}"] = ImagePoint(first[0], "out", "tokens", d, first[1].order)
    for name, base, total, late in (("attn_out", pre, mid, False), ("mlp_out", mid, post, True)):
        errors = {
            each: _gap(base + what.out, total)
            for each, what in inside  # type: ignore[operator]
            if what.calls == 1 and what.out is not None and what.out.shape == total.shape and (what.order > turn) == late
        }
        good = [each for each in errors if errors[each] < 5 * tolerance(pre.dtype)]
        if not good:
            absent[f"{name}.{layer}"] = (
                f"no module's output is what the stream gains (best error {min(errors.values(), default=1):.1e})"
            )
            continue
        equation = "pre + attn_out = mid" if name == "attn_out" else "mid + mlp_out = post"
        points[f"{name}.{layer}"] = ImagePoint(
            good[-1], "out", "tokens", d, seen[good[-1]].order, equation=equation, error=errors[good[-1]]
        )
    linear = [(name, what) for name, what in inside if isinstance(hf.get_submodule(name), nn.Linear)
              and what.given is not None and what.given.shape[:-1] == pre.shape[:-1]]  # fmt: skip
    before, after = [each for each in linear if each[1].order < turn], [each for each in linear if each[1].order > turn]
    if after:
        name, what = after[-1]
        points[f"mlp_act.{layer}"] = ImagePoint(name, "in", "tokens", what.given.shape[-1], what.order - 1)  # type: ignore[union-attr]
    if before and heads:
        name, what = before[-1]
        error = _heads_error(hf, x, [each[0] for each in before[:-1]], name, what.given, heads)  # type: ignore[arg-type]
        equation = "silencing one head's values changes that head's part of z alone"
        if error < 5 * tolerance(pre.dtype):
            width = what.given.shape[-1]  # type: ignore[union-attr]
            points[f"z.{layer}"] = ImagePoint(name, "in", "tokens", width, what.order - 1, heads, equation, error)
        else:
            absent[f"z.{layer}"] = f"heads could not be told apart (error {error:.1e})"
    else:
        absent[f"z.{layer}"] = "no linear map that runs as a module of its own reads heads by image and token"
    return points


def _heads_error(hf: nn.Module, x: Tensor, values: list[str], out: str, z: Tensor, heads: int) -> float:
    """The smallest error, over the linear maps that may make values, of: head 0 silenced, its part of z is 0, others stay."""
    d, best = z.shape[-1], float("inf")
    if d % heads:
        return best
    size = d // heads
    for path in values:
        module = hf.get_submodule(path)
        offset = module.out_features - d  # type: ignore[operator]  # values come last in a fused map
        if not isinstance(offset, int) or offset < 0:
            continue
        got: list[Tensor] = []

        def silence(_: nn.Module, __: Any, y: Tensor, offset: int = offset) -> Tensor:
            y = y.clone()
            y[..., offset : offset + size] = 0
            return y

        def note(_: nn.Module, given: Any, got: list[Tensor] = got) -> None:
            got.append(given[0].clone())

        handles = [module.register_forward_hook(silence), hf.get_submodule(out).register_forward_pre_hook(note)]
        try:
            with torch.no_grad():
                hf(x)
        finally:
            for handle in handles:
                handle.remove()
        expected = z.clone()
        expected[..., :size] = 0
        best = min(best, _gap(got[0], expected))
    return best


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def _proved(
    hf: nn.Module, x: Tensor, clean: Tensor, points: dict[str, ImagePoint], absent: dict[str, str], seen: dict[str, _Seen]
) -> ImageLayout:
    """Capture, identity patch and dependence of all sites; channel sums where a convolution reads a map."""
    held: dict[str, Tensor] = {}
    by_value = {name: _value(seen, point) for name, point in points.items()}

    def run(meet: Any, grad: bool = False) -> Tensor:
        handles = [hook(hf, point, lambda v, name=name: meet(name, v)) for name, point in points.items()]
        try:
            with torch.set_grad_enabled(grad):
                out = hf(x.clone().requires_grad_(grad))
        finally:
            for handle in handles:
                handle.remove()
        return logits_of(out, hf)

    def keep(name: str, value: Tensor) -> Tensor:
        held[name] = value.clone()
        return value

    if not torch.equal(run(keep), clean):
        raise LayoutError(f"{type(hf).__name__}: capturing changes the logits.")
    kept = dict(held)
    if not torch.equal(run(lambda name, value: kept[name].clone()), clean):
        raise LayoutError(f"{type(hf).__name__}: setting every site to its own value changes the logits.")

    def on_graph(name: str, value: Tensor) -> Tensor:
        held[name] = value.clone()
        return held[name].clone()

    out = run(on_graph, grad=True)
    weights = torch.linspace(1, 2, out.shape[1], device=out.device, dtype=out.dtype)
    with torch.enable_grad():
        total = (out * weights).sum()
    grads = torch.autograd.grad(total, [held[name] for name in points], allow_unused=True)
    good: dict[str, ImagePoint] = {}
    readers = _readers(hf, seen)
    for (name, point), grad in zip(points.items(), grads, strict=True):
        value = by_value[name]
        if grad is None or not bool(grad.abs().sum() > 0):
            absent[name] = "the logits do not depend on it"
            continue
        good[name] = _with_sums(hf, point, value, readers) if point.kind == "map" else point
        if good[name].error > 5 * tolerance(clean.dtype):
            absent[name] = f"{good[name].equation} fails by {good.pop(name).error:.1e}"
    if not good:
        why = next(iter(absent.items()))
        raise LayoutError(f"{type(hf).__name__}: none of its {len(absent)} places is a site; {why[0]}: {why[1]}. A"
                          " classifier of zeros, as before training?")  # fmt: skip
    return ImageLayout(good, absent)


def _value(seen: dict[str, _Seen], point: ImagePoint) -> Tensor | None:
    return seen[point.path].given if point.side == "in" else seen[point.path].out


def _readers(hf: nn.Module, seen: dict[str, _Seen]) -> list[tuple[str, Tensor]]:
    """Convolutions that run once, and what they read."""
    return [
        (path, what.given)
        for path, what in seen.items()
        if what.calls == 1 and what.given is not None and isinstance(hf.get_submodule(path), nn.Conv2d)
    ]


def _with_sums(hf: nn.Module, point: ImagePoint, value: Tensor | None, readers: list[tuple[str, Tensor]]) -> ImagePoint:
    """The point with the convolution that reads it and the error of its channel sums; as it is where there is none."""
    path = next(
        (path for path, given in readers if value is not None and given.shape == value.shape and torch.equal(given, value)),
        None,
    )
    if path is None or value is None:
        return point
    conv, even = hf.get_submodule(path), torch.zeros_like(value)
    even[:, ::2] = value[:, ::2]
    with torch.no_grad():
        total = conv(value)
        error = _gap(conv(even) + conv(value - even) - conv(torch.zeros_like(value)), total)
    equation = f"channels sum to what {path} reads, and identity patch leaves logits bit-identical"
    return ImagePoint(point.path, point.side, point.kind, point.size, point.order, equation=equation, error=error, reader=path)
