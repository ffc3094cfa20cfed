/* Functions with scalable vectors, called by threads that come and go, while versions come and go.
 *
 * Proves: gates, stubs and what threads do on their first call through a gate (system calls among it, which clear what SVE
 * adds to the 128 bits of a vector register) keep arguments, results and what callers of the SVE standard rely on; and a
 * processor in streaming mode (SME) stays in it, and one whose array ZA holds values keeps them.
 * Usage: main.  Prints "bytes N" (of a vector) and "streaming 0" or "1" at first; "version N" when all have run in version N
 * or a later one; "threads N" now and then; "ERROR name" when a value was lost; "no SVE" and nothing else without it. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <unistd.h>
#define V 0
#include "sve.inc"

#define HWCAP_SVE_BIT (1ul << 22)
#define HWCAP2_SME_BIT (1ul << 23)
#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH9(X) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
enum { VALUES = 16, LONGEST = 32 };       /* words of the longest vector */

volatile int seen[FUNCTIONS];
static int streaming;

static long next(unsigned long *seed) { return (long)(*seed = *seed * 6364136223846793005 + 1442695040888963407) >> 8; }
static void wrong(const char *name) { printf("ERROR %s\n", name); }

/* Sixteen vectors and nine predicates in registers over the call of `make`, which sets `result`. */
#define KEEP(name, make) do { \
        EACH16(LOAD) EACH9(PREDICATE) \
        svint64_t result; \
        EACH16(TOUCH) EACH9(TOUCH_PREDICATE) \
        make; \
        EACH16(TOUCH) EACH9(TOUCH_PREDICATE) \
        EACH16(COMPARE) EACH9(COMPARE_PREDICATE) \
        svst1(all, out, result); \
    } while (0)
#define LOAD(n) svint64_t v##n = svld1(all, in[n]);
#define PREDICATE(n) svbool_t p##n = svcmpgt(all, v##n, v3);
#define TOUCH(n) __asm__ volatile("" : "+w"(v##n));
#define TOUCH_PREDICATE(n) __asm__ volatile("" : "+Upa"(p##n));
#define COMPARE(n) if (svptest_any(all, svcmpne(all, v##n, svld1(all, in[n])))) wrong("a vector");
#define COMPARE_PREDICATE(n) if (svptest_any(all, sveor_z(all, p##n, svcmpgt(all, v##n, v3)))) wrong("a predicate");

__attribute__((noipa)) static void check(unsigned long *seed)
{
    long in[VALUES][LONGEST], out[LONGEST];
    const svbool_t all = svptrue_b64();
    int words = (int)svcntd();
    for (int i = 0; i < VALUES * LONGEST; i++)
        in[i / LONGEST][i % LONGEST] = next(seed);
    KEEP("in_registers", result = in_registers(v0, v1, p4));
    for (int i = 0; i < words; i++)
        if (out[i] != in[0][i] + (in[4][i] > in[3][i] ? in[1][i] : 0))
            wrong("in_registers");
    struct parcel y = {{1, 2, 3, 4, next(seed)}};
    KEEP("on_the_stack", result = on_the_stack(v0, v1, v2, v3, v4, v5, v6, v7, v8, p4, p5, p6, p7, p8, 1, 2, 3, 4, 5, 6, 7, 8,
                                               9, y));
    for (int i = 0; i < words; i++) {
        /* What an inactive element of svadd_x is, does not matter: p4 says the same for all of its kind. */
#define AT(n) in[n][i]
#define IF(n) (AT(n) > AT(3))
        long want = AT(0) + (IF(4) ? AT(1) : 0) + (IF(5) ? AT(2) : 0) + 45 + y.words[4];
        if (IF(4)) {
            want += (IF(6) ? AT(3) + AT(4) : 0) + (IF(7) ? AT(5) + AT(6) : 0) + (IF(8) ? AT(7) + AT(8) : 0);
            if (out[i] != want)
                wrong("on_the_stack");
        }
    }
}

