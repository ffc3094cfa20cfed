/* All of it, version V. */
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <unistd.h>

struct parcel { long words[5]; };
extern _Thread_local sigjmp_buf out;

__attribute__((noipa)) long version(void) { return V; }
__attribute__((noipa)) void leave(long a, long b, long c, long d, long e, long f, long g, struct parcel p)
{
    if (a + b + c + d + e + f + g != 28 || p.words[4] != 5)
        puts("ERROR arguments");
    siglongjmp(out, (int)version() + 1);
}
__attribute__((noipa)) void middle(int deep)
{
    struct parcel p = {{1, 2, 3, 4, 5}};
    if (deep)
        middle(deep - 1);
    else
        leave(1, 2, 3, 4, 5, 6, 7, p);
    puts("ERROR came back");
}
__attribute__((noipa)) long spin(long n)
{
    long sum = 0;
    for (long i = 0; i < n; i++)
        sum += version() * 0 + i;
    return sum;
}
__attribute__((noipa)) void block(void) { for (;;) pause(); }
__attribute__((noipa)) void give_up(void) { pthread_exit((void *)(version() + 1)); }
