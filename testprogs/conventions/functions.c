/* Version 0 of all functions: in a file of their own, so that callers know nothing about them. */
#include "generated.h"
#define V 0
#define HAS(number) 1
#include "functions.inc"
#include "special.inc"
