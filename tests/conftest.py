"""What the tests share: compiling, instrumenting and running real programs, and calling psu-bin.

A live test is a protocol: start, see the old output, attach, see the new output and the old rejected.  It waits for a line,
never for a time.  Every process that a test starts is ended with it.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "testprogs"
# Starting psu-bin takes longer than its work on a small program: most commands are forks of one process that has imported
# it.  Each command of psu-bin is started from nothing when a process of pytest needs it for the first time ("1": not even
# then; "0": always), and by psu-bin regress.
PRELOADED = os.environ.get("PSU_TEST_PRELOADED", "")
# How many times slower than a desktop this machine is: limits of time grow by it, and numbers of updates shrink.
SLOWNESS = float(os.environ.get("PSU_TEST_SLOWNESS", "1"))
# Seconds until a missing line is a failure, and until psu-bin's own waits are; never a pause.
PATIENCE, WAIT = 30 * SLOWNESS, 60 * SLOWNESS
MACHINE = platform.machine()
# Compiler options for branches and returns that the processor checks: CET; BTI and pointer authentication.
GUARDED = {"x86_64": "-fcf-protection=full", "aarch64": "-mbranch-protection=standard"}[MACHINE]
# More for programs in which branches must meet marks: the distribution's start files have none.
MARKED = {"x86_64": ("-Wl,-z,ibt",), "aarch64": ("-nostartfiles", str(ROOT / "tests/instrument/programs/start_aarch64.S"))}[MACHINE]
# For clang: relative relocations in DT_RELR, which GNU ld has for AArch64 from 2.43 and lld from 15 on.
RELR = ("-Wl,-z,pack-relative-relocs",
        *{"x86_64": (), "aarch64": ("-fuse-ld=lld", "--ld-path=/usr/lib/llvm-15/bin/ld.lld")}[MACHINE])
# Set, all programs of live tests are marked.
MARK_ALL = bool(os.environ.get("PSU_TEST_MARK_ALL"))
# What a dynamic program needs in another root folder.
LOADER = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}[MACHINE]
LIBRARIES = f"/lib/{MACHINE}-linux-gnu"

# A shell starts background commands with SIGINT ignored, and what they start inherits that; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)



# Tests whose programs, compiled with this machine's compiler, are x86-64's: what they look for are its instructions,
# relocations and options.  AArch64's are test_link_aarch64.py, test_aarch64.py and others with it in their names.
X86_64_ONLY = {
    "test_cut.py", "test_file.py", "test_refusals.py", "test_sites.py", "test_slots.py", "test_verify.py", "test_ways.py",
    "test_linker_binding.py", "test_linker_boundary.py", "test_linker_checks.py", "test_linker_gates.py", "test_linker_interning.py",
    "test_linker_reach.py", "test_linker_reroute.py", "test_linker_runs.py", "test_linker_unwind.py", "test_patch.py",
    "test_plan_detours.py", "test_plan_functions.py", "test_plan_registers.py", "test_references.py", "test_results.py",
    "test_fuzz.py", "test_found.py", "test_borrowed_thread_comes_back_as_it_was"}


def installed(cc, *more):
    """Parameters of a test that begin with a compiler: without it the test is skipped, and the reason names it."""
    return pytest.param(cc, *more, marks=pytest.mark.skipif(not shutil.which(cc), reason=f"no {cc}"))


COMPILERS = [installed(cc) for cc in ("gcc", "clang", "aarch64-linux-gnu-gcc")]       # for both architectures


def until(true: Callable[[], object]) -> None:
    """Wait for what no line tells; a failure when it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def first_thread_ended(pid: int) -> bool:
    """Whether the process is in state Z: all of it, or its first thread alone."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MACHINE != "x86_64":
        for item in items:
            if {item.path.name, item.name} & X86_64_ONLY:
                item.add_marker(pytest.mark.skip(reason="its programs are x86-64's"))


def updates(number: int) -> int:
    """How many updates a test makes where a fast machine makes `number`: no fewer than 10."""
    return max(10, round(number / SLOWNESS))


@dataclass(frozen=True)
class Ran:
    """How a psu-bin command ended."""
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def psu_bin(*arguments: object, check: bool = True, env: dict[str, str] | None = None) -> Ran:
    """Run psu-bin; with check, a failure of it fails the test."""
    environment = {**os.environ, **(env or {})}
    if is_preloaded(str(arguments[0])):
        try:
            answer = preloaded().ask(*arguments, env=environment, limit=300 * SLOWNESS)
        except subprocess.TimeoutExpired:
            preloaded.cache_clear()
            raise
        ran = Ran(answer["status"], answer["out"], answer["err"])
    else:
        done = subprocess.run([sys.executable, "-m", "psu_bin", *map(str, arguments)], capture_output=True, text=True,
                              cwd=ROOT, timeout=300 * SLOWNESS, env=environment)
        ran = Ran(done.returncode, done.stdout, done.stderr)
    if check and ran.status:
        pytest.fail(f"psu-bin {' '.join(map(str, arguments))}: status {ran.status}: {ran.err or ran.out}")
    return ran


started: set[str] = set()


def is_preloaded(command: str) -> bool:
    if PRELOADED:
        return PRELOADED != "0"
    first = command not in started
    started.add(command)
    return not first


@functools.cache
def preloaded():
    """Forks psu-bin's processes, its modules imported."""
    sys.path.append(str(ROOT / "tests" / "stress"))
    from killing import Killer
    return Killer().__enter__()      # ends when this process does: its standard input is a pipe of ours


