/* A program that ends by exit() in a patched function, while its threads call patched functions and updates go on.
 *
 * Proves: exit() does not return through gates, runs its handlers in their newest version while the other threads are still
 * inside patched functions, and nothing of it crashes or hangs.
 * Usage: main THREADS; the line "end" makes whichever thread sees it first call exit() three calls deep.
 * Prints "version N" when a call first gives N, "handler N" from the handler; ends with status version % 100. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int ending;

__attribute__((noipa)) int version(void) { return 0; }
__attribute__((noipa)) void handler(void) { puts("handler 0"); }
/* Ten arguments: a side-frame gate. */
__attribute__((noipa)) long deep(long a, long b, long c, long d, long e, long f, long g, long h, long i, long level)
{
    if (level)
        return deep(a, b, c, d, e, f, g, h, i, level - 1) + 1;
    if (__atomic_exchange_n(&ending, 0, __ATOMIC_ACQ_REL))
        exit(version() % 100);
    return a + b + c + d + e + f + g + h + i - 45;
}

static void *work(void *unused)
{
    for (;;)
        if (deep(1, 2, 3, 4, 5, 6, 7, 8, 9, 3) != 3)
            puts("ERROR arguments");
    return unused;
}

static void *watch(void *unused)
{
    for (int last = -1;; usleep(1000)) {
        int now = version();
        if (now > last)
            printf("version %d\n", now);
        last = now;
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t t;
    char line[64];
    setvbuf(stdout, 0, _IOLBF, 0);
    atexit(handler);
    pthread_create(&t, 0, watch, 0);
    for (int i = argc > 1 ? atoi(argv[1]) : 2; i > 0; i--)
        pthread_create(&t, 0, work, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "end\n"))
            __atomic_store_n(&ending, 1, __ATOMIC_RELEASE);
    for (;;)
        pause();
}
