/* SPDX-License-Identifier: MIT
 *
 * turn.c: change single instructions of code that threads execute: direct calls, which lead to a function until it has
 * a patch, and to a stub of it from then on (psu_bin/instrument/sites.py); and calls inside patch objects, which lead to the
 * body while that is the current version, and to a stub else (psu_bin/attach/turning.py).
 *
 * What makes it safe:
 *   - Old and new instruction mean the same at the moment of the change: the slot behind the stub holds the original code,
 *     or leads to the gate of the body that a call inside an object led to. So it does not matter when a thread sees the change, as long as all have seen it before the slot changes: the
 *     barrier at the end, which no commit comes before.  (Opened again: after the slot went back to the original.)
 *   - Each is one instruction, and what changes of it lies inside one naturally aligned word of `unit` bytes, changed by
 *     one store.  (Of a call only the highest byte of the displacement changes, wherever the instruction lies: a fetch that
 *     sees the two words at different times still sees the old or the new byte.)  A thread executes the old or the new
 *     instruction: x86-64: AMD APM volume 2, 7.6.1 (cross-modifying code within an aligned quadword);
 *     Intel's manual wants a serialising instruction in every thread that shall see the change, which the barrier is, and
 *     promises nothing for those that do not wait for it.  Managed runtimes (HotSpot's call sites, .NET's precode)
 *     have done just this in running threads on every processor of both makers since 64 bits came.  AArch64: NOP, B and BL are
 *     among the instructions that may be exchanged while they are executed (Arm ARM B2.2.5), made visible by
 *     psu_code_written.
 *   - Nobody else's bytes change: the word must hold what psu-bin read.  A debugger may have a breakpoint in it.
 *
 * Not every emulator keeps that.  QEMU 7.2, translating for several processors at once, may keep a translation for ever that it began before
 * the store and finished after it: a thread stays on the old call, although memory has the new one.  Seen once in some twenty first updates of
 * a thread that does nothing but call, on a host that was short of processors.
 *
 * The code is writable and executable for the few microseconds that this takes: a moment without the right to execute it
 * would be the end of the program.
 */
#include "internal.h"

/* What is writable just now, for a fork child that inherits it. */
static struct psu_code opened;

static uint64_t load(uint64_t at, uint32_t unit)
{
    return unit == 4 ? __atomic_load_n((uint32_t *)at, __ATOMIC_RELAXED)
                     : __atomic_load_n((uint64_t *)at, __ATOMIC_RELAXED);
}

static void store(uint64_t at, uint32_t unit, uint64_t value)
{
    if (unit == 4)
        __atomic_store_n((uint32_t *)at, (uint32_t)value, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n((uint64_t *)at, value, __ATOMIC_SEQ_CST);
}

static int64_t protect_again(void)
{
    long r = psu_syscall(NR_mprotect, opened.address, opened.size, opened.prot);
    if (r < 0) /* it cannot: nothing is split; once more, then it is said */
        r = psu_syscall(NR_mprotect, opened.address, opened.size, opened.prot);
    __atomic_store_n(&opened.size, 0, __ATOMIC_RELEASE);
    return r;
}

int64_t psu_turn(const struct psu_code *code, const struct psu_turn *turns, uint32_t count, uint64_t *failed)
{
    if (code->unit != PSU_STORE_UNIT || code->address % PSU_PAGE || !(code->prot & PSU_PROT_EXEC)
        || code->prot & PSU_PROT_WRITE)
        return -PSU_EINVAL;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t offset = turns[i].at - code->address;
        *failed = i;
        if (turns[i].at % code->unit || offset >= code->size || code->size - offset < code->unit)
            return -PSU_EINVAL;
    }
    *failed = 0;
    opened.address = code->address;
    opened.prot = code->prot;
    __atomic_store_n(&opened.size, code->size, __ATOMIC_RELEASE); /* last: a child acts on it */
    int64_t r = psu_syscall(NR_mprotect, code->address, code->size, code->prot | PSU_PROT_WRITE);
    if (r < 0) {
        protect_again(); /* it may have been done for a part */
        return r;
    }
    for (uint32_t i = 0; i < count && r == 0; i++)
        if (load(turns[i].at, code->unit) != turns[i].before) {
            *failed = i;
            r = -PSU_EBUSY;
        }
    for (uint32_t i = 0; i < count && r == 0; i++) {
        store(turns[i].at, code->unit, turns[i].after);
        psu_code_written(turns[i].at, code->unit);
    }
    int64_t again = protect_again();
    if (r == 0)
        r = again;
    return r == 0 ? psu_membarrier_code() : r;
}

/* In a fork child, before its own agent serves: the parent's may have been in the middle. */
void psu_turn_repair(void)
{
    if (opened.size)
        protect_again();
}
