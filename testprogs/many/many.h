/* What the program and its patches share. */
#include <stdint.h>
#define KEPT __attribute__((noinline))
struct step { uint64_t x; uint64_t version; };
struct big { uint64_t a, b, c, d; };     /* passed on the stack, which makes for the dearer kind of gate */
/* A number that compilers do not know, found by code that they must not leave out: clang would put what the program's own
 * functions return into their callers, or call them once instead of in each round; noinline forbids neither. */
static inline uint64_t number(uint64_t version)
{
    __asm__ volatile("" : "+r"(version));
    return version;
}
/* Each gives the next number of a sequence. */
KEPT struct step next(uint64_t x);
KEPT struct step next_of(struct big b, uint64_t x);
