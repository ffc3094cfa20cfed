// Version 1: other results, and the exception is thrown by the patch's code.
#include <stdexcept>
#include "shape.h"
int Square::area() const { return side * side * 100; }
int Shape::version() const { return 1; }
int thrower(int n)
{
    if (n % 3 == 1)
        throw std::runtime_error("1");
    return n;
}
