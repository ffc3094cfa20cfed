/* A call that a signal handler has interrupted which blocks on an alternate stack, while that is a part of the thread's own: so what
 * the call will return to lies below the stack pointer.
 *
 * Proves: its version is kept until it is over.
 * Lines in: "park" begins the call, "resume" lets the handler return, "version".  Lines out: "parked"; "finished N", N the call's
 * version; "resumed"; "version N". */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SIZE = 128 << 10 };
static int pipes[2];

__attribute__((noipa)) int version(void) { return 0; }
void interrupt(void) { raise(SIGUSR1); }
__attribute__((noipa)) int work(int n)
{
    int before = version();
    interrupt();
    printf("finished %d\n", before);
    return n;
}

static void handler(int number)
{
    char c;
    (void)number;
    while (read(pipes[0], &c, 1) != 1)
        ;
}

static void *thread(void *unused)
{
    char own[SIZE];
    stack_t s = {.ss_sp = own, .ss_size = SIZE};
    sigaltstack(&s, 0);
    work(7);
    return unused;
}

int main(void)
{
    char line[64];
    pthread_t t;
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    setvbuf(stdout, 0, _IOLBF, 0);
    sigaction(SIGUSR1, &a, 0);
    if (pipe(pipes))
        return 1;
    while (fgets(line, sizeof line, stdin)) {
        if (!strcmp(line, "park\n")) {
            pthread_create(&t, 0, thread, 0);
            usleep(100000);
            puts("parked");
        } else if (!strcmp(line, "resume\n")) {
            if (write(pipes[1], "x", 1) != 1)
                return 1;
            pthread_join(t, 0);
            puts("resumed");
        } else {
            printf("version %d\n", version());
        }
    }
    return 0;
}
