"""Giving an instruction of a patch an address of its own.

An instruction that uses a variable at a distance from another one's address moves to a veneer behind the section's code,
where it is preceded by the address; a branch takes its place:

    adrp x16, variable; add x16, x16, :lo12:variable; ldr w1, [x16]; b back

What is left of an index is added to it.  The function must not use x16 (or x17) itself: then nobody minds it, as linkers' veneers at calls change both, too.  A load
into a general register needs no other.  Flags stay.  No unwind rule covers a veneer: nothing in it can fault or call, so only
a backtrace taken by a signal handler at just this instruction ends there.
"""

from __future__ import annotations

import struct

from psu_bin.arch import aarch64_decode as decode

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch.aarch64_reads import mentions
from psu_bin.arch.link_types import Cut

ADRP, ADD = 275, 277                  # relocation types
ORIGIN = 17                           # holds what an index was added to


def free_registers(words: list[int]) -> tuple[int, ...]:
    """Those of x16 and x17 that none of the words means."""
    used = 0
    for w in words:
        used |= mentions(w)
    return tuple(r for r in (16, ORIGIN) if not used >> r & 1)


def possible(word: int, free: tuple[int, ...], indexed: bool = False) -> bool:
    """The load, store or sum can move to a veneer; indexed: with an index in its base register."""
    if step(word) is not None:
        return not indexed and (decode.add_immediate(word) is not None or memory_size(word)[0] > 0)
    return memory_size(word)[0] > 0 and (
        len(free) == 2 if indexed else bool(free) or _own_register(word) is not None)


def step(word: int) -> int | None:
    """What an add, sub, or load or store with pre-index, adds to its base register; None for other instructions."""
    m = decode.memory(word)
    if m is None:
        return decode.add_immediate(word)
    pre = m.writes_base and (word & 0x3B800000 == 0x29800000 or word & 0x3B200C00 == 0x38000C00)
    return m.offset if pre else None


def is_origin(word: int, free: tuple[int, ...]) -> bool:
    """The adrp or add, in a veneer, is of the address that an index was added to."""
    return len(free) == 2 and word & 31 == ORIGIN


def _own_register(word: int) -> int | None:
    """The general register that a load of one fills in, else None."""
    m = decode.memory(word)
    fills = m is not None and not m.store and memory_size(word)[1] == 1 and decode.writes(word) >> (word & 31) & 1
    return word & 31 if fills else None


def memory_size(word: int) -> tuple[int, int]:
    """(bytes of one element, elements) of a load or store with an immediate offset; (0, 1) for others."""
    simd, size = word >> 26 & 1, word >> 30
    post = word & 0x3B800000 == 0x28800000
    if word & 0x3A000000 == 0x28000000 and word & 0xFE400000 != 0x68000000 and not post:        # stgp stores a tag, too
        return (4 << size if simd else 8 if size == 2 else 4), 2
    if word & 0x3B000000 == 0x39000000 or word & 0x3B200C00 in (0x38000000, 0x38000C00):
        return (16 if simd and not size and word >> 23 & 1 else 1 << size), 1
    return 0, 1


def veneer(word: int, cut: Cut, free: tuple[int, ...]) -> tuple[bytes, list[tuple[int, int, int, int]]]:
    """(code, relocations as (offset, type, symbol, addend)) that does what `word` does, for which possible() holds."""
    out: list[int] = []
    relocs: list[tuple[int, int, int, int]] = []

    def address(register: int, addend: int) -> None:
        relocs.append((4 * len(out), ADRP, cut.symbol, addend))
        relocs.append((4 * len(out) + 4, ADD, cut.symbol, addend))
        out.extend((0x90000000 | register, 0x91000000 | register << 5 | register))

    if decode.add_immediate(word) is not None:
        address(word & 31, cut.addend)
    else:
        size, count = memory_size(word)
        register = free[0] if free else _own_register(word)
        if step(word) is not None:
            register = word >> 5 & 31             # which gets the address for good
        assert register is not None
        for n in reversed(range(count)):
            address(register, cut.addend + n * size)
            if cut.register >= 0:
                # + register - (symbol + origin + distance)
                out.append(0x8B000000 | cut.register << 16 | register << 5 | register)
                address(ORIGIN, cut.origin)
                out.append(0xCB000000 | ORIGIN << 16 | register << 5 | register)
                if cut.distance:
                    out.append(0xD1000000 | cut.distance << 10 | register << 5 | register)
            out.append(_single(word, n, register))
    return struct.pack(f"<{len(out)}I", *out), relocs


def _single(word: int, n: int, base: int) -> int:
    """A load or store of element `n` of those that `word` moves, at [base]."""
    simd, load = word >> 26 & 1, word >> 22 & 1
    if word & 0x3A000000 != 0x28000000:
        offset = 0x3FFC00 if word & 0x01000000 else 0x1FFC00
        return word & ~(offset | 31 << 5) | base << 5
    register = word >> 10 & 31 if n else word & 31
    size = word >> 30
    if simd:
        opcode = (0xBD000000, 0xFD000000, 0x3D800000)[size] | (0x00400000 if load else 0)
    else:
        opcode = 0xB9800000 if size == 1 else (0xB9000000, 0, 0xF9000000)[size] | (0x00400000 if load else 0)
    return opcode | base << 5 | register
