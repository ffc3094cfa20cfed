"""Objects with constructors: a whole C++ file as a patch shares them, and nothing is constructed or destroyed twice."""

import pytest
from conftest import psu_bin


@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_objects_are_not_made_again(lab, level):
    running = lab.start(lab.program("globals", level, sources=("main.cc",), cc="g++"))
    running.say("")
    running.expect("^v0 first 101 second 201 local 1001 made 3$")
    psu_bin("attach", running.pid, lab.patch("globals", "main.cc", level, '-DVERSION="v1"', cc="g++"))
    running.say("")
    running.expect("^v1 first 102 second 202 local 1002 made 3$", reject="destroyed")
    # Not through the address of another variable, which GCC for AArch64 likes, and which is refused before the constructor is.
    added = lab.patch("globals", "main.cc", level, "-fno-section-anchors", '-DVERSION="v2"', '-DADDED', cc="g++", out="third.o")
    ran = psu_bin("attach", running.pid, added, check=False)
    assert ran.status == 1 and "a constructor uses third, which is new" in ran.err
    running.process.stdin.close()
    running.expect("^end$")
    assert sorted(running.expect(r"^destroyed (\d+)$")[1] for _ in range(3)) == ["1002", "102", "202"]