def layout(pid: int) -> list[tuple[int, int, str]]:
    """[start, end) and protection of what is mapped but the stack, which grows by itself.  Neighbours that are alike are one:
    the kernel may show them as two, for reasons that nobody sees."""
    out: list[tuple[int, int, str]] = []
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if not line.endswith("[stack]"):
            where, prot = line.split(maxsplit=2)[:2]
            start, end = (int(x, 16) for x in where.split("-"))
            if out and out[-1][1:] == (start, prot):
                start = out.pop()[0]
            out.append((start, end, prot))
    return out


def compile(*arguments: object, cc: str = "gcc") -> None:
    """Run the compiler; its messages are the failure."""
    done = subprocess.run([cc, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"{cc} {' '.join(map(str, arguments))}:\n{done.stderr}")


class Running:
    """A program under test: lines in, lines out."""

    def __init__(self, arguments: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        text=True, env={**os.environ, **(env or {})})
        self.pid = self.process.pid
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.seen: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def next(self) -> str:
        """The next line.  Fails when the program ended."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                # Not in one wait: a signal that another thread was given is handled when this one comes round.
                line = self.lines.get(timeout=0.1)
                break
            except queue.Empty:
                if time.monotonic() > deadline:
                    pytest.fail(f"no line for {PATIENCE} s; the last ones: {self.seen[-5:]}")
        if line is None:
            pytest.fail(f"the program ended with {self.process.wait()}; its last lines: {self.seen[-5:]}")
        self.seen.append(line)
        return line

    def expect(self, pattern: str, reject: str = "ERROR|EINTR") -> re.Match[str]:
        """Read until a line matches; a line that matches `reject` before is a failure."""
        deadline = time.monotonic() + PATIENCE
        while True:
            line = self.next()
            if time.monotonic() > deadline:
                pytest.fail(f"no line matches {pattern!r}; the last ones: {self.seen[-5:]}")
            if reject and re.search(reject, line):
                pytest.fail(f"{line!r} while waiting for {pattern!r}")
            found = re.search(pattern, line)
            if found:
                return found

    def fresh(self) -> None:
        """Forget the lines that were printed up to now."""
        while not self.lines.empty():
            if self.lines.get_nowait() is None:
                self.lines.put(None)
                return

    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def runtime_directory(tmp_path, monkeypatch):
    """Copies of patch objects go into the test's own folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


class Lab:
    """One test's folder, its programs and its patches."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Running] = []

    def program(self, name: str, *flags: str, sources: tuple[str, ...] = ("main.c",), cc: str = "gcc",
                instrument: bool = True, out: str = "main") -> Path:
        """Compile testprogs/NAME and instrument it; the path of what is to be run."""
        source = PROGRAMS / name
        if MARK_ALL and "-nostartfiles" not in sources + flags:
            flags = (GUARDED, *flags, *MARKED)
        # Compiled where the sources are, so that STT_FILE is the plain file name.
        subprocess.run([cc, "-g", "-O2", "-pthread", "-o", str(self.folder / out), *sources, *flags], cwd=source, check=True)
        if not instrument:
            return self.folder / out
        on_host = shutil.which("psu-bin-instrument")     # in scripts/arm64-guest, whose own processor is slow
        if on_host:
            done = subprocess.run([on_host, str(self.folder / out), "--json"], stdout=subprocess.PIPE, text=True,
                                  check=True)
            return Path(json.loads(done.stdout)["output"])
        return Path(psu_bin("instrument", self.folder / out, "--json").json["output"])

    def patch(self, name: str, source: str = "patch.c", *flags: str, cc: str = "gcc", out: str = "patch.o") -> Path:
        """Compile a patch of testprogs/NAME."""
        path = PROGRAMS / name / source
        subprocess.run([cc, "-g", "-O2", f"-I{PROGRAMS / name}", "-c", path.name, "-o", str(self.folder / out), *flags],
                       cwd=path.parent, check=True)
        return self.folder / out

    def start(self, program: Path, *arguments: object, env: dict[str, str] | None = None) -> Running:
        running = Running([str(program), *map(str, arguments)], env)
        self.started.append(running)
        return running


@pytest.fixture
def lab(tmp_path, runtime_directory):
    """A folder to build in, and an end for everything that is started."""
    lab = Lab(tmp_path)
    yield lab
    for running in lab.started:
        running.stop()
