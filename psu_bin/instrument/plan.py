"""Decide what instrument does: which functions become updatable, and how every reference to each is rerouted.

`make` is a list of passes over the module: unwind table, functions, code, references, then one decision a function:

    every reference can be edited               -> updatable, canonical address = its stub
    some reference cannot, but the entry can
    safely be replaced by a jump to the stub    -> updatable, detoured, canonical address = its entry
    else                                        -> not updatable, with the reason

In a far module (layout.far) no jump reaches from an entry to its stub.

**I1**: a function of the plan has no path to its original entry but through its stub.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import translate

import numpy as np

from psu_bin import descriptor
from psu_bin.arch import Arch
from psu_bin.arch.code import NONE, Code, Kind
from psu_bin.elf import Binary
from psu_bin.errors import PsuError
from psu_bin.instrument import detour, functions, layout, marks, references, reliance, sites, tables, traits, unwind
from psu_bin.instrument import symbols as symbol_list
from psu_bin.instrument.functions import REASONS, Functions, Role
from psu_bin.instrument.plan_types import Detour, Edit, NotUpdatable, Plan, PlannedFunction

symbols = symbol_list.collect


@dataclass(frozen=True)
class Module:
    """What the passes before the decision found."""
    functions: Functions
    frames: unwind.Frames
    code: Code
    references: references.References
    tables: tables.Tables


def read(binary: Binary, arch: Arch, debug: Binary | None) -> Module:
    """Read a module: everything that a decision needs.  Raises PsuError when it has no function symbols."""
    frames = unwind.read(binary)
    known = functions.find(binary, frames, references.resolvers(binary, arch), debug, arch.scan.is_thunk)
    code = arch.scan.decode(references.regions(binary, arch, known, frames))
    _refuse_cfi(binary, known, code)
    found = references.find(binary, arch, known, frames, code)
    return Module(known, frames, code, found, tables.find(binary, arch, known, code))


def _refuse_cfi(binary: Binary, known: Functions, code: Code) -> None:
    """clang's -fsanitize=cfi-icall allows calls through pointers only into its own table of jumps, which stands for the
    functions (each NAME is renamed to NAME.cfi): with the address of a stub the program would end itself.
    See "Control Flow Integrity Design Documentation" of clang, "Forward-Edge CFI for Indirect Function Calls"."""
    mark = next((n for names in known.aliases for n in names if n.endswith(".cfi")), "")
    if not mark:                                   # stripped of all but what is exported: endbr64, jmp, and int3 to 8 or 16
        at, last = code.at(known.entry), len(code.address) - 5
        # What has no size may seem to go on into the padding behind it: frame_dummy, which linkers take along.
        function = np.flatnonzero((at != NONE) & (at <= last) & (known.role != Role.STARTUP))
        at = at[function]
        at = np.where(code.kind[at] == Kind.MARK, at + 1, at)
        trap = (code.kind == Kind.TRAP) & (code.length == 1)
        jump = (code.kind[at] == Kind.JUMP) & trap[at + 1] & trap[at + 2] & trap[at + 3]
        whole = known.end[function] >= code.address[at] + code.length[at] + 3
        mark = next((known.names[i] for i in function[jump & whole].tolist()), "")
    if mark:
        raise PsuError(binary.path, f"is compiled with -fsanitize=cfi-icall, which forbids calls through stubs: {mark}",
                       "compile it with -fno-sanitize=cfi-icall")


def make(binary: Binary, arch: Arch, include: tuple[str, ...], exclude: tuple[str, ...],
         debug: Binary | None) -> Plan:
    """The plan for `binary`.

    include, exclude: shell patterns of function names; no `include` means every function that can be updated.
    debug: its separate debug file, where the symbols are when it is stripped itself.
    Raises PsuError when a pattern matches nothing, or no function is left.
    """
    m = read(binary, arch, debug)
    chosen = _choose(binary, m.functions, include, exclude)
    ground = detour.survey(binary, arch, m.functions, m.frames, m.code, m.references, m.tables)
    far = layout.far(binary, arch, len(m.functions.entry))
    planned: dict[int, Detour | None] = {}
    refused: list[NotUpdatable] = []
    for f in chosen:
        name, reason = m.functions.names[f], REASONS.get(Role(m.functions.role[f]), "")
        if reason:
            if m.functions.role[f] != Role.STARTUP or name in include:
                refused.append(NotUpdatable(name, reason))
        elif f in m.references.forbidden:
            refused.append(NotUpdatable(name, m.references.forbidden[f]))
        elif f in m.references.uncertain:
            found = "its stub is too far away" if far else detour.make(ground, f)
            if isinstance(found, Detour):
                planned[f] = found
            else:
                refused.append(NotUpdatable(name, f"{m.references.uncertain[f][0]}; no room for a jump at its entry: "
                                                  f"{found}"))
        else:
            planned[f] = None
    relied = reliance.find(arch, m.functions, m.frames, m.code, m.references, m.tables, ground.named)
    for f in [f for f in planned if f in relied.unkeepable]:
        del planned[f]
        refused.append(NotUpdatable(m.functions.names[f], "callers keep values in registers that no gate can preserve"))
    if not planned:
        raise PsuError(binary.path, "no function to update",
                       f"{refused[0].name}: {refused[0].reason}" if refused else "")
    users = symbol_list.users(binary, arch, m.functions, m.code, debug)
    return _assemble(binary, arch, m, planned, refused, relied, users)


def _choose(binary: Binary, known: Functions, include: tuple[str, ...], exclude: tuple[str, ...]) -> list[int]:
    """The indices of the functions that the patterns choose, parts of functions left out."""
    whole = [i for i in range(len(known.names)) if known.role[i] != Role.PART]

    def matching(patterns: tuple[str, ...], option: str) -> set[int]:
        out: set[int] = set()
        for pattern in patterns:
            match = re.compile(translate(pattern)).match
            hits = {i for i in whole if any(match(name) for name in known.aliases[i])}
            if not hits:
                raise PsuError(binary.path, f"no function matches {option} {pattern!r}",
                               "psu-bin analyze lists the functions")
            out |= hits
        return out

    wanted = matching(include, "--functions") if include else set(whole)
    unwanted = matching(exclude, "--exclude")
    return [i for i in whole if i in wanted and i not in unwanted]


def _copies(binary: Binary, arch: Arch, functions: list[PlannedFunction],
            planned: dict[int, Detour | None]) -> tuple[Detour, ...]:
    """The detours, and a landing pad for each original without the mark that a stub's jump has to meet."""
    flags = _module_flags(binary, arch)
    out = []
    for i, f in enumerate(functions):
        d = planned[i]
        at = binary.offset_of(f.address)
        pad = arch.landing(flags, d.copy if d else binary.data[at:at + 4])
        if d:
            out.append(replace(d, function=i, pad=pad))
        elif pad:
            out.append(Detour(i, 0, b"", (), pad=pad))
    return tuple(out)


