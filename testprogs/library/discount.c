/* Patch of the program. */
#include "library.h"
int discount(int amount) { return -2 * V * amount; }
