/* Recursion, direct and mutual, LEVELS deep, across updates.
 *
 * Proves: gates nest as deep as the stack allows; when the thread's side-frame entries run out, more are made; levels of many versions
 * are on one stack, and each returns to its own caller.
 * Usage: main LEVELS.  Prints "down N" (version of the deepest level) half-way and at the bottom, and waits for a line there; "up N" at
 * the end.  "ERROR ..." when a sum is wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "recursion.h"

long (*volatile to_even)(long n, long at) = even;
long (*volatile to_odd)(long n, long a, long b, long c, long d, long e, long f, long g, long h, long at) = odd;
static long levels;
int deepest;

static void await_line(void)
{
    char line[100];
    printf("down %d\n", deepest);
    if (!fgets(line, sizeof line, stdin))
        exit(0);
}

/* Updates are made while this is on the stack. */
void middle(void) { await_line(); }

__attribute__((noipa)) long even(long n, long at)
{
    deepest = 0;
    if (n == at)
        middle();
    return n ? 1 + to_odd(n - 1, 1, 2, 3, 4, 5, 6, 7, 8, at) : (middle(), 0);
}
__attribute__((noipa)) long odd(long n, long a, long b, long c, long d, long e, long f, long g, long h, long at)
{
    return 1 + to_even(n - 1, at) + (a + b + c + d + e + f + g + h - 36);
}

static void *run(void *unused)
{
    for (;;) {
        long sum = even(levels, levels / 2 & ~1l);
        if (sum != levels)
            printf("ERROR %ld levels\n", sum);
        printf("up %d\n", deepest);
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_attr_t big;
    pthread_t t;
    levels = argc > 1 ? atol(argv[1]) & ~1l : 1000;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_attr_init(&big);
    pthread_attr_setstacksize(&big, (size_t)levels * 256 + (1 << 20));
    if (pthread_create(&t, &big, run, 0))
        puts("ERROR no thread");
    pthread_join(t, 0);
    return 0;
}
