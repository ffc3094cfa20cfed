/* A structure that goes by value over the stack and comes back by a hidden pointer: such a function needs a side-frame gate. */
struct sums { long sum; int version; long more[2]; };
