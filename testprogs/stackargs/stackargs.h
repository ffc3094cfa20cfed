/* What main.c and patch.c have to agree on. */
#include <complex.h>
#include <stdarg.h>
struct big { long v[12]; };
#define MANY_PARAMETERS long a, long b, long c, long d, long e, long f, long g, long h, long i, long j, long k, long l, \
    long m, long n, long o, long p, long q, long r, long s, long t
#define MANY_SUM (a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l + 13 * m \
    + 14 * n + 15 * o + 16 * p + 17 * q + 18 * r + 19 * s + 20 * t)
#define MIXED_PARAMETERS long a, double b, long c, double d, long e, double f, long g, double h, long i, double j, long k, \
    double l, long m, double n, long o, double p, long q, double r, long s, double t
#define MIXED_SUM MANY_SUM
