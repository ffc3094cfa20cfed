/* Workers hash blocks; the function that hashes one block runs long, so updates come while it is in the middle.
 *
 * Proves that a long call that began in one version ends in it (a digest is made by one version from its first byte to
 * its last) and that the next call is of the new one: every digest, an Adler-32, is compared with what a slow and plain
 * computation in main found beforehand.
 * Usage: main [THREADS]; prints the version of the digest that was made last; "ERROR" when a digest is wrong. */
#include "hashing.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { BLOCKS = 4 };
static unsigned char blocks[BLOCKS][BYTES];
static uint32_t right[BLOCKS];
static int last;

/* Both sums modulo 65521 after each byte. */
struct digest digest(const unsigned char *data, size_t size)
{
    struct digest d = {1, 0, 1};
    for (size_t i = 0; i < size; i++) {
        d.a = (d.a + data[i]) % 65521;
        d.b = (d.b + d.a) % 65521;
    }
    return d;
}

static void *work(void *unused)
{
    for (unsigned i = 0;; i = (i + 1) % BLOCKS) {
        struct digest d = digest(blocks[i], BYTES);
        if ((d.b << 16 | d.a) != right[i]) {
            printf("ERROR: block %u has digest %08x in version %d, not %08x\n", i, d.b << 16 | d.a, d.version, right[i]);
            exit(1);
        }
        __atomic_store_n(&last, d.version, __ATOMIC_RELAXED);
    }
    return unused;
}

/* From the definition: b is the sum of all values that a had. */
static uint32_t slow(const unsigned char *data)
{
    uint64_t a = 1, b = 0;
    for (size_t i = 0; i < BYTES; i++) {
        a += data[i];
        b += a;
    }
    return (uint32_t)(b % 65521) << 16 | (uint32_t)(a % 65521);
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 4;
    uint32_t random = 1;
    setvbuf(stdout, 0, _IOLBF, 0);
    for (int i = 0; i < BLOCKS; i++) {
        for (int at = 0; at < BYTES; at++)
            blocks[i][at] = (unsigned char)((random = random * 1664525 + 1013904223) >> 24);
        right[i] = slow(blocks[i]);
    }
    for (int i = 0; i < threads; i++) {
        pthread_t t;
        if (pthread_create(&t, 0, work, 0)) {
            puts("ERROR: no thread");
            return 1;
        }
    }
    for (;;) {
        usleep(2000);
        int seen = __atomic_load_n(&last, __ATOMIC_RELAXED);
        if (seen)
            printf("digest by %d\n", seen);
    }
}
