"""``sfumato compare``: the cells, the distance to the ODE, storing, continuing, refusing."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sfumato as sf
from sfumato import comparison
from sfumato.__main__ import run
from sfumato.comparison import ODE, Cell, Comparison, ode
from sfumato.comparison import run as running
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.metrics import units
from sfumato.schedules import at
from sfumato.training.composition import Composition
from sfumato.training.sampling import plan

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "patch": 2, "blocks": 1, "batch": 32, "reports": 1, "grid_columns": 0,
    "validation_images": 16, "precision": "float32", "label_dropout": 0.1,
}  # fmt: skip
N = 100
SAMPLERS = ["euler", "ddim:eta=0.5", "heun"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run on the 8x8 digits."""
    out = tmp_path_factory.mktemp("compare") / "run"
    sf.train("edm", "digits", steps=20, out=out, quiet=True, **TINY)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return sf.load(folder)


@pytest.fixture(scope="module")
def data() -> Any:
    return sf.data.load("digits")


@pytest.fixture(scope="module")
def found(model: Any, data: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path, list[str]]:
    """A whole comparison, its folder and what it said."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("found") / "compare"
    result = sf.compare(model, data, samplers=SAMPLERS, steps=[3, 2], n=N, out=out, seed=7, tell=said.append)
    return result, out, said


def without_seconds(comparison: Comparison) -> list[dict[str, Any]]:
    return [{**cell.to_json(), "seconds": 0} for cell in comparison.cells]


def counted(monkeypatch: pytest.MonkeyPatch, then: Callable[[int], None] = lambda k: None) -> list[tuple[str, int]]:
    """The jobs that are drawn from now on; ``then(k)`` runs before the k-th."""
    jobs: list[tuple[str, int]] = []
    draw = running.draw

    def counting(model: Any, job: Any, *, batch: int) -> Any:
        jobs.append((job.sampler_name, job.steps))
        then(len(jobs))
        return draw(model, job, batch=batch)

    monkeypatch.setattr(running, "draw", counting)
    return jobs


# ---------------------------------------------------------------------------------------------------------- quality


def test_a_cell_is_what_sampling_and_evaluating_give(found: Any, model: Any, data: Any) -> None:
    cell = next(c for c in found[0].cells if c.key == ("ddim:eta=0.5", "karras", 3))
    samples = model.sample(N, label=list(model.classes), sampler="ddim:eta=0.5", steps=3, seed=7)
    generated = sf.metrics.made(samples.record)
    assert list(cell.records) == sf.metrics.evaluate(samples.x, samples.index(), data, generated=generated)
    assert (cell.nfe, cell.records[0].sampler, cell.records[0].nfe) == (3, "ddim:eta=0.5", 3)
    assert cell.seconds > 0
    assert not cell.deterministic
    assert cell.rows == 3 * (1 if samples.record["guidance"] == 1 else 2)


def test_all_cells_are_there_in_the_order_asked_for(found: Any) -> None:
    result, _, said = found
    assert [(c.sampler, c.steps) for c in result.cells] == [(name, n) for name in SAMPLERS for n in (2, 3)]
    assert [c.nfe for c in result.cells] == [2, 3, 2, 3, 3, 5]
    assert len(said) == 6
    assert said[0].startswith("[1/6] euler, 2 steps: 2 evaluations, ")
    assert "left" in said[0]
    assert "left" not in said[-1]
    assert said[1].startswith("[2/6] ddim:eta=0.5, 2 steps")  # samplers take turns


def test_labels_are_those_of_held_out_images_where_these_are_not_balanced(
    model: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = torch.where(torch.arange(len(data.test)) % 2 == 0, 3, data.test.label)
    skewed = replace(data, test=replace(data.test, label=label))
    asked: list[Any] = []
    draw = running.draw

    def listening(model: Any, job: Any, *, batch: int) -> Any:
        asked.append(job.label)
        return draw(model, job, batch=batch)

    monkeypatch.setattr(running, "draw", listening)
    result = sf.compare(model, skewed, samplers="euler", steps=[1], n=N)
    assert list(asked[0]) == units.labels(skewed, model.classes, N)
    assert 0.4 * N < asked[0].count("3") < 0.7 * N
    assert f"n {N}, labels as held out, guidance" in result.heading()
    renamed = replace(skewed, classes=tuple(f"a {name}" for name in data.classes))
    assert units.labels(renamed, model.classes, N) == list(model.classes)


def test_all_samplers_start_from_the_same_noise(model: Any, data: Any) -> None:
    """DDIM at eta = 0 is Euler's method: equal noise gives equal images."""
    result = sf.compare(model, data, samplers="euler,ddim", steps=[2], n=N)
    values = [[r.value for r in cell.records] for cell in result.cells]
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_the_table(found: Any, model: Any, data: Any) -> None:
    result = found[0]
    lines = result.table().splitlines()
    assert lines[0].startswith(f"edm on digits, n {N}, 10 labels in turn, guidance 2, seeds from 7, grid karras; cpu")
    assert lines[2].split()[:5] == ["sampler", "steps", "NFE", "seconds", "frechet"]
    assert [line.split()[:3] for line in lines[3:9]] == [[c.sampler, str(c.steps), f"{c.nfe:g}"] for c in result.cells]
    assert lines[9].startswith("real images")
    assert f"{result.records[0].floor:.4g}" in lines[9]
    starred = [line.split()[:2] for line in lines[3:9] if "*" in line]
    assert starred == [[c.sampler, str(c.steps)] for c in result.cells if c in result.best()]
    two = sf.compare(model, data, samplers="euler", steps=[2], grids="karras,uniform", n=N)
    assert two.table().splitlines()[2].split()[:2] == ["sampler", "grid"]
    assert {c.grid for c in two.cells} == {"karras", "uniform"}


