"""Every system call that the shim makes in the target fails in turn: refused with nothing changed, or done after all.

The program runs with a shim whose system calls go through shim/test/failing.c; the rest is the real thing."""

import errno
import os
import shutil
import signal
import struct
import subprocess

import pytest
from conftest import ROOT, WAIT, layout
from updating import Versions

from psu_bin.attach import revert, status
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError

ERRORS = [errno.ENOMEM, errno.EPERM, errno.ENOSYS]
FIELDS = struct.Struct("<8I")
NEVER = 0xFFFFFFFF
NUMBERS = 512             # of calls that failing.c keeps
AGENT, ANY_THREAD = 1, 2
MUNMAP = {"x86_64": 11, "aarch64": 215}[os.uname().machine]
MEMBARRIER = {"x86_64": 324, "aarch64": 283}[os.uname().machine]
WAITS = {"x86_64": (202, 228), "aarch64": (98, 113)}[os.uname().machine]      # futex, clock_gettime


@pytest.fixture(scope="session")
def failing_shim(tmp_path_factory):
    """A shim that can be told to let its system calls fail."""
    folder = tmp_path_factory.mktemp("failing") / "shim"
    shutil.copytree(ROOT / "shim", folder)
    shutil.copy(ROOT / "shim/test/failing.c", folder)
    header = folder / "internal.h"
    text = header.read_text()
    assert text.count("    psu_syscall6(nr,") == 1
    header.write_text(text.replace("    psu_syscall6(nr,", "    psu_failing_call(nr,").replace(
        "#define psu_syscall(nr", "long psu_failing_call(long, long, long, long, long, long, long);\n#define psu_syscall(nr"))
    out = folder / "libpsu_shim.so"
    subprocess.run(["make", "-s", "-C", str(folder), f"OUT={out}"], check=True)
    return out


class Failing:
    """The switchboard in the target."""

    def __init__(self, pid):
        self.process = Process(pid)
        name = next(m.path for m in self.process.maps() if m.path.endswith("libpsu_shim.so"))
        base = next(m.start for m in self.process.maps() if m.path == name)
        listing = subprocess.run(["nm", "-D", "--defined-only", name], capture_output=True, text=True, check=True).stdout
        self.at = base + int(next(x for x in listing.splitlines() if x.endswith(" psu_failing")).split()[0], 16)

    def arm(self, who, error, at=0, number=NEVER):
        self.process.write(self.at, FIELDS.pack(0, error, at, number, 0, 0, 0, 0))
        self.process.write(self.at, struct.pack("<I", who))

    def disarm(self):
        """(calls made, how many failed, the number of the last that did, the numbers of the first NUMBERS)."""
        self.process.write(self.at, struct.pack("<I", 0))
        _, _, _, _, made, failed, last, _ = FIELDS.unpack(self.process.read(self.at, FIELDS.size))
        kept = min(made, NUMBERS)
        return made, failed, last, struct.unpack(f"<{kept}I", self.process.read(self.at + FIELDS.size, kept * 4))


def states(pid):
    return [(p.id, p.state) for p in status.read(pid).patches]


class Updates:
    """Updates of one program, of which calls fail; what it prints must be what was committed, no more and no less."""

    def __init__(self, lab, program, versions, **env):
        self.running = lab.start(program, 2, env=env)
        self.running.expect("^version 0$")
        self.versions = versions
        self.pid = self.running.pid
        self.failing = Failing(self.pid)
        self.newest = 0
        self.next = 0
        self.refused = ""

    def attach(self, who=AGENT, error=0, at=0, number=NEVER):
        """(done, what disarm says).  With a new agent there is more than before in any case."""
        self.next += 1
        before = layout(self.pid), states(self.pid)
        self.failing.arm(who, error, at, number)
        try:
            self.versions.attach(self.pid, self.next)
            done = True
        except PsuError as e:
            done = False
            self.refused = str(e)
        said = self.failing.disarm()
        if done:
            self.running.expect(f"^version {self.next}$", reject=f"ERROR|^version (?!{self.next}$|{self.newest}$)")
            self.newest = self.next
            status.wait(self.pid, 60)
        else:
            # A region whose munmap failed is still there; everything else is as it was.
            assert states(self.pid) == before[1]
            assert layout(self.pid) == before[0] or said[2] == MUNMAP or who == ANY_THREAD, said
        return done, said

    def check(self):
        """One that nothing disturbs."""
        done, (_, failed, _, numbers) = self.attach()
        assert done, self.refused
        assert not failed
        return numbers


@pytest.fixture
def start(lab, failing_shim):
    """A function that starts the program with that shim; its arguments are the environment."""
    program = lab.program("spin")
    shutil.copy(failing_shim, program.parent / "libpsu_shim.so")
    versions = Versions(lab, "spin")
    return lambda **env: Updates(lab, program, versions, **env)


def test_each_call_of_an_update_fails(start):
    updates = start()
    updates.check()
    refused = dict.fromkeys(ERRORS, 0)
    for error in ERRORS:
        count = sum(n not in WAITS for n in updates.check())
        assert count > 5
        for at in range(1, count + 1):
            done, (_, failed, _, _) = updates.attach(error=error, at=at)
            assert failed or done
            refused[error] += not done
        updates.check()
    assert all(refused.values()), refused
    for p in states(updates.pid):
        assert p[1] == ("current" if p[0] == max(states(updates.pid))[0] else "freed")


def test_calls_that_always_fail(start):
    updates = start()
    updates.check()
    numbers = sorted(set(updates.check()))
    assert MEMBARRIER in numbers
    ended = {}
    for number in numbers:
        ended[number] = updates.attach(error=errno.ENOSYS, number=number)[0]
        updates.check()
    assert not ended[MEMBARRIER]


def test_each_call_of_a_revert_fails(start):
    updates = start()
    updates.check()         # each thread gets its block, which stays
    updates.check()
    refused = 0
    for at in range(1, 200):
        updates.versions.attach(updates.pid, at)
        status.wait(updates.pid, WAIT)
        before = layout(updates.pid), states(updates.pid)
        updates.failing.arm(AGENT, errno.ENOMEM, at)
        try:
            revert.revert(updates.pid, None, original=True)
            done = True
        except PsuError:
            done = False
        _, failed, last, _ = updates.failing.disarm()
        if done:
            status.wait(updates.pid, WAIT)
            assert {state for _, state in states(updates.pid)} == {"freed"}
        else:
            assert (layout(updates.pid), states(updates.pid)) == before or last == MUNMAP
        refused += not done
        if not failed:
            break
    assert refused and done


def test_each_call_of_the_agents_start_fails(start):
    refused = 0
    ways = [{"number": n} for n in WAITS] + [{"at": n} for n in range(1, 100)]
    for way in ways:
        updates = start(PSU_AGENT="never")
        done, (_, failed, _, _) = updates.attach(ANY_THREAD, errno.ENOMEM, **way)
        refused += not done
        updates.check()
        assert updates.running.alive()
        os.kill(updates.pid, signal.SIGKILL)
        if not failed:
            break
    assert refused and not failed
