/* Both, version V. */
#include <stdio.h>

void interrupt(void);
__attribute__((noipa)) int version(void) { return V; }
__attribute__((noipa)) int work(int n)
{
    int before = V;
    interrupt();
    printf("finished %d\n", before);
    return n;
}
