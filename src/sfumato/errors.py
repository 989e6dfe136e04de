"""The one error a user meets: a single line that names the thing, the value and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Refusal(ValueError):
    """Something asked for cannot be done.  The message is one line: what, the value, the mend (CLI exit code 2)."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A short hint for an unknown name: the nearest known names, or all of them where none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return ("did you mean " + " or ".join(near) + "?") if near else "known: " + ", ".join(known)


def missing_extra(package: str, extra: str) -> Refusal:
    """The refusal for an optional package that is not installed; it names the extra to install."""
    return Refusal(f"{package} is not installed; install it with: pip install 'sfumato[{extra}]'")
