"""Several instrumented modules in one process: the program and its shared library, patched singly and together."""

import re
import subprocess

import pytest
from conftest import GUARDED, PROGRAMS, WAIT, psu_bin

LINE = "^plt {p} total {p} pointer {p} handed {p} named {p} back {d} same 1 sold 1$"


def settled(running, price, discount):
    """A whole round after the commit has these results, and the next one, too."""
    running.fresh()
    running.next()     # perhaps half computed before the commit
    for _ in range(2):
        assert re.match(LINE.format(p=price, d=discount), running.next()), running.seen[-1]


@pytest.mark.parametrize("flags", [(), ("-fno-plt", "-Wl,-z,now"), ("-O0",), ("-no-pie",),
                                   (GUARDED, "-Wl,-z,pack-relative-relocs"), ("../far/pool.c",)],
                         ids=lambda f: " ".join(f) or "default")
def test_a_program_and_its_library(lab, flags):
    shared = [f for f in flags if f != "-no-pie"]
    lab.program("library", "-fPIC", "-shared", "-Wl,-soname,liblibrary.so", *shared, sources=("library.c",),
                out="liblibrary.so", instrument=False)
    program = lab.program("library", "-rdynamic", "-L", str(lab.folder), "-l:liblibrary.so", "-Wl,-rpath,$ORIGIN", "-ldl",
                          *flags)
    # The library takes its own place: the program finds it by its name.
    psu_bin("instrument", lab.folder / "liblibrary.so", "-o", lab.folder / "new.so")
    (lab.folder / "new.so").rename(lab.folder / "liblibrary.so")
    running = lab.start(program)
    settled(running, 9, -1)
    status = psu_bin("status", running.pid, "--json").json
    assert sorted(m["path"].rpartition("/")[2] for m in status["modules"]) == ["liblibrary.so", "main.psu"]

    def patch(source, v):
        return lab.patch("library", source, f"-DV={v}", "-fPIC", out=f"{source}{v}.o")

    psu_bin("attach", running.pid, patch("price.c", 1))
    settled(running, 99, -1)
    psu_bin("attach", running.pid, patch("discount.c", 1))
    settled(running, 98, -2)
    both = psu_bin("attach", running.pid, patch("price.c", 2), patch("discount.c", 2), "--json").json
    assert sorted(both["functions"]) == ["discount", "price", "total"] and both["threads_stopped"] == 0
    settled(running, 196, -4)
    psu_bin("attach", running.pid, patch("discount.c", 3))      # which the other module's patch calls
    settled(running, 194, -6)
    psu_bin("revert", running.pid)
    settled(running, 196, -4)
    psu_bin("revert", running.pid)
    settled(running, 98, -2)
    psu_bin("revert", running.pid, "--original", "--wait", "--timeout", WAIT)
    settled(running, 9, -1)


@pytest.mark.parametrize("compiler", [("gcc", "-O3"), ("gcc", "-O2", "-flto"), ("clang", "-O2")],
                         ids=" ".join)
def test_a_marked_function_can_be_replaced_alone(lab, compiler):
    """psu.h: without the mark, all these compilers put the constant into main and the patch would change nothing."""
    (lab.folder / "p.c").write_text(
        '#include "psu.h"\n#include <stdio.h>\nPSU_UPDATABLE int version(int unused) { (void)unused; return 1; }\n'
        "int main(void) { while (getchar() > 0) { printf(\"version %d\\n\", version(5)); fflush(stdout); } return 0; }\n")
    (lab.folder / "patch.c").write_text('#include "psu.h"\nPSU_UPDATABLE int version(int n) { return 10 * n; }\n')
    include = f"-I{PROGRAMS.parent}/shim"
    subprocess.run([*compiler, include, "-o", "p", "p.c"], cwd=lab.folder, check=True)
    subprocess.run([compiler[0], "-O2", include, "-c", "patch.c"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "p", "--json").json["output"])
    running.say("")
    running.expect("^version 1$")
    psu_bin("attach", running.pid, lab.folder / "patch.o")
    running.say("")
    running.expect("^version 50$", reject="version 1")
