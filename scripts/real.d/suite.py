"""A server's own test suite, run with an instrumented binary in the place of its own.

Each test runs by itself, in one of some copies of the build folder.  One that fails is run once more alone, since such
suites have tests that depend on time; if it fails again, also with the program's own binary: only what passes there and
fails here counts against psu-bin.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from servers import Server

PATIENCE = 1200.0     # seconds for one test


@dataclass(frozen=True)
class Outcome:
    """How one test of the suite ended."""
    item: str
    status: int          # exit status; -1: timeout
    passed: int          # checks in it
    seconds: float
    output: str


@dataclass(frozen=True)
class Results:
    """What the suite said."""
    outcomes: tuple[Outcome, ...]
    unsteady: tuple[str, ...]       # failed, and passed when run again alone
    fails_anyway: tuple[str, ...]   # fails with the program's own binary, too
    failed: tuple[Outcome, ...]     # because of psu-bin
    seconds: float


class Suite:
    """Copies of a build folder with one binary in each; a context manager that removes them."""

    def __init__(self, server: Server, built: Path, scratch: Path, binary: Path) -> None:
        self.server, self.built, self.scratch, self.binary = server, built, scratch, binary
        self.folders: queue.Queue[tuple[int, Path]] = queue.Queue()
        self.processes: set[subprocess.Popen[str]] = set()

    def __enter__(self) -> Suite:
        for i in range(self.server.suite_workers):
            folder = self.scratch / f"suite{i}"
            shutil.copytree(self.built, folder, symlinks=True, copy_function=_link)
            target = folder / self.server.suite_binary
            target.unlink()
            shutil.copy2(self.binary, target)
            os.utime(target)      # newer than its sources: nothing builds it again
            shim = self.binary.parent / "libpsu_shim.so"
            if shim.exists():
                shutil.copy2(shim, target.parent)
            self.folders.put((i, folder))
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self.processes):      # only when the trial itself was interrupted
            _end(process)
        for i in range(self.server.suite_workers):
            shutil.rmtree(self.scratch / f"suite{i}", ignore_errors=True)

    def run(self, item: str) -> Outcome:
        """Run one test."""
        worker, folder = self.folders.get()
        began = time.monotonic()
        try:
            process = subprocess.Popen(self.server.suite_command(item, worker), cwd=folder, stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                                       start_new_session=True, env={**os.environ, "TERM": "dumb"})
            self.processes.add(process)
            try:
                output, _ = process.communicate(timeout=PATIENCE)
                status = process.returncode
            except subprocess.TimeoutExpired:
                _end(process)
                output, status = process.communicate()[0] + f"\nno end after {PATIENCE:.0f} s", -1
            self.processes.discard(process)
            return Outcome(item, status, self.server.suite_passed(output), time.monotonic() - began, output)
        finally:
            self.folders.put((worker, folder))

    def run_all(self, items: list[str], say) -> list[Outcome]:  # noqa: ANN001
        """Run tests, as many at a time as there are copies."""
        waiting: queue.Queue[str] = queue.Queue()
        for item in items:
            waiting.put(item)
        outcomes: list[Outcome] = []

        def work() -> None:
            while True:
                try:
                    item = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = self.run(item)
                outcomes.append(outcome)
                if outcome.status:
                    say(f"  {item}: status {outcome.status} after {outcome.passed} checks")

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self.server.suite_workers)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return outcomes


def judge(server: Server, built: Path, scratch: Path, plain: Path, instrumented: Path, items: list[str],
          say) -> Results:  # noqa: ANN001
    """Run the suite on `instrumented`, and what fails there twice on `plain`."""
    began = time.monotonic()
    again: list[Outcome] = []
    with Suite(server, built, scratch, instrumented) as suite:
        outcomes = suite.run_all(items, say)
        for outcome in [o for o in outcomes if o.status]:
            again.append(suite.run(outcome.item))
    unsteady = tuple(o.item for o in again if not o.status)
    doubtful = [o for o in again if o.status]
    anyway: tuple[str, ...] = ()
    if doubtful:
        with Suite(server, built, scratch, plain) as suite:
            anyway = tuple(o.item for o in doubtful if suite.run(o.item).status)
    return Results(tuple(outcomes), unsteady, anyway, tuple(o for o in doubtful if o.item not in anyway),
                   time.monotonic() - began)


def _link(source: str, target: str) -> str:
    # A build folder is large; only the binary differs.
    os.link(source, target)
    return target


def _end(process: subprocess.Popen[str]) -> None:
    # The test has a session of its own, so its servers go with it.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
