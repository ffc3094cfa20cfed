/* SPDX-License-Identifier: MIT
 *
 * life.c: threads and processes come and go.  The first argument names the case, see main().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <threads.h>

#include "host.h"

long work(long a);
long work_original(long a) { return a; }
STUB(work);
static long version(long a) { return a + 100; }
static long version_2(long a) { return a + 200; }

static void patch(void *function, uint32_t index, int64_t retire)
{
    void *page = host_jump_to(function);
    struct host_switch s = {&work_slot, 0, (uint64_t)page, PSU_PLAIN, index, 0};
    int64_t r = host_commit(index, page, &s, 1, retire);
    CHECK(r == 0, "COMMIT: %ld", (long)r);
}

static void *one_call(void *unused)
{
    (void)unused;
    return (void *)work(1);
}

static long in_thread(void)
{
    pthread_t t;
    void *result;
    CHECK(pthread_create(&t, 0, one_call, 0) == 0 && pthread_join(t, &result) == 0);
    return (long)result;
}

static int agent_is(uint32_t pid)
{
    return psu_runtime.agent_pid == pid && psu_runtime.agent_state >= PSU_AGENT_STARTING;
}

static int count_blocks(void)
{
    int n = 0;
    for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b; b = b->all)
        n++;
    return n;
}

/* Ten thousand threads, one after the other: their blocks are used again, their counts are kept. */
static void short_threads(void)
{
    host_agent();
    patch(version, 0, -1);
    for (int i = 0; i < 10000; i++)
        CHECK(in_thread() == 101);
    /* The agent may be moving a dead thread's counts to the totals while we add them up: then we miss them, this time. */
    uint32_t enters;
    for (double began = seconds(); (host_inside(0, &enters) || enters != 10000) && seconds() - began < 10;)
        sched_yield();
    CHECK(host_inside(0, &enters) == 0 && enters == 10000, "%u", enters);
    CHECK(count_blocks() < 2500, "%d blocks", count_blocks()); /* more, the later the agent gets to run */
    patch(version_2, 1, 0);
    CHECK(in_thread() == 201 && host_freed(0, 5000));
}

static pthread_barrier_t barrier;
static void *call_and_wait(void *unused)
{
    (void)unused;
    long r = work(1);
    pthread_barrier_wait(&barrier);
    pthread_barrier_wait(&barrier);
    return (void *)r;
}

/* Nothing per thread until it calls a patched function, then one page. */
static void memory(void)
{
    enum { THREADS = 200 };
    pthread_t t[THREADS];
    host_agent();
    for (int patched = 0; patched < 2; patched++) {
        if (patched)
            patch(version, 0, -1);
        pthread_barrier_init(&barrier, 0, THREADS + 1);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&t[i], 0, call_and_wait, 0) == 0);
        pthread_barrier_wait(&barrier);
        CHECK(count_blocks() == (patched ? THREADS : 0), "%d blocks", count_blocks());
        for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b; b = b->all) {
            unsigned char in_core[(sizeof *b + 4095) / 4096];
            int pages = 0;
            CHECK(mincore(b, sizeof *b, in_core) == 0);
            for (size_t i = 0; i < sizeof in_core; i++)
                pages += in_core[i] & 1;
            CHECK(pages == 1, "%d pages", pages);
        }
        pthread_barrier_wait(&barrier);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_join(t[i], 0) == 0);
    }
}

/* No address space for blocks: counts go to the shared table, calls work, reclaim waits for them. */
static volatile int go;
static volatile int inside;
static long slow_version(long a)
{
    __atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    while (!go)
        sched_yield();
    return a + 300;
}
static void poor(void)
{
    host_agent();
    patch(slow_version, 0, -1);
    pthread_t t[4];
    pthread_barrier_init(&barrier, 0, 5);
    void *page = host_jump_to(version);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&t[i], 0, call_and_wait, 0) == 0);
    struct rlimit none = {0, RLIM_INFINITY}, before;
    getrlimit(RLIMIT_AS, &before);
    none.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_AS, &none);
    /* those that came first have blocks already */
    while (inside < 4)
        sched_yield();
    struct host_switch s = {&work_slot, 0, (uint64_t)page, PSU_PLAIN, 1, 0};
    CHECK(host_commit(1, page, &s, 1, 0) == 0);
    for (int i = 0; i < 20; i++)
        CHECK(work(1) == 101);
    CHECK(!host_freed(0, 50) && host_inside(0, 0) == 4, "%d", host_inside(0, 0));
    go = 1;
    pthread_barrier_wait(&barrier);
    CHECK(host_freed(0, 2000));
    setrlimit(RLIMIT_AS, &before);
    pthread_barrier_wait(&barrier);
    void *result;
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(t[i], &result) == 0 && (long)result == 301);
}

