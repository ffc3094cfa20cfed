"""Where threads stand: those of the program, and those in its list that execute nothing of it, now or later."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import until

from psu_bin.attach import stacks
from psu_bin.attach.process import Process

# A read from an empty pipe, which io_uring gives to a worker: a thread of this process, which the kernel keeps.
WORKER = """
    #include <linux/io_uring.h>
    #include <stdio.h>
    #include <sys/mman.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static char room[16];
    int main(void)
    {
        struct io_uring_params p = {0};
        int ends[2], ring = (int)syscall(SYS_io_uring_setup, 4, &p);
        if (ring < 0 || pipe(ends) < 0) return 77;
        char *queue = mmap(0, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entry = mmap(0, sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
        *entry = (struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = ends[0],
                                       .addr = (unsigned long)room, .len = sizeof room};
        __atomic_store_n((unsigned *)(queue + p.sq_off.tail), 1, __ATOMIC_RELEASE);
        if (syscall(SYS_io_uring_enter, ring, 1, 0, 0, 0, 0) != 1) return 1;
        puts("ready");
        fflush(stdout);
        for (;;) pause();
    }
"""
LEFT = """
    #include <pthread.h>
    #include <stdio.h>
    #include <unistd.h>
    static void *stay(void *unused) { for (;;) pause(); return unused; }
    int main(void) { pthread_t t; pthread_create(&t, 0, stay, 0); puts("ready"); fflush(stdout); pthread_exit(0); }
"""


@pytest.mark.parametrize("source, name", [(WORKER, "iou-wrk-"), (LEFT, "x$")])
def test_threads_that_execute_nothing_of_the_program(tmp_path, source, name):
    (tmp_path / "x.c").write_text(source)
    subprocess.run(["cc", "-pthread", tmp_path / "x.c", "-o", tmp_path / "x"], check=True)
    with subprocess.Popen([tmp_path / "x"], stdout=subprocess.PIPE) as p:
        try:
            if not p.stdout.readline() and p.wait() == 77:
                pytest.skip("this kernel has no io_uring, or lets nobody use it")
            process = Process(p.pid)
            until(lambda: len(process.thread_names()) == 2 and len(stacks.standings(process, 0)) == 1)
            [tid] = stacks.standings(process, 0)
            [other] = {int(n) for n in process.thread_names()} - {tid}
            assert re.match(name, Path(f"/proc/{p.pid}/task/{other}/comm").read_text())
            assert stacks.standing(process, other) is None and stacks.listed(process) == {tid}
        finally:
            p.kill()
