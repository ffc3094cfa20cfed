"""The unwind table (`.eh_frame`) as instrument uses it: which code belongs to one function, and where its frame is.

Every compiler emits it for every function on x86-64 and AArch64 unless told otherwise, and `strip` keeps it, so it
gives function boundaries without symbols, and the distance from the stack pointer to the caller's frame (the CFA) at
every instruction.  Only what that needs is interpreted.

Specification: DWARF 5 section 6.4; Linux Standard Base, Core, "Exception Frames" (augmentation, pointer encodings).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from psu_bin.elf import SHT_NOBITS, Binary
from psu_bin.errors import PsuError

UNKNOWN = -1          # Frames.row_register: the CFA is an expression, or there is no entry for this code

OMIT = 0xFF
_PCREL, _INDIRECT = 0x10, 0x80
_SIZES = {0x00: "<Q", 0x02: "<H", 0x03: "<I", 0x04: "<Q", 0x0A: "<h", 0x0B: "<i", 0x0C: "<q"}


@dataclass(frozen=True)
class Cie:
    """What a common information entry says for its FDEs."""
    code_factor: int
    data_factor: int
    return_register: int
    encoding: int               # of addresses in its FDEs
    augmented: bool             # FDEs have augmentation data
    signal: bool
    lsda: int                   # encoding of the addresses of their tables of call sites; OMIT: FDEs have no landing pads
    program: bytes


# begin, size, CIE, call frame instructions, address of the field `begin`, address of the instructions, Frames.lsda
_Entry = tuple[int, int, Cie, bytes, int, int, int]


@dataclass(frozen=True)
class Frames:
    """The FDEs of a module, ascending by `begin`, and their CFA rows, one table for all."""
    begin: np.ndarray           # int64
    end: np.ndarray             # int64
    cie: tuple[Cie, ...]        # of each FDE
    program: tuple[bytes, ...]  # call frame instructions of each FDE
    field: np.ndarray           # int64: the address of the field that says where its code begins
    program_at: np.ndarray      # int64: the address of `program`
    saved: np.ndarray           # uint64, of each FDE: DWARF numbers of registers that it saves, as bits
    row_address: np.ndarray     # int64, ascending: a row holds from here to the next
    row_register: np.ndarray    # int32: CFA = this DWARF register + row_offset, or UNKNOWN
    row_offset: np.ndarray      # int64
    lsda: np.ndarray            # int64: the address of each one's table of call sites; 0: none; UNKNOWN: it is somewhere
    personalities: frozenset[int]  # entries that CIEs name directly, not through a pointer in data

    def covering(self, addresses: np.ndarray) -> np.ndarray:
        """The index of the FDE that covers each address, or -1."""
        if not len(self.begin):
            return np.full(len(addresses), -1, dtype=np.int64)
        at = np.searchsorted(self.begin, addresses, side="right") - 1
        return np.where((at >= 0) & (addresses < self.end[at.clip(0)]), at, -1)

    def catch(self, calls: np.ndarray) -> np.ndarray:
        """bool: whether an exception may lead to a landing pad from each of the calls at addresses."""
        return np.array([fde >= 0 and self.cie[fde].lsda != OMIT for fde in self.covering(calls).tolist()], dtype=bool)

    def rows(self, addresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(register, offset) of the CFA at each address; register UNKNOWN where it is not a register plus offset."""
        if not len(self.row_address):
            return np.full(len(addresses), UNKNOWN, dtype=np.int32), np.zeros(len(addresses), dtype=np.int64)
        at = np.searchsorted(self.row_address, addresses, side="right") - 1
        return np.where(at >= 0, self.row_register[at.clip(0)], UNKNOWN), self.row_offset[at.clip(0)]


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """(the unsigned LEB128 number at `at`, position after it)."""
    result = shift = 0
    while True:
        byte = data[at]
        at += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return result, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _sleb(data: bytes, at: int) -> tuple[int, int]:
    start = at
    value, at = uleb(data, at)
    bits = 7 * (at - start)
    return (value - (1 << bits) if value >> (bits - 1) & 1 else value), at


