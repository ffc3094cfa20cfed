/* C++ exceptions through patched functions, in many threads, while the functions are patched.
 *
 * Proves: an exception that a patch throws reaches handlers of the program and the other way round; functions that catch and
 * rethrow, side-frame gates and destructors are passed on the way; gates count the calls out that an exception ends.
 * Usage: main THREADS
 * Prints "version N" when a call first gives N, "turns N" each 10,000 exceptions, "ERROR ..." when something is wrong. */
#include <cstdio>
#include <cstdlib>
#include <pthread.h>
#include <unistd.h>
#include "throwing.h"

thread_local long alive;
#ifdef PLUGIN
__attribute__((noipa)) long &alive_here() { return alive; }
#endif
static long turns, newest;

__attribute__((noipa)) long version() { return 0; }
#include "functions.inc"

static void note(long v)
{
    long before = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
    while (before < v && !__atomic_compare_exchange_n(&newest, &before, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        ;
    if (before < v)
        printf("version %ld\n", v);
    long t = __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
    if (t % 10000 == 0)
        printf("turns %ld\n", t);
}

static void *run(void *)
{
    for (unsigned n = 0;; n++) {
        Parcel p = {{1, 2, 3, 4, 5}};
        try {
            outer(static_cast<int>(n % 4), 2, 3, 4, 5, 6, 7, p);
            puts("ERROR no exception");
        } catch (const Failure &f) {
            if (f.deep != static_cast<int>(n % 4) || f.passed != 3)
                printf("ERROR exception %d %d\n", f.deep, f.passed);
            note(f.version);
        }
        if (alive)
            printf("ERROR %ld alive\n", alive);
    }
}

int main(int, char **argv)
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    pthread_t thread;
    for (int i = atoi(argv[1]); i > 0; i--)
        pthread_create(&thread, nullptr, run, nullptr);
    puts("ready");
    for (;;)
        pause();
}
