"""Calls that do not go through the table of stubs, in a running program and in its patch objects: turned to stubs before a
function gets another version, and back when that is over.

In the program these are direct calls, which lead to a function's entry until it has a patch (instrument/sites.py).  Turned, they
lead to a stub (mirrors.py), and the slot decides.  In a patch object they are calls from one of its functions to another,
which lead to the body while that is the current version (inner.py).

Which of the two a call is, is read from the program's memory.  The agent makes the change (shim/turn.c says why threads may be
executing there), and makes sure that every thread has seen it.  What stays turned, because psu-bin was killed or a commit
refused, costs a jump and is right all the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from psu_bin import arch as arch_package
from psu_bin.arch import Arch
from psu_bin.attach import inner, mirrors, pressure, shim
from psu_bin.attach.commit import Switch
from psu_bin.attach.proc import Mapping
from psu_bin.attach.process import PAGE, Process
from psu_bin.attach.target import Module
from psu_bin.descriptor import MODULE_IBT
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.transaction import Transaction

ATTEMPTS = 4
MANY = (256 << 10) // PAGE  # pages of code that become the process' own without a look at what its control group has left
APART = 4                  # so many pages that need no stub are filled rather than that one mapping becomes three
READ_EXECUTE = 5
AT_ONCE = 100              # ranges in one command: a record that fits the fixed buffer
_HINT = "a debugger's breakpoint? take it out and try again"


class Spot(NamedTuple):
    """Bytes of code that say where calls of a function lead."""
    at: int                    # run-time address
    open: bytes                # to the function itself
    closed: tuple[bytes, ...]  # what it may hold when turned to the stub; the first is what is written
    name: str                  # of the function


class Site(NamedTuple):
    """A direct call in a module."""
    at: int                    # run-time address of its field
    field: bytes               # what that holds now
    function: int              # number of the function that it calls, directly or through its stub


class Turn(NamedTuple):
    """A word of code that is to change: its address, what it holds, and will."""
    at: int
    before: bytes
    after: bytes


def close(x: Transaction, switches: Sequence[Switch], inside: list[Inner]) -> None:
    """Make every call of the functions lead to their stubs: in the program, and, `inside`, in objects.

    Raises PsuError; then nothing was changed that matters."""
    for m, names in _by_module(x, switches):
        called = {s.function for s in sites(x, m)}
        x.new_mirrors += mirrors.ensure(x, m, runs(x, m), [n for n in names if n in called])
    make_stubs(x, inside)
    _turn(x, [s for i in inside for s in i.spots] + _in_program(x, switches), True)


def reopen(x: Transaction, switches: Iterable[Switch]) -> tuple[str, ...]:
    """Make the program's calls direct after a commit, of functions that have their originals back.

    Returns warnings: they cost a jump, if that fails, and nothing else."""
    back = [s for s in switches if s.body in (0, s.original)]
    try:
        if back:
            _turn(x, _in_program(x, back), False)
            x.give_back()      # the command's memory
    except PsuError as e:
        return (f"calls keep a detour that they need not take: {e.what}",)
    return ()


class Inner(NamedTuple):
    """The calls of some functions inside the object of their current versions (inner.py)."""
    spots: list[Spot]
    stubs: list[tuple[int, int]]      # (address, slot) of the stubs that calls in the object may be turned to
    wanted: list[int]                 # addresses of those that these calls are turned to


def in_objects(x: Transaction, switches: Iterable[Switch]) -> list[Inner]:
    """The calls of the functions of `switches` inside the objects of their current versions: one value an object."""
    mine: dict[int, dict[int, Switch]] = {}
    for s in switches:
        if s.function.current and s.function.body:
            mine.setdefault(s.function.current[2], {})[s.function.body] = s
    return [_in_object(x, row, mine[row[0]]) for row in x.notes.calls if row[0] in mine]


def _in_object(x: Transaction, row: Sequence[int], switches: dict[int, Switch]) -> Inner:
    """row: of Notes.calls; switches: by the address of the version that is current."""
    index, base, table, size, distance = row
    process = x.target.process
    arch = arch_package.for_machine(x.target.modules[0].machine, process.where)
    form = arch.site_form
    width = arch.fields[form.kind].size
    leads = {base + at: base + callee for at, callee in inner.decode(process.read(table, size), process.where)}
    body = {at: to for at, to in leads.items() if to in switches}

    def place(at: int) -> int:
        """Where turned calls of the version at `at` lead."""
        return at + distance & shim.WORD if form.step else x.stub_of(switches[at].function)

    spots = []
    for start, data, places in stretches(process, list(body), width):
        for at in places:
            field = data[at - start:at - start + width]
            spots.append(Spot(at, form.turned(at, field, body[at]), (form.turned(at, field, place(body[at])),),
                              switches[body[at]].function.name))
    if not form.step:
        return Inner(spots, [], [])
    called = set(leads.values())      # only between these there is room for stubs
    every = [(f.body + distance & shim.WORD, x.slot_of(f)) for f in x.notes.functions
             if f.current and f.current[2] == index and f.body in called]
    return Inner(spots, every, [place(at) for at in set(body.values())])


def make_stubs(x: Transaction, inner_calls: Iterable[Inner]) -> None:
    """Have the stubs there that calls inside objects are turned to.  Raises PsuError; then nothing was changed that matters.

    A page is filled once, with the stubs of all functions that are current in the object: the others' were turned before."""
    process = x.target.process
    arch = arch_package.for_machine(x.target.modules[0].machine, process.where)
    todo: list[tuple[Inner, int, int]] = []
    for i in inner_calls:
        pages = sorted({p for at in i.wanted for p in (at // PAGE, (at + inner.stub_size(arch) - 1) // PAGE)})
        if pages:
            filled = {p for m in process.maps() if "x" in m.prot and m.start <= pages[-1] * PAGE and m.end > pages[0] * PAGE
                      for p in range(max(m.start // PAGE, pages[0]), min(m.end // PAGE, pages[-1] + 1))}
            todo += [(i, first * PAGE, (last + 1) * PAGE) for first, last in _runs([p for p in pages if p not in filled], filled)]
    size = sum(high - low for _, low, high in todo)
    if size > MANY * PAGE:
        pressure.refuse(process.path("cgroup"), process.where, size)
    for i, low, high in todo:
        data = bytearray(arch.padding * ((high - low) // len(arch.padding)))
        for at, slot in i.stubs:
            if low - inner.stub_size(arch) < at < high:
                code = arch.site_form.stub(at, slot, inner.STUB_FLAGS)
                start, end = max(at, low), min(at + len(code), high)
                data[start - low:end - low] = code[start - at:end - at]
        process.write(low, bytes(data))
    for first in range(0, len(todo), AT_ONCE):
        x.protect([(low, high - low, READ_EXECUTE) for _, low, high in todo[first:first + AT_ONCE]])


def _runs(pages: Sequence[int], filled: set[int]) -> list[tuple[int, int]]:
    """[first, last] of stretches of pages, ascending, joined where few lie between and none of those is filled."""
    out: list[tuple[int, int]] = []
    for p in pages:
        if out and p - out[-1][1] <= APART and not filled & set(range(out[-1][1], p)):
            out[-1] = out[-1][0], p
        else:
            out.append((p, p))
    return out


def sites(x: Transaction, m: Module) -> tuple[Site, ...]:
    """read_sites, once in a transaction."""
    if m.key not in x.sites:
        x.sites[m.key] = tuple(read_sites(x.target.process, m, runs(x, m)))
    return x.sites[m.key]


def runs(x: Transaction, m: Module) -> list[mirrors.Run]:
    """mirrors.known, once in a transaction."""
    if m.key not in x.runs:
        x.runs[m.key] = mirrors.known(x.target.process, x.session.runtime, m)
    return x.runs[m.key]


def read_sites(process: Process, m: Module, runs: Sequence[mirrors.Run]) -> Iterator[Site]:
    """The direct calls of a module that attach may turn, ascending; `runs`: its mirrors.

    Raises PsuError where one leads elsewhere: somebody else changed it."""
    arch = arch_package.for_machine(m.machine, m.path)
    size = arch.fields[arch.site_form.kind].size
    target = arch.site_form.target
    bias, functions = m.load_bias, m.descriptor.functions
    numbers = {f.address + bias: i for i, f in enumerate(functions)}
    numbers |= {origin + r.distance & shim.WORD: i for r in runs for i, origin in mirrors.mirrored(arch, m, r)}
    if not mirrors.wanted(arch, m):
        numbers |= {m.stub(i): i for i in range(len(functions))}
    for start, data, places in stretches(process, [n + bias for n in m.descriptor.sites], size):
        for at in places:
            field = data[at - start:at - start + size]
            number = numbers.get(target(at, field))
            if number is None:
                raise PsuError(process.where, f"somebody has changed the call at {at:#x} of {m.path}: {field.hex(' ')}", _HINT)
            yield Site(at, field, number)


def _by_module(x: Transaction, switches: Sequence[Switch]) -> list[tuple[Module, dict[int, str]]]:
    """The functions of each module: number -> name."""
    wanted: dict[str, tuple[Module, dict[int, str]]] = {}
    for s in switches:
        m = x.module_of(s.function)
        if m is not None:
            wanted.setdefault(m.key, (m, {}))[1][s.function.number] = s.function.name
    return list(wanted.values())


def _in_program(x: Transaction, switches: Sequence[Switch]) -> list[Spot]:
    out: list[Spot] = []
    for m, names in _by_module(x, switches):
        form = arch_package.for_machine(m.machine, m.path).site_form
        places = {n: _places(x, m, n) for n in names}
        for site in sites(x, m):
            if site.function in names:
                entry = m.descriptor.functions[site.function].address + m.load_bias
                out.append(Spot(site.at, form.turned(site.at, site.field, entry),
                                tuple(form.turned(site.at, site.field, to) for to in places[site.function]),
                                names[site.function]))
    return out


def _places(x: Transaction, m: Module, number: int) -> list[int]:
    """Where turned calls of a function may lead."""
    arch = arch_package.for_machine(m.machine, m.path)
    found = [mirrors.place(arch, [r], m, number) for r in runs(x, m)] if mirrors.wanted(arch, m) else [m.stub(number)]
    return [at for at in found if at is not None]


def _turn(x: Transaction, found: list[Spot], closed: bool) -> None:
    process = x.target.process
    arch = arch_package.for_machine(x.target.modules[0].machine, process.where)
    x.sites.clear()            # they will be others
    room = (0, 0)              # scratch memory for records: (address, size), had before the first word changes
    for attempt in range(ATTEMPTS):
        todo = turns(process, arch, found, closed)
        maps = process.maps() if todo else ()
        starts = [m.start for m in maps]
        by_mapping: dict[Mapping, list[Turn]] = {}
        for t in todo:
            by_mapping.setdefault(_mapping(process, maps, starts, t), []).append(t)
        pages = {t.at // PAGE for m, mine in by_mapping.items() if m.path for t in mine}      # of a file: they become its own
        if len(pages) > MANY:
            pressure.refuse(process.path("cgroup"), process.where, len(pages) * PAGE)
        guarded = _guarded(x, arch, by_mapping)
        records = [(len(mine), _record(arch, mapping, guarded.get(mapping, 0), mine)) for mapping, mine in by_mapping.items()]
        most = shim.COMMAND.size + max((len(r) for _, r in records), default=0)
        if most > max(shim.BUFFER_SIZE, room[1]):
            room = x.scratch(most, False), most
        try:
            for count, record in records:
                x.new_mirrors.clear()      # whether the command succeeds or not, they may be in use from here on
                at = room[0] if shim.COMMAND.size + len(record) > shim.BUFFER_SIZE else 0
                x.session.command(shim.OP_TURN, record, count, record_at=at, patience=60)
            return
        except PsuError:
            # The agent may have freed an object whose memory was part of the mapping.
            if attempt == ATTEMPTS - 1 or maps == process.maps():
                raise


def _guarded(x: Transaction, arch: Arch, mappings: Iterable[Mapping]) -> dict[Mapping, int]:
    """The bit for mprotect by which code remains where branches must meet marks: mprotect takes that away where it is not
    said again (Linux, arch/arm64/include/asm/mman.h: arch_calc_vm_prot_bits).  The dynamic linker gave it to files of which all
    code has marks, if it knows of marks and the processor does: only the kernel can tell."""
    flag, bit = arch.guarded_pages
    files = {m.start: m for m in mappings if m.path}
    if not flag or not files or not any(m.descriptor.flags & MODULE_IBT for m in x.target.modules):
        return {}
    return {files[start]: bit for start in x.target.process.flagged(flag, files)}


def _record(arch: Arch, mapping: Mapping, more: int, mine: list[Turn]) -> bytes:
    prot = more + sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in mapping.prot)
    return shim.CODE.pack(mapping.start, mapping.end - mapping.start, prot, arch.store_unit) + b"".join(
        shim.TURN.pack(t.at, int.from_bytes(t.before, "little"), int.from_bytes(t.after, "little")) for t in mine)


def turns(process: Process, arch: Arch, spots: Sequence[Spot], closed: bool) -> list[Turn]:
    """What has to change so that `spots` are all closed, or all open, ascending: each word once.

    Raises PsuError where one is neither: somebody else changed it."""
    unit = arch.store_unit
    words = _words(process, sorted({at // unit * unit for s in spots for at in (s.at, s.at + len(s.open) - 1)}), unit)
    now = {at: bytearray(word) for at, word in words.items()}
    for s in spots:
        first = s.at // unit * unit
        held = b"".join(now[at] for at in range(first, s.at + len(s.open), unit))[s.at - first:][:len(s.open)]
        if held != s.open and held not in s.closed:
            raise PsuError(process.where, f"somebody has changed the code that calls {s.name}: {held.hex(' ')} at {s.at:#x}",
                           _HINT)
        if held != s.open if closed else held == s.open:
            continue
        if closed and not s.closed:
            raise PsuError(process.where, f"internal defect: no stub for the call of {s.name} at {s.at:#x}")
        changes = [(s.at + i, new) for i, (old, new) in enumerate(zip(held, s.closed[0] if closed else s.open)) if old != new]
        if len({at // unit for at, _ in changes}) > 1:
            raise PsuError(process.where, f"internal defect: the call of {s.name} at {s.at:#x} lies across two words")
        for at, new in changes:
            now[at // unit * unit][at % unit] = new
    return [Turn(at, words[at], bytes(new)) for at, new in sorted(now.items()) if bytes(new) != words[at]]


def stretches(process: Process, places: list[int], size: int) -> Iterator[tuple[int, bytes, list[int]]]:
    """(address, bytes there, those of `places` that lie in them): few reads, of no page but theirs.  `places`: ascending."""
    first = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] // PAGE > (places[i - 1] + size - 1) // PAGE + 1:
            start = places[first]
            yield start, process.read(start, places[i - 1] + size - start), places[first:i]
            first = i


def _words(process: Process, places: list[int], unit: int) -> dict[int, bytes]:
    """The words at `places`, ascending."""
    return {at: data[at - start:at - start + unit] for start, data, mine in stretches(process, places, unit) for at in mine}


def _mapping(process: Process, maps: Sequence[Mapping], starts: list[int], t: Turn) -> Mapping:
    i = bisect.bisect_right(starts, t.at) - 1
    mapping = maps[i] if i >= 0 and t.at < maps[i].end else None
    if mapping is None or "x" not in mapping.prot or "w" in mapping.prot:
        raise PsuError(process.where, f"the program's code at {t.at:#x} is not mapped as code",
                       f"it is {mapping.prot}" if mapping else "")
    return mapping
