/* SPDX-License-Identifier: MIT
 *
 * borrow.S: where psu-bin sends one application thread, once, to start the agent in a process that has none.
 *
 * psu-bin stops the thread at any instruction, stores its program counter at sp - 16, sets sp to that place and pc to
 * psu_borrow, and lets it go: everything else happens here.  Every register, the flags and the vector registers come
 * back as they were.  (A thread in streaming mode is not borrowed: psu_bin/attach/borrow.py, _fit.)
 *
 * The way back is what is odd.  With all registers full, AArch64 can only branch to a place that the instruction names.
 * (rt_sigreturn could do it, but it also makes an interrupted nanosleep fail.)  So borrow.c maps one page within reach
 * of that place, with the contents of the last two registers, and the branch.
 */
#include "gates.h"
#include "state.h"

/* Offsets from x29, which is 16 below psu_frame's end; the program counter is there, at SIZE. */
#define NZCV 248
#define FPCR 256
#define FPSR 264
#define VECTORS 272
#define SIZE 784

.macro GENERAL op
        \op     x0, x1, [sp]
        \op     x2, x3, [sp, #16]
        \op     x4, x5, [sp, #32]
        \op     x6, x7, [sp, #48]
        \op     x8, x9, [sp, #64]
        \op     x10, x11, [sp, #80]
        \op     x12, x13, [sp, #96]
        \op     x14, x15, [sp, #112]
        \op     x18, x19, [sp, #144]
        \op     x20, x21, [sp, #160]
        \op     x22, x23, [sp, #176]
        \op     x24, x25, [sp, #192]
        \op     x26, x27, [sp, #208]
        \op     x28, x29, [sp, #224]
.endm

/* v0 to v31, 16 bytes each, from x9 on */
.macro ALL_VECTORS op
        \op     q0, q1, [x9]
        \op     q2, q3, [x9, #32]
        \op     q4, q5, [x9, #64]
        \op     q6, q7, [x9, #96]
        \op     q8, q9, [x9, #128]
        \op     q10, q11, [x9, #160]
        \op     q12, q13, [x9, #192]
        \op     q14, q15, [x9, #224]
        \op     q16, q17, [x9, #256]
        \op     q18, q19, [x9, #288]
        \op     q20, q21, [x9, #320]
        \op     q22, q23, [x9, #352]
        \op     q24, q25, [x9, #384]
        \op     q26, q27, [x9, #416]
        \op     q28, q29, [x9, #448]
        \op     q30, q31, [x9, #480]
.endm

        .text
        .p2align 4
        .globl  psu_borrow
        .hidden psu_borrow
        .type   psu_borrow, @function
psu_borrow:
        .cfi_startproc
        .cfi_signal_frame                       // the caller was interrupted, not calling
        .cfi_return_column 96                   // libgcc's number for a program counter that is not in x30
        .cfi_def_cfa sp, 16
        .cfi_offset 96, -16
        bti     jc                              // the thread may have been between a branch and its landing mark
        sub     sp, sp, #SIZE
        .cfi_adjust_cfa_offset SIZE
        GENERAL stp
        stp     x16, x17, [sp, #128]
        str     x30, [sp, #240]
        .irp    n, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
        .cfi_rel_offset x\n, 8 * \n
        .endr
        mov     x29, sp
        .cfi_def_cfa_register x29
        mrs     x9, nzcv
        mrs     x10, fpcr
        stp     x9, x10, [sp, #NZCV]
        mrs     x9, fpsr
        str     x9, [sp, #FPSR]
        add     x9, sp, #VECTORS
        ALL_VECTORS stp
        adrp    x20, psu_vectors
        ldr     w20, [x20, :lo12:psu_vectors]
        tbz     w20, #0, 1f                     // VECTORS_SVE
        SAVE_SVE xzr
1:      bl      psu_agent_ensure
        mov     x0, x29
        bl      psu_borrow_back                 // -> where the last jump goes, 0: no page within reach
        mov     x21, x0
        tbz     w20, #0, 2f
        RESTORE_SVE xzr
        b       3f
2:      add     x9, x29, #VECTORS
        ALL_VECTORS ldp
3:      mov     sp, x29
        .cfi_def_cfa_register sp
        ldp     x9, x10, [sp, #NZCV]
        msr     nzcv, x9
        msr     fpcr, x10
        ldr     x9, [sp, #FPSR]
        msr     fpsr, x9
        mov     x16, x21
        ldr     x30, [sp, #240]
        ldr     x17, [sp, #SIZE]
        cbz     x16, 4f
        GENERAL ldp
        add     sp, sp, #SIZE + 16
        br      x16
        /* No free page within reach: x17 is lost, which is what a linker's veneer may do to any call. */
4:      GENERAL ldp
        ldr     x16, [sp, #128]
        add     sp, sp, #SIZE + 16
        ret     x17
        .cfi_endproc
        .size   psu_borrow, . - psu_borrow

#include "property.h"
