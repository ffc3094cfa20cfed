/* A PARTS-th of the functions, version V. */
#include "generated.h"
#define HAS(number) ((number) % PARTS == PART)
#include "functions.inc"
#if PART == 0
#include "special.inc"
#endif
