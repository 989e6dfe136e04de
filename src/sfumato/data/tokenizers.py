"""Tokenizers: from text to integers and back.

The contract: ``decode(encode(s)) == s`` for every text that a tokenizer accepts (``Text8`` first brings it to its own
27 symbols, so ``decode(encode(s)) == normalise(s)``); tokens are ``0 .. size - 1``, and no token is set apart for
padding or masking; ``from_json(t.to_json()) == t``, so a checkpoint holds its tokenizer.  What cannot be encoded is
refused in one line that names the characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sfumato.data.corpora import Corpus
from sfumato.errors import Refusal, nearest
from sfumato.spec import parse as parse_spec

#: How many unknown characters a message names.
NAMED = 8
#: How much of an alphabet a message shows.
ALPHABET = 40
#: The fewest tokens of a byte-level BPE: one for every byte.
BYTES = 256
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@runtime_checkable
class Tokenizer(Protocol):
    """Text as tokens ``0 .. size - 1``.  ``unit``: what a token is: a character, a byte, a piece of text."""

    @property
    def size(self) -> int: ...
    @property
    def unit(self) -> Literal["character", "byte", "piece"]: ...

    def encode(self, text: str) -> Int64[Tensor, " n"]:
        """The tokens of a text; raises :class:`Refusal` naming what it does not know."""
        ...

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of tokens ``[n]``; raises :class:`Refusal` for one that is none of its own."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The settings that :func:`from_json` rebuilds it from."""
        ...


def _codes(text: str) -> np.ndarray:
    """The code points of a text, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _checked(tokens: Sequence[int] | Tensor, size: int) -> np.ndarray:
    """Tokens as an array ``[n]``, all of them below ``size``."""
    array: np.ndarray = torch.as_tensor(tokens).detach().cpu().to(torch.int64).numpy()
    if array.ndim != 1 or (array.size and (array.min() < 0 or array.max() >= size)):
        found = f"shape {list(array.shape)}" if array.ndim != 1 else f"{int(array.min())}..{int(array.max())}"
        raise Refusal(
            f"tokens of {found} for a vocabulary of {size}; give [n] integers below {size} (a mask is no text)"
        )
    return array


@final
@dataclass(frozen=True)
class Characters:
    """The characters of ``alphabet``, in its order.  Raises :class:`Refusal` for an empty one or a repeated one."""

    alphabet: str
    unit: ClassVar[Literal["character", "byte", "piece"]] = "character"

    def __post_init__(self) -> None:
        if not self.alphabet or len(set(self.alphabet)) != len(self.alphabet):
            raise Refusal(f"alphabet {self.alphabet!r} is empty or names a character twice; name each once")

    @classmethod
    def of(cls, text: str) -> Characters:
        """The characters that occur in a text, by code point."""
        codes: list[int] = np.unique(_codes(text)).tolist()
        return cls("".join(map(chr, codes)))

    @property
    def size(self) -> int:
        """The characters of the alphabet."""
        return len(self.alphabet)

    def encode(self, text: str) -> Int64[Tensor, " n"]:
        """One token a character."""
        alphabet, codes = _codes(self.alphabet), _codes(text)
        order = alphabet.argsort()
        places = np.searchsorted(alphabet, codes, sorter=order).clip(max=self.size - 1)
        tokens = order[places]
        wrong = codes[alphabet[tokens] != codes]
        if len(wrong):
            unknown: list[int] = list(dict.fromkeys(wrong.tolist()))
            shown = " ".join(repr(chr(c)) for c in unknown[:NAMED]) + (" ..." if len(unknown) > NAMED else "")
            raise Refusal(
                f"unknown character{'s' * (len(unknown) > 1)} {shown}: the alphabet has {self.size}, of this text; "
                "write with those, or train with tokenizer=bytes"
            )
        return torch.from_numpy(tokens.astype(np.int64))

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """One character a token."""
        raw: bytes = _codes(self.alphabet)[_checked(tokens, self.size)].tobytes()
        return raw.decode("utf-32-le", "surrogatepass")

    def to_json(self) -> dict[str, Any]:
        """Its name and alphabet."""
        return {"name": "characters", "alphabet": self.alphabet}


@final
@dataclass(frozen=True)
class Text8:
    """The 27 symbols of text8: a blank (token 0) and a..z.  Source: M. Mahoney's text8, by :meth:`normalise`."""

    unit: ClassVar[Literal["character", "byte", "piece"]] = "character"
    size: ClassVar[int] = 27

    @staticmethod
    def normalise(text: str) -> str:
        """Lower case, digits spelled out, everything but a..z a blank, runs of blanks one blank.

        >>> Text8.normalise("To be, or 2 bees!")
        'to be or two bees '
        """
        spelled = re.sub(r"[0-9]", lambda digit: f" {DIGITS[int(digit.group())]} ", text.lower())
        return re.sub(r"[^a-z]+", " ", spelled)

    def encode(self, text: str) -> Int64[Tensor, " n"]:
        """One token a character of the normalised text."""
        raw = np.frombuffer(self.normalise(text).encode("ascii"), np.uint8).astype(np.int64)
        return torch.from_numpy(np.where(raw == ord(" "), 0, raw - ord("a") + 1))

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """One character a token."""
        array = _checked(tokens, self.size)
        return np.where(array == 0, ord(" "), array + ord("a") - 1).astype(np.uint8).tobytes().decode("ascii")

    def to_json(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "text8"}


