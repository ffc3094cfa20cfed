"""The search of memory where a part of it cannot be read, as when it was unmapped meanwhile.  No other process."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from types import SimpleNamespace

import pytest

from psu_bin.attach.process import PAGE, Process
from psu_bin.attach.stacks import Gates, Memory

GATES, STRIDE = 0x7F0000000000, 64
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


@pytest.fixture
def memory():
    """Two pages of ours with nothing behind them, and a search for addresses in one pool of gates."""
    start = libc.mmap(None, 4 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert libc.mprotect(ctypes.c_void_p(start + 2 * PAGE), ctypes.c_size_t(2 * PAGE), 0) == 0
    pool = SimpleNamespace(first=GATES, stride=STRIDE, count=8, look=32)
    runtime = SimpleNamespace(pools=(pool,), near_delta=0, leaving=(0, 0))
    yield start, Memory(Process(os.getpid()), Gates(runtime), ())
    libc.munmap(start, 4 * PAGE)


@pytest.mark.parametrize("begin", [0, 8, PAGE - 8])
def test_what_is_still_mapped_is_searched_to_its_end(memory, begin):
    """As a stack whose pointer is in the middle of a page, when what is mapped behind it goes."""
    start, search = memory
    search.mask = (1 << 48) - 1
    places = [start + PAGE - 8, start + PAGE, start + 2 * PAGE - 8]
    for at in places:
        ctypes.memmove(at, struct.pack("<Q", GATES + 3 * STRIDE + 16), 8)
    assert [w.at for w in search._words(start + begin, 4 * PAGE - begin)] == places
