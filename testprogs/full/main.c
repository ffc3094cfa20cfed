/* Full gates in hard places.  Callers keep values in r8, r9, xmm8 and xmm9 over calls of small functions that leave
 * these alone, and check them.  The functions' new versions change them all, and do what the old ones did not: they call
 * themselves, leave without a return, wait in another context.
 *
 * Proves: full gates nest as deep as the stack allows, may be interrupted anywhere by handlers that go through full
 * gates themselves, may be left for good, and may be left on another thread than they were entered on.
 * Usage: main deep | storm | jump | contexts.
 *   deep      a thread calls itself until its stack is nearly used up: "bottom VERSION", waits for a line, "levels N"
 *   storm     one thread sends signals to two that work; handlers do the same work
 *   jump      two threads leave every call by setting the stack pointer back
 *   contexts  two threads run eight contexts in turns: each is suspended inside a full gate
 * Prints "version N" when a call ran in it and, but for deep, "turns N HANDLED" for ten thousands of turns; "ERROR ..."
 * when a value was lost. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "full.h"

volatile int seen;
__thread char *limit;
static volatile long lost, wrong_result;
static long turns, handled;
static volatile int arrived, go;
static volatile long reached;

/* f(argument), with values kept over it; unwinders are not asked here, so the stack may well be aligned in between. */
#define KEEP(f, argument) ({ \
        long result_, bad_, passed_ = (argument); \
        long key_ = (long)__builtin_frame_address(0) * 0x9e3779b97f4a7c15 + passed_; \
        __asm__ volatile( \
            "mov %%rsp, %%r12\n and $-16, %%rsp\n mov %%rbx, %%r8\n lea 1(%%rbx), %%r9\n movq %%r8, %%xmm8\n" \
            "movq %%r9, %%xmm9\n call " #f "\n mov %%r12, %%rsp\n movq %%xmm8, %%rcx\n xor %%rbx, %%rcx\n" \
            "xor %%rbx, %%r8\n or %%r8, %%rcx\n dec %%r9\n xor %%rbx, %%r9\n or %%r9, %%rcx\n movq %%xmm9, %%rdx\n" \
            "dec %%rdx\n xor %%rbx, %%rdx\n or %%rdx, %%rcx" \
            : "=a"(result_), "=&c"(bad_), "+D"(passed_) : "b"(key_) \
            : "rdx", "rsi", "r8", "r9", "r10", "r11", "r12", "cc", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", \
            "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
        if (bad_) \
            lost = lost + 1; \
        result_; })

/* What a new version calls. */
__attribute__((noipa)) void bottom(void)
{
    arrived = seen;
    while (!go)
        __builtin_ia32_pause();
    arrived = 0;
}
__attribute__((noipa)) long down(long level) { seen = 0; return level; }
__attribute__((noipa)) long deeper(long level) { return KEEP(down, level); }
__attribute__((noipa)) long worked(long x) { seen = 0; return x * 3; }
__attribute__((noipa)) long jumping(long x) { seen = 0; return x; }
__attribute__((noipa)) long yielding(long x) { seen = 0; return x * 5; }

/* switch_stack(&own, other): go on where `other` was left, to go on here when somebody goes to `own`. */
__asm__(".text\n.globl switch_stack\n.type switch_stack, @function\nswitch_stack:\n.cfi_startproc\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
        "pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n.cfi_endproc\n"
        ".size switch_stack, . - switch_stack\n"
        /* enter(&mark, f): f(), from which leave_to(mark) comes back. */
        ".globl enter\n.type enter, @function\nenter:\n.cfi_startproc\n"
        "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n mov %rsp, (%rdi)\n sub $8, %rsp\n"
        "call *%rsi\n ud2\n"
        ".cfi_endproc\n.size enter, . - enter\n"
        ".globl leave_to\n.type leave_to, @function\nleave_to:\n.cfi_startproc\n"
        "mov %rdi, %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n.cfi_endproc\n"
        ".size leave_to, . - leave_to\n");
void switch_stack(void **own, void *other), enter(void **mark, void (*f)(void)), leave_to(void *mark);

static __thread void *mark;
__attribute__((noipa)) void leave(void) { leave_to(mark); }
static void jump(void)
{
    KEEP(jumping, 1);
    leave();
}

struct context { void *sp; char *stack; };
enum { CONTEXTS = 8 };
static struct context contexts[CONTEXTS];
static struct context *free_ones[CONTEXTS];       /* each is there or is running */
static __thread void *scheduler;
static __thread struct context *running;

