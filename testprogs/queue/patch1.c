/* Patch 1: items are marked in another way; the taker understands both, as the old one does: the queue holds both. */
#include "queue.h"
struct item made(uint64_t value) { return (struct item){value, ~value, 2}; }
int taken(const struct item *item)
{
    return item->mark == (item->version == 2 ? ~item->value : item->value * 3) ? 2 : 0;
}
