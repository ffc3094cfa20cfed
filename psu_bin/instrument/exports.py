"""Dynamic symbols for the original code of exported functions.

An exported function's own dynamic symbol leads to its stub, so that other modules and dlsym call through the slot.  But
whoever asks for the name of an address in the code (dladdr, backtrace_symbols in crash handlers, perf and gdb where
there is no .symtab) looks for the symbol that covers it.  So each function gets a second symbol at the code, of the
same name; where it has several, of the first one, which is the one that is found where all are there.

The new symbols are the last ones.  The GNU hash table lists them behind the symbols of its last chain, with their own
hashes: who walks all chains (dladdr) finds them, and a lookup by name finds the stub's symbol first, because that is
in front in the same table.  In DT_HASH each is linked behind its stub's.  Version: the stub's, marked hidden where
there are versions, so that linkers do not see a second definition.

Specification: gABI chapter 5 (hash table); the GNU hash section as glibc's dl-lookup.c and musl's dynlink.c read it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from psu_bin import elf
from psu_bin.elf import Binary, Section
from psu_bin.instrument import layout
from psu_bin.instrument.layout import Piece
from psu_bin.instrument.plan_types import Plan, Reroute

HIDDEN = 0x8000              # in .gnu.version: not the default version
_UNVERSIONED = 1             # VER_NDX_GLOBAL
_GNU_HEADER = struct.Struct("<IIII")


@dataclass(frozen=True)
class Tables:
    """The sections that hold dynamic symbols and what is counted by them; None: the file has no such table."""
    symbols: Section
    versions: Section | None
    gnu_hash: Section | None
    hash: Section | None

    @property
    def all(self) -> tuple[Section, ...]:
        return tuple(s for s in (self.symbols, self.versions, self.gnu_hash, self.hash) if s)


def tables(binary: Binary) -> Tables | None:
    """The tables of `binary`, or None when one of them cannot be made longer."""
    found: dict[int, Section] = {s.type: s for s in layout.loader_tables(binary) if s.type in (
        elf.SHT_DYNSYM, layout.SHT_GNU_VERSYM, layout.SHT_GNU_HASH, layout.SHT_HASH)}
    present = {kind for kind, tag in layout.TAG_OF_TYPE.items() if binary.dyn(tag) is not None}
    wanted = present & {elf.SHT_DYNSYM, layout.SHT_GNU_VERSYM, layout.SHT_GNU_HASH, layout.SHT_HASH}
    if wanted != set(found) or elf.SHT_DYNSYM not in found:
        return None
    out = Tables(found[elf.SHT_DYNSYM], found.get(layout.SHT_GNU_VERSYM), found.get(layout.SHT_GNU_HASH),
                 found.get(layout.SHT_HASH))
    return out if _sound(binary, out) else None


def _sound(binary: Binary, t: Tables) -> bool:
    """Whether the tables are of the usual form and agree on the number of symbols."""
    count = t.symbols.size // 24
    if t.versions and t.versions.size != 2 * count:
        return False
    if t.hash:
        words = np.frombuffer(binary.contents(t.hash), dtype="<u4")
        if len(words) < 2 or len(words) != 2 + int(words[0]) + int(words[1]) or words[1] != count:
            return False
    if t.gnu_hash:
        g = _gnu(binary.contents(t.gnu_hash))
        # The last chain must end with the last symbol, and a bucket must lead to it.
        if g is None or not len(g.chain) or g.first + len(g.chain) != count or not g.chain[-1] & 1 or not _to_the_end(g):
            return False
    return True


@dataclass(frozen=True)
class _Gnu:
    first: int               # the number of the first symbol that is in the table
    buckets: np.ndarray
    chain: np.ndarray
    chain_at: int            # its offset in the section


def _gnu(body: bytes) -> _Gnu | None:
    if len(body) < _GNU_HEADER.size:
        return None
    buckets, first, words, _ = _GNU_HEADER.unpack_from(body)
    at = _GNU_HEADER.size + 8 * words + 4 * buckets
    if at > len(body) or (len(body) - at) % 4:
        return None
    return _Gnu(first, np.frombuffer(body[at - 4 * buckets:at], dtype="<u4"), np.frombuffer(body[at:], dtype="<u4"), at)


def _to_the_end(g: _Gnu) -> bool:
    """Whether a walk that begins at some bucket reaches the last symbol."""
    ends = np.flatnonzero(g.chain & 1)
    last = g.first + (int(ends[-2]) + 1 if len(ends) > 1 else 0)      # where the last chain begins
    return bool(((g.buckets >= last) & (g.buckets < g.first + len(g.chain))).any())


def rerouted(plan: Plan) -> np.ndarray:
    """The numbers of the dynamic symbols that lead to stubs, ascending."""
    return np.unique(np.array([at for at, _, _ in plan.edits_by_kind.get(Reroute.DYNSYM, [])], dtype=np.int64))


def _doubled(symbols: np.ndarray, plan: Plan) -> np.ndarray:
    """The numbers of those that get a second symbol, ascending: of several for the same bytes the first."""
    which = rerouted(plan)
    _, first = np.unique(symbols[["st_value", "st_size"]][which], return_index=True)
    return np.sort(which[first])


def pieces(binary: Binary, plan: Plan) -> list[Piece]:
    """The longer tables, complete: they hold what the input holds, and a symbol for each rerouted function.  [] when
    there is none, or the tables cannot grow: then names of addresses are lost, nothing else."""
    t = tables(binary)
    if t is None or not len(rerouted(plan)) or t.gnu_hash is None and t.hash is None:
        return []
    symbols = binary.table(t.symbols, elf.SYMBOL_DTYPE)
    which = _doubled(symbols, plan)
    out = {t.symbols: np.concatenate([symbols, symbols[which]]).tobytes()}
    if t.versions:
        versions = np.frombuffer(binary.contents(t.versions), dtype="<u2")
        new = np.where(versions[which] > _UNVERSIONED, versions[which] | HIDDEN, versions[which])
        out[t.versions] = np.concatenate([versions, new]).astype("<u2").tobytes()
    if t.gnu_hash:
        body = binary.contents(t.gnu_hash)
        g = _gnu(body)
        assert g
        chain = np.concatenate([g.chain, g.chain[which - g.first]]) & ~np.uint32(1)
        ends = np.concatenate([g.chain & 1, np.zeros(len(which), dtype=np.uint32)])
        ends[len(g.chain) - 1], ends[-1] = 0, 1
        out[t.gnu_hash] = body[:g.chain_at] + (chain | ends).astype("<u4").tobytes()
    if t.hash:
        out[t.hash] = _longer_hash(binary.contents(t.hash), which, len(symbols))
    return [Piece("", s.type, s.flags, max(8, s.align), len(out[s]), s.entsize, (s,), data=out[s]) for s in t.all]


def _longer_hash(body: bytes, which: np.ndarray, count: int) -> bytes:
    words = np.frombuffer(body, dtype="<u4").copy()
    chain = words[2 + int(words[0]):]
    new = chain[which]
    chain[which] = count + np.arange(len(which))
    words[1] += len(which)
    return words.tobytes() + new.astype("<u4").tobytes()


# ---- reading back --------------------------------------------------------------------------------------------------

def difference(before: Binary, after: Binary, plan: Plan) -> str:
    """What is wrong with the tables of `after`; "" when they are those of `before` and the new symbols."""
    old = tables(before)
    if old is None or not len(rerouted(plan)):
        return ""
    for p in pieces(before, plan):
        s = p.covers[0]
        now = next((x for x in after.sections if x.type == s.type and x.flags & elf.SHF_ALLOC), None)
        if now is None or now.address != after.dyn(layout.TAG_OF_TYPE[s.type]):
            return f"section {s.name} is gone"
        if s is not old.symbols and after.contents(now) != p.data:
            return f"section {s.name}"
    new = tables(after)
    if new is None:
        return "the dynamic symbols and their hash tables disagree"
    count = old.symbols.size // 24
    symbols, were = after.table(new.symbols, elf.SYMBOL_DTYPE), before.table(old.symbols, elf.SYMBOL_DTYPE)
    which = _doubled(were, plan)
    if len(symbols) != count + len(which):
        return "the number of dynamic symbols"
    for column in ("st_name", "st_info", "st_other", "st_value", "st_size"):
        if (symbols[column][count:] != were[column][which]).any():
            return f"{column} of the symbols of the original code"
    names = _names(after, symbols)
    found = _found(after, new, names)
    for name, number in _found(before, old, names).items():
        if found.get(name) != number:
            return f"looking up the symbol {name!r}"
    seen = _walk(after, new)
    if new.gnu_hash and not set(range(count, len(symbols))) <= seen:
        return "a symbol of the original code is in no chain"
    return ""


def _names(b: Binary, symbols: np.ndarray) -> list[bytes]:
    strings = b.data[b.offset_of(b.dyn(elf.DT_STRTAB) or 0):][:b.dyn(elf.DT_STRSZ) or 0]
    return [strings[n:strings.find(b"\0", n)] for n in symbols["st_name"].tolist()]


def _found(b: Binary, t: Tables, names: list[bytes]) -> dict[bytes, int]:
    """By name, the first symbol that a walk along its bucket's chain meets, as loaders look names up."""
    first: dict[bytes, int] = {}
    if t.gnu_hash:
        g = _gnu(b.contents(t.gnu_hash))
        assert g
        for i in range(g.first, g.first + len(g.chain)):       # chains are runs of ascending numbers
            first.setdefault(names[i], i)
        return first
    words = np.frombuffer(b.contents(t.hash), dtype="<u4").tolist() if t.hash else [0, 0]
    buckets, chain = words[2:2 + words[0]], words[2 + words[0]:]
    for i in buckets:
        for _ in range(len(chain)):
            if not i or i >= len(chain):
                break
            first.setdefault(names[i], i)
            i = chain[i]
    return first


def _walk(b: Binary, t: Tables) -> set[int]:
    """The numbers of all symbols that the GNU hash table's chains list."""
    g = _gnu(b.contents(t.gnu_hash)) if t.gnu_hash else None
    if g is None:
        return set()
    ends = np.flatnonzero(g.chain & 1)
    out: set[int] = set()
    for start in g.buckets[g.buckets > 0].tolist():
        last = ends[np.searchsorted(ends, start - g.first):][:1].tolist()
        out.update(range(start, g.first + (last[0] if last else -1) + 1))
    return out
