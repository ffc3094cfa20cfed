/* SPDX-License-Identifier: MIT
 *
 * probe.h: what conventions.c looks at on x86-64: `probe` fills every register, pushes stack arguments and calls; the
 * version `record` writes down what arrived, spoils what it may, and returns.
 */
#include <stddef.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15, REGISTERS };
struct state {
    uint64_t general[REGISTERS];
    uint64_t flags, stack[4], unused[3];
    uint8_t vector[16][16];
};
static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10",
    "r11", "r12",
                                    "r13", "r14", "r15"};
#define AT_FLAGS "128"
#define AT_STACK "136"
#define AT_VECTOR "192"
_Static_assert(offsetof(struct state, flags) == 128 && offsetof(struct state, vector) == 192,
    "offsets in the assembly");

/* Thread-local memory cannot be reached without a register, so one global set serves: calls are made one at a time. */
struct state before, inside, planned, after;
void *probe_target;
uint64_t probe_saved[8];

#define EACH_GENERAL(X) \
    X(rax, 0) X(rcx, 8) X(rdx, 16) X(rbx, 24) X(rsp, 32) X(rbp, 40) X(rsi, 48) X(rdi, 56) X(r8, 64) \
    X(r9, 72) X(r10, 80) \
    X(r11, 88) X(r12, 96) X(r13, 104) X(r14, 112) X(r15, 120)
#define EACH_BUT_RSP(X) \
    X(rax, 0) X(rcx, 8) X(rdx, 16) X(rbx, 24) X(rbp, 40) X(rsi, 48) X(rdi, 56) X(r8, 64) X(r9, 72) \
    X(r10, 80) X(r11, 88) \
    X(r12, 96) X(r13, 104) X(r14, 112) X(r15, 120)
#define VOLATILE(X) \
    X(rax, 0) X(rcx, 8) X(rdx, 16) X(rsi, 48) X(rdi, 56) X(r8, 64) X(r9, 72) X(r10, 80) X(r11, 88)
#define EACH_VECTOR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define STORE(set) "movq %rax, " set "(%rip)\n"

void probe(void);
void record(void);
#define OUT_BEFORE(r, o) "movq %" #r ", before+" #o "(%rip)\n"
#define OUT_INSIDE(r, o) "movq %" #r ", inside+" #o "(%rip)\n"
#define OUT_AFTER(r, o) "movq %" #r ", after+" #o "(%rip)\n"
#define IN_BEFORE(r, o) "movq before+" #o "(%rip), %" #r "\n"
#define IN_PLANNED(r, o) "movq planned+" #o "(%rip), %" #r "\n"
#define V_IN_BEFORE(n) "movups before+" AT_VECTOR "+16*" #n "(%rip), %xmm" #n "\n"
#define V_OUT_INSIDE(n) "movups %xmm" #n ", inside+" AT_VECTOR "+16*" #n "(%rip)\n"
#define V_IN_PLANNED(n) "movups planned+" AT_VECTOR "+16*" #n "(%rip), %xmm" #n "\n"
#define V_OUT_AFTER(n) "movups %xmm" #n ", after+" AT_VECTOR "+16*" #n "(%rip)\n"
#define OUT_FLAGS(set) "pushfq\npopq " set "+" AT_FLAGS "(%rip)\n"

__asm__(".text\n.globl probe\n.type probe,@function\nprobe:\n"
        "push %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\nsub $40, %rsp\n"
        "movq before+" AT_STACK "+0(%rip), %rax\nmovq %rax, 0(%rsp)\n"
        "movq before+" AT_STACK "+8(%rip), %rax\nmovq %rax, 8(%rsp)\n"
        "movq before+" AT_STACK "+16(%rip), %rax\nmovq %rax, 16(%rsp)\n"
        "movq before+" AT_STACK "+24(%rip), %rax\nmovq %rax, 24(%rsp)\n"
        "movq %rsp, before+32(%rip)\n"
        EACH_VECTOR(V_IN_BEFORE)
        "pushq before+" AT_FLAGS "(%rip)\n popfq\n"
        EACH_BUT_RSP(IN_BEFORE)
        "call *probe_target(%rip)\n"
        EACH_GENERAL(OUT_AFTER)
        OUT_FLAGS("after") "cld\n"
        EACH_VECTOR(V_OUT_AFTER)
        "movq 0(%rsp), %rax\nmovq %rax, after+" AT_STACK "+0(%rip)\n"
        "movq 8(%rsp), %rax\nmovq %rax, after+" AT_STACK "+8(%rip)\n"
        "movq 16(%rsp), %rax\nmovq %rax, after+" AT_STACK "+16(%rip)\n"
        "movq 24(%rsp), %rax\nmovq %rax, after+" AT_STACK "+24(%rip)\n"
        "add $40, %rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n.size probe,.-probe\n"

        ".globl record\n.type record,@function\nrecord:\nendbr64\n"
        EACH_GENERAL(OUT_INSIDE)
        OUT_FLAGS("inside") "cld\n"
        EACH_VECTOR(V_OUT_INSIDE)
        "movq 8(%rsp), %rax\nmovq %rax, inside+" AT_STACK "+0(%rip)\n"
        "movq 16(%rsp), %rax\nmovq %rax, inside+" AT_STACK "+8(%rip)\n"
        "movq 24(%rsp), %rax\nmovq %rax, inside+" AT_STACK "+16(%rip)\n"
        "movq 32(%rsp), %rax\nmovq %rax, inside+" AT_STACK "+24(%rip)\n"
        EACH_VECTOR(V_IN_PLANNED)
        "pushq planned+" AT_FLAGS "(%rip)\n popfq\n"
        VOLATILE(IN_PLANNED)
        "ret\n.size record,.-record\n");

