// Virtual functions and exceptions that pass through patched functions; destructors of every frame must run.
#include <cstdio>
#include <memory>
#include <pthread.h>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include "shape.h"

__attribute__((noipa)) int Square::area() const { return side * side; }
__attribute__((noipa)) int Shape::version() const { return 0; }
__attribute__((noipa)) int thrower(int n)
{
    if (n % 3 == 0)
        throw std::runtime_error("0");
    return n;
}

static int alive;
struct Counted { Counted() { alive++; } ~Counted() { alive--; } };
__attribute__((noipa)) int guarded(int n)
{
    Counted c;
    return thrower(n);
}

int main()
{
    setvbuf(stdout, nullptr, _IOLBF, 0);
    pthread_t t;
    pthread_create(&t, nullptr, [](void *p) -> void * { for (;;) usleep(100000); return p; }, nullptr);
    std::unique_ptr<Shape> s(new Square(4));
    asm volatile("" : : "g"(s.get()) : "memory");   // what class it is may not be known to the compiler
    for (int n = 0;; n++) {
        std::string caught = "none";
        try {
            guarded(n);
        } catch (const std::exception &e) {
            caught = e.what();
        }
        std::printf("area %d version %d caught %s alive %d\n", s->area(), s->version(), caught.c_str(), alive);
        usleep(10000);
    }
}
