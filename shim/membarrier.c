/* SPDX-License-Identifier: MIT
 *
 * The barrier that retirement needs on every thread, without a cost to any: membarrier(2).
 *
 * Its partner is the pair "count; load code" in each gate (arch/ARCH/gates.S): after the barrier every thread has
 * either made its count visible or will load the code word anew.
 */
#include "internal.h"

enum { GLOBAL = 1, PRIVATE_EXPEDITED = 1 << 3, REGISTER_PRIVATE_EXPEDITED = 1 << 4,
       PRIVATE_EXPEDITED_SYNC_CORE = 1 << 5, REGISTER_PRIVATE_EXPEDITED_SYNC_CORE = 1 << 6 };

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

/* Kernels before 4.16, and some sandboxes, have no barrier of this kind.  The ordinary one interrupts the same cores,
 * and the return from an interrupt synchronises them all the same (Arm ARM, D1.3: exception return; SCTLR_EL1.EOS is 1).
 */
int64_t psu_membarrier_code(void)
{
    long r = psu_syscall(NR_membarrier, PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
    if (r == -PSU_EPERM) {
        psu_syscall(NR_membarrier, REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
        r = psu_syscall(NR_membarrier, PRIVATE_EXPEDITED_SYNC_CORE, 0, 0);
    }
    return r < 0 ? psu_membarrier() : r;
}
