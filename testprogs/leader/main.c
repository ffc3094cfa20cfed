/* A program whose first thread, the leader of its thread group, leaves by pthread_exit while the others go on.
 *
 * Proves: Linux shows nothing of such a process through its first thread, and yet it is patched, reverted and watched as any
 * other; what that thread was counted in is counted out, or found not to be in progress.
 * Usage: main [PAUSE], where PAUSE are milliseconds that the watching thread waits now and then (0: never).
 * Lines: "jump" leaves a call by longjmp, "leave" ends the first thread, "leave inside" ends it four calls deep.
 * Prints "ready", "jumped", "version N" when a call first gives N, and "ERROR ..." when something is wrong. */
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static jmp_buf out;
static unsigned long pause_for;

__attribute__((noipa)) int version(void) { return 0; }
__attribute__((noipa)) void jump(void) { longjmp(out, 1); }
__attribute__((noipa)) void leave(int deep)
{
    if (deep)
        leave(deep - 1);
    else
        pthread_exit(0);
    puts("ERROR came back");
}

/* What the call left on the stack would be taken for a call in progress. */
__attribute__((noinline)) static void overwrite(void)
{
    char below[16 << 10];
    explicit_bzero(below, sizeof below);
}

static void *watch(void *unused)
{
    int last = -1;
    for (unsigned turn = 1;; turn++) {
        int now = version();
        if (now != last)
            printf("version %d\n", now);
        last = now;
        usleep(turn % 500 == 0 && pause_for ? 1000 * (useconds_t)pause_for : 1000);
    }
    return unused;
}

static void *wait_for_ever(void *unused)
{
    for (;;)
        pause();
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t t;
    char line[64];
    pause_for = argc > 1 ? strtoul(argv[1], 0, 10) : 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_create(&t, 0, watch, 0);
    pthread_create(&t, 0, wait_for_ever, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "leave inside\n"))
            leave(3);
        if (!strcmp(line, "leave\n"))
            pthread_exit(0);
        if (!strcmp(line, "jump\n")) {
            if (!setjmp(out))
                jump();
            overwrite();
            puts("jumped");
        }
    }
    return 0;
}
