/* Patch 1: `get` says how long the value is, or which key is missing. */
#include "kv.h"
#include <stdio.h>
#include <string.h>
int do_get(struct request r, char *reply)
{
    uint32_t h = hash(r.key);
    struct shard *s = &shards[h % SHARDS];
    pthread_mutex_lock(&s->lock);
    struct entry *e = find(s, h, r.key);
    int n = e ? snprintf(reply, REPLY, "value %s (%zu)\n", e->value, strlen(e->value)) :
                snprintf(reply, REPLY, "none: %.*s\n", WORD, r.key);
    pthread_mutex_unlock(&s->lock);
    return n;
}
