"""The files that come with the package, and their cards: source, licence and checksum.

The contract: nothing is read from a file before its SHA-256 agreed with its card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import Refusal

#: Where the embedded sets are.
FILES = Path(__file__).parent / "files"
#: What every card says.
KEYS = ("sha256", "source", "licence")
#: What mends a file of the package.
AGAIN = "install sfumato again"


def read_bytes(path: Path, mend: str = "check the path") -> bytes:
    """The bytes of a file; raises :class:`Refusal`, which says ``mend``, where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); {mend}") from None


def read_card(name: str, keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """The card of the set called ``name``.  Raises :class:`Refusal` where it is missing, damaged or lacks a key."""
    path = FILES / f"{name}.json"
    try:
        card = json.loads(read_bytes(path, AGAIN))
        if all(key in card for key in keys):
            return dict(card)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        pass
    raise Refusal(f"{path} is damaged; {AGAIN}")


def checked(file: str, sha256: str) -> bytes:
    """The bytes of an embedded file.  Raises :class:`Refusal` where its checksum is not ``sha256``."""
    path = FILES / file
    blob = read_bytes(path, AGAIN)
    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise Refusal(f"{path} is damaged (sha256 {found[:16]}, expected {sha256[:16]}); {AGAIN}")
    return blob
