/* SPDX-License-Identifier: MIT
 *
 * poor.c: a PSU_FULL gate that gets no memory for what it must keep (none is left, or psu_runtime.silent forbids to ask).
 *
 * Callers of such a gate rely on registers that the new version changes: to go on without the gate is to give them wrong
 * results.  In this order, each right without the next:
 *
 *   1. The version and the original touch no stack arguments (psu_switch.otherwise is PSU_ON_STACK; nearly all functions
 *      with such callers are like that: 523 of 525 in redis, memcached, sqlite, nginx and lua).  Then the frame may move:
 *      what routes.S pushed stays on the stack, vector registers go below it, the version is called below that, and returns
 *      to psu_stacked_back.  It takes no memory but the thread's own stack, so it cannot fail.
 *   2. One of PSU_SPARES areas that all threads share.  Whoever claims one is its owner: one compare-and-swap of `sp`, so it
 *      does not matter who is interrupted where; nothing else in it is looked at before.  What calls leave behind (longjmp,
 *      an unwinder, a cancelled thread) is taken again by a call that stands at the same place of the stack: two cannot,
 *      but for those in a chain of tail calls, which are known (entries.c has the argument).  In a fork child the areas
 *      of threads that are not there stay taken.
 *   3. The original code, when the callers rely on nothing but what it leaves alone: not the newest version, but right for
 *      the callers.  It is not counted.
 *   4. Neither (callers in patches, which were compiled with another version, rely on more; or there is no original): the
 *      version without the gate, which is right for the callers in its own patch.  It takes PSU_SPARES calls at one time,
 *      all without memory, of functions with stack arguments.  Counted in for good: its object is never freed.
 *
 * Counting comes before the look at `code`, as in every gate (I4); `otherwise` is read after it, so it is that of the
 * version which `code` leads to: a gate is given to another one only when nobody is counted in it.
 */
#include "internal.h"

#define PSU_SPARES 64

uint64_t psu_full_otherwise[PSU_FULL_GATES];

static struct { struct psu_side side; struct psu_save save; } spares[PSU_SPARES];

int psu_spare(const struct psu_side *s) { return (uint64_t)s - (uint64_t)spares < sizeof spares; }

void psu_spare_release(struct psu_side *s) { __atomic_store_n(&s->sp, 0, __ATOMIC_RELEASE); }

static struct psu_side *claim(const struct psu_call *call)
{
    const struct psu_side *live[PSU_TAIL_CALLS];
    const uint64_t mine = call->sp | PSU_IN_USE;
    int length = psu_tail_callers(call, live);
    for (int i = 0; length >= 0 && i < PSU_SPARES; i++)
        if (__atomic_load_n(&spares[i].side.sp, __ATOMIC_ACQUIRE) == mine) {
            int tail_caller = 0;
            for (int j = 0; j < length; j++)
                tail_caller |= live[j] == &spares[i].side;
            if (!tail_caller)
                return &spares[i].side;
        }
    for (int i = 0; i < PSU_SPARES; i++) {
        uint64_t free = 0;
        if (__atomic_compare_exchange_n(&spares[i].side.sp, &free, mine, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return &spares[i].side;
    }
    return 0;
}

static void count_enter(uint32_t index)
{
    struct psu_block *b = psu_block_get();
    if (b)
        psu_count(&b->count[index].enter);
    else
        __atomic_add_fetch(&psu_shared[index].enter, 1, __ATOMIC_SEQ_CST);
}

uint32_t psu_entering_poor(struct psu_frame *f, struct psu_gate *g, const struct psu_call *call)
{
    const uint32_t index = g->counter / 8;
    int undo;
    count_enter(index);
    f->target = psu_destination(g, &undo);
    if (undo) {
        psu_count_leave(index);
        return PSU_UNDONE;
    }
    uint64_t otherwise = psu_full_otherwise[g - psu_kinds[PSU_FULL].data];
    if (otherwise == PSU_ON_STACK) {
        psu_frame_stack(f);
        return PSU_STACKED | psu_stacked_size(g->preserve >> 16) << 8;
    }
    struct psu_side *s = claim(call);
    if (s) {
        psu_full_keep(f, g, s, &((__typeof__(&spares[0]))s)->save);
        return PSU_RETURN;
    }
    if (otherwise) {
        f->target = otherwise;
        psu_count_leave(index);
    } else {
        __atomic_store_n(&psu_objects_without_gate[index], 1, __ATOMIC_SEQ_CST);
    }
    return PSU_UNDONE;
}

/* ---- on the stack ----------------------------------------------------------------------------------- */

void psu_stacking(struct psu_frame *f);
void psu_unstacking(struct psu_frame *now, struct psu_frame *f);

/* Right below what routes.S pushed: the vector registers. */
static void *vectors(struct psu_frame *f) { return (uint8_t *)f - PSU_SAVED_VECTORS * PSU_VECTOR_SIZE; }

void psu_stacking(struct psu_frame *f)
{
    uint32_t which = psu_gate_at(PSU_FULL, f->back)->preserve >> 16;
    if (which)
        psu_vectors_save(vectors(f), which);
}

/* `now` holds the registers as the version returned them; of psu_frame it has the registers only. */
void psu_unstacking(struct psu_frame *now, struct psu_frame *f)
{
    const struct psu_gate *g = psu_gate_at(PSU_FULL, f->back);
    for (uint32_t which = g->preserve & PSU_GENERAL_BITS; which; which &= which - 1) {
        uint32_t n = (uint32_t)__builtin_ctz(which);
        uint64_t *register_now = psu_frame_register(now, n);
        if (register_now)
            *register_now = *psu_frame_register(f, n);
    }
    if (g->preserve >> 16)
        psu_vectors_restore(vectors(f), g->preserve >> 16);
    psu_count_leave(g->counter / 8);
}
