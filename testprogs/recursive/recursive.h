/* What the recursive program and its patch share. */
#include <stdint.h>
#if defined(__has_attribute) && __has_attribute(noclone)
#define KEPT __attribute__((noinline, noclone))
#else
#define KEPT __attribute__((noinline))
#endif
struct found { uint64_t value; uint64_t versions; };     /* versions: bit V: version V took part */
/* Bit `version`, as a number that compilers do not know, found by code that they must not leave out: clang would put what
 * the program's own functions return into their callers, or call them once instead of in each round; noinline forbids
 * neither. */
static inline uint64_t bit(unsigned version)
{
    uint64_t b = 1u << version;
    __asm__ volatile("" : "+r"(b));
    return b;
}
KEPT struct found fibonacci(uint64_t n);
KEPT struct found ackermann(uint64_t m, uint64_t n);
KEPT struct found even(uint64_t n);
KEPT struct found odd(uint64_t n);
