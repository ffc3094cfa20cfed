/* What program and patches share: functions that add their version to what they are given, and one that calls them for a
 * long time.  Each call of one, two and three in stay, and of two in three, is inside one object. */
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

extern long (*volatile through)(long), (*volatile again)(long);
void seen(uint64_t before, long a, long b, long c, long d, long e);

/* limits: testprogs/torture/main.c */
struct page { _Atomic uint64_t limits, stop, calls, threads, signals, naps, errors; char error[200]; };
extern struct page *page;
/* No functions: a patch of all four that change must be one of half of the program, so that gates look (psu_bin/attach/inner.py). */
#define INLINE __attribute__((always_inline)) static inline
INLINE uint64_t limits(void) { return atomic_load(&page->limits); }
INLINE void nap(void)
{
    usleep(3000);
    atomic_fetch_add(&page->naps, 1);
}

long one(long x);
long two(long x);
long three(long x);
long stay(long rounds, long naps);

#define ONE(v) __attribute__((noipa)) long one(long x) { return x + (v); }
#define TWO(v) __attribute__((noipa)) long two(long x) { return x + (v); }
#define THREE __attribute__((noipa)) long three(long x) { return two(x - 7) + 7; }
/* First and last by a pointer, which leads through the slot, to a gate that looks where the call comes from or one that does not. */
#define STAY(name, v) __attribute__((noipa)) long name(long rounds, long naps) \
{ \
    for (; rounds; rounds--) { \
        uint64_t before = limits(); \
        long a = through(1), b = one(2), c = two(3), d = three(4), e = again(5); \
        seen(before, a - 1, b - 2, c - 3, d - 4, e - 5); \
        if (rounds <= naps) \
            nap(); \
    } \
    return v; \
}
