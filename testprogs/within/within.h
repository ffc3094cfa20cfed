/* What program and patches share: functions that add their version to what they are given, and one that calls them for a
 * long time.  Each call of one, two and three in stay, and of two in three, is inside one object. */
#include <stdint.h>

extern long (*volatile through)(long), (*volatile again)(long);
uint64_t limits(void);
void seen(uint64_t before, long a, long b, long c, long d, long e);
void nap(void);

long one(long x);
long two(long x);
long three(long x);
long stay(long rounds, long naps);

#define ONE(v) __attribute__((noipa)) long one(long x) { return x + (v); }
#define TWO(v) __attribute__((noipa)) long two(long x) { return x + (v); }
#define THREE __attribute__((noipa)) long three(long x) { return two(x - 7) + 7; }
/* First and last by a pointer, which leads through the slot. */
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
