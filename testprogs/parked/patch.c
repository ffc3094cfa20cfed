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
__attribute__((noipa)) int hold(int from, char *to)
{
#ifdef __aarch64__
    register long number __asm__("x8") = 63, result __asm__("x0") = from, second __asm__("x1") = (long)to,
                  third __asm__("x2") = 1;
    __asm__ volatile("svc #0" : "+r"(result) : "r"(number), "r"(second), "r"(third) : "memory");
#else
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(0L), "D"((long)from), "S"(to), "d"(1L) : "rcx", "r11", "memory");
#endif
    return result == 1 ? V : -V;
}
__attribute__((noipa)) int work(int n)
{
    int before = V;
    park();
    printf("finished %d\n", before);
    return n;
}
