"""Attributes that belong to a part: one descriptor for every module that wraps a network.

The contract: with ``compute_dtype = Delegated("net")`` in a class, ``wrapper.compute_dtype`` reads and sets
``wrapper.net.compute_dtype``; nothing is kept in the wrapper.
"""

from __future__ import annotations

from typing import Any, final


@final
class Delegated:
    """An attribute of the name that it is assigned to, kept by the ``part`` of its owner."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else getattr(getattr(instance, self.part), self.name)

    def __set__(self, instance: Any, value: Any) -> None:
        setattr(getattr(instance, self.part), self.name, value)
