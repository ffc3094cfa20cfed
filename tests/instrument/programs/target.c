/* Functions that ways.c calls from another file, and what takes their place. */
#include "ways.h"

KEPT int target(int x) { OPAQUE(x); return 2 * x + 1; }
KEPT int other(int x) { OPAQUE(x); return 1000 + x; }
int aliased(int x) __attribute__((alias("target")));

KEPT int deep(int x)
{
    OPAQUE(x);
    if (x == 3)
        patch("deep");
    if (x <= 0)
        return 0;
    int below = deep(x - 1);
    OPAQUE(below);
    return below + 1;
}
KEPT int deep_other(int x) { OPAQUE(x); return 500 + x; }

/* Called while relocations are processed, by the resolver of `chosen`. */
KEPT int choose(void) { int n = 1; OPAQUE(n); return n; }
