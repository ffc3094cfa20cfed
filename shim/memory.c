/* SPDX-License-Identifier: MIT
 *
 * memcpy and memset for ourselves: compilers emit calls of them, and the shim must not depend on a C library.
 */
#include "internal.h"

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    char *t = to;
    const char *f = from;
    while (size--)
        *t++ = *f++;
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    char *t = to;
    while (size--)
        *t++ = (char)byte;
    return to;
}
