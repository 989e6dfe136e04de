"""Randomness, schedules, grids, guidance, thresholds, trees, registries and objectives, one behaviour a test."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato import trees
from sfumato.denoisers import GaussianHead, Preconditioned
from sfumato.guidance import Guided, Mapped, cfg, clip, dynamic, interval
from sfumato.guidance.guided import Term, same
from sfumato.laws import Dirac, Joint, Normal
from sfumato.randomness import as_rng
from sfumato.testing import MLP, SigmaPoints
from sfumato.training import objectives

FLOW = sf.schedules.get("flow")
PROCESS = sf.processes.Gaussian(FLOW)
MIXTURE = sf.oracles.GaussianMixture([0.5, 0.3, 0.2], [[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], 0.09)

# -------------------------------------------------------------------------------------------------------- randomness


def test_a_seed_is_its_own_stream_in_any_batch() -> None:
    together = sf.Streams([3, 1, 2])
    x, u = together.normal((3, 4)), together.uniform((3, 2))
    for k, seed in enumerate([3, 1, 2]):
        alone = sf.Streams([seed])
        assert torch.equal(alone.normal((1, 4))[0], x[k])
        assert torch.equal(alone.uniform((1, 2))[0], u[k])
    assert x.dtype == torch.float32


def test_padded_samples_draw_their_own_rows_only() -> None:
    padded = sf.Streams([3, 1]).normal((2, 5, 2), torch.tensor([2, 5]))
    assert torch.equal(padded[0, :2], sf.Streams([3]).normal((1, 2, 2))[0])
    assert torch.equal(padded[1], sf.Streams([1]).normal((1, 5, 2))[0])
    assert not padded[0, 2:].any()


def test_one_seed_per_sample() -> None:
    with pytest.raises(sf.Refusal, match="3 samples but 2 seeds"):
        sf.Streams([1, 2]).normal((3, 2))


def test_what_is_a_source_of_randomness() -> None:
    seed, generator, stream = as_rng(5), as_rng(torch.Generator().manual_seed(5)), sf.Stream(5)
    assert torch.equal(seed.normal((2, 3)), generator.normal((2, 3)))
    assert as_rng(stream) is stream
    with pytest.raises(sf.Refusal, match="no source of randomness"):
        as_rng("luck")


def test_sigma_points_are_exact_to_second_order() -> None:
    points = SigmaPoints()
    x = torch.cat([points.normal((64, 3)), points.normal((64, 5))], 1)
    assert torch.equal(x.mT @ x / 64, torch.eye(8))
    assert torch.equal(x.mean(0), torch.zeros(8))
    with pytest.raises(sf.Refusal, match="larger power of two"):
        SigmaPoints().normal((4, 4))


# --------------------------------------------------------------------------------------------------------- schedules


def test_tables_refuse_what_does_not_fall() -> None:
    for bad in ([0.5, 0.6], [1.0, 0.5], [0.5, 0.0], []):
        with pytest.raises(sf.Refusal, match="must fall strictly"):
            sf.schedules.Table(bad)


def test_a_table_is_a_law_of_continuous_time() -> None:
    table = sf.schedules.Table([0.9, 0.5, 0.1])
    alpha, sigma = table(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0, 0.5], dtype=torch.float64))
    assert (alpha**2).tolist() == pytest.approx([1.0, 0.9, 0.5, 0.1, (0.9 * 0.5) ** 0.5], rel=1e-12)
    assert (alpha**2 + sigma**2).tolist() == pytest.approx([1.0] * 5, rel=1e-12)
    assert table.steps == 3


def test_unknown_schedules_name_the_nearest() -> None:
    with pytest.raises(sf.Refusal, match=r"unknown schedule 'cosin'; did you mean cosine"):
        sf.schedules.get("cosin")
    with pytest.raises(sf.Refusal, match="unexpected keyword argument 'step'"):
        sf.schedules.get("linear", step=10)
    for settings in ({"steps": 0}, {"steps": -1}):
        with pytest.raises(sf.Refusal, match="steps"):
            sf.schedules.get("linear", **settings)
    with pytest.raises(sf.Refusal, match="positive"):
        sf.schedules.get("karras", sigma_max=0.0)


def test_snr() -> None:
    assert sf.schedules.snr(FLOW, 0.5) == 1.0
    assert sf.schedules.snr(FLOW, torch.tensor([0.0, 0.2, 1.0])).tolist() == pytest.approx([float("inf"), 16.0, 0.0])
    assert sf.schedules.log_snr(FLOW, 0.0) == float("inf")
    assert sf.schedules.log_snr(FLOW, 1.0) == -float("inf")
    assert sf.schedules.time_at(FLOW, 0.0) == pytest.approx(0.5, abs=1e-12)


def test_per_sample_times_broadcast_over_images() -> None:
    x = torch.zeros(3, 1, 2, 2)
    alpha, sigma = sf.schedules.at(FLOW, torch.tensor([0.1, 0.5, 0.9]), x)
    assert alpha.shape == (3, 1, 1, 1)
    assert sigma.flatten().tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert alpha.dtype == torch.float32


# ------------------------------------------------------------------------------------------------------------- grids


def steps_of(name: str, n: int) -> list[int]:
    return [round(t * 1000) for t in sf.grids.get(name)(sf.schedules.get("linear"), n).tolist()]


def test_discrete_grids_are_the_published_ones() -> None:
    assert steps_of("leading", 4) == [751, 501, 251, 1, 0]
    assert steps_of("linspace", 4) == [1000, 667, 334, 1, 0]
    assert steps_of("trailing", 4) == [1000, 750, 500, 250, 0]
    assert steps_of("trailing", 7) == [1000, 857, 714, 571, 429, 286, 143, 0]
    assert steps_of("uniform", 4) == [1000, 750, 500, 250, 0]
    assert sf.grids.get("quadratic")(FLOW, 4).tolist() == pytest.approx([1.0, 0.5625, 0.25, 0.0625, 0.0])


def test_log_snr_grids_are_even() -> None:
    schedule = sf.schedules.get("cosine-continuous")
    grid = sf.grids.get("uniform-logsnr")(schedule, 9)
    gaps = sf.schedules.log_snr(schedule, grid[1:-1]).diff()
    assert torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6)
    grid = sf.grids.get("karras")(schedule, 9, sigma_min=0.01, sigma_max=10.0)
    alpha, sigma = schedule(grid[1:-1])
    gaps = ((sigma / alpha) ** (1 / 7)).diff()
    assert torch.allclose(gaps, gaps[:1].expand_as(gaps), rtol=1e-6)


def test_grids_refuse() -> None:
    with pytest.raises(sf.Refusal, match=r"steps=2000 is more than the 1000 steps"):
        sf.grids.get("leading")(sf.schedules.get("linear"), 2000)
    with pytest.raises(sf.Refusal, match=r"0 < sigma_min < sigma_max"):
        sf.grids.get("karras")(FLOW, 5, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(sf.Refusal, match="unknown grid 'trailin'; did you mean trailing"):
        sf.grids.get("trailin")


# ---------------------------------------------------------------------------------------------------------- guidance


class Spy:
    """The mixture's denoiser; remembers how it was called."""

    def __init__(self) -> None:
        self.exact, self.rows, self.conds = MIXTURE.denoiser(PROCESS), [], []

    def __call__(self, x_t: torch.Tensor, t: Any, cond: Any = None) -> Any:
        self.rows.append(len(x_t))
        self.conds.append(cond)
        return self.exact(x_t, t, cond)


