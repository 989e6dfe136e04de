"""``sfumato eval``: choices of extractor and metrics, copies shown and warned of, drift, and the best checkpoint."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import data, metrics
from sfumato.__main__ import run
from sfumato.cli import evaluate as evaluating
from sfumato.cli.verbs import Job
from sfumato.data.options import Options
from sfumato.errors import Refusal
from sfumato.metrics import Record, drift, neighbours
from sfumato.metrics.watch import Watch, require
from sfumato.reports.run import reference_name
from sfumato.training.monitor import read_log

TINY = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 16, "reports": 3,
    "validation_images": 16, "grid_columns": 0, "sampling_steps": 3, "precision": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept its best."""
    out = tmp_path_factory.mktemp("eval") / "run"
    sf.train("flow", "digits", steps=12, out=out, quiet=True, best="frechet", best_samples=100, **TINY)
    return out


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run(arguments) == code
    captured = capsys.readouterr()
    return captured.out + captured.err


def record(value: float, error: float | None = 0.1, name: str = "frechet", better: str = "lower", n: int = 9) -> Record:
    return Record(
        name=name, value=value, floor=0.0, better=better, n=n, n_ref=9, reference="x/test", data_sha256="", rule="",
        floor_rule="", extractor="", extractor_sha256="", preparation="", sampler=None, steps=None, nfe=None, seed=None,
        guidance=None, version="", error=error,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- eval


def test_chosen_metrics_of_a_chosen_extractor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(read_log(folder / "metrics.jsonl"))
    chosen = ["--extractor", "pixels:size=4", "--metrics", "coverage,kid,copy-rate", "--n", "60"]
    text = said(["eval", str(folder), *chosen], capsys)
    lines = read_log(folder / "metrics.jsonl")[before:]
    assert [line["name"] for line in lines] == ["coverage", "kid", "copy-rate"]
    assert [line["preparation"] for line in lines] == ["bilinear-antialias 8x8->4x4"] * 2 + ["none"]
    assert all(line["error"] is not None for line in lines)
    assert "seen by pixels" in text
    assert "\u00b1" in text
    assert "warning: 1,437 training images are few" in text
    with Image.open(folder / "neighbours.png") as picture:
        assert picture.width > 4 * 64
        assert picture.height > neighbours.SHOWN * 64


def test_what_eval_refuses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    told = tmp_path / "told.json"
    told.write_text(json.dumps([record(1.0, None).to_json()]))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for arguments, message in (
        (["--metrics", "fid"], "unknown metric 'fid'"),
        (["--extractor", "inception"], "inception:weights="),
        (["--extractor", "ngrams"], "reads text, these are images"),
        (["--fail-above", "2"], "give --against RUN_OR_RECORD"),
        (["--against", str(told), "--fail-above", "2"], "has no frechet or kernel or precision"),
        (["--against", str(folder), "--fail-above", "-1"], "a number of standard errors, 0 or more"),
        (["--against", str(tmp_path / "nothing")], "holds no records"),
        (["--against", str(empty)], "holds no records"),
        (["--against", str(broken)], "no JSON file of records"),
        (["--transport", "--metrics", "kid"], "--metrics goes with samples"),
        (["--likelihood", "--extractor", "pixels"], "--extractor goes with samples"),
    ):
        assert message in said(["eval", str(folder), *arguments], capsys, code=2), arguments


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["list", "metrics"], capsys)
    for name in metrics.catalogue.names():
        assert f"\n{name} " in f"\n{text}"
    assert "arXiv 1706.08500" in text
    text = said(["list", "extractors"], capsys)
    for name in ("digit-net", "mobilenet", "inception", "pixels", "values", "convolutions", "ngrams"):
        assert f"\n{name} " in f"\n{text}"
    assert "size=224 device=cpu" in text
    assert "weights=..." in text


def test_a_set_that_is_too_small_for_frechet() -> None:
    digits = data.load("digits")
    small = replace(digits, test=data.Split(digits.test.x[:90], digits.test.label[:90]))
    names, left = metrics.fitting(small)
    assert left == ["frechet"]
    assert "kernel" in names
    assert metrics.limits(small, None, names) == (4, 1437)
    assert metrics.fitting(digits)[1] == []


# --------------------------------------------------------------------------------------------------------------- drift


