"""Every recipe for text: trains, stores, samples, holds what it is given, and states what its likelihood is."""

from __future__ import annotations

import copy
import inspect
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sfumato as sf
from sfumato import recipes
from sfumato.likelihood.text import bits_per_character
from sfumato.training import decoding
from sfumato.training.composition import allowed_steps

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind to suffer\n\n"
SMALL: dict[str, Any] = {
    "width": 32, "depth": 1, "heads": 2, "length": 32, "batch": 16, "reports": 1, "validation_images": 48,
    "grid_columns": 1, "grid_steps": 4, "warmup": 5, "lr": 1e-2,
}  # fmt: skip
#: Recipes whose belief is over tokens: they take prompts.
TOKENS = [name for name in recipes.names("text") if name not in ("diffusion-lm", "latent-text")]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(TEXT * 200)
    return path


def own(name: str) -> dict[str, Any]:
    return SMALL | ({"latent": 16} if name == "latent-text" else {})


@pytest.fixture(scope="module")
def models(book: Path) -> dict[str, Any]:
    """A model of each recipe, a few steps old."""
    return {name: sf.train(name, book, steps=40, quiet=True, **own(name)) for name in recipes.names("text")}


def test_all_the_recipes_for_text_are_there() -> None:
    assert set(recipes.names("text")) == {
        "d3pm", "mdlm", "sedd", "discrete-flow", "diffusion-lm", "latent-text", "autoregressive", "block-diffusion",
    }  # fmt: skip


#: What makes each recipe itself: the mask, the head and the objective.
COMPOSED = {
    ("mdlm", ""): (True, "Subs", "MDLM"),
    ("sedd", ""): (True, "Score", "ScoreEntropy"),
    ("sedd", "kernel=uniform"): (False, "Posterior", "ScoreEntropy"),
    ("d3pm", ""): (True, "Subs", "D3PM"),
    ("d3pm", "kernel=uniform"): (False, "Posterior", "D3PM"),
    ("d3pm", "kernel=gaussian"): (False, "Posterior", "D3PM"),
    ("discrete-flow", ""): (False, "Posterior", "DiscreteFlow"),
    ("discrete-flow", "source=mask"): (True, "Subs", "DiscreteFlow"),
    ("autoregressive", ""): (True, "Subs", "NextTokenLoss"),
    ("block-diffusion", ""): (True, "Subs", "BlockBound"),
}


@pytest.mark.parametrize(("name", "given"), COMPOSED)
def test_each_recipe_is_its_own_composition(name: str, given: str, book: Path) -> None:
    """The parts are those of the paper; what each part computes is checked against exact values elsewhere."""
    from sfumato.training.settings import resolve

    recipe = recipes.get(name)
    settings = resolve(recipe.defaults, SMALL | dict([given.split("=")] if given else []))
    spec = sf.data.load(book).cut(length=32).spec()
    parts = recipe.build(settings, spec, {"seed": 0, "horizon": {}}).parts
    masked, head, objective = COMPOSED[name, given]
    kernel = parts.denoiser.head.process.kernel
    assert (kernel.mask is not None) == masked
    assert kernel.size == spec["vocabulary"] + int(masked)
    assert (type(parts.denoiser.head).__name__, type(parts.objective).__name__) == (head, objective)
    if given == "kernel=gaussian":  # neighbours, not any token
        chances = kernel.rows(torch.tensor([[5]]), 0.9, torch.float64).exp()[0, 0]
        assert float(chances[6]) > float(chances[12])


@pytest.mark.parametrize("name", recipes.names("text"))
def test_a_run_learns_stores_and_samples(name: str, book: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = sf.train(name, book, steps=60, out=run, quiet=True, **own(name) | {"reports": 2})
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "validation"]
    assert held_out[1] < held_out[0]
    assert (run / "grids" / "step-000060.txt").read_text().startswith("---")
    steps = allowed_steps(model.parts, 5)
    samples = model.sample(3, steps=steps, seed=4)
    again = sf.load(run).sample(3, steps=steps, seed=4)
    assert list(samples) == list(again)
    assert all(len(text) == 32 and set(text) <= set(TEXT) for text in samples)
    # sample k depends on its own seed alone
    assert model.sample(1, steps=steps, seed=6)[0] == samples[2]
    samples.save(tmp_path / "samples")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "samples.json", "samples.npz", "samples.txt",
    ]  # fmt: skip
    import numpy as np

    assert list(np.load(tmp_path / "samples" / "samples.npz")["x"]) == list(samples)


