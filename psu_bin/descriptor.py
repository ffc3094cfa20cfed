"""What instrument leaves in a module so that attach never has to disassemble it: the descriptor.

It lies in a read-only loaded section of the instrumented file (`.psu.desc`), found at run time through the
dynamic tag DT_PSU, whose value is the section's file address.  Stub i and slot i of function i are at
`stubs + i * stub_size` and `slots + i * 8`.  The header is plain; the tables are columns behind it in one LZMA
stream, because names and sizes in columns shrink to some 15 bytes a function, and attach unpacks 10,000 in milliseconds.
The end of the stream may be elsewhere (section `.psu.desc.rest`): it fills what other tables leave.

All addresses are file addresses (add the load bias for run-time ones), sizes are bytes.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate, starmap
from types import ModuleType

from psu_bin.errors import PsuError

DT_PSU = 0x60505355
SECTION_STUBS = ".psu.text"
SECTION_SLOTS = ".psu.slots"
SECTION_DESCRIPTOR = ".psu.desc"
SECTION_REST = ".psu.desc.rest"
SHIM_SONAME = "libpsu_shim.so"

MAGIC = b"PSUDESC\0"
VERSION = 5
# magic, version, header size, machine, module flags, functions, stub size, stubs, slots, packed size, unpacked size,
# CRC-32 of the unpacked tables, build-id length, build-id of the input file, address and size of what does not follow here
HEADER = struct.Struct("<8sIIIIIIQQIIII32sQI")
# Neither header nor trailer, and parameters for text in bytes: 20 % less than zlib's best.
_FILTER_LZMA2 = 0x21
_PACKING = {"id": _FILTER_LZMA2, "preset": 6, "dict_size": 1 << 20, "lc": 0, "lp": 0, "pb": 0}

# Module flags.
MODULE_PIC = 1            # ET_DYN: file addresses need the load bias
MODULE_IBT = 2            # the file asks for indirect branch tracking: stubs begin with endbr64
MODULE_MOVES_STACK = 4    # code of the module may go on with another stack, by instructions of its own
MODULE_FAR = 8            # stubs are out of reach of direct calls: who refers to one takes its address

# Function flags.
STACK_ARGS = 1            # the original may touch its caller's stack arguments: side-frame gates
DETOURED = 2              # the original's entry is a jump to the stub; `original` is the moved copy
ADDRESS_TAKEN = 4         # its address is in code, data or a dynamic symbol
OWN_CONVENTION = 8        # not known to follow the psABI (hand-written): gates keep every register and the flags
MISALIGNED = 16           # some caller does not align the stack to 16 bytes for it (GCC -fipa-stack-alignment)

# Symbol kinds.
KIND_FUNCTION, KIND_OBJECT, KIND_TLS, KIND_NOTYPE, KIND_IFUNC = range(5)
# Symbol bindings.
BIND_LOCAL, BIND_GLOBAL, BIND_WEAK = range(3)

_AGAIN = "run psu-bin instrument again, and start the result"

NO_FUNCTION = 0xFFFFFFFF
NO_FILE = 0xFFFFFFFF


@dataclass(frozen=True)
class Function:
    """One updatable function; its index in Descriptor.functions is its stub and slot number."""
    name: str             # the first of its symbols, globals before locals; the others are in Descriptor.symbols
    address: int          # its entry in the input file
    original: int         # what the slot holds at first: the entry, or the moved copy of a detoured function
    size: int
    flags: int
    preserve: int         # volatile registers that callers rely on: bit 0..15 GPR number, 16..31 vector register (AArch64:
    #                       arch/aarch64_registers.py, _preserve)
    callers: int          # direct call sites (0 and not ADDRESS_TAKEN: inlined everywhere or unused)


@dataclass(frozen=True)
class Symbol:
    """A symbol of the module that a patch can bind to: function, variable, static or not."""
    name: str
    kind: int
    bind: int
    address: int          # for KIND_TLS: offset in the module's TLS image
    size: int
    function: int         # index in Descriptor.functions, or NO_FUNCTION
    file: int             # index in Descriptor.files of a local symbol's STT_FILE, or NO_FILE
    users: tuple[int, ...] = ()  # of static locals (name.N) and copies (f.isra.N): who refers to it, indices in `symbols`


@dataclass(frozen=True)
class Descriptor:
    """Everything attach needs to know about one instrumented module."""
    machine: int
    flags: int
    stubs: int
    stub_size: int
    slots: int
    build_id: bytes       # of the input file; b"" if it had none
    functions: tuple[Function, ...]
    symbols: tuple[Symbol, ...]
    files: tuple[str, ...]
    # ascending: the fields (Arch.site_form) of direct calls that lead to a function's entry until that has a patch
    sites: tuple[int, ...]

    def stub(self, index: int) -> int:
        """File address of function `index`'s stub, its canonical address."""
        return self.stubs + index * self.stub_size

    def slot(self, index: int) -> int:
        """File address of function `index`'s slot."""
        return self.slots + index * 8


