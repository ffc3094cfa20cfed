"""Who may attach, and what psu-bin says to those who may not: one line, with what to do."""

import contextlib
import ctypes
import importlib
import os
import pickle
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import MACHINE, PATIENCE, psu_bin, updates
from updating import Versions

from psu_bin.attach import status
from psu_bin.attach.revert import revert
from psu_bin.attach.transaction import attach
from psu_bin.errors import PsuError

USER = 12345
NR_PTRACE = {"x86_64": 101, "aarch64": 117}[MACHINE]
NR_SECCOMP_FILTER, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP, CAP_SYS_PTRACE = 2, 38, 22, 24, 19
libc = ctypes.CDLL(None, use_errno=True)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")


def in_a_child(prepare, work):
    """work() in a fork of this process, after prepare(): its result, or the PsuError that it ended with.

    The modules are there already: another user may not read this Python's files."""
    for name in ("commit", "revert", "system_call", "seccomp", "borrow", "copies"):
        importlib.import_module(f"psu_bin.attach.{name}")
    for name in ("link", "borrow", "calls"):
        importlib.import_module(f"psu_bin.arch.{MACHINE}_{name}")
    importlib.import_module("psu_bin.attach.system_call")._binding()
    importlib.import_module("ptrace.error")
    answer, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        result = RuntimeError("the child failed")
        try:
            prepare()
            result = work()
        except BaseException as e:      # noqa: BLE001
            result = e
        os.write(tell, pickle.dumps(str(result) if isinstance(result, PsuError) else repr(result)))
        os._exit(0)
    os.close(tell)
    with os.fdopen(answer, "rb") as f:
        text = f.read()
    os.waitpid(pid, 0)
    return pickle.loads(text)


def become(uid):
    def prepare():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    return prepare


@pytest.fixture
def open_lab(lab):
    """A lab that every user can read, and a runtime directory that is nobody's."""
    for d in (lab.folder, *lab.folder.parents):
        with contextlib.suppress(OSError):
            if d.stat().st_uid == os.geteuid() and len(d.parts) > 2:
                d.chmod(0o755)
    yield lab
    shutil.rmtree(f"/tmp/psu-bin-{USER}", ignore_errors=True)


def start(lab, *before):
    program = lab.program("moments")
    running = lab.start(*before, program) if before else lab.start(program)
    running.expect("^version 0$")
    return running


def as_user(pid, v, versions, last=None):
    """Version v, or the versions v to last, by another user: the number of the last patch, or why not."""
    def work():
        os.environ.pop("XDG_RUNTIME_DIR")
        return [attach(pid, (path,)).patch for path in paths][-1]
    paths = versions.objects(v, last or v)
    return in_a_child(become(USER), work)


def test_another_users_process(open_lab):
    running = start(open_lab)
    said = as_user(running.pid, 1, Versions(open_lab, "moments"))
    assert "may not be traced: it belongs to user 0, you are 12345 (run psu-bin as that user or as root)" in said
    assert "\n" not in said


def test_setuid_after_the_start(open_lab):
    """Root may attach before and after; the user may not as long as the kernel says that the process is not dumpable."""
    running = start(open_lab)
    versions = Versions(open_lab, "moments")
    versions.attach(running.pid, 1)
    running.expect("^version 1$")
    running.say(f"setuid {USER} {USER}")
    running.expect("^setuid 0$")
    last = updates(100)
    versions.run(running.pid, 2, last)
    running.expect(f"^version {last}$")
    said = as_user(running.pid, last + 1, versions)
    assert "not dumpable or has capabilities that you lack (run psu-bin as root" in said
    running.say("dumpable 1")
    running.expect("^dumpable 0$")
    assert as_user(running.pid, last + 2, versions) == str(last + 1)     # the number of the patch
    running.expect(f"^version {last + 2}$", reject=f"version {last + 1}")
    agent = status.read(running.pid).agent
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{running.pid}/task/{agent}/status").read_text().splitlines())
    assert fields["Uid"].split() == [str(USER)] * 4 and int(fields["CapEff"], 16) == 0


