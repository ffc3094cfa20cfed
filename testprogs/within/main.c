/* Functions of one object that call each other, under load, while updates come as fast as they can.
 *
 * Proves: such calls, which are not counted, take the newest version from its commit on and none before it, also from an old
 * version that goes on for a hundred updates; all functions of a patch switch together, by whatever way they are
 * called; the object is there as long as anybody is in it.
 *
 * Usage: main PAGE THREADS.  PAGE as in testprogs/torture.  Prints "ready", and "done" when told to stop. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include "within.h"

struct page *page;
#define BASE 0x5e000000

ONE(0)
TWO(0)
THREE
STAY(stay, 0)
STAY(outside, 0)        /* of the program for ever */
long (*volatile through)(long) = one, (*volatile again)(long) = two;

INLINE void complain(const char *what, long a, long b, uint64_t l)
{
    if (!atomic_fetch_add(&page->errors, 1))
        snprintf(page->error, sizeof page->error, "%s: %#lx, %#lx, limits %#lx", what, a, b, (unsigned long)l);
}

void seen(uint64_t before, long a, long b, long c, long d, long e)
{
    long v[] = {a, b, c, d, e};
    atomic_fetch_add_explicit(&page->calls, 1, memory_order_relaxed);
    for (int i = 0; i < 5; i++) {
        if (v[i] && (v[i] & 0x7f000000) != BASE)
            complain("result", i, v[i], before);
        v[i] = v[i] ? v[i] - BASE : 0;
    }
    if (limits() != before)
        return;
    for (int i = 0; i < 5; i++) {
        if (v[i] < (long)(before & 0xffffff) || v[i] > (long)(before >> 24 & 0xffffff))
            complain("version of call", i, v[i], before);
        if (i && (before >> 48 & 1 ? v[i] < v[i - 1] : v[i] > v[i - 1]))
            complain("switched apart", v[i - 1], v[i], before);
    }
}

static void *work(void *number)
{
    unsigned long random = (unsigned long)number + 1;
    while (!atomic_load(&page->stop)) {
        random = random * 6364136223846793005ul + 1442695040888963407ul;
        long rounds = 1L << (random >> 40) % 20, naps = (random >> 33) % 8 ? 0 : (random >> 50) % 100;
        if (number)
            stay(rounds, naps);
        else
            outside(rounds, 0);
        atomic_fetch_add(&page->threads, 1);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 2, fd = open(argv[1], O_RDWR);
    pthread_t threads[16];
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || page == MAP_FAILED)
        return 1;
    for (long i = 0; i < count; i++)
        if (pthread_create(&threads[i], 0, work, (void *)i))
            return 1;
    puts("ready");
    fflush(stdout);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], 0);
    puts("done");
    return 0;
}
