"""Who else traces the program: debuggers, strace, and another psu-bin at the same moment."""

import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import PATIENCE, ROOT, WAIT, psu_bin


TRACED = (r"psu-bin: process \d+: is being traced already by {name} \(process {pid}\) "
          r"\(wait for it, or detach it\)\n")


@contextmanager
def tracer(*command):
    """A tracer from the moment that it has attached; detached at the end."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    p = subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
    try:
        while (line := p.stdout.readline()) and not re.search("attached$|ATTACHED", line):
            pass
        assert line, f"{command} has not attached"
        yield p
        if command[0] == "gdb":
            p.stdin.close()        # the end of its commands: it detaches
        else:
            p.send_signal(signal.SIGINT)
        p.wait(timeout=PATIENCE)
    finally:
        p.kill()
        p.wait()


def gdb(pid):
    return tracer("gdb", "-q", "-nx", "-p", pid, "-ex", "echo ATTACHED\\n")


def strace(*options):
    return tracer("strace", "-o", "/dev/null", *options)


def refused_for(by, *arguments):
    ran = psu_bin(*arguments, check=False)
    assert ran.status == 1 and not ran.out
    assert re.fullmatch(TRACED.format(name=Path(by.args[0]).name, pid=by.pid), ran.err), ran.err


@pytest.mark.parametrize("which", [gdb, lambda pid: strace("-p", pid)], ids=["gdb", "strace"])
def test_a_program_without_an_agent(lab, which):
    """Its only thread would have to be borrowed."""
    running = lab.start(lab.program("crash"))
    running.expect("^ready$")
    patch = lab.patch("crash")
    with which(running.pid) as by:
        refused_for(by, "attach", running.pid, patch)
        assert psu_bin("status", running.pid, "--json").json["patches"] == []
    psu_bin("attach", running.pid, patch)
    running.say("wait")
    running.expect("^inside$")


def test_only_the_agent_matters(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    agent = psu_bin("status", running.pid, "--json").json["agent"]
    second = lab.patch("spin", "patch.c", "-DV=2")
    with strace("-p", agent) as by:
        refused_for(by, "attach", running.pid, second)
        refused_for(by, "revert", running.pid)
        running.expect("^version 1$")
    with strace("-p", running.pid):      # its main thread: no business of ours
        psu_bin("attach", running.pid, second)
        running.expect("^version 2$")
    with gdb(running.pid) as by:         # which stops everything
        refused_for(by, "attach", running.pid, second)
        assert psu_bin("status", running.pid, "--json").json["patches"][-1]["state"] == "current"
    psu_bin("revert", running.pid)
    running.expect("^version 1$", reject="version 0")
    assert psu_bin("wait", running.pid, "--timeout", WAIT).status == 0


@pytest.mark.parametrize("program, ready, line", [("spin", "^version 0$", "^version {}$"), ("crash", "^ready$", None)])
def test_several_at_once(lab, program, ready, line):
    """Each is done or refused for another; the last one committed is current.  `crash` has no agent before."""
    running = lab.start(lab.program(program), 2)
    running.expect(ready)
    patches = {f"p{v}.o": lab.patch(program, "patch.c", f"-DV={v}", out=f"p{v}.o") for v in range(1, 4)}
    done = 0
    for _ in range(2):
        started = [subprocess.Popen([sys.executable, "-m", "psu_bin", "attach", str(running.pid), str(p)], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) for p in patches.values()]
        for p in started:
            out, err = p.communicate(timeout=2 * WAIT)
            if p.returncode:
                assert p.returncode == 1 and not out, (out, err)
                assert re.fullmatch(TRACED.format(name=".*", pid=r"\d+"), err), err
            else:
                done += 1
    psu_bin("wait", running.pid, "--timeout", WAIT)
    listed = psu_bin("status", running.pid, "--json").json["patches"]
    assert done and max(p["id"] for p in listed) == done
    assert [p["id"] for p in listed if p["state"] == "current"] == [done]
    if line:
        running.expect(line.format(listed[-1]["name"][1]), reject="")
    psu_bin("attach", running.pid, patches["p3.o"])
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert psu_bin("status", running.pid, "--json").json["patches"][-1]["id"] == done + 1
    assert running.alive()
