/* SPDX-License-Identifier: MIT
 *
 * borrow.c: a thread that psu-bin sends through psu_borrow comes back with every register, the flags, the vector and
 * x87 state and its red zone as they were, and the process has an agent.  psu-bin's part (storing the program counter
 * below the red zone, setting rsp and rip) is done by the assembly here.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>

#include "host.h"

enum { WORDS = 16, RED = 16 };
struct state {
    uint64_t general[WORDS], flags, red_zone[RED];
    uint64_t unused[3];
    uint8_t vector[16][32];
    double x87;
    uint32_t mxcsr;
    uint16_t control;
};
_Static_assert(offsetof(struct state, red_zone) == 136 && offsetof(struct state, vector) == 288
               && offsetof(struct state, x87) == 800, "offsets in the assembly");
struct state in, out;
uint64_t borrow_entry, saved_rsp;

#define EACH(X) X(rax, 0) X(rcx, 8) X(rdx, 16) X(rbx, 24) X(rbp, 40) X(rsi, 48) X(rdi, 56) X(r8, 64) \
    X(r9, 72) X(r10, 80) \
    X(r11, 88) X(r12, 96) X(r13, 104) X(r14, 112) X(r15, 120)
#define LOAD(r, o) "movq in+" #o "(%rip), %" #r "\n"
#define KEEP(r, o) "movq %" #r ", out+" #o "(%rip)\n"
#define EACH_VECTOR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define V_LOAD(n) "vmovdqu in+288+32*" #n "(%rip), %ymm" #n "\n"
#define V_KEEP(n) "vmovdqu %ymm" #n ", out+288+32*" #n "(%rip)\n"
#define EACH_RED(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define R_LOAD(n) "movq in+136+8*" #n "(%rip), %rax\nmovq %rax, -8-8*" #n "(%rsp)\n"
#define R_KEEP(n) "movq -8-8*" #n "(%rsp), %rax\nmovq %rax, out+136+8*" #n "(%rip)\n"

void probe(void);
__asm__(".text\n.globl probe\nprobe:\npush %rbx\npush %rbp\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "movq %rsp, saved_rsp(%rip)\nsub $512, %rsp\n"
        EACH_RED(R_LOAD)
        "fninit\nfldcw in+812(%rip)\nfldl in+800(%rip)\nldmxcsr in+808(%rip)\n"
        "movq %rsp, in+32(%rip)\nlea 1f(%rip), %rax\nmovq %rax, -136(%rsp)\n"
        "movq in+128(%rip), %rax\nmovq %rax, -144(%rsp)\nlea -144(%rsp), %rsp\npopfq\nlea 136(%rsp), %rsp\n"
        EACH_VECTOR(V_LOAD)
        EACH(LOAD)
        "lea -136(%rsp), %rsp\njmp *borrow_entry(%rip)\n"
        "1: endbr64\n"
        KEEP(rsp, 32) EACH(KEEP)
        "lea -128(%rsp), %rsp\npushfq\npopq out+128(%rip)\nlea 128(%rsp), %rsp\ncld\n"
        EACH_RED(R_KEEP)
        EACH_VECTOR(V_KEEP)
        "vzeroupper\nfstcw out+812(%rip)\nfstpl out+800(%rip)\nstmxcsr out+808(%rip)\nfninit\n"
        "movq saved_rsp(%rip), %rsp\npop %r15\npop %r14\npop %r13\npop %r12\npop %rbp\npop %rbx\nret\n");

int main(void)
{
    if (!__builtin_cpu_supports("avx"))
        return 77;
    borrow_entry = psu_runtime.borrow;
    for (int round = 0; round < 2; round++) {
        uint8_t *bytes = (uint8_t *)&in;
        for (size_t i = 0; i < sizeof in; i++)
            bytes[i] = (uint8_t)(i * 37 + 11 + (size_t)round);
        memset(&out, 0, sizeof out);
        memset(in.unused, 0, sizeof in.unused);
        in.flags = round ? 0x246 : 0xad7; /* with the direction flag set in the first */
        in.flags |= 0x200;
        in.mxcsr = 0x9fc0;
        in.control = 0x27f;
        in.x87 = 3.25;
        probe();
        for (int i = 0; i < WORDS; i++)
            CHECK(in.general[i] == out.general[i], "register %d: %lx, was %lx", i, out.general[i], in.general[i]);
        CHECK(in.flags == out.flags, "flags %lx, were %lx", out.flags, in.flags);
        CHECK(!memcmp(in.red_zone, out.red_zone, sizeof in.red_zone), "red zone");
        CHECK(!memcmp(in.vector, out.vector, sizeof in.vector), "vector registers");
        CHECK(in.x87 == out.x87 && in.control == out.control && in.mxcsr == out.mxcsr, "x87 %f %x %x", out.x87,
            out.control,
              out.mxcsr);
        host_agent();
        CHECK(psu_runtime.agent_pid == (uint32_t)getpid() && psu_runtime.agent_error == 0);
    }
    puts("ok");
    return 0;
}
