"""Files that are whole or absent: write to a temporary name, flush to the disk, rename.

The contract: after a crash at any moment a reader finds the old content or the new, never a part.  A disk that is full
or a folder that cannot be written becomes a :class:`~sfumato.errors.Refusal` of one line; the temporary is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from sfumato.errors import Refusal


def write_refusal(path: Path, error: OSError) -> Refusal:
    """The one line a user reads where ``path`` could not be written."""
    reason = error.strerror or type(error).__name__
    return Refusal(f"cannot write {path}: {reason}; free some space or choose another folder")


def flush_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> Path:
    """Create ``folder`` and its parents; raises :class:`Refusal` where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_refusal(folder, error) from None
    return folder


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` atomically; raises :class:`Refusal` on a full disk or an unwritable folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_flushed(temporary, content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise write_refusal(path, error) from None
    flush_folder(path.parent)


def to_json(value: Any) -> bytes:
    """Readable JSON that other readers accept: NaN and infinities are refused."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; raises :class:`Refusal` where it is missing or damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; is {path.parent} a run folder?") from None
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}; is {path.parent} a run folder?") from None
    except ValueError as error:
        raise Refusal(f"{path} is damaged ({str(error).splitlines()[0]}); restore it or train again") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path} is damaged (not a JSON object); restore it or train again")
    return value


def checksum(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Safetensors bytes of ``tensors`` (copied to the CPU, made contiguous), with the SHA-256 of the data in the
    header.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _, data = _parts(tensors_to_bytes(plain))
    return tensors_to_bytes(plain, metadata={"sha256": checksum(data)})


def _parts(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header's metadata and the data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header.get("__metadata__", {}), memoryview(content)[8 + length :]


def unpack_tensors(path: Path, expected: str | None = None) -> dict[str, Tensor]:
    """The tensors in ``path``, checked against the SHA-256 in its header and against ``expected`` for the whole file.

    Raises :class:`Refusal` where the file is missing or damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise Refusal(f"{path} is missing; the run has not saved yet, or the file was removed") from None
    except OSError as error:
        raise Refusal(f"cannot read {path}: {error.strerror}") from None
    try:
        tensors = tensors_from_bytes(content)
        metadata, data = _parts(content)
    except (SafetensorError, ValueError, AttributeError) as error:
        raise Refusal(f"{path} is damaged ({str(error).splitlines()[0]}); restore it, or train again") from None
    found = metadata.get("sha256")
    if (found is not None and found != checksum(data)) or (expected is not None and expected != checksum(content)):
        raise Refusal(f"{path} is damaged (its checksum differs); restore it, or train again")
    return tensors


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` when the block ends well; on any error nothing remains.

    Every file in it is flushed before the rename.  Raises :class:`Refusal` where ``path`` cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporary.chmod(0o755)
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        flush_folder(temporary)
        temporary.rename(path)
        flush_folder(path.parent)
    except OSError as error:
        raise write_refusal(path, error) from None
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
