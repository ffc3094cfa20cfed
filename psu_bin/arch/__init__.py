"""One value an architecture: Arch.  Generic code takes one and never asks which machine it is on.

To add an architecture: write NAME.py (facts, stubs, encodings), NAME_scan.py (reading compiled code: what instrument
needs) and NAME_link.py (relocating patch objects: what attach needs), each with the functions of x86_64's, and add it
to for_machine.  The last two are imported on first use, because attach must start fast and never scans.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from psu_bin.errors import PsuError

if TYPE_CHECKING:
    import numpy as np

EM_X86_64, EM_AARCH64 = 62, 183


class Waiting(NamedTuple):
    """/proc/PID/task/TID/syscall of a thread that does not run."""
    number: int           # of the system call it waits in; -1: in none
    stack_pointer: int
    program_counter: int  # of the instruction behind the call's
    first: int = 0        # its first argument

    @property
    def nowhere(self) -> bool:
        """Whether the thread executes nothing of the program, now or later: it has ended, or is one of the kernel's own
        (io_uring's workers; copy_thread() in arch/*/kernel/process.c)."""
        return not self.stack_pointer and not self.program_counter


class Jump(NamedTuple):
    """An unconditional jump of a fixed size."""
    size: int
    encode: Callable[[int, int], bytes]           # (from, to) -> size bytes; PsuError: out of reach


@dataclass(frozen=True)
class FieldKind:
    """How a kind of reference (plan_types.Reroute) is encoded, for many at a time: programs have 100,000 of them.

    at: int64[n], addresses of the fields; field: uint8[n, size], their bytes; target: int64[n], where they lead."""
    size: int
    target: Callable[[np.ndarray, np.ndarray], np.ndarray]        # (at, field) -> target
    # (at, field, target) -> (new field, bool[n]: it fits)
    encode: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
    # field -> int64[n]: the bits of the target that it holds, where that is not all of them
    holds: Callable[[np.ndarray], np.ndarray] | None = None

    def differs(self, field: np.ndarray, found: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """bool[n]: `found`, decoded from `field`, is not what a field for `expected` gives."""
        wrong: np.ndarray = found != expected if self.holds is None else (found ^ expected) & self.holds(field) != 0
        return wrong


@dataclass(frozen=True)
class SiteForm:
    """How direct calls are turned from a function's entry to its stub, and back, by one store each (instrument/sites.py).

    step: how far apart the places are that a turned call may lead to, counted from where it leads now; 0: the stub of the
    table, unless that is out of reach (descriptor.MODULE_FAR).  Else it leads to a stub of its own (`stub`), at the function's
    entry and a multiple of `step` (attach/mirrors.py)."""
    kind: str                                     # name of the plan_types.Reroute of such a field
    turnable: Callable[[bytes], bool]             # (field) -> whether it may change while it is executed
    target: Callable[[int, bytes], int]           # (address of the field, field) -> where it leads
    turned: Callable[[int, bytes, int], bytes]    # (address, field, target) -> field; PsuError: out of reach
    step: int
    stub: Callable[[int, int, int], bytes]        # (address, slot, module flags) -> a stub that only calls lead to


@dataclass(frozen=True)
class Arch:
    """Facts and functions of one architecture.  Addresses may be file or run-time ones: only differences count."""
    name: str
    machine: int                                  # e_machine
    elf_class: int
    page_size: int                                # largest page size of the psABI: segment alignment
    reach: int                                    # farthest distance of a direct jump, in bytes
    data_reach: int                               # and of what code refers to by its address, unwind tables included
    stub_size: Callable[[int], int]               # module flags -> bytes of one stub
    stub: Callable[[int, int, int], bytes]        # (stub address, slot address, module flags) -> stub_size bytes
    stub_align: int                               # of the first stub and of moved entries
    stub_cfi: bytes                               # CIE initial instructions that describe a stub's frame
    return_column: int                            # DWARF number of the return address
    jump: Callable[[int, int], bytes]             # (from, to) -> unconditional direct jump, jump_size bytes
    jump_size: int
    far_pad: Jump                                 # from behind a landing pad to the original, whatever that begins with (MODULE_FAR)
    padding: bytes                                # an instruction that traps, for room that nothing may run into
    site_form: SiteForm
    store_unit: int                               # an aligned store of so many bytes is whole for whoever executes them
    is_padding: Callable[[bytes], bool]           # only what compilers put between functions
    fields: Mapping[str, FieldKind]               # by the name of a plan_types.Reroute
    moved_field: str                              # in `fields`: how instructions that moved refer to what they did
    # (module flags, first bytes of an original) -> what must be in front of it so that a stub may jump there
    landing: Callable[[int, bytes], bytes]
    relative: int                                 # R_*_RELATIVE
    # (its address, slots, how many, result) -> a function that adds the load bias to that many slots, and returns that of `result`
    resolver: Callable[[int, int, int, int], bytes]
    resolver_size: int
    # (code, its address, low, high, absolute operands too) -> whether the code may refer to [low, high)
    may_refer: Callable[[bytes, int, int, int, bool], bool]
    branch_marks: tuple[int, int]                 # (GNU property, its bit): branches must meet marks (IBT, BTI)
    # (flag in /proc/PID/smaps, bit for mprotect) of code in whose pages branches must meet marks; "": not for programs
    guarded_pages: tuple[str, int]
    # Whether a call in progress has its return address in memory all the time; else a leaf function may have it in a register.
    returns_through_memory: bool
    system_call: bytes                            # the instruction that makes one
    signal_return: bytes                          # the code that signal handlers return to

    def back(self, far: bool) -> Jump:
        """From the end of a moved entry, or from a landing pad, to the original code."""
        return self.far_pad if far else Jump(self.jump_size, self.jump)

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

    @property
    def calls(self) -> ModuleType:
        """The agent's system calls by their numbers (attach, where there is a seccomp filter)."""
        return importlib.import_module(f"psu_bin.arch.{self.name}_calls")


def for_machine(machine: int, where: str) -> Arch:
    """The architecture with ELF machine number `machine`.  Raises PsuError, naming `where`, for any other."""
    if machine == EM_X86_64:
        from psu_bin.arch import x86_64
        return x86_64.ARCH
    if machine == EM_AARCH64:
        from psu_bin.arch import aarch64
        return aarch64.ARCH
    raise PsuError(where, f"compiled for another architecture: ELF machine {machine}",
                   "psu-bin handles x86-64 and AArch64")
