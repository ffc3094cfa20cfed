/* SPDX-License-Identifier: MIT
 *
 * inner.c: calls through pointers from inside an object to a function of the same object are not counted, and are right all
 * the same: the object stays until they have returned, they take the newest version as soon as there is one and the original
 * after a way back, and gates that serve another object later know that one's calls from others'.
 */
#define _GNU_SOURCE
#include <pthread.h>

#include "host.h"

enum { OUTER = 0, INNER = 128, PAGES = 2, VERSIONS = 1000 };

long outer(void);
long outer_original(void) { return -1; }
long inner(void);
long inner_original(void) { return -2; }
STUB(outer);
STUB(inner);
static uint32_t kind;
static int looks = 1; /* psu_switch.looks, which FULL gates do not know */
static long (*during)(void); /* what the first version of `inner` does before it returns */

/* From here, not by a tail call: that would be a call from where this one came from. */
static long called(long (*f)(void))
{
    volatile long result = f();
    return result;
}

__attribute__((noinline)) static long inner_version(void)
{
    long (*next)(void) = during;
    during = 0;
    return next ? called(next) : VERSIONS;
}

/* An object of `size` bytes: a function that calls `inner` through its stub, and a version of `inner`. */
static uint8_t *place(uint64_t size, long value)
{
    uint8_t *at = host_map(size, 0);
    memset(at, CODE_TRAP, size);
    code_framed((char *)at + OUTER, 264, (void *)inner);
    if (value == VERSIONS)
        code_jump(at + INNER, (void *)inner_version);
    else
        code_counting(at + INNER, 3, (uint64_t)value);
    struct psu_map m = {(uint64_t)at, size, PROT_READ | PROT_EXEC, 0};
    CHECK(host_command(PSU_OP_PROTECT, &m, sizeof m, 1) == 0);
    return at;
}

/* Commit `n` of outer, inner to `page`, whose object has `size` bytes; gates are those of the index. */
static void commit(uint32_t index, uint8_t *page, uint64_t size, uint32_t n, int64_t retire)
{
    volatile uint64_t *slots[] = {&inner_slot, &outer_slot};
    uint32_t offsets[] = {INNER, OUTER};
    struct { struct psu_commit head; struct psu_new_object object; struct psu_switch s[2]; uint32_t retire; } r;
    memset(&r, 0, sizeof r);
    r.head = (struct psu_commit){.objects = 1, .switches = n, .retires = retire >= 0};
    r.object.index = index;
    r.object.patch = index + 1;
    r.object.region[0].address = (uint64_t)page;
    r.object.region[0].size = size;
    for (uint32_t i = 0; i < n; i++) {
        r.s[i] = (struct psu_switch){.slot = (uint64_t)slots[i], .body = (uint64_t)page + offsets[i], .kind = kind,
                                     .gate = 4 * index + i, .index = index, .preserve = kind == PSU_FULL ? 1u << 11 : 0,
                                     .old_kind = PSU_NO_GATE, .old_gate = PSU_NO_GATE, .otherwise = PSU_ON_STACK, .looks = looks && kind != PSU_FULL};
        host_gate_of(slots[i], &r.s[i].old_kind, &r.s[i].old_gate);
    }
    uint32_t last = (uint32_t)retire;
    memcpy((char *)&r.s[n], &last, 4);
    CHECK(host_command(PSU_OP_COMMIT, &r, sizeof r - (2 - n) * sizeof r.s[0], n) == 0);
}

/* Back to the original: `inner` and, where `all`, `outer`; what is there already stays. */
static void original(int all, int64_t retire)
{
    struct host_switch s[2], candidates[] = {{&inner_slot, (uint64_t)inner_original, 0, 0, 0, 0},
                                             {&outer_slot, (uint64_t)outer_original, 0, 0, 0, 0}};
    uint32_t n = 0, k, gate;
    for (int i = 0; i <= all; i++)
        if (host_gate_of(candidates[i].slot, &k, &gate))
            s[n++] = candidates[i];
    CHECK(host_commit(0, 0, s, n, retire) == 0);
}

static uint32_t enters(uint32_t index)
{
    uint32_t n;
    host_inside(index, &n);
    return n;
}

static void expect(long (*f)(void), long result, uint32_t index, uint32_t counted)
{
    uint32_t before = enters(index);
    long got = f();
    CHECK(got == result, "%ld, not %ld", got, result);
    CHECK(enters(index) - before == counted, "counted %u times, not %u", enters(index) - before, counted);
}

/* ---- what happens while an inner call is in progress --------------------------------------------------- */

static uint32_t first; /* index of the object that outer and the first version of inner are in */
static uint32_t inside;
static uint8_t *later;
static volatile int waiting, go_on;

static long count_inside(void)
{
    inside = (uint32_t)host_inside(first, 0);
    return 1;
}

