/* Functions that return their argument unchanged, which leave the register of their result alone.
 *
 * Proves: what callers read there is the result of the newest version, and is not restored to the argument.
 *
 * Usage: main.  Prints both results whenever they change; "quit" on standard input ends it. */
#include <stdio.h>
#include <unistd.h>
#include <poll.h>

__attribute__((noipa)) double same(double x) { return x; }
__attribute__((noipa)) long same_integer(long x) { return x; }

int main(void)
{
    struct pollfd input = {0, POLLIN, 0};
    double last = 0;
    long last_integer = 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    while (poll(&input, 1, 10) == 0) {
        double x = same(1.5);
        long n = same_integer(1);
        if (x != last || n != last_integer)
            printf("%.1f %ld\n", x, n);
        last = x;
        last_integer = n;
    }
    return 0;
}
