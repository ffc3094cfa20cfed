#pragma once

#ifndef VERSION
#define VERSION "v0"
#endif

static int made;

struct Counted {
    int value;
    __attribute__((noinline)) explicit Counted(int v) : value(v) { made++; }
    __attribute__((noinline)) ~Counted() { std::cout << "destroyed " << value << std::endl; }
};
