/* Version V. */
int first(void) { return V; }
