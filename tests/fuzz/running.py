"""What is fuzzed of a running process: its memory and psu-bin's notes in it, texts of /proc, seccomp filters.

As in targets.py, a case is only bytes.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib
from random import Random
from types import SimpleNamespace

from damage import damaged_bytes, numbers
from memory import Bytes
from recorded import Recording, read_all, recording

from psu_bin import arch, elf
from psu_bin.attach import meta, pressure, proc, revert, seccomp, target
from psu_bin.attach.commit import choose_indices
from psu_bin.attach.process import find_gap, thread_of
from psu_bin.attach.transaction import views

# ---- memory ---------------------------------------------------------------------------------------------------------


def make_memory(chance: Random) -> bytes:
    """Words are awkward numbers, other words (pointers lead elsewhere) or have a bit changed; or the notes are damaged."""
    r = recording()
    bodies = [bytearray(b) for b in r.bodies]
    if not chance.randrange(3):
        return with_notes(chance, r).pack()
    for _ in range(chance.choice((1, 1, 2, 4))):
        body = chance.choice(bodies)
        width = chance.choice((1, 2, 4, 8, 8))
        at = chance.randrange(max(len(body) - width, 0) // width + 1) * width
        how = chance.randrange(3)
        if how == 0:
            value = chance.choice(numbers(bytes(4096)))
        elif how == 1:
            other = chance.choice(r.bodies)
            value = int.from_bytes(other[chance.randrange(len(other) // 8 + 1) * 8:][:8], "little")
        else:
            value = int.from_bytes(body[at:at + width], "little") ^ 1 << chance.randrange(8 * width)
        body[at:at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")[:len(body) - at]
    return Recording(r.starts, tuple(map(bytes, bodies)), r.maps, r.threads, r.own_pid).pack()


@functools.cache
def _notes() -> tuple[int, str]:
    """(number of the range that holds the notes, their JSON)."""
    r = recording()
    process = r.process()
    at = target.read(process).runtime().meta
    n = next(n for n, (start, body) in enumerate(zip(r.starts, r.bodies)) if start <= at < start + len(body))
    assert r.starts[n] == at
    (length,) = struct.unpack_from("<Q", r.bodies[n])
    return n, zlib.decompress(r.bodies[n][8:8 + length]).decode()


def with_notes(chance: Random, r: Recording) -> Recording:
    """Notes that say something else, packed as they should be."""
    n, text = _notes()
    tree = json.loads(text)
    if chance.randrange(4):
        for _ in range(chance.choice((1, 1, 3))):
            _other_value(chance, tree)
        raw = json.dumps(tree).encode()
    else:
        raw = damaged_bytes(chance, text.encode())
    packed = zlib.compress(raw, 1)
    blob = struct.pack("<Q", len(packed)) + packed
    bodies = list(r.bodies)
    bodies[n] = blob.ljust(len(bodies[n]), b"\0")
    return Recording(r.starts, tuple(bodies), r.maps, r.threads, r.own_pid)


def _other_value(chance: Random, tree: object) -> None:
    """Some value in a tree of JSON becomes another, or goes, or comes twice."""
    places: list[tuple[dict | list, str | int]] = []

    def walk(node: object) -> None:
        if isinstance(node, (dict, list)):
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                walk(node[key])
    walk(tree)
    node, key = chance.choice(places)
    how = chance.randrange(5)
    if how == 0:
        del node[key]  # type: ignore[arg-type]
    elif how == 1 and isinstance(node, list):
        node.append(node[key])  # type: ignore[index]
    elif how == 2:
        other, place = chance.choice(places)
        node[key] = json.loads(json.dumps(other[place]))  # type: ignore[index, call-overload]
    else:
        node[key] = chance.choice(  # type: ignore[index, call-overload]
            (0, -1, 1, 7, 1 << 32, 1 << 64, 10 ** 400, "", "x", None, True, 1.5, [], {}, [[]], [[1]]))


def run_memory(data: bytes) -> None:
    """Everything up to the first thing that attach and revert would change."""
    process = Recording.unpack(data).process()
    read_all(process)
    t = target.read(process)
    runtime = t.runtime()
    notes = meta.read(process, runtime)
    choose_indices(runtime, process, [list(notes.functions)])
    views(t, notes)
    for patch_id in (None, 2):
        revert._chosen(notes, patch_id, False, process)
    for f in notes.functions:
        if f.module:
            revert._to_original(SimpleNamespace(target=t), f)  # type: ignore[arg-type]


# ---- /proc ----------------------------------------------------------------------------------------------------------

MAPS = (b"5652084ea000-5652084ec000 r--p 00000000 fe:00 260386                     /usr/bin/head\n"
        b"5652084ec000-5652084f2000 r-xp 00002000 fe:00 260386                     /usr/bin/he ad (deleted)\n"
        b"56520963e000-56520965f000 rw-p 00000000 00:00 0                          [heap]\n"
        b"7f1c8ab3e000-7f1c8ab40000 rw-p 00000000 00:00 0 \n"
        b"7f1c8ab40000-7f1c8ab41000 r--s 00000000 00:01 1027                       /memfd:\xff\x0b \\012 (deleted)\n"
        b"7ffc11922000-7ffc11926000 r--p 00000000 00:00 0                          [vvar]\n"
        b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n")
STAT = (b"4711 (a) R (\xff) S 4710 4711 4700 34816 4711 4194304 101 0 0 0 0 0 0 0 20 0 2 0 6029453 5844992 448 "
        b"18446744073709551615 94825129541632 94825129562769 140735184498912 0 0 0 0 0 0 0 0 0 17 1 0 0 0 0 0 "
        b"94825129576048 94825129577600 94825142292480 140735184504021 140735184504041 140735184504041 140735184506859 0\n")
STATUS = (b"Name:\ta\\n\xff\rTgid:\t1\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4711\nNgid:\t0\nPid:\t4711\nPPid:\t1\n"
          b"TracerPid:\t0\nUid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nFDSize:\t64\nNStgid:\t4711\t7\nNSpid:\t4711\t7\nVmSize:\t 5708 kB\n"
          b"Threads:\t2\nSigQ:\t0/15263\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\nSigBlk:\tfffffffe7ffbfeff\n"
          b"CapEff:\t000001ffffffffff\nNoNewPrivs:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n")
SYSCALLS = (b"running\n", b"-1 0x7ffc11923f48 0x7f1c8aa4d1f2\n",
            b"0 0x0 0x7f1c8ab1e000 0x20000 0x22 0x0 0x0 0x7ffc11923f48 0x7f1c8aa4d1f2\n")
MOUNTS = ("14:35 31 0:32 / /sys/fs/cgroup/mem\\040ory rw,relatime shared:7 - cgroup cgroup rw,memory\n"
          "20:41 31 0:38 /c /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n")


def _maps(text: str) -> None:
    maps = proc.maps(text, "/proc/1/maps")
    find_gap(maps, 8192, 0x10000, 1 << 47)
    Bytes([], list(maps)).maps()


def _status(text: str) -> None:
    fields = proc.status(text)
    for name in ("SigPnd", "ShdPnd", "SigBlk", "CapEff"):
        proc.number(fields, name, "/proc/1/status", base=16)
    for name in ("Seccomp", "Seccomp_filters", "NSpid"):
        proc.number(fields, name, "/proc/1/status", default="0")
    thread_of(text, 1, "/proc/1/task/1/status")


READERS = {b"maps": _maps, b"stat": lambda text: proc.stat(text, "/proc/1/stat"), b"status": _status,
           b"syscall": lambda text: proc.syscall(text, "/proc/1/task/1/syscall"),
           b"cgroup": lambda text: list(pressure.folders(text, MOUNTS)),
           b"mountinfo": lambda text: list(pressure.folders("4:memory:/a/b\n0::/c\n", text)), b"schedstat": proc.ran, b"statm": proc.resident_pages}
TEXTS = ((b"maps", MAPS), (b"stat", STAT), (b"status", STATUS), *((b"syscall", s) for s in SYSCALLS),
         (b"cgroup", b"4:memory:/a/b\n0::/c\n"), (b"mountinfo", MOUNTS.encode()), (b"schedstat", b"61235893 0 134\n"), (b"statm", b"1427 405 388 5 0 138 0\n"))


def make_proc(chance: Random) -> bytes:
    kind, text = chance.choice(TEXTS)
    return kind + b"\0" + damaged_bytes(chance, text)


def run_proc(data: bytes) -> None:
    kind, _, text = data.partition(b"\0")
    READERS[kind](text.decode("utf-8", "surrogateescape"))


# ---- seccomp --------------------------------------------------------------------------------------------------------

_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
FILTERS = tuple(b"".join(struct.pack("<HBBI", *row) for row in rows) for rows in (
    [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (6, 0, 0, _KILL), (0x20, 0, 0, 0), (0x35, 0, 1, 400), (6, 0, 0, _ERRNO),
     (0x15, 0, 1, 101), (6, 0, 0, _ERRNO), (6, 0, 0, _ALLOW)],
    [(0x20, 0, 0, 0), (0x02, 0, 0, 3), (0x61, 0, 0, 3), (0x07, 0, 0, 0), (0x0C, 0, 0, 0), (0x34, 0, 0, 2), (0x44, 0, 0, 1),
     (0x54, 0, 0, 0xFF), (0x64, 0, 0, 3), (0x74, 0, 0, 3), (0x84, 0, 0, 0), (0xA4, 0, 0, 5), (0x24, 0, 0, 3), (0x14, 0, 0, 1),
     (0x80, 0, 0, 0), (0x87, 0, 0, 0), (0x05, 0, 0, 1), (6, 0, 0, _KILL), (0x20, 0, 0, 24), (0x45, 0, 1, 4), (6, 0, 0, _ALLOW),
     (0x06, 0, 0, _ALLOW)]))


def make_filter(chance: Random) -> bytes:
    return damaged_bytes(chance, chance.choice(FILTERS)) if chance.randrange(2) else _fields(chance, chance.choice(FILTERS))


def _fields(chance: Random, program: bytes) -> bytes:
    """Instructions with other operations, jumps and operands."""
    rows = [list(row) for row in struct.iter_unpack("<HBBI", program)]
    for _ in range(chance.choice((1, 2, 3))):
        row = chance.choice(rows)
        field = chance.randrange(4)
        row[field] = chance.choice((chance.randrange(1 << (16, 8, 8, 32)[field]), chance.choice(rows)[field]))
    return b"".join(struct.pack("<HBBI", *row) for row in rows)


def run_filter(data: bytes) -> None:
    """As the kernel hands filters out: whole instructions, 4096 at most."""
    program = data[:len(data) // 8 * 8][:8 * 4096]
    calls = arch.for_machine(elf.EM_X86_64, "process 4711").calls
    wanted = [seccomp.Call(*c) for c in (*calls.THREAD, *calls.AGENT)]
    seccomp.refuse([program], calls.AUDIT_ARCH, wanted, "process 4711")