@pytest.mark.parametrize("name", TOKENS)
def test_a_prompt_comes_back_unchanged(name: str, models: dict[str, Any]) -> None:
    model = models[name]
    samples = model.sample(4, steps=model.parts.steps or 6, prompt="Whether")
    assert all(text.startswith("Whether") and len(text) == 32 for text in samples)
    assert len(set(samples)) > 1
    assert samples.record["prompt"] == "Whether"


@pytest.mark.parametrize("name", [name for name in TOKENS if name not in ("autoregressive", "block-diffusion")])
def test_infilling_keeps_what_is_given(name: str, models: dict[str, Any]) -> None:
    shown = "To ___ or not ___ be, _____ the "
    for text in models[name].sample(3, steps=6, infill=shown):
        assert len(text) == len(shown)
        assert all(a == b for a, b in zip(text, shown, strict=True) if b != "_")


@pytest.mark.parametrize("name", recipes.names("text"))
def test_bits_per_character_say_what_they_are(name: str, models: dict[str, Any], book: Path) -> None:
    model = models[name]
    data = sf.data.load(book).prepared(model.settings)
    if name == "latent-text":
        with pytest.raises(sf.Refusal, match="no likelihood"):
            bits_per_character(model, data, 4)
        return
    record = bits_per_character(model, data, 12, batch=5)
    assert record.sampler == ("exact" if name == "autoregressive" else "NELBO")
    assert 0 < record.value < (1e4 if name == "diffusion-lm" else 12)
    assert record.settings["standard_error"] > 0
    # a window draws from its own stream: the batch does not matter
    assert bits_per_character(model, data, 12, batch=12).value == pytest.approx(record.value, rel=1e-4)


def test_a_text_that_is_cut_into_other_tokens_is_refused(models: dict[str, Any], book: Path, tmp_path: Path) -> None:
    """Other characters, the same in another order, other tokens: the numbers do not mean what the model learned."""
    from sfumato.data.text import TextData

    model, other = models["mdlm"], tmp_path / "other.txt"
    other.write_text("be not to or that is the question\n" * 300)
    short = sf.data.load(other)
    again = sf.data.load(book)
    turned = type(model.transform.tokenizer)(model.transform.tokenizer.alphabet[::-1])
    for data, told in (
        (short.prepared(model.settings), r"characters of \d+ \('.+'\)"),
        (again.cut("bytes", 32), "bytes of 256"),
        (TextData.of(again.corpus, turned, 32), "characters of "),
    ):
        with pytest.raises(
            sf.Refusal, match=rf"the model reads characters of \d+ \(.+\), .* is cut into {told}"
        ) as told_so:
            bits_per_character(model, data, 4)
        assert "cut it as the model reads: TextData.of(" in str(told_so.value)
        assert "\n" not in str(told_so.value)
    own = TextData.of(short.corpus, model.transform.tokenizer, model.transform.length)
    assert bits_per_character(model, own, 4).value > 0


def test_d3pm_adds_the_cross_entropy_where_tokens_are_masked_alone(book: Path) -> None:
    """The weights of the paper's code for text, unless one is given."""
    for given, weight in (
        ({}, 0.01), ({"kernel": "absorb"}, 0.01), ({"kernel": "uniform"}, 0.0), ({"kernel": "gaussian"}, 0.0),
        ({"kernel": "uniform", "auxiliary": 0.3}, 0.3), ({"auxiliary": 0.0}, 0.0),
    ):  # fmt: skip
        model = sf.train("d3pm", book, steps=1, quiet=True, **SMALL, **given)
        assert model.settings.auxiliary == weight
        assert model.parts.objective.auxiliary == weight


def test_an_untrained_model_knows_nothing(book: Path) -> None:
    """A uniform belief costs the log of the alphabet, and the bound of masked diffusion says just that."""
    data = sf.data.load(book)
    alphabet = data.vocabulary
    for name in ("autoregressive", "mdlm", "block-diffusion"):
        recipe = recipes.get(name)
        from sfumato.training.settings import resolve

        model = recipe.build(resolve(recipe.defaults, SMALL), data.cut(length=32).spec(), {"seed": 0, "horizon": {}})
        for parameter in model.net.parameters():
            torch.nn.init.zeros_(parameter)
        model.net.eval()
        bits = bits_per_character(model, data.cut(length=32), 50).value
        assert bits == pytest.approx(math.log2(alphabet), rel=1e-5 if name == "autoregressive" else 0.1)


