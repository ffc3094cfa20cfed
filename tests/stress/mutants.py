"""Mutants of the shim: its C and assembly with one mistake each, to see that the tests notice.

Each (mutant_list.py) is a textual substitution in a scratch copy of the repository, whose shim is then built and tested
by the tests that are named with it, until one fails.  A mutant that passes them all survives: the tests are too weak,
or the line that was changed is not needed.  Where x86-64 forgives the mistake, or shows it too seldom, the mutant of the
model (tests/model) that covers it is named instead, and it is not run.

    scripts/mutants [--list] [NAME...]      exit status 1 when any survives
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("shim", "tests", "psu_bin", "testprogs")
BUILDS_ITSELF = ("tests/unit/", "tests/stress/test_shim_stress.py")     # tests that build the shim they test
PATIENCE = 300.0    # seconds for one test; one that takes longer hangs, and so has noticed


def plant(mutant: Mutant | None, folder: Path, tests: Sequence[str]) -> None:
    """A copy of the repository in `folder` with this mistake in it, if any, ready for these tests.

    ValueError: the text to change is not there exactly once.  CalledProcessError: it does not compile."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".cache"))
    if mutant:
        path = folder / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.name}: what it changes is {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))
    if not all(test.startswith(BUILDS_ITSELF) for test in tests):
        out = folder / "psu_bin" / "shim" / "libpsu_shim.so"
        subprocess.run(["make", "-s", "-C", str(folder / "shim"), f"OUT={out}"], check=True)


class Skipped(Exception):
    """A test that should notice a mutant cannot be run here; the reason."""


def noticed_by(folder: Path, tests: Sequence[str]) -> str:
    """The first of these tests that fails in the copy, and why; '': none does.

    Skipped.  ValueError: a test is not there, or what it needs cannot be built."""
    for test in tests:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-rs", "-p", "no:cacheprovider", test]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{test}: hangs"
        lines = done.stdout.splitlines() or [""]
        if done.returncode == 1 and not re.search(r"\d+ error", lines[-1]):
            why = " ".join(line[1:] for line in lines if line.startswith("E "))
            return f"{test.split('::')[-1]}: {' '.join(why.split())[:200]}"
        if done.returncode:
            raise ValueError(f"{test}: exit status {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
        skipped = [line for line in lines if line.startswith("SKIPPED")]
        if skipped:
            raise Skipped(skipped[0])
    return ""


def survives(mutant: Mutant) -> tuple[bool, str]:
    """Whether it does, and what noticed it."""
    with tempfile.TemporaryDirectory(prefix="psu-mutant-") as folder:
        plant(mutant, Path(folder), mutant.tests)
        found = noticed_by(Path(folder), mutant.tests)
    return not found, found


def main() -> int:
    arguments = argparse.ArgumentParser(description="mutants of the shim: does a test notice each?")
    arguments.add_argument("--list", action="store_true", help="only say which there are")
    arguments.add_argument("names", nargs="*", metavar="NAME")
    asked = arguments.parse_args()
    unknown = set(asked.names) - {m.name for m in MUTANTS}
    if unknown:
        arguments.error(f"no such mutant: {' '.join(sorted(unknown))}")
    chosen = [m for m in MUTANTS if not asked.names or m.name in asked.names]
    if asked.list:
        for m in chosen:
            print(f"{m.name:26} {m.why}{f' (model: {m.model})' if m.model else ''}")
        return 0
    with tempfile.TemporaryDirectory(prefix="psu-mutant-") as folder:
        tests = sorted({t for m in chosen for t in m.tests})
        plant(None, Path(folder), tests)
        found = noticed_by(Path(folder), tests)
    if found:
        print(f"a test fails without any mutant: {found}")
        return 1
    survivors = []
    for m in chosen:
        if m.model:
            print(f"{m.name:26} model    {m.model} in tests/model stands for it", flush=True)
            continue
        began = time.monotonic()
        survived, found = survives(m)
        survivors += [m.name] * survived
        print(
            f"{m.name:26} {'SURVIVED' if survived else 'noticed '} {time.monotonic() - began:.0f} s  {found or m.why}",
            flush=True,
        )
    print(
        f"{len(chosen)} mutants, {sum(bool(m.model) for m in chosen)} by the model, {len(survivors)} survived",
        *survivors,
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
