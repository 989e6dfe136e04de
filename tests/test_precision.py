"""A device without float64 (Apple's MPS) is left before anything turns to float64: checked on a stand-in for one.

The stand-in is PyTorch's ``meta`` device with numbers: every operation runs on the CPU, and one that would turn to
float64 on the device, or mix places, fails as it would there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

import sfumato as sf
from sfumato import likelihood, trees
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.energies import log_density
from sfumato.laws import Dirac
from sfumato.nets.energy import Energy
from sfumato.processes.decoder import Discretised, Levels
from sfumato.schedules import Learned
from sfumato.trees import cast, precise, precise_device

DEVICE = "meta"


class There(torch.Tensor):
    """A tensor on the stand-in; ``numbers`` are its values."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> There:
        assert numbers.dtype != torch.float64, "float64 on a device that has none"
        made: There = torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), dtype=numbers.dtype, device=torch.device(DEVICE)
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation, on the CPU; its results are on the stand-in where its tensors are, or where it says so."""
    leaves = tree_flatten((args, kwargs))[0]
    there = any(isinstance(leaf, There) for leaf in leaves)
    args, kwargs = tree_map_only(There, lambda t: t.numbers, (args, kwargs))
    if kwargs.get("device") is not None:
        wanted = torch.device(kwargs["device"]).type == DEVICE
        one_move = there and not wanted and kwargs.get("dtype") == torch.float64
        assert not one_move, "such a device casts before it copies: leave it, then turn to float64"
        found = func(*args, **kwargs | {"device": torch.device("cpu")})
        if not wanted:
            return found
        if not there and found.dtype == torch.float64:
            return func(*args, **kwargs)  # PyTorch's own bookkeeping: without numbers, it cannot be mistaken for ours
        return There(found)
    if there:
        here = [v for v in leaves if isinstance(v, Tensor) and not isinstance(v, There)]
        assert not any(v.ndim and v.is_floating_point() for v in here), f"{func} mixes places"
    found = func(*args, **kwargs)
    return tree_map_only(torch.Tensor, There, found) if there else found


class StandIn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Catches what is made on the stand-in from nothing, or moved there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Takes numbers from python to the stand-in by way of the CPU: what makes them there escapes every other mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        if func in (torch.as_tensor, torch.tensor) and device is not None and torch.device(device).type == DEVICE:
            del kwargs["device"]
            return func(*args, **kwargs).to(DEVICE)
        return func(*args, **kwargs)


@pytest.fixture
def narrow_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trees, "WITHOUT_FLOAT64", frozenset({DEVICE}))
    with StandIn(), Literals():  # type: ignore[no-untyped-call]
        yield


def values(x: Tensor) -> Tensor:
    return x.numbers if isinstance(x, There) else x


class Shrink:
    """A smooth belief about data, in the arithmetic of the state."""

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Any:
        return Dirac(torch.tanh(0.7 * x_t))


FLOW = sf.processes.Gaussian(sf.schedules.get("flow"))
LEVELS = Levels(-1.0, 1.0, 9)
PIXELS = torch.tensor([[-1.0, -0.25, 0.5], [0.0, 1.0, 0.75]])


def on_both(work: Any) -> None:
    """``work(x)`` on the stand-in gives what it gives on the CPU."""
    expected, found = work(PIXELS), work(There(PIXELS))
    for a, b in zip(expected, found, strict=True):
        assert b.dtype == a.dtype
        assert not isinstance(a, There)
        torch.testing.assert_close(values(b), a, rtol=1e-5, atol=1e-5)


def test_the_stand_in_refuses_float64(narrow_device: None) -> None:
    x = There(PIXELS)
    for wrong in (x.double, lambda: x + PIXELS, lambda: x.to("cpu", torch.float64)):
        with pytest.raises(AssertionError):
            wrong()
    assert precise_device(x).type == "cpu"
    assert precise_device(PIXELS).type == "cpu"
    assert precise(x).dtype == torch.float64
    back = cast(precise(x), x)
    assert isinstance(back, There)
    assert torch.equal(back.numbers, PIXELS)


def test_bounds(narrow_device: None) -> None:
    def bounds(x: Tensor) -> tuple[Tensor, ...]:
        grid = sf.grids.uniform(FLOW.schedule, 6)
        a = likelihood.grid_bound(Shrink(), FLOW, x, grid, LEVELS, sf.Streams(range(2)), draws=3)
        b = likelihood.continuous_bound(Shrink(), FLOW, x, LEVELS, sf.Streams(range(2)), draws=3)
        paid = likelihood.latent_log_prob(FLOW, x, a.latent, a.time)
        return (a.prior, a.diffusion, a.reconstruction, b.prior, b.diffusion, b.reconstruction, paid)

    on_both(bounds)


def test_the_decoder(narrow_device: None) -> None:
    for var in (0.02, torch.full((2, 1), 0.02)):

        def nll(x: Tensor, var: Any = var) -> tuple[Tensor]:
            there = var.to(x.device) if torch.is_tensor(var) else var
            return (Discretised(0.9 * x, there, LEVELS).nll(x),)

        on_both(nll)


def test_the_flow_of_a_model(narrow_device: None) -> None:
    def flow(x: Tensor) -> tuple[Tensor, ...]:
        found = likelihood.log_prob(Shrink(), FLOW, x, tolerance=1e-3, noise=1e-2)
        end = sf.sample(Shrink(), FLOW, sf.samplers.get("rk45", rtol=1e-4, atol=1e-4), [1.0, 0.0], x)
        return found.logp, found.latent, end

    on_both(flow)


def test_a_log_density(narrow_device: None) -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return 0.3 * x

    denoiser = Preconditioned(Energy(Half()), GaussianHead(FLOW, "v"))
    on_both(lambda x: (log_density(denoiser, x, 0.4), log_density(denoiser, x, torch.tensor([0.3, 0.6]))))


def test_variational_training(narrow_device: None) -> None:
    from sfumato.training.grey import GreyLevels
    from sfumato.training.variational import VariationalNet, bound

    class Little(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
            return 0.5 * x[:, :1] * t[:, None, None, None]

    def train(x: Tensor) -> tuple[Tensor | None, ...]:
        schedule = Learned(-5.0, 5.0, hidden=4)
        net = VariationalNet(Little(), schedule, GreyLevels())
        u = torch.tensor([0.25, 0.75], dtype=torch.float64)
        terms = bound(net, x[:, None, None], u, LEVELS, sf.Streams(range(2)))
        terms.total.sum().backward()  # type: ignore[no-untyped-call]
        return terms.prior, terms.diffusion, terms.reconstruction, schedule.low.grad, schedule.slope.grad

    on_both(train)


def test_step_bounds_with_a_learned_variance(narrow_device: None) -> None:
    from sfumato.training.hybrid import vlb_term

    process = sf.processes.Gaussian(sf.schedules.get("cosine"))
    denoiser = Preconditioned(None, GaussianHead(process, "eps"))
    t = torch.tensor([1e-3, 0.5], dtype=torch.float64)

    def term(x: Tensor) -> tuple[Tensor]:
        return (vlb_term(denoiser, (0.5 * x, 0.1 * x), x, 1.1 * x, t, 1000, LEVELS),)

    on_both(term)


# ---- tokens


@dataclass(frozen=True)
class Line:
    """The schedule flow without its shift, whose derivatives take PyTorch itself to the meta device."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t


