/* Patch 1: the same; only the version differs. */
#include "pauses.h"
struct step step(unsigned long count) { return (struct step){count + 1, *(volatile int *)&(int){2}}; }
