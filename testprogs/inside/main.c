/* Calls from one function of a patch to others of the same patch, while newer versions of those arrive.
 *
 * Proves: such calls, which need no gate, take the newest version from the commit on, all functions at one instant, also from
 * a loop of an old version that never ends; the loop keeps its version, and nothing else.
 * Usage: main THREADS, each of which is in `loop`.  Line "leave": all loops end and begin again in the newest version; prints
 * "left N" for each, N its version.  Prints "version N" when a thread first sees N, "ERROR ..." when something is wrong. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "inside.h"

int turn;

OPAQUE int first(void) { return 0; }
OPAQUE int second(void) { return 0; }
OPAQUE int last(void) { return first(); }
void seen(int a, int b, int c, int *newest)
{
    if (a < *newest || b < a || c < b)
        printf("ERROR %d %d %d after %d\n", a, b, c, *newest);
    if (c > *newest)
        printf("version %d\n", c);
    *newest = c;
}
OPAQUE int loop(int *newest, int left)
{
    while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) <= left) {
        int a = first(), b = second(), c = last();
        seen(a, b, c, newest);
    }
    return 0;
}

static void *run(void *unused)
{
    int newest = 0;
    for (int left = 0;; left++)
        printf("left %d\n", loop(&newest, left));
    return unused;
}

int main(int argc, char **argv)
{
    char line[64];
    pthread_t t;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = argc > 1 ? atoi(argv[1]) : 2; i > 0; i--)
        pthread_create(&t, 0, run, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        __atomic_add_fetch(&turn, 1, __ATOMIC_RELEASE);
    for (;;)
        pause();
}
