/* A program with one thread, which waits in epoll_wait, as event loops do: it must not see EINTR when it is patched.
 *
 * Usage: main wait|run.  Answers each line on standard input; prints "EINTR" if a system call failed with it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

__attribute__((noipa)) int answer(int x) { return x + 1; }
static volatile unsigned long turns;

int main(int argc, char **argv)
{
    char line[100];
    int events = epoll_create1(0), wait = argc < 2 || !strcmp(argv[1], "wait");
    struct epoll_event e = {.events = EPOLLIN};
    setvbuf(stdout, 0, _IOLBF, 0);
    epoll_ctl(events, EPOLL_CTL_ADD, 0, &e);
    puts("ready");
    for (;;) {
        int n = epoll_wait(events, &e, 1, wait ? -1 : 0);
        if (n < 0)
            puts(errno == EINTR ? "EINTR" : "failed");
        for (int i = 0; !wait && i < 10000000; i++)
            turns++;
        if (n > 0) {
            if (!fgets(line, sizeof line, stdin))
                return 0;
            printf("answer %d\n", answer(atoi(line)));
        }
    }
}