def test_a_next_token_sees_those_before_it_alone(models: dict[str, Any]) -> None:
    denoiser = models["autoregressive"].denoiser
    x = torch.randint(0, 10, (1, 32), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 20] = (x[0, 20] + 1) % 10
    with torch.no_grad():
        a, b = denoiser.net(x, None), denoiser.net(other, None)
    assert torch.equal(a[:, :21], b[:, :21])
    assert not torch.allclose(a[:, 21], b[:, 21])
    # a state with masks after the prefix gives the next token the same belief
    hidden = x.clone()
    hidden[:, 20:] = denoiser.head.process.kernel.mask
    with torch.no_grad():
        assert torch.allclose(denoiser.net(hidden, None)[:, 20], a[:, 20], atol=1e-5)


def test_blocks_learn_at_times_of_their_own(models: dict[str, Any]) -> None:
    """At base time .5 of two blocks, one is at .5 and the other at 1: not both alike."""
    denoiser = models["block-diffusion"].denoiser
    seen: list[torch.Tensor] = []

    class Recorder:
        def blocks(self, x: torch.Tensor, clean: torch.Tensor, t: torch.Tensor, cond: Any) -> torch.Tensor:
            seen.append(t)
            return torch.zeros((*x.shape, denoiser.head.process.kernel.size))

    class Net:
        net = Recorder()

    from sfumato.denoisers.tokens import TokenDenoiser
    from sfumato.training.text import BlockBound

    x0 = torch.zeros((3, 32), dtype=torch.int64)
    BlockBound().at(TokenDenoiser(Net(), denoiser.head), x0, torch.full((3,), 0.25), sf.Stream(0))
    assert torch.allclose(seen[0][:, :16], torch.tensor(0.25))
    assert torch.allclose(seen[0][:, 16:], torch.tensor(0.75))


def test_the_denoiser_does_not_move_the_latents(models: dict[str, Any]) -> None:
    """With the decoder's part taken away, the loss has no gradient in the encoder."""
    model = models["latent-text"]
    net = model.net.requires_grad_(True)
    objective = model.parts.objective
    x0 = torch.zeros((4, 32), dtype=torch.int64)
    for parameter in net.parameters():
        parameter.grad = None
    torch.manual_seed(0)
    frozen = [p.requires_grad_(False) for p in net.decoder.parameters()]
    original, net.logits = net.logits, lambda z: original(z.detach())
    try:
        loss = objective(model.denoiser, x0, torch.full((4,), 0.5, dtype=torch.float64), None, sf.Stream(0))
        torch.autograd.backward([loss.mean()])
        assert all(p.grad is None for p in net.encoder.parameters())
        assert any(p.grad is not None for p in net.net.parameters())
    finally:
        del net.logits
        for parameter in frozen:
            parameter.requires_grad_(True)
        net.requires_grad_(False)


def test_embeddings_are_kept_apart(models: dict[str, Any]) -> None:
    """Equal embeddings have no square error, but reading tokens off them costs the log of the alphabet, twice."""
    from dataclasses import replace

    model = models["diffusion-lm"]
    net, objective = copy.deepcopy(model.net), model.parts.objective
    with torch.no_grad():
        net.weight.copy_(net.weight[:1].expand_as(net.weight))
        denoiser = replace(model.denoiser, net=net)
        t = torch.full((4,), 0.001, dtype=torch.float64)
        x0 = torch.zeros((4, 32), dtype=torch.int64)
        loss = objective(denoiser, x0, t, None, sf.Stream(0))
        square = type(objective)(objective.first, 1e-9)(denoiser, x0, t, None, sf.Stream(0))
    assert torch.allclose(loss - square, torch.tensor(2 * math.log(len(net.weight))), rtol=1e-3)


def test_temperature_zero_is_greedy_and_leaves_the_number_of_steps(models: dict[str, Any]) -> None:
    model = models["autoregressive"]
    greedy = [model.sample(1, temperature=0.0, seed=seed)[0] for seed in (0, 1)]
    assert greedy[0] == greedy[1]
    assert model.sample(1, temperature=0.0).record["temperature"] == 0.0
    assert models["mdlm"].sample(2, steps=6, temperature=0.5, top_p=0.9).record["nfe"] == 6


