/* What the hashing workers and their patches share. */
#include <stddef.h>
#include <stdint.h>
#define KEPT __attribute__((noinline))
enum { BYTES = 1 << 16 };
struct digest { uint32_t a, b; int version; };
KEPT struct digest digest(const unsigned char *data, size_t size);
