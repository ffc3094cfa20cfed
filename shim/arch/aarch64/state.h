/* SPDX-License-Identifier: MIT
 *
 * Assembly macros: put away what a system call, or C code of others, loses of the vector state, and bring it back.
 *
 * A system call keeps the 128 bits that every processor has; what SVE adds (the rest of z0 to z31, p0 to p15, ffr) is
 * zero afterwards, and streaming mode (SME) is left (Linux, Documentation/arch/arm64/sve.rst and sme.rst).  A function
 * of the SVE calling convention has arguments there, and its caller relies on z8 to z23 and p4 to p15.
 */
        .arch   armv8.2-a+sve

#define SVE_WORDS 35        /* vector lengths: 16 predicates and ffr, each an eighth, in the first 3; then 32 vectors */

/* Pushes it; sp may go down by 35 vector lengths, 9 KiB with the longest.  \streaming is not 0 in streaming mode, where
 * there is no ffr; then 0 is in its place.  Changes p0. */
.macro SAVE_SVE streaming
        addvl   sp, sp, #-32
        addvl   sp, sp, #-3
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        str     p\n, [sp, #\n, mul vl]
        .endr
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, \
                26, 27, 28, 29, 30, 31
        str     z\n, [sp, #\n + 3, mul vl]
        .endr
        cbnz    \streaming, 9f
        rdffr   p0.b
        str     p0, [sp, #16, mul vl]
9:
.endm

/* Loads it; sp is as SAVE_SVE left it and stays there. */
.macro RESTORE_SVE streaming
        cbnz    \streaming, 9f
        ldr     p0, [sp, #16, mul vl]
        wrffr   p0.b
9:
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        ldr     p\n, [sp, #\n, mul vl]
        .endr
        .irp    n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, \
                26, 27, 28, 29, 30, 31
        ldr     z\n, [sp, #\n + 3, mul vl]
        .endr
.endm

/* \to := 1 in streaming mode, else 0; \kinds holds psu_vectors.  SVCR: s3_3_c4_c2_2, bit 0. */
.macro GET_STREAMING to, kinds
        mov     \to, #0
        tbz     \kinds, #1, 9f                  // VECTORS_SME
        mrs     \to, s3_3_c4_c2_2
        and     \to, \to, #1
9:
.endm

#define SMSTART_SM .inst 0xd503437f
#define SMSTOP_SM .inst 0xd503427f
