/* All of it, version V. */
#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>
#include <unistd.h>

extern ucontext_t here, there;
extern jmp_buf out;
extern int pipes[2];
extern int on_alternate;

__attribute__((noipa)) int version(void) { return V; }
__attribute__((noipa)) void jump(void) { longjmp(out, 1); }
__attribute__((noipa)) void leave_for_good(int deep)
{
    if (deep)
        leave_for_good(deep - 1);
    jump();
}
__attribute__((noipa)) void park(void)
{
    char c;
    if (on_alternate) {
        while (read(pipes[0], &c, 1) != 1)
            ;
    } else {
        swapcontext(&there, &here);
    }
}
__attribute__((noipa)) int work(int n)
{
    int before = V;
    park();
    printf("finished %d\n", before);
    return n;
}
