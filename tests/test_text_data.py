"""Texts: the embedded plays, a user's file, the tokenizers' round trips, windows, prompts and templates, refusals."""

from __future__ import annotations

import hashlib
import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.data import cards, corpora, text, tokenizers, transforms
from sfumato.data.text import TextData, TextTransform, Windows, prompt, template
from sfumato.data.tokenizers import BPE, Bytes, Characters, Text8, Tokenizer
from sfumato.errors import Refusal

STORY = "".join(f"Line {k}: the quick brown fox jumps over {k * k} lazy dogs.\n" for k in range(60))


@cache
def plays() -> TextData:
    return text.load("shakespeare")


def story(folder: Path, content: str = STORY) -> Path:
    path = folder / "story.txt"
    path.write_text(content, encoding="utf-8")
    return path


def data(content: str = STORY, tokenizer: str = "characters", length: int = 16, stride: int = 1) -> TextData:
    corpus = corpora.Corpus("story", *corpora.cut(content), "made here", "none", "0" * 64)
    return TextData.of(corpus, tokenizers.parse(tokenizer, corpus), length, stride)


# -- the embedded text


def test_the_embedded_plays_are_what_their_card_says() -> None:
    card = json.loads((cards.FILES / "shakespeare.json").read_text())
    corpus = plays().corpus
    for part, content in (("train", corpus.train), ("test", corpus.test)):
        assert hashlib.sha256(content.encode()).hexdigest() == card["content_sha256"][part]
        assert len(content) == card["characters"][part]
    assert sorted(set(corpus.train + corpus.test)) == list(card["alphabet"])
    assert len(card["plays"]) == 37
    assert corpus.train.count("ACT V\n") + corpus.test.count("ACT V\n") >= 36
    assert "To be, or not to be: that is the question:\n" in corpus.train
    assert "public domain" in plays().licence
    assert (cards.FILES / "shakespeare.txt.xz").stat().st_size <= 4_000_000


def test_a_tenth_of_every_play_is_held_out_and_none_of_it_is_trained_on() -> None:
    corpus = plays().corpus
    assert abs(len(corpus.test) / len(corpus.train + corpus.test) - 0.1) < 0.002
    assert "The rest is silence." in corpus.test  # the end of Hamlet
    assert "Who's there?\n\nFRANCISCO:" in corpus.train  # its beginning
    assert "The rest is silence." not in corpus.train


def test_a_damaged_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("shakespeare.txt.xz", "shakespeare.json"):
        (tmp_path / name).write_bytes((cards.FILES / name).read_bytes())
    monkeypatch.setattr(cards, "FILES", tmp_path)
    blob = bytearray((tmp_path / "shakespeare.txt.xz").read_bytes())
    blob[1000] ^= 1
    (tmp_path / "shakespeare.txt.xz").write_bytes(blob)
    with pytest.raises(Refusal, match=r"is damaged .* install sfumato again"):
        corpora.read("shakespeare")
    (tmp_path / "shakespeare.json").write_text("{}")
    with pytest.raises(Refusal, match=r"shakespeare.json is damaged"):
        corpora.read("shakespeare")


# -- a user's file


def test_a_users_text_is_cut_at_a_line_and_nothing_is_lost(tmp_path: Path) -> None:
    path = story(tmp_path, STORY.replace("\n", "\r\n"))
    path.write_bytes(b"\xef\xbb\xbf" + STORY.replace("\n", "\r\n").encode())
    corpus = corpora.read(path)
    assert corpus.train + corpus.test == STORY
    assert corpus.train.endswith(".\n")
    assert corpus.test.startswith("Line 5")
    again = text.load(corpus.name, length=16)
    assert again.corpus == corpus
    assert torch.equal(again.train, text.load(path, length=16).train)


@pytest.mark.parametrize(
    ("content", "held_out"),
    [("x" * 100, 10), ("x" * 95 + "\n" + "y" * 4, 4), ("x" * 91 + "\n\n" + "yyy\nzzz", 7), ("x" * 99 + "\n", 10)],
)  # fmt: skip
def test_a_text_is_cut_at_a_blank_line_else_a_line_end_else_anywhere(content: str, held_out: int) -> None:
    train, test = corpora.cut(content)
    assert train + test == content
    assert len(test) == held_out


