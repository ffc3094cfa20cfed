/* SPDX-License-Identifier: MIT
 *
 * cancelled.c: asynchronous cancellation at every instruction of a call through a gate, and of all that a gate may do
 * on the way: first call of a thread, commit under way, retired, no block of counters.  A call is counted out at most
 * once: one leave too many would unmap a version under another thread.  (One too few keeps an object, until that is found.)
 *
 * Another process, the parent, steps a thread n instructions from a fixed place on, for n = 0, 1, 2, ... until the call is
 * over; then it lets the thread go on with a signal, whose handler cancels it right there.  Each n has a thread of its own.
 *
 * Arguments: KIND of gate, STRIDE (3: on the longest ways only every third n), COARSE (4: everywhere n grows by a quarter of
 * itself as well, where steps are slow; 0: it does not), and the offsets of the three "pending" and the three "redirect"
 * routines from psu_runtime, as for conventions.c; that of psu_full_otherwise. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

#include "host.h"
#include "step.h"

long work(long a, long b, long c);
long work_original(long a, long b, long c) { return a + b + c; }
STUB(work);
__attribute__((noinline)) static long version(long a, long b, long c) { return a + b + c + 1; }

/* What both processes see. */
static struct shared {
    volatile int tid, go, calling, done;
    volatile int steps;         /* how many to make */
} *shared;

static int request[2], answer[2];       /* pipes to and from the parent */
static int coarse;                      /* see above */
static uint64_t *otherwise;             /* of full gates */
static uint64_t counted_before;         /* a gate to call first, so that the thread has a block; 0: none */

static void cancel(int number)
{
    (void)number;
    pthread_cancel(pthread_self());
}

static void *thread(void *unused)
{
    uint64_t target = work_slot;
    int old;
    if (counted_before) {
        work_slot = counted_before;
        work(1, 2, 3);
        work_slot = target;
    }
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
    shared->tid = (int)syscall(SYS_gettid);
    while (!shared->go)
        ;
    shared->calling = 1;
    work(1, 2, 3);
    shared->done = 1;
    for (;;)
        ;
    return unused;
}

static void stopped(pid_t tid)
{
    int status;
    CHECK(waitpid(tid, &status, __WALL) == tid && WIFSTOPPED(status), "%x", (unsigned)status);
}

/* The parent's part. */
static void step_and_cancel(pid_t process)
{
    pid_t tid = shared->tid;
    CHECK(ptrace(PTRACE_SEIZE, tid, 0, 0) == 0, "%s", strerror(errno));
    CHECK(ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0);
    stopped(tid);
    shared->go = 1;
    for (int n = shared->steps; n > 0 && !shared->done; n -= shared->calling) {
        if (stepped(tid))
            continue;
        CHECK(ptrace(PTRACE_SINGLESTEP, tid, 0, 0) == 0);
        stopped(tid);
    }
    CHECK(syscall(SYS_tgkill, process, tid, SIGUSR1) == 0); /* before its next instruction */
    CHECK(ptrace(PTRACE_DETACH, tid, 0, 0) == 0);
}

/* Enters less leaves; the agent may just be moving a dead thread's counts. */
static int32_t inside(uint32_t index)
{
    int32_t n = host_inside(index, 0), again;
    for (int equal = 0; equal < 3; n = again) {
        sched_yield();
        again = host_inside(index, 0);
        equal = again == n ? equal + 1 : 0;
    }
    return n;
}

/* Cancels at each instruction of a call through `work`.  How many of the cancellations left the count too high. */
static int every_instruction(const char *what, uint32_t kind, uint32_t index, int stride)
{
    int32_t first = inside(index), before = first;
    int n = 0;
    for (;; n += stride + (coarse ? n / coarse : 0)) {
        pthread_t t;
        char byte;
        void *result;
        memset((void *)shared, 0, sizeof *shared);
        shared->steps = n;
        CHECK(pthread_create(&t, 0, thread, 0) == 0);
        while (!shared->tid)
            sched_yield();
        CHECK(write(request[1], "", 1) == 1 && read(answer[0], &byte, 1) == 1);
        CHECK(pthread_join(t, &result) == 0 && result == PTHREAD_CANCELED);
        int32_t now = inside(index);
        CHECK(now == before || now == before + 1, "kind %u, %s, cancelled after %d instructions: %d inside, were %d", kind,
              what, n, now, before);
        before = now;
        if (shared->done)
            break;
    }
    printf("kind %u, %s: %d instructions, %d too high\n", kind, what, n, before - first);
    return before - first;
}