/* A child has no agent until its first thread; then its own, and it can be patched apart from its parent. */
static void fork_child(void)
{
    CHECK(in_thread() == 1 && agent_is((uint32_t)getpid()));
    host_agent();
    patch(version, 0, -1);
    CHECK(work(1) == 101);
    uint32_t parent = psu_runtime.agent_tid;
    pid_t child = fork();
    if (child == 0) {
        CHECK(work(1) == 101 && !agent_is((uint32_t)getpid()));
        CHECK(in_thread() == 101 && agent_is((uint32_t)getpid()));
        host_agent();
        CHECK(psu_runtime.agent_tid != parent);
        /* the one thread that came along keeps its block, under its new number */
        CHECK(work(1) == 101);
        patch(version_2, 1, 0);
        CHECK(work(1) == 201 && in_thread() == 201 && host_freed(0, 5000));
        int mine = 0;
        for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b; b = b->all)
            mine += b->tid == (uint32_t)syscall(SYS_gettid);
        CHECK(mine == 1, "%d", mine);
        uint32_t enters;
        CHECK(host_inside(1, &enters) == 0 && enters == 2, "%u", enters);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            host_agent(); /* as a borrowed thread does */
            patch(version, 2, 1);
            CHECK(work(1) == 101 && host_freed(1, 5000));
            exit(0);
        }
        int status;
        CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
        exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", status);
    CHECK(work(1) == 101 && host_object(0)->state == PSU_CURRENT && psu_runtime.agent_tid == parent);
}

/* A child of vfork that makes the first counted call of its parent's thread leaves it a block: it must not be taken for
 * a dead thread's. */
static void vfork_child(void)
{
    CHECK(in_thread() == 1);
    host_agent();
    patch(version, 0, -1);
    pid_t child = vfork();
    if (child == 0)
        _exit(work(1) == 101 ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; i < 100; i++) /* makes the agent look for dead threads */
        CHECK(in_thread() == 101);
    sleep_ms(50);
    CHECK(work(1) == 101);
    for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b; b = b->all)
        if (b->count[0].enter == 2)
            CHECK(b->tid, "the block that this thread uses was given away");
    uint32_t enters;
    CHECK(host_inside(0, &enters) == 0 && enters == 102, "%u", enters);
}

/* Forks at any moment of commits that the agent is making: the child's agent finishes or undoes what was half done. */
static void fork_in_commit(void)
{
    host_agent();
    patch(version, 0, -1);
    pid_t children[40];
    for (int i = 0; i < 40; i++) {
        uint32_t index = 1 - (uint32_t)(i & 1), old = 1 - index;
        void *page = host_jump_to(index ? version_2 : version);
        struct psu_command *c = (struct psu_command *)psu_runtime.command_buffer;
        struct { struct psu_commit head; struct psu_new_object o; struct psu_switch s; uint32_t retire; } r;
        memset(&r, 0, sizeof r);
        r.head.objects = r.head.switches = r.head.retires = 1;
        r.o.index = index;
        r.o.patch = 1;
        r.o.region[0].address = (uint64_t)page;
        r.o.region[0].size = 4096;
        uint32_t kind = PSU_NO_GATE, gate = PSU_NO_GATE;
        host_gate_of(&work_slot, &kind, &gate);
        r.s = (struct psu_switch){(uint64_t)&work_slot, 0, (uint64_t)page, PSU_PLAIN, index, index, 0, kind, gate};
        r.retire = old;
        c->op = PSU_OP_COMMIT;
        c->count = 1;
        memcpy(c + 1, &r, sizeof r - 4);
        psu_runtime.command = (uint64_t)c;
        uint16_t seq = (uint16_t)(psu_runtime.command_seq + 1);
        __atomic_store_n(&psu_runtime.command_seq, seq, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &psu_runtime.parking, 129, 1, 0, 0, 0);
        for (volatile int spin = i * 50; spin > 0; spin--)
            ;
        children[i] = fork();
        if (children[i] == 0) {
            alarm(20);
            long r = work(1);
            CHECK(r == 101 || r == 201, "%ld", r);
            CHECK(in_thread() == r);
            host_agent();
            CHECK(work(1) == r || psu_runtime.commit_seq);
            /* whatever was half done, the next commit finds consistent gates and objects */
            uint32_t now_kind, now_gate;
            CHECK(host_gate_of(&work_slot, &now_kind, &now_gate));
            CHECK(host_object(now_gate)->state == PSU_CURRENT, "gate %u, object %u", now_gate,
                host_object(now_gate)->state);
            host_command(PSU_OP_RESET, 0, 0, 0);
            patch(version, 5, now_gate);
            CHECK(work(1) == 101 && host_freed(now_gate, 5000));
            _exit(0);
        }
        while (__atomic_load_n(&psu_runtime.done_seq, __ATOMIC_ACQUIRE) != seq)
            sched_yield();
        CHECK(psu_runtime.result == 0, "%ld", (long)psu_runtime.result);
        CHECK(host_freed(old, 5000));
    }
    for (int i = 0; i < 40; i++) {
        int status;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0, "child %d: %x", i, status);
    }
}

