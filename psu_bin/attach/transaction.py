"""attach and everything that attach and revert share: from patch objects to a commit.

The passes, with what is true after each:

    read the target      its modules, shim and notes are known; nothing was touched
    agent                there is an agent (a thread was borrowed if need be), and we hold it: nobody else changes anything
    plan                 the patch can be linked; names are looked up
    map                  memory is there, staged: a RESET or the next psu-bin takes it back
    relocate, write      all bytes are in place, code is executable
    commit               the patch is current

Up to the commit every error leaves the target as it was.
"""

from __future__ import annotations

import errno
import pickle
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from psu_bin import arch as arch_package
from psu_bin.attach import (
    borrow, callers, checks, copies, imports, linker, meta, mirrors, originals, patch, pressure, seccomp, shim, surplus, target,
    turning, typecheck,
)
from psu_bin.attach.commit import NewObject, Switch, choose_indices, commit, prepare
from psu_bin.attach.process import PAGE, Process
from psu_bin.attach.space import Space
from psu_bin.attach.target import Module, Target
from psu_bin.attach.tracing import AgentSession, agent_thread
from psu_bin.attach.view import ModuleView, views
from psu_bin.elf import Binary
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.meaning import BoundFunction
    from psu_bin.attach.patch import PatchObject

LEFTOVERS = 8              # so many retired objects are worth a look at who keeps them, after the commit
MAP_ATTEMPTS = 5           # the program may take an address between our look at its map and the mmap