@final
@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8: it knows every text.  Bytes that are no UTF-8 decode to U+FFFD."""

    unit: ClassVar[Literal["character", "byte", "piece"]] = "byte"
    size: ClassVar[int] = BYTES

    def encode(self, text: str) -> Int64[Tensor, " n"]:
        """One token a byte."""
        try:
            raw = np.frombuffer(text.encode(), np.uint8)
        except UnicodeEncodeError as error:
            raise Refusal(f"character {error.start} of the text is no Unicode character; write it as UTF-8") from None
        return torch.from_numpy(raw.astype(np.int64))

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of the bytes."""
        return _checked(tokens, self.size).astype(np.uint8).tobytes().decode("utf-8", "replace")

    def to_json(self) -> dict[str, Any]:
        """Its name."""
        return {"name": "bytes"}


@cache
def _library(model: str) -> Any:
    """The ``tokenizers`` object of a stored model."""
    import tokenizers

    try:
        kind = json.loads(model)["model"]["type"]
    except (json.JSONDecodeError, KeyError, TypeError):
        kind = None
    if kind != "BPE":
        raise Refusal("the stored BPE model cannot be read; is config.json damaged?")
    return tokenizers.Tokenizer.from_str(model)


@final
@dataclass(frozen=True)
class BPE:
    """Byte-level byte-pair encoding by the ``tokenizers`` library; ``model`` is that library's JSON.

    It knows every text, since all 256 bytes are tokens.  Source: Sennrich et al. 2016; byte level: Radford et al. 2019.
    """

    model: str
    unit: ClassVar[Literal["character", "byte", "piece"]] = "piece"

    def __post_init__(self) -> None:
        _library(self.model)  # refuses what is none

    @classmethod
    def trained(cls, text: str, size: int = 1024) -> BPE:
        """The encoding of ``size`` tokens learned from a text; fewer where the text has no more pairs.

        Raises :class:`Refusal` for a size that does not leave a merge beside the 256 bytes.
        """
        if size <= BYTES:
            raise Refusal(f"bpe:size={size}: give more than {BYTES}, there is one token for every byte")
        from tokenizers import Tokenizer as Library
        from tokenizers import decoders, models, pre_tokenizers, trainers

        library = Library(models.BPE())
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
        library.train_from_iterator(text.splitlines(keepends=True), trainer)
        return cls(library.to_str())

    @property
    def size(self) -> int:
        """The tokens that were learned, and the bytes."""
        return int(_library(self.model).get_vocab_size())

    def encode(self, text: str) -> Int64[Tensor, " n"]:
        """The tokens of the learned merges."""
        return torch.tensor(_library(self.model).encode(text).ids, dtype=torch.int64)

    def decode(self, tokens: Sequence[int] | Tensor) -> str:
        """The text of the tokens."""
        return str(_library(self.model).decode(_checked(tokens, self.size).tolist(), skip_special_tokens=False))

    def to_json(self) -> dict[str, Any]:
        """Its name and the library's JSON."""
        return {"name": "bpe", "model": self.model}


def _characters(corpus: Corpus) -> Tokenizer:
    return Characters.of(corpus.train + corpus.test)


def _text8(corpus: Corpus) -> Tokenizer:
    return Text8()


def _bytes(corpus: Corpus) -> Tokenizer:
    return Bytes()


def _bpe(corpus: Corpus, size: int = 1024) -> Tokenizer:
    return BPE.trained(corpus.train, size)


#: How each tokenizer is made for a text, and how it is read back.
_MADE: dict[str, Callable[..., Tokenizer]] = {"characters": _characters, "text8": _text8, "bytes": _bytes, "bpe": _bpe}
_STORED: dict[str, Callable[..., Tokenizer]] = {"characters": Characters, "text8": Text8, "bytes": Bytes, "bpe": BPE}


def described(tokenizer: Tokenizer) -> str:
    """A tokenizer in few words: its name, its size and the alphabet it is of, as far as a line holds it."""
    record = tokenizer.to_json()
    alphabet = repr(record["alphabet"]) if "alphabet" in record else ""
    alphabet = alphabet if len(alphabet) <= ALPHABET else f"{alphabet[: ALPHABET - 3]}..."
    return f"{record['name']} of {tokenizer.size}{f' ({alphabet})' if alphabet else ''}"


def names() -> tuple[str, ...]:
    """The tokenizers that there are."""
    return tuple(_MADE)


def parse(words: str, corpus: Corpus) -> Tokenizer:
    """The tokenizer named ``characters``, ``text8``, ``bytes`` or ``bpe:size=1024``, made for a text.

    The characters are those of both parts of the text; the pairs of ``bpe`` are learned from the training part.
    Raises :class:`Refusal` for an unknown name or setting.
    """

    def find(name: str) -> Callable[..., Tokenizer]:
        if name not in _MADE:
            raise Refusal(f"unknown tokenizer {name!r}; {nearest(name, _MADE)}")
        return _MADE[name]

    name, settings = parse_spec("tokenizer", words, find, given=1)
    return _MADE[name](corpus, **settings)


def from_json(record: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that ``to_json`` described.  Raises :class:`Refusal` for an unknown name or setting."""
    name = str(record.get("name"))
    if name not in _STORED:
        raise Refusal(f"unknown tokenizer {name!r}; {nearest(name, _STORED)}")
    settings = {key: value for key, value in record.items() if key != "name"}
    try:
        return _STORED[name](**settings)
    except TypeError:
        raise Refusal(
            f"tokenizer {name!r} cannot be made with the settings {sorted(settings)}; is config.json damaged?"
        ) from None
