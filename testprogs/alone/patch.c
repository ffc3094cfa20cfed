/* All three, version V. */
#include "alone.h"

int first(void) { return V; }
__attribute__((noipa)) int many(int a, int b, int c, int d, int e, int f, int g, int h)
{
    return a + b + c + d + e + f + g + h - 36 + V;
}
__attribute__((noipa)) int deep(int levels)
{
#ifdef AROUND
    extern int (*volatile around)(int);
    return levels ? around(levels - 1) : many(1, 2, 3, 4, 5, 6, 7, 8);
#else
    return levels ? deep(levels - 1) : many(1, 2, 3, 4, 5, 6, 7, 8);
#endif
}