def test_watching_sees_every_step(models: dict[str, Any]) -> None:
    from sfumato.cli.text import HIDDEN, as_text

    seen: list[str] = []
    model = models["mdlm"]
    samples = model.sample(2, steps=5, watch=lambda step, steps, x: seen.append(as_text(model, x[0])))
    assert len(seen) == 6
    assert seen[0] == HIDDEN * 32
    assert seen[-1] == samples[0]
    hidden = [text.count(HIDDEN) for text in seen]
    assert hidden == sorted(hidden, reverse=True)


class Terminal(io.StringIO):
    """A standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_text_as_it_appears(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.__main__ import run
    from sfumato.cli.text import HIDDEN

    sf.train("mdlm", book, steps=2, out=tmp_path / "run", quiet=True, **SMALL)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", screen := Terminal())
    assert run(["sample", str(tmp_path / "run"), "--n", "2", "--steps", "5"]) == 0
    monkeypatch.undo()
    first, *frames = re.split(r"(step \d+ of 5)", screen.getvalue())
    assert HIDDEN not in first
    assert list(dict.fromkeys(frames[::2])) == [f"step {k} of 5" for k in range(6)]
    shown = dict(zip(frames[::2], (text.count(HIDDEN) for text in frames[1::2]), strict=True))
    hidden = [shown[f"step {k} of 5"] for k in range(6)]
    assert hidden[0] == 32
    assert hidden[-1] == 0
    assert hidden == sorted(hidden, reverse=True)
    assert any(0 < count < 32 for count in hidden)
    assert screen.getvalue().count("-" * 40) == 3  # then what was made, and nothing of it moves


@pytest.mark.parametrize("name", ["mdlm", "autoregressive", "block-diffusion"])
def test_a_refused_sampler_names_one_that_works(name: str, models: dict[str, Any]) -> None:
    model, refusals = models[name], set()
    steps = allowed_steps(model.parts, 2)
    for sampler in [*sf.samplers.names(), "auto"]:
        try:
            model.sample(1, steps=steps, sampler=sampler)
        except sf.Refusal as refusal:
            refusals.add(str(refusal))
    mends = {refusal: re.findall(r"'([\w-]+)'", refusal.rpartition("; use ")[2]) for refusal in refusals}
    assert mends
    assert all(mends.values()), mends
    for sampler in {sampler for named in mends.values() for sampler in named}:
        assert len(model.sample(1, steps=steps, sampler=sampler)[0]) == 32


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompt": "x" * 40}, "40 tokens|do not know|unknown|characters"),
        ({"prompt": "to" * 20}, "40 tokens"),
        ({"prompt": "\u00fcber"}, "\u00fc"),
        ({"prompt": ""}, "empty"),
        ({"infill": "To be"}, "nothing to fill"),
        ({"prompt": "To", "infill": "To ___"}, "at once"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"label": "7"}, "without classes"),
        ({"guidance": 2.0}, "guidance"),
        ({"threshold": "static"}, "threshold"),
        ({"sampler": "heun"}, "Heun|heun"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(asked: dict[str, Any], message: str, models: dict[str, Any]) -> None:
    with pytest.raises(sf.Refusal, match=message) as refusal:
        models["mdlm"].sample(2, steps=3, **asked)
    assert "\n" not in str(refusal.value)


def test_a_prompt_that_is_no_string_is_refused(models: dict[str, Any]) -> None:
    given = inspect.unwrap(decoding.given)  # without the check of types that tests alone make
    for asked, message in (
        ((5, None), "prompt=5 is no text; give a string"),
        ((None, ["To _"]), r"infill=\['To _'\] is"),
    ):
        with pytest.raises(sf.Refusal, match=message) as refusal:
            given(models["mdlm"], *asked)
        assert "\n" not in str(refusal.value)


def test_text_is_refused_where_it_cannot_be(models: dict[str, Any], book: Path, tmp_path: Path) -> None:
    with pytest.raises(sf.Refusal, match="left to right"):
        models["autoregressive"].sample(1, infill="To ___")
    with pytest.raises(sf.Refusal, match="32 steps"):
        models["autoregressive"].sample(1, steps=8)
    with pytest.raises(sf.Refusal, match="multiple"):
        models["block-diffusion"].sample(1, steps=5)  # a step over the border would show what nobody predicted
    for name in ("diffusion-lm", "latent-text"):
        with pytest.raises(sf.Refusal, match="no tokens to hold"):
            models[name].sample(1, prompt="To")
    with pytest.raises(sf.Refusal, match=r"temperature=0\.5"):
        sf.train("d3pm", book, steps=2, quiet=True, **SMALL, kernel="uniform").sample(1, temperature=0.5)
    with pytest.raises(sf.Refusal, match="follows points"):
        models["mdlm"].sample(1, steps=3, sampler="ddim")
    with pytest.raises(sf.Refusal, match="prior of Jump is at t=1"):
        models["mdlm"].sample(1, steps=3, grid="leading")
    with pytest.raises(sf.Refusal, match="makes text"):
        sf.train("mdlm", "digits", steps=1, quiet=True)
    with pytest.raises(sf.Refusal, match="makes images"):
        sf.train("edm", book, steps=1, quiet=True)
    with pytest.raises(sf.Refusal, match="standardise=True does nothing with kind=text"):
        sf.train("mdlm", book, steps=1, quiet=True, **SMALL, standardise=True)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(sf.Refusal, match="empty"):
        sf.train("mdlm", empty, steps=1, quiet=True)
    with pytest.raises(sf.Refusal, match="divisor"):
        sf.train("block-diffusion", book, steps=1, quiet=True, **SMALL | {"block": 5})


def test_confidence_ranks_by_what_the_model_believes(models: dict[str, Any]) -> None:
    """A temperature given from outside is the sampler's own: it chooses tokens, and never which place comes first."""
    from sfumato.training.sampling import plan

    model = models["mdlm"]
    job = plan(model, 2, sampler="confidence", steps=4, temperature=0.5, top_p=0.9)
    assert (job.sampler.temperature, job.sampler.top_p) == (0.5, 0.9)
    assert (job.choice.temperature, job.choice.top_p) == (1.0, 1.0)
    assert (job.temperature, job.top_p) == (0.5, 0.9)


