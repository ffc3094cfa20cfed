/* A thread pool: workers take tasks, which are pointers to functions that are patched, from a queue.
 *
 * Proves that a pointer to a function that was queued before an update runs the new version after it, and that no task is
 * lost, done twice or done wrongly on the way: each batch fills every place once with the right answer.
 * Usage: main [THREADS]; prints the version of each batch whose tasks were all done by one; "ERROR" when an answer is wrong. */
#include "pool.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BATCH = 256, KINDS = 3 };
struct order { task *task; uint64_t n; struct done *result; };
static task *const kinds[KINDS] = {sum_of_squares, bits_set, divisor};
static struct order queue[BATCH];
static int first, last, unfinished;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t some = PTHREAD_COND_INITIALIZER, none = PTHREAD_COND_INITIALIZER;

struct done sum_of_squares(uint64_t n)
{
    struct done d = {0, 1};
    for (uint64_t i = 1; i <= n; i++)
        d.value += i * i;
    return d;
}

struct done bits_set(uint64_t n)
{
    struct done d = {0, 1};
    for (; n; n >>= 1)
        d.value += n & 1;
    return d;
}

/* The greatest common divisor of n and 360360. */
struct done divisor(uint64_t n)
{
    uint64_t m = 360360;
    while (n) {
        uint64_t rest = m % n;
        m = n;
        n = rest;
    }
    return (struct done){m, 1};
}

/* The right answers, found in a third way, by no code that is patched. */
static uint64_t right(int kind, uint64_t n)
{
    uint64_t found = 0;
    switch (kind) {
    case 0:
        return n ? right(0, n - 1) + n * n : 0;
    case 1:
        for (int bit = 0; bit < 64; bit++)
            found += (n >> bit) % 2;
        return found;
    default:
        for (uint64_t m = 1; m <= 360360; m++)
            if (n % m == 0 && 360360 % m == 0)
                found = m;
        return found;
    }
}

static void *work(void *unused)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        while (first == last)
            pthread_cond_wait(&some, &lock);
        struct order o = queue[first++];
        pthread_mutex_unlock(&lock);
        *o.result = o.task(o.n);
        pthread_mutex_lock(&lock);
        if (!--unfinished)
            pthread_cond_signal(&none);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

int main(int argc, char **argv)
{
    static struct done results[BATCH];
    static uint64_t answers[BATCH];
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < BATCH; i++)
        answers[i] = right(i % KINDS, (uint64_t)i * 7);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, 0)) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    for (;;) {
        pthread_mutex_lock(&lock);
        for (int i = 0; i < BATCH; i++) {
            results[i] = (struct done){0, 0};
            queue[i] = (struct order){kinds[i % KINDS], (uint64_t)i * 7, &results[i]};
        }
        first = 0;
        last = unfinished = BATCH;
        pthread_cond_broadcast(&some);
        usleep(500);            /* while everything is queued */
        while (unfinished)
            pthread_cond_wait(&none, &lock);
        pthread_mutex_unlock(&lock);
        uint64_t version = results[0].version;
        for (int i = 0; i < BATCH; i++) {
            if (!results[i].version || results[i].value != answers[i]) {
                printf("ERROR: task %d of version %lu answers %lu, not %lu\n", i, (unsigned long)results[i].version,
                       (unsigned long)results[i].value, (unsigned long)answers[i]);
                return 1;
            }
            if (results[i].version != version)
                version = 0;
        }
        if (version)
            printf("batch by %lu\n", (unsigned long)version);
    }
}
