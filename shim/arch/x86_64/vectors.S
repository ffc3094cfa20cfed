/* SPDX-License-Identifier: MIT
 *
 * vectors.S: save and restore those of the sixteen vector registers that callers keep values in over a call (-fipa-ra),
 * at the width that processor and kernel have switched on.  Used by PSU_FULL gates.  Nothing but the restored registers
 * changes; the rest of the shim never touches vector registers.
 */
#include <cet.h>

        .text

.macro ALL op, reg, each
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        \each   \op, %\reg\n, \n
        .endr
.endm

.macro SAVE_ONE op, reg, n
        bt      $\n, %esi
        jnc     1f
        \op     \reg, 64 * \n(%rdi)
1:
.endm

.macro RESTORE_ONE op, reg, n
        bt      $\n, %esi
        jnc     1f
        \op     64 * \n(%rdi), \reg
1:
.endm

/* void psu_vectors_save_at(uint8_t to[16][64], uint32_t which, uint32_t level)
 * which: bit n: register n; level 0: xmm, 1: ymm, 2: zmm */
        .globl  psu_vectors_save_at
        .hidden psu_vectors_save_at
        .type   psu_vectors_save_at, @function
psu_vectors_save_at:
        .cfi_startproc
        cmp     $1, %edx
        je      2f
        ja      3f
        ALL     movups, xmm, SAVE_ONE
        ret
2:      ALL     vmovups, ymm, SAVE_ONE
        ret
3:      ALL     vmovups, zmm, SAVE_ONE
        ret
        .cfi_endproc
        .size   psu_vectors_save_at, . - psu_vectors_save_at

/* void psu_vectors_restore_at(const uint8_t from[16][64], uint32_t which, uint32_t level) */
        .globl  psu_vectors_restore_at
        .hidden psu_vectors_restore_at
        .type   psu_vectors_restore_at, @function
psu_vectors_restore_at:
        .cfi_startproc
        cmp     $1, %edx
        je      2f
        ja      3f
        ALL     movups, xmm, RESTORE_ONE
        ret
2:      ALL     vmovups, ymm, RESTORE_ONE
        ret
3:      ALL     vmovups, zmm, RESTORE_ONE
        ret
        .cfi_endproc
        .size   psu_vectors_restore_at, . - psu_vectors_restore_at

        .section .note.GNU-stack, "", @progbits
