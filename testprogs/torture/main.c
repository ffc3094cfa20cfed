/* Everything at once, while updates come as fast as they can: threads that call, threads that live for a moment, signal
 * handlers that call, calls that last longer than several updates.
 *
 * Proves: each call runs a version that was current at some moment of the call, functions of one patch switch together,
 * arguments arrive, literals that a version gave away stay, freed code is not executed (it is unmapped, so that would be
 * a crash).
 *
 * Usage: main PAGE THREADS [signals] [churn] [sleepers].  PAGE is a file of one page that the test maps, too:
 * it says there, before and after each update, which versions may run (struct page, limits), and reads what was
 * found.  A word on standard output: "ready", and "done" when told to stop. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "torture.h"

/* limits: bits 0..23 the lowest version that a call may run now, 24..47 the highest, 48: versions go up (else down),
 * 49..63 a number that changes with every store.  Versions here are without the base 0x5e000000, original: 0. */
struct page { _Atomic uint64_t limits, stop, calls, threads, signals, naps, errors; char error[200]; };
static struct page *page;
#define BASE 0x5e000000

__attribute__((noipa)) long plain(long x) { return x; }
__attribute__((noipa)) long many(long a, long b, long c, long d, long e, long f, long g, long h)
{
    return a + b + c + d + e + f + g + h;
}
__attribute__((noipa)) long vary(int count, ...)
{
    va_list list;
    double sum = 0;
    va_start(list, count);
    while (count--)
        sum += va_arg(list, double);
    va_end(list);
    return (long)sum;
}
__attribute__((noipa)) long deep(long levels) { return levels ? deep(levels - 1) + 1 : (plain(0), 0); }
__attribute__((noipa)) long sleepy(long x)
{
    nap();
    return x;
}
__attribute__((noipa)) const char *name(void) { return "v00000000"; }

__attribute__((noipa)) void nap(void)
{
    static _Atomic uint32_t number;
    usleep(1000 * (atomic_fetch_add(&number, 1) * 7919 % 120));
}

static void complain(const char *what, long got, uint64_t limits)
{
    if (!atomic_fetch_add(&page->errors, 1))
        snprintf(page->error, sizeof page->error, "%s: %#lx, limits %#lx", what, got, (unsigned long)limits);
}

/* Version number of a result; complains about one that no version gives. */
static long version(const char *what, long result, uint64_t limits)
{
    if (result && (result & 0x7f000000) != BASE)
        complain(what, result, limits);
    return result ? result - BASE : 0;
}

static void within(const char *what, long v, uint64_t limits)
{
    if (v < (long)(limits & 0xffffff) || v > (long)(limits >> 24 & 0xffffff))
        complain(what, v, limits);
}

static void once(void)
{
    uint64_t l = atomic_load(&page->limits);
    long a = version("plain", plain(5) - 5, l);
    long b = version("many", many(1, 20, 300, 4000, 50000, 600000, 7000000, 80000000) - 87654321, l);
    long c = version("vary", vary(9, 1., 2., 3., 4., 5., 6., 7., 8., 9.) - 45, l);
    const char *n = name();
    if (atomic_load(&page->limits) == l) {
        within("plain", a, l);
        within("many", b, l);
        within("vary", c, l);
        if (l >> 48 & 1 ? a > b || b > c : a < b || b < c)
            complain("switched apart", b, l);
    }
    if (n[0] != 'v' || strlen(n) != 9)
        complain("name", n[0], l);
    atomic_fetch_add_explicit(&page->calls, 1, memory_order_relaxed);
}

static int running(void) { return !atomic_load_explicit(&page->stop, memory_order_relaxed); }

static void *caller(void *unused)
{
    const char *kept[64];
    uint64_t n;
    for (n = 0; n < 64; n++)
        kept[n] = name();
    while (running()) {
        once();
        if (n % 64 == 0 && deep(20) != 20)
            complain("deep", 0, 0);
        if (kept[n % 64][0] != 'v') /* a literal that an old version gave away */
            complain("kept name", kept[n % 64][0], 0);
        kept[n++ % 64] = name();
    }
    return unused;
}

static void *sleeper(void *unused)
{
    while (running()) {
        uint64_t l = atomic_load(&page->limits);
        long v = version("sleepy", sleepy(3) - 3, l);
        if (atomic_load(&page->limits) == l)
            within("sleepy", v, l);
        atomic_fetch_add(&page->naps, 1);
    }
    return unused;
}

static void *moment(void *unused)
{
    once();
    if (deep(30) != 30)
        complain("deep", 0, 0);
    atomic_fetch_add(&page->threads, 1);
    return unused;
}

static void *churn(void *unused)
{
    while (running()) {
        pthread_t t[4];
        int made = 0;
        while (made < 4 && !pthread_create(&t[made], 0, moment, 0))
            made++;
        while (made)
            pthread_join(t[--made], 0);
    }
    return unused;
}

static void on_alarm(int number)
{
    (void)number;
    once();
    atomic_fetch_add(&page->signals, 1);
}

int main(int argc, char **argv)
{
    int file = open(argv[1], O_RDWR), threads = atoi(argv[2]), all = 0, signals = 0;
    pthread_t t[64];
    page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED)
        return 2;
    for (int i = 0; i < threads && all < 50; i++)
        pthread_create(&t[all++], 0, caller, 0);
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "signals"))
            signals = 1;
        else
            pthread_create(&t[all++], 0, strcmp(argv[i], "churn") ? sleeper : churn, 0);
    }
    if (signals) {
        struct sigaction a = {.sa_handler = on_alarm, .sa_flags = SA_RESTART | SA_NODEFER};
        struct itimerval every = {{0, 700}, {0, 700}};
        sigaction(SIGALRM, &a, 0);
        setitimer(ITIMER_REAL, &every, 0);
    }
    puts("ready");
    fflush(stdout);
    while (running()) {
        once();
        usleep(1000);
    }
    setitimer(ITIMER_REAL, &(struct itimerval){0}, 0);
    while (all)
        pthread_join(t[--all], 0);
    puts("done");
    return 0;
}
