"""The report of a run: what it says, that it loads nothing, and that its curves can be read back."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sfumato as sf
from sfumato.__main__ import run as run_sfumato
from sfumato.reports import Chart, Figure, Line, Note, Section, Table, Texts, render, svg, write
from sfumato.reports.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, between
from sfumato.reports.page import DARK, LIGHT
from sfumato.reports.run import page
from sfumato.training.monitor import read_log

TINY: dict[str, Any] = {
    "channels": (8,), "attention": (False,), "patch": 2, "blocks": 1, "batch": 32, "reports": 3, "grid_columns": 1,
    "grid_steps": 2, "validation_images": 16, "precision": "float32",
}  # fmt: skip
SMALL: dict[str, Any] = {
    "width": 32, "depth": 1, "batch": 8, "validation_images": 16, "grid_columns": 1, "grid_steps": 2, "reports": 2,
}  # fmt: skip
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """What a browser and a screen reader find; refuses tags that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(content: str) -> Reader:
    found = Reader()
    found.feed(content)
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images, sampled and evaluated."""
    out = tmp_path_factory.mktemp("report") / "mine"
    sf.train("edm", "digits", steps=24, out=out, seed=5, quiet=True, **(TINY | {"lr": 0.003}))
    assert run_sfumato(["sample", str(out), "--n", "10", "--steps", "2"]) == 0
    assert run_sfumato(["eval", str(out), "--n", "100", "--steps", "2"]) == 0
    return out


@pytest.fixture(scope="module")
def found(run: Path) -> Reader:
    return read(write(run).read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------------------- what it says


def test_training_leaves_a_report(tmp_path: Path) -> None:
    sf.train("flow", "digits", steps=2, out=tmp_path / "run", quiet=True, **TINY)
    assert "flow on digits" in read((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).text


def test_the_report_has_every_part(found: Reader, run: Path) -> None:
    headings = [word.strip() for word in found.words if word.strip() in SECTIONS]
    assert list(dict.fromkeys(headings)) == SECTIONS
    config, log = json.loads((run / "config.json").read_text()), read_log(run / "log.jsonl")
    last = [line for line in log if line["kind"] == "validation"][-1]
    assert f"{last['loss']:.4f} at the end" in found.text
    assert f"{config['parameters']:,} parameters" in found.text
    assert "24 steps" in found.text
    for record in read_log(run / "metrics.jsonl"):
        assert f"{record['name']} " in found.text
        assert f"{record['value']:.4g}" in found.text
        assert f"{record['floor']:.4g}" in found.text
    for name, value in config["settings"].items():
        assert name in found.text
        assert value != 0.003 or "0.003 recipe: 0.001" in found.text
    for version in config["versions"].values():
        assert version in found.text
    assert config["data"]["sha256"] in found.text
    assert config["data"]["licence"] in found.text


SECTIONS = [
    "Summary", "Curves", "Loss by noise level", "Samples while training", "Samples", "Measures", "Nearest neighbours",
    "Data", "Settings", "Environment", "Commands",
]  # fmt: skip


def test_the_commands_are_exact(found: Reader, run: Path, tmp_path: Path) -> None:
    lines = [word for word in found.words if word.startswith("sfumato ")]
    assert f"sfumato report {run}" in lines
    repeat = next(line for line in lines if "--config" in line).split()
    repeat[repeat.index("--out") + 1] = str(tmp_path / "again")
    assert run_sfumato(repeat[1:]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_grids_are_there_in_order(found: Reader, run: Path) -> None:
    files = sorted((run / "grids").glob("*.png"))
    shown = [a for a in found.named("img") if (a["alt"] or "").startswith("Samples at step")]
    assert [a["alt"].split(",")[0] for a in shown if a["alt"]] == [f"Samples at step {n}" for n in (8, 16, 24)]
    for attributes, path in zip(shown, files, strict=True):
        source = attributes["src"] or ""
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == path.read_bytes()


def test_many_grids_are_thinned_to_first_and_last(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for step in range(100, 140):
        shutil.copyfile(run / "grids" / "step-000008.png", copy / "grids" / f"step-{step:06d}.png")
    words = read(page(copy)).text
    assert "12 of 43 grids" in words
    assert "step 8 " in words
    assert "step 139" in words


# ------------------------------------------------------------------------------------------------- offline and readable


def test_the_page_loads_nothing(run: Path, found: Reader) -> None:
    content = (run / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", content)
    assert not re.search(r"url\(|@import", content)
    assert not found.named("script")
    assert not found.named("link")
    policy = [a["content"] for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_pictures_and_curves_have_words(found: Reader) -> None:
    assert found.named("html") == [{"lang": "en"}]
    pictures = found.named("img")
    assert len(pictures) > 4
    for attributes in pictures:
        assert attributes["alt"]
        kind, content = (attributes["src"] or "").split(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert f"data:{Image.MIME[image.format or '']}" == kind
    ids = [a["id"] for _, a in found.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for attributes in found.named("svg"):
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
        assert attributes["role"] == "img"
    anchors = [(a["href"] or "")[1:] for a in found.named("a")]
    assert anchors
    assert set(anchors) <= set(ids)
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))  # no level is passed over


def luminance(colour: str) -> float:
    """Relative luminance of the Web Content Accessibility Guidelines 2.1."""
    values = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("paper", [LIGHT, DARK])
def test_curves_stand_out_from_both_papers(paper: str) -> None:
    for colour in [*COLOURS, *(between(k / 7) for k in range(8))]:
        a, b = sorted((luminance(colour), luminance(paper)))
        assert (b + 0.05) / (a + 0.05) >= 3, colour


def test_every_word_is_escaped() -> None:
    evil = '<script>alert("x")</script>&'
    chart = Chart(evil, evil, evil, (Line(evil, ((0.0, 1.0), (1.0, 2.0))), Line("b", ((0.0, 1.0),))), level=(1.5, evil))
    blocks = (Note(evil), Table(((evil, evil),), (evil, evil), evil), Texts(((evil, evil),)), Figure("f", (chart,)))
    content = render(evil, evil, [Section("A", blocks)], evil)
    assert "<script" not in content
    assert read(content).text.count('<script>alert("x")</script>&') >= 12


def test_names_of_classes_and_data_are_escaped(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["data"]["source"] = "<b>bold</b>"
    config["data"]["transform"]["vocabulary"] = {f"word{k}": k for k in range(1000)}
    config["data"]["long"] = list(range(1000))
    (copy / "config.json").write_text(json.dumps(config))
    assert "<b>" not in page(copy)
    assert "<b>bold</b>" in read(page(copy)).text
    assert "transform.vocabulary 1,000 entries" in read(page(copy)).text
    assert "38, 39, ... (1,000 in all)" in read(page(copy)).text


# --------------------------------------------------------------------------------------------------------------- curves


def points(chart: Chart) -> tuple[list[float], list[float]]:
    """The shares of the axes at which the first curve's points lie."""
    root = ET.fromstring(str(svg(chart, "n")))
    curve = next(each for each in root.iter("polyline"))
    pairs = [tuple(map(float, word.split(","))) for word in curve.attrib["points"].split()]
    return (
        [(x - LEFT) / (WIDTH - RIGHT - LEFT) for x, _ in pairs],
        [(HEIGHT - BOTTOM - y) / (HEIGHT - BOTTOM - TOP) for _, y in pairs],
    )


