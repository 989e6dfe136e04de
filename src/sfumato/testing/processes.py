"""The laws of processes: bridge, forward, Markov joint, membership, evidence bound, rate, symmetry.

The contract checked: the four laws of a process are one joint law of a Markov chain seen from four sides, and the
losses are what that joint law implies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from sfumato.core import RNG, Denoiser, Law
from sfumato.laws import Categorical, Dirac, Joint, Normal, Through
from sfumato.processes.blocks import Blocks
from sfumato.processes.bound import add_parts, elbo, step_kl
from sfumato.processes.jump import Jump
from sfumato.processes.mixed import Mixed, Together
from sfumato.processes.product import Product, parts_of
from sfumato.randomness import Stream
from sfumato.testing.laws import check_same_law
from sfumato.testing.statistics import columns, leaves, require
from sfumato.trees import rows, tree_map

#: Two times of every check, off the knots of a 1000-step table and off each other's symmetry.
TIMES = ((0.7003, 0.3002), (0.35, 0.0701), (1.0, 0.55))
#: From the clean state to a belief about it that is wrong in mean and has a variance.
BeliefOf = Callable[[Any], Law[Any]]


def wrong_belief(process: Any, x0: Any) -> Law[Any]:
    """A belief off the truth by a factor and an offset, of variance .2, for a Gaussian process or a product of them;
    for tokens one that leans to the truth and doubts low tokens more than high ones."""
    return _belief(process, x0, offset=0.1, doubt=-0.3)


def _belief(process: Any, x0: Any, offset: float, doubt: float) -> Law[Any]:
    """Half the truth and ``offset``, of variance .2; of tokens, e times the odds of the truth, and ``exp(doubt k)`` of
    token ``k``."""
    if isinstance(process, Mixed):
        return Together(Joint(parts_of(_belief(process.product, process.split(x0), offset, doubt))))
    if isinstance(process, Product):
        return Joint({key: _belief(part, x0[key], offset, doubt) for key, part in process.parts.items()})
    if isinstance(process, Jump | Blocks):
        tokens = torch.arange(process.kernel.size, dtype=torch.float64, device=x0.device)
        logits = doubt * tokens + (x0[..., None] == tokens).double()
        return Categorical(logits.log_softmax(-1), process.space)
    return Normal(process.space.project(0.5 * x0 + offset), 0.2, process.space)


def _repeat(x0: Any, n: int) -> Any:
    return tree_map(lambda v: v[:1].expand(n, *v.shape[1:]), x0)


def _contained(process: Any, state: Any, what: str) -> None:
    if isinstance(process, Mixed):
        _contained(process.product, process.split(state), what)
        return
    if isinstance(process, Product):
        for key, part in process.parts.items():
            _contained(part, state[key], f"{what}, part {key!r}")
        return
    require(process.space.contains(state), "2 membership", f"{what} leaves the space {type(process.space).__name__}")


def check_process(process: Any, x0: Any, *, n: int = 100_000, seed: int = 0, belief: BeliefOf | None = None) -> None:
    """All laws of a process at one clean state ``x0`` (its first row is used), by ``n`` draws and in closed form.

    ``belief(x0)`` makes the belief whose closed-form bridge is compared with draw-then-bridge; by default a Normal.
    Raises ``AssertionError`` naming the law, the times and the numbers.
    """
    rng = Stream(seed)
    clean = _repeat(x0, n)
    believe: BeliefOf = belief or (lambda state: wrong_belief(process, state))
    check_ends_of_process(process, x0, rng)
    for t, s in TIMES:
        check_bridge(process, clean, t, s, rng)
        check_markov(process, clean, t, s, rng)
        check_belief_bridge(process, clean, believe, t, s, rng)
    check_rate(process, _repeat(x0, 8), believe, rng)


def check_ends_of_process(process: Any, x0: Any, rng: RNG, eta: float = 1.0) -> None:
    """Law 11: the marginal at 0 is the data, the bridge to 0 the belief's point, the marginal at 1 the prior."""
    at_zero = columns(process.marginal(x0, 0.0).draw(rng))
    gap = float((at_zero - columns(x0)).abs().max())
    require(gap == 0.0, "11 ends", f"the marginal at t=0 is off the data by {gap:.2e}")
    x_t = process.marginal(x0, 0.4003).draw(rng)
    back = columns(process.bridge(x_t, Dirac(x0), 0.4003, 0.0, eta).draw(rng))
    gap = float((back - columns(x0)).abs().max())
    require(gap < 1e-12 * (1 + float(back.abs().max())), "11 ends", f"the bridge to t=0 is off its belief by {gap:.2e}")
    prior = process.prior(x0).draw(rng)
    require(
        {k: v.shape for k, v in leaves(prior).items()} == {k: v.shape for k, v in leaves(x0).items()},
        "11 ends",
        "the prior's draw is not shaped like the data",
    )
    start = float(add_parts(process.marginal(x0, 1.0).kl(process.prior(x0))).max())
    require(
        start < 0.05, "11 ends", f"the marginal at t=1 is {start:.3g} nats from the prior: the data is not destroyed"
    )


