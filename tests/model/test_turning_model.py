"""Calls that are turned, as a model (turning.pml), explored in full by spin, and its mutants, each of which must be found wrong."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_model import explore

MODEL = Path(__file__).with_name("turning.pml")

pytestmark = pytest.mark.skipif(not shutil.which("spin"), reason="no spin")

OLD, GONE = "died", "mapped"     # what is asserted: no old version is run; what is executed is there

MUTANTS = {
    # threads may run an instruction that they fetched before it was changed
    "NO_SYNC": OLD,
    # closed when the slot has changed already
    "CLOSED_LATE": OLD,
    # opened while the slot still leads elsewhere
    "OPENED_EARLY": OLD,
    "PROGRAM_LEFT_OPEN": OLD,
    "OBJECT_LEFT_OPEN": OLD,
    # a retired object is freed while calls are in it
    "FREED_AT_ONCE": GONE,
    # the caller inside the object is counted out before it makes its uncounted call
    "CALLER_FORGOTTEN": GONE,
}


def test_no_order_of_events_runs_an_old_version(tmp_path: Path) -> None:
    said = explore(tmp_path, "-DTHREADS=1", MODEL)
    assert re.search(r"^State-vector .* errors: 0$", said, re.M), said
    states = re.search(r"(\d+) states, stored", said)
    assert states and int(states[1]) > 1_000


def test_two_threads(tmp_path: Path) -> None:
    said = explore(tmp_path, "-DTHREADS=2 -DUPDATES=2 -DCALLS=1", MODEL)
    assert re.search(r"^State-vector .* errors: 0$", said, re.M), said


@pytest.mark.parametrize("mutant", sorted(MUTANTS))
def test_a_mistake_is_found(tmp_path: Path, mutant: str) -> None:
    said = explore(tmp_path, f"-DTHREADS=1 -D{mutant}", MODEL)
    assert re.search(rf"^pan:1: assertion violated .*{MUTANTS[mutant]}", said, re.M), said


def test_every_mutant_is_tested() -> None:
    conditions = set(re.findall(r"^#ifn?def ([A-Z_]+)$", MODEL.read_text(), re.M))
    assert conditions - {"THREADS", "CALLS", "UPDATES"} == set(MUTANTS)
