"""Text as training data: one long row of tokens for training, one held out, and windows of them.

The contract: window ``k`` of a split is its tokens ``k * stride .. k * stride + length - 1``; training windows overlap
(by default they begin at every token, so every offset is learned), held-out windows do not, so that their bits add up
to the bits of the held-out text.  Nothing here changes after it is made: two loads of one name are equal.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Int64, Integer
from torch import Tensor

from sfumato.data.corpora import Corpus, is_text, names, read
from sfumato.data.options import INFER, Options
from sfumato.data.rows import described
from sfumato.data.text_transform import TextTransform, prompt, template
from sfumato.data.tokenizers import Tokenizer, parse
from sfumato.errors import Refusal, nearest

__all__ = [
    "TextData", "TextReport", "TextTransform", "Windows", "is_text", "load", "names", "prompt", "template",
]  # fmt: skip

#: Tokens of a row, where there are so many.
LENGTH = 256
#: What tokens are stored as: the smallest type that holds a vocabulary.
STORED = ((2**8, torch.uint8), (2**15, torch.int16), (2**31, torch.int32))
#: A word, for the report and the metrics: letters, and apostrophes within or before them ("'tis", "o'er").
WORD = re.compile(r"'?[^\W\d_]+(?:'[^\W\d_]+)*")


@final
@dataclass(frozen=True, eq=False)
class Windows:
    """Rows ``tokens[k * stride : k * stride + length]``, as many as fit; any of them as a batch on ``device``."""

    tokens: Integer[Tensor, " n"]
    length: int
    stride: int
    device: torch.device = torch.device("cpu")

    def __len__(self) -> int:
        return max(0, (len(self.tokens) - self.length) // self.stride + 1)

    def _rows(self, index: Int64[Tensor, " b"]) -> Integer[Tensor, "b length"]:
        return self.tokens[index[:, None] * self.stride + torch.arange(self.length)]

    def batch(self, index: Int64[Tensor, " b"]) -> dict[str, Tensor]:
        """``"x"``: the windows at ``index``, as stored ``[b, length]``.  Raises :class:`Refusal` beyond the last."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise Refusal(f"windows {int(index.min())}..{int(index.max())} of {len(self)}; ask for 0..{len(self) - 1}")
        return {"x": self._rows(index).to(self.device)}

    def tensors(self) -> dict[str, Tensor]:
        """``"x"``: all windows, as stored ``[len, length]``."""
        return {"x": self._rows(torch.arange(len(self)))}


