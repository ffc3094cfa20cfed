"""A traced thread that its process leaves behind: another thread execs.  The kernel holds the exec up until the tracer has heard
of the thread's end; from then on the same addresses are another program's, of which nothing may be written.

There is no randomisation, so that the new program, the same one, has the same addresses.  Here it is seen from inside psu-bin;
tests/stress/test_execs.py has whole commands.
"""

import pytest
from conftest import until

from psu_bin.attach import target
from psu_bin.attach.process import Process
from psu_bin.attach.tracing import Seized, agent_thread
from psu_bin.errors import PsuError


@pytest.fixture
def seized(lab):
    """The agent of testprogs/execs, traced; the program, and what makes it exec."""
    path = lab.program("execs")
    running = lab.start("setarch", "-R", str(path))
    running.expect("^ready$")
    process = Process(running.pid)
    until(lambda: agent_thread(process, target.read(process).runtime()))
    with Seized(process, agent_thread(process, target.read(process).runtime())) as s:
        yield s, running, lambda: running.say(f"leader {path}")


def test_nothing_is_written_once_the_thread_is_gone(seized):
    s, running, become = seized
    process = s.process
    where = target.read(process).modules[0].slot(0)
    before = process.read(where, 8)
    become()
    running.expect("^ready$")
    until(lambda: process.lost)
    # The next system call is not for the program that was traced, wherever its addresses lead now.
    with pytest.raises(PsuError, match="started another program meanwhile"):
        process.write(where, bytes(8))
    with pytest.raises(PsuError, match="started another program meanwhile"):
        process.read(where, 8)
    assert Process(running.pid).read(where, 8) == before
    running.say("call")
    running.expect("^answer 0 pair 41$")


@pytest.mark.parametrize("order", ["resume", "leave"])
def test_the_exec_goes_on_when_a_stopped_thread_is_let_go(seized, order):
    s, running, become = seized
    assert s.interrupt()
    become()
    until(lambda: s.process.thread(s.tid).state == "Z")
    if order == "resume":
        with pytest.raises(ProcessLookupError):
            s.resume()
    else:
        s.__exit__()
    running.expect("^ready$")       # while its tracer is alive
    assert s.process.lost
