/* SPDX-License-Identifier: MIT
 *
 * The system calls that several files use, without a C library and without errno.
 */
#include "internal.h"

extern char __bss_start[] __attribute__((visibility("hidden"))), _end[] __attribute__((visibility("hidden"))); /* the linker's */

enum { MAP_PRIVATE = 2, MAP_ANONYMOUS = 0x20, MAP_NORESERVE = 0x4000, MADV_NOHUGEPAGE = 15, AT_FDCWD = -100, CLOCK_MONOTONIC = 1,
       FUTEX_WAIT_PRIVATE = 128, FUTEX_WAKE_PRIVATE = 129 };

void *psu_map_anonymous(size_t size)
{
    long at = psu_syscall(NR_mmap, 0, size, PSU_PROT_READ | PSU_PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                          -1, 0);
    if (at < 0 && at > -4096)
        return 0;
    /* Neighbouring blocks become one mapping; a huge page there would cost 2 MiB for a thread's 4 KiB. */
    psu_syscall(NR_madvise, at, size, MADV_NOHUGEPAGE);
    return (void *)at;
}

/* Tables for as many gates and objects as there may ever be are 5 MiB, and some pages of them are used. */
void psu_small_pages(void)
{
    uint64_t start = (uint64_t)__bss_start & ~0xFFFFull; /* whatever the size of pages is */
    psu_syscall(NR_madvise, start, (uint64_t)_end - start, MADV_NOHUGEPAGE);
}

uint64_t psu_nanoseconds(void)
{
    struct { int64_t s, ns; } now;
    if (psu_syscall(NR_clock_gettime, CLOCK_MONOTONIC, &now))
        return 0;
    return (uint64_t)now.s * 1000000000 + (uint64_t)now.ns;
}

uint32_t psu_getpid(void) { return (uint32_t)psu_syscall(NR_getpid); }

uint32_t psu_gettid(void) { return (uint32_t)psu_syscall(NR_gettid); }

int psu_thread_alive(uint32_t tid) { return psu_syscall(NR_tgkill, psu_getpid(), tid, 0) != -PSU_ESRCH; }

long psu_thread_count(void)
{
    /* A process's task directory has 2 + number of threads links (Linux, proc_task_getattr). */
    struct psu_stat status;
    if (psu_syscall(NR_newfstatat, AT_FDCWD, "/proc/self/task", &status, 0) < 0 || status.links < 3)
        return 0;
    return (long)status.links - 2;
}

void psu_futex_wake(uint32_t *word, int waiters) { psu_syscall(NR_futex, word, FUTEX_WAKE_PRIVATE, waiters); }

void psu_futex_wait(uint32_t *word, uint32_t value, uint32_t milliseconds)
{
    struct { int64_t s, ns; } limit = {milliseconds / 1000, milliseconds % 1000 * 1000000ll};
    psu_syscall(NR_futex, word, FUTEX_WAIT_PRIVATE, value, milliseconds ? &limit : 0);
}
