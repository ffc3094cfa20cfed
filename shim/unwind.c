/* SPDX-License-Identifier: MIT
 *
 * unwind.c: leaving a gate by unwinding (C++ exceptions, pthread_cancel, pthread_exit) is leaving it, and is counted.
 *
 * The gates' unwind rules name a personality routine for each pool.  The unwinder calls it for every frame it goes
 * through; in the cleanup phase the frame is as good as gone.  The program counter says what the gate had done by then:
 * normally it is in the middle of the call, but an asynchronous cancellation can hit any instruction.
 */
#include "internal.h"

/* Itanium C++ ABI, level I */
enum { CONTINUE_UNWIND = 8, CLEANUP_PHASE = 2 };
struct _Unwind_Context;
/* A program linked with -static-libgcc has an unwinder whose functions nobody can find.  Where its context keeps the
 * program counter is known for each architecture (CONTEXT_RA in arch.h; struct _Unwind_Context: registers, CFA, return
 * address), and what we read must be an address in a gate of the right kind, or it is not used.  The frame's registers
 * are out of reach: a side-frame entry is lost then. */

extern uint64_t _Unwind_GetIP(struct _Unwind_Context *) __attribute__((weak, visibility("default")));
extern uint64_t _Unwind_GetGR(struct _Unwind_Context *, int) __attribute__((weak, visibility("default")));


/* A C program gets libgcc_s only when it first unwinds, as a private library of the C library: find it there.  Looking takes
 * the dynamic linker's lock, which may be held by a thread that waits for this one (a constructor that joins it): the agent
 * has looked before, and what is found stays loaded. */
static uint64_t (*found_ip)(struct _Unwind_Context *);
static uint64_t (*found_register)(struct _Unwind_Context *, int);

void psu_unwinder_find(void)
{
    if (_Unwind_GetIP || __atomic_load_n(&found_ip, __ATOMIC_ACQUIRE))
        return;
    void *library = psu_open_library("libgcc_s.so.1", 0);
    if (!library)
        return;
    void *ip = psu_find_symbol(library, "_Unwind_GetIP", 0), *get = psu_find_symbol(library, "_Unwind_GetGR", 0);
    if (!ip || !get) {
        psu_close_library(library);
        return;
    }
    __atomic_store_n((void **)&found_register, get, __ATOMIC_RELAXED);
    __atomic_store_n((void **)&found_ip, ip, __ATOMIC_RELEASE);
}

static int personality(uint32_t kind, int actions, struct _Unwind_Context *context)
{
    if (!(actions & CLEANUP_PHASE))
        return CONTINUE_UNWIND;
    psu_unwinder_find();
    uint64_t (*get_ip)(struct _Unwind_Context *) = _Unwind_GetIP ? _Unwind_GetIP : found_ip;
    uint64_t (*get_register)(struct _Unwind_Context *, int) = _Unwind_GetGR ? _Unwind_GetGR : found_register;
    struct psu_block *b = psu_block_get();
    uint64_t ip = get_ip ? get_ip(context) : ((uint64_t *)context)[CONTEXT_RA];
    struct psu_gate *g = psu_gate_at(kind, ip);
    if (!g)
        return CONTINUE_UNWIND;
    uint32_t offset = (uint32_t)(ip - psu_gate_first(kind, g)), look = psu_kinds[kind].look;
    if (look && offset >= look) /* nothing was done yet */
        return CONTINUE_UNWIND;
    struct psu_gate_state state = psu_gate_state(kind, offset);
    if (get_register && state.entry >= 0) {
        struct psu_side *s = (struct psu_side *)get_register(context, state.entry);
        /* One of poor.c's, or another thread's: a later call at its place of the stack takes it. */
        if (psu_spare(s) || !b)
            goto count;
        /* The unwinder is about to read the caller's registers from the entry; a signal handler must not be given it
         * before that.  So it goes back to the list with the next one. */
        struct psu_side *last = b->deferred;
        if (last && psu_take_word((uint64_t *)&b->deferred, (uint64_t)last))
            psu_side_release(b, last);
        s->sp = 1; /* in use, at no place of the stack, for those who look for abandoned ones */
        psu_side_give_save(b, s);
        b->deferred = s;
    }
count:
    if (state.counted)
        psu_count_leave(g->counter / 8);
    return CONTINUE_UNWIND;
}

/* A call whose registers are on the stack (poor.c) is counted out where it would return to; anywhere else in that frame its
 * count stays too high. */
static int stacked_personality(int actions, struct _Unwind_Context *context)
{
    if (!(actions & CLEANUP_PHASE))
        return CONTINUE_UNWIND;
    psu_unwinder_find();
    uint64_t (*get_ip)(struct _Unwind_Context *) = _Unwind_GetIP ? _Unwind_GetIP : found_ip;
    uint64_t (*get_register)(struct _Unwind_Context *, int) = _Unwind_GetGR ? _Unwind_GetGR : found_register;
    if (!get_ip || !get_register || get_ip(context) != (uint64_t)psu_stacked_back)
        return CONTINUE_UNWIND;
    struct psu_gate *g = psu_gate_at(PSU_FULL, psu_stacked_frame(get_register(context, PSU_FRAME_POINTER))->back);
    if (g)
        psu_count_leave(g->counter / 8);
    return CONTINUE_UNWIND;
}

#define PERSONALITY(name, result) \
    int name(int version, int actions, uint64_t class, void *exception, struct _Unwind_Context *context); \
    int name(int version, int actions, uint64_t class, void *exception, struct _Unwind_Context *context) \
    { \
        (void)version, (void)class, (void)exception; \
        return result; \
    }

PERSONALITY(psu_plain_personality, personality(PSU_PLAIN, actions, context))
PERSONALITY(psu_side_personality, personality(PSU_SIDE, actions, context))
PERSONALITY(psu_full_personality, personality(PSU_FULL, actions, context))
PERSONALITY(psu_stacked_personality, stacked_personality(actions, context))
