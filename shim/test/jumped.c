/* SPDX-License-Identifier: MIT
 *
 * jumped.c: signals at every instruction of a call through a gate, and of all that a gate may do on the way, whose handlers
 *   call     call the same function, through the same gate, to its end;
 *   out      leave the call by siglongjmp;
 *   inside   call it and leave that call by siglongjmp, to a place in the handler, and return;
 *   switch   go on with another context, which is in the middle of calls and makes more, and come back (a scheduler that
 *            preempts).
 * Whatever they do: no side entry may have two owners, counts are too high at most, and later calls work.
 *   start    the same as `out`, for a thread that is borrowed to start the agent: the process has it, or gets it from the
 *            next one, and no lock is left taken.
 *
 * Another process, the parent, steps the thread n instructions from a fixed place on, for n = 0, 1, 2, ... until the call is
 * over; then it lets it go on with the signal.
 *
 * Arguments: WAY (see above), KIND of gate, STRIDE, and the offsets of the three "pending" and the three "redirect" routines
 * from psu_runtime, as for conventions.c.  And "stacked" or "spare", with the offsets of psu_full_otherwise and poor.c's
 * spares and the size of these: full gates that get no memory, in two of the ways that they have. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "host.h"
#include "step.h"

long work(long a, long b, long c);
long work_original(long a, long b, long c) { return a + b + c; }
STUB(work);
long deep(long depth, long unused, long end);
long deep_original(long depth, long unused, long end) { return depth + unused + end; }
STUB(deep);

/* What both processes see. */
static struct shared { volatile int tid, steps, made, calling, done; } *shared;
static int request[2], answer[2];
static const char *way;
static sigjmp_buf out_of_call, out_of_handler;
static volatile int leave, handled;

__attribute__((noinline)) static long version(long a, long b, long c)
{
    if (leave) {
        leave = 0;
        siglongjmp(out_of_handler, 1);
    }
    return a + b + c + 1;
}

/* ---- another context: calls within calls, one of which is always in progress ------------------------ */

static ucontext_t here, there;
static volatile long rounds;
static void come_back(void) { CHECK(swapcontext(&there, &here) == 0); }

__attribute__((noinline)) static long deep_version(long depth, long unused, long end)
{
    long r = depth < end ? deep(depth + 1, unused, end) + 1 : 0;
    come_back();
    return r;
}

static void other_context(void)
{
    for (;; rounds++) {
        long r = deep(0, 7, 1 + rounds % 3);
        CHECK(r == 1 + rounds % 3, "%ld", r);
    }
}

static void handler(int number)
{
    (void)number;
    handled = 1;
    if (shared->done) /* too late */
        return;
    if (*way == 'c') {
        long r = work(5, 6, 7);
        CHECK(r == 18 || r == 19, "%ld", r);
    } else if (*way == 'o' || (*way == 's' && way[1] == 't')) {
        siglongjmp(out_of_call, 1);
    } else if (*way == 'i') {
        if (!sigsetjmp(out_of_handler, 1)) {
            leave = 1;
            work(1, 2, 3);
        }
        leave = 0;
    } else {
        CHECK(swapcontext(&here, &there) == 0);
    }
}

/* A flags register that was pushed during a step has the trap flag in it. */
static void trapped(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
#ifdef __x86_64__
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_EFL] &= ~0x100;
#else
    (void)context;
#endif
}

/* ---- the free list of the thread -------------------------------------------------------------------- */

static struct psu_block *block; /* of the thread; 0: it gets no memory for one */
static char *spares;
static int spares_size;

/* How many of the areas that all threads share are taken. */
static int spares_taken(void)
{
    int n = 0;
    for (int i = 0; i < 64; i++)
        n += ((struct psu_side *)(spares + i * (spares_size / 64)))->sp != 0;
    return n;
}

static int is_entry(const struct psu_side *s)
{
    if (s >= block->sides && s < block->sides + PSU_SIDES_IN_BLOCK)
        return ((char *)s - (char *)block->sides) % sizeof *s == 0;
    for (struct psu_side *c = block->chunks; c; c = c->next)
        if ((uint64_t)s - (uint64_t)(c + 1) < 63 * sizeof *c)
            return ((char *)s - (char *)c) % sizeof *s == 0;
    return 0;
}

/* How many entries the list leads to.  It may lead to some twice, and to some in use, but to nothing else; and to each once
 * while handlers leave it as it was. */
