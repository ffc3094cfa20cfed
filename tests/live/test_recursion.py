"""Very deep recursion through gates, across updates."""

from conftest import psu_bin
from updating import Versions

LEVELS = 200_000
TURNS = 25       # of four updates each


def test_levels_of_many_versions_on_one_stack(lab):
    running = lab.start(lab.program("recursion"), LEVELS)
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
    psu_bin("wait", running.pid, "--timeout", 60)
    status = psu_bin("status", running.pid, "--json").json
    assert [p["id"] for p in status["patches"] if p["state"] != "freed"] == [v]
