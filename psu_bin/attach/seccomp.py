"""Whether the target's seccomp filters let the agent do its work, found out without trying.

Trying would be wrong: many filters end the process at the first system call that they do not know, and the agent's calls are
none of the program's.  So the filters are read (PTRACE_SECCOMP_GET_FILTER, which needs CAP_SYS_ADMIN) and run here on each call
that the agent makes.  A filter that cannot be read is taken for one that psu-bin runs under, too (a container's), if psu-bin has
as many; otherwise the target is left alone.

A filter is a classic BPF program over struct seccomp_data (linux/seccomp.h, linux/bpf_common.h); of several, the strictest
answer counts.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from typing import NamedTuple

from psu_bin.attach import proc
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError

PTRACE_SECCOMP_GET_FILTER = 0x420C
ALLOW, LOG, ERRNO = 0x7FFF0000, 0x7FFC0000, 0x00050000
KILL_PROCESS, KILL_THREAD, TRAP = 0x80000000, 0x00000000, 0x00030000
ACTION = 0xFFFF0000
_INSTRUCTION = struct.Struct("<HBBI")
_DATA = struct.Struct("<iIQ6Q")
_MASK = 0xFFFFFFFF
FILTERS_MAX = 256


class Call(NamedTuple):
    """A system call that the agent makes."""
    name: str
    number: int
    arguments: tuple[int, ...]
    vital: bool            # without it nothing can be attached; others may fail with an error number


def run(program: bytes, data: bytes) -> int:
    """The action that a BPF program returns for a packed seccomp_data.  Raises ValueError when it is not one."""
    code = list(_INSTRUCTION.iter_unpack(program))
    a = x = pc = 0
    memory = [0] * 16
    for _ in range(len(code)):               # jumps only go forward
        op, jt, jf, k = code[pc]
        pc += 1
        kind, source = op & 7, x if op & 8 else k
        if kind in (0, 1):                   # LD, LDX
            mode = op & 0xE0
            value = k if mode == 0 else memory[k] if mode == 0x60 else len(data) if mode == 0x80 else \
                struct.unpack_from("<I", data, k)[0]
            if kind:
                x = value
            else:
                a = value
        elif kind == 2:
            memory[k] = a
        elif kind == 3:
            memory[k] = x
        elif kind == 4:
            a = _arithmetic(op & 0xF0, a, source)
        elif kind == 5:
            test = op & 0xF0
            if test == 0:
                pc += k
            else:
                true = {0x10: a == source, 0x20: a > source, 0x30: a >= source, 0x40: bool(a & source)}[test]
                pc += jt if true else jf
        elif kind == 6:
            return a if op & 0x18 == 0x10 else k
        elif op & 0xF8:
            a = x
        else:
            x = a
    raise ValueError("the program has no end")


def _arithmetic(op: int, a: int, b: int) -> int:
    if op == 0x30:
        return a // b if b else 0
    results = {0x00: a + b, 0x10: a - b, 0x20: a * b, 0x40: a | b, 0x50: a & b, 0x60: a << (b & 31), 0x70: a >> (b & 31),
               0x80: -a, 0xA0: a ^ b}
    return results[op] & _MASK


def strictest(filters: Sequence[bytes], architecture: int, call: Call) -> int:
    """What the kernel would do: the answer with the highest precedence (seccomp(2))."""
    arguments = [n & (1 << 64) - 1 for n in (*call.arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = _DATA.pack(call.number, architecture, 0, *arguments)
    answers = [run(f, data) for f in filters]
    # The kernel compares them as signed numbers: KILL_PROCESS is the lowest.
    return min(answers, key=lambda n: (n & ACTION) - ((n & 0x80000000) << 1), default=ALLOW)


def check(process: Process, tid: int, architecture: int, calls: Sequence[Call]) -> None:
    """Refuse when a filter of thread `tid`, which is in a ptrace stop of ours, stands in the way of one of `calls`."""
    mode, count = _state(f"/proc/{process.pid}/task/{tid}/status")
    if mode == 0:
        return
    if mode == 1:
        raise PsuError(process.where, "is in the strict mode of seccomp: it may only read, write and end",
                       "attach before it goes there")
    filters = _read(process, tid)
    if filters is None:
        mine, my_count = _state("/proc/self/status")
        if mine == 2 and count <= my_count:
            return
        raise PsuError(process.where, "has a seccomp filter that only root may read: the agent's system calls could end the "
                       "process", "run psu-bin as root (CAP_SYS_ADMIN)")
    refuse(filters, architecture, calls, process.where)


def alone(process: Process, tid: int) -> bool:
    """Whether some thread is in a sandbox that thread `tid` is not in, so that check() says nothing of its system calls."""
    _, count = _state(f"/proc/{process.pid}/task/{tid}/status")
    for name in process.thread_names():
        path = f"/proc/{process.pid}/task/{name}/status"
        try:
            if "\nSeccomp:\t0\n" in proc.read(path):     # of thousands: what is quick to see
                continue
        except OSError:
            continue
        mode, filters = _state(path)
        if mode == 1 or filters > count:
            return True
    return False


def refuse(filters: Sequence[bytes], architecture: int, calls: Sequence[Call], where: str) -> None:
    """Raise PsuError when one of `filters` stands in the way of one of `calls`, or is none; `where` names the process."""
    for call in calls:
        try:
            answer = strictest(filters, architecture, call)
        except (ValueError, KeyError, IndexError, struct.error) as e:
            raise PsuError(where, f"has a seccomp filter that psu-bin cannot read: {e}") from e
        action = answer & ACTION
        if action in (ALLOW, LOG) or action == ERRNO and not call.vital:
            continue
        how = f"forbids {call.name} with {errno.errorcode.get(answer & 0xFFFF, answer & 0xFFFF)}" if action == ERRNO else \
            f"ends it at {call.name}" if action in (KILL_PROCESS, KILL_THREAD) else f"intercepts {call.name}"
        raise PsuError(where, f"cannot be changed: its seccomp filter {how}",
                       f"allow {call.name} in the filter, or attach before it is installed")


def _state(path: str) -> tuple[int, int]:
    """(mode, number of filters) of a thread; the number is 0 where the kernel (before 5.9) does not tell."""
    try:
        fields = proc.status(proc.read(path))
    except OSError:
        return 0, 0            # it ended: whoever goes on will notice
    return proc.number(fields, "Seccomp", path, default="0"), proc.number(fields, "Seccomp_filters", path, default="0")


def _read(process: Process, tid: int) -> list[bytes] | None:
    """The filters of a stopped thread, newest first; None when we may not read them."""
    from psu_bin.attach.system_call import ptrace
    buffer = ctypes.create_string_buffer(4096 * _INSTRUCTION.size)    # BPF_MAXINSNS
    filters: list[bytes] = []
    for index in range(FILTERS_MAX):
        try:
            size = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, ctypes.addressof(buffer))
        except OSError as e:
            if e.errno == errno.ENOENT:
                return filters
            if e.errno == errno.ESRCH:
                raise process.gone() from e
            return None
        filters.append(buffer.raw[:size * _INSTRUCTION.size])
    return None
