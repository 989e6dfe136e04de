"""Shards: every sample once an epoch, in an order that a resumed run goes on with, and little in memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato as sf
from sfumato import data
from sfumato.data import shards, tar_index
from sfumato.data.options import Options
from sfumato.data.shards import ShardData
from sfumato.data.stream_order import TOGETHER, StreamOrder, window_of
from sfumato.data.tar_index import expand
from sfumato.errors import Refusal

TINY = {
    "channels": (8,), "attention": (False,), "blocks": 1, "patch": 1, "batch": 8, "reports": 2, "precision": "float32",
    "validation_images": 8, "grid_columns": 0, "standardise": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))


def pixels(number: int) -> np.ndarray:
    """The image of a sample, 8 x 8 RGB; its first pixel says its number."""
    x = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    x[0, 0] = number % 251, number // 251, 7
    return x


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, samples: list[dict[str, bytes]]) -> Path:
    """A shard of samples ``{ending: content}``."""
    with tarfile.open(path, "w") as tar:
        for k, sample in enumerate(samples):
            for ending, content in sample.items():
                info = tarfile.TarInfo(f"set.v1/{path.stem}-{k:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def make(root: Path, counts: tuple[int, ...] = (30, 10, 20), label: bool = True) -> str:
    """Shards of numbered samples whose class is their number modulo 3; their pattern."""
    number = 0
    root.mkdir(exist_ok=True)
    for k, count in enumerate(counts):
        samples = []
        for _ in range(count):
            sample = {"txt": b"a caption", "png": png(number)} | ({"cls": str(number % 3).encode()} if label else {})
            samples.append(sample)
            number += 1
        write(root / f"{k:03d}.tar", samples)
    return str(root / f"{{000..{len(counts) - 1:03d}}}.tar")


def numbers(x: torch.Tensor) -> list[int]:
    return [int(image[0, 0, 0]) + 251 * int(image[1, 0, 0]) for image in x]


def one_line(call: Any, match: str) -> str:
    with pytest.raises(Refusal, match=match) as refused:
        call()
    assert "\n" not in str(refused.value)
    return str(refused.value)


# ---------------------------------------------------------------------------------------------------------------- order

COUNTS = (40, 7, 0, 100, 33, 21, 64, 5)


def test_every_epoch_visits_every_sample_once() -> None:
    order, n = StreamOrder(3, COUNTS, 16), sum(COUNTS)
    visited = torch.cat([order.batch(step, 9) for step in range(2 * n // 9 + 2)])
    for epoch in (visited[:n], visited[n : 2 * n]):
        assert sorted(epoch.tolist()) == list(range(n))
    assert not torch.equal(visited[:n], visited[n : 2 * n])


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    walked = StreamOrder(3, COUNTS, 16)
    every = [walked.batch(step, 13) for step in range(60)]
    for step in (0, 17, 41, 59):
        assert torch.equal(StreamOrder(3, COUNTS, 16).batch(step, 13), every[step])
    assert torch.equal(walked.batch(2, 13), every[2])
    assert not torch.equal(StreamOrder(4, COUNTS, 16).batch(0, 13), every[0])
    # where batches are of another size, the sequence is the same
    assert torch.equal(torch.cat([StreamOrder(3, COUNTS, 16).batch(k, 26) for k in range(30)]), torch.cat(every))


def test_the_shards_come_in_another_order_in_every_epoch() -> None:
    counts = (10,) * 40
    order = StreamOrder(1, counts, 8)
    first, second = order.batch(0, 400) // 10, order.batch(1, 400) // 10
    together = [{frozenset(part.tolist()) for part in epoch.split(10 * TOGETHER)} for epoch in (first, second)]
    assert all(len(group) == TOGETHER for group in together[0] | together[1])
    assert len(together[0] & together[1]) < 5


def test_a_window_is_read_from_few_shards_near_each_other() -> None:
    counts, window = (500,) * 20, 64
    order = StreamOrder(0, counts, window).batch(0, sum(counts))
    for part in order[: 4 * 500].split(window):
        shard, place = part // 500, part % 500
        assert len(shard.unique()) == TOGETHER
        for k in shard.unique():
            assert int(place[shard == k].max() - place[shard == k].min()) <= window // TOGETHER
    # and it is shuffled: half of the steps within a shard go back
    steps = order[order // 500 == order[0] // 500].diff()
    assert 0.35 < float((steps < 0).double().mean()) < 0.65


def test_a_window_holds_about_64_mb() -> None:
    assert window_of(1000, 1000 * 100_000) == 671
    assert window_of(1000, 1000) == 16_384
    assert window_of(10, 10 * 2**30) == 256


# -------------------------------------------------------------------------------------------------------------- reading


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    found = data.load(make(tmp_path / "s"))
    assert isinstance(found, ShardData)
    assert found.shape == (3, 8, 8)
    assert found.classes == ("0", "1", "2")
    rows = found.rows(torch.device("cpu"))
    assert len(rows) == 54
    batch = rows.batch(torch.arange(len(rows)))
    seen = numbers(batch["x"])
    held = numbers(found.test.x)
    assert sorted(seen + held) == list(range(60))
    assert sorted(held) == [27, 28, 29, 39, 58, 59]  # the last tenth of every shard
    for image, label, number in zip(batch["x"], batch["label"], seen, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels(number))
        assert int(label) == number % 3
    assert found.test.label is not None
    assert found.test.label.tolist() == [number % 3 for number in held]
    # any index, in any order
    index = torch.tensor([53, 0, 26, 27, 0])
    assert numbers(rows.batch(index)["x"]) == [seen[k] for k in index.tolist()]


def test_the_sample_stands_for_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SAMPLED", 18)
    found = data.load(make(tmp_path / "s"))
    assert len(found.train) == 18
    seen = numbers(found.train.x)
    assert min(seen) < 5
    assert max(seen) > 53
    assert found.train.label is not None
    assert found.train.label.tolist() == [number % 3 for number in seen]
    report = found.report()
    assert (report.train, report.test, report.leaked) == (54, 6, 0)
    assert report.train_counts == (18, 18, 18)
    text = str(report)
    assert "3, 0.00 GB of images" in text
    assert json.loads(json.dumps(found.spec()))["train"] == 54


def test_a_folder_a_file_and_a_list_with_repeats(tmp_path: Path) -> None:
    pattern = make(tmp_path / "s")
    folder = data.load(str(tmp_path / "s"))
    assert folder.sha256 == data.load(pattern).sha256
    one = data.load(str(tmp_path / "s" / "001.tar"))
    assert len(one.rows(torch.device("cpu"))) == 9
    twice = data.load(str(tmp_path / "s" / "{001,002,001}.tar"))
    rows = twice.rows(torch.device("cpu"))
    assert len(rows) == 9 + 18 + 9
    assert sorted(numbers(twice.test.x)) == [39, 58, 59]
    visited = numbers(rows.batch(rows.order(0).batch(0, len(rows)))["x"])
    assert sorted(visited) == sorted([*range(30, 39), *range(40, 58), *range(30, 39)])
    assert "1 of them listed again" in str(twice.report())


def test_classes_from_json_by_name(tmp_path: Path) -> None:
    samples = [{"jpg": png(k), "json": json.dumps({"kind": "owl" if k % 2 else "ant"}).encode()} for k in range(20)]
    path = str(write(tmp_path / "a.tar", samples))
    assert data.load(path).classes == ()
    named = data.load(path, Options(label_column="kind"))
    assert named.classes == ("ant", "owl")
    batch = named.rows(torch.device("cpu")).batch(torch.arange(4))
    assert batch["label"].tolist() == [0, 1, 0, 1]
    assert data.load(named.name, named.options).sha256 == named.sha256
    one_line(lambda: data.load(path, Options(label_column="nothing")), r"no \.json .* has such an entry")


def test_mixed_sizes_get_one_and_options_say_which(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("L", (32, 16), 9).save(file, format="PNG")
    path = str(write(tmp_path / "a.tar", [{"png": png(k)} for k in range(6)] + [{"png": file.getvalue()}] * 12))
    assert data.load(path).shape == (3, 16, 32)
    assert data.load(path, Options(resolution=(4, 6))).shape == (3, 4, 6)


def test_headers_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = make(tmp_path / "s")
    before = data.load(pattern).sha256
    scanned: list[Path] = []
    scan = tar_index._scan
    monkeypatch.setattr(tar_index, "_scan", lambda path, label: (scanned.append(path), scan(path, label))[1])
    assert data.load(pattern).sha256 == before
    assert scanned == []
    write(tmp_path / "s" / "001.tar", [{"png": png(k), "cls": b"1"} for k in range(11)])
    assert data.load(pattern).sha256 != before
    assert [path.name for path in scanned] == ["001.tar"]


def test_a_batch_reads_its_own_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data.load(make(tmp_path / "s")).rows(torch.device("cpu"))
    read: list[int] = []
    blob = shards.Place.blob
    monkeypatch.setattr(shards.Place, "blob", lambda place, number: (read.append(number), blob(place, number))[1])
    rows.batch(torch.tensor([3, 50, 7]))
    assert sorted(read) == [3, 7, 54]


def test_corrupt_images_are_named_or_replaced_with_their_class(tmp_path: Path) -> None:
    samples = [{"png": png(k), "cls": str(k % 3).encode()} for k in range(20)]
    samples[5]["png"] = samples[5]["png"][:60]
    path = str(write(tmp_path / "a.tar", samples))
    said = one_line(lambda: data.load(path).rows(torch.device("cpu")).batch(torch.arange(10)), "cannot be read")
    assert "image 6 of" in said
    assert "--corrupt skip" in said
    rows = data.load(path, Options(corrupt="skip")).rows(torch.device("cpu"))
    batch = rows.batch(torch.arange(10))
    assert numbers(batch["x"]) == [0, 1, 2, 3, 4, 4, 6, 7, 8, 9]
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 1, 0, 1, 2, 0]


def test_many_damaged_images_in_a_row(tmp_path: Path) -> None:
    samples = [{"png": png(k)[: 60 if 1 <= k < 4 or 36 <= k < 45 else None]} for k in range(50)]
    rows = data.load(str(write(tmp_path / "a.tar", samples)), Options(corrupt="skip", labels="none"))
    decoder = rows.rows_of.decoder
    assert numbers(decoder.split(torch.tensor([0, 1, 3, 4, 36, 44]), False).x) == [0, 0, 0, 4, 35, 35]
    samples = [{"png": png(k)[: 60 if k < 2 else None]} for k in range(50)]
    rows = data.load(str(write(tmp_path / "b.tar", samples)), Options(corrupt="skip"))
    assert numbers(rows.rows_of.decoder.split(torch.tensor([0, 1]), False).x) == [2, 2]
    samples = [{"png": png(k)[: 60 if 5 < k < 45 else None]} for k in range(50)]
    rows = data.load(str(write(tmp_path / "c.tar", samples)), Options(corrupt="skip")).rows_of
    one_line(lambda: rows.batch(torch.tensor([40])), "image 41 of .*nor its neighbours")


def test_no_image_crosses_between_training_and_held_out(tmp_path: Path) -> None:
    """A held-out image that cannot be read is left out, a training image is replaced by one that is trained on."""
    samples = [{"png": png(k)[: 60 if k < 6 or k == 28 else None]} for k in range(30)]  # 27, 28, 29 are held out
    found = data.load(str(write(tmp_path / "a.tar", samples)), Options(corrupt="skip"))
    assert numbers(found.test.x) == [27, 29]
    decoder = found.rows_of.decoder
    assert numbers(decoder.split(torch.tensor([26, 4, 2, 28]), False).x) == [26, 6, 6, 27]
    assert "skipped" in str(found.report())
    assert decoder.damaged == {0, 1, 2, 3, 4, 5, 28}
    place = decoder.place
    assert {place.beside(k, step) for k in range(27) for step in range(40)} == set(range(27))
    assert {place.beside(k, step) for k in range(27, 30) for step in range(40)} == {27, 28, 29}
    gone = str(write(tmp_path / "b.tar", [{"png": png(k)[: 60 if k > 26 else None]} for k in range(30)]))
    one_line(lambda: data.load(gone, Options(corrupt="skip")), "none of 3 held-out images can be read")
    one_line(lambda: data.load(gone), "image 28 of .*leave such out with --corrupt skip")


def deep(x: np.ndarray) -> dict[str, bytes]:
    """A sample of 16-bit or float levels."""
    file = io.BytesIO()
    Image.fromarray(x).save(file, format="TIFF")
    return {"tif": file.getvalue()}


@pytest.mark.parametrize(
    ("usual", "rare"),
    [(np.uint16(4000), np.uint16(5000)), (np.float32(1), np.float32(1.3)), (np.float32(0), np.float32("nan"))],
)
def test_levels_of_an_image_that_was_not_looked_at_are_refused(
    usual: Any, rare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would wrap around: 12 bits are found, and a level of 5000 is met later."""
    monkeypatch.setattr(shards, "PROBED", 2)
    samples = [deep(np.full((4, 4), usual)) for _ in range(20)]
    samples[5] = deep(np.full((4, 4), rare))
    path = str(write(tmp_path / "a.tar", samples))
    rows = data.load(path).rows(torch.device("cpu"))
    white = 4095 if usual.dtype == np.uint16 else 1
    assert (rows.batch(torch.tensor([0]))["x"] == round(float(usual) * 255 / white)).all()
    one_line(lambda: rows.batch(torch.tensor([5])), f"image 6 of .*its levels run from .*is read from 0 to {white}")


