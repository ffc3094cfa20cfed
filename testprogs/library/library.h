/* What the program and its library know of each other. */
#include "../../shim/psu.h"
PSU_UPDATABLE int price(int amount);          /* in the library */
PSU_UPDATABLE int total(int amount);          /* in the library: calls price */
int each(int (*function)(int), int amount);   /* in the library: calls what it is given */
PSU_UPDATABLE int discount(int amount);       /* in the program: the library calls it */
