"""The shim's side of the contract, as Python reads and writes it: the structures of shim/runtime.h.

Offsets and formats repeat runtime.h; Runtime.read refuses a shim whose version or sizes differ, so a mismatch is an
error message and never a wrong store.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from psu_bin.attach.process import Process
from psu_bin.errors import PsuError

MAGIC = 0x314E55525F555350
VERSION = 8

PLAIN, SIDE, FULL = range(3)
NO_GATE = 0xFFFFFFFF
ON_STACK = 1                  # psu_switch.otherwise
NO_PATCH = 0                  # the patch of objects that are none's: mirrors.py, originals.py
WORD = (1 << 64) - 1          # distances wrap

FREE, CURRENT, RETIRED = range(3)
AGENT_NONE, AGENT_STARTING, AGENT_PARKED, AGENT_BUSY = range(4)

OP_RESET, OP_MAP, OP_PROTECT, OP_RESOLVE, OP_COMMIT, OP_PIN, OP_WRITE_OFF, OP_TURN = range(1, 9)

GATE = struct.Struct("<QII9Q40x")
OBJECT = struct.Struct("<IIQ6Q")
COUNTER = struct.Struct("<II")
COMMAND = struct.Struct("<IIQ")
MAP = struct.Struct("<QQII")
SYMBOL = struct.Struct("<QQQQII")
PIN = struct.Struct("<Q")
CODE = struct.Struct("<QQII")
TURN = struct.Struct("<QQQ")
SURPLUS = struct.Struct("<IIII")
SWITCH = struct.Struct("<QQQ6IQQ")
COMMIT = struct.Struct("<4IQQ")
NEW_OBJECT = struct.Struct("<IIQ6Q2Q")
_HEAD = struct.Struct("<QIIIIIIII QQHHI QQHHI QQHHI QQQQQQQ IIIIHHHHQqQII".replace(" ", ""))
_TAIL = struct.Struct("<QQqQQQQQQ")
STAGED = 1024
_TAIL_OFFSET = 224 + 24 * STAGED
COMMAND_SEQ_OFFSET = 184
AGENT_ERROR_OFFSET = _TAIL_OFFSET + 16
COMMAND_ADDRESS_OFFSET = 192
SILENT_OFFSET = _TAIL_OFFSET + 7 * 8
BUFFER_OFFSET = (_TAIL_OFFSET + 9 * 8 + 15) // 16 * 16
BUFFER_SIZE = 4096
REGIONS = 3


@dataclass(frozen=True)
class Pool:
    """The gates of one kind: gate g is at first + g * stride, its data at data + g * 128."""
    first: int
    data: int
    stride: int
    look: int              # offset in each gate of its second entry, which looks where calls come from; 0: it has none
    count: int


@dataclass(frozen=True)
class Object:
    """A psu_object: one injected object; its index is its counter index."""
    index: int
    patch: int
    state: int
    eh_frame: int
    regions: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Without the room for stubs beside it (inner.py), which takes memory only once it is used."""
        return self.regions[0][1] if self.regions else 0


