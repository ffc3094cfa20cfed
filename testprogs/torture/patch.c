/* All functions, in version V: a number that stands in the object file as it is, so that the tests make thousands of
 * versions of it without a compiler.  NAME is the same number as text.  With literals, a table, a new variable, and a new
 * function whose address is taken. */
#include <stdarg.h>
#include "torture.h"

#define V 0x5eed1234
#define NAME "v5eed1234"

static long turns;
static __attribute__((noipa)) long same(long x) { return x; }
static long (*volatile same_pointer)(long) = same;

__attribute__((noipa)) long plain(long x)
{
    turns++;
    return same_pointer(x) + V;
}

__attribute__((noipa)) long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
    return a + b + c + d + e + f + g + h + V;
}

__attribute__((noipa)) long vary(int count, ...)
{
    va_list list;
    double sum = 0;
    va_start(list, count);
    while (count--)
        sum += va_arg(list, double);
    va_end(list);
    return (long)sum + V;
}

__attribute__((noipa)) long deep(long levels)
{
    return levels ? deep(levels - 1) + 1 : (plain(0), 0);
}

__attribute__((noipa)) long sleepy(long x)
{
    nap();
    return x + V;
}

__attribute__((noipa)) const char *name(void) { return NAME; }
