/* The same functions, version V. */
#include "stackargs.h"
long many(MANY_PARAMETERS) { return MANY_SUM; }
double mixed(MIXED_PARAMETERS) { return MIXED_SUM; }
struct big by_value(struct big a, int k, struct big b)
{
    struct big r;
    for (int i = 0; i < 12; i++)
        r.v[i] = k * b.v[i] + a.v[i];
    return r;
}
double variadic(int n, ...)
{
    va_list ap;
    double s = 0;
    va_start(ap, n);
    while (n > 0) {
        s += va_arg(ap, long);
        s += va_arg(ap, double);
        n -= 2;
    }
    va_end(ap);
    return s;
}
long double extended(long double a, long double b, __int128 c) { return b * a + (long double)c; }
_Complex double turned(_Complex double z) { return 1.0i * z; }
int version(void) { return V; }
