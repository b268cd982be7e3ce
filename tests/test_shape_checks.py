"""What the tests check of annotations while they run: types and shapes, of inner functions too, each time they are defined."""

from collections.abc import Callable

import beartype
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from assay.model.hooks import attached
from assay.model.model import Model
from assay.model.run import Engine
from shape_checks import jaxtyped

checked = jaxtyped(typechecker=beartype.beartype)
WRONG = (TypeCheckError, beartype.roar.BeartypeCallHintViolation)


@checked
def scaled(x: Float[Tensor, "row d"], by: Float[Tensor, " d"]) -> Float[Tensor, "row d"]:
    return (x * by)[: 9 if len(x) < 9 else 2]


def adder(n: int) -> Callable[[int], int]:
    @checked
    def add(m: int, *, more: int = 0) -> int:
        return m + n + more if m else "nothing"  # type: ignore[return-value]

    return add


def test_shapes_must_fit_each_other():
    assert scaled(torch.ones(4, 3), torch.full((3,), 2.0)).sum() == 24
    for wrong in ((torch.ones(4, 3), torch.ones(4)), (torch.ones(4), torch.ones(4)), (torch.ones(9, 3), torch.ones(3))):
        with pytest.raises(WRONG):
            scaled(*wrong)


def test_an_inner_function_is_checked_whenever_it_is_defined_and_keeps_what_it_closes_over():
    for n in range(4):
        add = adder(n)
        assert (add(1), add(1, more=5), add.__name__) == (1 + n, 6 + n, "add")
        for wrong in (lambda add=add: add("1"), lambda add=add: add(1, more="1"), lambda add=add: add(0)):
            with pytest.raises(WRONG):
                wrong()


def test_the_same_code_with_other_annotations_is_checked_by_those():
    def made(kind: type) -> Callable[..., object]:
        @checked
        def same(x: kind) -> object:  # type: ignore[valid-type]
            return x

        return same

    assert (made(int)(1), made(str)("a")) == (1, "a")
    for found, wrong in ((made(int), "a"), (made(str), 1), (made(int), "a")):
        with pytest.raises(WRONG):
            found(wrong)


def test_functions_of_the_engine_are_checked():
    assert all(hasattr(each, "__wrapped__") for each in (Model.capture, Engine.run, attached))
    with pytest.raises(WRONG):
        Model.tokens(object.__new__(Model), 5)
