"""Starting the agent in a process that has none: one thread is borrowed, once, as briefly as possible.

The agent is made with pthread_create, which uses malloc and the dynamic linker's tables.  A thread that is inside those
must not be borrowed.  So we watch, without stopping anybody, until a thread waits in a system call that they never make,
and only then stop it; a thread that never waits is taken when neither its program counter nor any return address
on its stack lies in the C library or the dynamic linker, but for those of its beginning.

What is odd: a process of its own does it, in a session of its own.  If psu-bin were killed between the stop and the
change of registers, the thread would go on with EINTR from a call that no signal interrupted (epoll_wait: signal(7)); so
those few system calls are made by somebody who lives on then, and whom an interrupt from the terminal does not reach.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psu_bin import arch as arch_package
from psu_bin import descriptor
from psu_bin.arch import Waiting
from psu_bin.attach import proc, seccomp, shim
from psu_bin.attach.process import PAGE, Mapping, Process, Thread, Unreadable
from psu_bin.attach.target import Module, Target, executable
from psu_bin.attach.tracing import Seized, agent_thread, in_freezer, traced
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from numpy import int64, uint64
    from numpy.typing import NDArray

PTRACE_POKEDATA, PTRACE_GETREGSET, PTRACE_SETREGSET, NT_PRSTATUS = 5, 0x4204, 0x4205, 1
PATIENCE_WAITING = 1.0    # seconds to look for a waiting thread before a running one is taken
PATIENCE = 10.0
PAUSE, PAUSE_AFTER = 0.002, 0.01     # seconds to the next look, and when a thread was stopped for nothing
STACK_SEARCHED = 1 << 20
_START_CODE = re.compile(r"(libc|libpthread|ld)[-.]")
_ALLOCATORS = frozenset(("malloc", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign"))
START_FRAMES = 0x400      # bytes of the frames in which a thread begins: _start to main, clone to its function


def start_agent(target: Target) -> int:
    """Make the target start its agent.  Returns how many times a thread was stopped.

    Raises PsuError when no thread could be borrowed, or the target could not make a thread."""
    process = target.process
    runtime = target.runtime()
    state = process.status()["State"][:1]
    if state in "Tt":
        raise traced(process, process.pid) or PsuError(process.where, f"is stopped (state {state})",
                                                       "let it run: kill -CONT")
    if not runtime.borrow:
        raise PsuError(process.where, "its shim cannot start an agent on request")
    machine = arch_package.for_machine(target.modules[0].machine, process.where).borrow
    me = os.getpid()
    borrowed, stops = _guarded(lambda: _borrow_one(target, machine, runtime.borrow, me))
    if borrowed:
        return _await_agent(target, stops)
    raise PsuError(process.where, f"no thread could be borrowed to start the agent within {PATIENCE:.0f} s: "
                                  "none waits, and those that run are inside the C library, or may be",
                   "try again, or start the program with PSU_AGENT=start in its environment")


def _borrow_one(target: Target, machine, entry: int, caller: int) -> tuple[bool, int]:  # noqa: ANN001
    """Try until a thread was borrowed.  (Whether one was, how many times a thread was stopped.)

    caller: the process id of who wants it; when that is gone, there is no further attempt."""
    process = target.process
    began = time.monotonic()
    stops = 0
    waiting_only, decided = True, False
    while time.monotonic() - began < PATIENCE and caller in (os.getpid(), os.getppid()):
        if not process.alive() or process.replaced():
            raise process.gone()    # its threads are listed until they are waited for
        process.lost = False        # what ended was one of its threads
        if not decided and time.monotonic() - began >= PATIENCE_WAITING:
            import numpy  # noqa: F401  (takes longer than all else: not while a thread is stopped)
            waiting_only, decided = any(_allocates(m) for m in target.modules), True
        pause = PAUSE
        candidates = _candidates(process, machine, waiting_only)
        if candidates:
            thread = candidates[stops % len(candidates)]    # another one each time: the first may never be in the right place
            stops += 1
            try:
                if _stop_and_borrow(target, machine, thread, entry, waiting_only):
                    return True, stops
                pause = PAUSE_AFTER
            except PsuError:
                if os.path.exists(f"/proc/{process.pid}/task/{thread.tid}"):
                    raise
        time.sleep(pause)
    return False, stops


@dataclass(frozen=True)
class _Seen:
    """What /proc said of a thread before it was stopped, word for word; read in this order."""
    status: str         # how often it had waited until then, among others
    syscall: str        # in which call it waits


def _look(process: Process, tid: int) -> _Seen:
    """The thread now.  Raises OSError.  Nothing is made of it yet: until the thread is stopped, time matters."""
    folder = f"/proc/{process.pid}/task/{tid}"
    with open(f"{folder}/status", "rb", buffering=0) as status, open(f"{folder}/syscall", "rb", buffering=0) as call:
        first = status.read()
        second = call.read()
    return _Seen(*(text.decode("utf-8", "surrogateescape") for text in (first, second)))


def _waiting(process: Process, tid: int, seen: _Seen) -> Waiting | None:
    """The call in which it waited; None: it ran."""
    return proc.syscall(seen.syscall, f"/proc/{process.pid}/task/{tid}/syscall")


def _stop_and_borrow(target: Target, machine, thread: Thread, entry: int, waiting_only: bool) -> bool:  # noqa: ANN001
    with Seized(target.process, thread) as seized:
        # Not before it was seized: some threads never wait longer than a millisecond.
        try:
            seen = _look(target.process, thread.tid)
        except OSError:
            return False
        return seized.interrupt() and _borrow(target, machine, seized, seen, entry, waiting_only)


def _guarded(work: Callable[[], tuple[bool, int]]) -> tuple[bool, int]:
    """work() in a process that outlives this one; its result."""
    answer, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        outcome: list[object] = []
        try:
            os.setsid()
            outcome = [*work()]
        except PsuError:
            pass  # the other process finds the error again
        finally:
            os.write(tell, json.dumps(outcome).encode())
            os._exit(0)
    os.close(tell)
    with os.fdopen(answer, "rb") as f:
        text = f.read()
    os.waitpid(pid, 0)
    outcome = json.loads(text or "[]")
    if len(outcome) == 2:
        return outcome[0], outcome[1]
    # It failed where this process may do better: a kernel that lets parents alone trace (Yama) does not take a parent's
    # child for one.  If not, this gives the error.
    return work()


def _await_agent(target: Target, stops: int) -> int:
    process = target.process
    began = time.monotonic()
    while time.monotonic() - began < 2 * PATIENCE:
        runtime = target.runtime()
        if runtime.agent_state in (shim.AGENT_PARKED, shim.AGENT_BUSY) and agent_thread(process, runtime):
            return stops
        if runtime.agent_error and runtime.agent_state == shim.AGENT_NONE:
            name = errno.errorcode.get(runtime.agent_error, str(runtime.agent_error))
            raise PsuError(process.where, f"the agent did not start: the program could not make a thread: {name}",
                           "is a limit on threads or memory reached, or does a seccomp filter forbid clone?")
        if not process.alive() or process.replaced():      # the new program has no reason to start one
            raise process.gone()
        time.sleep(0.0005)
    raise PsuError(process.where, "the agent did not start: the borrowed thread has not come to it",
                   "is the process stopped, or starved of processor time?")


def _candidates(process: Process, machine, waiting_only: bool) -> list[Thread]:  # noqa: ANN001
    """The threads that wait in a call that does no harm, and then, unless `waiting_only`, those that run."""
    waits, runs = [], []
    for thread in process.threads():
        if thread.state == "D" or in_freezer(process, thread):     # it would not stop: a frozen control group, a file server that is gone
            continue
        try:
            waiting = _waiting(process, thread.tid, _look(process, thread.tid))
        except OSError:
            continue
        if waiting is None:
            if not waiting_only and thread.state in "RS":
                runs.append(thread)
        elif waiting.number in machine.WAITING_CALLS and not waiting.nowhere:
            waits.append(thread)
    return waits + runs


def _switches(process: Process, tid: int, status: str) -> int:
    """How often the thread gave up its processor to wait, by the text of its status."""
    return proc.number(proc.status(status), "voluntary_ctxt_switches", f"/proc/{process.pid}/task/{tid}/status")


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _regset(request: int, tid: int, data: bytes = b"", kind: int = NT_PRSTATUS) -> bytes:
    from psu_bin.attach.system_call import ptrace
    buffer = ctypes.create_string_buffer(data, len(data)) if data else ctypes.create_string_buffer(1024)
    iov = _Iovec(ctypes.addressof(buffer), len(buffer))
    ptrace(request, tid, kind, ctypes.addressof(iov))
    return buffer.raw[:iov.length]


def _fit(machine, tid: int) -> bool:  # noqa: ANN001
    """Whether the stopped thread is in a state of the processor in which the C library's code can run."""
    try:
        return not machine.UNFIT_REGSET or (
            len(_regset(PTRACE_GETREGSET, tid, kind=machine.UNFIT_REGSET)) <= machine.UNFIT_HEADER)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        return True     # this processor or kernel has no such state


