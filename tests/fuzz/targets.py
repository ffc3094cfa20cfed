"""What is fuzzed: for each reader of psu-bin, how its input is damaged and how it is called.

A case is only bytes, so that a failing one can be kept in a file and tried again.
"""

from __future__ import annotations

import functools
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import corpus
import running
import searching
from damage import damaged, damaged_bytes
from memory import Bytes, mapped
from recorded import recording

from psu_bin import arch, descriptor, elf
from psu_bin.attach import imports, linker, patch, target, typecheck
from psu_bin.attach.meta import Notes
from psu_bin.attach.process import Mapping
from psu_bin.attach.transaction import views
from psu_bin.attach.view import ModuleView
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import driver
from psu_bin.regress import scenario

ROOT = Path(__file__).resolve().parents[2]
BIAS, SHIM_BIAS = 0x5555_5555_0000, 0x7FFF_F000_0000
_folder = tempfile.TemporaryDirectory(prefix="psu-fuzz-")
FOLDER = Path(_folder.name)


@dataclass(frozen=True)
class Target:
    """make: a damaged input; run: hands it to psu-bin, PsuError when it is refused."""
    make: Callable[[Random], bytes]
    run: Callable[[bytes], None]


def _any(inputs: tuple[bytes, ...], chance: Random) -> bytes:
    return damaged(chance, chance.choice(inputs), inputs)


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


# ---- instrument and analyze -----------------------------------------------------------------------------------------

def run_instrument(data: bytes) -> None:
    """Instrument it; what is written is read back as attach reads it: from the file and from memory."""
    read_back(driver.rewritten(_file("program", data)))


def read_back(data: bytes) -> None:
    """An instrumented program is found in memory with the descriptor that its file has."""
    b = Binary(data, "written")
    at = b.dyn(descriptor.DT_PSU)
    assert at is not None
    wanted = descriptor.decode(descriptor.gather(b.bytes_at, at, "written"), "written")
    bias = BIAS if b.type == elf.ET_DYN else 0
    modules = target.read(process_of(data, bias)).modules
    assert [m.descriptor for m in modules] == [wanted]
    assert modules[0].load_bias == bias


@functools.cache
def _shim() -> tuple[list, list]:
    path = driver.shim_file(arch.for_machine(elf.EM_X86_64, "shim"))
    return mapped(path.read_bytes(), "/libpsu_shim.so", SHIM_BIAS)


def process_of(data: bytes, bias: int, layout: Binary | None = None) -> Bytes:
    """A process in which an instrumented program and the shim were just mapped."""
    ranges, mappings = mapped(data, os.readlink("/proc/self/exe"), bias, layout)     # Bytes has our process number
    return Bytes(ranges + _shim()[0], mappings + _shim()[1])


def run_analyze(data: bytes) -> None:
    driver.analyze(_file("program", data), ("*a*", "chosen"), None)


def run_debug_file(data: bytes) -> None:
    driver.analyze(_file("program", corpus.stripped()[0]), (), _file("debug", data))


# ---- what attach reads ----------------------------------------------------------------------------------------------

@functools.cache
def instrumented(which: int = 0) -> bytes:
    return driver.rewritten(_file("intact", corpus.programs()[which]))


def _bias(data: bytes) -> int:
    return BIAS if Binary(data, "intact").type == elf.ET_DYN else 0


@functools.cache
def _views(which: int) -> tuple[ModuleView, ...]:
    data = instrumented(which)
    return views(target.read(process_of(data, _bias(data))), Notes())


@functools.cache
def _intact_patch() -> patch.PatchObject:
    return patch.parse(Binary(corpus.patches()[0], "intact.o"))