static long replace(void)
{
    commit(first + 1, later, 4096, 1, -1);
    return called(outer);
}

static long go_back(void)
{
    original(0, -1);
    return called(outer);
}

static long block(void)
{
    waiting = 1;
    while (!go_on)
        sched_yield();
    return 5;
}

static void *thread(void *unused)
{
    (void)unused;
    return (void *)outer();
}

static uint64_t base_of(uint32_t index) { return host_gate(kind, 4 * index)->base; }

/* The slot of `inner` leads to the entry that looks or to the other one, as was asked; late threads may come to either. */
static void two_entries(uint32_t index, uint64_t page)
{
    if (kind == PSU_FULL)
        return;
    const struct psu_pool *p = &psu_runtime.pool[kind];
    struct psu_gate *g = host_gate(kind, 4 * index);
    uint64_t first = p->first + 4 * index * p->stride + ((uint64_t)g - p->data - 4 * index * sizeof *g), slot = inner_slot;
    CHECK(p->look && g->entry == (looks ? p->look : 0) && slot == first + g->entry, "the slot leads to another entry");
    CHECK(base_of(index) == (looks ? page + 1 : PSU_NOWHERE), "the gate does not know its object");
    inner_slot = first;
    expect(inner, VERSIONS, index, 1);
    expect(outer, VERSIONS, index, 2);
    inner_slot = first + p->look;
    expect(inner, VERSIONS, index, 1);
    expect(outer, VERSIONS, index, looks ? 1 : 2);
    inner_slot = slot;
}

int main(void)
{
    host_agent();
    for (kind = PSU_PLAIN; kind <= PSU_FULL; kind++) {
        uint32_t once = kind == PSU_FULL ? 2 : 1; /* FULL gates count every call */
        first = 1 + 4 * kind;
        uint8_t *page = place(4096 * PAGES, VERSIONS);
        later = place(4096, 7);
        commit(first, page, 4096 * PAGES, 2, -1);
        expect(inner, VERSIONS, first, 1);
        expect(outer, VERSIONS, first, once);
        during = count_inside;
        expect(outer, 1, first, once);
        CHECK(inside == once);

        /* Another version while it is in progress: calls from inside the first object take it, and are counted there. */
        uint32_t before = enters(first + 1);
        during = replace;
        expect(outer, 7, first, once + 1);
        CHECK(enters(first + 1) - before == 1);
        expect(outer, 7, first + 1, 1);
        expect(outer, 7, first, 1);

        /* And the way back to the original. */
        uint8_t *again = place(4096 * PAGES, VERSIONS);
        commit(first + 2, again, 4096 * PAGES, 2, -1);
        during = go_back;
        expect(outer, inner_original(), first + 2, once + 1);
        expect(outer, inner_original(), first + 2, 1);
        original(1, first + 2);
        CHECK(host_freed(first + 2, 5000));

        /* The object stays as long as a call in it that is not counted. */
        uint8_t *third = place(4096 * PAGES, VERSIONS);
        commit(first + 2, third, 4096 * PAGES, 2, -1);
        two_entries(first + 2, (uint64_t)third);
        during = block;
        pthread_t t;
        void *result;
        CHECK(pthread_create(&t, 0, thread, 0) == 0);
        while (!waiting)
            sched_yield();
        original(1, first + 2);
        sleep_ms(300);
        CHECK(host_object(first + 2)->state == PSU_RETIRED && host_inside(first + 2, 0) == (int32_t)once);
        go_on = 1;
        pthread_join(t, &result);
        CHECK(result == (void *)5);
        CHECK(host_freed(first + 2, 5000));
        waiting = go_on = 0;

        /* A gate whose next object is smaller does not take what lies behind that for part of it. */
        uint8_t *small = place(4096, VERSIONS);
        commit(first + 2, small, 4096, 2, -1);
        CHECK(kind == PSU_FULL || base_of(first + 2) == PSU_NOWHERE);
        expect(outer, VERSIONS, first + 2, 2);
        original(1, first + 2);
        CHECK(host_freed(first + 2, 5000));
        uint8_t *large = place(4096 * (PAGES + 1), VERSIONS);
        commit(first + 2, large, 4096 * (PAGES + 1), 2, -1);
        expect(outer, VERSIONS, first + 2, once);
        original(1, first + 2);
        CHECK(host_freed(first + 2, 5000));

        /* Unasked, every call counts, also of late threads; the next object may ask again. */
        for (looks = 0; looks < 2; looks++) {
            uint8_t *next = place(4096 * PAGES, VERSIONS);
            commit(first + 2, next, 4096 * PAGES, 2, -1);
            expect(outer, VERSIONS, first + 2, looks ? once : 2);
            two_entries(first + 2, (uint64_t)next);
            original(1, first + 2);
            CHECK(host_freed(first + 2, 5000));
        }
        looks = 1;
    }
    puts("ok");
    return 0;
}
