/* SPDX-License-Identifier: MIT
 *
 * unwind.cc: leaving a gate in another way than by returning.  C++ exceptions, pthread_exit, deferred and asynchronous
 * pthread_cancel go through gates of every kind: cleanups run, callers get their registers back, enters and leaves are
 * equal afterwards, no side-frame entry is lost.  backtrace() inside a version names the callers.  longjmp leaves a
 * count too high, never too low, and corrupts nothing.
 *
 * Arguments: how many asynchronous cancellations; "program", "library" (where the gates are), or "poor": full gates that
 * get no memory, with registers on the stack and in areas that all threads share (shim/poor.c).
 */
#include <execinfo.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>

#include <stdexcept>

#include "host.h"

extern "C" {
long work(long mode, ...);
long work_original(long mode, ...) { return mode; }
STUB(work);
}

/* Where the commits see the slot.  The program's own: gates are copies near it; one near the shim, as a library's would
 * be: gates are those in the shim. */
static volatile uint64_t *slot = &work_slot;

enum { RETURN, THROW, WAIT, SPIN, EXIT, JUMP, TRACE };
static volatile int running;
static jmp_buf place;
static int cleanups;
struct Cleanup {
    ~Cleanup() { __atomic_add_fetch(&cleanups, 1, __ATOMIC_RELAXED); }
};

extern "C" __attribute__((noinline)) long version(long mode, ...)
{
    Cleanup c;
    va_list list;
    va_start(list, mode);
    long sum = 0;
    int old;
    for (int i = 1; i <= 10; i++)
        sum += i * (i & 1 ? va_arg(list, long) : (long)va_arg(list, double));
    va_end(list);
    switch (mode) {
    case THROW: throw std::runtime_error("through");
    case WAIT:
        running = 1;
        for (;;)
            pause();
    case SPIN:
        pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
        running = 1;
        for (;;)
            work(RETURN, 1L, 2.0, 3L, 4.0, 5L, 6.0, 7L, 8.0, 9L, 10.0);
    case EXIT: pthread_exit((void *)7);
    case JUMP: longjmp(place, 1);
    case TRACE: {
        void *frames[40];
        int n = backtrace(frames, 40);
        char **text = backtrace_symbols(frames, n);
        int caller = -1, main_at = -1;
        for (int i = 0; i < n; i++) {
            if (strstr(text[i], "(outer+"))
                caller = i;
            if (strstr(text[i], "(main+"))
                main_at = i;
        }
        CHECK(caller > 0 && main_at > caller, "%d %d of %d", caller, main_at, n);
        free(text);
    }
    }
    return sum;
}

/* The plain gate moves stack arguments, so its version takes none. */
extern "C" __attribute__((noinline)) long plain_version(long mode)
{
    return version(mode, 1L, 2.0, 3L, 4.0, 5L, 6.0, 7L, 8.0, 9L, 10.0);
}

/* Not the result's register, and vectors without a meaning to the callers here. */
#ifdef __x86_64__
#define POOR_PRESERVE (1u << 6 | 1u << 11 | 1u << 31)
#else
#define POOR_PRESERVE (1u << 6 | 1u << 11 | 1u << 31 | 1u << 20)
#endif
#define SUM (1 + 4 + 9 + 16 + 25 + 36 + 49 + 64 + 81 + 100)

/* -fno-omit-frame-pointer or not, locals of the caller must survive: the compiler keeps these in rbx, rbp, r12 to r15.
 * */
extern "C" __attribute__((noinline)) long outer(long mode)
{
    Cleanup c;
    long a = mode + 1, b = mode + 2, d = mode + 3, e = mode + 4, f = mode + 5;
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(d), "+r"(e), "+r"(f));
    long r = 0;
    try {
        r = work(mode, 1L, 2.0, 3L, 4.0, 5L, 6.0, 7L, 8.0, 9L, 10.0);
    } catch (std::exception &x) {
        r = -1;
    }
    __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(d), "+r"(e), "+r"(f));
    CHECK(a == mode + 1 && b == mode + 2 && d == mode + 3 && e == mode + 4 && f == mode + 5);
    return r;
}

static void *thread(void *mode) { return (void *)outer((long)mode); }

static uint32_t index_now;
static const char *kind_now;
static void balanced(const char *what, int32_t expected = 0)
{
    uint32_t enters;
    int32_t n = host_inside(index_now, &enters);
    CHECK(n == expected && enters > 0, "%s gate: %s: %d inside, %u enters", kind_now, what, n, enters);
}

/* Free side-frame entries of this thread. */
static int free_entries()
{
    for (auto b = (struct psu_block *)psu_runtime.blocks; b; b = b->all)
        if (b->tid == (uint32_t)syscall(SYS_gettid)) {
            int n = 0;
            for (auto s = b->free; s; s = s->next)
                n++;
            return n;
        }
    return 0;
}

