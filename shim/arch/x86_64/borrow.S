/* SPDX-License-Identifier: MIT
 *
 * borrow.S: where psu-bin sends one application thread, once, to start the agent in a process that has none.
 *
 * psu-bin stops the thread at any instruction, stores its program counter at rsp - 128 - 8 (below the red zone, which
 * stays as it is), sets rsp to that place and rip to psu_borrow, and lets it go: everything else happens here.  Every
 * register, the flags and the whole extended state (XSAVE: x87, vectors, masks, tiles, protection keys) come back as
 * they were.
 */
#include <cet.h>

        .text
        .p2align 4
        .globl  psu_borrow
        .hidden psu_borrow
        .type   psu_borrow, @function
psu_borrow:
        .cfi_startproc
        .cfi_signal_frame                       # the caller was interrupted, not calling
        .cfi_def_cfa rsp, 136
        .cfi_offset rip, -136
        endbr64
        pushfq
        .cfi_adjust_cfa_offset 8
        .irp    r, rax, rcx, rdx, rbx, rsi, rdi, r8, r9, r10, r11, r12, rbp
        push    %\r
        .cfi_adjust_cfa_offset 8
        .cfi_rel_offset \r, 0
        .endr
        mov     %rsp, %rbp
        .cfi_def_cfa_register rbp
        cld
        /* ebx := bytes of the state that XCR0 has switched on; r12d := 0: no XSAVE, FXSAVE then */
        mov     $1, %eax
        xor     %ecx, %ecx
        cpuid
        mov     $512, %ebx
        xor     %r12d, %r12d
        bt      $27, %ecx                       # OSXSAVE
        jnc     1f
        mov     $0xd, %eax
        xor     %ecx, %ecx
        cpuid
        mov     $1, %r12d
1:      sub     %rbx, %rsp
        and     $-64, %rsp
        test    %r12d, %r12d
        jz      2f
        xor     %eax, %eax
        lea     512(%rsp), %rdi                 # the header must be zero but for what XSAVE writes
        mov     $8, %ecx
        rep stosq
        mov     $-1, %eax
        mov     $-1, %edx
        xsave64 (%rsp)
        jmp     3f
2:      fxsave64 (%rsp)
3:      call    psu_agent_ensure
        test    %r12d, %r12d
        jz      4f
        mov     $-1, %eax
        mov     $-1, %edx
        xrstor64 (%rsp)
        jmp     5f
4:      fxrstor64 (%rsp)
5:      xor     %ecx, %ecx
        rdsspq  %rcx
        mov     %rbp, %rsp
        .cfi_def_cfa_register rsp
        .cfi_remember_state
        test    %rcx, %rcx
        jnz     6f
        .macro  GENERAL
        .irp    r, rbp, r12, r11, r10, r9, r8, rdi, rsi, rbx, rdx, rcx, rax
        pop     %\r
        .cfi_adjust_cfa_offset -8
        .cfi_restore \r
        .endr
        popfq
        .cfi_adjust_cfa_offset -8
        .endm
        GENERAL
        ret     $128
        .cfi_restore_state
        /* With a shadow stack a return without a call is a fault, so it must be a jump.  Its target lies 8 bytes below
         * the red zone by then, where a signal in exactly this instruction would overwrite it. */
6:      GENERAL
        lea     136(%rsp), %rsp
        .cfi_def_cfa_offset 0
        notrack jmp *-136(%rsp)
        .cfi_endproc
        .size   psu_borrow, . - psu_borrow

        .section .note.GNU-stack, "", @progbits