def _pack_names(names: list[str]) -> bytes:
    return "\0".join(names).encode("utf-8", "surrogateescape")


HAS_FUNCTION = 0x80       # in the stored kind of a symbol


def _column(values: Iterable[int], code: str) -> bytes:
    """Numbers modulo 2^32 or 2^64, first all their lowest bytes, then all second ones: that packs better."""
    mask = 0xFFFFFFFF if code == "I" else 0xFFFFFFFFFFFFFFFF
    column = array(code, [v & mask for v in values])
    raw = column.tobytes()
    return b"".join(raw[i::column.itemsize] for i in range(column.itemsize))


def _differences(values: list[int]) -> list[int]:
    return [b - a for a, b in zip((0, *values), values)]


def encode(d: Descriptor) -> bytes:
    """The bytes of the descriptor section.

    What a function and its symbols share is stored once: a symbol with a function is at its address, its size is stored
    as a difference, and a function goes by the name of its first symbol unless it says another."""
    functions, symbols = d.functions, d.symbols
    default = _default_names([s.function for s in symbols], [s.name for s in symbols])
    with_function = [s for s in symbols if s.function != NO_FUNCTION]
    if any(s.address != functions[s.function].address for s in with_function):
        raise ValueError("a symbol is not where its function is")
    parts = [
        _pack_names(["" if default.get(i) == f.name else f.name for i, f in enumerate(functions)]),
        _column(_differences([f.address for f in functions]), "Q"),
        _column([f.original - f.address for f in functions], "Q"),
        _column([f.size for f in functions], "I"),
        _column([f.flags for f in functions], "I"),
        _column([f.preserve for f in functions], "I"),
        _column([f.callers for f in functions], "I"),
        _pack_names([s.name for s in symbols]),
        _column([s.kind | (HAS_FUNCTION if s.function != NO_FUNCTION else 0) for s in symbols], "I"),
        _column([s.bind for s in symbols], "I"),
        _column(_differences([s.file for s in symbols]), "I"),
        _column(_differences([s.function for s in with_function]), "I"),
        _column(_differences([s.address for s in symbols if s.function == NO_FUNCTION]), "Q"),
        _column([s.size - (functions[s.function].size if s.function != NO_FUNCTION else 0) for s in symbols], "Q"),
        _pack_names(list(d.files)),
        array("I", [n for i, s in enumerate(symbols) if s.users for n in (i, len(s.users), *s.users)]).tobytes(),
        _column(_differences(list(d.sites)), "Q")]
    body = struct.pack("<4I", len(functions), len(symbols), len(d.files), len(d.sites))
    body += b"".join(struct.pack("<I", len(p)) + p for p in parts)
    packed = pack(body)
    return HEADER.pack(MAGIC, VERSION, HEADER.size, d.machine, d.flags, len(functions), d.stub_size,
                       d.stubs, d.slots, len(packed), len(body), zlib.crc32(body),
                       len(d.build_id), d.build_id[:32].ljust(32, b"\0"), 0, 0) + packed


_REST = struct.Struct("<QI")           # the end of the header


def _lzma() -> ModuleType:
    try:
        import lzma
    except ImportError as e:
        raise PsuError("Python", "was built without its lzma module, which psu-bin needs",
                       "use the distribution's python3, or build Python where liblzma-dev is installed") from e
    return lzma


def pack(body: bytes) -> bytes:
    lzma = _lzma()
    packed: bytes = lzma.compress(body, format=lzma.FORMAT_RAW, filters=[_PACKING])
    return packed


def unpack(packed: bytes, size: int) -> bytes:
    """The first `size` bytes of what was packed.  Raises ValueError when it is damaged."""
    lzma = _lzma()
    try:
        body: bytes = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_PACKING]).decompress(packed, size)
    except (lzma.LZMAError, EOFError) as e:
        raise ValueError(e) from e
    return body


def split(data: bytes, first: int, rest: int) -> tuple[bytes, bytes]:
    """`data`, from encode, as its first `first` bytes and what will be at address `rest`."""
    behind = HEADER.size - _REST.size
    return data[:behind] + _REST.pack(rest, len(data) - first) + data[HEADER.size:first], data[first:]


def gather(read: Callable[[int, int], bytes], at: int, where: str) -> bytes:
    """The descriptor at address `at` in one piece, as encode made it; read: (address, size) -> bytes.

    Raises PsuError when there is no descriptor of this version."""
    header = read(at, HEADER.size)
    size = packed_size(header, where)
    rest, length = HEADER.unpack_from(header)[-2:]
    if length > size - HEADER.size:
        raise PsuError(where, "its psu-bin descriptor is damaged: size of the rest", _AGAIN)
    data = read(at, size - length)
    return data[:HEADER.size - _REST.size] + bytes(_REST.size) + data[HEADER.size:] + (read(rest, length) if length else b"")


