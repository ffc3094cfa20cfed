/* Version V of the three callees: the same source, and every volatile register but the result is changed on the way. */
#define SPOIL
#include "sites.h"
extern slabclass_t slabclass[64];
DIGITS10()
__attribute__((used)) ROW_SET_N_DEEP_TREE
DO_SLABS_FREE_CHUNKED
