"""The values that the passes of instrument hand to each other.

`Path -> Binary -> References -> Plan -> Image -> Path`: references.py finds, plan.py decides, image.py writes.
Nothing here has behaviour.  Addresses are file addresses of the input, sizes bytes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property


class Reroute(enum.Enum):
    """How one reference is made to lead to a function's stub (or moved copy); what `Edit.at` addresses."""
    REL32 = enum.auto()        # 4-byte field of a call/jmp/jcc/lea; relative to the field's end (x86-64)
    ABS32 = enum.auto()        # 4-byte absolute address in code or data (position-dependent files)
    ABS64 = enum.auto()        # 8-byte absolute address in code, or in data without a dynamic relocation
    RELA_ADDEND = enum.auto()  # `at` is the number of an R_*_RELATIVE entry of DT_RELA: its addend
    RELR_WORD = enum.auto()    # 8-byte word that DT_RELR relocates in place
    DYNSYM = enum.auto()       # `at` is the number of a .dynsym symbol: its st_value and st_size
    INSTRUCTION = enum.auto()  # the immediate of one instruction: branch, adr, adrp (page), add (low bits) (AArch64)
    TO_ADR = enum.auto()       # an add to what adrp gave becomes an adr (AArch64)


@dataclass(frozen=True)
class Edit:
    """One reference to function `function` (index in Plan.functions) that image.py reroutes to its stub."""
    kind: Reroute
    at: int                    # address of the field, or a table index: see Reroute
    function: int
    call_site: bool            # counts as a call site (call, tail call) in what instrument prints


@dataclass(frozen=True)
class Detour:
    """The first bytes of a function move to a copy that ends with a jump back; a jump to the stub takes their place.

    The jump to the stub is at `address + skip` of the function, the jump back leads to `address + skip + length`.
    Pointers to a detoured function stay as they are: its canonical address is its original entry.
    length 0: nothing moves.  The copy is a landing pad for the stub, the function's canonical address is its stub.
    """
    function: int
    length: int                # bytes moved: whole instructions, at least the size of the jump
    copy: bytes                # the moved instructions, as they stand at the original address
    # (offset in copy of a field of kind Arch.moved_field, where it leads)
    fixups: tuple[tuple[int, int], ...]
    skip: int = 0              # bytes at the entry that stay before the jump (4: an endbr64), else 0
    # DW_CFA_ instructions for the copy, locations relative to its start, for a CIE with code factor 1, data factor
    # -8 and the frame of a function entry; what they say last holds for the jump back, too
    cfi: bytes = b""
    head: bytes = b""          # what the entry has in front of the jump to the stub
    pad: bytes = b""           # what the copy begins with: a mark without which no stub may jump there

    @property
    def size(self) -> int:
        """Bytes of pad and copy, without the jump back."""
        return len(self.pad) + len(self.copy)

    @property
    def rows(self) -> bytes:
        """DW_CFA_ instructions for pad and copy; empty: the frame is that of a function entry all the time."""
        return bytes((0x02, len(self.pad))) + self.cfi if self.pad and self.cfi else self.cfi      # DW_CFA_advance_loc1


@dataclass(frozen=True)
class PlannedFunction:
    """A function that becomes updatable; the index in Plan.functions is its stub and slot number."""
    name: str
    address: int
    size: int
    flags: int                 # descriptor.STACK_ARGS and so on
    preserve: int
    callers: int


@dataclass(frozen=True)
class NotUpdatable:
    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    functions: tuple[PlannedFunction, ...]   # ascending by address
    edits: tuple[Edit, ...]
    detours: tuple[Detour, ...]
    not_updatable: tuple[NotUpdatable, ...]
    call_sites: int
    # (address of a static local `name.N` or of a copy `f.isra.N`, entries of the functions that refer to it), ascending
    users: tuple[tuple[int, tuple[int, ...]], ...] = ()
    # (field, function) of direct calls that stay as they are until the function's first patch (sites.py), ascending
    sites: tuple[tuple[int, int], ...] = ()
    moves_stack: bool = False                # code of the module may go on with another stack (traits.moves_stack)
    far: bool = False                        # direct branches may not reach the stubs (layout.far): nothing moves

    @cached_property
    def edits_by_kind(self) -> dict[Reroute, list[tuple[int, int, bool]]]:
        """(place, function, call site) of the edits of each kind that occurs, ascending, each once."""
        found: dict[Reroute, set[tuple[int, int, bool]]] = {}
        for e in self.edits:
            found.setdefault(e.kind, set()).add((e.at, e.function, e.call_site))
        return {kind: sorted(found[kind]) for kind in Reroute if kind in found}