def test_a_program_of_another_group(open_lab):
    running = start(open_lab)
    running.say(f"setuid {USER} 0")
    running.expect("^setuid 0$")
    running.say("dumpable 1")
    running.expect("^dumpable 0$")
    said = as_user(running.pid, 1, Versions(open_lab, "moments"))
    assert "may not be traced: its group is 0, yours is 12345 (run psu-bin with that group, or as root)" in said


def test_a_program_that_is_not_dumpable(open_lab):
    running = start(open_lab, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
    versions = Versions(open_lab, "moments")
    part = updates(50)
    assert as_user(running.pid, 1, versions, part) == str(part)
    running.say("dumpable 0")
    running.expect("^dumpable 0$")
    assert "not dumpable" in as_user(running.pid, part + 1, versions)
    versions.run(running.pid, part + 2, 2 * part)
    running.expect(f"^version {2 * part}$", reject=f"version {part + 1}")
    running.say("dumpable 1")
    running.expect("^dumpable 0$")
    last = 3 * part
    assert as_user(running.pid, 2 * part + 1, versions, last) == str(last - 1)      # one was refused
    running.expect(f"^version {last}$")


def test_without_the_capability(open_lab):
    """Root without CAP_SYS_PTRACE is as good as another user for a process that has capabilities."""
    running = start(open_lab)
    path = Versions(open_lab, "moments").object(1)

    def prepare():
        head = (ctypes.c_uint32 * 2)(0x20080522, 0)
        data = (ctypes.c_uint32 * 6)()
        assert libc.capget(head, data) == 0
        data[0] &= ~(1 << CAP_SYS_PTRACE)
        data[1] &= ~(1 << CAP_SYS_PTRACE)
        assert libc.capset(head, data) == 0
    said = in_a_child(prepare, lambda: attach(running.pid, (path,)).patch)
    assert "not dumpable or has capabilities that you lack (run psu-bin as root (CAP_SYS_PTRACE))" in said


def test_a_sandbox_around_psu_bin(open_lab):
    running = start(open_lab)
    path = Versions(open_lab, "moments").object(1)

    def prepare():
        import struct
        # ptrace fails with EPERM, process_vm_readv works
        rows = [(0x20, 0, 0, 0), (0x15, 0, 1, NR_PTRACE), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
        code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *r) for r in rows))
        head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(rows), ctypes.addressof(code)))
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, NR_SECCOMP_FILTER, head, 0, 0) == 0
    said = in_a_child(prepare, lambda: attach(running.pid, (path,)).patch)
    assert "a seccomp filter of this session forbids ptrace (run psu-bin outside the sandbox" in said


