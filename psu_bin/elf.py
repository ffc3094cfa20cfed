"""A read-only view of one ELF file: Binary.

Headers are read with struct: importing pyelftools would take attach a quarter of the time that it has.  Tables with one
entry a symbol or a relocation are read with numpy, because programs have hundreds of thousands of them and one Python
object an entry costs seconds.  Everything that a damaged file can cause leaves as PsuError.

Addresses here are *file addresses*: the st_value, p_vaddr, sh_addr of the file, before the load bias
is added.  Offsets are bytes from the start of the file.

Specification: System V gABI, chapters 4 and 5; psABI supplements for the relocation numbers.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from psu_bin.errors import PsuError

if TYPE_CHECKING:
    import numpy as np

EM_X86_64 = 62
EM_AARCH64 = 183
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_PHDR, PT_TLS = 1, 2, 3, 4, 6, 7
PT_GNU_EH_FRAME, PT_GNU_STACK, PT_GNU_RELRO, PT_GNU_PROPERTY = (
    0x6474E550, 0x6474E551, 0x6474E552, 0x6474E553)
PF_X, PF_W, PF_R = 1, 2, 4

SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_DYNSYM = 1, 2, 3, 4, 8, 11
SHT_NOTE, SHT_GROUP, SHT_SYMTAB_SHNDX, SHT_RELR = 7, 17, 18, 19
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_STRINGS, SHF_TLS = 1, 2, 4, 0x10, 0x20, 0x400
SHF_COMPRESSED = 0x800

SHN_UNDEF, SHN_LORESERVE, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFF00, 0xFFF1, 0xFFF2, 0xFFFF
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_COMMON, STT_TLS = range(7)
STT_GNU_IFUNC = 10
STB_LOCAL, STB_GLOBAL, STB_WEAK, STB_GNU_UNIQUE = 0, 1, 2, 10

DT_NULL, DT_NEEDED, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ = 0, 1, 5, 6, 7, 8
DT_PLTRELSZ, DT_STRSZ, DT_INIT, DT_FINI, DT_SONAME, DT_RPATH, DT_JMPREL, DT_RUNPATH = 2, 10, 12, 13, 14, 15, 23, 29
DT_RELRSZ, DT_RELR, DT_GNU_HASH, DT_RELACOUNT = 35, 36, 0x6FFFFEF5, 0x6FFFFFF9

SYMBOL_DTYPE = [("st_name", "<u4"), ("st_info", "u1"), ("st_other", "u1"), ("st_shndx", "<u2"),
                ("st_value", "<u8"), ("st_size", "<u8")]
R_X86_64_RELATIVE, R_X86_64_IRELATIVE = 8, 37
RELA_DTYPE = [("r_offset", "<u8"), ("r_type", "<u4"), ("r_sym", "<u4"), ("r_addend", "<i8")]


@dataclass(frozen=True)
class Section:
    """One section header; `name` decoded, the rest as in the file."""
    index: int
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entsize: int

    @property
    def end(self) -> int:
        return self.address + self.size

    def holds(self, address: int) -> bool:
        return bool(self.flags & SHF_ALLOC) and self.address <= address < self.end


@dataclass(frozen=True)
class Segment:
    """One program header."""
    index: int
    type: int
    flags: int
    offset: int
    address: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True)
class SymbolTable:
    """A symbol table in bulk: `entries` are records of SYMBOL_DTYPE, `strings` the string table they name."""
    entries: np.ndarray
    strings: bytes
    where: str

    def name(self, index: int) -> str:
        """The name of symbol `index`; "" where the string table has none."""
        offset = int(self.entries["st_name"][index])
        end = self.strings.find(b"\0", offset)
        return self.strings[offset:end].decode("utf-8", "surrogateescape") if end >= 0 else ""


@dataclass(frozen=True)
class Relocations:
    """The relocations that the linker kept for one section (`--emit-relocs`); offsets are file addresses."""
    section: Section
    entries: np.ndarray
    symbols: SymbolTable


def code_mark(name: str) -> str:
    """"x" or "d" for a mapping symbol ($x, $d.7), which says that code or data begins, else "" (AArch64 ELF, 5.5.5)."""
    return name[1] if name[:2] in ("$x", "$d") and (len(name) == 2 or name[2] == ".") else ""


class Binary:
    """One 64-bit little-endian ELF file in memory (Binary.data: bytes, never changed).

    Raises PsuError from the constructor and from every property when the file is not what it claims.
    """

    def __init__(self, data: bytes, path: str) -> None:
        self.data = data
        self.path = path
        if data[:4] != b"\x7fELF":
            if data[:4] in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
                raise PsuError(path, "holds LLVM bitcode and no machine code", "compile it without -flto")
            if data[:8] in (b"!<arch>\n", b"!<thin>\n"):
                raise PsuError(path, "is an archive, not an ELF file", "take the object files out: ar x")
            raise PsuError(path, "not an ELF file")
        if len(data) < 64:
            raise PsuError(path, f"cut short: {len(data)} bytes, an ELF header has 64")
        if data[4] != 2:
            raise PsuError(path, "a 32-bit ELF file", "psu-bin handles x86-64 and AArch64")
        if data[5] != 1:
            raise PsuError(path, "a big-endian ELF file", "psu-bin handles x86-64 and AArch64")
        (self.type, self.machine, _, self.entry, self.phoff, self.shoff, self.flags, _,
         self.phentsize, self.phnum, self.shentsize, self.shnum, self.shstrndx) = struct.unpack_from(
            "<HHIQQQIHHHHHH", data, 16)
        if self.shoff and self.shentsize != 64 or self.phnum and self.phentsize != 56:
            raise PsuError(path, f"malformed ELF header: entries of {self.shentsize} and {self.phentsize} bytes")
        if self.shoff and not self.shnum and self.shoff + 64 <= len(data):
            (self.shnum,) = struct.unpack_from("<Q", data, self.shoff + 32)     # more than 65,279: in section 0
        if self.shoff and self.shstrndx == SHN_XINDEX and self.shoff + 64 <= len(data):
            (self.shstrndx,) = struct.unpack_from("<I", data, self.shoff + 40)
        if self.shoff + self.shnum * self.shentsize > len(data):
            raise PsuError(path, f"cut short: section headers at {self.shoff:#x}, "
                                 f"the file ends at {len(data):#x}")
        if self.phoff + self.phnum * self.phentsize > len(data):
            raise PsuError(path, f"cut short: program headers at {self.phoff:#x}, "
                                 f"the file ends at {len(data):#x}")
        for kind, i, address, size, offset in (
                *(("section", s.index, s.address, s.size, s.offset) for s in self.sections),
                *(("segment", p.index, p.address, p.memsz, p.offset) for p in self.segments)):
            if address + size >= 1 << 63 or offset >= 1 << 63:
                raise PsuError(path, f"malformed: {kind} {i} at address {address:#x}, {size:#x} bytes")
        for s in self.sections:
            if s.type != SHT_NOBITS and s.type != 0 and s.offset + s.size > len(data):
                raise PsuError(path, f"cut short: section {s.name} ends at {s.offset + s.size:#x}, "
                                     f"the file at {len(data):#x}")
        for p in self.segments:
            # A separate debug file keeps the offset of a segment of which it holds nothing.
            if p.type == PT_LOAD and p.filesz and p.offset + p.filesz > len(data):
                raise PsuError(path, f"cut short: segment {p.index} ends at {p.offset + p.filesz:#x}, "
                                     f"the file at {len(data):#x}")

    @staticmethod
    def read(path: str | Path) -> Binary:
        """Read and check the ELF file at `path`."""
        try:
            # A pipe or device could keep us waiting, or reading, for ever; so could some files in /proc.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb", buffering=0) as f:
                if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
                    raise PsuError(str(path), "is not a regular file")
                data = f.readall()
            if data is None:
                raise PsuError(str(path), "cannot be read: nothing is there yet")
            return Binary(data, str(path))
        except OSError as e:
            raise PsuError(str(path), f"cannot be read: {e.strerror}") from e

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        if not self.shoff:
            return ()
        headers = list(struct.iter_unpack("<IIQQQQIIQQ", self.data[self.shoff:self.shoff + 64 * self.shnum]))
        if not headers:
            return ()
        if self.shstrndx >= len(headers):
            raise PsuError(self.path, f"malformed section headers: names in section {self.shstrndx} of {len(headers)}")
        _, _, _, _, at, size, *_ = headers[self.shstrndx]
        names = self.data[at:at + size] + b"\0"
        return tuple(Section(i, self.string(names, name), kind, flags, address, offset, size, link, info, align, entsize)
                     for i, (name, kind, flags, address, offset, size, link, info, align, entsize) in enumerate(headers))

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        out = []
        for i in range(self.phnum):
            t, f, off, va, _, fsz, msz, al = struct.unpack_from(
                "<IIQQQQQQ", self.data, self.phoff + i * self.phentsize)
            out.append(Segment(i, t, f, off, va, fsz, msz, al))
        return tuple(out)

    def section(self, name: str) -> Section | None:
        """The first section called `name`, or None."""
        return next((s for s in self.sections if s.name == name), None)

    def segment(self, kind: int) -> Segment | None:
        """The first segment of type `kind` (a PT_ constant), or None."""
        return next((p for p in self.segments if p.type == kind), None)

    def contents(self, s: Section) -> bytes:
        """The bytes of a section; b"" for one without any in the file (SHT_NOBITS)."""
        return b"" if s.type == SHT_NOBITS else self.data[s.offset:s.offset + s.size]

    def offset_of(self, address: int) -> int:
        """The file offset of a file address.  Raises PsuError where no PT_LOAD has bytes for it."""
        for p in self.segments:
            if p.type == PT_LOAD and p.address <= address < p.address + p.filesz:
                return address - p.address + p.offset
        raise PsuError(self.path, f"no loadable bytes at address {address:#x}")

    def bytes_at(self, address: int, size: int) -> bytes:
        """The bytes at a file address, fewer where the file ends.  Raises PsuError where no PT_LOAD has any.

        Not data[offset:][:size], which copies all the rest of the file, each time."""
        offset = self.offset_of(address)
        return self.data[offset:offset + size]

    def table(self, s: Section, dtype: list[tuple[str, str]]) -> np.ndarray:
        """A section's contents as a read-only numpy array of records."""
        import numpy as np
        size = np.dtype(dtype).itemsize
        body = self.contents(s)
        return np.frombuffer(body[:len(body) // size * size], dtype=dtype)

    def string(self, strtab: bytes, offset: int) -> str:
        """The NUL-terminated string at `offset` of a string table."""
        end = strtab.find(b"\0", offset)
        if offset > len(strtab) or end < 0:
            raise PsuError(self.path, f"malformed string table: no string at {offset:#x}")
        return strtab[offset:end].decode("utf-8", "surrogateescape")

    @cached_property
    def dynamic(self) -> tuple[tuple[int, int], ...]:
        """(d_tag, d_val) of the dynamic section, without the closing DT_NULLs."""
        p = self.segment(PT_DYNAMIC)
        if p is None:
            return ()
        out = []
        for at in range(p.offset, min(p.offset + p.filesz, len(self.data) - 15), 16):
            tag, val = struct.unpack_from("<qQ", self.data, at)
            if tag == DT_NULL:
                break
            out.append((tag, val))
        return tuple(out)

    def dyn(self, tag: int) -> int | None:
        """The value of the first dynamic entry `tag`, or None."""
        return next((v for t, v in self.dynamic if t == tag), None)

    @cached_property
    def build_id(self) -> bytes:
        """The GNU build-id, or b"" when the file has none."""
        for s in self.sections:
            if s.type == SHT_NOTE:
                body = self.contents(s)
                at = 0
                while at + 12 <= len(body):
                    namesz, descsz, kind = struct.unpack_from("<III", body, at)
                    name = body[at + 12:at + 12 + namesz]
                    desc_at = at + 12 + (namesz + 3) // 4 * 4
                    if kind == 3 and name == b"GNU\0":
                        return body[desc_at:desc_at + descsz]
                    at = desc_at + (descsz + 3) // 4 * 4
        return b""

    def _symbols_of(self, s: Section | None) -> SymbolTable | None:
        if s is None or s.type == SHT_NOBITS or not s.size or not 0 < s.link < len(self.sections):
            return None
        return SymbolTable(self.table(s, SYMBOL_DTYPE), self.contents(self.sections[s.link]), self.path)

    @cached_property
    def symtab(self) -> SymbolTable | None:
        """The full symbol table (`.symtab`), or None in a stripped file."""
        return self._symbols_of(next((s for s in self.sections if s.type == SHT_SYMTAB), None))

    @cached_property
    def dynsym(self) -> SymbolTable | None:
        """The dynamic symbol table, or None."""
        return self._symbols_of(next((s for s in self.sections if s.type == SHT_DYNSYM), None))

    def _dynamic_table(self, at: int, size: int, dtype: list[tuple[str, str]]) -> np.ndarray:
        import numpy as np
        address, length = self.dyn(at), self.dyn(size)
        if address is None or not length:
            return np.zeros(0, dtype=dtype)
        offset = self.offset_of(address)
        item = np.dtype(dtype).itemsize
        if offset + length > len(self.data):
            raise PsuError(self.path, f"cut short: a dynamic table ends at {offset + length:#x}, "
                                      f"the file at {len(self.data):#x}")
        return np.frombuffer(self.data, dtype=dtype, count=length // item, offset=offset)

    @cached_property
    def rela(self) -> np.ndarray:
        """The DT_RELA table: records of RELA_DTYPE."""
        return self._dynamic_table(DT_RELA, DT_RELASZ, RELA_DTYPE)

    @cached_property
    def jmprel(self) -> np.ndarray:
        """The DT_JMPREL table (of a RELA machine): records of RELA_DTYPE."""
        return self._dynamic_table(DT_JMPREL, DT_PLTRELSZ, RELA_DTYPE)

    @cached_property
    def relr(self) -> np.ndarray:
        """The addresses of all words that DT_RELR relocates, ascending as in the table.

        An even entry is an address; an odd one a bitmap of the 63 words that follow what came before (gABI, SHT_RELR)."""
        import numpy as np
        out: list[int] = []
        base = 0
        for entry in self._dynamic_table(DT_RELR, DT_RELRSZ, [("word", "<u8")])["word"].tolist():
            if entry & 1:
                bits, at = entry >> 1, base
                while bits:
                    if bits & 1:
                        out.append(at)
                    bits >>= 1
                    at += 8
                base += 63 * 8
            else:
                out.append(entry)
                base = entry + 8
        return np.array(out, dtype=np.uint64).astype(np.int64)

    @cached_property
    def kept_relocations(self) -> tuple[Relocations, ...]:
        """What `--emit-relocs` left: one element a loaded section that has any."""
        out = []
        for s in self.sections:
            if s.type == SHT_RELA and not s.flags & SHF_ALLOC and 0 < s.info < len(self.sections):
                target = self.sections[s.info]
                symbols = self._symbols_of(self.sections[s.link]) if 0 < s.link < len(self.sections) else None
                if target.flags & SHF_ALLOC and symbols is not None:
                    out.append(Relocations(target, self.table(s, RELA_DTYPE), symbols))
        return tuple(out)
