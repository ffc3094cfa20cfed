/* Patch 3: `stats` tells how often it was asked, with a static local; `get` answers in capitals.  All that patch 1 brought is
 * replaced by now, so its code is freed; its variable stays. */
#include "server.h"
#include <stdio.h>
#include <string.h>
extern unsigned long misses;
int do_get(const char *key, char *reply, int room)
{
    int n;
    pthread_mutex_lock(&table_lock);
    struct entry *e = table[hash(key)];
    while (e && strcmp(e->key, key))
        e = e->next;
    if (!e)
        misses++;
    n = e ? snprintf(reply, room, "value %s\n", e->value) : snprintf(reply, room, "NO SUCH KEY %s\n", key);
    pthread_mutex_unlock(&table_lock);
    return n;
}
int do_stats(char *reply, int room)
{
    static int asked;
    return snprintf(reply, room, "version 4 requests %lu misses %lu asked %d\n", requests, misses, ++asked);
}
