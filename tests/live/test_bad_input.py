"""What attach and its companions refuse: one line on standard error, exit status 1, and the process goes on as it was."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MACHINE, psu_bin

from psu_bin.attach import transaction


def refused(*arguments, status=1):
    """Run psu-bin, which must fail in the documented form; its message."""
    ran = psu_bin(*arguments, check=False)
    assert ran.status == status, (ran.status, ran.err)
    assert ran.err.startswith("psu-bin: ") and ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err and "defect" not in ran.err
    assert ran.out == ""
    return ran.err


@pytest.fixture
def spin(lab):
    """A running program at version 0, checked to be at version 0 afterwards."""
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    yield running
    assert running.alive() and set(running.seen) == {"version 0"}
    assert psu_bin("status", running.pid, "--json").json["patches"] == []


def c(lab, text, *flags, name="patch.c", cc="gcc"):
    """Compile C text to an object file."""
    source = lab.folder / name
    source.write_text(text)
    out = lab.folder / "bad.o"
    subprocess.run([cc, "-O2", "-c", name, "-o", out, *flags], cwd=lab.folder, check=True)
    return out


def test_files_that_are_no_patches(lab, spin):
    good = lab.patch("spin", "patch.c", "-DV=1")
    text = lab.folder / "text.o"
    text.write_text("int first(void);")
    assert "not an ELF file" in refused("attach", spin.pid, text)
    cut = lab.folder / "cut.o"
    for size in (0, 3, 40, 64, 500, good.stat().st_size - 10):
        cut.write_bytes(good.read_bytes()[:size])
        refused("attach", spin.pid, cut)
    assert "executable" in refused("attach", spin.pid, lab.folder / "main")
    assert "cannot be read" in refused("attach", spin.pid, lab.folder / "nothing.o")
    assert "32-bit" in refused("attach", spin.pid, as_32_bit(lab, good))
    other = bytearray(good.read_bytes())
    other[18:20] = {"x86_64": 183, "aarch64": 62}[MACHINE].to_bytes(2, "little")      # the other one's
    cut.write_bytes(other)
    assert "architecture" in refused("attach", spin.pid, cut)
    # A damaged one in the middle of good ones refuses them all.
    cut.write_bytes(good.read_bytes()[:200])
    refused("attach", spin.pid, good, cut)


def as_32_bit(lab, good):
    data = bytearray(good.read_bytes())
    data[4] = 1
    path = lab.folder / "small.o"
    path.write_bytes(data)
    return path


def test_patches_that_do_not_fit_the_program(lab, spin):
    message = refused("attach", spin.pid, c(lab, "int nobody(void); int no_one(int); int first(void) { return nobody() + no_one(1); }"))
    assert "unresolved" in message and "nobody" in message and "no_one" in message
    assert "stranger" in refused("attach", spin.pid, c(lab, "int stranger(void) { return 1; }"))
    assert "thread-local" in refused("attach", spin.pid, c(lab, "__thread int fresh = 3; int first(void) { return fresh++; }"))
    assert "constructor" in refused("attach", spin.pid, c(
        lab, "static __attribute__((constructor)) void early(void) { __builtin_trap(); } int first(void) { return 1; }"))
    assert "no code" in refused("attach", spin.pid, c(lab, "int data = 1;"))
    assert "duplicate" in refused("attach", spin.pid, lab.patch("spin", "patch.c", "-DV=1", out="one.o"),
                                  lab.patch("spin", "patch.c", "-DV=2", out="two.o"))


def test_a_shared_variable_of_another_size(lab):
    running = lab.start(lab.program("state", sources=("main.c", "other.c")))
    running.expect("^main v0")
    patch = c(lab, "extern struct point { int x, y, z; } place; struct point place = {1}; int other(void) { return place.z; }")
    message = refused("attach", running.pid, patch)
    assert "place" in message and "8" in message and "12" in message
    running.expect("^main v0")


def test_a_patch_that_is_compiled_again_meanwhile(lab, monkeypatch):
    """What is attached, and kept for a revert, is what was read at first."""
    # Reverts go back, which the program takes for an error: nothing is rejected here.
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$", reject="")
    read = transaction.target.read
    for change in (Path.unlink, lambda p: p.write_bytes(b"no longer")):
        patch = lab.patch("spin", "patch.c", "-DV=1")

        def late(process, change=change, patch=patch):
            change(patch)
            return read(process)
        with monkeypatch.context() as changed:
            changed.setattr(transaction.target, "read", late)
            transaction.attach(running.pid, (patch,))
        running.expect("^version 1$", reject="")
        psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=2"), "--wait")
        running.expect("^version 2$", reject="")
        psu_bin("revert", running.pid)
        running.expect("^version 1$", reject="")
        psu_bin("revert", running.pid, "--original")
        running.expect("^version 0$", reject="")


def test_dry_run_changes_nothing(lab, spin):
    ran = psu_bin("attach", spin.pid, lab.patch("spin", "patch.c", "-DV=1"), "--dry-run", "--json")
    assert sorted(ran.json["functions"]) == ["first", "second"]


def test_processes_that_cannot_be_patched(lab):
    patch = lab.patch("spin", "patch.c", "-DV=1")
    with subprocess.Popen(["sleep", "1000"]) as plain:
        try:
            for command in (["attach", plain.pid, patch], ["status", plain.pid], ["revert", plain.pid], ["wait", plain.pid]):
                assert "not instrumented" in refused(*command)
        finally:
            plain.kill()
    assert "no such process" in refused("status", plain.pid)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert "zombie" in refused("attach", pid, patch)
    finally:
        os.waitpid(pid, 0)


def test_a_file_that_was_replaced_since_the_start(lab):
    program = lab.program("spin")
    running = lab.start(program, 2)
    running.expect("^version 0$")
    program.unlink()
    assert psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"), "--dry-run").status == 0
    lab.program("spin", "-DOTHER=1", "-O1")
    message = refused("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    assert "replaced" in message and "build-id" in message
    running.process.send_signal(signal.SIGCONT)
    assert running.alive()


def test_a_stopped_process(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    running.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, running.pid, os.WSTOPPED | os.WNOWAIT)
    assert "stopped" in refused("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    running.process.send_signal(signal.SIGCONT)
    psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    running.expect("^version 1$")


def test_a_process_that_a_debugger_holds(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    with subprocess.Popen(["gdb", "-q", "-nx", "-p", str(running.pid), "-ex", "echo ATTACHED\\n"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as gdb:
        try:
            while "ATTACHED" not in gdb.stdout.readline():
                pass
            message = refused("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
            assert "gdb" in message or "stopped" in message
        finally:
            gdb.kill()
    running.process.send_signal(signal.SIGCONT)
    psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    running.expect("^version 1$")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="needs root to become somebody else")
def test_the_process_of_another_user(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    patch = lab.patch("spin", "patch.c", "-DV=1")
    code = "import sys; from psu_bin.cli import main; sys.argv[0] = 'psu-bin'; main()"
    shutil.copy(patch, "/tmp/psu-other-user.o")
    readable = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", "import psu_bin"],
                              capture_output=True, cwd="/")
    if readable.returncode:
        pytest.skip("the other user cannot read this Python or this folder")
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", code, "attach",
                           str(running.pid), "/tmp/psu-other-user.o"], capture_output=True, text=True, cwd="/")
    os.unlink("/tmp/psu-other-user.o")
    assert done.returncode == 1 and "belongs to user 0" in done.stderr, done.stderr


def test_standard_output_that_is_full(spin, lab):
    program = lab.folder / "main"
    for arguments in (["--help"], ["--version"], ["status", spin.pid], ["status", spin.pid, "--json"], ["analyze", program],
                      ["instrument", program, "-o", lab.folder / "again"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "psu_bin", *map(str, arguments)], stdout=full,
                                  stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (1, "psu-bin: standard output: cannot be written: No space left on device "
                                                     "(the command itself has been carried out)\n")


def test_wrong_usage():
    for arguments in (["attach"], ["attach", "x", "y.o"], ["status"], ["frobnicate"], ["attach", "1"], ["status", "-5"],
                      ["revert", "1", "2", "--original"], ["wait", "1", "--timeout", "nan"], ["wait", "1", "--timeout", "inf"],
                      ["revert", "1", "--wait", "--timeout", "-1"], ["attach", "1", "x.o", "--wait", "--timeout", "nan"]):
        refused(*arguments, status=2)


def test_reverts_that_make_no_sense(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    assert "no patch" in refused("revert", running.pid)
    assert "no patch" in refused("revert", running.pid, "--original")
    psu_bin("attach", running.pid, lab.patch("spin", "patch.c", "-DV=1"))
    assert "patch 7 is not there" in refused("revert", running.pid, 7)
    psu_bin("revert", running.pid, 1)
    assert "no patch" in refused("revert", running.pid, 1)
    running.expect("^version 0$", reject="")   # going back, two calls in a row may differ


def test_code_on_a_stack_that_cannot_be_executed(lab):
    """A nested function whose address is taken is reached through code that its function writes on the stack."""
    (lab.folder / "nested.c").write_text("""
        extern void (*volatile out)(int (*)(void));
        void job(int n) { int inside(void) { return n; } if (out) out(inside); }""")
    subprocess.run(["gcc", "-O2", "-g0", "-c", "nested.c"], cwd=lab.folder, check=True)
    running = lab.start(lab.program("inprogress"))
    running.expect("ready")
    ran = psu_bin("attach", running.pid, lab.folder / "nested.o", check=False)
    assert ran.status == 1 and "needs a stack that can be executed" in ran.err and ran.err.count("\n") == 1, ran.err


def test_a_label_of_the_program_is_not_taken_for_a_function(lab):
    (lab.folder / "main.c").write_text("""
        #include <stdio.h>
        int bare(int x);
        __asm__(".text\\n.globl bare\\nbare: ret\\n");
        __attribute__((noipa)) int whole(int x) { return x; }
        int main(void) { puts("ready"); fflush(stdout); return getchar() + whole(1) + bare(2); }""")
    (lab.folder / "p.c").write_text("int bare(int x) { return 3; } int whole(int x) { return 4; }")
    for command in (["gcc", "-O2", "main.c", "-o", "main"], ["gcc", "-O2", "-c", "p.c"]):
        subprocess.run(command, cwd=lab.folder, check=True)
    running = lab.start(psu_bin("instrument", lab.folder / "main", "--json").json["output"], env={"PSU_AGENT": "start"})
    running.expect("ready")
    ran = psu_bin("attach", running.pid, lab.folder / "p.o", check=False)
    assert ran.status == 1 and "bare is a label without the type of a function" in ran.err, ran.err
