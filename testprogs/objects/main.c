/* Eighty pairs of functions, each with a patch of its own: as many objects are alive at one time.
 *
 * Proves: calls inside an object are told apart from those inside others, however many there are, when one's callee is replaced.
 * Reads N, prints "N: OUTER INNER", the versions of outerN and innerN that a call of outerN went through. */
#include <stdio.h>
#include "objects.h"

#define PAIR(n) \
    __attribute__((noipa)) int inner##n(int x) { return x; } \
    __attribute__((noipa)) int outer##n(int x) { return inner##n(x) + 0 * 1000; }
PAIRS
#undef PAIR

#define PAIR(n) [n] = outer##n,
static int (*const outer[])(int) = {PAIRS};

int main(void)
{
    int n;
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("ready");
    while (scanf("%d", &n) == 1) {
        int r = outer[n](0);
        printf("%d: %d %d\n", n, r / 1000, r % 1000);
    }
}
