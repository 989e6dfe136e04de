"""Statistics of generated text against held-out text, each a record with the floor that real text reaches.

The contract: every number is a function of the strings alone; what is counted is named below; the floor is the same
computation with as many windows of real text, as long as the samples, in the samples' place.  They are held-out windows
where the number knows the training text (known words, copies), and where it asks how rich a text is; training windows
where it compares with the held-out text (divergences).

A **word** is a run of letters, with apostrophes within, in lower case, that the end of a sample does not cut.

==================  ==========================================================================================  ======
record              what it is                                                                                  better
==================  ==========================================================================================  ======
known-words         share of the words that are words of the training text: spelling                            higher
known-types         the same over different words: one invented word counts once, however often it is used      higher
distinct-words      different words among the first N words: the type-token ratio, at equal N                   higher
distinct-2          different word pairs among the first N (Li et al. 2016)                                     higher
repeats-4           share of a sample's word 4-grams that it has already used (Welleck et al. 2020)             lower
copied-8-grams      share of the word 8-grams that occur in the training text                                   lower
char-js-1 .. 6      Jensen-Shannon divergence, in bits, of the character n-grams from the held-out text's       lower
word-js-1 .. 3      the same of word n-grams                                                                    lower
==================  ==========================================================================================  ======
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from jaxtyping import Int64, UInt64

from sfumato import __version__
from sfumato.data.text import TextData
from sfumato.errors import Refusal
from sfumato.metrics import units
from sfumato.metrics.records import Record

#: A word.
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
#: n of the character and of the word divergences.
CHARACTER_GRAMS, WORD_GRAMS = range(1, 7), range(1, 4)
#: n of the copies.
COPIED = 8
#: What ``generated`` must say; a value may be None where it is not known.
REQUIRED = ("sampler", "nfe", "seed")


def words(text: str) -> list[str]:
    """The words of a whole text, in order and in lower case.

    >>> words("'Tis o'er, my lord; 'tis")
    ['tis', "o'er", 'my', 'lord', 'tis']
    """
    return WORD.findall(text.lower())


def whole_words(text: str) -> list[str]:
    """The words of a window of text: those that its ends do not cut.

    >>> whole_words("nd I am si")
    ['i', 'am']
    """
    found = [m for m in WORD.finditer(text.lower()) if m.start() > 0 and m.end() < len(text)]
    return [m.group() for m in found]


def word_share(found: Sequence[str], vocabulary: frozenset[str]) -> float:
    """The share of words that the vocabulary holds; 0 where there are no words."""
    return sum(word in vocabulary for word in found) / len(found) if found else 0.0


def _mixed(ids: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """Every integer as 64 well-mixed bits (the finaliser of splitmix64)."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def grams(rows: Sequence[Int64[np.ndarray, " _"]], n: int) -> UInt64[np.ndarray, " m"]:
    """A 64-bit hash of every n-gram of rows of integers, none across two rows.

    Equal n-grams have equal hashes; two of a million different ones share one with a chance of 3e-8.
    """
    hashes = []
    for row in rows:
        if len(row) >= n:
            mixed, count = _mixed(row), len(row) - n + 1
            h = np.zeros(count, np.uint64)
            for k in range(n):
                h = h * np.uint64(0xD6E8FEB86659FD93) + mixed[k : k + count]
            hashes.append(h)
    return np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)


def distinct_ratio(rows: Sequence[Int64[np.ndarray, " _"]], n: int, most: int) -> float:
    """Different n-grams among the first ``most`` of them; 0 where there are none."""
    found = grams(rows, n)[:most]
    return len(np.unique(found)) / len(found) if len(found) else 0.0


def repeated_share(rows: Sequence[Int64[np.ndarray, " _"]], n: int) -> float:
    """The share of n-grams that occurred earlier in their own row; 0 where there are none."""
    per_row = [grams([row], n) for row in rows]
    total = sum(map(len, per_row))
    return sum(len(h) - len(np.unique(h)) for h in per_row) / total if total else 0.0


