"""A step is the same whoever works on its rows: in parts, by several processes, weights whole or divided."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import recipes
from sfumato.data.rows import Dataset
from sfumato.errors import Refusal
from sfumato.randomness import Share, Shared, Stream, split
from sfumato.training import checkpoint as checkpoints
from sfumato.training.files import unpack_tensors
from sfumato.training.horizon import Clock, Steps
from sfumato.training.loop import train_steps
from sfumato.training.optim import Optimiser
from sfumato.training.parallel import ALONE, Losses, Processes, accumulating, units
from sfumato.training.settings import Optimisation, resolve

Forks = Callable[..., dict[str, Any]]
TINY: dict[str, Any] = {
    "channels": [8], "attention": [True], "blocks": 1, "patch": 2, "batch": 23, "warmup": 2, "precision": "float32",
    "reports": 2, "validation_images": 48, "grid_columns": 1, "grid_steps": 2, "sampling_steps": 4,
}  # fmt: skip
STEPS = 50


# ----------------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(("n", "parts"), [(7, 3), (8, 8), (2, 3), (24, 1)])
def test_parts_are_all_rows_in_order(n: int, parts: int) -> None:
    found = split(5, 5 + n, parts)
    assert [k for first, last in found for k in range(first, last)] == list(range(5, 5 + n))
    sizes = [last - first for first, last in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[0] == max(sizes), "the first process always has something"


def test_a_share_draws_what_it_would_get_of_the_whole() -> None:
    whole, share = Stream(3), Shared(Stream(3), Share(2, 5, 8))
    for draw in ("normal", "uniform", "normal"):
        assert torch.equal(getattr(share, draw)((3, 4)), getattr(whole, draw)((8, 4))[2:5])
    owned = torch.tensor([4, 2, 0])
    expected = whole.normal((8, 4))[2:5] * (torch.arange(4) < owned[:, None])
    assert torch.equal(share.normal((3, 4), owned), expected)
    with pytest.raises(Refusal, match="a draw of 2 rows for a share of 3"):
        share.normal((2, 4))
    with pytest.raises(Refusal, match="a share needs a row at least"):
        Share(2, 2, 8)


def build(recipe: str, data: str, **settings: Any) -> tuple[sf.Diffusion, Any]:
    chosen = recipes.get(recipe)
    resolved = resolve(chosen.defaults, settings)
    units = sf.data.load(data).prepared(resolved)
    model = chosen.build(resolved, units.spec(), {"seed": 0, "horizon": {"steps": 1}})
    if chosen.begin is not None:
        chosen.begin(model, units)
    torch.manual_seed(1)
    for parameter in model.net.parameters():  # no zero of the start hides anything
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.net.train()
    return model, units.rows(torch.device("cpu"))


IMAGES = {key: TINY[key] for key in ("channels", "attention", "blocks", "patch", "precision")}
TEXT = {"width": 16, "depth": 1, "heads": 2, "precision": "float32"}
#: One of every kind of loss: plain, weighted by a second network, coupled twice, a bound with its own schedule, an SDE
#: on a manifold, tokens.
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("flow", "digits", IMAGES),
    ("flow", "digits", IMAGES | {"low_discrepancy": False}),
    ("edm2", "digits", {**IMAGES, "patch": 1}),
    ("ot-cfm", "digits", IMAGES | {"conditional": False}),  # pairs are made within a class, and 7 rows have 7
    ("sb-cfm", "digits", IMAGES | {"conditional": False}),
    ("vdm", "digits", IMAGES),
    ("mdlm", "shakespeare", TEXT),
    ("block-diffusion", "shakespeare", TEXT),
]


@pytest.mark.parametrize(("recipe", "data", "settings"), KINDS, ids=[f"{k[0]}-{len(k[2])}" for k in KINDS])
def test_losses_of_shares_are_those_of_the_whole(recipe: str, data: str, settings: dict[str, Any]) -> None:
    model, rows = build(recipe, data, **settings)
    batch, shares = rows.batch(torch.arange(7)), [Share(0, 3, 7), Share(3, 4, 7), Share(4, 7, 7)]
    whole = model.losses(batch, Stream(5))["net"]
    found = []
    for share in shares:
        own = batch if model.couples else {name: share.of(values) for name, values in batch.items()}
        found.append(model.losses(own, Shared(Stream(5), share))["net"])
    torch.testing.assert_close(torch.cat(found), whole, rtol=2e-5, atol=2e-6)


class Linear:
    """A system whose gradient is known: the loss of row ``k`` is ``w . (x_k + noise_k)``."""

    def __init__(self, features: int) -> None:
        self.net = nn.Linear(features, 1, bias=False)

    def losses(self, batch: Any, rng: Any) -> dict[str, Tensor]:
        x = batch["x"] + rng.normal(tuple(batch["x"].shape))
        return {"net": self.net(x).flatten()}

    def describe_level(self, n: int, worst: int, rng: Any) -> str:
        return f"row {worst}"


@pytest.mark.parametrize("accumulate", [1, 2, 3, 8])
def test_parts_of_a_batch_give_its_gradient(accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    system, seen = Linear(3), []
    rows = Dataset(torch.randn(8, 3), None, torch.device("cpu"))
    optimiser, real = Optimiser(system.net, Optimisation(batch=8)), Optimiser.apply

    def apply(self: Optimiser, step: int, progress: float) -> Any:
        seen.append(system.net.weight.grad.clone())
        return real(self, step, progress)

    monkeypatch.setattr(Optimiser, "apply", apply)
    optimisers = {"net": optimiser}
    losses = [
        step.loss for step in train_steps(system, rows, optimisers, Steps(2), batch=8, seed=4, accumulate=accumulate)
    ]
    from sfumato.training.seeds import Order, mix

    for step in range(2):
        x = rows.x[Order(4, 8).batch(step, 8)] + Stream(mix(4, "step", step)).normal((8, 3))
        torch.testing.assert_close(seen[step], x.mean(0, keepdim=True), rtol=1e-6, atol=1e-7)
    assert len(losses) == 2


def test_a_batch_without_a_row_for_every_part_is_refused() -> None:
    assert [len(share) for share in Processes(1, 2).shares(7, 2)] == [2, 1]
    with pytest.raises(Refusal, match="batch=3 has no row for each of 2 parts on 2 processes; give batch=4"):
        Processes(0, 2).shares(3, 2)


def test_blocks_are_not_compiled() -> None:
    from sfumato.training.engine import require_fitting

    model, _ = build("block-diffusion", "shakespeare", **(TEXT | {"compile": "on"}))
    with pytest.raises(Refusal, match="compile=on: block-diffusion calls its network by blocks"):
        require_fitting(model, ALONE, False, True)


def test_alone_nothing_is_asked() -> None:
    assert ALONE.main
    assert ALONE.share(5) == (0, 5)
    assert ALONE.agree(3.0, True) == (3.0, True)
    assert ALONE.in_turn(lambda: 4) == 4
    clock = Clock(stored=2.0)
    clock.agree()
    assert clock.seconds() >= 2.0
    frozen = Clock(stored=2.0, agreed=lambda own: 7.0)
    assert frozen.seconds() == 2.0, "nobody has agreed on another time yet"
    frozen.agree()
    assert frozen.seconds() == 7.0


def test_gradients_of_parts_are_sent_once() -> None:
    class Counts(nn.Module):
        entered = 0

        def no_sync(self) -> Any:
            self.entered += 1
            return accumulating(lambda: None, True)

    wrapped = Counts()
    for last in (False, False, True):
        with accumulating(wrapped, last):
            pass
    assert wrapped.entered == 2


def test_units_are_the_layers_of_lists() -> None:
    model, _ = build("flow", "digits", **IMAGES)
    found = units(Losses(model, model.net))
    names = {type(unit).__name__ for unit in found}
    assert names == {"ResidualBlock", "Attention"}
    inside = {id(p) for unit in found for p in unit.parameters()}
    assert sum(p.numel() for p in model.net.parameters() if id(p) in inside) > 0.5 * sum(
        p.numel() for p in model.net.parameters()
    )


# --------------------------------------------------------------------------------------------------- many processes


def trained(forks: Forks, out: Path, **job: Any) -> dict[str, Tensor]:
    """The weights, losses and norms of some steps."""
    done = forks(task="steps", recipe="flow", data="digits", out=str(out), **({"steps": STEPS} | job))
    assert set(done["codes"]) == {0}
    return unpack_tensors(out)


@pytest.fixture(scope="module")
def alone(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """One process, with either optimiser."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: trained(forks, folder / name, settings=TINY, optimiser=name) for name in ("sgd", "adamw")}


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("way", ["whole", "divided", "three, in parts"])
def test_processes_train_as_one(
    forks: Forks, alone: dict[str, dict[str, Tensor]], tmp_path: Path, way: str, optimiser: str
) -> None:
    job: dict[str, Any] = {"settings": TINY, "optimiser": optimiser, "processes": 2, "shard": way == "divided"}
    if way == "three, in parts":
        job |= {"processes": 3, "settings": TINY | {"accumulate": 2}}
    found, whole = trained(forks, tmp_path / "out", **job), alone[optimiser]
    assert found.keys() == whole.keys()
    torch.testing.assert_close(found["losses"], whole["losses"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["norms"], whole["norms"], rtol=1e-2, atol=0)
    assert float(whole["losses"][-5:].mean()) < 0.95 * float(whole["losses"][0]), "nothing was learned"
    if optimiser == "sgd":
        for name, value in whole.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


def test_what_processes_tell_each_other(forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "said"
    assert forks(task="talk", processes=2, out=str(out))["codes"] == [0, 0]
    first, second = (json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1))
    assert (first["share"], second["share"]) == ([0, 4], [4, 7])
    assert first["sum"] == second["sum"] == [2.0, 1.0]
    assert first["joined"] == second["joined"] == list(range(7))
    assert first["told"] == second["told"] == "of 0"
    assert first["agreed"] == second["agreed"] == [10.0, True]
    assert (first["turns"], second["turns"]) == (False, True), "the first process comes before the others"
    assert first["together"] == second["together"] == "process 1 does not like it"
    same = "process 1 finds a number 1, process 0 0; give all machines the same files"
    assert (first["same"], second["same"]) == (same, same)


def test_a_loss_that_is_not_finite_stops_all_processes(forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "told"
    assert forks(task="diverge", processes=2, out=str(out))["codes"] == [0, 0]
    first, second = (Path(f"{out}.{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert first.startswith("step 2: the loss is inf (worst sample at row ")
    from sfumato.training.seeds import Order

    worst = Order(0, 8).batch(1, 8).tolist().index(5)
    assert f"row {worst} of 8" in first


# ------------------------------------------------------------------------------------------------------ whole runs


def run(forks: Forks, out: Path, processes: int, codes: set[int], **settings: Any) -> None:
    job = {"task": "train", "recipe": "flow", "data": "digits", "out": str(out), "processes": processes}
    stop = {key: settings.pop(key) for key in ("stop", "stopper") if key in settings}
    assert set(forks(**job, **stop, settings=settings)["codes"]) == codes


@pytest.mark.parametrize("shard", [False, True])
def test_one_then_two_then_one_process(forks: Forks, tmp_path: Path, shard: bool) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    fresh = {"steps": 24} | TINY
    run(forks, whole, 1, {0}, **fresh)
    run(forks, out, 1, {130}, stop=7, **fresh)
    assert checkpoints.steps_of(out)[-1] == 7
    run(forks, out, 2, {130}, stop=15, stopper=1, resume=True, shard=shard)  # the other process is interrupted
    assert checkpoints.steps_of(out)[-1] == 16  # the first one hears of it at the next step
    state = unpack_tensors(checkpoints.folder_of(out, 16) / "optimiser.safetensors")
    known = unpack_tensors(checkpoints.folder_of(whole, 24) / "optimiser.safetensors")
    assert {name: value.shape for name, value in state.items()} == {name: v.shape for name, v in known.items()}
    run(forks, out, 1, {0}, resume=True)
    mine, theirs = (checkpoints.read(checkpoints.folder_of(r, 24)) for r in (out, whole))
    for name in ("model", "ema"):
        a, b = getattr(mine, name), getattr(theirs, name)
        assert a.keys() == b.keys()
        for key in a:  # AdamW moves what has next to no gradient by its sign
            torch.testing.assert_close(a[key], b[key], rtol=0, atol=2e-3, msg=key)
    for kind in ("step.", "exp_avg.", "exp_avg_sq."):
        names = [name for name in theirs.optimiser if name.startswith(kind)]
        a, b = (torch.cat([of.optimiser[name].flatten() for name in names]) for of in (mine, theirs))
        assert float((a - b).norm()) <= 0.05 * float(b.norm()), f"{kind} of the optimiser is another"
    logs = [[json.loads(line) for line in (r / "log.jsonl").read_text().splitlines()] for r in (out, whole)]
    losses = [[(line["step"], line["loss"]) for line in log if line["kind"] == "validation"] for log in logs]
    assert [step for step, _ in losses[0]] == [12, 24]
    assert losses[0] == [(step, pytest.approx(loss, abs=1e-4)) for step, loss in losses[1]]
    assert len(list((out / "grids").glob("*.png"))) == 2


@pytest.fixture(scope="module")
def small(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "run"
    run(forks, folder, 1, {0}, steps=4, **TINY)
    return folder


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_share_samples_out(forks: Forks, small: Path, tmp_path: Path, processes: int) -> None:
    arguments = ["sample", str(small), "--n", "7", "--out", str(tmp_path / "s"), "--batch", "2", "--device", "cpu"]
    done = forks(task="cli", processes=processes, arguments=arguments, log=str(tmp_path / "log"))
    assert set(done["codes"]) == {0}
    expected = sf.load(small, device="cpu").sample(7, label=[str(k) for k in range(10)])
    with np.load(tmp_path / "s" / "samples.npz") as stored:
        assert np.abs(stored["x"].astype(int) - expected.x.numpy().astype(int)).max() <= 1
        assert stored["label"].tolist() == list(range(7))
    record = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert (record["n"], record["nfe"]) == (7, expected.record["nfe"])
    assert record["network_rows_per_sample"] == expected.record["network_rows_per_sample"]
    said = [(tmp_path / f"log.{rank}").read_text() for rank in range(processes)]
    assert "7 samples" in said[0]
    assert said[1:] == [""] * (processes - 1), "the first process speaks alone"


def test_processes_evaluate_as_one(forks: Forks, small: Path, tmp_path: Path) -> None:
    found = []
    for processes in (1, 2):
        arguments = ["eval", str(small), "--n", "100", "--steps", "1", "--device", "cpu"]
        done = forks(task="cli", processes=processes, arguments=arguments, log=str(tmp_path / "log"))
        assert set(done["codes"]) == {0}
        lines = (small / "metrics.jsonl").read_text().splitlines()
        (small / "metrics.jsonl").unlink()
        found.append({record["name"]: record["value"] for record in map(json.loads, lines)})
        assert len(found[-1]) == len(lines), "one process writes"
    assert "frechet" in found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-2, abs=1e-3)


def test_a_refusal_stops_all_processes(forks: Forks, small: Path, tmp_path: Path) -> None:
    arguments = ["train", "flow", "--data", "digits", "--steps", "2", "--out", str(small), "--device", "cpu"]
    done = forks(task="cli", processes=2, arguments=arguments, log=str(tmp_path / "log"))
    assert done["codes"] == [2, 2]
    assert "holds a run already" in (tmp_path / "log.0").read_text()
    arguments = ["list", "recipes"]
    assert forks(task="cli", processes=2, arguments=arguments, log=str(tmp_path / "log"))["codes"] == [0, 0]
    assert "flow" in (tmp_path / "log.0").read_text()
    assert (tmp_path / "log.1").read_text() == ""


FULL = "No space left on device: somewhere"


@pytest.mark.parametrize(
    ("faulty", "fault", "message"),
    [
        (0, "sfumato.training.monitor:Log.__init__", FULL),
        (0, "sfumato.training.monitor:Log.flush", FULL),
        (0, "sfumato.training.monitor:Reporter.pictures", FULL),
        (0, "sfumato.training.engine:write_report", FULL),
        (1, "sfumato.data.rows:Dataset.batch", FULL),
        (1, "sfumato.training.optim:Optimiser.apply", "another process stopped; its own line says why"),
    ],
)
def test_what_stops_one_process_stops_all(forks: Forks, tmp_path: Path, faulty: int, fault: str, message: str) -> None:
    settings = [f"--set={key}={str(value).strip('[]')}" for key, value in TINY.items()]
    arguments = ["train", "flow", "--data", "digits", "--steps", "2", "--out", str(tmp_path / "run"), *settings]
    job = {"arguments": [*arguments, "--device", "cpu"], "log": str(tmp_path / "log"), "fault": fault}
    done = forks(task="cli", processes=2, faulty=faulty, **job)
    assert done["codes"] == [2, 2]
    said = [(tmp_path / f"log.{rank}").read_text().splitlines()[-1] for rank in (0, 1)]
    assert said[faulty].endswith(FULL)
    assert said[1 - faulty].endswith(message)
    assert "Traceback" not in "".join((tmp_path / f"log.{rank}").read_text() for rank in (0, 1))


OTHER = "another process stopped; its own line says why"


@pytest.mark.parametrize(
    ("verb", "fault", "message"),
    [
        ("sample", "sfumato.training.diffusion:load", FULL),
        ("sample", "sfumato.training.sampling:plan", OTHER),
        ("eval", "sfumato.data:reload", FULL),
        ("eval", "sfumato.metrics:limits", OTHER),
    ],
)
def test_what_stops_one_process_that_samples_stops_all(
    forks: Forks, small: Path, tmp_path: Path, verb: str, fault: str, message: str
) -> None:
    arguments = [verb, str(small), "--n", "100", "--steps", "1", "--out", str(tmp_path / "s"), "--device", "cpu"]
    job = {"arguments": arguments, "log": str(tmp_path / "log"), "fault": fault, "faulty": 1}
    assert forks(task="cli", processes=2, **job)["codes"] == [2, 2]
    said = [(tmp_path / f"log.{rank}").read_text() for rank in (0, 1)]
    assert said[1].splitlines()[-1].endswith(FULL)
    assert said[0].splitlines()[-1].endswith(message)
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "s").exists()


def test_a_process_that_is_gone_stops_the_others(forks: Forks, tmp_path: Path) -> None:
    job = {"arguments": ["train", "flow", "--data", "digits", "--steps", "2", "--device", "cpu"]}
    job["arguments"] += ["--out", str(tmp_path / "run"), "--set", "channels=8", "--set", "attention=false"]
    fault = {"fault": "sfumato.training.optim:Optimiser.apply", "faulty": 1, "gone": True}
    assert forks(task="cli", processes=2, log=str(tmp_path / "log"), **job, **fault)["codes"] == [2, -9]
    assert (tmp_path / "log.0").read_text().endswith("another process stopped; its own line says why\n")


def test_processes_that_are_asked_for_different_things_are_refused(forks: Forks, tmp_path: Path) -> None:
    arguments = ["train", "flow", "--data", "digits", "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    job = {"arguments": arguments, "others": ["--set", "lr=0.5"], "log": str(tmp_path / "log")}
    assert forks(task="cli", processes=2, **job)["codes"] == [2, 2]
    for rank in (0, 1):
        assert "process 1 has lr=0.5, process 0 0.001; start all" in (tmp_path / f"log.{rank}").read_text()
    assert not (tmp_path / "run").exists()


def test_the_device_is_the_one_asked_for_whatever_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.state import PartialState

    from sfumato.training import devices, parallel

    PartialState(cpu=True)
    monkeypatch.setattr(devices, "available", lambda: ["cuda", "cpu"])
    assert [parallel.join(name).device.type for name in ("cpu", "cuda", "auto")] == ["cpu", "cuda", "cuda"]


def test_processes_that_were_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.training import parallel

    monkeypatch.setenv("WORLD_SIZE", "3")
    parallel.require_joined(3)
    with pytest.raises(Refusal, match="3 processes were launched and 1 joined; start them with torchrun"):
        parallel.require_joined(1)


def test_the_first_process_is_alone_in_what_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato import __main__ as command
    from sfumato import cli, launch

    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(cli, "app", lambda arguments, **_: seen.append((arguments[0], launch.count())))
    for rank in ("1", "0"):
        for name, value in {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
            monkeypatch.setenv(name, value)
        assert [command.run([verb]) for verb in ("train", "demo")] == [0, 0]
    assert seen == [("train", 2), ("train", 2), ("demo", 1)]
    assert "LOCAL_RANK" not in os.environ


def test_one_process_divides_nothing(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="shard divides weights among processes, and there is one"):
        sf.train("flow", "digits", steps=1, out=tmp_path / "run", quiet=True, shard=True, device="cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("improved-ddpm", {"objective": "vlb"}, "draws steps by the losses of whole batches"),
        ("flow", {"optimiser": "muon"}, "optimiser=muon needs whole matrices"),
        ("flow", {"snapshots": 2}, "snapshots=2: their averages are kept whole"),
        ("edm2", {"snapshots": 0, "patch": 1}, "single number"),
        ("edm", {"snapshots": 0, "energy": "inner"}, "an energy is differentiated twice"),
    ],
)
def test_what_cannot_be_divided_is_refused(recipe: str, settings: dict[str, Any], message: str) -> None:
    from sfumato.training.engine import require_fitting

    model, _ = build(recipe, "digits", **(IMAGES | {"batch": 8} | settings))
    require_fitting(model, ALONE, True, True)
    with pytest.raises(Refusal, match=message):
        require_fitting(model, Processes(0, 2), True, True)
