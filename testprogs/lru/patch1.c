/* Patch 1: the oldest entry goes, however lately it was used. */
#include "lru.h"
int evicted(const struct cache *c)
{
    int oldest = 0;
    for (int i = 1; i < ENTRIES; i++)
        if (c->entries[i].born < c->entries[oldest].born)
            oldest = i;
    return oldest;
}
const char *policy(void) { return "oldest"; }
