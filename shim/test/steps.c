/* SPDX-License-Identifier: MIT
 *
 * steps.c: calls through gates of all kinds for a debugger to single-step: see steps.py.  Between start_steps and
 * end_steps every instruction is executed below caller(), which main() calls.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "host.h"

long work(long a, long b, long c, long d, long e, long f, long on_stack);
long work_original(long a, long b, long c, long d, long e, long f, long on_stack)
{
    return a + b + c + d + e + f + on_stack;
}
STUB(work);
__attribute__((noinline)) static long version(long a, long b, long c, long d, long e, long f, long on_stack)
{
    (void)on_stack;
    return a + b + c + d + e + f;
}

__attribute__((noinline, noclone)) void start_steps(const char *what) { __asm__ volatile("" : : "r"(what)); }
__attribute__((noinline)) void end_steps(void) { __asm__ volatile(""); }

__attribute__((noinline, noclone)) long caller(const char *what)
{
    start_steps(what);
    long r = work(1, 2, 3, 4, 5, 6, 7);
    end_steps();
    return r;
}

int main(void)
{
    host_agent();
    static const char *const names[] = {"plain", "side", "full"};
    /* Straight to the function: code in an object would need unwind rules of its own. */
    /* A slot near the shim, as a library's would be, so that the gates are those in the shim, which debuggers know. */
    uint64_t *slot = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *slot = work_slot;
    /* Without memory: registers on the stack, and in an area that all threads share.  First, while there is no block. */
    psu_runtime.silent = 1;
    for (uint32_t n = 0; n < 2; n++) {
        void *page = host_jump_to(version);
        struct host_switch s = {slot, 0, (uint64_t)page, PSU_FULL, 4 + n, 0x60006};
        host_otherwise = n ? 0 : PSU_ON_STACK;
        CHECK(host_commit(5 + n, page, &s, 1, n ? 5 : -1) == 0);
        host_gate(PSU_FULL, 4 + n)->code = (uint64_t)version;
        work_slot = *slot;
        CHECK(caller(n ? "spare" : "stacked") >= 21);
    }
    CHECK(!psu_runtime.blocks);
    psu_runtime.silent = 0;
    struct psu_gate *old = 0;
    uint64_t old_entry = 0;
    for (uint32_t kind = 0; kind < PSU_GATE_KINDS; kind++) {
        void *page = host_jump_to(version);
        struct host_switch s = {slot, 0, (uint64_t)page, kind, 3, kind == PSU_FULL ? 0x60006 : 0};
        CHECK(host_commit(kind, page, &s, 1, (int64_t)kind - 1) == 0);
        struct psu_gate *g = host_gate(kind, 3);
        g->code = (uint64_t)version;
        uint64_t now = work_slot = *slot;
        CHECK(caller(names[kind]) >= 21);
        CHECK(caller("again") >= 21);
        if (kind != PSU_FULL) { /* by the entry that looks; then as if the caller was in the version's object */
            work_slot = now + psu_runtime.pool[kind].look;
            CHECK(caller("look") >= 21);
            uint64_t enters = g->counter, base = g->base, body = g->body;
            enters = ((struct psu_block *)psu_runtime.blocks)->count[enters / 8].enter;
            g->base = (uint64_t)caller;
            g->body = (uint64_t)version;
            CHECK(caller("inner") >= 21);
            CHECK(((struct psu_block *)psu_runtime.blocks)->count[g->counter / 8].enter == enters, "counted");
            g->base = base;
            g->body = body;
            work_slot = now;
        }
        if (old) { /* a late call of the retired gate: undone, then through the slot */
            work_slot = old_entry;
            old->slot = (uint64_t)&now;
            CHECK(caller("retired") >= 21);
            work_slot = now;
        }
        old = g;
        old_entry = now;
    }
    puts("ok");
    return 0;
}
