"""What the code of a function shows about how it is called: stack arguments, a convention of its own."""

from __future__ import annotations

import numpy as np

from psu_bin.arch import Arch
from psu_bin.arch.code import Code
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
