// What C++ adds: virtual calls, pointers to members, function objects, exceptions through stubs, templates, initialisers.
// Prints "before WAY VALUE", changes slots as ways.c does, prints "after WAY VALUE".
#include <cstdio>
#include <dlfcn.h>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#if defined __clang__
#define KEPT __attribute__((noinline, used))
#else
#define KEPT __attribute__((noipa, used))
#endif
#define OPAQUE(x) __asm__ volatile("" : "+r"(x))

struct Shape {
    virtual ~Shape() = default;
    virtual int area(int x) = 0;
    virtual int id() { return 7; }
};
struct Square : Shape { KEPT int area(int x) override { OPAQUE(x); return x * x; } };
struct Other : Shape { KEPT int area(int x) override { OPAQUE(x); return x + 3000; } };
struct Left { virtual ~Left() = default; virtual int left(int x) { return x; } };
struct Both : Left, Shape { KEPT int area(int x) override { OPAQUE(x); return -x; } };   // called through a thunk

template <typename T> KEPT T twice(T x) { OPAQUE(x); return x + x; }
KEPT int thrice(int x) { OPAQUE(x); return 3 * x; }

KEPT int thrower(int x)
{
    std::string local = "destroyed while unwinding";
    OPAQUE(x);
    if (x > 0)
        throw std::runtime_error(local + " " + std::to_string(x));
    return 0;
}
KEPT int thrower_other(int x) { throw std::runtime_error("other " + std::to_string(x)); }
KEPT int tail_thrower(int x) { return thrower(x); }

static void patch(const char *name)
{
    auto change = reinterpret_cast<void (*)(const char *)>(dlsym(RTLD_DEFAULT, "psu_test_change"));
    if (change)
        change(name);
}

static std::string caught(int (*f)(int), int x)
{
    try {
        f(x);
    } catch (const std::exception &e) {
        return e.what();
    }
    return "nothing";
}

static int initialised = twice(21);

static void all(const char *when)
{
    std::unique_ptr<Shape> square = std::make_unique<Square>(), both = std::make_unique<Both>();
    int (Shape::*member)(int) = &Shape::area;
    int (Square::*own)(int) = &Square::area;
    std::function<int(int)> object = twice<int>;
    Square known;
    std::printf("%s virtual %d\n", when, square->area(5));
    std::printf("%s through a thunk %d\n", when, both->area(5));
    std::printf("%s member pointer %d\n", when, (square.get()->*member)(6));
    std::printf("%s own member pointer %d\n", when, (known.*own)(6));
    std::printf("%s known class %d\n", when, known.Square::area(7));
    std::printf("%s function object %d\n", when, object(8));
    std::printf("%s template %d\n", when, twice(9));
    std::printf("%s exception %s\n", when, caught(thrower, 10).c_str());
    std::printf("%s exception through a tail call %s\n", when, caught(tail_thrower, 11).c_str());
}

int main()
{
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::printf("initialised %d\n", initialised);
    all("before");
    for (const char *name : {"_ZN6Square4areaEi", "_ZN4Both4areaEi", "_Z5twiceIiET_S0_", "_Z7throweri"})
        patch(name);
    all("after");
    return initialised == 1 ? thrice(1) + thrower_other(1) + Other().area(1) : 0;
}
