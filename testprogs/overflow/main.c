/* Threads that call a function until their stacks are used up, again and again; a handler of SIGSEGV on another stack leaves all
 * of it by siglongjmp, after a call of a function of its own.
 *
 * Proves: the fault may come in a gate, and in all that a gate does, and nothing is left that later calls or updates suffer
 * from: old versions are freed, memory stays.
 * Prints "version N" when a call ran in it, "overflows N" for each thousand of overflows; "ERROR ..." for a wrong argument, or for
 * a fault that is none of these. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#define V 0
#include "overflow.h"

volatile int seen, wrong;
int (*volatile again)(int level MORE) = dig;
static long overflows;
static __thread sigjmp_buf out;
static __thread char *guard;
enum { STACK = 128 << 10, GUARD = 64 << 10 };     /* PTHREAD_STACK_MIN of AArch64, its largest page */

DIG

static void fault(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    uint64_t below = (uint64_t)info->si_addr - (uint64_t)guard;
    if (below >= GUARD) {
        static const char text[] = "ERROR a fault that is no overflow\n";
        if (write(1, text, sizeof text - 1))
            _exit(1);
    }
    if (handled(1) < 1)
        wrong = 1;
    siglongjmp(out, 1);
}

static void *work(void *stack)
{
    guard = stack;
    char *other = malloc(64 << 10);
    sigaltstack(&(stack_t){.ss_sp = other, .ss_size = 64 << 10}, 0);
    for (;;) {
        if (!sigsetjmp(out, 1))
            dig(0 FIRST_PASS);
        __atomic_add_fetch(&overflows, 1, __ATOMIC_RELAXED);
        if (wrong)
            puts("ERROR arguments");
    }
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    sigaction(SIGSEGV, &(struct sigaction){.sa_sigaction = fault, .sa_flags = SA_SIGINFO | SA_ONSTACK}, 0);
    for (int i = 0; i < 2; i++) {
        pthread_t t;
        pthread_attr_t a;
        char *stack = mmap(0, STACK + GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        mprotect(stack, GUARD, PROT_NONE);
        pthread_attr_init(&a);
        if (pthread_attr_setstack(&a, stack + GUARD, STACK) || pthread_create(&t, &a, work, stack))
            puts("ERROR no stack");
    }
    long told = 0;
    for (int last = -1;; usleep(1000)) {
        int now = seen;
        if (now != last)
            printf("version %d\n", last = now);
        if (overflows >= told + 1000)
            printf("overflows %ld\n", told = overflows);
    }
}
