/* Patch of the library: another price; total goes on counting in the library's own static variable. */
#include "library.h"
static int sold;
int price(int amount) { return 100 * V * amount + discount(amount); }
int total(int amount)
{
    sold += amount;
    return price(amount);
}