def _module_flags(binary: Binary, arch: Arch) -> int:
    return descriptor.MODULE_IBT if marks.wanted(binary, arch) else 0


def _assemble(binary: Binary, arch: Arch, m: Module, planned: dict[int, Detour | None], refused: list[NotUpdatable],
              relied: reliance.Reliance, users: tuple[tuple[int, tuple[int, ...]], ...]) -> Plan:
    """Number the planned functions, keep what concerns them."""
    order = sorted(planned)
    number = {f: i for i, f in enumerate(order)}
    edits = [Edit(e.kind, e.at, number[e.function], e.call_site) for e in m.references.edits
             if e.function in number and (planned[e.function] is None or e.call_site)]
    callers = np.bincount(m.references.calls[:, 1], minlength=len(m.functions.names))
    stack = traits.stack_arguments(arch, m.functions, m.frames, m.code)
    own = traits.own_convention(arch, m.functions, m.frames) | relied.odd
    out = []
    for f in order:
        flags = descriptor.STACK_ARGS if stack[f] else 0
        flags |= descriptor.DETOURED if planned[f] is not None else 0
        flags |= descriptor.ADDRESS_TAKEN if f in m.references.taken else 0
        flags |= descriptor.OWN_CONVENTION if own[f] else 0
        flags |= descriptor.MISALIGNED if relied.misaligned[f] else 0
        out.append(PlannedFunction(m.functions.names[f], int(m.functions.entry[f]),
                                   int(m.functions.end[f] - m.functions.entry[f]), flags, int(relied.preserve[f]),
                                   int(callers[f])))
    copies = _copies(binary, arch, out, {number[f]: d for f, d in planned.items()})
    left = sites.find(binary, arch, out, copies, edits, _module_flags(binary, arch))
    turned = {at for at, _ in left}
    return Plan(tuple(out), tuple(e for e in edits if not (e.call_site and e.at in turned)), copies,
                tuple(sorted(refused, key=lambda n: n.name)), sum(e.call_site for e in edits), users, left,
                traits.moves_stack(binary, arch, m.functions, m.code), layout.far(binary, arch, len(m.functions.entry)))
