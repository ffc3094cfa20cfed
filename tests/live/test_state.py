"""State: a new version goes on with the program's variables, and with those that an earlier patch brought along."""

import subprocess

from conftest import WAIT, psu_bin

SOURCES = ("main.c", "other.c")


def test_new_versions_share_the_variables(lab):
    running = lab.start(lab.program("state", sources=SOURCES))
    running.expect(r"^main v0 global 100 shared 1001 calls 1 thread 8 place 1 other 5001 first$")
    before = running.expect(r"^worker v0 .* shared (\d+) calls (\d+) thread (\d+) place 1 other (\d+)")
    psu_bin("attach", running.pid, lab.patch("state", "patch1/main.c"))
    line = running.expect(r"^worker v1 global (\d+) shared (\d+) calls (\d+) thread (\d+) place 9 other (\d+) new (\d+) "
                          r"rounds (\d+) fresh (\d+)")
    _, shared, calls, thread, other, new, rounds, fresh = map(int, line.groups())
    assert shared > int(before[1]) and other > int(before[4]) > 5000
    assert calls > int(before[2]) and int(before[3]) < thread < 1000 and thread > 50
    assert new - 42 == rounds - 71 == fresh - 1
    psu_bin("attach", running.pid, lab.patch("state", "patch2/main.c"), "--wait", "--timeout", WAIT)
    line = running.expect(r"^worker v2 global (\d+) shared (\d+) calls (\d+) thread (\d+) new (\d+) rounds (\d+) "
                          r"\[kept after the version is gone\]")
    assert int(line[2]) > shared and int(line[3]) > calls and int(line[4]) > thread
    assert int(line[5]) >= new and int(line[6]) > rounds


def test_an_atomic_operation_that_the_program_has_not(lab):
    # On AArch64 it is a call of a function that only programs which use it have.
    (lab.folder / "p.c").write_text("""
        #include <stdio.h>
        static int started;
        void job(int number) {
            printf("job %d began in %d\\n", number, 100 + __atomic_add_fetch(&started, 1, __ATOMIC_ACQ_REL));
        }""")
    subprocess.run(["gcc", "-O2", "-c", "p.c"], cwd=lab.folder, check=True)
    running = lab.start(lab.program("inprogress"))
    running.expect("ready")
    psu_bin("attach", running.pid, lab.folder / "p.o")
    for n in range(2):
        running.say("start")
        running.expect(f"job {n} began in {101 + n}$")
