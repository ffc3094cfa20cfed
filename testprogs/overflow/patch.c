/* Version V of both functions. */
#include "overflow.h"
DIG
