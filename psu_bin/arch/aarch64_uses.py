"""What the code of a patch does with the addresses that it puts into registers.

Two answers.  The kind of access decides, as on x86-64, which of two neighbouring objects an address at their boundary means
(attach/boundary.py).  And *reaches*: GCC addresses several variables of a file through one anchor (-fsection-anchors, on by
default), so that `ldr w1, [x0, #8]` may be of another variable than the one that x0 was set to, without a relocation
that says so.  The variables of a patch do not keep their distances in the program, so attach has to know, and has to give
such an instruction an address of its own where they differ (aarch64_veneers.py).

Addresses are followed over all ways through the function and its cold part: copies, sums with constants, stack slots.  Of
each register it is known which addresses it *may* hold, and whether that is all it can hold.  Whatever else is done with
an address counts as its use there: it is stored, passed, compared, indexed.  A sum that a loop adds to again is a pointer that
walks, and stays in its object.

Where a computed jump goes is read from its jump table; where that cannot be, it may go to every instruction.  So may
the unwinder enter a function that has landing pads.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from psu_bin.arch import aarch64_decode as decode
from psu_bin.arch import aarch64_veneers as veneers
from psu_bin.arch.aarch64_decode import SP
from psu_bin.arch.aarch64_veneers import memory_size
from psu_bin.arch.aarch64_reads import changed, read
from psu_bin.arch.link_types import Access, Cut, Found, Mark, Part, Reach

Place = tuple[int, int]               # (section, offset)

# The strongest evidence counts when an address is used in several ways.
ORDER = (Access.WRITTEN, Access.EXACT, Access.INDEXED, Access.TABLE, Access.ADDRESS, Access.BELOW, Access.COMPARED)
ARGUMENTS, RESULTS = range(9), range(2)
_SLOT, _VECTOR = 1 << 20, 1 << 10     # keys of a state: registers, then vector registers, then stack slots
_VENEERS_CHANGE = 1 << 16 | 1 << 17 | 1 << 30
_MOST = 256                           # addresses that one register may hold


class Address(NamedTuple):
    """symbol + addend + distance, and perhaps an index."""
    symbol: int
    addend: int
    tag: int                          # a veneer's address is no other's, though symbol and addend be the same
    distance: int
    indexed: bool
    sums: tuple[int, ...]             # indices of the instructions that added to it, in order


Group = tuple[int, int, int]          # symbol, addend, tag
Values = frozenset[Address | None]    # None: something else
State = dict[int, Values]
OTHER: Values = frozenset((None,))


def strongest(found: set[Access]) -> Access:
    """The access that says most about which object is meant."""
    return next((a for a in ORDER if a in found), Access.ADDRESS)


def trace(parts: list[Part], marks: Mapping[Place, Mark], addresses: frozenset[int], table: Callable[[int, int], bytes],
          landing_pads: bool) -> dict[Place, Found]:
    """What the function that consists of `parts` does with each address that a relocation puts into a register.

    marks: the relocations in it; addresses: the types of those that make addresses; table: the constant bytes from
    symbol + addend on, up to what something else refers to; landing_pads: the unwinder may enter it."""
    body = _Body(parts, marks, addresses, table)
    if not body.names:
        return {}
    body.run(landing_pads)
    return body.found()


class _Body:
    """One function, all its parts one behind the other."""

    def __init__(self, parts: list[Part], marks: Mapping[Place, Mark], addresses: frozenset[int],
                 table: Callable[[int, int], bytes]) -> None:
        self.words: list[int] = []
        self.veneers: set[int] = set()
        self.places: list[Place] = []
        self.marks: list[Mark | None] = []
        self.data: set[int] = set()
        self.table = table
        for p in parts:
            words = decode.walk(p.code, p.start, p.end)
            first = len(self.words)
            self.data.update(first + (at - p.start) // 4 for at in literals(words, p.start) if p.start <= at < p.end)
            self.words += words
            self.veneers.update(range(first, len(self.words)) if p.veneers else ())
            self.places += [(p.section, at) for at in range(p.start, p.end, 4)]
        self.marks = [marks.get(place) for place in self.places]
        self.free = veneers.free_registers([w for k, w in enumerate(self.words) if k not in self.veneers])
        self.index = {place: k for k, place in enumerate(self.places)}
        # Of each instruction that names an address (an adrp, its other half, a load): whose.
        self.names: dict[int, Group] = {}
        tag = 0
        for k, m in enumerate(self.marks):
            if m is not None and m.type in addresses and k not in self.data:
                tag = 0 if k not in self.veneers or veneers.is_origin(self.words[k], self.free) else (
                    k if decode.is_adrp(self.words[k]) else tag)
                self.names[k] = (m.symbol, m.addend, tag)
        self.states: dict[int, State] = {}
        self.accesses: dict[Group, set[Access]] = {}
        self.reaches: dict[Group, set[Reach]] = {}

    # ---- which address is where -----------------------------------------------------------------------------------

    def run(self, landing_pads: bool) -> None:
        """Find the state before each instruction."""
        todo: list[int] = []
        everywhere = [k for k in range(len(self.words)) if k not in self.data]

        def enter(k: int, state: State) -> None:
            known = self.states.get(k)
            merged = state if known is None else _merged(known, state)
            if known is None or merged != known:
                self.states[k] = merged
                todo.append(k)

        enter(0, {})
        while True:
            while todo:
                k = todo.pop()
                state = self._behind(k, self.states[k])
                targets, falls = self._ways(k, self.states[k])
                call = decode.is_call(self.words[k]) or decode.is_indirect_call(self.words[k])
                for t in everywhere if targets is None or call and landing_pads else targets:
                    enter(t, state)
                if falls and k + 1 < len(self.words) and k + 1 not in self.data and (
                        self.places[k + 1] == (self.places[k][0], self.places[k][1] + 4)):
                    enter(k + 1, state)
            # What is known of a table may have become less meanwhile.
            for k in [k for k in self.states if decode.is_indirect_jump(self.words[k])]:
                for t in everywhere if (targets := self._switch(k, self.states[k])) is None else targets:
                    enter(t, self._behind(k, self.states[k]))
            if todo:
                continue
            # What nothing seems to lead to: padding, or entered in a way that is not known.
            rest = next((k for k in everywhere if k not in self.states and self.words[k] != decode.NOP
                         and not decode.is_trap(self.words[k])), None)
            if rest is None:
                return
            held: State = {}
            for state in list(self.states.values()):
                held = _merged(held, state)
            enter(rest, held)

    def _ways(self, k: int, state: State) -> tuple[list[int] | None, bool]:
        """(where words[k] may jump to in this function, None: anywhere; whether it goes on to the next)."""
        word = self.words[k]
        falls = not decode.ends_path(word)
        if decode.is_jump(word):
            target = self._target(k)
            return [target] if target is not None else [], falls
        if decode.is_indirect_jump(word):
            return self._switch(k, state), False
        return [], falls

    def _target(self, k: int) -> int | None:
        """Where in this function the direct jump leads; None: out of it."""
        mark, (section, at) = self.marks[k], self.places[k]
        place = mark.to if mark is not None else (section, decode.branch_target(self.words[k], at))
        return self.index.get(place) if place is not None else None

    def _switch(self, k: int, state: State) -> list[int] | None:
        """The targets of a computed jump: `adr base; add x, base, entry, lsl #2; br x`; None where it is none such."""
        register, base, size, signed, where = self.words[k] >> 5 & 31, None, 0, False, None
        start = 0
        for j in range(k - 1, max(k - 12, -1), -1):
            w = self.words[j]
            m = decode.memory(w)
            if w & 31 == register and w & 0xFF200000 in (0x8B200000, 0x8B000000) and base is None and not start:
                if not (w & 0x00200000 and w >> 10 & 7 == 2 or not w & 0x00200000 and w >> 10 & 63 == 2):
                    return None
                signed, start = bool(w & 0x00200000 and w >> 13 & 7 >= 4), 1
                register = w >> 5 & 31
            elif start and base is None and decode.is_adr(w) and w & 31 == register and self.marks[j] is None:
                base = (self.places[j][0], decode.adr_target(w, self.places[j][1]))
            elif start and not size and m is not None and m.index >= 0 and not m.store and not w >> 26 & 1:
                size, where = 1 << (w >> 30), self._only(self.states.get(j, {}), m.base)
        if base is None or not size or size == 8 or where is None:
            return None
        out, data = [], self.table(where.symbol, where.addend + where.distance)
        for (entry,) in struct.iter_unpack("<" + {1: "b", 2: "h", 4: "i"}[size] if signed or size == 4 else
                                           "<" + {1: "B", 2: "H"}[size], data[:len(data) // size * size]):
            target = self.index.get((base[0], base[1] + 4 * entry))
            if target is None:
                break
            out.append(target)
        return out or None

    def _only(self, state: State, register: int) -> Address | None:
        """The address that the register holds, whichever way led here; None: not always the same."""
        values = state.get(register, OTHER)
        found = {v[:5] for v in values if v is not None}
        return next(v for v in values if v) if len(found) == 1 and None not in values else None

    def _behind(self, k: int, state: State) -> State:
        """What holds which address behind words[k]."""
        word, mark = self.words[k], self.marks[k]
        rd, rn, rm = word & 31, word >> 5 & 31, word >> 16 & 31
        new: State = {}
        m = decode.memory(word)
        step = decode.add_immediate(word)
        if k in self.names:
            if m is None and not decode.is_literal(word) and not decode.is_adrp(word):
                new[rd] = frozenset((Address(*self.names[k], 0, False, ()),))
        elif m is not None:
            if m.base in (SP, 29) and m.index < 0:
                for n, r in enumerate(_data(word)):
                    slot = _SLOT * (1 + m.base) + m.offset + 8 * n
                    if m.store and word & 0x3A000000 != 0x08000000:
                        new[slot] = state.get(r, OTHER)
                    elif r != SP:
                        new[r] = state.get(slot, OTHER) | OTHER      # another way may have written there
        elif step is not None and rn != SP and mark is None:
            new[rd] = self._sums(state.get(rn, OTHER), k, step)
        elif _adds(word):
            pointers = [state[r] for r in ((rn,) if _subtracts(word) else (rn, rm)) if r in state]
            new[rd] = self._sums(frozenset().union(*pointers, *([OTHER] if len(pointers) > 1 else [])), k, None)
        elif decode.is_copy(word):
            new[rd] = state.get(rm, OTHER)
        elif word & 0xFFE00C00 == 0x9A800000:                         # csel
            new[rd] = state.get(rn, OTHER) | state.get(rm, OTHER)
        elif word & 0xFFFFFC00 == 0x9E670000:                         # fmov dn, xm: a spill
            new[_VECTOR + rd] = state.get(rn, OTHER)
        elif word & 0xFFFFFC00 == 0x9E660000:
            new[rd] = state.get(_VECTOR + rn, OTHER) | OTHER
        elif state and _computes(word) and (held := [r for r in read(word) if r in state]):
            # A sum of a product, bits masked, anything: perhaps still an address near there.
            new[rd] = self._sums(frozenset().union(*(state[r] for r in held), OTHER if not _multiplies(word) else ()), k, None)
        if m is not None and m.writes_base and m.base in state:
            new[m.base] = self._sums(state[m.base], k, veneers.step(word))
        if not state and not new:
            return state
        gone, doubtful = decode.writes(word), changed(word)
        if decode.is_call(word) and (mark is None or mark.to is not None):
            # Of a function of its own file the compiler knows what it leaves alone (-fipa-ra): a register that is read
            # behind the call, and was not written, holds what it held; but x0 and x1 may be results.
            gone, doubtful = gone & _VENEERS_CHANGE, doubtful | 3
        out = {}
        for r, values in state.items():
            if r < SP and gone >> r & 1:
                continue
            out[r] = values | OTHER if r < SP and doubtful >> r & 1 else values
        out.update(new)
        out.pop(SP, None)
        return {r: values for r, values in out.items() if values != OTHER}

    def _sums(self, values: Values, k: int, step: int | None) -> Values:
        """`values`, each increased by words[k]: by `step`, or by an index."""
        out: set[Address | None] = set()
        for v in values:
            if v is None:
                out.add(v)
            elif k in v.sums or len(v.sums) >= 8:
                out.add(v._replace(indexed=True))             # a pointer that walks
            else:
                out.add(v._replace(distance=v.distance + (step or 0), indexed=v.indexed or step is None, sums=(*v.sums, k)))
        if len(out) > _MOST:
            raise ValueError(f"more than {_MOST} addresses in one register")
        return frozenset(out)

    # ---- what is done with them -----------------------------------------------------------------------------------

    def found(self) -> dict[Place, Found]:
        """After run(): of each place that names an address what is done with that address."""
        for k, state in self.states.items():
            self._note(k, state)
        out = {}
        for k, group in self.names.items():
            out[self.places[k]] = Found(strongest(self.accesses.get(group, set())),
                                        tuple(sorted(self.reaches.get(group, ()), key=lambda r: (r.distance, r.size))))
        return out

    def _note(self, k: int, state: State) -> None:
        word, m = self.words[k], decode.memory(self.words[k])
        if k in self.names:
            group = self.names[k]
            if m is not None or decode.is_literal(word):
                self.accesses.setdefault(group, set()).add(Access.WRITTEN if m is not None and m.store else Access.EXACT)
                self.reaches.setdefault(group, set()).add(Reach(0, 1, None))
                self._taken(k, state, [r for r in _data(word) if m is not None and m.data >> r & 1])
            return
        if not state:
            return
        if m is not None:
            if m.base != SP:
                for v in state.get(m.base, OTHER) - OTHER:
                    assert v is not None
                    self._memory(k, v, m, state)
            self._taken(k, state, [r for r in range(SP) if m.data >> r & 1])        # spills, too: nobody can tell
            if m.index >= 0:
                self._taken(k, state, [m.index])
        elif decode.is_call(word) or decode.is_indirect_call(word):
            self._taken(k, state, [*ARGUMENTS, *read(word)])
        elif decode.is_jump(word):
            if not decode.is_conditional(word) and self._target(k) is None:
                self._taken(k, state, ARGUMENTS)                      # a tail call
        elif decode.is_indirect_jump(word):
            self._taken(k, state, [*read(word), *(ARGUMENTS if self._switch(k, state) is None else ())])
        elif decode.ends_path(word):
            self._taken(k, state, RESULTS)
        elif word & 0x7F200000 in (0x6B000000, 0x6B200000) and word & 31 == 31:          # cmp
            self._taken(k, state, read(word), Access.COMPARED)
        elif word & 0xFFE0001F == 0xD4000001:                          # svc
            self._taken(k, state, ARGUMENTS)
        elif _multiplies(word):
            self._taken(k, state, [word >> 5 & 31, word >> 16 & 31])
        elif _adds(word):
            # Both pointers, or one subtracted: a distance between two addresses.
            held = [r for r in read(word) if state.get(r, OTHER) != OTHER]
            if _subtracts(word) and word >> 16 & 31 in held or len(held) > 1:
                self._taken(k, state, held, Access.INDEXED)
            jumps = any(decode.is_indirect_jump(w) for w in self.words[k + 1:k + 6])
            for v in {v for r in held for v in state[r] if v is not None and not v.distance}:
                self.accesses.setdefault(v[:3], set()).add(Access.TABLE if jumps else Access.INDEXED)
        elif decode.add_immediate(word) is not None:
            for v in state.get(word >> 5 & 31, OTHER) - OTHER:
                assert v is not None
                if k in v.sums:
                    continue
                if v.distance + (decode.add_immediate(word) or 0) < 0:
                    self.accesses.setdefault(v[:3], set()).add(Access.BELOW)
        elif not decode.is_copy(word) and word & 0xFFE00C00 != 0x9A800000 and word & 0xFFFFFC00 != 0x9E670000:
            self._taken(k, state, read(word))

    def _taken(self, k: int, state: State, registers, access: Access = Access.ADDRESS) -> None:  # noqa: ANN001
        """The addresses in `registers` go somewhere."""
        for r in registers:
            for v in state.get(r, OTHER) - OTHER:
                assert v is not None
                self._reached(v, v.distance, -1 if v.indexed else 0, self._sum_of(v))
                self.accesses.setdefault(v[:3], set()).add(Access.INDEXED if v.indexed else access)

    def _memory(self, k: int, v: Address, m: decode.Memory, state: State) -> None:
        """words[k] uses memory at `v`, and perhaps more."""
        word, at = self.words[k], v.distance + m.offset
        jumps = any(decode.is_indirect_jump(w) for w in self.words[k + 1:k + 6])
        if m.index >= 0 or v.indexed:
            kind = Access.TABLE if jumps else Access.INDEXED
        else:
            kind = Access.BELOW if at < 0 else Access.INDEXED if at else Access.WRITTEN if m.store else Access.EXACT
        self.accesses.setdefault(v[:3], set()).add(kind)
        size, count = memory_size(word)
        plain = m.index < 0 and size and self.marks[k] is None
        cut = self._sum_of(v)
        # An index counts from what it was added to: this must stay as it is.
        if plain and self._only(state, m.base) is not None and self._may_cut(k, v) and not (v.indexed and cut):
            cut = Cut(*self.places[k], v.symbol, v.addend + at, *((m.base, v.addend, v.distance) if v.indexed else ()))
        for n in range(count if plain else 1):
            self._reached(v, at + n * size, -1 if v.indexed or m.index >= 0 else size if plain else 0, cut)

    def _reached(self, v: Address, distance: int, size: int, cut: Cut | None) -> None:
        self.reaches.setdefault(v[:3], set()).add(Reach(distance, size, cut))

    def _may_cut(self, k: int, v: Address) -> bool:
        """words[k], that uses or computes `v`, can move to a veneer."""
        return k not in self.veneers and veneers.possible(self.words[k], self.free, v.indexed) and (
            not v.indexed or not v.tag and 0 <= v.distance < 4096)

    def _sum_of(self, v: Address) -> Cut | None:
        """The last sum that went into `v` whose result is the same on all ways."""
        distance = v.distance
        for k in reversed(v.sums):
            word = self.words[k]
            source = self._only(self.states[k], word >> 5 & 31)
            if veneers.step(word) is not None and source is not None and self._may_cut(k, source):
                return Cut(*self.places[k], v.symbol, v.addend + distance)
            distance -= veneers.step(word) or 0
        return None


def _adds(word: int) -> bool:
    """add or sub of two registers, 64 bits, flags or not; no comparison."""
    return word & 0x9F000000 == 0x8B000000 and word & 31 != SP


def _subtracts(word: int) -> bool:
    return bool(word >> 30 & 1)


def _multiplies(word: int) -> bool:
    """madd, umaddl, smaddl: adds the third operand to a product, that is an index."""
    return word & 0xFF608000 in (0x9B000000, 0x9B200000)


def _computes(word: int) -> bool:
    """The word may compute a general register's new value."""
    return word & 31 != SP and word >> 25 & 15 not in (10, 11) and word & 0x3FE00000 != 0x3A400000


def _merged(a: State, b: State) -> State:
    out = {}
    for r in a.keys() | b.keys():
        values = a.get(r, OTHER) | b.get(r, OTHER)
        if values != OTHER:
            out[r] = values
    return out


def _data(word: int) -> list[int]:
    """The registers that a load or store moves, first to last."""
    pair = word & 0x3A000000 == 0x28000000
    return [] if word >> 26 & 1 else [word & 31, word >> 10 & 31] if pair else [word & 31]


def literals(words: tuple[int, ...], start: int) -> set[int]:
    """Offsets of words that are data: an `ldr` (literal) of the function reads them."""
    out: set[int] = set()
    for k, w in enumerate(words):
        if decode.is_literal(w):
            at, size = decode.literal(w, start + 4 * k)
            out.update(range(at, at + size, 4))
    return out
