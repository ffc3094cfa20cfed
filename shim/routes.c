/* SPDX-License-Identifier: MIT
 *
 * routes.c: the decisions behind arch/ARCH/routes.S.  Runs on application threads in the middle of their calls:
 * async-signal-safe, no lock, no vector register.
 *
 * What struct psu_frame holds is the architecture's; here it has these parts: `back`, an address in the gate;
 * `target`, the answer for actions that jump; and what the psu_frame_ functions of arch.h get and set: what the gate
 * wants back (its block, a free side-frame entry), and the frame pointer and return address of the gate's caller.
 */
#include "internal.h"

_Static_assert(sizeof(struct psu_gate) == GATE_SIZE, "GATE_SIZE");
_Static_assert(offsetof(struct psu_gate, code) == GATE_CODE, "GATE_CODE");
_Static_assert(offsetof(struct psu_gate, counter) == GATE_COUNTER, "GATE_COUNTER");
_Static_assert(offsetof(struct psu_gate, body) == GATE_BODY, "GATE_BODY");
_Static_assert(offsetof(struct psu_gate, base) == GATE_BASE, "GATE_BASE");
_Static_assert(offsetof(struct psu_gate, span) == GATE_SPAN && GATE_SPAN == GATE_BASE + 8, "GATE_SPAN");
#define IN_BLOCK(field) ((long)offsetof(struct psu_block, field) - (long)offsetof(struct psu_block, count))
_Static_assert(IN_BLOCK(free) == BLOCK_FREE, "BLOCK_FREE");
_Static_assert(IN_BLOCK(count) == BLOCK_ENTER, "BLOCK_ENTER");
_Static_assert(IN_BLOCK(count) + (int)offsetof(struct psu_counter, leave) == BLOCK_LEAVE, "BLOCK_LEAVE");
_Static_assert(offsetof(struct psu_side, saved_fp) == SIDE_FP, "SIDE_FP");
_Static_assert(offsetof(struct psu_side, return_address) == SIDE_RETURN, "SIDE_RETURN");
_Static_assert(offsetof(struct psu_side, next) == SIDE_NEXT && offsetof(struct psu_side, sp) == SIDE_SP, "SIDE_NEXT");
_Static_assert(offsetof(struct psu_side, home) == SIDE_HOME, "SIDE_HOME");

uint32_t psu_slow_enter(struct psu_frame *f);
uint32_t psu_slow_leaving(struct psu_frame *f);
uint32_t psu_slow_side(struct psu_frame *f);
uint32_t psu_route(struct psu_frame *f, uint32_t how);
uint32_t psu_entering_full(struct psu_frame *f);
uint32_t psu_leaving_full(struct psu_frame *f, struct psu_side *side);

/* An asynchronous cancellation can unwind from any instruction here.  Whoever counts a call out sees to it first that
 * unwinders go past the gate: its personality routine would count the call out again, and a version would be unmapped
 * under another thread.  Cancelled in between, the count stays too high, which is safe. */
#define UNWINDS_PAST_THE_GATE() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* Takes the gate's own count of a call in when there is no memory for a real block; the true count is in psu_shared. */
static struct psu_block nowhere;

static struct psu_gate *gate_of(uint64_t back)
{
    for (uint32_t kind = 0; kind < PSU_GATE_KINDS; kind++) {
        struct psu_gate *g = psu_gate_at(kind, back);
        if (g)
            return g;
    }
    return 0; /* not reached: only gates call us */
}

uint8_t psu_objects_without_gate[PSU_INDICES];

static void shared_enter(const struct psu_gate *g)
{
    __atomic_add_fetch(&psu_shared[g->counter / 8].enter, 1, __ATOMIC_SEQ_CST);
}

uint32_t psu_slow_enter(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    if (!b) {
        shared_enter(gate_of(f->back));
        b = &nowhere;
    }
    psu_frame_give_block(f, PSU_SELF(b));
    return PSU_RETURN;
}

