"""Between stored tokens, the model's tokens and strings: ``decode(encode(tokens)) == text``.

The contract: the model's state is int64 ``[b, L]``; a state that holds anything but tokens of the tokenizer (a mask
that was never filled) is refused, never made into text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Bool, Int64, Integer
from torch import Tensor

from sfumato.data.tokenizers import Tokenizer, described, from_json
from sfumato.data.views import View
from sfumato.errors import Refusal

#: A character of an infilling template that is to be filled.
BLANK = "_"


@final
class Texts:
    """Strings, shown one under the other."""

    noun: ClassVar[str] = "texts"
    file: ClassVar[str] = "samples.txt"

    def array(self, x: Any) -> np.ndarray:
        """The strings as a numpy array of them."""
        return np.asarray(list(x), dtype=np.str_)

    def show(self, samples: Any) -> bytes:
        """All texts, UTF-8, each under a line with its number (and its label)."""
        label = samples.label or ("",) * len(samples)
        heads = [f"--- {k}{f' {name}' if name else ''} ---" for k, name in enumerate(label)]
        return "".join(f"{head}\n{text}\n\n" for head, text in zip(heads, samples, strict=True)).encode(
            errors="replace"
        )


@final
@dataclass(frozen=True)
class TextTransform:
    """Rows of ``length`` tokens of ``tokenizer``.  Raises :class:`Refusal` for a length below 1."""

    tokenizer: Tokenizer
    length: int
    dtype: ClassVar[torch.dtype] = torch.int64
    view: ClassVar[View] = Texts()

    def __post_init__(self) -> None:
        if self.length < 1:
            raise Refusal(f"length={self.length}: a row of text needs at least one token")

    @classmethod
    def stored(cls, tokenizer: Mapping[str, Any], length: int) -> TextTransform:
        """The transform whose ``to_json`` held these."""
        return cls(from_json(tokenizer), length)

    def encode(self, x: Integer[Tensor, "b n"]) -> Int64[Tensor, "b n"]:
        """Stored tokens as the model's."""
        return x.to(torch.int64)

    def decode(self, x: Int64[Tensor, "b n"]) -> list[str]:
        """One string a row.  Raises :class:`Refusal` where a row holds a token that is no text."""
        size = self.tokenizer.size
        strange = ((x < 0) | (x >= size)).any(1)
        if bool(strange.any()):
            raise Refusal(
                f"{int(strange.sum())} of {len(x)} texts hold a token beyond the {size} of the tokenizer (a mask that "
                "was not filled); sample to the end"
            )
        return [self.tokenizer.decode(row) for row in x]

    def to_json(self) -> dict[str, Any]:
        """Its name, its tokenizer and its length."""
        return {"name": "text", "tokenizer": self.tokenizer.to_json(), "length": self.length}


#: Tokens of one row, and which of them are given: the others are the model's to fill.
Partial = tuple[Int64[Tensor, " n"], Bool[Tensor, " n"]]


def _row(transform: TextTransform, what: str, pieces: Sequence[tuple[Tensor, bool]]) -> Partial:
    """A row of the transform's length from (tokens, given) pieces; the rest of it is free."""
    n, length = sum(len(tokens) for tokens, _ in pieces), transform.length
    if n > length:
        raise Refusal(f"the {what} has {n} tokens, the model {length}; shorten it by {n - length}")
    tokens, known = torch.zeros(length, dtype=torch.int64), torch.zeros(length, dtype=torch.bool)
    place = 0
    for piece, given in pieces:
        tokens[place : place + len(piece)] = piece
        known[place : place + len(piece)] = given
        place += len(piece)
    return tokens, known


def prompt(transform: TextTransform, text: str) -> Partial:
    """A row that begins with ``text`` and is free behind it: ``(tokens [L], known [L])``.

    It is read as the training text was: ``text8`` makes "to be " of "To be,".  Raises :class:`Refusal` for an empty
    prompt, characters that the tokenizer does not know, one that is longer than the model, and one that leaves nothing
    to write.
    """
    tokens = transform.tokenizer.encode(text)
    if not len(tokens):
        raise Refusal("the prompt is empty; leave it out, or write at least one character")
    row = _row(transform, "prompt", [(tokens, True)])
    if bool(row[1].all()):
        raise Refusal(f"the prompt has {len(tokens)} tokens, as many as the model; shorten it to leave room to write")
    return row


def template(transform: TextTransform, text: str) -> Partial:
    """A row that shows ``text`` and is free at every underscore of it, and behind it: ``(tokens [L], known [L])``.

    Raises :class:`Refusal` for a text without underscore, a tokenizer with other tokens than characters, characters
    that it does not know or would change (no given character moves), and a text that is longer than the model.
    """
    if transform.tokenizer.unit != "character":
        raise Refusal(
            f"infilling needs one token for a character, and a token here is a {transform.tokenizer.unit}; train with "
            "tokenizer=characters"
        )
    if BLANK not in text:
        raise Refusal(f"{text!r} has nothing to fill; write one underscore for every free character, as in TO ___")
    shown = text.split(BLANK)
    tokens = [transform.tokenizer.encode(piece) for piece in shown]
    read = [transform.tokenizer.decode(row) for row in tokens]
    for piece, back in zip(shown, read, strict=True):
        if back != piece:
            raise Refusal(
                f"the tokenizer {described(transform.tokenizer)} reads {piece!r} as {back!r}, and infilling moves no "
                f"given character; write {BLANK.join(read)!r}, or train with tokenizer=characters"
            )
    pieces: list[tuple[Tensor, bool]] = []
    for k, row in enumerate(tokens):
        pieces += [(torch.zeros(1, dtype=torch.int64), False)] if k else []
        pieces += [(row, True)] if len(row) else []
    return _row(transform, "text", pieces)
