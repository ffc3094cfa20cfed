"""What instrument leaves in a module so that attach never has to disassemble it: the descriptor.

It lies in a read-only loaded section of the instrumented file (`.psu.desc`), found at run time through the
dynamic tag DT_PSU, whose value is the section's file address.  Stub i and slot i of function i are at
`stubs + i * stub_size` and `slots + i * 8`.  The header is plain; the tables are columns behind it in one zlib
stream, because names and sizes in columns shrink to a few bytes a function, and attach unpacks 10,000 in milliseconds.

All addresses are file addresses (add the load bias for run-time ones), sizes are bytes.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from dataclasses import dataclass

from psu_bin.errors import PsuError

DT_PSU = 0x60505355
SECTION_STUBS = ".psu.text"
SECTION_SLOTS = ".psu.slots"
SECTION_DESCRIPTOR = ".psu.desc"
SHIM_SONAME = "libpsu_shim.so"

MAGIC = b"PSUDESC\0"
VERSION = 1
# magic, version, header size, machine, module flags, functions, stub size, stubs, slots, packed size, unpacked size,
# build-id length, build-id of the input file
HEADER = struct.Struct("<8sIIIIIIQQIII32s")

# Module flags.
MODULE_PIC = 1            # ET_DYN: file addresses need the load bias
MODULE_IBT = 2            # the file asks for indirect branch tracking: stubs begin with endbr64

# Function flags.
STACK_ARGS = 1            # the original may touch its caller's stack arguments: side-frame gates
DETOURED = 2              # the original's entry is a jump to the stub; `original` is the moved copy
ADDRESS_TAKEN = 4         # its address is in code, data or a dynamic symbol
OWN_CONVENTION = 8        # not known to follow the psABI (hand-written): gates keep every register and the flags

# Symbol kinds.
KIND_FUNCTION, KIND_OBJECT, KIND_TLS, KIND_NOTYPE, KIND_IFUNC = range(5)
# Symbol bindings.
BIND_LOCAL, BIND_GLOBAL, BIND_WEAK = range(3)

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
    preserve: int         # volatile registers that callers rely on: bit 0..15 GPR number, 16..31 vector register
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
    users: tuple[int, ...] = ()  # static locals (name.N) only: indices in `symbols` of the functions that refer to it


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

    def stub(self, index: int) -> int:
        """File address of function `index`'s stub, its canonical address."""
        return self.stubs + index * self.stub_size

    def slot(self, index: int) -> int:
        """File address of function `index`'s slot."""
        return self.slots + index * 8


def _pack_names(names: list[str]) -> bytes:
    return "\0".join(names).encode("utf-8", "surrogateescape")


def _columns(rows: list[tuple[int, ...]], code: str) -> list[bytes]:
    """The rows' columns; ascending columns (addresses) are stored as differences modulo 2^32 or 2^64."""
    out = []
    for column, typecode in zip(zip(*rows) if rows else [()] * len(code), code):
        mask = 0xFFFFFFFF if typecode == "I" else 0xFFFFFFFFFFFFFFFF
        delta = [(b - a) & mask for a, b in zip((0, *column), column)]
        out.append(array(typecode, delta).tobytes())
    return out


FUNCTION_COLUMNS = "QQIIII"
SYMBOL_COLUMNS = "IIQQII"


def encode(d: Descriptor) -> bytes:
    """The bytes of the descriptor section."""
    parts = [_pack_names([f.name for f in d.functions]),
             *_columns([(f.address, f.original, f.size, f.flags, f.preserve, f.callers)
                        for f in d.functions], FUNCTION_COLUMNS),
             _pack_names([s.name for s in d.symbols]),
             *_columns([(s.kind, s.bind, s.address, s.size, s.function, s.file)
                        for s in d.symbols], SYMBOL_COLUMNS),
             _pack_names(list(d.files)),
             array("I", [n for i, s in enumerate(d.symbols) if s.users
                         for n in (i, len(s.users), *s.users)]).tobytes()]
    body = struct.pack("<3I", len(d.functions), len(d.symbols), len(d.files))
    body += b"".join(struct.pack("<I", len(p)) + p for p in parts)
    packed = zlib.compress(body, 9)
    return HEADER.pack(MAGIC, VERSION, HEADER.size, d.machine, d.flags, len(d.functions), d.stub_size,
                       d.stubs, d.slots, len(packed), len(body), len(d.build_id),
                       d.build_id[:32].ljust(32, b"\0")) + packed


def packed_size(header: bytes, where: str) -> int:
    """Bytes of the whole section, from its first HEADER.size bytes.

    Raises PsuError when they are no descriptor of this version."""
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise PsuError(where, "its psu-bin descriptor is damaged")
    fields = HEADER.unpack_from(header)
    if fields[1] != VERSION or fields[2] != HEADER.size:
        raise PsuError(where, f"instrumented by another version of psu-bin: descriptor version {fields[1]}, "
                              f"this is {VERSION}", "use that version of psu-bin")
    return HEADER.size + fields[9]


def decode(data: bytes, where: str) -> Descriptor:
    """The descriptor in `data`; `where` names the module in errors.  Raises PsuError when it is damaged."""
    size = packed_size(data, where)
    (_, _, _, machine, flags, count, stub_size, stubs, slots, _, raw_size, id_len,
     build_id) = HEADER.unpack_from(data)
    try:
        unpacker = zlib.decompressobj()
        body = unpacker.decompress(data[HEADER.size:size], raw_size)
        if len(body) != raw_size or id_len > 32:
            raise ValueError("size")
        n_functions, n_symbols, n_files = struct.unpack_from("<3I", body)
        parts, at = [], 12
        while at < len(body):
            (length,) = struct.unpack_from("<I", body, at)
            parts.append(body[at + 4:at + 4 + length])
            at += 4 + length
        if n_functions != count:
            raise ValueError("function count")
        reader = iter(parts)
        names = _names(next(reader), n_functions)
        columns = [_undelta(next(reader), c, n_functions) for c in FUNCTION_COLUMNS]
        functions = tuple(map(Function, names, *columns))
        names = _names(next(reader), n_symbols)
        columns = [_undelta(next(reader), c, n_symbols) for c in SYMBOL_COLUMNS]
        files = tuple(_names(next(reader), n_files))
        users = _users(next(reader))
        symbols = tuple(Symbol(*row, users.get(i, ())) for i, row in enumerate(zip(names, *columns)))
    except (ValueError, struct.error, zlib.error, StopIteration) as e:
        raise PsuError(where, f"its psu-bin descriptor is damaged: {e}") from e
    return Descriptor(machine, flags, stubs, stub_size, slots, build_id[:id_len], functions, symbols, files)


def _names(blob: bytes, count: int) -> list[str]:
    names = blob.decode("utf-8", "surrogateescape").split("\0") if count else []
    if len(names) != count:
        raise ValueError("names")
    return names


def _undelta(blob: bytes, typecode: str, count: int) -> list[int]:
    mask = 0xFFFFFFFF if typecode == "I" else 0xFFFFFFFFFFFFFFFF
    column = array(typecode, blob)
    if len(column) != count:
        raise ValueError("column")
    total, out = 0, []
    for d in column:
        total = (total + d) & mask
        out.append(total)
    return out


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
