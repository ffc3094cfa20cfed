/* Leaving functions without returning from them, in many threads, while the functions are patched.
 *
 * Proves: counts that longjmp and ended threads leave too high are found and written off; what is still needed by any stack
 * is kept; registers and the stack are right after each way out.
 * Usage: main WAY THREADS [PAUSE], where PAUSE are milliseconds that each thread, main's too, waits now and then (0: never)
 *   longjmp      from three calls deep, through plain and side-frame gates
 *   rest         as longjmp; when line "rest" comes, the threads block for good, where they are
 *   siglongjmp   out of a signal handler that interrupts patched functions
 *   alternate    ... which is on an alternate stack, where nothing overwrites what deeper calls left
 *   exit         each thread makes another one, which ends by pthread_exit three calls deep
 *   cancel       ... which is cancelled in a call (deferred), with a cleanup handler
 *   async        ... which is cancelled anywhere (asynchronous)
 * Prints "version N" when a call first gives N, "turns N" each 1,000 ways out, "ERROR ..." when something is wrong. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static long turns, newest, resting;
static const char *way;
static int rest_for;

_Thread_local sigjmp_buf out;

__attribute__((noipa)) long version(void) { return 0; }
/* Seven integer arguments and a structure: a side-frame gate. */
struct parcel { long words[5]; };
__attribute__((noipa)) void leave(long a, long b, long c, long d, long e, long f, long g, struct parcel p)
{
    if (a + b + c + d + e + f + g != 28 || p.words[4] != 5)
        puts("ERROR arguments");
    siglongjmp(out, (int)version() + 1);
}
__attribute__((noipa)) void middle(int deep)
{
    struct parcel p = {{1, 2, 3, 4, 5}};
    if (deep)
        middle(deep - 1);
    else
        leave(1, 2, 3, 4, 5, 6, 7, p);
    puts("ERROR came back");
}
__attribute__((noipa)) long spin(long n)
{
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += version() * 0 + i;
    return sum;
}
__attribute__((noipa)) void block(void) { for (;;) pause(); }
__attribute__((noipa)) void give_up(void) { pthread_exit((void *)(version() + 1)); }

/* What the calls left on the stack is overwritten, as it is in a program that does something else, too: addresses that lie in
 * holes of later frames for ever would be taken for calls in progress. */
__attribute__((noinline)) static void overwrite(void)
{
    char below[16 << 10];
    explicit_bzero(below, sizeof below);
}

/* The same for the little that pause() takes: its frames have holes. */
__attribute__((noinline)) static void overwrite_little(void)
{
    char below[320];
    explicit_bzero(below, sizeof below);
}

/* A signal would end it at once.  Not in note(), whose frame would have room for the sets, and old addresses in it. */
__attribute__((noinline)) static void sleep_undisturbed(void)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    usleep(1000u * (unsigned)rest_for);
    pthread_sigmask(SIG_SETMASK, &before, 0);
}

static void note(long v)
{
    if (strcmp(way, "rest"))
        overwrite();
    long before = __atomic_load_n(&newest, __ATOMIC_ACQUIRE);
    while (before < v && !__atomic_compare_exchange_n(&newest, &before, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        ;
    if (before < v)
        printf("version %ld\n", v);
    long t = __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED);
    if (t % 1000 == 0)
        printf("turns %ld\n", t);
    static _Thread_local unsigned own;
    if (rest_for && ++own % 500 == 0)
        sleep_undisturbed();
}

static void *jumper(void *number)
{
    volatile unsigned deep = (unsigned)(long)number;
    for (;;) {
        if (__atomic_load_n(&resting, __ATOMIC_ACQUIRE))
            for (overwrite_little();;)
                pause();
        int v = sigsetjmp(out, 0);
        if (!v)
            middle((int)(deep++ % 5));
        note(v - 1);
    }
}

/* A call so much deeper than the others that what its ways left on the stack stays there. */
__attribute__((noinline)) static void further_down(void)
{
    char room[4 << 10];
    room[0] = 0;
    __asm__ volatile("" : : "r"(room) : "memory");
    version();
    __asm__ volatile("" : : "r"(room) : "memory");
}

static _Thread_local volatile sig_atomic_t armed; /* the handler may jump: nothing but patched functions runs */
static void handler(int number)
{
    (void)number;
    if (!armed)
        return;
    armed = 0;
    if (!strcmp(way, "alternate"))
        further_down();
    leave(1, 2, 3, 4, 5, 6, 7, (struct parcel){{1, 2, 3, 4, 5}});
}

static void *interrupted(void *number)
{
    static char stacks[256][64 << 10];
    if (!strcmp(way, "alternate"))
        sigaltstack(&(stack_t){.ss_sp = stacks[(long)number], .ss_size = sizeof *stacks}, 0);
    for (;;) {
        int v = sigsetjmp(out, 1);
        if (!v)
            for (armed = 1;;)
                if (strcmp(way, "alternate"))
                    spin(1000);
                else
                    raise(SIGUSR1);     /* so that updates meet calls there */
        note(v - 1);
    }
    return 0;
}

static void *ends(void *unused)
{
    give_up();
    return unused;
}

static _Thread_local long cleaned;
static void cleanup(void *count) { ++*(long *)count; }
static void *cancelled(void *count)
{
    pthread_cleanup_push(cleanup, count);
    block();
    pthread_cleanup_pop(0);
    return 0;
}
static void *cancelled_anywhere(void *count)
{
    pthread_cleanup_push(cleanup, count);
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, 0);
    for (;;)
        spin(100);
    pthread_cleanup_pop(0);
    return 0;
}

static void *parent(void *unused)
{
    for (;; note(version())) {
        long count = 0;
        pthread_t child;
        void *result;
        if (!strcmp(way, "exit")) {
            pthread_create(&child, 0, ends, 0);
            pthread_join(child, &result);
            if ((long)result < 1)
                puts("ERROR result");
            continue;
        }
        pthread_create(&child, 0, strcmp(way, "async") ? cancelled : cancelled_anywhere, &count);
        usleep(100);
        pthread_cancel(child);
        pthread_join(child, &result);
        if (result != PTHREAD_CANCELED)
            puts("ERROR not cancelled");
        /* The child may be cancelled before it pushes its handler. */
        cleaned += count;
    }
    return unused;
}

int main(int argc, char **argv)
{
    int count = argc > 2 ? atoi(argv[2]) : 2;
    pthread_t threads[256];
    way = argv[1];
    rest_for = argc > 3 ? atoi(argv[3]) : 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    int interrupts = !strcmp(way, "siglongjmp") || !strcmp(way, "alternate");
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART | SA_ONSTACK};
    sigaction(SIGUSR1, &action, 0);
    void *(*run)(void *) = !strcmp(way, "longjmp") || !strcmp(way, "rest") ? jumper
                         : interrupts ? interrupted : parent;
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], 0, run, (void *)(long)i);
    puts("ready");
    if (interrupts)
        for (unsigned round = 1;; usleep(rest_for && round++ % 500 == 0 ? 1000u * (unsigned)rest_for : 500))
            for (int i = 0; i < count; i++)
                pthread_kill(threads[i], SIGUSR1);
    char line[64];
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "rest\n")) {
            __atomic_store_n(&resting, 1, __ATOMIC_RELEASE);
            puts("resting");
        }
    for (;;)
        pause();
}
