/* All of it, version V. */
#include <cstdio>
#include "throwing.h"

__attribute__((noipa)) long version() { return V; }
#include "functions.inc"
