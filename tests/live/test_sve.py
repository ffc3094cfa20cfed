"""Functions of the SVE procedure call standard, and calls in SME's streaming mode, are patched like any (testprogs/sve)."""

import pytest
from conftest import MACHINE, WAIT, psu_bin, updates
from updating import Versions

pytestmark = pytest.mark.skipif(MACHINE != "aarch64", reason="scalable vectors are AArch64's")


@pytest.mark.parametrize("cc", ["gcc", "clang"])
def test_scalable_vectors_arrive_and_are_kept(lab, cc):
    flags = ("-march=armv8-a+sve",) if cc == "clang" else ()
    running = lab.start(lab.program("sve", "-w", *flags, cc=cc))
    first = running.next()
    if first == "no SVE":
        pytest.skip("this processor has no SVE")
    if int(first.split()[1]) <= 16:
        pytest.skip("vectors of 128 bits show nothing")
    print(running.next())
    running.expect("^version 0$")
    versions = Versions(lab, "sve", "patch.c", "-w", *flags, cc=cc)
    for v in range(1, updates(100) + 1):
        versions.attach(running.pid, v)
        running.expect(f"^version {v}$")
    running.fresh()
    running.expect("^threads ")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$")
