"""What each relocated field of a patch refers to, followed from the code to everything that is needed: Reader.

Only pieces that are reached are placed: dead initialisers of variables that the program already has cost nothing and
bind nothing.  On the way it is found which new functions have their address taken (they get a canonical stub) and
which references the assembler resolved by itself (they are rerouted like the others)."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from psu_bin import elf
from psu_bin.arch.link_types import TLS_USES, Access, Field, Resolved, Use
from psu_bin.attach.layout import Layout
from psu_bin.attach.meaning import (
    BoundFunction, Exported, External, Fixed, Piece, Reference, Room, Target, Thread, Twin, Unclear)
from psu_bin.attach.patch import PatchFunction, PatchSymbol, Reloc, without_clone
from psu_bin.attach.sections import Role
from psu_bin.errors import PsuError


class Rerouted(NamedTuple):
    """A reference that the assembler resolved and that must lead to `target` instead."""
    piece: Piece
    ref: Resolved
    target: BoundFunction
    # For branches of short reach, the offset in the section of a jump that takes their place, which may be written over them;
    # -1: none.
    trampoline: int

    @property
    def in_place(self) -> bool:
        """The trampoline is written over the branch."""
        return 0 <= self.trampoline == self.ref.at - 1


class Reader:
    """References of all patch objects of one transaction."""

    def __init__(self, layouts: list[Layout], link: ModuleType) -> None:
        self.layouts = layouts
        self.link = link
        self.taken: dict[BoundFunction, None] = {}
        self.rerouted: list[Rerouted] = []
        self.reached: dict[Piece, None] = {}
        self.problems: list[PsuError] = []
        self.calls: dict[tuple[int, int, int], BoundFunction] = {}  # (patch, section, field) of a branch -> callee
        self.externals: dict[External, None] = {}
        self._used_padding: dict[Piece, list[tuple[int, int]]] = {}

    def read(self) -> None:
        """Follow all references from the code.  Problems are collected in `problems`."""
        for layout in self.layouts:
            for section, kind in enumerate(layout.roles):
                if kind in (Role.CODE, Role.UNWIND, Role.PRIVATE):
                    self._reach(layout.whole(section))
                elif kind is Role.WRITABLE:
                    layout.objects(section)
            for s in layout.patch.symbols:
                if s.section == elf.SHN_COMMON:
                    layout.meaning(s)
            for v in layout.new_variables:
                if not v.identity[0]:            # globals may be named by later patches
                    self._reach(v.piece)
        queue = list(self.reached)
        while queue:
            piece = queue.pop()
            layout = self.layouts[piece.patch]
            for r in layout.patch.relocs.get(piece.section, ()):
                if piece.start <= r.offset < piece.end and not any(a <= r.offset < b for a, b in piece.blank):
                    before = len(self.reached)
                    reference = self._reference(layout, piece, r)
                    if reference is not None:
                        piece.references.append(reference)
                    if len(self.reached) > before:
                        queue += list(self.reached)[before:]
            if layout.roles[piece.section] is Role.CODE and piece.section >= 0:
                self._assembler_resolved(layout, piece)

    def _reach(self, target: Target) -> None:
        if isinstance(target, Twin):
            target = target.piece
        if isinstance(target, Piece):
            self.reached.setdefault(target)
        elif isinstance(target, External):
            self.externals.setdefault(target)

    # ---- one relocation -------------------------------------------------------------------------------------------

    def _reference(self, layout: Layout, piece: Piece, r: Reloc) -> Reference | None:
        patch = layout.patch
        s = patch.symbols[r.symbol]
        how = layout.howto.get(r.type)
        code = layout.roles[piece.section] is Role.CODE
        function = patch.function_covering(piece.section, r.offset) if code else None
        if how is None:
            self.problems.append(layout.refuse(function, piece.section, r.offset,
                                               Unclear(f"relocation type {r.type} is not known", "")))
            return None
        if r.offset + how.size > patch.sections[piece.section].size:
            self.problems.append(layout.refuse(function, piece.section, r.offset,
                                               Unclear("a relocation reaches beyond its section", "")))
            return None
        field = layout.surveys[piece.section].fields.get(r.offset) if code else None
        if field is None:
            field = Field(how.use, how.size if code and how.relative else 0, Access.DATA, r.offset)
        use = field.use
        if use is Use.NOTHING or s.name == self.link.TLS_CALLEE:
            return None
        if use in (Use.GOT_BASE, Use.TLS_MODULE, Use.TLS_DESCRIPTOR_CALL):
            return Reference(r.offset, r.type, use, field.access, None, 0, r.addend, 0, field.insn, field.tail)
        target, offset = self._target(layout, piece, r, s, field, function)
        target, offset = self._exported(target, offset)
        if use in TLS_USES and not isinstance(target, (Thread, Unclear)):
            target = Unclear(f"{s.name} is thread-local in the patch, not in the program", "")
        elif use not in TLS_USES and isinstance(target, Thread):
            target = Unclear(f"{s.name} is thread-local in the program, not in the patch", "")
        if isinstance(target, Unclear):
            self.problems.append(layout.refuse(function, piece.section, r.offset, target))
            return None
        if isinstance(target, Piece) and target.room in (Room.CODE, Room.LABELS) and piece.room is Room.VARIABLE:
            self.problems.append(layout.refuse(None, piece.section, r.offset, Unclear(
                "a new variable points into the code",
                "labels must not outlive their function: make the variable const")))
            return None
        if isinstance(target, Piece) and target.room in (Room.CODE, Room.LABELS) and target.patch != layout.n:
            self.problems.append(layout.refuse(function, piece.section, r.offset, Unclear(
                f"{s.name} is in the code of {self.layouts[target.patch].patch.path}, and goes with its versions",
                "give it the type of a function, or join the two objects: ld -r")))
            return None
        self._note_function(layout, piece, r, s, field, target)
        self._reach(target)
        return Reference(r.offset, r.type, use, field.access, target, offset, r.addend, s.size, field.insn,
                         field.tail)

    def _target(self, layout: Layout, piece: Piece, r: Reloc, s: PatchSymbol, field: Field,
                function: PatchFunction | None) -> tuple[Target, int]:
        """(target, offset) such that S + A = address of target + offset; for GOT uses such that S is."""
        use = field.use
        defined = 0 < s.section < len(layout.roles)
        if use in TLS_USES:
            tail = self.link.TLS_TAIL if use is not Use.TLS_OFFSET else 0
            if s.name == "_TLS_MODULE_BASE_":
                return Thread(0), r.addend
            target, offset = layout.thread(s.section, s, s.value + r.addend + tail)
            return target, offset if use is Use.TLS_GOT else offset - tail
        if use in (Use.GOT, Use.GOT_SLOT_OFFSET):
            return layout.meaning(s)                  # the slot holds S alone
        if use is Use.SIZE:
            return Fixed(0), r.addend
        if not defined or not (s.local or s.type == elf.STT_SECTION):
            target, offset = layout.meaning(s)
            return target, offset + r.addend
        at = s.value + r.addend + field.tail
        kind = layout.roles[s.section]
        if kind is Role.CODE:
            target, offset = self._in_code(layout, piece, s, at, function, field)
            return target, offset - field.tail
        back = 0
        if field.access is Access.DATA and layout.howto[r.type].relative and layout.roles[piece.section] in (
                Role.CONSTANT, Role.WRITABLE, Role.STRINGS, Role.ENTRIES) and s.section != piece.section:
            back = r.offset - layout.table_base(piece.section, r.offset)
        # Of a named symbol the addend may lead outside; of a section symbol it is all there is.
        base = s.value if s.type != elf.STT_SECTION else at - back
        target, offset = layout.locate(s.section, base, at - back, field.access, function, field.insn)
        if any(r.distance or r.size > 1 for r in field.reaches):
            target, offset = layout.with_neighbours(s.section, at, field.reaches, target, offset)
        return target, offset + back - field.tail

    def _in_code(self, layout: Layout, piece: Piece, s: PatchSymbol, at: int, function: PatchFunction | None,
                 field: Field) -> tuple[Target, int]:
        """A place in code: a function's entry stands for the function, wherever its newest version is."""
        raw = layout.whole(s.section)
        kind = layout.roles[piece.section]
        bound = layout.binder.functions[layout.n].get((s.section, at))
        if bound is None or kind in (Role.UNWIND, Role.PRIVATE) or layout.is_unnamed_run(piece):
            return raw, at
        if field.use is Use.BRANCH and function is not None and not self._is_call(layout, piece, field) and (
                without_clone(bound.function.name) == without_clone(function.name)):
            return raw, at                            # a loop back to the top, or in from the cold part
        return (layout.binder.elsewhere(layout.n, bound.function.names[0]) if bound.new else None) or bound, 0

    def _is_call(self, layout: Layout, piece: Piece, field: Field) -> bool:
        return bool(self.link.is_call(layout.patch.contents[piece.section], field.insn))

    def _exported(self, target: Target, offset: int) -> tuple[Target, int]:
        if isinstance(target, Exported):
            layout = self.layouts[target.patch]
            found, more = layout.meaning(target.symbol)
            if isinstance(found, BoundFunction):
                self.taken.setdefault(found)          # another object's code needs an address that outlives this object
            return found, offset + more
        return target, offset

    def _note_function(self, layout: Layout, piece: Piece, r: Reloc, s: PatchSymbol, field: Field,
                       target: Target) -> None:
        if not isinstance(target, BoundFunction):
            return
        in_code = layout.roles[piece.section] is Role.CODE
        call = in_code and (field.use is Use.BRANCH or field.use is Use.GOT and field.access is Access.EXACT)
        if call:
            self.calls[layout.n, piece.section, r.offset] = target
        elif layout.roles[piece.section] not in (Role.UNWIND, Role.PRIVATE):
            self.taken.setdefault(target)

    # ---- what the assembler resolved ------------------------------------------------------------------------------

    def _assembler_resolved(self, layout: Layout, piece: Piece) -> None:
        """Reroute calls, tail calls and addresses inside one section that lead to a function's entry."""
        for ref in layout.surveys[piece.section].resolved:
            bound = layout.binder.functions[layout.n].get((piece.section, ref.target))
            if bound is None:
                continue
            function = layout.patch.function_covering(piece.section, ref.at)
            own = function is not None and without_clone(function.name) == without_clone(bound.function.name)
            if ref.use is Use.BRANCH:
                if own and not ref.call:
                    continue                          # a loop back to the top
                self.calls[layout.n, piece.section, ref.at] = bound
            else:
                self.taken.setdefault(bound)
            self.rerouted.append(Rerouted(piece, ref, bound, -1))

    def settle(self) -> None:
        """After read(): drop what may stay direct, find room for trampolines of short jumps."""
        kept: list[Rerouted] = []
        for x in self.rerouted:
            if not self.has_stub(x.target):
                continue
            if x.ref.use is Use.BRANCH and self._span(x) < self.link.JUMP_REACH:
                x = x._replace(trampoline=self._trampoline(x, kept))
            kept.append(x)
        self.rerouted = kept

    def has_stub(self, f: BoundFunction) -> bool:
        """The function is reached through a stub, from the patch too."""
        return not f.new or bool(f.known_stub) or f in self.taken

    def _span(self, x: Rerouted) -> int:
        return int(self.link.span(self.layouts[x.piece.patch].patch.contents[x.piece.section], x.ref))

    def _trampoline(self, x: Rerouted, placed: list[Rerouted]) -> int:
        """Where a jump fits that the branch reaches: between functions, or behind the last one."""
        layout, piece = self.layouts[x.piece.patch], x.piece
        code = layout.patch.contents[piece.section]
        used = self._used_padding.setdefault(piece, [])
        low, high = x.ref.end - self._span(x), x.ref.end + self._span(x) - 1
        for other in placed:                          # one for the same target nearby will do
            if other.piece is piece and other.target is x.target and max(low, 0) <= other.trampoline <= high:
                return other.trampoline
        functions = layout.patch.functions_in(piece.section)
        edges = [(f.end, g.start) for f, g in zip(functions, functions[1:])] + [
            (functions[-1].end, piece.end + self.link.JUMP_SIZE * 64)]
        for start, end in edges:
            at = max([start] + [b for a, b in used if b > start and a < end])
            fits = at + self.link.JUMP_SIZE <= end and low <= at <= high
            if fits and self.link.padding(code, start, min(end, piece.end)):
                used.append((at, at + self.link.JUMP_SIZE))
                piece.extra = max(piece.extra, at + self.link.JUMP_SIZE - piece.end)
                return at
        function = layout.patch.function_covering(piece.section, x.ref.at)
        at = self.link.room_in_place(code, x.ref, function.start, function.end) if function else -1
        end = at + self.link.JUMP_SIZE
        if at >= 0 and not any(a < end and at < b for a, b in used) and not self._entered(layout, piece.section, x.ref.end, end):
            used.append((at, end))
            return int(at)
        self.problems.append(layout.refuse(function, piece.section, x.ref.at, Unclear(
            f"a short jump to {x.target.function.name} cannot be rerouted",
            "compile the patch with -ffunction-sections")))
        return -1

    def _entered(self, layout: Layout, section: int, start: int, end: int) -> bool:
        """Whether code may be executed from a place in [start, end) of a section on, padding for all we know."""
        patch = layout.patch
        if end > patch.sections[section].size or any(start <= s.value < end and s.type != elf.STT_SECTION
                                                     for s in patch.symbols_in.get(section, ())):
            return True
        if any(start <= x.target < end for x in layout.surveys[section].resolved):
            return True
        if any(s.name.startswith(".gcc_except_table") for s in patch.sections):
            return True                               # landing pads are named there without relocations
        for place, relocs in patch.relocs.items():
            code = layout.roles[place] is Role.CODE
            for r in relocs if layout.roles[place] is not Role.UNWIND else ():
                s = patch.symbols[r.symbol]
                if s.section != section:
                    continue
                # In code, the field counts from its instruction's end; in tables of jumps from the table, or says it all.
                at = s.value + r.addend
                more = (0, *self.link.PAST_FIELD) if code else (0, layout.table_base(place, r.offset) - r.offset)
                if any(start <= at + m < end for m in more):
                    return True
        return False
