/* SPDX-License-Identifier: MIT
 *
 * conventions.c: what a call through a gate may change.  `probe` fills every register, pushes stack arguments and
 * calls; the version `record` writes down what arrived, spoils what it may, and returns.  Compared for each kind of
 * gate in each state that a gate can be in: settled, commit under way (before and after the store), going back,
 * retired, on a thread's first call, and without memory for counters.
 *
 * Arguments: offsets of the three "pending" routines from psu_runtime (they are not exported): plain side full.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/prctl.h>

#include "host.h"

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
    int full = kind == PSU_FULL, through_plain = kind == PSU_PLAIN && moved_stack;
    for (int i = 0; i < REGISTERS; i++) {
        if (i == RSP)
            SAME(inside.general[RSP], before.general[RSP] - 8 - (moved_stack ? 16 : 0), "rsp inside");
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

static uint64_t pending[PSU_GATE_KINDS], redirect[PSU_GATE_KINDS];
static uint64_t slot, plain_slot = 1, side_slot = 1;

static uint64_t delta; /* to the gates' copies near the program */
static struct psu_gate *gate_data(int kind, int gate)
{
    return (struct psu_gate *)(psu_runtime.pool[kind].data + delta) + gate;
}
static uint64_t gate_address(int kind, int gate)
{
    return psu_runtime.pool[kind].first + delta + (uint64_t)gate * psu_runtime.pool[kind].stride;
}

/* Everything that this thread's block and others counted is balanced. */
static void balanced(uint32_t index, uint32_t calls, const char *what)
{
    uint32_t enters;
    int32_t n = host_inside(index, &enters);
    CHECK(n == 0, "kind %d, %s: %d more enters than leaves", kind_now, what, n);
    CHECK(enters == calls, "kind %d, %s: %u enters, should be %u", kind_now, what, enters, calls);
}

struct job { int kind; uint32_t preserve; const char *mode; uint64_t target; int moved; };

static void *one_call(void *argument)
{
    struct job *j = argument;
    call_and_compare(j->kind, j->mode, j->target, j->preserve, j->moved);
    return 0;
}

static void forbid(int number)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOMEM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) && !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void *poor_calls(void *argument)
{
    struct job *j = argument;
    forbid(SYS_mmap); /* this thread only */
    for (int i = 0; i < 3; i++)
        call_and_compare(j->kind, j->mode, j->target, j->preserve, j->moved);
    return 0;
}

static void in_thread(void *(*start)(void *), struct job *j)
{
    pthread_t t;
    CHECK(pthread_create(&t, 0, start, j) == 0 && pthread_join(t, 0) == 0);
}