def token_processes() -> dict[str, Any]:
    from sfumato.processes import Jump, absorbing, discretised_gaussian, uniform

    absorbed, redrawn, moved = absorbing(5), uniform(5), discretised_gaussian(5, 0.3)
    kernels: dict[str, Any] = {"absorbing": absorbed, "uniform": redrawn, "ordinal": moved}
    return {name: Jump(kernel, Line()) for name, kernel in kernels.items()}


TEXT = torch.tensor([[0, 1, 2, 3], [3, 2, 2, 1], [0, 0, 3, 2]])


class Opinions:
    """Logits of every token by the token shown, where the tokens are."""

    def __init__(self) -> None:
        self.table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))

    def __call__(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.table.to(x.device)[x] * (1 + t[:, None, None])

    def blocks(self, noisy: Tensor, clean: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return self.table.to(noisy.device)[noisy] * (1 + t[:, :, None])


def on_both_texts(work: Any) -> None:
    """``work(tokens)`` on the stand-in gives what it gives on the CPU."""
    for a, b in zip(work(TEXT), work(There(TEXT)), strict=True):
        torch.testing.assert_close(values(b).to(a.dtype), a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["absorbing", "uniform", "ordinal"])
def test_training_on_tokens(kernel: str, narrow_device: None) -> None:
    from sfumato.denoisers.tokens import Posterior, Score, Subs, TokenDenoiser
    from sfumato.training.text import ChainBound, Nelbo
    from sfumato.training.token_objectives import D3PM, MDLM, DiscreteFlow, ScoreEntropy

    process = token_processes()[kernel]
    head = Subs(process) if kernel == "absorbing" else Posterior(process)
    denoiser, t = TokenDenoiser(Opinions(), head), torch.tensor([0.2, 0.55, 0.9], dtype=torch.float64)

    def train(x: Tensor) -> tuple[Tensor, ...]:
        objectives: list[Any] = [D3PM(7, 0.1), ScoreEntropy(), DiscreteFlow(), DiscreteFlow("kl")]
        found = [each(denoiser, x, t, None, sf.Stream(0)) for each in objectives]
        if kernel == "absorbing":
            found += [MDLM()(denoiser, x, t, None, sf.Stream(0)), MDLM(7)(denoiser, x, t, None, sf.Stream(0))]
            found.append(ScoreEntropy()(TokenDenoiser(Opinions(), Score(process)), x, t, None, sf.Stream(0)))
        found += [Nelbo(2)(denoiser, x, sf.Stream(1)), ChainBound(7, 2)(denoiser, x, sf.Stream(1))]
        return tuple(found)

    on_both_texts(train)


def test_training_on_tokens_in_blocks(narrow_device: None) -> None:
    from types import SimpleNamespace

    from sfumato.denoisers.tokens import Subs, TokenDenoiser
    from sfumato.processes.blocks import Blocks
    from sfumato.training.text import BlockBound, BlockNelbo, Exact

    process = Blocks(token_processes()["absorbing"], 2)

    def train(x: Tensor) -> tuple[Tensor, ...]:
        denoiser = TokenDenoiser(SimpleNamespace(net=Opinions()), Subs(process))
        t = torch.tensor([0.2, 0.55, 0.9], dtype=torch.float64)
        left = TokenDenoiser(lambda x, t, cond=None: Opinions()(x, torch.zeros(len(x)).to(x.device)), Subs(process))
        return (
            BlockBound()(denoiser, x, t, None, sf.Stream(0)),
            BlockNelbo(2)(denoiser, x, sf.Stream(0)),
            Exact()(left, x),
            process.rate(left(x, 0.6), x, process.noised(x, 0.6, sf.Stream(2)), 0.6),
        )

    on_both_texts(train)


@pytest.mark.parametrize(
    ("kernel", "sampler"),
    [
        ("absorbing", "ddpm"), ("absorbing", "first-hitting"), ("absorbing", "confidence"),
        ("absorbing", "discrete-euler:noise=3"), ("uniform", "ddpm"), ("uniform", "discrete-euler:noise=3"),
        ("ordinal", "ddpm"), ("ordinal", "tau-leaping:corrections=1"),
    ],
)  # fmt: skip
def test_sampling_tokens(kernel: str, sampler: str, narrow_device: None) -> None:
    from sfumato.denoisers.tokens import Posterior, Subs, TokenDenoiser

    process = token_processes()[kernel]
    denoiser = TokenDenoiser(Opinions(), Subs(process) if kernel == "absorbing" else Posterior(process))

    def walk(x: Tensor) -> tuple[Tensor]:
        start = process.prior(x).draw(sf.Streams(range(3)))
        grid = sf.grids.uniform(process.schedule, 5)
        return (sf.sample(denoiser, process, sf.samplers.build(sampler), grid, start, rng=sf.Streams(range(3))),)

    on_both_texts(walk)
