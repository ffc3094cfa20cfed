/* Patch 1: the same functions again; only the version that they tell differs. */
#include "overhead.h"
MIXES(2)