def test_drift_of_a_run_against_itself_and_against_worse(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--metrics", "kernel,precision", "--n", "60", "--seed", "5"]
    said(["eval", str(folder), *chosen], capsys)
    text = said(["eval", str(folder), *chosen, "--against", str(folder), "--fail-above", "0"], capsys)
    assert "change +0 \u00b1" in text
    # records of a better model: this one fails
    stored = [Record.from_json(line) for line in read_log(folder / "metrics.jsonl")[-2:]]
    better = [replace(stored[0], value=stored[0].value - 9), stored[1]]
    path = tmp_path / "better.json"
    path.write_text(json.dumps([r.to_json() for r in better]))
    text = said(["eval", str(folder), *chosen, "--against", str(path), "--fail-above", "3"], capsys, code=1)
    assert "worse by more than 3 standard errors: kernel" in text
    # other n: not comparable, said before anything is judged
    path.write_text(json.dumps([replace(r, n=61).to_json() for r in better]))
    text = said(["eval", str(folder), *chosen, "--against", str(path)], capsys, code=2)
    assert "nothing can be compared: kernel: n was 61, is 60" in text


def test_a_change_has_the_error_of_both() -> None:
    found = drift.drifts([record(1.0, 0.3)], [record(1.5, 0.4)])
    assert (found[0].change, found[0].error, found[0].worse) == pytest.approx((0.5, 0.5, 1.0))
    assert drift.failed(found, 0.9) == ["frechet"]
    assert drift.failed(found, 1.1) == []
    higher = drift.drifts([record(1.0, 0.3, better="higher")], [record(1.5, 0.4, better="higher")])
    assert higher[0].worse == pytest.approx(-1.0)
    assert "better by 1.0 errors" in drift.report(higher)
    assert drift.drifts([record(1.0, 0.0)], [record(1.0, 0.0)])[0].worse == 0
    assert drift.failed(drift.drifts([record(1.0, 0.0)], [record(1.1, 0.0)]), 99.0) == ["frechet"]


def test_records_that_cannot_be_compared_say_why() -> None:
    before = [record(1.0), record(2.0, name="kid")]
    found = drift.drifts(before, [record(1.5, n=10), record(2.5, name="kid")])
    lines = drift.report(found).splitlines()
    assert "not comparable: n was 9, is 10" in lines[0]
    assert "worse by" in lines[1]
    assert drift.failed(found, 1.0) == ["kid"]
    assert drift.unjudged(found) == ["frechet (n was 9, is 10)"]
    assert found[0].worse is None
    with pytest.raises(Refusal, match="nothing can be compared: frechet: extractor was 'a', is 'b'"):
        drift.drifts([replace(record(1.0), extractor="a")], [replace(record(1.0), extractor="b")])
    with pytest.raises(Refusal, match="no metric in common: frechet before, kid now"):
        drift.drifts([record(1.0)], [record(1.0, name="kid")])
    unknown = drift.drifts([record(1.0, None)], [record(2.0)])
    assert "standard error not known" in drift.report(unknown)
    with pytest.raises(Refusal, match="no standard error is known"):
        drift.failed(unknown, 3.0)


def test_samples_that_were_made_otherwise_are_told() -> None:
    then = replace(record(1.0), sampler="heun", steps=50, guidance=1, settings={"label": {"a": 9}, "grid": "karras"})
    now = replace(then, value=1.5, steps=5, settings={"label": {"a": 5, "b": 4}, "grid": "karras", "top_p": 0.9})
    [line] = drift.report(drift.drifts([then], [now])).splitlines()
    assert line.endswith("; samples made otherwise: steps 50 -> 5, label {'a': 9} -> {'a': 5, 'b': 4}")
    assert "otherwise" not in drift.report(drift.drifts([then], [replace(then, value=1.5)]))
    assert drift.report(drift.drifts([replace(then, error=None)], [now])).endswith("{'a': 5, 'b': 4}")


def test_the_newest_record_that_was_measured_alike_is_compared() -> None:
    before = [record(1.0), record(2.0), replace(record(9.0), extractor="other"), record(7.0, n=10)]
    [found] = drift.drifts(before, [record(2.5)])
    assert (found.why, found.change) == (None, 0.5)
    [found] = [
        d
        for d in drift.drifts([*before, record(1.0, name="kid")], [record(1.0, n=11), record(1.0, name="kid")])
        if d.after.name == "frechet"
    ]
    assert found.before.n == 10


def test_a_table_has_nothing_that_could_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told.json"
    told.write_text(json.dumps([record(1.0, None, name="columns").to_json()]))
    look = evaluating.Look(against=told, fail_above=3.0)
    for kind in ("table", "series"):
        with pytest.raises(Refusal, match=f"statistics of {kind} that are usual have no standard errors"):
            evaluating._refuse_unjudged(tmp_path, Job(), look, kind, [])
    evaluating._refuse_unjudged(tmp_path, Job(), replace(look, metrics="kid"), "table", [record(1.0, name="kid")])


def test_classes_are_asked_for_as_the_held_out_split_has_them() -> None:
    digits = data.load("digits")
    assert metrics.units.labels(digits, digits.classes, 50) == list(digits.classes)
    assert metrics.units.labels(digits, (), 50) is None
    mnist = data.load("mnist")
    assert metrics.units.labels(mnist, mnist.classes, 50) == list(mnist.classes)
    rare = digits.test.label.clone()
    rare[rare > 1] = torch.tensor([0, 0, 1]).repeat(120)[: int((rare > 1).sum())]
    uneven = replace(digits, test=data.Split(digits.test.x, rare))
    found = metrics.units.labels(uneven, digits.classes, 360)
    assert found is not None
    assert torch.equal(torch.bincount(torch.tensor([*map(int, found)])), torch.bincount(rare))
    assert found[:100] != [digits.classes[int(k)] for k in rare[:100]]  # a split may be sorted
    assert metrics.units.labels(uneven, digits.classes, 500)[:360] == found  # type: ignore[index]


def test_eval_and_best_ask_for_the_held_out_classes(folder: Path, tmp_path: Path) -> None:
    digits = data.load("digits")
    uneven = replace(digits, test=data.Split(digits.test.x, digits.test.label.clamp(max=1)))
    samples = Job(n=40, device="cpu").samples(folder, uneven)
    assert list(samples.label) == metrics.units.labels(uneven, digits.classes, 40)
    assert metrics.made(samples.record)["label"] == dict(Counter(samples.label))
    assert list(Job(n=20, device="cpu").samples(folder).label) == [*digits.classes, *digits.classes]
    watch = Watch(tmp_path, uneven, "precision", 40, lambda line: None, lambda line: None)
    assert watch._measured(sf.load(folder, device="cpu")).settings["label"] == dict(Counter(samples.label))


def test_the_reference_says_how_data_were_read() -> None:
    digits = data.load("digits")
    read = replace(digits, options=Options(crop="none", resolution=(8, 8)))
    assert metrics.units.reference(digits, "test") == "digits/test"
    x, generated = digits.train.x[:200, 0], {"sampler": None, "nfe": None, "seed": None}
    for name, split in (("precision", "test"), ("copy-rate", "train")):
        before, after = (
            metrics.evaluate(x, None, each, generated=generated, names=(name,))[0] for each in (digits, read)
        )
        assert after.reference == f"digits/{split} (resolution=8x8, crop=none)"
        assert metrics.differences(before, after) == ("reference",)
    assert reference_name("a/b/cats/test (crop=none)") == "cats/test (crop=none)"
    assert reference_name("cats.csv/train (label_column=a/b)") == "cats.csv/train (label_column=a/b)"
    assert [reference_name(each) for each in ("mnist/test", "prior")] == ["mnist/test", "prior"]


def test_copies_say_how_much_of_the_training_set_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = data.load("digits")
    x, generated = digits.train.x[:50, 0], {"sampler": None, "nfe": None, "seed": None}
    spec = digits.spec() | {"train": 5_000_000}
    monkeypatch.setattr(data.Data, "spec", lambda self: spec)
    [found] = metrics.evaluate(x, None, digits, generated=generated, names=("copy-rate",))
    assert found.rule.endswith("held-out images (of 1,437 of 5,000,000 training images)")
    assert "few" not in "".join(neighbours.of_records([found], int(digits.spec()["train"])))


def test_the_newest_record_of_each_metric_is_read(tmp_path: Path) -> None:
    lines = [record(1.0), record(2.0, name="kid"), record(3.0)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r.to_json()) + "\n" for r in lines))
    assert {r.name: r.value for r in drift.read(tmp_path)} == {"frechet": 3.0, "kid": 2.0}
    old = {key: value for key, value in record(4.0).to_json().items() if key != "error"}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert drift.read(tmp_path / "old.json")[0].error is None


