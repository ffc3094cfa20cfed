/* SPDX-License-Identifier: MIT
 *
 * stress.c: commits as fast as they go while threads and a 1 kHz signal handler call.  Every commit replaces two
 * functions by code on a fresh page at an address that was never used before, so that a version freed too early is a
 * crash; now and then everything goes back to the original.  Checked: each call runs a version that was current at some
 * moment of the call (so both functions switch at one instant, for all threads); in the end everything but the current
 * version is unmapped, and enters equal leaves.
 *
 * Arguments: seconds, threads.  Prints "ok", commits per second, calls.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/time.h>

#include "host.h"

long first(long a), second(long a);
long first_original(long a) { return a & 0; }
long second_original(long a) { return a & 0; }
STUB(first);
STUB(second);

static int stop;
static uint64_t calls, signals;

#define INDICES 300
#define BACK 13 /* every so many commits go back to the original */
#define OTHERS 20
/* more functions of every commit, between the two in the record: nobody calls them */
static uint64_t other_slots[OTHERS];

/* Versions are numbered as commits are.  A call that begins when commit a is in and ends before commit b + 1 is must
 * have run a version from a to b; the original stands for commit 0 and those that went back to it. */
static void check_call(long (*function)(long), const char *name)
{
    uint64_t a = __atomic_load_n(&psu_runtime.commit_seq, __ATOMIC_SEQ_CST);
    long v = function(1);
    uint64_t b = __atomic_load_n(&psu_runtime.commit_seq, __ATOMIC_SEQ_CST);
    if (v)
        CHECK((uint64_t)v >= a && (uint64_t)v <= b, "%s: version %ld, commits %lu to %lu", name, v, (unsigned long)a,
              (unsigned long)b);
    else
        CHECK(a == 0 || b / BACK * BACK >= a, "%s: original, commits %lu to %lu", name, (unsigned long)a,
            (unsigned long)b);
}

static void once(int order)
{
    check_call(order ? first : second, "first call");
    check_call(order ? second : first, "second call");
}

static void handler(int number)
{
    (void)number;
    int saved = errno;
    once(0);
    once(1);
    __atomic_add_fetch(&signals, 1, __ATOMIC_RELAXED);
    errno = saved;
}

static void *caller(void *unused)
{
    uint64_t n = 0;
    (void)unused;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        once((int)n & 1);
        n++;
    }
    __atomic_add_fetch(&calls, n, __ATOMIC_RELAXED);
    return 0;
}

#define BASE 0x200000000000u
static uint8_t *place(uint64_t number, uint64_t version)
{
    struct psu_map m = {BASE + number * 4096, 4096, PROT_READ | PROT_WRITE, 0};
    int64_t r = host_command(PSU_OP_MAP, &m, sizeof m, 1);
    CHECK(r == 0, "MAP: %ld", (long)r);
    uint8_t *page = (uint8_t *)m.address;
    memset(page, CODE_TRAP, 4096);
    for (int f = 0; f < 2; f++)
        code_counting(page + 64 * f, 1 + (uint32_t)(version * 7919 % 700), version);
    m.prot = PROT_READ | PROT_EXEC;
    CHECK(host_command(PSU_OP_PROTECT, &m, sizeof m, 1) == 0);
    return page;
}

static int64_t free_index(void)
{
    for (uint32_t i = 0; i < INDICES; i++)
        if (__atomic_load_n(&host_object(i)->state, __ATOMIC_ACQUIRE) == PSU_FREE)
            return i;
    return -1;
}

int main(int argc, char **argv)
{
    double length = argc > 1 ? atof(argv[1]) : 2;
    int n = argc > 2 ? atoi(argv[2]) : 3;
    pthread_t threads[64];
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, 0);
    for (int i = 0; i < n; i++)
        CHECK(pthread_create(&threads[i], 0, caller, 0) == 0);
    host_agent();
    struct itimerval every = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &every, 0);

    for (int i = 0; i < OTHERS; i++)
        other_slots[i] = (uint64_t)second_original;
    int64_t current = -1;
    uint64_t commits = 0, placed = 0, waited = 0;
    double began = seconds();
    for (uint64_t v = 1; seconds() - began < length; v++) {
        struct host_switch s[2 + OTHERS];
        int64_t index = -1;
        uint8_t *page = 0;
        uint32_t kind = (uint32_t)(v * 2654435761u >> 16) % 3;
        if (v % BACK) {
            while ((index = free_index()) < 0) {
                waited++;
                sched_yield();
            }
            page = place(placed++, v);
        }
        for (uint32_t i = 0; i < 2 + OTHERS; i++) {
            int called = i == 0 || i == 1 + OTHERS;
            s[i].slot = i == 0 ? &first_slot : called ? &second_slot : &other_slots[i - 1];
            s[i].original = page ? 0 : (uint64_t)(i ? second_original : first_original);
            s[i].body = page ? (uint64_t)page + 64 * (i != 0) : 0;
            s[i].kind = called ? kind : PSU_PLAIN;
            s[i].gate = (uint32_t)index * 2 + (i != 0);
            if (!called)
                s[i].gate = 2 * INDICES + (uint32_t)index * OTHERS + i - 1;
            s[i].preserve = called && i && kind == PSU_FULL ? 0x60802 : 0;
        }
        int64_t r = host_commit(page ? (uint32_t)index : 0, page, s, 2 + OTHERS, current);
        CHECK(r == 0, "COMMIT: %ld, entry %lu", (long)r, (unsigned long)psu_runtime.failed_entry);
        CHECK(psu_runtime.commit_seq == v);
        if (page)
            CHECK(first(1) == (long)v && second(1) == (long)v);
        current = index;
        commits++;
    }
    double took = seconds() - began;
    setitimer(ITIMER_REAL, &(struct itimerval){0}, 0);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < n; i++)
        pthread_join(threads[i], 0);
    uint32_t entered = 0;
    for (uint32_t i = 0; i < INDICES; i++) {
        uint32_t enters;
        CHECK(i == (uint32_t)current || host_freed(i, 5000), "object %u: %d inside", i, host_inside(i, 0));
        CHECK(host_inside(i, &enters) == 0);
        entered += enters;
    }
    CHECK(entered > commits / 2 || n == 0, "%u", entered);
    for (uint64_t p = 0; p < placed; p++) {
        unsigned char in_core;
        int mapped = mincore((void *)(BASE + p * 4096), 4096, &in_core) == 0;
        CHECK(mapped == (current >= 0 && p == placed - 1), "page %lu: %d", (unsigned long)p, mapped);
    }
    printf("ok %.0f commits/s, %lu commits, %lu calls, %lu signals, %lu waits for a free index\n",
        (double)commits / took,
           (unsigned long)commits, (unsigned long)calls, (unsigned long)signals, (unsigned long)waited);
    return 0;
}
