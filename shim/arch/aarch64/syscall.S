/* SPDX-License-Identifier: MIT
 *
 * syscall.S: a system call in the middle of somebody's function call: nothing but its result register changes, but for
 * what the AAPCS64 makes volatile among the general registers.
 */
#include "gates.h"
#include "state.h"

        .text

/* long psu_syscall6(long nr, long a, long b, long c, long d, long e, long f) */
        .globl  psu_syscall6
        .hidden psu_syscall6
        .type   psu_syscall6, @function
psu_syscall6:
        .cfi_startproc
        bti     c
        mov     x8, x0
        mov     x0, x1
        mov     x1, x2
        mov     x2, x3
        mov     x3, x4
        mov     x4, x5
        mov     x5, x6
        adrp    x9, psu_vectors
        ldr     w9, [x9, :lo12:psu_vectors]
        cbnz    w9, 1f
        svc     #0
        ret
1:      stp     x29, x30, [sp, #-32]!
        .cfi_def_cfa_offset 32
        .cfi_offset x29, -32
        .cfi_offset x30, -24
        stp     x19, x20, [sp, #16]
        .cfi_offset x19, -16
        .cfi_offset x20, -8
        mov     x29, sp
        .cfi_def_cfa_register x29
        GET_STREAMING x19, w9
        mrs     x20, fpsr                       // changing the mode sets it
        orr     x10, x9, x19
        tbz     w10, #0, 3f                     // SME alone, and not in streaming mode: there are no such registers
        SAVE_SVE x19
        svc     #0
        cbz     x19, 2f
        SMSTART_SM
2:      RESTORE_SVE x19
        msr     fpsr, x20
        mov     sp, x29
        b       4f
3:      svc     #0
4:
        .cfi_def_cfa_register sp
        ldp     x19, x20, [sp, #16]
        .cfi_restore x19
        .cfi_restore x20
        ldp     x29, x30, [sp], #32
        .cfi_restore x29
        .cfi_restore x30
        .cfi_def_cfa_offset 0
        ret
        .cfi_endproc
        .size   psu_syscall6, . - psu_syscall6

#include "property.h"
