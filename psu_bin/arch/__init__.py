"""One value an architecture: Arch.  Generic code takes one and never asks which machine it is on.

To add an architecture: write NAME.py (facts, stubs, encodings), NAME_scan.py (reading compiled code: what instrument
needs) and NAME_link.py (relocating patch objects: what attach needs), each with the functions of x86_64's, and add it
to for_machine.  The last two are imported on first use, because attach must start fast and never scans.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from psu_bin.errors import PsuError

EM_X86_64 = 62


@dataclass(frozen=True)
class Arch:
    """Facts and functions of one architecture.  Addresses are file or run-time addresses alike: only differences count."""
    name: str
    machine: int                                  # e_machine
    elf_class: int
    page_size: int                                # largest page size of the psABI: segment alignment
    stub_size: Callable[[int], int]               # module flags -> bytes of one stub
    stub: Callable[[int, int, int], bytes]        # (stub address, slot address, module flags) -> stub_size bytes
    jump: Callable[[int, int], bytes]             # (from, to) -> unconditional direct jump, JUMP_SIZE bytes
    jump_size: int
    padding: bytes                                # one byte that traps, for room that nothing may run into
    reroute: Callable[..., bytes]                 # (Reroute, field address, target, old field bytes) -> new field bytes
    relative: int                                 # R_*_RELATIVE
    stub_cfi: bytes                               # CIE initial instructions that describe a stub's frame

    @property
    def scan(self) -> ModuleType:
        """Reading compiled code (instrument)."""
        return importlib.import_module(f"psu_bin.arch.{self.name}_scan")

    @property
    def link(self) -> ModuleType:
        """Relocating patch objects (attach)."""
        return importlib.import_module(f"psu_bin.arch.{self.name}_link")

    @property
    def borrow(self) -> ModuleType:
        """Borrowing a thread's registers to start the agent (attach)."""
        return importlib.import_module(f"psu_bin.arch.{self.name}_borrow")


def for_machine(machine: int, where: str) -> Arch:
    """The architecture with ELF machine number `machine`.  Raises PsuError, naming `where`, for any other."""
    if machine == EM_X86_64:
        from psu_bin.arch import x86_64
        return x86_64.ARCH
    raise PsuError(where, f"compiled for another architecture: ELF machine {machine}",
                   "psu-bin handles x86-64")
