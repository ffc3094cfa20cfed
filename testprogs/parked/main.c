/* A call that is left by switching away from its stack, beside calls that are left for good by longjmp.
 *
 * Proves: what looks alike to the counts is told apart: the calls that longjmp left are written off only when the call whose stack
 * still needs its version is over.
 * Usage: main PLACE, where the other stack is: heap, mapping, static, frame (a local array of main) or alternate (a signal
 * handler's, that blocks); or leaf: there is none, a thread blocks in a system call that its version itself makes, so that the
 * way back is, on AArch64, in a register only.
 * Line "jump": 1,000 calls are left by longjmp.  Line "resume": the parked call goes on; prints "finished N", N its version, and
 * what it and the calls before it left on the stacks is overwritten (it would look like calls in progress). */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { SIZE = 128 << 10 };
ucontext_t here, there;
jmp_buf out;
int pipes[2];
int on_alternate;
static char fixed[SIZE] __attribute__((aligned(64)));

__attribute__((noipa)) int version(void) { return 0; }
__attribute__((noipa)) void jump(void) { longjmp(out, 1); }
__attribute__((noipa)) void leave_for_good(int deep)
{
    if (deep)
        leave_for_good(deep - 1);
    jump();
}
__attribute__((noipa)) void park(void)
{
    char c;
    if (on_alternate) {
        while (read(pipes[0], &c, 1) != 1)
            ;
    } else {
        swapcontext(&there, &here);
    }
}
__attribute__((noipa)) int work(int n)
{
    int before = version();
    park();
    printf("finished %d\n", before == version() ? before : -before);
    return n;
}

__attribute__((noinline)) static void overwrite(void)
{
    char below[64 << 10];
    explicit_bzero(below, sizeof below);
}

/* A leaf function with a system call: reads a byte. */
__attribute__((noipa)) int hold(int from, char *to)
{
    (void)from, (void)to;
    return 0;
}
static void *holder(void *unused)
{
    char c = 0;
    version();          /* a thread's first call through a gate leaves the gate's address behind, */
    overwrite();        /* which would be taken for that of the call that is meant here */
    printf("finished %d\n", hold(pipes[0], &c));
    return unused;
}

static void body(void) { work(7); }
static void handler(int number) { (void)number; work(7); }
static void *interrupted(void *stack)
{
    stack_t s = {.ss_sp = stack, .ss_size = SIZE};
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    sigaltstack(&s, 0);
    sigaction(SIGUSR1, &a, 0);
    raise(SIGUSR1);
    return 0;
}

int main(int argc, char **argv)
{
    char local[SIZE], line[64];
    char *stack = !strcmp(argv[1], "heap") || !strcmp(argv[1], "alternate") ? malloc(SIZE)
                : !strcmp(argv[1], "static") ? fixed
                : !strcmp(argv[1], "frame") ? local
                : mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    setvbuf(stdout, 0, _IOLBF, 0);
    if (argc > 2)
        (void)local[0];
    on_alternate = !strcmp(argv[1], "alternate");
    int in_leaf = !strcmp(argv[1], "leaf");
    pthread_t thread;
    if (pipe(pipes))
        return 1;
    for (;;) {
        if (!fgets(line, sizeof line, stdin))
            for (;;)
                pause();
        if (!strcmp(line, "park\n")) {
            if (on_alternate || in_leaf) {
                pthread_create(&thread, 0, in_leaf ? holder : interrupted, stack);
                usleep(100000);
            } else {
                getcontext(&there);
                there.uc_stack.ss_sp = stack;
                there.uc_stack.ss_size = SIZE;
                there.uc_link = &here;
                makecontext(&there, body, 0);
                swapcontext(&here, &there);
            }
            puts("parked");
        } else if (!strcmp(line, "jump\n")) {
            for (volatile int i = 0; i < 1000; i++)
                if (!setjmp(out))
                    leave_for_good(i % 7);
            puts("jumped");
        } else if (!strcmp(line, "resume\n")) {
            if (on_alternate || in_leaf) {
                if (write(pipes[1], "x", 1) != 1)
                    return 1;
                pthread_join(thread, 0);
            } else {
                swapcontext(&here, &there);
            }
            memset(stack, 0, SIZE);
            memset(&there, 0, sizeof there);
            overwrite();
            puts("resumed");
        } else if (!strcmp(line, "version\n")) {
            printf("version %d\n", version());
        }
    }
}