def copied_share(rows: Sequence[Int64[np.ndarray, " _"]], train: UInt64[np.ndarray, " m"], n: int = COPIED) -> float:
    """The share of n-grams whose hash is among those of the training text, sorted; 0 where there are none."""
    found = grams(rows, n)
    if not len(found) or not len(train):
        return 0.0
    place = np.searchsorted(train, found).clip(max=len(train) - 1)
    return float((train[place] == found).mean())


def divergence(a: UInt64[np.ndarray, " n"], b: UInt64[np.ndarray, " m"]) -> float:
    """The Jensen-Shannon divergence in bits of the empirical laws of two sets of hashes: 0 for equal, 1 for disjoint.

    An empty set shares nothing: 1.  Source: Lin 1991, with equal weights.
    """
    if not len(a) or not len(b):
        return 1.0
    keys, place = np.unique(np.concatenate([a, b]), return_inverse=True)
    p = np.bincount(place[: len(a)], minlength=len(keys)) / len(a)
    q = np.bincount(place[len(a) :], minlength=len(keys)) / len(b)
    middle = (p + q) / 2

    def kl(r: np.ndarray) -> float:
        seen = r > 0
        return float((r[seen] * np.log2(r[seen] / middle[seen])).sum())

    return min(1.0, max(0.0, (kl(p) + kl(q)) / 2))


def _power(n: int) -> int:
    """The largest power of two up to n (0 for 0), so that sets of about one size are measured alike."""
    return 1 << (n.bit_length() - 1) if n else 0


