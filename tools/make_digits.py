"""Make the embedded 8x8 digits from the copy that scikit-learn ships: 1,797 images, losslessly.

    python tools/make_digits.py          # needs scikit-learn

Grey levels v = 0..16 are stored as u = round(255 v / 16), so that v = round(16 u / 255) exactly.  The split is fixed:
every fifth image, in scikit-learn's order, is a test image (360), the others train (1,437).
Writes src/sfumato/data/files/digits.npz and its card, digits.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import sklearn
from sklearn.datasets import load_digits

from sfumato.data.packed import pack, unpack

#: Of the pixels (uint8) and the labels (uint8), in scikit-learn's order.
CONTENT_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
OUT = Path(__file__).parent.parent / "src/sfumato/data/files"


def main() -> None:
    digits = load_digits()
    levels = digits.images.astype(np.uint8)
    label = digits.target.astype(np.uint8)
    found = hashlib.sha256(levels.tobytes() + label.tobytes()).hexdigest()
    if found != CONTENT_SHA256:
        sys.exit(f"make_digits: scikit-learn {sklearn.__version__} has other digits: sha256 {found}")
    x = np.round(levels * (255 / 16)).astype(np.uint8)
    if not np.array_equal(np.round(x * (16 / 255)).astype(np.uint8), levels):
        sys.exit("make_digits: the grey levels do not come back")
    test = np.arange(len(x)) % 5 == 0
    arrays = {"train.x": x[~test], "train.label": label[~test], "test.x": x[test], "test.label": label[test]}
    blob = pack(arrays)
    if any(not np.array_equal(arrays[k], v) for k, v in unpack(blob).items()):
        sys.exit("make_digits: the round trip lost something")
    card = {
        "classes": [str(k) for k in range(10)],
        "licence": "CC BY 4.0 (data), BSD-3-Clause (scikit-learn's copy)",
        "source": "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak, UCI, "
        "the test part as shipped by scikit-learn",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "content_sha256": CONTENT_SHA256,
        "made_by": "tools/make_digits.py",
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "digits.npz").write_bytes(blob)
    (OUT / "digits.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{OUT / 'digits.npz'}: {len(blob):,} bytes, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
