"""The processes of a run: each in a group of its own, so that what it started ends with it, whatever happens.

A leader is reaped only after its group was killed: until then its number cannot be given to another group.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO


ENDING = 1.0     # seconds that a process without memory may take until it can be waited for


class Cancelled(Exception):
    """The run is being ended (Ctrl-C); never leaves the package."""


@dataclass(frozen=True)
class Done:
    """How a command ended.  status: None when it took too long."""
    status: int | None
    out: str
    seconds: float


class Child:
    """A process that leads a group."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.popen = popen
        self.pid = popen.pid

    def ended(self) -> bool:
        """Whether the leader has ended; it stays a zombie, so that its group's number stays its own."""
        if self.popen.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ends(self) -> bool:
        """Whether the leader has ended, or is just about to: its memory is gone, and the status comes in a moment."""
        deadline = time.monotonic() + ENDING
        while not self.ended():
            try:
                os.readlink(f"/proc/{self.pid}/exe")
                return False
            except OSError:
                if time.monotonic() > deadline:     # its first thread alone has ended
                    return False
            time.sleep(0.001)
        return True

    def close(self) -> int:
        """Kill what is left of the group and reap the leader; its status as subprocess gives it."""
        if self.popen.returncode is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass                        # only the zombie is left
        return self.popen.wait()


class Children:
    """All processes of a run.  After `cancel` nothing new is started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: set[Child] = set()
        self.cancelled = threading.Event()

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], *, stdout: int | IO[bytes],
              stdin: int = subprocess.DEVNULL) -> Child:
        """Start a process; OSError when it cannot be."""
        with self._lock:
            self.check()
            child = Child(subprocess.Popen(arguments, cwd=cwd, env=env, stdin=stdin, stdout=stdout,
                                           stderr=subprocess.STDOUT, start_new_session=True))
            self._alive.add(child)
            return child

    def close(self, child: Child) -> int:
        """End `child` and its group; its exit status."""
        status = child.close()
        with self._lock:
            self._alive.discard(child)
        return status

    def run(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], limit: float) -> Done:
        """Run a command to its end or for `limit` seconds.  Its output goes through a file: a grandchild that keeps a pipe
        open would be waited for."""
        begin = time.monotonic()
        with tempfile.TemporaryFile() as out:
            try:
                child = self.start(arguments, cwd, env, stdout=out)
            except OSError as e:
                return Done(127, f"{arguments[0]}: {e.strerror}", 0)
            try:
                in_time = self.wait(child, limit)
            finally:
                status = self.close(child)
            out.seek(0)
            return Done(status if in_time else None, out.read().decode(errors="backslashreplace"), time.monotonic() - begin)

    def wait(self, child: Child, limit: float) -> bool:
        """Whether `child` ends within `limit` seconds."""
        deadline, pause = time.monotonic() + limit, 0.001
        while not child.ended():
            self.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return True

    def check(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled

    def cancel(self) -> None:
        """Kill every group; whoever waits for one raises Cancelled."""
        with self._lock:
            self.cancelled.set()
            for child in self._alive:
                if child.popen.returncode is None:
                    try:
                        os.killpg(child.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
