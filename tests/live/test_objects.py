"""Patches of several objects: new files that the program does not have, objects of data only, and that none of them stays for nothing."""

import platform
import re
import subprocess

import pytest
from conftest import WAIT, psu_bin

from psu_bin.attach import status

MAIN = r"""
#include <stdio.h>
#include <unistd.h>
int pace = 20000;
static int calls;
static __attribute__((noipa)) int own(int x) { return ++calls < 0 ? calls : x; }
__attribute__((noipa)) int first(int x) { return x + 1; }
__attribute__((noipa)) int second(int x) { return x + 2; }
int main(void)
{
    for (;;) {
        printf("first %d second %d\n", own(first(1)), second(1));
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
    "namesakes": "static int calls; static __attribute__((noipa)) int own(int x) { return x + 1000 * ++calls; }"
                 "int helper(int x) { return calls < 3 ? own(x) : x + 7000 * HOW + 100000 * calls; }",
    "copy": "int seen; static int calls; static __attribute__((noipa)) int own(int x) { seen = ++calls; return x + 1000 * HOW; }"
            "int (*shown)(int) = own;",
    "one": "int two(int); int one(int x) { return two(x) + 1; }",
    "two": "int one(int); int two(int x) { return x > 9 ? x : one(x); }",
    "other": "static int first(int x) { return x * 7; } int (*other(void))(int) { return first; }",
}
FILES["renamed"] = FILES["namesakes"]
LABEL = {"x86_64": "movl $77, %eax\nret\n", "aarch64": "mov w0, 77\nret\n"}


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


def test_statics_of_a_new_file_are_its_own(lab, running):
    psu_bin("attach", running.pid, *objects(lab, "namesakes", "first"))
    for n in (1, 2, 3):
        running.expect(f"^first {n}001 second 3$")
    running.expect("^first 307001 second 3$")
    assert psu_bin("status", running.pid, "--json").json["patches"][0]["functions"] == ["helper", "first"]
    psu_bin("attach", running.pid, *objects(lab, "namesakes", how=2))
    running.expect("^first 314001 second 3$")
    psu_bin("attach", running.pid, *objects(lab, "renamed", how=3))
    running.expect("^first 321001 second 3$")
    psu_bin("revert", running.pid)
    running.expect("^first 314001 second 3$")


def test_a_renamed_copy_of_a_file_stays_that(lab, running):
    """It has brought a variable, and no global that the program has."""
    for how in (1, 2):
        psu_bin("attach", running.pid, *objects(lab, "copy", how=how))
        running.expect(f"^first {how}002 second 3$")


def test_new_variables_that_nothing_uses(lab, running):
    ran = psu_bin("attach", running.pid, *objects(lab, "first", "helper", "table"))
    assert "warning: " in ran.err and "nothing of the patch uses table" in ran.err
    running.expect("^first 1001 second 3$")


@pytest.mark.parametrize("typed", [False, True])
def test_code_of_another_object_that_is_no_function(lab, running, typed):
    """It would go with that object's versions, and nothing counts who is in it."""
    (lab.folder / "label.s").write_text(".globl helper\n" + ".type helper, @function\n" * typed + "helper:\n" + LABEL[platform.machine()]
                                        + ".size helper, . - helper\n" * typed + '.section .note.GNU-stack, "", @progbits\n')
    subprocess.run(["gcc", "-c", "label.s"], cwd=lab.folder, check=True)
    ran = psu_bin("attach", running.pid, *objects(lab, "first"), lab.folder / "label.o", check=False)
    if typed:
        assert ran.status == 0
        running.expect("^first 77 second 3$")
    else:
        assert ran.status == 1 and "helper is in the code of " in ran.err
        running.expect("^first 2 second 3$")


def test_a_new_file_belongs_to_the_library_that_uses_it(lab):
    """The program has a variable of the same name."""
    sources = {
        "library": "__attribute__((visibility(\"hidden\"))) int state = 100; __attribute__((noipa)) int get(int x) { return x + state; }",
        "main": MAIN.replace("first(1)", "get(first(1))").replace("int pace", "int get(int); int state = 5, pace"),
        "get": "int helper(int); int get(int x) { return helper(x); }",
        "helper": "extern __attribute__((visibility(\"hidden\"))) int state; int helper(int x) { return 1000 * state + x; }",
        "first": "int first(int x) { return x; }", "second": "int second(int x) { return x; }",
    }
    for name, text in sources.items():
        (lab.folder / f"{name}.c").write_text(text)
        subprocess.run(["gcc", "-O2", "-fPIC", "-c", f"{name}.c"], cwd=lab.folder, check=True)
    subprocess.run("gcc -shared library.o -Wl,-soname,libget.so -o libget.so && gcc main.o -L. -lget -Wl,-rpath,'$ORIGIN' -o main", shell=True, cwd=lab.folder,
                   check=True)
    psu_bin("instrument", lab.folder / "main")
    psu_bin("instrument", lab.folder / "libget.so", "-o", lab.folder / "new.so")
    (lab.folder / "new.so").rename(lab.folder / "libget.so")
    running = lab.start(lab.folder / "main.psu")
    running.expect("^first 102 second 3$")
    psu_bin("attach", running.pid, *(lab.folder / f"{name}.o" for name in ("helper", "first", "second", "get")))
    running.expect("^first 100001 second 1$")


@pytest.mark.parametrize(("names", "what"), [
    (("first", "helper", "stray"), "stray1.o: defines no function that .* has: stray"),
    (("stray", "helper"), "stray1.o: defines no function that .* has: stray, helper"),
    (("table",), "table1.o: has no code"),
    (("first", "helper", "one", "two"), "one1.o: defines no .*two1.o: defines no function"),
    (("second", "helper", "table", "other"), "other1.o: defines first as static, .* has it as a global"),
])
def test_an_object_that_would_change_nothing(lab, running, names, what):
    ran = psu_bin("attach", running.pid, *objects(lab, *names), check=False)
    assert ran.status == 1 and ran.err.count("\n") == 1
    assert re.search(what, ran.err), ran.err
    assert status.read(running.pid).patches == ()
