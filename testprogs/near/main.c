/* Threads that call a function all the time, while the calls of it are turned and turned back under them.
 *
 * Each function lies on a cache line of its own, so that there is room in front of it.  `outer` calls `inner` directly and
 * returns inner's version twice in one number: a call that went astray would show.  Prints each new version once; "quit"
 * ends it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "near.h"

__attribute__((noipa)) int before(void) { return 7; }    /* C start-up code has no sizes, nobody knows where it ends */
__attribute__((noipa, aligned(64))) int inner(void) { return 0; }
__attribute__((noipa, aligned(64))) int outer(void) { int a = inner(); return a * 1000 + inner(); }
static volatile int quit;

static void *work(void *unused)
{
    int last = -1;
    while (!quit) {
        int now = outer(), first = now / 1000, second = now % 1000;
        if (first > second || second < last) {          /* `attach` only: versions never go back */
            printf("ERROR: %d, then %d\n", last, now);
            exit(1);
        }
        last = second;
    }
    return unused;
}

static void *once(void *unused)
{
    for (int i = 0; i < 100; i++)
        outer();
    return unused;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 0;
    pthread_t all[100];
    char line[100];
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < threads; i++)
        pthread_create(&all[i], 0, work, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin) && *line != 'q') {
        pthread_t t;
        pthread_create(&t, 0, once, 0);                 /* code that a new thread executes for the first time */
        pthread_join(t, 0);
        printf("version %d\n", outer());
    }
    quit = 1;
    for (int i = 0; i < threads; i++)
        pthread_join(all[i], 0);
    puts("end");
    return 0;
}
