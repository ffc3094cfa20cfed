"""Patches of several objects: new files that the program does not have, objects of data only, and that none of them stays for nothing."""

import re
import subprocess

import pytest
from conftest import WAIT, psu_bin

from psu_bin.attach import status

MAIN = r"""
#include <stdio.h>
#include <unistd.h>
int pace = 20000;
__attribute__((noipa)) int first(int x) { return x + 1; }
__attribute__((noipa)) int second(int x) { return x + 2; }
int main(void)
{
    for (;;) {
        printf("first %d second %d\n", first(1), second(1));
        fflush(stdout);
        usleep(pace);
    }
}
"""
FILES = {
    "helper": "static int calls; int helper(int x) { calls++; return x + 1000 * HOW + !calls; }",
    "first": "int helper(int); int first(int x) { return helper(x); }",
    "table": "int pace = 1; int table[3] = {70000, 80000, 90000};",
    "second": "extern int table[3]; int helper(int); int second(int x) { return table[1] + helper(x); }",
    "stray": "int stray(int x) { return x; }",
    "other": "static int first(int x) { return x * 7; } int (*other(void))(int) { return first; }",
}


@pytest.fixture
def running(lab):
    (lab.folder / "main.c").write_text(MAIN)
    subprocess.run(["gcc", "-O2", "-g", "main.c", "-o", "main"], cwd=lab.folder, check=True)
    psu_bin("instrument", lab.folder / "main")
    out = lab.start(lab.folder / "main.psu")
    out.expect("^first 2 second 3$")
    return out


def objects(lab, *names, how=1):
    out = []
    for name in names:
        (lab.folder / f"{name}.c").write_text(FILES[name])
        out.append(lab.folder / f"{name}{how}.o")
        subprocess.run(["gcc", "-O2", "-g", f"-DHOW={how}", "-c", f"{name}.c", "-o", out[-1]], cwd=lab.folder, check=True)
    return out


def code(pid):
    """Bytes of code of all patches."""
    return sum(p.bytes for p in status.read(pid).patches)


def test_a_new_file_comes_with_those_that_use_it(lab, running):
    psu_bin("attach", running.pid, *objects(lab, "helper", "first"))
    running.expect("^first 1001 second 3$")
    psu_bin("attach", running.pid, *objects(lab, "second", "table"))
    running.expect("^first 1001 second 81001$", reject="second 1001")
    psu_bin("attach", running.pid, *objects(lab, "helper", how=2))
    running.expect("^first 2001 second 82001$")
    psu_bin("revert", running.pid)
    running.expect("^first 1001 second 81001$")
    psu_bin("revert", running.pid, "--original")
    running.expect("^first 2 second 3$")
    psu_bin("attach", running.pid, *objects(lab, "first"))
    running.expect("^first [12]001 second 3$")


def test_nothing_stays_of_objects_that_are_not_needed(lab, running):
    """A revert to a patch links all its objects again, for the sake of one."""
    psu_bin("attach", running.pid, *objects(lab, "helper", "table", "first", "second"))
    running.expect("^first 1001 second 81001$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    seen = []
    for how in (2, 3, 4, 5):
        psu_bin("attach", running.pid, *objects(lab, "helper", how=how))
        running.expect(f"^first {how}001 second 8{how}001$")
        psu_bin("revert", running.pid, "--wait", "--timeout", WAIT)
        running.expect("^first 1001 second 81001$")
        seen.append(code(running.pid))
    assert len(set(seen)) == 1, seen


@pytest.mark.parametrize(("names", "what"), [
    (("first", "helper", "stray"), "stray1.o: defines no function that .* has: stray"),
    (("stray", "helper"), "stray1.o: defines no function that .* has: stray, helper"),
    (("table",), "table1.o: has no code"),
    (("second", "helper", "table", "other"), "other1.o: defines first as static, .* has it as a global"),
])
def test_an_object_that_would_change_nothing(lab, running, names, what):
    ran = psu_bin("attach", running.pid, *objects(lab, *names), check=False)
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert re.search(what, ran.err), ran.err
    assert status.read(running.pid).patches == ()
