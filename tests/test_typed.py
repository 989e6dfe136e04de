"""The checks of annotations that every other test runs under: they see what is wrong, and pass what is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

import sfumato as sf
import typed
from sfumato import trees

checked = jaxtyping.jaxtyped(typechecker=typed.check)


def plain(a: int, b: str = "b") -> str:
    return b * a if a else 0  # type: ignore[return-value]


def shaped(x: Float[Tensor, "b d"], y: Float[Tensor, " d"] | None = None) -> Float[Tensor, " b"]:
    return x.sum(1) if y is None else (x * y).sum(int(y[0] > 0))


def outer(other: Any) -> Callable[[Any], Any]:
    @checked
    def inner(x: Float[Tensor, " n"], k: int = 0) -> Float[Tensor, " n"]:
        return other(x)  # type: ignore[no-any-return]

    return inner


@dataclass(frozen=True)
class Pair:
    left: Float[Tensor, " n"]
    right: Float[Tensor, " n"]
    name: str = ""


@dataclass(frozen=True)
class Twin:
    left: Float[Tensor, " n m"]
    right: str
    name: str = ""


def pieces(x: Float[Tensor, " n"], scale: Float[Tensor, " n"]) -> Iterator[Float[Tensor, " k"]]:
    yield from (x * scale).split(2)


def hidden(x: NoSuchName, k: int) -> int:  # type: ignore[name-defined]
    return k


def test_types_are_seen() -> None:
    f = checked(plain)
    assert f(2) == "bb"
    for call in (lambda: f("2"), lambda: f(2, 3), lambda: f(2, b=3), lambda: f(0)):
        with pytest.raises(TypeCheckError):
            call()
    g = checked(hidden)
    assert g("anything", 1) == 1
    with pytest.raises(TypeCheckError):
        g("anything", "1")


def test_shapes_are_seen_in_one_call_and_not_across_calls() -> None:
    f = checked(shaped)
    x = torch.ones(3, 2)
    assert f(x).shape == (3,)
    assert f(torch.ones(4, 5), y=torch.ones(5)).shape == (4,)
    for call in (lambda: f(x[0]), lambda: f(x.int()), lambda: f(x, torch.ones(3)), lambda: f(x, y=-torch.ones(2))):
        with pytest.raises(TypeCheckError):
            call()
    with pytest.raises(RuntimeError, match="size of tensor"):  # the function's own errors go through
        checked(lambda x: x + torch.ones(7))(x)
    assert f(x).shape == (3,)  # and no scope is left behind


def test_functions_inside_functions_are_seen_each_time() -> None:
    for _ in range(2):
        assert outer(torch.neg)(torch.ones(3)).shape == (3,)
        with pytest.raises(TypeCheckError):
            outer(torch.sum)(torch.ones(3))
        with pytest.raises(TypeCheckError):
            outer(torch.neg)(torch.ones(3, 1))
        with pytest.raises(TypeCheckError):
            outer(torch.neg)(torch.ones(3), k=0.5)


def test_fields_of_dataclasses_are_seen() -> None:
    pair, twin = checked(Pair), checked(Twin)
    assert pair is Pair
    assert checked(Pair) is Pair  # a second time changes nothing
    assert Pair(torch.ones(2), torch.ones(2)).name == ""
    assert twin(torch.ones(2, 3), "right").right == "right"
    for call in (
        lambda: Pair(torch.ones(2), torch.ones(3)),
        lambda: Pair(torch.ones(2), right=torch.ones(2), name=3),
        lambda: Twin(torch.ones(2), "right"),
        lambda: Twin(torch.ones(2, 3), torch.ones(2, 3)),
    ):
        with pytest.raises(TypeCheckError):
            call()


def test_generators_are_seen() -> None:
    assert [len(v) for v in checked(pieces)(torch.ones(5), torch.ones(5))] == [2, 2, 1]
    for wrong in (torch.ones(5, 2), torch.ones(1)):
        with pytest.raises(TypeCheckError):
            list(checked(pieces)(torch.ones(5), wrong))


def test_the_library_is_checked() -> None:
    with pytest.raises(TypeCheckError):
        trees.cast("no tensor", torch.ones(1))
    with pytest.raises(TypeCheckError):
        sf.oracles.GaussianMixture([1.0], [[0.0, 0.0]], 1.0).nll(torch.ones(3, 2).int())
    with pytest.raises(TypeCheckError):
        sf.samplers.get("rk45", rtol="tight")


def test_annotations_stay_as_written() -> None:
    before = dict(plain.__annotations__)
    assert checked(plain).__annotations__ == before == {"a": "int", "b": "str", "return": "str"}
