"""Faults of the magnitude-preserving network, EDM2's training rules, post-hoc EMA, autoguidance and energies."""

from __future__ import annotations

from mutants import Mutant

EDM2 = "tests/test_edm2.py"
POSTHOC = "tests/test_posthoc_ema.py"
NET = "tests/test_mp_unet.py"
ENERGY = "tests/test_energy.py"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "mp_sum shares that add up to one",
        "nets/mp_layers.py",
        "    norm = math.hypot(1 - t, t)",
        "    norm = 1.0",
        (f"{NET}::test_mp_sum_and_mp_cat",),
    ),
    Mutant(
        "mp_cat weighs by channels",
        "nets/mp_layers.py",
        "c * t / math.sqrt(channels_b)",
        "c * t / math.sqrt(channels_a)",
        (f"{NET}::test_mp_sum_and_mp_cat",),
    ),
    Mutant(
        "silu without its 0.596",
        "nets/mp_layers.py",
        "SILU_RMS = 0.596",
        "SILU_RMS = 1.0",
        (f"{NET}::test_mp_silu_has_unit_magnitude",),
    ),
    Mutant(
        "a convolution after silu without its gain",
        "nets/mp_unet.py",
        "h = self.conv1(F.silu(x), gain=AFTER_SILU)",
        "h = self.conv1(F.silu(x))",
        (f"{NET}::test_a_block_is_the_papers_composition",),
    ),
    Mutant(
        "Fourier features without sqrt(2)",
        "nets/mp_layers.py",
        "return math.sqrt(2) * angles.cos()",
        "return angles.cos()",
        (f"{NET}::test_fourier_features_have_unit_magnitude_at_every_time",),
    ),
    Mutant(
        "weights never put back to unit norm",
        "nets/mp_layers.py",
        "            weight.data.div_(row_rms(weight.data))",
        "            row_rms(weight.data)",
        (f"{NET}::test_weights_stay_unit_and_gradients_orthogonal_while_training",),
    ),
    Mutant(
        "no gradient through the norm of a weight",
        "nets/mp_layers.py",
        "* row_rms(weight)))",
        "* row_rms(weight.detach())))",
        (f"{NET}::test_weights_stay_unit_and_gradients_orthogonal_while_training",),
    ),
    Mutant(
        "attention without unit queries, keys and values",
        "nets/mp_layers.py",
        "qkv = unit_rms(self.qkv(x.permute(0, 2, 3, 1).reshape(b, n, c)).view(b, n, 3, self.heads, d), dim=-1)",
        "qkv = self.qkv(x.permute(0, 2, 3, 1).reshape(b, n, c)).view(b, n, 3, self.heads, d)",
        (f"{NET}::test_attention_is_cosine_attention",),
    ),
    Mutant(
        "uncertainty without its own price",
        "recipes/edm2.py",
        "weighted: Tensor = loss / u.exp() + u",
        "weighted: Tensor = loss / u.exp()",
        (f"{EDM2}::test_the_loss_is_equation_21", f"{EDM2}::test_the_uncertainty_learns_the_loss_of_every_level"),
    ),
    Mutant(
        "noise number without its quarter",
        "recipes/edm2.py",
        "self.schedule, t) / -8)",
        "self.schedule, t) / -2)",
        (f"{EDM2}::test_the_network_is_told_a_quarter_of_the_log_noise",),
    ),
    Mutant(
        "edm2 with EDM's levels",
        "recipes/edm2.py",
        "p_mean: float = -0.4",
        "p_mean: float = -1.2",
        (f"{EDM2}::test_it_is_the_papers_composition",),
    ),
    Mutant(
        "inverse decay for inverse square root",
        "training/optim.py",
        "return warm / math.sqrt(max(step / settings.decay_step, 1.0))",
        "return warm / max(step / settings.decay_step, 1.0)",
        (f"{EDM2}::test_rates_are_equation_67",),
    ),
    Mutant(
        "post-hoc EMA in float32",
        "training/phema.py",
        "pairs = torch.tensor([[p.step, p.exponent] for p in profiles], dtype=torch.float64)",
        "pairs = torch.tensor([[p.step, p.exponent] for p in profiles], dtype=torch.float32)",
        (f"{POSTHOC}::test_errors_with_64_snapshots", f"{POSTHOC}::test_a_stored_profile_is_reproduced"),
    ),
    Mutant(
        "profile products with the shorter one's exponent",
        "training/phema.py",
        "ratio = torch.where(t_a < t_b, (t_a / t_b) ** g_b, (t_b / t_a) ** g_a)",
        "ratio = torch.where(t_a < t_b, (t_a / t_b) ** g_a, (t_b / t_a) ** g_b)",
        (f"{POSTHOC}::test_products_of_profiles_are_integrals",),
    ),
    Mutant(
        "post-hoc coefficients that do not sum to one",
        "training/phema.py",
        "coefficients = free + shift * (1 - free.sum()) / shift.sum()",
        "coefficients = free",
        (f"{POSTHOC}::test_coefficients_sum_to_one_and_the_system_needs_float64",),
    ),
    Mutant(
        "snapshots of another future survive a resume",
        "training/engine.py",
        "        forget_after(run, step)",
        "        assert step >= 0",
        (f"{POSTHOC}::test_resuming_gives_the_same_snapshots",),
    ),
    Mutant(
        "snapshot averages not resumed",
        "training/engine.py",
        "        self.averages.load(found.averages)",
        "        assert found.averages is not None",
        (f"{POSTHOC}::test_resuming_gives_the_same_snapshots",),
    ),
    Mutant(
        "autoguidance by 1 + w",
        "guidance/guided.py",
        "Guided((Term(weak, same, _complement(w)), Term(denoiser, same, w)), when)",
        "Guided((Term(weak, same, -w), Term(denoiser, same, 1 + w)), when)",
        (f"{EDM2}::test_autoguidance_moves_away_from_the_weak_model",),
    ),
    Mutant(
        "second derivative of group norm at constant statistics",
        "nets/layers.py",
        "            mean, rstd = _statistics(x, ctx.groups, ctx.eps)",
        "            mean, rstd = mean.clone(), rstd.clone()",
        (f"{ENERGY}::test_layers_have_right_second_derivatives",),
    ),
    Mutant(
        "an energy's output without the Jacobian's part",
        "nets/energy.py",
        "    return (x * f).flatten(1).sum(1)",
        "    return (x * f.detach()).flatten(1).sum(1)",
        (f"{ENERGY}::test_the_jacobian_of_an_energys_gradient_is_symmetric",),
    ),
    Mutant(
        "log-density of the network's input, not of the state",
        "energies.py",
        "factor = (alpha * b / (sigma**2 * c_in)).flatten(1)[:, 0]",
        "factor = (alpha * b / sigma**2).flatten(1)[:, 0]",
        (f"{ENERGY}::test_energy_differences_are_log_density_differences",),
    ),
)
