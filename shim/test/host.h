/* SPDX-License-Identifier: MIT
 *
 * host.h: plays psu-bin inside one process, for the shim's tests.  A test has hand-made stubs and slots (STUB), asks
 * the real agent for commands by writing records as psu-bin does, and places machine code as new versions.
 * What it cannot show is ptrace: here the agent is woken by a futex call.
 */
#ifndef HOST_H
#define HOST_H

#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __cplusplus
extern "C" {
#define _Static_assert static_assert
#endif
#include "../runtime.h"
#ifdef __cplusplus
}
#endif

#define CHECK(condition, ...) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: failed: %s:", __FILE__, __LINE__, #condition); \
            fprintf(stderr, " " __VA_ARGS__); \
            fputc('\n', stderr); \
            _exit(1); \
        } \
    } while (0)

#include "code.h"

static inline void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, 0);
}

static inline double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Start the agent, as one borrowed thread would, and wait until it is parked. */
static inline void host_agent(void)
{
    ((void (*)(void))psu_runtime.start_agent)();
    for (int i = 0; i < 5000 && *(volatile uint32_t *)&psu_runtime.agent_state < PSU_AGENT_PARKED; i++)
        sleep_ms(1);
    CHECK(*(volatile uint32_t *)&psu_runtime.agent_state >= PSU_AGENT_PARKED, "agent error %ld",
        (long)psu_runtime.agent_error);
}

#ifndef HOST_PATIENCE
#define HOST_PATIENCE 30 /* seconds for one command */
#endif

/* Runs the record `c` (with entries behind it); its result. */
static inline int64_t host_run(struct psu_command *c)
{
    psu_runtime.command = (uint64_t)c;
    uint16_t seq = (uint16_t)(psu_runtime.command_seq + 1);
    __atomic_store_n(&psu_runtime.command_seq, seq, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, &psu_runtime.parking, 129 /* FUTEX_WAKE_PRIVATE */, 1, 0, 0, 0);
    double began = seconds();
    while (__atomic_load_n(&psu_runtime.done_seq, __ATOMIC_ACQUIRE) != seq) {
        CHECK(seconds() - began < HOST_PATIENCE, "the agent does not answer");
        sched_yield();
    }
    return psu_runtime.result;
}

static inline int64_t host_command(uint32_t op, void *entries, size_t size, uint32_t count)
{
    struct psu_command *c = (struct psu_command *)psu_runtime.command_buffer;
    CHECK(sizeof *c + size <= PSU_COMMAND_BUFFER, "record of %zu bytes", size);
    c->op = op;
    c->count = count;
    if (size)
        memcpy(c + 1, entries, size);
    int64_t r = host_run(c);
    if (size)
        memcpy(entries, c + 1, size);
    return r;
}

/* Staged memory, writable. */
static inline void *host_map(size_t size, uint32_t keep)
{
    struct psu_map m = {0, size, PROT_READ | PROT_WRITE, keep};
    int64_t r = host_command(PSU_OP_MAP, &m, sizeof m, 1);
    CHECK(r == 0, "MAP: %ld", (long)r);
    return (void *)m.address;
}

/* A page of staged memory with `code`, executable. */
static inline void *host_place(const void *code, size_t size)
{
    char *at = (char *)host_map(4096, 0);
    memset(at, CODE_TRAP, 4096);
    memcpy(at, code, size);
    struct psu_map m = {(uint64_t)at, 4096, PROT_READ | PROT_EXEC, 0};
    int64_t r = host_command(PSU_OP_PROTECT, &m, sizeof m, 1);
    CHECK(r == 0, "PROTECT: %ld", (long)r);
    return at;
}

/* Machine code that jumps to a function of the test, all registers and flags intact. */
static inline void *host_jump_to(void *function)
{
    uint8_t code[32];
    return host_place(code, code_jump(code, function));
}

