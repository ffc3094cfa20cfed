"""What code shows: of a function, how it is called (stack arguments, a convention of its own); of a module, whether it may go
on with another stack."""

from __future__ import annotations

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import Code
from psu_bin.elf import Binary
from psu_bin.instrument.functions import Functions
from psu_bin.instrument.unwind import Frames


def stack_arguments(arch: Arch, functions: Functions, frames: Frames, code: Code) -> np.ndarray:
    """bool, one a function: it may touch its caller's stack arguments.  True where that is not known."""
    out = np.zeros(len(functions.entry), dtype=bool)
    register, offset = frames.rows(code.address)
    at = functions.holding(code.address[arch.scan.stack_arguments(code, register, offset)])
    out[at[at >= 0]] = True
    return out


def own_convention(arch: Arch, functions: Functions, frames: Frames) -> np.ndarray:
    """bool, one a function: not known to follow the psABI.

    Compilers give every function an unwind entry of its own and save none of the registers that a callee may change.
    """
    fde = frames.covering(functions.entry)
    if not len(frames.begin):
        return np.ones(len(functions.entry), dtype=bool)
    described = (fde >= 0) & (frames.begin[fde.clip(0)] == functions.entry)
    odd = (frames.saved[fde.clip(0)] & np.uint64(arch.scan.REGISTERS.dwarf_volatile)) != 0
    return ~described | odd


def moves_stack(binary: Binary, arch: Arch, functions: Functions, code: Code) -> bool:
    """Whether code of the module may go on with another stack by instructions of its own (coroutines), as assembly does; what cannot
    be read may, too."""
    addresses = code.address[arch.scan.switches_stack(code)]
    holding = functions.holding(addresses)
    if (holding < 0).any():                        # of no function
        return True
    try:
        for i in np.unique(holding).tolist():
            start, end = int(functions.entry[i]), int(functions.end[i])
            at = binary.offset_of(start)
            if arch.link.moves_stack(binary.data[at:at + end - start], 0, end - start):
                return True
    except ValueError:
        return True
    return False
