/* What program and patch share.  Every function adds its version to what it is given; the original's version is 0. */
long plain(long x);
long many(long a, long b, long c, long d, long e, long f, long g, long h);
long vary(int count, ...);
long deep(long levels);
long sleepy(long x);
const char *name(void);
void nap(void);
