/* The callees, version V: every register that the ABI lets them change, and the flags, is changed. */
#include "relying.h"
#define CALLEE(name) static void __attribute__((used, noinline)) name(void)

#ifdef NARROW                                     /* a processor without wider ones */
#undef SPOIL_WIDE
#define SPOIL_WIDE SPOIL_VECTOR
#endif

CALLEE(general) { seen[GENERAL] = V; SPOIL_GENERAL; SPOIL_VECTOR; }
CALLEE(vector) { seen[VECTOR] = V; SPOIL_GENERAL; SPOIL_VECTOR; }
CALLEE(wide) { seen[WIDE] = V; SPOIL_GENERAL; SPOIL_WIDE; }
CALLEE(inner) { seen[INNER] = V; SPOIL_GENERAL; SPOIL_VECTOR; }
CALLEE(late) { seen[LATE] = V; SPOIL_GENERAL; SPOIL_VECTOR; }