def null(cond: Any) -> Any:
    return {"label": torch.full_like(cond["label"], 3)}


LABEL = {"label": torch.tensor([0, 1, 2, 0])}
X = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_guidance_is_ref_plus_w_times_the_difference(w: float) -> None:
    spy = Spy()
    guided = cfg(spy, null, w)(X, 0.5, LABEL).point()
    own, free = spy.exact(X, 0.5, LABEL).point(), spy.exact(X, 0.5, null(LABEL)).point()
    assert torch.allclose(guided, free + w * (own - free), atol=1e-12)
    assert spy.rows == [8], "one forward of both"


def test_guidance_takes_a_weight_and_a_time_for_each_sample() -> None:
    w = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    many = cfg(Spy(), null, w)(X, torch.full((4,), 0.5), LABEL).point()
    for k in range(4):
        one = cfg(Spy(), null, float(w[k]))(X[k : k + 1], 0.5, {"label": LABEL["label"][k : k + 1]}).point()
        assert torch.allclose(many[k : k + 1], one, atol=1e-12)


def test_guidance_of_two_networks_evaluates_each_once() -> None:
    good, bad = Spy(), Spy()
    model = Guided((Term(bad, same, -1.0), Term(good, same, 2.0)))
    model(X, 0.5, LABEL)
    assert (good.rows, bad.rows) == ([4], [4])


