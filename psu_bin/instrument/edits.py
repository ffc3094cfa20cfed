"""Rerouting: the fields that lead to a function's entry are made to lead to its stub, all of one kind at a time.

Before a field changes it must hold what the plan says, and the new value must fit.  Anything else is a defect of the
plan, and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.errors import PsuError
from psu_bin.instrument.plan_types import Plan, Reroute
from psu_bin.instrument.relocations import RELA_SIZE

SYMBOL_SIZE, VALUE_AT, SIZE_AT = 24, 8, 16
ADDEND_AT = 16


@dataclass(frozen=True)
class Fields:
    """The plan's edits of one kind: where, and to which function."""
    kind: Reroute
    at: np.ndarray         # int64: an address, or a table index
    function: np.ndarray   # int64: index in Plan.functions


def by_kind(plan: Plan) -> list[Fields]:
    """The plan's edits as arrays, each kind ascending by place; the same edit twice counts once."""
    out = []
    for kind, triples in plan.edits_by_kind.items():
        rows = np.array(triples, dtype=np.int64)
        out.append(Fields(kind, rows[:, 0], rows[:, 1]))
    return out


@dataclass(frozen=True)
class Places:
    """Where things are in the output."""
    rela: int              # offset of what was the first entry of DT_RELA
    dynsym: int            # offset of the dynamic symbol table
    stubs: int             # address of the first stub
    stub_size: int


def read(data: np.ndarray, offsets: np.ndarray, size: int) -> np.ndarray:
    """The `size` bytes at each offset: uint8 (n, size)."""
    return data[offsets[:, None] + np.arange(size)]


def apply(out: bytearray, arch: Arch, plan: Plan, fields: Fields, offsets: np.ndarray, places: Places,
          where: str) -> None:
    """Reroute `fields`, which lie at `offsets` of `out` (unless they are table entries).  Raises PsuError as above."""
    data = np.frombuffer(out, dtype=np.uint8)
    entries = np.array([f.address for f in plan.functions], dtype=np.int64)[fields.function]
    stubs = places.stubs + places.stub_size * fields.function
    if len(np.unique(fields.at)) != len(fields.at):
        raise defect(where, f"two functions for one {fields.kind.name} reference")
    if fields.kind is Reroute.RELA_ADDEND:
        _words(data, places.rela + RELA_SIZE * fields.at + ADDEND_AT, entries, stubs, fields, where)
    elif fields.kind is Reroute.DYNSYM:
        symbols = places.dynsym + SYMBOL_SIZE * fields.at
        _words(data, symbols + VALUE_AT, entries, stubs, fields, where)
        data[(symbols + SIZE_AT)[:, None] + np.arange(8)] = np.frombuffer(
            places.stub_size.to_bytes(8, "little"), dtype=np.uint8)
    else:
        kind = arch.fields.get(fields.kind.name)
        if kind is None:
            raise defect(where, f"{fields.kind.name} is no kind of reference of {arch.name}")
        if (offsets < 0).any() or (offsets > len(data) - kind.size).any():
            raise defect(where, f"a {fields.kind.name} reference outside the file")
        old = read(data, offsets, kind.size)
        found = kind.target(fields.at, old)
        _expect(np.where(kind.differs(old, found, entries), found, entries), entries, fields, where)
        new, fit = kind.encode(fields.at, old, stubs)
        if not fit.all():
            first = int(np.flatnonzero(~fit)[0])
            raise PsuError(where, f"too large: the reference at {int(fields.at[first]):#x} does not reach a stub at "
                                  f"{int(stubs[first]):#x}",
                           f"its code and data must lie within {arch.reach >> 20} MiB")
        data[offsets[:, None] + np.arange(kind.size)] = new


def _words(data: np.ndarray, offsets: np.ndarray, expected: np.ndarray, new: np.ndarray, fields: Fields,
           where: str) -> None:
    """Replace 8-byte words."""
    if len(offsets) and (offsets.min() < 0 or offsets.max() > len(data) - 8):
        raise defect(where, f"a {fields.kind.name} reference outside its table")
    _expect(read(data, offsets, 8).view("<i8")[:, 0], expected, fields, where)
    data[offsets[:, None] + np.arange(8)] = new.astype("<i8").view(np.uint8).reshape(-1, 8)


def _expect(found: np.ndarray, expected: np.ndarray, fields: Fields, where: str) -> None:
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        i = int(wrong[0])
        raise defect(where, f"{fields.kind.name} reference {int(fields.at[i]):#x} leads to {int(found[i]):#x}, "
                            f"not to {int(expected[i]):#x}")


def defect(where: str, what: str) -> PsuError:
    """An error that no input may cause."""
    return PsuError(where, f"internal defect: {what}", "nothing was written; please report it")


def symbol_table(binary: elf.Binary) -> int:
    """The address of the dynamic symbol table.  Raises PsuError when there is none."""
    at = binary.dyn(elf.DT_SYMTAB)
    if at is None:
        raise PsuError(binary.path, "malformed dynamic section: no symbol table")
    return at
