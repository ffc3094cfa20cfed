"""Memory in the target that outlives patches: interned constants, new variables, stubs of new functions.

Each store is a region near its module that fills up over many patches; a new one is made when nothing fits any more.  Constants
are read-only for the program, so later ones are written the way a debugger writes, through /proc/TID/mem of the
traced agent; where the kernel forbids that (CONFIG_PROC_MEM_NO_FORCE) each patch gets a store of its own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from psu_bin.attach import meta
from psu_bin.attach.process import PAGE, Process
from psu_bin.errors import PsuError

STORE_SIZE = 64 * 1024
STUB_ROOM = 16             # bytes kept for a stub of any architecture
STUBS_PER_STORE = PAGE // STUB_ROOM

CONSTANTS, VARIABLES, STUBS = "const", "data", "stubs"


@dataclass(frozen=True)
class Share:
    """A part of a store given to this transaction."""
    store: meta.Store
    address: int
    fresh: bool            # the store is made by this transaction: still writable, and not mapped yet


def share(notes: meta.Notes, kind: str, module: str, size: int, align: int, place) -> Share | None:  # noqa: ANN001
    """Room for `size` bytes; None for nothing.  place(size) -> address of a new region; the store joins `notes`."""
    if not size:
        return None
    for s in notes.stores:
        if s.kind == kind and s.module == module:
            at = -(-(s.address + s.used) // align) * align
            if at + size <= s.address + s.size:
                s.used = at + size - s.address
                return Share(s, at, False)
    room = max(STORE_SIZE, -(-(size + align) // PAGE) * PAGE)
    s = meta.Store(kind, module, place(room), room, 0)
    notes.stores.append(s)
    at = -(-s.address // align) * align
    s.used = at + size - s.address
    return Share(s, at, True)


def stub_numbers(notes: meta.Notes, module: str, count: int, place) -> list[tuple[meta.Store, int, bool]]:  # noqa: ANN001
    """(store, number of the stub in it, whether the store is new) for `count` new stubs.

    A store of stubs is a page of code and a page of slots behind it."""
    out = []
    for _ in range(count):
        s = next((s for s in notes.stores if s.kind == STUBS and s.module == module and s.used < STUBS_PER_STORE), None)
        fresh = s is None
        if s is None:
            s = meta.Store(STUBS, module, place(2 * PAGE), 2 * PAGE, 0)
            notes.stores.append(s)
        out.append((s, s.used, fresh))
        s.used += 1
    return out


def stub_page(arch, store: meta.Store, flags: int) -> bytes:  # noqa: ANN001
    """The code page of a store of stubs: all its stubs, made at once, because it is never writable again."""
    out = b""
    for n in range(STUBS_PER_STORE):
        at = store.address + n * STUB_ROOM
        stub = arch.stub(at, store.address + PAGE + 8 * n, flags)
        out += stub + arch.padding * ((STUB_ROOM - len(stub)) // len(arch.padding))
    return out


def force_write(process: Process, tid: int, address: int, data: bytes) -> bool:
    """Write to memory that is read-only for the target; `tid` is traced by us.  False where the kernel forbids it."""
    try:
        fd = os.open(f"/proc/{process.pid}/task/{tid}/mem", os.O_RDWR)
    except OSError:
        return False
    try:
        if os.pwrite(fd, data, address) != len(data):
            raise PsuError(process.where, f"memory cannot be written: {len(data):#x} bytes at {address:#x}")
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
