"""Control by a gradient: exact on an enumerable language in R^d, on Gaussian data, and through the text recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato.guidance import cfg, of_prediction, of_state, steered
from sfumato.laws import Dirac, Normal
from sfumato.processes import Gaussian, Heat
from sfumato.schedules import at
from sfumato.training.embedded import EmbeddedCodec, EmbeddedNet

V, L = 3, 2
CHAIN = sf.oracles.dirichlet(V, L)
PRIOR = CHAIN.p.flatten()
#: ``p(y | w)``: that both tokens are the same, by a judge who errs one time in twenty.
JUDGED = torch.where(CHAIN.sequences[:, 0] == CHAIN.sequences[:, 1], 0.95, 0.05).double()
POSTERIOR = PRIOR * JUDGED / (PRIOR * JUDGED).sum()


def codec() -> EmbeddedCodec:
    """Orthogonal embeddings of unit mean square, as the recipe keeps them."""
    net = EmbeddedNet(torch.nn.Identity(), V, V).double()
    with torch.no_grad():
        net.weight.copy_(torch.eye(V))
    return EmbeddedCodec(net, L)


CODEC = codec()
ATOMS = CODEC.net.embed(CHAIN.sequences).detach()


@dataclass(frozen=True)
class Language:
    """The enumerable language in R^(L d): its exact belief, and the exact log-probability of the judge's verdict."""

    process: Any
    p: Tensor

    def weights(self, x: Tensor, t: Any) -> Tensor:
        """``log p(w | x_t)``, normalised, ``[b, n]``."""
        # all embeddings are of one length: their squares are common to all sequences
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64).reshape(-1, 1) for v in at(self.process.schedule, t))
        return (self.p.log() + alpha / sigma**2 * (x.flatten(1) @ ATOMS.flatten(1).T)).log_softmax(1)

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Dirac:
        return Dirac((self.weights(x_t, t).exp() @ ATOMS.flatten(1)).reshape(x_t.shape))

    def log_prob(self, x_t: Tensor, t: Any, cond: Any = None) -> Tensor:
        """``log p(y | x_t)``, ``[b]``."""
        return (self.weights(x_t, t) + JUDGED.log()).logsumexp(1)


def language(schedule: str = "square-root") -> Language:
    return Language(Gaussian(sf.schedules.get(schedule)), PRIOR)


def exact(schedule: str = "square-root", **given: Any) -> steered:
    model = language(schedule)
    return steered(model, model.process, of_state(model.log_prob), **given)


# --------------------------------------------------------------------------------------------------- exact gradients


