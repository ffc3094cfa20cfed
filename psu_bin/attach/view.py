"""What the linker may know of a target: one ModuleView an instrumented module.

A view is filled from the process (target.py) and from psu-bin's notes in it (meta.py); the linker
never touches the process.  An Identity names what a patch brought along and later patches find again: (file, name),
file "" for a global."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from psu_bin import arch as arch_package
from psu_bin import descriptor
from psu_bin.attach.patch import is_clone, numbered, program_name, without_clone
from psu_bin.descriptor import Descriptor, Symbol

if TYPE_CHECKING:
    from psu_bin.attach import meta
    from psu_bin.elf import Binary
    from psu_bin.attach.target import Target

Identity = tuple[str, str]


class Stored(NamedTuple):
    """An interned constant in the module's store."""
    crc: int            # zlib.crc32 of its bytes
    address: int
    size: int
    align: int


@dataclass(frozen=True, eq=False)
class ModuleView:
    """One instrumented module of the target, and what earlier patches left near it.  Addresses are run-time ones."""
    path: str
    load_bias: int
    descriptor: Descriptor
    tls_offset: int | None = None       # its TLS image minus the thread pointer, alike in all threads; None: not known
    known_variables: Mapping[Identity, tuple[int, int]] = field(default_factory=dict)   # (address or SEVERAL, size)
    known_functions: Mapping[Identity, int] = field(default_factory=dict)               # address of its stub
    constants: tuple[Stored, ...] = ()
    relied: Mapping[int, int] = field(default_factory=dict)  # stub -> registers that code of patches relies on
    read: Callable[[int, int], bytes] | None = None     # (address, size) of the target's memory; may raise PsuError
    file: Callable[[], Binary | None] | None = None     # the module's file; the answer is None where it is not to be had
    executable: bool = False            # the program itself, not a library
    brought: frozenset[str] = frozenset()   # globals of source files that earlier patches brought

    @property
    def position_dependent(self) -> bool:
        return not self.descriptor.flags & descriptor.MODULE_PIC

    @property
    def far(self) -> bool:
        """Whether its stubs are out of reach of direct calls."""
        return bool(self.descriptor.flags & descriptor.MODULE_FAR)

    def stub(self, index: int) -> int:
        return self.load_bias + self.descriptor.stub(index)

    def pointer(self, index: int) -> int:
        """What pointers to function `index` are in the program: its stub, or its entry where that jumps to the stub."""
        f = self.descriptor.functions[index]
        return self.load_bias + f.address if f.flags & descriptor.DETOURED else self.stub(index)

    @cached_property
    def globals(self) -> dict[str, Symbol]:
        """Global symbols by name, strong ones before weak ones; aliases of a version ("x@V") by plain name."""
        out: dict[str, Symbol] = {}
        for s in self.descriptor.symbols:
            if s.bind != descriptor.BIND_LOCAL:
                name = s.name.split("@", 1)[0]
                if name not in out or out[name].bind == descriptor.BIND_WEAK != s.bind:
                    out[name] = s
        return out

    @cached_property
    def locals(self) -> dict[str, list[Symbol]]:
        """Static symbols by the name that the source has for them."""
        out: dict[str, list[Symbol]] = {}
        for s in self.descriptor.symbols:
            if s.bind == descriptor.BIND_LOCAL:
                out.setdefault(self.source_name(s), []).append(s)
        return out

    def source_name(self, s: Symbol) -> str:
        """The name that the source has for a symbol, as far as that can be told.

        clang's LTO makes one file of all, and `state.3` of the second static called `state`.  A static local of GCC's
        may look the same; where `state` is there, too, it counts as one that may be meant: better refused than mixed up."""
        name = program_name(s.name)
        base = numbered(name)
        return base if (base, s.kind) in self._of_no_file and self._lto_made(s) else name

    @cached_property
    def _of_no_file(self) -> set[tuple[str, int]]:
        """(name, kind) of local symbols that belong to no source file."""
        return {(s.name, s.kind) for s in self.descriptor.symbols if self._lto_made(s)}

    def _lto_made(self, s: Symbol) -> bool:
        return s.bind == descriptor.BIND_LOCAL and s.file < len(self.descriptor.files) and artificial(self.file_name(s))

    @cached_property
    def files(self) -> dict[str, set[int]]:
        """Numbers of source files by base name."""
        out: dict[str, set[int]] = {}
        for n, name in enumerate(self.descriptor.files):
            out.setdefault(base_name(name), set()).add(n)
        return out

    @cached_property
    def clones(self) -> dict[str, list[int]]:
        """Specialised or partial copies of functions that the compiler made, by the function's name: numbers of symbols.

        GCC's `f.localalias` is another name of f itself, not a copy."""
        out: dict[str, list[int]] = {}
        functions = [(i, s) for i, s in enumerate(self.descriptor.symbols) if s.kind == descriptor.KIND_FUNCTION]
        entries = {(s.name, s.address) for _, s in functions}
        for i, s in functions:
            if "." in s.name and is_clone(s.name) and ".cold" not in s.name:
                name = without_clone(s.name)
                if (name, s.address) not in entries:
                    out.setdefault(name, []).append(i)
        return out

    @cached_property
    def last_file(self) -> int:
        """The number of the source file whose statics are last in the symbol table."""
        return max((s.file for s in self.descriptor.symbols if s.file < len(self.descriptor.files)), default=-1)

    def file_name(self, s: Symbol) -> str:
        return self.descriptor.files[s.file] if s.file < len(self.descriptor.files) else "?"

    @cached_property
    def _stored(self) -> dict[tuple[int, int], list[Stored]]:
        out: dict[tuple[int, int], list[Stored]] = {}
        for c in self.constants:
            out.setdefault((c.crc, c.size), []).append(c)
        return out

    @cached_property
    def stored_by_size(self) -> dict[int, list[Stored]]:
        """Interned constants by size: those that depend on their own address are found by trying."""
        out: dict[int, list[Stored]] = {}
        for c in self.constants:
            out.setdefault(c.size, []).append(c)
        return out

    def find_constant(self, content: bytes, align: int) -> int | None:
        """The address of an interned constant with these bytes, or None."""
        for c in self._stored.get((zlib.crc32(content), len(content)), ()):
            if c.address % align == 0 and (self.read is None or self.read(c.address, c.size) == content):
                return c.address
        return None


