/* A cache of 32 entries, shared by all threads, whose eviction policy is patched while it is in use: least recently
 * used, then oldest.
 *
 * Proves that the entries stay when the policy changes: what is found in the cache is always what was stored for that
 * key, and no key is there twice. Which policy is at work is seen from what it does: key 0 is used before every miss,
 * so that only another policy than "least recently used" evicts it.
 * Usage: main [THREADS]; prints the policy's name and whether key 0 stayed lately; "ERROR" when a check fails. */
#include "lru.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct cache cache;
static unsigned long lost;      /* how often key 0 was evicted; under lock */

int evicted(const struct cache *c)
{
    int least = 0;
    for (int i = 1; i < ENTRIES; i++)
        if (c->entries[i].used < c->entries[least].used)
            least = i;
    return least;
}

const char *policy(void) { return "recent"; }

static void fail(const char *what)
{
    printf("ERROR: %s\n", what);
    exit(1);
}

static void look_up(unsigned key)      /* under lock */
{
    int found = -1;
    for (int i = 0; i < ENTRIES; i++)
        if (cache.entries[i].born && cache.entries[i].key == key) {
            if (found >= 0)
                fail("a key is in the cache twice");
            found = i;
        }
    cache.clock++;
    if (found < 0) {
        found = evicted(&cache);
        if (found < 0 || found >= ENTRIES)
            fail("no entry was chosen");
        struct entry *old = &cache.entries[found];
        lost += old->born && old->key == 0;
        *old = (struct entry){key, key * 2654435761u, cache.clock, cache.clock};
    }
    if (cache.entries[found].value != key * 2654435761u)
        fail("a value of another key");
    cache.entries[found].used = cache.clock;
}

static void *use(void *seed)
{
    unsigned state = (unsigned)(unsigned long)seed;
    for (;;) {
        pthread_mutex_lock(&lock);
        look_up(0);
        look_up(1 + rand_r(&state) % (4 * ENTRIES));
        pthread_mutex_unlock(&lock);
        usleep(50);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (long i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, use, (void *)(i + 1)))
            fail("no thread");
    }
    for (unsigned long before = 0;;) {
        usleep(20000);
        pthread_mutex_lock(&lock);
        unsigned long now = lost;
        const char *name = policy();
        pthread_mutex_unlock(&lock);
        printf("%s: key 0 %s\n", name, now == before ? "stayed" : "went");
        before = now;
    }
}
