"""A real process that runs what the linker made: Host.

The host is a C program under test plus a small command loop on standard input (map, write, protect, call, ...).
Nothing is instrumented: stubs and slots for all its functions are written into a page near it, and a ModuleView is
made from its own symbol table.  So linking is tested with real compilers' objects and real memory, without shim,
agent or ptrace."""

from __future__ import annotations

import functools
import re
import struct
import subprocess
from pathlib import Path

from once import made_once

from psu_bin import descriptor
from psu_bin.attach import inner, linker, patch
from psu_bin.attach.view import known_variables, ModuleView
from psu_bin.arch import for_machine
from psu_bin.elf import EM_X86_64, PT_TLS, STT_FILE, Binary

LOOP = r"""
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <dlfcn.h>
#include <sys/mman.h>
extern char __ehdr_start;
extern void __register_frame(void *) __attribute__((weak));
static char host_line[1 << 22];
int main(void) {
    setvbuf(stdout, 0, _IOLBF, 0);
    while (fgets(host_line, sizeof host_line, stdin)) {
        char word[512]; unsigned long a[8] = {0}; int n = 0;
        if (sscanf(host_line, "%500s %n", word, &n) != 1) continue;
        char *rest = host_line + n;
        if (!strcmp(word, "base")) printf("%lx\n", (long)&__ehdr_start);
        else if (!strcmp(word, "sym")) {
            rest[strcspn(rest, "\n")] = 0;
            printf("%lx\n", (long)dlsym(RTLD_DEFAULT, rest));
        }
        else if (!strcmp(word, "map")) {
            sscanf(rest, "%lx %lx", &a[0], &a[1]);
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
            printf("%lx\n", (long)mmap((void *)a[0], a[1], 3, flags, -1, 0));
        } else if (!strcmp(word, "write")) {
            char *p; unsigned char *to = (void *)strtoul(rest, &p, 16);
            for (p++; p[0] > ' ' && p[1] > ' '; p += 2) { unsigned v; sscanf(p, "%2x", &v); *to++ = v; }
            puts("ok");
        } else if (!strcmp(word, "read")) {
            sscanf(rest, "%lx %lx", &a[0], &a[1]);
            for (unsigned long i = 0; i < a[1]; i++) printf("%02x", ((unsigned char *)a[0])[i]);
            puts("");
        } else if (!strcmp(word, "protect")) {
            sscanf(rest, "%lx %lx %lx", &a[0], &a[1], &a[2]);
            printf("%x\n", mprotect((void *)a[0], a[1], a[2]));
        } else if (!strcmp(word, "frame")) {
            sscanf(rest, "%lx", &a[0]);
            if (__register_frame) __register_frame((void *)a[0]);
            puts(__register_frame ? "ok" : "no");
        } else if (!strcmp(word, "call")) {
            sscanf(rest, "%lx %lx %lx %lx %lx %lx %lx %lx", a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7);
            long (*f)(long, long, long, long, long, long, long) = (void *)a[0];
            long r = f(a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
            printf("%lx\n", r);
        } else if (!strcmp(word, "quit")) break;
    }
    return 0;
}
"""

NATIVE = ("gcc", "clang", "g++", "clang++", "musl-gcc")      # compilers for this machine


def compile_c(source: str, *flags: str, cc: str = "gcc", name: str = "patch.c", link: bool = False) -> Path:
    """Compile C source to an object file (or link a program); results are cached by content."""
    out = Path(Path(name).stem + ("" if link else ".o"))

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
        subprocess.run([*cc.split(), *([] if link else ["-c"]), name, "-o", out, *flags],
                       cwd=folder, check=True, capture_output=True, text=True)

    return made_once((source, flags, cc, name, link), make) / out


@functools.lru_cache(maxsize=64)
def users_of(path: Path) -> dict[int, set[str]]:
    """By address of a variable: the functions whose code refers to it, as objdump shows them."""
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", path],
                          check=True, capture_output=True, text=True).stdout
    out: dict[int, set[str]] = {}
    function = ""
    for line in text.splitlines():
        heading = re.match(r"[0-9a-f]+ <([^>]+)>:", line)
        if heading:
            function = heading.group(1)
        for found in re.findall(r"# ([0-9a-f]+) <|\$0x([0-9a-f]+)|,0x([0-9a-f]+)\b|0x([0-9a-f]+)\(,", line):
            out.setdefault(int(next(f for f in found if f), 16), set()).add(function)
    return out


