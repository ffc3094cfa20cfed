/* A program that, when it is told to, does what must not wait for an update that is under way.
 *
 * Two threads call; a line on standard input says what the first one does:
 *   exec PROGRAM    replaces itself
 *   exit            ends
 *   crash           ends by SIGSEGV in another thread
 *   setuid N G      changes its user and group, then prints "setuid 0"
 *   dumpable N      prctl(PR_SET_DUMPABLE), then prints "dumpable 0"
 * Prints "version N" when it first sees N. */
#define _GNU_SOURCE
#include <grp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

__attribute__((noipa)) int first(void) { return 0; }

static void *work(void *unused)
{
    for (int last = -1;; usleep(1000)) {
        int now = first();
        if (now != last)
            printf("version %d\n", now);
        last = now;
    }
    return unused;
}

static void *crash(void *where) { return *(void **)where; }

int main(void)
{
    char line[1000], word[900];
    pthread_t t;
    int number, group;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_create(&t, 0, work, 0);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "exec %899s", word) == 1) {
            execl(word, word, "stay", (char *)0);
            puts("ERROR exec");
        } else if (!strncmp(line, "exit", 4)) {
            exit(0);
        } else if (!strncmp(line, "crash", 5)) {
            pthread_create(&t, 0, crash, 0);
        } else if (sscanf(line, "setuid %d %d", &number, &group) == 2) {
            printf("setuid %d\n", setgroups(0, 0) | setgid((gid_t)group) | setuid((uid_t)number));
        } else if (sscanf(line, "dumpable %d", &number) == 1) {
            printf("dumpable %d\n", prctl(PR_SET_DUMPABLE, number));
        }
    }
    return 0;
}