@pytest.mark.parametrize(
    ("blob", "expected"),
    [(b"", "is empty"), (b" \n\n ", "is empty"), (b"caf\xe9 " * 50, r"is not UTF-8 text \(byte 3\)"),
     (b"short", "a row 16; give more text")],
)  # fmt: skip
def test_a_bad_file_is_refused_in_one_line(blob: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(blob)
    with pytest.raises(Refusal, match=expected) as error:
        text.load(path, length=16)
    assert "\n" not in str(error.value)


def test_a_short_text_is_loaded_in_shorter_rows(tmp_path: Path) -> None:
    of = text.load(story(tmp_path, STORY[:600]))
    assert of.length == len(of.test) < 60
    with pytest.raises(Refusal, match=r"has \d+ tokens, a row 256; give more text, or rows of \d+ or less"):
        of.cut("characters", 256)


def test_a_missing_file_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"cannot read .*gone.txt"):
        text.load(tmp_path / "gone.txt")
    with pytest.raises(Refusal, match="did you mean shakespeare"):
        text.load("shakespear")
    assert text.names() == ("shakespeare", "moses")
    found = {name for name in ("shakespeare", "a/book.txt", "mnist", "x.npz") if text.is_text(name)}
    assert found == {"shakespeare", "a/book.txt"}


# -- tokenizers

ALL = ("characters", "text8", "bytes", "bpe:size=300")


@pytest.mark.parametrize("words", ALL)
def test_a_round_trip_gives_the_text_and_json_gives_the_tokenizer(words: str) -> None:
    of = data(tokenizer=words)
    tokenizer = of.tokenizer
    assert isinstance(tokenizer, Tokenizer)
    expected = Text8.normalise(STORY) if words == "text8" else STORY
    tokens = tokenizer.encode(STORY)
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < tokenizer.size
    assert tokenizer.decode(tokens) == expected
    assert tokenizer.decode(tokens.tolist()) == expected
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode([]) == ""
    again = tokenizers.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again == tokenizer
    assert torch.equal(again.encode(STORY), tokens)


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE.trained(STORY, 300)])
def test_bytes_and_pairs_know_every_text(tokenizer: Tokenizer) -> None:
    strange = "naïve café, 北京, \U0001f600\0\t end"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange


def test_sizes_and_units() -> None:
    sizes = {words: (data(tokenizer=words).vocabulary, data(tokenizer=words).tokenizer.unit) for words in ALL}
    assert sizes == {
        "characters": (len(set(STORY)), "character"), "text8": (27, "character"), "bytes": (256, "byte"),
        "bpe:size=300": (300, "piece"),
    }  # fmt: skip
    assert plays().vocabulary == 70
    assert len(data(tokenizer="bpe:size=300").train) < 0.6 * len(data(tokenizer="bytes").train)


def test_the_pairs_are_learned_from_the_training_part_alone() -> None:
    corpus = corpora.Corpus("made", "ab" * 500, "zq" * 500, "made here", "none", "0" * 64)
    tokenizer = tokenizers.parse("bpe:size=258", corpus)
    assert len(tokenizer.encode("zqzq")) == 4
    assert len(tokenizer.encode("abab")) < 4


def test_characters_are_those_of_both_parts_by_code_point() -> None:
    corpus = corpora.Corpus("made", "banana", "é", "made here", "none", "0" * 64)
    assert tokenizers.parse("characters", corpus) == Characters("abné")
    assert Characters("bé\U0001f600a").encode("a\U0001f600é").tolist() == [3, 2, 1]


def test_text8_is_its_27_symbols() -> None:
    assert Text8.normalise("It's 42 -- O\nÉ!") == "it s four two o "
    assert Text8().encode(" az").tolist() == [0, 1, 26]


def test_unknown_characters_are_named() -> None:
    with pytest.raises(Refusal, match=r"unknown characters 'é' '€': the alphabet has 3.*tokenizer=bytes") as error:
        Characters("abc").encode("aébc€é")
    assert "\n" not in str(error.value)
    with pytest.raises(Refusal, match=r"unknown character '\\n': "):
        Characters("abc").encode("a\n")
    with pytest.raises(Refusal, match=r"'7' \.\.\."):
        Characters("abc").encode("0123456789")


