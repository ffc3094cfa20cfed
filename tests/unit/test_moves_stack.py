"""Whether a function may go on with another stack: what compilers make, and what hands write, on both architectures."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest
from conftest import compile as run_compiler

from psu_bin.arch import aarch64_link, x86_64_link
from psu_bin.attach import inner, patch
from psu_bin.attach.patch import PatchObject
from psu_bin.elf import Binary

LINKS = {"x86_64": x86_64_link, "aarch64": aarch64_link}
# Ordinary code: arrays of variable length in a loop, alloca, a realigned stack, a big frame, a call through a pointer.
ORDINARY = """
void use(void *, ...);
int big(int n) { char a[200000]; use(a); return a[n]; }
int variable(int n) { int s = 0; for (int i = 1; i < n; i++) { int a[i]; use(a, i); s += a[0]; } return s; }
int two(int n) { for (;;) { int a[n]; use(a); { char b[n + 1]; use(b); } if (!a[0]) return n; } }
int dynamic(int n) { void *p = __builtin_alloca(n); use(p); return n; }
int aligned(int n) { _Alignas(64) char a[n > 0 ? 64 : 64]; use(a); return a[n]; }
int aligned_variable(int n) { _Alignas(64) char a[64]; char b[n]; use(a, b); return a[0]; }
int pointer(int (*f)(int), int n) { return f(n) + 1; }
"""
VARIABLE = {"variable", "two", "dynamic", "aligned", "aligned_variable"}
WRITTEN = {
    "x86_64": ("mov %rdi, %rsp", "mov (%rdi), %rsp", "mov 8(%rax), %rsp", "lea (%rax), %rsp", "lea -8(%rdi), %rsp",
               "xchg %rsp, %rdi", "xchg %rdi, %rsp", "xchg %rax, %rsp", "pop %rsp", "cmovne %rax, %rsp", "syscall", "mov %r12, %rsp",
               "lea 60(%rsp,%rax), %rax; mov %rax, %rsp", "mov %rsp, %rax; mov %rdi, %rax; mov %rax, %rsp"),
    "aarch64": ("mov sp, x0", "add sp, x2, #16", "sub sp, x9, #32", "and sp, x9, #~15", "add sp, x3, x4", "svc #0", "orr sp, x1, #1"),
}
INNOCENT = {
    "x86_64": ("mov %rbp, %rsp", "leave", "mov %rsp, %r13; mov %r13, %rsp", "lea -40(%rbp), %rsp", "mov -8(%rbp), %rsp", "and $-64, %rsp",
               "add %rax, %rsp", "mov %esi, %r12d", "mov (%rdi), %r12", "lea (%rax), %r12", "mov %rdi, %r12", "pop %r12", "xchg %rax, %r12"),
    "aarch64": ("mov sp, x29", "sub sp, sp, x16", "add sp, sp, #4080", "sub sp, sp, #1, lsl #12", "sub x9, sp, #96; and sp, x9, #~63", "mov x19, sp; mov sp, x19",
                "cmp x0, #0", "and xzr, x1, x2", "ands xzr, x1, #1", "add x0, x1, #16", "mov x0, sp"),
}


def compiled(folder: Path, arch: str, cc: str, text: str, suffix: str, *flags: str) -> PatchObject:
    native = platform.machine() == arch
    compiler = [cc] if native else [f"{arch}-linux-gnu-gcc"] if cc == "gcc" else ["clang", f"--target={arch}-linux-gnu"]
    if not shutil.which(compiler[0]):
        pytest.skip(f"no {compiler[0]}")
    (folder / f"x.{suffix}").write_text(text)
    run_compiler(*compiler[1:], *flags, "-c", folder / f"x.{suffix}", "-o", folder / "x.o", cc=compiler[0])
    return patch.parse(Binary.read(folder / "x.o"))


def moving(o: PatchObject, arch: str) -> set[str]:
    return {f.name for f in o.functions if LINKS[arch].moves_stack(o.contents[f.section], f.start, f.end)}


@pytest.mark.parametrize("flags", ["-O0", "-O1", "-O2", "-O3 -fno-omit-frame-pointer", "-Os"])
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("arch", LINKS)
def test_what_compilers_make_stays_on_its_stack(tmp_path: Path, arch: str, cc: str, flags: str) -> None:
    o = compiled(tmp_path, arch, cc, ORDINARY, "c", *flags.split())
    assert len(o.functions) >= 7
    # Taking too much for another stack costs direct calls, nothing else: without optimisation, and in clang's code, a little.
    assert moving(o, arch) <= (set() if arch == "x86_64" and cc == "gcc" and flags != "-O0" else VARIABLE)


@pytest.mark.parametrize("arch", LINKS)
def test_what_cannot_be_read_may_go_anywhere(tmp_path: Path, arch: str) -> None:
    o = compiled(tmp_path, arch, "gcc", ".type f, @function\nf:\n.byte 6, 0x5c, 6\n.size f, 3\n", "s")
    assert inner.moves_stack(o, LINKS[arch])


@pytest.mark.parametrize("where", ["before", "between", "behind"])
@pytest.mark.parametrize("arch", LINKS)
def test_what_no_symbol_says_to_be_a_function_may_do_so_too(tmp_path: Path, arch: str, where: str) -> None:
    def function(name: str) -> str:
        return f".type {name}, @function\n{name}:\nnop\nret\n.size {name}, . - {name}\n.balign 16\n"
    text = {"f": function("f"), "g": function("g"), "label": f".globl label\nlabel:\n{WRITTEN[arch][0]}\nret\n"}
    order = {"before": ("label", "f", "g"), "between": ("f", "label", "g"), "behind": ("f", "g", "label")}[where]
    assert inner.moves_stack(compiled(tmp_path, arch, "gcc", "".join(text[n] for n in order), "s"), LINKS[arch])
    assert not inner.moves_stack(compiled(tmp_path, arch, "gcc", text["f"] + text["g"], "s"), LINKS[arch])


@pytest.mark.parametrize("arch", LINKS)
def test_each_way_to_another_stack_is_seen(tmp_path: Path, arch: str) -> None:
    text = "".join(f".globl {kind}_{n}\n.type {kind}_{n}, @function\n{kind}_{n}:\n{code}\nret\n.size {kind}_{n}, . - {kind}_{n}\n"
                   for kind, codes in (("other", WRITTEN[arch]), ("own", INNOCENT[arch])) for n, code in enumerate(codes))
    o = compiled(tmp_path, arch, "gcc", text, "s")
    assert moving(o, arch) == {f"other_{n}" for n in range(len(WRITTEN[arch]))}
