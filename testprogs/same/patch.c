/* Both return their argument and V more. */
double same(double x) { return x + V; }
long same_integer(long x) { return x + V; }
