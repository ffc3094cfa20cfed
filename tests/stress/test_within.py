"""Calls inside one patch object under load: near stubs, and the object's own stubs where there is no room for near ones.

testprogs/within checks every call; here the updates are made as fast as they can be, of whole objects and of those that
replace only what the older ones call, with reverts in between (test_torture.py, whose Updates these are).

PSU_TORTURE_MINUTES (scripts/torture --minutes) says for how long; without it, some seconds.
"""

from __future__ import annotations

import time

import pytest
from conftest import psu_bin
from test_torture import MINUTES, PATIENCE, REVERT, Updates, poison
from torture_host import Torture

from psu_bin.attach import meta, status, target
from psu_bin.attach.process import Process
from psu_bin.attach.revert import revert

LEAST, SHORT, ORIGINAL = 100, 1.0, 15
# Patches with room for near stubs, and without: nothing in front of a function that is not the first.  How many of `one`,
# `two` and `three`, which are called inside, must be so.
BUILDS = {
    "near stubs": (("-O2", "-O2 -DPARTIAL", "-O1 -ffunction-sections", "-O0 -DPARTIAL -fPIC"), "near", 3),
    "own stubs": (("-O2 -falign-functions=1", "-O1 -falign-functions=1 -DPARTIAL"), "local", 2),
}


def inner_calls(pid: int, way: str) -> int:
    """How many functions are called inside their object in this way."""
    process = Process(pid)
    notes = meta.read(process, target.read(process).runtime())
    return sum(bool(getattr(f, way)) for f in notes.functions)


@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("freed", ["unmapped", "poisoned"])
def test_calls_inside_objects(lab, how: str, freed: str) -> None:  # noqa: ANN001
    program = lab.program("within")
    if freed == "poisoned":
        poison(program)
    flags, way, called = BUILDS[how]
    torture = Torture(lab, program, 3)
    updates = Updates(lab, torture, "within", [("gcc", f) for f in flags], ORIGINAL)
    began, turn, most = time.monotonic(), 0, 0
    while (turn < LEAST or time.monotonic() - began < (MINUTES * 60 / 4 or SHORT)
           or turn % ORIGINAL * (turn % REVERT) == 0):
        turn += 1
        updates.one(turn)
        most = max(most, inner_calls(torture.pid, way) if turn <= LEAST else 0)
    assert most == called
    updates.switch(0, lambda: revert(torture.pid, None, original=True))
    status.wait(torture.pid, PATIENCE)
    assert {p["state"] for p in psu_bin("status", torture.pid, "--json").json["patches"]} == {"freed"}
    print(f"{turn} updates in {time.monotonic() - began:.1f} s; rounds, calls of stay, naps: "
          f"{torture.calls, torture.threads, torture.naps}")
    assert torture.calls > 10_000 and torture.threads and torture.naps
    torture.stop()
