"""Which pages of a stretch of the target's memory were ever touched: touched().

Programs reserve far more than they use: AddressSanitizer maps 16 TiB, garbage collectors their whole heap.
/proc/PID/pagemap has 8 bytes for each page of that, 32 GiB for AddressSanitizer's; the kernel's own search (ioctl
PAGEMAP_SCAN, Linux 6.7) skips page tables that are not there.  Older kernels are asked window by window, up to a limit.

Specification: Documentation/admin-guide/mm/pagemap.rst, linux/fs.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import struct

from psu_bin.attach.process import PAGE

PRESENT_OR_SWAPPED = 3 << 62
MOST = 1 << 38                       # bytes that are looked at page by page: half a second or so
WINDOW = 1 << 17                     # pages at once: a MiB of pagemap
_SCAN = 0xC0606610                   # _IOWR('f', 16, struct pm_scan_arg)
_SCAN_ARGUMENT = struct.Struct("<12Q")
_REGION = struct.Struct("<3Q")
_IS_PRESENT, _IS_SWAPPED = 1 << 3, 1 << 4
_REGIONS = 4096                      # in one answer

Ranges = list[tuple[int, int]]       # (address, size), ascending


def touched(path: str, start: int, end: int) -> Ranges | None:
    """The parts of [start, end) that a process ever touched; None when there is too much to be looked at.  path: its pagemap.

    Where the kernel does not tell, everything."""
    first, last = start // PAGE * PAGE, -(-end // PAGE) * PAGE
    try:
        with open(path, "rb", buffering=0) as f:
            # The thread behind it may have ended.  Before "proc: fix the issue of proc_mem_open returning NULL" (2025), Linux
            # would take that for memory at 0 in the search.
            _whole(f.read(8), 8)
            pages = scan(f, first, last)
            if pages is None:
                pages = look(f, first, last) if last - first <= MOST else None
    except OSError:
        return [(start, end - start)] if end - start <= MOST else None
    if pages is None:
        return None
    return [(max(start, a), min(end, b) - max(start, a)) for a, b in pages]


def scan(f: io.FileIO, first: int, last: int) -> Ranges | None:
    """(first, end) of each run of touched pages, by PAGEMAP_SCAN; None where the kernel has none."""
    buffer = ctypes.create_string_buffer(_REGIONS * _REGION.size)
    out: Ranges = []
    while first < last:
        argument = bytearray(_SCAN_ARGUMENT.pack(
            _SCAN_ARGUMENT.size, 0, first, last, 0, ctypes.addressof(buffer), _REGIONS, 0, 0, 0,
            _IS_PRESENT | _IS_SWAPPED, _IS_PRESENT | _IS_SWAPPED))
        try:
            found = fcntl.ioctl(f, _SCAN, argument)
        except OSError as e:
            if e.errno in (errno.ENOTTY, errno.EINVAL):
                return None
            raise
        out += [(a, b) for a, b, _ in _REGION.iter_unpack(buffer.raw[:found * _REGION.size])]
        walked = _SCAN_ARGUMENT.unpack(argument)[4]
        if walked <= first:
            return None                          # no kernel does this; do not wait for it
        first = walked
    return out


def look(f: io.FileIO, first: int, last: int) -> Ranges:
    """As scan, entry by entry.  Raises OSError where there are none: nothing is known of those pages then."""
    import numpy
    out: Ranges = []
    for at in range(first, last, WINDOW * PAGE):
        f.seek(at // PAGE * 8)
        size = min(WINDOW, (last - at) // PAGE) * 8
        there = (numpy.frombuffer(_whole(f.read(size), size), numpy.uint64) & numpy.uint64(PRESENT_OR_SWAPPED)) != 0
        edges = numpy.flatnonzero(numpy.diff(numpy.concatenate(([False], there, [False])).astype(numpy.int8))).tolist()
        out += [(at + a * PAGE, at + b * PAGE) for a, b in zip(edges[::2], edges[1::2])]
    return out


def _whole(raw: bytes | None, size: int) -> bytes:
    if raw is None or len(raw) != size:
        raise OSError(errno.ESRCH, "the memory is gone, or has no such pages")
    return raw
