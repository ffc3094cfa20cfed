/* Takes the pointers anew, in its code and in a table of its own. */
#include <stdlib.h>
#include "pointers.h"

OPAQUE int open_(int n) { return n * 10 + 1; }
static OPAQUE int hidden(int n) { return n * 10 + 1; }
static function *const volatile constants[] = {open_, hidden, abs};

OPAQUE void taken(function **out)
{
    out[0] = open_;
    out[1] = hidden;
    out[2] = abs;
}
OPAQUE void others(function **out)
{
    for (int i = 0; i < 3; i++)
        out[i] = constants[i];
}
