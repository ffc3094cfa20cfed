/* All three, version V. */
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>

extern jmp_buf out;

__attribute__((noipa)) int version(void) { return V; }
__attribute__((noipa)) void jump(void) { longjmp(out, V + 1); }
__attribute__((noipa)) void leave(int deep)
{
    if (deep)
        leave(deep - 1);
    else
        pthread_exit(0);
    puts("ERROR came back");
}
