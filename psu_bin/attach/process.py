"""One live process, seen through /proc and the memory system calls: Process.

Reading and writing need no stopped thread: process_vm_readv and process_vm_writev copy while the target runs.  They
respect page protections (unlike /proc/PID/mem, which forces its way into read-only pages).  Nothing here attaches:
see tracing.py.

Linux shows a process' memory, and what else its threads share, through one of them: /proc/PID is the first one.  When that
has left by pthread_exit(3) while others go on, all of it is empty there, and we look through another thread.

Addresses are run-time addresses of the target, sizes bytes, pids as this process' PID namespace numbers them.
"""

from __future__ import annotations

import bisect
import contextlib
import ctypes
import errno
import io
import os
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from psu_bin.attach import proc
from psu_bin.attach.proc import Mapping
from psu_bin.errors import PsuError

PAGE = os.sysconf("SC_PAGE_SIZE")     # of this kernel, which is the target's, too: 4, 16 or 64 KiB
AT_RANDOM = 25             # getauxval(3)
DECIDED_AFTER = 1.0        # seconds between the end of a program's memory and that of the process, or the new program
OTHERS = 16                # threads that end one after another while we look through them
MOST_READ = 1 << 28        # bytes at once; the largest things there are, descriptors, have a few MiB

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


for _call in (_libc.process_vm_readv, _libc.process_vm_writev):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [ctypes.c_int, ctypes.POINTER(_Iovec), ctypes.c_ulong,
                      ctypes.POINTER(_Iovec), ctypes.c_ulong, ctypes.c_ulong]


@dataclass(frozen=True)
class Thread:
    tid: int              # in this process' PID namespace
    own_tid: int          # in the target's own
    state: str            # R S D T t Z X


class Unreadable(PsuError):
    """There is no memory at the address, or none that can be had."""


