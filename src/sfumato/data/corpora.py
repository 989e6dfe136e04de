"""Texts by name or by path, each cut into a part for training and a held-out part.

The contract: no character is in both parts, the two together are the whole text, and the cut is a function of the text
alone: the held-out part is the last tenth of every piece (of every play; of a user's file as a whole), from the first
blank line at or after 90% of its characters (or line end, or character, where there is no blank line).  So the held-out
text is contiguous in every piece and has the same authors, subjects and layout.

An embedded text lives in ``files/NAME.txt.xz``, UTF-8 with pieces parted by a form feed, beside ``files/NAME.json``, a
card with its source, licence and checksums; ``tools/make_NAME.py`` makes both.  A fetched text (:data:`FETCHED`) keeps
the two parts that it was published in.
"""

from __future__ import annotations

import hashlib
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import final

from sfumato.data.cards import FILES, checked, read_bytes, read_card
from sfumato.errors import Refusal, nearest

#: Texts that are fetched when they are first used.
FETCHED = ("moses",)
#: One character in this many is held out.
HELD_OUT = 10
#: What parts the pieces of an embedded text.
PIECE = "\f"


@final
@dataclass(frozen=True)
class Corpus:
    """A text in two parts.  ``read(corpus.name)`` gives it again (for a file, the name is its absolute path)."""

    name: str
    train: str
    test: str
    source: str
    licence: str
    sha256: str


def embedded() -> tuple[str, ...]:
    """The texts that come with the package."""
    return tuple(sorted(path.name.removesuffix(".txt.xz") for path in FILES.glob("*.txt.xz")))


def names() -> tuple[str, ...]:
    """The embedded texts, and those that are fetched when they are first used."""
    return (*embedded(), *FETCHED)


def is_text(name: str | Path) -> bool:
    """Whether ``name`` is a text with a name or the path of a ``.txt`` file."""
    return str(name) in names() or str(name).endswith(".txt")


def cut(text: str) -> tuple[str, str]:
    """A text's first nine tenths and its last tenth, cut at the first blank line there (else line end, else anywhere).

    >>> cut("a" * 90 + "bb\\n\\n" + "c" * 8)[1]
    'cccccccc'
    """
    place = len(text) - len(text) // HELD_OUT
    for mark in ("\n\n", "\n"):
        found = text.find(mark, place)
        if 0 <= found < len(text) - len(mark):
            return text[: found + len(mark)], text[found + len(mark) :]
    return text[:place], text[place:]


def join(pieces: list[str]) -> tuple[str, str]:
    """The training parts of all pieces, one after the other, and their held-out parts."""
    parts = [cut(piece) for piece in pieces]
    return "".join(train for train, _ in parts), "".join(test for _, test in parts)


def read(name: str | Path) -> Corpus:
    """The text called ``name``, or a user's ``.txt`` file (UTF-8; line ends become ``\\n``).

    Raises :class:`Refusal` for an unknown name, a file that cannot be read, is damaged, is empty or is not UTF-8, and
    for a text that cannot be fetched.
    """
    text = str(name)
    if text in embedded():
        return _embedded(text)
    if text in FETCHED:
        return _fetched(text)
    if text.endswith(".txt"):
        return _from_file(Path(name))
    raise Refusal(f"unknown text {text!r}; {nearest(text, names())} (or the path of a .txt file)")


def _embedded(name: str) -> Corpus:
    """An embedded text, after its checksum agreed with its card."""
    card = read_card(name)
    sha256 = str(card["sha256"])
    train, test = join(lzma.decompress(checked(f"{name}.txt.xz", sha256)).decode().split(PIECE))
    return Corpus(name, train, test, str(card["source"]), str(card["licence"]), sha256)


def _fetched(name: str) -> Corpus:
    """A text of :mod:`sfumato.data.fetched`, whose two parts are the published ones."""
    from sfumato.data import fetched

    chosen = fetched.SETS[name]
    parts = {part: array.tobytes().decode() for part, array in chosen.arrays().items()}
    return Corpus(name, parts["train"], parts["test"], **fetched.record(chosen))


def _from_file(path: Path) -> Corpus:
    """A user's text, its last tenth held out."""
    blob = read_bytes(path)
    try:
        text = blob.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise Refusal(f"{path} is empty; give a text of some thousand characters")
    train, test = cut(text)
    sha256 = hashlib.sha256(blob).hexdigest()
    return Corpus(str(path.resolve()), train, test, f"the file {path.name}", "not stated", sha256)
