"""What NAME_link.py of every architecture tells the linker of attach about relocations and patch code.

The linker (psu_bin/attach) decides what a symbol means and where everything lies; these values say, without naming an
architecture, what a relocation wants to know and what the instruction around a relocated field does with it.
Letters as in the psABIs: S the symbol's address, A the addend, P the address of the field, V = S + A.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Use(enum.Enum):
    """What goes into a relocated field."""
    NOTHING = enum.auto()        # no value: a marker, or gone after a TLS relaxation
    BRANCH = enum.auto()         # a direct call or jump: any address that leads to S will do (a PLT entry)
    ADDRESS = enum.auto()        # V, absolute or minus P
    GOT = enum.auto()            # a GOT slot with S in it
    GOT_SLOT_OFFSET = enum.auto()  # the same slot, counted from the start of the GOT
    GOT_BASE = enum.auto()       # the start of the GOT
    GOT_RELATIVE = enum.auto()   # V minus the start of the GOT
    SIZE = enum.auto()           # the symbol's size + A
    TLS_OFFSET = enum.auto()     # V as an offset from the thread pointer
    TLS_GOT = enum.auto()        # a GOT slot with that offset in it
    TLS_GENERAL = enum.auto()    # a call that finds a variable's address, to be relaxed to the offset
    TLS_MODULE = enum.auto()     # a call that finds the module's block, to be relaxed to the thread pointer
    TLS_DESCRIPTOR = enum.auto()
    TLS_DESCRIPTOR_CALL = enum.auto()


TLS_USES = frozenset((Use.TLS_OFFSET, Use.TLS_GOT, Use.TLS_GENERAL, Use.TLS_MODULE, Use.TLS_DESCRIPTOR,
                      Use.TLS_DESCRIPTOR_CALL))


class Access(enum.Enum):
    """What an instruction does with an address that it names; decides which of two objects a boundary address means."""
    EXACT = enum.auto()          # loads right there, calls, jumps
    WRITTEN = enum.auto()        # stores right there
    INDEXED = enum.auto()        # loads or stores there plus a register
    ADDRESS = enum.auto()        # takes the address into a register or memory
    COMPARED = enum.auto()       # takes the address and only ever compares with it
    BELOW = enum.auto()          # takes the address to count down from it
    TABLE = enum.auto()          # base of a table that a computed jump reads
    DATA = enum.auto()           # not in code: a pointer in data


class Howto(NamedTuple):
    """One relocation type."""
    name: str
    use: Use
    size: int                    # bytes of the field
    relative: bool               # minus P
    narrow: bool                 # holds an absolute address in fewer bits than one has


class Cut(NamedTuple):
    """An instruction that can be given a relocation of its own: it moves to a veneer, and a branch takes its place."""
    section: int
    at: int                      # offset of the instruction
    symbol: int                  # its address is that of this symbol ...
    addend: int                  # ... and this: what the instruction uses or computes
    # Where an index was added to an address before: the register with the sum, and symbol + this, which its program
    # address counts from, and how far from there.  addend leaves the index out.
    register: int = -1
    origin: int = 0
    distance: int = 0


class Reach(NamedTuple):
    """What code uses at a fixed distance from an address that it names, without a relocation that says so."""
    distance: int
    size: int                    # bytes of memory; 0: the address itself goes somewhere; -1: memory there plus an index
    cut: Cut | None              # None: there is no one instruction to which the distance belongs


class Found(NamedTuple):
    """What a function does with an address that it puts into a register."""
    access: Access
    reaches: tuple[Reach, ...]


class Part(NamedTuple):
    """A range of a section's code that belongs to a function: itself, its cold part."""
    section: int
    start: int
    end: int
    code: bytes                  # of the section
    veneers: bool                # what was cut out of the function


class Mark(NamedTuple):
    """A relocation in code."""
    type: int
    symbol: int
    addend: int
    to: tuple[int, int] | None   # (section, offset) of the object that symbol + addend is


class Field(NamedTuple):
    """A relocated field in code."""
    use: Use                     # as Howto.use, but PC-relative fields of calls and jumps are Use.BRANCH
    tail: int                    # what must be added to A so that S + A is the address that the instruction means
    access: Access
    insn: int                    # offset of the instruction
    reaches: tuple[Reach, ...] = ()


class Resolved(NamedTuple):
    """A reference inside one section that the assembler resolved, without a relocation."""
    at: int                      # offset of the PC-relative field
    size: int                    # its bytes: 1 or 4
    target: int                  # offset
    use: Use                     # BRANCH or ADDRESS
    call: bool                   # a call (a jump otherwise, or an address)
    end: int                     # offset that the displacement counts from


class CodeSurvey(NamedTuple):
    """What attach wants to know of one section's code."""
    fields: dict[int, Field]     # by offset of the relocated field
    resolved: tuple[Resolved, ...]
    breaks: tuple[int, ...]      # ascending: offsets of instructions that end a straight line: calls, jumps, returns


class ResultPart(NamedTuple):
    """A scalar in what a function returns."""
    at: int                      # its first byte
    size: int                    # bytes
    kind: str                    # integer (also pointers), float, "long double", vector


class Places(NamedTuple):
    """Addresses that one relocation may need besides V and P; 0 where there is none."""
    got: int = 0                 # start of the object's GOT
    slot: int = 0                # GOT slot that holds S, or the offset of S from the thread pointer
    branch: int = 0              # PLT entry that leads to S
    size: int = 0                # st_size


class OutOfRange(ValueError):
    """A value does not fit its field; the text says which and how far off."""
