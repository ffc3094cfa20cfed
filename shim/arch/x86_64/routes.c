/* SPDX-License-Identifier: MIT
 *
 * routes.c: the decisions behind routes.S.  Runs on application threads in the middle of their calls:
 * async-signal-safe, no lock, no vector register.
 */
#include "gates.h"
#include "internal.h"

_Static_assert(sizeof(struct psu_gate) == GATE_SIZE, "GATE_SIZE");
_Static_assert(offsetof(struct psu_gate, code) == GATE_CODE, "GATE_CODE");
_Static_assert(offsetof(struct psu_gate, counter) == GATE_COUNTER, "GATE_COUNTER");
#define IN_BLOCK(field) ((long)offsetof(struct psu_block, field) - (long)offsetof(struct psu_block, count))
_Static_assert(IN_BLOCK(free) == BLOCK_FREE, "BLOCK_FREE");
_Static_assert(IN_BLOCK(count) == BLOCK_ENTER, "BLOCK_ENTER");
_Static_assert(IN_BLOCK(count) + 4 == BLOCK_LEAVE, "BLOCK_LEAVE");
_Static_assert(offsetof(struct psu_side, saved_fp) == SIDE_FP, "SIDE_FP");
_Static_assert(offsetof(struct psu_side, return_address) == SIDE_RETURN, "SIDE_RETURN");
_Static_assert(offsetof(struct psu_side, next) == SIDE_NEXT && offsetof(struct psu_side, sp) == SIDE_SP, "SIDE_NEXT");

uint32_t psu_slow_plain(struct psu_frame *f);
uint32_t psu_slow_leaving(struct psu_frame *f);
uint32_t psu_slow_side(struct psu_frame *f);
uint32_t psu_route(struct psu_frame *f, uint32_t how);
uint32_t psu_entering_full(struct psu_frame *f);
uint32_t psu_leaving_full(struct psu_frame *f, struct psu_side *side);
void psu_vectors_save(uint8_t to[16][64], uint32_t which, uint32_t level);
void psu_vectors_restore(const uint8_t from[16][64], uint32_t which, uint32_t level);

/* Takes the gate's own count when there is no memory for a real block; the true count is in psu_shared. */
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

uint32_t psu_slow_plain(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    if (!b) {
        shared_enter(gate_of(f->back));
        b = &nowhere;
    }
    f->r11 = PSU_SELF(b);
    return PSU_RETURN;
}

uint32_t psu_slow_leaving(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    if (!b) {
        __atomic_add_fetch(&psu_shared[gate_of(f->back)->counter / 8].leave, 1, __ATOMIC_RELEASE);
        b = &nowhere;
    }
    f->r11 = PSU_SELF(b);
    return PSU_RETURN;
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

/* No memory for what the gate must keep: count the call in for good and jump to where it goes, without the gate.  The
 * object will never be freed, which is safe. */
static uint64_t without_gate(struct psu_gate *g)
{
    int undo = 0;
    shared_enter(g);
    __atomic_store_n(&psu_objects_without_gate[g->counter / 8], 1, __ATOMIC_SEQ_CST);
    uint64_t code = __atomic_load_n(&g->code, __ATOMIC_ACQUIRE);
    const struct psu_kind *kind = psu_kinds;
    while (!psu_gate_entry((uint32_t)(kind - psu_kinds), g))
        kind++;
    if (code == (uint64_t)kind->redirect) {
        code = redirected(g);
        undo = 1;
    } else if (code == (uint64_t)kind->pending) {
        code = pending(g, &undo);
    }
    if (undo)
        __atomic_add_fetch(&psu_shared[g->counter / 8].leave, 1, __ATOMIC_RELEASE);
    return code;
}

/* Above f->back: the caller's rbp, the caller's return address. */
uint32_t psu_slow_side(struct psu_frame *f)
{
    struct psu_block *b = psu_block_get();
    const struct psu_call call = {(uint64_t)&f->above[2], f->above[1], f->above[0]};
    struct psu_side *s = b ? psu_side_claim(b, &call) : 0;
    if (!s) {
        f->target = without_gate(gate_of(f->back));
        f->rbp = f->above[0];
        return PSU_UNDONE;
    }
    psu_side_release(b, s); /* the gate claims it: the first of the list */
    f->r11 = PSU_SELF(b);
    f->rbp = (uint64_t)s;
    return PSU_RETURN;
}

static inline void give_back(struct psu_block *b, struct psu_side *s)
{
    psu_side_give_save(b, s);
    psu_side_release(b, s);
}

/* how: kind + 256 * redirect. */
PSU_LEAVING uint32_t psu_route(struct psu_frame *f, uint32_t how)
{
    uint32_t kind = how & 255;
    struct psu_gate *g = psu_gate_at(kind, f->back);
    int undo = 1;
    f->target = how & 256 ? redirected(g) : pending(g, &undo);
    if (!undo)
        return PSU_RETURN;
    if (kind == PSU_PLAIN) {
        f->r11 = f->above[0];
    } else {
        struct psu_side *s = (struct psu_side *)f->rbp;
        struct psu_block *b = psu_block_get();
        f->back = s->return_address;
        f->rbp = s->saved_fp;
        if (b)
            give_back(b, s);
    }
    psu_count_leave(g->counter / 8);
    return PSU_UNDONE;
}

/* ---- PSU_FULL --------------------------------------------------------------------------------------- */

/* 0: xmm, 1: ymm, 2: zmm.  cpuid 1, ecx bit 27: the kernel has switched on XCR0; its bits 2:1 are SSE and AVX, 7:5
 * AVX-512. */
static uint32_t vector_level(void)
{
    static uint32_t known; /* level + 1 */
    uint32_t level = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!level) {
        uint32_t a = 1, b, c = 0, d, low, high;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        level = 1;
        if (c >> 27 & 1) {
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
            level = (low & 0xe6) == 0xe6 ? 3 : (low & 6) == 6 ? 2 : 1;
        }
        __atomic_store_n(&known, level, __ATOMIC_RELAXED);
    }
    return level - 1;
}

