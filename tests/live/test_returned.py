"""A function that returns its argument unchanged leaves its result's register alone: a gate must not restore it."""

import pytest
from conftest import psu_bin


@pytest.mark.parametrize(("program", "patch"), [("-g", "-g"), ("-g0", "-g"), ("-g", "-g0")], ids=" ".join)
def test_a_new_result_arrives(lab, program, patch):
    running = lab.start(lab.program("same", "-O2", program))
    running.expect(r"^1\.5 1$")
    for v in (1, 2, 40):
        psu_bin("attach", running.pid, lab.patch("same", "patch.c", "-O2", patch, f"-DV={v}"))
        running.expect(rf"^{v + 1}\.5 {v + 1}$")
    psu_bin("revert", running.pid, "--original")
    running.expect(r"^1\.5 1$")


def test_what_cannot_be_told_is_refused(lab):
    running = lab.start(lab.program("same", "-O2", "-g0"))
    running.expect(r"^1\.5 1$")
    refused = psu_bin("attach", running.pid, lab.patch("same", "patch.c", "-O2", "-g0", "-DV=1"), check=False)
    assert refused.status == 1 and "the type of same's result is not known" in refused.err
    assert "compile the patch with -g" in refused.err
    running.say("quit")
