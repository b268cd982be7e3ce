"""Turn captures and edits into hooks for one forward pass, and take them away again.

1. Each site is translated into actions at module inputs or outputs (`points.py` says where).
2. Actions at one place run in order: stash what derived sites and conditions need, apply edits, then
   capture, so a capture sees the edited value.
3. After the last place that anybody reads, the pass stops (`StopPass`).
4. A linear layer whose whole output is replaced unseen is not run.
5. Whatever happens, all hooks and all replaced forwards are gone afterwards.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import SiteError
from assay.model.edits import Edit, Frame, apply_edit
from assay.model.heads import HeadMaths
from assay.model.kernel import KernelWatch
from assay.model.layout import Layout
from assay.model.points import Point
from assay.sites import Site

Sink = Callable[[Site, Tensor], Tensor | None]
Action = Callable[[Tensor], Tensor | None]


def ignore(site: Site, value: Tensor) -> None:
    """A sink for passes whose captures only say how far to run."""


class StopPass(Exception):
    """Raised inside a forward pass once nothing after this point is read."""


@dataclass
class Pass:
    """One forward pass: what to edit, what to read, where to stop and where to resume.

    `sink(site, value)` gets every captured value (batch, pos, *feature); what it returns, if
    anything, replaces the value in the pass (used to make gradient leaves).
    """

    frame: Frame
    captures: Sequence[Site]
    edits: Sequence[Edit]
    sink: Sink
    stop: bool = False
    resume_at: int = 0
    resumed: Tensor | None = None
    made: Sequence[Site] = ()
    stash: dict[tuple[str, int], Tensor] = field(default_factory=dict)


@contextmanager
def attached(hf: nn.Module, layout: Layout, plan: Pass) -> Iterator[None]:
    """Hooks for one pass; everything is left as found."""
    compiler = _Compiler(hf, layout, plan)
    with _instead({**_passed_through(hf, layout, plan), **_not_run(hf, layout, plan.made)}), compiler.hooked():
        yield


@contextmanager
def _instead(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Modules that do something else for one pass."""
    saved = [module.__dict__.get("forward") for module in forwards]
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, before in zip(forwards, saved, strict=True):
            if before is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = before


def _passed_through(hf: nn.Module, layout: Layout, plan: Pass) -> dict[nn.Module, Callable[..., Any]]:
    """Blocks before `resume_at` hand their input on; the block there gets the cached residual."""
    blocks = layout.blocks[: plan.resume_at]
    return {hf.get_submodule(block.path): _hand_on(plan.resumed if block is blocks[-1] else None, block.returns)
            for block in blocks}  # fmt: skip


def _not_run(hf: nn.Module, layout: Layout, made: Sequence[Site]) -> dict[nn.Module, Callable[..., Any]]:
    """Plain linear layers of whose outputs every number is replaced unseen."""
    width: dict[str, int] = defaultdict(int)
    for point in (layout.points[site] for site in made if site.index is None):
        if point.side == "out" and point.split is not None:
            width[point.path] += point.split.n_heads * point.split.d_head
    modules = {hf.get_submodule(path): out for path, out in width.items()}
    return {module: partial(_zeros, out) for module, out in modules.items()
            if _linear_width(module) == out and "forward" not in module.__dict__}  # fmt: skip


def _linear_width(module: nn.Module) -> int:
    """Numbers that a plain linear layer gives, also in GPT-2's spelling of one; 0 for anything else."""
    if type(module) is nn.Linear:
        return module.out_features
    weight = getattr(module, "weight", None)
    return weight.shape[1] if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor) else 0


def _zeros(width: int, x: Tensor) -> Tensor:
    return x.new_zeros(*x.shape[:-1], width)


def _hand_on(replacement: Tensor | None, returns: int) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        hidden = hidden if replacement is None else replacement.to(hidden.device, hidden.dtype)
        return (hidden, *(None,) * (returns - 1)) if returns else hidden

    return forward