def artificial(file: str) -> bool:
    """The name of a file (STT_FILE) stands for no source file, but for what a linker or LTO made of several."""
    name = base_name(file)
    return name in ("", "<artificial>", "ld-temp.o") or ".ltrans" in name


def base_name(path: str) -> str:
    """The last component: compilers write the path as they were given it, or only this."""
    return path.rsplit("/", 1)[-1]


SEVERAL = 0                   # in place of an address: there are more variables than one of that identity


def known_variables(rows: Iterable[tuple[Identity, int, int]]) -> dict[Identity, tuple[int, int]]:
    """ModuleView.known_variables of (identity, address, size)."""
    out: dict[Identity, tuple[int, int]] = {}
    for identity, address, size in rows:
        out[identity] = (SEVERAL if out.get(identity, (address, 0))[0] != address else address, size)
    return out


def views(t: Target, notes: meta.Notes) -> tuple[ModuleView, ...]:
    """The linker's views of the target's modules."""
    from psu_bin.attach import target
    out = []
    relied_on = notes.relied_on()
    for m in t.modules:
        tls = None
        if m.tls and m.executable:
            tls = arch_package.for_machine(m.machine, m.path).link.static_tls_offset(*m.tls)
        relied = {}
        for (key, number), registers in relied_on.items():
            if key in ("", m.key):
                relied[m.stub(number) if key else notes.stubs[number].stub] = registers
        out.append(ModuleView(
            m.path, m.load_bias, m.descriptor, tls,
            known_variables([((file, name), address, size) for key, file, name, address, size in notes.variables
                             if key == m.key]),
            {(s.file, s.name): s.stub for s in notes.stubs if s.module == m.key},
            tuple(Stored(*row) for key, *row in notes.constants if key == m.key),
            relied, t.process.read, partial(target.file, t, m.descriptor), m.executable, frozenset(notes.brought)))
    return tuple(out)
