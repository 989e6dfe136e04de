"""Time series: how they are read, their scale, the one-dimensional U-Net, training, metrics, the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from scipy.stats import ks_2samp

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
from sfumato.data import series
from sfumato.data.options import Options
from sfumato.data.series_transform import SeriesTransform
from sfumato.data.transforms import from_json
from sfumato.metrics.series import autocorrelation, evaluate_series, gaps, spectrum
from sfumato.nets import UNet1d
from sfumato.nets.unet1d import Double

UNKNOWN = {"sampler": None, "nfe": None, "seed": None}
SMALL: dict[str, Any] = {
    "channels": (16, 16), "attention": (False, False), "blocks": 1, "batch": 16, "validation_images": 16, "reports": 1,
    "precision": "float32",
}  # fmt: skip


def waves(n: int, length: int = 24, seed: int = 0) -> np.ndarray:
    """Sines of one frequency and any phase about 100, amplitude 20: float32 ``[n, length]``."""
    phase = np.random.default_rng(seed).random((n, 1))
    return (100 + 20 * np.sin(2 * np.pi * (np.arange(length) / 12 + phase))).astype(np.float32)


def whole(data: Any) -> torch.Tensor:
    return torch.cat([data.train.x, data.test.x])


# -------------------------------------------------------------------------------------------------------------- reading


def test_arrays(tmp_path: Path) -> None:
    x = waves(30)
    np.savez(tmp_path / "a.npz", x=x, label=np.array(["b", "a"] * 15))
    np.save(tmp_path / "b.npy", np.stack([x, 5 * x], 1))
    np.save(tmp_path / "c.npy", np.random.default_rng(0).random((20, 8, 8)).astype(np.float32))
    data = sf.data.load(tmp_path / "a.npz")
    assert (data.kind, data.shape, data.classes, len(data.test)) == ("series", (1, 24), ("a", "b"), 3)
    assert sorted(whole(data)[:, 0, 0].tolist()) == sorted(x[:, 0].tolist())
    assert "1 channel of 24 values" in str(data.report())
    two = sf.data.load(tmp_path / "b.npy")
    assert two.shape == (2, 24)
    assert not two.transform.layout.flat
    assert sf.data.load(tmp_path / "c.npy").kind == "images"  # floats in [0, 1] of three axes
    assert sf.data.load(tmp_path / "c.npy", Options(kind="series")).shape == (8, 8)
    assert sf.data.reload(data.spec()).transform == data.transform
    assert data.pictures()[0][1].startswith(b"\x89PNG")
    with pytest.raises(sf.Refusal, match="kind=table"):
        sf.data.load(tmp_path / "a.npz", Options(kind="table"))
    with pytest.raises(sf.Refusal, match="resolution=8x8 does nothing"):
        sf.data.load(tmp_path / "a.npz", Options(resolution=(8, 8)))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_scale_of_every_channel(channels: int) -> None:
    x = torch.from_numpy(waves(50))[:, None] * torch.tensor([1.0, 1e-3, 1e5])[:channels, None]
    x[:, 1:2] = 7.0 if channels == 3 else x[:, 1:2]  # a channel that never moves
    data = series.of_arrays(x.numpy() if channels > 1 else x[:, 0].numpy(), name="waves")
    z = data.transform.encode(x)
    assert z.dtype == torch.float32
    for c in (0, 2)[: 1 + channels // 2]:
        assert float(z[:, c].mean()) == pytest.approx(0, abs=1e-4)
        assert float(z[:, c].std()) == pytest.approx(0.5, abs=1e-3)
    again = data.transform.decode(z)
    assert torch.allclose(again if channels > 1 else again[:, None], x, rtol=1e-5)
    assert from_json(json.loads(json.dumps(data.transform.to_json()))) == data.transform
    z[3, 0, 0] = math.nan
    with pytest.raises(sf.Refusal, match="1 of 50 series have non-finite"):
        data.transform.decode(z)
    with pytest.raises(sf.Refusal, match="every one must be positive"):
        SeriesTransform((0.0,), (0.0,))


def test_wide_and_long_tables(tmp_path: Path) -> None:
    x = waves(12, 6).round(2)
    names = ["a", "b", "c", "d", "e", "f"]
    kinds = ["p", "q", "q"] * 4
    wide = ["kind," + ",".join(names), *(f"{k}," + ",".join(map(str, row)) for k, row in zip(kinds, x, strict=True))]
    (tmp_path / "wide.csv").write_text("\n".join(wide))
    data = sf.data.load(tmp_path / "wide.csv", Options(kind="series", label_column="kind"))
    assert (data.shape, data.classes, data.transform.layout.form) == ((1, 6), ("p", "q"), "wide")
    assert np.allclose(np.sort(whole(data)[:, 0, 2]), np.sort(x[:, 2]))
    long = ["who,day,up,down,kind"]
    long += [f"s{k},2024-01-0{m + 1},{x[k, m]!s},{-x[k, m]!s},{kinds[k]}" for m in range(6) for k in range(12)]
    (tmp_path / "long.csv").write_text("\n".join(long))
    two = sf.data.load(tmp_path / "long.csv", Options(kind="series", label_column="kind"))
    assert (two.shape, two.transform.layout.form) == ((2, 6), "long")
    assert torch.equal(two.train.x[:, 0], -two.train.x[:, 1])
    assert sorted(whole(two)[:, 0, 3].tolist()) == sorted(whole(data)[:, 0, 3].tolist())
    # without kind=series both are tables
    assert sf.data.load(tmp_path / "wide.csv").kind == "table"
    # samples go back into the layout they came from
    for own, first in ((data, "kind,a,b,c,d,e,f"), (two, "who,day,up,down,kind")):
        view = own.transform.view
        samples = type("S", (), {"x": own.transform.decode(own.transform.encode(own.train.x[:2])), "label": ("q", "p")})
        lines = view.extra(samples)["samples.csv"].decode().splitlines()
        assert lines[0] == first
        assert len(lines) == (3 if own is data else 13)
        assert lines[1].split(",")[0] == ("q" if own is data else "1")
        assert float(lines[1].split(",")[2]) == pytest.approx(float(own.train.x[0, 0, 1 if own is data else 0]))
    assert lines[1].split(",")[1] == "2024-01-01"
    assert lines[1].endswith(",q")


def test_ucr_files(tmp_path: Path) -> None:
    (tmp_path / "g.ts").write_text(
        "#comment\n@problemName g\n@classLabel true a b\n@data\n1,2,3:4,5,6:a\n7,8,9:1,2,3:b\n2,2,2:3,3,3:b\n"
    )
    data = sf.data.load(tmp_path / "g.ts")
    assert (data.shape, data.classes) == ((2, 3), ("a", "b"))
    assert whole(data).sum() == 21 + 30 + 15
    (tmp_path / "u.ts").write_text("@classLabel false\n@data\n1,2,3\n7,8,9\n")
    assert sf.data.load(tmp_path / "u.ts").classes == ()
    (tmp_path / "u.tsv").write_text("1.0000\t0.5\t0.25\n-1\t1.5\t2\n1\t3\t4\n")
    old = sf.data.load(tmp_path / "u.tsv")
    assert (old.shape, old.classes) == ((1, 2), ("-1", "1"))
    (tmp_path / "t.tsv").write_text("a\tb\tc\n" + "".join(f"{k % 3}\t{k}\t{-k}\n" for k in range(9)))
    assert sf.data.load(tmp_path / "t.tsv").kind == "table"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ts", "@data\n1,2,3:a\n1,2:a\n", r"line 3 has series of \[2\] values"),
        ("a.ts", "@data\n1,?,3:a\n1,2,3:a\n", r"line 2 holds '\?', which is no number"),
        ("a.ts", "@data\n", "holds no series"),
        ("a.csv", "a,b,c\n1,2,3\n1,x,3\n", r"row 2 of column 'b' holds 'x'"),
        ("a.csv", "a,b,c\n1,2,3\n1,,3\n", r"row 2 of column 'b' holds nothing"),
        ("a.csv", "a,b,c\n1,2,3\n", "holds 1 series; give at least 2"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(sf.Refusal, match=message) as caught:
        sf.data.load(tmp_path / name, Options(kind="series") if name.endswith("csv") else Options())
    assert "\n" not in str(caught.value)


def long_file(path: Path, lengths: list[int], names: list[str], kinds: str = "ppqq") -> Path:
    lines = ["who,time,value,kind"]
    lines += [f"{who},{m},{m * m - 2.5},{c}" for who, n, c in zip(names, lengths, kinds, strict=True) for m in range(n)]
    path.write_text("\n".join(lines))
    return path


def test_long_files_that_are_refused(tmp_path: Path) -> None:
    options, path = Options(kind="series", label_column="kind"), tmp_path / "long.csv"
    assert sf.data.load(long_file(path, [3, 3, 3, 3], ["1", "2", "3", "4"]), options).shape == (1, 3)
    for names in (["1", "2", "3", "4"], ["a", "b", "c", "d"]):
        with pytest.raises(sf.Refusal, match=r"series of 2 to 4 moments \(by 'who'\); give all one length"):
            sf.data.load(long_file(path, [3, 2, 4, 3], names), options)
    path.write_text(long_file(path, [3, 3, 3, 3], ["1", "2", "3", "4"]).read_text().replace(",p", ","))
    with pytest.raises(sf.Refusal, match="row 1 has no 'kind'; fill it in"):
        sf.data.load(path, options)
    # a wide file may repeat numbers in its first column
    path.write_text("a,b,c\n" + "".join(f"{1 + (k > 3)},{k % 3},{k}\n" for k in range(9)))
    assert sf.data.load(path, Options(kind="series")).transform.layout.form == "wide"


def test_files_that_are_no_series(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("kind\na\nb\na\n")
    with pytest.raises(sf.Refusal, match="holds no column beside 'kind'"):
        sf.data.load(tmp_path / "t.csv", Options(kind="series", label_column="kind"))
    (tmp_path / "t.ts").write_text("@data\n1,2,3:a\n1,2,4:b\n")
    with pytest.raises(sf.Refusal, match=r"kind=table: .*t\.ts holds time series"):
        sf.data.load(tmp_path / "t.ts", Options(kind="table"))
    assert not series.is_ucr(tmp_path)  # it cannot be opened


def test_series_far_from_zero_keep_their_steps() -> None:
    x = 1e9 + waves(20).astype(np.float64) / 100
    data = series.of_arrays(x, name="far")
    z = data.transform.encode(whole(data))
    assert float(z.std()) == pytest.approx(0.5, abs=1e-3)
    back = data.transform.decode(z)
    assert back.dtype == torch.float64
    assert torch.allclose(back, whole(data)[:, 0], rtol=0, atol=1e-5)


def test_series_come_back_in_their_own_format(tmp_path: Path) -> None:
    narrow = series.of_arrays(waves(20), name="narrow").transform
    assert narrow.decode(torch.zeros(2, 1, 24)).dtype == torch.float32
    older = {name: value for name, value in narrow.to_json().items() if name != "numbers"}
    assert from_json(older) == narrow
    with pytest.raises(sf.Refusal, match="unknown format of series 'float8'"):
        from_json(older | {"numbers": "float8"})
    x = 1e6 + waves(12, 6).astype(np.float64) / 100
    lines = [",".join("abcdef"), *(",".join(f"{v:.4f}" for v in row) for row in x)]
    (tmp_path / "far.csv").write_text("\n".join(lines))
    data = sf.data.load(tmp_path / "far.csv", Options(kind="series"))
    made = data.transform.decode(data.transform.encode(data.train.x))
    assert torch.allclose(made, data.train.x[:, 0], rtol=0, atol=1e-6)
    samples = type("S", (), {"x": made, "label": None})
    text = data.transform.view.extra(samples)["samples.csv"].decode().splitlines()
    written = np.array([[float(v) for v in line.split(",")] for line in text[1:]])
    assert np.allclose(written, made.numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("extractor", ["values", "convolutions:kernels=4"])
def test_metrics_of_series_do_not_depend_on_where_they_lie(extractor: str) -> None:
    x, other = (np.random.default_rng(n).standard_normal((n, 24)).cumsum(1) / 10 for n in (300, 30))
    found = []
    for offset in (0.0, 1e6):
        data = series.of_arrays(offset + x, name="waves")
        records = sf.metrics.evaluate(
            offset + 1.1 * other, None, data, generated=UNKNOWN, extractor=extractor, names=("kernel",)
        )
        found.append([records[0].value, records[0].floor])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_arrays_that_are_no_series() -> None:
    x = waves(10)
    for bad, message in (
        (x[:1], "holds 1 series"),
        (x[0], r"x is float32 \[24\]"),
        (np.where(np.arange(24) == 3, np.nan, x), "series 1 has a missing or infinite value"),
    ):
        with pytest.raises(sf.Refusal, match=message):
            series.of_arrays(bad, name="x")
    with pytest.raises(sf.Refusal, match="give an integer or a name"):
        series.of_arrays(x, np.zeros(3, int), name="x")


# -------------------------------------------------------------------------------------------------------------- network


def net(**settings: Any) -> UNet1d:
    torch.manual_seed(0)
    made = UNet1d(
        **{"in_channels": 2, "out_channels": 2, "channels": (8, 16, 16), "attention": (False, False, True)} | settings
    )
    made.compute_dtype = torch.float32
    for parameter in made.parameters():
        if float(parameter.detach().abs().max()) == 0:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


@pytest.mark.parametrize("length", [1, 3, 8, 17, 140])
def test_series_of_any_length(length: int) -> None:
    model, x, t = net(), torch.randn(3, 2, length), torch.rand(3)
    y = model(x, t)
    assert y.shape == x.shape
    assert torch.allclose(model(x[1:2], t[1:2]), y[1:2], atol=1e-3)  # a row is its own
    short = -length % 4
    if short:  # the end is continued by its last value
        longer = torch.cat([x, x[..., -1:].expand(3, 2, short)], 2)
        assert torch.allclose(model(longer, t)[..., :length], y, atol=1e-3)


def test_the_network_of_series() -> None:
    assert float(UNet1d()(torch.randn(2, 1, 16), torch.rand(2)).detach().abs().max()) == 0  # at the start
    model = net(classes=3)
    assert UNet1d(**model.settings).settings == model.settings
    x, t = torch.randn(2, 2, 16), torch.rand(2)
    assert torch.equal(model(x, t), model(x, t, {"label": torch.full((2,), 3)}))
    assert not torch.allclose(model(x, t), model(x, t, {"label": torch.zeros(2, dtype=torch.long)}))
    assert not torch.allclose(model(x, t), model(x, t * 0.5))
    # every output sees every input
    x.requires_grad_(True)
    model(x, t)[0, 0, 0].backward()
    assert bool((x.grad[0].abs().sum(0) > 0).all())  # type: ignore[index]
    assert float(x.grad[1].abs().max()) == 0  # type: ignore[index]
    double = Double(2)
    doubled = torch.nn.functional.conv1d(
        torch.tensor([[[1.0, 1, 2, 2], [0, 0, 5, 5]]]), double.conv.weight[:, :, 0], double.conv.bias, padding=1
    )
    assert torch.allclose(double(torch.tensor([[[[1.0, 2]], [[0.0, 5]]]]))[:, :, 0], doubled, atol=1e-6)
    with pytest.raises(sf.Refusal, match="without classes"):
        net()(x, t, {"label": torch.zeros(2)})
    with pytest.raises(sf.Refusal, match="attention has 1 entries for 2"):
        UNet1d(channels=(8, 8), attention=(True,))
    with pytest.raises(sf.Refusal, match="blocks 0"):
        UNet1d(channels=(8,), attention=(True,), blocks=0)


# ------------------------------------------------------------------------------------------------------------- training


def test_waves_are_learned() -> None:
    data = series.of_arrays(waves(400), name="waves")
    model = sf.train("flow", data, steps=240, quiet=True, lr=3e-3, warmup=20, **SMALL | {"batch": 64})
    x = model.sample(100, steps=12).x.numpy()
    assert x.shape == (100, 24)
    assert float(x.mean()) == pytest.approx(100, abs=4)
    assert float(x.std()) == pytest.approx(20 / math.sqrt(2), rel=0.2)
    records = {r.name: r for r in evaluate_series(x, data, generated=UNKNOWN)}
    assert set(records) == {"values", "moments", "autocorrelation", "spectrum"}
    # a wave of period 12: its autocorrelation is a cosine, its power is in one frequency
    assert records["autocorrelation"].value < 0.25
    assert records["spectrum"].value < 0.5


@pytest.mark.parametrize("recipe", ["ddpm", "edm", "vp-sde"])
def test_recipes_for_images_take_series(tmp_path: Path, recipe: str) -> None:
    x = np.stack([waves(20, 14), -waves(20, 14)], 1)
    data = series.of_arrays(x, ["up", "down"] * 10, name="two")
    run = tmp_path / "run"
    sf.train(recipe, data, steps=2, out=run, quiet=True, **SMALL | {"batch": 4, "grid_columns": 1, "grid_steps": 2})
    samples = sf.load(run).sample(4, label=["up", "down"], steps=2, seed=3)
    assert samples.x.shape == (4, 2, 14)
    assert samples.view.show(samples).startswith(b"\x89PNG")
    alone = sf.load(run).sample(1, label="down", steps=2, seed=4)
    assert torch.allclose(alone.x, samples.x[1:2], rtol=1e-4)


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, run = tmp_path / "wide.csv", tmp_path / "run"
    path.write_text("\n".join([",".join("abcdef"), *(",".join(map(str, row)) for row in waves(40, 6))]))
    few = [
        "channels=8,8",
        "attention=false,false",
        "blocks=1",
        "batch=8",
        "grid_steps=2",
        "grid_columns=1",
        "reports=1",
    ]
    given = [word for pair in few for word in ("--set", pair)]
    command = ["train", "flow", "--data", str(path), "--kind", "series", "--steps", "2", "--out", str(run), *given]
    assert run_sfumato(command) == 0
    assert run_sfumato(["sample", str(run), "--n", "3", "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    assert sorted(f.name for f in (tmp_path / "s").iterdir()) == [
        "samples.csv", "samples.json", "samples.npz", "samples.png",
    ]  # fmt: skip
    with np.load(tmp_path / "s" / "samples.npz") as archive:
        assert archive["x"].shape == (3, 6)
        lines = (tmp_path / "s" / "samples.csv").read_text().splitlines()
        assert lines[0] == "a,b,c,d,e,f"
        assert float(lines[1].split(",")[0]) == pytest.approx(float(archive["x"][0, 0]), rel=1e-6)
    assert run_sfumato(["eval", str(run), "--n", "20", "--steps", "2"]) == 0
    assert "autocorrelation" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------- metrics


def test_autocorrelation_and_spectrum() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 2, 20)) + np.array([[3.0], [-1.0]])
    found = autocorrelation(x)
    assert found.shape == (2, 10)
    for c in range(2):
        centred = x[:, c] - x[:, c].mean()
        sums = sum(correlate(row, row, method="direct")[19:] for row in centred)
        assert np.allclose(found[c], sums[1:11] / sums[0])
    # AR(1): the autocorrelation falls by its coefficient
    ar = np.zeros((400, 1, 80))
    for k in range(1, 80):
        ar[:, 0, k] = 0.7 * ar[:, 0, k - 1] + rng.normal(size=400)
    rho = autocorrelation(ar[..., 30:])[0]
    assert rho[0] / rho[1] == pytest.approx(1 / 0.7, rel=0.06)
    wave = np.cos(2 * np.pi * 3 * np.arange(20) / 20)[None, None]
    assert spectrum(5 * wave)[0, 2] == pytest.approx(1)
    assert spectrum(np.ones((2, 1, 8))).sum() == 0
    assert autocorrelation(np.ones((2, 1, 8))).tolist() == [[0, 0, 0, 0]]


def test_metrics_of_series() -> None:
    x = np.stack([waves(60), waves(60, seed=1)], 1).astype(np.float64)
    assert set(gaps(x, x).values()) == {0.0}
    found = gaps(x, x[:, ::-1] + 1)
    assert found["values"] == pytest.approx(
        np.mean([ks_2samp(x[:, c].ravel(), x[:, 1 - c].ravel() + 1).statistic for c in (0, 1)])
    )
    assert found["cross-correlation"] == pytest.approx(0, abs=1e-9)  # it has no order
    apart = gaps(x, np.stack([x[:, 0], x[:, 0]], 1))
    assert apart["cross-correlation"] == pytest.approx(1 - np.corrcoef(x[:, 0].ravel(), x[:, 1].ravel())[0, 1])
    slow = np.repeat(x[..., ::2], 2, -1)
    assert gaps(x, slow)["autocorrelation"] > 0.05
    assert gaps(x, slow)["spectrum"] > 0.02
    data = series.of_arrays(x.astype(np.float32), name="two")
    with pytest.raises(sf.Refusal, match=r"samples of shape \[60, 1, 24\]"):
        evaluate_series(x[:, 0], data, generated=UNKNOWN)
    with pytest.raises(sf.Refusal, match="generated lacks nfe"):
        evaluate_series(x, data, generated={"sampler": None, "seed": None})