class Process:
    """The process `pid`.  Raises PsuError when there is none, it is dead, or its memory may not be read."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.where = f"process {pid}"
        self.lost = False      # the thread that we traced is gone: what lies at our addresses may be another program
        self._through = pid    # the thread that shows what all of them share
        self.start_time = self._alive()
        self._instance = self._read_instance()

    def _alive(self) -> int:
        """The start time (clock ticks since boot) that tells this process from a later one with its number."""
        try:
            stat = proc.stat(proc.read(f"/proc/{self.pid}/stat"), f"/proc/{self.pid}/stat")
        except OSError as e:
            raise PsuError(self.where, "there is no such process") from e
        status = self.status()
        if status.get("Tgid") != str(self.pid):
            raise PsuError(self.where, f"is a thread of process {status.get('Tgid')}", "give the number of the process")
        if not self._shows(self._through) and not self._look_through_another():
            if stat.state in "ZX":
                raise PsuError(self.where, "has ended already: it is a zombie",
                               "its parent has not collected it yet")
            if status.get("Kthread") == "1" or not os.path.exists(self.path("exe")):
                raise PsuError(self.where, "is a kernel thread")
        return stat.start_time

    def path(self, name: str) -> str:
        """The file `name` in /proc of what all threads share: their memory, descriptors, namespaces, control groups."""
        return f"/proc/{self.pid}/{name}" if self._through == self.pid else f"/proc/{self.pid}/task/{self._through}/{name}"

    def _look_through_another(self) -> bool:
        """After the one so far showed nothing: whether there is another thread that shows the memory.

        The first in the list began first, and is the most likely to stay: the agent, more often than not.  A thread that just
        ends has no memory before it is a zombie."""
        for tid in map(int, self.thread_names()):
            if tid != self._through and self._shows(tid):
                self._through = tid
                return True
        return False

    def _shows(self, tid: int) -> bool:
        try:
            return "VmSize" in proc.status(proc.read(f"/proc/{self.pid}/task/{tid}/status"))
        except OSError:
            return False

    def _open(self, name: str) -> io.BufferedReader:
        """The file path(name), through whichever thread shows it: one that has no memory any more shows an empty one, or none.

        Raises OSError."""
        try:
            f = open(self.path(name), "rb")
            if f.peek(1):
                return f
            f.close()
        except (FileNotFoundError, ProcessLookupError):
            if not self._look_through_another():
                raise
        else:
            self._look_through_another()
        return open(self.path(name), "rb")

    def alive(self) -> bool:
        """Whether this very process (not another with its number) still runs."""
        try:
            return self._alive() == self.start_time
        except PsuError:
            return False

    def _read_instance(self) -> bytes:
        """The 16 random bytes that the kernel gives to each program that it starts; empty where they cannot be read."""
        try:
            with self._open("auxv") as f:
                vector = f.read()
        except OSError:
            return b""
        at = dict(struct.iter_unpack("<QQ", vector[:len(vector) // 16 * 16])).get(AT_RANDOM, 0)
        buffer = ctypes.create_string_buffer(16)
        local, remote = _Iovec(ctypes.addressof(buffer), 16), _Iovec(at, 16)
        n = _libc.process_vm_readv(self._through, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
        return buffer.raw if n == 16 else b""

    def replaced(self) -> bool:
        """Whether the process has become another program (execve) since this object was made.

        Pid and start time stay the same then, and without randomisation so do addresses."""
        now = self._read_instance()
        return bool(now) and now != self._instance

    def gone(self) -> PsuError:
        """What became of a process that ended, or became another program, in the middle of our work."""
        deadline = time.monotonic() + DECIDED_AFTER
        while time.monotonic() < deadline:
            if not self.alive():
                return PsuError(self.where, "ended meanwhile")
            if self.replaced():
                return PsuError(self.where, "started another program meanwhile (exec)")
            time.sleep(0.001)
        return PsuError(self.where, "ended, or started another program, meanwhile")

    @contextlib.contextmanager
    def one_program(self) -> Iterator[None]:
        """For work that takes the process for one and the same program.  Where that ended or was replaced meanwhile, the error
        says so, and not what was odd about memory that suddenly was another's."""
        try:
            yield
        except Exception as e:      # words of two programs, taken for those of one, may make any
            if self.lost or self.replaced() or isinstance(e, PsuError) and not self.alive():
                raise self.gone() from e
            raise

    def status(self) -> dict[str, str]:
        """The fields of /proc/PID/status."""
        try:
            return proc.status(proc.read(f"/proc/{self.pid}/status"))
        except OSError as e:
            raise PsuError(self.where, "there is no such process") from e

    def maps(self) -> tuple[Mapping, ...]:
        """The memory map, ascending."""
        try:
            with self._open("maps") as f:
                text = f.read().decode("utf-8", "surrogateescape")
        except OSError as e:
            raise self.forbidden(e) from e
        if not text:
            raise self.gone()      # it has no memory any more, or not yet
        return proc.maps(text, self.path("maps"))

    def flagged(self, flag: str, starts: Collection[int]) -> set[int]:
        """Those of the mappings that start at `starts` which have a flag of /proc/PID/smaps.

        None of them where the kernel was built without that file."""
        try:
            with self._open("smaps") as lines:
                return proc.flagged(lines, flag, starts)
        except FileNotFoundError:
            return set()
        except OSError as e:
            raise self.forbidden(e) from e

    def threads(self) -> tuple[Thread, ...]:
        """The threads; those that end meanwhile are left out.  The first one stays when it has ended, in state Z."""
        return tuple(t for n in self.thread_names() if (t := self._thread(n)) is not None)

    def thread_names(self) -> list[str]:
        """The numbers of all threads, as the names of their folders in /proc."""
        try:
            return os.listdir(f"/proc/{self.pid}/task")
        except OSError as e:
            raise PsuError(self.where, "ended meanwhile") from e

    def thread(self, own_tid: int) -> Thread | None:
        """The thread that the target itself calls `own_tid`; state Z: as threads()."""
        # A process may have thousands: where its numbers are ours, too, there is no need to look at all of them.
        t = self._thread(str(own_tid))
        if t is not None and t.own_tid == own_tid:
            return t
        return next((t for t in self.threads() if t.own_tid == own_tid), None)

    def _thread(self, name: str) -> Thread | None:
        try:
            text = proc.read(f"/proc/{self.pid}/task/{name}/status")
        except OSError:
            return None  # ended since it was listed
        return thread_of(text, int(name), f"/proc/{self.pid}/task/{name}/status")

    def own_pid(self) -> int:
        """The process' number in its own PID namespace: what getpid() returns there."""
        return proc.number(self.status(), "NSpid", f"/proc/{self.pid}/status", default=str(self.pid))

    def file(self, path: str) -> str:
        """A name under which this process can open what maps calls `path`.

        The kernel shows paths as the reader sees them, as long as the reader can see them: in a plain chroot too, but not
        in a container, which has mounts of its own.  Those it shows from the top of that mount namespace, which is not
        where the process' root is when it made a chroot there."""
        try:
            apart = os.readlink(self.path("ns/mnt")) != os.readlink("/proc/self/ns/mnt")
        except OSError:
            apart = True
        if not apart:
            return path
        try:
            root = os.readlink(self.path("root")).rstrip("/")
        except OSError:
            root = ""
        inside = path[len(root):] if path.startswith(root + "/") else path
        return self.path("root") + inside

    # ---- memory --------------------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """`size` bytes at `address`.  Raises PsuError where the target has no readable memory there."""
        if not 0 <= size <= MOST_READ or not 0 <= address < 1 << 64:       # a number from damaged memory
            raise PsuError(self.where, f"memory cannot be read: {size:#x} bytes at {address:#x}")
        buffer = ctypes.create_string_buffer(size)
        self._transfer(_libc.process_vm_readv, buffer, address, size, "read")
        return buffer.raw

    def write(self, address: int, data: bytes) -> None:
        """Write `data` at `address`; the pages must be writable in the target."""
        buffer = ctypes.create_string_buffer(data, len(data))
        self._transfer(_libc.process_vm_writev, buffer, address, len(data), "written")

    def _transfer(self, call, buffer, address: int, size: int, verb: str) -> None:  # noqa: ANN001
        done, others = 0, OTHERS
        while done < size:
            if self.lost:
                raise self.gone()
            local = _Iovec(ctypes.addressof(buffer) + done, size - done)
            remote = _Iovec(address + done, size - done)
            n = call(self._through, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
            if n <= 0:
                code = ctypes.get_errno()
                if n < 0 and code in (errno.EPERM, errno.ENOSYS, errno.EACCES):
                    raise self.forbidden(OSError(code, os.strerror(code)))
                if n < 0 and code == errno.ESRCH:
                    if others and self._look_through_another():
                        others -= 1
                        continue
                    raise PsuError(self.where, "ended meanwhile")
                raise Unreadable(self.where, f"memory cannot be {verb}: {size:#x} bytes at {address:#x}")
            done += n

    def cstring(self, address: int, limit: int = PAGE) -> str:
        """The NUL-terminated string at `address`, cut at `limit` bytes."""
        out = b""
        while len(out) < limit:
            step = min(64, limit - len(out), PAGE - (address + len(out)) % PAGE)
            out += self.read(address + len(out), step)
            if b"\0" in out:
                break
        return out.split(b"\0")[0].decode("utf-8", "surrogateescape")

    def forbidden(self, cause: OSError) -> PsuError:
        """Why the kernel refuses access to this process, naming the setting (ptrace(2), PTRACE_MODE checks)."""
        if cause.errno in (errno.ENOENT, errno.ESRCH):
            return PsuError(self.where, "ended meanwhile")
        try:
            status = self.status()
            mine = proc.status(proc.read("/proc/self/status"))
        except (PsuError, OSError):
            return PsuError(self.where, "ended meanwhile")
        ptrace_capable = proc.number(mine, "CapEff", "/proc/self/status", base=16, default="0") >> 19 & 1
        uids = set(status.get("Uid", "").split()) or {"?"}
        if mine.get("Seccomp", "0") != "0" and (ptrace_capable or uids == {str(os.geteuid())}):
            return PsuError(self.where, "may not be traced: a seccomp filter of this session forbids ptrace",
                            "run psu-bin outside the sandbox, or allow ptrace and process_vm_readv in its profile")
        if not ptrace_capable and uids != {str(os.geteuid())}:
            owner = (status.get("Uid", "").split() or ["?"])[0]
            return PsuError(self.where, f"may not be traced: it belongs to user {owner}, you are {os.geteuid()}",
                            "run psu-bin as that user or as root")
        groups = set(status.get("Gid", "").split())
        if not ptrace_capable and groups != {str(os.getegid())}:
            return PsuError(self.where, f"may not be traced: its group is {', '.join(sorted(groups))}, yours is {os.getegid()}",
                            "run psu-bin with that group, or as root")
        scope = _yama_scope()
        if scope >= 3 or scope >= 1 and not ptrace_capable:
            return PsuError(self.where, f"may not be traced: kernel.yama.ptrace_scope is {scope}",
                            "run psu-bin as root, or set it to 0" if scope < 3 else
                            "tracing is off until the next boot")
        if not ptrace_capable:
            return PsuError(self.where, "may not be traced: it is not dumpable or has capabilities that you lack",
                            "run psu-bin as root (CAP_SYS_PTRACE)")
        return PsuError(self.where, f"may not be traced: {cause.strerror}",
                        "a security module or another user namespace forbids it")


def thread_of(status: str, tid: int, where: str) -> Thread:
    """The thread `tid` of this process' PID namespace that has this status; its own number is that of its own namespace."""
    fields = proc.status(status)
    if not fields.get("State"):
        raise PsuError(where, "is not what the kernel writes: no State")
    return Thread(tid, proc.number(fields, "NSpid", where, default=str(tid)), fields["State"][:1])


def _yama_scope() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return 0


def find_gap(maps: tuple[Mapping, ...], size: int, low: int, high: int, avoid: tuple[tuple[int, int], ...] = (),
             ) -> int | None:
    """The highest page-aligned address in [low, high) with `size` free bytes, or None.

    A page is left free on both sides, so that an overrun faults and kernel-merged mappings stay apart from the
    program's.  `avoid`: further (start, end) ranges that count as taken."""
    size = -(-size // PAGE) * PAGE
    taken = sorted([(m.start, m.end) for m in maps] + list(avoid))
    starts = [s for s, _ in taken]
    top = high
    while top - size >= low:
        at = (top - size) // PAGE * PAGE
        if at < low:
            return None
        # the last taken range that begins below the end of [at - PAGE, at + size + PAGE)
        i = bisect.bisect_left(starts, at + size + PAGE) - 1
        clash = max((e for s, e in taken[max(0, i - 8):i + 1] if e > at - PAGE), default=None)
        if clash is None:
            return at
        below = min(s for s, e in taken[max(0, i - 8):i + 1] if e > at - PAGE)
        top = below - PAGE
    return None
