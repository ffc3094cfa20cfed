"""The instrument command as a list of passes: read, plan, write, read back.

Files are the only effects: the output appears under its name complete and verified, or not at all.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from psu_bin import arch as arch_package
from psu_bin import descriptor, elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import dynamic, soundness
from psu_bin.instrument.plan_types import NotUpdatable, Plan


@dataclass(frozen=True)
class InstrumentResult:
    output: Path
    shim: Path
    functions: int
    call_sites: int
    not_updatable: tuple[NotUpdatable, ...]


def instrument(path: Path, output: Path | None, include: tuple[str, ...], exclude: tuple[str, ...],
               debug_file: Path | None, stub_symbols: bool = False) -> InstrumentResult:
    """Write an updatable copy of the program or shared library at `path`, and the shim beside it.

    output: default `path`.psu.  include, exclude: shell patterns of function names.
    debug_file: where the symbols are when the program is stripped.  stub_symbols: name each stub in the symbol table.
    Raises PsuError; then nothing was written."""
    binary, arch, debug = _read(path, debug_file)
    output = output or path.with_name(path.name + ".psu")
    try:
        if output.exists() and os.path.samefile(path, output):
            raise PsuError(str(output), "is the input: it is never overwritten", "give another name with -o")
    except OSError as e:
        raise PsuError(str(output), f"cannot be written: {e.strerror}") from e
    if output.is_dir():
        raise PsuError(str(output), "is a folder", "give the name of the file to write with -o")
    if output.exists() and not output.is_file():           # a device, say: it would be replaced
        raise PsuError(str(output), "is not a regular file", "give another name with -o")
    if output.name == descriptor.SHIM_SONAME:
        raise PsuError(str(output), "is the name of the shim", "give another name with -o")
    shim = shim_file(arch)
    beside = output.parent / descriptor.SHIM_SONAME
    planned, data = _rewritten(binary, arch, debug, include, exclude, stub_symbols, str(output))
    _other_shim(beside, arch)
    try:
        written = [(output, data, path.stat().st_mode & 0o7777 & ~0o6000)]
        if not (beside.exists() and (os.path.samefile(shim, beside) or beside.read_bytes() == shim.read_bytes())):
            written.append((beside, shim.read_bytes(), 0o755))
        _replace(written)
    except OSError as e:
        raise PsuError(str(output), f"cannot be written: {e.strerror}") from e
    return InstrumentResult(output, beside, len(planned.functions), planned.call_sites, planned.not_updatable)


def rewritten(path: Path, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> bytes:
    """What instrument would write for `path`, read back and verified.  Raises PsuError as instrument."""
    binary, arch, debug = _read(path, None)
    return _rewritten(binary, arch, debug, include, exclude, False, str(path))[1]


def _rewritten(binary: Binary, arch: Arch, debug: Binary | None, include: tuple[str, ...], exclude: tuple[str, ...],
               stub_symbols: bool, where: str) -> tuple[Plan, bytes]:
    from psu_bin.instrument import cut, image, plan, verify
    planned = plan.make(binary, arch, include, exclude, debug)
    symbols, files = plan.symbols(binary, planned, debug)
    data = image.build(binary, arch, planned, symbols, files, stub_symbols)
    verify.verify(binary, arch, planned, symbols, files, data, where)
    return planned, cut.shorten(Binary(data, where))


def analyze(path: Path, include: tuple[str, ...], debug_file: Path | None) -> Plan:
    """What instrument would do.  Raises PsuError as instrument."""
    from psu_bin.instrument import plan
    binary, arch, debug = _read(path, debug_file)
    return plan.make(binary, arch, include, (), debug)


def shim_file(arch: Arch) -> Path:
    """The shim of this installation for `arch`: in a folder of that name, or the one for this machine.

    Raises PsuError when it was not built."""
    folder = Path(__file__).resolve().parent.parent / "shim"
    own = folder / arch.name / descriptor.SHIM_SONAME
    path = own if own.exists() else folder / descriptor.SHIM_SONAME
    if not path.exists():
        raise PsuError(str(path), "is missing: psu-bin was not installed completely", "pip install . builds it")
    with open(path, "rb") as f:
        if int.from_bytes(f.read(20)[18:], "little") != arch.machine:
            raise PsuError(str(own), f"is missing: the shim for programs of {arch.name}",
                           f"make -C shim CC={arch.name}-linux-gnu-gcc OUT={own}")
    return path


def _other_shim(beside: Path, arch: Arch) -> None:
    """Raise PsuError when what is in the shim's place beside the output is not to be replaced."""
    if not os.path.lexists(beside):
        return
    if not beside.is_file():
        raise PsuError(str(beside), "is not a regular file, and the shim must be there", "write to another folder with -o")
    try:
        with open(beside, "rb") as f:
            head = f.read(20)
    except OSError as e:
        raise PsuError(str(beside), f"cannot be read: {e.strerror}", "the shim must be there") from e
    if head[:4] == b"\x7fELF" and int.from_bytes(head[18:], "little") != arch.machine:
        raise PsuError(str(beside), "is the shim for programs of another architecture", "write to another folder with -o")


def _read(path: Path, debug_file: Path | None) -> tuple[Binary, Arch, Binary | None]:
    binary = Binary.read(path)
    where = str(path)
    arch = arch_package.for_machine(binary.machine, where)
    if binary.type == elf.ET_REL:
        raise PsuError(where, "is a relocatable object", "instrument takes linked programs; objects are for attach")
    if binary.type == elf.ET_CORE:
        raise PsuError(where, "is a core dump", "give the program that dumped it")
    if binary.type not in (elf.ET_EXEC, elf.ET_DYN):
        raise PsuError(where, f"is no program or shared library: ELF type {binary.type}")
    if binary.dyn(descriptor.DT_PSU) is not None:
        raise PsuError(where, "is instrumented already", "instrument the file that it was made from")
    if binary.dynsym and "psu_runtime" in map(binary.dynsym.name, range(min(len(binary.dynsym.entries), 100))):
        raise PsuError(where, "is psu-bin's own shim", "instrument the programs beside it")
    if binary.segment(elf.PT_DYNAMIC) is None or _static_pie(binary):
        raise PsuError(where, "is statically linked: it cannot load the shim", "link it dynamically")
    soundness.check(binary)
    debug = None
    if debug_file:
        from psu_bin.instrument import debuglink
        debug = debuglink.load(binary, debug_file)
    return binary, arch, debug


def _static_pie(binary: Binary) -> bool:
    """Whether it is a program that nobody loads libraries for, though it has a dynamic section."""
    program = (binary.dyn(dynamic.DT_FLAGS_1) or 0) & dynamic.DF_1_PIE or binary.dyn(dynamic.DT_DEBUG) is not None
    return bool(program) and binary.segment(elf.PT_INTERP) is None


def _replace(files: list[tuple[Path, bytes, int]]) -> None:
    """Write (path, contents, mode) so that all of them appear complete: processes that run old ones keep those."""
    made: list[str] = []
    try:
        for path, data, mode in files:
            handle, temporary = tempfile.mkstemp(prefix=".psu-", dir=path.parent)
            made.append(temporary)
            with os.fdopen(handle, "wb") as f:
                f.write(data)
            os.chmod(temporary, mode)
        for path, _, _ in reversed(files):       # the program last: where it is, its shim is
            os.replace(made.pop(), path)
    finally:
        for temporary in made:
            os.unlink(temporary)