def _default_names(functions: list[int], names: list[str]) -> dict[int, str]:
    """The name of each function's first symbol; `functions`, `names`: of all symbols."""
    out: dict[int, str] = {}
    for function, name in zip(functions, names):
        out.setdefault(function, name)
    return out


def packed_size(header: bytes, where: str) -> int:
    """Bytes of the whole, from its first HEADER.size bytes.

    Raises PsuError when they are no descriptor of this version."""
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise PsuError(where, "its psu-bin descriptor is damaged", _AGAIN)
    fields = HEADER.unpack_from(header)
    if fields[1] != VERSION or fields[2] != HEADER.size:
        raise PsuError(where, f"instrumented by another version of psu-bin: descriptor version {fields[1]}, "
                              f"this is {VERSION}", "use that version of psu-bin")
    return HEADER.size + fields[9]


def decode(data: bytes, where: str) -> Descriptor:
    """The descriptor in `data`, one piece; `where` names the module in errors.  Raises PsuError when it is damaged."""
    size = packed_size(data, where)
    (_, _, _, machine, flags, count, stub_size, stubs, slots, _, raw_size, check,
     id_len, build_id, _, _) = HEADER.unpack_from(data)
    try:
        body = unpack(data[HEADER.size:size], raw_size)
        if len(body) != raw_size or id_len > 32:
            raise ValueError("size")
        if zlib.crc32(body) != check:
            raise ValueError("checksum")
        n_functions, n_symbols, n_files, n_sites = struct.unpack_from("<4I", body)
        parts, at = [], 16
        while at < len(body):
            (length,) = struct.unpack_from("<I", body, at)
            parts.append(body[at + 4:at + 4 + length])
            at += 4 + length
        if n_functions != count:
            raise ValueError("function count")
        reader = iter(parts)
        names = _names(next(reader), n_functions)
        address = _sums(_numbers(next(reader), "Q", n_functions), "Q")
        moved, *columns = [_numbers(next(reader), c, n_functions) for c in "QIIII"]
        symbol_names = _names(next(reader), n_symbols)
        kind, bind = [_numbers(next(reader), "I", n_symbols) for _ in range(2)]
        file = _sums(_numbers(next(reader), "I", n_symbols), "I")
        has = [k & HAS_FUNCTION for k in kind]
        count = sum(map(bool, has))
        function_of = iter(_sums(_numbers(next(reader), "I", count), "I"))
        address_of = iter(_sums(_numbers(next(reader), "Q", n_symbols - count), "Q"))
        function = [next(function_of) if h else NO_FUNCTION for h in has]
        default = _default_names(function, symbol_names)
        functions = tuple(map(Function, [n or default.get(i, "") for i, n in enumerate(names)], address,
                              [a + m & 0xFFFFFFFFFFFFFFFF for a, m in zip(address, moved)], *columns))
        where_of = [address[f] if h else next(address_of) for h, f in zip(has, function)]
        sizes = [n + functions[f].size & 0xFFFFFFFFFFFFFFFF if h else n
                 for h, f, n in zip(has, function, _numbers(next(reader), "Q", n_symbols))]
        files = tuple(_names(next(reader), n_files))
        users = _users(next(reader))
        sites = tuple(_sums(_numbers(next(reader), "Q", n_sites), "Q"))
        kind = [k & ~HAS_FUNCTION for k in kind]
        used_by = [users.get(i, ()) for i in range(n_symbols)]
        symbols = tuple(starmap(Symbol, zip(symbol_names, kind, bind, where_of, sizes, function, file, used_by)))
    except (ValueError, IndexError, struct.error, StopIteration) as e:
        raise PsuError(where, f"its psu-bin descriptor is damaged: {e}", _AGAIN) from e
    return Descriptor(machine, flags, stubs, stub_size, slots, build_id[:id_len], functions, symbols, files,
                      sites)


def _names(blob: bytes, count: int) -> list[str]:
    names = blob.decode("utf-8", "surrogateescape").split("\0") if count else []
    if len(names) != count:
        raise ValueError("names")
    return names


def _numbers(blob: bytes, code: str, count: int) -> list[int]:
    """The inverse of _column."""
    width = array(code).itemsize
    if len(blob) != count * width:
        raise ValueError("column")
    raw = bytearray(len(blob))
    for i in range(width):
        raw[i::width] = blob[i * count:(i + 1) * count]
    return array(code, bytes(raw)).tolist()


def _sums(differences: list[int], code: str) -> list[int]:
    """The inverse of _differences."""
    mask = 0xFFFFFFFF if code == "I" else 0xFFFFFFFFFFFFFFFF
    return [total & mask for total in accumulate(differences)]


def _users(blob: bytes) -> dict[int, tuple[int, ...]]:
    numbers = array("I", blob)
    out, at = {}, 0
    while at < len(numbers):
        symbol, count = numbers[at], numbers[at + 1] if at + 1 < len(numbers) else -1
        if count < 0 or at + 2 + count > len(numbers):
            raise ValueError("users")
        out[symbol] = tuple(numbers[at + 2:at + 2 + count])
        at += 2 + count
    return out
