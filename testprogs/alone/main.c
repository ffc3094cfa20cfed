/* Threads in sandboxes of their own, which end them at system calls that they do not make themselves.
 *
 * Proves: calls of patched functions make no system call there, not a thread's first one, nor in deep recursion.
 * Usage: main HOW
 *   strict   a thread in the strict mode of seccomp: read, write, exit
 *   filter   a thread with a filter that ends the process at anything but write
 *   late     as filter, but it called a patched function before: line "go" sends it into the sandbox.  No update comes
 *            between, so that there psu-bin knows of the sandbox only from version 3 on
 * Prints "version N" and "alone N", for the thread in the sandbox, when it first sees N; "ERROR ..." when something is wrong. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "alone.h"

static const char *how;
static volatile int go;

__attribute__((noipa)) int first(void) { return 0; }
__attribute__((noipa)) int many(int a, int b, int c, int d, int e, int f, int g, int h)
{
    return a + b + c + d + e + f + g + h - 36;
}
__attribute__((noipa)) int deep(int levels) { return levels ? deep(levels - 1) : many(1, 2, 3, 4, 5, 6, 7, 8); }

int (*volatile around)(int) = deep;      /* a call that takes the gate at each level */

/* Nothing of the C library's but what is a write. */
static void say(const char *what, int v)
{
    char text[40];
    int n = snprintf(text, sizeof text, "%s %d\n", what, v);
    if (write(1, text, (size_t)n) != n)
        __builtin_trap();
}

static void *alone(void *unused)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof code / sizeof *code, code};
    if (!strcmp(how, "late"))
        while (!go)
            many(first(), 2, 3, 4, 5, 6, 7, 8);
    say("alone", first());
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, strcmp(how, "strict") ? SECCOMP_MODE_FILTER : SECCOMP_MODE_STRICT, &filter))
        say("ERROR seccomp", 0);
    say("ready", 0);
    for (int last = 0;;) {
        int a = first(), b = many(1, 2, 3, 4, 5, 6, 7, 8), c = last > 2 ? deep(500) : b;
        if (a < last || b < a || c < b)
            say("ERROR went back to", a);
        if (a != last)
            say("alone", a);
        last = a;
    }
    return unused;
}

int main(int argc, char **argv)
{
    pthread_t t;
    char line[20];
    how = argc > 1 ? argv[1] : "";
    setvbuf(stdout, 0, _IOLBF, 0);
    pthread_create(&t, 0, alone, 0);
    if (!strcmp(how, "late")) {
        say("waiting", 0);
        if (!fgets(line, sizeof line, stdin))
            return 1;
        go = 1;
    }
    for (int last = -1;; usleep(1000)) {
        int now = first();
        if (now != last)
            say("version", now);
        last = now;
    }
}
