"""What a step takes and how it is computed: expectations, layers computed again, rows read ahead, batches chosen."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import recipes
from sfumato.data.rows import Dataset, ahead
from sfumato.errors import Refusal
from sfumato.randomness import Stream
from sfumato.training import checkpoint as checkpoints
from sfumato.training import monitor
from sfumato.training.estimate import (
    Allocations,
    Expected,
    compiles,
    expect,
    parse_bytes,
    recompute,
    rows_that_fit,
)
from sfumato.training.files import read_json
from sfumato.training.horizon import Seconds, Steps
from sfumato.training.loop import train_steps
from sfumato.training.optim import Optimiser
from sfumato.training.parallel import ALONE, units
from sfumato.training.run import Stopped
from sfumato.training.settings import Optimisation, resolve

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (True,), "blocks": 2, "patch": 1, "batch": 16, "warmup": 2, "precision": "float32",
    "reports": 1, "validation_images": 8, "grid_columns": 0,
}  # fmt: skip


def build(recipe: str, **settings: Any) -> tuple[sf.Diffusion, Any]:
    chosen = recipes.get(recipe)
    resolved = resolve(chosen.defaults, settings)
    units_ = sf.data.load("digits").prepared(resolved)
    model = chosen.build(resolved, units_.spec(), {"seed": 0, "horizon": {"steps": 1}})
    torch.manual_seed(1)
    for parameter in model.net.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.net.train()
    return model, units_.rows(torch.device("cpu"))


# ------------------------------------------------------------------------------------------------------- expected


class Perceptron:
    """A system of one matrix: a step of a row takes 4 ``n m`` operations, 2 forwards and 2 backwards."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.net: nn.Module = nn.Linear(inputs, outputs)
        self.settings = type("S", (), {"optimisation": Optimisation(batch=32)})()

    def with_net(self, net: nn.Module, weights: str) -> Perceptron:
        found = Perceptron(1, 1)
        found.net = net
        return found

    def losses(self, batch: Any, rng: Any) -> dict[str, Tensor]:
        return {"net": self.net(batch["x"]).square().sum(1)}


def test_operations_of_a_matrix_are_counted() -> None:
    system, rows = Perceptron(40, 30), Dataset(torch.randn(8, 40), None, torch.device("cpu"))
    before = system.net.weight.clone()
    found = expect(system, rows)
    assert found.parameters == 40 * 30 + 30
    assert found.flops_per_row == 4 * 40 * 30  # the input needs no gradient
    assert found.held == 4 * 4 * found.parameters
    assert not found.unused
    assert torch.equal(system.net.weight, before)
    assert system.net.weight.grad is None
    # of a row at the peak: the input, the output, its square or the gradient of one
    assert 4 * (40 + 30) <= found.per_row <= 4 * (40 + 4 * 30)
    assert found.memory(7) == found.held + found.fixed + 7 * found.per_row


def test_parameters_without_a_gradient_are_noticed() -> None:
    system = Perceptron(4, 3)
    system.net = nn.Sequential(nn.Linear(4, 3))
    system.net.register_parameter("idle", nn.Parameter(torch.ones(2)))
    assert expect(system, Dataset(torch.randn(8, 4), None, torch.device("cpu"))).unused


def test_allocations_are_followed() -> None:
    known = torch.zeros(1000)
    with Allocations([known]) as seen:
        a = torch.zeros(500)  # 2000 bytes
        view = a[:10]
        b = a + 1
        del a, view
        c = known[:5].clone()
        del b
    assert seen.peak == 4000
    assert seen.live == 20
    assert len(c) == 5


def test_what_is_expected_is_said() -> None:
    found = Expected(1_234_567, 1e6, 20_000_000, 5e6, 1e5, 0.001, False)
    lines = found.lines(Steps(600), 128, 1, 1)
    assert lines[0] == "expected: 1,234,567 parameters; a step of 128: 128 MFLOP, 37.8 MB of memory, 0.13 s"
    assert lines[1] == "expected: 600 steps take about 77 s"
    assert found.lines(Steps(60_000), 128, 1, 1)[1] == "expected: 60000 steps take about 2.13 hours"
    lines = found.lines(Seconds(180.0), 128, 2, 2)
    assert "of memory on each of 2 processes, 0.064 s" in lines[0]
    assert "28.2 MB" in lines[0]  # 32 rows at once
    assert lines[1] == "expected: 3 minutes are about 2,800 steps, 360,000 samples"


def test_training_says_what_it_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sf.train("flow", "digits", steps=1, **TINY)
    said = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("expected: ") for line in said) == 2
    assert "parameters; a step of 16: " in said[0]


# -------------------------------------------------------------------------------------------- memory, chosen batches


