/* SPDX-License-Identifier: MIT
 *
 * code.h: machine code that the tests of the shim place, for x86-64.  The other folders have the same functions.
 */
#ifndef CODE_H
#define CODE_H

/* Stub and slot of a function `name`, whose original is `name_original`. */
#define STUB(name) \
    __asm__(".data\n.p2align 3\n.globl " #name "_slot\n" #name "_slot: .quad " #name "_original\n" \
            ".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" \
            ".cfi_startproc\nendbr64\nnotrack jmp *" #name "_slot(%rip)\n.cfi_endproc\n" \
            ".size " #name ", .-" #name "\n"); \
    extern volatile uint64_t name##_slot

#define CODE_MEMCPY_VERSION "GLIBC_2.14"
#define CODE_TRAP 0xcc
#define CODE_NEAR 1 /* gates have copies near the program */

/* Jump to `to`, all registers and flags intact; its size, at most 32. */
static inline size_t code_jump(uint8_t *at, void *to)
{
    memcpy(at, "\xf3\x0f\x1e\xfa\xff\x25\0\0\0\0", 10); /* endbr64; jmp *0(%rip) */
    memcpy(at + 10, &to, 8);
    return 18;
}

/* A function that loops for a while and returns `value`; at most 64 bytes. */
static inline void code_counting(uint8_t *at, uint32_t turns, uint64_t value)
{
    memcpy(at, "\xb9", 1); /* mov $turns, %ecx; 1: dec %ecx; jnz 1b; mov $value, %rax; ret */
    memcpy(at + 1, &turns, 4);
    memcpy(at + 5, "\xff\xc9\x75\xfc\x48\xb8", 6);
    memcpy(at + 11, &value, 8);
    at[19] = 0xc3;
}

/* A function with a stack frame of `space` bytes, a multiple of 16 and 8 more, that calls `callee`; its size, at
 * most 64. */
static inline size_t code_framed(char *at, uint32_t space, void *callee)
{
    memcpy(at, "\x48\x81\xec", 3); /* 0..6: sub $space, %rsp */
    memcpy(at + 3, &space, 4);
    memcpy(at + 7, "\xff\x15\x0b\0\0\0", 6); /* 7..12: call *callee(%rip), at 24 */
    memcpy(at + 13, "\x48\x81\xc4", 3); /* 13..19: add $space, %rsp; ret */
    memcpy(at + 16, &space, 4);
    at[20] = (char)0xc3;
    memcpy(at + 24, &callee, 8);
    return 21;
}

/* Its unwind rules: a CIE from the version on (no augmentation), and the instructions of its FDE; 128 < space < 16000.
 */
static inline void code_rules(char cie[12], char rows[16], uint32_t space)
{
    uint32_t cfa = space + 8;
    /* code 1, data -8, return address 16, CFA rsp + 8 */
    memcpy(cie, "\x01\0\x01\x78\x10\x0c\x07\x08\x90\x01\0\0", 12);
    /* advance 7; CFA offset space + 8 (uleb128 of two bytes); advance 13; CFA offset 8 */
    char r[16] = {0x47, 0x0e, (char)(0x80 | (cfa & 127)), (char)(cfa >> 7), 0x4d, 0x0e, 8};
    memcpy(rows, r, 16);
}

#endif
