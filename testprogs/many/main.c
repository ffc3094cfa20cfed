/* Threads go through a sequence of numbers with functions that get thousands of patches.
 *
 * Proves that the number of patches that there were changes nothing: not the answers (each round of a thread ends at the
 * number that it must), not the memory, not what may be freed.
 * Usage: main [THREADS]; prints the version that did the last round; "ERROR" when a round ends at a wrong number. */
#include "many.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { ROUND = 1000 };
static uint64_t last;

struct step next(uint64_t x) { return (struct step){x * 6364136223846793005u + 1442695040888963407u, number(1)}; }
struct step next_of(struct big b, uint64_t x) { return (struct step){(x ^ b.a) * b.b + b.c - b.d, number(1)}; }

static const struct big big = {1, 2862933555777941757u, 3037000493u, 7};

static uint64_t round_from(uint64_t x, uint64_t *version)
{
    for (int i = 0; i < ROUND; i++) {
        struct step a = next(x), b = next_of(big, a.x);
        x = b.x;
        *version = a.version == b.version ? a.version : 0;
    }
    return x;
}

/* The same without a call. */
static uint64_t right(uint64_t x)
{
    for (int i = 0; i < ROUND; i++)
        x = ((x * 6364136223846793005u + 1442695040888963407u) ^ big.a) * big.b + big.c - big.d;
    return x;
}

static void *work(void *start)
{
    uint64_t x = (uintptr_t)start, version = 0;
    for (;;) {
        uint64_t found = round_from(x, &version), wanted = right(x);
        if (found != wanted) {
            printf("ERROR: a round from %lu ends at %lu\n", (unsigned long)x, (unsigned long)found);
            exit(1);
        }
        x = found;
        __atomic_store_n(&last, version, __ATOMIC_RELAXED);
        usleep(5000);       /* the processor is needed for the patches */
    }
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, (void *)(uintptr_t)(i + 1))) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    for (;;) {
        usleep(10000);
        uint64_t version = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (version)
            printf("round by %lu\n", (unsigned long)version);
    }
}