@pytest.mark.parametrize(
    ("text", "value"), [("4GB", 4e9), ("500 mb", 5e8), ("2e9", 2e9), ("1.5g", 1.5e9), ("64 KB", 64e3)]
)
def test_bytes_are_read(text: str, value: float) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "0", "nan"])
def test_other_words_are_no_bytes(text: str) -> None:
    with pytest.raises(Refusal, match="memory limit"):
        parse_bytes(text)


def test_what_is_divided_is_held_in_parts() -> None:
    found = Expected(1000, 0.0, 16_000, 500.0, 100.0, 0.0, False).divided(4)
    assert found.held == 4_000 + 4_000  # a quarter of weights, moments and averages; an average whole
    assert found.memory(2) == 8_000 + 700


def test_the_most_rows_that_fit() -> None:
    found = Expected(0, 0.0, 1000, 500.0, 100.0, 0.0, False)
    assert rows_that_fit(found, 10_000.0) == 72  # (9000 - 1500) / 100 = 75, a multiple of 8
    assert rows_that_fit(found, 2_223.0) == 5
    assert rows_that_fit(found, 10_000.0, taken=7_000.0) == 5
    with pytest.raises(Refusal, match=r"memory limit 1\.6 kB: a step of one row takes 1\.78 kB; give more"):
        rows_that_fit(found, 1_600.0)


def test_a_batch_is_chosen_or_kept_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.training import run as running

    model, rows = build("flow", **TINY)
    expected = expect(model, rows)
    monkeypatch.setattr(running, "taken", lambda device: 0.0)
    monkeypatch.setattr(running, "expect", lambda model, rows: expected)
    free = {key: value for key, value in TINY.items() if key != "batch"}
    limit = str(expected.memory(27) / 0.9)
    sf.train("flow", "digits", steps=1, out=tmp_path / "a", quiet=True, auto_batch=limit, **free)
    assert read_json(tmp_path / "a" / "config.json")["settings"]["batch"] == 24
    sf.train("flow", "digits", steps=1, out=tmp_path / "b", quiet=True, auto_batch=limit, **(TINY | {"batch": 100}))
    settings = read_json(tmp_path / "b" / "config.json")["settings"]
    assert (settings["batch"], settings["accumulate"]) == (100, 5)
    with pytest.raises(Refusal, match="memory limit 10 B"):
        sf.train("flow", "digits", steps=1, out=tmp_path / "c", quiet=True, auto_batch="10B", **free)
    assert not (tmp_path / "c").exists()
    with pytest.raises(Refusal, match="keeps its batch"):
        sf.train("flow", "digits", out=tmp_path / "a", resume=True, quiet=True, auto_batch="1GB")


def stopped_at(step: int, **given: Any) -> str:
    """Train until ``step``, where a Ctrl-C comes; returns what is said of it."""
    real = monitor.Log.step

    def interrupted(self: monitor.Log, record: Any) -> None:
        if record.step == step:
            signal.raise_signal(signal.SIGINT)
        real(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor.Log, "step", interrupted)
        with pytest.raises(Stopped) as stopped:
            sf.train("flow", "digits", quiet=True, **given)
    return str(stopped.value)


