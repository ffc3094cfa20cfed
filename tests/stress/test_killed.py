"""psu-bin dies by SIGKILL after any of its system calls: the program goes on, in the old version or the new one as a
whole, the next commands work, and nothing of the dead one is left.

The suite takes one system call of each kind that touches the target or the copies of patches; PSU_TORTURE=long
(scripts/torture kill) takes every single one.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
from killing import Killer
from torture_host import Torture, numbered

from psu_bin.attach import meta, shim, target
from psu_bin.attach.process import Process

LONG = os.environ.get("PSU_TORTURE") == "long"
PATIENCE = 30.0


@pytest.fixture
def killer(runtime_directory):
    with Killer() as k:
        yield k


def interesting(steps: list[str]) -> list[str]:
    """One of each kind of step at which the target or the folder of copies may have changed."""
    calls = r"\d+: (ptrace|process_vm_writev (bytes|command_seq)|pwrite64|mkdir|rename|unlink|openat .*\.SHA)"
    return [s for s in dict.fromkeys(steps) if re.match(calls, s)]


def last_two_commands(steps: list[str]) -> list[str]:
    """The commit and what follows it."""
    last = max(int(s.partition(":")[0]) for s in steps)
    return [s for s in steps if int(s.partition(":")[0]) >= last - 2]


class Victim:
    """A running testprogs/torture, with what must be the same again after every killed command."""

    def __init__(self, lab, killer: Killer, folder: Path) -> None:  # noqa: ANN001
        self.lab, self.killer, self.copies = lab, killer, folder
        program = lab.program("torture")
        self.template = lab.patch("torture", "patch.c", "-g0").read_bytes()
        self.torture = Torture(lab, program, 1)
        self.pid = self.torture.pid
        self.process = Process(self.pid)
        self.address = target.read(self.process).runtime_address
        self.version = 0
        self.made = 0
        for _ in range(3):
            self.attach_new()
        self.usual = self.belongings()

    def new(self) -> int:
        """A version that there never was."""
        self.made += 1
        self.patch(self.made).write_bytes(numbered(self.template, self.made))
        return self.made

    def patch(self, v: int) -> Path:
        return self.lab.folder / f"v{v}.o"

    def may_become(self, v: int) -> None:
        self.torture.limits(min(v, self.version), max(v, self.version), v > self.version)

    def is_now(self, v: int) -> None:
        self.version = v
        self.torture.limits(v, v)

    def attach_new(self) -> None:
        """A command that lives, and leaves nothing retired."""
        v = self.new()
        self.may_become(v)
        assert self.killer.run("attach", self.pid, self.patch(v), "--wait", "--timeout", PATIENCE)["functions"]
        self.is_now(v)
        self.torture.check()

    def runtime(self) -> shim.Runtime:
        return shim.Runtime.read(self.process, self.address)

    def settled(self) -> shim.Runtime:
        """The runtime when the agent is done with what the dead psu-bin told it, and nobody traces it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            r = self.runtime()
            if r.agent_state == shim.AGENT_PARKED and r.done_seq == r.command_seq and not self.traced():
                return r
            assert time.monotonic() < deadline, f"agent state {r.agent_state}, {r.done_seq} of {r.command_seq}"
            time.sleep(0.001)

    def traced(self) -> list[str]:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/status")
        return [p.parent.name for p in tasks if not re.search(r"^TracerPid:\t0$", p.read_text(), re.M)]

    def current(self, status: dict[str, Any]) -> int:
        """The version that runs, by psu-bin's own word."""
        names = [p["name"] for p in status["patches"] if p["state"] == "current" and not p["kept_because"]]
        return int(re.fullmatch(r"v(\d+)\.o", names[-1])[1]) if names else 0

    def belongings(self) -> dict[str, Any]:
        """What a process has more and more of when something leaks."""
        r = self.settled()
        notes = meta.read(self.process, r)
        names = {sha for p in notes.patches for _, sha in p.sources}
        folders = list((self.copies / "psu-bin").iterdir())
        assert {f.name for d in folders for f in d.iterdir()} == names
        return {"bytes": sum(m.end - m.start for m in self.process.maps()) - r.meta_size,
                "files": len(os.listdir(f"/proc/{self.pid}/fd")), "staged": r.staged_count,
                "threads": len(self.process.threads()), "objects": len(r.read_objects(self.process)),
                "folders of copies": len(folders), "stores": [s.kind for s in notes.stores]}

    def try_kill(self, becomes: int, *argv: object, **how: Any) -> dict[str, Any]:
        """Kill a command that would switch to `becomes`, then see that everything works."""
        before = self.version
        self.may_become(becomes)
        answer = self.killer.ask(*argv, **how)
        self.settled()
        now = self.current(self.killer.run("status", self.pid))
        assert now in (before, becomes)
        self.is_now(now)
        calls = self.torture.calls
        self.killer.run("wait", self.pid, "--timeout", PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while self.torture.calls == calls:
            assert time.monotonic() < deadline, "the program stands still"
            time.sleep(0.001)
        self.torture.check()
        return answer

    def kill_all_over(self, command, choose=lambda steps: steps) -> None:  # noqa: ANN001
        """Kill a command at each of its steps.  command(): the version that it makes current, and its arguments.

        choose: which of the interesting steps the suite takes."""
        becomes, argv = command()
        self.may_become(becomes)
        trace = self.killer.ask(*argv, trace=True)
        assert trace["status"] == 0, trace["err"]
        self.is_now(becomes)
        self.attach_new()
        assert self.belongings() == self.usual
        for n, step in enumerate(range(1, 100000) if LONG else choose(interesting(trace["steps"]))):
            becomes, argv = command()
            how = {"kill": step} if LONG else {"kill_after": (step, 0)}
            answer = self.try_kill(becomes, *argv, **how)
            self.attach_new()
            assert self.belongings() == self.usual, f"killed after step {step}: {answer}"
            if LONG and "killed" not in answer:
                assert n > 100
                return
            assert "killed" in answer, f"{step} did not come again"


def test_killed_in_attach(lab, killer, runtime_directory):
    v = Victim(lab, killer, runtime_directory)

    def attach():
        version = v.new()
        return version, ("attach", v.pid, v.patch(version))

    v.kill_all_over(attach)
    v.torture.stop()


def test_killed_in_revert(lab, killer, runtime_directory):
    v = Victim(lab, killer, runtime_directory)

    def revert():
        notes = meta.read(v.process, v.runtime())
        earlier = notes.patch(next(f for f in notes.functions if f.name == "plain").history[-2])
        return int(re.fullmatch(r"v(\d+)\.o", earlier.name)[1]), ("revert", v.pid)

    v.kill_all_over(revert, last_two_commands)
    v.torture.stop()


def test_killed_in_revert_to_the_original(lab, killer, runtime_directory):
    v = Victim(lab, killer, runtime_directory)
    v.kill_all_over(lambda: (0, ("revert", v.pid, "--original")), last_two_commands)
    v.torture.stop()
