"""The linker of attach: patch objects and views of the target's modules in, bytes for the target out.

Two passes, because addresses must be had before anything can be relocated, and only the target can give them:

    demand = plan(patches, views)          what is replaced, how much room of which kind, which names to look up
    ... the caller finds rooms in the target and resolves the names ...
    linked = relocate(demand, placement, resolved)

Between the passes nothing changes: a Demand holds its intermediate results (Demand.work), a LinkedPatch only plain
values. The passes, each with what is true after it:

    checks.run          nothing that psu-bin never accepts
    anchors.traced      of each address in the code it is known what the code uses through it
    Binder              each symbol has a meaning; each function replaces one of the program or is new
    survey, Layout      the code can be read; each byte has its piece
    Reader.read         everything that the code needs is reached and bound, nothing else
    anchors.cut         (and from Binder on again) each variable that the code uses is named by a relocation, or has the
                        distance in the program from the one that is
    gates.decide        each function has a kind of gate
    _lay_out            each piece has its offset in its room
    (relocate)
    EqualTwins, Shelf   constants are settled: found or placed
    _fill               every field is filled in and was in range
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from psu_bin import arch, fde
from psu_bin.arch.link_types import OutOfRange, Places, Use
from psu_bin.attach import anchors, checks, constants, constructors, gates, imports, inner, symfile
from psu_bin.attach.binding import Binder
from psu_bin.attach.layout import Layout
from psu_bin.attach.linked import (
    PROT_EXEC, PROT_READ, PROT_WRITE, Canonical, Demand, LinkedObject, LinkedPatch, LinkedStore, ModuleDemand,
    ModulePlacement, ObjectDemand, Region, Replaced, Space)
from psu_bin.attach.meaning import (
    BoundFunction, External, Fixed, Piece, Reference, Room, Target, Thread, Twin)
from psu_bin.attach.patch import PatchObject
from psu_bin.attach.process import PAGE
from psu_bin.attach.references import Reader
from psu_bin.attach.rooms import ObjectRoom
from psu_bin.attach.sections import Role, role
from psu_bin.attach.view import Identity, ModuleView
from psu_bin.errors import PsuError

__all__ = ["Demand", "LinkedObject", "LinkedPatch", "ModulePlacement", "ModuleView", "plan", "relocate"]


@dataclass(eq=False)
class Work:
    """Intermediate results of one transaction."""
    patches: tuple[PatchObject, ...]
    views: tuple[ModuleView, ...]
    binder: Binder
    layouts: list[Layout]
    reader: Reader
    machine: arch.Arch
    link: ModuleType                                   # the architecture's NAME_link
    gates: dict[BoundFunction, gates.Gate]
    relied: dict[int, dict[BoundFunction, int]]        # by patch
    rooms: list[ObjectRoom]
    symfiles: list[symfile.Symfile]                    # by patch
    used: tuple[int, ...]                              # numbers of the views in Demand.modules


def plan(patches: Sequence[PatchObject], views: Sequence[ModuleView], groups: Sequence[int] | None = None,
         becomes_current: Callable[[BoundFunction], bool] = lambda f: True) -> Demand:
    """Find out what the patches replace and what room they want.

    groups: one number a patch object; objects of different groups do not see each other's definitions (a revert brings
    back functions of several patches that define the same names).  None: all are one group.
    becomes_current: whether a function of a patch is to be its newest version; the others are as if they were not there.
    Raises PsuError, with all problems of a pass, when they cannot be linked."""
    all_patches, all_views = tuple(patches), tuple(views)
    all_groups = tuple(groups) if groups is not None else (0,) * len(all_patches)
    checks.run(all_patches, all_views, all_groups)
    machine = arch.for_machine(all_patches[0].machine, all_patches[0].path)
    link = machine.link
    all_patches = tuple(anchors.traced(p, link) for p in all_patches)
    while True:
        binder = Binder(all_patches, all_views, all_groups)
        checks.refuse(binder.problems)
        layouts = [_layout(n, binder, link) for n in range(len(all_patches))]
        reader = Reader(layouts, link)
        reader.read()
        if not any(layout.cuts for layout in layouts):
            break
        # Each round moves instructions that no earlier one did: a branch is never cut.
        all_patches = tuple(anchors.cut(layout.patch, layout.cuts, link) for layout in layouts)
    reader.settle()
    checks.refuse(reader.problems + binder.problems + list(constructors.problems(layouts, reader)))
    kinds, relied = gates.decide(layouts, reader, machine)
    kinds = {f: gate for f, gate in kinds.items() if becomes_current(f)}
    symfiles = [symfile.make(layout.patch, _code_sections(n, layout, reader), binder.warnings)
                for n, layout in enumerate(layouts)]
    rooms = [_lay_out(n, layouts[n], reader, machine, kinds, symfiles[n].size) for n in range(len(all_patches))]
    used = tuple(sorted(set(binder.module)))
    work = Work(all_patches, all_views, binder, layouts, reader, machine, link, kinds, relied, rooms, symfiles, used)
    return Demand(tuple(_module_demand(work, m) for m in used), tuple(binder.warnings), tuple(binder.patched()), work,
                  binder.brought())


def _layout(n: int, binder: Binder, link: ModuleType) -> Layout:
    patch = binder.patches[n]
    surveys = {}
    for f in patch.functions:
        if f.section not in surveys:
            ranges = [(g.start, g.end) for g in patch.functions_in(f.section)]
            known = [r for r in patch.relocs.get(f.section, ()) if r.type in link.HOWTO]
            try:
                surveys[f.section] = link.survey(
                    patch.contents[f.section], ranges, {r.offset: r.type for r in known},
                    {r.offset: r.addend for r in known},
                    {at: found for (section, at), found in patch.found.items() if section == f.section})
            except ValueError as e:
                raise PsuError(patch.path, f"cannot read the code in {patch.sections[f.section].name}: {e}") from e
    for s in patch.sections:
        if s.index not in surveys and role(s) is Role.CODE:
            surveys[s.index] = link.survey(patch.contents[s.index], [], {}, {}, {})
    return Layout(n, binder, link.HOWTO, surveys)


def _code_sections(n: int, layout: Layout, reader: Reader) -> list[int]:
    return [p.section for p in reader.reached
            if p.patch == n and p.room is Room.CODE and layout.roles[p.section] is Role.CODE]


def _lay_out(n: int, layout: Layout, reader: Reader, machine: arch.Arch, kinds: Mapping[BoundFunction, gates.Gate],
             symfile_size: int) -> ObjectRoom:
    """Offsets in the object's own room: code, then what is only read, then writable tables."""
    link = machine.link
    pieces = [p for p in reader.reached if p.patch == n]
    room = ObjectRoom(link.PLT_SIZE, link.GOT_SLOT_SIZE)
    for p in pieces:
        if p.room is Room.CODE and layout.roles[p.section] is Role.CODE:
            room.add(p)
    home = layout.binder.module[n]
    far_home = layout.binder.views[home].far
    # Another module's stubs and slots may be out of reach, and of a far one its own stubs, which calls would be turned to.
    direct: set[BoundFunction] = set()
    if inner.stays_on_stack(layout.patch, layout.binder.views, link):
        direct = {f for f in kinds if f.module == home} if not far_home else set()
        room.looks = inner.looks(layout.binder.views[home], {f: g for f, g in kinds.items() if f.patch == n}, reader.taken)
    room.add_calls(inner.calls(layout, reader, machine, direct), inner.stub_size(machine))

    def far(t: Target) -> bool:
        """The target may be out of reach of data_reach."""
        if isinstance(t, BoundFunction):
            return t.module != home
        return isinstance(t, External) or isinstance(t, Fixed) and t.far

    def far_call(t: Target) -> bool:
        """The target may be out of reach of a direct call."""
        return far(t) or far_home and (isinstance(t, Fixed) or isinstance(t, BoundFunction) and reader.has_stub(t))

    room.add_tables([(r.use, r.target, r.offset) for p in pieces for r in p.references if r.target is not None]
                    + [(x.ref.use, x.target, 0) for x in reader.rerouted if x.piece.patch == n], far_call)
    room.add_thunks([(p, r) for p in pieces if layout.roles[p.section] is Role.CODE for r in p.references
                     if r.use is Use.ADDRESS and link.HOWTO[r.type].relative
                     and r.target is not None and far(r.target)], link.THUNK_SIZE)
    for p in pieces:
        if p.room is Room.CODE and layout.roles[p.section] not in (Role.CODE, Role.UNWIND):
            room.add(p)
    room.add_symfile(symfile_size)
    room.add_unwind([p for p in pieces if layout.roles[p.section] is Role.UNWIND], len(_distant_rows(machine, room, 0, 0)),
                    len(_stub_rows(machine, room, 0)))
    room.add_table()
    room.close(PAGE)
    for p in pieces:
        if p.room is Room.LABELS:
            room.add(p)
    room.end(PAGE)
    return room


