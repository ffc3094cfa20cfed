/* Producers put numbered items into a bounded queue, consumers take them out; making and taking are functions that
 * get patched.
 *
 * Proves that items which an old version made are understood by a new one (the queue always holds some of both), and
 * that no item is lost or seen twice: each producer's values count up from 1, and every so often the sum of what was
 * taken is compared with the sum of what was put in and what is still queued, under the queue's lock.
 * Usage: main [THREADS] (half of them produce); prints the version of the item taken last; "ERROR" when a check
 * fails. */
#include "queue.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t room = PTHREAD_COND_INITIALIZER, filled = PTHREAD_COND_INITIALIZER;
static struct item places[PLACES];
static uint64_t put, got, put_sum, got_sum;     /* under lock, as are the places */
static int last;

struct item made(uint64_t value) { return (struct item){value, value * 3, 1}; }
/* Knows the marks of its successor, because after a revert the queue is full of them. */
int taken(const struct item *item)
{
    return item->mark == (item->version == 2 ? ~item->value : item->value * 3) ? 1 : 0;
}

static void fail(const char *what)
{
    printf("ERROR: %s\n", what);
    exit(1);
}

static void *produce(void *unused)
{
    for (uint64_t value = 1;; value++) {
        struct item item = made(value);
        pthread_mutex_lock(&lock);
        while (put - got == PLACES)
            pthread_cond_wait(&room, &lock);
        places[put++ % PLACES] = item;
        put_sum += value;
        pthread_cond_signal(&filled);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

static void *consume(void *unused)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        while (put == got)
            pthread_cond_wait(&filled, &lock);
        struct item item = places[got++ % PLACES];
        got_sum += item.value;
        pthread_cond_signal(&room);
        pthread_mutex_unlock(&lock);
        int version = taken(&item);
        if (!version)
            fail("an item came out other than it went in");
        __atomic_store_n(&last, version * 10 + item.version, __ATOMIC_RELAXED);
        usleep(200);
    }
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, i % 2 ? consume : produce, 0))
            fail("no thread");
    }
    for (;;) {
        usleep(2000);
        pthread_mutex_lock(&lock);
        uint64_t queued = 0;
        for (uint64_t i = got; i < put; i++)
            queued += places[i % PLACES].value;
        if (put_sum != got_sum + queued)
            fail("items were lost or seen twice");
        pthread_mutex_unlock(&lock);
        int seen = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (seen)
            printf("taken by %d made by %d\n", seen / 10, seen % 10);
    }
}
