/* All three, version V. */
#include <stdio.h>
#include <stdlib.h>

extern int ending;

__attribute__((noipa)) int version(void) { return V; }
__attribute__((noipa)) void handler(void) { printf("handler %d\n", V); }
__attribute__((noipa)) long deep(long a, long b, long c, long d, long e, long f, long g, long h, long i, long level)
{
    if (level)
        return deep(a, b, c, d, e, f, g, h, i, level - 1) + 1;
    if (__atomic_exchange_n(&ending, 0, __ATOMIC_ACQ_REL))
        exit(version() % 100);
    return a + b + c + d + e + f + g + h + i - 45;
}
