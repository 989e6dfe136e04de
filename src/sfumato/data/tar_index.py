"""Where the samples of a WebDataset shard lie: one look at the headers of a .tar file, no contents.

The contract: a sample is a run of files whose names agree up to the first dot of the last part (the key); its image is
the file whose ending is one of an image, its class the content of ``KEY.cls`` or an entry of ``KEY.json``.  Sample
``k`` of a shard is its ``k``-th key that has an image.  What was found is kept in the cache under the file's path, size
and time of change, so a shard is looked through once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Int64

from sfumato.data.fetched import keep, kept
from sfumato.data.folder import ENDINGS
from sfumato.errors import Refusal
from sfumato.fetch import cache

#: The entry of a sample's .json that is its class, where none is named.
LABEL = "label"
#: Where a sample has no class.
NO_CLASS = -1
#: What the names in a folder of shards end in: the shards themselves, and what is kept beside them.
BESIDE = (".tar", ".json", ".txt", ".idx")
#: What a list in braces may make at most.
MOST_SHARDS = 1_000_000
#: Bytes of a .cls or .json that are read.
MOST_BYTES = 1 << 20


@final
@dataclass(frozen=True, eq=False)
class Shard:
    """One .tar file: where every image begins and how long it is, in bytes; ``code``: its class among ``names`` (-1:
    it has none)."""

    path: Path
    offset: Int64[np.ndarray, " n"]
    size: Int64[np.ndarray, " n"]
    code: Int64[np.ndarray, " n"]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offset)


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for: ``{000..099}`` and ``{a,b}``, as a shell expands them.

    >>> expand("s/{008..010}.tar"), expand("{a,b}-{1..2}.tar")
    (['s/008.tar', 's/009.tar', 's/010.tar'], ['a-1.tar', 'a-2.tar', 'b-1.tar', 'b-2.tar'])
    """
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    before, inner, after = pattern[: found.start()], found[1], pattern[found.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if span is None:
        choices = inner.split(",")
    else:
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MOST_SHARDS:
            raise Refusal(f"{pattern}: {{{inner}}} counts from {first} to {last}; give the lower number first")
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(k).zfill(width) for k in range(first, last + 1)]
    rests = expand(after)
    return [before + choice + rest for choice in choices for rest in rests]


def listed(name: str) -> list[Path]:
    """The shards that a pattern or a folder names, in order.  Raises :class:`Refusal` where one is not there."""
    folder = Path(name)
    if folder.is_dir():
        return [folder / each for each in _visible(name) if each.lower().endswith(".tar")]
    if "://" in name or name.startswith("pipe:"):
        raise Refusal(f"{name}: shards are read from a disk; copy them there first (or mount the store)")
    paths = [Path(path) for path in expand(name)]
    packed = next((path for path in paths if not str(path).lower().endswith(".tar")), None)
    if packed is not None:
        raise Refusal(f"{packed} is compressed, so it cannot be read from its middle; unpack it to .tar (gunzip)")
    missing = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise Refusal(f"cannot read {missing[0]}, {len(missing)} of {len(paths)} shards are not there; check the path")
    return paths


def is_shards(name: str) -> bool:
    """Whether ``name`` is a pattern of .tar files (packed ones, too: they are refused), or a folder of nothing else
    (but lists, :data:`BESIDE`): a .tar that lies among images hides none of them."""
    if name.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")):
        return True
    names = [each.lower() for each in _visible(name)]
    return any(each.endswith(".tar") for each in names) and all(each.endswith(BESIDE) for each in names)


def _visible(name: str) -> list[str]:
    """The names in a folder, sorted, but those that begin with a dot; none where there is no folder to look into."""
    try:
        return sorted(each for each in os.listdir(name) if not each.startswith("."))
    except (OSError, ValueError):
        return []


def indexed(paths: Sequence[Path], label: str | None) -> dict[Path, Shard]:
    """Every different shard, looked through; ``label``: the entry of .json files that is the class."""
    return {path: _index(path, label) for path in dict.fromkeys(paths)}


def _index(path: Path, label: str | None) -> Shard:
    """One shard, from the cache where it was looked through before."""
    try:
        stat = path.stat()
    except OSError as error:
        raise Refusal(f"cannot read {path} ({error.strerror}); check the path") from None
    facts = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, label or "")
    file = cache() / "shards" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:32]}.npz"
    found = kept(file)
    if found is None or set(found) != {"offset", "size", "code", "names"}:
        found = _scan(path, label)
        keep(file, found)
    return Shard(path, found["offset"], found["size"], found["code"], tuple(str(n) for n in found["names"]))


@final
class _Sample:
    """What was seen of one key so far."""

    def __init__(self, key: str) -> None:
        self.key, self.image, self.label = key, (0, 0), ""


def _scan(path: Path, label: str | None) -> dict[str, np.ndarray]:
    """Look through the headers of a shard; raises :class:`Refusal` where it is damaged."""
    offsets, sizes, labels = [], [], []
    for sample in _samples(path, label):
        if sample.image[1]:
            offsets.append(sample.image[0])
            sizes.append(sample.image[1])
            labels.append(sample.label)
    names, code = np.unique(np.array(labels, dtype=np.str_), return_inverse=True)
    code = code.astype(np.int64)
    if len(names) and names[0] == "":  # the empty word comes first
        names, code = names[1:], code - 1
    return {
        "offset": np.array(offsets, np.int64),
        "size": np.array(sizes, np.int64),
        "code": code,
        "names": names,
    }


def _samples(path: Path, label: str | None) -> Iterator[_Sample]:
    """The samples of a shard, in order."""
    sample = _Sample("")
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if f"{folder}/{stem}" != sample.key:
                    yield sample
                    sample = _Sample(f"{folder}/{stem}")
                _see(sample, tar, member, "." + ending.lower(), label)
            yield sample
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"{path} is no .tar file, or a damaged one ({reason}); write it again") from None


def _see(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, label: str | None) -> None:
    """Take down one file of a sample."""
    if ending in ENDINGS:
        sample.image = (member.offset_data, member.size)
    elif ending == ".cls" and label is None:
        sample.label = _content(tar, member).decode("utf-8", "replace").strip()
    elif ending == ".json":
        try:
            entries = json.loads(_content(tar, member))
        except ValueError:
            return
        value: Any = entries.get(label or LABEL) if isinstance(entries, dict) else None
        if isinstance(value, str | int) and not sample.label:
            sample.label = str(value).strip()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The first bytes of a small file."""
    stream = tar.extractfile(member)
    return b"" if stream is None else stream.read(MOST_BYTES)
