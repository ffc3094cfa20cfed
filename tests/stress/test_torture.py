"""Everything at once: threads, short-lived threads and signal handlers call, and updates come as fast as they can.

testprogs/torture checks every result; here the updates are made, of alternating patch objects, with a revert now and
then and everything back to the original once in a while.

Once with the shim as it is: memory is flat.  Once with a shim that takes the access to freed code away and keeps the
addresses, so that they are never used again and whoever still executes it, or comes late, crashes.

PSU_TORTURE_MINUTES (scripts/torture --minutes) says for how long; without it, some seconds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import ROOT, psu_bin
from torture_host import Torture, numbered

from psu_bin.attach import shim, status, target
from psu_bin.attach.process import Process
from psu_bin.attach.revert import revert
from psu_bin.attach.transaction import attach
from psu_bin.errors import PsuError

MINUTES = float(os.environ.get("PSU_TORTURE_MINUTES", 0))
LEAST, SHORT = 70, 1.5      # updates, and seconds, without PSU_TORTURE_MINUTES
SETTLED = 200 if MINUTES else 40    # updates after which memory is looked at for the first time
REVERT, ORIGINAL = 9, 40    # every so many updates
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 60.0

FREE = "            psu_syscall(NR_munmap, o->region[i].address, PSU_PAGES(size));\n"
BUILDS = (("gcc", "-O2"), ("gcc", "-O0 -fPIC"), ("gcc", "-O1 -ffunction-sections -falign-functions=64"))
POISON = "            psu_syscall(NR_mprotect, o->region[i].address, PSU_PAGES(size), 0);\n"


def poison(program: Path) -> None:
    """Give the instrumented program a shim that makes freed memory inaccessible for ever."""
    folder = program.parent / "poisoned"
    shutil.copytree(ROOT / "shim", folder, ignore=shutil.ignore_patterns("*.so"))
    text = (folder / "reclaim.c").read_text()
    assert text.count(FREE) == 1
    (folder / "reclaim.c").write_text(text.replace(FREE, POISON))
    (program.parent / "libpsu_shim.so").unlink()
    subprocess.run(["make", "-s", "-C", str(folder), f"OUT={program.parent}/libpsu_shim.so"], check=True)


class Updates:
    """The updates of one running program: versions 1, 2, ... of several patch objects by turns, each compiled so."""

    def __init__(self, lab, torture: Torture, name: str = "torture", builds: Sequence[tuple[str, str]] = BUILDS,
                 original: int = ORIGINAL) -> None:  # noqa: ANN001
        self.templates = [lab.patch(name, "patch.c", "-g0", *flags.split(), cc=cc, out=f"t{i}.o").read_bytes()
                          for i, (cc, flags) in enumerate(builds)]
        self.torture, self.original = torture, original
        self.path = lab.folder / "version.o"
        self.number = 0         # of the newest version that there ever was
        self.history = [0]      # versions that were current and not reverted; the last is current
        self.patches: list[int] = []

    def switch(self, to: int, how) -> None:  # noqa: ANN001
        """Make version `to` current by calling how()."""
        now = self.history[-1]
        self.torture.limits(min(to, now), max(to, now), to > now)
        try:
            how()
        except PsuError:
            self.torture.check()    # of a program that crashed, that is what to say
            raise
        self.torture.limits(to, to)
        self.torture.check()

    def one(self, turn: int) -> None:
        """The next: mostly a new version."""
        pid = self.torture.pid
        if turn % self.original == 0:
            self.switch(0, lambda: revert(pid, None, original=True))
            self.history, self.patches = [0], []
        elif turn % REVERT == 0 and len(self.history) > 2:
            self.switch(self.history[-2], lambda: revert(pid, self.patches[-1]))
            self.history.pop()
            self.patches.pop()
        else:
            self.number += 1
            self.path.write_bytes(numbered(self.templates[turn % len(self.templates)], self.number))
            self.switch(self.number, lambda: self.patches.append(attach(pid, (self.path,)).patch))
            self.history.append(self.number)


def memory(pid: int) -> tuple[int, int]:
    """(resident bytes, bytes of executable mappings), once nothing is left to free."""
    status.wait(pid, PATIENCE)
    maps = [m.split() for m in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    ranges = [m[0].split("-") for m in maps if "x" in m[1]]
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return resident, sum(int(end, 16) - int(start, 16) for start, end in ranges)


@pytest.mark.parametrize("freed", ["unmapped", "poisoned"])
def test_everything_at_once(lab, freed: str) -> None:  # noqa: ANN001
    program = lab.program("torture")
    if freed == "poisoned":
        poison(program)
    torture = Torture(lab, program, 2, "signals", "churn", "sleepers")
    updates = Updates(lab, torture)
    began, turn, early = time.monotonic(), 0, (0, 0)
    # The last one is no revert: what is left below is the newest patch's, and there is something to revert.
    while (turn < LEAST or time.monotonic() - began < (MINUTES * 60 / 2 or SHORT)
           or turn % ORIGINAL * (turn % REVERT) == 0):
        turn += 1
        updates.one(turn)
        if turn == SETTLED:
            early = memory(torture.pid)
    late = memory(torture.pid)
    done = torture.calls, torture.threads, torture.signals, torture.naps
    print(f"{turn} updates in {time.monotonic() - began:.1f} s; calls, threads, signals, naps: {done}; "
          f"{late[0] - early[0]:+} bytes, {late[1] - early[1]:+} of code since update {SETTLED}")
    assert all(done)
    if freed == "unmapped":
        # The newest object may be on one page more than the one before.
        assert late[1] <= early[1] + 4 * PAGE, (early, late)
        # Counter blocks of thousands of threads a second that end while the agent is held or has no processor: as many
        # as there ever were at one time stay, for new threads.  Updates alone: tests/live/test_outlive.py, to 16 pages.
        assert late[0] - early[0] <= 16384 * PAGE + 64 * turn, (early, late)
    updates.switch(0, lambda: revert(torture.pid, None, original=True))
    status.wait(torture.pid, PATIENCE)
    # `same`, a new function whose address the patches take, stays that of the last version; all else is freed.
    process = Process(torture.pid)
    left = shim.Runtime.read(process, target.read(process).runtime_address).read_objects(process)
    shown = psu_bin("status", torture.pid, "--json").json["patches"]
    kept = [p for p in shown if p["state"] != "freed"]
    # Mirrors of code belong to no patch.
    assert [o.patch for o in left if o.patch] == [p["id"] for p in kept] and len(kept) <= 1
    assert all(p["kept_because"] and p["id"] == max(q["id"] for q in shown) for p in kept), kept
    torture.stop()
