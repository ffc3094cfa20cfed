"""Where the canonical frame address (CFA) is at each instruction of a patch's functions, read from its .eh_frame.

The compiler wrote it down for unwinders; the linker uses it to tell an access to the caller's stack arguments (at or
above the CFA) from one to the function's own frame.

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


class Frame(NamedTuple):
    """One frame description entry: code [start, end) of a section, and its rows, ascending."""
    start: int
    end: int
    rows: tuple[Row, ...]


_ONE_OPERAND = frozenset((0x06, 0x07, 0x08, 0x2E))     # restore_extended, undefined, same_value, GNU_args_size
_TWO_OPERANDS = frozenset((0x05, 0x09, 0x11, 0x14, 0x15, 0x2F))  # offset_extended, register, val_offset and the like


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
    cies: dict[int, tuple[int, int, int, tuple[Row, ...], bool]] = {}
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
            cies[at] = _cie(data, body, end)
        else:
            cie = cies[start - ident]
            code_align, data_align, encoding, initial, augmented = cie
            width = {0: 8, 2: 2, 3: 4, 4: 8, 0xA: 2, 0xB: 4, 0xC: 8}[encoding & 15]
            r = relocs.get(body)
            if r is not None:
                symbol = patch.symbols[r.symbol]
                first = symbol.value + r.addend
                size = int.from_bytes(data[body + width:body + 2 * width], "little")
                p = body + 2 * width
                if augmented:
                    n, p = _uleb(data, p)
                    p += n
                rows = _run(data, p, end, first, code_align, data_align, initial)
                out.setdefault(symbol.section, []).append(Frame(first, first + size, rows))
        at = end


def _cie(data: bytes, p: int, end: int) -> tuple[int, int, int, tuple[Row, ...], bool]:
    p += 1                                                   # version
    zero = data.index(b"\0", p)
    augmentation = data[p:zero].decode("ascii", "replace")
    p = zero + 1
    code_align, p = _uleb(data, p)
    data_align, p = _sleb(data, p)
    _, p = _uleb(data, p)                                    # return address register
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
                q += 1 + {0: 8, 2: 2, 3: 4, 4: 8, 0xA: 2, 0xB: 4, 0xC: 8}[data[q] & 15]
        p += n
    return code_align, data_align, encoding, _run(data, p, end, 0, code_align, data_align, ()), augmentation[:1] == "z"


def _run(data: bytes, p: int, end: int, at: int, code_align: int, data_align: int,
         initial: tuple[Row, ...]) -> tuple[Row, ...]:
    """Execute call frame instructions; only those that say where the CFA is matter."""
    register, offset = (initial[-1].register, initial[-1].offset) if initial else (-1, 0)
    rows = [Row(at, register, offset)]
    stack: list[tuple[int, int]] = []
    while p < end:
        op = data[p]
        p += 1
        high, low = op & 0xC0, op & 0x3F
        step = None
        if high == 0x40:
            step = low
        elif high == 0x80:
            _, p = _uleb(data, p)
        elif high == 0xC0 or op in (0x00, 0x2D):             # 2D: the return address is signed (AArch64)
            pass
        elif op in (0x02, 0x03, 0x04):
            width = 1 << (op - 2)
            step = int.from_bytes(data[p:p + width], "little")
            p += width
        elif op == 0x0A:
            stack.append((register, offset))
        elif op == 0x0B:
            register, offset = stack.pop()
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
        elif op in (0x10, 0x16):
            _, p = _uleb(data, p)
            n, p = _uleb(data, p)
            p += n
        elif op in _ONE_OPERAND:
            _, p = _uleb(data, p)
        elif op in _TWO_OPERANDS:
            _, p = _uleb(data, p)
            _, p = _uleb(data, p)
        else:                                                # 0x01 set_loc, def_cfa_sf and unknown ones: give up
            raise ValueError(f"call frame instruction {op:#x}")
        if step is not None:
            at += step * code_align
        if rows[-1].start == at:
            rows[-1] = Row(at, register, offset)
        elif rows[-1][1:] != (register, offset):
            rows.append(Row(at, register, offset))
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
