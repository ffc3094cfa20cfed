/* A plugin: square roots by bisection.  Its functions are static: the host sees the table alone. */
#include "plugin.h"
static uint64_t calls;
static uint64_t counted(void) { return __atomic_load_n(&calls, __ATOMIC_SEQ_CST); }
__attribute__((noinline)) static struct answer square_root(uint64_t n)
{
    uint64_t low = 0, high = UINT64_C(1) << 32;
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (middle * middle <= n)
            low = middle;
        else
            high = middle;
    }
    __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    return (struct answer){low, 1};
}
const struct plugin plugin = {"roots", square_root, counted};
