"""The files that come with the package, and their cards: source, licence and checksum.

The contract: nothing is read from a file before its SHA-256 agreed with its card.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sfumato.errors import Refusal

#: Where the embedded sets are.
FILES = Path(__file__).parent / "files"
#: What every card says.
KEYS = ("sha256", "source", "licence")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or a one-line refusal."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); install sfumato again") from None


def read_card(name: str) -> dict[str, Any]:
    """The card of the set called ``name``.  Raises :class:`Refusal` where it is missing or damaged."""
    path = FILES / f"{name}.json"
    try:
        card = json.loads(read_bytes(path))
        if all(key in card for key in KEYS):
            return dict(card)
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError):
        pass
    raise Refusal(f"{path} is damaged; install sfumato again")


def checked(file: str, sha256: str) -> bytes:
    """The bytes of an embedded file.  Raises :class:`Refusal` where its checksum is not ``sha256``."""
    path = FILES / file
    blob = read_bytes(path)
    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise Refusal(f"{path} is damaged (sha256 {found[:16]}, expected {sha256[:16]}); install sfumato again")
    return blob