def test_the_chain_bound_is_the_oracles() -> None:
    """The bound of a chain at the exact belief is its enumerated value, for masks and for tokens that are redrawn."""
    from sfumato.processes import Jump, absorbing, uniform
    from sfumato.training.text import ChainBound

    chain = sf.oracles.dirichlet(3, 3)
    x0 = chain.sample(3000, sf.Stream(0))
    for kernel, schedule in ((absorbing(4), "flow"), (uniform(3), "cosine-continuous")):
        process = Jump(kernel, sf.schedules.get(schedule))
        denoiser = Stated(chain.posterior(process), process)
        grid = sf.grids.uniform(process.schedule, 4)
        exact = float((chain.p.flatten() * chain.elbo(denoiser, process, grid).total).sum())
        found = ChainBound(4, draws=4)(denoiser, x0, sf.Stream(1))
        assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / len(x0) ** 0.5, schedule


def test_a_chains_bound_counts_its_prior() -> None:
    """Where a schedule leaves some signal the prior costs, and the bound says so."""
    from sfumato.processes import Jump, uniform
    from sfumato.training.text import ChainBound

    chain, schedule = sf.oracles.dirichlet(3, 3), sf.schedules.get("linear", steps=10)
    process = Jump(uniform(3), schedule)
    x0 = chain.sample(2000, sf.Stream(0))
    prior = process.marginal(x0, 1.0).kl(process.prior(x0)).mean()
    assert float(prior) > 0.5
    denoiser = Stated(chain.posterior(process), process)
    found = ChainBound(4, draws=4)(denoiser, x0, sf.Stream(1))
    exact = float((chain.p.flatten() * chain.elbo(denoiser, process, sf.grids.uniform(schedule, 4)).total).sum())
    assert exact > chain.entropy + 0.1
    assert abs(float(found.mean()) - exact) < 4.5 * float(found.std()) / len(x0) ** 0.5


def test_redrawn_tokens_are_certain_near_the_data(book: Path) -> None:
    """A kernel that redraws: whatever the network says, at small t the token shown is the data's."""
    for name, own in (("d3pm", {"kernel": "uniform"}), ("sedd", {"kernel": "uniform"}), ("discrete-flow", {})):
        model = sf.train(name, book, steps=1, quiet=True, **SMALL, **own)
        x = torch.randint(0, 5, (2, 32), generator=torch.Generator().manual_seed(0))
        for t in (1e-3, 1e-5):
            with torch.no_grad():
                q = model.denoiser(x, t)
            other = 1 - q.logp.exp().gather(-1, x[..., None])[..., 0]
            assert float(other.max()) < 30 * t, name
            assert float(other.min()) > 0, name


