/* What coroutines are suspended in, version V. */
#include "contexts.h"
__attribute__((noipa)) int inner(int x) { suspend(); return x + V; }
__attribute__((noipa)) long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
    suspend();
    return a + b + c + d + e + f + g + h + V;
}
