/* The caller, which keeps values in registers over calls of functions of this patch that leave these alone.
 * FRESH: the program gets the address of one of them, which then stays. */
#include "goback.h"
#include "../relying/relying.h"
#define LOAD(n) value##n = in[n];
#define ADD(n) sum = sum * 3 + value##n;
#define DECLARE(n) value##n,

static __attribute__((noinline)) void hold(void)
{
    held = 1;
    while (!released)
        ;
}
__attribute__((noinline)) void late(void) { late_version = 1; }
#ifdef FRESH
__attribute__((noinline)) void fresh(void) { fresh_version = 1; }
#endif

__attribute__((noinline)) long work(volatile long *in)
{
    long EACH_GENERAL(DECLARE) sum = {0};
    EACH_GENERAL(LOAD)
    hold();
    late();
#ifdef FRESH
    fresh();
    fresh_one = fresh;
#endif
    FIRST_HERE(sum)
    EACH_GENERAL(ADD)
    return sum;
}
