/* SPDX-License-Identifier: MIT
 *
 * commit.c: make a set of new versions current, all at one instant, while every thread goes on.
 *
 * Order, and why (S: slot, A: the gate it leads to now or the original code, B: the gate of the new version):
 *
 *   1. check everything; refuse with nothing changed.  A gate that was never used gets all that is its own for ever:
 *      counter, preserve, span, slot, and code = redirect, and each gets its entry and the base of its new object; then a barrier.  Stub and gate load the slot, then words of the
 *      gate, and AArch64 does not order these loads: without the barrier a thread that finds B in S could read zeros.
 *      Calls from inside A's object went to A's body until psu-bin turned them (turn.c), before this: they go through S,
 *      too, which changes nothing but that they are counted.  One that went to the body has its caller's count, which
 *      keeps the object for both.  Calls from inside B's object go to B's body from the beginning: who makes them has
 *      seen the commit.
 *   2. arm B: body, enter_txn = n+1, before = A, and last code = pending.  Nobody can reach B yet, but for a thread
 *   that
 *      loaded S in an earlier life of B: it finds the old redirection or the complete new words, because `code`
 *      is stored last (release; its pair is the gate's load of code, then of the rest: routes.c).
 *   3. S := B.  From here calls of S go to B, are counted there, find `pending`, and, as commit_seq is still n, B is
 *      undone and they go to A.  For a way back to the original, A itself is armed (after, exit_txn, code = pending)
 *      and S stays: pending at A goes on to A's body while commit_seq is n.
 *   4. barrier: no thread is left with an older S in hand that it loaded before step 3 and will *count* later without
 *   seeing
 *      what follows; whoever still carries A's address began its call before the commit.
 *   5. commit_seq := n+1: the commit, one aligned 8-byte store (I5).  Every pending gate of every function of
 *      this record changes its answer at this store.  A thread that saw one function's new version has seen the
 *      store, so it sees it at the next function too (loads are in order on x86-64; on AArch64 routes.c loads acquire).
 *   6. settle: B.code := body; S := original where going back.  Faster, same answers.
 *   7. A.code := redirect for every gate that was left.  Late threads at A undo A and go through S again, but for those that
 *      come from inside A's object (below): they run A's body, uncounted.
 *   8. barrier (I4): each thread has either made its count at A visible, or will load A.code = redirect.  Only now an
 *   object
 *      may be RETIRED: from here "enters == leaves" means that nobody is inside nor will be: who is not counted has a
 *      caller inside.
 *
 * Inner calls.  A gate of PLAIN or SIDE has two entries (gates.S).  The second one looks first whether the call comes from the
 * object P that its body is in: whether the return address is in [base, base + span), which are the addresses behind P's
 * instructions.  Then it jumps to the body, as inner.py's direct calls do: the caller, an activation in P, will be returned to, and
 * it is counted, itself or through the one that called it so, up to a call that came from outside; all of them are on this stack
 * below, so P stays until the body has returned.  (A tail call has its caller's return address, so the gate's own where that was counted.  "Is this thread counted
 * in P?" would not do: a program may leave that stack for another one, and finish the counted call first.)  Where code may come
 * to be in P on a stack without a counted call, by instructions that move the stack pointer, psu-bin does not ask for that entry
 * (inner.py, looks), nor where it would cost more than it saves; then every call is counted, and the look costs nothing.
 *   A switch says which entry S leads to in step 3, and `entry` keeps it as long as S leads there: a gate that is bound anew is in
 * no slot.  But threads may come late to either entry, which they loaded in an earlier life of the gate.  At the first they are
 * counted, which is right wherever they come from.  At the second, while S leads to the first, they are counted, too, as `base` is
 * PSU_NOWHERE then from step 1 on; or they read the base of an earlier life, which is the next case.
 *   A gate is used again for another object R at P's place in the table, when P is free.  A late thread, which loaded S when
 * it led here, may read `base` at any time in between.  Its return address is in code that is there as long as the call
 * is: not in P, which was freed, nor in R, which came later.  So neither of the two matches; but half of each might, so
 * `base` is one word, read once, and `span` never changes (a gate whose next object is smaller is without inner calls).
 *   The new base is stored before step 1's barrier, so who finds the gate in S reads it or a newer one, not one whose
 * addresses are others' by now.  Who is in P has seen the commit, which comes after step 4's barrier: it reads P's body.
 *   A call that read A's base before step 4's barrier goes to A's body, and began before the commit.  On the way
 * to a later version B is in S from step 3 on, and its base is another; on the way back to the original, A stays in S and would
 * answer its own calls without asking for the commit: so its base is taken away when it is armed.
 *
 * Each step can be done again without harm, which psu_commit_repair uses in a fork child whose parent was half-way.
 */
