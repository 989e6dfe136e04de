"""Extractors: their networks layer by layer, what they do to samples, and what they refuse."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato import data, metrics
from sfumato.data import corpora, tokenizers
from sfumato.data.text import TextData
from sfumato.errors import Refusal
from sfumato.metrics import extractors, inception, mobilenet, sequences

EMPTY = {"sampler": None, "nfe": None, "seed": None}


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, Tensor]:
    """Weights that keep activations near 1, drawn in the order of the layout."""
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        drawn = torch.rand(shape, generator=g)
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            found[name] = 0.5 + drawn
        else:
            scale = (3.0 / max(1, math.prod(shape[1:]))) ** 0.5 if len(shape) > 1 else 0.2
            found[name] = (2 * drawn - 1) * scale
    return found


# ---------------------------------------------------------------------------------------------------------- MobileNet


def test_mobilenet_has_the_shapes_of_its_paper() -> None:
    shapes = mobilenet.layout()
    learned = [shape for name, shape in shapes.items() if "running" not in name]
    assert sum(math.prod(shape) for shape in learned) == 3_504_872
    assert len(shapes) == 52 * 5 + 2
    net = mobilenet.MobileNet(weights(shapes), "")
    maps = net.maps(torch.zeros(1, 3, 224, 224))
    # table 2: input 224 x 224; every block's channels and side
    expected = [(32, 112), (16, 112), *[(24, 56)] * 2, *[(32, 28)] * 3, *[(64, 14)] * 4, *[(96, 14)] * 3]
    expected += [*[(160, 7)] * 3, (320, 7), (1280, 7)]
    assert [(m.shape[1], m.shape[2]) for m in maps] == expected
    assert [m.shape[3] for m in maps] == [side for _, side in expected]
    residual = [k for k, block in enumerate(mobilenet.blocks()) if block.residual]
    assert residual == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]


def test_a_mobilenet_block_is_its_unfolded_definition() -> None:
    """Widen, ReLU6, per channel, ReLU6, narrow, add: with batch norms as they are, not folded."""
    state = weights(mobilenet.layout(), 1)
    net = mobilenet.MobileNet(state, "")
    maps = net.maps(20 * torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))

    def normed(x: Tensor, name: str) -> Tensor:
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts, eps=1e-5)

    stem, x = "features.3.conv", maps[2]
    h = F.relu6(normed(F.conv2d(x, state[f"{stem}.0.0.weight"]), f"{stem}.0.1"))
    h = F.relu6(normed(F.conv2d(h, state[f"{stem}.1.0.weight"], padding=1, groups=h.shape[1]), f"{stem}.1.1"))
    h = x + normed(F.conv2d(h, state[f"{stem}.2.weight"]), f"{stem}.3")
    assert torch.allclose(maps[3], h, rtol=1e-4, atol=1e-5)
    assert float(maps[0].min()) >= 0
    assert float(maps[0].max()) == 6


def test_mobilenet_features_are_pooled_and_classified() -> None:
    state = weights(mobilenet.layout(), 2)
    looking = extractors.ImageNet(mobilenet.MobileNet(state, "abc"), 64)
    grey = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = looking.features(grey)
    assert features.shape == (3, 1280) == (3, looking.dimension(grey))
    assert torch.allclose(features, looking.features(grey[..., None].expand(3, 20, 30, 3)), atol=1e-6)
    assert torch.allclose(features[1:2], looking.features(grey[1:2]), rtol=1e-3, atol=1e-5)
    assert looking.preparation(grey) == "grey x 3, bilinear-antialias 20x30->64x64, ImageNet mean and deviation"
    logits = looking.logits(features)
    exact = features @ state["classifier.1.weight"].T + state["classifier.1.bias"]
    assert torch.allclose(logits, exact, atol=1e-5)
    x = looking._prepared(torch.full((1, 64, 64, 3), 255, dtype=torch.uint8))
    assert x[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert isinstance(looking, extractors.Extractor)
    assert isinstance(looking, extractors.Classifier)


@pytest.mark.parametrize("damage", ["missing", "text", "other", "cut"])
def test_weights_that_are_none(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    {
        "missing": lambda: None,
        "text": lambda: path.write_text("no weights"),
        "other": lambda: torch.save({"a": torch.zeros(2)}, path),
        "cut": lambda: (torch.save({"a": torch.zeros(99)}, path), path.write_bytes(path.read_bytes()[:200])),
    }[damage]()
    with pytest.raises(Refusal, match=r"w\.pth") as refused:
        extractors.get(f"inception:weights={path}")
    assert "\n" not in str(refused.value)


def test_the_record_of_mobilenet_is_whole() -> None:
    r = mobilenet.record()
    assert r["sha256"].startswith("b0353104")
    assert r["file"].endswith("mobilenet_v2-b0353104.pth")
    known = {name: (photo["index"], photo["class"]) for name, photo in r["photos"].items()}
    assert known == {"chelsea": (285, "Egyptian cat"), "coffee": (967, "espresso"), "china": (698, "palace")}
    assert all(0.7 < photo["probability"] < 1 for photo in r["photos"].values())


def photo(name: str) -> Tensor:
    """A photo of scikit-image or scikit-learn, uint8 ``[1, h, w, 3]``."""
    from skimage import data as photos
    from sklearn.datasets import load_sample_image

    found = load_sample_image("china.jpg") if name == "china" else getattr(photos, name)()
    return torch.from_numpy(np.array(found))[None]


def middle(x: Tensor) -> Tensor:
    """ImageNet's evaluation: the shorter side resized to 256, the middle 224 x 224, normalised."""
    levels = extractors.planes(x)
    height, width = (round(side * 256 / min(levels.shape[2:])) for side in levels.shape[2:])
    levels = F.interpolate(levels, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - 224) // 2, (width - 224) // 2
    mean, spread = (torch.tensor(v)[:, None, None] for v in (mobilenet.MEAN, mobilenet.SPREAD))
    return (levels[:, :, top : top + 224, left : left + 224] - mean) / spread