/* A fork child whose agent is started by a thread that we did not see coming (a timer's, which the C library makes by itself),
 * before its main thread, the one that forked, made any: the block that it brought along is still its own. */
static struct psu_block *block_used_by(long (*call)(void))
{
    uint32_t before[64], n = 0;
    for (struct psu_block *b = (struct psu_block *)psu_runtime.blocks; b && n < 64; b = b->all)
        before[n++] = b->count[0].enter;
    CHECK(call() == 101);
    struct psu_block *b = (struct psu_block *)psu_runtime.blocks;
    for (uint32_t more = (uint32_t)count_blocks() - n; more; more--, b = b->all)
        if (b->count[0].enter)
            return b;
    for (uint32_t i = 0; i < n; i++, b = b->all)
        if (b->count[0].enter != before[i])
            return b;
    return 0;
}

static long here(void) { return work(1); }

static void on_timer(union sigval unused)
{
    (void)unused;
    host_agent();
}

static void fork_and_timer(void)
{
    host_agent();
    patch(version, 0, -1);
    CHECK(in_thread() == 101 && work(1) == 101);
    struct psu_block *mine = block_used_by(here);
    pid_t child = fork();
    if (child == 0) {
        alarm(30);
        CHECK(block_used_by(here) == mine);
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = on_timer};
        struct itimerspec soon = {.it_value.tv_nsec = 1000};
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &soon, 0) == 0);
        while (!agent_is((uint32_t)getpid()) || *(volatile uint32_t *)&psu_runtime.agent_state < PSU_AGENT_PARKED)
            sleep_ms(1);
        CHECK(block_used_by(here) == mine);
        CHECK(mine->tid != 0, "the main thread's block counts as free");
        for (int i = 0; i < 100; i++)
            CHECK(block_used_by(in_thread) != mine);
        patch(version_2, 1, 0);
        CHECK(host_freed(0, 5000) && work(1) == 201);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", (unsigned)status);
}

/* main leaves by pthread_exit, the others end: the process must end, with status 0 and its output written. */
static void *last_thread(void *unused)
{
    (void)unused;
    sleep_ms(100);
    printf("the last thread ended\n");
    return 0;
}
static void main_exits(void)
{
    pthread_t t;
    CHECK(pthread_create(&t, 0, last_thread, 0) == 0);
    CHECK(agent_is((uint32_t)getpid()));
    pthread_exit(0);
}

/* The same, when another thread cancels main. */
static void *cancels_main(void *main_thread)
{
    sleep_ms(50);
    CHECK(pthread_cancel(*(pthread_t *)main_thread) == 0);
    return last_thread(0);
}
static void main_is_cancelled(void)
{
    static pthread_t self;
    pthread_t t;
    self = pthread_self();
    CHECK(pthread_create(&t, 0, cancels_main, &self) == 0);
    CHECK(agent_is((uint32_t)getpid()));
    for (;;)
        pause();
}