def test_a_picture_too_large_to_be_safe_is_refused_while_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the threads that decode, where no filter of warnings is set."""
    rows = data.load(make(tmp_path / "s")).rows(torch.device("cpu"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one_line(lambda: rows.batch(torch.tensor([3])), "image 4 of .*it has more than 40 pixels")


def test_a_stray_tar_hides_no_images(tmp_path: Path) -> None:
    root = tmp_path / "x"
    make(root, (8,))
    for k in range(4):
        (root / f"{k}.png").write_bytes(png(k))
    assert len(data.load(root).train) == 3
    assert not isinstance(data.load(root), ShardData)
    make(tmp_path / "s")
    (tmp_path / "s" / "000.tar").rename(tmp_path / "s" / "000.TAR")
    (tmp_path / "s" / "sizes.json").write_text("{}")
    (tmp_path / "s" / ".hidden").write_text("")
    whole = data.load(tmp_path / "s")
    assert isinstance(whole, ShardData)
    assert len(whole.rows_of) == 54
    assert not tar_index.is_shards(str(tmp_path / "nowhere"))


def test_a_folder_that_may_not_be_read_is_no_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Any) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    one_line(lambda: data.load(tmp_path), "cannot read the folder .*Permission denied")


def test_refusals(tmp_path: Path) -> None:
    make(tmp_path / "s")
    one_line(lambda: data.load(str(tmp_path / "s" / "{000..004}.tar")), r"003\.tar, 2 of 5 shards are not there")
    one_line(lambda: data.load("https://example.org/{0..9}.tar"), "shards are read from a disk")
    one_line(lambda: data.load(str(tmp_path / "a.tar.gz")), "is compressed.*unpack it")
    (tmp_path / "b.tar").write_bytes(os.urandom(5000))
    one_line(lambda: data.load(str(tmp_path / "b.tar")), r"b\.tar is no \.tar file, or a damaged one")
    write(tmp_path / "c.tar", [{"txt": b"hello"}])
    one_line(lambda: data.load(str(tmp_path / "c.tar")), "holds no images")
    write(tmp_path / "d.tar", [{"png": png(0), "cls": b"1"}, {"png": png(1)}, {"png": png(2), "cls": b"0"}])
    one_line(lambda: data.load(str(tmp_path / "d.tar")), "1 of 3 images have no class")
    assert data.load(str(tmp_path / "d.tar"), Options(labels="none")).classes == ()
    write(tmp_path / "e.tar", [{"png": png(0)}])
    one_line(lambda: data.load(str(tmp_path / "e.tar")), "holds 1 image")


def test_braces() -> None:
    assert expand("a/{0..2}-{x,y}.tar") == [f"a/{k}-{c}.tar" for k in range(3) for c in "xy"]
    assert expand("{08..11}") == ["08", "09", "10", "11"]
    one_line(lambda: expand("{3..1}.tar"), "give the lower number first")


# ------------------------------------------------------------------------------------------------------------- training


def test_training_reads_the_shards_in_their_order_and_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = data.load(make(tmp_path / "s", (40, 20, 30), label=False))
    asked: list[list[int]] = []
    batch = shards.ShardRows.batch
    monkeypatch.setattr(
        shards.ShardRows, "batch", lambda rows, index: (asked.append(index.tolist()), batch(rows, index))[1]
    )
    whole = sf.train("flow", loaded, steps=12, out=tmp_path / "a", quiet=True, **TINY)
    order = loaded.rows(torch.device("cpu")).order(0)
    assert asked[:12] == [order.batch(step, 8).tolist() for step in range(12)]  # an epoch of 81 ends within step 11
    # killed after its report at step 6
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-12")
    (tmp_path / "b" / "model.safetensors").unlink()
    again = data.load(loaded.name)
    resumed = sf.train("flow", again, out=tmp_path / "b", resume=True, quiet=True)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name]), name
    assert whole.sample(2, seed=0).x.shape == (2, 8, 8, 3)


def test_a_run_goes_on_where_an_image_became_unreadable(tmp_path: Path) -> None:
    """``--resume --corrupt skip`` is what the refusal says, and no other option may change."""
    name = make(tmp_path / "s", (40,), label=False)
    sf.train("flow", name, options=Options(resolution=(8, 8)), steps=2, out=tmp_path / "a", quiet=True, **TINY)
    for options in (Options(corrupt="skip"), Options(corrupt="skip", resolution=(8, 8))):
        sf.train("flow", name, options=options, out=tmp_path / "a", resume=True, quiet=True)
        stored = json.loads((tmp_path / "a" / "config.json").read_text())["data"]
        assert data.reload(stored).options == Options(corrupt="skip", resolution=(8, 8))
    for options in (Options(corrupt="skip", resolution=(4, 4)), Options()):
        with pytest.raises(Refusal, match="was trained with data options resolution=8x8, corrupt=skip, not"):
            sf.train("flow", name, options=options, out=tmp_path / "a", resume=True, quiet=True)