@pytest.mark.parametrize("schedule", ["square-root", "flow", "cosine", "karras", "zero-terminal"])
def test_a_steered_belief_is_the_posterior_mean(schedule: str) -> None:
    """Bayes and Tweedie: with the exact gradient the point is ``E[x0 | x_t, y]``, at every time."""
    model, process = exact(schedule), Gaussian(sf.schedules.get(schedule))
    truth = Language(process, POSTERIOR)
    x0 = CODEC.net.embed(CHAIN.sample(40, 1)).detach()
    for t in (0.9, 0.5, 0.04):
        x_t = process.marginal(x0, t).draw(sf.Stream(2))
        assert torch.allclose(model(x_t, t).point(), truth(x_t, t).point(), rtol=0, atol=1e-9), t
        assert not torch.allclose(language(schedule)(x_t, t).point(), truth(x_t, t).point(), atol=1e-3) or t < 0.1
    times = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    x_t = process.marginal(x0, times).draw(sf.Stream(3))
    assert torch.allclose(model(x_t, times).point(), truth(x_t, times).point(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", ["flow", "zero-terminal", "cosine-continuous"])
def test_without_signal_the_limit_is_taken(schedule: str) -> None:
    """At ``alpha = 0`` the gradient is 0 and its factor infinite: the point is ``E[x0 | y]`` all the same."""
    model, truth = exact(schedule), (POSTERIOR @ ATOMS.flatten(1)).reshape(1, L, V)
    x = sf.Stream(0).normal((20, L, V)).double()
    assert at(sf.schedules.get(schedule), 1.0)[0] < 1e-9
    plain = (PRIOR @ ATOMS.flatten(1)).reshape(1, L, V)
    assert float((plain - truth).abs().max()) > 0.3
    for t in (1.0, torch.ones(20, dtype=torch.float64)):
        assert torch.allclose(model(x, t).point(), truth.expand_as(x), rtol=0, atol=0.1)
        assert torch.allclose(model(x, t).point().mean(0), truth[0], rtol=0, atol=0.03)


#: Steps enough for each to be exact within the bound: on the recipe's own schedule, and on the straight path.
SAMPLERS: dict[str, tuple[str, int]] = {
    "ddpm": ("square-root", 120), "ddim": ("square-root", 120), "ddim:eta=0.5": ("square-root", 120),
    "euler": ("square-root", 120), "dpm-solver": ("square-root", 40), "dpmpp-2m": ("square-root", 40),
    "dpmpp-3m": ("square-root", 40), "unipc": ("square-root", 40), "deis": ("square-root", 40),
    "adams": ("square-root", 40), "lms": ("square-root", 60), "dpmpp-sde": ("square-root", 80),
    "euler-ancestral": ("square-root", 120), "euler-maruyama": ("square-root", 250), "pc": ("square-root", 40),
    "ddpm-large": ("square-root", 60), "heun": ("flow", 40), "pndm": ("flow", 60), "restart": ("flow", 40),
    "rk45:rtol=1e-3:atol=1e-3": ("flow", 3),
}  # fmt: skip


def drawn(model: Any, process: Any, sampler: str, steps: int, n: int = 5000) -> Tensor:
    """The law of the sequences that are read off the samples: a table like the language's."""
    x1 = process.prior(CODEC.like(n, "cpu").double()).draw(sf.Stream(0))
    grid = sf.grids.uniform(process.schedule, steps)
    x = sf.sample(model, process, sf.samplers.build(sampler), grid, x1, rng=1)
    return CHAIN.counts(CODEC.decode(x)) / n


def test_every_sampler_of_numbers_is_steered_here() -> None:
    named = {name.split(":")[0] for name in SAMPLERS} | {"langevin"}
    assert named == set(sf.samplers.names()) - set(sf.samplers.TOKENS) - set(sf.samplers.WALKS)
    # Langevin steps of finite size are biased by themselves: .02 without control, three times as many steps halve it
    found = drawn(exact(), language().process, "langevin", 30, 3000)
    assert sf.oracles.total_variation(found, POSTERIOR) < 0.08


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steered_sampling_follows_bayes(sampler: str) -> None:
    """CHECKS: ``p(x | y)`` of the enumerable language, total variation below .03."""
    schedule, steps = SAMPLERS[sampler]
    found = drawn(exact(schedule), language(schedule).process, sampler, steps)
    assert sf.oracles.total_variation(found, POSTERIOR) < 0.03
    assert sf.oracles.total_variation(PRIOR, POSTERIOR) > 0.2, "the test sees no control"


def test_a_weight_is_a_power_of_the_verdict_in_the_gradient() -> None:
    x_t = language().process.marginal(ATOMS, 0.6).draw(sf.Stream(0))
    plain, once = language()(x_t, 0.6).point(), exact()(x_t, 0.6).point()
    assert torch.equal(exact(w=0.0)(x_t, 0.6).point(), plain)
    assert torch.allclose(exact(w=2.5)(x_t, 0.6).point(), plain + 2.5 * (once - plain))
    each = torch.linspace(0, 2, len(x_t), dtype=torch.float64)
    moved = exact(w=each)(x_t, 0.6).point()
    assert torch.allclose(moved, plain + each[:, None, None] * (once - plain))
    late = exact(when=sf.guidance.interval(0.0, 0.5))
    assert torch.equal(late(x_t, 0.6).point(), plain)
    assert not torch.allclose(late(x_t, 0.4).point(), language()(x_t, 0.4).point())


# -------------------------------------------------------------------------------------------------- of a prediction


@pytest.mark.parametrize("schedule", ["cosine", "flow", "karras"])
def test_a_linear_verdict_on_gaussian_data_is_exact(schedule: str) -> None:
    """``N(m, S)`` tilted by ``exp(c x0)`` is ``N(m + S c, S)``, and so is its belief at every state."""
    mean, cov = torch.tensor([0.4, -1.0]).double(), torch.tensor([[0.5, 0.2], [0.2, 1.0]]).double()
    c = torch.tensor([1.2, -0.7]).double()
    process = Gaussian(sf.schedules.get(schedule))
    data, tilted = sf.oracles.Gaussian(mean, cov), sf.oracles.Gaussian(mean + cov @ c, cov)
    model = steered(data.denoiser(process), process, of_prediction(lambda x0, cond: x0 @ c))
    for t in (1.0, 0.6, 0.1):
        x_t = process.marginal(data.sample(30, 1), t).draw(sf.Stream(2))
        atol = 0.1 if t == 1 and schedule != "karras" else 1e-8  # the limit, of states that differ
        assert torch.allclose(model(x_t, t).point(), tilted.mean(process, x_t, t), rtol=0, atol=atol), t
    x1 = process.prior(torch.zeros(4000, 2).double()).draw(sf.Stream(3))
    x = sf.sample(model, process, sf.samplers.get("dpmpp-2m"), sf.grids.uniform(process.schedule, 60), x1)
    assert torch.allclose(x.mean(0), mean + cov @ c, atol=0.08)
    assert torch.allclose(torch.cov(x.T), cov, atol=0.08)


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser, self.calls = denoiser, 0

    def __call__(self, x_t: Tensor, t: Any, cond: Any = None) -> Any:
        self.calls += 1
        return self.denoiser(x_t, t, cond)


def test_a_prediction_costs_one_evaluation_a_step_and_a_state_no_more() -> None:
    process = language().process
    x1 = process.prior(torch.zeros(4, L, V).double()).draw(sf.Stream(0))
    for control in (of_prediction(lambda x0, cond: x0[:, 0, 0]), of_state(language().log_prob)):
        network = Counted(language())
        model = steered(network, process, control)
        sf.sample(model, process, sf.samplers.get("ddpm"), [0.9, 0.7, 0.4, 0.2, 0.0], x1, rng=0)
        assert network.calls == 4


@pytest.mark.parametrize("t", [1.0, 0.5])
def test_no_weight_is_the_model_itself(t: float) -> None:
    model = language("flow")
    x_t = model.process.prior(torch.zeros(4, L, V).double()).draw(sf.Stream(0))
    for control in (of_prediction(lambda x0, cond: x0[:, 0, 0]), of_state(model.log_prob)):
        assert torch.equal(steered(model, model.process, control, 0.0)(x_t, t).point(), model(x_t, t).point())


def test_gradients_stay_inside() -> None:
    """The belief is detached, no parameter gathers a gradient, and it works where gradients are off."""
    torch.manual_seed(0)
    process = Gaussian(sf.schedules.get("cosine"))
    net = torch.nn.Linear(2, 2)

    def denoiser(x: Tensor, t: Any, cond: Any = None) -> Dirac:
        return Dirac(net(x))

    x = torch.randn(3, 2)
    model = steered(denoiser, process, of_prediction(lambda x0, cond: x0.square().sum(1)), w=0.1)
    expected = model(x, 0.5).point()
    assert not expected.requires_grad
    assert all(p.grad is None for p in net.parameters())
    with torch.no_grad():
        assert torch.equal(model(x, 0.5).point(), expected)
    with torch.inference_mode():
        assert torch.equal(model(x.clone(), 0.5).point(), expected)
    alpha, sigma = at(process.schedule, 0.5)
    slope = 2 * net(x).detach() @ net.weight.detach()
    assert torch.allclose(expected, net(x).detach() + 0.1 * sigma**2 / alpha * slope, atol=1e-6)


def test_it_composes_with_other_wrappers_and_keeps_a_variance() -> None:
    process = Gaussian(sf.schedules.get("cosine"))
    seen: list[Any] = []

    def denoiser(x: Tensor, t: Any, cond: Any = None) -> Normal:
        return Normal(0.5 * x + cond["label"].double()[:, None], 0.3)

    def verdict(x0: Tensor, cond: Any) -> Tensor:
        seen.append(cond["label"].tolist())
        return x0.sum(1)

    x, cond = torch.randn(2, 3, dtype=torch.float64), {"label": torch.tensor([1, 1])}
    guided = cfg(denoiser, lambda c: {"label": 0 * c["label"]}, 2.0)
    q = steered(guided, process, of_prediction(verdict))(x, 0.5, cond)
    alpha, sigma = at(process.schedule, 0.5)
    assert isinstance(q, Normal)
    assert q.var == 0.3
    assert seen == [[1, 1]]
    assert torch.allclose(q.mean, 0.5 * x + 2 + 0.5 * sigma**2 / alpha)
    held = sf.guidance.Mapped(steered(denoiser, process, of_prediction(verdict)), sf.guidance.clip())
    assert float(held(x, 0.5, cond).point().abs().max()) <= 1


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("log_prob", "message"),
    [
        (lambda x, t, cond: x.sum(), r"gives \(\) for 2 states"),
        (lambda x, t, cond: x, r"gives \(2, 3\) for 2 states"),
        (lambda x, t, cond: 1.0, "gives float for 2 states"),
        (lambda x, t, cond: x.detach().sum(1), "its gradient is cut"),
        (lambda x, t, cond: x.argmax(1).double(), "its gradient is cut"),
    ],
)
def test_a_control_that_does_not_fit_is_refused_in_one_line(log_prob: Any, message: str) -> None:
    process = Gaussian(sf.schedules.get("cosine"))
    model = steered(lambda x, t, cond: Dirac(x), process, of_state(log_prob))
    with pytest.raises(sf.Refusal, match=message) as refused:
        model(torch.randn(2, 3), 0.5)
    assert "\n" not in str(refused.value)


def test_processes_without_a_free_score_are_refused() -> None:
    control = of_prediction(lambda x0, cond: x0.flatten(1).sum(1))
    with pytest.raises(sf.Refusal, match="needs a Gaussian process of free coordinates, not Heat"):
        steered(language(), Heat(), control)
    edges = Gaussian(sf.schedules.get("cosine"), sf.spaces.SymmetricEdges())
    with pytest.raises(sf.Refusal, match="not Gaussian on SymmetricEdges"):
        steered(language(), edges, control)


@pytest.mark.parametrize(
    "data",
    [
        sf.oracles.Empirical(torch.tensor([[1.0, 0.0], [-1.0, 0.5]]).double()),
        sf.oracles.GaussianMixture([0.5, 0.5], [[1.0, 0.0], [-1.0, 0.5]], 0.09),
    ],
)
def test_beliefs_of_several_places_are_refused_and_their_points_are_not(data: Any) -> None:
    """A law that is more than its point is not replaced by it: with ``w = 0`` it would not be the model."""
    process = Gaussian(sf.schedules.get("cosine"))
    x = process.prior(torch.zeros(3, 2).double()).draw(sf.Stream(0))
    for control in (of_prediction(lambda x0, cond: x0.sum(1)), of_state(lambda x, t, cond: x.sum(1))):
        with pytest.raises(sf.Refusal, match="has none to move") as refused:
            steered(data.posterior(process), process, control, 0.0)(x, 0.5)
        assert "\n" not in str(refused.value)
        point = data.denoiser(process)
        assert torch.equal(steered(point, process, control, 0.0)(x, 0.5).point(), point(x, 0.5).point())


# ------------------------------------------------------------------------------------------------------- text recipe


def test_the_text_recipe_is_steered_to_a_first_letter(tmp_path: Path) -> None:
    """Texts begin with the letter that is asked for, read off the prediction or, by Bayes' rule for one token, off the
    state."""
    from sfumato.training.embedded import rounding

    (tmp_path / "book.txt").write_text("To be, or not to be, that is the question:\n\n" * 200)
    own = {
        "width": 32, "depth": 1, "heads": 2, "length": 16, "batch": 16, "validation_images": 16, "grid_columns": 0,
        "lr": 1e-2, "warmup": 5, "reports": 1,
    }  # fmt: skip
    model = sf.train("diffusion-lm", tmp_path / "book.txt", steps=200, quiet=True, **own)
    table, letter = model.net.table(), int(model.transform.tokenizer.encode("q")[0])

    def seen(x_t: Tensor, t: Any, cond: Any) -> Tensor:
        return rounding(x_t[:, :1], table, *at(model.process.schedule, t)).log_softmax(-1)[:, 0, letter]

    def believed(x0: Tensor, cond: Any) -> Tensor:
        return rounding(x0[:, :1], table, 1.0, 1.0).log_softmax(-1)[:, 0, letter]

    x1 = model.process.prior(model.like(40)).draw(sf.Streams(range(40)))
    share = {}
    for name, denoiser in {
        "plain": model.denoiser, "state": steered(model.denoiser, model.process, of_state(seen)),
        "prediction": steered(model.denoiser, model.process, of_prediction(believed)),
    }.items():  # fmt: skip
        grid = sf.grids.uniform(model.process.schedule, 24)
        x = sf.sample(denoiser, model.process, sf.samplers.get("ddpm"), grid, x1, rng=sf.Streams(range(40)))
        texts = list(model.decode(x))
        assert all(len(text) == 16 for text in texts)
        share[name] = sum(text[0] == "q" for text in texts) / 40
    assert share["plain"] < 0.3
    assert share["state"] > 0.7
    assert share["prediction"] > 0.9
    clamped = sf.guidance.Mapped(model.denoiser, model.parts.clean)  # it picks an embedding: nothing to derive
    with pytest.raises(sf.Refusal, match="its gradient is cut"):
        steered(clamped, model.process, of_prediction(lambda x0, cond: x0[:, 0, 0]))(x1, 0.5)
