/* Both halves, version V. */
#include "recursion.h"
__attribute__((noipa)) long even(long n, long at)
{
    deepest = V;
    if (n == at)
        middle();
    return n ? 1 + to_odd(n - 1, 1, 2, 3, 4, 5, 6, 7, 8, at) : (middle(), 0);
}
__attribute__((noipa)) long odd(long n, long a, long b, long c, long d, long e, long f, long g, long h, long at)
{
    return 1 + to_even(n - 1, at) + (a + b + c + d + e + f + g + h - 36);
}
