"""Position-dependent programs: patches that hold addresses of shared libraries in fewer bits than those have."""

import re
import shutil
import subprocess

import pytest
from conftest import GUARDED, MACHINE, psu_bin

BUILDS = [pytest.param(cc, flags, marks=pytest.mark.skipif(not shutil.which(cc), reason=f"{cc} is not installed"))
          for cc, flags in (("gcc", (GUARDED, "-Wl,-z,now")), ("clang", ()))]

# What holds an address in few bits: a word of 32; the number of a page, in 21 bits, relative to the instruction's own.
SHORT = {"x86_64": "R_X86_64_32", "aarch64": "R_AARCH64_ADR_PREL_PG_HI21"}[MACHINE]


def start(lab, cc, *flags):
    running = lab.start(lab.program("fixed", "-fno-pic", "-no-pie", *flags, cc=cc))
    running.expect("^ready$")
    return running


def answer(running):
    running.say("")
    return running.next()


def relocations(path):
    return subprocess.run(["readelf", "-rW", path], check=True, capture_output=True, text=True).stdout


def stores(pid):
    from psu_bin.attach import meta, target
    from psu_bin.attach.process import Process
    process = Process(pid)
    return meta.read(process, target.read(process).runtime())


@pytest.mark.parametrize(("cc", "flags"), BUILDS)
def test_the_address_of_a_library_function_in_32_bits(lab, cc, flags):
    running = start(lab, cc, *flags)
    assert answer(running) == "0 unsorted same"
    patch = lab.patch("fixed", "patch.c", "-fno-pic", "-DV=1", "-DFIRST", cc=cc, out="first.o")
    assert re.search(f"{SHORT}S? .* strcmp", relocations(patch))
    psu_bin("attach", running.pid, patch)
    assert answer(running) == "1 sorted same"
    # The next versions have the same address for it, whatever they are compiled with, and nothing grows.
    entries = stores(running.pid).imports
    assert [row[1] for row in entries] == ["strcmp"]
    for v, pic in ((2, "-fno-pic"), (3, "-fPIC"), (4, "-fno-pic")):
        psu_bin("attach", running.pid, lab.patch("fixed", "patch.c", pic, f"-DV={v}", cc=cc))
        assert answer(running) == f"{v} sorted same"
    assert stores(running.pid).imports == entries
    psu_bin("revert", running.pid)
    assert answer(running) == "3 sorted same"
    # The pointer that the program holds is good without any patch.
    psu_bin("revert", running.pid, "--original", "--wait")
    assert answer(running) == "0 unsorted different"
    psu_bin("attach", running.pid, patch)
    assert answer(running) == "1 sorted same"


def test_the_address_of_library_data_in_32_bits_is_refused(lab):
    running = start(lab, "gcc")
    patch = lab.patch("fixed", "patch.c", "-fno-pic", "-DV=1", "-DFIRST", "-DDATA")
    ran = psu_bin("attach", running.pid, patch, check=False)
    assert ran.status == 1 and f"environ is out of reach of {SHORT}" in ran.err
    assert "compile the patch with -fPIC" in ran.err and "position-independent" not in ran.err
    assert answer(running) == "0 unsorted same" and not stores(running.pid).imports
    psu_bin("attach", running.pid, lab.patch("fixed", "patch.c", "-fPIC", "-DV=1", "-DFIRST", "-DDATA"))
    assert answer(running) == "1 sorted same"