def test_yama(open_lab):
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if not scope.exists():
        pytest.skip("the kernel has no Yama")
    before = scope.read_text()
    try:
        scope.write_text("1")
    except OSError:
        pytest.skip("kernel.yama.ptrace_scope cannot be set here")
    try:
        running = start(open_lab, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups")
        assert "kernel.yama.ptrace_scope is 1 (run psu-bin as root, or set it to 0)" in \
            as_user(running.pid, 1, Versions(open_lab, "moments"))
    finally:
        scope.write_text(before)


def test_a_debugger_holds_the_process(open_lab):
    if not shutil.which("gdb"):
        pytest.skip("gdb is not installed")
    running = start(open_lab)
    versions = Versions(open_lab, "moments")
    gdb = subprocess.Popen(["gdb", "-nx", "-q", "-p", str(running.pid)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        gdb.stdin.write("echo here\\n\n")
        gdb.stdin.flush()
        while "here" not in gdb.stdout.readline():
            pass
        ran = psu_bin("attach", running.pid, versions.object(1), check=False)
        assert ran.status == 1 and ran.err.count("\n") == 1
        assert f"is being traced already by gdb (process {gdb.pid})" in ran.err
        gdb.stdin.write("quit\n")
        gdb.stdin.flush()
        gdb.wait(timeout=PATIENCE)
    finally:
        gdb.kill()
        gdb.wait()
    versions.attach(running.pid, 2)
    running.expect("^version 2$", reject="version 1")


def test_strace_holds_the_threads(open_lab):
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    running = start(open_lab)
    versions = Versions(open_lab, "moments")
    strace = subprocess.Popen(["strace", "-f", "-p", str(running.pid), "-o", "/dev/null"], stderr=subprocess.PIPE, text=True)
    try:
        assert "attached" in strace.stderr.readline()
        ran = psu_bin("attach", running.pid, versions.object(1), check=False)
        assert ran.status == 1
        assert f"is being traced already by strace (process {strace.pid}) (wait for it, or detach it)" in ran.err
        strace.send_signal(signal.SIGINT)
        strace.wait(timeout=PATIENCE)
    finally:
        strace.kill()
        strace.wait()
    versions.attach(running.pid, 2)
    running.expect("^version 2$", reject="version 1")


def test_a_full_tmp(open_lab):
    """For the program and for psu-bin, which would keep the copies there."""
    program = open_lab.program("moments")
    script = ("mount --bind $1 /mnt; mount -t tmpfs -o size=16k none /tmp; cat /dev/zero > /tmp/full || :; "
              "if echo more > /tmp/more; then echo ERROR /tmp; exit 7; fi; exec /mnt/main.psu")
    command = ["unshare", "-m", "--propagation", "private"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("namespaces cannot be made here")
    running = open_lab.start(*command, "sh", "-ec", f"{{ {script}; }} 2> /dev/null", "sh", program.parent)
    running.expect("^version 0$")
    versions = Versions(open_lab, "moments")
    versions.attach(running.pid, 1)         # from outside; and no module is imported later
    running.expect("^version 1$")
    names = [path.name for path in versions.objects(2, 101)]
    there = os.open(f"/proc/{running.pid}/ns/mnt", os.O_RDONLY)

    def prepare():
        assert libc.setns(there, 0) == 0
        os.environ["XDG_RUNTIME_DIR"] = "/tmp"

    def work():
        return {w.split(": ", 1)[1][:65] for n in names for w in attach(running.pid, (Path("/mnt", n),)).warnings}
    assert in_a_child(prepare, work) == "{'no copy of the patch could be kept: No space left on device: no l'}"
    running.expect("^version 101$")
    os.close(there)


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_no_room_for_the_copy(open_lab, how):
    """A small tmpfs, filled or read-only, in a mount namespace of psu-bin's own, where the copies of patch objects go."""
    running = start(open_lab)
    place = open_lab.folder / "small"
    place.mkdir()
    versions = Versions(open_lab, "moments")
    path = versions.object(1)

    def prepare():
        if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
            raise OSError(ctypes.get_errno(), "unshare")
        if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=8k"):
            raise OSError(ctypes.get_errno(), "mount")
        os.environ["XDG_RUNTIME_DIR"] = str(place)
        if how == "full":
            with contextlib.suppress(OSError), open(place / "full", "wb") as f:
                f.write(b"x" * 65536)
        elif libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0x21, None):
            raise OSError(ctypes.get_errno(), "mount")
    paths = versions.objects(101, 200)

    def work():
        said = attach(running.pid, (path,)).warnings
        return said, {len(attach(running.pid, (p,)).warnings) for p in paths}
    said = in_a_child(prepare, work)
    if "unshare" in said or "'mount'" in said:
        pytest.skip("namespaces cannot be made here")
    words = {"full": "No space left on device", "read-only": "Read-only file system"}
    assert f"no copy of the patch could be kept: {words[how]}: no later revert can go back to it (make room" in said
    assert said.endswith(", {1})"), said        # each of the others was told, too
    running.expect("^version 200$")
    # That very version cannot come back, everything else can.
    versions.attach(running.pid, 2)
    running.expect("^version 2$", reject="")
    with pytest.raises(PsuError, match="copy of patch 101 is lost"):
        revert(running.pid, None)
    versions.attach(running.pid, 3)
    running.expect("^version 3$")
    revert(running.pid, None)
    running.expect("^version 2$", reject="")
    revert(running.pid, None, original=True)
    running.expect("^version 0$", reject="")
