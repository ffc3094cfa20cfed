/* SPDX-License-Identifier: MIT
 *
 * At the end of each assembly file: its code has landing marks (BTI), so that a linker marks the shim and the kernel
 * guards its pages.  Calls and returns are not signed (PAC) here; the property that says so of a file promises nothing
 * more than that, and is set for C files alone.  AArch64 ELF ABI, program property. */
        .section .note.gnu.property, "a"
        .p2align 3
        .long   4, 16, 5
        .asciz  "GNU"
        .long   0xc0000000, 4, 1, 0             // GNU_PROPERTY_AARCH64_FEATURE_1_AND: BTI
        .section .note.GNU-stack, "", @progbits
