"""Bad input to the text verbs on the command line: one line on standard error, exit code 2, nothing written over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.__main__ import run
from sfumato.denoisers.tokens import Softmax, Subs, TokenDenoiser
from sfumato.processes import Jump, RateMatrix, absorbing, uniform

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n" * 40
TINY = [
    "--set", "width=16", "--set", "depth=1", "--set", "heads=2", "--set", "length=16", "--set", "batch=8",
    "--set", "reports=1", "--set", "validation_images=8", "--set", "grid_columns=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text of few characters."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "book.txt").write_text(TEXT)
    arguments = ["train", "mdlm", "--data", str(folder / "book.txt"), "--steps", "2", "--out", str(folder / "run")]
    assert run([*arguments, *TINY]) == 0
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run, and check that it was refused in one line."""
    capsys.readouterr()
    code = run(arguments)
    output = capsys.readouterr()
    assert code == 2, f"exit code {code}: {output.err}"
    assert output.err.count("\n") == 1, f"more than one line: {output.err}"
    assert "Traceback" not in output.err
    return output.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # an empty text
        (["train", "mdlm", "--data", "{tmp}/empty.txt", "--out", "{tmp}/x", "--steps", "1", *TINY], "empty"),
        (["train", "mdlm", "--data", "{tmp}/blank.txt", "--out", "{tmp}/x", "--steps", "1", *TINY], "blank.txt"),
        (["inspect", "{tmp}/empty.txt"], "empty"),
        (["sample", "{run}", "--prompt", ""], "the prompt is empty"),
        (["sample", "{run}", "--infill", "To be"], "nothing to fill"),
        # a prompt longer than the model, and one that leaves nothing to sample
        (["sample", "{run}", "--prompt", "to be or not to be that"], "23 tokens, the model 16; shorten it by 7"),
        (["sample", "{run}", "--prompt", "to be or not to "], "as many as the model"),
        (["sample", "{run}", "--infill", "to be or not to be ____"], "23 tokens"),
        # characters that the alphabet has not
        (["sample", "{run}", "--prompt", "über"], "unknown character 'ü'"),
        (["sample", "{run}", "--prompt", "To 7 or 8"], "unknown characters '7' '8'"),
        (["sample", "{run}", "--infill", "zur ___"], "unknown character 'z'"),
        # a vocabulary that is not the model's
        (["train", "mdlm", "--data", "{tmp}/other.txt", "--out", "{run}", "--resume"], "data"),
        (["train", "mdlm", "--data", "{run}/../book.txt", "--out", "{run}", "--resume", "--set", "tokenizer=bytes"],
         "tokenizer"),
        (["train", "mdlm", "--data", "digits", "--out", "{tmp}/x", "--steps", "1"], "makes text"),
        (["train", "mdlm", "--data", "{run}/../book.txt", "--out", "{tmp}/x", "--set", "tokenizer=words"],
         "unknown tokenizer 'words'"),
    ],
)  # fmt: skip
def test_refused_in_one_line(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text("\n")
    (tmp_path / "other.txt").write_text(TEXT.replace("question", "puzzle"))
    before = contents(trained), contents(tmp_path)
    words = [argument.replace("{tmp}", str(tmp_path)).replace("{run}", str(trained)) for argument in arguments]
    assert message in refused(words, capsys)
    assert (contents(trained), contents(tmp_path)) == before


def test_a_network_of_another_vocabulary_is_refused_in_one_line() -> None:
    """A head asks for one logit a token of its kernel, whatever the network was made for."""
    x = torch.zeros(2, 3, dtype=torch.int64)
    for head, size in ((Softmax(Jump(uniform(5), sf.schedules.get("flow"))), 5),
                       (Subs(Jump(absorbing(5), sf.schedules.get("flow"))), 5)):  # fmt: skip
        for outputs in (size - 1, size + 1):
            model = TokenDenoiser(lambda x, t, cond, k=outputs: torch.zeros(*x.shape, k), head)
            message = rf"of shape \(2, 3, {outputs}\) for tokens of shape \(2, 3\); it must be \(2, 3, {size}\)"
            with pytest.raises(sf.Refusal, match=message) as error:
                model(x, 0.5)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([[-1.0, 0.9], [1.0, -1.0]], "row 0 of the rate matrix sums to -0.1, must be 0"),
        ([[-1.0, 1.0], [1.0, -1.0001]], "row 1 of the rate matrix sums to -0.0001, must be 0"),
        ([[0.3, 0.7], [0.4, 0.6]], "row 0 of the rate matrix sums to 1, must be 0"),
    ],
)
def test_a_rate_matrix_whose_rows_do_not_sum_to_zero_is_refused_in_one_line(
    rates: list[list[float]], message: str
) -> None:
    with pytest.raises(sf.Refusal) as error:
        RateMatrix(rates)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
