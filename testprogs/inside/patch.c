/* Version V of all, or with PARTIAL of the functions that the loop calls.  `last` ends in a tail call. */
#include "inside.h"
OPAQUE int first(void) { return V; }
OPAQUE int second(void) { return V; }
OPAQUE int last(void) { return first(); }
#ifndef PARTIAL
OPAQUE int loop(int *newest, int left)
{
    while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) <= left) {
        int a = first(), b = second(), c = last();
        seen(a, b, c, newest);
    }
    return V;
}
#endif
