/* SPDX-License-Identifier: MIT
 *
 * step.h: what single-stepping needs on AArch64, for cancelled.c, forked.c, found.c and jumped.c.
 */
#ifndef STEP_H
#define STEP_H

#include <sys/uio.h>

/* What these may not leave to the processor's single step: the store of an exclusive pair, which fails for ever
 * when each instruction is stepped, because every exception clears the monitor.  Where the traced thread `tid` is in front
 * of one, it is done here, and the answer is 1.  (stxr and stlxr of 32 and 64 bits; nobody else writes what they write.) */
static inline int stepped(int tid)
{
    struct { uint64_t x[31], sp, pc, flags; } r;
    struct iovec io = {&r, sizeof r};
    CHECK(ptrace(PTRACE_GETREGSET, tid, 1 /* NT_PRSTATUS */, &io) == 0, "%s", strerror(errno));
    uint32_t word = *(const uint32_t *)r.pc; /* the tracer has the same code there: it is the parent */
    if ((word & 0xbfe07c00) != 0x88007c00)
        return 0;
    uint32_t t = word & 31, n = word >> 5 & 31;
    uint64_t value = t == 31 ? 0 : r.x[t], at = n == 31 ? r.sp : r.x[n], whole = value;
    if (!(word >> 30 & 1)) {
        errno = 0;
        uint64_t there = (uint64_t)ptrace(PTRACE_PEEKDATA, tid, at & ~7ull, 0);
        CHECK(errno == 0);
        whole = at & 4 ? (there & 0xffffffff) | value << 32 : (there & ~0xffffffffull) | (value & 0xffffffff);
    }
    CHECK(ptrace(PTRACE_POKEDATA, tid, at & ~7ull, whole) == 0);
    r.x[word >> 16 & 31] = 0;
    r.pc += 4;
    CHECK(ptrace(PTRACE_SETREGSET, tid, 1, &io) == 0);
    return 1;
}

#endif
