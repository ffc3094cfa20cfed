"""Which pages were touched: by the kernel's search and page by page, which must say the same."""

from __future__ import annotations

import ctypes
import mmap

import pytest

from psu_bin.attach import pagemap

PAGE = pagemap.PAGE
GAP = 1 << 30


@pytest.fixture
def memory():
    """16 GiB reserved (0x4000: MAP_NORESERVE); the addresses of its start and of the pages that were written."""
    m = mmap.mmap(-1, 1 << 34, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(m))
    pages = [0, 1, 5, GAP // PAGE, pagemap.WINDOW - 1, pagemap.WINDOW, (1 << 34) // PAGE - 1]
    for n in pages:
        m[n * PAGE] = 1
    yield start, start + (1 << 34), {start + n * PAGE for n in pages}


def pages_of(ranges):
    return {page for a, b in ranges for page in range(a, b, PAGE)}


def test_both_ways_find_what_was_touched(memory):
    start, end, pages = memory
    with open("/proc/self/pagemap", "rb", buffering=0) as f:
        assert pages_of(pagemap.look(f, start, end)) == pages
        found = pagemap.scan(f, start, end)
        if found is None:
            pytest.skip("the kernel has no PAGEMAP_SCAN")
        assert pages_of(found) == pages


def test_more_runs_than_one_answer_holds(memory):
    start, _, _ = memory
    count = 2 * pagemap._REGIONS + 3
    for n in range(count):
        ctypes.memset(start + (16 + 2 * n) * PAGE, 1, 1)
    with open("/proc/self/pagemap", "rb", buffering=0) as f:
        found = pagemap.scan(f, start + 16 * PAGE, start + (16 + 2 * count) * PAGE)
    if found is None:
        pytest.skip("the kernel has no PAGEMAP_SCAN")
    assert found == [(start + (16 + 2 * n) * PAGE, start + (17 + 2 * n) * PAGE) for n in range(count)]


def test_a_process_without_memory(tmp_path):
    """As kernels show one whose first thread has ended: nothing is known of its pages, so each may have been touched."""
    (tmp_path / "pagemap").write_bytes(b"")
    assert pagemap.touched(str(tmp_path / "pagemap"), PAGE, 3 * PAGE) == [(PAGE, 2 * PAGE)]
    (tmp_path / "pagemap").write_bytes(bytes(16))           # it ends while it is read
    assert pagemap.touched(str(tmp_path / "pagemap"), PAGE, 3 * PAGE) == [(PAGE, 2 * PAGE)]


def test_ends_inside_a_page(memory):
    start, _, _ = memory
    assert pagemap.touched("/proc/self/pagemap", start + 8, start + 2 * PAGE - 8) == [(start + 8, 2 * PAGE - 16)]
    assert pagemap.touched("/proc/self/pagemap", start + 2 * PAGE, start + 3 * PAGE) == []


def test_too_much_without_the_kernels_search(memory, monkeypatch):
    start, end, pages = memory
    monkeypatch.setattr(pagemap, "scan", lambda *_: None)
    assert {a for a, _ in pagemap.touched("/proc/self/pagemap", start, end)} <= pages
    monkeypatch.setattr(pagemap, "MOST", 1 << 20)
    assert pagemap.touched("/proc/self/pagemap", start, end) is None
