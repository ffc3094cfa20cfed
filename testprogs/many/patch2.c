/* Patch 2: the same functions again, version 3; patch 1 takes turns with it. */
#include "many.h"
struct step next(uint64_t x) { return (struct step){x * 6364136223846793005u + 1442695040888963407u, number(3)}; }
struct step next_of(struct big b, uint64_t x) { return (struct step){(x ^ b.a) * b.b + b.c - b.d, number(3)}; }
