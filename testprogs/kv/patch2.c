/* Patch 2: `add` goes no higher than 999, and a new variable counts how often it was asked to. */
#include "kv.h"
#include <stdio.h>
#include <stdlib.h>
long held;
int do_add(struct request r, char *reply)
{
    uint32_t h = hash(r.key);
    struct shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, h, r.key);
    if (!e)
        e = insert(s, h, r.key);
    long sum = atol(e->value) + atol(r.value);
    int n;
    if (sum > 999)
        n = snprintf(reply, REPLY, "held at %s (%ld)\n", e->value, __atomic_add_fetch(&held, 1, __ATOMIC_RELAXED));
    else {
        snprintf(e->value, sizeof e->value, "%ld", sum);
        n = snprintf(reply, REPLY, "%ld\n", sum);
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}
