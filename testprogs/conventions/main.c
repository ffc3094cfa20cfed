/* All calling conventions: threads call functions of every signature without pause, and check every bit of every
 * argument and result (generate.py), while versions come and go.  Beside the generated ones: variadic functions,
 * functions with a static chain, and assembly that takes and returns values in registers of its own choice (special.inc).
 *
 * Proves: gates and stubs change nothing that any of these conventions uses.
 * Usage: main THREADS.  Every other thread pauses after each round: updates need a processor, too.  Prints "calling N"
 * (functions that this processor can run) at first; "version N" when every function has run in version N or a later
 * one; "rounds N" now and then; "ERROR name" when a bit was lost. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define VALUES
#include "generated.h"

struct caller { void (*call)(u64 *seed); const char *name, *needs; };
volatile int seen[SEEN];
static long rounds;

u64 next(u64 *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return *seed ^ *seed >> 29;
}
u64 mix(u64 h, const void *p, unsigned long n)
{
    const unsigned char *c = p;
    for (unsigned long i = 0; i < n; i++)
        h = (h ^ c[i]) * 0x100000001b3u ^ h >> 47;
    return h;
}
void random_bytes(void *p, unsigned long n, u64 *seed)
{
    for (unsigned long i = 0; i < n; i++)
        ((unsigned char *)p)[i] = next(seed) >> 13;
}
static void wrong(const char *name) { printf("ERROR %s\n", name); }
#include "callers.inc"

u64 valist(u64 h, const char *shape, va_list *ap);
u64 variadic(const char *shape, ...);
double variadic_double(double first, ...);
u64 nested(u64 a, u64 b);

static void call_variadic(u64 *seed)
{
#define MAKE(type, name) type name; make_##type(&name, next(seed))
    MAKE(int, i); MAKE(long, l); MAKE(double, d); MAKE(i128, q); MAKE(s_long_double, s); MAKE(s_big, S);
    MAKE(s_x87_int, x); MAKE(s_float3, f); MAKE(cdouble, z); MAKE(v128, v);
    long double L;
    make_long_double(&L, next(seed));
#ifdef __clang__ /* before 18 it takes such arguments from the wrong stack words */
#define LATE "l"
    long late = l;
#define hash_late hash_long
#else
#define LATE "q"
    i128 late = q;
#define hash_late hash_i128
#endif
    u64 h = 0;
    h = hash_int(h, &i); h = hash_double(h, &d);
    if (variadic("id", i, d) != h)
        wrong("variadic, few");
    h = 0;
    h = hash_i128(h, &q); h = hash_s_long_double(h, &s); h = hash_long_double(h, &L); h = hash_double(h, &d);
    h = hash_s_big(h, &S); h = hash_v128(h, &v); h = hash_long(h, &l); h = hash_late(h, &late);
    h = hash_s_x87_int(h, &x);
    h = hash_s_float3(h, &f); h = hash_cdouble(h, &z); h = hash_s_long_double(h, &s); h = hash_s_float3(h, &f);
    h = hash_double(h, &d); h = hash_double(h, &d); h = hash_v128(h, &v); h = hash_int(h, &i);
    if (variadic("qsLdSvl" LATE "xfzsfddvi", q, s, L, d, S, v, l, late, x, f, z, s, f, d, d, v, i) != h)
        wrong("variadic, all");
    if (variadic_double(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 0.0) != 2036.0)
        wrong("variadic_double");
}

