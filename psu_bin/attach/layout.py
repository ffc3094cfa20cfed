"""How a patch object is taken apart: which bytes stay together, and which object a reference means: Layout.

Only code is versioned, data is interned (DESIGN.md).  So a section is placed whole only when it is code, or read-only
data that nothing in the program shares; the rest is cut into pieces:

- mergeable strings and constants: one piece an entry, interned by content;
- read-only data: the section as one piece, interned by content after relocation.  Constant objects that the program
  has under the same name are `Twin`s: the program's own is used when it is equal, because programs compare their
  addresses;
- *runs*: jump tables and tables of labels, recognised by relocations that point inside functions.  They are placed
  with the code, and are zero in the interned image of their section;
- writable data: variables that the program has stay where they are; neighbouring new ones form one piece.  What has no
  name there is a constant: GCC keeps initial values of automatic arrays with pointers in .data.

The assembler turns `x+8` of a local x into `.bss+24`, so references must be traced back to the object.  The byte says
which, except at a boundary, where one object's end is the next one's start: C allows an address one past an array.
Where both readings give the same address (both objects moved by the same distance, the normal case) nothing has to be
decided; else boundary.py looks at the instruction."""

from __future__ import annotations

from typing import NamedTuple

from psu_bin import descriptor, elf
from psu_bin.arch.link_types import Access, CodeSurvey, Cut, Howto, Reach, Use
from psu_bin.attach import boundary, runs, statics
from psu_bin.attach.binding import Ambiguous, Binder
from psu_bin.attach.meaning import Fixed, NewVariable, Piece, Room, Target, Twin, Unclear
from psu_bin.attach.patch import PatchFunction, PatchObject, PatchSymbol, Reloc
from psu_bin.attach.sections import Role, role
from psu_bin.elf import Section
from psu_bin.errors import PsuError


class Object(NamedTuple):
    """An object of a section, with the target that stands for it."""
    start: int
    end: int
    symbol: PatchSymbol | None
    target: Target
    base: int              # offset in the section that the target's address stands for

    @property
    def shift(self) -> object:
        """What a reference gains by being bound to this object; equal for two objects: it does not matter which."""
        return self.target.address - self.base if isinstance(self.target, Fixed) else (self.target, self.base)


