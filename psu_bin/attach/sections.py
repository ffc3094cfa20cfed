"""What becomes of each section of a patch object: Role."""

from __future__ import annotations

from enum import Enum, auto

from psu_bin import elf
from psu_bin.attach.patch import SHT_FINI_ARRAY, SHT_INIT_ARRAY
from psu_bin.elf import Section


class Role(Enum):
    IGNORED = auto()       # not loaded: debug information, notes, empty ones, lists of constructors (constructors.py)
    CODE = auto()          # placed whole, lives and dies with the version
    UNWIND = auto()        # .eh_frame, with the code
    PRIVATE = auto()       # what only unwinding through the code uses (.gcc_except_table), with the code
    STRINGS = auto()       # mergeable strings: interned one by one
    ENTRIES = auto()       # mergeable constants of one size: interned one by one
    CONSTANT = auto()      # other read-only data, also after relocation (.data.rel.ro): interned whole
    WRITABLE = auto()      # variables, by identity
    THREAD = auto()        # thread-local variables: those of the program, or none


def role(s: Section) -> Role:
    """What becomes of section `s`."""
    flags = s.flags
    if not flags & elf.SHF_ALLOC or not s.size or s.type in (elf.SHT_NOTE, SHT_INIT_ARRAY, SHT_FINI_ARRAY):
        return Role.IGNORED
    if s.name == ".eh_frame":
        return Role.UNWIND
    if s.name.startswith(".gcc_except_table"):
        return Role.PRIVATE
    if flags & elf.SHF_EXECINSTR:
        return Role.CODE
    if flags & elf.SHF_TLS:
        return Role.THREAD
    if flags & elf.SHF_WRITE:
        # .ldata: the same, in the medium code model
        return Role.CONSTANT if s.name.startswith((".data.rel.ro", ".ldata.rel.ro")) else Role.WRITABLE
    if flags & elf.SHF_MERGE and s.entsize:
        return Role.STRINGS if flags & elf.SHF_STRINGS else Role.ENTRIES
    return Role.CONSTANT