class _Compiler:
    def __init__(self, hf: nn.Module, layout: Layout, plan: Pass) -> None:
        self.hf, self.layout, self.plan = hf, layout, plan
        self.maths = HeadMaths(hf, layout)
        self.actions: dict[tuple[str, str], list[tuple[int | str, Action]]] = defaultdict(list)
        self.patterns: dict[str, list[Action]] = defaultdict(list)
        self.watch: KernelWatch | None = None
        self.last: tuple[int, str, str] = (-1, "", "")
        for edit in plan.edits:
            self._edit(edit)
        for site in plan.captures:
            self._capture(site)

    # what happens where --------------------------------------------------------------------

    def _point(self, site: Site) -> Point:
        if site.name == "path":
            path, side = (site.path or "").rsplit(":", 1)
            return Point(path, side, "first", self.layout.order_of(path, side))  # type: ignore[arg-type]
        return self.layout.points[site.whole]

    def _edit(self, edit: Edit) -> None:
        site, point = edit.site, self._point(edit.site)
        if edit.condition is not None and edit.condition.site != site:
            self._stash_condition(edit)
        if site.name == "resid_mid":
            self._edit_mid(edit)
        elif site.name == "attn_out" and site.index is not None:
            self._stash_heads(site)
            self._at(point, lambda raw: self._edit_contribution(edit, point, raw))
        elif site.name == "pattern":
            self.patterns[point.path].append(lambda x: _edited_pattern(x, edit, self.plan.frame))
        else:
            self._at(point, lambda raw: self._edited(edit, point, raw))

    def _apply(self, x: Tensor, edit: Edit) -> Tensor:
        """The edit, with what its condition reads."""
        seen = None
        if edit.condition is not None and edit.condition.site != edit.site:
            seen = self.plan.stash.pop(_condition_key(edit), None)
            if seen is None:
                raise SiteError(f"edit at {edit.site}: its condition reads {edit.condition.site}, which is not computed"
                                " before it; allowed: the same site or an earlier one.")  # fmt: skip
        return apply_edit(x, edit, self.plan.frame, seen)

    def _stash_condition(self, edit: Edit) -> None:
        assert edit.condition is not None
        site = edit.condition.site
        point = self._point(site)

        def keep(raw: Tensor) -> None:
            value = point.read(raw, len(self.plan.frame.rows))
            self.plan.stash[_condition_key(edit)] = value if site.index is None else value[:, :, site.index]

        self._at(point, keep)

    def _edited(self, edit: Edit, point: Point, raw: Tensor) -> Tensor:
        batch = len(self.plan.frame.rows)
        full = point.read(raw, batch)
        if edit.site.index is None or edit.site.name == "path":
            return point.write(raw, self._apply(full, edit), batch)
        changed = full.clone()
        changed[:, :, edit.site.index] = self._apply(full[:, :, edit.site.index], edit)
        return point.write(raw, changed, batch)

    def _edit_contribution(self, edit: Edit, point: Point, raw: Tensor) -> Tensor:
        """attn_out.L.H: the layer's sum changes by what the head's share changes."""
        assert edit.site.layer is not None and edit.site.index is not None
        total = point.read(raw, len(self.plan.frame.rows))
        share = self.maths.shares(edit.site.layer, self.plan.stash, [edit.site.index])[:, :, 0]
        return point.write(raw, total + (self._apply(share, edit) - share), len(self.plan.frame.rows))

    def _edit_mid(self, edit: Edit) -> None:
        """resid_mid: attention's contribution changes by what the sum has to change."""
        layer = edit.site.layer
        assert layer is not None
        pre = self.layout.points[Site("resid_pre", layer)]
        out = self.layout.points[Site("attn_out", layer)]
        self._at(pre, lambda raw: self._keep(("pre", layer), raw))

        def change(raw: Tensor) -> Tensor:
            batch = len(self.plan.frame.rows)
            added = out.read(raw, batch)
            mid = self.plan.stash["pre", layer] + added
            return out.write(raw, added + (self._apply(mid, edit) - mid), batch)

        self._at(out, change)

    def _keep(self, key: tuple[str, int], raw: Tensor) -> None:
        self.plan.stash[key] = raw

    def _stash_heads(self, site: Site) -> None:
        assert site.layer is not None
        layer = site.layer
        z = self.layout.points[Site("z", layer)]
        self._at(z, lambda raw: self._keep(("z", layer), z.read(raw, len(self.plan.frame.rows))))
        if norm := self.layout.blocks[layer].post_norm:
            self._at(Point(norm, "in", "first"), lambda raw: self._keep(("raw", layer), raw))
            self._at(Point(norm, "out", 0), lambda raw: self._keep(("normed", layer), raw))

    def _capture(self, site: Site) -> None:
        if site.name == "logits":
            return
        point = self._point(site)
        side = "out" if point.side == "kernel" else point.side
        self.last = max(self.last, (point.order, point.path, side))
        if site.name == "pattern":
            self.patterns[point.path].append(lambda x: self._read_pattern(site, x))
        elif site.name == "attn_out" and site.index is not None:
            self._stash_heads(site)
            self._at(point, lambda raw: self._read_share(site))
        else:
            self._at(point, lambda raw: self._read(site, point, raw))

    def _read(self, site: Site, point: Point, raw: Tensor) -> Tensor | None:
        batch = len(self.plan.frame.rows)
        value = point.read(raw, batch)
        if site.index is not None and site.name != "path":
            value = value[:, :, site.index]
        changed = self.plan.sink(site, value)
        return None if changed is None else point.write(raw, changed, batch)

    def _read_share(self, site: Site) -> None:
        assert site.layer is not None and site.index is not None
        share = self.maths.shares(site.layer, self.plan.stash, [site.index])[:, :, 0]
        self.plan.sink(site, share)

    def _read_pattern(self, site: Site, pattern: Tensor) -> Tensor | None:
        """Public orientation is (batch, query, head, key), heads after positions as everywhere."""
        value = pattern.transpose(1, 2)
        value = value if site.index is None else value[:, :, site.index]
        changed = self.plan.sink(site, value)
        return None if changed is None else changed.transpose(1, 2)

    # hooks ---------------------------------------------------------------------------------

    def _at(self, point: Point, action: Action) -> None:
        self.actions[point.path, point.side].append((point.key, action))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles: list[Any] = []
        if self.plan.stop and self.last[0] >= 0:
            self.actions.setdefault((self.last[1], self.last[2]), [])
        try:
            for (path, side), actions in self.actions.items():
                module = self.hf.get_submodule(path)
                stop = self.plan.stop and (path, side) == self.last[1:]
                if side == "in":
                    hook = _before(actions, stop)
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(_after(actions, stop)))
            if self.patterns:
                self.watch = KernelWatch()
                handles += self._watch_kernels(self.watch)
                with self.watch:
                    yield
            else:
                yield
        finally:
            for handle in handles:
                handle.remove()
            self.actions.clear()  # they hold this object, and it holds what the pass computed: nothing must wait for a sweep
            self.patterns.clear()

    def _watch_kernels(self, watch: KernelWatch) -> list[Any]:
        handles: list[Any] = []
        for path, actions in self.patterns.items():
            module = self.hf.get_submodule(path)

            def begin(_: nn.Module, __: Any, actions: list[Action] = actions) -> None:
                watch.on_pattern = lambda pattern: _chain(actions, pattern)

            def end(_: nn.Module, __: Any, ___: Any) -> None:
                watch.on_pattern = None

            handles.append(module.register_forward_pre_hook(begin))
            handles.append(module.register_forward_hook(end, prepend=True))
        return handles


