"""The search for calls that were left (surplus.py), fuzzed: damaged memory, stacks, texts of /proc, lists of mappings.

The process is the recorded one, with a thread and its stack that are made up: the kernel's answers about pages and
threads cannot be damaged, so those two functions are replaced by what reads the case.  As in targets.py, a case is only bytes.
"""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from random import Random
from unittest import mock

from damage import damaged_bytes, numbers
from recorded import Recording, recording
from running import SYSCALLS, make_memory

from psu_bin.attach import pagemap, proc, shim, stacks, surplus, target
from psu_bin.attach.process import Mapping
from psu_bin.errors import PsuError

STACK, SIZE = 0x7FFE_0000_0000, 4 * 4096
TID = 77
MAP = f"{STACK:x}-{STACK + SIZE:x} rw-p 00000000 00:00 0                          [stack]\n".encode()
MOST = 1 << 28             # bytes of one stretch: the kernel never says that more was touched than there is memory


def _waiting(pc: int) -> bytes:
    return b"0 0x0 0x7f1c8ab1e000 0x20000 0x22 0x0 0x0 0x%x 0x%x\n" % (STACK + SIZE // 2, pc)


def _pack(syscall: bytes, schedstat: bytes, maps: bytes, stack: bytes, memory: bytes) -> bytes:
    head = json.dumps([x.decode("latin-1") for x in (syscall, schedstat, maps)]).encode()
    return struct.pack("<II", len(head), len(stack)) + head + stack + memory


def _stack(gates: list[int]) -> bytes:
    """Return addresses in the middle of the stack, where the stack pointer is, and some below it."""
    words = [0] * (SIZE // 8)
    for i, address in enumerate(gates):
        words[SIZE // 16 + (i + 1 if i % 2 else -i - 1)] = address
    return struct.pack(f"<{len(words)}Q", *words)


def _gates(r: Recording) -> list[int]:
    """Addresses in gates of each kind, the first ones and the last, and in their copies near the program."""
    runtime = target.read(r.process()).runtime()
    return [pool.first + delta + pool.stride * n + 5 & shim.WORD for pool in runtime.pools
            for delta in (0, runtime.near_delta) for n in (0, 1, pool.count - 1)]


def intact() -> tuple[bytes, ...]:
    """A thread that runs, one that waits, and one that is inside a gate."""
    r = recording()
    gates = _gates(r)
    return tuple(_pack(text, b"61235893 0 134\n", MAP, _stack(gates), r.pack())
                 for text in (SYSCALLS[0], _waiting(0x7F1C8AA4D1F2), _waiting(gates[0])))


def make_search(chance: Random) -> bytes:
    r = recording()
    gates = _gates(r)
    pc = chance.choice((0x7F1C8AA4D1F2, chance.choice(gates), chance.choice(numbers(bytes(4096)))))
    texts = [chance.choice((SYSCALLS[0], SYSCALLS[1], _waiting(pc & shim.WORD))), b"61235893 0 134\n", MAP]
    if not chance.randrange(3):
        at = chance.randrange(3)
        texts[at] = damaged_bytes(chance, texts[at])
    stack = _stack([chance.choice((chance.choice(gates), *(n & shim.WORD for n in numbers(bytes(64)))))
                    for _ in range(chance.choice((0, 1, 8)))])
    return _pack(*texts, stack, make_memory(chance) if chance.randrange(2) else r.pack())


def run_search(data: bytes) -> None:
    """Everything up to the command that has the agent count calls out."""
    head, size = struct.unpack_from("<II", data)
    texts = [x.encode("latin-1").decode("utf-8", "surrogateescape") for x in json.loads(data[8:8 + head])]
    syscall, schedstat, maps = texts
    stack = data[8 + head:8 + head + size]
    r = Recording.unpack(data[8 + head + size:])
    added: tuple[Mapping, ...] = proc.maps(maps, "/proc/1/maps")
    process = replace(r, starts=(*r.starts, STACK), bodies=(*r.bodies, stack), maps=(*r.maps, *added)).process()

    def standings(_: object, without: int, *, switches: bool = False) -> dict[int, stacks.Standing]:
        return {TID: stacks.stands(TID, syscall, schedstat, "/proc/1/task/77/syscall")}

    def touched(_: int, start: int, end: int) -> pagemap.Ranges:
        return [(start, min(end - start, MOST))] if start < end else []
    with (mock.patch.object(stacks, "standings", standings), mock.patch.object(pagemap, "touched", touched),
          mock.patch.object(surplus, "PATIENCE", 0.0), mock.patch.object(surplus, "agent_thread", lambda *_: None)):
        t = target.read(process)
        found = surplus.survey(t)
    if not found.surplus and data[8 + head + size:] == recording().pack():
        raise PsuError("process 4711", "the recorded surplus was not seen")
    assert not set(found.abandoned) & {k.index for k in found.keepers}
    assert set(found.abandoned) <= set(found.surplus)
