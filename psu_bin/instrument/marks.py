"""Whether a file asks that indirect branches meet marks (endbr64, bti): its GNU property note.

Stubs are reached by indirect calls, so they must begin with a mark there.
Specification: the processor's psABI, "Program Property"; Linux gABI extensions for the note's layout.
"""

from __future__ import annotations

import struct

from psu_bin import elf
from psu_bin.arch import Arch
from psu_bin.elf import Binary

NT_GNU_PROPERTY_TYPE_0 = 5
_HEAD = struct.pack("<I", NT_GNU_PROPERTY_TYPE_0) + b"GNU\0"


def wanted(binary: Binary, arch: Arch) -> bool:
    """Whether the file's properties have the architecture's bit for marks."""
    kind, bit = arch.branch_marks
    for p in binary.segments:
        body = binary.data[p.offset:p.offset + p.filesz] if p.type in (elf.PT_NOTE, elf.PT_GNU_PROPERTY) else b""
        if body[8:16] != _HEAD:
            continue
        at, end = 16, min(16 + int.from_bytes(body[4:8], "little"), len(body))
        while at + 12 <= end:
            found, size, value = struct.unpack_from("<III", body, at)
            if found == kind and size == 4:
                return bool(value & bit)
            at += 8 + -(-size // 8) * 8
    return False