#include "internal.h"

enum { FUTEX_WAIT_PRIVATE = 128 };

uint32_t psu_live_gates[PSU_INDICES];
struct psu_object psu_objects[PSU_INDICES];

struct record {
    const struct psu_commit *head;
    const struct psu_new_object *objects;
    const struct psu_switch *switches;
    const uint32_t *retires;
};

/* What is under way, for a fork child that inherits it.  Set after step 1, cleared at the end. */
static struct { struct record record; uint64_t txn; } under_way;

/* Marks of the checks, valid when they carry the number of this check: no clearing, no memory of their own. */
static uint32_t check_number;
static struct { uint32_t check; int32_t delta; uint8_t new, retired; } object_mark[PSU_INDICES];
static uint32_t gate_mark[PSU_GATE_KINDS][8192];

static struct psu_gate *gate_of(uint32_t kind, uint32_t gate, uint64_t slot)
{
    return kind < PSU_GATE_KINDS && gate < psu_kinds[kind].count ? psu_gate_data(kind, gate, slot) : 0;
}
static struct psu_gate *old_gate(const struct psu_switch *s) { return gate_of(s->old_kind, s->old_gate, s->slot); }
static struct psu_gate *new_gate(const struct psu_switch *s) { return gate_of(s->kind, s->gate, s->slot); }

/* ---- 1. check --------------------------------------------------------------------------------------- */

static int mark_gate(uint32_t kind, uint32_t gate)
{
    if (gate_mark[kind][gate] == check_number)
        return 0;
    gate_mark[kind][gate] = check_number;
    return 1;
}

static void touch(uint32_t index)
{
    if (object_mark[index].check != check_number) {
        object_mark[index].check = check_number;
        object_mark[index].delta = 0;
        object_mark[index].new = object_mark[index].retired = 0;
    }
}

/* Reading a bad slot address must be an error, not a crash.  A futex wait of no time reads it in the kernel; it is the
 * one such call that every sandbox allows. */
static int64_t load_slot(uint64_t slot, uint64_t *value)
{
    struct { int64_t s, ns; } no_time = {0, 0};
    if (!slot || slot % 8)
        return -PSU_EINVAL;
    if (psu_syscall(NR_futex, slot, FUTEX_WAIT_PRIVATE, 0, &no_time) == -PSU_EFAULT)
        return -PSU_EFAULT;
    *value = __atomic_load_n((uint64_t *)slot, __ATOMIC_RELAXED);
    return 0;
}

static int64_t check_object(const struct psu_new_object *o)
{
    if (o->index >= PSU_INDICES || psu_objects[o->index].state != PSU_FREE)
        return -PSU_EINVAL;
    touch(o->index);
    if (object_mark[o->index].new)
        return -PSU_EINVAL;
    object_mark[o->index].new = 1;
    for (int i = 0; i < PSU_REGIONS; i++)
        if (o->region[i].size && psu_staged(o->region[i].address, o->region[i].size, 0) < 0)
            return -PSU_EINVAL;
    return 0;
}

/* The region of the new object that `body` is in: its size (0: there is none), and `start`.
 * An object without memory stands for code of the program, an original behind a gate (psu_bin/attach/originals.py). */
static uint64_t region_of(const struct record *r, uint32_t index, uint64_t body, uint64_t *start)
{
    for (uint32_t i = 0; i < r->head->objects; i++)
        if (r->objects[i].index == index) {
            uint64_t all = 0;
            for (int j = 0; j < PSU_REGIONS; j++) {
                uint64_t size = r->objects[i].region[j].size;
                *start = r->objects[i].region[j].address;
                if (body - *start < size)
                    return size;
                all |= size;
            }
            return !all && body;
        }
    return 0;
}

