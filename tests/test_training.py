"""Training and sampling as a whole: EMA, optimiser, order of the data, divergence, seeds, threads, stored models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato import recipes
from sfumato.core import RNG
from sfumato.data.rows import Dataset
from sfumato.errors import Refusal
from sfumato.training.ema import EMA, exponent
from sfumato.training.horizon import Clock, Seconds, Steps
from sfumato.training.loop import Diverged, train_steps
from sfumato.training.optim import Optimiser, is_hidden_kernel, rate_share
from sfumato.training.seeds import Order, mix
from sfumato.training.settings import Optimisation, flatten, resolve
from sfumato.training.times import LogitNormal, LogNormalSigma, Uniform
from sfumato.training.times import Steps as StepTimes

#: A network that trains at thousands of images a second.
TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 2, "batch": 32, "warmup": 2, "precision": "float32",
    "reports": 2, "validation_images": 16, "grid_columns": 1, "grid_steps": 2, "sampling_steps": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> sf.data.Data:
    return sf.data.load("digits")


@pytest.fixture(scope="module")
def model(digits: sf.data.Data) -> sf.Diffusion:
    return sf.train("flow", digits, steps=30, quiet=True, **TINY)


# -------------------------------------------------------------------------------------------------------------- EMA


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_ema_is_the_power_function_average(sigma_rel: float) -> None:
    net = nn.Linear(1, 1, bias=False)
    ema, g, values = EMA(net, sigma_rel), exponent(sigma_rel), []
    for step in range(1, 41):
        with torch.no_grad():
            net.weight.fill_(math.sin(step))
        before = net.weight.clone()
        values.append(math.sin(step))
        ema.update(step)
        assert torch.equal(net.weight, before)
        weights = [((i + 1) ** (g + 1) - i ** (g + 1)) / step ** (g + 1) for i in range(step)]
        assert ema.net.weight.item() == pytest.approx(
            sum(w * v for w, v in zip(weights, values, strict=True)), abs=1e-6
        )


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.2])
def test_ema_width_is_relative_to_the_length(sigma_rel: float) -> None:
    g, n = exponent(sigma_rel), 20_000
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    density = (g + 1) * t**g / n
    mean = (density * t).sum()
    assert float((density * (t - mean) ** 2).sum().sqrt()) == pytest.approx(sigma_rel, rel=1e-3)


# ---------------------------------------------------------------------------------------------- times, order, rates


def test_time_laws_are_quantile_functions() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    steps = StepTimes(10)(u)
    assert torch.equal(steps.unique(), torch.arange(1, 11, dtype=torch.float64) / 10)
    assert Uniform()(u).mean().item() == pytest.approx(0.5)
    logit = torch.logit(LogitNormal(0.3, 0.8)(u))
    assert (logit.mean().item(), logit.std().item()) == pytest.approx((0.3, 0.8), abs=1e-3)
    schedule = sf.schedules.get("karras")
    log_sigma = schedule(LogNormalSigma(schedule)(u))[1].log()
    assert (log_sigma.mean().item(), log_sigma.std().item()) == pytest.approx((-1.2, 1.2), abs=1e-3)
    for law in (StepTimes(10), Uniform(), LogitNormal(), LogNormalSigma(schedule)):
        ends = law(torch.tensor([0.0, 1.0]))
        assert 0 < float(ends[0]) <= float(ends[1]) <= 1


def test_order_visits_every_datum_once_an_epoch() -> None:
    order = Order(3, 10)
    seen = torch.cat([order.batch(step, 4) for step in range(5)])
    assert sorted(seen[:10].tolist()) == list(range(10)) == sorted(seen[10:].tolist())
    assert not torch.equal(seen[:10], seen[10:])
    assert torch.equal(Order(3, 10).batch(2, 4), seen[8:12]), "the order depends on where reading begins"
    assert len(Order(0, 3).batch(0, 8)) == 8, "a batch larger than the data goes round"


def test_mix_is_fixed() -> None:
    assert mix(0, "step", 1) == mix(0, "step", 1) != mix(0, "step", 2)
    assert mix(1, 2) != mix(12)
    assert 0 <= mix(0) < 2**63


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = Optimisation(lr=1.0, warmup=10, hold=0.5, decay="cosine")
    assert rate_share(settings, 0, 0.0) == pytest.approx(0.1)
    assert rate_share(settings, 9, 0.01) == pytest.approx(1.0)
    assert rate_share(settings, 500, 0.5) == pytest.approx(1.0)
    assert rate_share(settings, 750, 0.75) == pytest.approx(0.5)
    assert rate_share(settings, 999, 1.0) == pytest.approx(0.0)
    assert rate_share(Optimisation(lr=1.0, warmup=0, decay="linear"), 0, 0.25) == pytest.approx(0.75)


def test_muon_moves_every_direction_of_a_hidden_kernel_alike() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.Conv2d(16, 32, 3), torch.nn.Conv2d(32, 1, 3))
    assert [is_hidden_kernel(p) for p in net.parameters()] == [False, False, True, False, False, False]
    optimiser = Optimiser(net, Optimisation(optimiser="muon", muon_lr=0.5, lr=1e-12, warmup=0, clip_norm=1e9))
    before = [p.detach().clone() for p in net.parameters()]
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimiser.apply(0, 0.0)
    moves = [(p.detach() - q).flatten(1) for p, q in zip(net.parameters(), before, strict=True) if p.ndim == 4]
    assert moves[0].abs().max() < 1e-9
    assert moves[2].abs().max() < 1e-9
    stretch = torch.linalg.svdvals(moves[1]) / 0.5
    assert 0.6 < float(stretch.min()) <= float(stretch.max()) < 1.3  # Newton-Schulz brings all near 1


def test_the_state_of_muon_survives_storing() -> None:
    torch.manual_seed(0)
    settings = Optimisation(optimiser="muon", warmup=0)
    nets = [torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3), torch.nn.Conv2d(16, 16, 3)) for _ in range(2)]
    x = torch.randn(4, 16, 9, 9)

    def step(net: torch.nn.Module, optimiser: Optimiser, k: int) -> None:
        net(x).square().mean().backward()
        optimiser.apply(k, 0.1)

    first = Optimiser(nets[0], settings)
    step(nets[0], first, 0)
    nets[1].load_state_dict(nets[0].state_dict())
    second = Optimiser(nets[1], settings)
    second.load(first.tensors())
    step(nets[0], first, 1)
    step(nets[1], second, 1)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(Refusal, match=r"momentum_buffer\.0\.weight"):
        second.load({k: v for k, v in first.tensors().items() if "momentum" not in k})


def test_horizons_run_from_zero_to_one() -> None:
    clock = Clock(stored=50.0, reserve=20.0)
    assert Steps(4).progress(1, clock) == 0.25
    assert Seconds(120.0).progress(0, clock) == pytest.approx(0.5, abs=1e-3)
    for bad in (0, -1, True):
        with pytest.raises(Refusal, match="at least 1 step"):
            Steps(bad)
    with pytest.raises(Refusal, match="positive time"):
        Seconds(0.0)


# ------------------------------------------------------------------------------------------------------- divergence


class _Exploding:
    """A system whose loss stops being finite at one step, for one sample."""

    def __init__(self, net: nn.Module, at: int, gradient_only: bool) -> None:
        self.net, self.at, self.gradient_only, self.calls = net, at, gradient_only, 0

    def losses(self, batch: dict[str, Tensor], rng: RNG) -> dict[str, Tensor]:
        noise = rng.normal((len(batch["x"]), 1))
        loss = ((self.net(noise) - 1) ** 2)[:, 0]
        bad = self.calls == self.at
        self.calls += 1
        if bad and self.gradient_only:
            loss = loss + (loss[2] - loss[2].detach()).sqrt()  # value 0, gradient infinite
        elif bad:
            loss = torch.where(torch.arange(len(loss)) == 2, math.inf, loss)
        return {"net": loss}

    def describe_level(self, n: int, worst: int, rng: RNG) -> str:
        return f"sample {worst} of {n}"


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_value_that_is_not_finite_stops_before_the_weights_change(gradient_only: bool) -> None:
    net = nn.Linear(1, 1)
    data = Dataset(torch.zeros(8, 1, dtype=torch.uint8), None, torch.device("cpu"))
    system = _Exploding(net, at=3, gradient_only=gradient_only)
    steps = train_steps(system, data, {"net": Optimiser(net, Optimisation())}, Steps(9), batch=4, seed=0)
    for _ in range(3):
        assert math.isfinite(next(steps).loss)
    before = net.weight.clone()
    with pytest.raises(
        Diverged, match="gradient norm" if gradient_only else r"step 4: the loss is inf .*sample 2 of 4"
    ):
        next(steps)
    assert torch.equal(net.weight, before)


def test_the_level_named_is_the_level_trained(model: sf.Diffusion) -> None:
    t = float(model.draw_times(8, sf.Stream(5))[3])
    assert model.describe_level(8, 3, sf.Stream(5)).startswith(f"t={t:.4f}, log-SNR")


def test_training_leaves_the_global_generator_alone(digits: sf.data.Data) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    sf.train("ddpm", digits, steps=2, quiet=True, **TINY | {"dropout": 0.5})
    assert torch.equal(torch.rand(3), expected)


# --------------------------------------------------------------------------------------------------------- learning


#: The loss that a recipe starts below: mean squares of a target of unit size, but for a bound in bits per dimension.
UNTRAINED = {"vdm": 20.0}


@pytest.mark.parametrize("name", recipes.names("images"))
def test_every_recipe_learns(name: str, digits: sf.data.Data, tmp_path: Path) -> None:
    run, own = tmp_path / "run", {}
    if name == "reflow":  # learns from a run, and continues from its weights
        sf.train("flow", digits, steps=20, out=tmp_path / "teacher", quiet=True, **TINY)
        own = {"teacher": str(tmp_path / "teacher"), "pairs": 64}
    trained = sf.train(name, digits, steps=60, out=run, quiet=True, **TINY, **own)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert len(held_out) == 2
    assert held_out[1] < held_out[0] < UNTRAINED.get(name, 2.1)
    levels = [line["levels"] for line in lines if line["kind"] == "validation"][-1]
    assert len(levels) == 8
    known = [p["log_snr"] for p in levels if p["log_snr"] is not None]  # restorers have none
    assert known == sorted(known, reverse=True)
    assert len(known) in (0, 8)
    again = sf.load(run)
    mine, theirs = trained.sample(4, label="3", seed=5), again.sample(4, label="3", seed=5)
    assert torch.equal(mine.x, theirs.x)
    assert theirs.record["weights"] == "ema"
    assert not torch.equal(sf.load(run, weights="raw").sample(4, label="3", seed=5).x, theirs.x)
    assert (run / "loss.png").stat().st_size > 1000
    assert len(list((run / "grids").glob("*.png"))) == 2


def test_validation_of_fixed_weights_is_constant(model: sf.Diffusion, digits: sf.data.Data) -> None:
    from sfumato.training.validation import Validation

    first = Validation(model, digits.test, 64, seed=0, batch=32)
    assert first(model) == first(model) == Validation(model, digits.test, 64, seed=0, batch=32)(model)


def test_low_discrepancy_times_are_spread(model: sf.Diffusion) -> None:
    t = model.draw_times(100, sf.Stream(0)).sort().values  # uniform law: gaps are equal
    assert float(t.diff().max() - t.diff().min()) < 1e-6


def test_label_dropout_is_the_stated_share(model: sf.Diffusion) -> None:
    label = torch.zeros(20_000, dtype=torch.int64)
    dropped = model.drop_labels(label, sf.Stream(0))
    assert dropped is not None
    assert float((dropped["label"] == 10).double().mean()) == pytest.approx(0.1, abs=0.01)


# --------------------------------------------------------------------------------------------------------- sampling


def test_samples_are_in_the_users_units(model: sf.Diffusion) -> None:
    samples = model.sample(12, label=["3", "7"], guidance=2.0, seed=4)
    assert samples.x.dtype == torch.uint8
    assert samples.x.shape == (12, 8, 8)
    assert samples.label == ("3", "7") * 6
    assert samples.record["seeds"] == list(range(4, 16))
    assert np.asarray(samples).shape == (12, 8, 8)
    assert model.sample(2, label=7).label == ("7", "7")


def test_record_counts_evaluations(model: sf.Diffusion) -> None:
    plain = model.sample(5, label="1", guidance=1.0, sampler="euler", steps=6, batch=2).record
    assert (plain["nfe"], plain["network_rows_per_sample"]) == (6, 6.0)
    guided = model.sample(5, label="1", guidance=3.0, sampler="euler", steps=6, batch=2).record
    assert (guided["nfe"], guided["network_rows_per_sample"]) == (6, 12.0)
    between = model.sample(5, label="1", guidance=3.0, interval=(0.0, 0.5), sampler="euler", steps=6).record
    assert (between["nfe"], between["network_rows_per_sample"]) == (6, 9.0)


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp-2m"])
def test_a_sample_depends_on_its_own_seed(model: sf.Diffusion, sampler: str) -> None:
    whole = model.sample(7, label="2", guidance=2.0, sampler=sampler, seed=10).x.int()
    for batch in (1, 3):
        assert (
            int((model.sample(7, label="2", guidance=2.0, sampler=sampler, seed=10, batch=batch).x - whole).abs().max())
            <= 1
        )
    alone = model.sample(1, label="2", guidance=2.0, sampler=sampler, seed=14).x.int()
    assert int((alone[0] - whole[4]).abs().max()) <= 1


def test_noise_is_bitwise_independent_of_the_batch() -> None:
    many = sf.Streams(range(5, 9))
    first, second = many.normal((4, 1, 8, 8)), many.normal((4, 1, 8, 8))
    for k in range(4):
        one = sf.Streams([5 + k])
        assert torch.equal(one.normal((1, 1, 8, 8))[0], first[k])
        assert torch.equal(one.normal((1, 1, 8, 8))[0], second[k])


def test_eight_threads_sample_what_one_does(model: sf.Diffusion) -> None:
    jobs = [{"label": str(k), "sampler": s, "seed": k} for k in range(8) for s in ("ddpm", "heun")]
    serial = [model.sample(3, guidance=2.0, **job).x for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda job: model.sample(3, guidance=2.0, **job).x, jobs))
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


def test_guidance_moves_samples_and_one_is_plain(model: sf.Diffusion) -> None:
    plain = model.sample(4, label="0", guidance=1.0).x
    assert not torch.equal(model.sample(4, label="0", guidance=4.0).x, plain)
    assert torch.equal(model.sample(4, label="0", guidance=0.0).x, model.sample(4).x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"steps": 0}, "steps=0"),
        ({"label": "11"}, "unknown label '11'"),
        ({"label": []}, "at least one class name"),
        ({"sampler": "dimm"}, "did you mean ddim"),
        ({"grid": "karas"}, "did you mean karras"),
        ({"guidance": 2.0}, "needs a label"),
        ({"label": "1", "guidance": -1.0}, "guidance=-1"),
        ({"label": "1", "guidance": 2.0, "interval": (0.8, 0.2)}, "guidance interval"),
        ({"seed": -1}, "seed=-1"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_sampling_refuses(model: sf.Diffusion, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message) as error:
        model.sample(**({"n": 2} | arguments))
    assert "\n" not in str(error.value)


def test_states_that_are_not_finite_are_never_images(model: sf.Diffusion) -> None:
    class Bad(nn.Module):
        compute_dtype = torch.float32

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return x * torch.where(t < 0.6, math.nan, self.scale)[:, None, None, None]

    with pytest.raises(Refusal, match=r"seed 3 is not finite after step 3 \(t=0\.2500, log-SNR"):
        model.with_net(Bad(), "raw").sample(2, seed=3, sampler="euler", steps=4)


# ----------------------------------------------------------------------------------- models without classes, guidance


def test_a_model_without_dropout_refuses_guidance(digits: sf.data.Data) -> None:
    plain = sf.train("flow", digits, steps=2, quiet=True, label_dropout=0.0, **TINY)
    assert len(plain.sample(2, label="1", guidance=1.0)) == 2
    with pytest.raises(Refusal, match="label dropout"):
        plain.sample(2, label="1", guidance=2.0)
    with pytest.raises(Refusal, match="needs a label"):
        plain.sample(2)


def test_an_unconditional_model(digits: sf.data.Data) -> None:
    free = sf.train("flow", digits, steps=2, quiet=True, conditional=False, **TINY)
    assert free.classes == ()
    samples = free.sample(9)
    assert samples.label is None
    assert samples.columns() == 3
    with pytest.raises(Refusal, match="without classes"):
        free.sample(2, label="1")
    with pytest.raises(Refusal, match="without classes"):
        free.sample(2, guidance=2.0)


# --------------------------------------------------------------------------------------------------------- settings


def test_settings_resolve_and_flatten() -> None:
    defaults = recipes.get("edm").defaults
    settings = resolve(
        defaults, {"lr": "3e-4", "channels": "16, 32", "attention": "no,yes", "clip": "true", "batch": 8}
    )
    assert (settings.optimisation.lr, settings.network.channels, settings.network.attention) == (
        3e-4,
        (16, 32),
        (False, True),
    )
    assert resolve(defaults, flatten(settings)) == settings
    assert resolve(defaults, json.loads(json.dumps(flatten(settings)))) == settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lrr": 1}, "unknown setting 'lrr'; did you mean lr"),
        ({"lr": "fast"}, "lr=fast: needs a number"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": "nan"}, "lr=nan"),
        ({"batch": 1.5}, "batch=1.5: needs a whole number"),
        ({"clip": "maybe"}, "clip=maybe: needs true or false"),
        ({"channels": "a,b"}, "channels=a,b"),
        ({"channels": "8,8"}, "attention"),
        ({"sampler": "huen"}, "did you mean heun"),
        ({"decay": "cos"}, "did you mean cosine"),
        ({"ema": 0.5}, "ema=0.5"),
    ],
)
def test_settings_refuse(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        resolve(recipes.get("edm").defaults, overrides)


@pytest.mark.parametrize("name", recipes.names())
def test_setting_names_are_unique_and_free_of_arguments(name: str) -> None:
    import inspect

    def leaves(settings: Any) -> Iterator[str]:
        for field, value in vars(settings).items():
            yield from leaves(value) if hasattr(value, "__dataclass_fields__") else [field]

    names = list(leaves(recipes.get(name).defaults))
    assert len(names) == len(set(names))
    assert not set(names) & set(inspect.signature(sf.train).parameters)


def test_a_saved_model_is_whole_and_is_not_written_over(model: sf.Diffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    assert torch.equal(sf.load(tmp_path / "m").sample(3, label="4").x, model.sample(3, label="4").x)
    with pytest.raises(Refusal, match="holds a run already"):
        model.save(tmp_path / "m")
    samples = model.sample(20, label=list(model.classes))
    samples.save(tmp_path / "s")
    with np.load(tmp_path / "s" / "samples.npz") as stored:
        assert stored["x"].dtype == np.uint8
        assert stored["label"].tolist() == list(range(10)) * 2
    record = json.loads((tmp_path / "s" / "samples.json").read_text())
    assert record["seeds"] == list(range(20))
    with pytest.raises(Refusal, match="exists already"):
        samples.save(tmp_path / "s")
