"""What the linker asks for and what it gives: Demand, ModulePlacement, LinkedPatch and their parts.  Values only.

All addresses are run-time addresses of the target, sizes bytes.  NamedTuples, because attach must start fast and
making one frozen dataclass class takes a millisecond at import, six times as long."""

from __future__ import annotations

from typing import NamedTuple

from psu_bin.attach.callers import Patched
from psu_bin.attach.view import Identity, ModuleView, Stored

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4


class Space(NamedTuple):
    """Bytes wanted, at an address that is a multiple of `align`."""
    size: int
    align: int


class ObjectDemand(NamedTuple):
    """One patch object's own memory: one mapping, freed with the object."""
    path: str
    size: int                      # a multiple of the page size
    mirrored: int                  # bytes from its start that want room for stubs at a distance (inner.py), whole pages; 0: none
    functions: tuple[str, ...]     # names of the functions it replaces


class ModuleDemand(NamedTuple):
    """What one module's patches want near it."""
    view: ModuleView
    objects: tuple[ObjectDemand, ...]
    constants: Space               # upper bound: LinkedStore.used says what was needed
    variables: Space
    stubs: tuple[Identity, ...]    # new functions that need a canonical stub
    names: tuple[str, ...]         # to look up in the dynamic scope
    low: bool                      # everything must lie below 2 GiB


class Demand(NamedTuple):
    """What plan found out.  `modules` are those that a patch belongs to."""
    modules: tuple[ModuleDemand, ...]
    warnings: tuple[str, ...]
    patched: tuple[Patched, ...]   # all functions of the patches
    work: object                   # linker.Work: intermediate results, nobody else's business
    brought: tuple[str, ...]       # Notes.brought of them


class ModulePlacement(NamedTuple):
    """Addresses for a ModuleDemand, in its order.  An address whose Space is empty is not looked at."""
    objects: tuple[int, ...]
    distances: tuple[int, ...]     # of each object to the room for its stubs, bytes modulo 2^64; 0: it wants none
    constants: int
    variables: int
    stubs: tuple[int, ...]


class Region(NamedTuple):
    """Bytes to write into the target, and the protection they end up with."""
    address: int
    data: bytes
    prot: int
    what: str                      # "code", "tables", "constants", "variables"


class Replaced(NamedTuple):
    """A function of a module that gets a new version."""
    view: ModuleView
    function: int                  # index in its descriptor
    name: str
    body: int
    size: int
    kind: int                      # gates.PLAIN, SIDE, FULL
    preserve: int                  # registers that the gate must keep


class Canonical(NamedTuple):
    """A new function with a stub of its own, made now or by an earlier patch."""
    identity: Identity
    stub: int
    body: int
    size: int
    kind: int
    preserve: int
    made_before: bool


class LinkedObject(NamedTuple):
    """One patch object, placed."""
    path: str
    address: int
    size: int
    replaced: tuple[Replaced, ...]
    canonical: tuple[Canonical, ...]
    code: tuple[tuple[str, int, int], ...]     # (name, address, size) of every function, private ones too
    regions: tuple[Region, ...]
    eh_frame: int                  # to register, 0: none
    symfile: tuple[int, int]       # (address, size) of the file for debuggers
    relied: tuple[tuple[int, int], ...]        # (stub, registers that this object's code expects it to leave alone)
    calls: tuple[int, int]         # (address, size) of the table of its calls of itself; size 0: it makes none
    mirror: tuple[int, int]        # (address, size) of the room for the stubs of those; size 0: they need none
    looks: frozenset[int]          # bodies of the functions whose gates look where calls come from (inner.looks)


class LinkedStore(NamedTuple):
    """What one module's store gets."""
    view: ModuleView
    regions: tuple[Region, ...]
    constants: tuple[Stored, ...]              # new ones
    constants_used: int                        # bytes of Space.constants that hold something, from its start
    variables: tuple[tuple[Identity, int, int], ...]   # new ones: (identity, address, size)


class LinkedPatch(NamedTuple):
    """What to write where.  `modules` as in Demand.modules: (objects, store)."""
    modules: tuple[tuple[tuple[LinkedObject, ...], LinkedStore], ...]
    bytes: int                                 # all that is written
    warnings: tuple[str, ...]
    patched: tuple[Patched, ...]               # as Demand.patched