@final
class _Words:
    """Words as integers, one for every different word; remembers what it has seen."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def ids(self, found: Sequence[str]) -> Int64[np.ndarray, " n"]:
        return np.array([self.known.setdefault(word, len(self.known)) for word in found], dtype=np.int64)


def code_points(text: str) -> Int64[np.ndarray, " n"]:
    """The characters of a text as integers."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def spread_windows(text: str, n: int, length: int) -> list[str]:
    """Up to ``n`` windows of a text, evenly spread and without overlap."""
    count = max(1, min(n, len(text) // max(1, length)))
    starts = [k * (len(text) - length) // max(1, count - 1) for k in range(count)]
    return [text[max(0, start) : max(0, start) + length] for start in starts]


@final
@dataclass(frozen=True, eq=False)
class TextReference:
    """What texts are measured against; make it once to measure many sets.

    ``train`` and ``test`` are as the tokenizer gives them back (text8: its 27 symbols), since samples are so, too.
    """

    data: TextData
    train: str
    test: str
    vocabulary: frozenset[str]
    copies: UInt64[np.ndarray, " m"]
    words: _Words

    @staticmethod
    def of(data: TextData) -> TextReference:
        """The words and the 8-grams of the training text (about 3 s for five million characters)."""
        train, test = (data.tokenizer.decode(tokens) for tokens in (data.train, data.test))
        numbers = _Words()
        found = words(train)
        copies = np.unique(grams([numbers.ids(found)], COPIED))
        return TextReference(data, train, test, frozenset(found), copies, numbers)


def _values(rows: Sequence[Sequence[str]], reference: TextReference, most: int, pairs: int) -> dict[str, float]:
    """The numbers that the words of a set of texts have by themselves and against the training text."""
    every = [word for row in rows for word in row]
    ids = [reference.words.ids(row) for row in rows]
    return {
        "known-words": word_share(every, reference.vocabulary),
        "known-types": word_share(list(dict.fromkeys(every)), reference.vocabulary),
        "distinct-words": distinct_ratio(ids, 1, most),
        "distinct-2": distinct_ratio(ids, 2, pairs),
        "repeats-4": repeated_share(ids, 4),
        f"copied-{COPIED}-grams": copied_share(ids, reference.copies),
    }


def _divergences(texts: Sequence[str], rows: Sequence[Sequence[str]], reference: TextReference) -> dict[str, float]:
    """The divergences of a set of texts from the held-out text."""
    characters, held = [code_points(text) for text in texts], [code_points(reference.test)]
    ids, held_ids = [reference.words.ids(row) for row in rows], [reference.words.ids(words(reference.test))]
    by_character = {f"char-js-{n}": divergence(grams(characters, n), grams(held, n)) for n in CHARACTER_GRAMS}
    return by_character | {f"word-js-{n}": divergence(grams(ids, n), grams(held_ids, n)) for n in WORD_GRAMS}


def measure_text(samples: Sequence[str], reference: TextReference, *, generated: Mapping[str, Any]) -> list[Record]:
    """Measure texts against a prepared reference; see :func:`evaluate_text`."""
    missing = [key for key in REQUIRED if key not in generated]
    if missing:
        raise Refusal(f"generated lacks {', '.join(missing)}; say how the samples were made (None where not known)")
    if not samples or not any(samples):
        raise Refusal(f"{len(samples)} texts without a character; sample some text first")
    r = reference
    length = max(1, round(sum(map(len, samples)) / len(samples)))
    held, seen = spread_windows(r.test, len(samples), length), spread_windows(r.train, len(samples), length)
    rows, held_rows, seen_rows = ([whole_words(text) for text in texts] for texts in (samples, held, seen))
    most = _power(min(sum(map(len, rows)), sum(map(len, held_rows))))
    pairs = _power(min(sum(max(0, len(row) - 1) for row in some) for some in (rows, held_rows)))
    values, floors = _values(rows, r, most, pairs), _values(held_rows, r, most, pairs)
    values |= _divergences(samples, rows, r)
    floors |= _divergences(seen, seen_rows, r)
    rules = {
        "known-words": ("higher", "share of the words that are words of the training text"),
        "known-types": ("higher", "share of the different words that are words of the training text"),
        "distinct-words": ("higher", f"different words among the first {most:,} words"),
        "distinct-2": ("higher", f"different pairs among the first {pairs:,} pairs of words"),
        "repeats-4": ("lower", "share of the word 4-grams that occurred earlier in their sample"),
        f"copied-{COPIED}-grams": ("lower", f"share of the word {COPIED}-grams that occur in the training text"),
    }
    own = f"{len(held)} held-out windows of {length} characters"
    other = f"{len(seen)} training windows of {length} characters"
    known = {"sampler", "steps", "nfe", "seed", "guidance"}

    def record(name: str) -> Record:
        divergent = name not in rules
        better, rule = rules.get(name, ("lower", f"Jensen-Shannon divergence of {name[:4]} {name[-1]}-grams, bits"))
        return Record(
            name=name,
            value=values[name],
            floor=floors[name],
            better=better,
            n=len(samples),
            n_ref=len(r.test) if divergent else len(r.train),
            reference=units.reference(r.data, "test" if divergent else "train"),
            data_sha256=r.data.sha256,
            rule=rule,
            floor_rule=other if divergent else own,
            extractor="characters" if name.startswith("char") else "words",
            extractor_sha256="",
            preparation=f"{r.data.tokenizer.to_json()['name']}, {units.windowed(r.data)}",
            sampler=generated["sampler"],
            steps=generated.get("steps"),
            nfe=generated["nfe"],
            seed=generated["seed"],
            guidance=generated.get("guidance"),
            version=__version__,
            settings={key: value for key, value in generated.items() if key not in known} | {"length": length},
        )

    return [record(name) for name in values]


def evaluate_text(samples: Sequence[str], data: TextData, *, generated: Mapping[str, Any]) -> list[Record]:
    """Measure texts: the records in the table at the top of this module.

    ``generated`` says how the samples were made: ``sampler``, ``nfe`` and ``seed`` (None where not known), and whatever
    else is to be kept.  ``n_ref`` of a record counts characters.  Raises :class:`Refusal` for no text at all.
    """
    return measure_text(samples, TextReference.of(data), generated=generated)
