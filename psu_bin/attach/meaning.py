"""What a symbol of a patch object means in the target, and what a relocation refers to.

A reference is bound to one of a few kinds of Target before any address is known; linker.relocate turns targets into
addresses once everything has its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from psu_bin.arch.link_types import Access, Use
from psu_bin.attach.patch import PatchFunction, PatchSymbol
from psu_bin.attach.view import Identity


class Fixed(NamedTuple):
    """Something that the target has: a run-time address.  far: perhaps not within reach of the patch's code."""
    address: int
    far: bool = False


class Thread(NamedTuple):
    """A thread-local variable of the target: its offset from the thread pointer."""
    offset: int


class External(NamedTuple):
    """A name that the dynamic linker has to find."""
    module: int            # index of the view in whose scope to look
    name: str
    weak: bool             # may stay unresolved: 0
    fallback: int | None   # address of the module's only static of that name


class Room(Enum):
    """Where a piece of a patch object goes."""
    CODE = auto()          # with the object: code, and what only the code uses; read and execute
    LABELS = auto()        # with the object: writable tables of code addresses
    CONSTANT = auto()      # interned by content; read only, stays
    VARIABLE = auto()      # found again by identity; read and write, stays


@dataclass(eq=False)
class Piece:
    """A run of bytes of one section that is placed as a whole; compared by identity.

    Offsets of references into it count from the start of its section."""
    patch: int
    section: int
    start: int
    end: int
    align: int             # its address is congruent to `start` modulo this
    room: Room
    data: bytes            # end - start bytes; b"" for zeros
    name: str = ""         # for messages
    blank: list[tuple[int, int]] = field(default_factory=list)   # section ranges that lie elsewhere and are zero here
    references: list[Reference] = field(default_factory=list, repr=False)
    offset: int = -1       # in its room, once laid out
    extra: int = 0         # bytes behind the end for trampolines

    @property
    def size(self) -> int:
        return self.end - self.start + self.extra


@dataclass(eq=False)
class BoundFunction:
    """A function that a patch defines; compared by identity."""
    patch: int
    function: PatchFunction
    module: int                       # index of the view whose function it replaces, or of its patch's module
    number: int                       # index in that view's descriptor; -1: new
    identity: Identity
    known_stub: int                   # stub that an earlier patch made for it, 0: none

    @property
    def new(self) -> bool:
        return self.number < 0


class Twin(NamedTuple):
    """A constant object that the program has under the same name: the program's, if its content is equal."""
    piece: Piece
    start: int
    end: int
    address: int


class Exported(NamedTuple):
    """What the definition of a global in another (or this) patch of the transaction stands for."""
    patch: int
    symbol: PatchSymbol


class Unclear(NamedTuple):
    """A symbol that cannot be bound; said only when something refers to it."""
    what: str
    hint: str


Target = Fixed | Thread | External | Piece | BoundFunction | Twin | Exported | Unclear


class Reference(NamedTuple):
    """One field to fill in."""
    at: int                # offset in the section
    type: int              # relocation type
    use: Use
    access: Access
    target: Target | None  # None: the GOT itself, markers
    offset: int            # S + A = address of target + offset; where a GOT slot is wanted: S alone
    addend: int            # A
    size: int              # st_size of the symbol, for Use.SIZE
    insn: int              # offset of the instruction
    tail: int              # the instruction means the address S + A + tail


class NewVariable(NamedTuple):
    """A variable that the patch brings along."""
    identity: Identity
    piece: Piece
    start: int             # offset in the piece's section
    size: int
