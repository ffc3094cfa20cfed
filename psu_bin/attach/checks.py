"""Checks of a patch before anything is placed: what would not work is refused here, all of it at once.

Each check yields the problems it finds; `run` collects those of all checks.  To add one, write a function with the
same signature and put it into CHECKS where its inputs are known to be sane.  Types are compared when it is known which
functions are replaced (typecheck.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from psu_bin import elf
from psu_bin.attach.patch import (
    SHT_FINI_ARRAY, SHT_INIT_ARRAY, SHT_PREINIT_ARRAY, PatchObject)
from psu_bin.attach.proc import Mapping
from psu_bin.attach.view import ModuleView
from psu_bin.errors import PsuError

Patches = tuple[PatchObject, ...]
Views = tuple[ModuleView, ...]
Groups = tuple[int, ...]
Check = Callable[[Patches, Views, Groups], Iterator[PsuError]]


def architecture(patches: Patches, views: Views, groups: Groups) -> Iterator[PsuError]:
    """Patch and modules are of one machine."""
    for p in patches:
        for v in views:
            if p.machine != v.descriptor.machine:
                yield PsuError(p.path, f"compiled for another architecture: ELF machine {p.machine}, "
                                       f"{v.path} has {v.descriptor.machine}")


def constructors(patches: Patches, views: Views, groups: Groups) -> Iterator[PsuError]:
    """Nothing asks to be run when the patch is loaded or unloaded: there is nobody who would.

    Arrays of pointers are read later (constructors.py): they may name functions that the program ran already."""
    for p in patches:
        for s in p.sections:
            if not s.flags & elf.SHF_ALLOC or not s.size:
                continue
            if s.type == SHT_PREINIT_ARRAY or s.type not in (SHT_INIT_ARRAY, SHT_FINI_ARRAY) and s.name.split(".")[
                    1:2] in (["ctors"], ["dtors"], ["init"], ["fini"], ["init_array"], ["fini_array"], ["preinit_array"]):
                yield PsuError(p.path, f"has constructors or destructors, in section {s.name}",
                               "a patch's constructors are not run: initialise at the first use")


def indirect_functions(patches: Patches, views: Views, groups: Groups) -> Iterator[PsuError]:
    """No function whose address a resolver chooses."""
    for p in patches:
        for s in p.symbols:
            if s.type == elf.STT_GNU_IFUNC and s.section:
                yield PsuError(p.path, f"defines an indirect function: {s.name}",
                               "a patch cannot have an ifunc resolver")


def duplicate_definitions(patches: Patches, views: Views, groups: Groups) -> Iterator[PsuError]:
    """No name has two strong definitions in one group."""
    seen: dict[tuple[int, str], str] = {}
    for p, group in zip(patches, groups):
        for s in p.symbols:
            if s.bind == elf.STB_GLOBAL and s.section not in (elf.SHN_UNDEF, elf.SHN_COMMON) and s.name:
                if (group, s.name) in seen:
                    yield PsuError(p.path, f"duplicate definition: {s.name} is also in {seen[group, s.name]}")
                seen[group, s.name] = p.path


def stacks(patches: Patches, maps: Iterable[Mapping]) -> None:
    """Refuse a patch with code that is made on the stack, where stacks cannot be executed.  maps: of the target."""
    if any(m.path == "[stack]" and "x" not in m.prot for m in maps):
        refuse([PsuError(p.path, "needs a stack that can be executed, and the process has none",
                         "a nested function whose address is taken; if it is but assembly that says nothing: objcopy -R .note.GNU-stack")
                for p in patches for s in p.sections if s.name == ".note.GNU-stack" and s.flags & elf.SHF_EXECINSTR])


CHECKS: tuple[Check, ...] = (
    architecture,
    constructors,
    indirect_functions,
    duplicate_definitions,
)


def run(patches: Patches, views: Views, groups: Groups) -> None:
    """Raises PsuError naming everything that CHECKS found."""
    refuse([problem for check in CHECKS for problem in check(patches, views, groups)])


def refuse(problems: list[PsuError]) -> None:
    """Raise one PsuError for all of `problems`; does nothing when there are none."""
    if not problems:
        return
    first = problems[0]
    whats = list(dict.fromkeys(p.what if p.where == first.where else f"{p.where}: {p.what}" for p in problems))
    hints = list(dict.fromkeys(p.hint for p in problems if p.hint))
    raise PsuError(first.where, "; ".join(whats), "; ".join(hints))
