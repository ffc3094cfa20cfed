/* Patch 1: the remainders are taken every 5552 bytes, the most for which the sums stay below 2^32. */
#include "hashing.h"
struct digest digest(const unsigned char *data, size_t size)
{
    struct digest d = {1, 0, 2};
    while (size) {
        size_t some = size < 5552 ? size : 5552;
        size -= some;
        while (some--) {
            d.a += *data++;
            d.b += d.a;
        }
        d.a %= 65521;
        d.b %= 65521;
    }
    return d;
}
