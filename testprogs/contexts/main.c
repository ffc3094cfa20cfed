/* Coroutines that are suspended inside patched functions and resumed on whichever thread is free.
 *
 * Proves: a call may begin on one thread and end on another: its count, its side-frame entry and its version stay right.
 * Threads take contexts from one queue; each runs a patched function that suspends itself in the middle, twice.  "moved N": so many
 * thousand times a context went on, inside such a function, on another thread.  "version N" when a coroutine first sees N. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <unistd.h>
#include "contexts.h"

enum { THREADS = 3, CONTEXTS = 24, STACK = 64 << 10 };

struct coroutine { ucontext_t own, *scheduler; struct coroutine *next; pthread_t last; };
static struct coroutine *queue, **tail = &queue;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int newest;
static long moved;
static __thread struct coroutine *running;

/* A thread's variables must be looked up again after a switch. */
__attribute__((noipa)) static struct coroutine **current(void) { return &running; }

__attribute__((noipa)) void suspend(void)
{
    struct coroutine *c = *current();
    c->last = pthread_self();
    swapcontext(&c->own, c->scheduler);
}

__attribute__((noipa)) int inner(int x) { suspend(); return x; }
__attribute__((noipa)) long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
    suspend();
    return a + b + c + d + e + f + g + h;
}

static void life(void)
{
    for (long x = 0;; x = (x + 1) & 0xffff) {
        int seen = __atomic_load_n(&newest, __ATOMIC_ACQUIRE), now = inner((int)x) - (int)x;
        if (now < seen)
            printf("ERROR went back from %d to %d\n", seen, now);
        while (now > seen && !__atomic_compare_exchange_n(&newest, &seen, now, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            continue;
        if (now > seen)
            printf("version %d\n", now);
        seen = now;
        now = (int)(many(x, 1, 2, 3, 4, 5, 6, 7) - x - 28);
        if (now < seen)
            printf("ERROR went back from %d to %d in many\n", seen, now);
    }
}

static void *schedule(void *unused)
{
    ucontext_t here;
    for (;;) {
        pthread_mutex_lock(&lock);
        struct coroutine *c = queue;
        if (c && !(queue = c->next))
            tail = &queue;
        pthread_mutex_unlock(&lock);
        if (!c) {
            usleep(50);
            continue;
        }
        if (c->last && c->last != pthread_self() && __atomic_add_fetch(&moved, 1, __ATOMIC_RELAXED) % 1000 == 0)
            printf("moved %ld\n", __atomic_load_n(&moved, __ATOMIC_RELAXED) / 1000);
        c->scheduler = &here;
        running = c;
        swapcontext(&here, &c->own);
        c->next = 0;
        pthread_mutex_lock(&lock);
        *tail = c;
        tail = &c->next;
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < CONTEXTS; i++) {
        struct coroutine *c = calloc(1, sizeof *c);
        getcontext(&c->own);
        c->own.uc_stack.ss_sp = malloc(STACK);
        c->own.uc_stack.ss_size = STACK;
        makecontext(&c->own, life, 0);
        *tail = c;
        tail = &c->next;
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_t t;
        pthread_create(&t, 0, schedule, 0);
    }
    for (;;)
        pause();
}
