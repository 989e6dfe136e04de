"""Make the embedded emoji: Microsoft's Fluent Emoji in 3D at 64 x 64 pixels, with their names, on one lossless sheet.

    python tools/make_emoji.py                     # fetches three packages with npm
    SFUMATO_CACHE=FOLDER python tools/make_emoji.py

The pictures are those of the npm package ``@lobehub/fluent-emoji-3d``, the names and categories those of
``emoji-datasource``.  Only what Microsoft published under the MIT licence is taken:

* a picture is kept where its code points are among those of microsoft/fluentui-emoji, as listed by the npm package
  ``@iconify-json/fluent-emoji-flat``; that leaves out the flags of countries, which Microsoft did not publish;
* five pictures show what Microsoft withheld for its trademarks (the paperclip with a face, the game controller, the
  logo on three technologists' laptops) and are left out;
* the eight flags that remain are too few for a category and are left out;
* variants in other skin tones repeat one picture up to 25 times: only the neutral one is kept.

A picture is laid on white, centred on a square where it is none, and scaled to 64 x 64 with a Lanczos filter.  Writes
emoji.webp and its card, emoji.json, into src/sfumato/data/files.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from sfumato.data.emoji import COLUMNS, SIDE, tiles
from sfumato.fetch import Npm, Package

PICTURES = Package(
    Npm(), "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
NAMES = Package(Npm(), "emoji-datasource", "16.0.0", "2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9")
PUBLISHED = Package(
    Npm(), "@iconify-json/fluent-emoji-flat", "1.2.6",
    "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
)  # fmt: skip
#: Drawn here in the version that Microsoft withheld.
WITHHELD = ("1f4ce", "1f3ae", "1f9d1-200d-1f4bb", "1f468-200d-1f4bb", "1f469-200d-1f4bb")
#: The categories of emoji-datasource, in its order, and what they are called here.
CLASSES = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "animals",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
}
LIMIT = 8_000_000
OUT = Path(__file__).parent.parent / "src/sfumato/data/files"


def key(code: str) -> str:
    """Code points without the mark that asks for a picture."""
    return code.lower().replace("_", "-").replace("-fe0f", "")


def picture(stream: io.BufferedIOBase) -> np.ndarray:
    """One picture on white, uint8 ``[64, 64, 3]``."""
    image = Image.open(stream).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def main() -> None:
    (listed,) = NAMES.files(["emoji.json"])
    (chars,) = PUBLISHED.files(["chars.json"])
    PICTURES.files(["package.json"])  # its archive is in the cache now
    entries: list[dict[str, Any]] = json.loads(listed.read_text())
    published = {key(code) for code in json.loads(chars.read_text())}
    with tarfile.open(next(PICTURES.folder.glob("*.tgz"))) as tar:
        drawn = {key(PurePosixPath(m.name).stem): m for m in tar.getmembers() if m.name.endswith(".webp")}
        rows, images = [], []
        for entry in sorted(entries, key=lambda e: (list(CLASSES).index(e["category"]), e["sort_order"])
                            if e["category"] in CLASSES else (len(CLASSES), 0)):  # fmt: skip
            code = key(entry["unified"])
            if entry["category"] not in CLASSES or code not in published or code not in drawn or code in WITHHELD:
                continue
            stream = tar.extractfile(drawn[code])
            if stream is None:
                sys.exit(f"make_emoji: {code} is no file")
            images.append(picture(stream))
            rows.append([code, entry["name"].lower(), list(CLASSES).index(entry["category"])])
    x = np.stack(images)
    lines = -(-len(x) // COLUMNS)
    sheet = np.full((lines, SIDE, COLUMNS, SIDE, 3), 255, np.uint8)
    for k, image in enumerate(x):
        sheet[k // COLUMNS, :, k % COLUMNS] = image
    file = io.BytesIO()
    Image.fromarray(sheet.reshape(lines * SIDE, COLUMNS * SIDE, 3)).save(
        file, "WEBP", lossless=True, quality=80, method=4
    )
    blob = file.getvalue()
    if len(blob) > LIMIT or not np.array_equal(tiles(blob, len(x)), x):
        sys.exit(f"make_emoji: {len(blob)} bytes, limit {LIMIT}, or the round trip lost something")
    card = {
        "classes": list(CLASSES.values()),
        "licence": "MIT (Fluent Emoji, Copyright Microsoft Corporation)",
        "source": "Fluent Emoji 3D by Microsoft, from the npm package @lobehub/fluent-emoji-3d 1.1.0; names and "
        "categories from emoji-datasource 16.0.0 (MIT, Copyright 2013 Cal Henderson)",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "content_sha256": hashlib.sha256(x.tobytes()).hexdigest(),
        "packages": {str(p): p.sha256 for p in (PICTURES, NAMES, PUBLISHED)},
        "made_by": "tools/make_emoji.py",
        "images": rows,
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "emoji.webp").write_bytes(blob)
    (OUT / "emoji.json").write_text(json.dumps(card, ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{OUT / 'emoji.webp'}: {len(blob):,} bytes, {len(x):,} pictures, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
