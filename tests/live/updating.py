"""Updates at a high rate: versions of one patch made from one compilation, attached by this very process.

A patch is compiled once, with V the number MARK; every version is a copy of the object file with another number in its place
(AArch64 has it in two instructions, a half in each).
So an update costs the milliseconds of an attach, and a test can make hundreds.

    python updating.py PID OBJECT...        the same from another process, which may be in a namespace: one line "patch N
                                            WARNINGS" for each object, in turn
"""

from __future__ import annotations

import sys
from pathlib import Path

from psu_bin.attach.transaction import AttachResult, attach

MARK = 0x12345678
EM_AARCH64 = 183
MOVZ, MOVK_16 = 0x52800000, 0x72A00000      # w0, #0 and w0, #0, lsl #16: a half in bits 5 to 20, the register below
X_REGISTER = 1 << 31
# Functions without unwind entries could have any convention: compiled like this, all of a program's get full gates.
FULL = "-fno-asynchronous-unwind-tables"


def with_number(template: bytes, v: int) -> bytes:
    """An object file with `v` in the place of MARK."""
    if int.from_bytes(template[18:20], "little") != EM_AARCH64:
        return template.replace(MARK.to_bytes(4, "little"), v.to_bytes(4, "little"))
    for form, shift in ((MOVZ, 0), (MOVK_16, 16)):
        for register in (*range(31), *range(X_REGISTER, X_REGISTER + 31)):
            old, new = (form | register | (n >> shift & 0xFFFF) << 5 for n in (MARK, v))
            template = template.replace(old.to_bytes(4, "little"), new.to_bytes(4, "little"))
    return template


class Versions:
    """Versions of testprogs/NAME/SOURCE, where the number V appears as a 32-bit constant of code and nowhere else."""

    def __init__(self, lab, name: str, source: str = "patch.c", *flags: str, cc: str = "gcc") -> None:
        self.template = lab.patch(name, source, f"-DV={MARK}", *flags, cc=cc, out="template.o").read_bytes()
        self.path: Path = lab.folder / "version.o"
        assert with_number(self.template, 0) != self.template

    def object(self, v: int, path: Path | None = None) -> Path:
        """The object file of version v; it is overwritten by the next call."""
        path = path or self.path
        path.write_bytes(with_number(self.template, v))
        return path

    def attach(self, pid: int, v: int) -> AttachResult:
        """Make version v current in process `pid`."""
        return attach(pid, (self.object(v),))

    def run(self, pid: int, first: int, last: int) -> None:
        """Attach the versions first to last, one after the other; no thread is stopped after the first."""
        for v in range(first, last + 1):
            stopped = self.attach(pid, v).threads_stopped
            assert v == first or not stopped

    def objects(self, first: int, last: int) -> list[Path]:
        """The object files of the versions first to last, for who cannot write any."""
        return [self.object(v, self.path.with_name(f"version{v}.o")) for v in range(first, last + 1)]


def main() -> None:
    """Attach each object to the process, one after the other."""
    for path in sys.argv[2:]:
        result = attach(int(sys.argv[1]), (Path(path),))
        print("patch", result.patch, *result.warnings, flush=True)


if __name__ == "__main__":
    main()
