"""Pointers to functions are the same ones in the program and in patches, however both were compiled."""

import pytest
from conftest import psu_bin

PROGRAMS = ["-fPIE -pie", "-fPIE -pie -rdynamic", "-fno-pie -no-pie", "-fno-pie -no-pie -rdynamic -O0",
            "-fno-pie -no-pie -Wl,--emit-relocs"]
PATCHES = {"pie": ["-fPIE", "-fPIC"], "no-pie": ["-fno-pic", "-fPIE", "-fPIC -O0"]}


@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("flags", PROGRAMS)
def test_pointers_compare_equal(lab, cc, flags):
    program = lab.program("pointers", *flags.split(), cc=cc)
    for number, how in enumerate(PATCHES["no-pie" if "no-pie" in flags else "pie"]):
        running = lab.start(program)
        running.expect("^ready$")
        running.say("check")
        running.expect("^same$")
        psu_bin("attach", running.pid, lab.patch("pointers", "patch.c", *how.split(), cc=cc, out=f"{number}.o"))
        running.say("check")
        for _ in range(2):
            assert running.expect("^call (.*)$")[1] == "11 11 11 11"
        assert running.expect("^(same|different.*)$")[1] == "same", how
