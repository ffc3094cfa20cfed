/* SPDX-License-Identifier: MIT
 *
 * failing.c: system calls of the shim (but those that never fail) that fail when a test says so; part of a shim that tests/live/test_failing_calls.py
 * builds, where every system call goes through here. The test writes `psu_failing` from outside, while the agent sleeps.
 */
#include "internal.h"

enum { AGENT = 1, ANY_THREAD = 2 };

__attribute__((visibility("default"))) struct {
    uint32_t armed;    /* 0, AGENT or ANY_THREAD: whose calls are counted, and fail */
    uint32_t error;    /* errno */
    uint32_t at;       /* which step fails, from 1; 0: none */
    uint32_t number;   /* every call of this number fails, too, where it is not ~0 */
    uint32_t made;     /* calls so far */
    uint32_t failed;   /* how many of them failed, and the number of the last one that did */
    uint32_t last;
    uint32_t steps;    /* calls so far, but those of which there are as many as time or place want: waits, and the search for
                          a place that is not taken (arch/aarch64/borrow.c) */
    uint32_t numbers[512];  /* of the calls made */
} psu_failing = {.number = ~0u};

static int taken;      /* the last call was for a place that is */

long psu_failing_call(long nr, long a, long b, long c, long d, long e, long f)
{
    uint32_t armed = nr == NR_getpid || nr == NR_gettid ? 0 : __atomic_load_n(&psu_failing.armed, __ATOMIC_ACQUIRE);
    if (armed == ANY_THREAD || (armed == AGENT && psu_syscall6(NR_gettid, 0, 0, 0, 0, 0, 0) == psu_runtime.agent_tid)) {
        uint32_t made = __atomic_add_fetch(&psu_failing.made, 1, __ATOMIC_RELAXED);
        if (made <= 512)
            psu_failing.numbers[made - 1] = (uint32_t)nr;
        int no_step = nr == NR_futex || nr == NR_clock_gettime || (nr == NR_mmap && taken);
        uint32_t step = no_step ? 0 : __atomic_add_fetch(&psu_failing.steps, 1, __ATOMIC_RELAXED);
        if ((step && step == psu_failing.at) || nr == psu_failing.number) {
            psu_failing.last = (uint32_t)nr;
            __atomic_add_fetch(&psu_failing.failed, 1, __ATOMIC_RELEASE);
            return -(long)psu_failing.error;
        }
    }
    long result = psu_syscall6(nr, a, b, c, d, e, f);
    taken = nr == NR_mmap && result == -PSU_EEXIST;
    return result;
}