def test_a_curve_can_be_read_back() -> None:
    x, y = points(Chart("t", "x", "y", (Line("a", ((0.0, 5.0), (2.5, 6.0), (10.0, 7.0))),)))
    assert x == pytest.approx([0, 0.25, 1], abs=1e-3)
    assert y == pytest.approx([0, 0.5, 1], abs=1e-3)
    x, y = points(
        Chart("t", "x", "y", (Line("a", ((1.0, 0.01), (10.0, 0.1), (100.0, 100.0))),), log_x=True, log_y=True)
    )
    assert x == pytest.approx([0, 0.5, 1], abs=1e-3)
    assert y == pytest.approx([0, 0.25, 1], abs=1e-3)


def test_what_cannot_be_drawn_is_left_out() -> None:
    nan = float("nan")
    chart = Chart("t", "x", "y", (Line("a", ((0.0, 1.0), (1.0, nan), (2.0, 3.0))), Line("b", ((0.0, nan),))))
    assert [line.name for line in chart.shown()] == ["a"]
    assert chart.shown()[0].points == ((0.0, 1.0), (2.0, 3.0))
    assert Chart("t", "x", "y", (Line("a", ((1.0, -1.0), (2.0, 1.0))),), log_y=True).shown()[0].points == ((2.0, 1.0),)
    assert "nothing to show" in svg(Chart("t", "x", "y", (Line("b", ((0.0, nan),)),)), "n")


