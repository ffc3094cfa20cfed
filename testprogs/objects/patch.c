/* Version V of pair N; with INNER, of its inner function only. */
#include "objects.h"
__attribute__((noipa)) int JOIN(inner, N)(int x) { return x + V; }
#ifndef INNER
__attribute__((noipa)) int JOIN(outer, N)(int x) { return JOIN(inner, N)(x) + V * 1000; }
#endif
