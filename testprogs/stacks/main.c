/* A coroutine begins in one version and is resumed after others have come (stacks.h).
 *
 * Proves: the object that a suspended coroutine will go on in is kept, although who began it has returned.
 * Reads "start" and "resume"; prints "suspended in N" with the version that the coroutine is in. */
#include <stdio.h>
#include <string.h>
#include "stacks.h"

jmp_buf back;
static jmp_buf inside;
char stack_of_worker[STACK] __attribute__((aligned(16)));

/* Back to where the coroutine was begun or resumed. */
void suspend(int version)
{
    printf("suspended in %d\n", version);
    if (!_setjmp(inside))
        _longjmp(back, 1);
}

#ifdef PROGRAMS
#ifdef __aarch64__
__asm__(".text\n.globl moved\n.type moved, @function\nmoved:\n\tmov sp, x0\n\tmov w0, #1\n\tret\n.size moved, . - moved");
#else
__asm__(".text\n.globl moved\n.type moved, @function\nmoved:\n\tpop %rdx\n\tmov %rdi, %rsp\n\tmov $1, %eax\n\tjmp *%rdx\n"
        ".size moved, . - moved");
#endif
#endif
START
WORKER(0)

int main(void)
{
    char line[100];
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        if (!strcmp(line, "start\n"))
            start();
        else if (!_setjmp(back))
            _longjmp(inside, 1);
    return 0;
}
