"""Metrics against closed forms, naive loops and scipy's trees; records that travel with everything they depend on."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors
from scipy.spatial import KDTree
from torch import Tensor

from sfumato import data, metrics
from sfumato.data.sets import Data
from sfumato.errors import Refusal
from sfumato.metrics import classifier as extractor
from sfumato.metrics.evaluate import Reference

MADE = {"sampler": "ddim", "steps": 10, "nfe": 20, "seed": 3, "guidance": 2.0, "grid": "trailing"}


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, seed: int) -> Tensor:
    a = normal(d, d, seed)
    return a @ a.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("digits")


@pytest.fixture(scope="module")
def reference(digits: Data) -> Reference:
    return Reference.of(digits, 200)


# -------------------------------------------------------------------------------------------------- Fréchet distance


def test_frechet_of_commuting_gaussians_is_a_sum_over_axes() -> None:
    d = 7
    m1, m2 = normal(2, d, 0)
    v1, v2 = normal(2, d, 1).square() + 0.2
    turn = torch.linalg.qr(normal(d, d, 2)).Q
    a = metrics.Moments(m1, turn @ v1.diag() @ turn.mT)
    b = metrics.Moments(m2, turn @ v2.diag() @ turn.mT)
    exact = float((m1 - m2).square().sum() + (v1.sqrt() - v2.sqrt()).square().sum())
    assert metrics.frechet_from_moments(a, b) == pytest.approx(exact, rel=1e-12)
    assert metrics.frechet_from_moments(b, a) == pytest.approx(exact, rel=1e-12)


def test_frechet_of_general_gaussians_in_two_dimensions() -> None:
    """For 2 x 2 matrices tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), with M = C1 C2."""
    c1, c2 = covariance(2, 3), covariance(2, 4)
    m = torch.zeros(2, dtype=torch.float64)
    product = c1 @ c2
    trace_root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    exact = float(c1.trace() + c2.trace()) - 2 * trace_root
    assert metrics.frechet_from_moments(metrics.Moments(m, c1), metrics.Moments(m, c2)) == pytest.approx(
        exact, rel=1e-12
    )


def test_frechet_agrees_with_the_matrix_square_root() -> None:
    import scipy.linalg

    c1, c2, m1, m2 = covariance(20, 5), covariance(20, 6), *normal(2, 20, 7)
    root = scipy.linalg.sqrtm((c1 @ c2).numpy()).real
    exact = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root)
    assert metrics.frechet_from_moments(metrics.Moments(m1, c1), metrics.Moments(m2, c2)) == pytest.approx(
        exact, rel=1e-9
    )


def test_frechet_of_singular_covariances() -> None:
    flat = torch.diag(torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64))
    other = torch.diag(torch.tensor([0.0, 9.0, 0.0], dtype=torch.float64))
    zero = torch.zeros(3, dtype=torch.float64)
    assert metrics.frechet_from_moments(metrics.Moments(zero, flat), metrics.Moments(zero, other)) == pytest.approx(
        13.0
    )
    assert metrics.frechet_from_moments(metrics.Moments(zero, flat), metrics.Moments(zero, flat)) == pytest.approx(
        0, abs=1e-12
    )


def test_frechet_of_samples() -> None:
    x = normal(500, 6, 8)
    mean, cov = x.numpy().mean(0), np.cov(x.numpy(), rowvar=False)
    m = metrics.moments(x.float())
    assert np.allclose(m.mean, mean, atol=1e-7)
    assert np.allclose(m.covariance, cov, atol=1e-6)
    assert metrics.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    # a shift moves the mean only, a scale by 1 + e the spread only
    shift = torch.full((6,), 0.5, dtype=torch.float64)
    assert metrics.frechet_distance(x, x + shift) == pytest.approx(1.5, rel=1e-9)
    centred = x - x.mean(0)
    assert metrics.frechet_distance(centred, 1.5 * centred) == pytest.approx(0.25 * float(np.trace(cov)), rel=1e-9)


def test_frechet_refuses_fewer_samples_than_features() -> None:
    with pytest.raises(Refusal, match="n = 6 images for 6 features; the Fréchet distance needs at least 7"):
        metrics.frechet_distance(normal(6, 6, 0), normal(50, 6, 1))
    with pytest.raises(Refusal, match="6 and 5 dimensions"):
        metrics.frechet_distance(normal(60, 6, 0), normal(50, 5, 1))
    broken = normal(60, 6, 0)
    broken[3, 2] = float("nan")
    with pytest.raises(Refusal, match="not all finite"):
        metrics.frechet_distance(broken, normal(50, 6, 1))


# --------------------------------------------------------------------------------------------------- kernel distance


def test_kernel_distance_is_the_naive_double_loop() -> None:
    a, b = normal(9, 4, 0), normal(7, 4, 1) + 0.3

    def k(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / 4 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(9) for j in range(9) if i != j) / (9 * 8)
    within_b = sum(k(b[i], b[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    between = sum(k(x, y) for x in a for y in b) / (9 * 7)
    assert metrics.kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-12)


def test_kernel_distance_of_large_sets_is_summed_in_chunks() -> None:
    a, b = normal(1500, 5, 2), normal(1100, 5, 3)
    aa, bb, ab = ((x.numpy() @ y.numpy().T / 5 + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    exact = (aa.sum() - np.trace(aa)) / (1500 * 1499) + (bb.sum() - np.trace(bb)) / (1100 * 1099) - 2 * ab.mean()
    assert metrics.kernel_distance(a, b) == pytest.approx(exact, rel=1e-8)


def test_kernel_distance_is_unbiased() -> None:
    """Over many pairs of sets of one law its mean is 0 within 4 standard errors, and it is often negative."""
    values = np.array([metrics.kernel_distance(normal(20, 3, 2 * s), normal(30, 3, 2 * s + 1)) for s in range(400)])
    assert abs(values.mean()) < 4 * values.std() / 20
    assert 0.3 < (values < 0).mean() < 0.8


# ------------------------------------------------------------------------------------------------ precision and recall


def test_precision_recall_on_a_line() -> None:
    """k = 1: real 0, 1, 3 cover [-1, 1], [0, 2], [1, 5]; generated 1.5, 4, 9 cover [-1, 4], [1.5, 6.5], [4, 14]."""
    real, generated = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[1.5], [4.0], [9.0]])
    precision, recall = metrics.precision_recall(real, generated, k=1)
    assert precision == pytest.approx(2 / 3)
    assert recall == pytest.approx(1.0)
    precision, recall = metrics.precision_recall(torch.tensor([[-2.0], [1.0], [3.0]]), generated, k=1)
    assert (precision, recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_precision_recall_agrees_with_a_search_tree() -> None:
    real, generated = normal(1200, 6, 0), 0.8 * normal(1050, 6, 1) + 0.4

    def covered(x: Tensor, centres: Tensor) -> float:
        radius = KDTree(centres.numpy()).query(centres.numpy(), 4)[0][:, 3]
        distance = np.linalg.norm(x.numpy()[:, None] - centres.numpy()[None], axis=2)
        return float((distance <= radius).any(1).mean())

    precision, recall = metrics.precision_recall(real, generated)
    assert precision == pytest.approx(covered(generated, real))
    assert recall == pytest.approx(covered(real, generated))
    assert precision > recall


def test_precision_recall_of_disjoint_and_dropped_modes() -> None:
    real = torch.cat([normal(100, 4, 0), normal(100, 4, 1) + 50])
    assert metrics.precision_recall(real, normal(200, 4, 2) - 50) == (0.0, 0.0)
    precision, recall = metrics.precision_recall(real, normal(200, 4, 3))  # one mode of two
    assert precision > 0.9
    assert recall < 0.55
    with pytest.raises(Refusal, match="n at least 4"):
        metrics.precision_recall(real[:3], real)
    with pytest.raises(Refusal, match="k = 0"):
        metrics.precision_recall(real, real, k=0)


# ------------------------------------------------------------------------------------------------------------- copies


def test_nearest_training_agrees_with_a_search_tree() -> None:
    g = torch.Generator().manual_seed(0)
    train = torch.randint(0, 256, (300, 6, 5), dtype=torch.uint8, generator=g)
    x = torch.randint(0, 256, (250, 6, 5), dtype=torch.uint8, generator=g)
    x[7] = train[123]
    distance, index = metrics.nearest_training(x, train, 3)
    exact, nearest = KDTree(train.reshape(300, -1).numpy() / 255).query(x.reshape(250, -1).numpy() / 255, 3)
    assert np.allclose(distance, exact, atol=1e-3)
    assert np.array_equal(index, nearest)
    assert index[7, 0] == 123
    assert distance[7, 0] < 1e-3


def test_copies_are_found_and_held_out_images_are_not(digits: Data) -> None:
    train, test = digits.train.x[:, 0], digits.test.x[:, 0]
    held_out = metrics.copy_scores(test, train)
    threshold = metrics.copy_threshold(held_out)
    assert metrics.copy_rate(held_out, threshold) == pytest.approx(0.01, abs=0.004)
    nearly = train[:100].int() + torch.randint(-6, 7, (100, 8, 8), generator=torch.Generator().manual_seed(0))
    copied = metrics.copy_scores(nearly.clamp(0, 255).to(torch.uint8), train)
    assert metrics.copy_rate(copied, threshold) == 1.0
    half = torch.cat([copied[:50], held_out[:50]])
    assert metrics.copy_rate(half, threshold) == pytest.approx(0.5, abs=0.03)


def test_copy_scores_of_a_constant_set() -> None:
    train = torch.zeros(60, 3, 3, dtype=torch.uint8)
    assert metrics.copy_scores(train[:2], train).tolist() == [0.0, 0.0]
    assert metrics.copy_scores(train[:2] + 9, train).tolist() == pytest.approx([1.0, 1.0])


def test_nearest_training_refuses() -> None:
    x = torch.zeros(5, 3, 3, dtype=torch.uint8)
    with pytest.raises(Refusal, match="k = 6"):
        metrics.nearest_training(x, x, 6)
    with pytest.raises(Refusal, match="give one layout"):
        metrics.nearest_training(x, torch.zeros(5, 4, 4, dtype=torch.uint8))


# --------------------------------------------------------------------------------------------------------- classifier


def test_classifier_is_as_accurate_as_recorded() -> None:
    test, record = data.load("mnist").test, extractor.record()
    path = extractor.FILES / "digit_net.safetensors"
    accuracy = float((metrics.digit_net().predict(test.x[:, 0]) == test.label).double().mean())
    assert accuracy >= 0.992
    assert accuracy == pytest.approx(record["test_accuracy"], abs=2e-4)
    assert metrics.digit_net().sha256 == record["sha256"]
    assert path.stat().st_size < 400_000


def test_features_do_not_depend_on_the_batch(digits: Data) -> None:
    net, x = metrics.digit_net(), digits.test.x[:30, 0]
    whole = net.features(x)
    assert whole.shape == (30, extractor.DIMENSION)
    assert float(whole.min()) >= 0
    assert torch.allclose(whole, torch.cat([net.features(x[k : k + 1]) for k in range(30)]), atol=1e-4)


def test_preparation_of_other_sizes(digits: Data) -> None:
    x = digits.test.x[:, 0]
    prepared = extractor.prepare(x)
    assert prepared.shape == (360, 1, 28, 28)
    assert float(prepared[:, :, :4].max()) == 0
    assert extractor.preparation(8, 8, False) == "bilinear-antialias 8x8->20x20, pad->28x28"
    assert float((metrics.digit_net().predict(x) == digits.test.label).double().mean()) > 0.9
    grey = torch.full((1, 32, 32), 128, dtype=torch.uint8)
    assert extractor.prepare(grey).shape == (1, 1, 28, 28)
    assert extractor.preparation(32, 32, True) == "rec601-grey, bilinear-antialias 32x32->28x28"
    assert torch.allclose(extractor.prepare(grey[..., None].expand(1, 32, 32, 3)), extractor.prepare(grey), atol=1e-6)
    assert extractor.preparation(28, 28, False) == "none"


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "record", "other tensors"])
def test_damaged_classifier(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(extractor.FILES / f"digit_net{suffix}", tmp_path)
    path, record = tmp_path / "digit_net.safetensors", tmp_path / "digit_net.json"
    blob = path.read_bytes()
    {
        "flip": lambda: path.write_bytes(blob[:-9] + bytes([blob[-9] ^ 1]) + blob[-8:]),
        "cut": lambda: path.write_bytes(blob[:1000]),
        "missing": path.unlink,
        "record": lambda: record.write_text("{}"),
        "other tensors": lambda: path.write_bytes(save_tensors({"a": torch.zeros(2)})),
    }[damage]()
    monkeypatch.setattr(extractor, "FILES", tmp_path)
    extractor.digit_net.cache_clear()
    with pytest.raises(Refusal, match="install sfumato again") as refused:
        extractor.digit_net()
    extractor.digit_net.cache_clear()
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_evaluate_gives_a_record_for_every_metric(digits: Data, reference: Reference) -> None:
    x, label = digits.train.x[:200, 0], digits.train.label[:200]
    records = metrics.measure(x, label, reference, generated=MADE)
    assert [r.name for r in records] == ["frechet", "kernel", "precision", "recall", "label-accuracy", "copy-rate"]
    for r in records:
        assert r.n == 200
        assert (r.sampler, r.steps, r.nfe, r.seed, r.guidance) == ("ddim", 10, 20, 3, 2.0)
        assert r.settings == {"grid": "trailing"}
        assert r.data_sha256 == digits.sha256
    by = {r.name: r for r in records}
    assert (by["frechet"].reference, by["frechet"].n_ref) == ("digits/test", 360)
    assert (by["precision"].n_ref, by["label-accuracy"].n_ref) == (200, 200)
    assert (by["copy-rate"].reference, by["copy-rate"].n_ref) == ("digits/train", 1437)
    assert by["frechet"].extractor_sha256 == extractor.record()["sha256"]
    assert by["frechet"].preparation == "bilinear-antialias 8x8->20x20, pad->28x28"
    assert by["label-accuracy"].value > 0.9
    assert by["copy-rate"].value == 1.0  # these are training images
    net = metrics.digit_net()
    features, test = net.features(x), net.features(digits.test.x[:, 0])
    assert by["frechet"].value == pytest.approx(metrics.frechet_distance(features, test), rel=1e-9)
    assert by["kernel"].value == pytest.approx(metrics.kernel_distance(features, test), rel=1e-9)
    assert metrics.evaluate(x, label, digits, generated=MADE) == records


def test_the_floor_is_the_same_measure_of_training_images(digits: Data, reference: Reference) -> None:
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(0))
    sets = [digits.train.x[order[200 * k : 200 * (k + 1)], 0] for k in range(5)]
    measured = [metrics.measure(x, None, reference, generated=MADE) for x in sets]
    for k, r in enumerate(measured[0][:4]):
        values = np.array([m[k].value for m in measured])
        floor = math.sqrt((values**2).mean()) if r.name == "kernel" else values.mean()
        assert r.floor == pytest.approx(floor, rel=1e-9)
        assert "5 disjoint sets of n training images" in r.floor_rule


def test_worse_samples_measure_worse(digits: Data, reference: Reference) -> None:
    x, label = digits.test.x[:200, 0], digits.test.label[:200]
    noise = (60 * torch.randn(200, 8, 8, generator=torch.Generator().manual_seed(0))).int()
    spoilt = (x.int() + noise).clamp(0, 255).to(torch.uint8)
    good, bad = (metrics.measure(i, label, reference, generated=MADE) for i in (x, spoilt))
    for g, b in zip(good[:5], bad[:5], strict=True):
        assert g.name == b.name
        assert (b.value > g.value) == (g.better == "lower"), g.name


def test_label_accuracy_only_for_the_ten_digits(digits: Data, reference: Reference) -> None:
    x, label = digits.test.x[:200, 0], digits.test.label[:200]
    unlabelled = metrics.measure(x, None, reference, generated=MADE)
    assert "label-accuracy" not in [r.name for r in unlabelled]
    letters = replace(reference, data=replace(digits, classes=tuple("abcdefghij")))
    assert "label-accuracy" not in [r.name for r in metrics.measure(x, label, letters, generated=MADE)]
    shifted = metrics.measure(x, (label + 1) % 10, reference, generated=MADE)
    assert next(r.value for r in shifted if r.name == "label-accuracy") < 0.1


def test_evaluate_refuses(digits: Data, reference: Reference) -> None:
    x, label = digits.test.x[:200, 0], digits.test.label[:200]
    assert metrics.limits(digits) == (97, 1437)
    for n in (0, 50, 96):
        with pytest.raises(Refusal, match=f"n = {n} samples; digits can be evaluated with 97..1437"):
            metrics.evaluate(x[:n], None, digits, generated=MADE)
    with pytest.raises(Refusal, match="n = 1438"):
        Reference.of(digits, 1438)
    with pytest.raises(Refusal, match="generated lacks nfe, seed"):
        metrics.measure(x, None, reference, generated={"sampler": "ddim"})
    with pytest.raises(Refusal, match=r"samples are uint8 \[8, 7\], digits is uint8 \[8, 8\]"):
        metrics.measure(x[:, :, :7], None, reference, generated=MADE)
    with pytest.raises(Refusal, match="make the reference for 199"):
        metrics.measure(x[:199], None, reference, generated=MADE)
    with pytest.raises(Refusal, match="one class index"):
        metrics.measure(x, label + 1, reference, generated=MADE)
    small = replace(digits, test=data.Split(digits.test.x[:90], None))
    with pytest.raises(Refusal, match="90 test images; the metrics need at least 97"):
        metrics.limits(small)


# ------------------------------------------------------------------------------------------------------------- records


@pytest.fixture
def record(digits: Data, reference: Reference) -> metrics.Record:
    return metrics.measure(digits.test.x[:200, 0], None, reference, generated=MADE)[0]


def test_record_round_trip(record: metrics.Record) -> None:
    text = json.dumps(record.to_json())
    assert metrics.Record.from_json(json.loads(text)) == record
    stored = json.loads(text)
    stored["vlaue"] = stored.pop("value")
    with pytest.raises(Refusal, match="value, vlaue missing or unknown"):
        metrics.Record.from_json(stored)


def test_only_records_of_one_recipe_compare(record: metrics.Record) -> None:
    better = replace(record, value=record.value - 1, sampler="heun", nfe=40)
    assert metrics.comparable(record, better)
    assert metrics.change(record, better) == pytest.approx(-1)
    for part, other in {"n": 300, "reference": "mnist/test", "extractor_sha256": "0", "preparation": "none"}.items():
        changed = replace(record, **{part: other})
        assert metrics.differences(record, changed) == (part,)
        assert not metrics.comparable(record, changed)
        with pytest.raises(Refusal, match=f"frechet cannot be compared: {part} is") as refused:
            metrics.change(record, changed)
        assert "\n" not in str(refused.value)


def test_table_never_prints_a_bare_number(record: metrics.Record) -> None:
    other = replace(record, sampler=None, nfe=None, seed=None, guidance=None, floor=0.0)
    text = metrics.table([record, other])
    lines = text.split("\n")
    assert lines[0].split() == ["metric", "value", "floor", "x", "floor", "n", "reference"]
    assert lines[1].startswith("ddim, 20 evaluations each, guidance 2, seed 3; seen by digit-net ")
    for cell in (f"{record.value:.4g}", f"{record.floor:.4g}", "200", "digits/test (360)"):
        assert cell in lines[2]
    assert lines[3].startswith("sampler unknown")
    assert " - " in lines[4]
    assert math.isnan(other.ratio)