def cell(nfe: int, value: float, name: str = "frechet", better: str = "lower", sampler: str = "a") -> Cell:
    record = sf.metrics.Record(
        name, value, 0.5, better, 100, 100, "d/test", "", "", "", "", "", "", sampler, nfe, nfe, 0, 1.0, ""
    )
    return Cell(sampler, "uniform", nfe, True, float(nfe), float(nfe), 1.0, (record,))


def test_the_best_cells_are_the_pareto_front() -> None:
    cells = (cell(4, 2.0), cell(8, 3.0), cell(8, 1.5, sampler="b"), cell(16, 1.5), cell(16, 1.0, sampler="b"))
    assert Comparison({}, cells).best() == [cells[0], cells[2], cells[4]]
    higher = tuple(cell(n, v, "label-accuracy", "higher") for n, v in ((4, 0.5), (8, 0.4), (16, 0.9)))
    assert Comparison({}, higher).best() == [higher[0], higher[2]]


def test_the_files(found: Any) -> None:
    result, out, _ = found
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.csv", "compare.md", "compare.png"}
    rows = list(csv.DictReader(io.StringIO((out / "compare.csv").read_text())))
    assert [float(row["frechet"]) for row in rows] == [c.value("frechet") for c in result.cells]
    assert float(rows[0]["samples_per_second"]) == N / result.cells[0].seconds
    assert (out / "compare.md").read_text().count("\n| ") == len(result.cells) + 3  # head, rule, floor
    with Image.open(out / "compare.png") as picture:
        assert picture.size[0] > 800
    again = comparison.read(out)
    assert (again.cells, dict(again.settings)) == (result.cells, dict(result.settings))
    assert Comparison.from_json(json.loads(json.dumps(again.to_json()))).cells == result.cells


# --------------------------------------------------------------------------------------------- continuing, refusing