def check_bridge(
    process: Any, clean: Any, t: float, s: float, rng: RNG, etas: Sequence[float] = (1.0, 0.5, 0.0)
) -> None:
    """Law 1: a bridge from the marginal at ``t`` lands on the marginal at ``s``, for every ``eta``; law 2.

    A process that is no Markov chain has a deterministic bridge only: give ``etas=(0.0,)``.
    """
    for eta in etas:
        x_t = process.marginal(clean, t).draw(rng)
        x_s = process.bridge(x_t, Dirac(clean), t, s, eta).draw(rng)
        check_same_law(x_s, process.marginal(clean, s).draw(rng), f"1 bridge, t={t} to s={s}, eta={eta}")
        _contained(process, x_t, f"the marginal at t={t}")
        _contained(process, x_s, f"the bridge to s={s}")


def check_markov(process: Any, clean: Any, t: float, s: float, rng: RNG) -> None:
    """Laws 1 and 3: (marginal at s, forward to t) and (marginal at t, bridge to s) are one joint law of (x_s, x_t)."""
    x_s = process.marginal(clean, s).draw(rng)
    x_t = process.forward(x_s, s, t).draw(rng)
    _contained(process, x_t, f"the forward law to t={t}")
    check_same_law(x_t, process.marginal(clean, t).draw(rng), f"1 forward after marginal, s={s} to t={t}")
    y_t = process.marginal(clean, t).draw(rng)
    y_s = process.bridge(y_t, Dirac(clean), t, s).draw(rng)
    check_same_law({"s": x_s, "t": x_t}, {"s": y_s, "t": y_t}, f"3 Markov joint, t={t}, s={s}, eta=1")


def check_belief_bridge(process: Any, clean: Any, believe: BeliefOf, t: float, s: float, rng: RNG) -> None:
    """Law 1: the closed-form bridge of a belief equals drawing from the belief first, for ``eta`` 1 and 0."""
    x_t = process.marginal(clean, t).draw(rng)
    q = believe(clean)
    for eta in (1.0, 0.0):
        closed = process.bridge(x_t, q, t, s, eta).draw(rng)
        drawn = Through(q, partial(_point_bridge, process, x_t, t, s, eta)).draw(rng)
        check_same_law(
            closed, drawn, f"1 closed-form belief bridge against draw-then-bridge, t={t} to s={s}, eta={eta}"
        )
        _contained(process, closed, f"the belief bridge to s={s}")


def _point_bridge(process: Any, x_t: Any, t: float, s: float, eta: float, point: Dirac) -> Any:
    return process.bridge(x_t, point, t, s, eta)


def check_rate(process: Any, x0: Any, believe: BeliefOf, rng: RNG, tolerance: float = 1e-3) -> None:
    """Law 7: ``rate`` is the limit of ``step_kl / (t - s)``, at a wrong belief, with and without variance."""
    h = 1e-6
    for t in (0.9503, 0.7004, 0.4503):
        x_t = process.marginal(x0, t).draw(rng)
        q = believe(x0)
        for stated in (q, _points(q)):
            limit = add_parts(step_kl(process, stated, x0, x_t, t, t - h)) / h
            count = len(limit)
            for moment in (t, torch.full((count,), t, dtype=torch.float64)):
                rate = add_parts(process.rate(stated, x0, x_t, moment))
                gap = float(((rate - limit).abs() / limit.abs().clamp(min=1e-12)).max())
                message = (
                    f"rate {float(rate[0]):.6g}, step_kl/dt {float(limit[0]):.6g} at t={t}, {type(q).__name__} belief"
                )
                require(gap < tolerance, "7 rate", message)


