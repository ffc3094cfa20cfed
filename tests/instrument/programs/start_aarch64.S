/* _start and atexit with landing marks, and the mark's property: the cross toolchain's crt1.o and libc_nonshared.a have
 * none, and one object without it turns branch protection off for the whole program.  Link with -nostartfiles. */
    .text
    .globl _start
    .type _start, %function
_start:
    hint #34                            // bti c
    mov x29, #0
    mov x30, #0
    mov x5, x0                          // the loader's function for exit
    ldr x1, [sp]                        // argc
    add x2, sp, #8                      // argv
    mov x6, sp
    adrp x0, main
    add x0, x0, #:lo12:main
    mov x3, #0
    mov x4, #0
    bl __libc_start_main
    brk #1
    .size _start, . - _start

    .globl atexit
    .hidden atexit
    .type atexit, %function
atexit:
    hint #34                            // bti c
    mov x1, #0
    mov x2, #0
    b __cxa_atexit
    .size atexit, . - atexit

    .section .note.gnu.property, "a"
    .balign 8
    .word 4, 16, 5
    .asciz "GNU"
    .word 0xC0000000, 4, 3, 0           // GNU_PROPERTY_AARCH64_FEATURE_1_AND: BTI, PAC
    .section .note.GNU-stack, "", %progbits
