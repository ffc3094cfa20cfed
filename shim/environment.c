/* SPDX-License-Identifier: MIT
 *
 * environment.c: read one variable of the environment the process was started with, at a time when no library may be
 * initialised yet.  glibc hands the environment to constructors, musl does not; /proc/self/environ has it on both.
 */
#include "internal.h"

enum { AT_FDCWD = -100, O_CLOEXEC = 02000000 };

extern char **environ __attribute__((weak, visibility("default")));

static int copy_if(const char *entry, const char *name, char *value, size_t size)
{
    while (*name && *name == *entry) {
        name++;
        entry++;
    }
    if (*name || *entry != '=')
        return 0;
    size_t i = 0;
    for (entry++; *entry && i + 1 < size; i++)
        value[i] = *entry++;
    value[i] = 0;
    return 1;
}

int psu_environment(const char *name, char *value, size_t size)
{
    if (&environ && environ) {
        for (char **e = environ; *e; e++)
            if (copy_if(*e, name, value, size))
                return 1;
        return 0;
    }
    long file = psu_syscall(NR_openat, AT_FDCWD, "/proc/self/environ", O_CLOEXEC, 0);
    if (file < 0)
        return 0;
    /* Entries end with NUL.  One longer than the buffer is looked at in pieces, whose later ones `start` rules out. */
    char buffer[1024];
    size_t have = 0;
    int start = 1, result = 0;
    for (long n; !result && (n = psu_syscall(NR_read, file, buffer + have, sizeof buffer - 1 - have)) > 0;) {
        have += (size_t)n;
        buffer[have] = 0;
        size_t at = 0, end;
        for (end = 0; end < have && !result; end++)
            if (!buffer[end]) {
                result = start && copy_if(buffer + at, name, value, size);
                at = end + 1;
                start = 1;
            }
        if (at == 0 && have == sizeof buffer - 1) {
            start = 0;
            at = have;
        }
        for (end = at; end < have; end++)
            buffer[end - at] = buffer[end];
        have -= at;
    }
    psu_syscall(NR_close, file);
    return result;
}