@final
@dataclass(frozen=True, eq=False)
class TextData:
    """A text in two parts, and how it is cut into rows of tokens.  ``load(data.name)`` gives it again.

    ``stride``: between the beginnings of two training windows.
    """

    corpus: Corpus
    transform: TextTransform
    train: Integer[Tensor, " n_train"]
    test: Integer[Tensor, " n_test"]
    stride: int = 1
    kind: ClassVar[str] = "text"
    classes: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Options] = INFER

    @classmethod
    def of(cls, corpus: Corpus, tokenizer: Tokenizer, length: int | None = None, stride: int = 1) -> TextData:
        """A text cut into rows of ``length`` tokens, by default of 256 or as many as the shorter part has.

        Raises :class:`Refusal` where either part is shorter than one row.
        """
        if stride < 1:
            raise Refusal(f"stride={stride}: windows begin at least one token apart")
        dtype = next(dtype for most, dtype in STORED if tokenizer.size <= most)
        parts = [tokenizer.encode(text).to(dtype) for text in (corpus.train, corpus.test)]
        length = max(1, min(LENGTH, *map(len, parts))) if length is None else length
        transform = TextTransform(tokenizer, length)
        for what, tokens in zip(("training", "held-out"), parts, strict=True):
            if len(tokens) < length:
                raise Refusal(
                    f"{corpus.name}: the {what} part has {len(tokens)} tokens, a row {length}; give more text, or "
                    f"rows of {max(1, min(map(len, parts)))} or less (length)"
                )
        return cls(corpus, transform, parts[0], parts[1], stride)

    @property
    def name(self) -> str:
        """What :func:`load` finds it by."""
        return self.corpus.name

    @property
    def source(self) -> str:
        """Where the text is from."""
        return self.corpus.source

    @property
    def licence(self) -> str:
        """Under what terms."""
        return self.corpus.licence

    @property
    def sha256(self) -> str:
        """The checksum of the file."""
        return self.corpus.sha256

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of characters."""
        return self.transform.tokenizer

    @property
    def vocabulary(self) -> int:
        """How many tokens the tokenizer has (no mask token is among them)."""
        return self.tokenizer.size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.transform.length

    @property
    def shape(self) -> tuple[int]:
        """The shape of one row."""
        return (self.length,)

    def cut(self, tokenizer: str = "characters", length: int = 256, stride: int = 1) -> TextData:
        """The same text in other rows; ``tokenizer``: ``characters``, ``text8``, ``bytes`` or ``bpe:size=1024``."""
        return TextData.of(self.corpus, parse(tokenizer, self.corpus), length, stride)

    def prepared(self, settings: Any) -> TextData:
        """The rows that a recipe's settings ask for: ``settings.reading``'s tokenizer and length."""
        return self.cut(settings.reading.tokenizer, settings.reading.length, self.stride)

    def windows(self, split: str = "train", length: int | None = None, stride: int | None = None) -> Windows:
        """Windows of a split: by default the data's own length and stride in training, without overlap in test.

        Raises :class:`Refusal` for another split, a stride below 1, and windows that are longer than the split.
        """
        splits = {"train": self.train, "test": self.test}
        if split not in splits:
            raise Refusal(f"unknown split {split!r}; {nearest(split, splits)}")
        tokens, length = splits[split], self.length if length is None else length
        if stride is None:
            stride = self.stride if split == "train" else length
        if stride < 1 or not 1 <= length <= len(tokens):
            raise Refusal(
                f"windows of {length} tokens, {stride} apart, from {len(tokens)} tokens; take 1..{len(tokens)} tokens, "
                "at least 1 apart"
            )
        return Windows(tokens, length, stride)

    def rows(self, device: torch.device) -> Windows:
        """The training split, as training reads it."""
        return replace(self.windows("train"), device=device)

    @property
    def held_out(self) -> Windows:
        """The windows of the held-out text, none of them overlapping."""
        return self.windows("test")

    def spec(self) -> dict[str, Any]:
        """What a checkpoint stores of it (JSON); the splits are counted in tokens."""
        own = {"vocabulary": self.vocabulary, "train": len(self.train), "test": len(self.test)}
        return described(self) | own

    def report(self) -> TextReport:
        """Characters, words, alphabet, tokens and an excerpt."""
        whole = self.corpus.train + self.corpus.test
        words = Counter(found.lower() for found in WORD.findall(whole))
        return TextReport(
            name=self.name,
            train=len(self.corpus.train),
            test=len(self.corpus.test),
            words=words.total(),
            distinct_words=len(words),
            alphabet="".join(sorted(set(whole))),
            tokenizer=str(self.tokenizer.to_json()["name"]),
            vocabulary=self.vocabulary,
            length=self.length,
            train_tokens=len(self.train),
            test_tokens=len(self.test),
            excerpt=self.corpus.test[:EXCERPT],
            source=self.source,
            licence=self.licence,
            sha256=self.sha256,
        )


#: Characters of the excerpt in a report.
EXCERPT = 240
#: Characters of an alphabet that a report shows.
SHOWN = 100


@final
@dataclass(frozen=True)
class TextReport:
    """What a text holds; every number is counted from the text itself.  ``str(report)`` is plain text."""

    name: str
    train: int
    test: int
    words: int
    distinct_words: int
    alphabet: str
    tokenizer: str
    vocabulary: int
    length: int
    train_tokens: int
    test_tokens: int
    excerpt: str
    source: str
    licence: str
    sha256: str

    def rows(self) -> list[tuple[str, str]]:
        """The facts about the whole text, as (what, value)."""
        shown = self.alphabet[:SHOWN].encode("unicode_escape").decode()
        shown += " ..." if len(self.alphabet) > SHOWN else ""
        return [
            ("data", self.name),
            ("characters", f"{self.train:,} train + {self.test:,} held out (the last tenth)"),
            ("words", f"{self.words:,}, {self.distinct_words:,} different"),
            ("alphabet", f"{len(self.alphabet)}: {shown}"),
            ("tokenizer", f"{self.tokenizer}, {self.vocabulary:,} tokens"),
            ("tokens", f"{self.train_tokens:,} train + {self.test_tokens:,} held out, rows of {self.length}"),
            ("source", self.source),
            ("licence", self.licence),
            ("sha256", self.sha256),
        ]

    def __str__(self) -> str:
        lines = [f"{what:<10} {value}" for what, value in self.rows()]
        return "\n".join([*lines, "", *(f"| {line}" for line in self.excerpt.splitlines())])

    def __rich__(self) -> Any:
        """A table for a terminal, and the excerpt."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        facts = Table(box=None, show_header=False)
        facts.add_column(style="bold")
        facts.add_column(overflow="fold")
        for what, value in self.rows():
            facts.add_row(what, Text(value))
        return Group(facts, Text(f"\n{self.excerpt}", style="dim"))


def load(name: str | Path, tokenizer: str = "characters", length: int | None = None, stride: int = 1) -> TextData:
    """The embedded text called ``name``, or a user's ``.txt`` file, in rows of ``length`` tokens.

    ``length`` is by default 256, or as many as the shorter part has; ``tokenizer``: ``characters`` (those of the text),
    ``text8``, ``bytes`` or ``bpe:size=1024``.  Raises :class:`Refusal` for an unknown name, a file that cannot be read,
    is damaged, empty or no UTF-8, and a text that is shorter than a row.
    """
    corpus = read(name)
    return TextData.of(corpus, parse(tokenizer, corpus), length, stride)
