"""Emoji by category: 20 minutes of training on a CPU, pictures, and what a classifier that never saw the model says.

    python benchmarks/emoji.py [--minutes 20] [--runs DIR]

One run of ``edm`` with the small preset on ``emoji-32`` (1,557 pictures in eight categories, one in ten held out); then
n samples, categories in turn, seeds from 0, drawn once, none chosen.  The classifier is a logistic regression on
ImageNet features (MobileNetV2) of the training pictures; its accuracy on held-out pictures stands beside the one on
samples, and so does the copy rate: with so few pictures a model that only remembered them would look best of all.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sfumato as sf
from sfumato import metrics, presets
from sfumato.bakeoff.parts import machine
from sfumato.data.grid import image_grid
from sfumato.errors import missing_extra
from sfumato.metrics import extractors
from sfumato.training.checkpoint import newest
from sfumato.training.files import make_folder, to_json, write_bytes
from sfumato.training.pictures import save_png

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, Any] = {
    **presets.get("small"),
    # a picture is seen some 150 times
    "dropout": 0.1,
    "p_mean": -0.4,
    "reports": 4,
    "sampler": "ddpm",
    "sampling_steps": 50,
    "guidance": 2.0,
    "clip": True,
}
#: Pictures of a category that are shown.
SHOWN = 12


def classifier(data: Any, extractor: Any) -> Any:
    """A logistic regression on the training pictures' features."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise missing_extra("scikit-learn", "dev") from None
    found = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return found.fit(extractor.features(images(data.train.x)).numpy(), data.train.label.numpy())


def images(x: Tensor) -> Tensor:
    """``[n, 3, h, w]`` as ``[n, h, w, 3]``, as samples come."""
    return x.permute(0, 2, 3, 1).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--n", type=int, default=960, help="samples that are measured")
    parser.add_argument("--runs", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "emoji.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "pictures" / "emoji.png")
    options = parser.parse_args()
    data = sf.data.load("emoji-32")
    run, there = options.runs, (options.runs / "config.json").exists()
    model = sf.train("edm", data, minutes=options.minutes, out=run, seed=0, resume=there, **SETTINGS)
    samples = model.sample(options.n, label=list(data.classes), seed=0)
    label = samples.index()
    extractor = extractors.get("mobilenet:size=96")
    reader = classifier(data, extractor)

    def accuracy(x: Tensor, wanted: Tensor) -> float:
        return float(reader.score(extractor.features(x).numpy(), wanted.numpy()))

    made = metrics.made(samples.record)
    records = metrics.evaluate(
        samples.x, label, data, generated=made, extractor=extractor, names=("kernel", "copy-rate")
    )
    trained, _ = newest(run)
    result = {
        "minutes": options.minutes,
        "trained": None if trained is None else {"steps": trained.step, "seconds": trained.seconds},
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "settings": SETTINGS,
        "nfe": samples.record["nfe"],
        "n": options.n,
        "category_accuracy": accuracy(samples.x, label),
        "category_accuracy_of_held_out_pictures": accuracy(images(data.test.x), data.test.label),
        "chance": 1 / len(data.classes),
        "classifier": f"logistic regression on {extractor.name} features of {len(data.train)} training pictures",
        "records": [record.to_json() for record in records],
        "machine": machine(),
        "version": sf.__version__,
    }
    rows = [samples.x[label == k][:SHOWN] for k in range(len(data.classes))]
    save_png(image_grid(torch.cat(rows), SHOWN, scale=2), options.picture)
    make_folder(options.out.parent)
    write_bytes(options.out, to_json(result))
    for name in ("category_accuracy", "category_accuracy_of_held_out_pictures", "chance"):
        print(f"{name}: {result[name]:.4f}")
    print(metrics.table(records))
    print(f"written to {options.out} and {options.picture}")


if __name__ == "__main__":
    try:
        main()
    except sf.Refusal as refusal:
        raise SystemExit(f"error: {refusal}") from None