def _undisturbed(process: Process, tid: int, seen: _Seen) -> Waiting | None:
    """The call in which the thread was seen, if it has not waited in any other since: the stop itself is one wait."""
    try:
        now = _switches(process, tid, proc.read(f"/proc/{process.pid}/task/{tid}/status"))
    except OSError:
        return None
    return _waiting(process, tid, seen) if now == _switches(process, tid, seen.status) + 1 else None


def _borrow(target: Target, machine, seized: Seized, seen: _Seen, entry: int, waiting_only: bool) -> bool:  # noqa: ANN001
    """Redirect the stopped thread to `entry`; False when this is not the moment."""
    process = target.process
    regs = _regset(PTRACE_GETREGSET, seized.tid)
    waiting = _undisturbed(process, seized.tid, seen)
    pc, sp, number = machine.program_counter(regs, waiting)
    maps = process.maps()
    if process.replaced():
        process.lost = True    # exec between our look at it and the stop
        raise process.gone()
    if sp % machine.STACK_ALIGN or not _fit(machine, seized.tid):
        return False
    if _signal_pending(process, seized.tid):
        return False  # its handler must see the system call interrupted, as without us
    if number >= 0:
        if number not in machine.WAITING_CALLS or _in_loader(maps, pc):
            return False
    elif waiting_only or not _outside_libraries(target, machine, maps, seized.tid, regs):
        return False
    calls = arch_package.for_machine(target.modules[0].machine, process.where).calls
    seccomp.check(process, seized.tid, calls.AUDIT_ARCH, [seccomp.Call(*c) for c in (*calls.THREAD, *calls.AGENT)])
    new, at, back = machine.enter(regs, entry, waiting)
    _poke(seized.tid, at, back)
    # What an earlier attempt left must not be taken for this one's result.
    _poke(seized.tid, target.runtime_address + shim.AGENT_ERROR_OFFSET, bytes(8))
    _regset(PTRACE_SETREGSET, seized.tid, new)
    return True


