"""Bake-offs: one budget, one way to measure, resumable, refused early; the page says what was stored."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sfumato as sf
from sfumato import bakeoff as baking
from sfumato.__main__ import run as run_sfumato
from sfumato.bakeoff import Terms, entries, stored
from sfumato.bakeoff.plan import shares
from sfumato.bakeoff.report import _again, _unlike, curves, ordered, rows
from sfumato.bakeoff.run import Interrupted, Result, Yardstick, bakeoff, seconds_at
from sfumato.training import run as training
from sfumato.training.phema import stored as snapshots

TINY: dict[str, Any] = {
    "channels": [8], "attention": [False], "patch": 2, "blocks": 1, "batch": 32, "validation_images": 16,
    "precision": "float32",
}  # fmt: skip
TERMS = Terms(steps=12, n=200, few=100, moments=2, nfe=(2, 3), seed=3)
SETTINGS = {**TINY, "flow.lr": 0.002, "sampling_steps": 2}


@pytest.fixture(scope="module")
def data() -> Any:
    return sf.data.load("digits")


@pytest.fixture(scope="module")
def done(data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result], list[str]]:
    """A whole bake-off, interrupted in its second training and continued."""
    out, said = tmp_path_factory.mktemp("bakeoff") / "out", []
    train = training.train
    count = 0

    def interrupted(*arguments: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    named: dict[str, Any] = {"terms": TERMS, "settings": SETTINGS, "quiet": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train", interrupted)
        with pytest.raises(Interrupted, match=r"stopped with 1 of 2 recipes done and kept in .*; the same command"):
            bakeoff(data, "flow,edm", out, **named)
    partial = (out / "report.html").read_text()
    assert "Not done yet: edm. The same command continues." in partial
    before = (out / "results" / "flow.json").read_bytes()
    found = bakeoff(data, "flow,edm", out, **named, tell=said.append)
    assert (out / "results" / "flow.json").read_bytes() == before
    return out, found, said


# ------------------------------------------------------------------------------------------------------------ measuring


def test_the_final_records_are_those_of_evaluate(done: Any, data: Any) -> None:
    out, found, _ = done
    for result in found:
        model = sf.load(out / "runs" / result.recipe)
        samples = model.sample(200, label=list(model.classes), seed=3)
        names = [record["name"] for record in result.records]
        records = sf.metrics.evaluate(
            samples.x, samples.index(), data, generated=sf.metrics.made(samples.record), names=names
        )
        assert [r.value for r in records] == pytest.approx([r["value"] for r in result.records], rel=1e-9)
        assert result.stored["sampling"]["nfe"] == samples.record["nfe"]
        assert result.stored["parameters"] == sum(p.numel() for p in model.net.parameters())
        assert result.stored["trained"]["steps"] == 12


def test_all_have_the_same_terms_and_their_own_settings(done: Any) -> None:
    out, found, _ = done
    configs = {name: json.loads((out / "runs" / name / "config.json").read_text()) for name in ("flow", "edm")}
    assert [configs[name]["settings"]["lr"] for name in ("flow", "edm")] == [0.002, 0.001]
    for config in configs.values():
        assert (config["seed"], config["horizon"]) == (3, {"steps": 12})
        assert config["settings"]["channels"] == [8]
    for name in ("n", "n_ref", "floor", "extractor", "seed"):
        assert len({tuple(r[name] for r in result.records) for result in found}) == 1


def test_quality_over_time_is_of_the_averages_as_they_were(done: Any) -> None:
    out, found, _ = done
    result = found[0]
    run = out / "runs" / "flow"
    moments = result.stored["moments"]
    assert [m["step"] for m in moments] == [6, 12]
    assert {p.step for p in snapshots(run)} == {6, 12}
    assert 0 < moments[0]["seconds"] < moments[1]["seconds"]
    then = sf.load(run / "snapshots" / "step-6-0.100.safetensors")
    samples = then.sample(100, label=list(then.classes), seed=3)
    records = Yardstick(sf.data.load("digits"), None)(samples)
    assert records == moments[0]["records"]
    assert result.curve("moments", "seconds", "frechet") == tuple(
        (m["seconds"], next(r["value"] for r in m["records"] if r["name"] == "frechet")) for m in moments
    )


def test_quality_over_evaluations_is_of_one_sampler(done: Any, data: Any) -> None:
    out, found, _ = done
    for result in found:
        model = sf.load(out / "runs" / result.recipe)
        for point, steps in zip(result.stored["nfe"], (2, 3), strict=True):
            record = model.sample(1, label=model.classes[0], steps=steps).record
            assert (point["steps"], point["nfe"]) == (steps, record["nfe"])
            assert {r["n"] for r in point["records"]} == {100}


def test_seconds_of_a_step_lie_between_those_of_the_log() -> None:
    log = [{"kind": "train", "step": s, "seconds": t} for s, t in ((1, 2.0), (10, 11.0), (20, 31.0))]
    log.insert(1, {"kind": "validation", "step": 5, "seconds": 99.0})
    assert [seconds_at(log, step) for step in (1, 4, 10, 15, 25)] == [2.0, 5.0, 11.0, 21.0, 31.0]


# ----------------------------------------------------------------------------------------------------------- the folder


def test_progress_is_told(done: Any) -> None:
    _, _, said = done
    assert said[0].startswith("2 recipes on digits, 12 steps each; 1 done already; parameters: flow ")
    assert said[1] == "[2/2] edm: training for 12 steps"
    assert any(line.startswith("[2/2] edm: 3 evaluations: frechet ") for line in said)
    assert said[-1].startswith("written: ")


def test_done_is_done_and_more_recipes_join(done: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, found, _ = done
    monkeypatch.setattr(training, "train", None)  # nothing is trained again
    again = bakeoff(data, ["edm", "flow"], out, terms=TERMS, settings=SETTINGS, quiet=True)
    assert {r.recipe: r.stored for r in again} == {r.recipe: r.stored for r in found}
    own = {name: value for name, value in SETTINGS.items() if name != "flow.lr"}
    one = bakeoff(data, "edm", out, terms=TERMS, settings=own, quiet=True)
    assert [r.recipe for r in one] == ["flow", "edm"]  # what was there stays


def test_another_bakeoff_needs_another_folder(done: Any, data: Any, tmp_path: Path) -> None:
    out = done[0]
    for terms, settings, line in (
        (Terms(steps=13, n=200, few=100, moments=2, nfe=(2, 3), seed=3), SETTINGS, "steps=12, now steps=13"),
        (TERMS, SETTINGS | {"flow.lr": 0.1}, r"flow\.lr=0\.002, now flow\.lr=0\.1"),
        (TERMS, {k: v for k, v in SETTINGS.items() if k != "sampling_steps"}, "sampling_steps=2, now .*None"),
    ):
        with pytest.raises(sf.Refusal, match=line):
            bakeoff(data, "flow,edm", out, terms=terms, settings=settings, quiet=True)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(sf.Refusal, match="is no bake-off; give another --out"):
        bakeoff(data, "flow", tmp_path, terms=TERMS, settings=TINY, quiet=True)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_recipe_that_fails_is_told_and_the_others_go_on(
    data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = training.train

    def failing(recipe: str, *arguments: Any, **named: Any) -> Any:
        if recipe == "flow":
            raise sf.Refusal("step 3: the loss is nan")
        return train(recipe, *arguments, **named)

    monkeypatch.setattr(training, "train", failing)
    said: list[str] = []
    terms = Terms(steps=1, n=100, few=100, moments=0, nfe=(), seed=0)
    named: dict[str, Any] = {"terms": terms, "settings": TINY | {"sampling_steps": 1}, "quiet": True}
    found = bakeoff(data, "flow,edm", tmp_path / "out", **named, tell=said.append)
    assert [r.recipe for r in found] == ["edm"]
    assert "[1/2] flow: failed: step 3: the loss is nan" in said
    assert "flow failed: step 3: the loss is nan" in (tmp_path / "out" / "report.html").read_text()


# ------------------------------------------------------------------------------------------------------------- refusing


@pytest.mark.parametrize(
    ("recipes", "settings", "line"),
    [
        ("flaw", {}, "unknown recipe 'flaw'; did you mean flow"),
        ("flow,mdlm", {}, "recipe 'mdlm' makes text, digits holds images; take ddpm"),
        ("", {}, "no recipe to compare"),
        ("reflow", {}, "reflow learns from another run: compare flow, too, or give --set reflow.teacher=RUN"),
        ("flow,edm", {"p_mean": 1}, "flow: unknown setting 'p_mean'"),
        ("flow", {"edm.lr": 1}, "edm.lr=1: 'edm' is not compared"),
        ("flow", {"lr": -1}, "flow: lr=-1"),
        ("flow", {"channels": [8, 8, 8, 8, 8, 8], "attention": [False] * 6}, "flow: "),
    ],
)
def test_refused_before_anything_is_trained(
    data: Any, tmp_path: Path, recipes: str, settings: dict[str, Any], line: str
) -> None:
    with pytest.raises(sf.Refusal) as refusal:
        bakeoff(data, recipes, tmp_path / "out", terms=TERMS, settings=settings, quiet=True)
    assert str(refusal.value).startswith(line)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_terms() -> None:
    assert Terms().minutes == 3.0
    assert Terms(steps=5).minutes is None
    for wrong in ({"minutes": -1.0}, {"minutes": 1.0, "steps": 1}, {"n": 0}, {"moments": -1}, {"nfe": (0,)}):
        with pytest.raises(sf.Refusal):
            Terms(**wrong)  # type: ignore[arg-type]


def test_teachers_come_first_and_settings_are_shared_out(data: Any, tmp_path: Path) -> None:
    found = entries("reflow,flow,edm", data, {"lr": 1, "edm.lr": 2})
    assert [(e.recipe, e.teacher) for e in found] == [("flow", ""), ("edm", ""), ("reflow", "flow")]
    watched = {"snapshots": 4, "reports": 1, "grid_columns": 0}
    assert found[2].given(tmp_path, 4) == watched | {"teacher": str(tmp_path / "runs" / "flow"), "lr": 1}
    [own] = entries("flow", data, {"reports": "3", "lr": "1e-3"})
    assert own.plain("images", 4) == watched | {"reports": 3, "lr": 0.001}
    assert shares({"edm.lr": 2, "lr": 1}, ["edm", "flow"]) == {"edm": {"lr": 2}, "flow": {"lr": 1}}


def test_small_data_are_measured_by_what_they_suffice_for(data: Any) -> None:
    assert Yardstick(data, None).count(10**9) == len(data.train)
    assert Yardstick(data, None).count(1) == sf.metrics.limits(data)[0]


# ----------------------------------------------------------------------------------------------------------- the report


def made(recipe: str, value: float, better: str = "lower", threads: int = 2) -> Result:
    record = {"name": "frechet", "value": value, "floor": 0.5, "better": better}
    moments = [{"seconds": float(s), "records": [record | {"value": value + s}]} for s in (1, 2)]
    sampling = {"sampler": "heun", "steps": 2, "guidance": 1.0, "nfe": 3, "milliseconds_per_sample": 1.0}
    return Result(
        {
            "recipe": recipe,
            "records": [record],
            "moments": moments,
            "nfe": [],
            "sampling": sampling,
            "trained": {"steps": 1},
            "parameters": 10,
            "machine": {"cpu": "C", "cores": 2, "threads": threads, "device": "cpu"},
        }
    )


def test_the_best_comes_first() -> None:
    results = [made("a", 3.0), made("b", 1.0), made("c", float("nan")), made("d", 2.0)]
    assert [r.recipe for r in ordered(results)] == ["b", "d", "a", "c"]
    assert [r.recipe for r in ordered([made("a", 1.0, "higher"), made("b", 2.0, "higher")])] == ["b", "a"]
    head, body = rows(results)
    assert head[:2] == ("recipe", "frechet ↓")
    assert body[0][:2] == ("b", "1")
    assert body[-1][:2] == ("real samples", "0.5")


def test_the_curves_are_the_points() -> None:
    [chart] = curves([made("a", 3.0), made("b", 1.0)], "moments", "seconds", "seconds of training")
    assert [(line.name, line.points) for line in chart.lines] == [
        ("a", ((1.0, 4.0), (2.0, 5.0))), ("b", ((1.0, 2.0), (2.0, 3.0))),
    ]  # fmt: skip
    assert chart.level == (0.5, "real samples")
    assert chart.log_y
    assert not chart.log_x


def test_watching_takes_nothing_of_the_minutes(done: Any) -> None:
    """One report, when the budget is spent: some recipes validate ten times as slowly as others."""
    out, _, _ = done
    for name in ("flow", "edm"):
        settings = json.loads((out / "runs" / name / "config.json").read_text())["settings"]
        assert (settings["reports"], settings["grid_columns"]) == (1, 0)
        log = [json.loads(line) for line in (out / "runs" / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log if line["kind"] == "validation"] == [12]


def test_results_of_two_machines_say_so(done: Any, tmp_path: Path) -> None:
    results = [made("a", 3.0), made("b", 1.0), made("c", 2.0, threads=8)]
    line = "Not measured alike (threads 2 for a, b | 8 for c): neither their minutes nor ms a sample can be set side by"
    assert _unlike(results)[0].startswith(line)
    assert _unlike(results[:2]) == []
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    assert all(result.stored["machine"]["device"] == "cpu" for result in stored(out))
    assert "Not measured alike" not in baking.write(out).read_text() + (out / "bakeoff.md").read_text()
    path = out / "results" / "edm.json"
    elsewhere = json.loads(path.read_text())
    elsewhere["machine"]["device"] = "cuda: Some GPU"
    path.write_text(json.dumps(elsewhere))
    assert "(device cpu for flow | cuda: Some GPU for edm)" in baking.write(out).read_text()
    assert "(device cpu for flow | cuda: Some GPU for edm)" in (out / "bakeoff.md").read_text()


def test_the_command_on_the_page_is_the_same_bakeoff(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It continues the folder: every term and setting is there, or it would be refused."""
    out, found, _ = done
    [line] = re.findall(r"sfumato bakeoff [^<\n]*", html.unescape((out / "report.html").read_text()))
    words = shlex.split(line)
    assert [word for word in words if word.startswith("flow.")] == ["flow.lr=0.002"]
    monkeypatch.setattr(training, "train", None)  # nothing is left to do
    assert run_sfumato(words[1:]) == 0
    assert {r.recipe: r.stored for r in stored(out)} == {r.recipe: r.stored for r in found}
    plan = json.loads((out / "bakeoff.json").read_text())
    plan["data"]["options"] = {"resolution": [32, 24], "label_column": "digit"}
    plan["settings"] |= {"reflow": {"snapshots": 2, "teacher": "runs/flow", "lr": 0.5}}
    again = shlex.join(_again(plan))
    assert "--resolution 32x24 --label-column digit --steps 12 --seed 3 --n 200 --few 100 --moments 2" in again
    assert "--nfe 2,3" in again
    assert "reflow.lr=0.5" in again
    assert "teacher" not in again


