"""Numbers in words.  The contract: what is printed is for a person to read, never for a program."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds in words, from a minute and a half on in minutes.

    >>> duration(89), duration(200)
    ('89 s', '3 min')
    """
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