@dataclass(frozen=True)
class Runtime:
    """A copy of the fixed part of psu_runtime, as it was at one moment."""
    address: int
    pools: tuple[Pool, ...]
    sizeof_block: int
    offsetof_count: int
    indices: int
    objects: int
    totals: int
    shared: int
    blocks: int
    commit_seq: int
    meta: int
    meta_size: int
    agent_tid: int
    agent_pid: int
    agent_state: int
    membarrier_error: int
    command_seq: int
    done_seq: int
    result: int
    failed_entry: int
    staged_count: int
    start_agent: int
    borrow: int
    agent_error: int           # errno of the last attempt to start the agent, 0: none failed
    near_delta: int
    command_ns: int
    leaving: tuple[int, int]        # code of the shim: see runtime.h
    object_limit: int               # no object has an index as high

    @staticmethod
    def read(process: Process, address: int) -> Runtime:
        """The runtime at `address`.  Raises PsuError when the shim is of another version."""
        raw = process.read(address, _TAIL_OFFSET + _TAIL.size)
        f = _HEAD.unpack_from(raw)
        magic, version, _, gate, object_, block, side, offsetof_count, indices = f[:9]
        if (magic, version, gate, object_, side) != (MAGIC, VERSION, GATE.size, OBJECT.size, 64):
            raise PsuError(process.where, f"runs a shim of another version: {version}, this psu-bin has {VERSION}",
                           "use the psu-bin that instrumented it")
        pools = tuple(Pool(*f[9 + 5 * i:14 + 5 * i]) for i in range(3))
        (objects, totals, shared, blocks, commit_seq, meta, meta_size, tid, pid, state, membarrier_error,
         command_seq, _, done_seq, _, _, result, failed, staged, _) = f[24:]
        (start_agent, borrow, agent_error, near_delta, command_ns, leaving,
         leaving_end, _, limit) = _TAIL.unpack_from(raw, _TAIL_OFFSET)
        if leaving > leaving_end or any(p.first + p.stride * p.count >= WORD or p.data >= WORD for p in pools):
            raise PsuError(process.where, "psu-bin's state in it is damaged: gates beyond the end of memory")
        return Runtime(address, pools, block, offsetof_count, indices, objects, totals, shared, blocks, commit_seq,
                       meta, meta_size, tid, pid, state, membarrier_error, command_seq, done_seq, result, failed,
                       staged, start_agent, borrow, agent_error, near_delta, command_ns, (leaving, leaving_end),
                       min(limit, indices))

    def read_objects(self, process: Process) -> tuple[Object, ...]:
        """All objects that are not free."""
        raw = process.read(self.objects, self.object_limit * OBJECT.size) if self.object_limit else b""
        return tuple(Object(i, patch, state, eh_frame, tuple((a, n) for a, n in zip(regions[::2], regions[1::2]) if n))
                     for i, (patch, state, eh_frame, *regions) in enumerate(OBJECT.iter_unpack(raw)) if state != FREE)

    def sums(self, process: Process, indices: tuple[int, ...]) -> dict[int, tuple[int, int]]:
        """For each counter index, (enters, leaves) of all threads together, modulo 2^32.

        As in shim/reclaim.c: leaves first, so that of calls that begin and end meanwhile none is taken for left."""
        def column(offset: int) -> dict[int, int]:
            bases = self._counters(process)
            return {i: sum(int.from_bytes(process.read(base + i * COUNTER.size + offset, 4), "little")
                           for _, base in bases) & 0xFFFFFFFF for i in indices}
        leaves = column(4)
        enters = column(0)
        return {i: (enters[i], leaves[i]) for i in indices}

    def _counters(self, process: Process) -> list[tuple[int, int]]:
        """Every table of counters: (thread, address); thread 0: dead threads and shared counts."""
        sources = [(0, self.totals), (0, self.shared)]
        block, steps = self.blocks, 0
        seen: dict[int, int] = {}         # a block that moves to the front meanwhile leads past the same ones again
        while block and steps < 4 * len(seen) + 64:
            _, tid, _, following = struct.unpack("<IIQQ", process.read(block, 24))
            seen[block] = tid
            block, steps = following, steps + 1
        return sources + [(tid, block + self.offsetof_count) for block, tid in seen.items()]

    def activations(self, process: Process, indices: tuple[int, ...]) -> dict[int, dict[int, int]]:
        """For each counter index, {thread (its own numbering): activations}; 0 names dead threads and shared counts.

        Read while threads count, so a single number may be off by calls that began or ended meanwhile."""
        out: dict[int, dict[int, int]] = {i: {} for i in indices}
        for tid, base in self._counters(process):
            for i in indices:
                enter, leave = COUNTER.unpack(process.read(base + i * COUNTER.size, COUNTER.size))
                n = (enter - leave) & 0xFFFFFFFF
                n = n - (1 << 32) if n >> 31 else n
                if n:
                    out[i][tid] = out[i].get(tid, 0) + n
        return out