/* ordinary(x), called in streaming mode with vectors of that mode in all registers.  SVCR is s3_3_c4_c2_2. */
__attribute__((noipa)) static void check_streaming(unsigned long *seed)
{
    static __thread unsigned char before[32 * 256], after[32 * 256];
    long x = next(seed), mode;
    memset(after, 0, sizeof after);
    for (unsigned i = 0; i < sizeof before; i++)
        before[i] = (unsigned char)next(seed);
    register long argument __asm__("x0") = x;
    __asm__ volatile(
        "mov x20, %[from]\n mov x21, %[to]\n .inst 0xd503437f\n"                  /* smstart sm */
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
        " ldr z\\n, [x20]\n addvl x20, x20, #1\n .endr\n"
        "bl ordinary\n mrs x22, s3_3_c4_c2_2\n"
        ".irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31\n"
        " str z\\n, [x21]\n addvl x21, x21, #1\n .endr\n"
        "rdvl x23, #1\n .inst 0xd503427f\n mov %[mode], x22\n mov x24, x23"        /* smstop sm */
        : "+r"(argument), [mode] "=r"(mode) : [from] "r"(before), [to] "r"(after)
        : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x18",
        "x20", "x21", "x22", "x23", "x24", "x30", "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9",
        "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26",
        "v27", "v28", "v29", "v30", "v31", "p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8", "p9", "p10", "p11", "p12",
        "p13", "p14", "p15");
    long result = argument;
    if (!(mode & 1) || result != x + 1)
        wrong("streaming mode");
    long size = 0;
    while (size < (long)sizeof after && after[size] == before[size])
        size++;
    if (size < 32 * 16)
        wrong("a vector of streaming mode");
}

/* ordinary(x), called while the first rows of the array ZA, a vector of streaming mode each, hold values. */
__attribute__((noipa)) static void check_array(unsigned long *seed)
{
    enum { ROWS = 16 };
    static __thread unsigned char before[ROWS * 256], after[ROWS * 256];
    long x = next(seed), mode, row;
    memset(after, 0, sizeof after);
    for (unsigned i = 0; i < sizeof before; i++)
        before[i] = (unsigned char)next(seed);
    register long argument __asm__("x0") = x;
    __asm__ volatile(
        "mov x20, %[from]\n mov x21, %[to]\n .inst 0xd503457f, 0x04bf5837\n"      /* smstart za; rdsvl x23, #1 */
        "mov w12, #0\n1: .inst 0xe1000280\n add x20, x20, x23\n"                  /* ldr za[w12, 0], [x20] */
        "add w12, w12, #1\n cmp w12, %w[rows]\n b.lo 1b\n"
        "bl ordinary\n mrs x22, s3_3_c4_c2_2\n mov w12, #0\n"
        "tbz x22, #1, 3f\n2: .inst 0xe12002a0\n add x21, x21, x23\n"              /* str za[w12, 0], [x21] */
        "add w12, w12, #1\n cmp w12, %w[rows]\n b.lo 2b\n"
        "3: .inst 0xd503447f\n mov %[mode], x22\n mov %[row], x23"                 /* smstop za */
        : "+r"(argument), [mode] "=r"(mode), [row] "=r"(row) : [from] "r"(before), [to] "r"(after), [rows] "r"((long)ROWS)
        : "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "x18",
        "x20", "x21", "x22", "x23", "x30", "cc", "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18",
        "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
    long result = argument;
    if (mode != 2 || result != x + 1)
        wrong("the mode with an array");
    if (memcmp(after, before, (size_t)(ROWS * row)))
        wrong("the array");
}

static void *work(void *argument)
{
    unsigned long seed = (unsigned long)argument;
    /* A thread's first call through a gate makes system calls: of half of the threads it is one with vectors. */
    if (seed / 2 % 2)
        check(&seed);
    for (int i = 0; i < 20; i++) {
        if (streaming)
            i % 2 ? check_array(&seed) : check_streaming(&seed);
        else
            ordinary(1);
        check(&seed);
        usleep(100);
    }
    return 0;
}

static void *parent(void *argument)
{
    for (long i = (long)argument;; i += 2) {
        pthread_t t;
        if (!pthread_create(&t, 0, work, (void *)i))
            pthread_join(t, 0);
        if (i % 100 == 0)
            printf("threads %ld\n", i);
    }
    return 0;
}

int main(void)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    if (!(getauxval(AT_HWCAP) & HWCAP_SVE_BIT)) {
        puts("no SVE");
        return 0;
    }
    streaming = (getauxval(AT_HWCAP2) & HWCAP2_SME_BIT) != 0;
    printf("bytes %d\nstreaming %d\n", (int)svcntb(), streaming);
    for (long i = 0; i < 2; i++) {
        pthread_t t;
        pthread_create(&t, 0, parent, (void *)i);
    }
    for (int last = -1;; usleep(1000)) {
        int least = seen[0];
        for (int i = 1; i < FUNCTIONS; i++)
            if (seen[i] < least)
                least = seen[i];
        if (least != last)
            printf("version %d\n", last = least);
    }
}
