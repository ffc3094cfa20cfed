"""psu-bin dies by SIGKILL while it borrows the only thread of a program to start the agent: the program goes on, sees
no system call fail, and the next attach works.
"""

from __future__ import annotations

import os

import pytest
from killing import Killer

LONG = os.environ.get("PSU_TORTURE") == "long"


@pytest.mark.parametrize("how", ["wait", "run"] if LONG else ["wait"])
def test_killed_while_a_thread_is_borrowed(lab, how, runtime_directory):
    program, patch = lab.program("single"), lab.patch("single", "patch.c", "-DV=1")
    with Killer() as killer:
        def start():
            running = lab.start(program, how)
            running.expect("ready")
            return running

        running = start()
        killer.run("attach", running.pid, patch)
        running.stop()
        running = start()
        trace = killer.ask("attach", running.pid, patch, trace=True)
        assert trace["status"] == 0, trace["err"]
        running.stop()
        steps = trace["steps"]
        first = "0: pipe2"             # before the process that borrows is made
        last = steps.index("0: wait4") - steps.index(first)
        assert last < 40
        for n in range(last + (100 if LONG else 5)):
            running = start()
            answer = killer.ask("attach", running.pid, patch, kill_after=(first, n))
            assert "killed" in answer, answer
            running.say("5")
            running.expect("answer (6|1005)$")
            killer.run("status", running.pid)
            killer.run("attach", running.pid, patch, "--wait", "--timeout", 30)
            running.say("6")
            running.expect("answer 1006")
            running.stop()