#ifdef __x86_64__
static void call_assembly(u64 *seed)
{
    u64 a = next(seed), b = next(seed), c = next(seed), d = next(seed), e = next(seed);
    {
        register u64 r10 __asm__("r10") = a, r11 __asm__("r11") = b, rax __asm__("rax") = c, rcx __asm__("rcx");
        __asm__ volatile("call naked_sum" : "=r"(rcx), "+r"(r11), "+r"(r10), "+r"(rax) : : "cc", "memory");
        u64 sum = rcx, difference = r11, same = r10, also = rax;
        if (sum != a + 2 * b || difference != c - a || same != a || also != c)
            wrong("naked_sum");
    }
    {
        register u64 rdi __asm__("rdi") = a, rsi __asm__("rsi") = b, rax __asm__("rax"), rdx __asm__("rdx"),
            rcx __asm__("rcx"), r8 __asm__("r8"), r9 __asm__("r9");
        __asm__ volatile("call naked_pair" : "+r"(rdi), "+r"(rsi), "=r"(rax), "=r"(rdx), "=r"(rcx), "=r"(r8), "=r"(r9)
                         : : "r10", "r11", "cc", "memory");
        u64 o[] = {rax, rdx, rcx, r8, r9, rsi};
        if (o[0] != a + 1 || o[1] != b + 2 || o[2] != a + 3 || o[3] != a + b + 4 || o[4] != b + 5 || o[5] != a + 6)
            wrong("naked_pair");
    }
    {
        register u64 rdi __asm__("rdi") = a, r11 __asm__("r11");
        __asm__ volatile("call naked_r11" : "=r"(r11) : "r"(rdi) : "cc", "memory");
        if (r11 != 2 * a + 1)
            wrong("naked_r11");
    }
    {
        register u64 rcx __asm__("rcx"), rsi __asm__("rsi");
        __asm__ volatile("push %2\n call naked_stack\n pop %2" : "=r"(rcx), "=r"(rsi) : "b"(e) : "r11", "cc", "memory");
        u64 o[] = {rcx, rsi};
        if (o[0] != e + 1 || o[1] != e + 2)
            wrong("naked_stack");
    }
    for (int carry = 0; carry < 2; carry++) {
        unsigned char out;
        __asm__ volatile("bt $0, %1\n call naked_flags\n setc %0" : "=r"(out) : "r"(carry) : "cc", "memory",
                         "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11");
        if (out != !carry)
            wrong("naked_flags");
    }
    {
        register u64 r8 __asm__("r8") = a, r9 __asm__("r9") = b, r10 __asm__("r10") = c, r11 __asm__("r11") = d;
        __asm__ volatile("push %4\n call bare_pair\n pop %4" : "+r"(r8), "+r"(r9), "+r"(r10), "+r"(r11)
                         : "b"(e) : "cc", "memory");
        u64 o[] = {r8, r9, r10, r11};
        if (o[0] != d + e || o[1] != c || o[2] != b || o[3] != a)
            wrong("bare_pair");
    }
    {
        register v128 x14 __asm__("xmm14") = {(int)a, (int)b, (int)c, (int)d}, x15 __asm__("xmm15") = {(int)e, 2, 3, 4};
        __asm__ volatile("call bare_vector" : "+x"(x14), "+x"(x15) : : "xmm0", "cc", "memory");
        v128 p = x14, q = x15;
        if (p[0] != (int)e || p[1] != 2 || p[2] != 3 || p[3] != 4 || q[0] != (int)a || q[1] != (int)b || q[2] != (int)c
            || q[3] != (int)d)
            wrong("bare_vector");
    }
}
#else
static void call_assembly(u64 *seed)
{
    u64 a = next(seed), b = next(seed), c = next(seed), d = next(seed), e = next(seed);
#define X(n) register u64 x##n __asm__("x" #n)
#define CHANGED "x16", "x17", "x30", "cc", "memory"
    {
        X(9) = a; X(10) = b; X(13) = c; X(11); X(12);
        __asm__ volatile("bl naked_sum" : "=r"(x11), "=r"(x12), "+r"(x9), "+r"(x10), "+r"(x13) : : CHANGED);
        u64 o[] = {x11, x12, x9, x10, x13};
        if (o[0] != a + 2 * b || o[1] != c - a || o[2] != a || o[3] != b || o[4] != c)
            wrong("naked_sum");
    }
    {
        X(0) = a; X(1) = b; X(2); X(3); X(4); X(5);
        __asm__ volatile("bl naked_pair" : "+r"(x0), "+r"(x1), "=r"(x2), "=r"(x3), "=r"(x4), "=r"(x5)
                         : : "x9", "x10", CHANGED);
        u64 o[] = {x0, x1, x2, x3, x4, x5};
        if (o[0] != a + 1 || o[1] != b + 2 || o[2] != a + 3 || o[3] != a + b + 4 || o[4] != b + 5 || o[5] != a + 6)
            wrong("naked_pair");
    }
    {
        X(0) = a; X(9);
        __asm__ volatile("bl naked_r11" : "=r"(x9), "+r"(x0) : : CHANGED);
        if (x9 != 2 * a + 1)
            wrong("naked_r11");
    }
    {
        X(9); X(10); X(19) = e;
        __asm__ volatile("str %2, [sp, #-16]!\n bl naked_stack\n add sp, sp, #16" : "=r"(x9), "=r"(x10) : "r"(x19) : CHANGED);
        u64 o[] = {x9, x10};
        if (o[0] != e + 1 || o[1] != e + 2)
            wrong("naked_stack");
    }
    for (u64 carry = 0; carry < 2; carry++) {
        u64 out;
        __asm__ volatile("cmp %1, #1\n bl naked_flags\n cset %0, cs" : "=r"(out) : "r"(carry)
                         : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", CHANGED);
        if (out != !carry)
            wrong("naked_flags");
    }
    {
        X(8) = a; X(9) = b; X(10) = c; X(11) = d; X(19) = e;
        __asm__ volatile("str %4, [sp, #-16]!\n bl bare_pair\n add sp, sp, #16" : "+r"(x8), "+r"(x9), "+r"(x10), "+r"(x11)
                         : "r"(x19) : CHANGED);
        u64 o[] = {x8, x9, x10, x11};
        if (o[0] != d + e || o[1] != c || o[2] != b || o[3] != a)
            wrong("bare_pair");
    }
    {
        register v128 v30 __asm__("v30") = {(int)a, (int)b, (int)c, (int)d}, v31 __asm__("v31") = {(int)e, 2, 3, 4};
        __asm__ volatile("bl bare_vector" : "+w"(v30), "+w"(v31) : : "v0", CHANGED);
        v128 p = v30, q = v31;
        if (p[0] != (int)e || p[1] != 2 || p[2] != 3 || p[3] != 4 || q[0] != (int)a || q[1] != (int)b || q[2] != (int)c
            || q[3] != (int)d)
            wrong("bare_vector");
    }
}
#endif

static void call_nested(u64 *seed)
{
#ifndef __clang__
    u64 a = next(seed), b = next(seed);
    s_big big;
    make_s_big(&big, b);
    u64 total = a + a, h = total ^ b;
    total += 3 * b;
    h = h * 31 + (total - a);
    total += a + 2 * b + 3 + 8 + 15 + 24 + 35;
    h = h * 31 + (hash_s_big(total, &big) + 6);
    if (nested(a, b) != h * 31 + total)
        wrong("nested");
#endif
}

static const struct caller special[] = {
    {call_variadic, "variadic", ""}, {call_assembly, "assembly", ""}, {call_nested, "nested", ""}};
static const struct caller *able[GENERATED + 3];
static int ables, watched[SEEN], watches;

static int possible(const char *needs)
{
#ifdef __x86_64__
    __builtin_cpu_init();
    return !*needs || (!strcmp(needs, "avx2") ? __builtin_cpu_supports("avx2") : __builtin_cpu_supports("avx512f"));
#else
    return !*needs;
#endif
}

static void *work(void *argument)
{
    for (u64 seed = (u64)argument;; usleep((u64)argument % 2 * 500)) {
        for (int i = 0; i < ables; i++)
            able[i]->call(&seed);
        __atomic_add_fetch(&rounds, 1, __ATOMIC_RELAXED);
    }
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < GENERATED; i++)
        if (possible(generated[i].needs)) {
            able[ables++] = &generated[i];
            watched[watches++] = i;
        }
    for (int i = 0; i < 3; i++)
        able[ables++] = &special[i];
    for (int i = VARIADIC; i < SEEN; i++)
        if (i < NESTED_DIRECT || !__builtin_strstr(__VERSION__, "lang"))
            watched[watches++] = i;
    printf("calling %d\n", watches);
    for (long i = 0; i < (argc > 1 ? atol(argv[1]) : 2); i++) {
        pthread_t t;
        pthread_create(&t, 0, work, (void *)(i + 1));
    }
    for (int last = -1, least;; usleep(1000)) {
        least = seen[watched[0]];
        for (int i = 1; i < watches; i++)
            if (seen[watched[i]] < least)
                least = seen[watched[i]];
        if (least != last)
            printf("version %d\n", last = least);
        static long told;
        if (__atomic_load_n(&rounds, __ATOMIC_RELAXED) > told + 200)
            printf("rounds %ld\n", told = rounds);
    }
}