def encoded(data: bytes, at: int, encoding: int, address: int) -> tuple[int, int]:
    """An encoded pointer at `at`, whose own address is `address`; returns (value, position after it)."""
    form = _SIZES.get(encoding & 0x0F)
    if form is None or encoding & 0x70 not in (0, _PCREL):
        raise ValueError(f"pointer encoding {encoding:#x}")
    (value,) = struct.unpack_from(form, data, at)
    if encoding & 0x70 == _PCREL and value:
        value = (value + address) & 0xFFFFFFFFFFFFFFFF
    return value, at + struct.calcsize(form)


def _lsda(data: bytes, at: int, encoding: int, address: int) -> int:
    """The address of an FDE's table of call sites, UNKNOWN where it is not told in a way that is read here."""
    try:
        value = encoded(data, at, encoding, address)[0]
    except (ValueError, struct.error):
        return UNKNOWN
    # An absolute address may be filled in when the program starts.
    known = encoding & ~0x0F == _PCREL or encoding < 0x10 and value
    return value if known and value < 1 << 63 else UNKNOWN


def _cie(data: bytes, at: int, end: int, base: int, personalities: set[int]) -> Cie:
    version = data[at]
    at += 1
    nul = data.index(b"\0", at)
    augmentation = data[at:nul]
    at = nul + 1
    if version == 4:
        at += 2
    if augmentation == b"eh":
        at += 8
    code, at = uleb(data, at)
    factor, at = _sleb(data, at)
    if version == 1:
        register, at = data[at], at + 1
    else:
        register, at = uleb(data, at)
    encoding, lsda = 0, OMIT
    body = at
    if augmentation[:1] == b"z":
        size, at = uleb(data, at)
        body = at + size
        for letter in augmentation[1:]:
            if letter == ord("R"):
                encoding, at = data[at], at + 1
            elif letter == ord("L"):
                lsda, at = data[at], at + 1
            elif letter == ord("P"):
                how, at = data[at], at + 1
                if how != OMIT:
                    pointer, at = encoded(data, at, how & 0x7F, base + at)
                    if not how & _INDIRECT:
                        personalities.add(pointer)
            elif letter not in b"SB":
                break
    return Cie(code, factor, register, encoding, augmentation[:1] == b"z", b"S" in augmentation, lsda,
               data[body:end])


def read(binary: Binary) -> Frames:
    """All frame entries of `binary`; empty where it has none.  Raises PsuError when `.eh_frame` is damaged."""
    section = binary.section(".eh_frame")
    entries: list[_Entry] = []
    personalities: set[int] = set()
    if section is not None and section.type != SHT_NOBITS:
        data, base = binary.contents(section), section.address
        cies: dict[int, Cie] = {}
        at = 0
        try:
            while at + 4 <= len(data):
                (length,) = struct.unpack_from("<I", data, at)
                start = at + 4
                if length == 0:
                    at = start         # a terminator, perhaps of the first of several merged tables
                    continue
                if length == 0xFFFFFFFF:
                    (length,) = struct.unpack_from("<Q", data, start)
                    start += 8
                end = start + length
                if end > len(data):
                    raise ValueError("an entry ends outside the section")
                (identifier,) = struct.unpack_from("<I", data, start)
                if identifier == 0:
                    cies[at] = _cie(data, start + 4, end, base, personalities)
                else:
                    cie = cies[start - identifier]
                    field = base + start + 4
                    begin, body = encoded(data, start + 4, cie.encoding, field)
                    size, body = encoded(data, body, cie.encoding & 0x0F, 0)
                    lsda = 0
                    if cie.augmented:
                        skip, body = uleb(data, body)
                        if cie.lsda != OMIT and skip:
                            lsda = _lsda(data, body, cie.lsda, base + body)
                        body += skip
                    if size:
                        entries.append((begin, size, cie, data[body:end], field, base + body, lsda))
                at = end
            entries.sort(key=lambda e: e[0])
            return _frames(entries, personalities)
        except (ValueError, KeyError, IndexError, struct.error, OverflowError) as e:
            raise PsuError(binary.path, f"malformed .eh_frame at {base + at:#x}: {e}") from e
    return _frames(entries, personalities)


