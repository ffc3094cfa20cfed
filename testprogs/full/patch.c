/* Version V: the same results, and every register that callers count on is changed. */
#include "full.h"
#ifdef __x86_64__
#define SPOIL __asm__ volatile("mov $-1, %%r8\n mov %%r8, %%r9\n movq %%r8, %%xmm8\n movq %%r8, %%xmm9" \
    : : : "r8", "r9", "xmm8", "xmm9")
#else
#define SPOIL __asm__ volatile("mov x11, #-1\n mov x12, x11\n movi v16.2d, #-1\n movi v17.2d, #-1" \
    : : : "x11", "x12", "v16", "v17")
#endif
long down(long level)
{
    char *here = __builtin_frame_address(0);
    seen = V;
    SPOIL;
    if (here - limit < RESERVE) {
        bottom();
        return level;
    }
    long r = deeper(level + 1);
    SPOIL;
    return r;
}
long worked(long x) { seen = V; SPOIL; return x * 3; }
long jumping(long x) { seen = V; SPOIL; leave(); return x; }
long yielding(long x) { seen = V; SPOIL; yield(); SPOIL; return x * 5; }
