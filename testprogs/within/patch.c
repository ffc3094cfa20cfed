/* Version V, a number that stands in the object file as it is (tests/stress/torture_host.py): of all, or with PARTIAL
 * of what `stay` calls, so that it calls what was in its object and is so no more. */
#include "within.h"

#define V 0x5eed1234
ONE(V)
TWO(V)
#ifndef PARTIAL
THREE
STAY(stay, V)
#endif