/* A thread forks: in the child it is the main thread, and leaves by returning from its start routine. */
static void *forks(void *is_last)
{
    int status;
    pid_t child = fork();
    if (!child) {
        alarm(30);
        pthread_t t;
        if (is_last)
            CHECK(in_thread() == 1);
        else
            CHECK(pthread_create(&t, 0, last_thread, 0) == 0);
        CHECK(agent_is((uint32_t)getpid()));
        return 0;
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", (unsigned)status);
    return 0;
}
static void thread_forks(void)
{
    pthread_t t;
    CHECK(pthread_create(&t, 0, forks, &t) == 0 && pthread_join(t, 0) == 0);
#ifdef __GLIBC__ /* musl 1.2.3 leaves its list of threads locked when the main thread of such a child leaves first */
    CHECK(pthread_create(&t, 0, forks, 0) == 0 && pthread_join(t, 0) == 0);
#else
    puts("the last thread ended");
#endif
}

static int c11_thread(void *unused)
{
    (void)unused;
    return (int)work(1);
}
static void c11(void)
{
    thrd_t t;
    int result;
    CHECK(thrd_create(&t, c11_thread, 0) == thrd_success && thrd_join(t, &result) == thrd_success && result == 1);
    CHECK(agent_is((uint32_t)getpid()));
}

/* The agent's properties, as the contract has them. */
static void agent(void)
{
    sigset_t before, after;
    sigemptyset(&before);
    sigaddset(&before, SIGUSR1);
    pthread_sigmask(SIG_SETMASK, &before, 0);
    errno = 77;
    CHECK(in_thread() == 1);
    CHECK(errno == 77);
    pthread_sigmask(SIG_SETMASK, 0, &after);
    CHECK(sigismember(&after, SIGUSR1) && !sigismember(&after, SIGUSR2));
    host_agent();
    CHECK(host_command(PSU_OP_RESET, 0, 0, 0) == 0); /* it introduces itself when it is first used */
    char path[64], line[256], name[64] = "";
    unsigned long blocked = 0;
    snprintf(path, sizeof path, "/proc/self/task/%u/status", psu_runtime.agent_tid);
    FILE *f = fopen(path, "r");
    CHECK(f);
    while (fgets(line, sizeof line, f)) {
        sscanf(line, "Name: %63s", name);
        sscanf(line, "SigBlk: %lx", &blocked);
    }
    fclose(f);
    CHECK(!strcmp(name, "psu-agent"), "%s", name);
    /* all but 33 and 34, and the two that cannot be blocked; 32 as the C library wants it */
    CHECK((blocked | 1ul << 31) == (~(3ul << 32) & ~(1ul << (SIGKILL - 1)) & ~(1ul << (SIGSTOP - 1))), "%lx", blocked);
    /* setuid and the like reach every thread: must not hang */
    CHECK(setuid(getuid()) == 0);
}

static void environment(void)
{
    const char *asked = getenv("PSU_AGENT");
    int at_once = !strcmp(asked, "start");
    CHECK(agent_is((uint32_t)getpid()) == at_once);
    CHECK(in_thread() == 1);
    CHECK(agent_is((uint32_t)getpid()) == at_once, "never must not start with the first thread");
    host_agent(); /* on request, always */
    patch(version, 0, -1);
    CHECK(in_thread() == 101);
    /* A child that it forks from then on has one with its first thread: its short threads' blocks are used again. */
    pid_t child = fork();
    if (!child) {
        for (int i = 0; i < 5000; i++)
            CHECK(in_thread() == 101);
        CHECK(agent_is((uint32_t)getpid()));
        CHECK(count_blocks() < 2500, "%d blocks", count_blocks());
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "%x", (unsigned)status);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; void (*run)(void); } cases[] = {
        {"short-threads", short_threads}, {"memory", memory}, {"poor", poor}, {"fork", fork_child},
        {"fork-in-commit", fork_in_commit}, {"fork-and-timer", fork_and_timer}, {"vfork", vfork_child},
        {"main-exits", main_exits}, {"main-is-cancelled", main_is_cancelled}, {"thread-forks", thread_forks}, {"c11", c11},
        {"agent", agent},
        {"environment", environment}};
    CHECK(argc == 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (!strcmp(argv[1], cases[i].name)) {
            cases[i].run();
            puts("ok");
            return 0;
        }
    return 2;
}
