/* The callee that no patch can replace. */
#include "relying.h"
static void __attribute__((used, noinline)) high(void) { seen[HIGH] = V; }
