"""What runs in a process: its instrumented modules and the shim, read from the target's own memory: Target.

Everything comes from memory, so a stripped, deleted or renamed file does not matter; the file on disk is looked at only
to refuse a patch when another build has taken its place (the patch was most likely made for that one).

Odd: glibc relocates the addresses in a loaded dynamic section, musl does not.  `_pointer` takes both.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psu_bin import descriptor
from psu_bin.attach.process import PAGE, Mapping, Process, Unreadable
from psu_bin.attach.shim import Runtime
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.elf import Binary

PT_LOAD, PT_DYNAMIC, PT_NOTE, PT_TLS = 1, 2, 4, 7
PF_X = 1
DT_NULL, DT_STRTAB, DT_SYMTAB, DT_SONAME, DT_DEBUG = 0, 5, 6, 14, 21
NT_GNU_BUILD_ID = 3


@dataclass(frozen=True)
class Module:
    """One instrumented ELF file, loaded."""
    path: str                           # as the target calls it
    start: int                          # run-time address of the ELF header; identifies the module in the process
    end: int
    load_bias: int                      # run-time address = file address + load bias
    machine: int
    build_id: bytes
    executable: bool
    tls: tuple[int, int, int] | None    # (memory size, alignment, file address) of PT_TLS
    descriptor: descriptor.Descriptor

    @property
    def key(self) -> str:
        """Names the module in the notes that psu-bin keeps in the target."""
        return f"{self.start:x}"

    @property
    def far(self) -> bool:
        """Whether its stubs are out of reach of direct calls."""
        return bool(self.descriptor.flags & descriptor.MODULE_FAR)

    def stub(self, index: int) -> int:
        """Run-time address of function `index`'s stub."""
        return self.descriptor.stub(index) + self.load_bias

    def slot(self, index: int) -> int:
        """Run-time address of function `index`'s slot."""
        return self.descriptor.slot(index) + self.load_bias

    def original(self, index: int) -> int:
        """Run-time address of function `index`'s original code."""
        return self.descriptor.functions[index].original + self.load_bias


@dataclass(frozen=True)
class Image:
    """An ELF file found in memory, instrumented or not."""
    mapping: Mapping
    end: int
    load_bias: int
    machine: int
    segments: tuple[tuple[int, int, int, int], ...]  # type, address, memsz, align
    dynamic: dict[int, int]


@dataclass(frozen=True)
class Target:
    """A process with a shim in it."""
    process: Process
    maps: tuple[Mapping, ...]
    modules: tuple[Module, ...]
    runtime_address: int
    paths: tuple[str, ...]              # every mapped ELF file

    def runtime(self) -> Runtime:
        """The runtime's present state."""
        return Runtime.read(self.process, self.runtime_address)


def read(process: Process) -> Target:
    """Find modules and shim in `process`.

    Raises PsuError when it is not instrumented, of another architecture, or when a module's file was replaced."""
    maps = process.maps()
    images = [found for m in maps if m.offset == 0 and m.inode and m.prot[0] == "r"
              and (found := image(process, m, maps)) is not None]
    modules = [m for i in images if descriptor.DT_PSU in i.dynamic and (m := _module(process, i)) is not None]
    shims = [i for i in images if _soname(process, i) == descriptor.SHIM_SONAME]
    if not modules or not shims:
        process.maps()      # what we miss may be gone because the process is ending, which this says
        if not process.alive():
            raise process.gone()
    if not modules:
        raise PsuError(process.where, f"is not instrumented: {executable(process)}",
                       "run psu-bin instrument on its program and start the result")
    if not shims:
        raise PsuError(process.where, f"has no {descriptor.SHIM_SONAME} loaded")
    if len(shims) > 1:
        raise PsuError(process.where, f"has {len(shims)} shims: " + ", ".join(s.mapping.path for s in shims),
                       "let all modules find the same libpsu_shim.so")
    runtime = _symbol(process, shims[0], "psu_runtime")
    return Target(process, maps, tuple(modules), runtime, tuple(i.mapping.path for i in images))


def check_files(target: Target, modules: tuple[Module, ...]) -> None:
    """Refuse when another build replaced the file of one of `modules` since it was loaded."""
    from psu_bin.elf import Binary
    for m in modules:
        mapping = next(x for x in target.maps if x.start == m.start)
        path = target.process.file(m.path)
        try:
            now = os.stat(path)
        except OSError:
            continue  # removed, nothing took its place
        if now.st_ino == mapping.inode and not mapping.deleted:
            continue
        if Binary.read(path).build_id != m.build_id:
            raise PsuError(m.path, "was replaced on disk since the process started: "
                                   f"it runs build-id {m.build_id.hex() or 'none'}",
                           "make the patch for the build that runs, or restart the program")


def file(target: Target, module: descriptor.Descriptor) -> Binary | None:
    """The file of the module with this descriptor; None where it is gone, unreadable or another build by now."""
    from psu_bin.elf import Binary
    m = next(m for m in target.modules if m.descriptor is module)
    try:
        found = Binary.read(target.process.file(m.path))
    except PsuError:
        return None
    return found if found.build_id == m.build_id else None


