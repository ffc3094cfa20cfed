"""Several instrumented modules in one process: the program and its shared library, patched singly and together."""

import re
import subprocess

import pytest
from conftest import GUARDED, MARKED, PROGRAMS, RELR, WAIT, psu_bin
from psu_bin.attach import target
from psu_bin.attach.process import Process
from psu_bin.descriptor import MODULE_IBT
from psu_bin.elf import Binary

LINE = "^plt {p} total {p} pointer {p} handed {p} named {p} back {d} same 1 sold 1$"


def settled(running, price, discount):
    """A whole round after the commit has these results, and the next one, too."""
    running.fresh()
    running.next()     # perhaps half computed before the commit
    for _ in range(2):
        assert re.match(LINE.format(p=price, d=discount), running.next()), running.seen[-1]


@pytest.mark.parametrize("flags", [(), ("-fno-plt", "-Wl,-z,now"), ("-O0",), ("-no-pie",), (GUARDED, *RELR),
                                   ("../far/pool.c",)],
                         ids=["default", "no plt", "-O0", "-no-pie", "marks and RELR", "far"])
def test_a_program_and_its_library(lab, flags):
    cc, marks, shared_marks = ("clang", MARKED, MARKED[:1]) if RELR[0] in flags else ("gcc", (), ())
    shared = [f for f in flags if f != "-no-pie"]
    library = lab.program("library", "-fPIC", "-shared", "-Wl,-soname,liblibrary.so", *shared, *shared_marks,
                          sources=("library.c",), out="liblibrary.so", instrument=False, cc=cc)
    program = lab.program("library", "-rdynamic", "-L", str(lab.folder), "-l:liblibrary.so", "-Wl,-rpath,$ORIGIN", "-ldl",
                          *flags, *marks, cc=cc)
    relocated = [len(Binary(file.read_bytes(), str(file)).relr) for file in (library, program)]
    assert all(relocated) if RELR[0] in flags else not any(relocated)
    # The library takes its own place: the program finds it by its name.
    psu_bin("instrument", lab.folder / "liblibrary.so", "-o", lab.folder / "new.so")
    (lab.folder / "new.so").rename(lab.folder / "liblibrary.so")
    running = lab.start(program)
    settled(running, 9, -1)
    marked = {bool(m.descriptor.flags & MODULE_IBT) for m in target.read(Process(running.pid)).modules}
    assert marked == {GUARDED in flags}
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


def test_files_that_are_only_mapped_are_no_modules(lab):
    """The program's own file as a whole, as debuggers and crash tracers have it; one that was cut short since it was mapped."""
    (lab.folder / "main.c").write_text("""
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/mman.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int answer(int n);
        int main(int argc, char **argv) {
            struct stat s;
            int own = open(argv[1], O_RDONLY), cut = open("cut", O_RDWR | O_CREAT, 0600);
            fstat(own, &s);
            void *a = mmap(0, s.st_size, PROT_READ, MAP_PRIVATE, own, 0);       /* below what is mapped already */
            ftruncate(cut, 4096);
            void *b = mmap(0, 4096, PROT_READ, MAP_PRIVATE, cut, 0);
            ftruncate(cut, 0);
            if (argc != 2 || a == MAP_FAILED || b == MAP_FAILED)
                return 1;
            for (int last = -1;; usleep(1000)) {
                int now = answer(0);
                if (now != last)
                    printf("answer %d\\n", last = now), fflush(stdout);
            }
        }""")
    (lab.folder / "answer.c").write_text("__attribute__((noipa)) int answer(int n) { return n; }\n"
                                         + "".join(f"int more{n}(int x) {{ return x + {n}; }}\n" for n in range(2000)))
    (lab.folder / "p.c").write_text("int answer(int n) { return n + 1; }\n")
    for command in (["gcc", "-g3", "-O2", "-fPIC", "-shared", "-Wl,-soname,libanswer.so", "answer.c", "-o", "plain.so"],
                    ["gcc", "-g", "-O2", "-fPIC", "-c", "p.c"], ["gcc", "-O2", "main.c", "./plain.so", "-Wl,-rpath,$ORIGIN", "-o", "main"]):
        subprocess.run(command, cwd=lab.folder, check=True)
    psu_bin("instrument", lab.folder / "plain.so", "-o", lab.folder / "libanswer.so")
    running = lab.start("sh", "-c", 'cd "$0" && exec ./main libanswer.so', lab.folder, env={"PSU_AGENT": "start"})
    running.expect("^answer 0$")
    assert len(psu_bin("status", running.pid, "--json").json["modules"]) == 1
    psu_bin("attach", running.pid, lab.folder / "p.o")
    running.expect("^answer 1$")
    psu_bin("revert", running.pid)
    running.expect("^answer 0$")
