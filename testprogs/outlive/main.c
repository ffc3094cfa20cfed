/* Pointers that a patch handed to the program stay valid for ever: strings, tables, callbacks, thread routines.
 *
 * Proves: what outlives a version is kept, and kept once, however many patches bring the same.
 * Usage: main THREADS, which call patched functions all the time.  Line "take": keeps what the newest version gives.  Line
 * "check": uses everything that was ever taken; prints "checked N newest V distinct D", D how many different addresses those
 * were.  Prints "version N" when a call first gives N, "ERROR ..." when something is wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "outlive.h"

enum { MOST = 20000 };
static struct gift taken[MOST];
static int count, newest;

__attribute__((noipa)) int version(void) { return 0; }
__attribute__((noipa)) void give(struct gift *g) { memset(g, 0, sizeof *g); }
__attribute__((noipa)) int work(int n) { return n + version() * 0; }

static void *run(void *unused)
{
    for (int n = 0;; n++) {
        if (work(n) != n)
            puts("ERROR result");
        int v = version(), before = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
        if (v > before && __atomic_compare_exchange_n(&newest, &before, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            printf("version %d\n", v);
    }
    return unused;
}

static void check(void)
{
    int distinct = 0;
    for (int i = 0; i < count; i++) {
        const struct gift *g = &taken[i];
        pthread_t t;
        void *result;
        if (strcmp(g->text, "a string that was given") || g->table[2] != 33 || strcmp(g->names[1], "second"))
            printf("ERROR content of %d\n", i);
        if (g->callback(5) != 5 + newest)
            printf("ERROR callback of %d\n", i);
        if (i % 100 == 0 || i < 64) {       /* as many the first time: their counter blocks stay */
            pthread_create(&t, 0, g->start, (void *)7l);
            pthread_join(t, &result);
            if ((long)result != 7 + newest)
                printf("ERROR thread routine of %d\n", i);
        }
        distinct += !i || memcmp(g, &taken[i - 1], sizeof *g);
    }
    printf("checked %d newest %d distinct %d\n", count, newest, distinct);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    char line[64];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    memset(taken, 1, sizeof taken);         /* all of it is in memory from now on: what grows is not ours */
    for (int i = 0; i < threads; i++)
        pthread_create(&t, 0, run, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "check\n")) {
            check();
        } else if (count < MOST) {
            give(&taken[count++]);
            puts("taken");
        }
    for (;;)
        pause();
}
