"""psu-bin commands that can be killed, or held, after any of their system calls: a process that others fork from.

Run as a program: it loads psu-bin once, then serves requests, one JSON object a line:

    {"argv": ["attach", ...]}                   run it; {"status", "out", "err"}
    {"argv": [...], "trace": true}              the same, and "steps": what each of its system calls was, in order
    {"argv": [...], "kill": N}                  SIGKILL as its N-th system call (from 1) returns
    {"argv": [...], "kill_after": [STEP, N]}    SIGKILL as the N-th one after the first that is such a step returns
    {"argv": [...], "env": {...}}               in another environment
    {"argv": [...], "hold": N}                  held as its N-th system call returns: {"held": the step}
    {"argv": [...], "hold_after": [STEP, N]}    as kill_after, but held
    {"go": ""}                                  a held one runs to its end; its answer
    {"go": "end"}                               the same, but held again as wait4 tells it of the end of another

With "follow", the processes that it makes are followed like itself, their steps among its own.

Each command runs in a fork of its own, traced with PTRACE_SYSCALL by this process; psu-bin itself traces the target's
agent at the same time, which is another process, so neither sees the other.  A command that ended before its time came
has a "status"; a killed one has "killed": the step after which it died.

A step is "number of commands it gave the agent so far: call detail", with what differs between runs (pids, addresses,
hashes) taken out.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PTRACE_SYSCALL, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GET_SYSCALL_INFO = 24, 0x4206, 0x4207, 0x420E
OPTIONS = 1 | 1 << 20       # TRACESYSGOOD, EXITKILL
FOLLOW = 1 << 1 | 1 << 2 | 1 << 3       # TRACEFORK, TRACEVFORK, TRACECLONE
ENTRY = 1
WALL = 0x40000000
PTRACE_NAMES = {7: "CONT", 17: "DETACH", 0x4204: "GETREGSET", 0x4205: "SETREGSET", 0x4206: "SEIZE", 0x4207: "INTERRUPT",
                0x4208: "LISTEN"}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    result = _libc.ptrace(request, pid, address, data)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")
    return int(result)


@dataclass
class Tracer:
    """Follows one forked command from system call to system call."""
    pid: int
    kill: int = 0
    kill_after: tuple[str, int] = ("", 0)
    hold: int = 0
    hold_after: tuple[str, int] = ("", 0)
    steps: list[str] = field(default_factory=list)
    killed: str | None = None
    commands: int = 0
    until: str = ""

    def run(self) -> int:
        """Let the stopped command run to its end or to its kill; the wait status."""
        info = ctypes.create_string_buffer(128)
        entered: dict[int, str] = {}
        waits: dict[int, int] = {}          # where wait4 puts the status
        pid, signal_for_it = self.pid, 0
        while True:
            if pid:
                with contextlib.suppress(ProcessLookupError):       # it is being killed; its end is the next news
                    _ptrace(PTRACE_SYSCALL, pid, 0, signal_for_it)
            pid, status = os.waitpid(-1, WALL)
            signal_for_it = 0
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if pid == self.pid:
                    return status
                pid = 0
                continue
            number = os.WSTOPSIG(status)
            if number != signal.SIGTRAP | 0x80:
                # A signal (the agent, a child by ptrace, is the reason of some) is its own; other stops are ours.
                signal_for_it = 0 if status >> 16 else number
                continue
            _ptrace(PTRACE_GET_SYSCALL_INFO, pid, len(info), info)
            if info.raw[0] == ENTRY:
                nr, *arguments = struct.unpack_from("<7Q", info.raw, 24)
                waits[pid] = arguments[1]
                entered[pid] = f"{self.commands}: {self._describe(pid, nr, arguments)}"
                # Not when the agent goes on: it may have to several times, until it is parked.
                if entered[pid].endswith("command_seq"):
                    self.commands += 1
                continue
            self.steps.append(entered.get(pid, ""))
            if self._is_time(self.kill, self.kill_after):
                self.killed = entered[pid]
                os.kill(self.pid, signal.SIGKILL)
                return os.waitpid(self.pid, WALL)[1]
            ended = self.until and self.steps[-1].endswith("wait4") and self._tells_an_end(pid, info.raw, waits[pid])
            if ended or self._is_time(self.hold, self.hold_after):
                print(json.dumps({"held": self.steps[-1]}), flush=True)
                self.until = json.loads(sys.stdin.readline())["go"]

    def _tells_an_end(self, pid: int, info: bytes, at: int) -> bool:
        """Whether wait4, of which `info` has the result, has put the status of one that ended at `at`."""
        if struct.unpack_from("<q", info, 24)[0] <= 0:
            return False
        with open(f"/proc/{pid}/mem", "rb") as f:
            f.seek(at)
            return struct.unpack("<i", f.read(4))[0] & 0x7F != 0x7F

    def _is_time(self, number: int, after: tuple[str, int]) -> bool:
        if number:
            return len(self.steps) == number
        step, more = after
        at = len(self.steps) - 1 - more
        return at >= 0 and self.steps[at] == step and self.steps.index(step) == at

    def _describe(self, pid: int, nr: int, arguments: list[int]) -> str:
        from ptrace.syscall.names import SYSCALL_NAMES
        name = SYSCALL_NAMES.get(nr, str(nr))
        if name == "ptrace":
            return f"ptrace {PTRACE_NAMES.get(arguments[0], hex(arguments[0]))}"
        if name == "process_vm_writev":
            return f"{name} {self._remote_size(pid, arguments)}"
        path = {"open": 0, "stat": 0, "lstat": 0, "mkdir": 0, "unlink": 0, "rename": 1, "readlink": 0, "openat": 1,
                "newfstatat": 1, "unlinkat": 1, "mkdirat": 1, "rmdir": 0}.get(name)
        if path is None:
            return name
        return f"{name} " + re.sub(r"[0-9a-f]{64}", "SHA", re.sub(r"(?<![0-9a-f])\d+(?![0-9a-f])", "N",
                                                                  self._text(pid, arguments[path])))

    def _text(self, pid: int, address: int) -> str:
        with open(f"/proc/{pid}/mem", "rb") as f:
            f.seek(address)
            return f.read(256).split(b"\0")[0].decode("utf-8", "replace")

    def _remote_size(self, pid: int, arguments: list[int]) -> str:
        with open(f"/proc/{pid}/mem", "rb") as f:
            f.seek(arguments[3])
            size = struct.unpack("<QQ", f.read(16))[1]
        return {2: "command_seq", 8: "command address"}.get(size, "bytes")


def _command(argv: list[str], env: dict[str, str], start: int, out: int, err: int, modules: int) -> None:
    """In the fork: wait until traced, run the command, exit with its status.  What it imported goes to `modules`."""
    if env:
        os.environ.clear()
        os.environ.update(env)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.read(start, 1)
    sys.argv = ["psu-bin", *argv]
    from psu_bin import cli
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), write_through=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), write_through=True)
    status = 0
    try:
        cli.main()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        import traceback
        traceback.print_exc()
        status = 99
    if modules >= 0:
        os.write(modules, "\n".join(sys.modules).encode())
    os._exit(status)


def serve_one(request: dict[str, Any]) -> dict[str, Any]:
    """Run the command of `request`; the answer."""
    out, err = os.memfd_create("out"), os.memfd_create("err")
    start, go = os.pipe()
    traced = any(k in request for k in ("trace", "kill", "kill_after", "hold", "hold_after"))
    modules = os.memfd_create("modules") if not traced else -1
    pid = os.fork()
    if pid == 0:
        os.close(go)
        _command(request["argv"], request.get("env", {}), start, out, err, modules)
    os.close(start)
    answer: dict[str, Any] = {}
    if traced:
        _ptrace(PTRACE_SEIZE, pid, 0, OPTIONS | (FOLLOW if request.get("follow") else 0))
        _ptrace(PTRACE_INTERRUPT, pid)
        os.waitpid(pid, 0x40000000)
        os.write(go, b"x")
        t = Tracer(pid, request.get("kill", 0), tuple(request.get("kill_after", ("", 0))), request.get("hold", 0),
                   tuple(request.get("hold_after", ("", 0))))
        status = t.run()
        answer["count"] = len(t.steps)
        if "trace" in request:
            answer["steps"] = t.steps
        if t.killed is not None:
            answer["killed"] = t.killed
    else:
        os.write(go, b"x")
        _, status = os.waitpid(pid, 0)
        _import(_content(modules).split())
    os.close(go)
    if "killed" not in answer:
        answer["status"] = os.waitstatus_to_exitcode(status)
    for name, fd in (("out", out), ("err", err)):
        answer[name] = _content(fd)
    return answer


def _content(fd: int) -> str:
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb") as f:
        return f.read().decode("utf-8", "replace")


def _import(names: list[str]) -> None:
    """What one command imported, the next ones find: their system calls are those of their work."""
    for name in names:
        if name not in sys.modules and name != "__main__":
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def main() -> None:
    """Serve requests until standard input ends."""
    sys.path.insert(0, str(ROOT))
    for line in sys.stdin:
        print(json.dumps(serve_one(json.loads(line))), flush=True)


class Killer:
    """The serving process, as the tests use it.  Context manager."""

    def __enter__(self) -> Killer:
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        self.process.wait(30)

    def ask(self, *argv: object, limit: float | None = None, **how: Any) -> dict[str, Any]:
        """The answer to a request.  Without one after `limit` seconds all ends: subprocess.TimeoutExpired."""
        return self._exchange({"argv": [str(a) for a in argv], **how}, limit)

    def go(self, until: str = "") -> dict[str, Any]:
        """Let a held command go on."""
        return self._exchange({"go": until})

    def _exchange(self, request: dict[str, Any], limit: float | None = None) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], limit)[0]:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise subprocess.TimeoutExpired(str(request["argv"]), limit or 0)
        return json.loads(self.process.stdout.readline())

    def run(self, *argv: object) -> dict[str, Any]:
        """Run a command that must succeed; its JSON."""
        answer = self.ask(*argv, "--json")
        assert answer["status"] == 0, f"psu-bin {' '.join(map(str, argv))}: {answer['status']}: {answer['err']}"
        return json.loads(answer["out"])


if __name__ == "__main__":
    main()