def link(p: patch.PatchObject, modules: tuple[ModuleView, ...]) -> None:
    """Both passes of the linker, with rooms right behind the module."""
    demand = linker.plan([p], modules)
    placement, resolved = [], []
    for m in demand.modules:
        at = m.view.load_bias + (1 << 24)

        def room(size: int) -> int:
            nonlocal at
            start, at = at, at + -(-max(size, 1) // 4096) * 4096 + 4096
            return start
        placement.append(linker.ModulePlacement(tuple(room(o.size) for o in m.objects),
                                                tuple(1 << 26 if o.mirrored else 0 for o in m.objects),
                                                room(m.constants.size), room(m.variables.size), tuple(room(64) for _ in m.stubs)))
        resolved.append({name: 0x7FFF_0000_0000 + 64 * n for n, name in enumerate(m.names)})
    linker.relocate(demand, placement, resolved)


def run_patch(data: bytes) -> None:
    """Read a patch object and link it to a program of the same architecture, of either kind."""
    p = patch.parse(Binary(data, "patch.o"))
    if p.machine == elf.EM_AARCH64 and corpus.aarch64_patches():
        link(p, _views(len(corpus.programs()) - 1))
    else:
        refused = []
        for which in (0, 1):
            try:
                link(p, _views(which))
            except PsuError as e:
                refused.append(e)
        if refused:
            raise refused[0]


def _packed_descriptor() -> bytes:
    data = instrumented()
    b = Binary(data, "intact")
    return descriptor.gather(b.bytes_at, b.dyn(descriptor.DT_PSU) or 0, "intact")


def make_descriptor(chance: Random) -> bytes:
    """A section of a program; mostly damaged before it is packed, because what is packed has a checksum."""
    packed = _packed_descriptor()
    if not chance.randrange(4):
        return damaged_bytes(chance, packed)
    header = list(descriptor.HEADER.unpack_from(packed))
    body = damaged_bytes(chance, descriptor.unpack(packed[descriptor.HEADER.size:], header[10]))
    again = descriptor.pack(body)
    header[9] = len(again)
    if chance.randrange(8):
        header[10] = len(body)
    if chance.randrange(8):
        header[11] = zlib.crc32(body)
    if not chance.randrange(4):
        header[chance.choice((3, 4, 5, 6, 7, 8, 12, 14, 15))] = chance.choice((0, 1, 2, 7, 0xFFFFFFFF))
    return descriptor.HEADER.pack(*header) + again


def run_descriptor(data: bytes) -> None:
    d = descriptor.decode(data, "module")
    view = _views(0)[0]
    link(_intact_patch(), (replace(view, descriptor=d),))


def make_loaded(chance: Random) -> bytes:
    return damaged(chance, instrumented(), (instrumented(), instrumented(1), instrumented(2)))


def run_loaded(data: bytes) -> None:
    """A process whose memory is damaged: the program was mapped by what its intact headers said."""
    intact = instrumented()
    process = process_of(data.ljust(len(intact), b"\0")[:len(intact)], _bias(intact), Binary(intact, "intact"))
    link(_intact_patch(), views(target.read(process), Notes()))


def run_library(data: bytes) -> None:
    """A library of the target, whose dynamic symbols say what is a function."""
    path = _file("library", data)
    maps = (Mapping(BIAS, BIAS + (1 << 20), "r-xp", 0, 1, str(path), False),)
    found = [name for name in ("leaf", "pointers", "rand", "") if imports.is_function(Bytes([], []), maps, name, BIAS + 64)]
    if found != ["leaf"]:
        raise PsuError("library", f"its functions are {found}")


# ---- scenarios ------------------------------------------------------------------------------------------------------

@functools.cache
def _scenarios() -> tuple[bytes, ...]:
    """The scenarios of testprogs; the files that they name exist, empty, in the folder from which they are read."""
    scenarios = sorted((ROOT / "testprogs").glob("*/*.toml"))
    for source in (path for folder in {s.parent for s in scenarios} for path in folder.iterdir() if path.is_file()):
        (FOLDER / source.name).touch()
    return tuple(p.read_bytes() for p in scenarios)


def make_scenario(chance: Random) -> bytes:
    """Bytes, or whole lines, or values are others."""
    inputs = _scenarios()
    text = chance.choice(inputs)
    if chance.randrange(2):
        return damaged_bytes(chance, text)
    lines = text.split(b"\n")
    others = chance.choice(inputs).split(b"\n")
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(lines))
        how = chance.randrange(4)
        if how == 0:
            lines[at] = chance.choice(others)
        elif how == 1:
            lines.insert(at, chance.choice(lines))
        elif how == 2 and b"=" in lines[at]:
            lines[at] = lines[at].split(b"=")[0] + b"= " + chance.choice(VALUES)
        elif len(lines) > 1:
            del lines[at]
    return b"\n".join(lines)


