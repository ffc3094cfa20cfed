"""The separate debug file of a stripped program: is it the right one, and does it have what is missing.

The build-id says so where both files have one; else the checksum in `.gnu_debuglink` of the program.
Specification: GDB manual, "Debugging Information in Separate Files".
"""

from __future__ import annotations

import zlib
from pathlib import Path

from psu_bin.elf import Binary
from psu_bin.errors import PsuError

# Where debug packages of distributions put the file of a build-id.
_BY_BUILD_ID = "/usr/lib/debug/.build-id/{}/{}.debug"


def load(binary: Binary, path: Path) -> Binary:
    """The debug file at `path` of `binary`.  Raises PsuError when it is another program's, or names no functions."""
    debug, where = Binary.read(path), str(path)
    if debug.machine != binary.machine:
        raise PsuError(where, "is for another architecture")
    if binary.build_id and debug.build_id:
        if binary.build_id != debug.build_id:
            raise PsuError(where, f"belongs to another build: build-id {debug.build_id.hex()}",
                           f"{binary.path} has {binary.build_id.hex()}")
    else:
        expected = _checksum(binary)
        if expected is not None and zlib.crc32(debug.data) != expected:
            raise PsuError(where, "belongs to another build: its checksum is not the one that the program names",
                           f"debug link in {binary.path}")
    if debug.symtab is None:
        raise PsuError(where, "has no symbol table", "it was stripped too, or made with --strip-all")
    return debug


def usual_place(binary: Binary) -> Path | None:
    """Where a distribution's debug package would have put the debug file, if it is there."""
    name = binary.build_id.hex()
    path = Path(_BY_BUILD_ID.format(name[:2], name[2:]))
    return path if name and path.is_file() else None


def _checksum(binary: Binary) -> int | None:
    """The CRC-32 of the debug file that `.gnu_debuglink` records behind the file's name."""
    section = binary.section(".gnu_debuglink")
    body = binary.contents(section) if section else b""
    return int.from_bytes(body[-4:], "little") if len(body) >= 8 else None
