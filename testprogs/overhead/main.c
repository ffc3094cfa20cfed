/* What a call costs, by the length of the function (0, 4 or 40 steps of a random number generator, of some six
 * instructions each) and by how often it is called (after 0, 10 or 1000 such steps of the caller's own).
 *
 * Proves that no call is lost or done twice, whatever version does it: all versions do the same, so the number at the end
 * is known.  To be read for what calls of patched functions cost beside the same calls before the patch: the absolute
 * numbers are the machine's.  (scripts/bench measures this properly.)
 * Usage: main [THREADS], all of which do the same; the first prints a line for each length and frequency, with the version
 * of the last call and the time from one call to the next; "ERROR" when a number is wrong. */
#include "overhead.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { STEPS = 100000 };     /* of every measurement, at least */
struct length { int steps; mix *mix; };
static const struct length lengths[] = {{0, mix_0}, {4, mix_4}, {40, mix_40}};
static const int gaps[] = {0, 10, 1000};
MIXES(1)

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static uint64_t walk(uint64_t x, long steps)
{
    while (steps--) {
        STEP
    }
    return x;
}

/* `calls` calls of the function of length `which`, by its name: through a pointer it would be another kind of call. */
static struct mixed run(int which, long calls, int gap, uint64_t x)
{
    struct mixed m = {x, 0};
#define CALLS(NAME) while (calls--) { m = NAME(walk(m.x, gap)); } break;
    switch (which) {
    case 0: CALLS(mix_0)
    case 1: CALLS(mix_4)
    case 2: CALLS(mix_40)
    }
    return m;
}

static void *measure(void *first)
{
    for (;;)
        for (unsigned which = 0; which < sizeof lengths / sizeof *lengths; which++)
            for (unsigned i = 0; i < sizeof gaps / sizeof *gaps; i++) {
                int steps = lengths[which].steps + gaps[i];
                long calls = STEPS / (steps ? steps : 1);
                double began = now();
                struct mixed m = run((int)which, calls, gaps[i], 88172645463325252u);
                double took = now() - began;
                if (m.x != walk(88172645463325252u, calls * steps)) {
                    printf("ERROR: %ld calls of length %d end in %lu\n", calls, lengths[which].steps, (unsigned long)m.x);
                    exit(1);
                }
                if (first)
                    printf("by %lu: length %d after %d: %.1f ns\n", (unsigned long)m.version, lengths[which].steps, gaps[i],
                           took / (double)calls);
            }
    return 0;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 1; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, measure, 0)) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    measure(&threads);
}
