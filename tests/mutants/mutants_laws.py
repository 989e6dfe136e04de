"""Faults that only a law run over every process sees: blocks, rows, walks, fitted priors, objectives."""

from __future__ import annotations

from mutants import Mutant

PROCESSES, SAMPLERS = "tests/laws/test_process_laws.py", "tests/laws/test_sampler_laws.py"
SPACES, TRAINING = "tests/laws/test_space_laws.py", "tests/laws/test_training_laws.py"
DENOISERS, HEAT = "tests/laws/test_denoiser_laws.py", "tests/test_heat.py"
REACHES = f"{TRAINING}::test_training_reaches_the_exact_model"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "the rate of one block for that of all",
        "processes/blocks.py",
        "return self.count(x_t.shape[1]) * count",
        "return 1 * count",
        (f"{PROCESSES}::test_jump[blocks]",),
    ),
    Mutant(
        "blocks that are drawn at once",
        "processes/blocks.py",
        "return torch.arange(length) // self.size",
        "return torch.arange(length) // length + 0 * self.size",
        (f"{SAMPLERS}::test_any_process[blocks]",),
    ),
    Mutant(
        "tokens of a row that wait where they are",
        "processes/mixed.py",
        "self.jump.bridge(parts[TOKENS], beliefs[TOKENS], t, s)",
        "self.jump.bridge(parts[TOKENS], beliefs[TOKENS], t, (t + s) / 2)",
        (f"{PROCESSES}::test_numbers_and_tokens[mixed]",),
    ),
    Mutant(
        "a product whose parts end at one another's draws",
        "processes/mixed.py",
        "None if end is None else self.split(end)",
        "None",
        (f"{PROCESSES}::test_numbers_and_tokens[mixed]",),
    ),
    Mutant(
        "the entropy of the end left out of a fitted prior's term",
        "processes/bound.py",
        "return nats if isinstance(end, Dirac) else nats - end.nll(drawn)",
        "return nats",
        (f"{HEAT}::test_the_bound_from_a_fitted_prior",),
    ),
    Mutant(
        "a fitted prior of all classes for every one",
        "processes/bound.py",
        "own, drawn = prior.given(cond), end.draw(rng)",
        "own, drawn = prior, end.draw(rng)",
        (f"{HEAT}::test_the_bound_from_a_fitted_prior",),
    ),
    Mutant(
        "half the rate of a walk",
        "processes/brownian.py",
        "factor = sigma * dsigma",
        "factor = sigma * dsigma / 2",
        (f"{SPACES}::test_the_bound_on_walks_is_the_entropy[circles]",),
    ),
    Mutant(
        "rotations that are refused at the first step only",
        "processes/brownian.py",
        "    space: SO3 = SO3()\n    bridged: ClassVar[bool] = False",
        "    space: SO3 = SO3()\n    bridged: ClassVar[bool] = True",
        (f"{SPACES}::test_samplers_that_walk_bridges_refuse_rotations_before_the_first_step",),
    ),
    Mutant(
        "a posterior head that looks from another time",
        "denoisers/tokens.py",
        "reach = self.process.kernel.columns(x_t, self.process.signal(t, x_t), widest(x_t))",
        "reach = self.process.kernel.columns(x_t, self.process.signal(0.9 * t, x_t), widest(x_t))",
        (f"{DENOISERS}::test_predictions_of_tokens_are_one_belief[uniform]",),
    ),
    Mutant(
        "a chain judged at another step than it was noised at",
        "training/token_objectives.py",
        "t, s = _last_step(t, self.steps)\n        x_t = _noised(process, x0, t, ",
        "t, s = _last_step(t, self.steps)\n        x_t = _noised(process, x0, 0.8 * t, ",
        (f"{REACHES}[uniform]",),
    ),
    Mutant(
        "geodesics noised at another time than they are told",
        "denoisers/manifold.py",
        "x_t = process.marginal(x0, t, end).draw(None if rng is None else as_rng(rng))",
        "x_t = process.marginal(x0, 0.8 * t, end).draw(None if rng is None else as_rng(rng))",
        (f"{REACHES}[torus]",),
    ),
    Mutant(
        "restorers that are shown another degradation than they are told",
        "denoisers/restorers.py",
        "law = process.marginal(x0, t, end)",
        "law = process.marginal(x0, 0.8 * t, end)",
        (f"{REACHES}[heat]", f"{REACHES}[fade]"),
    ),
    Mutant(
        "a product noised at another time than it is told",
        "training/objectives.py",
        "x_t = process.marginal(x0, t, end).draw(_source(rng, end))",
        "x_t = process.marginal(x0, 0.8 * t, end).draw(_source(rng, end))",
        (f"{REACHES}[product with tokens]",),
    ),
    Mutant(
        "rows that show the tokens they ask for",
        "training/tables.py",
        "own, net = denoiser.seeing(torch.where(hidden, process.values, clean))",
        "own, net = denoiser.seeing(torch.where(hidden & False, process.values, clean))",
        (f"{REACHES}[mixed]",),
    ),
    Mutant(
        "raw outputs in float64",
        "denoisers/tokens.py",
        "output: Tensor = self.net(x_t, times, cond)",
        "output: Tensor = getattr(self.net, 'double', lambda: self.net)()(x_t, times, cond)",
        (f"{TRAINING}::test_networks_compute_in_float32[uniform]",),
    ),
)
