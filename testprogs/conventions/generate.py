"""Writes C functions of many signatures, for the program of this folder and for its patches.

    python3 generate.py FOLDER [SEED]

makes in FOLDER: generated.h (structures, prototypes, what makes and hashes values of each type, defined where VALUES
is), functions.inc (the functions for whose numbers HAS holds, version V) and callers.inc (for each function one that calls
it).  A function hashes every byte of every argument that is not padding, and makes its result out of the hash; its
caller knows both in advance.  So a bit that is lost on the way in or out, in whatever register or stack word, is seen.

The rules that are exercised: System V psABI, AMD64 supplement, 3.2.3 (classes of arguments and results, MEMORY above 16
bytes, x87 results); AAPCS64, 6.8 and 6.9 (homogeneous aggregates of floating-point and vector types, aggregates by
reference, indirect results by x8, arguments split by none), aarch64_vector_pcs; and those that compilers offer for single functions: Microsoft's (ms_abi), clang's regcall
and preserve_most (clang 14 itself loses results of vectorcall and preserve_all, and of preserve_most in rax).  A convention of its own is known by the function's code and by its direct
callers, so these are not called through pointers.
"""

from __future__ import annotations

import platform
import random
import sys
from dataclasses import dataclass
from pathlib import Path

X86 = platform.machine() == "x86_64"
LONG_DOUBLE = 10 if X86 else 16
# C name -> bytes that carry the value.
SCALARS = {"char": 1, "_Bool": 1, "short": 2, "int": 4, "long": 8, "p_t": 8, "float": 4, "double": 8, "i128": 16,
           "long double": LONG_DOUBLE, "f128": 16, "cfloat": 8, "cdouble": 16}
VECTORS = {"v128": 16, "v128d": 16, "v256": 32, "v256d": 32, "v512": 64, "v512i": 64}
NEEDS = {"v256": "avx2", "v256d": "avx2", "v512": "avx512f", "v512i": "avx512f"} if X86 else {}
# name -> (attributes, fields as (type, name, number of elements)).
STRUCTS: dict[str, tuple[str, tuple[tuple[str, str, int], ...]]] = {
    "s_empty": ("", ()),
    "s_char3": ("", (("char", "a", 3),)),
    "s_int_float": ("", (("int", "a", 1), ("float", "b", 1))),
    "s_float2": ("", (("float", "a", 2),)),
    "s_float3": ("", (("float", "a", 3),)),
    "s_double2": ("", (("double", "a", 1), ("double", "b", 1))),
    "s_long_double": ("", (("long", "a", 1), ("double", "b", 1))),
    "s_double_long": ("", (("double", "a", 1), ("long", "b", 1))),
    "s_long2": ("", (("long", "a", 2),)),
    "s_mixed16": ("", (("float", "a", 1), ("short", "b", 1), ("char", "c", 1), ("_Bool", "d", 1), ("float", "e", 2))),
    "s_long3": ("", (("long", "a", 3),)),
    "s_big": ("", (("char", "a", 5), ("double", "b", 1), ("short", "c", 9), ("long", "d", 7))),
    "s_x87": ("", (("long double", "a", 1),)),
    "s_x87_int": ("", (("int", "a", 1), ("long double", "b", 1))),
    "s_i128": ("", (("i128", "a", 1),)),
    "s_packed": ("__attribute__((packed))", (("char", "a", 1), ("double", "b", 1), ("int", "c", 1))),
    "s_packed_big": ("__attribute__((packed))",
                     (("char", "a", 1), ("long double", "b", 1), ("short", "c", 1), ("i128", "d", 1))),
    "s_aligned": ("__attribute__((aligned(32)))", (("long", "a", 1), ("float", "b", 1))),
    "s_aligned64": ("__attribute__((aligned(64)))", (("double", "a", 3),)),
    "s_vector": ("", (("v128", "a", 1),)),
    "s_vector4": ("", (("v128", "a", 3), ("v128d", "b", 1))),
    "s_double4": ("", (("double", "a", 2), ("cdouble", "b", 1))),
    "s_double5": ("", (("double", "a", 5),)),
    "s_float4": ("", (("cfloat", "a", 1), ("float", "b", 2))),
    "s_cfloat_int": ("", (("cfloat", "a", 1), ("int", "b", 1))),
    "s_word": ("", (("int", "a", 1), ("short", "b", 2))),
}
COMPLEX_X87 = "clongdouble"
TYPES = (*SCALARS, COMPLEX_X87, "v128", "v128d", *STRUCTS)


@dataclass(frozen=True)
class Function:
    """One signature; its name says what it is about, and `number` where its version is noted."""
    number: int
    name: str
    result: str
    parameters: tuple[str, ...]
    convention: str = ""        # a macro of conventions.h

    @property
    def needs(self) -> str:
        """The processor feature without which it cannot be called, or ""."""
        found = {NEEDS.get(t, "") for t in (self.result, *self.parameters)}
        return max(found)

    @property
    def attributes(self) -> str:
        target = f'__attribute__((target("{self.needs}"))) ' if self.needs else ""
        return target + (f"{self.convention} " if self.convention else "")

    @property
    def prototype(self) -> str:
        parameters = ", ".join(f"{t} a{i}" for i, t in enumerate(self.parameters)) or "void"
        return f"{self.attributes}{self.result} {self.name}({parameters})"


