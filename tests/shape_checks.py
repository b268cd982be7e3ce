"""Checks of annotations while tests run, at a fraction of what the import hook of jaxtyping takes on its own.

The hook (`--jaxtyping-packages`) gives every function to `jaxtyping.jaxtyped`, an inner one anew whenever the outer one runs:
tests of circuits spent three quarters of their time there. `install` puts a `jaxtyped` in its place that checks the same.

1. Where no shape is named there is none to remember: beartype alone checks the types.
2. Where shapes are named, beartype checks arguments and result while jaxtyping remembers the sizes, each once: arguments are
   not bound a second time for a message of its own.
3. Code that is defined again with the same annotations is not compiled again: it takes the check of the first time.
"""

import inspect
from collections.abc import Callable
from functools import partial, update_wrapper, wraps
from types import CodeType, FunctionType
from typing import Any, ForwardRef, get_args

import jaxtyping
from beartype import beartype

WRAPPED = "__beartype_func"  # the keyword by which beartype's wrapper holds what it wraps
_whole = jaxtyping.jaxtyped
_sizes: Any = jaxtyping.jaxtyped("context")  # a new memory whenever it is entered
_checked: dict[CodeType, Callable[..., Any]] = {}


def install() -> None:
    """For modules that are imported from here on."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(given: Any = None, *, typechecker: Any) -> Any:
    """As `jaxtyping.jaxtyped`."""
    if given is None:
        return partial(jaxtyped, typechecker=typechecker)
    known = _checked.get(given.__code__) if isinstance(given, FunctionType) else None
    if known is None or known.__annotations__ != given.__annotations__:
        if not isinstance(given, FunctionType):
            return _whole(given, typechecker=typechecker)
        if not all(map(_shapeless, given.__annotations__.values())):
            return _whole(given, typechecker=typechecker) if inspect.isgeneratorfunction(given) else _remembering(given)
        _checked[given.__code__] = known = beartype(given)
        return known
    if WRAPPED not in (known.__kwdefaults__ or {}):  # nothing to check
        return given
    again = FunctionType(known.__code__, known.__globals__, known.__name__, known.__defaults__, known.__closure__)
    again.__kwdefaults__ = {**known.__kwdefaults__, WRAPPED: given}
    return update_wrapper(again, given)


def _remembering(given: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose arguments and result are checked with one memory of sizes."""
    check = beartype(given)

    @wraps(given)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with _sizes:
            return check(*args, **kwargs)

    return inside


def _shapeless(hint: Any) -> bool:
    """Whether a type names no shape, nor anything that is only known by its name."""
    if isinstance(hint, str | ForwardRef) or (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)):
        return False
    return all(map(_shapeless, hint if isinstance(hint, list | tuple) else get_args(hint)))
