"""What a scan of compiled code yields: Code, one array element an instruction, the same for every architecture.

NAME_scan.py of an architecture produces it; the passes of instrument read it.  Arrays, because programs have millions
of instructions.  Addresses are file addresses; NONE stands for "no address".
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NONE = -1


class Kind(enum.IntEnum):
    """What an instruction does to the flow of control."""
    OTHER = 0
    NOP = 1              # padding: no effect at all
    MARK = 2             # where indirect calls and jumps may land: endbr64, bti; no effect
    CALL = 3             # direct, to `target`
    JUMP = 4             # direct, unconditional
    BRANCH = 5           # direct, conditional
    RETURN = 6
    CALL_INDIRECT = 7
    JUMP_INDIRECT = 8
    TRAP = 9             # never goes on: ud2, hlt, int3; brk, udf


class Field(enum.IntEnum):
    """How an instruction encodes `target`."""
    NONE = 0
    REL8 = 1             # too short to lead to a stub
    REL32 = 2            # x86-64: 4 bytes at `address + field_at`, relative to the end of the instruction
    INSTRUCTION = 3      # AArch64: the immediate of the instruction itself
    SUM = 4              # AArch64: `target` is a register, which other instructions set, plus the immediate


class Use(enum.IntEnum):
    """What an instruction does with `target`."""
    NONE = 0
    FLOW = 1             # goes there
    ADDRESS = 2          # computes the address
    MEMORY = 3           # reads or writes memory there (an indirect call or jump: reads its destination there)


def distinct(values: np.ndarray) -> np.ndarray:
    """The values of a one-dimensional array, ascending, each once.  numpy's `unique` imports its masked arrays first, which
    takes longer than a patch's code does."""
    ascending, first = np.sort(values), np.ones(len(values), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return ascending[first]


# Kinds after which the next instruction in memory is not executed next.
ENDS = (Kind.JUMP, Kind.RETURN, Kind.JUMP_INDIRECT, Kind.TRAP)


@dataclass(frozen=True)
class Code:
    """All instructions of a module, ascending by address."""
    address: np.ndarray   # int64
    length: np.ndarray    # uint8
    kind: np.ndarray      # uint8, Kind
    use: np.ndarray       # uint8, Use
    field: np.ndarray     # uint8, Field
    field_at: np.ndarray  # uint8: position of the field in the instruction
    target: np.ndarray    # int64: the address that the instruction refers to relative to itself, or NONE
    wrong: np.ndarray     # int64: addresses where decoding went wrong
    chains: np.ndarray    # int64 (n, 2): stretches decoded without looking at what is around them: [start, end)
    loose: np.ndarray     # int64 (n, 2): [start, end) of what code may refer to in a way that could not be followed
    # int64 (n, 3): [start, end) of what a landing pad may refer to, if exceptions lead to one from the call at the third, at one of
    # the distances `completes` from the start
    caught: np.ndarray
    completes: np.ndarray
    parts: Any            # the architecture's own: only its NAME_scan.py reads this

    def at(self, addresses: np.ndarray) -> np.ndarray:
        """The index of the instruction that begins at each address, or NONE."""
        if not len(self.address):
            return np.full(len(addresses), NONE, dtype=np.int64)
        where = np.searchsorted(self.address, addresses).clip(0, len(self.address) - 1)
        return np.where(self.address[where] == addresses, where, NONE)


@dataclass(frozen=True)
class Effects:
    """Registers of each instruction: `shape` gives the row of the other arrays, which hold one bit a register (uint64).

    Which bit stands for which register is the architecture's (RegisterFacts).
    """
    shape: np.ndarray     # uint32, one an instruction
    reads: np.ndarray     # uint64: registers whose value matters
    writes: np.ndarray    # uint64: registers that may be changed
    kills: np.ndarray     # uint64: registers whose old value is gone altogether
    refused: np.ndarray   # bool: the disassembler does not know this instruction, or takes it for another length


class StackMove(enum.IntEnum):
    """What an instruction does to the stack pointer, modulo 16."""
    KEEPS = 0
    FLIPS = 1            # moves it by an odd multiple of 8
    ALIGNS = 2           # makes it a multiple of 16
    UNKNOWN = 3


@dataclass(frozen=True)
class RegisterFacts:
    """An architecture's calling convention, in the bits of Effects."""
    volatile: int         # a callee may change them
    arguments: int        # may carry arguments
    variadic: int         # may carry an extra argument to variadic functions and nested functions (al, r10)
    results: int          # may carry results
    representable: int    # volatile ones that descriptor.Function.preserve can name
    preserve: Callable[[int], int]      # such ones as there, where several may have one bit
    odd: int              # kept only by the gates of functions with a convention of their own: condition flags
    spoiled: int          # plain and side gates may change them on the way out, results in odd places with them
    stub: int             # changed by stubs: nothing may be in them at an entry
    dwarf_volatile: int   # bit set of the DWARF numbers of volatile general registers


@dataclass(frozen=True)
class Region:
    """The code of a module as the scanner takes it: the bytes of one executable section."""
    address: int
    data: bytes
    starts: np.ndarray    # int64: addresses where an instruction is known to begin, ascending, the first is `address`
    ends: np.ndarray      # int64: where the chain of each start has to end
    # int64: addresses to which ways lead that no instruction shows, for a scanner that FOLLOWS_VALUES
    entered: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class Moved:
    """Leading instructions of a function that can move: bytes [skip, skip + length); fields as plan_types.Detour."""
    skip: int
    length: int
    copy: bytes                            # may be longer than what moves
    fixups: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, int], ...]    # (offset from skip, offset in copy) where instructions begin, and the end
    head: bytes = b""

    @property
    def grown(self) -> bool:
        return len(self.copy) != self.length

    def place(self, offset: int) -> int:
        """Where the instruction that begins `offset` bytes behind skip begins in the copy."""
        return dict(self.places).get(offset, 0)
