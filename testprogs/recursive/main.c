/* Threads compute with functions that call themselves (Fibonacci's numbers, Ackermann's function) and each other (even, odd).
 *
 * Proves that versions may take turns within one computation: what is on the stack returns to its callers, of whatever
 * version they are, and the answer is right.  (testprogs/recursion goes down much further.)
 * Usage: main [THREADS]; prints "all by V" when a thread's last computations were of version V alone, "mixed" when
 * one was of several; "ERROR" when an answer is wrong. */
#include "recursive.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static uint64_t last;

struct found fibonacci(uint64_t n)
{
    if (n < 2)
        return (struct found){n, bit(1)};
    struct found a = fibonacci(n - 1), b = fibonacci(n - 2);
    return (struct found){a.value + b.value, a.versions | b.versions | bit(1)};
}

struct found ackermann(uint64_t m, uint64_t n)
{
    if (!m)
        return (struct found){n + 1, bit(1)};
    struct found inner = n ? ackermann(m, n - 1) : (struct found){1, bit(1)};
    struct found f = ackermann(m - 1, inner.value);
    f.versions |= inner.versions | bit(1);
    return f;
}

struct found even(uint64_t n)
{
    struct found f = {1, bit(1)};
    if (n)
        f = odd(n - 1);
    f.versions |= bit(1);
    return f;
}

struct found odd(uint64_t n)
{
    struct found f = {0, bit(1)};
    if (n)
        f = even(n - 1);
    f.versions |= bit(1);
    return f;
}

static uint64_t check(const char *what, struct found f, uint64_t right)
{
    if (f.value == right)
        return f.versions;
    printf("ERROR: %s is %lu, not %lu\n", what, (unsigned long)f.value, (unsigned long)right);
    exit(1);
}

static void *work(void *unused)
{
    for (;;) {
        uint64_t versions = check("fibonacci(20)", fibonacci(20), 6765);
        versions |= check("ackermann(2, 60)", ackermann(2, 60), 123);
        versions |= check("ackermann(3, 4)", ackermann(3, 4), 125);
        versions |= check("even(3001)", even(3001), 0);
        versions |= check("odd(3001)", odd(3001), 1);
        __atomic_store_n(&last, versions, __ATOMIC_RELAXED);
    }
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, 0)) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    for (;;) {
        usleep(2000);
        uint64_t versions = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (versions & (versions - 1))
            puts("mixed");
        else if (versions)
            printf("all by %d\n", __builtin_ctzll(versions));
    }
}