def _poke(tid: int, address: int, words: bytes) -> None:
    """Write into the memory of the stopped thread.

    By ptrace: process_vm_writev would write into whatever program the process is by then.  An exec in another thread waits for
    a traced thread, but not for the first one, which is what is borrowed here most of the time."""
    from psu_bin.attach.system_call import ptrace
    for at in range(0, len(words), 8):
        ptrace(PTRACE_POKEDATA, tid, address + at, int.from_bytes(words[at:at + 8], "little"))


def _signal_pending(process: Process, tid: int) -> bool:
    try:
        where = f"/proc/{process.pid}/task/{tid}/status"
        fields = proc.status(proc.read(where))
    except OSError:
        return True
    mine, shared, blocked = (proc.number(fields, name, where, base=16) for name in ("SigPnd", "ShdPnd", "SigBlk"))
    return bool((mine | shared) & ~blocked)


def _in_loader(maps: tuple[Mapping, ...], pc: int) -> bool:
    name = next((os.path.basename(m.path) for m in maps if m.start <= pc < m.end), "")
    return name.startswith("ld-linux")


def _start_stack(process: Process) -> int:
    where = process.path("stat")
    try:
        return proc.stat(proc.read(where), where).start_stack
    except OSError:
        return 0


def _outside_libraries(target: Target, machine, maps: tuple[Mapping, ...], tid: int, regs: bytes) -> bool:  # noqa: ANN001
    """Whether neither the program counter nor a return address is in a library that is not instrumented, nor in a signal handler.

    The program that has loaded instrumented libraries need not be: it may have called them, no allocator or linker would.
    Right above a thread's stack are the program's arguments, or the thread's descriptor.  If neither is, this is another stack,
    perhaps a signal handler's, and nobody knows what that has interrupted.  Above, addresses of code mean nothing."""
    import numpy as np
    process = target.process
    ours = sorted((m.start, m.end) for m in target.modules)
    program = executable(process)      # the dynamic linker, where the program is an argument of that
    foreign = [(m.start, m.end, bool(_START_CODE.match(os.path.basename(m.path)))) for m in maps
               if "x" in m.prot and not any(s <= m.start < e for s, e in ours) and (
                   m.path != program or _START_CODE.match(os.path.basename(program)))]
    pc, sp, _ = machine.program_counter(regs, None)
    if not any(s <= pc < e for s, e in ours):
        return False
    end = next((m.end for m in maps if m.start <= sp < m.end), 0)
    thread = _regset(PTRACE_GETREGSET, tid, kind=machine.THREAD_REGSET) if machine.THREAD_REGSET else regs
    limit = min((top for top in (_start_stack(process), machine.thread_descriptor(thread)) if sp <= top <= end), default=0)
    if not limit or limit - sp > STACK_SEARCHED:
        return False
    in_memory = np.frombuffer(process.read(sp, (limit - sp) // 8 * 8), "<u8")
    words = np.concatenate((np.array(machine.return_addresses(regs), "<u8"), in_memory)) & np.uint64(proc.address_mask(maps))
    theirs, which = _among(words, [(s, e) for s, e, _ in foreign])
    mine, _ = _among(words, ours)
    if any(_signal_frame(process, machine, w) for w in set(words[theirs].tolist())):
        return False
    # The frames in which a thread begins, of the C library's start-up code, are always there.
    bottom = max((*theirs[-1:].tolist(), *mine[-1:].tolist()), default=0) - START_FRAMES // 8
    starting = np.array([start for _, _, start in foreign], bool)
    return bool(np.all(starting[which] & (theirs > bottom)))


def _among(words: NDArray[uint64], ranges: list[tuple[int, int]]) -> tuple[NDArray[int64], NDArray[int64]]:
    """Which of `words` (their positions) lie in one of `ranges`, which are sorted and apart, and in which one (its position)."""
    import numpy as np
    starts, ends = (np.array([r[side] for r in ranges], np.uint64) for side in (0, 1))
    which = np.searchsorted(starts, words, "right") - 1
    inside = np.flatnonzero((which >= 0) & (words < ends[which])) if ranges else np.empty(0, np.int64)
    return inside, which[inside]


def _allocates(module: Module) -> bool:
    """Whether the module has an allocator of its own, which pthread_create may call: who runs in there may hold its locks."""
    return any(s.name in _ALLOCATORS and s.bind != descriptor.BIND_LOCAL for s in module.descriptor.symbols)


def _signal_frame(process: Process, machine, word: int) -> bool:  # noqa: ANN001
    """Whether a return address is that of a handler of a signal."""
    try:
        return process.read(word, min(max(map(len, machine.SIGRETURN)), PAGE - word % PAGE)).startswith(machine.SIGRETURN)
    except Unreadable:
        return True     # code that can only be executed: nobody knows
