/* SPDX-License-Identifier: MIT
 *
 * The barrier that retirement needs on every thread, without a cost to any: membarrier(2).
 *
 * Its partner is the pair "count; load code" in each gate (arch/x86_64/gates.S): after the barrier every thread has
 * either made its count visible or will load the code word anew.
 */
#include "internal.h"

enum { GLOBAL = 1, PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4 };

void psu_membarrier_register(void)
{
    long r = psu_syscall(NR_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0);
    if (r < 0) /* Linux before 4.14: the slow kind, milliseconds instead of microseconds */
        r = psu_syscall(NR_membarrier, GLOBAL, 0, 0);
    psu_runtime.membarrier_error = (uint32_t)-r;
}

int64_t psu_membarrier(void)
{
    long r = psu_syscall(NR_membarrier, PRIVATE_EXPEDITED, 0, 0);
    if (r == -PSU_EPERM) { /* not registered: a fork child, or somebody else's exec of our state */
        psu_membarrier_register();
        r = psu_syscall(NR_membarrier, PRIVATE_EXPEDITED, 0, 0);
    }
    if (r < 0)
        r = psu_syscall(NR_membarrier, GLOBAL, 0, 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return r;
}
