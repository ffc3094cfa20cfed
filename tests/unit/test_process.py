"""Reading one process: gaps in the memory map, memory transfer, and the words for processes that are not there."""

import ctypes
import os
import subprocess
import sys

import pytest
from conftest import first_thread_ended, until

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


LEAVERS = """
    #include <pthread.h>
    #include <semaphore.h>
    #include <stdio.h>
    static char text[] = "here";
    static sem_t turn[3];
    static pthread_t t[4];
    static void *stay(void *n) { sem_wait(turn + (long)n); return n; }
    static void *lead(void *unused) {
        printf("%ld\\n", (long)text), fflush(stdout);
        for (int n = 0; n < 3 && getchar() != EOF; n++) sem_post(turn + n), pthread_join(t[n], 0), puts("ended"), fflush(stdout);
        getchar();
        return unused; }
    int main(void) {
        for (long n = 0; n < 3; n++) sem_init(turn + n, 0, 0), pthread_create(t + n, 0, stay, (void *)n);
        pthread_create(t + 3, 0, lead, 0);
        pthread_exit(0); }"""


def looks(process, address):
    """Each way in which a process is looked at, alone: the first after a thread has ended is another one each time."""
    [text] = [m for m in process.maps() if m.start <= address < m.end]
    return [lambda: process.cstring(address) == "here",
            lambda: text in process.maps(),
            lambda: process.flagged("wr", [text.start]) == {text.start},
            lambda: process._read_instance() == process._instance and not process.replaced(),
            process.alive]


@pytest.mark.parametrize("way", range(5))
def test_threads_that_show_the_memory_end_one_after_another(tmp_path, way):
    (tmp_path / "x.c").write_text(LEAVERS)
    subprocess.run(["cc", "-pthread", tmp_path / "x.c", "-o", tmp_path / "x"], check=True)
    with subprocess.Popen([tmp_path / "x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        try:
            address = int(p.stdout.readline())
            until(lambda: first_thread_ended(p.pid))
            process = Process(p.pid)
            look = looks(process, address)[way]
            seen = {process.path("maps")}
            for _ in range(3):
                assert look()
                p.stdin.write(b"n")
                p.stdin.flush()
                assert p.stdout.readline() == b"ended\n"
                assert look()
                seen.add(process.path("maps"))
            assert process.own_pid() == p.pid and [t.state for t in process.threads()].count("Z") == 1
            assert os.path.samefile(process.path("exe"), tmp_path / "x") and len(seen) == 4
        finally:
            p.kill()
    with pytest.raises(PsuError, match="ended meanwhile|no such process"):
        process.cstring(address)


def test_another_program_after_the_first_thread_has_ended(tmp_path):
    """execve in the last thread, which gets the number of the first one; the one that we looked through is gone."""
    (tmp_path / "x.c").write_text("""
        #include <pthread.h>
        #include <stdio.h>
        #include <unistd.h>
        static void *go(void *p) { puts("here"), fflush(stdout), getchar(), execl("/bin/cat", "cat", (char *)0); return p; }
        int main(void) { pthread_t t; pthread_create(&t, 0, go, 0); pthread_exit(0); }""")
    subprocess.run(["cc", "-pthread", tmp_path / "x.c", "-o", tmp_path / "x"], check=True)
    with subprocess.Popen([tmp_path / "x"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as p:
        try:
            assert p.stdout.readline() == b"here\n"
            until(lambda: first_thread_ended(p.pid))
            process = Process(p.pid)
            p.stdin.write(b"nhere, too\n")
            p.stdin.flush()
            until(process.replaced)
            assert "started another program" in str(process.gone())
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