def test_guidance_in_an_interval() -> None:
    spy = Spy()
    model = cfg(spy, null, 3.0, interval(0.2, 0.8))
    for t in (0.9, 0.8, 0.5, 0.2, 0.1):
        model(X, t, LABEL)
    assert spy.rows == [4, 8, 8, 4, 4], "low < t <= high"
    assert torch.equal(spy.conds[0]["label"], LABEL["label"]), "outside, the plain condition"
    for bounds in ((0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)):
        with pytest.raises(sf.Refusal, match="guidance interval"):
            interval(*bounds)


def test_guidance_refuses_half_a_condition() -> None:
    with pytest.raises(sf.Refusal, match="name the null condition"):
        cfg(Spy(), lambda cond: None, 2.0)(X, 0.5, LABEL)


def test_guidance_of_full_laws_and_products() -> None:
    law = cfg(MIXTURE.posterior(PROCESS), null, 2.0)(X, 0.5, LABEL)
    exact = MIXTURE.denoiser(PROCESS)
    free, own = exact(X, 0.5, null(LABEL)).point(), exact(X, 0.5, LABEL).point()
    assert torch.allclose(law.point(), 2 * own - free, atol=1e-12)

    class Two:
        def __call__(self, x_t: Any, t: Any, cond: Any = None) -> Any:
            mean = cond["label"][:, None].double().expand(len(x_t["a"]), 2)
            return Joint({"a": Dirac(mean + x_t["a"]), "b": Normal(mean, 0.5)})

    x_t = {"a": X, "b": X}
    guided = cfg(Two(), null, {"a": 2.0, "b": 0.0})(x_t, 0.5, LABEL)
    label = LABEL["label"][:, None].double().expand(4, 2)
    assert torch.allclose(guided.parts["a"].x, 2 * (label + X) - (3 + X))
    assert torch.allclose(guided.parts["b"].mean, torch.full_like(X, 3.0))


def test_thresholds() -> None:
    class Wild:
        def __call__(self, x_t: torch.Tensor, t: Any, cond: Any = None) -> Any:
            return Normal(x_t, 0.3)

    x = torch.tensor([[0.5, -0.2], [4.0, -1.0]])
    clipped = Mapped(Wild(), clip(-1.0, 1.0))(x, 0.5)
    assert clipped.point().tolist() == [pytest.approx([0.5, -0.2]), [1.0, -1.0]]
    assert clipped.var == 0.3
    rescaled = Mapped(Wild(), dynamic(1.0))(x, 0.5).point()
    assert rescaled.tolist() == [pytest.approx([0.5, -0.2]), [1.0, -0.25]]
    for bad in (lambda: clip(1.0, 1.0), lambda: dynamic(0.0), lambda: dynamic(0.9, 0.0)):
        with pytest.raises(sf.Refusal):
            bad()


# ------------------------------------------------------------------------------------------------ process and driver


def test_a_bridge_from_the_data_is_refused() -> None:
    with pytest.raises(sf.Refusal, match="carries no noise"):
        PROCESS.bridge(X, Dirac(X), 0.0, 0.0)


def test_per_sample_times_do_not_scale_columns() -> None:
    # as many samples as coordinates: a time for each sample must not act on coordinates
    x0 = torch.randn(3, 3, dtype=torch.float64)
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x_t = PROCESS.marginal(x0, t).draw(sf.Stream(0))
    together = PROCESS.bridge(x_t, Normal(x0, 0.1), t, t / 2)
    for k in range(3):
        row = slice(k, k + 1)
        alone = PROCESS.bridge(x_t[row], Normal(x0[row], 0.1), float(t[k]), float(t[k]) / 2)
        assert torch.allclose(together.mean[row], alone.mean, atol=1e-12)
        assert together.var[k].item() == pytest.approx(float(alone.var), abs=1e-12)


def test_a_trajectory_is_refused_at_once_not_when_it_is_walked() -> None:
    with pytest.raises(sf.Refusal, match="grid"):
        sf.trajectory(MIXTURE.denoiser(PROCESS), PROCESS, sf.samplers.get("ddim"), [0.0, 1.0], X)