def test_finished_cells_are_not_drawn_again(found: Any, model: Any, data: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result, out, _ = found
    jobs, said = counted(monkeypatch), []
    more = sf.compare(
        model, data, samplers=[*SAMPLERS, "dpmpp-2m"], steps=[2, 3], n=N, out=out, seed=7, tell=said.append
    )
    assert jobs == [("dpmpp-2m", 2), ("dpmpp-2m", 3)]
    assert said[0] == f"6 of 8 cells are in {out} already"
    assert more.cells[:6] == result.cells
    assert comparison.read(out).cells == more.cells


def test_ctrl_c_keeps_what_is_done_and_the_same_command_continues(
    found: Any, model: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "compare"

    def interrupt(k: int) -> None:
        if k == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        jobs = counted(patch, interrupt)
        with pytest.raises(KeyboardInterrupt) as stopped:
            sf.compare(model, data, samplers=SAMPLERS, steps=[2, 3], n=N, out=out, seed=7)
    assert str(stopped.value) == f"stopped with 2 of 6 cells done and kept in {out}; the same command continues"
    kept = comparison.read(out)
    assert [(c.sampler, c.steps) for c in kept.cells] == [("euler", 2), ("ddim:eta=0.5", 2)]
    assert (out / "compare.png").is_file()
    jobs = counted(monkeypatch)
    result = sf.compare(model, data, samplers=SAMPLERS, steps=[2, 3], n=N, out=out, seed=7)
    assert len(jobs) == 4
    assert without_seconds(result) == without_seconds(found[0])[:6]
    assert result.cells[0] == kept.cells[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 8}, "with seed=7, now seed=8; give another --out"),
        ({"guidance": 1.0}, "with guidance=2.0, now guidance=1.0"),
        ({"label": "3"}, "now label=['3']"),
        ({"n": N + 1}, f"with n={N}, now n={N + 1}"),
    ],
)
def test_other_settings_go_into_another_folder(
    found: Any, model: Any, data: Any, change: dict[str, Any], message: str
) -> None:
    _, out, _ = found
    asked = {"samplers": "euler", "steps": [2], "n": N, "seed": 7, "out": out} | change
    with pytest.raises(sf.Refusal) as refusal:
        sf.compare(model, data, **asked)
    assert message in str(refusal.value)