def _points(q: Law[Any]) -> Law[Any]:
    """The same belief without its variance, part by part; one about tokens stays, as its point rules out the truth."""
    if isinstance(q, Together):
        return Together(Joint({key: _points(part) for key, part in q.joint.parts.items()}))
    if isinstance(q, Joint):
        return Joint({key: _points(part) for key, part in q.parts.items()})
    return q if isinstance(q, Categorical) else Dirac(q.point())


def check_elbo(
    process: Any, exact: Denoiser[Any], x0: Any, entropy: float, grid: Any, rng: RNG, tolerance: float = 1e-6
) -> None:
    """Law 7: at the exact belief the evidence bound averages to the entropy of the data, whatever the grid.

    ``x0`` is a batch whose second moments are the data's (``SigmaPoints`` makes it and the noise exact; with a
    ``Stream`` give the tolerance that Monte Carlo needs).  This sees a wrong variance of the bridge, which law 1
    cannot.
    """
    bound = elbo(exact, process, x0, grid, rng)
    total = float(bound.total.mean())
    parts = f"prior {float(bound.prior.mean()):.3g}, steps {float(bound.diffusion.sum(0).mean()):.6f}, "
    parts += f"reconstruction {float(bound.reconstruction.mean()):.6f}"
    message = f"bound {total:.8f} on {len(grid) - 1} steps, entropy {entropy:.8f} ({parts}), tolerance {tolerance:g}"
    require(abs(total - entropy) < tolerance, "7 evidence bound", message)


#: What a symmetry must commute with: of a process that is no chain some of these.
SYMMETRIC = ("marginal", "forward", "bridge", "belief bridge")


def check_equivariance(
    process: Any,
    x0: Any,
    act: Callable[[Any], Any],
    rng: RNG,
    tolerance: float = 1e-9,
    *,
    laws: Sequence[str] = SYMMETRIC,
    eta: float = 1.0,
) -> None:
    """Law 9: a symmetry ``act`` commutes with the named ``laws`` of the process and keeps every density they have.

    ``eta``: of the bridges; 0 for a process that is no Markov chain.
    """
    t, s = 0.7003, 0.3002
    x_t = process.marginal(x0, t).draw(rng)
    y = process.marginal(x0, s).draw(rng)
    pairs: dict[str, Callable[[], tuple[Any, Any]]] = {
        "marginal": lambda: (process.marginal(x0, t), process.marginal(act(x0), t)),
        "forward": lambda: (process.forward(x_t, s, t), process.forward(act(x_t), s, t)),
        "bridge": lambda: (
            process.bridge(x_t, Dirac(x0), t, s, eta),
            process.bridge(act(x_t), Dirac(act(x0)), t, s, eta),
        ),
        "belief bridge": lambda: (
            process.bridge(x_t, wrong_symmetric_belief(process, x0), t, s, eta),
            process.bridge(act(x_t), wrong_symmetric_belief(process, act(x0)), t, s, eta),
        ),
    }
    for what in laws:
        law, moved = pairs[what]()
        gap = float((columns(act(law.point())) - columns(moved.point())).abs().max())
        require(gap < tolerance, "9 equivariance", f"the {what} of a moved state is off the moved {what} by {gap:.2e}")
        if isinstance(law, Dirac) and isinstance(moved, Dirac):
            continue  # points have no density: that they agree is all there is
        density, own = add_parts(law.nll(y)), add_parts(moved.nll(act(y)))
        change = float(torch.where(density == own, 0.0, (density - own).abs()).max())  # impossible in both: infinite
        require(change < 1e3 * tolerance, "9 equivariance", f"the density of the {what} changes by {change:.2e} nats")


def wrong_symmetric_belief(process: Any, x0: Any) -> Law[Any]:
    """A belief that moves with the data: half the truth, variance .2; of tokens, e times the odds of the truth."""
    return _belief(process, x0, offset=0.0, doubt=0.0)


def check_coupling(process: Any, x0: Any, rng: RNG) -> None:
    """A given prior draw ``end`` is where the marginal ends, and averages back to the marginal's own law."""
    n = len(columns(x0))
    end = process.prior(x0).draw(rng)
    for t in (0.4, 0.8):
        given = process.marginal(x0, t, end).draw(rng)
        check_same_law(given, process.marginal(x0, t).draw(rng), f"1 marginal with a given end, t={t}, n={n}")
        again = process.marginal(rows(x0, slice(0, 4)), t, rows(end, slice(0, 4))).draw(rng)
        require(
            bool((columns(again) == columns(rows(given, slice(0, 4)))).all()),
            "1 marginal",
            f"a given end still draws noise at t={t}",
        )