def test_long_curves_keep_their_end() -> None:
    shown = Chart("t", "x", "y", (Line("a", tuple((float(k), float(k)) for k in range(1002))),)).shown()[0]
    assert len(shown.points) <= 300
    assert shown.points[-1] == (1001.0, 1001.0)


def test_single_high_values_do_not_set_the_scale() -> None:
    _, y = points(Chart("t", "x", "y", (Line("a", ((0.0, 1000.0), (1.0, 2.0), (2.0, 0.0))),), most=4.0))
    assert y == pytest.approx([1, 0.5, 0], abs=1e-3)


def test_the_loss_curve_is_the_log(run: Path, found: Reader) -> None:
    reports = [line for line in read_log(run / "log.jsonl") if line["kind"] == "validation"]
    for line in reports:
        assert f"held out, averaged weights: {line['loss']:.5g} at {line['step']}" in found.text
    k = 3
    named = f"log-SNR {reports[-1]['levels'][k]['log_snr']:.6g}"
    value = reports[-1]["levels"][k]["loss"]
    assert re.search(rf"{re.escape(named[:9])}\S*: {value:.5g} at 24", found.text)


def test_what_else_was_measured_while_training_is_drawn(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    with (copy / "log.jsonl").open("a") as file:
        for step, value in ((8, 30.5), (24, 20.25)):
            file.write(json.dumps({"kind": "metric", "step": step, "frechet": value, "frechet error": 1.5}) + "\n")
    words = read(page(copy)).text
    assert "frechet: 30.5 at 8" in words
    assert "frechet: 20.25 at 24" in words
    assert "frechet error" not in words


# ---------------------------------------------------------------------------------------------------------- other kinds


def test_text(tmp_path: Path) -> None:
    source = tmp_path / "mine.txt"
    source.write_text("the <i>cat</i> sat on the mat & slept. " * 400)
    sf.train("mdlm", source, steps=4, out=tmp_path / "run", quiet=True, heads=2, **SMALL)
    found = read((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    grid = (tmp_path / "run" / "grids" / "step-000004.txt").read_text()
    assert " ".join(grid.split()[:3]) in found.text
    assert "mdlm on mine.txt" in found.text
    assert not found.named("i")
    assert "step 4" in found.text


def test_points(tmp_path: Path) -> None:
    sf.train("geodesic", "torsions", steps=4, out=tmp_path / "run", quiet=True, **SMALL)
    found = read((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert len(found.named("img")) == 2
    assert "Loss by noise level" in found.text


# ------------------------------------------------------------------------------------------------------------ the verb


def test_the_verb(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "report.html").unlink(missing_ok=True)
    assert run_sfumato(["report", str(run)]) == 0
    assert run_sfumato(["report", str(run)]) == 0  # its own report is replaced
    other = tmp_path / "other.html"
    assert run_sfumato(["report", str(run), "--out", str(other)]) == 0
    assert other.read_text() == (run / "report.html").read_text()
    capsys.readouterr()
    assert run_sfumato(["report", str(run), "--out", str(other)]) == 2
    assert capsys.readouterr().err == f"sfumato: {other} exists already and is kept; give another --out\n"
    assert run_sfumato(["report", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_has_only_begun(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    words = read(page(tmp_path)).text
    assert "Nothing was logged yet" in words
    assert "Not evaluated yet" in words
