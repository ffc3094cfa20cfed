/* Both, version V. */
#include "stacks.h"
START
WORKER(V)
