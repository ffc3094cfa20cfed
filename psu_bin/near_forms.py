"""Which of an architecture's forms a near stub has (Arch.near_forms; instrument/near.py says what near stubs are).

A closed near stub of the short form jumps to the function's stub; one of the long form does itself what the stub does, and
costs calls of patched functions no jump more than the stub.  The program's have the one that there was room for; those in
patch objects are long, and hold a short one until they are opened for the first time: when the object is linked, its new
functions have no slots yet."""

from __future__ import annotations

from psu_bin.arch import Arch, NearForm
from psu_bin.descriptor import NEAR_LONG


def in_program(arch: Arch, module: int, function: int) -> NearForm:
    """The form in an instrumented file, by the flags of the module and of the function."""
    return arch.near_forms(module)[bool(function & NEAR_LONG)]


def in_objects(arch: Arch) -> NearForm:
    """The form in patch objects."""
    return arch.near_forms(0)[-1]


def unopened(arch: Arch, address: int, stub: int) -> bytes:
    """What is at run-time `address` in an object at first: a jump to `stub`, and what nothing executes.

    Raises PsuError when the stub is out of reach."""
    jump = arch.jump(address, stub)
    rest = len(in_objects(arch).nop) - len(jump)
    return jump + arch.padding * (rest // len(arch.padding))
