"""Heads and objectives of tokens: normalised beliefs, exact minima, agreement of bounds, fixed noise, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.tokens import HEADS, Logistic, Score, Softmax, Subs, TokenDenoiser
from sfumato.processes import Jump, absorbing, discretised_gaussian, marginal, step_kl, uniform
from sfumato.randomness import Uniforms
from sfumato.training.token_objectives import D3PM, MDLM, DiscreteFlow, ScoreEntropy, bits, nelbo

FLOW = sf.schedules.get("flow")
PROCESSES = {
    "absorbing": Jump(absorbing(4), FLOW),
    "uniform": Jump(uniform(4), sf.schedules.get("cosine-continuous")),
    "marginal": Jump(marginal([0.1, 0.2, 0.3, 0.4]), FLOW),
    "ordinal": Jump(discretised_gaussian(4, 0.3), FLOW),
}
X0 = torch.tensor([[0, 1, 2], [2, 0, 1]])


def logits_of(seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 4, generator=noise, dtype=torch.float64).log_softmax(-1)


# ------------------------------------------------------------------------------------------------------------ heads


@pytest.mark.parametrize("name", HEADS)
def test_heads_state_normalised_beliefs_with_finite_gradients(name: str) -> None:
    for process in (PROCESSES["absorbing"], PROCESSES["uniform"], PROCESSES["ordinal"]):
        if process.kernel.mask is None and name in ("subs", "score"):
            continue
        head = HEADS[name](process)
        for t in (1.0, 0.5, 1e-4):
            raw = torch.randn(2, 3, head.outputs, requires_grad=True)
            x_t = process.marginal(X0, t).draw(sf.Stream(3))
            q = head(raw, x_t, t)
            assert torch.allclose(q.logp.exp().sum(-1).float(), torch.ones(2, 3))
            if process.kernel.mask is not None and name != "logistic":
                assert bool((q.logp.exp()[..., 3][x_t < 3] == 0).all())
            s = 0.5 * t
            loss = step_kl(process, q, X0, x_t, t, s) + process.rate(q, X0, x_t, t) + process.loss(q, X0, x_t, t)
            (slope,) = torch.autograd.grad(loss.sum(), raw)
            assert bool(torch.isfinite(loss).all()), (name, t)
            assert bool(torch.isfinite(slope).all()), (name, t)


def test_subs_never_predicts_the_mask_and_carries_shown_tokens_over() -> None:
    head = Subs(PROCESSES["absorbing"])
    x_t = torch.tensor([[3, 1, 3]])
    p = head(torch.tensor([[[1.0, 2.0, 3.0, 90.0]]]).expand(1, 3, 4), x_t, 0.5).logp.exp()
    assert p[0, 1].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert p[0, 0, 3].item() == 0
    assert torch.allclose(p[0, 0, :3], torch.tensor([1.0, 2.0, 3.0]).softmax(0))


def test_the_score_of_a_masked_site_is_its_belief_over_e_to_the_sigma_less_one() -> None:
    process = PROCESSES["absorbing"]
    head, t = Score(process), 0.3
    x_t = torch.full((1, 2), 3)
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    raw = torch.cat([(3 * p).log(), torch.zeros(1)]).expand(1, 2, 4)  # exp(raw) / 3 = p
    sigma = -math.log(process.signal(t))
    score = head.ratios(raw, x_t, t)
    assert torch.allclose(score[0, 0, :3], p / (math.exp(sigma) - 1))
    assert torch.allclose(score, process.ratio(head(raw, x_t, t), x_t, t))


def test_logistic_bins_hold_all_the_mass_and_lean_on_what_is_shown() -> None:
    process = PROCESSES["ordinal"]
    x_t = torch.tensor([[0, 1, 3]])
    q = Logistic(process)(torch.tensor([[[0.0, -1.0]]]).expand(1, 3, 2).double(), x_t, 0.5)
    assert q.point().tolist() == [[0, 1, 3]]
    flat = Logistic(process)(torch.tensor([[[0.0, 9.0]]]).expand(1, 3, 2).double(), x_t, 0.5).logp.exp()
    assert torch.allclose(flat[..., 0], torch.full((1, 3), 0.5, dtype=torch.float64), atol=1e-3)  # the tails


def test_the_network_sees_tokens_and_float32_times() -> None:
    seen: list[Any] = []

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        seen.extend([x.dtype, t.dtype, tuple(t.shape), cond])
        return torch.zeros(*x.shape, 4)

    process = PROCESSES["uniform"]
    denoiser = TokenDenoiser(net, Softmax(process))
    cond = {"label": torch.zeros(2)}
    assert denoiser(X0, 0.5, cond).logp.exp().unique().tolist() == [0.25]
    assert seen == [torch.int64, torch.float32, (2,), cond]
    assert denoiser.head.process is process
    with pytest.raises(sf.Refusal, match="one logit for every token"):
        Softmax(process)(torch.zeros(2, 3, 5), X0, 0.5)


# ------------------------------------------------------------------------------------------------------- objectives


def exact_net(chain: Any, process: Jump) -> Any:
    """A network that states the exact belief as logits."""
    exact = chain.posterior(process)

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return exact(x, t.double()).logp.clamp(min=-1e4)

    return net


CHAIN = sf.oracles.dirichlet(3, 2)
OBJECTIVES = {
    "d3pm": D3PM(7, 0.3), "d3pm-bound": D3PM(7, 0.0), "mdlm": MDLM(), "mdlm-steps": MDLM(7), "sedd": ScoreEntropy(),
    "flow": DiscreteFlow(), "flow-kl": DiscreteFlow("kl"),
}  # fmt: skip


@pytest.mark.parametrize("kernel", ["absorbing", "uniform", "ordinal"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_exact_belief_is_a_stationary_point_of_every_objective(name: str, kernel: str) -> None:
    if name.startswith("mdlm") and kernel != "absorbing":
        return
    process = PROCESSES[kernel] if kernel != "absorbing" else Jump(absorbing(4), FLOW)
    chain = CHAIN if kernel == "absorbing" else sf.oracles.dirichlet(4, 2)
    head = Subs(process) if kernel == "absorbing" else Softmax(process)
    t = torch.tensor([5 / 7], dtype=torch.float64)
    states = sf.oracles.chains.all_states(4, 2)
    logits = chain.posterior(process)(states, float(t)).logp.clamp(min=-50).requires_grad_()

    def net(x: Tensor, moment: Tensor, cond: Any) -> Tensor:
        return logits[4 * x[:, 0] + x[:, 1]]

    objective = OBJECTIVES[name]
    total = torch.zeros((), dtype=torch.float64)
    # all x0 and all x_t, each x_t by the uniforms in the middle of its stretch of the inverse cdf
    for x0, p in zip(chain.sequences, chain.p.flatten(), strict=True):
        law = process.marginal(x0[None], t).logp.exp()[0]
        middle = law.cumsum(-1) - law / 2
        chance = law[0, states[:, 0]] * law[1, states[:, 1]]
        there = chance > 0
        eps = torch.stack([middle[0, states[:, 0]], middle[1, states[:, 1]]], 1)[there]
        n = len(eps)
        loss = objective(TokenDenoiser(net, head), x0.expand(n, 2), t.expand(n), eps=eps)
        total = total + p * (chance[there] * loss).sum()
    (slope,) = torch.autograd.grad(total, logits)
    assert 0.01 < float(total.detach()) < 20
    assert float(slope.abs().max()) < 1e-9


def test_objectives_agree_where_they_are_one() -> None:
    process = Jump(absorbing(4), sf.schedules.get("cosine-continuous"))
    x0, t = CHAIN.sample(64, 0), torch.linspace(0.05, 1, 64, dtype=torch.float64)
    weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def net(x: Tensor, moment: Tensor, cond: Any) -> Tensor:
        return weights[x] + moment[:, None, None].double()

    denoiser = TokenDenoiser(net, Subs(process))
    eps = sf.Stream(2).uniform((64, 2))
    losses = {k: f(denoiser, x0, t, eps=eps) for k, f in OBJECTIVES.items()}
    assert torch.allclose(losses["mdlm"], losses["sedd"], rtol=1e-9)
    assert torch.allclose(losses["mdlm"], losses["flow-kl"], rtol=1e-9)
    assert torch.allclose(losses["mdlm-steps"], losses["d3pm-bound"], rtol=1e-9)
    assert float(losses["mdlm"].max()) > 0.5
    x_t = process.marginal(x0, t).draw(Uniforms(eps))
    hidden = (x_t == 3).double()
    assert torch.allclose(losses["flow"], (denoiser(x_t, t).logp.gather(-1, x0[..., None])[..., 0] * -hidden).mean(1))
    # in nats per token, whatever the length
    twice = MDLM()(denoiser, x0.repeat(1, 3), t, eps=eps.repeat(1, 3))
    assert torch.allclose(twice, losses["mdlm"])
    assert float(bits(losses["mdlm"][-1])) == pytest.approx(float(losses["mdlm"][-1]) / math.log(2))


def test_the_auxiliary_term_is_the_cross_entropy() -> None:
    process = PROCESSES["uniform"]
    denoiser = TokenDenoiser(lambda x, t, cond: torch.nn.functional.one_hot((x + 1) % 4, 4).double(), Softmax(process))
    t, eps = torch.tensor([0.31, 0.94]), sf.Stream(0).uniform((2, 3))
    gap = D3PM(10, 2.0)(denoiser, X0, t, eps=eps) - D3PM(10, 0.0)(denoiser, X0, t, eps=eps)
    x_t = process.marginal(X0, torch.tensor([0.4, 1.0])).draw(Uniforms(eps))  # the steps that hold t end at 4/10 and 1
    assert torch.allclose(gap, 10 * 2 * denoiser(x_t, 0.4).nll(X0) / 3)


def test_the_generalised_kl_is_the_published_one() -> None:
    process = PROCESSES["marginal"]
    logits = logits_of(3)
    denoiser = TokenDenoiser(lambda x, t, cond: logits, Softmax(process))
    t, eps = torch.tensor([0.3, 0.8], dtype=torch.float64), sf.Stream(4).uniform((2, 3))
    x_t = process.marginal(X0, t).draw(Uniforms(eps))
    same = (x_t == X0).double()

    def at(x: Tensor) -> Tensor:
        return logits.gather(-1, x[..., None])[..., 0]

    published = -(at(x_t).exp() - same + (1 - same) * at(X0)) / t[:, None]
    assert 0 < float(same.sum()) < 6
    assert torch.allclose(DiscreteFlow("kl")(denoiser, X0, t, eps=eps), published.mean(1))


def test_scores_of_their_own_are_trained_unnormalised() -> None:
    process = PROCESSES["absorbing"]

    def net(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        return torch.full((*x.shape, 4), 0.5, dtype=torch.float64)

    t, eps = torch.tensor([0.6, 0.7], dtype=torch.float64), torch.full((2, 3), 0.99)
    x_t = torch.full((2, 3), 3)
    score = TokenDenoiser(net, Score(process))
    loss = ScoreEntropy()(score, X0, t, eps=eps)
    assert torch.allclose(loss, process.score_entropy(score.head.ratios(net(x_t, t, None), x_t, t), X0, x_t, t) / 3)
    normalised = ScoreEntropy()(TokenDenoiser(net, Subs(process)), X0, t, eps=eps)
    assert bool((loss > normalised).all())


def test_given_uniforms_are_fixed_noise() -> None:
    process = PROCESSES["uniform"]
    denoiser = TokenDenoiser(exact_net(sf.oracles.dirichlet(4, 3), process), Softmax(process))
    t, eps = torch.tensor([0.9, 0.8]), sf.Stream(0).uniform((2, 3))
    a, b = (DiscreteFlow()(denoiser, X0, t, rng=k, eps=eps) for k in (1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(*(DiscreteFlow()(denoiser, X0, t, rng=k) for k in (1, 2)))
    many = torch.linspace(0, 1, 1001)[:-1, None]
    drawn = process.marginal(torch.zeros(1000, 1, dtype=torch.int64), 0.5).draw(Uniforms(many))
    law = process.marginal(torch.zeros(1, 1, dtype=torch.int64), 0.5).logp.exp()[0, 0]
    assert torch.allclose(drawn.flatten().bincount(minlength=4).double() / 1000, law, atol=2e-3)


def test_the_bound_of_a_sample_is_unbiased() -> None:
    for process, size in ((PROCESSES["absorbing"], 3), (PROCESSES["uniform"], 4)):
        chain = sf.oracles.dirichlet(size, 2)
        exact = chain.posterior(process)
        truth = chain.nelbo(exact, process).total
        x0 = chain.sequences[[1, 5]].repeat_interleave(2000, 0)
        bound = nelbo(exact, process, x0, 0, draws=4)
        assert bound.diffusion.shape == (4, 4000)
        for k, index in enumerate((1, 5)):
            own = bound.total[2000 * k : 2000 * (k + 1)]
            error = float(own.std()) / math.sqrt(2000)
            assert abs(float(own.mean() - truth[index])) < 4.5 * error, process.kernel
            assert error < 0.1
        later = nelbo(exact, process, x0, 0, draws=4, start=0.1)
        assert float(later.reconstruction.mean()) > 0.01
        assert float(later.total.mean()) == pytest.approx(float(bound.total.mean()), abs=0.15)


REFUSED: dict[str, tuple[Any, str]] = {
    "subs": (lambda: Subs(PROCESSES["uniform"]), "the kernel has no mask"),
    "score": (lambda: Score(PROCESSES["uniform"]), "the kernel has no mask"),
    "logistic": (lambda: Logistic(PROCESSES["uniform"], 3), "outputs=3"),
    "mdlm": (
        lambda: MDLM()(TokenDenoiser(lambda x, t, c: x, Softmax(PROCESSES["uniform"])), X0, torch.ones(2), rng=0),
        "MDLM weighs masked tokens",
    ),
    "steps": (lambda: D3PM(0), "steps=0"),
    "form": (lambda: DiscreteFlow("l2"), "'l2'"),
    "rng": (lambda: MDLM()(TokenDenoiser(None, Subs(PROCESSES["absorbing"])), X0, torch.ones(2)), "rng is None"),
    "uniforms": (lambda: Uniforms(torch.zeros(2, 2)).uniform((2, 3)), "give one a site"),
    "normal": (lambda: Uniforms(torch.zeros(2, 2)).normal((2, 2)), "no normal noise"),
    "draws": (lambda: nelbo(CHAIN.posterior(PROCESSES["absorbing"]), PROCESSES["absorbing"], X0, 0, 0), "draws=0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_one_line(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(sf.Refusal, match=message) as refused:
        call()
    assert "\n" not in str(refused.value)
