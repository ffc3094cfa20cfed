/* A program that is not instrumented and uses the library made of ways.c. */
int ways_main(void);
int main(void) { return ways_main(); }
