/* Version V, a number that stands in the object file as it is (tests/stress/torture_host.py): of all, or with PARTIAL
 * of what `stay` calls, so that it calls what was in its object and is so no more.  SHORT: `one` is so short that calls of it
 * inside the object have no room for a stub of their own (psu_bin/attach/inner.py). */
#include "within.h"

#define V 0x5eed1234
#ifdef SHORT
__attribute__((noipa)) long one(long x) { return two(x); }
#else
ONE(V)
#endif
TWO(V)
#ifndef PARTIAL
THREE
STAY(stay, V)
#endif
