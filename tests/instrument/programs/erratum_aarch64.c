/* Instruction sequences at which linkers put stubs of their own: errata 843419 (a load behind an adrp at the end of a page)
 * and 835769 (a 64-bit multiply-accumulate behind a load) of Cortex-A53.
 *
 * Prints what the functions give; then psu_test_change("target") and ("second"), and again. */
#include <stdio.h>

void psu_test_change(const char *name) __attribute__((weak));
__attribute__((noipa)) int target(int x) { return 2 * x + 1; }
__attribute__((noipa)) int other(int x) { return 1000 + x; }
int (*pointer)(int) = target;
int first(const long *p);         /* pointer((int)*p), by a tail call */
long second(const long *p);       /* p[0] * p[1] + p[2] + p[3] */
long third(const long *p);        /* 7 more, and nothing for a linker to do */

__asm__(".text\n.balign 4096\n.skip 0xff4\n"
        ".globl first\n.type first, %function\nfirst:\n.cfi_startproc\n"
        "mov x4, x0\n"                                       /* at 0xff4 */
        "adrp x1, pointer\n"                                 /* at 0xff8 */
        "ldr x0, [x4]\n"
        "ldr x3, [x1, #:lo12:pointer]\n"                     /* goes to the stub */
        "mov x16, x3\nbr x16\n.cfi_endproc\n.size first, . - first\n"
        ".globl second\n.type second, %function\nsecond:\n.cfi_startproc\n"
        "ldp x1, x2, [x0]\nldr x3, [x0, #16]\nmov x5, x0\n"
        "ldr x4, [x5, #24]\n"
        "madd x0, x1, x2, x3\n"                              /* goes to the stub */
        "add x0, x0, x4\nret\n.cfi_endproc\n.size second, . - second\n"
        ".globl third\n.type third, %function\nthird:\n.cfi_startproc\n"
        "ldp x1, x2, [x0]\nldp x3, x4, [x0, #16]\nmul x1, x1, x2\nadd x3, x3, x4\nadd x0, x1, x3\nadd x0, x0, #7\nret\n"
        ".cfi_endproc\n.size third, . - third\n");

static void show(const char *when)
{
    static const long numbers[] = {3, 5, 20, 100};
    long (*volatile through)(const long *) = second;
    printf("%s %d %ld %ld\n", when, first(numbers), second(numbers), through(numbers));
}

int main(void)
{
    show("before");
    if (psu_test_change) {
        psu_test_change("target");
        psu_test_change("second");
    }
    show("after");
    return 0;
}