static uint64_t host_otherwise; /* psu_switch.otherwise of all switches */
struct host_switch { volatile uint64_t *slot; uint64_t original, body; uint32_t kind, gate, preserve; };

/* The data of gate `n`, here or near the program: where it is in use. */
static inline struct psu_gate *host_gate(uint32_t kind, uint32_t n)
{
    struct psu_gate *g = (struct psu_gate *)psu_runtime.pool[kind].data + n;
    if (!g->slot && kind != PSU_FULL && psu_runtime.near_delta)
        return (struct psu_gate *)((char *)g + psu_runtime.near_delta);
    return g;
}

/* The gate that a slot leads to; false: the original. */
static inline int host_gate_of(volatile uint64_t *slot, uint32_t *kind, uint32_t *gate)
{
    for (uint32_t k = 0; k < PSU_GATE_KINDS; k++)
        for (int near = 0; near < (k == PSU_FULL ? 1 : 2); near++) {
            const struct psu_pool *p = &psu_runtime.pool[k];
            uint64_t offset = *slot - p->first - (near ? psu_runtime.near_delta : 0);
            if (offset < (uint64_t)p->stride * p->count) {
                *kind = k;
                *gate = (uint32_t)(offset / p->stride);
                return 1;
            }
        }
    return 0;
}

/* One COMMIT: `n` functions to one new object `index` whose only region is the page at `page` (0: no new object).
 * original != 0: back to it.  The old gates are read off the slots; `retire` (-1: none) is retired. */
static inline int64_t host_commit(uint32_t index, void *page, const struct host_switch *s, uint32_t n, int64_t retire)
{
    struct { struct psu_commit head; char rest[4000]; } r;
    char *at = r.rest;
    memset(&r, 0, sizeof r);
    if (page) {
        struct psu_new_object o;
        memset(&o, 0, sizeof o);
        o.index = index;
        o.patch = index + 1;
        o.region[0].address = (uint64_t)page;
        o.region[0].size = 4096;
        memcpy(at, &o, sizeof o);
        at += sizeof o;
        r.head.objects = 1;
    }
    for (uint32_t i = 0; i < n; i++) {
        struct psu_switch w = {(uint64_t)s[i].slot, s[i].original, s[i].body, s[i].kind, s[i].gate, index,
            s[i].preserve,
                               PSU_NO_GATE, PSU_NO_GATE, host_otherwise};
        host_gate_of(s[i].slot, &w.old_kind, &w.old_gate);
        memcpy(at, &w, sizeof w);
        at += sizeof w;
    }
    r.head.switches = n;
    if (retire >= 0) {
        uint32_t x = (uint32_t)retire;
        memcpy(at, &x, 4);
        at += 4;
        r.head.retires = 1;
    }
    return host_command(PSU_OP_COMMIT, &r, (size_t)(at - (char *)&r), n);
}

static inline struct psu_object *host_object(uint32_t index)
{
    return (struct psu_object *)psu_runtime.objects + index;
}

/* Enters minus leaves over all threads; *enters is how often the object was entered at all. */
static inline int32_t host_inside(uint32_t index, uint32_t *enters)
{
    const struct psu_counter *t = (struct psu_counter *)psu_runtime.totals;
    const struct psu_counter *s = (struct psu_counter *)psu_runtime.shared;
    uint32_t enter = t[index].enter + s[index].enter, leave = t[index].leave + s[index].leave;
    for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b; b = b->all) {
        enter += b->count[index].enter;
        leave += b->count[index].leave;
    }
    if (enters)
        *enters = enter;
    return (int32_t)(enter - leave);
}

/* Wait until object `index` is freed. */
static inline int host_freed(uint32_t index, long ms)
{
    for (; ms > 0; ms--) {
        if (__atomic_load_n(&host_object(index)->state, __ATOMIC_ACQUIRE) == PSU_FREE)
            return 1;
        sleep_ms(1);
    }
    return 0;
}

#endif
