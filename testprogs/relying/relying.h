/* What the program and its patches share. */
/* Which callee; the version of each that ran last. */
enum { GENERAL, VECTOR, WIDE, INNER, LATE, HIGH, CALLEES };
extern volatile int seen[CALLEES];
#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH24(X) EACH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)

/* SPOIL_GENERAL, SPOIL_VECTOR, SPOIL_WIDE: change every register that the ABI lets a function change.
 * EACH_GENERAL, EACH_VECTOR, EACH_WIDE: a value for each such register, or for some more. */
#ifdef __x86_64__
typedef long wide_type __attribute__((vector_size(32)));
typedef long v512 __attribute__((vector_size(64)));
#define WIDE_TARGET __attribute__((target("avx2")))
#define EACH_GENERAL EACH16
#define EACH_VECTOR EACH16
#define EACH_WIDE EACH16
#define FIRST_HERE(sum)
#define FILL(n) "pcmpeqd %%xmm" #n ", %%xmm" #n "\n"
#define FILL_WIDE(n) "vpcmpeqd %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n"
#define SPOIL_GENERAL __asm__ volatile("mov $-1, %%rax\n mov %%rax, %%rcx\n mov %%rax, %%rdx\n mov %%rax, %%rsi\n" \
    "mov %%rax, %%rdi\n mov %%rax, %%r8\n mov %%rax, %%r9\n mov %%rax, %%r10\n mov %%rax, %%r11\n cmp $1, %%rax" \
    : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc")
#define SPOILT "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
    "xmm12", "xmm13", "xmm14", "xmm15"
#define SPOIL_VECTOR __asm__ volatile(EACH16(FILL) : : : SPOILT)
#define SPOIL_WIDE __asm__ volatile(EACH16(FILL_WIDE) : : : SPOILT)
#else
typedef long wide_type __attribute__((vector_size(16)));
#define WIDE_TARGET
#define EACH_GENERAL EACH24
#define EACH_VECTOR EACH24
#define EACH_WIDE(X) EACH24(X) X(24) X(25) X(26) X(27) X(28)
/* Known behind the call only, so that no sum is made before it; x86-64's compilers do not try. */
#define FIRST_HERE(sum) { long nothing = 0; __asm__ volatile("" : "+r"(nothing)); sum = sum + nothing; }
#define FILL(n) "mov x" #n ", #-1\n"
#define FILL_WIDE(n) "movi v" #n ".2d, #-1\n"
#define SPOIL_GENERAL __asm__ volatile(EACH16(FILL) FILL(16) FILL(17) FILL(18) "cmp x0, #1" \
    : : : "x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", \
    "x17", "x18", "cc")
/* Of v8 to v15 the lower halves are to be kept, which the compiler sees to. */
#define SPOIL_WIDE __asm__ volatile(EACH24(FILL_WIDE) FILL_WIDE(24) FILL_WIDE(25) FILL_WIDE(26) FILL_WIDE(27) \
    FILL_WIDE(28) FILL_WIDE(29) FILL_WIDE(30) FILL_WIDE(31) : : : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", \
    "v9", "v10", "v11", "v12", "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", \
    "v26", "v27", "v28", "v29", "v30", "v31")
#define SPOIL_VECTOR SPOIL_WIDE
#endif
