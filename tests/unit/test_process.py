"""Reading one process: gaps in the memory map, memory transfer, and the words for processes that are not there."""

import ctypes
import os
import subprocess
import sys

import pytest

from psu_bin.attach.process import PAGE, Mapping, Process, find_gap
from psu_bin.errors import PsuError


def mapping(start, end):
    return Mapping(start, end, "r--p", 0, 0, "", False)


def test_gap_is_the_highest_one_with_a_free_page_on_both_sides():
    maps = (mapping(0x10000, 0x20000), mapping(0x30000, 0x40000))
    assert find_gap(maps, 0x1000, 0x1000, 0x30000) == 0x2E000
    assert find_gap(maps, 0xE000, 0x1000, 0x30000) == 0x21000
    assert find_gap(maps, 0xF000, 0x1000, 0x30000) == None  # noqa: E711
    assert find_gap(maps, 0x1000, 0x1000, 0x30000, avoid=((0x20000, 0x30000),)) == 0xE000
    assert find_gap((), PAGE, 16 * PAGE + 8, 17 * PAGE + 8) is None, "the page there begins below"


def test_gap_in_a_real_map_is_free():
    maps = Process(os.getpid()).maps()
    at = find_gap(maps, 1 << 20, 1 << 20, maps[-3].end)
    assert at % 4096 == 0
    assert not any(m.start < at + (1 << 20) and at < m.end for m in maps)


def test_memory_of_another_process_is_read_and_written():
    code = ("import ctypes,sys; b = ctypes.create_string_buffer(b'before', 64); print(ctypes.addressof(b), flush=True);"
            "sys.stdin.readline(); print(b.value.decode())")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        address = int(p.stdout.readline())
        process = Process(p.pid)
        assert process.cstring(address) == "before"
        process.write(address, b"after\0")
        assert p.communicate("\n")[0].strip() == "after"


def test_unreadable_memory_is_an_error_with_the_address():
    with pytest.raises(PsuError, match="0x10 bytes at 0x8"):
        Process(os.getpid()).read(8, 16)


def test_no_such_process():
    with subprocess.Popen(["true"]) as p:
        p.wait()
        with pytest.raises(PsuError, match="no such process"):
            Process(p.pid)


def test_zombie():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        with pytest.raises(PsuError, match="zombie"):
            Process(pid)
    finally:
        os.waitpid(pid, 0)


def test_a_process_whose_first_thread_has_ended(tmp_path):
    source = tmp_path / "x.c"
    source.write_text("""
        #include <pthread.h>
        #include <unistd.h>
        static void *go_on(void *p) { while (pause() == -1); return p; }
        int main(void) { pthread_t t; pthread_create(&t, 0, go_on, 0); pthread_exit(0); }""")
    subprocess.run(["cc", "-pthread", source, "-o", tmp_path / "x"], check=True)
    with subprocess.Popen([tmp_path / "x"]) as p:
        try:
            while open(f"/proc/{p.pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
                assert p.poll() is None
            with pytest.raises(PsuError, match="first thread has ended, others go on"):
                Process(p.pid)
        finally:
            p.kill()


def test_a_thread_id_is_not_a_process():
    import threading
    done = threading.Event()
    t = threading.Thread(target=done.wait)
    t.start()
    try:
        with pytest.raises(PsuError, match=f"is a thread of process {os.getpid()}"):
            Process(t.native_id)
    finally:
        done.set()
        t.join()


def test_kernel_thread():
    if not os.path.exists("/proc/2/comm") or open("/proc/2/comm").read().strip() != "kthreadd":
        pytest.skip("process 2 is no kernel thread here: a PID namespace")
    with pytest.raises(PsuError, match="kernel thread"):
        Process(2)


def test_write_to_read_only_memory_is_refused():
    libc = ctypes.CDLL(None)
    address = ctypes.cast(libc.getpid, ctypes.c_void_p).value
    with pytest.raises(PsuError, match="cannot be written"):
        Process(os.getpid()).write(address, b"\xcc")
