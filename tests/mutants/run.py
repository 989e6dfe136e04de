"""Inject every known fault, one by one, into a copy of the sources, and see that a test notices: ``make mutants``.

The working tree is never touched.  Prints a table; exits with 1 where a mutant survives, where its ``old`` text does
not occur exactly once, or where the tests fail without any fault.

    python tests/mutants/run.py [--jobs 2] [--only TEXT]
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutants import Mutant

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "sfumato"
#: A mutant that makes a test hang is noticed, too.
TIMEOUT = 300


def all_mutants() -> list[Mutant]:
    """Every mutant of every ``mutants*.py`` beside this file."""
    modules = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("mutants*.py"))]
    return [mutant for module in modules for mutant in module.MUTANTS]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant."""

    verdict: str
    witness: str
    seconds: float


def copy_sources(folder: Path) -> Path:
    """A copy of the package's code in ``folder/src``; its data files are linked."""
    target = folder / "src" / "sfumato"
    target.mkdir(parents=True)
    for path in PACKAGE.rglob("*"):
        copy = target / path.relative_to(PACKAGE)
        if path.is_dir():
            if path.name != "__pycache__":
                copy.mkdir(parents=True, exist_ok=True)
        elif path.suffix == ".py":
            shutil.copyfile(path, copy)
        elif path.parent.name != "__pycache__":
            copy.symlink_to(path)
    return folder / "src"


def environment(source: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(source),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run_tests(source: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    """The named tests, stopped at the first failure, against the copy in ``source``."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider", *tests]
    return subprocess.run(
        command, cwd=ROOT, env=environment(source), capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def check_copy_is_used(source: Path) -> None:
    """The tests must import the copy, not an installed package."""
    found = subprocess.run(
        [sys.executable, "-c", "import sfumato; print(sfumato.__file__)"],
        env=environment(source), capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    if not found.startswith(str(source)):
        sys.exit(f"the tests would import {found}, not the copy in {source}")


def try_mutant(mutant: Mutant) -> Outcome:
    """Inject one fault and run its tests."""
    began = time.perf_counter()
    text = (PACKAGE / mutant.file).read_text()
    count = text.count(mutant.old)
    if count != 1:
        return Outcome("STALE", f"its text occurs {count} times in {mutant.file}", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        source = copy_sources(Path(folder))
        (source / "sfumato" / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        try:
            result = run_tests(source, list(mutant.tests))
        except subprocess.TimeoutExpired:
            return Outcome("killed", "(it hangs)", time.perf_counter() - began)
    seconds = time.perf_counter() - began
    if result.returncode == 0:
        return Outcome("SURVIVED", ", ".join(mutant.tests), seconds)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", result.stdout, re.MULTILINE)
    if result.returncode == 1 and failed:
        return Outcome("killed", failed.group(1), seconds)
    tail = (result.stdout + result.stderr).strip().splitlines()[-1:]
    return Outcome("BROKEN", f"pytest exit code {result.returncode}: {' '.join(tail)}", seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at a time")
    parser.add_argument("--only", default="", help="only mutants whose name contains this")
    options = parser.parse_args()
    chosen = [mutant for mutant in all_mutants() if options.only in mutant.name]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its name")
    began = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        source = copy_sources(Path(folder))
        check_copy_is_used(source)
        tests = sorted({test for mutant in chosen for test in mutant.tests})
        with ThreadPoolExecutor(options.jobs) as pool:
            healthy = list(pool.map(lambda part: run_tests(source, part), filter(None, (tests[0::2], tests[1::2]))))
    for result in healthy:
        if result.returncode != 0:
            print(result.stdout[-3000:])
            print("the tests fail without any fault; mend them first")
            return 1

    width, killed = max(len(mutant.name) for mutant in chosen), 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for mutant, outcome in zip(chosen, pool.map(try_mutant, chosen), strict=True):
            verdict = f"{outcome.verdict:8} {outcome.seconds:5.1f} s"
            print(f"{mutant.name:{width}}  {mutant.file:24}  {verdict}  {outcome.witness}", flush=True)
            killed += outcome.verdict == "killed"
    print(f"{killed} of {len(chosen)} mutants killed in {time.perf_counter() - began:.0f} s")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
