"""Faults in stochastic samplers and score networks; see ``mutants.py``."""

from __future__ import annotations

from mutants import Mutant

SCORE = "tests/test_checks_score.py"
NCSN = "tests/test_checks_ncsn.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "churn by the level's square root",
        "samplers/churn.py",
        "raised[t] = level * (1 + gamma)",
        "raised[t] = level * (1 + gamma) ** 0.5",
        (f"{SCORE}::test_heun_with_churn",),
    ),
    Mutant(
        "churn noise scaled in variance",
        "samplers/churn.py",
        "var=law.var * self.s_noise**2",
        "var=law.var * self.s_noise",
        (f"{SCORE}::test_heun_with_churn",),
    ),
    Mutant(
        "churned step from the level before the churn",
        "samplers/churn.py",
        "self.inner.step(model, process, x, raised, s, None, source)",
        "self.inner.step(model, process, x, t, s, None, source)",
        (f"{SCORE}::test_heun_with_churn",),
    ),
    Mutant(
        "reverse SDE with the drift of the ODE",
        "samplers/sde.py",
        "mean = (2 - a) / r_t * x + 2 * (1 - a) * score",
        "mean = 1 / r_t * x + (1 - a) * score",
        (f"{SCORE}::test_euler_maruyama_is_the_textbook_step",),
    ),
    Mutant(
        "half the noise of the reverse SDE",
        "samplers/sde.py",
        "math.sqrt(1 - a * a) * noise",
        "math.sqrt((1 - a * a) / 2) * noise",
        (f"{SCORE}::test_weak_order",),
    ),
    Mutant(
        "ancestral noise not capped at the new level",
        "samplers/sde.py",
        "eta = min(self.eta, 1 / math.sqrt(max(1 - kept**2, 1e-12)))",
        "eta = self.eta",
        (f"{SCORE}::test_euler_ancestral_moves_down_and_up",),
    ),
    Mutant(
        "2M SDE extrapolates over the wrong ratio",
        "samplers/sde.py",
        "(x0 - carry.x0) * (h / (2 * (lam - carry.lam)))",
        "(x0 - carry.x0) * ((lam - carry.lam) / (2 * h))",
        (f"{SCORE}::test_weak_order", f"{SCORE}::test_dpmpp_sde_without_noise_is_dpmpp_2m"),
    ),
    Mutant(
        "2M SDE without its eta in the exponent",
        "samplers/sde.py",
        "math.expm1(-2 * self.eta * h)",
        "math.expm1(-2 * h)",
        (f"{SCORE}::test_dpmpp_sde_solves_the_linear_sde_exactly",),
    ),
    Mutant(
        "restart that does not jump up",
        "samplers/restart.py",
        "process.forward(x, low, leg.times[0]).draw(source)",
        "x",
        (f"{SCORE}::test_restarts_contract_the_error",),
    ),
    Mutant(
        "Langevin without the square root of two",
        "samplers/langevin.py",
        "math.sqrt(2 * a) * process.space.noise(x, source)",
        "math.sqrt(a) * process.space.noise(x, source)",
        (f"{SCORE}::test_langevin_stationarity",),
    ),
    Mutant(
        "Langevin step proportional to sigma",
        "samplers/langevin.py",
        "a = self.size * sigma**2",
        "a = self.size * sigma",
        (f"{SCORE}::test_langevin_steps_are_proportional_to_the_level",),
    ),
    Mutant(
        "corrector couples the batch",
        "samplers/langevin.py",
        "return (2 * snr**2 * ratio).clamp(",
        "return (2 * snr**2 * ratio.mean().expand_as(ratio)).clamp(",
        (f"{SCORE}::test_the_corrector_never_couples_the_batch",),
    ),
    Mutant(
        "corrector without the square root of two",
        "samplers/langevin.py",
        "(2 * a).sqrt() * noise",
        "a.sqrt() * noise",
        (f"{SCORE}::test_the_corrector_leaves_the_marginal_as_it_is",),
    ),
    Mutant(
        "technique 2 with D for 2 D",
        "training/ladders.py",
        "math.sqrt(2 * dimension)",
        "math.sqrt(dimension)",
        (f"{NCSN}::test_technique_2_levels_overlap",),
    ),
    Mutant(
        "technique 4 with T for 2 T",
        "training/ladders.py",
        "** (2 * steps)",
        "** steps",
        (f"{NCSN}::test_technique_4_gives_the_published_step_sizes",),
    ),
    Mutant(
        "NCSN's loss without its weight",
        "recipes/ncsn.py",
        "sigma.to(x0) ** 2 * prediction_loss",
        "prediction_loss",
        (f"{NCSN}::test_the_loss_is_sigma_squared_times_score_matching",),
    ),
    Mutant(
        "NCSN that states eps",
        "recipes/ncsn.py",
        '"score", sigma_data=0.5',
        '"eps", sigma_data=0.5',
        (f"{NCSN}::test_ncsn_states_the_score_and_knows_its_level",),
    ),
    Mutant(
        "NCSNv2 that knows its level",
        "recipes/ncsnv2.py",
        "self.net(unscaled, torch.zeros_like(t), cond)",
        "self.net(unscaled, t, cond)",
        (f"{NCSN}::test_ncsnv2_divides_one_field_by_the_level",),
    ),
    Mutant(
        "NCSNv2 that sees the level in the scale of its input",
        "recipes/ncsnv2.py",
        "unscaled = x / self.head.input_scale(t, x)",
        "unscaled = x",
        (f"{NCSN}::test_ncsnv2_divides_one_field_by_the_level",),
    ),
)
