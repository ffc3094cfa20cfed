"""The dynamic section of the instrumented file.

The shim must come before the libraries that make threads: it takes the place of pthread_create.  So it is the first
DT_NEEDED, but for one: AddressSanitizer's runtime ends a program in which it is not the first library itself
(asan_linux.cpp, AsanCheckDynamicRTPrereqs), and its pthread_create calls the next one, the shim's.  The shim is found through $ORIGIN, put last in
the run path that the file has.  Only one tag is extended: DT_RUNPATH makes loaders ignore DT_RPATH, so the one is
never added beside the other.

Linkers leave a few entries free at the end of the section, lld none; then it moves into the new data segment, and what
refers to the symbol _DYNAMIC (debuggers inside the program, garbage collectors) follows it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.descriptor import DT_PSU, SHIM_SONAME
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import operands
from psu_bin.instrument.layout import holding

DT_RELAENT, DT_RELRENT, DT_DEBUG, DT_PLTGOT, DT_FLAGS_1 = 9, 37, 21, 3, 0x6FFFFFFB
DF_1_PIE = 0x08000000
ORIGIN = "$ORIGIN"
ENTRY = struct.Struct("<qQ")
_INSISTS_ON_BEING_FIRST = re.compile(r"(libasan\.so|libclang_rt\.asan)")


@dataclass(frozen=True)
class Request:
    """What the dynamic section is to say in addition."""
    added: bytes                  # to put behind .dynstr
    shim: int                     # offset of the shim's name in the string table
    values: tuple[tuple[int, int], ...]   # (tag, value) that change or are added
    fresh: int                    # entries that are added


def strings(binary: Binary) -> tuple[int, int]:
    """(address, size) of the dynamic string table.  Raises PsuError when there is none."""
    at, size = binary.dyn(elf.DT_STRTAB), binary.dyn(elf.DT_STRSZ)
    if at is None or size is None or binary.offset_of(at) + size > len(binary.data):
        raise PsuError(binary.path, "malformed dynamic section: no string table")
    return at, size


def request(binary: Binary, relocated: bool) -> Request:
    """What to add: the shim, the way to it, the descriptor; `relocated`: a DT_RELA table where there is none."""
    at, size = strings(binary)
    table = binary.data[binary.offset_of(at):][:size]
    added = SHIM_SONAME.encode() + b"\0"
    values: list[tuple[int, int]] = []
    tag = next((t for t in (elf.DT_RUNPATH, elf.DT_RPATH) if binary.dyn(t) is not None), None)
    old = binary.string(table, binary.dyn(tag) or 0) if tag else ""
    if not {ORIGIN, "${ORIGIN}"} & set(old.split(":")):
        values.append((tag or elf.DT_RUNPATH, size + len(added)))
        added += (f"{old}:{ORIGIN}" if old else ORIGIN).encode("utf-8", "surrogateescape") + b"\0"
    values += [(elf.DT_STRSZ, size + len(added)), (DT_PSU, 0)]
    if relocated and binary.dyn(elf.DT_RELA) is None:
        values += [(elf.DT_RELA, 0), (elf.DT_RELASZ, 0), (DT_RELAENT, 24)]
    tags = {t for t, _ in binary.dynamic}
    return Request(added, size, tuple(values), 1 + sum(t not in tags for t, _ in values))


def entries_needed(binary: Binary, what: Request) -> int:
    """Entries of the new dynamic section, its closing DT_NULL included."""
    return len(binary.dynamic) + what.fresh + 1


def fits(binary: Binary, what: Request) -> bool:
    """Whether the present section has room."""
    p = binary.segment(elf.PT_DYNAMIC)
    return p is not None and entries_needed(binary, what) * ENTRY.size <= p.filesz


def needed(binary: Binary) -> list[str]:
    """The libraries that it needs, in the loader's order.  Raises PsuError when there is no string table."""
    at, size = strings(binary)
    table = binary.data[binary.offset_of(at):][:size]
    return [binary.string(table, v) for t, v in binary.dynamic if t == elf.DT_NEEDED]


def shim_place(libraries: list[str]) -> int:
    """How many of `libraries` come before the shim."""
    return int(bool(libraries) and _INSISTS_ON_BEING_FIRST.match(libraries[0]) is not None)


def encode(binary: Binary, what: Request, addresses: dict[int, int], size: int) -> bytes:
    """The new dynamic section, `size` bytes.  `addresses`: tag -> value, known only when everything has its place."""
    values = dict(what.values) | addresses
    out = [(t, values.pop(t, v)) for t, v in binary.dynamic]
    first = next((i for i, (t, _) in enumerate(out) if t == elf.DT_NEEDED), 0)
    out.insert(first + shim_place(needed(binary)), (elf.DT_NEEDED, what.shim))
    out += values.items()
    return b"".join(ENTRY.pack(t, v) for t, v in out).ljust(size, b"\0")


def pointers(binary: Binary) -> np.ndarray:
    """The file offsets of words that hold the address of the dynamic section and are no DT_RELA relocations.

    The first word of DT_PLTGOT does (psABI 5.2), and words of .got."""
    p = binary.segment(elf.PT_DYNAMIC)
    where = [binary.relr]
    got = binary.dyn(DT_PLTGOT)
    if got:
        where.append(np.array([got], dtype=np.uint64).astype(np.int64))       # damage: may be beyond every address
    for s in binary.sections:
        if s.name == ".got" and s.address != got and binary.type == elf.ET_EXEC and s.type != elf.SHT_NOBITS:
            where.append(np.arange(s.address, s.end - 7, 8))
    offsets = holding(binary.segments, np.concatenate(where).astype(np.int64))
    offsets = offsets[(offsets >= 0) & (offsets <= len(binary.data) - 8)]
    words: np.ndarray = np.ndarray((len(binary.data) - 7,), dtype="<u8", buffer=binary.data, strides=(1,))
    found: np.ndarray = offsets[words[offsets] == (p.address if p else 0)]
    return found


def follow(binary: Binary, arch: Arch, out: bytearray, address: int, rela: int) -> None:
    """Make what refers to the dynamic section refer to `address`.

    rela: offset in `out` of what were the first entries of DT_RELA."""
    p = binary.segment(elf.PT_DYNAMIC)
    if p is None:
        return
    for offset in pointers(binary).tolist():
        out[offset:offset + 8] = address.to_bytes(8, "little")
    for i in np.flatnonzero((binary.rela["r_addend"] == p.address) & (binary.rela["r_sym"] == 0)).tolist():
        out[rela + 24 * i + 16:rela + 24 * i + 24] = address.to_bytes(8, "little")
    for x in operands.referring(binary, arch, p.address, p.address + 1):
        if not x.size:
            raise PsuError(binary.path, f"its dynamic section has no free entry, and code at {x.at:#x} refers to it",
                           "link it with another linker than lld")
        at = binary.offset_of(x.at)
        value = int.from_bytes(out[at:at + x.size], "little", signed=True) + address - p.address
        if value >> 8 * x.size - 1 not in (0, -1):
            raise PsuError(binary.path, f"too large: {x.at:#x} does not reach {address:#x}")
        out[at:at + x.size] = value.to_bytes(x.size, "little", signed=True)
