"""A part with its settings as one word: ``name:key=value:key=value``, as in ``ddim:eta=0.5`` or ``karras:rho=5``.

The contract: the settings are the part's own (the fields of its dataclass, the keyword arguments of its function), a
value is read by its declared type, and anything else is refused in one line with the nearest name.  ``text(parse(s))``
names the same part as ``s``.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

from sfumato.errors import Refusal, nearest

#: What one value can be read from text.
SCALARS = (bool, int, float, str)


@final
@dataclass(frozen=True)
class Setting:
    """One setting of a part: its declared ``type`` and its ``default`` (``inspect.Parameter.empty`` where required)."""

    type: Any
    default: Any


def settings_of(builder: Callable[..., Any], given: int = 0) -> dict[str, Setting]:
    """The settings of a part by name.  ``builder``: its class or function, whose first ``given`` arguments are no
    settings.
    """
    hints = typing.get_type_hints(builder)
    own = list(inspect.signature(builder).parameters.values())[given:]
    return {p.name: Setting(hints[p.name], p.default) for p in own}


def parse(
    kind: str, text: str, find: Callable[[str], Callable[..., Any]], given: int = 0
) -> tuple[str, dict[str, Any]]:
    """``"name:key=value"`` as ``(name, {key: value})``.

    ``kind``: what a message calls the part; ``find``: name -> its builder, refusing unknown names; ``given``: see
    :func:`settings_of`.  Raises :class:`Refusal` for an unknown name or setting, one given twice, and a value of the
    wrong type.
    """
    name, *pairs = text.strip().split(":")
    known = settings_of(find(name), given)
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = (part.strip() for part in pair.partition("="))
        if not known:
            raise Refusal(f"{kind} {name!r} takes no settings; write {name} alone, not {text}")
        if not sign or not key or not value:
            raise Refusal(f"{kind} {text!r}: write {name}:KEY=VALUE, with {' or '.join(known)} for KEY")
        if key not in known:
            raise Refusal(f"{kind} {name!r} has no setting {key!r}; {nearest(key, known)}")
        if key in settings:
            raise Refusal(f"{kind} {text!r} gives {key} twice; give it once")
        settings[key] = read(f"{name}:{key}", value, known[key].type)
    return name, settings


def read(name: str, value: str, kind: Any) -> Any:
    """``value`` as a ``kind``: a bool, int, float, str, ``Literal``, a tuple of one type, or any of them or None.

    Raises :class:`Refusal` naming the setting, the value and what it needs.
    """
    from sfumato.training.settings import choose
    from sfumato.training.settings import parse as parse_value

    options = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType) and type(None) in options:
        rest = [option for option in options if option is not type(None)]
        return None if value.lower() == "none" else read(name, value, typing.Union[tuple(rest)])  # noqa: UP007
    if origin is typing.Literal:
        choose(name, value, [str(option) for option in options])
        return next(option for option in options if str(option) == value)
    if kind not in SCALARS and not (origin is tuple and options[0] in SCALARS):
        raise Refusal(f"{name} cannot be written as text; build the part in Python")
    if kind is float and value.lower() in ("inf", "-inf"):
        return float(value)  # a bound that does not bind
    return parse_value(name, value, kind)


def text(name: str, settings: Mapping[str, Any]) -> str:
    """The word that :func:`parse` reads back."""

    def written(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return ":".join([name, *(f"{key}={written(value)}" for key, value in settings.items())])


def split(words: str) -> list[str]:
    """The parts of a list separated by commas; a comma before a number belongs to the value before it.

    ``"heun,ddim:eta=0.5,euler"`` gives three, ``"karras:span=1,2,uniform"`` two.  Raises :class:`Refusal` where one is
    empty.
    """
    found: list[str] = []
    for word in (word.strip() for word in words.split(",")):
        if found and ":" in found[-1] and word[:1] in tuple("0123456789.-+"):
            found[-1] += f",{word}"
        else:
            found.append(word)
    if not all(found):
        raise Refusal(f"{words!r} names nothing between two commas; write NAME,NAME:KEY=VALUE,...")
    return found
