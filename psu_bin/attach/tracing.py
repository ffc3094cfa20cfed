"""Holding one thread of the target with ptrace, and running commands in the agent: AgentSession.

Only the agent is ever traced, and only stopped for the moment in which a command record is made known to it; all work
is done by its own command loop.  So psu-bin can die at any instruction: a complete command runs to its end, an
incomplete one was never seen.  No register of the agent is touched.

Being the tracer is also the lock: the kernel admits one tracer a thread, so two psu-bin never mix.

While the agent is traced, the kernel tells us, and not it, of a signal for it (setuid() in the target sends one to every thread
and waits until all have it), of its end (exec and exit in the target wait until we have heard of it) and of job control.  So
we answer at once, from a SIGCHLD handler, whatever else we are doing; where there can be none, because this is not
Python's main thread, those calls in the target wait until we come round.

What is odd: the wait that parks the agent is a futex.  PTRACE_INTERRUPT makes the kernel restart it, and the restarted
FUTEX_WAIT sees the changed command word and returns: that is how the agent is woken.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
import time
from types import FrameType

from psu_bin.attach import proc, shim
from psu_bin.attach.process import Process, Thread
from psu_bin.errors import PsuError

PTRACE_CONT, PTRACE_DETACH = 7, 17
PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
PTRACE_EVENT_STOP = 128
WALL = 0x40000000
FREEZER = ("get_signal", "do_freezer_trap")     # the one is part of the other, or not
FROZEN_AFTER = 1.0     # seconds in an uninterruptible wait
AGENT_PATIENCE = 10.0  # seconds for a command that may have to wait for the dynamic linker's lock


def _ptrace(request: int, tid: int, data: int = 0) -> None:
    from psu_bin.attach.system_call import ptrace
    ptrace(request, tid, 0, data)


def traced(process: Process, tid: int) -> PsuError | None:
    """The error that names the tracer of a thread; None when it has none."""
    try:
        tracer = proc.status(proc.read(f"/proc/{process.pid}/task/{tid}/status")).get("TracerPid", "0")
    except OSError:
        return None
    if tracer == "0":
        return None
    try:
        name = proc.read(f"/proc/{tracer}/comm").strip()
    except OSError:
        name = "?"
    return PsuError(process.where, f"is being traced already by {name} (process {tracer})", "wait for it, or detach it")


class Seized:
    """A thread under PTRACE_SEIZE.  Context manager: detached at the end, stopped or not, alive or not."""

    def __init__(self, process: Process, thread: Thread) -> None:
        self.process = process
        self.tid = thread.tid
        self.stopped = False
        self._busy = False          # in a wait of our own: the SIGCHLD handler leaves the news to it
        self._news = False
        self._handler = False
        try:
            _ptrace(PTRACE_SEIZE, self.tid)
        except OSError as e:
            raise traced(process, self.tid) or process.forbidden(e) from e
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGCHLD, self._on_child)
            self._handler = True

    def _restore(self) -> None:
        if self._handler:
            signal.signal(signal.SIGCHLD, self._before if self._before is not None else signal.SIG_DFL)

    def _on_child(self, number: int, frame: FrameType | None) -> None:
        if self._busy:
            self._news = True
        elif not self.stopped:
            try:
                self.service()
            except OSError:
                pass            # gone: noted in the process, which refuses to be written from now on
        if callable(self._before):
            self._before(number, frame)

    def __enter__(self) -> Seized:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.interrupt():
                self._let_go(PTRACE_DETACH)
        except OSError as e:
            if e.errno != errno.ESRCH:
                raise
        finally:
            self._restore()

    def _let_go(self, request: int, data: int = 0) -> None:
        """PTRACE_CONT or PTRACE_DETACH.  OSError(ESRCH) when the thread is gone."""
        try:
            _ptrace(request, self.tid, data)
        except OSError as e:
            if e.errno != errno.ESRCH:
                raise
            # SIGKILL has woken it: it is at its end, and an exec or exit in the target waits until we have heard of it.
            while True:
                self._wait(0)

    def _wait(self, options: int) -> int | None:
        """One waitpid; the status, None when nothing is to report.  OSError(ESRCH) when the thread is gone."""
        try:
            tid, status = os.waitpid(self.tid, options | WALL)
        except ChildProcessError as e:
            self.process.lost = True
            raise OSError(errno.ESRCH, "thread is gone") from e
        if tid == 0:
            return None
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            # Until this very wait, an exec in the target could not go on: nothing was written into a new program.
            self.process.lost = True
            raise OSError(errno.ESRCH, "thread is gone")
        return status

    def service(self) -> None:
        """Let the thread go on if it stopped by itself (a signal for it, a group stop)."""
        self._busy = True
        try:
            while (status := self._wait(os.WNOHANG)) is not None:
                self._resume_from(status)
        finally:
            self._busy = False
        if self._news:
            self._news = False
            self.service()

    def _resume_from(self, status: int) -> None:
        if status >> 16 == PTRACE_EVENT_STOP:
            # Job control stops the process: the agent finishes what it has begun, and stops when it is detached.
            self._let_go(PTRACE_CONT)
        else:
            self._let_go(PTRACE_CONT, os.WSTOPSIG(status))  # a signal on its way to the thread

    def interrupt(self) -> bool:
        """Stop the thread.  False when it is gone."""
        if self.stopped:
            return True
        self._busy = True
        try:
            _ptrace(PTRACE_INTERRUPT, self.tid)
            while True:
                status = self._wait(0)
                assert status is not None
                if status >> 16 == PTRACE_EVENT_STOP:
                    self.stopped = True
                    return True
                self._resume_from(status)
        except OSError as e:
            if e.errno == errno.ESRCH:
                return False
            raise
        finally:
            self._busy = self._news = False

    def resume(self) -> None:
        """Let the stopped thread run on."""
        self.stopped = False
        self._let_go(PTRACE_CONT)


class AgentSession:
    """The agent, held for one transaction: runs command records in the target.  Context manager."""

    def __init__(self, process: Process, runtime_address: int) -> None:
        self.process = process
        self.address = runtime_address
        self.runtime = shim.Runtime.read(process, runtime_address)
        thread = agent_thread(process, self.runtime)
        if thread is None:
            raise PsuError(process.where, "has no agent thread")
        if thread.state == "T":
            raise PsuError(process.where, "is stopped (state T)", "let it run: kill -CONT")
        _refuse_frozen(process, thread)
        self.seized = Seized(process, thread)
        # From now on an exec waits for us.  One that was before would have us change a program that we have not read.
        if process.replaced():
            self.seized.__exit__()
            raise process.gone()

    def __enter__(self) -> AgentSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.seized.__exit__(*exc)

    def _gone(self) -> PsuError:
        return self.process.gone()

    def command(self, op: int, entries: bytes, count: int, *, record_at: int = 0, patience: float = AGENT_PATIENCE,
                ) -> bytes:
        """Run one command; the entries as the agent left them.

        record_at: where in the target the record goes, for one that does not fit the fixed buffer (memory that an
        earlier MAP command made).  Raises PsuError with the failing step's errno (then the target is unchanged)."""
        record = shim.COMMAND.pack(op, count, 0) + entries
        at = record_at or self.address + shim.BUFFER_OFFSET
        if not record_at and len(record) > shim.BUFFER_SIZE:
            raise PsuError(self.process.where, f"internal defect: a command of {len(record)} bytes has no room")
        deadline = time.monotonic() + patience
        self._park(deadline)
        seq = (shim.Runtime.read(self.process, self.address).command_seq + 1) & 0xFFFF
        # The agent is in a ptrace stop: these stores are ordered before anything it does after it.
        self.process.write(at, record)
        self.process.write(self.address + shim.COMMAND_ADDRESS_OFFSET, struct.pack("<Q", at))
        self.process.write(self.address + shim.COMMAND_SEQ_OFFSET, struct.pack("<H", seq))
        try:
            self.seized.resume()
            pause = 20e-6
            while True:
                runtime = shim.Runtime.read(self.process, self.address)
                if runtime.done_seq == seq:
                    break
                self.seized.service()
                if time.monotonic() > deadline:
                    hint = "it is still at it, psu-bin status will tell" if op == shim.OP_COMMIT else \
                        "a thread may be holding the dynamic linker's lock (dlopen); try again"
                    raise PsuError(self.process.where, f"the agent did not finish its command within {patience:.0f} s",
                                   hint)
                time.sleep(pause)
                pause = min(pause * 1.5, 2e-3)
        except OSError as e:
            raise self._gone() from e
        self.runtime = runtime
        if runtime.result:
            code = -runtime.result
            name = errno.errorcode.get(code, str(code))
            step = {shim.OP_MAP: "mmap", shim.OP_PROTECT: "mprotect", shim.OP_RESOLVE: "dlsym",
                    shim.OP_COMMIT: "commit", shim.OP_RESET: "reset", shim.OP_PIN: "dlopen",
                    shim.OP_WRITE_OFF: "writing calls off", shim.OP_TURN: "changing code"}[op]
            raise PsuError(self.process.where, f"{step} failed in the target: {name} (entry {runtime.failed_entry})",
                           "the target is unchanged")
        return self.process.read(at + shim.COMMAND.size, len(entries))

    def _park(self, deadline: float) -> None:
        """Stop the agent where it is parked: it has read everything it was told and touches nothing."""
        while True:
            if not self.seized.interrupt():
                raise self._gone()
            runtime = shim.Runtime.read(self.process, self.address)
            if runtime.agent_state == shim.AGENT_PARKED and runtime.done_seq == runtime.command_seq:
                return
            try:
                self.seized.resume()
            except OSError as e:
                raise self._gone() from e
            if time.monotonic() > deadline:
                raise PsuError(self.process.where, "the agent is busy with an earlier command",
                               "a thread may be holding the dynamic linker's lock (dlopen); try again")
            time.sleep(100e-6)


