/* What the producers and consumers and their patch share. */
#include <stdint.h>
#define KEPT __attribute__((noinline))
enum { PLACES = 64 };
struct item { uint64_t value, mark; int version; };
KEPT struct item made(uint64_t value);
KEPT int taken(const struct item *item);