def test_the_report(done: Any) -> None:
    out, found, _ = done
    page = (out / "report.html").read_text()
    for result in found:
        for record in result.records:
            assert f"{record['value']:.4g}" in page
        for point in (*result.stored["moments"], *result.stored["nfe"]):
            value = next(r["value"] for r in point["records"] if r["name"] == "frechet")
            assert f"{value:.5g}" in page
        assert f'alt="Samples of {result.recipe}"' in page
    assert "lr=0.002" in page
    assert "Not done yet" not in page
    with Image.open(out / "bakeoff.png") as sheet, Image.open(out / "samples" / "edm.png") as strip:
        assert sheet.height == 2 * strip.height
    lines = (out / "bakeoff.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][-1] == "| real samples"


# ------------------------------------------------------------------------------------------------------------ the verb


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in TINY.items()]
    words = ["bakeoff", "--data", "digits", "--recipes", "flow", "--steps", "1", "--n", "100", "--few", "100"]
    words += ["--moments", "1", "--nfe", "1", "--out", str(tmp_path / "out")]
    words += [word for pair in (*settings, "flow.sampling_steps=1") for word in ("--set", pair)]
    assert run_sfumato(words) == 0
    text = capsys.readouterr().out
    assert "recipe " in text
    assert "report.html" in text
    assert run_sfumato(["report", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    for wrong, line in (
        (["--recipes", "flow,flaw"], "unknown recipe 'flaw'"),
        (["--nfe", "1,x"], "--nfe 1,x: write whole numbers"),
    ):
        other = [*words, *wrong]
        assert run_sfumato(other) == 2
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- other kinds


@pytest.mark.parametrize(("name", "recipe"), [("torsions", "geodesic"), ("text", "mdlm")])
def test_other_kinds_of_data(name: str, recipe: str, tmp_path: Path) -> None:
    if name == "text":
        name = str(tmp_path / "mine.txt")
        Path(name).write_text("the cat sat on the mat and slept; the dog did not. " * 800)
    settings = {
        "width": 32, "depth": 1, "batch": 8, "reports": 1, "validation_images": 16, "grid_columns": 0,
        "sampling_steps": 2,
    }  # fmt: skip
    extra = {"heads": 2} if recipe == "mdlm" else {}
    terms = Terms(steps=2, n=24, few=24, moments=1, nfe=(2,))
    [result] = bakeoff(name, recipe, tmp_path / "out", terms=terms, settings=settings | extra, quiet=True)
    assert result.records
    assert len(result.stored["moments"]) == len(result.stored["nfe"]) == 1
    assert stored(tmp_path / "out")[0].stored == result.stored
    assert f"{recipe}: first seeds, none chosen" in (tmp_path / "out" / "report.html").read_text()
    assert baking.write(tmp_path / "out").exists()