def executable(process: Process) -> str:
    """Its path, as process.maps() has it: also where the file is gone."""
    try:
        return os.readlink(process.path("exe")).removesuffix(" (deleted)")
    except OSError:
        return "?"


def image(process: Process, m: Mapping, maps: tuple[Mapping, ...]) -> Image | None:
    """The ELF file that is loaded from `m` on; None when there is none, or it is only mapped.  Raises PsuError for a 32-bit one."""
    try:
        return _image(process, m, maps)
    except Unreadable:      # a file that became shorter since it was mapped, a device, or gone since the mappings were listed
        return None


def _image(process: Process, m: Mapping, maps: tuple[Mapping, ...]) -> Image | None:
    head = process.read(m.start, min(PAGE, m.end - m.start))
    if head[:4] != b"\x7fELF" or len(head) < 64:
        return None
    if head[4] != 2:
        if m.path == executable(process):
            raise PsuError(process.where, "is a 32-bit program", "psu-bin handles x86-64 and AArch64")
        return None
    (kind, machine) = struct.unpack_from("<HH", head, 16)
    (phoff,) = struct.unpack_from("<Q", head, 32)
    (phentsize, phnum) = struct.unpack_from("<HH", head, 54)
    if kind not in (2, 3) or phentsize != 56:
        return None
    table = process.read(m.start + phoff, 56 * phnum)
    segments, code = [], []
    for t, flags, _, va, _, _, memsz, align in struct.iter_unpack("<IIQQQQQQ", table):
        segments.append((t, va, memsz, align))
        if t == PT_LOAD and flags & PF_X:
            code.append(va)
    loads = [s for s in segments if s[0] == PT_LOAD]
    if not loads:
        return None
    bias = m.start - loads[0][1] // PAGE * PAGE
    end = bias + max(va + size for _, va, size, _ in loads)
    # A file that is merely mapped (read by the program as data) has only one mapping: nothing else there, or nothing that can be executed.
    mine = [x for x in maps if x.path == m.path or not x.path or x.path.startswith("[anon")]
    if not any(x.start <= bias + loads[-1][1] < x.end for x in mine) or not all(
            any("x" in x.prot and x.start <= bias + va < x.end for x in mine) for va in code):
        return None
    dynamic: dict[int, int] = {}
    for t, va, size, _ in segments:
        if t == PT_DYNAMIC:
            raw = process.read(bias + va, size // 16 * 16)
            for tag, value in struct.iter_unpack("<QQ", raw):
                if tag == DT_NULL:
                    break
                dynamic.setdefault(tag, value)
    return Image(m, end, bias, machine, tuple(segments), dynamic)


def _pointer(image: Image, tag: int) -> int:
    value = image.dynamic[tag]
    return value if value >= image.mapping.start else value + image.load_bias


def _soname(process: Process, image: Image) -> str:
    if DT_SONAME not in image.dynamic or DT_STRTAB not in image.dynamic:
        return ""
    try:
        return process.cstring(_pointer(image, DT_STRTAB) + image.dynamic[DT_SONAME], 256)
    except PsuError:
        return ""


def _symbol(process: Process, image: Image, name: str) -> int:
    """Run-time address of an exported symbol of the shim, whose string table follows its symbol table."""
    if not {DT_SYMTAB, DT_STRTAB} <= image.dynamic.keys():
        raise PsuError(image.mapping.path, "is not psu-bin's shim: no symbol table")
    symtab, strtab = _pointer(image, DT_SYMTAB), _pointer(image, DT_STRTAB)
    raw = process.read(symtab, max(0, min(strtab - symtab, 1 << 16)) // 24 * 24)
    for st_name, _, _, shndx, value, _ in struct.iter_unpack("<IBBHQQ", raw):
        if shndx and process.cstring(strtab + st_name, 64) == name:
            return value + image.load_bias
    raise PsuError(image.mapping.path, f"is not psu-bin's shim: no symbol {name}")


def _build_id(process: Process, image: Image) -> bytes:
    for kind, va, size, align in image.segments:
        if kind != PT_NOTE:
            continue
        body = process.read(image.load_bias + va, size)
        at, unit = 0, 8 if align == 8 else 4
        while at + 12 <= len(body):
            namesz, descsz, note = struct.unpack_from("<III", body, at)
            start = at + 12 + -(-namesz // 4) * 4
            if note == NT_GNU_BUILD_ID and body[at + 12:at + 16] == b"GNU\0":
                return body[start:start + descsz]
            at = start + -(-descsz // unit) * unit
    return b""


def _module(process: Process, image: Image) -> Module | None:
    """None: it is being unloaded."""
    path = image.mapping.path
    try:
        data = descriptor.gather(lambda at, size: process.read(at + image.load_bias, size),
                                 image.dynamic[descriptor.DT_PSU], path)
        build_id = _build_id(process, image)
    except Unreadable:
        return None
    tls = next(((size, align, va) for kind, va, size, align in image.segments if kind == PT_TLS), None)
    return Module(path, image.mapping.start, image.end, image.load_bias, image.machine, build_id,
                  # A program that was started as `ld.so PROGRAM` is not what the kernel calls its executable.
                  path == executable(process) or DT_DEBUG in image.dynamic, tls, descriptor.decode(data, path))
