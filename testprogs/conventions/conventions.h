/* What all parts of this program and its patches share: names for types, values made and hashed byte by byte. */
#ifndef CONVENTIONS_H
#define CONVENTIONS_H
#include <stdarg.h>

typedef unsigned long u64;
typedef const void *p_t;
typedef __int128 i128;
#ifdef __x86_64__
typedef __float128 f128;
#else
typedef long double f128;
#endif
typedef _Complex float cfloat;
typedef _Complex double cdouble;
typedef _Complex long double clongdouble;
typedef int v128 __attribute__((vector_size(16)));
typedef double v128d __attribute__((vector_size(16)));
typedef int v256 __attribute__((vector_size(32)));
typedef double v256d __attribute__((vector_size(32)));
typedef float v512 __attribute__((vector_size(64)));
typedef long v512i __attribute__((vector_size(64)));

/* Conventions for single functions. */
#ifdef __x86_64__
#define MS_ABI __attribute__((ms_abi))
#else
#define MS_ABI __attribute__((aarch64_vector_pcs))
#endif
#if defined __clang__ && defined __x86_64__
#define REGCALL __attribute__((regcall))
#else
#define REGCALL
#endif
#ifdef __clang__
#define PRESERVE_MOST __attribute__((preserve_most))
#else
#define PRESERVE_MOST
#endif

/* The version that last ran, of each function: generated ones first, then enum special. */
enum special { VARIADIC = 900, VARIADIC_DOUBLE, VALIST, NAKED_SUM, NAKED_PAIR, NAKED_FLAGS, BARE_PAIR, BARE_VECTOR,
               NAKED_R11, NAKED_STACK, NESTED_DIRECT, NESTED_POINTER, NESTED_MANY, SEEN };
extern volatile int seen[SEEN];

u64 next(u64 *seed);
u64 mix(u64 h, const void *p, unsigned long n);
void random_bytes(void *p, unsigned long n, u64 *seed);
static inline void random_bool(void *p, u64 *seed) { *(_Bool *)p = next(seed) >> 13 & 1; }
#endif