static void all(uint32_t kind, const char *name, uint32_t index, uint32_t preserve = 0)
{
    index_now = index;
    kind_now = name;
    /* Nor does one that leaves the registers on the stack. */
    void *page = host_jump_to(kind == PSU_PLAIN || host_otherwise ? (void *)plain_version : (void *)version);
    struct host_switch s = {slot, 0, (uint64_t)page, kind, index, preserve};
    CHECK(host_commit(index, page, &s, 1, (int64_t)index - 1) == 0);
    work_slot = *slot;
    CHECK(outer(RETURN) == SUM, "%s: %ld", name, outer(RETURN));
    balanced("return");
    outer(TRACE);

    outer(THROW);
    int entries = free_entries();
    cleanups = 0;
    for (int i = 0; i < 300; i++)
        CHECK(outer(THROW) == -1);
    CHECK(cleanups == 600, "%s: %d cleanups", name, cleanups);
    balanced("exceptions");
    CHECK(free_entries() == entries, "%s: %d free entries, were %d", name, free_entries(), entries);

    pthread_t t;
    void *result;
    cleanups = 0;
    CHECK(!pthread_create(&t, 0, thread, (void *)EXIT) && !pthread_join(t, &result) && (long)result == 7);
    balanced("pthread_exit");
    running = 0;
    CHECK(!pthread_create(&t, 0, thread, (void *)WAIT));
    while (!running)
        sched_yield();
    balanced("inside", 1);
    CHECK(!pthread_cancel(t) && !pthread_join(t, &result) && result == PTHREAD_CANCELED);
    CHECK(cleanups == 4, "%s: %d cleanups", name, cleanups);
    balanced("pthread_cancel");
}

/* Asynchronous cancellation at any instruction of a gate.  The gate leads straight to a function with unwind rules:
 * those of the injected jump to it would be missing. */
extern "C" __attribute__((noinline)) long simple_version(long mode, ...) { return mode; }

static void *spinning(void *)
{
    int old;
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &old);
    work(1);
    running = 1;
    for (;;)
        work(1);
}

static void asynchronous(uint32_t kind, const char *name, uint32_t index, int rounds, uint32_t preserve = 0,
                         int32_t too_high = 0)
{
    index_now = index;
    kind_now = name;
    void *page = host_jump_to((void *)simple_version);
    struct host_switch s = {slot, 0, (uint64_t)page, kind, index, preserve};
    CHECK(host_commit(index, page, &s, 1, (int64_t)index - 1) == 0);
    work_slot = *slot;
    host_gate(kind, index)->code = (uint64_t)simple_version;
    for (int i = 0; i < rounds; i++) {
        pthread_t t;
        void *result;
        running = 0;
        CHECK(!pthread_create(&t, 0, spinning, 0));
        while (!running)
            sched_yield();
        for (volatile int spin = i * 37 % 1000; spin > 0; spin--)
            ;
        CHECK(!pthread_cancel(t) && !pthread_join(t, &result) && result == PTHREAD_CANCELED);
        int32_t n = host_inside(index, 0);
        /* The agent may be moving the dead thread's counts just now, and we looked at half of them. */
        for (int again = 0; again < 200 && !(n >= 0 && n <= too_high); again++) {
            usleep(1000);
            n = host_inside(index, 0);
        }
        CHECK(n >= 0 && n <= too_high, "%s gate: asynchronous cancel: %d inside", name, n);
    }
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 300;
    if (argc > 2 && !strcmp(argv[2], "library")) {
        slot = (uint64_t *)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *slot = work_slot;
    }
    if (argc > 2 && !strcmp(argv[2], "poor")) {
        psu_runtime.silent = 1; /* no thread gets a block */
        host_agent();
        host_otherwise = PSU_ON_STACK;
        all(PSU_FULL, "stacked", 0, POOR_PRESERVE);
        asynchronous(PSU_FULL, "stacked", 1, rounds, POOR_PRESERVE, rounds);
        host_otherwise = 0;
        all(PSU_FULL, "spare", 2, POOR_PRESERVE);
        asynchronous(PSU_FULL, "spare", 3, rounds, POOR_PRESERVE, rounds);
        CHECK(!psu_runtime.blocks);
        puts("ok");
        return 0;
    }
    host_agent();
    all(PSU_PLAIN, "plain", 0);
    all(PSU_SIDE, "side", 1);
    all(PSU_FULL, "full", 2);
    uint32_t index = 3;
    asynchronous(PSU_PLAIN, "plain", index++, rounds);
    asynchronous(PSU_SIDE, "side", index++, rounds);

    const char *const names[] = {"plain", "side", "full"};
    for (uint32_t kind = 0; kind < 3; kind++, index++) {
        index_now = index;
        kind_now = names[kind];
        void *page = host_jump_to(kind == PSU_PLAIN ? (void *)plain_version : (void *)version);
        struct host_switch s = {slot, 0, (uint64_t)page, kind, index, 0};
        CHECK(host_commit(index, page, &s, 1, (int64_t)index - 1) == 0);
    work_slot = *slot;
        for (volatile int i = 0; i < 50; i++)
            if (!setjmp(place))
                work(JUMP, 1L, 2.0, 3L, 4.0, 5L, 6.0, 7L, 8.0, 9L, 10.0);
        balanced("longjmp", 50);
        CHECK(outer(RETURN) == SUM);
    }
    CHECK((psu_runtime.near_delta != 0) == (CODE_NEAR && slot == &work_slot));
    puts("ok");
    return 0;
}