static int check_list(const char *what, int n)
{
    static const struct psu_side *seen[100000];
    int length = 0;
    for (const struct psu_side *s = block->free; s; s = s->next) {
        CHECK(is_entry(s), "%s %s, after %d instructions: entry %d of the free list is %p", way, what, n, length, (void *)s);
        for (int i = 0; i < length; i++)
            if (seen[i] == s) {
                CHECK(*way == 'i' || *way == 's', "%s %s, after %d instructions: in the free list twice", way, what, n);
                return length;
            }
        CHECK(length < 100000);
        seen[length++] = s;
    }
    return length;
}

/* ---- the parent's part ------------------------------------------------------------------------------ */

static void stopped(pid_t tid)
{
    int status;
    CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status), "%x", (unsigned)status);
}

static void step_and_signal(pid_t process)
{
    CHECK(ptrace(PTRACE_SEIZE, process, 0, 0) == 0 && ptrace(PTRACE_INTERRUPT, process, 0, 0) == 0);
    stopped(process);
    shared->calling = 2;
    for (shared->made = 0; shared->made < shared->steps && !shared->done; shared->made += shared->calling == 3) {
        if (stepped(process))
            continue;
        CHECK(ptrace(PTRACE_SINGLESTEP, process, 0, 0) == 0);
        stopped(process);
    }
    CHECK(syscall(SYS_tgkill, process, process, SIGUSR1) == 0); /* before its next instruction */
    CHECK(ptrace(PTRACE_DETACH, process, 0, 0) == 0);
}

static void ask_parent(int n)
{
    shared->steps = n;
    shared->done = 0;
    shared->calling = 1;
    CHECK(write(request[1], "", 1) == 1);
    while (shared->calling != 2)
        ;
    shared->calling = 3;
}

static void wait_for_parent(void)
{
    char byte;
    shared->done = 1;
    while (read(answer[0], &byte, 1) != 1)
        CHECK(errno == EINTR);
}

/* ---- every instruction ------------------------------------------------------------------------------ */

static void every_instruction(const char *what, uint32_t index, int stride)
{
    int32_t first = host_inside(index, 0), before = first;
    volatile int n, entries = 0;
    for (n = 0;; n += stride) {
        handled = 0;
        int left = sigsetjmp(out_of_call, 1);
        if (!left) {
            ask_parent(n);
            long r = work(1, 2, 3);
            int over = handled == 0;
            wait_for_parent();
            CHECK(r == 6 || r == 7, "%s %s, after %d instructions: %ld", way, what, n, r);
            CHECK(handled);
            if (over)
                break;
        } else {
            wait_for_parent();
        }
        if (block)
            entries = check_list(what, n);
        int32_t now = host_inside(index, 0);
        CHECK(now == before || now == before + 1, "%s %s, after %d instructions: %d inside, were %d", way, what, n, now,
              before);
        before = now;
        for (int i = 0; i < 3; i++) {
            long r = work(1, 2, 3);
            CHECK(r == 6 || r == 7, "%s %s, after %d instructions: then %ld", way, what, n, r);
        }
    }
    if (!block) {
        printf("%s, %s: %d instructions, %d too high, %d of 64 areas taken\n", way, what, n, before - first, spares_taken());
        CHECK(spares_taken() < 32, "areas are lost");
        return;
    }
    int all = PSU_SIDES_IN_BLOCK;
    for (struct psu_side *c = block->chunks; c; c = c->next)
        all += 63;
    printf("%s, %s: %d instructions, %d too high, %d of %d entries free\n", way, what, n, before - first, entries, all);
    CHECK(all < 2000, "entries are lost");
}

static struct psu_gate *poke(volatile uint64_t *slot, uint32_t kind, uint32_t number, uint64_t body, uint64_t code,
                             uint32_t index)
{
    struct psu_gate *g = (struct psu_gate *)psu_runtime.pool[kind].data + number;
    memset(g, 0, sizeof *g);
    g->counter = 8 * index;
    g->preserve = kind == PSU_FULL ? 1u << 2 : 0;
    g->slot = (uint64_t)slot;
    g->body = body;
    g->code = code;
    return g;
}

static uint64_t gate(uint32_t kind, uint32_t number)
{
    return psu_runtime.pool[kind].first + (uint64_t)number * psu_runtime.pool[kind].stride;
}

