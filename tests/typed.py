"""``jaxtyping.jaxtyped`` for a library of small functions: the same checks of every annotation, none made twice.

The contract: beartype checks the types and jaxtyping the shapes of arguments and results, in every function and every
dataclass.  jaxtyping's own decorator gives each call a scope of shapes, binds the arguments by name and checks them
twice, and builds all this anew for a function inside a function whenever the outer one is called: two thirds of the
time of these tests.  Here a signature without shapes is beartype's alone, one with shapes is checked once, in a scope
of its own, and the hints of a piece of code are read once.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

#: The type checker for jaxtyping's import hook: it complains as jaxtyping's own decorator would.
check = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_jaxtyped = jaxtyping.jaxtyped
_scope = jaxtyping.jaxtyped("context")
if sys.version_info < (3, 12):  # which looks up the members of a protocol anew at every check of an object
    for name in ("_get_protocol_attrs", "_is_callable_members_only"):
        setattr(typing, name, functools.cache(getattr(typing, name)))

#: By the identity of the code, which is kept: codes of equal text are equal.
_read: dict[int, tuple[CodeType, dict[str, Any], bool]] = {}
_made: weakref.WeakSet[Any] = weakref.WeakSet()


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Stands in for ``jaxtyping.jaxtyped``, which jaxtyping's import hook looks up for every function and class."""
    return lambda target: _checked(target, typechecker)


def _checked(target: Any, typechecker: Callable[[Any], Any]) -> Any:
    if inspect.isclass(target):
        own = vars(target).get("__init__")  # None where it is a base's, checked already
        if dataclasses.is_dataclass(target) and own is not None and own not in _made:
            target.__init__ = _checked(own, typechecker)  # type: ignore[misc]
        return target
    hints, shaped = _hints(target)
    if shaped and inspect.isgeneratorfunction(target):
        return _jaxtyped(target, typechecker=typechecker)
    # the annotations stay the text that they are without these checks
    written = target.__annotations__
    target.__annotations__ = hints
    checks = typechecker(target)
    target.__annotations__ = checks.__annotations__ = written
    made = _scoped(checks) if shaped else checks
    _made.add(made)
    return made


def _scoped(checks: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(checks)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        with _scope:
            return checks(*args, **kwargs)

    return call


def _hints(function: Any) -> tuple[dict[str, Any], bool]:
    """The annotations as objects, and whether shapes are among them."""
    code = function.__code__
    if id(code) not in _read:
        hints = {name: _resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
        _read[id(code)] = (code, hints, any(_has_shapes(hint) for hint in hints.values()))
    return _read[id(code)][1:]


def _resolved(hint: Any, names: dict[str, Any]) -> Any:
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except NameError:  # of an import for type checkers alone, or of a local class
        return Any


def _has_shapes(hint: Any) -> bool:
    if isinstance(hint, list):
        return any(_has_shapes(part) for part in hint)
    if isinstance(hint, str | typing.ForwardRef):
        return True
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_shapes(part) for part in typing.get_args(hint))