static int64_t check_switch(const struct record *r, const struct psu_switch *s)
{
    uint64_t now;
    int64_t error = load_slot(s->slot, &now);
    if (error)
        return error;
    if (s->old_kind == PSU_NO_GATE) {
        for (uint32_t k = 0; k < PSU_GATE_KINDS; k++)
            if (psu_gate_at(k, now))
                return -PSU_EBUSY; /* the record was made from stale notes */
    } else {
        struct psu_gate *old = old_gate(s);
        if (!old || old->slot != s->slot || !psu_gate_live(&psu_kinds[s->old_kind], old)
            || !mark_gate(s->old_kind, s->old_gate))
            return -PSU_EINVAL;
        if (now != psu_gate_entry(s->old_kind, old))
            return -PSU_EBUSY;
        touch(old->counter / 8);
        object_mark[old->counter / 8].delta--;
    }
    if (s->to_original)
        return s->old_kind == PSU_NO_GATE ? -PSU_EINVAL : 0;
    if (s->kind < PSU_GATE_KINDS && s->gate < psu_kinds[s->kind].count)
        psu_gate_prepare(s->kind, s->gate, s->slot);
    struct psu_gate *new = new_gate(s);
    if (!new || s->index >= PSU_INDICES || psu_gate_live(&psu_kinds[s->kind], new) || !mark_gate(s->kind, s->gate))
        return -PSU_EINVAL;
    if (new->slot && (new->slot != s->slot || new->counter != 8 * s->index)) /* I3 */
        return -PSU_EINVAL;
    touch(s->index);
    uint64_t start;
    if (!object_mark[s->index].new || !region_of(r, s->index, s->body, &start) || (s->looks && !psu_kinds[s->kind].look))
        return -PSU_EINVAL;
    object_mark[s->index].delta++;
    return 0;
}

/* Nobody is counted at the gate, which is in no slot; and where it was never used nobody can reach it yet. */
static void bind(const struct record *r, const struct psu_switch *s)
{
    struct psu_gate *new = s->to_original ? 0 : new_gate(s);
    if (!new)
        return;
    uint64_t start, size = region_of(r, s->index, s->body, &start);
    if (!new->slot) {
        new->counter = 8 * s->index;
        new->preserve = s->kind == PSU_FULL ? s->preserve : 0;
        new->span = size;
        new->slot = s->slot;
        __atomic_store_n(&new->code, (uint64_t)psu_kinds[s->kind].redirect, __ATOMIC_RELEASE);
    }
    int looks = s->looks && new->span <= size;
    new->entry = looks ? psu_kinds[s->kind].look : 0;
    /* `start` itself is behind a call that ends the code in front of it */
    __atomic_store_n(&new->base, looks ? start + 1 : PSU_NOWHERE, __ATOMIC_RELAXED);
}

/* The gate is nobody's again if it was never armed: a refused transaction may not claim it. */
static void unbind(const struct psu_switch *s)
{
    struct psu_gate *new = s->to_original ? 0 : new_gate(s);
    if (!new || new->enter_txn)
        return;
    __atomic_store_n(&new->code, 0, __ATOMIC_RELEASE);
    new->slot = 0;
}

static int64_t check_retire(uint32_t index)
{
    if (index >= PSU_INDICES)
        return -PSU_EINVAL;
    touch(index);
    if (psu_objects[index].state != PSU_CURRENT && !object_mark[index].new) /* a new one that no switch leads to is not needed */
        return -PSU_EINVAL;
    if (object_mark[index].retired || psu_live_gates[index] + (uint32_t)object_mark[index].delta != 0)
        return -PSU_EINVAL;
    object_mark[index].retired = 1;
    return 0;
}

/* `failed` counts through objects, switches and retires in the order of the record. */
static int64_t check(const struct record *r, uint64_t *failed)
{
    int64_t error;
    if (psu_runtime.membarrier_error)
        return -(int64_t)psu_runtime.membarrier_error;
    check_number++;
    *failed = 0;
    for (uint32_t i = 0; i < r->head->objects; i++, ++*failed)
        if ((error = check_object(&r->objects[i])))
            return error;
    for (uint32_t i = 0; i < r->head->switches; i++, ++*failed)
        if ((error = check_switch(r, &r->switches[i])))
            return error;
    for (uint32_t i = 0; i < r->head->retires; i++, ++*failed)
        if ((error = check_retire(r->retires[i])))
            return error;
    if (r->head->meta && psu_staged(r->head->meta, r->head->meta_size, 1) < 0)
        return -PSU_EINVAL;
    *failed = 0;
    for (uint32_t i = 0; i < r->head->switches; i++)
        bind(r, &r->switches[i]);
    error = psu_membarrier(); /* it must work now, there is no way back later */
    for (uint32_t i = 0; error && i < r->head->switches; i++)
        unbind(&r->switches[i]);
    return error;
}