static void all_states(uint32_t kind, const uint64_t *routines, int stride)
{
    uint64_t slot = (uint64_t)work_original, now = psu_runtime.commit_seq;
    uint64_t settled = gate(kind, 10), other = gate(kind, 11);
    poke(&work_slot, kind, 10, (uint64_t)version, (uint64_t)version, 1);
    poke(&deep_slot, kind, 12, (uint64_t)deep_version, (uint64_t)deep_version, 2);
    deep_slot = gate(kind, 12);
    work_slot = settled;
    work(1, 2, 3); /* makes the block */
    block = (struct psu_block *)psu_runtime.blocks;
    CHECK(spares ? !block : block && !block->all);
    if (!strcmp(way, "switch")) {
        static char stack[1 << 18];
        CHECK(getcontext(&there) == 0);
        there.uc_stack.ss_sp = stack;
        there.uc_stack.ss_size = sizeof stack;
        makecontext(&there, other_context, 0);
        CHECK(swapcontext(&here, &there) == 0);
    }
    every_instruction("settled", 1, stride);
    struct psu_gate *g = poke(&work_slot, kind, 11, (uint64_t)version, routines[0], 1);
    work_slot = other;
    g->enter_txn = now;
    every_instruction("pending, committed", 1, stride);
    g->enter_txn = now + 1;
    g->before = (uint64_t)work_original;
    every_instruction("pending, original", 1, stride);
    g->before = settled;
    every_instruction("pending, older gate", 1, stride);
    g = poke((uint64_t *)&slot, kind, 11, (uint64_t)version, routines[3], 1);
    every_instruction("retired, original", 1, stride);
    slot = settled;
    every_instruction("retired, newer gate", 1, stride);
}

static void *open_something(void *unused)
{
    CHECK(dlopen(0, RTLD_NOW) && dlsym(RTLD_DEFAULT, "puts"));
    return unused;
}

/* In a process of its own. */
static int start_and_jump(int n)
{
    pthread_t t;
    alarm(20);
    shared->tid = getpid();
    if (!sigsetjmp(out_of_call, 1)) {
        ask_parent(n);
        ((void (*)(void))psu_runtime.start_agent)();
    }
    int over = !handled;
    wait_for_parent();
    CHECK(pthread_create(&t, 0, open_something, 0) == 0 && pthread_join(t, 0) == 0); /* no lock was left behind */
    host_agent();
    return over ? 42 : 0;
}

static void starting(int stride)
{
    for (int n = 0;; n += stride + n / 16) { /* it takes tens of thousands */
        int status;
        handled = 0;
        pid_t p = fork();
        if (!p)
            _exit(start_and_jump(n));
        CHECK(waitpid(p, &status, 0) == p);
        if (status == 42 << 8) {
            printf("start: %d instructions\n", n);
            return;
        }
        CHECK(status == 0, "start, after %d instructions: %x", n, (unsigned)status);
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 10 || argc == 14);
    uint64_t routines[6];
    way = argv[1];
    if (argc == 14) {
        psu_runtime.silent = 1;
        for (int g = 10; g < 13; g++)
            ((uint64_t *)((char *)&psu_runtime + strtol(argv[11], 0, 0)))[g] = !strcmp(argv[10], "stacked");
        spares = (char *)&psu_runtime + strtol(argv[12], 0, 0);
        spares_size = atoi(argv[13]);
    }
    uint32_t kind = (uint32_t)atoi(argv[2]);
    for (int i = 0; i < 6; i++)
        routines[i] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[4 + i], 0, 0);
    shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED && !pipe(request) && !pipe(answer));
    setvbuf(stdout, 0, _IOLBF, 0);
    pid_t child = fork();
    if (child) {
        int status;
        char byte;
        close(request[1]);
        while (read(request[0], &byte, 1) == 1) {
            step_and_signal(shared->tid ? shared->tid : child);
            CHECK(write(answer[1], "", 1) == 1);
        }
        CHECK(waitpid(child, &status, __WALL) == child);
        CHECK(WIFEXITED(status), "signal %d", WTERMSIG(status));
        return WEXITSTATUS(status);
    }
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    struct sigaction trap = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, 0) == 0 && sigaction(SIGTRAP, &trap, 0) == 0);
    psu_runtime.commit_seq = 5;
    if (!strcmp(way, "start")) {
        starting(atoi(argv[3]));
    } else {
        host_agent();
        all_states(kind, routines + kind, atoi(argv[3]));
    }
    puts("ok");
    return 0;
}
