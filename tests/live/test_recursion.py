"""Very deep recursion through gates, across updates."""

import resource

import pytest
from conftest import WAIT, psu_bin, updates
from updating import FULL, Versions

LEVELS = 200_000
TURNS = updates(25)       # of four updates each


@pytest.mark.parametrize("flags", [(), (FULL,)])
def test_levels_of_many_versions_on_one_stack(lab, flags):
    running = lab.start(lab.program("recursion", *flags), LEVELS)
    versions = Versions(lab, "recursion")
    running.expect("^down 0$")
    v = 0
    for _ in range(TURNS):
        for _ in range(2):                  # in the middle, and at the bottom
            versions.run(running.pid, v + 1, v + 2)
            v += 2
            if v == 4:                      # at the bottom: the lower half began in 2, the upper half in the program's own
                status = psu_bin("status", running.pid, "--json").json
                kept = {p["id"]: (p["state"], p["activations"]) for p in status["patches"]}
                assert kept[2] == ("retired", LEVELS // 2)
            running.say("")
            running.expect(f"^down {v}$")
    for _ in range(4):
        running.say("")
        running.expect(f"^down {v}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [v]


def test_no_memory_for_more_levels(lab):
    """Calls go on without their gates, correct; what they were in is never freed, and newer versions work as ever."""
    running = lab.start(lab.program("recursion"), LEVELS)
    versions = Versions(lab, "recursion")
    running.expect("^down 0$")
    versions.attach(running.pid, 1)
    with open(f"/proc/{running.pid}/statm") as f:
        now = int(f.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.prlimit(running.pid, resource.RLIMIT_AS)
    resource.prlimit(running.pid, resource.RLIMIT_AS, (now + (1 << 20), hard))  # a sixth of the entries
    for _ in range(3):
        running.say("")
        running.expect("^down 1$")
    resource.prlimit(running.pid, resource.RLIMIT_AS, (soft, hard))
    versions.run(running.pid, 2, 3)
    for _ in range(4):
        running.say("")
        running.expect("^down 3$")
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [1, 3]
