"""The memory of one attempt to place patches: addresses for everything that they want, mapped, and what is written there.

An attempt fails when the program takes one of the addresses between our look at its map and the agent's mmap; then nothing is
mapped, and the next one looks again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from psu_bin import arch as arch_package
from psu_bin.attach import linker, meta, mirrors, placement, stores
from psu_bin.attach.target import Module
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.transaction import Transaction


class Space:
    """The memory of one attempt: addresses for everything that a Demand wants, mapped unless somebody was faster."""

    def __init__(self, x: Transaction, demand: linker.Demand, enter: list[list[tuple[str, int]]]) -> None:
        """enter: what Transaction._entries found."""
        self.x = x
        self.arch = arch_package.for_machine(x.target.modules[0].machine, x.target.process.where)
        self.wanted: list[tuple[int, int, bool]] = []
        self.shares: list[stores.Share] = []
        self.fresh_stubs: list[tuple[meta.Store, int]] = []
        self.entries: list[tuple[int, int]] = []          # (slot, where it leads) of new entries to library functions
        self.placements: list[linker.ModulePlacement] = []
        self.new_bytes = 0
        for d, entries in zip(demand.modules, enter):
            self._module(d, x.module(d.view), entries)
        self.mapped = x.map(self.wanted) is not None

    def _placer(self, module: Module, keep: bool) -> Callable[[int], int]:
        def place(size: int) -> int:
            taken = tuple((a, a + n) for a, n, _ in self.wanted)
            at = placement.near(self.x.target.process, module, size, taken)
            self.wanted.append((at, size, keep))
            return at
        return place

    def _mirror(self, module: Module, start: int, size: int) -> int:
        """The distance to room for the stubs of an object at `start` (inner.py), mapped with it and filled when they are needed; 0:
        there is none, and its calls of itself are like any others."""
        taken = [(a, a + n) for a, n, _ in self.wanted]
        try:
            run = mirrors.choose(self.x.target.process, self.arch, module, start, start + size, (), taken)
        except mirrors.NoRoom:
            return 0
        self.wanted.append((run.start, size, False))
        return run.distance

    def _module(self, d: linker.ModuleDemand, module: Module, entries: list[tuple[str, int]]) -> None:
        notes = self.x.notes
        objects = tuple(self._placer(module, False)(o.size) for o in d.objects)
        distances = tuple(self._mirror(module, at, o.mirrored) if o.mirrored else 0 for at, o in zip(objects, d.objects))
        keep = self._placer(module, True)
        places = []
        for kind, space in ((stores.CONSTANTS, d.constants), (stores.VARIABLES, d.variables)):
            s = stores.share(notes, kind, module.key, space.size, space.align, keep)
            if s:
                self.shares.append(s)
                self.new_bytes += space.size
            places.append(s.address if s else 0)
        rows = stores.stub_numbers(notes, module.key, len(d.stubs) + len(entries), keep)
        self.fresh_stubs += [(store, module.descriptor.flags) for store, _, fresh in rows if fresh]
        places_of = [(store.address + number * stores.STUB_ROOM, store.address + stores.PAGE + 8 * number)
                     for store, number, _ in rows]
        stubs = [at for at, _ in places_of[:len(d.stubs)]]
        for (file, name), (at, slot) in zip(d.stubs, places_of):
            notes.stubs.append(meta.StubNotes(module.key, file, name, at, slot))
        for (name, value), (at, slot) in zip(entries, places_of[len(d.stubs):]):
            notes.imports.append([module.key, name, value, at])
            self.entries.append((slot, value))
        self.placements.append(linker.ModulePlacement(objects, distances, places[0], places[1], tuple(stubs)))

    def write(self, linked: linker.LinkedPatch) -> None:
        """All bytes into the target, then the protections."""
        process = self.x.target.process
        protect: list[tuple[int, int, int]] = []
        for objects, store in linked.modules:
            for o in objects:
                for r in o.regions:
                    process.write(r.address, r.data)
                    if r.prot != 3:
                        protect.append((r.address, len(r.data), r.prot))
            for r in store.regions:
                self._write_store(r)
            for s in self.shares:
                # What the linker did not need of the room that it asked for goes back to the store.
                if s.store.kind == stores.CONSTANTS and s.address == store_start(store, s):
                    s.store.used = s.address + store.constants_used - s.store.address
        for s in self.shares:
            if s.fresh and s.store.kind == stores.CONSTANTS:
                protect.append((s.store.address, s.store.size, 1))
        for stub_store, flags in self.fresh_stubs:
            process.write(stub_store.address, stores.stub_page(self.arch, stub_store, flags))
            protect.append((stub_store.address, stores.PAGE, 5))
        for slot, value in self.entries:
            process.write(slot, value.to_bytes(8, "little"))
        self.x.protect(protect)

    def _write_store(self, r: linker.Region) -> None:
        process = self.x.target.process
        home = next(s for s in self.shares if s.store.address <= r.address < s.store.address + s.store.size)
        if home.fresh or r.prot & 2:
            process.write(r.address, r.data)
        elif not stores.force_write(process, self.x.session.seized.tid, r.address, r.data):
            raise PsuError(process.where, "its kernel forbids writing to the store of constants",
                           "CONFIG_PROC_MEM_NO_FORCE is set")


def store_start(store: linker.LinkedStore, s: stores.Share) -> int:
    """Where the constants of this share begin, -1 when they belong to another module's store."""
    inside = all(s.store.address <= c.address < s.store.address + s.store.size for c in store.constants)
    return s.address if inside else -1
