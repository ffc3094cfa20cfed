"""Moving the first instruction of an AArch64 function, to make room for a branch to its stub.

One instruction is enough, so nothing can lead into the middle of what is replaced.  Two move where the function begins
with `paciasp`: as a landing mark it has to stay, but it signs the return address, which only the version that runs may do.
So the entry becomes `bti c; b stub`, and the copy begins with `paciasp`.
"""

from __future__ import annotations

import struct

from psu_bin.arch.aarch64 import BTI_C, BTI_JC, JUMP_SIZE, PACIASP, PACIBSP
from psu_bin.arch.code import Code, Kind, Moved


def is_mark(data: bytes) -> bool:
    """Whether code begins with a landing mark and nothing else (bti c), which has to stay at an entry."""
    return int.from_bytes(data[:4], "little") in (BTI_C, BTI_JC)


def movable(code: Code, first: int, entry: int, limit: int, data: bytes, calls_may_move: bool) -> Moved | str:
    """Which leading instructions of the function at `entry` make room for a jump, and their copy.

    first: index of its first instruction; limit: address where the room ends (the function, and padding behind it);
    data: the bytes [entry, limit).  Returns the reason, as text, where it cannot be done."""
    signs = int.from_bytes(data[:4], "little") in (PACIASP, PACIBSP)
    skip, head = 4 if is_mark(data) else 0, struct.pack("<I", BTI_C) if signs else b""
    size = len(head) + JUMP_SIZE
    copy, places = bytearray(), [(0, 0)]
    fixups: list[tuple[int, int]] = []
    for k in range(size // 4):
        i, at = first + (skip + 4 * k) // 4, entry + skip + 4 * k
        if at + 4 > limit or i >= len(code.address) or code.address[i] != at:
            return "shorter than a branch"
        kind = Kind(int(code.kind[i]))
        if kind in (Kind.CALL, Kind.CALL_INDIRECT) and not calls_may_move:
            return "calls something in its first instructions, and has exception handlers"
        if kind == Kind.JUMP_INDIRECT:
            return "jumps to a computed address in its first instructions"
        body = _moved(int.from_bytes(data[at - entry:at - entry + 4], "little"), int(code.target[i]), at)
        if body is None:
            return "reads a constant relative to itself in its first instructions"
        instructions, leads = body
        fixups += [(len(copy) + 4 * n, target) for n, target in leads]
        copy += struct.pack(f"<{len(instructions)}I", *instructions)
        places.append((4 * k + 4, len(copy)))
        if kind in (Kind.JUMP, Kind.RETURN, Kind.TRAP) and 4 * k + 4 < size:
            return "shorter than a branch"
    return Moved(skip, size, bytes(copy), tuple(fixups), tuple(places), head)


def _moved(word: int, target: int, at: int) -> tuple[list[int], list[tuple[int, int]]] | None:
    """(instructions that do elsewhere what `word`, which refers to `target`, does at `at`; (number of one, where it
    leads)).  The new place may be far away: what reaches 1 MB only gets longer.  None where there is no way."""
    if word & 0x7C000000 == 0x14000000:                                  # b, bl
        return [word], [(0, target)]
    if word & 0xFF000010 == 0x54000000 and word & 14 != 14:              # b.cond
        return [0x54000040 | word & 15 ^ 1, 0x14000000], [(1, target)]   # b.!cond .+8; b target
    if word & 0x7E000000 == 0x34000000:                                  # cbz, cbnz
        return [(word ^ 0x01000000) & 0xFF00001F | 0x40, 0x14000000], [(1, target)]
    if word & 0x7E000000 == 0x36000000:                                  # tbz, tbnz
        return [(word ^ 0x01000000) & 0xFFF8001F | 0x40, 0x14000000], [(1, target)]
    register = word & 31
    if word & 0x9F000000 == 0x90000000:                                  # adrp: the page, whatever the web makes of it
        pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
        page = (at & -4096) + ((pages ^ 1 << 20) - (1 << 20) << 12)
        return [word], [(0, page)]
    pair = [0x90000000 | register, 0x91000000 | register << 5 | register]    # adrp; add
    if word & 0x9F000000 == 0x10000000:                                  # adr
        return pair, [(0, target), (1, target)]
    if word & 0x3F000000 == 0x18000000 and word >> 30 != 3 and register != 31:   # ldr w, ldr x, ldrsw (literal)
        load = (0xB9400000, 0xF9400000, 0xB9800000)[word >> 30]
        return [*pair, load | register << 5 | register], [(0, target), (1, target)]
    if word & 0x3B000000 == 0x18000000 or word & 0xFF000000 == 0x54000000:   # ldr of a vector, prfm; bc.cond
        return None
    return [word], []