@dataclass(frozen=True)
class AttachResult:
    patch: int
    functions: tuple[str, ...]
    bytes: int
    seconds_link: float
    seconds_commit: float
    threads_stopped: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One patch object of a transaction, and the patch that it belongs to."""
    patch: int
    object: PatchObject
    only: frozenset[tuple[str, int]] | None = None   # (module, function) that it replaces; None: all that it can


@dataclass(frozen=True)
class Placed:
    """What place() put into the target: everything a commit needs, nothing switched yet."""
    objects: list[NewObject]
    switches: list[Switch]
    linked: linker.LinkedPatch | None
    owner: list[int]                                 # patch id of each linked object
    bytes: int
    warnings: tuple[str, ...]


def attach(pid: int, paths: tuple[Path, ...], *, dry_run: bool = False, changed_types: bool = False) -> AttachResult:
    """Put the functions of the patch objects at `paths` into process `pid`, as one patch.

    changed_types: even where debug information says that types are not those of the program.  Raises PsuError; then the target is as it was before."""
    began = time.monotonic()
    files = [Binary.read(p) for p in paths]
    objects = [patch.parse(f) for f in files]
    process = Process(pid)
    with process.one_program():
        t = target.read(process)
        target.check_files(t, t.modules)
        checks.stacks(tuple(objects), t.maps)
        if dry_run:
            return _dry_run(t, objects, began, changed_types)
        with Transaction(t) as x:
            number = x.notes.next_patch
            x.notes.next_patch += 1
            placed = x.place([Source(number, o) for o in objects], changed_types=changed_types)
            linked = time.monotonic() - began
            names, lost = x.copies([f.data for f in files])
            x.record(number, ", ".join(p.name for p in paths), placed, list(zip(map(str, paths), names)))
            seconds = x.commit(placed)
            functions = tuple(dict.fromkeys(s.function.name for s in placed.switches))
            late = turning.reopen(x, placed.switches)
            result = AttachResult(number, functions, placed.bytes, linked, seconds, x.threads_stopped,
                                  placed.warnings + ((lost,) if lost else ()) + late)
        surplus.sweep(t, LEFTOVERS, surplus.BRIEF, seconds=0)
        assert placed.linked
        return replace(result, warnings=result.warnings + callers.warnings(
            placed.linked.patched, lambda view: target.file(t, view.descriptor)))


def _dry_run(t: Target, objects: list[patch.PatchObject], began: float, changed_types: bool) -> AttachResult:
    """Everything up to the first byte that would be written; names are only looked up when there is an agent to ask."""
    runtime = t.runtime()
    notes = meta.read(t.process, runtime)
    demand = linker.plan(objects, views(t, notes))
    if not changed_types:
        typecheck.check(demand)
    warnings = list(demand.warnings)
    if agent_thread(t.process, runtime):
        with Transaction(t) as x:
            imports.check_resolved(demand, x.resolve(demand))
    elif any(m.names for m in demand.modules):
        warnings.append("there is no agent yet, so names of shared libraries were not looked up")
    functions = tuple(f for m in demand.modules for o in m.objects for f in o.functions)
    size = sum(o.size for m in demand.modules for o in m.objects)
    return AttachResult(notes.next_patch, functions, size, time.monotonic() - began, 0.0, 0,
                        (*warnings, *callers.warnings(demand.patched, lambda v: target.file(t, v.descriptor))))


@dataclass
class Transaction:
    """A held agent, and notes that become the target's when commit() succeeds.  Context manager."""
    target: Target
    threads_stopped: int = 0
    session: AgentSession = field(init=False)
    notes: meta.Notes = field(init=False)
    # By module: its direct calls (turning.sites), and the places that they can be turned to.
    sites: dict[str, tuple[turning.Site, ...]] = field(default_factory=dict)
    runs: dict[str, list[mirrors.Run]] = field(default_factory=dict)
    new_mirrors: list[int] = field(default_factory=list)        # objects that no call was turned to yet
    promised: frozenset[int] = frozenset()                      # counter indices of the objects that are to be committed
    _calls: list[list[int]] = field(default_factory=list)       # of those objects: rows of Notes.calls
    _relied: list[tuple[int, str, int, int]] = field(default_factory=list)     # the same: for Notes.rely

    def __enter__(self) -> Transaction:
        t = self.target
        runtime = t.runtime()
        pressure.refuse(t.process.path("cgroup"), t.process.where, 0)
        if agent_thread(t.process, runtime) is None:
            self.threads_stopped = borrow.start_agent(t)
        self.session = AgentSession(t.process, t.runtime_address)
        try:
            self._begin()
        except BaseException:
            self.session.__exit__()
            raise
        return self

    def _begin(self) -> None:
        t = self.target
        if self.session.seized.interrupt():
            calls = arch_package.for_machine(t.modules[0].machine, t.process.where).calls
            seccomp.check(t.process, self.session.seized.tid, calls.AUDIT_ARCH, [seccomp.Call(*c) for c in calls.AGENT])
            t.process.write(t.runtime_address + shim.SILENT_OFFSET, bytes([seccomp.alone(t.process, self.session.seized.tid)]))
        self.session.command(shim.OP_RESET, b"", 0)
        code = self.session.runtime.membarrier_error
        if code:
            raise PsuError(t.process.where, f"membarrier does not work there: {errno.errorcode.get(code, code)}",
                           "a seccomp filter forbids it, or the kernel is older than 4.14")
        self._take(meta.read(t.process, self.session.runtime))

    def _take(self, notes: meta.Notes) -> None:
        self.notes = notes
        self._functions = {(f.module, f.number): f for f in notes.functions}

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is not None:
                mirrors.drop(self, self.new_mirrors)
                self.give_back()
        finally:
            self.session.__exit__(*exc)

    def give_back(self) -> None:
        try:
            self.session.command(shim.OP_RESET, b"", 0)
        except PsuError:
            pass  # the error that brought us here is the one to tell; the next psu-bin resets first

    # ---- memory ---------------------------------------------------------------------------------------------------

    def map(self, wanted: list[tuple[int, int, bool]]) -> list[int] | None:
        """mmap (address or 0, size, keep) read-write, all or none; the addresses, or None when one was taken meanwhile."""
        if not wanted:
            return []
        entries = b"".join(shim.MAP.pack(a, size, 3, int(keep)) for a, size, keep in wanted)
        at = self._room_for(entries)
        try:
            raw = self.session.command(shim.OP_MAP, entries, len(wanted), record_at=at)
        except PsuError as e:
            if "EEXIST" in e.what:
                return None
            if "ENOSPC" in e.what:      # shim/commands.c: its table of what is staged is full
                raise PsuError(self.target.process.where, f"the patches take more than {shim.STAGED} pieces of memory at once",
                               "join their objects: ld -r") from e
            raise
        return [row[0] for row in shim.MAP.iter_unpack(raw)]

    def scratch(self, size: int, keep: bool) -> int:
        """Staged memory anywhere."""
        at = self.map([(0, -(-size // PAGE) * PAGE, keep)])
        assert at is not None
        return at[0]

    def _room_for(self, entries: bytes) -> int:
        """Where a command's record goes: 0 for the fixed buffer, if it fits."""
        size = shim.COMMAND.size + len(entries)
        return self.scratch(size, False) if size > shim.BUFFER_SIZE else 0

    def protect(self, ranges: list[tuple[int, int, int]]) -> None:
        """mprotect (address, size, prot)."""
        if ranges:
            entries = b"".join(shim.MAP.pack(a, -(-size // PAGE) * PAGE, prot, 0) for a, size, prot in ranges)
            self.session.command(shim.OP_PROTECT, entries, len(ranges), record_at=self._room_for(entries))

    def resolve(self, demand: linker.Demand) -> list[dict[str, int]]:
        """Look the demand's names up in the dynamic scope; missing ones are left out."""
        names = list(dict.fromkeys(n for m in demand.modules for n in m.names))
        found: dict[str, int] = {}
        step = shim.BUFFER_SIZE // 128
        for first in range(0, len(names), step):
            found.update(self._resolve(names[first:first + step]))
        return [{n: found[n] for n in m.names if found.get(n)} for m in demand.modules]

    def _resolve(self, names: list[str]) -> dict[str, int]:
        text = b"".join(n.encode("utf-8", "surrogateescape") + b"\0" for n in names)
        size = shim.COMMAND.size + len(names) * shim.SYMBOL.size + len(text)
        at = 0
        base = self.session.address + shim.BUFFER_OFFSET
        if size > shim.BUFFER_SIZE:
            at = base = self.scratch(size, False)
        string = base + shim.COMMAND.size + len(names) * shim.SYMBOL.size
        entries = b""
        for n in names:
            entries += shim.SYMBOL.pack(0, string, 0, 0, 0, 0)
            string += len(n.encode("utf-8", "surrogateescape")) + 1
        raw = self.session.command(shim.OP_RESOLVE, entries + text, len(names), record_at=at)
        rows = shim.SYMBOL.iter_unpack(raw[:len(names) * shim.SYMBOL.size])
        return {n: row[3] for n, row in zip(names, rows)}

    # ---- from patch objects to placed objects ---------------------------------------------------------------------

    def place(self, sources: list[Source], *, changed_types: bool) -> Placed:
        """Link the sources and write them into the target; nothing is switched.  changed_types: as of attach().  Raises PsuError."""
        if not sources:
            return Placed([], [], None, [], 0, ())
        seen = views(self.target, self.notes)
        demand = linker.plan([s.object for s in sources], seen, [s.patch for s in sources],
                             lambda f: self._becomes_current(sources[f.patch], seen[f.module], f))
        if not changed_types:
            typecheck.check(demand)
        pressure.refuse(self.target.process.path("cgroup"), self.target.process.where,
                        sum(o.size + o.mirrored for d in demand.modules for o in d.objects))
        self._pin([self.module(d.view) for d in demand.modules])
        resolved = self._with_entries(demand, self.resolve(demand))
        enter = self._entries(demand, resolved)
        before = pickle.dumps(self.notes)      # for another attempt, which there hardly ever is
        for _ in range(MAP_ATTEMPTS):
            room = Space(self, demand, enter)
            if room.mapped:
                break
            self._take(pickle.loads(before))
        else:
            raise PsuError(self.target.process.where, "takes memory faster than it can be found near its modules",
                           "try again")
        linked = linker.relocate(demand, room.placements, self._with_entries(demand, resolved))
        room.write(linked)
        self.notes.brought = sorted({*self.notes.brought, *demand.brought})
        return self._placed(sources, linked, room)

    def _becomes_current(self, source: Source, view: ModuleView, f: BoundFunction) -> bool:
        """Whether the patch's function is to be the newest version of what it replaces or brings along."""
        if source.only is None:
            return True
        if not f.new:
            return (self.module(view).key, f.number) in source.only
        number = next((i for i, s in enumerate(self.notes.stubs) if s.stub == f.known_stub), -1)
        known = self._functions.get(("", number))
        return ("", number) in source.only or not (known and known.current)

    def _with_entries(self, demand: linker.Demand, resolved: list[dict[str, int]]) -> list[dict[str, int]]:
        return [imports.use_known(self.notes, self.module(d.view).key, names)
                for d, names in zip(demand.modules, resolved)]

    def _entries(self, demand: linker.Demand, resolved: list[dict[str, int]]) -> list[list[tuple[str, int]]]:
        """By module: (name, address) of the library functions that need an entry near it (imports.py)."""
        far = imports.out_of_reach(demand, resolved)
        maps = self.target.process.maps() if any(far) else ()
        return [[(n, names[n]) for n in wanted if imports.is_function(self.target.process, maps, n, names[n])]
                for wanted, names in zip(far, resolved)]

    def _pin(self, modules: list[Module]) -> None:
        """Have libraries stay loaded, whatever the program's dlclose: shim/pins.c says why."""
        new = [m for m in modules if not m.executable and m.key not in self.notes.pinned]
        if not new:
            return
        try:
            self.session.command(shim.OP_PIN, b"".join(shim.PIN.pack(m.load_bias) for m in new), len(new))
        except PsuError as e:
            if "ENOENT" not in e.what:
                raise
            raise PsuError(self.target.process.where, "unloads a library that the patch is for: "
                           + ", ".join(m.path for m in new), "attach while it is loaded") from e
        # From here it stays; what lies there now may be another library than the one that we read.
        now = {(m.start, m.path, m.build_id) for m in target.read(self.target.process).modules}
        for m in new:
            if (m.start, m.path, m.build_id) not in now:
                raise PsuError(self.target.process.where, f"loaded another library in place of {m.path}", "try again")
            self.notes.pinned.append(m.key)

    def _placed(self, sources: list[Source], linked: linker.LinkedPatch, room: Space) -> Placed:
        # The linker groups objects by module; within a module they are in the order of the sources.
        owner_of: dict[int, Source] = {}
        flat = [o for objects, _ in linked.modules for o in objects]
        rest = list(sources)
        for n, o in enumerate(flat):
            match = next(s for s in rest if s.object.path == o.path)
            rest.remove(match)
            owner_of[n] = match
        replaced: list[list[meta.FunctionNotes]] = []
        rows: list[list[tuple[meta.FunctionNotes, int, int, int, int, int]]] = []
        for n, o in enumerate(flat):
            mine = []
            for r in o.replaced:
                m = self.module(r.view)
                f = self.function(m.key, r.function, r.name)
                mine.append((f, m.slot(r.function), m.original(r.function), r.body, r.kind, r.preserve))
            for c in o.canonical:
                number = next(i for i, s in enumerate(self.notes.stubs) if s.stub == c.stub)
                f = self.function("", number, c.identity[1])
                mine.append((f, self.notes.stubs[number].slot, 0, c.body, c.kind, c.preserve))
            rows.append(mine)
            replaced.append([row[0] for row in mine])
        indices = choose_indices(self.session.runtime, self.target.process, replaced)
        objects, switches = [], []
        for n, (o, mine, index) in enumerate(zip(flat, rows, indices)):
            regions = ((o.address, o.size), o.mirror) if o.mirror[1] else ((o.address, o.size),)
            objects.append(NewObject(index, owner_of[n].patch, o.eh_frame, regions, o.symfile))
            switches += [Switch(f, slot, original, body, kind, index, preserve, body in o.looks)
                         for f, slot, original, body, kind, preserve in mine]
            if o.calls[1]:
                self._calls.append([index, o.address, *o.calls, o.mirror[0] - o.address & shim.WORD if o.mirror[1] else 0])
        for n, o in enumerate(flat):
            self._relied += [(owner_of[n].patch, *self._by_stub(stub), mask) for stub, mask in o.relied]
        self._note_stores(linked)
        size = sum(o.size for o in flat) + room.new_bytes
        return Placed(objects, switches, linked, [owner_of[n].patch for n in range(len(flat))], size, linked.warnings)

    def module(self, view: ModuleView) -> Module:
        return next(m for m in self.target.modules if m.descriptor is view.descriptor)

    def module_of(self, f: meta.FunctionNotes) -> Module | None:
        """The module whose function it is; None: a patch brought it along."""
        m = next((m for m in self.target.modules if m.key == f.module), None)
        return m if m and f.number < len(m.descriptor.functions) else None

    def slot_of(self, f: meta.FunctionNotes) -> int:
        m = self.module_of(f)
        return m.slot(f.number) if m else self.notes.stubs[f.number].slot

    def stub_of(self, f: meta.FunctionNotes) -> int:
        m = self.module_of(f)
        return m.stub(f.number) if m else self.notes.stubs[f.number].stub

    def function(self, key: str, number: int, name: str) -> meta.FunctionNotes:
        f = self._functions.get((key, number))
        if f is None:
            f = self._functions[key, number] = meta.FunctionNotes(key, number, name)
            self.notes.functions.append(f)
        return f

    def relied_on(self) -> dict[tuple[str, int], int]:
        """Notes.relied_on, with what was placed and is not committed yet."""
        notes = replace(self.notes, relied=[list(row) for row in self.notes.relied])
        notes.rely(self._relied)
        return notes.relied_on()

    def _by_stub(self, stub: int) -> tuple[str, int]:
        """Module and number, as in FunctionNotes, of the function with this stub."""
        for m in self.target.modules:
            index, rest = divmod(stub - m.stub(0), m.descriptor.stub_size)
            if not rest and 0 <= index < len(m.descriptor.functions):
                return m.key, index
        return "", next(i for i, s in enumerate(self.notes.stubs) if s.stub == stub)

    def _note_stores(self, linked: linker.LinkedPatch) -> None:
        for _, store in linked.modules:
            key = self.module(store.view).key
            self.notes.constants += [[key, c.crc, c.address, c.size, c.align] for c in store.constants]
            self.notes.variables += [[key, i[0], i[1], address, size] for i, address, size in store.variables]

    # ---- the end --------------------------------------------------------------------------------------------------

    def copies(self, objects: list[bytes]) -> tuple[list[str], str]:
        """As copies.save, after those of processes that are gone have made room."""
        copies.sweep()
        return copies.save(self.target.process, objects)

    def record(self, number: int, name: str, placed: Placed, sources: list[tuple[str, str]]) -> None:
        """Note the new patch and its place in the history of its functions."""
        functions = list(dict.fromkeys(s.function.name for s in placed.switches))
        assert placed.linked
        flat = [o for objects, _ in placed.linked.modules for o in objects]
        self.notes.patches.append(meta.PatchNotes(
            number, name, self.module(placed.linked.modules[0][1].view).key, functions, [o.index for o in placed.objects],
            [list(s) for s in sources], placed.bytes, [list(c) for o in flat for c in o.code],
            pinned=[s.function.name for s in placed.switches if not s.function.module]))
        for s in placed.switches:
            s.function.history.append(number)
            del s.function.history[:-meta.HISTORY]

    def commit(self, placed: Placed) -> float:
        """Make the placed versions current.  Returns the seconds that the command took."""
        self._forget()
        self.promised = frozenset(o.index for o in placed.objects)
        inside = turning.in_objects(self, placed.switches)
        self.notes.calls = [row for row in self.notes.calls if row[0] not in self.promised] + self._calls
        self.notes.rely(self._relied)
        switches = placed.switches + originals.free(
            self.notes, self.target, {(s.function.module, s.function.number) for s in placed.switches})
        record = prepare(self.session, self.notes, placed.objects, switches, self.scratch)
        # From here on nothing needs memory but the mirrors, and nothing fails for the want of it behind the first turn.
        turning.close(self, placed.switches, inside)
        seconds = commit(self.session, record)
        self.give_back()      # the record's scratch memory
        copies.keep_only(self.target.process, {sha for p in self.notes.patches for _, sha in p.sources})
        return seconds

    def _forget(self) -> None:
        """Drop patches that no history names and whose objects are gone, but for the newest few, which status lists."""
        alive = {o.patch for o in self.session.runtime.read_objects(self.target.process)}
        current = {f.current[2] for f in self.notes.functions if f.current}
        self.notes.calls = [row for row in self.notes.calls if row[0] in current]
        used = {n for f in self.notes.functions for n in f.history}
        gone = [p for p in self.notes.patches if p.id not in alive and p.id not in used]
        for p in gone[:-meta.FREED_KEPT]:
            self.notes.patches.remove(p)
        self.notes.forget_relied(alive | used)
        for p in self.notes.patches:
            if p.id not in alive and p.id not in used:
                p.code, p.sources = [], []
