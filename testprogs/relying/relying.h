/* What the program and its patches share. */
typedef long v256 __attribute__((vector_size(32)));
typedef long v512 __attribute__((vector_size(64)));
/* Which callee; the version of each that ran last. */
enum { GENERAL, VECTOR, WIDE, INNER, LATE, HIGH, CALLEES };
extern volatile int seen[CALLEES];
#define EACH16(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define EACH24(X) EACH16(X) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)
/* Change every register that the ABI lets a function change. */
#define FILL(n) "pcmpeqd %%xmm" #n ", %%xmm" #n "\n"
#define FILL_WIDE(n) "vpcmpeqd %%ymm" #n ", %%ymm" #n ", %%ymm" #n "\n"
#define SPOIL_GENERAL __asm__ volatile("mov $-1, %%rax\n mov %%rax, %%rcx\n mov %%rax, %%rdx\n mov %%rax, %%rsi\n" \
    "mov %%rax, %%rdi\n mov %%rax, %%r8\n mov %%rax, %%r9\n mov %%rax, %%r10\n mov %%rax, %%r11\n cmp $1, %%rax" \
    : : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "cc")
#define SPOILT "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
    "xmm12", "xmm13", "xmm14", "xmm15"
#define SPOIL_VECTOR __asm__ volatile(EACH16(FILL) : : : SPOILT)
