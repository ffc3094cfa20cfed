/* What the first patch brought along, now changing all registers that it may. */
#include "goback.h"
#include "../relying/relying.h"
void fresh(void)
{
    fresh_version = 2;
    SPOIL_GENERAL;
    SPOIL_VECTOR;
}
