"""What is damaged: small real files of real compilers and linkers, each made once a machine (cached by content).

They are chosen so that each structure that psu-bin reads is in one of them: kept relocations, RELR, symbol versions, jump
tables, detours, notes, unwind rows with personality routines, both kinds of files (position-dependent and -independent),
and, where the cross compiler is there, AArch64.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

from once import made_once

PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct point { int x, y; };
int counter; static int hidden = 3; static __thread int per_thread = 1; static struct point origin = {1, 2};
const char *const names[] = {"one", "two", "three"};
__attribute__((noipa)) int leaf(int x) { return 5 * x + hidden; }
__attribute__((noipa)) static int calls(int x) { static int count; return leaf(x) + ++count + per_thread++; }
__attribute__((noipa)) int chosen(int x) {
    switch (x) { case 0: return calls(1); case 1: return leaf(7); case 2: return (int)strlen(names[1]);
                 case 3: return origin.x; case 4: return origin.y; case 5: return counter++; case 6: return rand(); }
    return -x;
}
__attribute__((noipa)) int variadic(int n, ...) {
    __builtin_va_list v; __builtin_va_start(v, n);
    int s = 0; while (n--) s += __builtin_va_arg(v, int);
    __builtin_va_end(v); return s;
}
__attribute__((noipa)) int tail(int x) { return chosen(x + 1); }
int (*pointers[])(int) = {leaf, chosen, tail};
"""
MAIN = r"""
int main(int argc, char **argv) {
    (void)argv;
    printf("%d %d %d\n", tail(argc), pointers[argc % 3](2), variadic(3, 1, 2, argc));
    return 0;
}
"""
PATCH = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
struct point { int x, y; };
extern int counter; static int hidden = 3; static __thread int per_thread; static struct point origin = {1, 2};
extern const char *const names[]; extern int (*pointers[])(int);
int leaf(int);
static const int table[] = {3, 1, 4, 1, 5}; int brought_along = 4; static int also_new[20];
static int helper(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((noipa)) static int calls(int x) { static int count; return 2 * leaf(x) + ++count + ++per_thread; }
__attribute__((noipa)) int chosen(int x) {
    switch (x) { case 0: return calls(1); case 1: return leaf(8); case 2: return (int)strlen(names[1]);
                 case 3: return origin.x; case 4: puts("four"); return table[x]; case 5: return ++counter; case 6: abort();
                 case 7: qsort(also_new, 20, 4, helper); return also_new[3] + brought_along + hidden; }
    return pointers[0](-x);
}
int tail(int x) { return chosen(x + 2); }
"""


def _run(key: str, commands: list[list[str]], sources: dict[str, str], out: str) -> bytes:
    def make(folder: Path) -> None:
        for name, text in sources.items():
            (folder / name).write_text(text)
        for command in commands:
            subprocess.run(command, cwd=folder, check=True, capture_output=True)

    return (made_once((key, commands, sources), make) / out).read_bytes()


def _linked(cc: str, *flags: str) -> bytes:
    source = PROGRAM if "-shared" in flags else PROGRAM + MAIN
    return _run("linked", [[cc, "main.c", "-o", "out", *flags]],
                {"main.c": source, "map": "V1 { leaf; chosen; };\nV2 { tail; pointers; } V1;\n"}, "out")


@functools.cache
def programs() -> tuple[bytes, ...]:
    """Linked files for instrument."""
    found = [_linked("gcc", "-O2"),
             _linked("gcc", "-O2", "-no-pie", "-fno-pic", "-Wl,--emit-relocs"),
             _linked("gcc", "-O1", "-shared", "-fPIC", "-Wl,--version-script=map", "-Wl,-soname=libx.so"),
             _linked("clang", "-O2", "-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr", "-Wl,--hash-style=both"),
             _linked("gcc", "-Os", "-Wl,-z,now", "-Wl,-z,noseparate-code", "-fcf-protection=none")]
    if shutil.which("aarch64-linux-gnu-gcc"):
        found.append(_linked("aarch64-linux-gnu-gcc", "-O2"))
    return tuple(found)


@functools.cache
def stripped() -> tuple[bytes, bytes]:
    """A stripped program and its separate debug file."""
    commands = [["gcc", "-O2", "main.c", "-o", "full"], ["objcopy", "--only-keep-debug", "full", "debug"],
                ["strip", "full", "-o", "program"]]
    sources = {"main.c": PROGRAM + MAIN}
    return tuple(_run("stripped", commands, sources, name) for name in ("program", "debug"))  # type: ignore[return-value]


def compiled(source: str, *flags: str, cc: str = "gcc") -> bytes:
    """An object file."""
    return _run("patch", [[cc, "-c", "main.c", "-o", "out.o", *flags]], {"main.c": source}, "out.o")


@functools.cache
def patches() -> tuple[bytes, ...]:
    """Patch objects for x86-64 programs of PROGRAM."""
    return (compiled(PATCH, "-O2"), compiled(PATCH, "-O2", "-fno-pic", "-fexceptions"),
            compiled(PATCH, "-O2", "-ffunction-sections", "-fdata-sections", cc="clang"),
            compiled(PATCH, "-O0", "-fPIC"), compiled(PATCH, "-O2", "-g"))


TYPES = r"""
enum kind { NONE, SOME = 7, LESS = -2 };
typedef struct { char tag; long value[3]; } pair;
struct conn { int id; unsigned open : 1, mode : 3; union { pair both; struct conn *next; } u; struct { short a, b; }; enum kind kind;
              void (*done)(struct conn *, int); char tail[]; } *conns;
static pair kept[4];
int leaf(struct conn *c, pair p, double d) { kept[1] = p; return c->a + c->kind + (int)d; }
"""


@functools.cache
def typed() -> tuple[bytes, ...]:
    """Objects with little but debug information."""
    return tuple(compiled(TYPES, "-O2", *flags) for flags in (["-g"], ["-gdwarf-4"], ["-gdwarf-2"], ["-gz"]))


@functools.cache
def aarch64_patches() -> tuple[bytes, ...]:
    """Patch objects for an AArch64 program of PROGRAM; none without the cross compiler."""
    if not shutil.which("aarch64-linux-gnu-gcc"):
        return ()
    return tuple(compiled(PATCH, "-fno-section-anchors", *flags, cc="aarch64-linux-gnu-gcc")
                 for flags in (["-O2"], ["-O1", "-fno-pic"]))