def functions(seed: int) -> list[Function]:
    """Each type as the only argument and among the last of many; any types mixed; vectors; Microsoft's convention."""
    chance = random.Random(seed)
    out: list[Function] = []

    def add(name: str, result: str, *parameters: str, convention: str = "") -> None:
        out.append(Function(len(out), f"f_{name}", result, parameters, convention))

    for t in TYPES:
        add(f"one_{t.replace(' ', '_')}", t, t)
        fill = [chance.choice(("long", "double")) for _ in range(chance.randrange(6, 14))]
        add(f"late_{t.replace(' ', '_')}", chance.choice(TYPES), *fill, t, "char", t)
    for n in range(7, 21):
        add(f"mixed_{n}", chance.choice(TYPES), *(chance.choice(TYPES) for _ in range(n)))
    add("void_20", "long", *["long"] * 20)
    for t in ("v256", "v256d", "v512", "v512i"):
        add(f"{t}_few", t, t, "long", t)
        add(f"{t}_many", t, *[t] * 9, "double", "long double", "s_big")
    for n in range(4):
        plain = ("long", "double", "int", "float", "p_t", "s_word", "s_long3")
        add(f"ms_{n}", chance.choice(("long", "double", "s_word", "s_long3")),
            *(chance.choice(plain) for _ in range(2 + 4 * n)), convention="MS_ABI")
        for convention, results in (("REGCALL", ("s_long3", "s_double2")), ("PRESERVE_MOST", ("double", "s_double2"))):
            add(f"{convention.lower()}_{n}", chance.choice(results),
                *(chance.choice((*plain, "v128d")) for _ in range(1 + 5 * n)), convention=convention)
    return out


def make_and_hash(name: str, parts: list[tuple[str, str]]) -> str:
    """C functions make_NAME and hash_NAME.  parts: (address expression with %s for the value's, bytes or "bool")."""
    c_type = name
    identifier = name.replace(" ", "_")
    make = "".join(f" random_bool({at}, &seed);" if size == "bool" else f" random_bytes({at}, {size}, &seed);"
                   for at, size in parts)
    hashed = "".join(f" h = mix(h, {at}, {'1' if size == 'bool' else size});" for at, size in parts)
    return (f"BODY(void make_{identifier}({c_type} *x, u64 seed), (void)seed; (void)x;{make})\n"
            f"BODY(u64 hash_{identifier}(u64 h, const {c_type} *x), (void)x;{hashed} return h;)\n")


def header(found: list[Function]) -> str:
    out = ["/* Written by generate.py. */\n#include \"conventions.h\"\n"
           "#ifdef VALUES\n#define BODY(f, ...) f { __VA_ARGS__ }\n#else\n#define BODY(f, ...) f;\n#endif\n"]
    for name, size in {**SCALARS, **VECTORS}.items():
        out.append(make_and_hash(name, [("x", "bool" if name == "_Bool" else str(size))]))
    out.append(make_and_hash(COMPLEX_X87, [("x", str(LONG_DOUBLE)), ("(char *)x + 16", str(LONG_DOUBLE))]))
    for name, (attributes, fields) in STRUCTS.items():
        members = " ".join(f"{t} {n}[{count}];" for t, n, count in fields)
        out.append(f"typedef struct {attributes} {{ {members} }} {name};\n")
        parts = [(f"(char *)x + __builtin_offsetof({name}, {n}) + {i} * sizeof({t})", "bool" if t == "_Bool" else
                  str({**SCALARS, **VECTORS}[t])) for t, n, count in fields for i in range(count)]
        out.append(make_and_hash(name, parts))
    out.append(f"enum {{ GENERATED = {len(found)} }};\n")
    out += [f"{f.prototype};\n" for f in found]
    return "".join(out)


def definitions(found: list[Function]) -> str:
    out = ["/* Written by generate.py. */\n"]
    for f in found:
        hashed = "".join(f"    h = hash_{t.replace(' ', '_')}(h, &a{i});\n" for i, t in enumerate(f.parameters))
        out.append(f"#if HAS({f.number})\n{f.prototype}\n{{\n    u64 h = {f.number};\n{hashed}"
                   f"    seen[{f.number}] = V;\n    {f.result} r;\n    make_{f.result.replace(' ', '_')}(&r, h);\n"
                   "    return r;\n}\n#endif\n")
    return "".join(out)


def callers(found: list[Function]) -> str:
    """Half of the calls go through a pointer that the compiler knows nothing about."""
    out = ["/* Written by generate.py. */\n"]
    for f in found:
        target = f'__attribute__((target("{f.needs}"))) ' if f.needs else ""
        made = "".join(f"    {t} a{i};\n    make_{t.replace(' ', '_')}(&a{i}, next(seed));\n"
                       f"    h = hash_{t.replace(' ', '_')}(h, &a{i});\n" for i, t in enumerate(f.parameters))
        arguments = ", ".join(f"a{i}" for i in range(len(f.parameters)))
        result = f.result.replace(" ", "_")
        through = f"    __typeof__({f.name}) *volatile to = {f.name};\n" if f.number % 2 and not f.convention else ""
        out.append(f"{target}static void call_{f.name}(u64 *seed)\n{{\n    u64 h = {f.number};\n{made}{through}"
                   f"    {f.result} want;\n    make_{result}(&want, h);\n"
                   f"    {f.result} got = {'to' if through else f.name}({arguments});\n"
                   f"    if (hash_{result}(0, &got) != hash_{result}(0, &want))\n        wrong(\"{f.name}\");\n}}\n")
    out.append("static const struct caller generated[] = {\n")
    for f in found:
        out.append(f"    {{call_{f.name}, \"{f.name}\", \"{f.needs}\"}},\n")
    return "".join([*out, "};\n"])


def main() -> None:
    folder = Path(sys.argv[1])
    found = functions(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    (folder / "generated.h").write_text(header(found))
    (folder / "functions.inc").write_text(definitions(found))
    (folder / "callers.inc").write_text(callers(found))


if __name__ == "__main__":
    main()
