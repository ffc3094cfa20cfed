"""The target becomes another program (execve) after any of psu-bin's system calls: psu-bin ends with status 0 or 1 and one
clear line, and the new program runs as if there were no psu-bin: not stopped, not traced, not one byte of it changed.

psu-bin is held as a system call returns, the target is told to exec.  Where psu-bin traces the agent, the kernel holds the
exec up until psu-bin has heard of the agent's end; psu-bin then goes on to that very wait4, is held again until the new
program has come to rest, and goes on to its end.  The new program waits for a line all the time: what differs in its
memory before and after, psu-bin has written.

The new program is, in turn: the same one; another build, where the same places mean something else; one that is not
instrumented.  There is no randomisation, so that all have the same addresses.  The first thread does it, or another one,
which takes the first one's number.

The suite takes some of the system calls that touch the target; PSU_TORTURE=long (scripts/torture exec) takes every single
one, with one of the six ways of the exec after the other.  A command ends 0 when it had done its work before the exec, or
began it after: then the new program has the patch.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, Running
from killing import Killer

LONG = os.environ.get("PSU_TORTURE") == "long"
# And the program: no randomisation; little to compare.
QUIET = ("sh", "-c", 'ulimit -s 256 && exec setarch -R "$@"', "sh")
TOUCHES = r"\d+: (ptrace|process_vm|wait4|openat /proc/N|pipe2|clone|readlink /proc/N|newfstatat .*\.psu)"
CLEAR = (r"psu-bin: process \d+: (started another program meanwhile \(exec\)|ended meanwhile|is not instrumented: .*|"
         r"has no patch to revert)\n")
# The kernel writes the number of the processor into memory of a thread that it has stopped (rseq); psu-bin does not.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
BUILDS = ("main.psu", "other.psu", "main")


@pytest.fixture
def killer(runtime_directory):
    with Killer() as k:
        yield k


def interesting(steps: list[str]) -> list[tuple[str, int]]:
    """Every kind of step that touches the target, and some of those of each kind: as hold_after."""
    out = []
    for step in dict.fromkeys(s for s in steps if re.match(TOUCHES, s)):
        first = steps.index(step)
        places = [n for n, s in enumerate(steps) if s == step]
        out += [(step, n - first) for n in places[::8]]
    return out


def fields(pid: int) -> dict[str, dict[str, str]]:
    """The status of each thread."""
    out = {}
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        try:
            out[path.parent.name] = dict(x.split(":\t", 1) for x in path.read_text().splitlines() if ":\t" in x)
        except OSError:
            pass        # ended since it was listed
    return out


def held_up(pid: int) -> bool:
    """Whether the exec waits for psu-bin to hear that a thread ended; or cannot begin, because that one is stopped."""
    return any(f["TracerPid"] != "0" and f["State"][0] in "Zt" for f in fields(pid).values())


def memory(pid: int) -> dict[tuple[int, int], bytes]:
    """All writable memory."""
    out = {}
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as f:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) .w", line)
            if found:
                start, end = (int(x, 16) for x in found.groups())
                f.seek(start)
                out[start, end] = f.read(end - start)
    return out


class Target:
    """One running testprogs/execs."""

    def __init__(self, running: Running) -> None:
        self.running, self.pid = running, running.pid
        running.expect("^ready$")

    def tell(self, who: str, program: Path) -> bool:
        """Have it become `program`; False when it cannot before psu-bin goes on."""
        self.running.say(f"{who} {program}")
        deadline = time.monotonic() + PATIENCE
        while self.running.lines.empty():
            if held_up(self.pid):
                return False
            assert time.monotonic() < deadline, fields(self.pid)
            time.sleep(0.0005)
        self.became()
        return True

    def became(self) -> None:
        self.running.expect("^ready$")

    def settled(self) -> dict[tuple[int, int], bytes]:
        """Its memory, once all its threads wait."""
        deadline = time.monotonic() + PATIENCE
        last: object = None
        while True:
            threads = {t: (f["State"][0], f["voluntary_ctxt_switches"]) for t, f in fields(self.pid).items()}
            now = threads, memory(self.pid)
            if now == last and all(state == "S" for state, _ in threads.values()):
                return now[1]
            assert time.monotonic() < deadline, threads
            last = now
            time.sleep(0.002)


class Execs:
    """Commands in whose course the target execs."""

    def __init__(self, lab, killer: Killer, env: dict[str, str] | None = None) -> None:  # noqa: ANN001
        self.lab, self.killer, self.env = lab, killer, {**ENVIRONMENT, **(env or {})}
        self.program = lab.program("execs")
        lab.program("execs", "-DOTHER", out="other")
        self.patches = [lab.patch("execs", "patch.c", f"-DV={v}", out=f"v{v}.o") for v in (1, 2, 3)]

    def start(self) -> Target:
        return Target(self.lab.start(*QUIET, str(self.program), env=self.env))

    def attach(self, target: Target, n: int) -> None:
        self.killer.run("attach", target.pid, self.patches[n])

    def one(self, arrange, who: str, build: str, **hold: Any) -> bool:  # noqa: ANN001
        """One command; False when it ended before it was to be held.  arrange(target): its arguments."""
        target = self.start()
        argv = arrange(target)
        answer = self.killer.ask(*argv, follow=True, **hold)
        if "held" not in answer:
            target.running.stop()
            return False
        where = f"{answer['held']} ({hold}), {who} becomes {build}"
        done = target.tell(who, self.lab.folder / build)
        if not done:
            answer = self.killer.go("end")
            if "held" in answer:
                target.became()
                done = True
        before = target.settled() if done else {}
        while "held" in answer:
            answer = self.killer.go()
        if not done:
            target.became()
        self.check(target, build, answer, before, where)
        return True

    def check(self, target: Target, build: str, answer: dict[str, Any], before: dict, where: str) -> None:
        """The command has ended, and what it left is right."""
        assert answer["status"] in (0, 1), (where, answer)
        assert not answer["status"] or re.fullmatch(CLEAR, answer["err"]), (where, answer)
        for thread, f in fields(target.pid).items():
            assert f["TracerPid"] == "0" and f["State"][0] in "RS", (where, thread, f["State"])
        after = target.settled()
        differ = [hex(a) for (a, end), data in after.items() if before.get((a, end)) != data] if before else []
        running = target.running
        running.say("call")
        patched = running.expect(r"^answer ([01]) pair 41$")[1] == "1"
        assert not (patched and answer["status"]), (where, answer)
        assert patched or not differ and (not before or after.keys() == before.keys()), (where, differ, answer)
        if build != "main":
            self.attach(target, 2)
            running.say("call")
            running.expect("^answer 3 pair 41$")
        running.say("end")
        assert running.process.wait(PATIENCE) == 7, where

    def all_over(self, arrange, least: int, thin: int) -> None:  # noqa: ANN001
        """At each step; in the suite, at every `thin`-th of the interesting ones before the first command, and some later."""
        target = self.start()
        self.killer.run(*arrange(target))        # imports what it needs
        target.running.stop()
        target = self.start()
        trace = self.killer.ask(*arrange(target), trace=True, follow=True)
        assert trace["status"] == 0, trace["err"]
        target.running.stop()
        steps = trace["steps"]
        early, late = ([s for s in interesting(steps) if s[0].startswith("0:") is first] for first in (True, False))
        ways = [{"hold": n} for n in range(1, 100000)] if LONG else [
            {"hold_after": s} for s in early[::thin] + [s for s in late if re.search("CONT|bytes|maps", s[0])][::3]]
        done = 0
        for n, hold in enumerate(ways):
            if self.one(arrange, ("leader", "thread")[n % 2], BUILDS[n // 2 % 3], **hold):
                done += 1
            elif LONG:
                break       # it has ended before
        print(f"{done} steps of {len(steps)}")
        assert done >= least


def test_the_target_execs_in_attach(lab, killer):
    x = Execs(lab, killer)
    x.all_over(lambda target: ("attach", target.pid, x.patches[0]), 12, 1)


def test_the_target_execs_in_revert(lab, killer):
    x = Execs(lab, killer)

    def arrange(target):
        x.attach(target, 0)
        x.attach(target, 1)
        return "revert", target.pid

    x.all_over(arrange, 6, 4)


def test_the_target_execs_while_a_thread_is_borrowed(lab, killer):
    x = Execs(lab, killer, {"PSU_AGENT": "never"})
    x.all_over(lambda target: ("attach", target.pid, x.patches[0]), 8, 3)
