"""The laws of denoisers: the protocol, the conversion table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sfumato import grids, schedules
from sfumato.core import Cond, Denoiser, Law
from sfumato.denoisers import PREDICTIONS, GaussianHead, Preconditioned
from sfumato.errors import Refusal
from sfumato.laws import Dirac
from sfumato.processes.gaussian import Gaussian
from sfumato.randomness import Stream, Streams
from sfumato.samplers import get, sample
from sfumato.testing.models import OracleNet
from sfumato.testing.statistics import columns, fail, leaves, require
from sfumato.trees import rows


def check_denoiser(
    denoiser: Denoiser[Any],
    process: Any,
    like: Any,
    *,
    cond: Cond | None = None,
    seed: int = 0,
    tolerance: float = 1e-5,
) -> None:
    """A denoiser keeps its protocol at states like ``like`` (a batch of at least 2; clean data is best).

    It states a law whose point is shaped and typed like the state and finite at every time but 0; a float time is the
    same as a ``[b]`` tensor; every sample's belief depends on that sample alone; the state is left untouched; the
    belief just above ``t = 0`` is the state itself.  Raises ``AssertionError`` naming the time and the numbers.
    """
    name = f"denoiser {type(denoiser).__name__}"
    kind = getattr(denoiser, "kind", "belief")
    require(kind == "belief", name, f"kind is {kind!r}; a denoiser is a 'belief'")
    count = len(columns(like))
    require(count >= 2, name, f"give at least 2 samples, not {count}")
    rng = Stream(seed)
    with torch.no_grad():
        for t in (1.0, 0.7, 0.25, 0.03125):
            x_t = process.marginal(like, t).draw(rng)
            before = columns(x_t).clone()
            law = denoiser(x_t, t, cond)
            require(isinstance(law, Law), name, f"states a {type(law).__name__}, must be a law")
            point = law.point()
            for (key, state), value in zip(leaves(x_t).items(), leaves(point).values(), strict=True):
                require(
                    value.shape == state.shape, name, f"part {key}: point {tuple(value.shape)} of {tuple(state.shape)}"
                )
                require(bool(torch.isfinite(value).all()), name, f"part {key}: the belief at t={t} is not finite")
            dtypes = [v.dtype for v in _tensors(point)], [v.dtype for v in _tensors(x_t)]
            require(dtypes[0] == dtypes[1], name, f"point of {dtypes[0]} for states of {dtypes[1]}")
            require(bool((columns(x_t) == before).all()), name, "changes the state it is given")
            by_tensor = denoiser(x_t, torch.full((count,), t, dtype=torch.float64), cond).point()
            _close(by_tensor, point, tolerance, name, f"a float time and a [b] tensor of it differ at t={t}")
            alone = denoiser(rows(x_t, slice(1, 2)), t, _row(cond, slice(1, 2))).point()
            _close(alone, rows(point, slice(1, 2)), tolerance, name, f"sample 1 alone and in a batch differ at t={t}")
        mixed = torch.linspace(0.2, 0.8, count, dtype=torch.float64)
        x_t = process.marginal(like, mixed).draw(rng)
        together = denoiser(x_t, mixed, cond).point()
        apart = denoiser(rows(x_t, slice(1, 2)), float(mixed[1]), _row(cond, slice(1, 2))).point()
        _close(rows(together, slice(1, 2)), apart, tolerance, name, "times that differ within a batch are mixed up")


def check_belief_at_data(denoiser: Denoiser[Any], process: Any, data: Any, tolerance: float = 1e-3) -> None:
    """Near ``t = 0`` a denoiser of a Gaussian process believes what it sees: ``x0hat -> x_t``."""
    x_t = process.marginal(data, 1e-4).draw(Stream(1))
    with torch.no_grad():
        gap = float((columns(denoiser(x_t, 1e-4).point()) - columns(x_t)).abs().max())
    require(
        gap < tolerance, f"denoiser {type(denoiser).__name__}", f"the belief at t=1e-4 is off the state by {gap:.2e}"
    )


def _tensors(state: Any) -> list[Tensor]:
    return [v for part in state.values() for v in _tensors(part)] if isinstance(state, dict) else [state]


def _row(cond: Cond | None, index: slice) -> Cond | None:
    return None if cond is None else {key: value[index] for key, value in cond.items()}


def _close(a: Any, b: Any, tolerance: float, name: str, message: str) -> None:
    x, y = columns(a), columns(b)
    gap = float((x - y).abs().max())
    require(gap <= tolerance * (1 + float(y.abs().max())), name, f"{message}: by {gap:.2e}")


def check_predictions(
    process: Gaussian,
    oracle: Any,
    *,
    predictions: Sequence[str] = tuple(PREDICTIONS),
    sampler: str = "dpmpp-2m",
    steps: int = 32,
    sigma_data: float = 1.5,
    tolerance: float = 1e-6,
) -> list[str]:
    """Law 6: one exact denoiser stated as eps, x0, v, score, flow velocity and EDM's F gives the same sample.

    Runs on the uniform grid from the prior; returns the predictions that were refused, which is right only where ``x0``
    cannot be recovered at ``t = 1``.  Also checks the loss identity ``|F - F*|^2 = weight |x0hat - x0|^2`` and that the
    network's input has unit variance for data of variance ``sigma_data^2``.
    """
    exact = oracle.denoiser(process)
    grid = grids.uniform(process.schedule, steps)
    like = torch.zeros(64, *oracle.shape, dtype=torch.float64)
    x1 = process.prior(like).draw(Streams(range(64)))
    truth = sample(exact, process, get(sampler), grid, x1)
    refused: list[str] = []
    alpha, _ = schedules.at(process.schedule, 1.0)
    for prediction in predictions:
        head = GaussianHead(process, prediction, sigma_data)
        try:
            model = Preconditioned(OracleNet(exact, head), head)
        except Refusal:
            refused.append(prediction)
            if alpha > schedules.ZERO_ALPHA or prediction not in ("eps", "score"):
                fail(
                    "6 prediction invariance",
                    f"{prediction!r} is refused on {process.schedule!r}, where alpha={alpha:.1e}",
                )
            continue
        if alpha <= schedules.ZERO_ALPHA and prediction in ("eps", "score"):
            fail(
                "6 prediction invariance",
                f"{prediction!r} on {process.schedule!r} must be refused: alpha(1) = {alpha:.1e}",
            )
        x = sample(model, process, get(sampler), grid, x1)
        gap = float((x - truth).abs().max())
        message = (
            f"{prediction!r} on {process.schedule!r}: off the oracle's sample by {gap:.2e}, tolerance {tolerance:g}"
        )
        require(gap < tolerance, "6 prediction invariance", message)
        _check_head(head, oracle)
    return refused


def _check_head(head: GaussianHead, oracle: Any) -> None:
    process, rng = head.process, Stream(3)
    t = rng.uniform((256,)).to(torch.float64) * 0.85 + 0.12
    x0 = oracle.sample(256, rng)
    x_t = process.marginal(x0, t).draw(rng)
    name = f"prediction {head.prediction!r} on {process.schedule!r}"
    off = head.target(x0 + 0.1, x_t, t) - head.target(x0, x_t, t)
    own = (off**2).flatten(1).sum(1)
    via = head.weight(t, t) * process.loss(Dirac(x0 + 0.1), x0, x_t, t)
    gap = float((own / via - 1).abs().max())
    require(gap < 1e-8, name, f"|F - F*|^2 is not weight |x0hat - x0|^2: relative gap {gap:.2e}")
    alpha, sigma = schedules.at(process.schedule, t, x0)
    direct = head.target_from_noise(x0, (x_t - alpha * x0) / sigma, t)
    gap = float(((direct - head.target(x0, x_t, t)).abs() / (1 + direct.abs())).max())
    require(gap < 1e-8, name, f"the target from the noise and from x_t differ by {gap:.2e}")
    back = head(head.target(x0, x_t, t), x_t, t).point()
    gap = float((back - x0).abs().max())
    require(gap < 1e-8, name, f"reading the target back misses x0 by {gap:.2e}")
