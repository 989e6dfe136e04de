"""The jump process exactly: every law by summing over tokens, every rate as a limit, both ends, kernels, space."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.tokens import Subs
from sfumato.laws import Categorical, Dirac
from sfumato.processes import Jump, RateMatrix, absorbing, discretised_gaussian, marginal, step_kl, survival, uniform
from sfumato.spaces import Tokens

FLOW = sf.schedules.get("flow")
RATES = [[-1.5, 1.0, 0.0, 0.5], [0.2, -0.2, 0.0, 0.0], [0.6, 0.4, -2.0, 1.0], [0.0, 0.3, 0.1, -0.4]]
PROCESSES = {
    "absorbing": Jump(absorbing(4), FLOW),
    "absorbing-first": Jump(absorbing(4, mask=0), sf.schedules.get("zero-terminal", base="linear")),
    "uniform": Jump(uniform(4), sf.schedules.get("cosine-continuous")),
    "uniform-table": Jump(uniform(4), sf.schedules.get("linear")),
    "marginal": Jump(marginal([0.1, 0.2, 0.3, 0.4]), FLOW),
    "ordinal": Jump(discretised_gaussian(4, 0.3), FLOW),
    "rates": Jump(RateMatrix(RATES), sf.schedules.get("sigmoid")),
}
#: Times at a float, at one time a sample, and from the very end.
MOMENTS = [(0.7, 0.3), (1.0, 0.55), (torch.tensor([0.9, 0.4]), torch.tensor([0.2, 0.0]))]
IDS = ["inside", "from the prior", "per sample"]
X0 = torch.tensor([[0, 1, 2], [2, 0, 1]])


def clean(process: Jump) -> Tensor:
    """Tokens that are not the mask."""
    return (X0 + 1) % 4 if process.kernel.mask == 0 else X0


def tokens(x: Tensor) -> list[Tensor]:
    return [torch.full_like(x, token) for token in range(4)]


def a_belief(seed: int = 0) -> Categorical:
    noise = torch.Generator().manual_seed(seed)
    return Categorical(torch.randn(2, 3, 4, generator=noise, dtype=torch.float64).log_softmax(-1))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> bool:
    return float((a - b).abs().max()) < tolerance


# ------------------------------------------------------------------------------------------------------------- laws


@pytest.mark.parametrize(("t", "s"), MOMENTS, ids=IDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_bridge_lands_on_the_marginal_for_every_eta(name: str, t: Any, s: Any) -> None:
    process = PROCESSES[name]
    x0 = clean(process)
    at_t, at_s = (process.marginal(x0, moment).logp.exp() for moment in (t, s))
    for eta in (1.0, 0.5, 0.0):
        landed = sum(
            at_t[..., k, None] * process.bridge(x_t, Dirac(x0), t, s, eta).logp.exp()
            for k, x_t in enumerate(tokens(x0))
        )
        assert close(landed, at_s), eta


@pytest.mark.parametrize(("t", "s"), MOMENTS, ids=IDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_forward_and_bridge_are_one_joint_law(name: str, t: Any, s: Any) -> None:
    process = PROCESSES[name]
    x0 = clean(process)
    at_t, at_s = (process.marginal(x0, moment).logp.exp() for moment in (t, s))
    forward = torch.stack([process.forward(x_s, s, t).logp.exp() for x_s in tokens(x0)], -2)
    backward = torch.stack([process.bridge(x_t, Dirac(x0), t, s).logp.exp() for x_t in tokens(x0)], -1)
    assert close(at_s[..., :, None] * forward, backward * at_t[..., None, :])
    assert close((at_s[..., :, None] * forward).sum(-2), at_t)


@pytest.mark.parametrize(("t", "s"), MOMENTS, ids=IDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_bridge_of_a_belief_is_the_mean_of_the_bridges(name: str, t: Any, s: Any) -> None:
    process = PROCESSES[name]
    for x_t in tokens(X0):
        q = process.condition(a_belief(), x_t, t)
        for eta in (1.0, 0.5, 0.0):
            law = process.bridge(x_t, q, t, s, eta).logp.exp()
            mean = sum(
                q.logp.exp()[..., k, None] * process.bridge(x_t, Dirac(x0), t, s, eta).logp.exp()
                for k, x0 in enumerate(tokens(X0))
            )
            assert close(law, mean), eta


@pytest.mark.parametrize("name", PROCESSES)
def test_without_noise_of_its_own_a_bridge_moves_as_little_as_any_can(name: str) -> None:
    process, t, s = PROCESSES[name], 0.7, 0.3
    x0 = clean(process)
    at_t, at_s = (process.marginal(x0, moment).logp.exp() for moment in (t, s))
    stays = {
        eta: sum(
            at_t[..., k] * process.bridge(x_t, Dirac(x0), t, s, eta).logp.exp()[..., k]
            for k, x_t in enumerate(tokens(x0))
        )
        for eta in (1.0, 0.0)
    }
    assert close(stays[0.0], torch.minimum(at_t, at_s).sum(-1))
    if process.kernel.mask is None:
        assert bool((stays[1.0] < stays[0.0] - 1e-3).all())
    else:
        assert close(stays[1.0], stays[0.0])


@pytest.mark.parametrize("name", PROCESSES)
def test_rate_is_the_limit_of_a_step_at_a_wrong_belief(name: str) -> None:
    process, h = PROCESSES[name], 1e-6
    x0 = clean(process)
    for t in (0.8503, 0.4003):  # off the knots of a table, where its slope jumps
        x_t = process.marginal(x0, t).draw(sf.Stream(1))
        q = process.condition(a_belief(), x_t, t)
        limit = step_kl(process, q, x0, x_t, t, t - h) / h
        for moment in (t, torch.full((2,), t, dtype=torch.float64)):
            assert torch.allclose(process.rate(q, x0, x_t, moment), limit, rtol=1e-4, atol=1e-9)
        score = process.ratio(q, x_t, t)
        assert torch.allclose(process.score_entropy(score, x0, x_t, t), process.rate(q, x0, x_t, t), rtol=1e-12)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_reverse_rates_are_the_limit_of_the_bridge(name: str, eta: float) -> None:
    process, t, h = PROCESSES[name], 0.6003, 1e-7
    for x_t in tokens(X0):
        q = process.condition(a_belief(), x_t, t)
        jumped = process.bridge(x_t, q, t, t - h, eta).logp.exp() / h
        rates = process.reverse_rates(q, x_t, t, eta)
        assert float(rates.gather(-1, x_t[..., None]).abs().max()) == 0
        off = torch.arange(4) != x_t[..., None]
        assert torch.allclose(rates[off], jumped[off], rtol=1e-4, atol=1e-5)
        per_sample = process.reverse_rates(q, x_t, torch.full((2,), t, dtype=torch.float64), eta)
        assert torch.allclose(per_sample, rates, rtol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_noise_on_top_leaves_every_marginal_as_it_is(name: str) -> None:
    process, t = PROCESSES[name], 0.6
    x0 = clean(process)
    law = process.marginal(x0, t).logp.exp()
    for eta in (1.0, 0.0):
        extra = torch.stack(
            [
                process.reverse_rates(Dirac(x0), x_t, t, eta, 3.0) - process.reverse_rates(Dirac(x0), x_t, t, eta)
                for x_t in tokens(x0)
            ],
            -2,
        )
        extra = torch.where(law[..., :, None] > 0, extra, 0.0)  # no state of no chance has rates that matter
        flow = law[..., :, None] * extra
        assert float(flow.max()) > 0.01
        assert close(flow, flow.mT)  # detailed balance


def test_remasking_is_that_of_discrete_flow_matching() -> None:
    process, t, eta = PROCESSES["absorbing"], 0.3, 5.0
    q = a_belief()
    q = Categorical(q.logp.masked_fill(torch.arange(4) == 3, -math.inf).log_softmax(-1))
    masked, shown = torch.full_like(X0, 3), X0
    # Campbell et al. 2024: mask -> y at (1 + eta t) / (1 - t) q(y) and y -> mask at eta, in their time 1 - t
    rates = process.reverse_rates(q, masked, t, 0.0, eta)
    assert torch.allclose(rates, (1 + eta * (1 - t)) / t * q.logp.exp())
    back = process.reverse_rates(q, shown, t, 0.0, eta)
    assert torch.allclose(back, eta * (torch.arange(4) == 3).double().expand_as(back))


# ------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("name", PROCESSES)
def test_both_ends_are_exact(name: str) -> None:
    process = PROCESSES[name]
    x0 = clean(process)
    assert torch.equal(process.marginal(x0, 0.0).logp.exp(), torch.nn.functional.one_hot(x0, 4).double())
    assert torch.equal(process.marginal(x0, 0.0).draw(sf.Stream(0)), x0)
    gap = process.marginal(x0, 1.0).kl(process.prior(x0))
    if process.signal(1.0) == 0:
        assert float(gap.abs().max()) < 1e-12
    assert bool((gap < 0.01).all())
    x1 = process.prior(x0).draw(sf.Stream(1))
    q = process.condition(a_belief(), x1, 1.0)
    for t, x_t in ((1.0, x1), (torch.tensor([1.0, 1.0]), x1), (0.0, x0), (1e-9, x0)):
        for value in (process.loss(q, x0, x_t, t), process.rate(q, x0, x_t, t)):
            assert bool(torch.isfinite(value).all()), t
        for eta in (1.0, 0.0):
            back = process.bridge(x_t, Dirac(x0), t, 0.0, eta).draw(sf.Stream(2))
            assert torch.equal(back, x0), (t, eta)
    assert float(process.loss(a_belief(), x0, x0, 0.0).abs().max()) < 1e-12  # the data shows itself
    assert float(step_kl(process, q, x0, x1, 1.0, 0.0).sub(q.nll(x0)).abs().max()) < 1e-9  # L_0 = -log p(x0|x_1)


def test_a_prompt_stays_at_the_prior_where_it_has_no_chance() -> None:
    process = PROCESSES["absorbing"]
    prompt = torch.tensor([[0, 3, 1]])
    q = Categorical(torch.zeros(1, 3, 4, dtype=torch.float64).log_softmax(-1))
    for eta in (1.0, 0.0):
        for t in (1.0, torch.tensor([1.0])):
            law = process.bridge(prompt, q, t, 0.5, eta).logp.exp()
            assert law[0, [0, 2], [0, 1]].tolist() == [1.0, 1.0]
    assert process.condition(q, prompt, 1.0).logp.exp()[0, [0, 2], [0, 1]].tolist() == [1.0, 1.0]


def test_a_belief_that_contradicts_what_is_shown_is_set_right() -> None:
    process = PROCESSES["absorbing"]
    shown, other = torch.tensor([[1]]), torch.tensor([[0]])
    assert process.bridge(shown, Dirac(other), 0.5, 0.2).logp.exp()[0, 0].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert process.condition(Dirac(other), shown, 0.5).logp.exp()[0, 0].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_a_given_end_is_where_the_path_leads() -> None:
    process = PROCESSES["marginal"]
    end = torch.tensor([[3, 0, 2], [1, 1, 1]])
    assert torch.equal(process.marginal(X0, 1.0, end).draw(sf.Stream(0)), end)
    for t in (0.4, torch.tensor([0.4, 0.8])):
        law = process.marginal(X0, t, end).logp.exp()
        kept = process.signal(t, X0)
        kept = kept[..., None] if torch.is_tensor(kept) else kept
        hot = torch.nn.functional.one_hot(torch.stack([X0, end]), 4).double()
        assert close(law, kept * hot[0] + (1 - kept) * hot[1])
    mean = sum(process.kernel.limit[k] * process.marginal(X0, 0.4, e).logp.exp() for k, e in enumerate(tokens(X0)))
    assert close(mean, process.marginal(X0, 0.4).logp.exp())


def test_a_draw_of_any_other_belief_goes_through() -> None:
    process = PROCESSES["uniform"]
    law = process.bridge(X0, sf.laws.Through(Dirac(X0), lambda point: point), 0.5, 0.0)
    assert torch.equal(law.draw(sf.Stream(0)), X0)
    with pytest.raises(sf.Refusal, match="no probability for every token"):
        process.loss(sf.laws.Normal(X0.double(), 1.0), X0, X0, 0.5)


# ---------------------------------------------------------------------------------------------------------- kernels


def test_matrices_are_exponentials_and_keep_small_entries() -> None:
    from scipy.linalg import expm

    kernel = RateMatrix(RATES)
    for r in (0.9, 0.3, 1e-4):
        truth = torch.from_numpy(expm(-math.log(r) * kernel.rates.numpy()))
        assert close(kernel.matrix(r), truth, 1e-13)
        assert close(kernel.matrix(torch.tensor([r, 1.0, 0.0], dtype=torch.float64))[0], kernel.matrix(r), 1e-14)
    assert torch.equal(kernel.matrix(1.0), torch.eye(4, dtype=torch.float64))
    assert close(kernel.matrix(0.0), kernel.matrix(1e-300), 1e-12)
    # one jump to the right at a time: P[0, k] = u^k e^-u / k!, to full relative precision
    ladder = torch.diag(torch.ones(8, dtype=torch.float64), 1) - torch.diag(torch.tensor([1.0] * 8 + [0.0]))
    u = 1e-3
    row = RateMatrix(ladder).matrix(math.exp(-u))[0, :8]
    poisson = torch.tensor([u**k * math.exp(-u) / math.factorial(k) for k in range(8)], dtype=torch.float64)
    assert float((row / poisson - 1).abs().max()) < 1e-10


def test_closed_forms_are_rate_matrices() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    x = torch.arange(4)[None]
    for kernel in (uniform(4), absorbing(4, 1), marginal([0.1, 0.2, 0.3, 0.4])):
        other = RateMatrix(torch.ones(4, 1) * kernel.limit - eye)
        assert close(other.limit, kernel.limit)
        assert other.mask == kernel.mask
        for r in (0.7, torch.tensor([[0.2]])):
            for part in ("rows", "columns"):
                a, b = (getattr(k, part)(x, r, torch.float64).exp() for k in (kernel, other))
                assert close(a, b), part
            logq = a_belief().logp[:1, 0]
            assert close(kernel.push(logq[:, None], r).exp(), other.push(logq[:, None], r).exp())
            if kernel.mask is None:
                q = a_belief().logp[:1, :1].expand(1, 4, 4)
                assert close(kernel.agree(x, q, r, 0.9).exp(), other.agree(x, q, r, 0.9).exp())
        assert close(kernel.inflow(x), other.inflow(x))
        assert close(kernel.outflow(x), other.outflow(x))


def test_ordered_tokens_wander_to_their_neighbours() -> None:
    kernel = discretised_gaussian(6, 0.01)
    law = kernel.matrix(0.9)
    assert close(law, law.T)
    assert close(law.sum(0), torch.ones(6, dtype=torch.float64))
    assert bool((law[0].diff() < 0).all())
    assert close(kernel.limit, torch.full((6,), 1 / 6, dtype=torch.float64))
    assert float(torch.linalg.eigvalsh(kernel.matrix(0.3))[-2]) == pytest.approx(0.3)  # the slowest contrast is alpha


def test_large_vocabularies_keep_their_digits_in_float32() -> None:
    process = Jump(absorbing(5001), FLOW)
    logits = torch.zeros(1, 2, 5001)
    logits[..., 7] = 150.0  # the truth has a chance of e^-150, below the least float32
    q = Subs(process)(logits, torch.tensor([[5000, 5000]]), 0.5)
    x0, x_t = torch.tensor([[3, 7]]), torch.tensor([[5000, 5000]])
    assert float(step_kl(process, q, x0, x_t, 0.5, 0.0)) == pytest.approx(150.0, rel=1e-6)
    assert float(step_kl(process, q, x0, x_t, 0.5, 0.4)) == pytest.approx(30.0, rel=1e-5)
    assert float(process.rate(q, x0, x_t, 0.5)) == pytest.approx(300.0, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ space


def test_tokens_are_a_space() -> None:
    real = torch.tensor([[True, True, False], [True, False, False]])
    space = Tokens(5, real)
    x = space.noise(torch.zeros(2, 3, dtype=torch.int64), sf.Stream(0))
    assert space.contains(x)
    assert bool((x[~real] == 0).all())
    assert not space.contains(torch.full((2, 3), 1))  # padding holds token 0
    assert not space.contains(x.double())
    assert not Tokens(5).contains(torch.tensor([[5]]))
    assert not Tokens(5).contains(torch.tensor([[-1]]))
    assert space.project(torch.tensor([[7, -2, 3], [4, 4, 4]])).tolist() == [[4, 0, 0], [4, 0, 0]]
    assert Tokens(5).project(torch.tensor([[1.6, -0.7]])).tolist() == [[2, 0]]
    assert space.dof(x).tolist() == [2.0, 1.0]
    assert Tokens(5).dof(x).tolist() == [3.0, 3.0]
    many = Tokens(3).noise(torch.zeros(30_000, 1, dtype=torch.int64), sf.Stream(0))
    assert torch.allclose(many.flatten().bincount(minlength=3) / 30_000, torch.full((3,), 1 / 3), atol=0.012)


def test_padding_costs_nothing() -> None:
    real = torch.tensor([[True, True, False]])
    whole, padded = Jump(uniform(4), FLOW), Jump(uniform(4), FLOW, Tokens(4, real))
    x0, x_t = torch.tensor([[1, 2, 0]]), torch.tensor([[3, 2, 0]])
    q = Categorical(a_belief().logp[:1])
    for method in ("loss", "rate"):
        apart = getattr(whole, method)(Categorical(q.logp[:, :2]), x0[:, :2], x_t[:, :2], 0.5)
        assert close(getattr(padded, method)(q, x0, x_t, 0.5), apart), method
    assert padded.space.contains(padded.prior(x0).draw(sf.Stream(0)))
    assert padded.space.contains(padded.bridge(x_t, q, 0.5, 0.2).draw(sf.Stream(0)))


# --------------------------------------------------------------------------------------------------------- refusals


REFUSED: dict[str, tuple[Any, str]] = {
    "rows": (lambda: RateMatrix([[-1.0, 0.9], [1.0, -1.0]]), r"row 0 of the rate matrix sums to -0\.1, must be 0"),
    "own units": (lambda: RateMatrix([[-1e6, 1e6, 0], [1, -0.5, 0], [1, 1, -2]]), r"row 1 of .* sums to 0\.5"),
    "slow": (lambda: RateMatrix([[-1e-9, 2e-9], [1.0, -1.0]]), "row 0 of the rate matrix sums to 1e-09, must be 0"),
    "ragged": (lambda: RateMatrix([[1.0, 2.0], [3.0]]), r"a rate matrix of \[\[1.0, 2.0\], \[3.0\]\]: give numbers"),
    "string": (lambda: RateMatrix("abc"), "a rate matrix of 'abc': give numbers, in rows of one length"),
    "none": (lambda: RateMatrix(None), "a rate matrix of None: give numbers"),
    "long": (lambda: RateMatrix([["a"] * 99]), r"a rate matrix of \[\['a', .{40,50}\.\.\.: give numbers"),
    "ragged law": (lambda: marginal([0.5, [0.5]]), r"pi of \[0.5, \[0.5\]\]: give numbers"),
    "no law": (lambda: marginal(None), "pi of None: give numbers"),
    "ragged jumps": (lambda: survival([0.5, [0.1]]), r"jump chances of \[0.5, \[0.1\]\]: give numbers"),
    "ragged table": (lambda: sf.oracles.EnumerableChain([[1.0], [1.0, 2.0]]), "a table of sequences of"),
    "negative": (lambda: RateMatrix([[1.0, -1.0], [1.0, -1.0]]), "off-diagonal entry of -1"),
    "square": (lambda: RateMatrix([[0.0, 0.0]]), r"shape \(1, 2\)"),
    "closed": (lambda: RateMatrix([[0.0, 0.0], [0.0, 0.0]]), "never forgets"),
    "law": (lambda: marginal([0.5, 0.6]), "not of sum 1.1"),
    "size": (lambda: uniform(1), "size=1"),
    "mask": (lambda: absorbing(4, mask=4), "mask=4 is no token"),
    "beta": (lambda: discretised_gaussian(4, 0.0), "positive beta"),
    "vocabulary": (lambda: Jump(uniform(4), FLOW, Tokens(5)), "a space of 5 tokens but a kernel of 4"),
    "belief": (
        lambda: PROCESSES["uniform"].loss(Categorical(torch.zeros(2, 3, 5).log_softmax(-1)), X0, X0, 0.5),
        "a belief over 5 tokens",
    ),
    "padding": (lambda: Jump(absorbing(4, 0), FLOW, Tokens(4, X0 > 0)), "padding holds token 0"),
    "still": (lambda: Jump(uniform(4), sf.schedules.get("karras")), "destroys no token"),
    "unmasked": (lambda: Jump(absorbing(4), sf.schedules.get("linear")), "leaves tokens unmasked at t=1"),
    "eta": (lambda: PROCESSES["uniform"].bridge(X0, Dirac(X0), 0.5, 0.2, 1.5), "eta=1.5"),
    "noise": (lambda: PROCESSES["uniform"].reverse_rates(Dirac(X0), X0, 0.5, 1.0, -1.0), "noise=-1"),
    "end": (lambda: PROCESSES["rates"].marginal(X0, 0.5, X0), "RateMatrix has no such coupling"),
    "jumps": (lambda: survival([0.5, 1.0]), "strictly between 0 and 1"),
    "empty": (lambda: Tokens(0), "at least one token"),
    "chain": (lambda: sf.oracles.EnumerableChain(torch.ones(2, 3)), r"\[V, ..., V\]"),
    "table": (lambda: sf.oracles.EnumerableChain(torch.ones(17, 17, 17)), "4913 sequences"),
    "kernel": (lambda: sf.oracles.dirichlet(5, 2).posterior(PROCESSES["uniform"]), "a kernel of 4 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(sf.Refusal, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