def test_embeddings_that_lie_together_cost_the_reading() -> None:
    """Equal embeddings: nothing can be read, and the bound is the log of the vocabulary at the least."""
    from sfumato.laws import Dirac
    from sfumato.processes import Gaussian
    from sfumato.training.embedded import EmbeddedNelbo, EmbeddedNet

    net = EmbeddedNet(torch.nn.Identity(), 5, 4)
    with torch.no_grad():
        net.weight.copy_(torch.ones(5, 4))
        denoiser = Stated(lambda x, t: Dirac(torch.ones_like(x)), Gaussian(sf.schedules.get("square-root")), net)
        bound = EmbeddedNelbo(0.001)(denoiser, torch.zeros((3, 2), dtype=torch.int64), sf.Stream(0))
    assert float(bound.mean()) == pytest.approx(2 * math.log(5), rel=0.05)


def orthogonal(size: int) -> Any:
    """An embedding net whose rows stand at right angles, and itself as its network."""
    from sfumato.training.embedded import EmbeddedNet

    net = EmbeddedNet(torch.nn.Identity(), size, size)
    with torch.no_grad():
        net.weight.copy_(torch.eye(size))
    return net.requires_grad_(False)


class Softmax:
    """The exact belief of independent tokens with these probabilities, at orthogonal embeddings: a softmax's mean."""

    def __init__(self, net: Any, p: torch.Tensor, schedule: Any) -> None:
        self.net, self.p, self.schedule = net, p, schedule

    def weights(self, x: torch.Tensor, t: Any) -> torch.Tensor:
        alpha, sigma = sf.schedules.at(self.schedule, t, x)
        return (alpha / sigma**2 * (x @ self.net.table().T) + self.p.log()).softmax(-1)

    def __call__(self, x: torch.Tensor, t: Any, cond: Any = None) -> Any:
        return sf.laws.Dirac(self.weights(x, t) @ self.net.table())


def test_clamping_moves_a_belief_to_the_likeliest_embedding() -> None:
    """Orthogonal embeddings: the nearest to the posterior mean is that of the closed softmax's likeliest token."""
    from sfumato.laws import Dirac, Normal
    from sfumato.training.embedded import EmbeddedCodec

    size, length, schedule = 5, 3, sf.schedules.get("square-root")
    net, p = orthogonal(size), torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    model, codec = Softmax(net, p, schedule), EmbeddedCodec(net, length)
    x_t = torch.randn(400, length, size, generator=torch.Generator().manual_seed(0))
    for t in (0.05, 0.4, 0.9):
        likeliest = model.weights(x_t, t).argmax(-1)
        assert len(likeliest.unique()) > 1
        clamped = codec.clamp(model(x_t, t))
        assert torch.equal(clamped.x, net.table()[likeliest])
        assert torch.equal(codec.clamp(Normal(model(x_t, t).point(), 0.1)).x, clamped.x)
        assert torch.equal(codec.clamp(clamped).x, clamped.x)  # an embedding stays where it is
    shown = net.embed(torch.tensor([[3, 0, 4]]))
    assert torch.equal(codec.clamp(Dirac(shown)).x, shown)


def test_clamped_and_free_walks_differ() -> None:
    """One step of DDIM goes straight to the belief: clamped it is an embedding, free it is a mean of them."""
    from sfumato.processes import Gaussian
    from sfumato.training.embedded import EmbeddedCodec

    size, n, schedule = 5, 64, sf.schedules.get("square-root")
    net, process = orthogonal(size), Gaussian(schedule)
    free = Softmax(net, torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]), schedule)
    codec = EmbeddedCodec(net, 2)
    clamped = sf.guidance.Mapped(free, codec.clamp)
    x1 = process.prior(codec.like(n, "cpu")).draw(sf.Streams(range(n)))
    for steps in (1, 8):
        grid, sampler = sf.grids.uniform(schedule, steps), sf.samplers.get("ddim")
        ends = {name: sf.sample(model, process, sampler, grid, x1) for name, model in (("on", clamped), ("off", free))}
        off = {name: float((x - net.embed(codec.decode(x))).abs().amax()) for name, x in ends.items()}
        assert off["on"] == 0.0
        assert off["off"] > 0.01
    middle = {
        name: sf.sample(model, process, sf.samplers.get("ddim"), [1.0, 0.5], x1)
        for name, model in (("on", clamped), ("off", free))
    }
    assert float((middle["on"] - middle["off"]).abs().amin()) > 1e-4  # not the last step alone