# -------------------------------------------------------------------------------------------------------------- copies


def test_the_panel_shows_what_is_most_like_a_copy() -> None:
    g = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (80, 6, 6), dtype=torch.uint8, generator=g)
    x = torch.randint(0, 256, (30, 6, 6), dtype=torch.uint8, generator=g)
    x[17] = train[41]
    panel = np.asarray(neighbours.nearest_panel(x, train, shown=2, beside=3))
    scale, gap = neighbours.SIDE // 6, 4
    side = max(6 * scale, neighbours.SIDE)
    first, second = (panel[gap : gap + 6 * scale, left : left + 6 * scale, 0] for left in (gap, 2 * gap + side))
    exact = np.kron(x[17].numpy(), np.ones((scale, scale), np.uint8))
    assert np.array_equal(first, exact)  # the copy comes first, beside the image that it copies
    assert np.array_equal(second, exact)
    assert panel.shape[1] == 4 * (side + gap) + gap
    colour = x[..., None].expand(30, 6, 6, 3)
    assert neighbours.nearest_panel(colour, train[..., None].expand(80, 6, 6, 3)).mode == "RGB"
    with pytest.raises(Refusal, match="0 samples to show"):
        neighbours.nearest_panel(x[:0], train)


def test_warnings_of_copies_and_of_small_data() -> None:
    assert neighbours.warnings(60_000, 0.012, 0.01, 2000) == []
    assert "9,999 training images are few" in neighbours.warnings(9_999, None, None, 1)[0]
    assert "copy rate 5.0%, where held-out images have 1.0%" in neighbours.warnings(60_000, 0.05, 0.01, 2000)[0]
    assert neighbours.warnings(60_000, 0.05, 0.01, 20) == []  # one of twenty says nothing yet


