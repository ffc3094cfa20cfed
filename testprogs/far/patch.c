#include "far.h"

/* Brings a function along, and with TAKEN one that is known by its address, which stays; they use what the program has. */
__attribute__((noipa)) static int fresh(int x)
{
    pool[SIZE - ENDS + V] = 1;
    return helper(x);
}
#ifdef TAKEN
__attribute__((noipa)) static int taken(int x) { return fresh(x); }
static int (*volatile through)(int) = taken;
#else
#define through fresh
#endif

__attribute__((noipa)) int direct(int x) { return through(x) + V; }
__attribute__((noipa)) int tail(int x) { return direct(x + V * 100); }
__attribute__((noipa)) int pointed(int x) { return tail(x) + V * 10000; }
__attribute__((noipa, used)) static int hidden(int x) { return pointer == pointed ? tail(x) + V * 1000000 : -1; }
__attribute__((noipa, used)) static int least(int x) { return x + V; }
