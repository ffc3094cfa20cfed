/* The library: exported functions that call each other, a static one, and one that it calls in the program. */
#include "library.h"
static int sold, *volatile counter = &sold;
PSU_UPDATABLE int price(int amount) { return 10 * amount + discount(amount); }
int total(int amount)
{
    *counter += amount;
    return price(amount);
}
int each(int (*function)(int), int amount) { return function(amount); }
int sold_at_least(int n) { return sold >= n; }