def _frames(entries: list[_Entry], personalities: set[int]) -> Frames:
    address: list[int] = []
    register: list[int] = []
    offset: list[int] = []
    saved: list[int] = []
    seen: dict[tuple[int, bytes], tuple[list[tuple[int, int, int]], int]] = {}
    for i, (begin, size, cie, program, *_) in enumerate(entries):
        key = (id(cie), program)
        if key not in seen:
            seen[key] = interpret(cie, program)
        rows, mask = seen[key]
        for delta, r, o in rows:
            if delta < size:
                address.append(begin + delta)
                register.append(r)
                offset.append(o)
        saved.append(mask)
        if i + 1 == len(entries) or entries[i + 1][0] > begin + size:
            address.append(begin + size)
            register.append(UNKNOWN)
            offset.append(0)
    begins = np.array([e[0] for e in entries], dtype=np.int64)
    return Frames(begins, begins + np.array([e[1] for e in entries], dtype=np.int64), tuple(e[2] for e in entries),
                  tuple(e[3] for e in entries), np.array([e[4] for e in entries], dtype=np.int64),
                  np.array([e[5] for e in entries], dtype=np.int64), np.array(saved, dtype=np.uint64), np.array(address, dtype=np.int64),
                  np.array(register, dtype=np.int32), np.array(offset, dtype=np.int64),
                  np.array([e[6] for e in entries], dtype=np.int64), frozenset(personalities))


def interpret(cie: Cie, program: bytes) -> tuple[list[tuple[int, int, int]], int]:
    """The CFA rows of an FDE: [(offset of code in bytes, register or UNKNOWN, offset)], and the registers it saves, as
    a bit set of DWARF numbers below 64."""
    rows: list[tuple[int, int, int]] = []
    saved = 0
    at_code, cfa = 0, (UNKNOWN, 0)
    stack: list[tuple[int, int]] = []
    for part in (cie.program, program):
        at = 0
        while at < len(part):
            op = part[at]
            at += 1
            step = None
            high, low = op & 0xC0, op & 0x3F
            if high == 0x40:
                step = low
            elif high == 0x80:
                saved |= 1 << low
                _, at = uleb(part, at)
            elif high == 0xC0 or op in (0x00, 0x2D):
                pass
            elif op == 0x02:
                step, at = part[at], at + 1
            elif op == 0x03:
                step, at = struct.unpack_from("<H", part, at)[0], at + 2
            elif op == 0x04:
                step, at = struct.unpack_from("<I", part, at)[0], at + 4
            elif op in (0x05, 0x09, 0x11, 0x14, 0x15, 0x2F):
                number, at = uleb(part, at)
                _, at = uleb(part, at)
                saved |= 1 << number if number < 64 else 0
            elif op in (0x06, 0x07, 0x08, 0x2E):
                _, at = uleb(part, at)
            elif op == 0x0A:
                stack.append(cfa)
            elif op == 0x0B:
                cfa = stack.pop()
            elif op in (0x0C, 0x12):
                number, at = uleb(part, at)
                value, at = uleb(part, at) if op == 0x0C else _sleb(part, at)
                cfa = (number, value if op == 0x0C else value * cie.data_factor)
            elif op == 0x0D:
                number, at = uleb(part, at)
                cfa = (number, cfa[1])
            elif op == 0x0E:
                value, at = uleb(part, at)
                cfa = (cfa[0], value)
            elif op == 0x13:
                value, at = _sleb(part, at)
                cfa = (cfa[0], value * cie.data_factor)
            elif op in (0x0F, 0x10, 0x16):
                if op == 0x0F:
                    cfa = (UNKNOWN, 0)
                else:
                    number, at = uleb(part, at)
                    saved |= 1 << number if number < 64 else 0
                size, at = uleb(part, at)
                at += size
            else:
                raise ValueError(f"call frame instruction {op:#x}")
            if step is not None:
                if not rows or rows[-1][1:] != cfa:
                    rows.append((at_code, *cfa))
                at_code += step * cie.code_factor
    if not rows or rows[-1][1:] != cfa:
        rows.append((at_code, *cfa))
    return rows, saved