/* ---- 2, 3: arm, point ------------------------------------------------------------------------------- */

static void arm(const struct psu_switch *s, uint64_t txn)
{
    if (s->to_original) {
        struct psu_gate *old = old_gate(s);
        __atomic_store_n(&old->base, PSU_NOWHERE, __ATOMIC_RELAXED); /* who comes from inside has to ask, too */
        __atomic_store_n(&old->after, s->to_original, __ATOMIC_RELAXED);
        __atomic_store_n(&old->exit_txn, txn, __ATOMIC_RELEASE);
        __atomic_store_n(&old->code, (uint64_t)psu_kinds[s->old_kind].pending, __ATOMIC_RELEASE);
        return;
    }
    struct psu_gate *new = new_gate(s);
    new->preserve = s->kind == PSU_FULL ? s->preserve : 0;
    new->body = s->body;
    if (s->kind == PSU_FULL)
        psu_full_otherwise[s->gate] = s->otherwise;
    __atomic_store_n(&new->exit_txn, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&new->before, __atomic_load_n((uint64_t *)s->slot, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
    __atomic_store_n(&new->enter_txn, txn, __ATOMIC_RELEASE);
    __atomic_store_n(&new->code, (uint64_t)psu_kinds[s->kind].pending, __ATOMIC_RELEASE);
    psu_live_gates[s->index]++;
}

static void store_slot(uint64_t slot, uint64_t value) { __atomic_store_n((uint64_t *)slot, value, __ATOMIC_RELEASE); }

/* ---- 6, 7: settle, redirect ------------------------------------------------------------------------- */

static void settle(const struct psu_switch *s)
{
    if (s->to_original)
        store_slot(s->slot, s->to_original);
    else
        __atomic_store_n(&new_gate(s)->code, s->body, __ATOMIC_RELEASE);
}

static void redirect(uint32_t kind, struct psu_gate *g)
{
    if (psu_gate_live(&psu_kinds[kind], g)) {
        psu_live_gates[g->counter / 8]--;
        __atomic_store_n(&g->code, (uint64_t)psu_kinds[kind].redirect, __ATOMIC_RELEASE);
    }
}

/* ---- after the commit: everything here is bookkeeping of the agent ---------------------------------- */

static void finish(const struct record *r)
{
    for (uint32_t i = 0; i < r->head->switches; i++)
        settle(&r->switches[i]);
    for (uint32_t i = 0; i < r->head->switches; i++)
        if (r->switches[i].old_kind != PSU_NO_GATE)
            redirect(r->switches[i].old_kind, old_gate(&r->switches[i]));
    psu_membarrier(); /* 8 */
    for (uint32_t i = 0; i < r->head->objects; i++) {
        const struct psu_new_object *n = &r->objects[i];
        struct psu_object *o = &psu_objects[n->index];
        if (o->state != PSU_FREE)
            continue; /* done before, by a parent's agent */
        o->patch = n->patch;
        for (int j = 0; j < PSU_REGIONS; j++) {
            o->region[j].address = n->region[j].address;
            o->region[j].size = n->region[j].size;
            psu_unstage(n->region[j].address, n->region[j].size);
        }
        o->eh_frame = n->eh_frame;
        psu_debugger_add(n->index, n->symfile, n->symfile_size);
        __atomic_store_n(&o->state, PSU_CURRENT, __ATOMIC_RELEASE);
    }
    for (uint32_t i = 0; i < r->head->retires; i++)
        if (psu_objects[r->retires[i]].state == PSU_CURRENT) {
            __atomic_store_n(&psu_objects[r->retires[i]].state, PSU_RETIRED, __ATOMIC_RELEASE);
            psu_runtime.retired_count++;
        }
    for (uint32_t i = r->head->switches || r->head->meta ? psu_runtime.staged_count : 0; i-- > 0;)
        if (psu_runtime.staged[i].keep)
            psu_unstage_at(i);
    if (r->head->meta && r->head->meta != psu_runtime.meta) {
        uint64_t old = psu_runtime.meta, old_size = psu_runtime.meta_size;
        psu_runtime.meta_size = r->head->meta_size;
        __atomic_store_n(&psu_runtime.meta, r->head->meta, __ATOMIC_RELEASE);
        if (old)
            psu_syscall(NR_munmap, old, old_size);
    }
}

int64_t psu_commit(const struct psu_commit *head, size_t room, uint64_t *failed)
{
    struct record r = {.head = head};
    if (room < sizeof *head)
        return -PSU_EINVAL;
    room -= sizeof *head;
    if (head->objects > room / sizeof *r.objects)
        return -PSU_EINVAL;
    r.objects = (const struct psu_new_object *)(head + 1);
    room -= head->objects * sizeof *r.objects;
    if (head->switches > room / sizeof *r.switches)
        return -PSU_EINVAL;
    r.switches = (const struct psu_switch *)(r.objects + head->objects);
    room -= head->switches * sizeof *r.switches;
    if (head->retires > room / sizeof *r.retires)
        return -PSU_EINVAL;
    r.retires = (const uint32_t *)(r.switches + head->switches);

    int64_t error = check(&r, failed);
    if (error)
        return error;
    under_way.record = r;
    __atomic_store_n(&under_way.txn, psu_runtime.commit_seq + 1, __ATOMIC_SEQ_CST);
    for (uint32_t i = 0; i < head->objects; i++) {
        if (r.objects[i].index >= psu_runtime.object_limit) /* before the first count, see fold() and psu_reclaim() */
            psu_runtime.object_limit = r.objects[i].index + 1;
        psu_frames_add(&r.objects[i]);
    }
    for (uint32_t i = 0; i < head->switches; i++)
        arm(&r.switches[i], under_way.txn);
    for (uint32_t i = 0; i < head->switches; i++)
        if (!r.switches[i].to_original)
            store_slot(r.switches[i].slot, psu_gate_entry(r.switches[i].kind, new_gate(&r.switches[i])));
    psu_membarrier(); /* 4 */
    __atomic_store_n(&psu_runtime.commit_seq, under_way.txn, __ATOMIC_SEQ_CST);
    finish(&r);
    if (head->switches)
        psu_pins_keep();
    __atomic_store_n(&under_way.txn, 0, __ATOMIC_RELEASE);
    return 0;
}

/* Gates and their number change by two stores, and the repair makes the change once more. */
static void count_live_gates(void)
{
    __builtin_memset(psu_live_gates, 0, sizeof psu_live_gates);
    for (uint32_t kind = 0; kind < PSU_GATE_KINDS; kind++)
        for (uint32_t far = 0; far < (kind != PSU_FULL && psu_runtime.near_delta ? 2u : 1u); far++) {
            const struct psu_kind *k = &psu_kinds[kind];
            const struct psu_gate *g = (struct psu_gate *)((uint64_t)k->data + (far ? psu_runtime.near_delta : 0));
            for (uint32_t i = 0; i < k->count; i++)
                if (psu_gate_live(k, &g[i]))
                    psu_live_gates[g[i].counter / 8]++;
        }
}

/* In a fork child, before its own agent serves: the parent's agent may have been anywhere in psu_commit. */
void psu_commit_repair(void)
{
    const struct record *r = &under_way.record;
    uint64_t txn = __atomic_load_n(&under_way.txn, __ATOMIC_ACQUIRE);
    if (!txn)
        return;
    if (psu_runtime.commit_seq >= txn) {
        finish(r);
        psu_pins_keep();
    } else {
        for (uint32_t i = 0; i < r->head->switches; i++) {
            const struct psu_switch *s = &r->switches[i];
            if (s->to_original) {
                struct psu_gate *old = old_gate(s);
                __atomic_store_n(&old->code, old->body, __ATOMIC_RELEASE);
            } else {
                struct psu_gate *new = new_gate(s);
                if (*(uint64_t *)s->slot == psu_gate_entry(s->kind, new))
                    store_slot(s->slot, new->before);
                redirect(s->kind, new);
            }
        }
        psu_membarrier();
        for (uint32_t i = 0; i < r->head->objects; i++)
            psu_frames_remove(r->objects[i].index, r->objects[i].eh_frame);
    }
    count_live_gates();
    __atomic_store_n(&under_way.txn, 0, __ATOMIC_RELEASE);
}