def test_a_batch_is_of_the_rows_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.training import run as running

    monkeypatch.setattr(running, "taken", lambda device: 0.0)
    monkeypatch.setattr(running, "expect", lambda model, rows: Expected(0, 0.0, 0, 0.0, 1.0, 0.0, False))
    model, rows = build("flow", **(TINY | {"accumulate": 4}))
    data = sf.data.load("digits").prepared(model.settings)
    found = [running._fitting(model, data, limit, kept, ALONE, False) for kept in (False, True) for limit in (1e9, 1.2)]
    assert found == [{"batch": len(rows) // 4 * 4}, {"batch": 4}, {"accumulate": 4}, {"accumulate": 16}]


def test_how_a_step_is_computed_may_change_on_resume(tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole = sf.train("flow", "digits", steps=4, quiet=True, **TINY)
    assert stopped_at(2, steps=4, out=run, **TINY).endswith("--resume"), "nothing changed yet"
    told = stopped_at(3, out=run, resume=True, accumulate=3, recompute=True)
    assert told.endswith("--resume --set accumulate=3 --set recompute=true")
    model = sf.train("flow", "digits", out=run, resume=True, quiet=True, accumulate=3, recompute=True)
    assert (model.settings.optimisation.accumulate, model.settings.optimisation.recompute) == (3, True)
    assert checkpoints.steps_of(run)[-1] == 4
    for name, value in whole.net.state_dict().items():
        torch.testing.assert_close(model.net.state_dict()[name], value, rtol=0, atol=1e-3, msg=name)
    with pytest.raises(Refusal, match="batch 16, not 8"):
        sf.train("flow", "digits", out=run, resume=True, quiet=True, batch=8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": 17, "batch": 16}, "16, the batch"),
        ({"compile": "yes"}, "unknown compile"),
    ],
)
def test_options_of_a_step_refuse(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        resolve(Optimisation(), settings)


def test_compiling_is_chosen_by_device_and_horizon() -> None:
    gpu, cpu, long, short = torch.device("cuda"), torch.device("cpu"), Seconds(7200.0), Seconds(180.0)
    assert [compiles("on", cpu, short), compiles("off", gpu, long)] == [True, False]
    assert [compiles("auto", *case) for case in ((gpu, long), (gpu, short), (cpu, long), (gpu, Steps(9)))] == [
        True, False, False, False,
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------- recompute


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [("flow", {"dropout": 0.2}), ("edm2", {}), ("edm", {"energy": "inner"})],
    ids=["flow-dropout", "edm2", "energy"],
)
def test_layers_computed_again_give_the_same_gradients_in_less_memory(recipe: str, settings: dict[str, Any]) -> None:
    given = {key: TINY[key] for key in ("channels", "attention", "blocks", "patch", "precision")} | {"snapshots": 0}
    grads, peaks, losses = [], [], []
    for again in (False, True):
        model, rows = build(recipe, **(given | settings))
        if again:
            recompute(units(model.net))
        batch = rows.batch(torch.arange(16))
        torch.manual_seed(3)
        with Allocations([*model.net.parameters(), *model.net.buffers()]) as seen:
            loss = model.losses(batch, Stream(2))["net"]
            loss.mean().backward()
        grads.append({name: p.grad for name, p in model.net.named_parameters()})
        peaks.append(seen.peak)
        losses.append(loss.detach())
    assert torch.equal(*losses)
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-5, atol=1e-8, msg=name)
    if recipe != "edm":  # an energy's own gradient is computed forwards: it keeps what it computes again
        assert peaks[1] < 0.75 * peaks[0]


def test_a_run_that_computes_again_is_the_same_run(tmp_path: Path) -> None:
    weights = []
    for again in (False, True):
        model = sf.train("flow", "digits", steps=3, quiet=True, recompute=again, dropout=0.1, **TINY)
        weights.append(model.net.state_dict())
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


# ------------------------------------------------------------------------------------------------------ rows ahead


class Slow:
    """Rows that take time to read, in a thread of their own; ``seen``: what was asked for, and by whom."""

    def __init__(self, n: int, ready: int, broken: int = -1) -> None:
        self.x, self.ready, self.broken = torch.arange(n), ready, broken
        self.seen: list[int] = []
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, index: Tensor) -> dict[str, Tensor]:
        self.seen.append(int(index[0]))
        self.threads.add(threading.get_ident())
        if int(index[0]) == self.broken:
            raise Refusal("shard 3 is damaged; restore it")
        return {"x": self.x[index]}


def indices(n: int) -> Iterator[Tensor]:
    return (torch.tensor([k, k + 1]) for k in range(n))


@pytest.mark.parametrize("ready", [0, 1, 3])
def test_rows_come_in_order_and_are_read_ahead(ready: int) -> None:
    rows = Slow(20, ready)
    found = ahead(rows, indices(10))
    first = next(found)
    assert first["x"].tolist() == [0, 1]
    deadline = time.monotonic() + 20
    while len(rows.seen) < 1 + ready and time.monotonic() < deadline:
        time.sleep(0.001)
    assert rows.seen == list(range(1 + ready)), "neither fewer nor more than was said are read ahead"
    assert [int(batch["x"][0]) for batch in found] == list(range(1, 10))
    assert rows.seen == list(range(10))
    assert (threading.get_ident() in rows.threads) == (ready == 0)
    assert len(rows.threads) == 1


def test_what_reading_raises_is_raised_where_it_is_due() -> None:
    found = ahead(Slow(20, 4, broken=3), indices(10))
    assert [int(next(found)["x"][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(Refusal, match="shard 3 is damaged"):
        next(found)


def test_a_training_that_stops_leaves_no_thread(tmp_path: Path) -> None:
    class System:
        net = nn.Linear(1, 1)

        def losses(self, batch: Any, rng: Any) -> dict[str, Tensor]:
            return {"net": self.net(batch["x"].float()[:, None]).flatten()}

        def describe_level(self, n: int, worst: int, rng: Any) -> str:
            return ""

    system, losses = System(), []
    before = threading.active_count()
    for ready in (0, 2):
        torch.manual_seed(0)
        system.net = nn.Linear(1, 1)
        steps = train_steps(
            system, Slow(8, ready), {"net": Optimiser(system.net, Optimisation())}, Steps(9), batch=4, seed=0
        )
        losses.append([next(steps).loss for _ in range(4)])
        steps.close()  # type: ignore[attr-defined]
    assert losses[0] == losses[1]
    deadline = time.monotonic() + 20
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before
