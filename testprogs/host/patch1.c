/* Patch 1 for the plugin: square roots by Newton's method; the plugin's own count goes on. */
#include "plugin.h"
static uint64_t calls;
__attribute__((used)) static struct answer square_root(uint64_t n)
{
    uint64_t root = n, better = n / 2 + 1;
    while (better < root) {
        root = better;
        better = (root + n / root) / 2;
    }
    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    return (struct answer){root, 2};
}
