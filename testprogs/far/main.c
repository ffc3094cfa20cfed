/* A program whose zeroed data spans more than a direct branch does on AArch64 (128 MiB): stubs lie behind it, out of reach.
 *
 * Calls lead through all functions in a row: hidden or pointed (by a pointer), tail, direct (by a tail call), helper.  Each
 * adds its version, in two digits of its own; so a call that went astray would show.  A thread makes them all the time. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "far.h"

char pool[SIZE];
int (*volatile pointer)(int);
static volatile int quit;

__attribute__((noipa)) int helper(int x) { return x + pool[0] + pool[SIZE - 1]; }
__attribute__((noipa)) int direct(int x) { return helper(x) + pool[SIZE / 2]; }
__attribute__((noipa)) int tail(int x) { return direct(x); }
__attribute__((noipa)) int pointed(int x) { return tail(x) + pool[SIZE / 2]; }
__attribute__((noipa)) static int hidden(int x) { return tail(x) + pool[SIZE / 2]; }
__attribute__((noipa)) static int least(int x) { return x + pool[SIZE / 2]; }     /* never called by a pointer: it needs no mark */

static void check(int sum, const char *what)
{
    for (int rest = sum; rest; rest /= 100)
        if (rest < 0 || rest % 100 > 20) {
            printf("ERROR: %s: %d\n", what, sum);
            exit(1);
        }
}

static void *work(void *unused)
{
    while (!quit) {
        check(hidden(0), "hidden");
        check(pointer(0), "pointed");
        check(tail(0), "tail");
        check(least(0), "least");
    }
    return unused;
}

int main(void)
{
    pthread_t thread;
    char line[100];
    setvbuf(stdout, 0, _IOLBF, 0);
    pointer = pointed;
    memset(pool + ENDS, 0, ENDS);
    pthread_create(&thread, 0, work, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin) && *line != 'q') {
        int patched = 0;
        printf("helper %d direct %d tail %d pointed %d hidden %d least %d",
               helper(7), direct(7), tail(7), pointer(7), hidden(7), least(7));
        for (int i = 1; i < ENDS; i++)
            patched += pool[SIZE - ENDS + i - 1] != 0;
        printf(" in the pool %d\n", patched);
    }
    quit = 1;
    pthread_join(thread, 0);
    puts("end");
    return 0;
}
