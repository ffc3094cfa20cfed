/* Conventions with arguments on the stack or in unusual places, called by threads without pause; each result is checked.
 *
 * Prints "version N" when a version is first seen by the main thread, "ERROR name" when an argument arrived wrong. */
#include "stackargs.h"
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

__attribute__((noipa)) long many(MANY_PARAMETERS) { return MANY_SUM; }
__attribute__((noipa)) double mixed(MIXED_PARAMETERS) { return MIXED_SUM; }
__attribute__((noipa)) struct big by_value(struct big a, int k, struct big b)
{
    struct big r = {{0}};
    for (int i = 0; i < 12; i++)
        r.v[i] = a.v[i] + k * b.v[i];
    return r;
}
__attribute__((noipa)) double variadic(int n, ...)
{
    va_list ap;
    double s = 0;
    va_start(ap, n);
    for (int i = 0; i < n; i++)
        s += i % 2 ? va_arg(ap, double) : va_arg(ap, long);
    va_end(ap);
    return s;
}
__attribute__((noipa)) long double extended(long double a, long double b, __int128 c) { return a * b + (long double)c; }
__attribute__((noipa)) _Complex double turned(_Complex double z) { return z * 1.0i; }
__attribute__((noipa)) int version(void) { return 0; }

static void complain(const char *what) { printf("ERROR %s\n", what); }

static void check(void)
{
    struct big a, b;
    for (int i = 0; i < 12; i++)
        a.v[i] = i, b.v[i] = 100 + i;
    if (many(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20) != 2870)
        complain("many");
    if (mixed(1, 2.0, 3, 4.0, 5, 6.0, 7, 8.0, 9, 10.0, 11, 12.0, 13, 14.0, 15, 16.0, 17, 18.0, 19, 20.0) != 2870.0)
        complain("mixed");
    struct big r = by_value(a, 3, b);
    for (int i = 0; i < 12; i++)
        if (r.v[i] != i + 3 * (100 + i))
            complain("by_value");
    if (variadic(12, 1L, 2.0, 3L, 4.0, 5L, 6.0, 7L, 8.0, 9L, 10.0, 11L, 12.0) != 78.0)
        complain("variadic");
    if (extended(2.5L, 4.0L, (__int128)1 << 40) != 10.0L + (long double)((__int128)1 << 40))
        complain("extended");
    if (turned(1.0 + 2.0i) != -2.0 + 1.0i)
        complain("turned");
}

static void *work(void *unused)
{
    for (;;)
        check();
    return unused;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < 2; i++) {
        pthread_t t;
        pthread_create(&t, 0, work, 0);
    }
    for (int last = -1;;) {
        int now = version();
        check();
        if (now != last)
            printf("version %d\n", now);
        last = now;
        usleep(1000);
    }
}