def test_other_weights_go_into_another_folder(found: Any, folder: Path, data: Any) -> None:
    other = sf.load(folder)
    with torch.no_grad():
        next(iter(other.net.parameters())).add_(1.0)
    with pytest.raises(sf.Refusal, match="weights_sha256"):
        sf.compare(other, data, samplers="euler", steps=[2], n=N, seed=7, out=found[1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"samplers": "euler,hen"}, "unknown sampler 'hen'; did you mean heun?"),
        ({"samplers": "ddim:et=1"}, "sampler 'ddim' has no setting 'et'"),
        ({"samplers": []}, "nothing to compare"),
        ({"samplers": "euler", "steps": [3, 0]}, "steps=0: a grid needs a whole number of at least 1 step"),
        ({"samplers": "euler", "steps": [2, 2000], "grids": "trailing"}, "steps=2000 is more than the 1000 steps"),
        ({"samplers": "euler", "grids": "karras,unifrm"}, "unknown grid 'unifrm'; did you mean uniform"),
        ({"samplers": "euler", "n": 90}, "n=90: digits can be evaluated with 97 to 1437 samples"),
        ({"samplers": "euler", "n": 5000}, "n=5000: digits can be evaluated with 97 to 1437 samples"),
        ({"samplers": "euler", "label": "ten"}, "unknown label 'ten'"),
        ({"samplers": "euler", "guidance": -1.0}, "guidance=-1.0: needs 0 or more"),
        ({"samplers": "euler", "batch": 0}, "batch=0: needs at least 1"),
        ({"samplers": "euler", "seed": -1}, "seed=-1"),
    ],
)
def test_refused_before_any_work(
    model: Any, data: Any, asked: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = counted(monkeypatch)
    with pytest.raises(sf.Refusal) as refusal:
        sf.compare(model, data, **({"steps": [2], "n": N, "out": tmp_path / "new"} | asked))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not jobs
    assert not (tmp_path / "new").exists()


def test_other_data_and_other_folders_are_refused(model: Any, data: Any, tmp_path: Path) -> None:
    with pytest.raises(sf.Refusal, match=r"mnist has images \[1, 28, 28\], the model makes \[1, 8, 8\]"):
        sf.compare(model, "mnist", samplers="euler", steps=[2], n=N)
    (tmp_path / "note").write_text("precious")
    with pytest.raises(sf.Refusal, match="exists already and is kept"):
        sf.compare(model, data, samplers="euler", steps=[2], n=N, out=tmp_path)
    (tmp_path / "compare.json").write_text('{"format": 1, "settings": {}}')
    with pytest.raises(sf.Refusal, match="is damaged"):
        comparison.read(tmp_path)
    (tmp_path / "compare.json").write_text('{"format": 9}')
    with pytest.raises(sf.Refusal, match="a comparison of format 9"):
        comparison.read(tmp_path)


def test_a_walk_that_is_not_finite_is_a_cell_with_a_note(
    model: Any, data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = running.draw

    def fails(model: Any, job: Any, *, batch: int) -> Any:
        if job.sampler_name == "heun":
            raise sf.Refusal("sample with seed 3 is not finite after step 2")
        return draw(model, job, batch=batch)

    monkeypatch.setattr(running, "draw", fails)
    result = sf.compare(model, data, samplers="heun,euler", steps=[2], n=N, out=tmp_path / "c")
    assert [bool(c.note) for c in result.cells] == [True, False]
    assert "heun, 2 steps: sample with seed 3 is not finite after step 2" in result.table()
    assert comparison.read(tmp_path / "c").cells == result.cells


# ------------------------------------------------------------------------------------------------------ against ODE


class Exact(nn.Module):
    """The belief's mean for pixels drawn from ``N(mean, std^2)``, behind the head's own input scale."""

    def __init__(self, schedule: Any, mean: float, std: float) -> None:
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std
        self.scale = nn.Parameter(torch.ones(()))
        self.compute_dtype = torch.float32

    def forward(self, scaled: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        alpha, sigma = (float(v) for v in at(self.schedule, float(t[0])))
        x = scaled.double() * (alpha**2 * 0.25 + sigma**2) ** 0.5
        gain = self.std**2 * alpha / (alpha**2 * self.std**2 + sigma**2)
        return (self.mean + gain * (x - alpha * self.mean)).float()


MEAN, STD = 0.3, 0.2


@pytest.fixture(scope="module")
def exact(model: Any) -> Any:
    """A model whose ODE has the closed form ``mean + std (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)``."""
    process, times = model.process, model.times
    settings = replace(model.settings, sampling=replace(model.settings.sampling, clip=False))

    def compose(net: Any) -> Composition:
        return Composition(Preconditioned(net, GaussianHead(process, "x0", 0.5)), times)

    return replace(model, net=Exact(process.schedule, MEAN, STD), compose=compose, classes=(), settings=settings)


def closed_form(model: Any, n: int, t: float) -> Tensor:
    """The exact ends from the noise of seeds 0..n-1."""
    alpha, sigma = at(model.process.schedule, t)
    zeros = torch.zeros(n, 1, 8, 8)
    x1 = model.process.marginal(zeros, t).draw(sf.Streams(range(n))).double()
    return MEAN + STD * (x1 - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2) ** 0.5


@pytest.mark.parametrize("grid", ["karras", "leading"])
def test_the_reference_is_the_exact_solution_and_knows_its_error(exact: Any, grid: str) -> None:
    job = plan(exact, 6, sampler="euler", steps=5, grid=grid)
    solution = ode.solve(exact, job, ODE(steps=400), batch=4)
    error = ode.rms(solution.x, closed_form(exact, 6, float(job.times[0])))
    assert 0 < error < 3e-4 * STD
    assert error < solution.error < 30 * error
    assert solution.nfe == 600


def test_the_distance_is_the_distance_to_the_closed_form(exact: Any) -> None:
    result = sf.compare_with_ode(exact, samplers="euler,heun,ddpm", steps=[10, 20, 40], n=6)
    assert result.left_out == {"ddpm": "not applicable, it draws noise on its way"}
    assert "ddpm: not applicable" in result.table()
    low, high = exact.transform.limits
    rates = {}
    for name in ("euler", "heun"):
        values = []
        for steps in (10, 20, 40):
            job = plan(exact, 6, sampler=name, steps=steps)
            end = running.carry_out(exact, job).x
            wanted = ode.rms(end, closed_form(exact, 6, 1.0))
            record = next(c for c in result.cells if c.key == (name, "karras", steps)).records[0]
            assert record.settings["model_units"] == pytest.approx(wanted, rel=0.05)
            assert record.value == pytest.approx(255 / (high - low) * record.settings["model_units"])
            assert record.floor < 0.05 * record.value
            assert record.settings["model_units_worst_sample"] >= record.settings["model_units"]
            values.append(record.value)
        rates[name] = math.log2(values[1] / values[2])
    assert rates["euler"] == pytest.approx(1, abs=0.25)
    assert rates["heun"] == pytest.approx(2, abs=0.35)


def test_the_reference_begins_where_the_grid_begins(exact: Any) -> None:
    """A grid may begin below t = 1, with that level's noise: so does its reference."""
    said: list[str] = []
    result = sf.compare_with_ode(
        exact, samplers="heun", steps=[40], grids="karras,karras:sigma_max=1", n=4, ode=ODE(steps=200), tell=said.append
    )
    assert sum(line.startswith("reference: the ODE from t = ") for line in said) == 2
    assert [c.grid for c in result.cells] == ["karras", "karras:sigma_max=1"]
    assert all(0 < c.value("ode-distance") < 0.5 for c in result.cells)
    ends = [closed_form(exact, 4, t) for t in (1.0, float(plan(exact, 4, grid="karras:sigma_max=1").times[0]))]
    assert 255 * ode.rms(*ends) / 2 > 5  # a reference from t = 1 would be far off


def test_ode_refusals(exact: Any) -> None:
    with pytest.raises(sf.Refusal, match="ddpm, ddim:eta=1: every sampler draws noise"):
        sf.compare_with_ode(exact, samplers="ddpm,ddim:eta=1", steps=[2], n=4)
    with pytest.raises(sf.Refusal, match="steps=99 of the reference"):
        ODE(steps=99)
    with pytest.raises(sf.Refusal, match="ddpm draws noise and solves no ODE"):
        ODE(sampler="ddpm")
    with pytest.raises(sf.Refusal, match="n=0: ask for at least 1 sample"):
        sf.compare_with_ode(exact, samplers="euler", steps=[2], n=0)


# ----------------------------------------------------------------------------------------------------- command line


def said(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    capsys.readouterr()
    assert run(arguments) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(folder), "--samplers", "euler,ddim:eta=1", "--steps", "1,2", "--n", str(N)]
    text = said(command, capsys)
    assert "[4/4] ddim:eta=1, 2 steps: 2 evaluations" in text
    assert "real images" in text
    assert text.endswith(f"{folder / 'compare'}: compare.png, compare.md, compare.csv, compare.json\n")
    assert f"4 of 4 cells are in {folder / 'compare'} already" in said(command, capsys)
    other = said([*command, "--seed", "1"], capsys, code=2)
    assert other == f"sfumato: {folder / 'compare'} holds a comparison with seed=0, now seed=1; give another --out\n"


def test_the_command_guides_by_another_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(folder), "--samplers", "euler", "--steps", "2", "--n", "2", "--against-ode"]
    guided = [
        *command,
        "--guidance",
        "2",
        "--autoguide",
        str(folder),
        "--threshold",
        "dynamic",
        "--out",
        str(tmp_path / "c"),
    ]
    said(guided, capsys)
    settings = Comparison.from_json(json.loads((tmp_path / "c" / "compare.json").read_text())).settings
    assert settings["autoguide"] == settings["weights_sha256"]  # by itself
    assert (settings["guidance"], settings["threshold"]) == (2.0, "dynamic:quantile=0.995")
    assert "holds a comparison with threshold=dynamic" in said([*guided, "--threshold", "static"], capsys, code=2)
    assert "no snapshots" in said([*command, "--ema", "0.1"], capsys, code=2)


def test_the_command_against_the_ode(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(folder), "--samplers", "ddpm,heun", "--steps", "2", "--n", "2", "--against-ode"]
    text = said(command, capsys)
    assert "ode-distance" in text
    assert "the reference's own error" in text
    assert "ddpm: not applicable, it draws noise on its way" in text
    assert (folder / "compare-ode" / "compare.png").is_file()


def test_steps_that_are_no_numbers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["compare", str(folder), "--samplers", "heun", "--steps", "5,ten"], capsys, code=2)
    assert text == "sfumato: --steps 5,ten: write whole numbers separated by commas, e.g. --steps 5,10,20\n"