/* Without a block the call is counted out here, and the gate is not gone back to.  A side-frame entry is another thread's
 * then: that one finds it as one of a call that is gone. */
PSU_LEAVING uint32_t psu_slow_leaving(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    if (b) {
        psu_frame_give_block(f, PSU_SELF(b));
        return PSU_RETURN;
    }
    const struct psu_gate *g = gate_of(f->back);
    uint32_t kind = psu_gate_at(PSU_PLAIN, f->back) ? PSU_PLAIN : PSU_SIDE;
    psu_frame_leave(f, kind);
    UNWINDS_PAST_THE_GATE();
    __atomic_add_fetch(&psu_shared[g->counter / 8].leave, 1, __ATOMIC_RELEASE);
    return kind == PSU_PLAIN ? PSU_LEFT_PLAIN : PSU_LEFT;
}

/* Where a call that was counted in `g` goes.  *undo: not to g's own version, so the gate must be undone first.
 *
 * commit_seq is read first: with the transaction numbers read later, a number newer than it means "not yet".  The agent
 * stores before/after ahead of the number that makes them valid (commit.c, arm), hence acquire.  `body` cannot change:
 * the call is counted, so the object is not free, so the gate is not given a new version. */
static uint64_t pending(struct psu_gate *g, int *undo)
{
    uint64_t now = __atomic_load_n(&psu_runtime.commit_seq, __ATOMIC_ACQUIRE);
    *undo = 1;
    if (now < __atomic_load_n(&g->enter_txn, __ATOMIC_ACQUIRE))
        return g->before;
    uint64_t exit = __atomic_load_n(&g->exit_txn, __ATOMIC_ACQUIRE);
    if (exit && now >= exit)
        return g->after;
    *undo = 0;
    return g->body;
}

static uint64_t redirected(const struct psu_gate *g) { return __atomic_load_n((uint64_t *)g->slot, __ATOMIC_ACQUIRE); }

uint64_t psu_destination(struct psu_gate *g, int *undo)
{
    *undo = 0;
    uint64_t code = __atomic_load_n(&g->code, __ATOMIC_ACQUIRE);
    const struct psu_kind *kind = psu_kinds;
    while (!psu_gate_first((uint32_t)(kind - psu_kinds), g))
        kind++;
    if (code == (uint64_t)kind->pending)
        return pending(g, undo);
    if (code != (uint64_t)kind->redirect)
        return code;
    *undo = 1;
    return redirected(g);
}

/* No memory for what a SIDE gate must keep: count the call in for good and jump to where it goes, without the gate.  The
 * object will never be freed, which is safe. */
static uint64_t without_gate(struct psu_gate *g)
{
    int undo;
    shared_enter(g);
    __atomic_store_n(&psu_objects_without_gate[g->counter / 8], 1, __ATOMIC_SEQ_CST);
    uint64_t code = psu_destination(g, &undo);
    if (undo)
        __atomic_add_fetch(&psu_shared[g->counter / 8].leave, 1, __ATOMIC_RELEASE);
    return code;
}

uint32_t psu_slow_side(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    const struct psu_call call = psu_frame_side_call(f);
    struct psu_side *s = b ? psu_side_claim(b, &call) : 0;
    if (!s) {
        f->target = without_gate(gate_of(f->back));
        psu_frame_undo_side(f);
        return PSU_UNDONE;
    }
    psu_note_start_routine(b, s, &call, gate_of(f->back)); /* which is a thread's first call: later ones find a block */
    psu_side_release(b, s); /* the gate claims it: the first of the list */
    psu_frame_give_block(f, PSU_SELF(b));
    psu_frame_give_entry(f, (uint64_t)s);
    return PSU_RETURN;
}

static inline void give_back(struct psu_block *b, struct psu_side *s)
{
    if (psu_spare(s)) {
        psu_spare_release(s);
    } else if (b) {
        psu_side_give_save(b, s);
        psu_side_release(b, s);
    }
}

