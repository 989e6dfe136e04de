"""Names for parts: a registry maps a command-line name to the callable that builds the part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from sfumato.errors import Refusal, nearest

P = TypeVar("P")


class Registry(Generic[P]):
    """An ordered name -> builder table.  ``get(name, **settings)`` builds; an unknown name is refused with the
    nearest."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._builders: dict[str, Callable[..., P]] = {}

    def add(self, name: str, builder: Callable[..., P]) -> None:
        """Register ``builder`` under ``name``."""
        self._builders[name] = builder

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def builder(self, name: str) -> Callable[..., P]:
        """The builder registered under ``name``; raises :class:`Refusal` with the nearest names."""
        if name not in self._builders:
            raise Refusal(f"unknown {self.kind} {name!r}; {nearest(name, self._builders)}")
        return self._builders[name]

    def get(self, name: str, **settings: Any) -> P:
        """Build the part called ``name``; raises :class:`Refusal` for an unknown name or setting."""
        builder = self.builder(name)
        try:
            return builder(**settings)
        except TypeError as error:
            if settings and "keyword" in str(error):
                raise Refusal(f"{self.kind} {name!r}: {str(error).split('.')[-1].split('() ')[-1]}") from None
            raise
