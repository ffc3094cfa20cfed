/* SPDX-License-Identifier: MIT
 *
 * pools.c: what gates need at run time: their data, what the processor can do, and cache maintenance for new code.
 *
 * There are no copies of gates near the program, as x86-64 has them: a copy buys nothing that could be measured here,
 * and on this architecture no gate is out of the reach of a stub, which jumps through a register.
 */
#include "internal.h"

enum { AT_HWCAP = 16, AT_HWCAP2 = 26, HWCAP_ATOMICS = 1 << 8, HWCAP_SVE = 1 << 22, HWCAP2_SME = 1 << 23 };
/* CTR_EL0: lines of 4 << n bytes; IDC: data need not be cleaned; DIC: instructions need not be invalidated. */
#define CTR_I_LINE(ctr) (4ull << ((ctr) & 15))
#define CTR_D_LINE(ctr) (4ull << ((ctr) >> 16 & 15))
#define CTR_IDC(ctr) ((ctr) >> 28 & 1)
#define CTR_DIC(ctr) ((ctr) >> 29 & 1)

uint8_t psu_gate_area[AREA_END] __attribute__((aligned(4096)));
uint64_t psu_self_flags;
uint32_t psu_vectors; /* VECTORS_ bits: what a system call loses, see state.h */

/* Of the C library; glibc and musl have it on every system with this architecture.  Without it: the slow way. */
extern unsigned long getauxval(unsigned long) __attribute__((weak, visibility("default")));

void psu_gates_start(void)
{
    if (!getauxval)
        return;
    uint64_t first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    psu_self_flags = first & HWCAP_ATOMICS ? 1ull << SELF_LSE_BIT : 0;
    psu_vectors = (first & HWCAP_SVE ? VECTORS_SVE : 0) | (second & HWCAP2_SME ? VECTORS_SME : 0);
}

void psu_gate_prepare(uint32_t kind, uint32_t number, uint64_t slot) { (void)kind, (void)number, (void)slot; }

struct psu_gate *psu_gate_data(uint32_t kind, uint32_t number, uint64_t slot)
{
    (void)slot;
    return &psu_kinds[kind].data[number];
}

/* Arm ARM B2.4.4 (concurrent modification and execution of instructions) and the sequence of D7.5: each line to the
 * point of unification, DSB; then out of the instruction caches of all cores in the inner shareable domain, DSB.
 * psu-bin wrote the bytes through another mapping (process_vm_writev), which is no matter: data caches are physically
 * tagged.
 *
 * No core can hold an older prefetched instruction of these addresses: they were not executable from the time they were
 * mapped until after this (mprotect comes next, commands.c), and instruction fetch, speculative or not, needs an
 * executable mapping.  The barrier over all cores after that is what the architecture asks for in return. */
void psu_code_written(uint64_t address, uint64_t size)
{
    uint64_t ctr, end = address + size;
    __asm__("mrs %0, ctr_el0" : "=r"(ctr));
    if (!CTR_IDC(ctr))
        for (uint64_t at = address & -CTR_D_LINE(ctr); at < end; at += CTR_D_LINE(ctr))
            __asm__ volatile("dc cvau, %0" : : "r"(at) : "memory");
    __asm__ volatile("dsb ish" : : : "memory");
    if (!CTR_DIC(ctr))
        for (uint64_t at = address & -CTR_I_LINE(ctr); at < end; at += CTR_I_LINE(ctr))
            __asm__ volatile("ic ivau, %0" : : "r"(at) : "memory");
    __asm__ volatile("dsb ish\n\tisb" : : : "memory");
}