def test_unknown_samplers_name_the_nearest() -> None:
    with pytest.raises(sf.Refusal, match="unknown sampler 'dimm'; did you mean ddim"):
        sf.samplers.get("dimm")
    with pytest.raises(sf.Refusal, match=r"eta=2\.0"):
        sf.samplers.get("ddim", eta=2.0)
    with pytest.raises(sf.Refusal, match="unexpected keyword"):
        sf.samplers.get("heun", eta=0.5)


def test_one_evaluation_samplers_only_move_parts() -> None:
    process = sf.processes.Product({"a": PROCESS})
    with pytest.raises(sf.Refusal, match="evaluates part 'a' 2 times"):
        sf.samplers.PerPart({"a": sf.samplers.get("heun")}).start(None, process, [1.0, 0.0])
    with pytest.raises(sf.Refusal, match="Product of just these"):
        sf.samplers.PerPart({"b": sf.samplers.get("ddim")}).start(None, process, [1.0, 0.0])


# -------------------------------------------------------------------------------------------------------- objectives


def test_objectives_agree() -> None:
    head = GaussianHead(PROCESS, "v")
    net = MLP(2)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    model = Preconditioned(net, head)
    x0 = MIXTURE.sample(64, 0).float()
    t = torch.linspace(0.1, 0.95, 64)
    direct = objectives.prediction_loss(model, x0, t, None, sf.Stream(1))
    via = objectives.objective(model, PROCESS, x0, t, weight=objectives.as_prediction(model), rng=sf.Stream(1))
    assert direct.shape == (64,)
    assert torch.allclose(2 * direct, via, rtol=1e-3, atol=1e-5)


def test_min_snr_is_the_published_weight() -> None:
    loss = torch.ones(3)
    weighted = objectives.min_snr(5.0)(PROCESS, torch.tensor([0.1, 0.5, 0.8]), loss)
    assert weighted.tolist() == pytest.approx([5.0, 1.0, 0.0625])


def test_losses_of_a_product_are_weighted_apart() -> None:
    process = sf.processes.Product({"a": PROCESS, "b": PROCESS})
    x0 = {"a": X, "b": X}
    q = Joint({"a": Dirac(X + 1.0), "b": Dirac(X + 2.0)})
    loss = process.loss(q, x0, x0, 0.5)
    assert loss["a"].tolist() == pytest.approx([2.0] * 4)
    weight = objectives.per_part(a=lambda p, t, v: v, b=lambda p, t, v: 0.5 * v)
    assert weight(process, 0.5, loss).tolist() == pytest.approx([2.0 + 4.0] * 4)


def test_a_given_end_is_the_noise() -> None:
    x1 = torch.randn(4, 2, dtype=torch.float64)
    spy = Spy()
    objectives.objective(spy, PROCESS, X, torch.full((4,), 0.25), end=x1)
    assert spy.rows == [4]
    assert torch.allclose(PROCESS.marginal(X, 0.25, x1).point(), 0.75 * X + 0.25 * x1)


# ------------------------------------------------------------------------------------------------------ small things


def test_trees() -> None:
    tree = {"a": torch.arange(3.0), "b": {"c": torch.ones(3, 2)}}
    doubled = trees.concatenate([tree, tree])
    assert doubled["b"]["c"].shape == (6, 2)
    assert trees.batch_size(tree) == 3
    assert trees.rows(tree, slice(1, 2))["a"].tolist() == [1.0]
    law = trees.rows(Normal(torch.ones(3, 2), torch.tensor(0.5)), slice(0, 2))
    assert law.mean.shape == (2, 2)
    assert law.var.item() == 0.5


def test_space() -> None:
    space = sf.spaces.Euclidean()
    assert space.contains(X)
    assert not space.contains(torch.tensor([[float("nan")]]))
    assert space.dof(torch.zeros(3, 4, 5)).tolist() == [20.0] * 3


def test_importing_is_light() -> None:
    code = (
        "import sys, sfumato; heavy = {'torch', 'matplotlib', 'accelerate', 'scipy', 'PIL', 'rich', 'sklearn'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() in ("[]", "['torch']")


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        sf.smaple
    assert "sample" in dir(sf)
