/* Threads that live for a moment, and many at once; all of them made, run and ended by functions that are patched.
 *
 * Proves: blocks of counters are taken and given back at any rate; a thread never runs freed code; versions never go back.
 * Usage: main moment THREADS [beside] | crowd THREADS.
 *   moment  batches of THREADS threads that make one call and end by pthread_exit in a patched function, without end;
 *           beside: beside one that runs for ever and calls nothing
 *   crowd   THREADS threads at once, each calls and sleeps in turn
 * Prints "version N" when it first sees N, "lived N" when N thousand threads are over, "ERROR ..." when something is wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int newest;

__attribute__((noipa)) int first(void) { return 0; }
__attribute__((noipa)) void leave(void) { pthread_exit((void *)1); }
__attribute__((noipa)) void *life(void *unused)
{
    int seen = __atomic_load_n(&newest, __ATOMIC_ACQUIRE), now = first();
    if (now < seen)
        printf("ERROR went back from %d to %d\n", seen, now);
    leave();
    return unused;
}
/* The thread's first function is given by whichever version of this one runs. */
__attribute__((noipa)) int spawn(pthread_t *thread, const pthread_attr_t *how) { return pthread_create(thread, how, life, 0); }

static void note(void)
{
    int now = first();
    if (now > newest) {
        __atomic_store_n(&newest, now, __ATOMIC_RELEASE);
        printf("version %d\n", now);
    }
}

static void *member(void *unused)
{
    for (;; usleep(100000)) {
        int seen = __atomic_load_n(&newest, __ATOMIC_ACQUIRE), now = first();
        if (now < seen)
            printf("ERROR went back from %d to %d\n", seen, now);
    }
    return unused;
}

static void *runner(void *unused)
{
    for (volatile long n = 0;; n++)
        ;
    return unused;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 10;
    pthread_t *threads = calloc((size_t)count, sizeof *threads);
    pthread_attr_t small;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    if (!strcmp(argv[1], "crowd")) {
        for (int i = 0; i < count; i++)
            if (pthread_create(&threads[i], &small, member, 0))
                puts("ERROR no thread");
        puts("ready");
        for (;; usleep(500))
            note();
    }
    pthread_t beside;
    if (argc > 3 && pthread_create(&beside, &small, runner, 0))
        puts("ERROR no thread");
    puts("ready");
    for (long lived = 0;; lived += count) {
        for (int i = 0; i < count; i++)
            if (spawn(&threads[i], &small))
                puts("ERROR no thread");
        for (int i = 0; i < count; i++) {
            void *result;
            pthread_join(threads[i], &result);
            if (result != (void *)1)
                puts("ERROR result of a thread");
        }
        if (lived / 1000 != (lived + count) / 1000)
            printf("lived %ld\n", (lived + count) / 1000);
        note();
    }
}
