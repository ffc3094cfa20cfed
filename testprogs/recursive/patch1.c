/* Patch 1: the same functions by other recursions. */
#include "recursive.h"
/* From F(n) = F(n-2) + F(n-3) + F(n-2). */
struct found fibonacci(uint64_t n)
{
    if (n < 3)
        return (struct found){n ? 1 : 0, bit(2)};
    struct found a = fibonacci(n - 3), b = fibonacci(n - 2);
    return (struct found){a.value + 2 * b.value, a.versions | b.versions | bit(2)};
}
struct found ackermann(uint64_t m, uint64_t n)
{
    struct found f = {n + 1, bit(2)};
    if (m == 1)
        f.value = n + 2;
    else if (m) {
        struct found inner = {1, bit(2)};
        if (n)
            inner = ackermann(m, n - 1);
        f = ackermann(m - 1, inner.value);
        f.versions |= inner.versions | bit(2);
    }
    return f;
}
struct found even(uint64_t n)
{
    struct found f = n ? odd(n - 1) : (struct found){1, bit(2)};
    f.versions |= bit(2);
    return f;
}
struct found odd(uint64_t n)
{
    struct found f = n > 1 ? odd(n - 2) : (struct found){n, bit(2)};
    f.versions |= bit(2);
    return f;
}
