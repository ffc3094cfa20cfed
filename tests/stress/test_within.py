"""Calls inside one patch object under load: from body to body, and through the program's stubs where they cannot be turned.

testprogs/within checks every call; here the updates are made as fast as they can be, of whole objects and of those that
replace only what the older ones call, with reverts in between (test_torture.py, whose Updates these are).

PSU_TORTURE_MINUTES (scripts/torture --minutes) says for how long; without it, some seconds.
"""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from conftest import psu_bin
from test_torture import MINUTES, PATIENCE, REVERT, Updates, poison
from torture_host import Torture

from psu_bin.attach import inner, meta, shim, status, target
from psu_bin.attach.process import Process
from psu_bin.attach.revert import revert
from psu_bin.errors import PsuError

LEAST, SHORT, ORIGINAL = 100, 1.0, 15
# Patches whose calls can be turned, and with functions so close together that some have no room for a stub.  How many of `one`,
# `two` and `three`, which are called inside, are called directly.
BUILDS = {
    "direct": (("-O2", "-O2 -DPARTIAL", "-O1 -ffunction-sections", "-O0 -DPARTIAL -fPIC"), 3),
    "short": (("-O2 -fPIC -falign-functions=1 -DSHORT", "-O1 -fPIC -falign-functions=1 -foptimize-sibling-calls -DSHORT -DPARTIAL"), 2),
}


def called_directly(pid: int) -> int:
    """How many functions are called inside their object at their bodies, when all are in one."""
    process = Process(pid)
    notes = meta.read(process, target.read(process).runtime())
    current = {f.current[2] for f in notes.functions if f.current}
    called = {row[1] + callee for row in notes.calls if row[0] in current for _, callee in inner.decode(process.read(row[2], row[3]), "")}
    return sum(f.body in called for f in notes.functions) if len(current) == 1 else 0


def looking(pid: int) -> frozenset[int]:
    """Which entries of their gates the slots of the two functions lead to that are called through pointers: offsets."""
    process = Process(pid)
    runtime = target.read(process).runtime()
    out = set()
    for f in meta.read(process, runtime).functions:
        if f.current and f.name in ("one", "two"):
            kind, gate, _ = f.current
            for delta in {0, runtime.near_delta}:
                at = (runtime.pools[kind].data + delta & shim.WORD) + gate * shim.GATE.size
                with suppress(PsuError):        # no such copies
                    row = shim.GATE.unpack(process.read(at, shim.GATE.size))
                    out |= {row[-1]} if row[3] else set()
    return frozenset(out)


@pytest.mark.parametrize("how", BUILDS)
@pytest.mark.parametrize("freed", ["unmapped", "poisoned"])
def test_calls_inside_objects(lab, how: str, freed: str) -> None:  # noqa: ANN001
    flags, called = BUILDS[how]
    program = lab.program("within")
    if freed == "poisoned":
        poison(program)
    torture = Torture(lab, program, 3)
    updates = Updates(lab, torture, "within", [("gcc", f) for f in flags], ORIGINAL)
    began, turn, most = time.monotonic(), 0, 0
    entries = set()
    while (turn < LEAST or time.monotonic() - began < (MINUTES * 60 / 4 or SHORT)
           or turn % ORIGINAL * (turn % REVERT) == 0):
        turn += 1
        updates.one(turn)
        most = max(most, called_directly(torture.pid) if turn <= LEAST else 0)
        entries |= looking(torture.pid) if turn <= LEAST else set()
    assert most == called
    assert entries == {0, target.read(Process(torture.pid)).runtime().pools[shim.PLAIN].look}
    updates.switch(0, lambda: revert(torture.pid, None, original=True))
    status.wait(torture.pid, PATIENCE)
    assert {p["state"] for p in psu_bin("status", torture.pid, "--json").json["patches"]} == {"freed"}
    print(f"{turn} updates in {time.monotonic() - began:.1f} s; rounds, calls of stay, naps: "
          f"{torture.calls, torture.threads, torture.naps}")
    assert torture.calls > 10_000 and torture.threads and torture.naps
    torture.stop()