def test_the_setting_clamp_says_whether_states_end_on_embeddings(book: Path) -> None:
    from sfumato.training.sampling import carry_out, plan

    ends = {}
    for clamp in (True, False):
        model = sf.train("diffusion-lm", book, steps=2, quiet=True, **SMALL, clamp=clamp)
        assert (model.parts.clean is not None) == clamp
        walked = carry_out(model, plan(model, 2, steps=4)).x
        ends[clamp] = walked, model.parts.codec.net.embed(model.parts.codec.decode(walked))
    assert torch.equal(*ends[True])
    assert not torch.allclose(*ends[False], atol=1e-2)


class Stated:
    """A belief in the place of a network and its head."""

    def __init__(self, belief: Any, process: Any, net: Any = None) -> None:
        self.belief, self.net, self.head = belief, net, SimpleNamespace(process=process)

    def __call__(self, x: torch.Tensor, t: Any, cond: Any = None) -> Any:
        return self.belief(x, t)


def test_the_bound_of_embeddings_is_tight_at_the_exact_belief() -> None:
    """Orthonormal embeddings of independent tokens: the posterior is a softmax, and the bound is the entropy."""
    from sfumato.laws import Dirac
    from sfumato.processes import Gaussian
    from sfumato.training.embedded import EmbeddedNelbo, EmbeddedNet, rounding

    size, first, schedule = 5, 0.001, sf.schedules.get("square-root")
    net = EmbeddedNet(torch.nn.Identity(), size, size)
    with torch.no_grad():
        net.weight.copy_(torch.eye(size))
    p = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])

    def exact(x: torch.Tensor, t: torch.Tensor) -> Dirac:
        alpha, sigma = (v.float()[:, None, None] for v in sf.schedules.at(schedule, t))
        weight = (alpha / sigma**2 * (x @ net.table().T) + p.log()).softmax(-1)
        return Dirac(weight @ net.table())

    n = 4000
    x0 = torch.multinomial(p, 2 * n, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(n, 2)
    with torch.no_grad():
        assert torch.equal(rounding(net.embed(x0), net.table(), 1.0, 0.1).argmax(-1), x0)
        bound = EmbeddedNelbo(first, draws=32)(Stated(exact, Gaussian(schedule), net), x0, sf.Stream(1))
    entropy = float(-(p * p.log()).sum()) * 2
    error = float(bound.std()) / n**0.5
    assert abs(float(bound.mean()) - entropy) < 4.5 * error
    assert error < 0.02 * entropy


def test_a_prompt_is_no_business_of_images() -> None:
    data = sf.data.load("digits")
    tiny = {"channels": (8, 16), "attention": (False, False), "blocks": 1, "batch": 16, "grid_columns": 0}
    model = sf.train("flow", data, steps=2, quiet=True, **tiny)
    with pytest.raises(sf.Refusal, match="is for text"):
        model.sample(1, steps=2, prompt="7")
    with pytest.raises(sf.Refusal, match="is for text"):
        model.sample(1, steps=2, temperature=0.5)


def test_the_command_line_from_text_to_measures(book: Path, tmp_path: Path) -> None:
    from sfumato.cli import app

    runner, run = CliRunner(), tmp_path / "run"
    pairs = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    trained = runner.invoke(app, ["train", "mdlm", "--data", str(book), "--out", str(run), "--steps", "20", *pairs])
    assert trained.exit_code == 0, trained.output
    sampled = runner.invoke(app, ["sample", str(run), "--n", "2", "--steps", "4", "--prompt", "To be"])
    assert sampled.exit_code == 0, sampled.output
    assert "To be" in sampled.output
    assert (run / "samples" / "samples.txt").exists()
    filled = runner.invoke(app, ["sample", str(run), "--n", "1", "--steps", "4", "--infill", "To __ or"])
    assert filled.exit_code == 0, filled.output
    measured = runner.invoke(app, ["eval", str(run), "--n", "8", "--steps", "4"])
    assert measured.exit_code == 0, measured.output
    assert "bits-per-character" in measured.output
    names = {json.loads(line)["name"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert {"bits-per-character", "known-words", "distinct-words", "copied-8-grams"} <= names
    told = runner.invoke(app, ["inspect", str(run)])
    assert told.exit_code == 0
    assert "mdlm" in told.output
