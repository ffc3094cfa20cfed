/* Threads whose start routine is replaced and ends them: by pthread_exit, or as it is cancelled.
 *
 * Proves: the old versions are freed within seconds, although no other thread comes to use the stacks again.
 * Usage: main exit | cancel | return.  For each line: four threads, one after the other, and "version N". */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#define V 0
#include "worker.h"

volatile int seen, arrived;

WORKER

int main(int argc, char **argv)
{
    char line[16];
    const char *how = argc > 1 ? argv[1] : "return";
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        for (int i = 0; i < 4; i++) {
            pthread_t t;
            arrived = 0;
            pthread_create(&t, 0, worker, (void *)how);
            while (*how == 'c' && !arrived)
                usleep(100);
            if (*how == 'c')
                pthread_cancel(t);
            pthread_join(t, 0);
        }
        printf("version %d\n", seen);
    }
}
