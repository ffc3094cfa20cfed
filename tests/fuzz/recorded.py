"""What `psu-bin status` and the beginning of attach read from a real patched process, kept as bytes: Recording.

A program is instrumented, started without address space randomisation and patched; then everything that is read is noted.
The result can be damaged and read again, without the process.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from memory import Bytes, Range

from psu_bin.attach import meta, status, target
from psu_bin.attach.process import Mapping, Process, Thread
from psu_bin.attach.transaction import views

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
#include <stdio.h>
#include <unistd.h>
#include <pthread.h>
__attribute__((noipa)) int first(int x) { return x; }
__attribute__((noipa)) void second(void) { }
static void *work(void *p) { second(); return p; }
int main(void) {
    pthread_t t; pthread_create(&t, 0, work, 0); puts("ready"); fflush(stdout);
    for (;;) { first(1); usleep(1000); }
}
"""
# A version that a thread stays in, then new variables, constants and functions with an address of their own.
PATCHES = ["""
#include <unistd.h>
int first(int x) { for (;;) usleep(1000); return x; }
""", """
static int calls; int (*kept)(int); static int added(int x) { return x + calls; }
int first(int x) { kept = added; calls++; return kept(x); }
""", """
#include <string.h>
const char *text(int n) { return n ? "a constant" : "another one"; }
int first(int x) { return x + (int)strlen(text(x)); }
void second(void) { }
"""]


@dataclass(frozen=True)
class Recording:
    """Ranges of memory with their bytes, and what maps and the list of threads said."""
    starts: tuple[int, ...]
    bodies: tuple[bytes, ...]
    maps: tuple[Mapping, ...]
    threads: tuple[Thread, ...]
    own_pid: int

    def pack(self) -> bytes:
        head = json.dumps([list(zip(self.starts, map(len, self.bodies))), [list(vars(m).values()) for m in self.maps],
                           [list(vars(t).values()) for t in self.threads], self.own_pid]).encode()
        return struct.pack("<I", len(head)) + head + b"".join(self.bodies)

    @staticmethod
    def unpack(data: bytes) -> Recording:
        (size,) = struct.unpack_from("<I", data)
        ranges, maps, threads, own_pid = json.loads(data[4:4 + size])
        at, bodies = 4 + size, []
        for _, length in ranges:
            bodies.append(data[at:at + length])
            at += length
        return Recording(tuple(start for start, _ in ranges), tuple(bodies), tuple(Mapping(*m) for m in maps),
                         tuple(Thread(*t) for t in threads), own_pid)

    def process(self) -> Bytes:
        return _Played([Range(a, b) for a, b in zip(self.starts, self.bodies)], list(self.maps), self.threads, self.own_pid)


class _Played(Bytes):
    def __init__(self, ranges: list[Range], mappings: list[Mapping], threads: tuple[Thread, ...], own_pid: int) -> None:
        super().__init__(ranges, mappings, threads)
        self.number = own_pid

    def own_pid(self) -> int:
        return self.number


class _Listening(Process):
    """Notes what is read."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        self.seen: dict[int, int] = {}             # byte by byte: what is read is small

    def read(self, address: int, size: int) -> bytes:
        data = super().read(address, size)
        self.seen.update(zip(range(address, address + size), data))
        return data


def read_all(process: Process) -> None:
    """Everything that psu-bin reads from memory before it changes anything."""
    t = target.read(process)
    status.of(t)
    views(t, meta.read(process, t.runtime()))


@functools.cache
def recording() -> Recording:
    """Of a process with three patches, the first of them retired and still executed."""
    with tempfile.TemporaryDirectory(prefix="psu-fuzz-") as name:
        folder = Path(name)
        (folder / "main.c").write_text(PROGRAM)
        subprocess.run(["gcc", "-O2", "-pthread", "main.c", "-o", "main"], cwd=folder, check=True)
        for n, text in enumerate(PATCHES):
            (folder / f"patch{n}.c").write_text(text)
            subprocess.run(["gcc", "-O2", "-c", f"patch{n}.c"], cwd=folder, check=True)

        def psu_bin(*arguments: object) -> None:
            subprocess.run([sys.executable, "-m", "psu_bin", *map(str, arguments)], cwd=ROOT, check=True, capture_output=True)
        psu_bin("instrument", folder / "main")
        program = subprocess.Popen(["setarch", "-R", folder / "main.psu"], stdout=subprocess.PIPE)
        try:
            assert program.stdout and program.stdout.readline() == b"ready\n"
            for n in range(len(PATCHES)):
                psu_bin("attach", program.pid, folder / f"patch{n}.o")
                if not n:
                    while status.read(program.pid).patches[0].activations != 1:
                        pass
            process = _Listening(program.pid)
            process.where = "process 4711"
            read_all(process)
            here = os.readlink("/proc/self/exe")       # Bytes says that it is this process
            maps = tuple(replace(m, path=here) if m.path.endswith("/main.psu") else m for m in process.maps())
            return Recording(*_ranges(process.seen), maps, process.threads(), process.own_pid())
        finally:
            program.kill()
            program.wait()


def _ranges(seen: dict[int, int]) -> tuple[tuple[int, ...], tuple[bytes, ...]]:
    starts: list[int] = []
    bodies: list[bytearray] = []
    for at in sorted(seen):
        if not starts or at != starts[-1] + len(bodies[-1]):
            starts.append(at)
            bodies.append(bytearray())
        bodies[-1].append(seen[at])
    return tuple(starts), tuple(bytes(b) for b in bodies)
