/* Both functions, version V. */
int first(void) { return V; }
int second(void) { return V; }
