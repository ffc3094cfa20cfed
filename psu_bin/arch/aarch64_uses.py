"""What the code of a patch does with an address that it puts into a register.

Two answers.  The kind of access decides, as on x86-64, which of two neighbouring objects an address at their boundary means
(attach/boundary.py).  And *reaches*: GCC addresses several variables of a file through one anchor (-fsection-anchors, on by
default), so that `ldr w1, [x0, #8]` may be of another variable than the one that x0 was set to, without a relocation
that says so.  The variables of a patch do not keep their distances in the program, so attach has to know.

Followed over all ways inside the function, through copies, sums with constants and stack slots.
"""

from __future__ import annotations

from typing import NamedTuple

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch.aarch64_decode import SP
from psu_bin.arch.link_types import Access


class Uses(NamedTuple):
    access: Access
    reaches: tuple[int, ...]      # ascending: distances from the address at which memory is accessed, or that are taken


# The strongest evidence counts when an address is used in several ways.
ORDER = (Access.WRITTEN, Access.EXACT, Access.INDEXED, Access.TABLE, Access.ADDRESS, Access.BELOW, Access.COMPARED)


def strongest(found: set[Access]) -> Access:
    """The access that says most about which object is meant."""
    return next((a for a in ORDER if a in found), Access.ADDRESS)


def follow(words: tuple[int, ...], first: int, register: int) -> Uses:
    """Follow the address that is in `register` before words[first], until it is gone."""
    found: set[Access] = set()
    reaches: set[int] = set()
    # (register or stack slot, as SP + 1 + offset) -> distances from the address that it may hold
    start = {register: frozenset((0,))}
    seen: dict[int, dict[int, frozenset[int]]] = {}
    queue = [(first, start)]
    while queue:
        k, held = queue.pop()
        while 0 <= k < len(words) and held:
            known = seen.get(k, {})
            merged = {r: known.get(r, frozenset()) | d for r, d in held.items()}
            if all(known.get(r) == d for r, d in merged.items()):
                break
            if any(len(d) > 64 for d in merged.values()):        # a loop that counts: its steps stay in one object
                break
            seen[k] = {**known, **merged}
            word = words[k]
            held = _step(words, k, word, dict(merged), found, reaches)
            if decode.is_jump(word):
                target = decode.branch_target(word, 4 * k) // 4
                if decode.is_conditional(word):
                    queue.append((target, held))
                else:
                    k = target
                    continue
            if decode.ends_path(word):
                break
            k += 1
    return Uses(strongest(found), tuple(sorted(reaches)))


def _step(words: tuple[int, ...], k: int, word: int, held: dict[int, frozenset[int]], found: set[Access],
          reaches: set[int]) -> dict[int, frozenset[int]]:
    """What holds the address behind words[k]; notes how the instruction uses it."""
    rd, rn, rm = word & 31, word >> 5 & 31, word >> 16 & 31
    new: dict[int, frozenset[int]] = {}
    m = decode.memory(word)
    if m is not None:
        for d in held.get(m.base, ()) if m.base != SP else ():
            reaches.add(d + m.offset)
            if m.index >= 0:
                found.add(Access.TABLE if _jumps_soon(words, k) else Access.INDEXED)
            else:
                found.add(Access.BELOW if d + m.offset < 0 else Access.WRITTEN if m.store and d + m.offset == 0 else
                          Access.EXACT if d + m.offset == 0 else Access.INDEXED)
        for r in [r for r in held if r < SP and m.data >> r & 1]:
            if m.base == SP and word & 0x3B000000 in (0x39000000, 0x38000000) and m.index < 0:
                new[SP + 1 + m.offset] = held[r]          # a stack slot: read again below
            found.add(Access.ADDRESS)
        if m.base == SP and not m.store and m.index < 0 and SP + 1 + m.offset in held and not word >> 26 & 1:
            new[rd] = held[SP + 1 + m.offset]
    elif (step := decode.add_immediate(word)) is not None:
        if rn in held and rn != SP:
            new[rd] = frozenset(d + step for d in held[rn])
            if any(d + step < 0 for d in held[rn]):
                found.add(Access.BELOW)
    elif decode.is_copy(word):
        if rm in held:
            new[rd] = held[rm]
    elif word & 0x7F200000 in (0x6B000000, 0x6B200000) and rd == 31:             # cmp
        if rn in held or rm in held:
            found.add(Access.COMPARED)
    elif word & 0x1E000000 == 0x0A000000 or word & 0x1F000000 == 0x1B000000 or word & 0x1FC00000 == 0x1A800000:
        for r in (rn, rm):
            if r in held:
                found.add(Access.TABLE if _jumps_soon(words, k) else Access.INDEXED if word & 0x1F000000 == 0x0B000000
                          else Access.ADDRESS)
                if word & 0x1F000000 == 0x0B000000:
                    reaches.update(held[r])
    elif decode.is_call(word) or decode.is_indirect_call(word):
        if any(r < 9 for r in held):
            found.add(Access.ADDRESS)
            reaches.update(d for r in held if r < 9 for d in held[r])
    elif decode.ends_path(word) and not decode.is_jump(word):
        if 0 in held:
            found.add(Access.ADDRESS)
            reaches.update(held[0])
    gone = decode.writes(word)
    out = {r: d for r, d in held.items() if r > SP or not gone >> r & 1}
    out.update((r, d) for r, d in new.items() if r != SP)
    return out


def _jumps_soon(words: tuple[int, ...], k: int) -> bool:
    """The value is part of a computed jump: of a switch."""
    return any(decode.is_indirect_jump(w) for w in words[k + 1:k + 6])
