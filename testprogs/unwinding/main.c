/* Threads, and handlers that interrupt them anywhere, look at their own stacks inside patched functions.
 *
 * Proves: backtrace() passes gates of every kind, at any depth, in any moment of an update: a stack ends with the same callers
 * of the thread's function, and is as deep as the calls are, at least.
 * Usage: main THREADS
 * Prints "version N" when a call first gives N, "looked N" each 10,000 looks, "ERROR ..." when something is wrong. */
#define _GNU_SOURCE
#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "unwinding.h"

#define DEEP 6
static long looked, newest;
static __thread void *callers[16];          /* of the thread's function, the outermost last */
static __thread int callers_count;
__thread volatile int levels;

/* Where unwinders themselves may come to an end: code of the C and the compiler's libraries that has no unwind rows, in which a
 * handler found its thread (AArch64: libgcc's helpers for atomic operations).  The plain program's stacks end there, too. */
static struct { const char *start, *end; } libraries[4];
static int libraries_count;
extern const void *_Unwind_Find_FDE(const void *, void *);

static int note_library(struct dl_phdr_info *info, size_t size, void *unused)
{
    (void)size, (void)unused;
    if (libraries_count == 4 || (!strstr(info->dlpi_name, "/libc.so") && !strstr(info->dlpi_name, "/libgcc_s.so")))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags & PF_X) {
            libraries[libraries_count].start = (char *)info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
            libraries[libraries_count].end = libraries[libraries_count].start + info->dlpi_phdr[i].p_memsz;
            libraries_count++;
        }
    return 0;
}

static int ends_in_a_library(const char *last)
{
    void *bases[3];
    for (int i = 0; i < libraries_count; i++)
        if (libraries[i].start <= last && last < libraries[i].end)
            return !_Unwind_Find_FDE(last, bases);
    return 0;
}

/* Nothing is printed here: handlers look, too. */
__attribute__((noipa)) void look(void)
{
    void *now[100];
    int n = backtrace(now, 100), depth = n - callers_count;
    if (n && ends_in_a_library(now[n - 1]))
        return;
    if (depth < levels + 2 || memcmp(now + depth, callers, (size_t)callers_count * sizeof *callers)) {
        char text[100];
        int size = snprintf(text, sizeof text, "ERROR a stack of %d frames, %d at the least\n", n, levels + 2 + callers_count);
        if (write(1, text, (size_t)size) != size)
            _exit(3);
    }
    __atomic_add_fetch(&looked, 1, __ATOMIC_RELAXED);
}

__attribute__((noipa)) int inner(int depth, int b, int c, int d, int e, int f, int g, struct parcel p)
{
    levels++;
    if (depth + b + c + d + e + f + g + p.words[4] != 10)
        puts("ERROR arguments");
    look();
    levels--;
    return 0;
}
__attribute__((noipa)) int middle(int depth)
{
    struct parcel p = {{1, 2, 3, 4, depth}};
    levels++;
    int v = depth ? middle(depth - 1) : inner(1, 1, 1, 2, 2, 2, 1, p);
    levels--;
    return v;
}
__attribute__((noipa)) int outer(int depth)
{
    levels++;
    int v = middle(depth);
    levels--;
    return v;
}

static void handler(int number)
{
    (void)number;
    if (callers_count)
        look();
}

/* The thread's function: its callers stay the same for its whole life. */
static void *work(void *unused)
{
    void *now[16];
    int n = backtrace(now, 16);
    memcpy(callers, now + 1, (size_t)(n - 1) * sizeof *callers);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    callers_count = n - 1;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &set, 0);
    for (int depth = 0;; depth = (depth + 1) % DEEP) {
        int v = outer(depth);
        if (v > __atomic_load_n(&newest, __ATOMIC_RELAXED)) {
            __atomic_store_n(&newest, v, __ATOMIC_RELAXED);
            printf("version %d\n", v);
        }
    }
    return unused;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 2;
    pthread_t threads[16];
    sigset_t set;
    void *first[4];
    struct sigaction a = {.sa_handler = handler, .sa_flags = SA_RESTART};
    setvbuf(stdout, 0, _IOLBF, 0);
    backtrace(first, 4);                    /* loads the unwinder, which a handler may not */
    dl_iterate_phdr(note_library, 0);
    sigaction(SIGUSR1, &a, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], 0, work, 0);
    puts("ready");
    for (long said = 0;; usleep(300)) {
        for (int i = 0; i < count; i++)
            pthread_kill(threads[i], SIGUSR1);
        long now = __atomic_load_n(&looked, __ATOMIC_RELAXED) / 10000;
        if (now > said)
            printf("looked %ld\n", said = now);
    }
}
