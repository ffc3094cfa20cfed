/* Signals at a high rate, whose handlers call patched functions, in threads that do the same.
 *
 * Proves: a handler may interrupt a gate, the making of a thread's block, and another handler in a gate; side-frame entries and counts
 * are right afterwards.
 * Usage: main storm | timer [SLOWER].
 *   storm  two threads send SIGUSR1 and SIGUSR2 to two working threads by pthread_kill
 *   timer  each working thread has a timer of its own that sends it both (SIGEV_THREAD_ID), SLOWER times slower: on a machine
 *          where handlers begin less often than signals come, the stack would be too small for any program
 * SIGUSR1's handler runs on an alternate stack.  SIGUSR2's has SA_NODEFER: it raises itself two levels deep, and is nested by
 * other signals, too.  Each result is checked: "ERROR ...".  Prints "version N" when the first thread sees it, "handled N" for thousands. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "signals.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
enum { WORKERS = 2, MOST_UNDERWAY = 16, DEEPEST = 8, ALTERNATE = 1 << 18 };

static struct worker { pthread_t thread; int tid, ready; long sent, handled; } workers[WORKERS];
static int newest;
static __thread struct worker *self;
static __thread int levels;
static __thread int seen;         /* a thread, its handlers included, never goes back to an older version */

__attribute__((noipa)) int few(int x) { return x; }
__attribute__((noipa)) struct sums many(long a, long b, long c, long d, long e, long f, long g, long h, struct sums s)
{
    s.sum += a + b + c + d + e + f + g + h;
    s.version = 0;
    return s;
}
__attribute__((noipa)) long eight(long a, long b, long c, long d, long e, long f, long g, long h)
{
    /* So that no caller relies on what a side-frame gate changes. */
#ifdef __x86_64__
    __asm__ volatile("xor %%ecx, %%ecx; xor %%esi, %%esi; xor %%r11d, %%r11d" : : : "rcx", "rsi", "r11", "cc");
#else
    __asm__ volatile("mov x9, xzr\n mov x10, xzr" : : : "x9", "x10", "x16", "x17");
#endif
    return a + b + c + d + e + f + g + h;
}
/* Its caller keeps values in volatile registers (-fipa-ra). */
__attribute__((noinline)) static long light(long x) { __asm__ volatile("" : "+r"(x)); return x * 3; }

static void note(int version, int before)
{
    if (version < before)
        printf("ERROR went back from %d to %d\n", before, version);
    if (version > seen)
        seen = version;
}

static void check(long x)
{
    int before = seen, version = few((int)x) - (int)x;
    note(version, before);
    struct sums s = {.sum = x};
    before = seen;
    s = many(x, 1, 2, 3, 4, 5, 6, 7, s);
    if (s.sum != 2 * x + 28)
        printf("ERROR sum %ld of %ld\n", s.sum, x);
    note(s.version, before);
    before = seen;
    note((int)(eight(x, 1, 2, 3, 4, 5, 6, 7) - x - 28), before);
    long a = x + 1, b = x ^ 5, c = x * 7, r = light(x);
    if (r != x * 3 || a != x + 1 || b != (x ^ 5) || c != x * 7)
        printf("ERROR light %ld of %ld\n", r, x);
}

static void on_alternate_stack(int number)
{
    int saved = errno;
    stack_t now;
    if (sigaltstack(0, &now) || !(now.ss_flags & SS_ONSTACK))
        puts("ERROR not on the alternate stack");
    check(number);
    self->handled++;
    errno = saved;
}

static void nested(int number)
{
    int saved = errno;
    if (++levels >= DEEPEST) {
        sigset_t self_only;
        sigemptyset(&self_only);
        sigaddset(&self_only, number);
        pthread_sigmask(SIG_BLOCK, &self_only, 0); /* until we return: stacks are finite */
    }
    check(number + levels);
    if (levels <= 2)
        raise(SIGUSR2);
    check(number - levels);
    levels--;
    __atomic_add_fetch(&self->handled, 1, __ATOMIC_RELAXED);
    errno = saved;
}

static void *work(void *argument)
{
    /* Nothing lies below it that an overflow could change silently. */
    char *memory = mmap(0, 2 * ALTERNATE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t stack = {.ss_sp = memory + ALTERNATE, .ss_size = ALTERNATE};
    self = argument;
    if (memory == MAP_FAILED || mprotect(stack.ss_sp, ALTERNATE, PROT_READ | PROT_WRITE))
        puts("ERROR no memory");
    self->tid = (int)syscall(SYS_gettid);
    if (sigaltstack(&stack, 0))
        puts("ERROR no alternate stack");
    __atomic_store_n(&self->ready, 1, __ATOMIC_RELEASE);
    for (long x = 0;; x++)
        check(x & 0xffff);
    return 0;
}

static void *storm(void *argument)
{
    int number = (int)(long)argument;
    for (unsigned i = 0;; i++) {
        struct worker *w = &workers[i % WORKERS];
        if (__atomic_load_n(&w->sent, __ATOMIC_RELAXED) - __atomic_load_n(&w->handled, __ATOMIC_RELAXED) > MOST_UNDERWAY) {
            struct timespec moment = {0, 20000};
            __atomic_store_n(&w->sent, __atomic_load_n(&w->handled, __ATOMIC_RELAXED), __ATOMIC_RELAXED); /* they merge */
            nanosleep(&moment, 0);
        }
        __atomic_add_fetch(&w->sent, 1, __ATOMIC_RELAXED);
        pthread_kill(w->thread, number);
    }
    return 0;
}

static void timer(struct worker *w, int number, long period)
{
    timer_t id;
    struct sigevent how = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number};
    struct itimerspec when = {{0, period}, {0, period}};
    how.sigev_notify_thread_id = w->tid;
    if (timer_create(CLOCK_MONOTONIC, &how, &id) || timer_settime(id, 0, &when, 0))
        puts("ERROR no timer");
}

int main(int argc, char **argv)
{
    struct sigaction alternate = {.sa_handler = on_alternate_stack, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct sigaction again = {.sa_handler = nested, .sa_flags = SA_NODEFER | SA_RESTART};
    int by_timer = argc > 1 && !strcmp(argv[1], "timer"), slower = argc > 2 ? atoi(argv[2]) : 1;
    sigset_t both;
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    sigaction(SIGUSR1, &alternate, 0);
    sigaction(SIGUSR2, &again, 0);
    for (int i = 0; i < WORKERS; i++) {
        pthread_create(&workers[i].thread, 0, work, &workers[i]);
        while (!__atomic_load_n(&workers[i].ready, __ATOMIC_ACQUIRE))
            usleep(100);
    }
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &both, 0);
    for (int i = 0; i < WORKERS && by_timer; i++) {
        timer(&workers[i], SIGUSR1, 50000l * slower);
        timer(&workers[i], SIGUSR2, 71000l * slower);
    }
    if (!by_timer) {
        pthread_create(&t, 0, storm, (void *)(long)SIGUSR1);
        pthread_create(&t, 0, storm, (void *)(long)SIGUSR2);
    }
    for (long said = 0;; usleep(500)) {
        int now = few(0);
        long handled = 0;
        if (now > newest)
            printf("version %d\n", newest = now);
        for (int i = 0; i < WORKERS; i++)
            handled += __atomic_load_n(&workers[i].handled, __ATOMIC_RELAXED);
        if (handled / 1000 > said)
            printf("handled %ld\n", said = handled / 1000);
    }
}