#define ARITHMETIC_FLAGS 0x8d5u /* carry, parity, adjust, zero, sign, overflow */

static void fill(struct state *s, uint64_t seed)
{
    uint64_t *words = (uint64_t *)s;
    for (size_t i = 0; i < sizeof *s / 8; i++)
        words[i] = seed + i * 0x0101010101010101u;
    s->flags = 0x202 | (seed & 1 ? 0x8d5 : 0x41);
}

static const char *mode_name;
static int kind_now;
#define SAME(a, b, what) \
    CHECK((a) == (b), "kind %d, %s: %s: %lx, should be %lx", kind_now, mode_name, what, (unsigned long)(a), \
          (unsigned long)(b))

static void call_and_compare(int kind, const char *mode, uint64_t target, uint32_t preserve, int moved_stack)
{
    static uint64_t seed = 0x1122334455667788;
    kind_now = kind;
    mode_name = mode;
    fill(&before, seed++);
    fill(&planned, seed++);
    memset(&inside, 0, sizeof inside);
    memset(&after, 0, sizeof after);
    probe_target = (void *)target;
    probe();
    int full = kind == PSU_FULL, through_plain = kind == PSU_PLAIN && moved_stack == 1;
    for (int i = 0; i < REGISTERS; i++) {
        if (i == RSP)
            SAME(inside.general[RSP], before.general[RSP] - 8 - (uint64_t)(moved_stack == 1 ? 16 : moved_stack), "rsp inside");
        else if (i != RBP && (i != R11 || (kind != PSU_SIDE && !through_plain))) /* an undone gate changed nothing */
            SAME(inside.general[i], before.general[i], names[i]);
        int kept = i == RBX || i == RSP || i == RBP || i >= R12 || (preserve >> i & 1) || (through_plain && i == R11);
        /* at return, to a caller that keeps to the psABI */
        int dead = kind == PSU_SIDE && (i == R11 || i == RCX || i == RSI);
        if (kept || !dead)
            SAME(after.general[i], kept ? before.general[i] : planned.general[i], names[i]);
    }
    if (full) {
        SAME(inside.flags & ARITHMETIC_FLAGS, before.flags & ARITHMETIC_FLAGS, "flags inside");
        SAME(after.flags & ARITHMETIC_FLAGS, planned.flags & ARITHMETIC_FLAGS, "flags after");
    }
    for (int i = 0; i < 16; i++) {
        CHECK(!memcmp(inside.vector[i], before.vector[i], 16), "kind %d, %s: xmm%d inside", kind, mode, i);
        int kept = preserve >> (16 + i) & 1;
        CHECK(!memcmp(after.vector[i], kept ? before.vector[i] : planned.vector[i], 16),
            "kind %d, %s: xmm%d after", kind,
              mode, i);
    }
    for (int i = 0; i < 4; i++) {
        if (!moved_stack)
            SAME(inside.stack[i], before.stack[i], "stack argument");
        SAME(after.stack[i], before.stack[i], "stack argument after");
    }
}

/* What a PSU_FULL gate is to restore: rcx, rsi, rdi, r8 to r11, xmm2, xmm15 */
#define PROBE_PRESERVE (1u << RCX | 1u << RSI | 1u << RDI | 0xf00 | 1u << 18 | 1u << 31)

/* How far the version's stack is moved when registers are kept there; of struct psu_save. */
#define STACKED_BYTES(preserve) (128 + 16 + ((preserve) >> 16 ? 1024 : 0))
#define SAVE_SIZE (64 + 16 * 8 + 16 * 64)
