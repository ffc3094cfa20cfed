"""Where there is little: no address space, no file system that can be written, only what a container has."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import updating
from conftest import LIBRARIES, LOADER, ROOT, WAIT, layout, psu_bin, updates
from updating import Versions

from psu_bin.attach import status
from psu_bin.attach.transaction import attach
from psu_bin.errors import PsuError

PAGE = os.sysconf("SC_PAGE_SIZE")
UPDATES = updates(100)
MOST = 400                 # pages that an attach may need, at the most
USED = {resource.RLIMIT_AS: "VmSize", resource.RLIMIT_DATA: "VmData"}
LIMITS = pytest.mark.parametrize("limit", [pytest.param(limit, id=name) for limit, name in USED.items()])
UPDATING = Path(updating.__file__)
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make namespaces")


# Wants memory of every kind: code, constants, variables, a stub of its own, and a name of the C library.
MUCH = """
    #include <stdlib.h>
    #include <string.h>
    static char large[20000];
    static const char text[20000] = "constant";
    static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
    int first(void)
    {
        int v[] = {2, 1};
        qsort(v, 2, sizeof *v, compare);
        memcpy(large, text, v[0]);
        return v[0] * !large[9];
    }
    int second(void) { return first(); }
"""


def used(pid, limit):
    """Bytes that count against the limit."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith(USED[limit] + ":"))
    return int(line.split()[1]) * 1024