def describe(path: Path, stubs: int, slots: int, stack_args: set[str] = frozenset(), hidden: set[str] = frozenset(),
             not_updatable: set[str] = frozenset(), far: bool = False) -> descriptor.Descriptor:
    """A descriptor for a real program, all of whose functions are updatable; stubs and slots as file addresses."""
    b = Binary.read(path)
    table = b.symtab
    rows, files, file = [], [], descriptor.NO_FILE
    for n, (_, info, _, shndx, value, size) in enumerate(table.entries.tolist()):
        kind, bind, name = info & 15, info >> 4, table.name(n)
        if kind == STT_FILE:
            files.append(name)
            file = len(files) - 1
        elif shndx and shndx < 0xFF00 and name and kind in (0, 1, 2, 6, 10) and name not in hidden:
            rows.append((name, {0: 3, 1: 1, 2: 0, 6: 2, 10: 4}[kind], {0: 0, 2: 2}.get(bind, 1), value, size,
                         file if bind == 0 else descriptor.NO_FILE))
    functions: dict[int, list] = {}
    for name, kind, bind, value, size, _ in sorted(rows, key=lambda r: r[2] == 0):
        if kind == descriptor.KIND_FUNCTION and size and name not in {"_start", "_init", "_fini", *not_updatable}:
            functions.setdefault(value, [name, value, size, 0])
            if name in stack_args:
                functions[value][3] |= descriptor.STACK_ARGS
    ordered = [functions[v] for v in sorted(functions)]
    index = {v: n for n, v in enumerate(sorted(functions))}
    users = users_of(path) if b.machine == EM_X86_64 else {}       # reads x86 operands
    numbers = {r[0]: n for n, r in enumerate(rows)}
    symbols = tuple(descriptor.Symbol(
        name, kind, bind, value, size,
        index.get(value, descriptor.NO_FUNCTION) if kind == descriptor.KIND_FUNCTION else descriptor.NO_FUNCTION, file,
        tuple(numbers[u] for u in users.get(value, ()) if u in numbers) if "." in name and kind == 1 else ())
        for name, kind, bind, value, size, file in rows)
    flags = (descriptor.MODULE_PIC if b.type == 3 else 0) | (descriptor.MODULE_FAR if far else 0)
    return descriptor.Descriptor(b.machine, flags, stubs, 16, slots, b.build_id,
                                 tuple(descriptor.Function(n, v, v, s, f | descriptor.ADDRESS_TAKEN, 0, 1)
                                       for n, v, s, f in ordered), symbols, tuple(files), ())