def _condition_key(edit: Edit) -> tuple[str, int]:
    return "condition", id(edit)


def _chain(actions: Iterable[Action], x: Tensor) -> Tensor | None:
    changed: Tensor | None = None
    for action in actions:
        result = action(x if changed is None else changed)
        changed = changed if result is None else result
    return changed


def _edited_pattern(pattern: Tensor, edit: Edit, frame: Frame) -> Tensor:
    """Pattern (batch, head, query, key) edited in the public orientation."""
    x = pattern.transpose(1, 2)  # (batch, query, head, key)
    keys = edit.value.shape[-1] if edit.value.dim() else pattern.shape[-1]
    if keys != pattern.shape[-1]:
        pad = (0, max(0, pattern.shape[-1] - keys))
        value = torch.nn.functional.pad(edit.value, pad)[..., : pattern.shape[-1]]
        edit = replace(edit, value=value)
    if edit.site.index is None:
        return apply_edit(x, edit, frame).transpose(1, 2)
    out = x.clone()
    out[:, :, edit.site.index] = apply_edit(x[:, :, edit.site.index], edit, frame)
    return out.transpose(1, 2)


def _before(actions: list[tuple[int | str, Action]], stop: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = False
        for key, action in actions:
            if key == "first":
                key = next((i for i, x in enumerate(args) if isinstance(x, Tensor)), "") if args else next(
                    k for k, x in kwargs.items() if isinstance(x, Tensor)
                )  # fmt: skip
            if isinstance(key, int):
                new = action(args[key])
                if new is not None:
                    args, changed = (*args[:key], new, *args[key + 1 :]), True
            else:
                new = action(kwargs[key])
                if new is not None:
                    kwargs, changed = {**kwargs, key: new}, True
        if stop:
            raise StopPass
        return (args, kwargs) if changed else None

    return hook


def _after(actions: list[tuple[int | str, Action]], stop: bool) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        is_tuple, changed = isinstance(output, tuple | list), False
        for key, action in actions:
            index = key if isinstance(key, int) else 0
            new = action(output[index] if is_tuple else output)
            if new is not None:
                changed = True
                output = (*output[:index], new, *output[index + 1 :]) if is_tuple else new
        if stop:
            raise StopPass
        return output if changed else None

    return hook
