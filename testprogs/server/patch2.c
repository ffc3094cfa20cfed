/* Patch 2: a new command, "count", on top of patch 1, whose variable goes on counting. */
#include "server.h"
#include <stdio.h>
#include <string.h>
extern unsigned long misses;
static int do_count(char *reply, int room)
{
    int n = 0;
    pthread_mutex_lock(&table_lock);
    for (int i = 0; i < TABLE; i++)
        for (struct entry *e = table[i]; e; e = e->next)
            n++;
    pthread_mutex_unlock(&table_lock);
    return snprintf(reply, room, "keys %d\n", n);
}
int execute(char *line, char *reply, int room)
{
    char *save, *word = strtok_r(line, " \r\n", &save), *key = strtok_r(0, " \r\n", &save), *value = strtok_r(0, "\r\n", &save);
    __atomic_fetch_add(&requests, 1, __ATOMIC_RELAXED);
    if (word && !strcmp(word, "stats"))
        return do_stats(reply, room);
    if (word && !strcmp(word, "count"))
        return do_count(reply, room);
    if (word && key && !strcmp(word, "get"))
        return do_get(key, reply, room);
    if (word && key && value && !strcmp(word, "set"))
        return do_set(key, value, reply, room);
    return snprintf(reply, room, "error\n");
}
int do_stats(char *reply, int room)
{
    return snprintf(reply, room, "version 3 requests %lu misses %lu\n", requests, misses);
}