/* Looked up again after each switch: it may be another thread's. */
__attribute__((noipa)) static void **scheduler_of_this_thread(void) { return &scheduler; }
__attribute__((noipa)) static struct context **running_here(void) { return &running; }
__attribute__((noipa)) void yield(void) { switch_stack(&(*running_here())->sp, *scheduler_of_this_thread()); }

static void turn(void) { __atomic_add_fetch(&turns, 1, __ATOMIC_RELAXED); }
static void live(void)
{
    for (long x = 1;; x++, turn())
        if (KEEP(yielding, x) != x * 5)
            wrong_result = x;
}

static void *deep(void *unused)
{
    pthread_attr_t own;
    void *low;
    size_t size;
    pthread_getattr_np(pthread_self(), &own);
    pthread_attr_getstack(&own, &low, &size);
    limit = low;
    for (;;) {
        long levels = deeper(1);
        if (seen && levels > 1)
            reached = levels;
        usleep(1000);
    }
    return unused;
}
static void on_signal(int number)
{
    if (KEEP(worked, number) != number * 3)
        wrong_result = number;
    __atomic_add_fetch(&handled, 1, __ATOMIC_RELAXED);
}
static void *work(void *unused)
{
    for (long x = 1;; x++, turn())
        if (KEEP(worked, x) != x * 3)
            wrong_result = x;
    return unused;
}
static void *storm(void *threads)
{
    for (unsigned i = 0;; i++) {
        long before = __atomic_load_n(&handled, __ATOMIC_RELAXED);
        pthread_kill(((pthread_t *)threads)[i % 2], i / 2 % 2 ? SIGUSR1 : SIGUSR2);
        for (int n = 0; n < 200 && __atomic_load_n(&handled, __ATOMIC_RELAXED) == before; n++)
            sched_yield();
    }
    return 0;
}
static void *leap(void *unused)
{
    for (;; turn())
        enter(&mark, jump);
    return unused;
}
static void *schedule(void *unused)
{
    for (unsigned i = (unsigned long)unused;; i++) {
        struct context *c = __atomic_exchange_n(&free_ones[i % CONTEXTS], 0, __ATOMIC_ACQ_REL);
        if (c) {
            *running_here() = c;
            switch_stack(scheduler_of_this_thread(), c->sp);
            __atomic_store_n(&free_ones[i % CONTEXTS], c, __ATOMIC_RELEASE);
        }
    }
    return unused;
}

static void begin_contexts(void)
{
    for (int i = 0; i < CONTEXTS; i++) {
        char *stack = malloc(1 << 16);
        void **top = (void **)(((unsigned long)stack + (1 << 16)) & ~15ul) - 2;
        *top = (void *)live;
        contexts[i].sp = top - 6;
        memset(top - 6, 0, 6 * sizeof *top);
        free_ones[i] = &contexts[i];
    }
}

int main(int argc, char **argv)
{
    static pthread_t t[3];
    char line[100];
    const char *how = argc > 1 ? argv[1] : "";
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    pthread_attr_t size;
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_attr_init(&size);
    pthread_attr_setstacksize(&size, STACK);
    if (!strcmp(how, "contexts"))
        begin_contexts();
    sigaction(SIGUSR1, &action, 0);
    action.sa_flags |= SA_NODEFER;
    sigaction(SIGUSR2, &action, 0);
    void *(*start)(void *) = !strcmp(how, "deep") ? deep : !strcmp(how, "storm") ? work : !strcmp(how, "jump") ? leap
        : schedule;
    for (long i = 0; i < (start == deep ? 1 : 2); i++)
        pthread_create(&t[i], &size, start, (void *)i);
    if (start == work)
        pthread_create(&t[2], 0, storm, t);
    for (int last = -1, told = 0;; usleep(1000)) {
        if (lost || wrong_result)
            printf("ERROR %ld values lost, result %ld\n", lost, wrong_result);
        if (arrived) {
            printf("bottom %d\n", arrived);
            if (!fgets(line, sizeof line, stdin))
                return 0;
            reached = 0;
            go = 1;
            while (!reached)
                usleep(1000);
            go = 0;
            printf("levels %ld\n", reached);
        } else if (seen != last)
            printf("version %d\n", last = seen);
        if (__atomic_load_n(&turns, __ATOMIC_RELAXED) / 10000 > told)
            printf("turns %d %ld\n", told = turns / 10000, handled);
    }
}
