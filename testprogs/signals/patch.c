/* What handlers and their victims call, version V. */
#include "signals.h"
__attribute__((noipa)) int few(int x) { return x + V; }
__attribute__((noipa)) struct sums many(long a, long b, long c, long d, long e, long f, long g, long h, struct sums s)
{
    s.sum += a + b + c + d + e + f + g + h;
    s.version = V;
    return s;
}
__attribute__((noipa)) long eight(long a, long b, long c, long d, long e, long f, long g, long h)
{
    return a + b + c + d + e + f + g + h + V;
}
/* What callers rely on is changed. */
__attribute__((noinline, used)) static long light(long x)
{
#ifdef __x86_64__
    __asm__ volatile("xor %%ecx, %%ecx; xor %%edx, %%edx; xor %%esi, %%esi; xor %%r8d, %%r8d; xor %%r9d, %%r9d; xor %%r10d, %%r10d"
                     : "+r"(x) : : "rcx", "rdx", "rsi", "r8", "r9", "r10", "cc");
#else
    __asm__ volatile("mov x1, xzr\n mov x2, xzr\n mov x3, xzr\n mov x4, xzr\n mov x11, xzr\n mov x12, xzr\n mov x13, xzr"
                     : "+r"(x) : : "x1", "x2", "x3", "x4", "x11", "x12", "x13");
#endif
    return x * 3;
}
