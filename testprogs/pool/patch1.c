/* Patch 1: the same answers by shorter ways. */
#include "pool.h"
struct done sum_of_squares(uint64_t n) { return (struct done){n * (n + 1) * (2 * n + 1) / 6, 2}; }
struct done bits_set(uint64_t n)
{
    struct done d = {0, 2};
    for (; n; n &= n - 1)
        d.value++;
    return d;
}
struct done divisor(uint64_t n)
{
    uint64_t m = 360360;
    if (!n)
        return (struct done){m, 2};
    int twos = __builtin_ctzll(m | n);
    m >>= __builtin_ctzll(m);
    while (n) {
        n >>= __builtin_ctzll(n);
        if (m > n) {
            uint64_t more = m;
            m = n;
            n = more;
        }
        n -= m;
    }
    return (struct done){m << twos, 2};
}