static void all_states(int kind, uint32_t index, uint32_t preserve)
{
    int moved = kind == PSU_PLAIN; /* the one thing a plain gate does not keep: the distance to the stack arguments */
    struct psu_gate *a = gate_data(kind, 10), *b = gate_data(kind, 11), *c = gate_data(kind, 12);
    for (struct psu_gate *g = a; g <= c; g++)
        *g = (struct psu_gate){.code = (uint64_t)record, .counter = 8 * index, .preserve = preserve, .slot =
            (uint64_t)&slot,
                               .body = (uint64_t)record};
    uint64_t at_a = gate_address(kind, 10), at_b = gate_address(kind, 11), at_c = gate_address(kind, 12);
    uint32_t calls = 0;
    uint64_t now = psu_runtime.commit_seq;

    call_and_compare(kind, "settled", at_a, preserve, moved);
    call_and_compare(kind, "settled", at_a, preserve, moved);
    balanced(index, calls += 2, "settled");
    in_thread(one_call, &(struct job){kind, preserve, "first call of a thread", at_a, moved});
    balanced(index, calls += 1, "first call");

    b->code = pending[kind];
    b->enter_txn = now;
    call_and_compare(kind, "pending, committed", at_b, preserve, moved);
    balanced(index, calls += 1, "pending, committed");
    b->enter_txn = now + 1;
    b->before = (uint64_t)record; /* the original: no gate */
    call_and_compare(kind, "pending, original", at_b, 0, 0);
    balanced(index, calls += 1, "pending, original");
    b->before = at_a;
    call_and_compare(kind, "pending, older gate", at_b, preserve, moved);
    balanced(index, calls += 2, "pending, older gate");
    in_thread(one_call, &(struct job){kind, preserve, "pending on a new thread", at_b, moved});
    balanced(index, calls += 2, "pending on a new thread");

    b->enter_txn = now;
    b->exit_txn = now + 1;
    b->after = (uint64_t)record;
    call_and_compare(kind, "leaving, not committed", at_b, preserve, moved);
    balanced(index, calls += 1, "leaving, not committed");
    b->exit_txn = now;
    if (now) {
        call_and_compare(kind, "leaving, committed", at_b, 0, 0);
        balanced(index, calls += 1, "leaving, committed");
    }

    c->code = redirect[kind];
    slot = (uint64_t)record;
    call_and_compare(kind, "retired, original", at_c, 0, 0);
    balanced(index, calls += 1, "retired, original");
    slot = at_a;
    call_and_compare(kind, "retired, newer gate", at_c, preserve, moved);
    balanced(index, calls += 2, "retired, newer gate");

    /* Without memory a side-frame gate steps aside: its call counts as never ended, and nothing is preserved. */
    int32_t stay = kind == PSU_PLAIN ? 0 : 3;
    in_thread(poor_calls, &(struct job){kind, stay ? 0 : preserve, "no memory", at_a, moved});
    uint32_t enters;
    int32_t inside_now = host_inside(index, &enters);
    CHECK(inside_now == stay, "kind %d: %d", kind, inside_now);
    CHECK(enters == (calls += 3), "kind %d: %u enters", kind, enters);
    b->exit_txn = 0;
    b->enter_txn = now + 1;
    in_thread(poor_calls, &(struct job){kind, 0, "no memory, pending", at_b, moved});
    in_thread(poor_calls, &(struct job){kind, 0, "no memory, retired", at_c, moved});
    inside_now = host_inside(index, &enters);
    CHECK(inside_now == stay * 3, "kind %d: %d", kind, inside_now);
}

int main(int argc, char **argv)
{
    CHECK(argc == 7);
    for (int k = 0; k < PSU_GATE_KINDS; k++) {
        pending[k] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[1 + k], 0, 0);
        redirect[k] = (uint64_t)&psu_runtime + (uint64_t)strtol(argv[4 + k], 0, 0);
    }
    host_agent();
    psu_runtime.commit_seq = 5;
    call_and_compare(-1, "direct", (uint64_t)record, 0, 0);
    all_states(PSU_PLAIN, 1, 0);
    all_states(PSU_SIDE, 2, 0);
    all_states(PSU_FULL, 3, 0);
    /* rcx, rsi, rdi, r8 to r11, xmm2, xmm15 */
    for (int g = 10; g < 13; g++)
        memset(gate_data(PSU_FULL, g), 0, sizeof(struct psu_gate));
    all_states(PSU_FULL, 4, 1u << RCX | 1u << RSI | 1u << RDI | 0xf00 | 1u << 18 | 1u << 31);

    /* Real commits of functions of this program make the copies: of whole pages of gates, 10 to 12 among them. */
    void *page = host_jump_to(record);
    struct host_switch s[2] = {{&plain_slot, 0, (uint64_t)page, PSU_PLAIN, 1, 0}, {&side_slot, 0, (uint64_t)page,
        PSU_SIDE, 1, 0}};
    CHECK(host_commit(7, page, s, 2, -1) == 0);
    CHECK((delta = psu_runtime.near_delta) != 0);
    CHECK(plain_slot == gate_address(PSU_PLAIN, 1) && side_slot == gate_address(PSU_SIDE, 1));
    all_states(PSU_PLAIN, 5, 0);
    all_states(PSU_SIDE, 6, 0);
    puts("ok");
    return 0;
}
