/* Both functions, version V (-DV=...). */
int first(void) { return V; }
int second(void) { return V; }
