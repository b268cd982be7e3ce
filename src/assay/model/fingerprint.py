"""What a module tree is, as one hash: two models with the same hash compute the same thing.

1. Every module: its path, its class, every function its class binds (bytecode, constants, defaults,
   closures, and the functions of the same library they call), and its own settings.
2. The names, shapes and bytes of all weights, and of buffers that are not saved with them.
3. What makes a tree unlike its classes (a `forward` on the instance, hooks of anybody), and values
   nobody can read, have no hash: `Unreadable` is raised, and nothing may be cached.

It does not see changes inside compiled code (torch's kernels): versions stand for those.
"""

import enum
import functools
import hashlib
import inspect
import json
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from assay.model.offload import state_items

PLAIN = (str, int, float, complex, bool, bytes, type(None), type(...), torch.dtype, torch.device, torch.Size, range, slice)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
METHODS = (types.FunctionType, staticmethod, classmethod, property)
STATE = {"_parameters", "_buffers", "_modules", "training", "generation_config"}  # weights, children, not of forward


class Unreadable(Exception):
    """Something whose behaviour cannot be read off its parts."""


def weights_state(hf: nn.Module) -> Any:
    """A SHA-256 object that has eaten names, shapes and bytes of all saved weights."""
    state = hashlib.sha256()
    for key, value in state_items(hf):
        state.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
        state.update(_bytes(value))
    return state


def tokenizer_digest(tokenizer: Any, prepend_bos: bool, bos_id: int | None) -> str | None:
    """Hash of how texts become tokens: vocabulary, merges, normaliser, special tokens, and what is put before."""
    if tokenizer is None:
        return None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = json.loads(backend.to_str()) if backend is not None else {"vocabulary": sorted(tokenizer.get_vocab().items())}
    for name in ("padding", "truncation"):  # set by the last call, no part of what the tokenizer is
        parts.pop(name, None)
    text = json.dumps([parts, bool(prepend_bos), bos_id], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def tree_hash(hf: nn.Module) -> str:
    """Hash of modules, their code and settings. Raises Unreadable for a tree unlike its classes."""
    module_type: Any = torch.nn.modules.module
    if any(getattr(module_type, f"_global{kind}", None) for kind in HOOKS):
        raise Unreadable("global hooks")
    reader, saved = _Reader(), set(hf.state_dict())
    for path, module in hf.named_modules():
        own = vars(module)
        if "forward" in own or "_hf_hook" in own or any(own.get(kind) for kind in HOOKS):
            raise Unreadable(f"{path}: hooks, or a forward of its own")
        reader.eat(path, type(module))
        for key, value in own.items():
            if key not in STATE and not key.endswith("_hooks"):
                reader.eat(key, value)
        for key, value in module.named_buffers(recurse=False):
            if f"{path}.{key}".lstrip(".") not in saved:
                reader.eat(key, value)
        for key, parameter in module.named_parameters(recurse=False):
            reader.eat(key, tuple(parameter.shape))
    return reader.state.hexdigest()


class _Reader:
    """Feeds values, and the code behind them, to one hash."""

    def __init__(self) -> None:
        self.state = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # id -> its number; the object is kept alive

    def eat(self, *values: Any) -> None:
        for value in values:
            self._one(value)

    def _text(self, text: str) -> None:
        self.state.update(f"{len(text)}:{text}".encode())

    def _one(self, value: Any) -> None:
        if isinstance(value, PLAIN) and not isinstance(value, enum.Enum):
            return self._text(f"{type(value).__name__} {value!r}")
        if isinstance(value, Tensor):
            self._text(f"{value.dtype}{tuple(value.shape)}")
            return self.state.update(_bytes(value))
        if id(value) in self.seen:
            return self._text(f"again {self.seen[id(value)][0]}")
        self.seen[id(value)] = (len(self.seen), value)
        self._text(f"{type(value).__module__}.{type(value).__qualname__}")
        self.eat(*self._parts(value))

    def _parts(self, value: Any) -> Iterator[Any]:
        """What an object consists of, as far as its behaviour goes."""
        if isinstance(value, nn.Module):
            return  # walked by its own path
        if isinstance(value, types.FunctionType):
            yield from _function(value)
        elif isinstance(value, types.CodeType):
            yield from (value.co_code, value.co_names, value.co_varnames, value.co_freevars, *value.co_consts)
        elif isinstance(value, type):
            yield from _class(value)
        elif isinstance(value, types.MethodType | staticmethod | classmethod):
            yield from (value.__func__, getattr(value, "__self__", None))
        elif isinstance(value, property):
            yield from (value.fget, value.fset)
        elif isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif isinstance(value, dict):
            yield from (part for pair in value.items() for part in pair)
        elif isinstance(value, set | frozenset | inspect.Signature):
            yield from sorted(map(repr, value if isinstance(value, set | frozenset) else [value]))
        elif isinstance(value, tuple | list):
            yield from value
        elif isinstance(value, enum.Enum):
            yield value.name
        elif hasattr(value, "to_json_string"):  # a config
            yield value.to_json_string(use_diff=False)
        elif isinstance(value, types.ModuleType | types.BuiltinFunctionType | types.BuiltinMethodType):
            yield from (value.__name__, getattr(value, "__module__", None))
        else:
            yield from _other(value)


def _function(value: types.FunctionType) -> Iterator[Any]:
    """Code, defaults, closure, and the functions it calls by a global name in its own library."""
    yield from (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
    yield from (cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value)
    if not _of_torch(value):
        called = (value.__globals__.get(name) for name in value.__code__.co_names)
        yield from (other for other in called if isinstance(other, types.FunctionType))


def _of_torch(value: types.FunctionType) -> bool:
    return str(value.__module__).startswith("torch.")


def _class(value: type) -> Iterator[Any]:
    """A class; for a module class, what a call runs: forward, and what it names, as bound here."""
    yield from (f"{base.__module__}.{base.__qualname__}" for base in value.__mro__)
    if not issubclass(value, nn.Module):
        return
    names, done = ["__call__", "forward"], set()
    while names:
        name = names.pop()
        part = inspect.getattr_static(value, name, Unreadable)
        if name in done or not isinstance(part, METHODS + PLAIN):
            continue
        done.add(name)
        yield from (name, part)
        names += _names(part)


def _names(part: Any) -> list[str]:
    """Names that the code of a method uses, decorators looked through; none of torch's own methods."""
    part = part.fget if isinstance(part, property) else getattr(part, "__func__", part)
    part = inspect.unwrap(part)
    if not isinstance(part, types.FunctionType) or _of_torch(part):
        return []
    codes, names = [part.__code__], list[str]()
    while codes:
        code = codes.pop()
        names += code.co_names
        codes += (const for const in code.co_consts if isinstance(const, types.CodeType))
    return sorted(set(names))


def _other(value: Any) -> Iterator[Any]:
    """An object of a plain Python class: its class and its attributes."""
    kind = type(value)
    if kind.__module__ == "builtins" or not hasattr(value, "__dict__"):
        raise Unreadable(f"{kind.__module__}.{kind.__qualname__}")
    yield from (kind.__module__, kind.__qualname__, vars(value))


def _bytes(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy() if flat.numel() else b""
