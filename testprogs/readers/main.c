/* Readers and writers share a table under a read-write lock; both take the lock in a function that is patched, and
 * sleep while they hold it, so that updates come while it is held.
 *
 * Proves that a lock which an old version took is given back by the old version, and that old and new versions exclude
 * each other: no reader sees a half-written table, and the number of writes is the sum of what the writers counted.
 * Usage: main [THREADS] (every fourth writes); prints the versions of the reader and of the writer before it; "ERROR"
 * when a table was half written or a write was lost. */
#include "readers.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct table table = {.lock = PTHREAD_RWLOCK_INITIALIZER};
static uint64_t writes;     /* of all writers, counted outside the lock */
static int writers, last;

void pause_inside(void) { usleep(1000); }

/* Cell i holds the generation times i+1. */
void wrote(uint64_t seed)
{
    pthread_rwlock_wrlock(&table.lock);
    table.generation += seed;
    for (int i = 0; i < CELLS; i++) {
        table.cells[i] = table.generation * (uint64_t)(i + 1);
        if (i == CELLS / 2)
            pause_inside();
    }
    table.writer = 1;
    pthread_rwlock_unlock(&table.lock);
}

struct seen looked(void)
{
    struct seen seen = {1, 0};
    pthread_rwlock_rdlock(&table.lock);
    for (int i = 0; i < CELLS; i++) {
        if (table.cells[i] != table.generation * (uint64_t)(i + 1))
            seen.reader = 0;
        if (i == CELLS / 2)
            pause_inside();
    }
    seen.writer = table.writer;
    pthread_rwlock_unlock(&table.lock);
    return seen;
}

static void fail(const char *what)
{
    printf("ERROR: %s\n", what);
    exit(1);
}

static void *write_on(void *unused)
{
    for (;;) {
        __atomic_add_fetch(&writes, 1, __ATOMIC_SEQ_CST);
        wrote(1);
        usleep(2000 * (unsigned)writers);       /* all writers together leave readers most of the time */
    }
    return unused;
}

static void *read_on(void *unused)
{
    for (;;) {
        struct seen seen = looked();
        if (!seen.reader)
            fail("a reader saw a table that was half written");
        __atomic_store_n(&last, seen.reader * 10 + seen.writer, __ATOMIC_RELAXED);
        usleep(500);
    }
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    pthread_rwlockattr_t fair;
    writers = (threads + 3) / 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    /* Otherwise many readers, whose turns overlap, keep the writers out for ever. */
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&table.lock, &fair);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, i % 4 ? read_on : write_on, 0))
            fail("no thread");
    }
    for (;;) {
        usleep(2000);
        pthread_rwlock_rdlock(&table.lock);
        uint64_t begun = __atomic_load_n(&writes, __ATOMIC_SEQ_CST), done = table.generation;
        pthread_rwlock_unlock(&table.lock);
        if (done > begun || begun - done > (uint64_t)writers)
            fail("writes were lost or done twice");
        int seen = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (seen)
            printf("read by %d written by %d\n", seen / 10, seen % 10);
    }
}
