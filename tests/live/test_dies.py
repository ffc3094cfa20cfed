"""psu-bin is killed around the commit: the program runs one version or the other, and the next command is as any other.

tests/stress/test_killed.py kills it after every kind of system call, on machines that have the time for that.
"""

import os

import pytest
from conftest import WAIT, preloaded, psu_bin


@pytest.mark.parametrize("step", ["process_vm_writev bytes", "process_vm_writev command_seq", "ptrace CONT"])
def test_killed_around_the_commit(lab, step):
    killer, environment = preloaded(), dict(os.environ)
    running = lab.start(lab.program("inprogress"))
    patches = {v: lab.patch("inprogress", "patch.c", f"-DV={v}", out=f"v{v}.o") for v in (1, 2, 3, 4)}
    running.expect("ready")
    running.say("start")
    running.expect("job 0 began in 0")
    psu_bin("attach", running.pid, patches[1])
    traced = killer.ask("attach", running.pid, patches[2], trace=True, env=environment)
    assert traced["status"] == 0, traced["err"]
    running.say("start")
    running.expect("job 1 began in 2")
    # The last one of its kind is the commit's: psu-bin has written the record, has told the agent, has let it go.
    last = [s for s in traced["steps"] if s.endswith(step)][-1]
    assert killer.ask("attach", running.pid, patches[3], kill_after=[last, 0], env=environment).get("killed") == last
    running.say("start")
    began = int(running.expect(r"job 2 began in (\d)")[1])
    assert began in (2, 3)
    psu_bin("attach", running.pid, patches[4])
    running.say("start")
    running.expect("job 3 began in 4")
    for job, v in enumerate((0, 2, began, 4)):
        running.say(f"end {job}")
        running.expect(f"job {job} ended in {v}")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    states = {p["name"]: p["state"] for p in psu_bin("status", running.pid, "--json").json["patches"]}
    assert states.pop("v4.o") == "current" and set(states.values()) == {"freed"}
