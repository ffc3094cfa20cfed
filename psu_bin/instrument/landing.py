"""Landing pads: where the unwinder enters functions that catch exceptions or clean up behind them.

No instruction leads to a landing pad, and it may follow a call that never returns: without the tables of the call sites
(`.gcc_except_table`, one table a function, found by its unwind entry) it would look like what comes after that call.  All
compilers for ELF use one format, whatever the language (C++, C with `cleanup`, Rust, Ada, D), except for personalities of
their own.  What is not in that format is not guessed: then every address of the function may be a landing pad.

Specification: the Itanium C++ ABI, "Exception Handling Tables"; its reader in libgcc (unwind-c.c).
"""

from __future__ import annotations

import struct

import numpy as np

from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument.functions import executable
from psu_bin.instrument.unwind import OMIT, Frames, encoded, uleb

_ULEB = 0x01


def landing_pads(binary: Binary, frames: Frames) -> np.ndarray:
    """File addresses (int64, ascending) to which exceptions may lead, inside functions."""
    pads: list[int] = []
    done = 0                         # entries ascend: damaged ones may overlap, again and again
    every: list[np.ndarray] = []     # of functions whose table cannot be read
    code = executable(binary)
    for begin, end, table in zip(frames.begin.tolist(), frames.end.tolist(), frames.lsda.tolist()):
        if not table:
            continue
        try:
            _pads(binary, begin, table, pads)
        except (ValueError, IndexError, struct.error, PsuError):
            for s in code:
                every.append(np.arange(max(begin, s.address, done), min(end, s.end)))
            done = max(end, done)
    return np.unique(np.concatenate([np.array(pads, dtype=np.int64), *every]))


def _pads(binary: Binary, begin: int, table: int, out: list[int]) -> None:
    """Add the landing pads of the function at `begin`.  Raises ValueError, IndexError, struct.error or PsuError where its table is in
    another format, or not in the file: what has been read before stays.

    clang -fbasic-block-sections writes heads that claim the records of all sections of a function, with the heads of the others
    between them: those of this one come first."""
    head = binary.bytes_at(table, 32)
    start, at = begin, 1
    if head[0] != OMIT:
        start, at = encoded(head, at, head[0], table + at)
    types, at = head[at], at + 1
    if types != OMIT:
        _, at = uleb(head, at)
    form = head[at]
    if form > 0x0F:
        raise ValueError("call sites that are not counted from the start")
    size, at = uleb(head, at + 1)
    data = binary.bytes_at(table + at, size) if size else b""        # an empty one may be the last of the file
    if len(data) < size:
        raise ValueError("a table that the file cuts short")
    at = 0
    while at < size:
        for _ in range(3):      # start, length, landing pad
            pad, at = uleb(data, at) if form == _ULEB else encoded(data, at, form, 0)
        _, at = uleb(data, at)
        if start + pad >= 1 << 63:
            raise ValueError("a landing pad that is no address")
        if pad:
            out.append(start + pad)
