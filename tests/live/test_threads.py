"""Threads that come and go while the program is updated as fast as it can be."""

from conftest import WAIT, psu_bin, updates
from updating import Versions

from psu_bin.attach import borrow, target
from psu_bin.attach.process import Process

UPDATES = updates(100)


def test_threads_that_live_for_a_moment(lab):
    running = lab.start(lab.program("churn"), "moment", 10)
    versions = Versions(lab, "churn")
    running.expect("^lived 1$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    lived = int(running.expect(r"^lived (\d+)$")[1])
    running.expect(f"^lived {lived + 2}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]


def test_threads_that_end_while_one_is_borrowed(lab):
    program = lab.program("churn")
    for _ in range(5):
        running = lab.start(program, "moment", 10, "beside", env={"PSU_AGENT": "never"})
        running.expect("^ready$")
        assert borrow.start_agent(target.read(Process(running.pid))) > 0
        assert psu_bin("status", running.pid, "--json").json["agent"] is not None
        running.process.kill()


def test_a_thousand_threads_at_once(lab):
    running = lab.start(lab.program("churn"), "crowd", 1000)
    versions = Versions(lab, "churn")
    running.expect("^ready$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [UPDATES]
    assert running.alive()