# ---------------------------------------------------------------------------------------------------------------- best


def test_the_best_weights_are_kept(folder: Path) -> None:
    lines = [line for line in read_log(folder / "log.jsonl") if line["kind"] == "metric"]
    assert [line["step"] for line in lines] == [4, 8, 12]
    best = min(lines, key=lambda line: line["frechet"])
    assert all(line["frechet error"] > 0 for line in lines)
    stored = json.loads((folder / "best" / "best.json").read_text())
    assert (stored["step"], stored["value"], stored["n"]) == (best["step"], best["frechet"], 100)
    # it is a run folder, and its samples are those that were measured
    model = sf.load(folder / "best", device="cpu")
    samples = model.sample(100, label=list(model.classes), seed=0)
    records = metrics.evaluate(
        samples.x, samples.index(), data.load("digits"), generated=metrics.made(samples.record), names=("frechet",)
    )
    assert records[0].value == pytest.approx(best["frechet"], rel=1e-6)


def test_watching_changes_nothing_that_is_trained(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "unwatched"
    sf.train("flow", "digits", steps=12, out=out, quiet=True, **TINY)
    both = [sf.load(each, device="cpu").net.state_dict() for each in (folder, out)]
    assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])


def test_only_a_better_one_replaces_the_best(folder: Path, tmp_path: Path) -> None:
    model = sf.load(folder, device="cpu")
    said: list[str] = []
    lines: list[dict[str, object]] = []
    watch = Watch(tmp_path, data.load("digits"), "precision", 20, lines.append, said.append)
    values = iter([0.5, 0.4, 0.5, 0.6])
    watch._measured = lambda model: record(next(values), name="precision", better="higher")  # type: ignore[method-assign]
    kept = []
    for step in (1, 2, 3, 4):
        watch(model, step)
        kept.append(json.loads((tmp_path / "best" / "best.json").read_text())["step"])
    assert kept == [1, 1, 1, 4]
    assert [line["precision"] for line in lines] == [0.5, 0.4, 0.5, 0.6]
    assert Watch(tmp_path, data.load("digits"), "precision", 20, lines.append, said.append).best == 0.6
    assert "the best so far" in said[-1]

    def broken(model: object) -> Record:
        raise Refusal("3 of 20 images have non-finite values")

    watch._measured = broken  # type: ignore[method-assign]
    assert watch(model, 5) is None
    assert "precision at step 5 is not known: 3 of 20" in said[-1]


def test_what_best_refuses(tmp_path: Path) -> None:
    for settings, message in (
        ({"best": "freschet"}, "unknown best 'freschet'; did you mean frechet"),
        ({"best": "frechet", "best_samples": 90}, "best_samples=90: frechet on digits takes 97 to 1437"),
        ({"best_samples": 90}, "best_samples=90 does nothing with best=none"),
        ({"best": "frechet", "best_samples": 1}, "at least 2"),
        ({"best": "label-accuracy", "conditional": False}, "this model is trained without classes"),
    ):
        with pytest.raises(Refusal, match=message):
            sf.train("flow", "digits", steps=1, out=tmp_path / "x", quiet=True, **TINY, **settings)
        assert not (tmp_path / "x").exists()
    with pytest.raises(Refusal, match="inception-score asks a classifier, and values is none"):
        require(data.load("moons"), "inception-score", 200, ())
    with pytest.raises(Refusal, match="best=kid does nothing with out=None"):
        sf.train("flow", "digits", steps=1, quiet=True, **TINY, best="kid")