@LIMITS
def test_no_memory_for_a_patch_at_any_point(lab, limit):
    """With a page more each time until it is enough: refused, and everything is as it was, then everything is there."""
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    (lab.folder / "much.c").write_text(MUCH)
    subprocess.run(["gcc", "-O2", "-c", "much.c"], cwd=lab.folder, check=True)
    before = layout(running.pid)
    small, refused = used(running.pid, limit), 0
    for pages in range(MOST):
        resource.prlimit(running.pid, limit, (small + pages * PAGE, resource.RLIM_INFINITY))
        try:
            attach(running.pid, (lab.folder / "much.o",))
        except PsuError as e:
            refused += 1
            assert "ENOMEM" in str(e), e
            assert layout(running.pid) == before, pages
            assert status.read(running.pid).patches == ()
        else:
            break
    assert refused >= 4
    running.expect("^version 1$")
    # Too little, then enough, again and again.
    versions = Versions(lab, "spin")
    for v in range(2, UPDATES + 2):
        resource.prlimit(running.pid, limit, (used(running.pid, limit), resource.RLIM_INFINITY))
        with pytest.raises(PsuError, match="ENOMEM"):
            versions.attach(running.pid, v)
        resource.prlimit(running.pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        versions.attach(running.pid, v)
    running.expect(f"^version {UPDATES + 1}$")


@LIMITS
def test_no_memory_for_a_revert(lab, limit):
    """What brings the original back needs hardly any; a version whose memory is gone needs as much as an attach."""
    running = lab.start(lab.program("spin"), 2)
    running.expect("^version 0$")
    versions = Versions(lab, "spin")
    versions.run(running.pid, 1, 2)
    running.expect("^version 2$")
    psu_bin("wait", running.pid, "--timeout", WAIT)
    resource.prlimit(running.pid, limit, (used(running.pid, limit), resource.RLIM_INFINITY))
    before = layout(running.pid)
    ran = psu_bin("revert", running.pid, check=False)
    assert ran.status == 1 and "ENOMEM" in ran.err and ran.err.count("\n") == 1
    assert layout(running.pid) == before
    resource.prlimit(running.pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    psu_bin("revert", running.pid)
    running.expect("^version 1$", reject="version 0")


@LIMITS
def test_no_memory_for_the_agent(lab, limit):
    running = lab.start(lab.program("single"), "wait")
    running.expect("ready")
    resource.prlimit(running.pid, limit, (used(running.pid, limit), resource.RLIM_INFINITY))
    patch = lab.patch("single", "patch.c", "-DV=1")
    ran = psu_bin("attach", running.pid, patch, check=False)
    assert ran.status == 1 and "could not make a thread: E" in ran.err and "limit on threads or memory" in ran.err
    assert running.alive() and len(os.listdir(f"/proc/{running.pid}/task")) == 1
    resource.prlimit(running.pid, limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert psu_bin("attach", running.pid, patch, "--json").json["threads_stopped"] == 1


def in_namespace(script, *arguments):
    """A command for a shell in a mount namespace of its own; "$@" are the arguments."""
    return ["unshare", "-m", "--propagation", "private", "sh", "-ec", script, "sh", *map(str, arguments)]


def elsewhere(command, pid, objects):
    """What updating.py says when `command` starts it to attach all the objects."""
    command = [*command, sys.executable, UPDATING, pid, *objects]
    ran = subprocess.run([*map(str, command)], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert len(re.findall("^patch ", ran.stdout, re.M)) == len(objects)
    return ran.stdout


@ROOT_ONLY
def test_nothing_can_be_written_anywhere(lab, monkeypatch):
    """psu-bin and the program both see every file system read-only."""
    if subprocess.run(in_namespace("mount -o remount,bind,ro /"), capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    everything = ("awk '$5 != \"/proc\" && $5 !~ \"^/(proc|sys|dev)/\" {print $5}' /proc/self/mountinfo | "
                  "while read m; do mount -o remount,bind,ro $m 2>/dev/null || :; done; "
                  "if touch /tmp/psu-writable 2>/dev/null; then rm /tmp/psu-writable; echo ERROR /tmp; exit 7; fi; "
                  "if touch /run/psu-writable 2>/dev/null; then rm /run/psu-writable; echo ERROR /run; exit 7; fi; "
                  'exec "$@"')
    running = lab.start(*in_namespace(everything, lab.program("spin"), 2))
    running.expect("^version 0$")
    patch = lab.patch("spin", "patch.c", "-DV=1")
    ran = subprocess.run(in_namespace(everything, sys.executable, "-m", "psu_bin", "attach", running.pid, patch),
                         cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no copy of the patch could be kept: Read-only file system" in ran.stderr
    running.expect("^version 1$")
    told = elsewhere(in_namespace(everything), running.pid, Versions(lab, "spin").objects(2, UPDATES + 1))
    assert told.count("no copy of the patch could be kept: Read-only file system") == UPDATES
    running.expect(f"^version {UPDATES + 1}$")


def container(lab, *more):
    """A program with a root, mounts and process numbers of its own, not seen from the host; its pid there."""
    program = lab.program("spin")
    root = lab.folder / "root"
    root.mkdir()
    script = (f"mount -t tmpfs none $1; cd $1; mkdir -p lib64 .{LIBRARIES} proc; mount -t proc none proc; "
              f"cp -L {LOADER} .{LOADER}; cp -L {LIBRARIES}/libc.so.6 .{LIBRARIES}; cp $2 $3 .; "
              "exec chroot . /main.psu 2")
    command = ["unshare", "-mpf", "--propagation", "private", "--kill-child", "sh", "-ec", script, "sh", str(root),
               str(program), str(program.with_name("libpsu_shim.so"))]
    if subprocess.run(["unshare", "-mpf", "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    running = lab.start(*command)
    running.expect("^version 0$")
    assert not (root / "main.psu").exists()
    return running, int(Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0])


@ROOT_ONLY
def test_a_process_in_a_container(lab):
    running, inside = container(lab)
    assert psu_bin("status", inside, "--json").json["modules"][0]["path"].endswith("/main.psu")
    for v in (1, 2):
        patch = lab.patch("spin", "patch.c", f"-DV={v}")
        assert psu_bin("attach", inside, patch, "--json").json["threads_stopped"] == 0
        running.expect(f"^version {v}$")
    Versions(lab, "spin").run(inside, 3, UPDATES + 2)
    running.expect(f"^version {UPDATES + 2}$")
    psu_bin("wait", inside, "--timeout", WAIT)
    psu_bin("revert", inside)
    running.expect(f"^version {UPDATES + 1}$", reject="version 0")
    # Another build in its place, there and not here.
    other = lab.program("spin", "-DOTHER=1", "-O1", out="other")
    root = Path(f"/proc/{inside}/root")
    (root / "main.psu").unlink()
    shutil.copy(other, root / "main.psu")
    ran = psu_bin("attach", inside, patch, check=False)
    assert ran.status == 1 and "was replaced on disk since the process started" in ran.err


@ROOT_ONLY
@pytest.mark.skipif(not shutil.which("nsenter"), reason="nsenter is not installed")
def test_psu_bin_in_the_same_container(lab):
    """Process numbers mean what they mean there."""
    if subprocess.run(["unshare", "-mpf", "--mount-proc", "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    program = lab.program("spin")
    running = lab.start("unshare", "-mpf", "--mount-proc", "--kill-child", program, 2)
    running.expect("^version 0$")
    inside = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()[0]
    for v in (1, 2):
        patch = lab.patch("spin", "patch.c", f"-DV={v}")
        command = ["nsenter", "-t", inside, "-m", "-p", sys.executable, "-m", "psu_bin", "attach", "1", patch]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}      # nsenter goes to the root folder
        ran = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        running.expect(f"^version {v}$")
    elsewhere(["nsenter", "-t", inside, "-m", "-p"], 1, Versions(lab, "spin").objects(3, UPDATES + 2))
    running.expect(f"^version {UPDATES + 2}$")


def test_a_plain_chroot(lab):
    if os.geteuid():
        pytest.skip("needs root")
    program = lab.program("spin")
    root = lab.folder / "jail"
    for path in (LOADER, f"{LIBRARIES}/libc.so.6"):
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / path[1:])
    shutil.copy(program, root)
    shutil.copy(program.with_name("libpsu_shim.so"), root / LIBRARIES[1:])
    running = lab.start("chroot", root, "/main.psu", 2)
    running.expect("^version 0$")
    versions = Versions(lab, "spin")
    versions.run(running.pid, 1, UPDATES)
    running.expect(f"^version {UPDATES}$")
    psu_bin("revert", running.pid)
    running.expect(f"^version {UPDATES - 1}$", reject="version 0")


# Patch objects of one function each, which are alike but for its name.
MANY = 1100
EACH = "int f0000(int x) { return x + 1000; }\n"


def objects(folder: Path, names: list[str]) -> list[Path]:
    (folder / "each.c").write_text(EACH)
    subprocess.run(["gcc", "-O2", "-g", "-c", "each.c"], cwd=folder, check=True)
    data = (folder / "each.o").read_bytes()
    out = []
    for n in names:
        path = folder / f"{n}.o"
        path.write_bytes(data.replace(b"f0000", n.encode()).replace(b"each.c", f"{n}.c"[-6:].encode()))
        out.append(path)
    return out


def test_many_objects_at_once(lab):
    """All of them in one transaction; more than psu-bin can take back are refused, with what to do instead."""
    names = [f"f{i:04}" for i in range(MANY)]
    (lab.folder / "functions.c").write_text("".join(f"int {n}(int x) {{ return x + {i % 7}; }}\n" for i, n in enumerate(names)))
    (lab.folder / "main.c").write_text(
        "#include <stdio.h>\n#include <unistd.h>\n" + "".join(f"int {n}(int);\n" for n in names)
        + "int main(void)\n{\n    for (;;) {\n        long sum = 0;\n" + "".join(f"        sum += {n}(0);\n" for n in names)
        + '        printf("sum %ld\\n", sum);\n        fflush(stdout);\n        usleep(20000);\n    }\n}\n')
    subprocess.run(["gcc", "-O1", "main.c", "functions.c", "-o", "main"], cwd=lab.folder, check=True)
    psu_bin("instrument", lab.folder / "main")
    running = lab.start(lab.folder / "main.psu")
    plain = sum(i % 7 for i in range(MANY))
    running.expect(f"^sum {plain}$")
    patches = objects(lab.folder, names)
    before = layout(running.pid)
    ran = psu_bin("attach", running.pid, *patches, check=False)
    assert ran.status == 1 and "pieces of memory at once" in ran.err and "1024" in ran.err and "ld -r" in ran.err and ran.err.count("\n") == 1, ran.err
    assert layout(running.pid)[:len(before)] == before or status.read(running.pid).patches == ()
    some = MANY // 3
    psu_bin("attach", running.pid, *patches[:some])
    running.expect(f"^sum {plain - sum(i % 7 for i in range(some)) + 1000 * some}$")
    psu_bin("revert", running.pid, "--wait", "--timeout", WAIT)
    running.expect(f"^sum {plain}$")
