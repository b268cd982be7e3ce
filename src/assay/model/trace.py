"""One traced forward pass: which modules run, in what order, on which tensors.

Every module of the model is watched while a few tokens run through it. Tensors are copied (some
families write into their outputs in place). Attention kernels are seen by the torch calls they make,
whichever module makes them, so no list of families is needed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.kernel import KernelWatch


@dataclass
class Call:
    """One call of one module: when it began and ended, what went in and what came out."""

    path: str
    module: nn.Module
    begin: int
    end: int = -1
    inputs: dict[int | str, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    returns_tuple: int = 0

    @property
    def has_matrix(self) -> bool:
        """A leaf with a weight matrix: a projection."""
        is_leaf = next(self.module.children(), None) is None
        return is_leaf and any(p.dim() >= 2 for p in self.module.parameters(recurse=False))


@dataclass
class KernelCall:
    """One attention pattern (batch, head, query, key), and the module that made it."""

    path: str
    when: int
    pattern: Tensor


@dataclass
class Trace:
    """All calls of one forward pass, in order of their begin."""

    calls: list[Call]
    kernels: list[KernelCall]
    logits: Tensor
    batch: int

    def under(self, path: str) -> list[Call]:
        """Calls of a module's descendants (not of the module itself)."""
        return [call for call in self.calls if call.path.startswith(path + ".")]

    def of(self, path: str) -> Call | None:
        """The first call of one module."""
        return next((call for call in self.calls if call.path == path), None)


@torch.no_grad()
def trace(hf: nn.Module, tokens: Tensor) -> Trace:
    """Run `tokens` (batch, pos) through an unmodified module and record every call."""
    recorder = _Recorder(batch=tokens.shape[0], pos=tokens.shape[1])
    with recorder.attached(hf), recorder.watch:
        output = hf(input_ids=tokens, use_cache=False)
    return Trace(recorder.calls, recorder.kernels, output.logits.clone(), tokens.shape[0])


class _Recorder:
    def __init__(self, batch: int, pos: int) -> None:
        self.batch, self.pos = batch, pos
        self.clock = 0
        self.calls: list[Call] = []
        self.kernels: list[KernelCall] = []
        self.stack: list[Call] = []
        self.watch = KernelWatch()
        self.watch.on_pattern = self._kernel

    @contextmanager
    def attached(self, hf: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for path, module in hf.named_modules():
                if path:
                    begin, end = self._begin(path), self._end()
                    handles.append(module.register_forward_pre_hook(begin, with_kwargs=True))
                    handles.append(module.register_forward_hook(end))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tick(self) -> int:
        self.clock += 1
        return self.clock

    def _begin(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(path, module, self._tick())
            for key, value in [*enumerate(args), *kwargs.items()]:
                if (kept := self._keep(value)) is not None:
                    call.inputs[key] = kept
            self.calls.append(call)
            self.stack.append(call)

        return hook

    def _end(self) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            call = self.stack.pop()
            call.end = self._tick()
            call.returns_tuple = len(output) if isinstance(output, tuple | list) else 0
            values = output if isinstance(output, tuple | list) else (output,)
            for key, value in enumerate(values):
                if (kept := self._keep(value)) is not None:
                    call.outputs[key] = kept

        return hook

    def _kernel(self, pattern: Tensor) -> None:
        if self.stack and pattern.shape[-2:] == (self.pos, pattern.shape[-1]):
            path = self.stack[-1].path
            self.kernels.append(KernelCall(path, self._tick(), pattern.clone()))

    def _keep(self, value: Any) -> Tensor | None:
        """A copy of an activation, flattened (batch * pos, features) ones unfolded."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        if value.dim() == 2 and value.shape[0] == self.batch * self.pos:
            return value.unflatten(0, (self.batch, self.pos)).clone()
        return value.clone() if value.shape[:2] == (self.batch, self.pos) else None
