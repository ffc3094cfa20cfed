/* Threads that call a function and look at the clock two thousand times a second: they notice every pause.  (In between they
 * sleep: one that never does is stopped by every other program on the machine.)
 *
 * Proves that updates do not stop threads: the longest time between two looks is no longer while psu-bin attaches and
 * reverts than while it reads a file.  (scripts/bench measures the difference; this finds out whether there is a gross one.)
 * Usage: main [THREADS]; prints, some fifty times a second, the longest pause of all threads since the line before, and the
 * version of the last call; "ERROR" when a call was lost. */
#include "pauses.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1024 };
static long longest, looked[MOST];         /* nanoseconds; when each thread looked last */
static unsigned long last;

struct step step(unsigned long count) { return (struct step){count + 1, *(volatile int *)&(int){1}}; }

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

static void told(long gap)
{
    long most = __atomic_load_n(&longest, __ATOMIC_RELAXED);
    while (gap > most && !__atomic_compare_exchange_n(&longest, &most, gap, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

static void *look(void *mine)
{
    long *before = mine;
    for (struct step s = {0, 0}, next;; s = next) {
        next = step(s.count);
        if (next.count != s.count + 1) {
            puts("ERROR: a call was lost");
            exit(1);
        }
        long at = now();
        told(at - *before);
        __atomic_store_n(before, at, __ATOMIC_RELAXED);
        __atomic_store_n(&last, next.version, __ATOMIC_RELAXED);
        usleep(500);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (threads > MOST)
        threads = MOST;
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        looked[i] = now();
        if (pthread_create(&t, 0, look, &looked[i])) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    for (;;) {
        usleep(20000);
        for (int i = 0; i < threads; i++)      /* a pause that is not over */
            told(now() - __atomic_load_n(&looked[i], __ATOMIC_RELAXED));
        printf("paused for %.3f ms, version %lu\n", (double)__atomic_exchange_n(&longest, 0, __ATOMIC_RELAXED) / 1e6,
               __atomic_load_n(&last, __ATOMIC_RELAXED));
    }
}
