"""Processes that come from one another: each is patched on its own, and nothing is disturbed by it."""

import os
import re
import signal

import pytest
from conftest import WAIT, psu_bin, updates
from updating import Versions

from psu_bin.attach import meta, shim, target
from psu_bin.attach.process import Process

UPDATES = updates(100)


def roles(running, names):
    """The process number of each role, from the lines that tell it."""
    pids = {}
    while set(pids) != set(names):
        found = running.expect(r"^pid (\w+) (\d+)$")
        pids[found[1]] = int(found[2])
    return pids


def settled(running, expected, reject="ERROR|EINTR"):
    """Each role prints its expected version, and after it has done so, nothing else."""
    missing = set(expected)
    while missing:
        role, version = running.expect(r"^([a-z]+\d?) (\d+)$", reject=reject).groups()
        if int(version) == expected[role]:
            missing.discard(role)
        elif role not in missing:
            pytest.fail(f"{role} is at {version}, not {expected[role]}")
        elif int(version) > expected[role]:
            pytest.fail(f"{role} got version {version}, which was not for it")


@pytest.fixture
def children():
    """Processes that are not ended with the one that the test started."""
    pids = []
    yield pids
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_parent_and_children_are_patched_on_their_own(lab, children):
    running = lab.start(lab.program("forks"), "family")
    pids = roles(running, ["parent", "child0", "child1"])
    children += pids.values()
    versions = Versions(lab, "forks")
    now = dict.fromkeys(pids, 0)
    settled(running, now)
    for role, last in (("child0", UPDATES), ("parent", UPDATES + 10), ("child1", UPDATES + 20)):
        versions.run(pids[role], 1, last)
        now[role] = last
        settled(running, now)
    for role, pid in pids.items():
        psu_bin("wait", pid, "--timeout", WAIT)
        alive = [p for p in psu_bin("status", pid, "--json").json["patches"] if p["state"] != "freed"]
        assert [p["id"] for p in alive] == [now[role]]
    psu_bin("revert", pids["child0"], "--original")
    now["child0"] = 0
    running.fresh()
    running.next()
    settled(running, now, reject="ERROR (?!0$)|EINTR")     # its threads see a version go back once, to 0


def test_a_daemon_and_its_workers(lab, children):
    running = lab.start(lab.program("forks"), "daemon")
    pids = roles(running, ["daemon", "worker0", "worker1"])
    children += pids.values()
    versions = Versions(lab, "forks")
    settled(running, dict.fromkeys(pids, 0))
    for v in range(1, UPDATES + 1):
        for pid in pids.values():
            versions.attach(pid, v)
    settled(running, dict.fromkeys(pids, UPDATES))


def test_children_that_were_forked_from_a_patched_process_are_patched_and_reverted(lab, children):
    """What a child inherits it can leave again: its own history goes on where its parent's was when it was made."""
    running = lab.start(lab.program("forks"), "stream")
    versions = Versions(lab, "forks")
    running.expect("^children 0$")
    for v in range(1, UPDATES + 1):
        versions.attach(running.pid, v)
        if v % 10 == 0:
            running.expect(f"^children {v}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)


def test_programs_started_with_vfork(lab):
    running = lab.start(lab.program("forks"), "vfork")
    versions = Versions(lab, "forks")
    running.expect("^programs 0$")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^programs {UPDATES}$")
    # The borrowed memory of vfork left no count behind.
    psu_bin("wait", running.pid, "--timeout", WAIT)
    assert not any(re.search("ERROR", line) for line in running.seen)


def test_a_gate_that_a_parent_was_about_to_use(lab):
    """A child that was forked while its parent's agent made a commit may have gates that belong to a function for ever, and notes that
    do not say so: here written into it, as no test can fork at that moment."""
    running = lab.start(lab.program("forks"), "family")
    pid = roles(running, ["parent", "child0", "child1"])["parent"]
    versions = Versions(lab, "forks")
    versions.attach(pid, 1)
    t = target.read(Process(pid))
    runtime = t.runtime()
    notes = meta.read(t.process, runtime)
    [kind, used, _] = notes.functions[0].current
    gate = notes.next_gate[kind]
    place = runtime.pools[kind].data + gate * shim.GATE.size
    near = place + runtime.near_delta & shim.WORD
    code, slot = (shim.GATE.unpack(t.process.read(near + (used - gate) * shim.GATE.size, shim.GATE.size))[i] for i in (0, 3))
    for at in {place, near}:
        t.process.write(at, shim.GATE.pack(code, 8 * 99, 0, slot + 8, *(0 for _ in range(8))))
    for v in (2, 3):
        versions.attach(pid, v)
    assert sorted(g for _, g, _ in meta.read(t.process, t.runtime()).functions[0].gates) == [used, gate + 1]
    settled(running, {"parent": 3, "child0": 0, "child1": 0})