def _stub_rows(machine: arch.Arch, room: ObjectRoom, base: int) -> bytes:
    """The .eh_frame rows of the PLT entries of the object at `base`."""
    ranges = [fde.Code(base + room.stubs, room.stubs_end - room.stubs)]
    return fde.rows(machine, base + room.rows, ranges)[0] if room.stubs_end > room.stubs else b""


def _distant_rows(machine: arch.Arch, room: ObjectRoom, base: int, distance: int) -> bytes:
    """Those of the stubs at `distance` from it, which come first: shim/frames.c leaves them out where they would do harm."""
    if not machine.site_form.step or not room.mirrored(PAGE):
        return b""
    # Where there is no room for stubs, the rows are of something that nobody executes.
    code = fde.Code(base + distance & (1 << 64) - 1, room.mirrored(PAGE)) if distance else fde.Code(base + room.symfile, 1)
    return fde.rows(machine, base + room.unwind, [code])[0]


def _module_demand(work: Work, m: int) -> ModuleDemand:
    patches = [n for n in range(len(work.patches)) if work.binder.module[n] == m]
    pieces = [p for p in work.reader.reached if p.patch in patches]
    variables = 0
    variables_align = 16
    for p in pieces:
        if p.room is Room.VARIABLE:
            # The address must be congruent to the start in its section, modulo the alignment.
            variables = -(-(variables - p.start % p.align) // p.align) * p.align + p.start % p.align
            p.offset = variables
            variables += p.size
            variables_align = max(variables_align, p.align)
    fixed = [p for p in pieces if p.room is Room.CONSTANT]
    stubs = tuple(f.identity for f in work.reader.taken if f.new and not f.known_stub and f.module == m)
    names = tuple(dict.fromkeys(x.name for x in work.reader.externals if x.module == m))
    step = work.machine.site_form.step
    objects = tuple(ObjectDemand(work.patches[n].path, work.rooms[n].size, work.rooms[n].mirrored(PAGE) if step else 0, tuple(
        b.function.name for b in work.binder.functions[n].values() if not b.new)) for n in patches)
    narrow = any(work.link.HOWTO[r.type].narrow for p in work.reader.reached if p.patch in patches
                 for r in p.references if r.use is Use.ADDRESS)
    return ModuleDemand(work.views[m], objects,
                        Space(sum(p.size + p.align - 1 for p in fixed), max((p.align for p in fixed), default=1)),
                        Space(variables, variables_align), stubs, names,
                        narrow and work.views[m].position_dependent)


def relocate(demand: Demand, placement: Sequence[ModulePlacement],
             resolved: Sequence[Mapping[str, int]]) -> LinkedPatch:
    """Fill in everything.  placement and resolved (name -> address; missing or 0: not found) as demand.modules.

    Raises PsuError naming all unresolved symbols, or a value that does not fit its field."""
    return _Linker(demand, placement, resolved).link()


class _Linker:
    """The second pass."""

    def __init__(self, demand: Demand, placement: Sequence[ModulePlacement],
                 resolved: Sequence[Mapping[str, int]]) -> None:
        self.demand = demand
        assert isinstance(demand.work, Work)
        self.work = demand.work
        self.places = dict(zip(self.work.used, placement))
        self.resolved = dict(zip(self.work.used, resolved))
        self.address: dict[Piece, int] = {}
        self.equal: set[Twin] = set()
        self.stubs: dict[BoundFunction, int] = {}
        self.thunks: dict[int, list[tuple[int, bytes]]] = {}

    def link(self) -> LinkedPatch:
        work = self.work
        imports.check_resolved(self.demand, [self.resolved[m] for m in work.used])
        objects: dict[int, int] = {}
        self.distances: dict[int, int] = {}
        for m, module in zip(work.used, self.demand.modules):
            place = self.places[m]
            mine = [n for n in range(len(work.patches)) if work.binder.module[n] == m]
            objects.update(zip(mine, place.objects))
            self.distances.update(zip(mine, place.distances))
            wanted = [f for f in work.reader.taken if f.new and not f.known_stub and f.module == m]
            self.stubs.update(zip(wanted, place.stubs))
        for p in work.reader.reached:
            if p.room in (Room.CODE, Room.LABELS):
                self.address[p] = objects[p.patch] + p.offset
            elif p.room is Room.VARIABLE:
                self.address[p] = self.places[work.binder.module[p.patch]].variables + p.offset
        self.objects = objects
        if work.machine.site_form.step:
            for n, room in enumerate(work.rooms):
                if not self.distances[n]:
                    room.forget_calls()
        reached = list(work.reader.reached)
        demoted = {t for layout in work.layouts for t in layout.demoted}
        views = {n: work.views[work.binder.module[n]] for n in range(len(work.patches))}
        coupled = [group for layout in work.layouts for group in layout.coupled]
        self.equal = constants.EqualTwins(reached, demoted, coupled, views, self._lasting,
                                          lambda piece, at: work.layouts[piece.patch].extent(piece, at)).equal
        shelves = self._settle_constants(reached)
        modules = []
        total = 0
        for m, module in zip(work.used, self.demand.modules):
            linked = tuple(self._object(n) for n in range(len(work.patches)) if work.binder.module[n] == m)
            store = self._store(m, shelves[m])
            total += sum(len(r.data) for o in linked for r in o.regions) + sum(len(r.data) for r in store.regions)
            modules.append((linked, store))
        return LinkedPatch(tuple(modules), total, self.demand.warnings, self.demand.patched)

    def _external(self, x: External) -> int:
        return self.resolved[x.module].get(x.name, 0) or x.fallback or 0

    # ---- addresses ------------------------------------------------------------------------------------------------

    def _lasting(self, t: Target) -> int | None:
        """The address of what outlives the patch object, else None."""
        if isinstance(t, Fixed):
            return t.address
        if isinstance(t, External):
            return self._external(t)
        if isinstance(t, BoundFunction) and self.work.reader.has_stub(t):
            return self._pointer(t)
        return None

    def _pointer(self, f: BoundFunction) -> int:
        """What a pointer to the function has to be: the same as in the program."""
        return self._function(f) if f.new else self.work.views[f.module].pointer(f.number)

    def _function(self, f: BoundFunction) -> int:
        if not f.new:
            return self.work.views[f.module].stub(f.number)
        return f.known_stub or self.stubs.get(f) or self._body(f)

    def _called(self, f: BoundFunction, n: int, at: int) -> int:
        """Where a call of the function from object `n`, with its field at offset `at` there, goes at first."""
        body = self.work.rooms[n].bodies.get(at)
        return self._function(f) if body is None else self.objects[n] + body

    def _body(self, f: BoundFunction) -> int:
        piece = self.work.layouts[f.patch].whole(f.function.section)
        return self.address[piece] + f.function.start

    def _target(self, t: Target | None) -> int:
        """The address that a target stands for."""
        if isinstance(t, Twin):
            return t.address if t in self.equal else self.address[t.piece] + t.start
        if isinstance(t, Piece):
            # Offsets of references into a whole section, and into code, count from its start, which is the piece's.
            return self.address[t]
        if isinstance(t, BoundFunction):
            return self._pointer(t)
        if isinstance(t, Thread):
            return t.offset
        if isinstance(t, Fixed):
            return t.address
        if isinstance(t, External):
            return self._external(t)
        return 0

    # ---- bytes ----------------------------------------------------------------------------------------------------

    def _fill(self, piece: Piece, address: int) -> bytes:
        """The piece's bytes, as they are at `address`."""
        out = bytearray(piece.data or bytes(piece.end - piece.start)) + bytes(piece.extra)
        for start, end in piece.blank:
            out[start - piece.start:end - piece.start] = bytes(end - start)
        room = self.work.rooms[piece.patch]
        base = self.objects[piece.patch]
        too_far: list[Reference] = []
        for r in piece.references:
            at = r.at - piece.start
            slot = branch = 0
            if r.use in (Use.GOT, Use.GOT_SLOT_OFFSET, Use.TLS_GOT):
                v, slot = r.addend, base + room.slot(r.target, r.offset)
            elif r.use in (Use.GOT_BASE, Use.SIZE):
                v = r.addend
            else:
                called = r.target if r.use is Use.BRANCH and isinstance(r.target, BoundFunction) else None
                v = (self._called(called, piece.patch, piece.offset + at) if called else self._target(r.target)) + r.offset
                plt = None if called and piece.offset + at in room.bodies else room.plt(r.target)
                branch = base + plt if r.use is Use.BRANCH and plt is not None else 0
            try:
                self.work.link.relocate(
                    out, at, r.type, v, address + at, Places(base + room.got, slot, branch, r.size))
            except OutOfRange:
                if room.thunk(piece, r.at) is None:
                    raise self._out_of_range(piece, r, v) from None
                too_far.append(r)
            except ValueError as e:
                raise PsuError(self.work.patches[piece.patch].path, f"{self._where(piece, r.at)}: {e}") from e
        for r in too_far:
            self._rewrite(piece, r, out, address)
        return bytes(out)

    def _rewrite(self, piece: Piece, r: Reference, out: bytearray, address: int) -> None:
        """Let an instruction that cannot reach what it names go through a GOT slot."""
        room, base = self.work.rooms[piece.patch], self.objects[piece.patch]
        thunk = room.thunk(piece, r.at)
        assert thunk is not None
        at = r.insn - piece.start
        try:
            code = self.work.link.rewrite(out, at, address + at, base + room.slot(r.target, r.offset + r.tail),
                                          base + thunk)
        except ValueError:
            raise self._out_of_range(piece, r, self._target(r.target) + r.offset) from None
        if code:
            self.thunks.setdefault(piece.patch, []).append((thunk, code))

    def _where(self, piece: Piece, at: int) -> str:
        f = self.work.patches[piece.patch].function_covering(piece.section, at) if piece.section >= 0 else None
        return f"{f.name}+{at - f.start:#x}" if f else f"{piece.name}+{at:#x}"

    def _out_of_range(self, piece: Piece, r: Reference, v: int) -> PsuError:
        how = self.work.link.HOWTO[r.type]
        name = r.target.name if isinstance(r.target, External) else ""
        patch = self.work.patches[piece.patch].path
        what = f"{self._where(piece, r.at)}: {name or f'an address ({v:#x})'} is out of reach of {how.name}"
        if how.narrow and not self.work.views[self.work.binder.module[piece.patch]].position_dependent:
            return PsuError(patch, what, "the program is position-independent: compile the patch with -fPIE or -fPIC")
        return PsuError(patch, what, "compile the patch with -fPIC")

    def _settle_constants(self, reached: list[Piece]) -> dict[int, constants.Shelf]:
        work = self.work
        shelves = {m: constants.Shelf(module.view, self.places[m].constants, module.constants.size,
                                      lambda kind: work.link.HOWTO[kind].relative)
                   for m, module in zip(work.used, self.demand.modules)}
        for group in constants.in_order(constants.needed(reached, self.equal), self.equal):
            shelves[work.binder.module[group[0].patch]].place(group, self.equal, self.address, self._fill)
        return shelves

    # ---- results --------------------------------------------------------------------------------------------------

    def _object(self, n: int) -> LinkedObject:
        work = self.work
        layout, room, base = work.layouts[n], work.rooms[n], self.objects[n]
        image = bytearray(room.size)
        for p in work.reader.reached:
            if p.patch == n and p.room in (Room.CODE, Room.LABELS):
                image[p.offset:p.offset + p.size] = self._fill(p, self.address[p])
        for target, offset, at in room.slots():
            image[at:at + 8] = work.link.pack_slot(self._target(target) + offset)
        for target, at in room.plts():
            image[at:at + room.plt_size] = work.link.plt_entry(
                base + at, base + room.slot(target, 0))
        for at, code in self.thunks.get(n, ()):
            image[at:at + len(code)] = code
        self._reroute(n, image)
        table = room.table_bytes
        image[room.table:room.table + len(table)] = table
        distance = self.distances[n]
        if room.unwind:
            for at, rows in ((room.unwind, _distant_rows(work.machine, room, base, distance)),
                             (room.rows, _stub_rows(work.machine, room, base))):
                image[at:at + len(rows)] = rows
        symfile_at, symfile_size = base + room.symfile, work.symfiles[n].size
        image[room.symfile:room.symfile + symfile_size] = work.symfiles[n].build(
            {p.section: self.address[p] for p in work.reader.reached
             if p.patch == n and p.room is Room.CODE and layout.roles[p.section] is Role.CODE},
            base, symfile_at, symfile_at, room.unwind_end - room.unwind)
        regions = [Region(base, bytes(image[:room.closed]), PROT_READ | PROT_EXEC, "code")]
        if room.size > room.closed:
            regions.append(Region(base + room.closed, bytes(image[room.closed:]), PROT_READ | PROT_WRITE, "tables"))
        replaced, canonical = [], []
        for b in work.binder.functions[n].values():
            gate = work.gates.get(b)
            if gate is None:
                continue
            size = b.function.end - b.function.start
            if not b.new:
                replaced.append(Replaced(work.views[b.module], b.number, b.function.name, self._body(b), size,
                                         gate.kind, gate.preserve))
            else:
                canonical.append(Canonical(b.identity, self._function(b), self._body(b), size, gate.kind, gate.preserve,
                                           bool(b.known_stub)))
        relied = tuple((self._function(f), mask) for f, mask in work.relied.get(n, {}).items())
        return LinkedObject(layout.patch.path, base, room.size, tuple(replaced), tuple(canonical),
                            tuple((f.name, self._body(b), f.end - f.start) for b in work.binder.functions[n].values()
                                  for f in (b.function,)),
                            tuple(regions), base + room.unwind if room.unwind else 0,
                            (symfile_at, symfile_size + room.unwind_end - room.unwind), relied,
                            (base + room.table, len(table)),
                            (base + distance & (1 << 64) - 1, room.mirrored(PAGE)) if distance else (0, 0),
                            frozenset(map(self._body, room.looks)))

    def _reroute(self, n: int, image: bytearray) -> None:
        """Point what the assembler had resolved to the stubs."""
        work, base = self.work, self.objects[n]
        for x in work.reader.rerouted:
            if x.piece.patch != n:
                continue
            section = memoryview(image)[x.piece.offset:x.piece.offset + x.piece.size]
            start = self.address[x.piece]
            field = x.piece.offset + inner.field(x, work.machine)
            target = self._called(x.target, n, field) if x.ref.use is Use.BRANCH else self._pointer(x.target)
            plt = work.rooms[n].plt(x.target) if x.ref.use is Use.BRANCH else None
            if plt is not None and field not in work.rooms[n].bodies:
                target = base + plt
            try:
                if x.trampoline >= 0:
                    at = x.piece.offset + x.trampoline
                    image[at:at + work.link.JUMP_SIZE] = work.link.jump(base + at, target)
                    target = start + x.trampoline
                if not x.in_place:
                    work.link.repoint(section, x.ref, target - (start + x.ref.end))
            except OutOfRange as e:
                raise PsuError(work.patches[n].path, f"{self._where(x.piece, x.ref.at)}: cannot reach the stub of "
                                                     f"{x.target.function.name}: {e}") from e

    def _store(self, m: int, shelf: constants.Shelf) -> LinkedStore:
        work = self.work
        regions = [Region(address, data, PROT_READ, "constants") for address, data in shelf.written]
        variables: list[tuple[Identity, int, int]] = []
        for n, layout in enumerate(work.layouts):
            if work.binder.module[n] != m:
                continue
            for v in layout.new_variables:
                if v.piece in self.address:
                    variables.append((v.identity, self.address[v.piece] + v.start - v.piece.start, v.size))
        for p in work.reader.reached:
            if p.room is Room.VARIABLE and work.binder.module[p.patch] == m:
                regions.append(Region(self.address[p], self._fill(p, self.address[p]), PROT_READ | PROT_WRITE,
                                      "variables"))
        return LinkedStore(work.views[m], tuple(regions), tuple(shelf.stored), shelf.used, tuple(variables))
