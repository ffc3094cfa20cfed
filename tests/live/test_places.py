"""Where programs run: another C library, another PID namespace, another root, a deleted file, an agent on request."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import LIBRARIES, LOADER, MACHINE, WAIT, psu_bin, updates
from updating import Versions

LAST = updates(100) + 2
# Without -fPIC a patch can name data of a library that the program has no copy of: on x86-64 such an instruction is rewritten,
# on AArch64 it is one half of a pair, and refused.
NO_PIC = {"x86_64": [["-fno-pic"]], "aarch64": []}[MACHINE]


def patched(lab, running, pid, v):
    result = psu_bin("attach", pid, lab.patch("spin", "patch.c", f"-DV={v}"), "--json").json
    running.expect(f"^version {v}$")
    return result


@pytest.mark.skipif(not shutil.which("musl-gcc"), reason="musl-gcc is not installed")
def test_a_musl_program(lab):
    running = lab.start(lab.program("spin", cc="musl-gcc"), 2)
    running.expect("^version 0$")
    for v in (1, 2):
        assert patched(lab, running, running.pid, v)["threads_stopped"] == 0
    Versions(lab, "spin").run(running.pid, 3, LAST)
    running.expect(f"^version {LAST}$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$", reject="")


def descendant(pid):
    """The process that runs under `unshare`."""
    while True:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")
def test_a_process_in_a_pid_namespace_with_another_root(lab):
    program = lab.program("spin")
    root = lab.folder / "root"
    for path in [LOADER, f"{LIBRARIES}/libc.so.6"]:
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])
    shutil.copy(program, root)
    # Without /proc the dynamic linker does not know $ORIGIN: the shim goes where it looks anyway (docs/install.md).
    shutil.copy(program.with_name("libpsu_shim.so"), root / LIBRARIES[1:])
    if subprocess.run(["unshare", "-pf", "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    running = lab.start("unshare", "-pf", "--kill-child", "chroot", root, "/main.psu", 2)
    running.expect("^version 0$")
    inside = descendant(running.pid)
    status = psu_bin("status", inside, "--json").json
    assert status["modules"][0]["path"].endswith("/main.psu")
    assert status["agent"] is not None
    for v in (1, 2):
        assert patched(lab, running, inside, v)["threads_stopped"] == 0
    Versions(lab, "spin").run(inside, 3, LAST)
    running.expect(f"^version {LAST}$")
    psu_bin("wait", inside, "--timeout", WAIT)


@pytest.mark.skipif(not os.path.exists(LOADER), reason="another dynamic linker")
def test_a_program_that_is_an_argument_of_the_dynamic_linker(lab):
    running = lab.start(LOADER, lab.program("state", sources=("main.c", "other.c")))
    running.expect("^worker v0")
    psu_bin("attach", running.pid, lab.patch("state", "patch1/main.c"))      # uses a thread-local variable
    running.expect("^worker v1 .* thread [56]")


def test_a_deleted_file_does_not_matter(lab):
    program = lab.program("spin")
    running = lab.start(program, 2)
    running.expect("^version 0$")
    program.unlink()
    patched(lab, running, running.pid, 1)


def test_agent_at_start_up_or_never(lab):
    program = lab.program("single")
    early = lab.start(program, "wait", env={"PSU_AGENT": "start"})
    early.expect("ready")
    assert psu_bin("status", early.pid, "--json").json["agent"] is not None
    patch = lab.patch("single", "patch.c", "-DV=1")
    assert psu_bin("attach", early.pid, patch, "--json").json["threads_stopped"] == 0
    never = lab.start(lab.program("spin", out="threads"), 2, env={"PSU_AGENT": "never"})
    never.expect("^version 0$")
    assert psu_bin("status", never.pid, "--json").json["agent"] is None


def test_several_patches_in_one_transaction(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    (lab.folder / "one.c").write_text("int second_value(void); int first(void) { return second_value(); }")
    (lab.folder / "two.c").write_text("int second_value(void) { return 7; } int second(void) { return second_value(); }")
    for name in ("one", "two"):
        subprocess.run(["gcc", "-O2", "-c", f"{name}.c"], cwd=lab.folder, check=True)
    result = psu_bin("attach", running.pid, lab.folder / "one.o", lab.folder / "two.o", "--json").json
    assert sorted(result["functions"])[:2] == ["first", "second"]
    running.expect("^version 7$")
    psu_bin("revert", running.pid, "--wait", "--timeout", WAIT)
    running.expect("^version 0$", reject="")


def test_reverting_out_of_order_keeps_the_later_version(lab):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    for v in (1, 2, 3):
        patched(lab, running, running.pid, v)
    assert psu_bin("revert", running.pid, 2, "--json").json["functions"] == []
    assert sorted(psu_bin("revert", running.pid, "--json").json["functions"]) == ["first", "second"]
    running.expect("^version 1$", reject="")


def test_a_lost_copy_is_told_and_nothing_changes(lab, runtime_directory):
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    for v in (1, 2):
        patched(lab, running, running.pid, v)
    shutil.rmtree(runtime_directory / "psu-bin")
    ran = psu_bin("revert", running.pid, check=False)
    assert ran.status == 1 and "copy of patch 1 is lost" in ran.err
    running.fresh()
    psu_bin("revert", running.pid, "--original")
    running.expect("^version 0$", reject="version 1")


def test_library_functions_resolve_as_the_dynamic_linker_would(lab):
    """memcpy and strlen are IFUNCs, qsort has versions, environ is data of the C library, malloc may be anybody's."""
    source = lab.folder / "patch.c"
    source.write_text("""
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <string.h>
        #include <stdio.h>
        #include <unistd.h>
        extern char **environ;
        static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
        int second(void) { return 5; }
        int first(void) {
            static int done;
            if (done) return 5;
            char *text = malloc(100);
            memcpy(text, "abcdefgh", 9);
            int v[3] = {3, 1, 2};
            qsort(v, 3, sizeof *v, compare);
            void *(*volatile copy)(void *, const void *, size_t) = memcpy;
            copy(text + strlen(text), "x", 2);
            fprintf(stdout, "library %s %d%d%d %d %s\\n", text, v[0], v[1], v[2], environ != 0, strcmp(text, "abcdefghx") ? "ERROR" : "");
            fflush(stdout);
            free(text);
            done = 1;
            return 5;
        }""")
    for flags in (["-fPIC"], *NO_PIC, ["-fPIE", "-fno-plt"], ["-O0"], ["-fno-builtin", "-O1"]):
        running = lab.start(lab.program("spin", *(["-no-pie"] if "-fno-pic" in flags else [])), 2)
        running.expect("^version 0$")
        subprocess.run(["gcc", "-O2", *flags, "-c", "patch.c"], cwd=lab.folder, check=True)
        psu_bin("attach", running.pid, lab.folder / "patch.o")
        running.expect("^library abcdefghx 123 1 $")
        running.expect("^version 5$")
        running.stop()