/* Where psu_frame has the registers, by hardware number; callee-saved ones and rsp are not ours to restore: 0. */
#define AT(r) (offsetof(struct psu_frame, r) / 8)
static const uint8_t place[16] = {AT(rax), AT(rcx), AT(rdx), 0, 0, 0, AT(rsi), AT(rdi),
                                  AT(r8), AT(r9), AT(r10), AT(r11)};
#define VOLATILE_GENERAL 0x0fc7u

/* Copies the general registers in `which` from or to the area; bit n: hardware number n. */
static void copy_general(struct psu_frame *f, struct psu_save *save, uint32_t which, int restore)
{
    for (which &= VOLATILE_GENERAL; which; which &= which - 1) {
        uint32_t n = (uint32_t)__builtin_ctz(which);
        uint64_t *in_frame = (uint64_t *)f + place[n];
        if (restore)
            *in_frame = save->general[n];
        else
            save->general[n] = *in_frame;
    }
}

/* Above f->back: the caller's return address. */
uint32_t psu_entering_full(struct psu_frame *f)
{
    struct psu_gate *g = psu_gate_at(PSU_FULL, f->back);
    struct psu_block *b = psu_block_get();
    const struct psu_call call = {(uint64_t)&f->above[1], f->above[0], f->rbp};
    struct psu_side *s = b ? psu_side_claim(b, &call) : 0;
    struct psu_save *save = s && g->preserve ? psu_save_claim(b) : 0;
    if (!s || (g->preserve && !save)) {
        if (s)
            psu_side_release(b, s);
        f->target = without_gate(g);
        return PSU_UNDONE;
    }
    s->saved_fp = f->rbp;
    s->return_address = f->above[0];
    s->gate = (uint64_t)g;
    s->save = save;
    if (save) {
        copy_general(f, save, g->preserve, 0);
        if (g->preserve >> 16)
            psu_vectors_save(save->vector, g->preserve >> 16, vector_level());
    }
    psu_count(&b->count[g->counter / 8].enter);
    f->target = (uint64_t)s; /* becomes rbp */
    return PSU_RETURN;
}

PSU_LEAVING uint32_t psu_leaving_full(struct psu_frame *f, struct psu_side *s)
{
    struct psu_gate *g = (struct psu_gate *)s->gate;
    struct psu_save *save = s->save;
    struct psu_block *b = psu_block_get();
    if (save) {
        copy_general(f, save, g->preserve, 1);
        if (g->preserve >> 16)
            psu_vectors_restore(save->vector, g->preserve >> 16, vector_level());
    }
    if (b)
        give_back(b, s);
    psu_count_leave(g->counter / 8);
    return PSU_RETURN;
}
