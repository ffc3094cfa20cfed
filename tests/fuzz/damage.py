"""How files are damaged: by structure, because random bytes hardly ever get past the first check.

damaged() knows where the ELF header, each program header, section header, dynamic entry, symbol, relocation, note and unwind
row of an intact file is, and of which fields it consists.  It sets fields to values at which arithmetic goes wrong, copies
and swaps entries, takes bytes from another file (crossing over), flips bits, and cuts the file at a structure.

Chance comes from a random.Random, which may be hypothesis' own: the same choices give the same bytes.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from psu_bin import elf
from psu_bin.elf import Binary

EHDR = (16, "2 2 4 8 8 8 4 2 2 2 2 2 2", 1)
PHDR, SHDR = "4 4 8 8 8 8 8 8", "4 4 8 8 8 8 4 4 8 8"
BY_TYPE = {elf.SHT_SYMTAB: "4 1 1 2 8 8", elf.SHT_DYNSYM: "4 1 1 2 8 8", elf.SHT_RELA: "8 4 4 8", elf.SHT_RELR: "8",
           elf.SHT_NOTE: "4", 6: "8 8", 14: "8", 15: "8", elf.SHT_GROUP: "4", 0x6FFFFFF6: "4", 5: "4", 0x6FFFFFFF: "2",
           0x6FFFFFFD: "4", 0x6FFFFFFE: "4", elf.SHT_STRTAB: "1"}
BY_NAME = {".eh_frame": "1", ".eh_frame_hdr": "4"}
CUTS = 12          # one in so many damaged files is cut short


@dataclass(frozen=True)
class Table:
    """Equal entries one after the other; `fields`: their widths in bytes."""
    start: int
    count: int
    fields: tuple[int, ...]

    @property
    def entry(self) -> int:
        return sum(self.fields)


@functools.lru_cache(maxsize=64)
def tables(data: bytes) -> tuple[Table, ...]:
    """The structures of an intact file."""
    b = Binary(data, "intact")

    def table(start: int, size: int, fields: str) -> Table:
        widths = tuple(map(int, fields.split()))
        return Table(start, max(size // sum(widths), 1), widths)
    out = [table(EHDR[0], 1, EHDR[1]), table(b.phoff, 56 * b.phnum, PHDR), table(b.shoff, 64 * b.shnum, SHDR)]
    for s in b.sections:
        if s.size and s.type != elf.SHT_NOBITS and not s.name.startswith(".debug"):
            fields = BY_NAME.get(s.name) or BY_TYPE.get(s.type)
            if fields is None and s.flags & elf.SHF_ALLOC:
                fields = "1"
            if fields and s.size >= sum(map(int, fields.split())):
                out.append(table(s.offset, s.size, fields))
    return tuple(t for t in out if t.start and t.start + t.entry * t.count <= len(data))


def numbers(data: bytes) -> tuple[int, ...]:
    """Values at which sizes, offsets and counts go wrong."""
    powers = [1 << n for n in (7, 8, 12, 15, 16, 24, 30, 31, 32, 40, 47, 48, 60, 61, 62, 63)]
    near = [0, *powers, 1 << 64, len(data)]
    return tuple(sorted({n + d & (1 << 64) - 1 for n in near for d in (-1, 0, 1)} | {2, 3, 4, 8, 24, 56, 64, 0xFF00, 0xFFF1}))


def damaged(chance: Random, good: bytes, others: Sequence[bytes]) -> bytes:
    """`good` with one to four kinds of damage; `others`: where foreign bytes come from."""
    bad = bytearray(good)
    where = tables(good)
    for _ in range(chance.choice((1, 1, 1, 2, 2, 4))):
        chance.choice(KINDS)(chance, bad, chance.choice(where), good, others)
    if not chance.randrange(CUTS):
        _cut(chance, bad, where)
    return bytes(bad)


def _field(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    """One field is another number: an awkward one, one of a neighbour's, or its own and a little."""
    n, k = chance.randrange(t.count), chance.randrange(len(t.fields))
    at, width = t.start + n * t.entry + sum(t.fields[:k]), t.fields[k]
    was = int.from_bytes(bad[at:at + width], "little")
    how = chance.randrange(4)
    if how == 0:
        value = chance.choice(numbers(good))
    elif how == 1:
        other = t.start + chance.randrange(t.count) * t.entry + sum(t.fields[:k])
        value = int.from_bytes(good[other:other + width], "little")
    elif how == 2:
        value = was + chance.choice((1, -1, 4, -4, 8, -8, 16, 24, 4096, -4096, 1 << 20))
    else:
        value = chance.getrandbits(8 * width)
    bad[at:at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")


def _bit(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    bad[t.start + chance.randrange(t.count * t.entry)] ^= 1 << chance.randrange(8)


def _copy(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    """An entry takes the place of another one."""
    a, b = (t.start + chance.randrange(t.count) * t.entry for _ in range(2))
    bad[a:a + t.entry] = good[b:b + t.entry]


def _swap(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    a, b = (t.start + chance.randrange(t.count) * t.entry for _ in range(2))
    bad[a:a + t.entry], bad[b:b + t.entry] = bad[b:b + t.entry], bad[a:a + t.entry]


def _zero(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    """From some entry on there is nothing, or 0xFF."""
    first = chance.randrange(t.count)
    length = min(t.count - first, chance.choice((1, 2, 8, t.count))) * t.entry
    at = t.start + first * t.entry
    bad[at:at + length] = bytes([chance.choice((0, 0xFF))]) * length


def _cross(chance: Random, bad: bytearray, t: Table, good: bytes, others: Sequence[bytes]) -> None:
    """Entries come from a table of the same shape in another file."""
    other = chance.choice(others)
    same = [x for x in tables(other) if x.fields == t.fields]
    if not same:
        return
    x = chance.choice(same)
    count = min(chance.choice((1, 2, t.count)), t.count, x.count)
    to, of = chance.randrange(t.count - count + 1), chance.randrange(x.count - count + 1)
    at, at_other = t.start + to * t.entry, x.start + of * t.entry
    bad[at:at + count * t.entry] = other[at_other:at_other + count * t.entry]


def _cut(chance: Random, bad: bytearray, where: Sequence[Table]) -> None:
    """The file ends at a structure, sometimes with headers that fit what is left."""
    t = chance.choice(where)
    end = t.start + chance.randrange(t.count + 1) * t.entry + chance.choice((0, 0, -1, 1))
    if chance.randrange(2) and len(bad) >= 64:
        struct.pack_into("<Q", bad, 40, 0)                    # no section headers
        struct.pack_into("<HH", bad, 60, 0, 0)
    del bad[max(end, 0):]


Kind = Callable[[Random, bytearray, Table, bytes, Sequence[bytes]], None]
KINDS: tuple[Kind, ...] = (_field, _field, _field, _field, _bit, _copy, _swap, _zero, _cross)


def damaged_bytes(chance: Random, good: bytes) -> bytes:
    """Bytes without a known structure: some changed, inserted, removed or repeated."""
    bad = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 5))):
        how, at = chance.randrange(6), chance.randrange(len(bad) + 1)
        if how == 0:
            bad[at:at + 1] = bytes([chance.randrange(256)])
        elif how == 1:
            bad[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 2, 4, 9))))
        elif how == 2:
            del bad[at:at + chance.choice((1, 2, 8, 64))]
        elif how == 3:
            width = chance.choice((4, 8))
            bad[at:at + width] = (chance.choice(numbers(good)) & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif how == 4:
            other = chance.randrange(len(good) + 1)
            bad[at:at] = good[other:other + chance.choice((1, 8, 40, 400))]
        elif not chance.randrange(3):
            del bad[at:]
    return bytes(bad)