VALUES = (b"0", b"-1", b"1e400", b"nan", b"inf", b"9" * 5000, b"true", b'""', b"[]", b"{}", b"[[]]", b'["", 1]', b'"("',
          b'"\\u0000"',
          b"1979-05-27", b"07:32:00", b"[" * 2000, b"{a = " * 2000, b'"' + b"x" * 5000 + b'"', b'"(a+)+$"', b'"../"', b'"/"',
          b'["cc", "cc"]', b'"\\ud800"', b"0x7fffffffffffffff", b'"' + b"(" * 2000 + b")" * 2000 + b'"')


def run_scenario(data: bytes) -> None:
    _scenarios()
    scenario.read(_file("scenario.toml", data))


def run_types(data: bytes) -> None:
    """Debug information of a patch, and of a program, against the undamaged other."""
    damaged_one = patch.parse(Binary(data, "patch.o"))
    whole = _typed()
    functions = [SimpleNamespace(new=False, function=f) for f in whole.functions]
    for mine, theirs in ((damaged_one, whole), (whole, damaged_one)):
        view: Any = SimpleNamespace(path="program", file=lambda theirs=theirs: theirs.source)
        for problem in typecheck.problems([(mine, view, functions)]):        # type: ignore[list-item]
            raise problem


@functools.cache
def _typed() -> patch.PatchObject:
    return patch.parse(Binary(corpus.typed()[0], "intact.o"))


TARGETS: dict[str, Target] = {
    "instrument": Target(lambda chance: _any(corpus.programs(), chance), run_instrument),
    "analyze": Target(lambda chance: _any(corpus.programs(), chance), run_analyze),
    "debug-file": Target(lambda chance: damaged(chance, corpus.stripped()[1], corpus.programs()), run_debug_file),
    "patch": Target(lambda chance: _any(corpus.patches() + corpus.aarch64_patches(), chance), run_patch),
    "types": Target(lambda chance: _any(corpus.typed(), chance), run_types),
    "descriptor": Target(make_descriptor, run_descriptor),
    "loaded": Target(make_loaded, run_loaded),
    "library": Target(lambda chance: damaged(chance, corpus.programs()[2], corpus.programs()), run_library),
    "memory": Target(running.make_memory, running.run_memory),
    "proc": Target(running.make_proc, running.run_proc),
    "surplus": Target(searching.make_search, searching.run_search),
    "seccomp": Target(running.make_filter, running.run_filter),
    "scenario": Target(make_scenario, run_scenario),
}

# Inputs that must be taken.
INTACT: dict[str, Callable[[], tuple[bytes, ...]]] = {
    "instrument": corpus.programs,
    "analyze": corpus.programs,
    "debug-file": lambda: corpus.stripped()[1:],
    "patch": lambda: corpus.patches()[:1] + corpus.patches()[2:3] + corpus.aarch64_patches()[:1],
    "types": lambda: corpus.typed()[:1],
    "descriptor": lambda: (_packed_descriptor(),),
    "loaded": lambda: (instrumented(),),
    "library": lambda: corpus.programs()[2:3],
    "memory": lambda: (recording().pack(),),
    "proc": lambda: tuple(kind + b"\0" + text for kind, text in running.TEXTS),
    "surplus": searching.intact,
    "seccomp": lambda: running.FILTERS[1:],
    "scenario": _scenarios,
}


def prepare() -> None:
    """Compile, run and record everything, before memory is limited."""
    for inputs in INTACT.values():
        inputs()
    for which in range(len(corpus.programs())):
        instrumented(which)

