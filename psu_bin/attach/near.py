"""Near stubs in a running program and in its patch objects: closed before a function gets another version, opened behind it.

A near stub (instrument/near.py) is open in the file: a NOP that falls through into its function.  Closed it is a jump to the
function's stub in the table, and the slot decides.  Which of the two it is, is read from the program's memory.  The agent
makes the change (shim/turn.c says why threads may be executing there), and makes sure that every thread has seen it.

A patch object has near stubs, too, for calls from one of its functions to another (rooms.py): open while the object's is the
current version, so that it calls itself as directly as the compiler meant it to.  Such calls are not counted; the
caller's count keeps the object.

A near stub that stays closed, because psu-bin was killed or a commit refused, costs a jump and is right all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from psu_bin import arch as arch_package
from psu_bin import near_forms
from psu_bin.arch import Arch, NearForm
from psu_bin.attach import meta, shim
from psu_bin.attach.commit import Switch
from psu_bin.attach.proc import Mapping
from psu_bin.attach.process import Process
from psu_bin.descriptor import NEAR
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.attach.transaction import Transaction

PAGE = 4096
ATTEMPTS = 4


class Near(NamedTuple):
    """Run-time addresses of a function's near stub, stub and slot; what the near stub may be; the function's name."""
    address: int
    stub: int
    slot: int
    form: NearForm
    name: str


class Turn(NamedTuple):
    """A word of code that is to change: its address, what it holds, and will."""
    at: int
    before: bytes
    after: bytes


def close(x: Transaction, switches: Iterable[Switch]) -> None:
    """Make every near stub of the functions lead to their stubs: in the program, and in the object of the version that is
    current.  Raises PsuError; then nothing was changed that matters."""
    found = []
    for s in switches:
        found += _in_program(x, s)
        if s.function.near:
            found.append(_in_object(x, s, s.function.near))
    _turn(x, found, True)


def reopen(x: Transaction, switches: Iterable[Switch]) -> tuple[str, ...]:
    """Make near stubs fall through after a commit: of functions that have their originals back, and in new objects.

    Returns warnings: they cost a jump, if that fails, and nothing else."""
    found = []
    for s in switches:
        if not s.body:
            found += _in_program(x, s)
        elif s.near:
            found.append(_in_object(x, s, s.near))
    try:
        _turn(x, found, False)
        x.give_back()      # the command's memory
    except PsuError as e:
        return (f"calls keep a detour that they need not take: {e.what}",)
    return ()


def _in_program(x: Transaction, s: Switch) -> list[Near]:
    m = x.module_of(s.function)
    if m is None or not m.descriptor.functions[s.function.number].flags & NEAR:
        return []
    f = m.descriptor.functions[s.function.number]
    form = near_forms.in_program(arch_package.for_machine(m.machine, m.path), m.descriptor.flags, f.flags)
    return [Near(f.address + m.load_bias - len(form.nop), m.stub(s.function.number), s.slot, form, f.name)]


def _in_object(x: Transaction, s: Switch, address: int) -> Near:
    m = x.module_of(s.function)
    stub = m.stub(s.function.number) if m else x.notes.stubs[s.function.number].stub
    arch = arch_package.for_machine(x.target.modules[0].machine, x.target.process.where)
    return Near(address, stub, s.slot, near_forms.in_objects(arch), s.function.name)


def _turn(x: Transaction, found: list[Near], closed: bool) -> None:
    process = x.target.process
    arch = arch_package.for_machine(x.target.modules[0].machine, process.where)
    for attempt in range(ATTEMPTS):
        todo = turns(process, arch, found, closed)
        maps = process.maps() if todo else ()
        by_mapping: dict[Mapping, list[Turn]] = {}
        for t in todo:
            by_mapping.setdefault(_mapping(process, maps, t), []).append(t)
        try:
            for mapping, mine in by_mapping.items():
                _command(x, arch, mapping, mine)
            return
        except PsuError:
            # The agent may have freed an object whose memory was part of the mapping.
            if attempt == ATTEMPTS - 1 or maps == process.maps():
                raise


def _command(x: Transaction, arch: Arch, mapping: Mapping, mine: list[Turn]) -> None:
    prot = sum(bit for bit, letter in ((1, "r"), (2, "w"), (4, "x")) if letter in mapping.prot)
    record = shim.CODE.pack(mapping.start, mapping.end - mapping.start, prot, arch.store_unit)
    record += b"".join(shim.TURN.pack(t.at, int.from_bytes(t.before, "little"), int.from_bytes(t.after, "little"))
                       for t in mine)
    at = 0
    if len(record) + shim.COMMAND.size > shim.BUFFER_SIZE:
        at = x.scratch(len(record) + shim.COMMAND.size, False)
    x.session.command(shim.OP_TURN, record, len(mine), record_at=at, patience=60)


def turns(process: Process, arch: Arch, stubs: Sequence[Near], closed: bool) -> list[Turn]:
    """What has to change so that `stubs` are all closed, or all open, ascending.

    Raises PsuError where a near stub is neither: somebody else changed it."""
    words = _words(process, sorted({n.address // arch.store_unit * arch.store_unit for n in stubs}), arch.store_unit)
    out = []
    for n in sorted(stubs, key=lambda n: n.address):
        at = n.address // arch.store_unit * arch.store_unit
        word, inside = words[at], n.address - at
        size = len(n.form.nop)
        now = word[inside:inside + size]
        jump = n.form.jump(n.address, n.stub, n.slot)
        closed_ways = jump, near_forms.unopened(arch, n.address, n.stub)[:size]
        if now not in (*closed_ways, n.form.nop):
            raise PsuError(process.where, f"somebody has changed the code in front of {n.name}: {now.hex(' ')} at "
                                          f"{n.address:#x}", "a debugger's breakpoint? take it out and try again")
        wanted = jump if closed else n.form.nop
        if now != wanted and not (closed and now in closed_ways):
            out.append(Turn(at, word, word[:inside] + wanted + word[inside + size:]))
    return out


def _words(process: Process, places: list[int], unit: int) -> dict[int, bytes]:
    """The words at `places`, ascending, with few reads, of no page but theirs."""
    out: dict[int, bytes] = {}
    first = 0
    for i in range(1, len(places) + 1):
        if i == len(places) or places[i] // PAGE > places[i - 1] // PAGE + 1:
            start = places[first]
            data = process.read(start, places[i - 1] + unit - start)
            for at in places[first:i]:
                out[at] = data[at - start:at - start + unit]
            first = i
    return out


def _mapping(process: Process, maps: Sequence[Mapping], t: Turn) -> Mapping:
    mapping = next((m for m in maps if m.start <= t.at < m.end), None)
    if mapping is None or "x" not in mapping.prot or "w" in mapping.prot:
        raise PsuError(process.where, f"the program's code at {t.at:#x} is not mapped as code",
                       f"it is {mapping.prot}" if mapping else "")
    return mapping