class Layout:
    """One patch object, taken apart."""

    def __init__(self, n: int, binder: Binder, howto: dict[int, Howto], surveys: dict[int, CodeSurvey]) -> None:
        self.n = n
        self.binder = binder
        self.patch: PatchObject = binder.patches[n]
        self.howto = howto
        self.surveys = surveys
        self.roles = tuple(role(s) for s in self.patch.sections)
        self.new_variables: list[NewVariable] = []
        self._relocated: dict[int, dict[int, Reloc]] = {}
        self.demoted: set[Twin] = set()        # twins that a doubtful reference keeps from being used
        self.cuts: set[Cut] = set()            # instructions that need an address of their own: anchors.cut
        self.coupled: list[tuple[Twin, ...]] = []   # to be used all or not at all
        self.mentions: dict[int, list[tuple[int, int, boundary.Mention]]] = {}   # boundary.mentions remembers here
        self._pieces: dict[tuple[int, int], Piece] = {}
        self._objects: dict[int, list[Object]] = {}
        self._ordered: dict[int, boundary.Ordered] = {}
        self._named: dict[int, list[tuple[int, int, PatchSymbol]]] = {}
        self._commons: dict[int, Piece] = {}
        self.runs = runs.find(self.patch, self.roles, howto)
        self.private = runs.sections_with_labels(self.patch, self.roles, self.runs)

    # ---- pieces ---------------------------------------------------------------------------------------------------

    def piece(self, section: int, start: int, end: int, room: Room, align: int = 0) -> Piece:
        """The piece that starts at `start`, made on first use."""
        key = (section, start)
        made = self._pieces.get(key)
        if made is None:
            s = self.patch.sections[section]
            data = self.patch.contents[section][start:end]
            made = self._pieces[key] = Piece(self.n, section, start, end, align or max(s.align, 1), room, data, s.name)
        return made

    def whole(self, section: int) -> Piece:
        """The piece of a section that is placed whole."""
        s = self.patch.sections[section]
        kind = self.roles[section]
        inner = kind is not Role.CONSTANT or section in self.private
        made = self._pieces.get((section, -1))
        if made is None:
            made = Piece(self.n, section, 0, s.size, max(s.align, 1), Room.CODE if inner else Room.CONSTANT,
                         self.patch.contents[section], s.name)
            if kind is Role.CONSTANT:
                made.blank = list(self.runs.get(section, ()))
            self._pieces[section, -1] = made
        return made

    def _run(self, section: int, start: int, end: int) -> Piece:
        writable = self.roles[section] is Role.WRITABLE
        return self.piece(section, start, end, Room.LABELS if writable else Room.CODE)

    def is_unnamed_run(self, piece: Piece) -> bool:
        """A compiler's jump table: all its entries are places inside functions, even one at a function's entry."""
        return (piece.start, piece.end) in self.runs.get(piece.section, ()) and not any(
            s.type == elf.STT_OBJECT and s.value <= piece.start < s.value + s.size
            for s in self.patch.symbols_in.get(piece.section, ()))

    def _string(self, section: int, offset: int) -> Piece:
        s, data = self.patch.sections[section], self.patch.contents[section]
        width = s.entsize
        offset = min(offset, len(data) - 1)
        if width == 1:
            start = data.rfind(b"\0", 0, offset) + 1
            end = data.find(b"\0", offset) + 1 or len(data)
        else:
            zero = bytes(width)
            start = end = offset // width * width
            while start > 0 and data[start - width:start] != zero:
                start -= width
            while end < len(data) and data[end:end + width] != zero:
                end += width
            end = min(end + width, len(data))
        return self.piece(section, start, end, Room.CONSTANT, _align_at(s, start))

    # ---- objects of a section -------------------------------------------------------------------------------------

    def objects(self, section: int) -> list[Object]:
        """The objects of a constant or writable section, ascending, with what each stands for."""
        found = self._objects.get(section)
        if found is None:
            writable = self.roles[section] is Role.WRITABLE
            found = self._objects[section] = self._variables(section) if writable else self._constants(section)
        return found

    def _symbols(self, section: int) -> list[tuple[int, int, PatchSymbol]]:
        """(start, end, symbol) of the objects of a section, one for each start: globals before locals."""
        found = self._named.get(section)
        if found is None:
            found = self._named[section] = self._find_symbols(section)
        return found

    def _find_symbols(self, section: int) -> list[tuple[int, int, PatchSymbol]]:
        size = self.patch.sections[section].size
        best: dict[int, PatchSymbol] = {}
        for s in self.patch.symbols_in.get(section, ()):
            if s.type in (elf.STT_OBJECT, elf.STT_NOTYPE, elf.STT_TLS) and s.name and (
                    not s.name.startswith(".L")) and s.value < size:
                old = best.get(s.value)
                if old is None or (s.type == elf.STT_NOTYPE, s.local, -s.size) < (
                        old.type == elf.STT_NOTYPE, old.local, -old.size):
                    best[s.value] = s
        starts = sorted(best)
        out = []
        for n, start in enumerate(starts):
            following = starts[n + 1] if n + 1 < len(starts) else size
            end = start + best[start].size if best[start].size else following
            out.append((start, end, best[start]))
        return out

    def _variables(self, section: int) -> list[Object]:
        label_runs = self.runs.get(section, ())
        out: list[Object] = []
        group: list[tuple[int, int, PatchSymbol]] = []

        def close() -> None:
            """Make one piece of the new variables in `group`."""
            if not group:
                return
            piece = self.piece(section, group[0][0], max(e for _, e, _ in group), Room.VARIABLE)
            for start, end, s in group:
                out.append(Object(start, end, s, piece, piece.start))
                self.new_variables.append(NewVariable(statics.identity(self.patch, s), piece, start, end - start))
            group.clear()

        for start, end, s in self._symbols(section):
            run = next(((a, b) for a, b in label_runs if a <= start < b), None)
            if run:
                piece = self._run(section, *run)
                out.append(Object(start, end, s, piece, piece.start))
                continue
            target = self._variable_target(s)
            if target is None:
                group.append((start, end, s))
            else:
                close()
                out.append(Object(start, end, s, target, start))
        close()
        for a, b in label_runs:
            if not any(o.start <= a < o.end for o in out):
                out.append(Object(a, b, None, self._run(section, a, b), a))
        return sorted(out + self._unnamed_constants(section, out), key=lambda o: o.start)

    def _unnamed_constants(self, section: int, named: list[Object]) -> list[Object]:
        """What lies between the named objects of a writable section and is not padding."""
        s, data = self.patch.sections[section], self.patch.contents[section]
        fields = [r.offset for r in self.patch.relocs.get(section, ())]
        out = []
        edges = sorted((o.start, o.end) for o in named)
        for end, start in zip([0] + [e for _, e in edges], [b for b, _ in edges] + [s.size]):
            used = [n for n in fields if end <= n < start]
            first = end + len(data[end:start]) - len(data[end:start].lstrip(b"\0"))
            first = min([first, *used])
            if first < min(start, len(data)) or used:
                first = max(end, first & -min(s.align, 16))
                piece = self.piece(section, first & -s.align, start, Room.CONSTANT)
                piece.blank = [(piece.start, first)]
                out.append(Object(first, start, None, piece, piece.start))
        return out

    def _variable_target(self, s: PatchSymbol) -> Target | None:
        target = self.binder.variable(self.n, s)
        return self.binder.elsewhere(self.n, s) if target is None else target

    def _constants(self, section: int) -> list[Object]:
        image = self.whole(section)
        label_runs = self.runs.get(section, ())
        out = [Object(a, b, None, self._run(section, a, b), a) for a, b in label_runs]
        for start, end, s in self._symbols(section):
            if any(a <= start < b for a, b in label_runs):
                continue
            target = self._twin(image, start, end, s) if image.room is Room.CONSTANT else None
            out.append(Object(start, end, s, target or image, start if target else 0))
        return sorted(out, key=lambda o: o.start)

    def _twin(self, image: Piece, start: int, end: int, s: PatchSymbol) -> Target | None:
        binder = self.binder
        standing = binder.elsewhere(self.n, s)
        if standing is not None:
            return standing
        view = binder.views[binder.module[self.n]]
        try:
            found = binder.program_constant(self.n, s)
        except Ambiguous:
            return None
        if found is None or found.kind != descriptor.KIND_OBJECT or found.size != s.size or not s.size:
            return None
        return Twin(image, start, end, view.load_bias + found.address)

    def relocated(self, section: int) -> dict[int, Reloc]:
        """The section's relocations by the offset of their field."""
        if section not in self._relocated:
            self._relocated[section] = {r.offset: r for r in self.patch.relocs.get(section, ())}
        return self._relocated[section]

    # ---- meanings -------------------------------------------------------------------------------------------------

    def meaning(self, s: PatchSymbol) -> tuple[Target, int]:
        """What a named symbol stands for: a target, and an offset from its address."""
        if s.section == elf.SHN_UNDEF:
            return self.binder.undefined(self.n, s), 0
        if s.section == elf.SHN_ABS:
            return Fixed(s.value, True), 0
        if s.section == elf.SHN_COMMON:
            return self._common(s), 0
        kind = self.roles[s.section]
        if kind is Role.CODE:
            bound = self.binder.functions[self.n].get((s.section, s.value))
            if bound is None:
                return self.whole(s.section), s.value
            return (self.binder.elsewhere(self.n, s) if bound.new else None) or bound, 0
        if kind is Role.IGNORED and self.patch.sections[s.section].flags & elf.SHF_ALLOC:
            return Unclear(f"{s.name or self.patch.sections[s.section].name} is in section "
                           f"{self.patch.sections[s.section].name}, which is not placed", ""), 0
        if kind is Role.IGNORED:
            return Unclear(f"{s.name} is in section {self.patch.sections[s.section].name}, which is not loaded", ""), 0
        return self.locate(s.section, s.value, s.value, Access.EXACT, None)

    def _common(self, s: PatchSymbol) -> Target:
        target = self._variable_target(s)
        if target is not None:
            return target
        piece = self._commons.get(s.number)
        if piece is None:
            # st_value of a common symbol is its alignment.
            piece = self._commons[s.number] = Piece(self.n, -1, 0, s.size, max(s.value, 1), Room.VARIABLE, b"", s.name)
            self.new_variables.append(NewVariable(("", s.name), piece, 0, s.size))
        return piece

    def thread(self, section: int, symbol: PatchSymbol, offset: int) -> tuple[Target, int]:
        """The thread-local variable at `offset` of a TLS section (or the undefined `symbol`), as (target, offset)."""
        if symbol.section == elf.SHN_UNDEF:
            return self.binder.undefined(self.n, symbol), offset
        if not 0 < section < len(self.roles):
            return Unclear(f"{symbol.name} is used as a thread-local variable and is none", ""), 0
        for start, end, s in self._symbols(section):
            if start <= offset < end or symbol.number == s.number:
                target = self._variable_target(s)
                if target is None:
                    return Unclear(f"new thread-local variable {s.name}",
                                   "a patch cannot add thread-local variables: running threads have no room"), 0
                return target, offset - start
        name = self.patch.sections[section].name
        return Unclear(f"thread-local data at {name}+{offset:#x} belongs to no variable", ""), 0

    def locate(self, section: int, base: int, offset: int, access: Access,
               function: PatchFunction | None, insn: int = -1) -> tuple[Target, int]:
        """What lies at `offset` of a section that is not code, as (target, offset from its address).

        base: the offset that decides which object is meant; the symbol's own, where a symbol is named.
        function, insn: where the reference is in code."""
        kind = self.roles[section]
        if kind in (Role.CODE, Role.UNWIND, Role.PRIVATE):
            return self.whole(section), offset
        if kind is Role.THREAD:
            return self.thread(section, self.patch.symbols[0]._replace(section=section), offset)
        if kind is Role.STRINGS:
            piece = self._string(section, base)
            return piece, offset - piece.start
        if kind is Role.ENTRIES:
            s = self.patch.sections[section]
            start = min(base, s.size - 1) // s.entsize * s.entsize
            piece = self.piece(section, start, min(start + s.entsize, s.size), Room.CONSTANT, _align_at(s, start))
            return piece, offset - piece.start
        if kind is Role.IGNORED:
            return Unclear(f"section {self.patch.sections[section].name} is not loaded", ""), 0
        image = self.whole(section) if kind is Role.CONSTANT else None
        line = boundary.line_of(self, function.section, insn) if function else -1
        if section not in self._ordered:
            self._ordered[section] = boundary.Ordered(self.objects(section))
        chosen = boundary.choose(self._ordered[section], base, access, line,
                                 lambda: boundary.mentions(self, function, section), image)
        if isinstance(chosen, boundary.Undecided):
            twins = [o.target for o in chosen.objects if isinstance(o.target, Twin)]
            if len(twins) == len(chosen.objects) and len({t.address - t.start for t in twins}) == 1:
                self.coupled.append(tuple(twins))    # neighbours in the program, too: one address while both are used
                return twins[0], offset - twins[0].start
            if image is not None and all(isinstance(o.target, Twin) or o.target is image for o in chosen.objects):
                self.demoted.update(twins)       # with all of them in the image, both readings are one address
                return image, offset
            return Unclear(f"{chosen.what} at {self.patch.sections[section].name}+{base:#x}",
                           "compile the patch with -fdata-sections"), 0
        if image is None and chosen is not None and chosen.symbol is None and access is Access.WRITTEN:
            chosen = None                          # a variable without a name: nobody could find it again
        if chosen is None and image is not None:
            return image, offset
        if chosen is None:
            return Unclear(f"nothing has a name at {self.patch.sections[section].name}+{base:#x}",
                           "compile the patch with -fdata-sections"), 0
        return chosen.target, offset - chosen.base

    def with_neighbours(self, section: int, at: int, reaches: tuple[Reach, ...], target: Target,
                        offset: int) -> tuple[Target, int]:
        """(target, offset) of a reference to `at`, by itself `target` + `offset`, through which the code uses what is at
        `reaches`: the program must have it all at the same distances.  What it has not is noted in `cuts`."""
        if self.roles[section] not in (Role.CONSTANT, Role.WRITABLE):
            return target, offset
        image = self.whole(section) if self.roles[section] is Role.CONSTANT else None
        used = [(r, o) for r in reaches for o in self._reached(section, at + r.distance, r.size, image)]
        own = next((o for o in self.objects(section) if o.start <= at <= o.end and (o.target, at - o.base) == (target, offset)),
                   Object(at, at, None, image, 0) if image is not None and target is image else None)
        if not any(r.distance == 0 for r in reaches) and used:
            # The address is only one to count from: any of those will do.
            own = own if own and any(o.shift == own.shift for _, o in used) else used[0][1]
            target, offset = own.target, at - own.base
        strange = [(r, o) for r, o in used if own is not None and o.shift != own.shift]
        if own is None or not strange:
            return target, offset
        objects = [own, *(o for _, o in used)]
        if image is not None and all(isinstance(o.target, Twin) or o.target is image for o in objects):
            self.demoted.update(o.target for o in objects if isinstance(o.target, Twin))
            return image, at
        if all(r.cut for r, _ in strange):
            self.cuts.update(r.cut for r, _ in strange if r.cut)
            return target, offset
        names = sorted({o.symbol.name if o.symbol else "a constant" for r, o in strange if not r.cut})
        return Unclear(f"{names[0]} is reached through the address of {own.symbol.name if own.symbol else 'a constant'}",
                       "compile the patch with -fno-section-anchors"), 0

    def _reached(self, section: int, at: int, size: int, image: Piece | None) -> list[Object]:
        """The objects whose bytes [at, at + size) are; of an address alone (size 0), or with an index
        (size -1), those that it can be of."""
        objects = self.objects(section)
        if size > 0:
            found = [o for o in objects if o.start < at + size and at < o.end]
        else:
            found = [o for o in objects if o.start <= at < o.end] or [o for o in objects if o.end == at]
            if size < 0 and not any(o.start == at for o in found):
                found += [o for o in objects if at < o.start <= at + boundary.INDEX]
        return found or ([Object(at, at, None, image, 0)] if image is not None else [])

    def extent(self, piece: Piece, offset: int) -> tuple[int, int]:
        """[start, end) in `piece` of the constant that has the byte at `offset`: up to the next one that has a name or
        that something refers to."""
        if piece is not self._pieces.get((piece.section, -1)):
            return 0, piece.end - piece.start
        edges = {0, piece.end, *(n for run in self.runs.get(piece.section, ()) for n in run)}
        edges.update(n for start, end, _ in self._symbols(piece.section) for n in (start, end))
        edges.update(m.to for m in boundary.mentions(self, None, piece.section))
        for section, relocs in self.patch.relocs.items():
            if self.roles[section] is not Role.CODE:
                edges.update(s.value + r.addend for r in relocs for s in (self.patch.symbols[r.symbol],)
                             if s.section == piece.section)
        start = max((e for e in edges if e <= offset), default=0)
        return start, min((e for e in edges if e > offset), default=piece.end)

    def table_base(self, section: int, offset: int) -> int:
        """Where the table of PC-relative entries that has one at `offset` starts: entries count from there."""
        starts = [s.value for s in self.patch.symbols_in.get(section, ()) if s.type == elf.STT_OBJECT
                  and s.value <= offset < s.value + s.size]
        if starts:
            return max(starts)
        named = [m.to for m in boundary.mentions(self, None, section) if m.to <= offset]
        return max(named, default=0)

    def refuse(self, function: PatchFunction | None, section: int, at: int, problem: Unclear) -> PsuError:
        """The error for a reference to something unclear."""
        name, start = (function.name, function.start) if function else (self.patch.sections[section].name, 0)
        where = f"{name}+{at - start:#x}"
        return PsuError(self.patch.path, f"{where}: {problem.what}", problem.hint)


def _align_at(s: Section, offset: int) -> int:
    """The alignment that the compiler can have asked for at `offset`."""
    return min(max(s.align, 1), offset & -offset) if offset else max(s.align, 1)


def uses_thread_pointer(use: Use) -> bool:
    return use in (Use.TLS_OFFSET, Use.TLS_GOT, Use.TLS_GENERAL, Use.TLS_DESCRIPTOR, Use.TLS_DESCRIPTOR_CALL)