/* how: kind + 256 * redirect.
 *
 * The fence orders two loads that gates made, of `code` here and in gates that this thread passed before, ahead of all
 * that is read now.  `code` is stored after the fields that it makes valid (commit.c, arm) and, when a gate settles,
 * after commit_seq: without the fence a processor that reorders loads could run the new version of one function (its
 * `code` was settled) and read here, for the next, a commit_seq from before the commit.  It costs the fast path
 * nothing. */
PSU_LEAVING uint32_t psu_route(struct psu_frame *f, uint32_t how)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    uint32_t kind = how & 255;
    struct psu_gate *g = psu_gate_at(kind, f->back);
    int undo = 1;
    f->target = how & 256 ? redirected(g) : pending(g, &undo);
    if (!undo)
        return PSU_RETURN;
    if (kind == PSU_PLAIN) {
        psu_frame_undo_plain(f);
    } else {
        struct psu_side *s = (struct psu_side *)psu_frame_pointer(f);
        struct psu_block *b = psu_block_get();
        psu_start_routine_over(b, s);
        psu_frame_return_to(f, s->saved_fp, s->return_address);
        give_back(b, s);
    }
    UNWINDS_PAST_THE_GATE();
    psu_count_leave(g->counter / 8);
    return PSU_UNDONE;
}

/* ---- PSU_FULL --------------------------------------------------------------------------------------- */

/* Copies the general registers in `which`, bits of psu_gate.preserve, from or to the area. */
static void copy_general(struct psu_frame *f, struct psu_save *save, uint32_t which, int restore)
{
    for (which &= PSU_GENERAL_BITS; which; which &= which - 1) {
        uint32_t n = (uint32_t)__builtin_ctz(which);
        uint64_t *in_frame = psu_frame_register(f, n);
        if (!in_frame) /* callee-saved: not ours to restore */
            continue;
        if (restore)
            *in_frame = save->general[n];
        else
            save->general[n] = *in_frame;
    }
}

uint32_t psu_entering_full(struct psu_frame *f)
{
    struct psu_gate *g = psu_gate_at(PSU_FULL, f->back);
    struct psu_block *b = psu_block_get();
    const struct psu_call call = psu_frame_full_call(f);
    struct psu_side *s = b ? psu_side_claim(b, &call) : 0;
    struct psu_save *save = s && g->preserve ? psu_save_claim(b) : 0;
    if (!s || (g->preserve && !save)) {
        if (s)
            psu_side_release(b, s);
        return psu_entering_poor(f, g, &call);
    }
    s->save = save; /* before another call: where the stack is used up, a handler may leave from any, and often from the same */
    psu_full_keep(f, g, s, save);
    psu_note_start_routine(b, s, &call, g);
    psu_count(&b->count[g->counter / 8].enter);
    return PSU_RETURN;
}

void psu_full_keep(struct psu_frame *f, const struct psu_gate *g, struct psu_side *s, struct psu_save *save)
{
    s->saved_fp = psu_frame_pointer(f);
    s->return_address = psu_frame_caller(f);
    s->gate = (uint64_t)g;
    s->save = save;
    if (save) {
        copy_general(f, save, g->preserve, 0);
        if (g->preserve >> 16)
            psu_vectors_save(save->vector, g->preserve >> 16);
    }
    f->target = (uint64_t)s; /* becomes the frame pointer */
}

PSU_LEAVING uint32_t psu_leaving_full(struct psu_frame *f, struct psu_side *s)
{
    struct psu_gate *g = (struct psu_gate *)s->gate;
    struct psu_save *save = s->save;
    struct psu_block *b = psu_block_get();
    if (save) {
        copy_general(f, save, g->preserve, 1);
        if (g->preserve >> 16)
            psu_vectors_restore(save->vector, g->preserve >> 16);
    }
    give_back(b, s);
    psu_count_leave(g->counter / 8);
    return PSU_RETURN;
}
