/* SPDX-License-Identifier: MIT
 *
 * code.h: machine code that the tests of the shim place, for AArch64.  The other folders have the same functions.
 */
#ifndef CODE_H
#define CODE_H

/* Stub and slot of a function `name`, whose original is `name_original`. */
#define STUB(name) \
    __asm__(".data\n.p2align 3\n.globl " #name "_slot\n" #name "_slot: .quad " #name "_original\n" \
            ".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n" \
            ".cfi_startproc\nbti c\nadrp x16, " #name "_slot\nldr x16, [x16, :lo12:" #name "_slot]\nbr x16\n" \
            ".cfi_endproc\n.size " #name ", .-" #name "\n"); \
    extern volatile uint64_t name##_slot

#define CODE_MEMCPY_VERSION "GLIBC_2.17"
#define CODE_TRAP 0
#define CODE_NEAR 0 /* gates have no copies near the program */

static inline size_t code_words(void *at, const uint32_t *words, size_t size)
{
    memcpy(at, words, size);
    return size;
}

/* Jump to `to`, all registers and flags intact but x17; its size, at most 32. */
static inline size_t code_jump(uint8_t *at, void *to)
{
    const uint32_t code[] = {0xd503245f, 0x58000071, 0xd61f0220, 0xd503201f}; /* bti c; ldr x17, .+12; br x17; nop */
    size_t size = code_words(at, code, sizeof code);
    memcpy(at + size, &to, 8);
    return size + 8;
}

/* A function that loops for a while and returns `value`; at most 64 bytes.  turns < 65536 */
static inline void code_counting(uint8_t *at, uint32_t turns, uint64_t value)
{
    /* bti c; mov w9, #turns; 1: subs w9, w9, #1; b.ne 1b; ldr x0, .+8; ret */
    const uint32_t code[] = {0xd503245f, 0x52800009 | turns << 5, 0x71000529, 0x54ffffe1, 0x58000040, 0xd65f03c0};
    memcpy(at + code_words(at, code, sizeof code), &value, 8);
}

/* A function with a stack frame of `space` bytes, a multiple of 16 and 8 more, that calls `callee`; its size, at
 * most 64. */
static inline size_t code_framed(char *at, uint32_t space, void *callee)
{
    space += 8;
    const uint32_t code[] = {
        0xd503245f,               /*  0: bti c */
        0xa9bf7bfd,               /*  4: stp x29, x30, [sp, #-16]! */
        0xd2800010 | space << 5,  /*  8: mov x16, #space */
        0xcb3063ff,               /* 12: sub sp, sp, x16 */
        0x580000f1,               /* 16: ldr x17, .+28 */
        0xd63f0220,               /* 20: blr x17 */
        0xd2800010 | space << 5,  /* 24: mov x16, #space */
        0x8b3063ff,               /* 28: add sp, sp, x16 */
        0xa8c17bfd,               /* 32: ldp x29, x30, [sp], #16 */
        0xd65f03c0,               /* 36: ret */
        0,
    };
    size_t size = code_words(at, code, sizeof code);
    memcpy(at + size, &callee, 8);
    return size;
}

/* Its unwind rules: a CIE from the version on (no augmentation), and the instructions of its FDE; 128 < space < 16000.
 */
static inline void code_rules(char cie[12], char rows[16], uint32_t space)
{
    uint32_t cfa = space + 8 + 16;
    /* code 4, data -8, return address 30, CFA sp */
    memcpy(cie, "\x01\0\x04\x78\x1e\x0c\x1f\0\0\0\0\0", 12);
    /* advance 2; CFA offset 16; x29 at CFA - 16; x30 at CFA - 8; advance 2; CFA offset space + 16; advance 4; 16 */
    char r[16] = {0x42, 0x0e, 16, (char)0x9d, 2, (char)0x9e, 1, 0x42, 0x0e, (char)(0x80 | (cfa & 127)),
                  (char)(cfa >> 7), 0x44, 0x0e, 16};
    memcpy(rows, r, 16);
}

#endif
