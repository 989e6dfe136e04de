"""Text statistics against hand counts, brute force and real text: what each number is, its floor, its refusals."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache

import numpy as np
import pytest

from sfumato.data import corpora, tokenizers
from sfumato.data.text import TextData
from sfumato.errors import Refusal
from sfumato.metrics import text as metrics
from sfumato.metrics.records import Record, table

GENERATED = {"sampler": "none", "nfe": None, "seed": 0}
WORDS = [
    "the", "a", "king", "queen", "sword", "crown", "speaks", "rides", "falls", "laughs", "bold", "old", "young", "grey",
    "and", "but", "so", "then", "never", "ever",
]  # fmt: skip


def verse(n: int, seed: int) -> str:
    """Lines of six words by a first-order rule, so that n-grams repeat as in a language."""
    rng = np.random.default_rng(seed)
    follow = np.random.default_rng(0).dirichlet(np.full(len(WORDS), 0.3), len(WORDS))
    word, lines = 0, []
    for _ in range(n):
        line = []
        for _ in range(6):
            word = int(rng.choice(len(WORDS), p=follow[word]))
            line.append(WORDS[word])
        lines.append(" ".join(line).capitalize() + ".")
    return "\n".join(lines) + "\n"


@cache
def data(tokenizer: str = "characters") -> TextData:
    corpus = corpora.Corpus("verse", verse(600, 1), verse(450, 2), "made here", "none", "0" * 64)
    return TextData.of(corpus, tokenizers.parse(tokenizer, corpus), 64)


@cache
def reference() -> metrics.TextReference:
    return metrics.TextReference.of(data())


def windows(text: str, n: int, length: int = 200) -> list[str]:
    return [text[k * length : (k + 1) * length] for k in range(n)]


def measured(samples: list[str]) -> dict[str, Record]:
    records = metrics.measure_text(samples, reference(), generated=GENERATED)
    return {record.name: record for record in records}


def ids(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def brute(rows: list[list[int]], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[k : k + n]) for row in rows for k in range(len(row) - n + 1)]


# -- the parts


def test_words_are_runs_of_letters_and_a_window_drops_those_that_it_cuts() -> None:
    assert metrics.words("'Tis O'er 3 kings--mad, mad!") == ["tis", "o'er", "kings", "mad", "mad"]
    assert metrics.whole_words("ing and the que") == ["and", "the"]
    assert metrics.whole_words(" one.") == ["one"]
    assert metrics.whole_words("") == []


def test_the_share_of_known_words() -> None:
    assert metrics.word_share(["a", "b", "a", "x"], frozenset("ab")) == 0.75
    assert metrics.word_share([], frozenset("ab")) == 0


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_grams_are_equal_exactly_where_the_words_are(n: int) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 3, size).tolist() for size in (40, 0, 7, 23)]
    hashes, tuples = metrics.grams(ids(*rows), n), brute(rows, n)
    assert len(hashes) == len(tuples)
    assert len(set(zip(hashes.tolist(), tuples, strict=True))) == len(set(tuples)) == len(set(hashes.tolist()))


def test_distinct_and_repeated_shares_are_counts() -> None:
    rows = ids([1, 2, 1, 2, 1], [1, 2, 3])
    assert metrics.distinct_ratio(rows, 1, 8) == 3 / 8
    assert metrics.distinct_ratio(rows, 1, 4) == 2 / 4
    assert metrics.distinct_ratio(rows, 2, 100) == 3 / 6
    assert metrics.repeated_share(rows, 2) == 2 / 6  # (1,2) and (2,1) once more in the first row, none in the second
    assert metrics.distinct_ratio(ids([]), 2, 5) == metrics.repeated_share(ids([7]), 2) == 0


def test_the_copied_share_is_a_count() -> None:
    rng = np.random.default_rng(1)
    train, rows = rng.integers(0, 4, 500).tolist(), [rng.integers(0, 4, 60).tolist() for _ in range(4)]
    rows[2] = train[100:160]
    for n in (2, 5, 8):
        known = set(brute([train], n))
        expected = np.mean([gram in known for gram in brute(rows, n)])
        assert metrics.copied_share(ids(*rows), np.unique(metrics.grams(ids(train), n)), n) == pytest.approx(expected)
    assert metrics.copied_share(ids([1]), np.unique(metrics.grams(ids(train), 8))) == 0


def test_the_divergence_is_jensen_and_shannons() -> None:
    a, b = [1, 1, 2, 3], [1, 2, 2, 4, 4]
    p, q = Counter(a), Counter(b)
    expected = 0.0
    for key in p | q:
        x, y = p[key] / 4, q[key] / 5
        m = (x + y) / 2
        expected += sum(r * math.log2(r / m) / 2 for r in (x, y) if r)
    hashed = [metrics.grams(ids(row), 1) for row in (a, b)]
    assert metrics.divergence(*hashed) == pytest.approx(expected)
    assert metrics.divergence(*hashed[::-1]) == pytest.approx(expected)
    assert metrics.divergence(hashed[0], hashed[0]) == 0
    assert metrics.divergence(hashed[0], metrics.grams(ids([8, 9]), 1)) == 1
    assert metrics.divergence(hashed[0], hashed[0][:0]) == 1


# -- the records


def test_real_text_measures_like_its_floor() -> None:
    found = measured(windows(verse(400, 3), 60))
    assert found["known-words"].value == 1 == found["known-words"].floor
    for name in ("distinct-words", "distinct-2", "char-js-3", "char-js-6", "word-js-2", "word-js-3"):
        assert 0.7 < found[name].value / found[name].floor < 1.4, name
    assert found["copied-8-grams"].value == pytest.approx(found["copied-8-grams"].floor, abs=0.06)


def test_random_letters_are_seen_through() -> None:
    rng = np.random.default_rng(4)
    letters = np.array(list("abcdefgh   .\n"))
    found = measured(["".join(rng.choice(letters, 200)) for _ in range(60)])
    assert found["known-words"].value < 0.2
    assert found["char-js-3"].value > 5 * found["char-js-3"].floor
    assert found["word-js-1"].value > 0.5
    assert found["distinct-words"].value > 2 * found["distinct-words"].floor


def test_a_copy_and_a_stammer_are_seen_through() -> None:
    copied = measured(windows(data().corpus.train, 40))
    assert copied["copied-8-grams"].value == 1
    assert copied["copied-8-grams"].floor < 0.5
    stammer = measured(["the king the king " * 12] * 40)
    assert stammer["repeats-4"].value > 0.9
    assert stammer["distinct-words"].value < 0.2 * stammer["distinct-words"].floor
    assert stammer["distinct-2"].value < 0.1 * stammer["distinct-2"].floor


def test_a_record_says_what_was_counted() -> None:
    found = measured(windows(verse(400, 3), 60))
    assert list(found) == [
        "known-words", "known-types", "distinct-words", "distinct-2", "repeats-4", "copied-8-grams",
        *(f"char-js-{n}" for n in range(1, 7)), *(f"word-js-{n}" for n in range(1, 4)),
    ]  # fmt: skip
    record = found["distinct-words"]
    counted = int(record.rule.removeprefix("different words among the first ").removesuffix(" words").replace(",", ""))
    assert counted in (1024, 2048)
    assert record.value == len(set(WORDS)) / counted
    assert record.n == 60
    assert record.reference == "verse/train"
    assert "held-out windows of 200 characters" in record.floor_rule
    assert found["char-js-2"].n_ref == len(data().corpus.test)
    assert "training windows" in found["char-js-2"].floor_rule
    assert Record.from_json(record.to_json()) == record
    assert "known-words" in table(found.values())


def test_samples_of_a_normalising_tokenizer_are_measured_against_text_of_its_kind() -> None:
    of = data("text8")
    samples = windows(of.tokenizer.decode(of.test), 30)
    found = {r.name: r for r in metrics.evaluate_text(samples, of, generated=GENERATED)}
    assert found["char-js-1"].value < 0.01
    assert found["known-words"].value == 1
    assert found["char-js-1"].preparation == f"text8, windows of {of.length} tokens"


@pytest.mark.parametrize(
    ("samples", "generated", "expected"),
    [([], GENERATED, "0 texts without a character"), (["", ""], GENERATED, "2 texts without a character"),
     (["a b"], {"sampler": None}, "generated lacks nfe, seed")],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(samples: list[str], generated: dict[str, object], expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        metrics.measure_text(samples, reference(), generated=generated)


def test_texts_without_words_are_measured() -> None:
    found = measured(["....", "\n\n\n\n"])
    assert found["known-words"].value == found["distinct-words"].value == found["copied-8-grams"].value == 0
    assert found["word-js-1"].value == 1