@pytest.mark.parametrize(
    ("words", "expected"),
    [("character", "did you mean characters"), ("bpe:vocab=9", "did you mean|has no setting 'vocab'"),
     ("bpe:size=256", "give more than 256"), ("bytes:size=3", "takes no settings"), ("bpe:size=x", "size")],
)  # fmt: skip
def test_unknown_tokenizers_and_settings_are_refused(words: str, expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        data(tokenizer=words)


@pytest.mark.parametrize(
    "record", [{"name": "words"}, {"name": "bytes", "size": 3}, {"name": "characters"}, {"name": "bpe", "model": "{}"},
               {"name": "characters", "alphabet": "aa"}]
)  # fmt: skip
def test_a_damaged_record_of_a_tokenizer_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(Refusal):
        tokenizers.from_json(record)


@pytest.mark.parametrize("tokenizer", [Characters("abc"), Text8(), Bytes(), BPE.trained(STORY, 300)])
def test_tokens_of_another_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    for wrong in ([0, tokenizer.size], [-1, 0]):
        with pytest.raises(Refusal, match=f"vocabulary of {tokenizer.size}"):
            tokenizer.decode(wrong)


# -- the transform


@pytest.mark.parametrize("words", ALL)
def test_the_transform_goes_there_and_back_and_survives_json(words: str) -> None:
    of = data(tokenizer=words)
    transform = of.transform
    stored = of.windows("train", stride=5).batch(torch.tensor([3, 0]))["x"]
    state = transform.encode(stored)
    assert state.dtype == torch.int64 == transform.dtype
    assert transform.decode(state) == [of.tokenizer.decode(of.train[15:31]), of.tokenizer.decode(of.train[:16])]
    again = transforms.from_json(json.loads(json.dumps(transform.to_json())))
    assert isinstance(again, TextTransform)
    assert again == transform


def test_a_state_that_is_no_text_is_refused() -> None:
    transform = TextTransform(Characters("abc"), 2)
    with pytest.raises(Refusal, match="1 of 2 texts hold a token beyond the 3 of the tokenizer"):
        transform.decode(torch.tensor([[0, 1], [3, 0]]))
    with pytest.raises(Refusal, match="length=0"):
        TextTransform(Characters("abc"), 0)


def test_texts_are_stored_as_strings_and_shown_one_under_the_other() -> None:
    view = TextTransform(Characters("abc"), 2).view
    stored = io.BytesIO()
    np.savez(stored, x=view.array(["ab", "c"]))
    stored.seek(0)
    assert np.load(stored)["x"].tolist() == ["ab", "c"]

    class Two(list[str]):
        label: tuple[str, ...] | None = None

    two = Two(["ab\nc", "é"])
    assert view.show(two).decode() == "--- 0 ---\nab\nc\n\n--- 1 ---\né\n\n"
    two.label = ("x", "y")
    assert view.show(two).decode().startswith("--- 0 x ---\n")


# -- windows


def test_training_windows_begin_at_every_token_and_held_out_ones_do_not_overlap() -> None:
    of = data(length=16)
    train, held = of.rows(torch.device("cpu")), of.held_out
    assert len(train) == len(of.train) - 15
    last = train.batch(torch.tensor([0, len(train) - 1]))["x"]
    assert torch.equal(last[0], of.train[:16])
    assert torch.equal(last[1], of.train[-16:])
    rows = held.tensors()["x"]
    assert rows.shape == (len(of.test) // 16, 16) == (len(held), 16)
    assert torch.equal(rows.flatten(), of.test[: rows.numel()])
    assert train.batch(torch.tensor([1]))["x"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("n", "length", "stride", "expected"), [(20, 5, 5, 4), (21, 5, 5, 4), (20, 5, 3, 6), (4, 5, 1, 0)]
)
def test_windows_are_those_that_fit(n: int, length: int, stride: int, expected: int) -> None:
    windows = Windows(torch.arange(n), length, stride)
    assert len(windows) == expected
    rows = windows.tensors()["x"]
    assert rows.tolist() == [list(range(k * stride, k * stride + length)) for k in range(expected)]


def test_the_smallest_type_that_holds_the_vocabulary_is_stored() -> None:
    wide = "".join(map(chr, range(0x4E00, 0x4E00 + 400))) * 3
    found = {words: data(wide, words).train.dtype for words in ("characters", "bytes")}
    assert found == {"characters": torch.int16, "bytes": torch.uint8}


def test_a_text_can_be_cut_otherwise() -> None:
    of = data().cut("bytes", length=8, stride=4)
    assert (of.length, of.vocabulary, of.shape) == (8, 256, (8,))
    assert of.corpus == data().corpus
    assert len(of.rows(torch.device("cpu"))) == (len(of.train) - 8) // 4 + 1


@pytest.mark.parametrize(
    ("split", "length", "stride"), [("train", 10**6, 1), ("test", 0, 1), ("train", 4, 0), ("valid", 4, 1)]
)
def test_windows_that_do_not_fit_are_refused(split: str, length: int, stride: int) -> None:
    with pytest.raises(Refusal):
        data().windows(split, length, stride)
    with pytest.raises(Refusal, match="ask for 0"):
        data().windows("test").batch(torch.tensor([10**6]))
    with pytest.raises(Refusal, match="stride=0"):
        data(stride=0)


# -- prompts and templates


def test_a_prompt_is_known_and_the_rest_is_free() -> None:
    of = data()
    tokens, known = prompt(of.transform, "the fox")
    assert tokens.shape == known.shape == (16,)
    assert known.tolist() == [True] * 7 + [False] * 9
    assert of.tokenizer.decode(tokens[known]) == "the fox"


@pytest.mark.parametrize("words", ["characters", "text8"])
def test_every_underscore_of_a_template_is_free(words: str) -> None:
    of = data(tokenizer=words)
    tokens, known = template(of.transform, "_the ___ fox_")
    assert "".join("x" if k else "_" for k in known.tolist()) == "_xxxx___xxxx____"
    assert of.tokenizer.decode(tokens[known]) == "the  fox"


@pytest.mark.parametrize(
    ("content", "read", "instead"),
    [
        ("To ___", "'To ' as 'to '", "to ___"),
        ("To be, ___ or", "'To be, ' as 'to be '", "to be ___ or"),
        ("No. 2: ___", "'No. 2: ' as 'no two '", "no two ___"),
        ("a  ___", "'a  ' as 'a '", "a ___"),
        ("_ 7", "' 7' as ' seven '", "_ seven "),
    ],
)
def test_infilling_moves_no_given_character(content: str, read: str, instead: str) -> None:
    of = data(tokenizer="text8").transform
    with pytest.raises(Refusal) as refused:
        template(of, content)
    assert str(refused.value) == (
        f"the tokenizer text8 of 27 reads {read}, and infilling moves no given character; write {instead!r}, or train "
        "with tokenizer=characters"
    )
    tokens, known = template(of, instead)
    assert of.tokenizer.decode(tokens[known]) == instead.replace("_", "")


def test_a_prompt_is_read_as_the_training_text_was() -> None:
    of = data(tokenizer="text8").transform
    tokens, known = prompt(of, "To be, 2")
    assert of.tokenizer.decode(tokens[known]) == "to be two "


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "the prompt is empty"), ("the lazy dogs jump", "18 tokens, the model 16; shorten it by 2"),
     ("the lazy dogs do", "as many as the model"), ("thé", "unknown character 'é'")],
)  # fmt: skip
def test_a_prompt_that_does_not_fit_is_refused(content: str, expected: str) -> None:
    with pytest.raises(Refusal, match=expected) as error:
        prompt(data().transform, content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("the fox", "nothing to fill"),
        ("the lazy ____ jump", "the text has 18 tokens"),
        ("thé _", "unknown character 'é'"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(content: str, expected: str) -> None:
    with pytest.raises(Refusal, match=expected):
        template(data().transform, content)
    with pytest.raises(Refusal, match="a token here is a byte"):
        template(data(tokenizer="bytes").transform, "a_")


# -- spec and report


def test_the_spec_is_json_and_rebuilds_the_transform() -> None:
    of = plays()
    spec = json.loads(json.dumps(of.spec()))
    assert transforms.from_json(spec["transform"]) == of.transform
    assert (spec["train"], spec["vocabulary"], spec["kind"]) == (len(of.train), 70, "text")


def test_the_report_counts_the_text() -> None:
    report = data("one two, two! it's\n" * 20).report()
    assert (report.words, report.distinct_words) == (80, 3)
    assert report.train + report.test == 380
    shown = str(report)
    assert "80, 3 different" in shown
    assert "characters, 12 tokens" in shown
    assert "| one two, two! it's" in shown
