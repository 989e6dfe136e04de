"""Numbers and masked categories in one state: process, belief, loss, sampler and the network of tables."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.denoisers.mixed import MixedDenoiser, MixedHead
from sfumato.laws import Categorical, Dirac, Joint
from sfumato.nets import TableNet
from sfumato.processes import Gaussian
from sfumato.processes.mixed import NUMBERS, TOKENS, Mixed
from sfumato.samplers.beside import Beside
from sfumato.schedules.share import Share
from sfumato.training.tables import LEAST, RowLoss
from sfumato.training.times import LogitNormal, LogNormalSigma, Steps, Uniform

# ------------------------------------------------------------------------------------------------- masks beside noise

LAWS = {
    "uniform": Uniform(),
    "steps": Steps(1000),
    "logit-normal": LogitNormal(0.3, 1.2),
    "edm": LogNormalSigma(sf.schedules.get("karras")),
}


@pytest.mark.parametrize("name", LAWS)
def test_every_share_is_masked_equally_often(name: str) -> None:
    schedule, law = Share(LAWS[name]), LAWS[name]
    u = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    gone = schedule.gone(law(u))
    assert float((gone - u).abs().max()) < (1.1e-3 if name == "steps" else 3e-4)
    assert sf.schedules.at(schedule, 0.0) == (1.0, 0.0)
    assert sf.schedules.at(schedule, 1.0) == (0.0, 1.0)
    assert bool((schedule.gone(torch.linspace(0, 1, 999, dtype=torch.float64)).diff() >= 0).all())
    assert hash(schedule) == hash(Share(LAWS[name]))
    if name == "uniform":
        t = torch.rand(64, dtype=torch.float64)
        assert torch.allclose(schedule.gone(t), t, atol=1e-7)


def mixed(numbers: int = 1, values: int = 3) -> Mixed:
    return Mixed(Gaussian(sf.schedules.get("flow")), numbers, values, Share(Uniform()))


def test_a_mixed_process_is_its_product() -> None:
    process = mixed(2, 3)
    x0 = torch.tensor([[0.5, -1.0, 2, 0], [1.5, 0.3, 1, 1]]).repeat(2000, 1)
    parts = process.split(x0)
    assert parts[TOKENS].dtype == torch.int64
    for law, same in (
        (process.prior(x0), process.product.prior(parts)),
        (process.marginal(x0, 0.4), process.product.marginal(parts, 0.4)),
        (process.forward(x0, 0.2, 0.5), process.product.forward(parts, 0.2, 0.5)),
    ):
        drawn, other = law.draw(sf.Stream(0)), same.draw(sf.Stream(0))
        assert torch.equal(drawn[:, :2], other[NUMBERS])
        assert torch.equal(drawn[:, 2:], other[TOKENS].float())
        assert torch.equal(law.nll(drawn)[TOKENS], same.nll(other)[TOKENS])
    x_t = process.marginal(x0, 0.6).draw(sf.Stream(1))
    bridge = process.bridge(x_t, Dirac(x0), 0.6, 0.2)
    assert torch.equal(bridge.kl(process.bridge(x_t, Dirac(x0), 0.6, 0.2))[TOKENS], torch.zeros(4000))
    again = process.bridge(x_t, Dirac(x0), 0.6, 0.0).draw(sf.Stream(2))
    assert torch.allclose(again, x0)  # the data at the end
    share = (process.marginal(x0, 0.6).draw(sf.Stream(3))[:, 2:] == 3).float().mean()
    assert float(share) == pytest.approx(0.6, abs=0.03)
    with pytest.raises(sf.Refusal, match="numbers and tokens apart"):
        process.bridge(x_t, Categorical(torch.zeros(1, 2)), 0.6, 0.2)


def denoiser(sizes: tuple[int, ...] = (2, 3), numbers: int = 1, **settings: Any) -> MixedDenoiser:
    torch.manual_seed(0)
    net = TableNet(numbers, sizes, width=16, depth=1, **settings)
    torch.nn.init.normal_(net.last.weight)
    process = mixed(numbers, max(sizes, default=1))
    from sfumato.denoisers import GaussianHead, Preconditioned

    own = Preconditioned(net, GaussianHead(process.gaussian, "flow"))
    return MixedDenoiser(own, net, MixedHead(process, sizes))


def test_a_belief_keeps_to_each_column() -> None:
    model = denoiser()
    x_t = torch.tensor([[0.3, 1, 3], [0.3, 3, 3], [0.1, 0, 2]])  # the mask is 3
    belief = model(x_t, 0.5).parts[TOKENS].logp.exp().detach()
    assert belief.shape == (3, 2, 4)
    assert torch.allclose(belief.sum(-1), torch.ones(3, 2))
    assert belief[0, 0].tolist() == [0, 1, 0, 0]  # shown
    assert belief[2, 1].tolist() == [0, 0, 1, 0]
    assert belief[1, 0, 2:].tolist() == [0, 0]  # the first column has two values; the mask is none
    assert belief[1, 1, 3] == 0
    # a token that is masked is told apart from every value, and each row is its own
    told = [model(torch.tensor([[0.3, float(k), 0.0]]), 0.5).parts[NUMBERS].point() for k in (0, 1, 3)]
    assert len({round(float(v.detach()), 5) for v in told}) == 3
    alone = model(x_t[1:2], 0.5).parts[NUMBERS].point()
    assert torch.allclose(alone, model(x_t, 0.5).parts[NUMBERS].point()[1:2])


def test_one_network_call_a_belief() -> None:
    model, calls = denoiser(), []
    model.net.register_forward_hook(lambda *_: calls.append(1))
    model(torch.zeros(2, 3), 0.5)
    assert len(calls) == 1
    loss = RowLoss(sf.training.objectives.prediction_loss, Share(Uniform()))
    loss(model, torch.zeros(2, 3), torch.full((2,), 0.5), None, sf.Stream(0))
    assert len(calls) == 2


def test_the_loss_of_a_row() -> None:
    from sfumato.training.objectives import prediction_loss

    model = denoiser()
    loss = RowLoss(prediction_loss, Share(Uniform()))
    x0 = torch.tensor([[0.5, 1.0, 2.0], [-0.2, 0.0, 1.0]])
    eps = torch.randn(2, 3)
    # all is masked at t = 1: cross-entropies as the process states them
    found = loss(model, x0, torch.ones(2, dtype=torch.float64), None, sf.Stream(0), eps=eps).detach()
    masked = torch.cat([eps[:, :1], torch.full((2, 2), 3.0)], 1)
    numbers, _ = model.seeing(torch.full((2, 2), 3))
    own = prediction_loss(numbers, x0[:, :1], torch.ones(2, dtype=torch.float64), None, eps=eps[:, :1])
    tokens = model.head.process.jump.loss(model(masked, 1.0).parts[TOKENS], x0[:, 1:].long(), masked[:, 1:].long(), 1.0)
    assert torch.allclose(found, (own + tokens) / 3, atol=1e-5)
    # on average a token costs its cross-entropy, whatever the time, but for the smallest shares
    n, flat = 40_000, denoiser((2,), 0)
    torch.nn.init.zeros_(flat.net.last.weight)
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    costs = loss(flat, torch.zeros(n, 1), t, None, sf.Stream(1)).detach()
    expected = math.log(2) * (1 - LEAST / 2)
    assert float(costs.mean()) == pytest.approx(expected, abs=4.5 * float(costs.std()) / math.sqrt(n))
    with pytest.raises(sf.Refusal, match="rng is None"):
        loss(model, x0, torch.ones(2), None)


class Exact:
    """The exact belief about ``(x, c)``: ``c`` in {0, 1} with chances 0.3 and 0.7, ``x`` normal about -1 and 1."""

    means, std, chances = torch.tensor([-1.0, 1.0]), 0.4, torch.tensor([0.3, 0.7])

    def __init__(self, process: Mixed) -> None:
        self.process, self.calls = process, 0

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Joint:
        self.calls += 1
        parts = self.process.split(x_t)
        x, token = parts[NUMBERS], parts[TOKENS]
        alpha, sigma = sf.schedules.at(self.process.gaussian.schedule, t)
        var = (alpha * self.std) ** 2 + sigma**2
        logp = self.chances.log() - (x - alpha * self.means) ** 2 / (2 * var)
        shown = torch.nn.functional.one_hot(token[:, 0].clamp(max=1), 2).bool()
        logp = torch.where((token == 2) | shown, logp, -math.inf).log_softmax(-1)
        posterior = self.means + alpha * self.std**2 / var * (x - alpha * self.means)
        point = (logp.exp() * posterior).sum(-1, keepdim=True)
        wide = torch.cat([logp, torch.full((len(x), 1), -math.inf)], 1)[:, None]
        return Joint({NUMBERS: Dirac(point), TOKENS: Categorical(wide)})


@pytest.mark.parametrize("sampler", ["heun", "ddim", "ddpm", "dpmpp-2m"])
def test_sampling_an_exact_joint(sampler: str) -> None:
    process, n, steps = mixed(1, 2), 6000, 40
    model = Exact(process)
    x1 = process.prior(torch.zeros(n, 2)).draw(sf.Stream(0))
    assert bool((x1[:, 1] == 2).all())  # all is masked at the beginning
    beside = Beside(sf.samplers.build(sampler))
    grid = sf.grids.uniform(sf.schedules.get("flow"), steps)
    x = sf.sample(model, process, beside, grid, x1, rng=sf.Stream(1))
    one = x[:, 1] == 1
    assert set(x[:, 1].tolist()) == {0.0, 1.0}
    assert float(one.float().mean()) == pytest.approx(0.7, abs=4.5 * math.sqrt(0.21 / n) + 0.01)
    for side, mean in ((one, 1.0), (~one, -1.0)):
        assert float(x[side, 0].mean()) == pytest.approx(mean, abs=0.06)
        assert float(x[side, 0].std()) == pytest.approx(0.4, abs=0.06)
    # after one step from 0.9 to 0.4 as many are masked as the process says, though some solvers look twice
    half = process.marginal(x, 0.9).draw(sf.Stream(2))
    moved, _ = beside.step(model, process, half, 0.9, 0.4, beside.start(model, process, [0.9, 0.4]), sf.Stream(3))
    assert float((moved[:, 1] == 2).float().mean()) == pytest.approx(0.4, abs=4.5 * math.sqrt(0.24 / n))
    model.calls = 0
    sf.sample(model, process, beside, grid, x1, rng=sf.Stream(1))
    assert beside.evaluations == sf.samplers.build(sampler).evaluations
    assert model.calls <= beside.evaluations * steps
    with pytest.raises(sf.Refusal, match="rng is None"):
        sf.sample(model, process, beside, grid, x1)
    with pytest.raises(sf.Refusal, match="no tokens beside"):
        beside.start(model, process.gaussian, [1.0, 0.0])


def test_the_network_of_tables() -> None:
    net = TableNet(2, (2, 4), width=8, depth=2, classes=3)
    numbers, logits = net(torch.randn(5, 2), torch.tensor([[2, 4]] * 5), torch.rand(5))
    assert numbers.shape == (5, 2)
    assert logits.shape == (5, 6)
    assert float((numbers.abs().max() + logits.abs().max()).detach()) == 0  # at the start
    assert TableNet(**net.settings).settings == net.settings
    torch.nn.init.normal_(net.last.weight)
    torch.nn.init.normal_(net.films[0].weight)
    args = (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.long), torch.full((2,), 0.5))
    none = net(*args)[0]
    assert torch.equal(none, net(*args, {"label": torch.full((2,), 3)})[0])  # no label is the null label
    assert not torch.allclose(none, net(*args, {"label": torch.zeros(2, dtype=torch.long)})[0])
    with pytest.raises(sf.Refusal, match="without classes"):
        TableNet(1)(torch.zeros(1, 1), torch.zeros(1, 0, dtype=torch.long), torch.zeros(1), {"label": torch.zeros(1)})
    with pytest.raises(sf.Refusal, match="need a column"):
        TableNet(0, ())
    with pytest.raises(sf.Refusal, match="computes in float32"):
        net.compute_dtype = torch.bfloat16
