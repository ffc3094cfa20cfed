/* Full gates in hard places.  Callers keep values in r8, r9, xmm8 and xmm9 (x11, x12, v16 and v17) over calls of small functions
 * that leave these alone, and check them.  The functions' new versions change them all, and do what the old ones did not: they call
 * themselves, leave without a return, wait in another context.
 *
 * Proves: full gates nest as deep as the stack allows, may be interrupted anywhere by handlers that go through full
 * gates themselves, may be left for good, and may be left on another thread than they were entered on.
 * Usage: main deep | storm | jump [PAUSE] | contexts.
 *   deep      a thread calls itself until its stack is nearly used up: "bottom VERSION", waits for a line, "levels N"
 *   storm     one thread sends signals to two that work; handlers do the same work
 *   jump      two threads leave every call by setting the stack pointer back, and wait PAUSE milliseconds now and then, as the first does
 *   contexts  two threads run eight contexts in turns: each is suspended inside a full gate
 * Prints "version N" when a call ran in it and, but for deep, "turns N HANDLED" for ten thousands of turns; "ERROR ..."
 * when a value was lost. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "full.h"

volatile int seen;
__thread char *limit;
static volatile long lost, wrong_result;
static long turns, handled;
static unsigned rest_for;
static volatile int arrived, go;
static volatile long reached;

#ifdef __x86_64__
#include "x86_64.inc"
#else
#include "aarch64.inc"
#endif

/* What a new version calls. */
__attribute__((noipa)) void bottom(void)
{
    arrived = seen;
    while (!go)
        PAUSE;
    arrived = 0;
}
__attribute__((noipa)) long down(long level) { seen = 0; return level; }
__attribute__((noipa)) long deeper(long level) { return KEEP(down, level); }
__attribute__((noipa)) long worked(long x) { seen = 0; return x * 3; }
__attribute__((noipa)) long jumping(long x) { seen = 0; return x; }
__attribute__((noipa)) long yielding(long x) { seen = 0; return x * 5; }

/* switch_stack(&own, other): go on where `other` was left, to go on here when somebody goes to `own`.
 * enter(&mark, f): f(), from which leave_to(mark) comes back. */
void switch_stack(void **own, void *other), enter(void **mark, void (*f)(void)), leave_to(void *mark);

static __thread void *mark;
__attribute__((noipa)) void leave(void) { leave_to(mark); }
static void jump(void)
{
    KEEP(jumping, 1);
    leave();
}

struct context { void *sp; char *stack; };
enum { CONTEXTS = 8 };
static struct context contexts[CONTEXTS];
static struct context *free_ones[CONTEXTS];       /* each is there or is running */
static __thread void *scheduler;
static __thread struct context *running;

/* Looked up again after each switch: it may be another thread's. */
__attribute__((noipa)) static void **scheduler_of_this_thread(void) { return &scheduler; }
__attribute__((noipa)) static struct context **running_here(void) { return &running; }
__attribute__((noipa)) void yield(void) { switch_stack(&(*running_here())->sp, *scheduler_of_this_thread()); }

static void turn(void) { __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED); }
static void live(void)
{
    for (long x = 1;; x++, turn())
        if (KEEP(yielding, x) != x * 5)
            wrong_result = x;
}

static void *deep(void *unused)
{
    pthread_attr_t own;
    void *low;
    size_t size;
    pthread_getattr_np(pthread_self(), &own);
    pthread_attr_getstack(&own, &low, &size);
    limit = low;
    for (;;) {
        long levels = deeper(1);
        if (seen && levels > 1)
            reached = levels;
        usleep(1000);
    }
    return unused;
}
static void on_signal(int number)
{
    if (KEEP(worked, number) != number * 3)
        wrong_result = number;
    __atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED);
}
static void *work(void *unused)
{
    for (long x = 1;; x++, turn())
        if (KEEP(worked, x) != x * 3)
            wrong_result = x;
    return unused;
}
static void *storm(void *threads)
{
    for (unsigned i = 0;; i++) {
        long before = __atomic_load_n(&handled, __ATOMIC_RELAXED);
        pthread_kill(((pthread_t *)threads)[i % 2], i / 2 % 2 ? SIGUSR1 : SIGUSR2);
        for (int n = 0; n < 200 && __atomic_load_n(&handled, __ATOMIC_RELAXED) == before; n++)
            sched_yield();
    }
    return 0;
}
static void *leap(void *unused)
{
    for (unsigned own = 1;; own++, turn()) {
        enter(&mark, jump);
        if (rest_for && own % 5000 == 0)
            usleep(1000 * rest_for);
    }
    return unused;
}
static void *schedule(void *unused)
{
    for (unsigned i = (unsigned long)unused;; i++) {
        struct context *c = __atomic_exchange_n(&free_ones[i % CONTEXTS], 0, __ATOMIC_ACQ_REL);
        if (c) {
            *running_here() = c;
            switch_stack(scheduler_of_this_thread(), c->sp);
            __atomic_store_n(&free_ones[i % CONTEXTS], c, __ATOMIC_RELEASE);
        }
    }
    return unused;
}

static void begin_contexts(void)
{
    for (int i = 0; i < CONTEXTS; i++) {
        char *stack = malloc(1 << 16);
        void **top = (void **)(((unsigned long)stack + (1 << 16)) & ~15ul) - 2 - SAVED;
        memset(top, 0, SAVED * sizeof *top);
        top[WAY_BACK] = (void *)live;
        contexts[i].sp = top;
        free_ones[i] = &contexts[i];
    }
}

int main(int argc, char **argv)
{
    static pthread_t t[3];
    char line[100];
    const char *how = argc > 1 ? argv[1] : "";
    rest_for = argc > 2 ? (unsigned)atoi(argv[2]) : 0;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    pthread_attr_t size;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_attr_init(&size);
    pthread_attr_setstacksize(&size, STACK);
    if (!strcmp(how, "contexts"))
        begin_contexts();
    sigaction(SIGUSR1, &action, 0);
    action.sa_flags |= SA_NODEFER;
    sigaction(SIGUSR2, &action, 0);
    void *(*start)(void *) = !strcmp(how, "deep") ? deep : !strcmp(how, "storm") ? work : !strcmp(how, "jump") ? leap
        : schedule;
    for (long i = 0; i < (start == deep ? 1 : 2); i++)
        pthread_create(&t[i], &size, start, (void *)i);
    if (start == work)
        pthread_create(&t[2], 0, storm, t);
    for (int last = -1, told = 0;; usleep(1000 * (rest_for ? rest_for : 1))) {
        if (lost || wrong_result)
            printf("ERROR %ld values lost, result %ld\n", lost, wrong_result);
        if (arrived) {
            printf("bottom %d\n", arrived);
            if (!fgets(line, sizeof line, stdin))
                return 0;
            reached = 0;
            go = 1;
            while (!reached)
                usleep(1000);
            go = 0;
            printf("levels %ld\n", reached);
        } else if (seen != last)
            printf("version %d\n", last = seen);
        if (__atomic_load_n(&turns, __ATOMIC_RELAXED) / 10000 > told)
            printf("turns %d %ld\n", told = turns / 10000, handled);
    }
}
