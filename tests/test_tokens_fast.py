"""The short ways of tokens give what the long ones give: draws, costs, bridges, memories; equal kernels are equal."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from sfumato import recipes
from sfumato.denoisers.tokens import Posterior, Remembers, Score, Softmax, Subs, TokenDenoiser
from sfumato.laws import Categorical, Dirac
from sfumato.processes import Jump, absorbing, discretised_gaussian, marginal, step_kl, uniform
from sfumato.processes.blocks import Blocks
from sfumato.processes.kernels import RankOne, RateMatrix
from sfumato.randomness import Uniforms
from sfumato.spaces.tokens import Tokens
from sfumato.training import sampling, token_objectives
from sfumato.training.settings import resolve
from sfumato.training.token_objectives import D3PM, MDLM, DiscreteFlow, ScoreEntropy

FLOW = sf.schedules.get("flow")
COSINE = sf.schedules.get("cosine-continuous")
KERNELS: dict[str, Any] = {
    "absorbing": absorbing(5), "absorbing-first": absorbing(5, 0), "uniform": uniform(5),
    "marginal": marginal([0.1, 0.0, 0.5, 0.4, 0.0]), "ordinal": discretised_gaussian(5, 0.3),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- draws


@pytest.mark.parametrize("name", KERNELS)
def test_a_redraw_is_the_inverse_cdf_of_its_row(name: str) -> None:
    kernel, n = KERNELS[name], 499
    u = ((torch.arange(n) + 0.5) / n).expand(5, n)
    x = torch.arange(5)[:, None].expand(5, n)
    each = torch.tensor([0.9, 0.6, 0.35, 0.1, 1.0], dtype=torch.float64)[:, None]
    for r in (1.0, 0.7, 0.2, 0.0, each):
        written_out = Categorical(kernel.rows(x, r, torch.float64)).draw(Uniforms(u))
        assert torch.equal(kernel.redraw(x, r, u), written_out), r
    # a number at the very end stays on a token that has mass
    for edge in (0.0, 1 - 2.0**-24):
        drawn = kernel.redraw(x[:, :1], 0.3, torch.full((5, 1), edge))
        assert bool((kernel.rows(x[:, :1], 0.3, torch.float64).gather(-1, drawn[..., None]) > -torch.inf).all())


@pytest.mark.parametrize("name", KERNELS)
def test_noise_is_a_draw_of_the_marginal(name: str) -> None:
    real = torch.tensor([True, True, False])
    process = Jump(KERNELS[name], FLOW, Tokens(5, None if name == "absorbing-first" else real))
    x0 = torch.tensor([[1, 2, 0], [3, 1, 0]])
    eps = sf.Stream(0).uniform((2, 3))
    for t in (0.4, torch.tensor([0.2, 0.9], dtype=torch.float64)):
        assert torch.equal(process.noised(x0, t, Uniforms(eps)), process.marginal(x0, t).draw(Uniforms(eps)))
    if name != "ordinal":
        end = process.prior(x0).draw(sf.Stream(1))
        assert torch.equal(
            process.noised(x0, 0.5, Uniforms(eps), end), process.marginal(x0, 0.5, end).draw(Uniforms(eps))
        )


def test_noise_of_blocks_is_a_draw_of_their_marginal() -> None:
    process = Blocks(Jump(absorbing(5), COSINE), 2)
    x0, eps = torch.tensor([[1, 2, 0, 3], [3, 1, 0, 2]]), sf.Stream(0).uniform((2, 4))
    for t in (0.3, 0.8):
        assert torch.equal(process.noised(x0, t, Uniforms(eps)), process.marginal(x0, t).draw(Uniforms(eps)))


# ------------------------------------------------------------------------------------------------- costs and bridges


@dataclass(frozen=True)
class Written:
    """A head that only states its belief, so that objectives take their general way."""

    head: Any

    @property
    def process(self) -> Any:
        return self.head.process

    @property
    def outputs(self) -> int:
        return 5

    def __call__(self, raw: Tensor, x_t: Tensor, t: Any) -> Any:
        return self.head(raw.double(), x_t, t)


REDRAWN = marginal([0.1, 0.2, 0.3, 0.15, 0.25])
SHORT: dict[str, tuple[Any, Any]] = {
    "mdlm": (MDLM(), Subs(Jump(absorbing(5), COSINE))),
    "mdlm-steps": (MDLM(9), Subs(Jump(absorbing(5, 0), FLOW))),
    "d3pm": (D3PM(9, 0.3), Subs(Jump(absorbing(5), FLOW))),
    "sedd": (ScoreEntropy(), Subs(Jump(absorbing(5), FLOW))),
    "flow-mask": (DiscreteFlow(), Subs(Jump(absorbing(5), FLOW))),
    "flow-score": (DiscreteFlow(), Score(Jump(absorbing(5), COSINE))),
    "flow-uniform": (DiscreteFlow(), Posterior(Jump(uniform(5), COSINE))),
    "flow-marginal": (DiscreteFlow(), Posterior(Jump(REDRAWN, FLOW))),
    "flow-ordinal": (DiscreteFlow(), Posterior(Jump(discretised_gaussian(5, 0.3), FLOW))),
    "flow-softmax": (DiscreteFlow(), Softmax(Jump(uniform(5), COSINE))),
}


REAL = torch.tensor([True, True, True, False, True, False])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", SHORT)
def test_a_loss_from_raw_outputs_is_the_loss_of_the_belief(name: str, padded: bool) -> None:
    objective, head = SHORT[name]
    x0 = 1 + torch.randint(0, 3, (64, 6), generator=torch.Generator().manual_seed(0))
    if padded and head.process.kernel.mask != 0:
        head = replace(head, process=replace(head.process, space=Tokens(5, REAL)))
        x0 = x0 * REAL
    raw = torch.randn(64, 6, 5, generator=torch.Generator().manual_seed(1))
    raw[::2, REAL, 0] = -torch.inf  # a token that a network rules out
    raw.requires_grad_()
    # at the ends no site is masked, and all are
    t, eps = torch.linspace(0, 1, 64, dtype=torch.float64), sf.Stream(2).uniform((64, 6))

    def of(head: Any) -> tuple[Tensor, Tensor]:
        loss = objective(TokenDenoiser(lambda x, t, cond: raw, head), x0, t, eps=eps)
        (slope,) = torch.autograd.grad(loss.double().mean(), raw)
        return loss.detach().double(), slope

    (short, slope), (long, written) = of(head), of(Written(head))
    assert float(long.max()) > 0.5
    assert bool(torch.isfinite(long).all())
    assert bool(torch.isfinite(written).all())
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope, written, rtol=1e-4, atol=1e-7)


def test_the_entropy_of_masked_sites_is_the_score_entropy() -> None:
    process = Jump(absorbing(5), COSINE)
    head = Score(process)
    x0 = torch.randint(0, 4, (64, 6), generator=torch.Generator().manual_seed(0))
    raw = torch.randn(64, 6, 5, generator=torch.Generator().manual_seed(1))
    t, eps = torch.linspace(1e-3, 1, 64, dtype=torch.float64), sf.Stream(2).uniform((64, 6))
    x_t = process.noised(x0, t, Uniforms(eps))
    short = ScoreEntropy()(TokenDenoiser(lambda x, t, cond: raw, head), x0, t, eps=eps)
    long = process.score_entropy(head.ratios(raw, x_t, t), x0, x_t, t) / 6
    torch.testing.assert_close(short.double(), long, rtol=1e-5, atol=1e-6)


def test_the_bridge_of_masks_is_that_of_their_rates() -> None:
    """The general way, which an absorbing kernel given as a rate matrix takes."""
    short: Any = Jump(absorbing(5), COSINE)
    rates = torch.zeros(5, 5, dtype=torch.float64)
    rates[:, 4] = 1.0
    long: Any = Jump(RateMatrix(rates - torch.eye(5, dtype=torch.float64)), COSINE)
    x_t = torch.tensor([[0, 4, 2, 4, 1]])
    logits = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[0, 3] = -torch.inf  # a belief in nothing at all
    q = Categorical(logits.log_softmax(-1).nan_to_num(nan=-torch.inf))
    for t, s in ((1.0, 0.6), (0.8, 0.3), (0.4, 0.0), (0.5, 0.5)):
        for eta in (1.0, 0.4, 0.0):
            a, b = (p.bridge(x_t, q, t, s, eta).logp.exp() for p in (short, long))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(short.condition(q, x_t, t).logp.exp(), long.condition(q, x_t, t).logp.exp())
    exact = short.bridge(x_t, Dirac(torch.tensor([[0, 3, 2, 1, 1]])), 0.8, 0.3).logp.exp()
    gone = [1 - short.signal(moment) for moment in (0.8, 0.3)]
    assert exact[0, 1].tolist() == pytest.approx([0, 0, 0, 1 - gone[1] / gone[0], gone[1] / gone[0]])


def test_a_token_on_its_way_to_the_mask_is_not_certain() -> None:
    """0 becomes 1, and 1 the mask, 2: what is shown as 1 may have been 0."""
    rates = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -2.0, 2.0], [0.0, 0.0, 0.0]])
    process = Jump(RateMatrix(rates), COSINE)
    assert process.kernel.mask == 2
    even = Categorical(torch.full((1, 1, 3), 1 / 3, dtype=torch.float64).log())
    p = process.condition(even, torch.tensor([[1]]), 0.6).logp.exp()[0, 0]
    assert float(p[0]) > 0.1
    assert float(p[1]) > 0.1

    # so no bound is a weight times the cost of what is masked, and no head carries over what is shown
    x0, raw = (
        torch.tensor([[0, 1, 0, 1]]).expand(40, 4),
        torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(0)),
    )
    t, eps = torch.full((40,), 0.5, dtype=torch.float64), sf.Stream(0).uniform((40, 4))
    x_t = process.noised(x0, t, Uniforms(eps))
    assert bool(((x0 == 0) & (x_t == 1)).any())
    denoiser = TokenDenoiser(lambda x, t, cond: raw, Posterior(process))
    q = denoiser(x_t, t)
    torch.testing.assert_close(ScoreEntropy()(denoiser, x0, t, eps=eps), process.rate(q, x0, x_t, t) / 4)
    s = torch.full((40,), 0.25, dtype=torch.float64)
    bound = D3PM(4, 0.0)(denoiser, x0, t, eps=eps)
    torch.testing.assert_close(bound, step_kl(process, q, x0, x_t, t, s))
    for refused in (lambda: Subs(process), lambda: Score(process), lambda: MDLM()(denoiser, x0, t, eps=eps)):
        with pytest.raises(sf.Refusal, match="masked tokens"):
            refused()


def test_blocks_are_trained_on_their_own_rates() -> None:
    process = Blocks(Jump(absorbing(5), FLOW), 2)
    x0 = torch.randint(0, 4, (64, 6), generator=torch.Generator().manual_seed(0))
    raw = torch.randn(64, 6, 5, generator=torch.Generator().manual_seed(1))
    t, eps = torch.linspace(0.05, 0.95, 64, dtype=torch.float64), sf.Stream(2).uniform((64, 6))
    x_t = process.noised(x0, t, Uniforms(eps))
    for head in (Subs(process), Score(process)):
        denoiser = TokenDenoiser(lambda x, t, cond: raw, head)
        q = denoiser(x_t, t)
        torch.testing.assert_close(ScoreEntropy()(denoiser, x0, t, eps=eps), process.rate(q, x0, x_t, t) / 6)
        _, s = token_objectives._last_step(t, 9)
        later = s + 1 / 9
        x_later = process.noised(x0, later, Uniforms(eps))
        terms = step_kl(process, denoiser(x_later, later), x0, x_later, later, s)
        torch.testing.assert_close(D3PM(9, 0.0)(denoiser, x0, t, eps=eps), 9 * terms / 6)
        with pytest.raises(sf.Refusal, match="an absorbing Jump"):
            MDLM()(denoiser, x0, t, eps=eps)


@pytest.mark.parametrize("short", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [*SHORT, "sedd-score"])
def test_the_loss_of_a_short_format_is_that_of_its_numbers(name: str, short: torch.dtype) -> None:
    """Weights beyond the largest number of float16, and exponents, are worked out in float32."""
    objective, head = SHORT.get(name, (ScoreEntropy(), Score(Jump(absorbing(5), COSINE))))
    x0 = 1 + torch.randint(0, 3, (64, 6), generator=torch.Generator().manual_seed(0))
    raw = (12 * torch.rand(64, 6, 5, generator=torch.Generator().manual_seed(1))).to(short)
    t, eps = torch.logspace(-7, 0, 64, dtype=torch.float64), sf.Stream(2).uniform((64, 6))
    found, wide = (
        objective(TokenDenoiser(lambda x, t, cond, raw=raw: raw, head), x0, t, eps=eps) for raw in (raw, raw.float())
    )
    assert bool(torch.isfinite(found).all())
    assert torch.equal(found, wide)


@pytest.mark.parametrize("name", ["mdlm", "sedd", "d3pm", "discrete-flow", "block-diffusion"])
def test_training_writes_no_law_of_noise_out(name: str, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(name, book)

    def never(*_: Any) -> Tensor:
        raise AssertionError("K numbers a site")

    for law in ("rows", "columns", "push"):
        monkeypatch.setattr(RankOne, law, never)
    loss = model.losses({"x": torch.randint(0, 8, (4, 32))}, sf.Stream(0))["net"]
    assert bool(torch.isfinite(loss).all())


# ----------------------------------------------------------------------------------------------------------- memories

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "length": 32, "precision": "float32"}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("To be, or not to be, that is the question:\nWhether 'tis nobler in the mind\n\n" * 100)
    return path


def build(name: str, book: Path, **settings: Any) -> Any:
    """An untrained model with opinions."""
    recipe = recipes.get(name)
    chosen = resolve(recipe.defaults, SMALL | settings)
    model = recipe.build(chosen, sf.data.load(book).cut(length=32).spec(), {"seed": 0, "horizon": {}})
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.net.parameters():
            if p.ndim == 2:
                p.copy_(0.3 * torch.randn(p.shape, generator=noise))
    model.net.eval()
    return model


class Tokenwise:
    """Counts the tokens that go through a trunk."""

    def __init__(self, model: Any) -> None:
        self.read = 0
        model.net.net.trunk.register_forward_pre_hook(self)

    def __call__(self, module: Any, given: Any) -> None:
        self.read += given[0].shape[1]


@pytest.mark.parametrize(
    ("name", "most"),
    # a token is read once; a block of 8 at each of its 8 steps, and once when it is whole
    [("autoregressive", 32), ("block-diffusion", 32 * 8 + 32)],
)
def test_what_was_read_is_not_read_again_and_samples_stay_as_they_are(
    name: str, most: int, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(name, book, **({"block": 8} if name == "block-diffusion" else {}))
    counted = Tokenwise(model)
    asked = {"seed": 3, "steps": 32}
    found = model.sample(5, **asked)
    assert counted.read <= most
    parts = model.sample(5, batch=2, **asked)
    began = model.sample(5, prompt="Whether", **asked)
    monkeypatch.setattr(sampling, "Remembers", type("Nobody", (), {}))
    counted.read = 0
    assert list(found) == list(parts) == list(model.sample(5, **asked))
    assert counted.read > 2 * most
    assert list(began) == list(model.sample(5, prompt="Whether", **asked))
    assert len(set(found)) == 5


@pytest.mark.parametrize("name", ["autoregressive", "block-diffusion"])
def test_a_memory_is_never_out_of_date(name: str, book: Path) -> None:
    """Whatever was asked before, in whatever order: the belief is that of the state alone."""
    model = build(name, book, **({"block": 8} if name == "block-diffusion" else {}))
    plain, reading = model.denoiser, model.denoiser.remembering()
    assert isinstance(model.denoiser, Remembers)
    mask = model.process.kernel.mask
    text = torch.randint(0, 8, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for shown, other in ((16, 0), (24, 0), (8, 0), (8, 1), (0, 0), (24, 2), (24, 0)):
            x = text.clone()
            x[: 1 if other == 2 else 3] += other  # all texts have changed, or one
            x = x % 8
            x[:, shown:] = mask
            x[:2, shown : shown + 1] = 5 if name == "block-diffusion" else mask  # some of the block is shown
            t = 1 - shown / 32
            a, b = reading(x, t).logp.exp(), plain(x, t).logp.exp()
            torch.testing.assert_close(a[:, : shown + 1], b[:, : shown + 1], rtol=1e-4, atol=1e-5)
        fewer = text[:2].clone()
        fewer[:, 8:] = mask
        torch.testing.assert_close(
            reading(fewer, 0.75).logp.exp()[:, :9], plain(fewer, 0.75).logp.exp()[:, :9], rtol=1e-4, atol=1e-5
        )
        gap = text.clone()
        gap[:, 3] = mask  # no state of this walk: read as it is, all anew, however often
        for x in (gap, gap):
            assert torch.equal(reading(x, 0.2).logp, plain(x, 0.2).logp)
        whole = text.clone()
        whole[:, 24:] = mask
        reading(whole, 0.25)
        whole[:, 8:16] = (whole[:, 8:16] + 1) % 8  # in place, a whole block
        torch.testing.assert_close(
            reading(whole, 0.25).logp.exp()[:, :25], plain(whole, 0.25).logp.exp()[:, :25], rtol=1e-4, atol=1e-5
        )
        gap[:, 3:] = mask
        for place in (3, 4, 4, 5, 6):
            torch.testing.assert_close(
                reading(gap, 1 - place / 32).logp.exp()[:, : place + 1],
                plain(gap, 1 - place / 32).logp.exp()[:, : place + 1],
                rtol=1e-4,
                atol=1e-5,
            )
            gap[:, place] = text[:, place]


def test_threads_may_share_a_model_that_remembers(book: Path) -> None:
    model = build("autoregressive", book)
    alone = {seed: list(model.sample(2, seed=seed)) for seed in (0, 100)}
    found: dict[int, list[str]] = {}

    def work(seed: int) -> None:
        found[seed] = list(model.sample(2, seed=seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_a_network_that_sees_everything_has_nothing_to_remember(book: Path) -> None:
    denoiser = build("mdlm", book).denoiser
    assert denoiser.remembering() is denoiser


# ----------------------------------------------------------------------------------------- equality, refusals, infill


def test_kernels_spaces_and_processes_of_one_value_are_equal() -> None:
    makers: list[Any] = [lambda: absorbing(5), lambda: uniform(4), lambda: discretised_gaussian(4, 0.3)]
    makers += [lambda: Tokens(4), lambda: Tokens(4, torch.tensor([True, False]))]
    makers += [lambda: Jump(absorbing(5), FLOW), lambda: Blocks(Jump(absorbing(5), FLOW), 2)]
    made = [make() for make in makers]
    for k, make in enumerate(makers):
        assert [make() == other for other in made] == [j == k for j in range(len(made))]
        assert hash(make()) == hash(made[k])
    assert absorbing(5) != absorbing(5, 0)
    assert absorbing(5) != "absorbing"
    assert Jump(uniform(4), FLOW) != Jump(uniform(4), COSINE)
    assert Tokens(4, torch.tensor([True, False])) != Tokens(4, torch.tensor([True, True]))
    assert all("\n" not in repr(each) and len(repr(each)) < 130 for each in made if not isinstance(each, Tokens))


def test_a_text_model_is_guided_by_a_weaker_one(book: Path, tmp_path: Path) -> None:
    strong, weak = build("mdlm", book), build("mdlm", book, width=16)
    guided = strong.sample(2, steps=4, autoguide=weak, guidance=2.0)
    assert list(guided) != list(strong.sample(2, steps=4))
    assert guided.record["autoguide"] == "mdlm, raw"
    other = tmp_path / "other.txt"
    other.write_text("A text of another alphabet! " * 300)
    for stranger in (build("mdlm", other), build("sedd", book, kernel="uniform")):
        with pytest.raises(sf.Refusal, match=r"autoguide: the weak model has (units|process)") as refused:
            strong.sample(2, steps=4, autoguide=stranger, guidance=2.0)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 300


def test_a_number_of_steps_that_nobody_reads_is_refused(book: Path) -> None:
    with pytest.raises(sf.Refusal, match="sampling_steps=10 does nothing with recipe=autoregressive"):
        sf.train("autoregressive", book, steps=1, quiet=True, sampling_steps=10, **SMALL)


def test_one_block_infills_and_several_say_why_not(book: Path) -> None:
    shown = "To ___ or not"
    (text,) = build("block-diffusion", book, block=32).sample(1, steps=4, infill=shown)
    assert text[:3] == "To "
    assert text[6:13] == " or not"
    with pytest.raises(sf.Refusal, match="left to right"):
        build("block-diffusion", book, block=8).sample(1, steps=4, infill=shown)
