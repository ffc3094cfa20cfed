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


def test_a_structure_that_was_changed_is_refused_unless_it_is_meant(lab):
    (lab.folder / "main.c").write_text("""
        #include <stdio.h>
        struct conn { int id; int state; } conns[3] = {{1, 10}, {2, 20}, {3, 30}};
        __attribute__((noipa)) int state(struct conn *c) { return c->state; }
        int main(void) {
            puts("ready");
            for (fflush(stdout); getchar() != EOF; fflush(stdout))
                printf("state %d\\n", state(&conns[0]));
        }""")
    (lab.folder / "new").mkdir()
    (lab.folder / "new" / "main.c").write_text("""
        struct conn { int id; long since; int state; };
        int state(struct conn *c) { return c->state + 100; }""")
    subprocess.run(["gcc", "-g", "-O2", "-pthread", "main.c", "-o", "main"], cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"])
    running.expect("^ready$")
    for flags, status in (("-g", 1), ("-g0", 0)):
        subprocess.run(["gcc", flags, "-O2", "-c", "main.c", "-o", f"../p{flags}.o"], cwd=lab.folder / "new", check=True)
        ran = psu_bin("attach", running.pid, lab.folder / f"p{flags}.o", "--dry-run", check=False)
        assert ran.status == status, ran.err
    ran = psu_bin("attach", running.pid, lab.folder / "p-g.o", check=False)
    assert ran.status == 1 and ran.err.count("\n") == 1, ran.err
    assert "struct conn has member state at byte 16, not byte 4, unlike in" in ran.err and "--allow-changed-types" in ran.err
    running.say("")
    running.expect("^state 10$")
    psu_bin("attach", running.pid, lab.folder / "p-g.o", "--allow-changed-types")
    running.say("")
    running.expect("^state 103$")         # what is there by the new layout is the `id` of the third one
    psu_bin("revert", running.pid)
    running.say("")
    running.expect("^state 10$")
