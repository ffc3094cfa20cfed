/* Version V of the three functions. */
#include <stdio.h>
#include "unwinding.h"

__attribute__((noipa)) int inner(int depth, int b, int c, int d, int e, int f, int g, struct parcel p)
{
    levels++;
    if (depth + b + c + d + e + f + g + p.words[4] != 10)
        puts("ERROR arguments");
    look();
    levels--;
    return V;
}
__attribute__((noipa)) int middle(int depth)
{
    struct parcel p = {{1, 2, 3, 4, depth}};
    levels++;
    int v = depth ? middle(depth - 1) : inner(1, 1, 1, 2, 2, 2, 1, p);
    levels--;
    return v;
}
__attribute__((noipa)) int outer(int depth)
{
    levels++;
    int v = middle(depth);
    levels--;
    return v;
}
