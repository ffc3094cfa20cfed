"""The dynamic section of the instrumented file, and the tables that it points to.

The shim must be the first DT_NEEDED: it interposes pthread_create.  It is found through $ORIGIN, which is put last in the
run path that the file has (a DT_RUNPATH makes ld.so ignore DT_RPATH, so one is never added beside the other).

In position-independent files each slot needs a relative relocation.  They go in front of DT_RELA, where DT_RELACOUNT counts
them, so that they are done before the IFUNC resolvers behind them run; or into DT_RELR when the file uses that already.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from psu_bin import descriptor, elf
from psu_bin.errors import PsuError
from psu_bin.instrument.layout import TAG_OF_TYPE, Piece
from psu_bin.instrument.plan_types import Reroute

if TYPE_CHECKING:
    from psu_bin.instrument.image import Writer

DT_RELAENT, DT_RELRENT = 9, 37
ORIGIN = "$ORIGIN"


def _run_path(w: Writer) -> tuple[int, str]:
    """(tag, new value) of the run path."""
    b = w.binary
    for tag in (elf.DT_RUNPATH, elf.DT_RPATH):
        at = b.dyn(tag)
        if at is not None:
            old = b.string(_strings(w), at)
            return tag, old if ORIGIN in old.split(":") else f"{old}:{ORIGIN}" if old else ORIGIN
    return elf.DT_RUNPATH, ORIGIN


def _strings(w: Writer) -> bytes:
    at, size = w.binary.dyn(elf.DT_STRTAB), w.binary.dyn(elf.DT_STRSZ)
    if at is None or size is None:
        raise PsuError(w.binary.path, "has no dynamic string table")
    start = w.binary.offset_of(at)
    return w.binary.data[start:start + size]


def reserve(w: Writer) -> None:
    """Make the pieces, with their sizes."""
    b = w.binary
    _, path = _run_path(w)
    added = descriptor.SHIM_SONAME.encode() + b"\0" + path.encode("utf-8", "surrogateescape") + b"\0"
    strings = b.section(".dynstr")
    w.strings = Piece(".dynstr", elf.SHT_STRTAB, elf.SHF_ALLOC, 1, _strings(w) + added, len(_strings(w)) + len(added),
                      replaces=strings.index if strings else 0)
    w.read_only.pieces.append(w.strings)
    w.relr = b.dyn(elf.DT_RELR) is not None and w.pic
    w.relocations = None
    if w.pic:
        old = b.section(".relr.dyn" if w.relr else ".rela.dyn")
        count = len(w.plan.functions)
        if w.relr:
            size = (b.dyn(elf.DT_RELRSZ) or 0) + 8 * (1 + -(-count // 63))
            w.relocations = Piece(".relr.dyn", elf.SHT_RELR, elf.SHF_ALLOC, 8, size=size, entsize=8,
                                  replaces=old.index if old else 0)
        else:
            size = 24 * (len(b.rela) + count)
            w.relocations = Piece(".rela.dyn", elf.SHT_RELA, elf.SHF_ALLOC, 8, size=size, entsize=24,
                                  replaces=old.index if old else 0)
        w.read_only.pieces.append(w.relocations)
    p = b.segment(elf.PT_DYNAMIC)
    assert p is not None
    needed = len(b.dynamic) + _more_entries(w) + 1
    w.dynamic_piece = None
    if needed * 16 > p.filesz:
        old = b.section(".dynamic")
        w.dynamic_piece = Piece(".dynamic", 6, elf.SHF_ALLOC | elf.SHF_WRITE, 8, size=needed * 16, entsize=16,
                                replaces=old.index if old else 0)
        w.data.pieces.append(w.dynamic_piece)


def _more_entries(w: Writer) -> int:
    tags = {t for t, _ in w.binary.dynamic}
    new = {descriptor.DT_PSU, _run_path(w)[0]}
    if w.pic and not w.relr:
        new |= {elf.DT_RELA, elf.DT_RELASZ, DT_RELAENT, elf.DT_RELACOUNT}
    return 1 + len(new - tags)      # 1: DT_NEEDED


def fill(w: Writer, original: list[int]) -> None:
    """The contents of the pieces; the dynamic section in place where it fits."""
    b = w.binary
    values: dict[int, int] = {elf.DT_STRTAB: w.strings.address, elf.DT_STRSZ: w.strings.size,
                              descriptor.DT_PSU: w.descriptor.address}
    shim_name = len(_strings(w))
    tag, _ = _run_path(w)
    values[tag] = shim_name + len(descriptor.SHIM_SONAME) + 1
    for p in w.moved:
        if p.type in TAG_OF_TYPE:
            values[TAG_OF_TYPE[p.type]] = p.address
    _relocations(w, original, values)
    entries = [(elf.DT_NEEDED, shim_name)]
    for t, v in b.dynamic:
        entries.append((t, values.pop(t, v)))
    entries += sorted(values.items())
    raw = b"".join(struct.pack("<QQ", t & 0xFFFFFFFFFFFFFFFF, v) for t, v in entries)
    if w.dynamic_piece:
        w.dynamic_piece.data = raw
        return
    p = b.segment(elf.PT_DYNAMIC)
    assert p is not None
    if len(raw) + 16 > p.filesz:
        raise PsuError(b.path, "internal defect: the dynamic section does not fit")
    w.out[p.offset:p.offset + p.filesz] = raw.ljust(p.filesz, b"\0")


def _relocations(w: Writer, original: list[int], values: dict[int, int]) -> None:
    b = w.binary
    rela = np.array(b.rela, copy=True)
    edits = [e for e in w.plan.edits if e.kind is Reroute.RELA_ADDEND]
    if edits:
        at = np.array([e.at for e in edits])
        expected = np.array([w.plan.functions[e.function].address for e in edits], dtype="<i8")
        wrong = np.flatnonzero(rela["r_addend"][at] != expected)
        if len(wrong):
            raise PsuError(b.path, f"internal defect: relocation {int(at[wrong[0]])} has another addend")
        rela["r_addend"][at] = [w.stub(e.function) for e in edits]
    if w.relocations is None or w.relr:
        table = b.dyn(elf.DT_RELA)
        if table is not None and len(rela):
            start = w.to_offset(table)
            w.out[start:start + rela.nbytes] = rela.tobytes()
    if w.relocations is None:
        return
    if w.relr:
        words = [w.slots.address]
        for first in range(1, len(original), 63):
            bits = min(63, len(original) - first)
            words.append(((1 << bits) - 1) << 1 | 1)
        old_at, old_size = b.dyn(elf.DT_RELR), b.dyn(elf.DT_RELRSZ)
        assert old_at is not None and old_size is not None
        start = b.offset_of(old_at)
        w.relocations.data = b.data[start:start + old_size] + struct.pack(f"<{len(words)}Q", *words)
        w.relocations.size = len(w.relocations.data)
        values[elf.DT_RELR], values[elf.DT_RELRSZ] = w.relocations.address, w.relocations.size
        return
    new = np.zeros(len(original), dtype=rela.dtype)
    new["r_offset"] = w.slots.address + 8 * np.arange(len(original), dtype="<u8")
    new["r_type"] = w.arch.relative
    new["r_addend"] = original
    w.relocations.data = new.tobytes() + rela.tobytes()
    values[elf.DT_RELA], values[elf.DT_RELASZ] = w.relocations.address, len(w.relocations.data)
    values[DT_RELAENT] = 24
    values[elf.DT_RELACOUNT] = len(original) + (b.dyn(elf.DT_RELACOUNT) or 0)
