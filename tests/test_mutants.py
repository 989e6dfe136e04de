"""The list of known faults stays usable: every text is there once, every test exists, the README counts them."""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "mutants"))

from run import PACKAGE, all_mutants

MUTANTS = all_mutants()


@cache
def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", sorted({mutant.file for mutant in MUTANTS}))
def test_a_fault_can_be_injected_and_has_a_test(file: str) -> None:
    for mutant in (mutant for mutant in MUTANTS if mutant.file == file):
        assert text(PACKAGE / file).count(mutant.old) == 1, f"{mutant.name}: stale"
        assert mutant.old != mutant.new, mutant.name
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            path, _, name = test.partition("::")
            name = name.split("[")[0].split("::")[-1]
            found = re.search(rf"^ *def {name}\b" if name else "def test_", text(ROOT / path), re.MULTILINE)
            assert found, f"{mutant.name}: no test {test}"


def test_every_fault_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


def test_the_readme_counts_them() -> None:
    assert f"`make mutants` injects {len(MUTANTS)} one-line faults" in text(ROOT / "README.md")
