"""Calls inside one patch object: from one of its functions to another, straight to the body.

Whoever makes one is counted already, as a caller in the same object, and that count keeps the object for both.  So such a call
needs no gate while the object's is the callee's current version, which it is from the commit on.  Before the next commit
of the callee, these calls are turned (turning.py) like those of the program, so that every new call takes the newest version.

Where they are is in a table in the object's own memory: to read the code once more would cost more.  Where a turned
call needs a stub at a distance of its own (Arch.site_form.step), room for those stubs is mapped with the object, and goes with
it.  Whoever is about to execute such a stub is counted: the call came from the object.

That the caller is counted takes that its own caller is on the same stack.  Code that goes on with another stack and calls from
there (libdill's `go`) is returned to when what counted it is gone: an object with such code has no direct calls of its own.

This module finds the calls and makes the table; turning.py is who uses it.

Calls through pointers come to the callee's gate, which can see from the return address where they come from.  Whether it looks is
decided here, too: looks().
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from struct import error, pack, unpack_from
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from psu_bin.arch.link_types import Use
from psu_bin.attach.meaning import BoundFunction, Room
from psu_bin.attach.sections import Role
from psu_bin.attach.shim import FULL
from psu_bin.descriptor import ADDRESS_TAKEN, MODULE_IBT, MODULE_MOVES_STACK
from psu_bin.elf import SHF_ALLOC, SHF_EXECINSTR, SHN_UNDEF
from psu_bin.errors import PsuError

if TYPE_CHECKING:
    from psu_bin.arch import Arch
    from psu_bin.attach.gates import Gate
    from psu_bin.attach.layout import Layout
    from psu_bin.attach.patch import PatchObject
    from psu_bin.attach.references import Reader, Rerouted
    from psu_bin.attach.view import ModuleView

STUB_FLAGS = MODULE_IBT    # of the stubs: they fit any module


class Call(NamedTuple):
    """A call that an object makes of one of its own functions."""
    at: int                    # offset in the object of the field that says where it leads
    callee: int                # offset of the entry
    turnable: bool             # Arch.site_form can change it while it is executed


def stub_size(arch: Arch) -> int:
    """Bytes of the stub that a turned call needs for itself; 0: it takes the one that everybody takes."""
    return len(arch.site_form.stub(0, 0, STUB_FLAGS)) if arch.site_form.step else 0


_TWICE = frozenset(("setjmp", "_setjmp", "sigsetjmp", "__sigsetjmp", "getcontext"))


def stays_on_stack(patch: PatchObject, views: Iterable[ModuleView], link: ModuleType) -> bool:
    """Whether who is in the object's code, or will return to it, was counted into it on the same stack.

    Not where its own code may go on with another stack, nor where a function of a module may that is to be updated, and may
    so return to the object on another stack."""
    return not any(v.descriptor.flags & MODULE_MOVES_STACK for v in views) and not moves_stack(patch, link)


def looks(view: ModuleView, functions: Mapping[BoundFunction, Gate], taken: Container[BoundFunction]) -> set[BoundFunction]:
    """Those of `functions` whose gates look whether a call comes from their own object, and do not count it then.

    functions: of one object whose code stays on its stack, with what they replace in the module `view`, all that have gates.
    taken: functions of patches whose address code or data of patches holds.

    A look saves a call from inside the counting, and makes every other one a tenth dearer.  Direct calls from inside do not come
    to gates, so it is for those through pointers, and where the caller is likely to be in the same object, because that is most of
    the program.  A patch is a few functions as a rule, called from outside; and the pointers that a library gives away, as a
    plugin does, its host calls."""
    replaced = sum(not f.new for f in functions)
    if not view.executable or 2 * replaced < len(view.descriptor.functions):
        return set()
    return {f for f, gate in functions.items() if gate.kind != FULL
            and (f in taken or not f.new and view.descriptor.functions[f.number].flags & ADDRESS_TAKEN)}


def moves_stack(patch: PatchObject, link: ModuleType) -> bool:
    """Whether code of the object may go on with another stack: by instructions of its own (assembly), or by a context that it saved
    in a signal handler with a stack of its own.  What cannot be read may, too."""
    wanted = {s.name for s in patch.symbols if s.section == SHN_UNDEF}
    try:
        return "sigaltstack" in wanted and not wanted.isdisjoint(_TWICE) or any(
            link.moves_stack(patch.contents[n], start, end) for n, s in enumerate(patch.sections)
            if s.flags & SHF_ALLOC and s.flags & SHF_EXECINSTR for start, end in _pieces(patch, n))
    except ValueError:
        return True


def _pieces(patch: PatchObject, section: int) -> Iterator[tuple[int, int]]:
    """The functions of a section of code, and what lies between them: padding, or assembly that no symbol says to be a function."""
    behind = 0
    for f in patch.functions_in(section):
        if f.start > behind:
            yield behind, f.start
        yield f.start, f.end
        behind = max(behind, f.end)
    if behind < len(patch.contents[section]):
        yield behind, len(patch.contents[section])


def calls(layout: Layout, reader: Reader, arch: Arch, functions: Collection[BoundFunction]) -> Iterator[Call]:
    """The calls of `functions` in one patch object whose code has its offsets.  The same place may come twice."""
    form = arch.site_form
    width = arch.fields[form.kind].size

    def call(at: int, data: bytes, f: BoundFunction, fits: bool) -> Call:
        return Call(at, layout.whole(f.function.section).offset + f.function.start, fits and form.turnable(data))

    for p in reader.reached:
        if p.patch == layout.n and p.room is Room.CODE and layout.roles[p.section] is Role.CODE:
            for r in p.references:
                if r.use is Use.BRANCH and isinstance(r.target, BoundFunction) and r.target.patch == layout.n and r.target in functions:
                    at = r.at - p.start
                    yield call(p.offset + at, p.data[at:at + width], r.target,
                               r.offset + r.tail == 0 and layout.howto[r.type].size == width)
    for x in reader.rerouted:
        if x.piece.patch == layout.n and x.ref.use is Use.BRANCH and x.target in functions:
            at = field(x, arch)
            if x.trampoline >= 0:
                yield call(x.piece.offset + at, arch.jump(0, 0)[-width:], x.target, True)
            else:
                yield call(x.piece.offset + at, x.piece.data[at:at + width], x.target, x.ref.size == width)


def field(x: Rerouted, arch: Arch) -> int:
    """Offset in its section of what says where a rerouted branch leads in the end."""
    return x.ref.at if x.trampoline < 0 else x.trampoline + arch.jump_size - arch.fields[arch.site_form.kind].size


def encode(places: Sequence[tuple[int, int]]) -> bytes:
    """The table of (offset of a field, offset of the entry that it leads to)."""
    ordered = sorted(places)
    columns = [b[0] - a[0] for a, b in zip([(0, 0), *ordered], ordered)] + [callee for _, callee in ordered]
    return zlib.compress(pack(f"<{len(columns)}I", *columns), 6)


def decode(data: bytes, where: str) -> list[tuple[int, int]]:
    """The inverse of encode.  Raises PsuError when the table is damaged."""
    try:
        raw = zlib.decompress(data)
        count = len(raw) // 8
        columns = unpack_from(f"<{2 * count}I", raw)
    except (zlib.error, error) as e:
        raise PsuError(where, f"a table of calls in it is damaged: {e}") from e
    return list(zip(accumulate(columns[:count]), columns[count:]))
