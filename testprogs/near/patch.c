#include "near.h"
__attribute__((noipa)) int inner(void) { return V; }
