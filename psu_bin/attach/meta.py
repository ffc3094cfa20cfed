"""psu-bin's own notes about one process, kept in the process: Notes.

The shim knows gates, objects and counters.  What belongs to which patch, the order of versions of a function, which gate
serves which function, and where interned data lies is known only here.  The notes are one blob of zlib-packed JSON in
the target's memory, replaced as a whole by each commit, so that they are always those of the last committed transaction
whoever dies when.

A history holds patch ids, oldest first: the last one is current, an empty one means the original code.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import TypeVar

from psu_bin.attach.process import Process
from psu_bin.attach.shim import Runtime
from psu_bin.errors import PsuError

FORMAT = 5
HISTORY = 64          # versions of a function that a revert can go back through
FREED_KEPT = 16       # freed patches that status still lists
LARGEST = 1 << 28     # bytes of the notes, unpacked
_END = 1 << 64        # no number in them is as large
_LENGTH = struct.Struct("<Q")


@dataclass
class FunctionNotes:
    """One function that was patched at least once.  `module` and `number` name its stub."""
    module: str                                   # Module.key, or "" for a new function made by a patch
    number: int                                   # index in the module's descriptor, or in Notes.stubs
    name: str
    history: list[int] = field(default_factory=list)
    gates: list[list[int]] = field(default_factory=list)   # [kind, gate, counter index], given for ever
    current: list[int] = field(default_factory=list)       # [kind, gate, counter index]; []: the original
    body: int = 0                                 # entry of the current version; 0: the original, without a gate


@dataclass
class PatchNotes:
    """One attach: its number, what it replaced, and where its code is."""
    id: int
    name: str
    module: str
    functions: list[str]
    objects: list[int]                            # counter indices of its objects that may still be alive
    sources: list[list[str]]                      # [path as given, sha256 of the object file]
    bytes: int
    code: list[list] = field(default_factory=list)   # [function, run-time address, size]: names what keeps it alive
    reverted: bool = False
    pinned: list[str] = field(default_factory=list)  # new functions whose address the program may hold


@dataclass
class StubNotes:
    """A new function with an address of its own: stub and slot made by psu-bin."""
    module: str
    file: str
    name: str
    stub: int
    slot: int


@dataclass
class Store:
    """A region that lives as long as the process.  kind: "const", "data" or "stubs"."""
    kind: str
    module: str
    address: int
    size: int
    used: int


@dataclass
class Notes:
    """Everything psu-bin remembers about a process."""
    next_patch: int = 1
    next_gate: list[int] = field(default_factory=lambda: [0, 0, 0])
    patches: list[PatchNotes] = field(default_factory=list)
    functions: list[FunctionNotes] = field(default_factory=list)
    stubs: list[StubNotes] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    variables: list[list] = field(default_factory=list)   # [module, file, name, address, size]
    constants: list[list] = field(default_factory=list)   # [module, crc32, address, size, align]
    imports: list[list] = field(default_factory=list)     # [module, name, where it leads, entry]: imports.py
    pinned: list[str] = field(default_factory=list)       # keys of libraries that a dlclose leaves where they are
    # [oldest patch, newest patch, module and number of a function as in FunctionNotes, registers that code of these two, and of none
    # or some between them, expects it to leave alone]
    relied: list[list] = field(default_factory=list)
    # Of objects that call themselves: [counter index, address, the table of those calls, its size, distance to the room of
    # the stubs that they can be turned to (0: they need none)]: inner.py
    calls: list[list] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)      # globals of source files that the program does not have: together.py

    def patch(self, patch_id: int) -> PatchNotes | None:
        return next((p for p in self.patches if p.id == patch_id), None)

    def relied_on(self) -> dict[tuple[str, int], int]:
        """By (module, number): the registers that code of patches expects the function to leave alone."""
        out: dict[tuple[str, int], int] = {}
        for _, _, module, number, registers in self.relied:
            out[module, number] = out.get((module, number), 0) | registers
        return out

    def rely(self, rows: list[tuple[int, str, int, int]]) -> None:
        """Note (patch, module, number, registers)."""
        known = {(m, n, registers): row for row in self.relied for m, n, registers in [row[2:]]}
        for patch_id, *key in rows:
            row = known.get(tuple(key))
            if row is None:
                row = known[tuple(key)] = [patch_id, patch_id, *key]
                self.relied.append(row)
            row[:2] = min(row[0], patch_id), max(row[1], patch_id)

    def forget_relied(self, patches: set[int]) -> None:
        """Drop what none of these patches can rely on."""
        left = [([p for p in patches if row[0] <= p <= row[1]], row) for row in self.relied]
        self.relied = [[min(found), max(found), *row[2:]] for found, row in left if found]


# What each list holds, as types or, for rows of fixed length, a type for each place.
_SHAPES: dict[str, type | tuple[type, ...]] = {
    "next_gate": int, "variables": (str, str, str, int, int), "constants": (str, int, int, int, int),
    "imports": (str, str, int, int), "calls": (int, int, int, int, int), "relied": (int, int, str, int, int), "pinned": str, "brought": str,
    "history": int, "gates": (int, int, int), "current": int,
    "functions": str, "objects": int, "sources": (str, str), "code": (str, int, int)}
_ROWS = {"patches": PatchNotes, "functions": FunctionNotes, "stubs": StubNotes, "stores": Store}


def encode(notes: Notes) -> bytes:
    """The blob, its own length first."""
    rows = {key: [vars(row) for row in value] if key in _ROWS else value for key, value in vars(notes).items()}
    packed = zlib.compress(json.dumps({"format": FORMAT, **rows}, separators=(",", ":")).encode(), 6)
    return _LENGTH.pack(len(packed)) + packed


def read(process: Process, runtime: Runtime) -> Notes:
    """The notes in the target; fresh ones when nothing was ever attached.  Raises PsuError when they are damaged."""
    if not runtime.meta:
        return Notes()
    raw = process.read(runtime.meta, runtime.meta_size)
    try:
        (length,) = _LENGTH.unpack_from(raw)
        unpacker = zlib.decompressobj()
        loaded = json.loads(unpacker.decompress(raw[8:8 + length], LARGEST))
        if loaded.pop("format") != FORMAT:
            raise PsuError(process.where, "was patched by another version of psu-bin", "use that version")
        for key, row in _ROWS.items():
            loaded[key] = [_checked(row(**x)) for x in loaded[key]]
        notes = _checked(Notes(**loaded))
        if any(not module and number >= len(notes.stubs) for _, _, module, number, _ in notes.relied):
            raise ValueError("relied")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error, zlib.error) as e:
        raise PsuError(process.where, f"psu-bin's notes in it are damaged: {e}") from e
    return notes


Row = TypeVar("Row")


def _checked(row: Row) -> Row:
    """`row`, a value of one of the classes above, when each of its values is of the declared type; else ValueError."""
    for key, value in vars(row).items():
        kind = type(row).__annotations__[key]       # a string: annotations are not evaluated
        if not kind.startswith("list"):
            good = type(value).__name__ == kind and (kind != "int" or 0 <= value < _END)
        elif isinstance(row, Notes) and key in _ROWS:
            good = True
        else:
            shape = _SHAPES[key]
            good = type(value) is list and (
                all(type(x) is list and tuple(map(type, x)) == shape and all(0 <= n < _END for n in x if type(n) is int)
                    for x in value) if isinstance(shape, tuple)
                else all(type(x) is shape and (type(x) is not int or 0 <= x < _END) for x in value))
        if not good:
            raise ValueError(f"{key} of {type(row).__name__}")
    if isinstance(row, FunctionNotes) and (len(row.current) not in (0, 3) or any(not 0 <= g[0] < 3 for g in row.gates)
                                           or not 0 <= (row.current or [0])[0] < 3):
        raise ValueError(f"gates of {row.name}")
    if isinstance(row, Notes) and len(row.next_gate) != 3:
        raise ValueError("next_gate")
    return row