static struct psu_gate *poke(uint32_t kind, uint32_t number, uint64_t code, uint32_t index, uint32_t preserve)
{
    struct psu_gate *g = (struct psu_gate *)psu_runtime.pool[kind].data + number;
    memset(g, 0, sizeof *g);
    g->counter = 8 * index;
    g->preserve = preserve;
    g->slot = (uint64_t)&work_slot;
    g->body = (uint64_t)version;
    g->code = code;
    return g;
}

static uint64_t gate(uint32_t kind, uint32_t number)
{
    return psu_runtime.pool[kind].first + (uint64_t)number * psu_runtime.pool[kind].stride;
}

static void all_states(uint32_t kind, uint32_t index, uint32_t preserve, const uint64_t *routines, int longest)
{
    int stride = kind == PSU_FULL ? longest : 1;
    uint64_t slot = (uint64_t)work_original, now = psu_runtime.commit_seq;
    uint64_t settled = gate(kind, 10), other = gate(kind, 11);
    poke(kind, 10, (uint64_t)version, index, preserve);
    counted_before = settled;
    work_slot = settled;
    /* Here and nowhere else every cancellation can be, and is, counted out: FULL counts in C. */
    CHECK(every_instruction("settled", kind, index, stride) == 0 || kind == PSU_FULL);

    struct psu_gate *g = poke(kind, 11, routines[0], index, preserve);
    work_slot = other;
    g->enter_txn = now;
    every_instruction("pending, committed", kind, index, stride);
    g->enter_txn = now + 1;
    g->before = (uint64_t)work_original;
    every_instruction("pending, original", kind, index, stride);
    g->before = settled;
    every_instruction("pending, older gate", kind, index, stride);

    g = poke(kind, 11, routines[3], index, preserve);
    g->slot = (uint64_t)&slot;
    every_instruction("retired, original", kind, index, stride);
    slot = settled;
    every_instruction("retired, newer gate", kind, index, stride);

    counted_before = 0;
    work_slot = settled;
    every_instruction("first call", kind, index, stride);
    psu_runtime.silent = 1;
    for (uint64_t n = 0; n < (kind == PSU_FULL ? 2 : 1); n++) {
        otherwise[10] = otherwise[11] = n; /* PSU_ON_STACK */
        work_slot = settled;
        every_instruction(n ? "no block, on the stack" : "no block", kind, index, longest);
        work_slot = other;
        every_instruction(n ? "no block, on the stack, retired" : "no block, retired", kind, index, longest);
    }
    psu_runtime.silent = 0;
}

int main(int argc, char **argv)
{
    CHECK(argc == 11);
    otherwise = (uint64_t *)((char *)&psu_runtime + strtol(argv[10], 0, 0));
    uint64_t routines[6];
    uint32_t kind = (uint32_t)atoi(argv[1]);
    coarse = atoi(argv[3]);
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
            step_and_cancel(child);
            CHECK(write(answer[1], "", 1) == 1);
        }
        CHECK(waitpid(child, &status, __WALL) == child);
        CHECK(WIFEXITED(status), "signal %d", WTERMSIG(status));
        return WEXITSTATUS(status);
    }
    signal(SIGUSR1, cancel);
    host_agent();
    psu_runtime.commit_seq = 5;
    all_states(kind, 1, kind == PSU_FULL ? 1u << 2 : 0, routines + kind, atoi(argv[2]));
    puts("ok");
    return 0;
}