class Host:
    """One running host program.  A context manager."""

    def __init__(self, program: Path, under: tuple[str, ...] = (), **options) -> None:
        """under: qemu-user with its arguments, for a program of another architecture."""
        self.path = program
        self.under = under
        self.direct: list[linker.LinkedObject] = []      # whose calls of themselves lead to their bodies
        self.process = subprocess.Popen([*under, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        base = self.ask("base")
        b = Binary.read(program)
        self.arch = for_machine(b.machine, str(program))
        bias = base if b.type == 3 else 0
        end = bias + max(p.address + p.memsz for p in b.segments)
        # Above the program and its heap, which begins up to 1 GiB after it (arch_randomize_brk), and within reach.
        above = (1 << 30) + (1 << 28) if self.arch.reach > 1 << 30 else 1 << 25
        self.free = (end + above) // 4096 * 4096 if b.type == 3 else 0x20000000 if above > 1 << 30 else end + above & -4096
        stubs = self.map(1 << 16)
        slots = self.map(1 << 15)
        d = describe(program, stubs - bias, slots - bias, **options)
        tls = b.segment(PT_TLS)
        offset = self.arch.link.static_tls_offset(tls.memsz, tls.align, tls.address) if tls else None
        self.view = ModuleView(str(program), bias, d, offset, read=self.read, file=lambda: b)
        for n, f in enumerate(d.functions):
            self.set_stub(self.view.stub(n), bias + d.slot(n))
            self.write(bias + d.slot(n), struct.pack("<Q", bias + f.original))
        self.protect(stubs, 1 << 16, 5)
        self.free += 1 << 28 if self.view.far else 0          # out of reach of AArch64's branches
        self.slot_of = {self.view.stub(n): bias + d.slot(n) for n in range(len(d.functions))}
        if b.type == 3:
            self._instrument_pointers(b, bias)

    def _instrument_pointers(self, b: Binary, bias: int) -> None:
        """Pointers to functions in the program's data lead to the stubs, as instrument would have made them."""
        stubs = {f.original: self.view.stub(n) for n, f in enumerate(self.view.descriptor.functions)}
        for s in b.sections:
            if s.name in (".data.rel.ro", ".got"):
                self.protect((bias + s.address) & -4096, (s.size + 8191) & -4096, 3)
        for offset, kind, _, addend in b.rela.tolist():
            if kind == self.arch.relative and addend in stubs and not offset & 7 and (
                    b.section(".init_array").address > offset) or (
                    kind == self.arch.relative and addend in stubs and offset >= b.section(".fini_array").end):
                self.write(bias + offset, struct.pack("<Q", stubs[addend]))

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def line(self, command: str) -> str:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the host died of {self.process.wait()} at: {command[:200]}")
        return answer.strip()

    def ask(self, command: str) -> int:
        return int(self.line(command), 16)

    def map(self, size: int) -> int:
        size = -(-max(size, 1) // 4096) * 4096
        while (at := self.ask(f"map {self.free:x} {size:x}")) != self.free and self.under:
            self.free += 1 << 20             # qemu-user puts libraries close behind the program
        assert at == self.free, f"no room at {self.free:#x}"
        self.free += size + 4096
        return at

    def write(self, address: int, data: bytes) -> None:
        for n in range(0, len(data), 1 << 20):
            assert self.line(f"write {address + n:x} {data[n:n + (1 << 20)].hex()}") == "ok"

    def read(self, address: int, size: int) -> bytes:
        if self.under:
            return bytes.fromhex(self.line(f"read {address:x} {size:x}"))
        # Through the kernel, so that a wild address is an error and not the end of the host.
        from psu_bin.attach.process import Process
        return Process(self.process.pid).read(address, size)

    def protect(self, address: int, size: int, prot: int) -> None:
        assert self.ask(f"protect {address:x} {-(-size // 4096) * 4096:x} {prot:x}") == 0

    def set_stub(self, stub: int, slot: int) -> None:
        self.write(stub, self.arch.stub(stub, slot, 0))

    def symbol(self, name: str) -> int:
        """Run-time address of a symbol of the program; of a function its stub."""
        s = next(s for s in self.view.descriptor.symbols if s.name == name)
        if s.function != descriptor.NO_FUNCTION:
            return self.view.stub(s.function)
        return self.view.load_bias + s.address

    def call(self, function: str | int, *args: int) -> int:
        """Call through the stub; the result as a signed 64-bit number."""
        address = function if isinstance(function, int) else self.symbol(function)
        words = " ".join(f"{a & (1 << 64) - 1:x}" for a in args)
        value = self.ask(f"call {address:x} {words}")
        return value - (1 << 64) if value >> 63 else value

    def call_int(self, function: str | int, *args: int) -> int:
        """As call, for a function that returns an int: the upper half of the register means nothing."""
        value = self.call(function, *args) & 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value

    def text(self, address: int) -> str:
        return self.read(address, 64).split(b"\0")[0].decode()

    def link(self, *objects: Path, groups: tuple[int, ...] | None = None) -> linker.LinkedPatch:
        """Plan, find rooms, resolve, relocate; nothing is written yet."""
        demand = linker.plan([patch.load(o, self.arch.machine) for o in objects], [self.view], groups)
        placement, resolved = [], []
        self.new_slots = {}
        for m in demand.modules:
            stubs = []
            for _ in m.stubs:
                page = self.map(4096)
                self.set_stub(page, page + 64)
                stubs.append(page)
                self.slot_of[page] = page + 64
            objects_at = tuple(self.map(o.size) for o in m.objects)
            placement.append(linker.ModulePlacement(
                objects_at, tuple(self.mirror(at, o.mirrored) for at, o in zip(objects_at, m.objects)),
                self.map(m.constants.size), self.map(m.variables.size), tuple(stubs)))
            resolved.append({name: self.ask(f"sym {name}") for name in m.names})
        return linker.relocate(demand, placement, resolved)

    def mirror(self, at: int, size: int) -> int:
        """The distance from an object to room for the stubs of calls inside it; 0: it wants none."""
        distance = 8 * self.arch.site_form.step
        if size:
            assert self.ask(f"map {at + distance:x} {size:x}") == at + distance
        return distance if size else 0

    def turn(self, o: linker.LinkedObject) -> None:
        """Make every call inside the object lead to a stub, as attach does before one of its functions gets another version."""
        form = self.arch.site_form
        stubs = {x.body: x.view.stub(x.function) for x in o.replaced} | {x.body: x.stub for x in o.canonical}
        distance = o.mirror[0] - o.address if o.mirror[1] else 0
        for r in o.regions:
            self.protect(r.address, len(r.data), 7)
        width = self.arch.fields[form.kind].size
        for at, callee in inner.decode(self.read(*o.calls), "host") if o.calls[1] else ():
            field, body = self.read(o.address + at, width), o.address + callee
            assert form.target(o.address + at, field) == body, "it leads to the body at first"
            to = body + distance if distance else stubs[body]
            turned = form.turned(o.address + at, field, to)
            assert not distance or sum(a != b for a, b in zip(field, turned)) == 1, "only one byte changes"
            self.write(o.address + at, turned)
            if distance:
                self.write(to, form.stub(to, self.slot_of[stubs[body]], inner.STUB_FLAGS))
        if distance:
            self.protect(*o.mirror, 5)

    def attach(self, *objects: Path, groups: tuple[int, ...] | None = None) -> linker.LinkedPatch:
        """Link, write, and point the slots straight at the new bodies."""
        linked = self.link(*objects, groups=groups)
        for o in self.direct:
            self.turn(o)
        self.direct = [o for linked_objects, _ in linked.modules for o in linked_objects]
        variables = dict(self.view.known_variables)
        functions = dict(self.view.known_functions)
        constants = list(self.view.constants)
        for objects_, store in linked.modules:
            for r in (*(r for o in objects_ for r in o.regions), *store.regions):
                self.write(r.address, r.data)
            for o in objects_:
                for r in o.regions:
                    self.protect(r.address, len(r.data), r.prot)
                if o.eh_frame:
                    self.line(f"frame {o.eh_frame:x}")
                for x in o.replaced:
                    self.write(self.slot_of[x.view.stub(x.function)], struct.pack("<Q", x.body))
                for x in o.canonical:
                    self.write(self.slot_of[x.stub], struct.pack("<Q", x.body))
                    if not x.made_before:
                        self.protect(x.stub, 4096, 7)
                    functions[x.identity] = x.stub
            constants += store.constants
            made = known_variables([*((i, a, s) for i, (a, s) in variables.items()), *store.variables])
            variables.update(made)
        old = self.view
        self.view = ModuleView(old.path, old.load_bias, old.descriptor, old.tls_offset, variables, functions,
                               tuple(constants), {}, self.read, old.file)
        return linked


@functools.lru_cache(maxsize=64)
def program(source: str, *flags: str, cc: str = "gcc", name: str = "program.c",
            more: tuple[tuple[str, str], ...] = ()) -> Path:
    """A host program around `source` and `more` files (name, source)."""
    linking = [f for f in flags if f.startswith(("-no-pie", "-l", "-Wl", "-flto"))]
    compiling = [f for f in flags if not f.startswith(("-no-pie", "-l", "-Wl"))]
    loop = compile_c(LOOP, "-O1", "-w", *(f for f in flags if "pi" in f and "-f" in f), name="host_loop.c",
                     cc="gcc" if cc in NATIVE else cc)
    bodies = [compile_c(text, "-w", *compiling, cc=cc, name=file) for file, text in ((name, source), *more)]

    def make(folder: Path) -> None:
        subprocess.run([*cc.split(), loop, *bodies, "-o", folder / "host", "-rdynamic", "-ldl", "-pthread", *linking],
                       check=True, capture_output=True, text=True)

    return made_once((cc, loop, bodies, flags), make) / "host"
