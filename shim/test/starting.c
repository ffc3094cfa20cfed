/* SPDX-License-Identifier: MIT
 *
 * starting.c: start routines of threads behind gates, which end their threads by pthread_exit: the C library takes such a
 * gate's frame for its own and does not unwind it.  Each call is counted out when its thread is dead, in the gate that it
 * came to in the end, and never twice.
 *
 * Arguments: offsets of the three "pending" and the three "redirect" routines from psu_runtime, as for conventions.c.
 */
#include <pthread.h>

#include "host.h"

long work(long leave);
long work_original(long leave) { return leave; }
STUB(work);
static long version(long leave)
{
    if (leave)
        pthread_exit(0);
    return 0;
}

static struct psu_gate *poke(uint32_t kind, uint32_t number, uint64_t code, uint32_t index)
{
    struct psu_gate *g = (struct psu_gate *)psu_runtime.pool[kind].data + number;
    memset(g, 0, sizeof *g);
    g->counter = 8 * index;
    g->slot = (uint64_t)&work_slot;
    g->body = (uint64_t)version;
    g->code = code;
    return g;
}

static uint64_t gate(uint32_t kind, uint32_t number)
{
    return psu_runtime.pool[kind].first + (uint64_t)number * psu_runtime.pool[kind].stride;
}

static void threads(uint64_t start, long leave)
{
    for (int i = 0; i < 200; i++) {
        pthread_t t;
        CHECK(pthread_create(&t, 0, (void *(*)(void *))start, (void *)leave) == 0 && pthread_join(t, 0) == 0);
    }
}

/* Enters less leaves once the agent has looked at the threads that died; `most`: what may stay. */
static void settles(uint32_t kind, uint32_t index, int32_t most, const char *what)
{
    int32_t n = 0;
    for (double began = seconds(); seconds() - began < 10;) {
        n = host_inside(index, 0);
        CHECK(n > -200, "kind %u, %s: %d inside", kind, what, n);
        if (n <= most)
            break;
        sched_yield();
    }
    for (int i = 0; i < 1000; i++) { /* the agent may just be moving counts */
        if ((n = host_inside(index, 0)) >= 0 && n <= most)
            return;
        sleep_ms(1);
    }
    CHECK(0, "kind %u, %s: %d inside", kind, what, n);
}

int main(int argc, char **argv)
{
    CHECK(argc == 7);
    host_agent();
    uint64_t now = psu_runtime.commit_seq = 5;
    for (uint32_t kind = PSU_SIDE; kind <= PSU_FULL; kind++) {
        uint64_t routines[2];
        for (int i = 0; i < 2; i++)
            routines[i] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[1 + 3 * i + (int)kind], 0, 0);
        uint32_t index = kind * 4, few = 100; /* of the last threads: the agent has not looked yet */
        poke(kind, 10, (uint64_t)version, index);
        threads(gate(kind, 10), 0);
        settles(kind, index, 0, "return");
        threads(gate(kind, 10), 1);
        settles(kind, index, (int32_t)few, "exit");

        struct psu_gate *g = poke(kind, 11, routines[0], index + 1);
        g->enter_txn = now + 1;
        g->before = gate(kind, 10);
        threads(gate(kind, 11), 1);
        threads(gate(kind, 11), 0);
        settles(kind, index + 1, 0, "pending, older gate");
        g->before = (uint64_t)work_original;
        threads(gate(kind, 11), 0);
        settles(kind, index + 1, 0, "pending, original");
        g = poke(kind, 12, routines[1], index + 2);
        work_slot = gate(kind, 10);
        threads(gate(kind, 12), 1);
        threads(gate(kind, 12), 0);
        settles(kind, index + 2, 0, "retired");
    }
    puts("ok");
    return 0;
}