def in_freezer(process: Process, thread: Thread) -> bool:
    """Whether a thread waits in a frozen control group of version 2, where it may be traced, but does not go on."""
    try:
        return thread.state == "S" and proc.read(f"/proc/{process.pid}/task/{thread.tid}/wchan") in FREEZER
    except OSError:
        return False


def _refuse_frozen(process: Process, agent: Thread) -> None:
    """Raise PsuError when the agent is in a frozen control group (`docker pause`): it would not stop before that is thawed.

    Version 1 shows such threads in an uninterruptible wait, where the agent otherwise is for moments at the most."""
    deadline = time.monotonic() + FROZEN_AFTER
    while True:
        now = process.thread(agent.own_tid)
        frozen = now is not None and in_freezer(process, now)
        if now is None or now.state != "D" and not frozen:
            return
        if frozen or time.monotonic() > deadline:
            raise PsuError(process.where, "is frozen with its control group, or its agent hangs in the kernel",
                           "thaw it: docker unpause, systemctl thaw")
        time.sleep(0.01)


def agent_thread(process: Process, runtime: shim.Runtime) -> Thread | None:
    """The live agent thread of this very process, or None (never started, or a fork child's copy of the parent's)."""
    if runtime.agent_state in (shim.AGENT_NONE, shim.AGENT_STARTING) or runtime.agent_pid != process.own_pid():
        return None
    return process.thread(runtime.agent_tid)