@pytest.mark.slow
def test_mobilenet_knows_three_photos() -> None:
    """With the weights, fetched where they are not cached; ``files/mobilenet.json`` holds what it said."""
    looking = extractors.get("mobilenet")
    assert isinstance(looking, extractors.ImageNet)
    for name, known in mobilenet.record()["photos"].items():
        x = photo(name)
        p = looking.logits(looking.net.pooled(middle(x))).softmax(1)[0]
        assert int(p.argmax()) == known["index"], name
        assert float(p.max()) == pytest.approx(known["probability"], abs=2e-3), name
        # whole and stretched, as features are made, it still finds the subject among its first two
        assert known["index"] in looking.logits(looking.features(x))[0].topk(2).indices.tolist(), name


# ---------------------------------------------------------------------------------------------------------- Inception


def test_inception_has_the_tensors_of_the_file() -> None:
    """Parameters as torch-fidelity counts them (with the classifier's bias, which is not used)."""
    shapes = inception.layout()
    learned = sum(math.prod(shape) for name, shape in shapes.items() if "running" not in name)
    assert learned + inception.CLASSES == 23_850_960
    assert len(inception.CONVOLUTIONS) == 94


def test_inception_is_torch_fidelitys() -> None:
    """The numbers are torch-fidelity 0.4.0's, of the same drawn weights and images (``tools/check_inception.py``)."""
    g, state = torch.Generator().manual_seed(0), {}
    for name, shape in inception.layout().items():
        u = torch.rand(shape, generator=g)
        scale = (6 / math.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.2
        state[name] = 0.5 + u if name.endswith(("running_var", "bn.weight")) else (2 * u - 1) * scale
    net = inception.Inception(state, "")
    x = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = net.pooled((x.float() - 128) / 128)
    assert float(features.double().mean()) == pytest.approx(3.4650379217136136, rel=1e-5)
    assert features[0, [0, 2047]].tolist() == pytest.approx([3.0178747177124023, 0.5495223999023438], rel=1e-4)
    assert torch.allclose(net.logits(features), features @ state["fc.weight"].T, rtol=1e-4, atol=1e-3)
    looking = extractors.FIDInception(net)
    grey = x[0, :1].float().mul(0).add(77).to(torch.uint8)
    assert looking.preparation(grey) == "grey x 3, as they are, [-1, 1]"
    assert looking.preparation(grey[:, :8, :9, None].expand(1, 8, 9, 3)) == "bilinear 8x9->299x299, [-1, 1]"
    assert torch.allclose(looking.features(grey), net.pooled(torch.full((1, 3, 299, 299), 77 * 2 / 255 - 1)), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- others


def test_pixels_are_levels() -> None:
    x = torch.randint(0, 256, (4, 5, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extractors.get("pixels").features(x)
    assert found.shape == (4, 90)
    assert torch.equal(found.reshape(4, 3, 5, 6)[2, 1], x[2, :, :, 1] / 255)
    small = extractors.get("pixels:size=2")
    assert small.features(x).shape == (4, 12) == (4, small.dimension(x))
    assert small.preparation(x) == "bilinear-antialias 5x6->2x2"


def test_grams_are_counted_with_signs() -> None:
    found = sequences.hashed_grams(["abab", "baba", "abab", ""], 2, 16)
    assert found.shape == (4, 32)
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[3], torch.zeros(32))
    assert found[:3].square().mean(1).tolist() == pytest.approx([1.0] * 3)
    # the same letters in another order: equal letters, other pairs
    one, other = (row / row[:16].norm() for row in found[:2])
    assert torch.allclose(one[:16], other[:16])
    assert not torch.allclose(one[16:], other[16:])
    # two a, two b, of four letters; two ab, one ba, of three pairs
    magnitude = found[0][found[0] != 0].abs()
    assert sorted((magnitude / magnitude.min()).tolist()) == pytest.approx([1, 1.5, 1.5, 2])


def test_series_have_statistics_of_their_channels() -> None:
    t = torch.arange(64, dtype=torch.float64)
    wave = torch.sin(2 * math.pi * t / 8)
    x = torch.stack([torch.stack([3 + 2 * wave, torch.full_like(t, 7)])])
    found = dict(zip(sequences.STATISTICS, sequences.statistics(x).reshape(2, -1).T.tolist(), strict=True))
    assert found["mean"] == pytest.approx([3, 7])
    assert found["deviation"] == pytest.approx([2**0.5, 0])
    assert (found["least"], found["most"]) == (pytest.approx([1, 7]), pytest.approx([5, 7]))
    assert found["kurtosis"] == pytest.approx([1.5, 0])
    assert found["lag 8"] == pytest.approx([1, 0], abs=0.1)
    assert found["lag 4"][0] == pytest.approx(-1, abs=0.1)
    with pytest.raises(Refusal, match="at least 2"):
        sequences.statistics(x[..., :1])


def test_convolutions_tell_series_apart_and_do_not_see_their_units() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, 50, generator=g, dtype=torch.float64)
    found = sequences.convolved(x, 9)
    assert found.shape == (40, 18)
    assert torch.allclose(found, sequences.convolved(5 * x - 3, 9))
    assert torch.allclose(found[3:4], sequences.convolved(x[3:4], 9))
    assert float(found[:, 1::2].min()) >= 0
    assert float(found[:, 1::2].max()) <= 1
    looking = extractors.get("convolutions:kernels=9", "series")
    assert looking.features(x.float()).shape == (40, looking.dimension(x))
    rough, smooth = looking.features(x.float()), looking.features(x.cumsum(2).float())
    scale = metrics.catalogue.standardised(rough)
    same = metrics.frechet_distance(((rough - scale[0]) / scale[1])[:20, :8], ((rough - scale[0]) / scale[1])[20:, :8])
    other = metrics.frechet_distance(((smooth - scale[0]) / scale[1])[:, :8], ((rough - scale[0]) / scale[1])[:, :8])
    assert other > 10 * same


def test_unknown_and_unfitting_extractors() -> None:
    for name, kind, message in (
        ("mobilnet", "images", "unknown extractor 'mobilnet'; did you mean mobilenet"),
        ("pixels:side=3", "images", "no setting 'side'"),
        ("pixels:size=0", "images", "at least 1"),
        ("mobilenet:size=8", "images", "at least 32"),
        ("inception", "images", "needs weights; write inception:weights="),
        ("ngrams", "images", "reads text, these are images; take digit-net"),
        ("digit-net", "text", "reads images, these are text; take ngrams"),
        ("ngrams:n=0", "text", "n of at least 1"),
        ("convolutions:kernels=0", "series", "at least 1"),
    ):
        with pytest.raises(Refusal, match=message) as refused:
            extractors.get(name, kind)
        assert "\n" not in str(refused.value)


def test_any_metric_of_any_extractor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every metric by name on real images: the record says what it was made of."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    digits = data.load("digits")
    x, label = digits.train.x[:120, 0], digits.train.label[:120]
    every = metrics.evaluate(x, label, digits, generated=EMPTY, names=metrics.catalogue.names())
    assert [r.name for r in every] == list(metrics.catalogue.names())
    for r in every:
        assert r.error is not None
        assert json.loads(json.dumps(r.to_json()))["name"] == r.name
        assert r.better in ("lower", "higher")
    by = {r.name: r for r in every}
    assert (by["kid"].n_ref, by["density"].n_ref, by["inception-score"].n_ref) == (360, 120, 0)
    # training images are no worse than training images
    for name in ("sliced-w2", "mmd-rbf", "kid", "density", "coverage", "inception-score"):
        assert by[name].value == pytest.approx(by[name].floor, abs=4 * by[name].error + 0.02), name
    small = metrics.evaluate(x, None, digits, generated=EMPTY, extractor="pixels:size=4", names=("frechet", "coverage"))
    assert [(r.name, r.extractor, r.preparation) for r in small] == [
        (name, "pixels", "bilinear-antialias 8x8->4x4") for name in ("frechet", "coverage")
    ]
    with pytest.raises(Refusal, match="inception-score asks a classifier, and pixels is none"):
        metrics.evaluate(x, None, digits, generated=EMPTY, extractor="pixels", names=("inception-score",))
    with pytest.raises(Refusal, match="label-accuracy is of the ten digits seen by digit-net"):
        metrics.evaluate(x, label, digits, generated=EMPTY, extractor="pixels", names=("label-accuracy",))
    with pytest.raises(Refusal, match="unknown metric 'freschet'"):
        metrics.catalogue.read("freschet")
    with pytest.raises(Refusal, match="names kid twice"):
        metrics.catalogue.read("kid,kid")


def test_features_of_heavy_extractors_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second evaluation reads them; other weights, another size or other images do not meet them."""
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path))
    calls: list[int] = []

    class Counting:
        sha256 = "abc"

        def pooled(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return x.mean((2, 3))

    looking = extractors.ImageNet.__new__(extractors.ImageNet)
    object.__setattr__(looking, "net", Counting())
    object.__setattr__(looking, "size", 32)
    x = torch.randint(0, 256, (5, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    from sfumato.metrics.evaluate import real_features

    first = real_features(looking, x)
    assert torch.equal(real_features(looking, x), first)
    assert calls == [5]
    real_features(looking, x.flip(0))
    object.__setattr__(looking, "size", 40)
    real_features(looking, x)
    Counting.sha256 = "abd"
    real_features(looking, x)
    assert calls == [5] * 4
    for path in (tmp_path / "features").iterdir():
        path.write_bytes(b"damaged")
    real_features(looking, x)
    assert calls == [5] * 5


def test_texts_are_measured_by_their_grams() -> None:
    """Windows of the held-out text stand for real ones; shuffled letters have the same letters and other pairs."""
    rng = np.random.default_rng(0)
    words = ["the", "king", "rides", "bold", "and", "never", "falls", "so", "young", "queen"]
    train, test = (" ".join(rng.choice(words, 3000)) for _ in range(2))
    corpus = corpora.Corpus("words", train, test, "made here", "none", "0" * 64)
    text = TextData.of(corpus, tokenizers.parse("characters", corpus), 64)
    fresh = " ".join(rng.choice(words, 3000))
    samples = [fresh[64 * k : 64 * k + 64] for k in range(100)]
    shuffled = ["".join(rng.permutation(list(sample))) for sample in samples]
    assert 0.05 < float((extractors.get("ngrams", "text").features(samples) < 0).double().mean()) < 0.8
    names = ("kernel", "recall")
    good, bad = (metrics.evaluate(x, None, text, generated=EMPTY, names=names) for x in (samples, shuffled))
    assert good[0].preparation == "characters, n-grams to 3, 64 buckets each, windows of 64 tokens"
    assert good[0].value == pytest.approx(0, abs=5 * (good[0].error or 0))
    assert bad[0].value > 0.05
    assert good[1].value > 0.5 > bad[1].value
    with pytest.raises(Refusal, match="101 samples for a reference of n = 100"):
        metrics.measure([*samples, ""], None, metrics.Reference.of(text, 100, names=names), generated=EMPTY)


def test_points_have_features_of_their_own() -> None:
    torsions = data.load("torsions")
    records = metrics.evaluate(torsions.train.x[:100], None, torsions, generated=EMPTY)
    assert [r.name for r in records] == ["frechet", "kernel", "precision", "recall", "sliced-w2"]
    assert (records[0].extractor, records[0].preparation) == ("values", "standardised over the reference")
    assert all(r.value == pytest.approx(r.floor, abs=6 * (r.error or 0) + 1e-3) for r in records)
    with pytest.raises(Refusal, match="copy-rate is of images"):
        metrics.evaluate(torsions.train.x[:100], None, torsions, generated=EMPTY, names=("copy-rate",))


def test_a_kind_of_data_that_has_no_metrics() -> None:
    from sfumato.metrics import units

    with pytest.raises(Refusal, match="sounds have no metrics here"):
        units.form("sounds")


def test_rows_of_a_table_are_numbers_beside_categories() -> None:
    """Rows in the user's units have the features of the rows that are stored; categories are one number per value."""
    from sfumato.data.table import of_columns
    from sfumato.metrics import units

    rng = np.random.default_rng(0)
    price = rng.normal(100, 20, 300).round(2)
    table = of_columns({"price": price, "kind": rng.choice(["a", "b", "c"], 300)})
    real = units.form("table").real(table, "train")
    made = units.form("table").made(table, table.frame(table.train))
    assert torch.allclose(real, made, atol=1e-5)
    one_hot = real[:, [k for k in range(real.shape[1]) if set(real[:, k].tolist()) <= {0.0, 0.5}]]
    assert one_hot.shape[1] >= 3
    records = metrics.evaluate(table.frame(table.train)[:100], None, table, generated=EMPTY, names=("kernel", "recall"))
    assert [r.extractor for r in records] == ["values", "values"]
    assert records[0].value == pytest.approx(0, abs=5 * (records[0].error or 0) + records[0].floor)


def test_series_come_with_and_without_an_axis_of_channels() -> None:
    from types import SimpleNamespace

    from sfumato.metrics import units

    x = torch.randn(6, 1, 20, generator=torch.Generator().manual_seed(0))
    held = SimpleNamespace(train=SimpleNamespace(x=x), shape=(1, 20), transform=SimpleNamespace(centre=(0.25,)))
    form = units.form("series")
    assert torch.equal(form.made(held, x[:, 0].numpy()), form.real(held, "train"))
    assert form.made(held, x[:, 0, :9].numpy()).shape == (6, 9)
