/* Callers that keep values in registers which a callee may change, because the compiler saw that it does not (-fipa-ra,
 * relying.inc), while the callees are replaced by versions that change every one of these registers.
 *
 * Proves: psu-bin finds these registers, in the program and in patches, and its gates keep them.
 * Usage: main.  Prints "version N" when all callees have run in version N or a later one; "ERROR name" when a value was
 * lost.  High vector registers are never called for: the function that uses them shows what instrument refuses. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
#define V 0
#define FIRST
#include "relying.inc"

volatile int seen[CALLEES];
static int wide_is_possible;

#ifdef __x86_64__
__attribute__((target("avx512f"))) CALLEE high(void) { seen[HIGH] = V; }
/* Vector registers from 16 on: no gate keeps these. */
__attribute__((noinline, target("avx512f"))) v512 rely_high(volatile v512 *in)
{
    BODY(high, v512, EACH24)
}
static int wide_possible(void) { return __builtin_cpu_supports("avx2"); }
#else
static int wide_possible(void) { return 1; }
#endif
#define ONE(n) + 1
enum { GENERALS = EACH_GENERAL(ONE), VECTORS = EACH_VECTOR(ONE), WIDES = EACH_WIDE(ONE) };

static long next(long *seed) { return (*seed = *seed * 6364136223846793005 + 1442695040888963407) >> 8; }

#define CHECK(f, type, values) do { \
        type want = {0}; \
        for (int i = 0; i < values; i++) \
            want = want * 3 + ((type *)in)[i]; \
        if (f((volatile type *)in) != want) \
            printf("ERROR %s\n", #f); \
    } while (0)

WIDE_TARGET static void check_wide(wide_type *in)
{
    wide_type want = {0};
    for (int i = 0; i < WIDES; i++)
        want = want * 3 + in[i];
    wide_type got = rely_wide(in);
    for (int i = 0; i < (int)(sizeof got / sizeof got[0]); i++)
        if (got[i] != want[i])
            printf("ERROR rely_wide %d\n", i);
}

static void check(long *seed)
{
    wide_type space[32];
    long *in = (long *)space;
    for (int i = 0; i < (int)(sizeof space / sizeof *in); i++)
        in[i] = next(seed);
    CHECK(rely_general, long, GENERALS);
    CHECK(rely_through, long, GENERALS);
    CHECK(rely_late, long, GENERALS);
#ifdef __x86_64__
    if (rely_rdx(in) != in[0])
        puts("ERROR rely_rdx");
#endif
    if (wide_is_possible)
        check_wide(space);
    for (int i = 0; i < VECTORS; i++)
        ((double *)in)[i] = next(seed) & 0xff;      /* the sums are exact */
    CHECK(rely_vector, double, VECTORS);
    CHECK(rely_late_vector, double, VECTORS);
}

static void *work(void *seed)
{
    for (;;)
        check((long *)&seed);
    return 0;
}

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    pthread_t t[2];
    setvbuf(stdout, 0, _IOLBF, 0);
    wide_is_possible = wide_possible();
#ifdef __x86_64__
    if (argc > 2)                                 /* never, but the compiler does not know */
        rely_high((v512 *)argv);
#endif
    for (long i = 0; i < 2; i++)
        pthread_create(&t[i], 0, work, (void *)(i + 1));
    for (int last = -1;; usleep(1000)) {
        int least = seen[GENERAL];
        for (int i = VECTOR; i < HIGH; i++)
            if (seen[i] < least && (i != WIDE || wide_is_possible))
                least = seen[i];
        if (least != last)
            printf("version %d\n", last = least);
    }
}
