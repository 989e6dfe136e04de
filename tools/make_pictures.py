"""The pictures of the README and the docs, from a finished ``make demo``: python tools/make_pictures.py [runs/demo].

Copies the demo's own pictures (reduced to what a page needs), draws the schedules, and prints the table of measures
that the README shows, from the demo's own records.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

import sfumato as sf

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"


def copy(source: Path, name: str, width: int = 900) -> None:
    with Image.open(source) as picture:
        scale = min(1.0, width / picture.width)
        smaller = picture if scale == 1 else picture.resize((width, round(picture.height * scale)))
        smaller.save(PICTURES / name, optimize=True)


def table(run: Path) -> str:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [f"| {record['name']} | {record['value']:.4f} | {record['floor']:.4f} |" for record in records]
    return "\n".join(["| measure | value | floor (real images, same n) |", "|---|---|---|", *rows])


def main() -> None:
    run = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "demo"
    PICTURES.mkdir(parents=True, exist_ok=True)
    for source, name in (("digits", "demo-digits"), ("trajectory", "demo-trajectory"), ("loss", "demo-loss")):
        copy(run / f"{source}.png", f"{name}.png")
    sf.schedules.plot([*sf.schedules.names(), "learned"], PICTURES / "schedules.png")
    print(table(run))


if __name__ == "__main__":
    main()
