"""Near stubs in patch objects (attach/near.py says what they are): the bytes that one has at first.

The near stub of a function does, closed, what the stub does.  When an object is linked, its new functions have no slots yet: until
it is opened for the first time, a near stub holds a plain jump to the stub."""

from __future__ import annotations

from psu_bin.arch import Arch


def unopened(arch: Arch, address: int, stub: int) -> bytes:
    """What is at run-time `address` in an object at first: a jump to `stub`, and what nothing executes.

    Raises PsuError when the stub is out of reach."""
    jump = arch.jump(address, stub)
    rest = len(arch.near_form.nop) - len(jump)
    return jump + arch.padding * (rest // len(arch.padding))
