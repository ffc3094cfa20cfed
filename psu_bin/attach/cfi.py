"""Where the canonical frame address (CFA) and the return address are at each instruction of a function, from .eh_frame.

The compiler wrote it down for unwinders.  The linker uses it to tell an access to the caller's stack arguments (at or
above the CFA) of a patch's function from one to the function's own frame; leaf.py, to know of a loaded function whether
it keeps its return address in memory.

Specification: DWARF 5, 6.4; Linux Standard Base, 10.6 (.eh_frame).
"""

from __future__ import annotations

from typing import NamedTuple

from psu_bin.attach.patch import PatchObject


class Row(NamedTuple):
    """From offset `start` of the section on, CFA = register + offset; register -1: not of that form."""
    start: int
    register: int       # DWARF number
    offset: int
    saved: int | None   # the return address is in memory, at CFA + this; None: in a register, or not in that form


class Cie(NamedTuple):
    """A common information entry."""
    code_align: int
    data_align: int
    column: int             # DWARF number of the return address
    encoding: int           # of addresses in its frame description entries
    augmentation: str
    initial: tuple[Row, ...]


class Frame(NamedTuple):
    """One frame description entry: code [start, end) of a section, and its rows, ascending."""
    start: int
    end: int
    rows: tuple[Row, ...]


WIDTHS = {0: 8, 2: 2, 3: 4, 4: 8, 0xA: 2, 0xB: 4, 0xC: 8}         # of addresses, by the lower half of their encoding
_ONE_REGISTER = frozenset((0x06, 0x07, 0x08))          # restore_extended, undefined, same_value
_TWO_OPERANDS = frozenset((0x09, 0x11, 0x14, 0x15, 0x2F))        # register, offset_extended_sf, val_offset and the like


def frames(patch: PatchObject) -> dict[int, list[Frame]]:
    """Frame descriptions by index of the code section.

    What cannot be understood is left out: a function without rows is treated as unknown, which is always safe."""
    out: dict[int, list[Frame]] = {}
    for s in patch.sections:
        if s.name == ".eh_frame":
            try:
                _read(patch, s.index, out)
            except (IndexError, KeyError, ValueError):
                continue
    return out


def _read(patch: PatchObject, index: int, out: dict[int, list[Frame]]) -> None:
    data = patch.contents[index]
    relocs = {r.offset: r for r in patch.relocs.get(index, ())}
    cies: dict[int, Cie] = {}
    at = 0
    while at + 4 <= len(data):
        length = int.from_bytes(data[at:at + 4], "little")
        if length == 0:
            at += 4
            continue
        start, end = at + 4, at + 4 + length
        ident = int.from_bytes(data[start:start + 4], "little")
        body = start + 4
        if ident == 0:
            cies[at] = read_cie(data, body, end)
        else:
            cie = cies[start - ident]
            width = WIDTHS[cie.encoding & 15]
            r = relocs.get(body)
            if r is not None:
                symbol = patch.symbols[r.symbol]
                first = symbol.value + r.addend
                size = int.from_bytes(data[body + width:body + 2 * width], "little")
                p = body + 2 * width
                rows = run(data, past_augmentation(cie, data, p), end, first, cie)
                out.setdefault(symbol.section, []).append(Frame(first, first + size, rows))
        at = end


def read_cie(data: bytes, p: int, end: int) -> Cie:
    """The common information entry whose version is at `p`.  Raises ValueError, IndexError or KeyError for an odd one."""
    p += 1                                                   # version
    zero = data.index(b"\0", p)
    augmentation = data[p:zero].decode("ascii", "replace")
    p = zero + 1
    code_align, p = _uleb(data, p)
    data_align, p = _sleb(data, p)
    column, p = _uleb(data, p)                               # a byte in version 1, below 128 here
    encoding = 0
    if augmentation.startswith("z"):
        n, p = _uleb(data, p)
        q = p
        for letter in augmentation[1:]:
            if letter == "R":
                encoding = data[q]
                q += 1
            elif letter == "L":
                q += 1
            elif letter == "P":
                q += 1 + WIDTHS[data[q] & 15]
        p += n
    cie = Cie(code_align, data_align, column, encoding, augmentation, ())
    return cie._replace(initial=run(data, p, end, 0, cie))


def past_augmentation(cie: Cie, data: bytes, p: int) -> int:
    """Where a frame description entry's instructions begin, whose addresses end at `p`."""
    if cie.augmentation.startswith("z"):
        n, p = _uleb(data, p)
        p += n
    return p


def run(data: bytes, p: int, end: int, at: int, cie: Cie) -> tuple[Row, ...]:
    """Execute the call frame instructions [p, end) for code from `at` on.  Of registers, the return address alone matters.

    Raises ValueError, IndexError or KeyError when there is something that is not understood."""
    start = cie.initial[-1] if cie.initial else Row(at, -1, 0, None)
    _, register, offset, saved = start
    rows = [Row(at, register, offset, saved)]
    stack: list[tuple[int, int, int | None]] = []
    while p < end:
        op = data[p]
        p += 1
        high, low = op & 0xC0, op & 0x3F
        step = None
        if high == 0x40:
            step = low
        elif high == 0x80:
            n, p = _uleb(data, p)
            saved = n * cie.data_align if low == cie.column else saved
        elif high == 0xC0:
            saved = start.saved if low == cie.column else saved
        elif op in (0x00, 0x2D):                             # 2D: the return address is signed (AArch64)
            pass
        elif op in (0x02, 0x03, 0x04):
            width = 1 << (op - 2)
            step = int.from_bytes(data[p:p + width], "little")
            p += width
        elif op == 0x0A:
            stack.append((register, offset, saved))
        elif op == 0x0B:
            register, offset, saved = stack.pop()
        elif op == 0x0C:
            register, p = _uleb(data, p)
            offset, p = _uleb(data, p)
        elif op == 0x0D:
            register, p = _uleb(data, p)
        elif op == 0x0E:
            offset, p = _uleb(data, p)
        elif op == 0x0F:
            n, p = _uleb(data, p)
            p += n
            register = -1
        elif op == 0x05:
            which, p = _uleb(data, p)
            n, p = _uleb(data, p)
            saved = n * cie.data_align if which == cie.column else saved
        elif op in (0x10, 0x16):
            which, p = _uleb(data, p)
            n, p = _uleb(data, p)
            p += n
            saved = None if which == cie.column else saved
        elif op == 0x2E:                                     # GNU_args_size
            _, p = _uleb(data, p)
        elif op in _ONE_REGISTER:
            which, p = _uleb(data, p)
            back = start.saved if op == 0x06 else None
            saved = back if which == cie.column else saved
        elif op in _TWO_OPERANDS:
            which, p = _uleb(data, p)
            _, p = _uleb(data, p)
            saved = None if which == cie.column else saved
        else:                                                # 0x01 set_loc, def_cfa_sf and unknown ones: give up
            raise ValueError(f"call frame instruction {op:#x}")
        if step is not None:
            at += step * cie.code_align
        if rows[-1].start == at:
            rows[-1] = Row(at, register, offset, saved)
        elif rows[-1][1:] != (register, offset, saved):
            rows.append(Row(at, register, offset, saved))
    return tuple(rows)


def _uleb(data: bytes, p: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[p]
        p += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, p


def _sleb(data: bytes, p: int) -> tuple[int, int]:
    value, q = _uleb(data, p)
    bits = 7 * (q - p)
    return (value - (1 << bits) if value >> bits - 1 & 1 else value), q
