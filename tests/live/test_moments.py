"""What a program does in the very middle of an update: it ends, becomes another program, changes its user, is stopped.

The update is held up where it matters, by a function that the test puts in front of the linker's last pass: the agent is traced and
memory is mapped, but nothing is committed.
"""

import os
import signal
import time

import pytest
from conftest import PATIENCE, psu_bin, updates
from updating import Versions

from psu_bin.attach import linker
from psu_bin.attach.process import Process
from psu_bin.attach.tracing import Seized
from psu_bin.errors import PsuError


@pytest.fixture
def program(lab):
    running = lab.start(lab.program("moments"))
    running.expect("^version 0$")
    return running


@pytest.fixture
def in_the_middle(monkeypatch):
    """Call a function in the middle of the next update."""
    def arrange(what):
        real = linker.relocate

        def held(*arguments):
            monkeypatch.setattr(linker, "relocate", real)
            what()
            return real(*arguments)
        monkeypatch.setattr(linker, "relocate", held)
    return arrange


def test_setuid_does_not_wait_for_the_update(lab, program, in_the_middle):
    if os.geteuid():
        pytest.skip("needs root")

    def change():
        program.say("setuid 12345 12345")
        program.expect("^setuid 0$")       # every thread has changed, the traced agent, too
    in_the_middle(change)
    versions = Versions(lab, "moments")
    versions.attach(program.pid, 1)
    program.expect("^version 1$")
    last = updates(100)
    versions.run(program.pid, 2, last)
    program.expect(f"^version {last}$")
    for task in os.listdir(f"/proc/{program.pid}/task"):
        with open(f"/proc/{program.pid}/task/{task}/status") as f:
            assert "Uid:\t12345\t12345\t12345\t12345\n" in f.readlines(), task


@pytest.mark.parametrize("order, status", [("exit", 0), ("crash", -signal.SIGSEGV)])
def test_the_target_ends(lab, program, in_the_middle, order, status):
    def end():
        program.say(order)
        assert program.process.wait(timeout=PATIENCE) == status    # its parent learns of it at once
    in_the_middle(end)
    with pytest.raises(PsuError, match="ended meanwhile"):
        Versions(lab, "moments").attach(program.pid, 1)


def test_the_target_becomes_another_program(lab, program, in_the_middle):
    """And not one byte is written into the new one, although it has the same addresses (no randomisation)."""
    quiet = ["setarch", "-R"]
    again = lab.start(*[quiet[0], quiet[1]], str(lab.folder / "main.psu"))
    again.expect("^version 0$")

    def become():
        again.say(f"exec {lab.folder / 'main.psu'}")
        again.expect("^version 0$")        # the new program's first thread runs
    in_the_middle(become)
    versions = Versions(lab, "moments")
    with pytest.raises(PsuError, match="started another program meanwhile"):
        versions.attach(again.pid, 1)
    versions.attach(again.pid, 2)
    again.expect("^version 2$", reject="version 1")


def test_the_target_becomes_another_program_while_the_agent_is_stopped(program, lab, monkeypatch):
    """SIGKILL alone ends a stopped agent.  Attach says what became of the program, and the new one can be patched."""
    real = Seized.resume

    def held(seized):
        monkeypatch.setattr(Seized, "resume", real)
        program.say(f"exec {lab.folder / 'main.psu'}")
        deadline = time.monotonic() + PATIENCE
        while Process(program.pid).thread(seized.tid).state != "Z":
            assert time.monotonic() < deadline
        real(seized)
    monkeypatch.setattr(Seized, "resume", held)
    versions = Versions(lab, "moments")
    with pytest.raises(PsuError, match="started another program meanwhile"):
        versions.attach(program.pid, 1)
    program.expect("^version 0$")
    versions.attach(program.pid, 2)
    program.expect("^version 2$", reject="version 1")


def test_job_control_stops_the_target(lab, program, in_the_middle):
    def stop():
        os.kill(program.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED)
    in_the_middle(stop)
    versions = Versions(lab, "moments")
    versions.attach(program.pid, 1)
    with open(f"/proc/{program.pid}/status") as f:
        assert "State:\tT (stopped)\n" in f.readlines()
    ran = psu_bin("attach", program.pid, versions.object(2), check=False)
    assert ran.status == 1 and "is stopped (state T)" in ran.err
    os.kill(program.pid, signal.SIGCONT)
    program.expect("^version 1$")
    versions.attach(program.pid, 3)
    program.expect("^version 3$")


def test_the_second_of_two_psu_bin_is_refused(lab, program, in_the_middle):
    def second():
        ran = psu_bin("attach", program.pid, versions.object(1, lab.folder / "other.o"), check=False)
        assert ran.status == 1
        assert "is being traced already by" in ran.err and f"process {os.getpid()}" in ran.err
        assert ran.err.count("\n") == 1
    versions = Versions(lab, "moments")
    in_the_middle(second)
    versions.attach(program.pid, 2)
    program.expect("^version 2$", reject="version 1")
