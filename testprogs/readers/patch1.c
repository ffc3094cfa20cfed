/* Patch 1: both go through the cells from the last to the first. */
#include "readers.h"
void wrote(uint64_t seed)
{
    pthread_rwlock_wrlock(&table.lock);
    table.generation += seed;
    for (int i = CELLS - 1; i >= 0; i--) {
        table.cells[i] = table.generation * (uint64_t)(i + 1);
        if (i == CELLS / 2)
            pause_inside();
    }
    table.writer = 2;
    pthread_rwlock_unlock(&table.lock);
}
struct seen looked(void)
{
    struct seen seen = {2, 0};
    pthread_rwlock_rdlock(&table.lock);
    for (int i = CELLS - 1; i >= 0; i--) {
        if (table.cells[i] != table.generation * (uint64_t)(i + 1))
            seen.reader = 0;
        if (i == CELLS / 2)
            pause_inside();
    }
    seen.writer = table.writer;
    pthread_rwlock_unlock(&table.lock);
    return seen;
}
