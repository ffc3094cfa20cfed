/* What the thread pool and its patch share. */
#include <stdint.h>
#define KEPT __attribute__((noinline))
struct done { uint64_t value; uint64_t version; };
typedef struct done task(uint64_t n);
/* The tasks: each has one right answer, which every version finds in its own way. */
KEPT task sum_of_squares, bits_set, divisor;
