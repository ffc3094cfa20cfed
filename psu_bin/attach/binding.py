"""What each symbol of a patch means in the target: Binder.

The rules are those of the linker that made the program, with the program already running:

- a global is the module's global of that name; a static is the module's static of that name from the same source
  file. Patches are often compiled from a copy with another file name: when the patch's STT_FILE does not occur in the
  module at all, a static that is the only one of its name matches.  When the file occurs but has no such static, it
  is new.  So it is in a file that is new altogether (together.py).
- what the module does not have: other objects of the same transaction, what earlier patches brought along, other
  instrumented modules, then whatever the dynamic linker finds.
- variables keep the program's storage, functions go to their stubs.

Static locals (`count.0`, `handler.count`) are matched in statics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from psu_bin import arch, descriptor, elf
from psu_bin.attach import statics, together
from psu_bin.attach.callers import Patched
from psu_bin.attach.meaning import BoundFunction, Exported, External, Fixed, Target, Thread, Unclear
from psu_bin.attach.owners import Owners
from psu_bin.attach.patch import PatchFunction, PatchObject, PatchSymbol, is_clone, without_clone
from psu_bin.attach.together import Origin
from psu_bin.attach.view import SEVERAL, Identity, ModuleView, artificial, base_name
from psu_bin.descriptor import NO_FUNCTION, Symbol
from psu_bin.errors import PsuError

_CODE_KINDS = (descriptor.KIND_FUNCTION, descriptor.KIND_IFUNC, descriptor.KIND_NOTYPE)
_OF_COMPILERS = ("__gcov", "__unnamed_", "__prof", "__sancov")
_DATA_KINDS = (descriptor.KIND_OBJECT, descriptor.KIND_TLS, descriptor.KIND_NOTYPE)
_ALL_ALIKE = frozenset(("_ZStL8__ioinit",))      # in every file with <iostream>: constructing one of them does it for all


Row = TypeVar("Row")


class Ambiguous(Exception):
    """Several statics of the module match; never leaves this package."""

    def __init__(self, name: str, files: Iterable[str]) -> None:
        named = sorted({f for f in files if not artificial(f)})
        self.what = f"{name} is static in several files of the program: {', '.join(named)}"
        self.hint = "compile the patch from a file with the name of the one that is meant"
        if not named:
            self.what = f"{name} is static in several files of the program, and LTO left no names of files: {name}"
            self.hint = "link the program without -flto, or give each a name of its own in the program"
        super().__init__(self.what)


class Repeated(Ambiguous):
    """So do several static locals of one file."""

    def __init__(self, name: str, file: str, functions: Iterable[str]) -> None:
        where = ", ".join(sorted(functions)) or file
        super().__init__(name, ())
        self.what = f"static local {name} is in {where} more than once, and which one is meant cannot be told"
        self.hint = "leave the functions that use it out of the patch"


class Binder:
    """Symbols of all patch objects of one transaction."""

    def __init__(self, patches: tuple[PatchObject, ...], views: tuple[ModuleView, ...],
                 groups: tuple[int, ...]) -> None:
        """groups: one number a patch; patches of different groups do not see each other's definitions."""
        self.patches = patches
        self.views = views
        self.groups = groups
        self.problems: list[PsuError] = []
        self.warnings: list[str] = []
        self.exports = _exports(patches, groups)
        self.module: list[int] = []
        self.functions: list[dict[tuple[int, int], BoundFunction]] = []   # by patch: (section, start) ->
        self._variables: dict[tuple[int, int], Target | None] = {}
        self.assigned: dict[tuple[int, int, str, str], dict[int, Symbol | tuple[Symbol, ...] | None]] = {}      # statics.match
        self.patch_owners: dict[int, Owners] = {}       # statics.match: by patch,
        self.module_owners: dict[int, Owners] = {}      # by module
        self._preferred: dict[tuple[int, int, str], set[int]] = {}
        self._origin: list[Origin] = []                 # by patch
        uses = together.providers(patches, groups, self.exports)
        used = set().union(*uses)
        for n, p in enumerate(patches):
            known = any(self.file_known(n, m, f) for f in {s.file for s in p.symbols if s.file} for m in range(len(views)))
            self._origin.append(together.origin(p, views, known, n in used))
        scores = [self._scores(n) for n in range(len(patches))]
        self.module += together.homes(scores, groups, uses)
        for n in (n for n, score in enumerate(scores) if not any(score)):
            where = {self.module[n], *(self.module[u] for u, mine in enumerate(uses) if n in mine)}
            if len(where) > 1:
                self.warnings.append(f"{patches[n].path}: used by patches of {' and of '.join(views[m].path for m in sorted(where))}: "
                                     f"names in it are those of {views[self.module[n]].path}")
        for n in range(len(patches)):
            self.functions.append(self._bind_functions(n))
        if not self.problems:
            self._check_use()

    def brought(self) -> tuple[str, ...]:
        """The globals of patches' files that no module has."""
        return tuple(sorted({name for p, origin in zip(self.patches, self._origin) if origin is not Origin.PROGRAM
                             for name in together.own_globals(p)}))

    # ---- which module, which file ---------------------------------------------------------------------------------

    def _scores(self, n: int) -> list[int]:
        """How many of the patch's functions each module has, or earlier patches brought it; of its variables, if none has a function."""
        scores = []
        for m in range(len(self.views)):
            score = 0
            for f in self.patches[n].functions:
                if not f.clone:
                    try:
                        score += self._program_function(n, m, f) is not None
                    except Ambiguous:
                        score += 1
            scores.append(score)
        if any(scores):
            return scores
        names = [("", s.name) for s in self.patches[n].symbols if not s.local and s.section != elf.SHN_UNDEF and s.name]
        scores = [sum(x in v.known_functions for x in names) for v in self.views]
        return scores if any(scores) else [sum(x[1] in v.globals or x in v.known_variables for x in names) for v in self.views]

    def _check_use(self) -> None:
        """Refuse objects of new functions that nobody uses, and warn of new variables that nobody does."""
        home = [self.views[m] for m in self.module]
        uses = together.providers(self.patches, self.groups, self.exports, home)
        new = {n for n, mine in enumerate(self.functions) if all(b.new and not b.known_stub for b in mine.values())}
        for g in dict.fromkeys(self.groups):
            group = [n for n, other in enumerate(self.groups) if other == g]
            self.problems += together.useless(self.patches, home, self.views, group, new.intersection(group), uses)
        for n in sorted(new - set().union(*uses)) if not self.problems else ():
            names = together.unused_variables(self.patches[n], home[n])
            if names:
                self.warnings.append(f"{self.patches[n].path}: nothing of the patch uses {', '.join(names[:8])}, which the program does not have")

    def files(self, n: int, m: int, file: str) -> set[int]:
        """The module's source files that a static of the patch's `file` may come from; empty: not there at all.

        Of several files with one name, those with most of the patch's statics."""
        key = (n, m, file)
        if key not in self._preferred:
            view, patch = self.views[m], self.patches[n]
            found = view.files.get(base_name(file), set()) if file else set()
            if len(found) > 1:
                score = dict.fromkeys(found, 0)
                for s in patch.symbols:
                    if s.local and s.file == file and s.type in (elf.STT_FUNC, elf.STT_OBJECT):
                        for theirs in {x.file for x in view.locals.get(s.name, ())} & found:
                            score[theirs] += 1
                found = {f for f in found if score[f] == max(score.values())}
            self._preferred[key] = found
        return self._preferred[key]

    def static_candidates(self, n: int, m: int, name: str, file: str, kinds: tuple[int, ...]) -> list[Symbol]:
        """The module's statics that a static `name` of the patch's `file` can be, one for each address."""
        found = [s for s in self.views[m].locals.get(name, ()) if s.kind in kinds]
        if name in _ALL_ALIKE:
            return found[:1]
        files = self.files(n, m, file)
        if files:
            found = [s for s in found if s.file in files]
        elif self._origin[n] is not Origin.PROGRAM:
            found = []
        return list({(s.kind, s.address): s for s in found}.values())

    def file_known(self, n: int, m: int, file: str) -> bool:
        return bool(self.files(n, m, file))

    def has_own_statics(self, n: int, m: int, file: str) -> bool:
        """No static of the patch's `file` is one that the module has in other files."""
        return self._origin[n] is not Origin.PROGRAM or self.file_known(n, m, file)

    def _only(self, m: int, name: str, candidates: list[Symbol]) -> Symbol | None:
        if len(candidates) > 1:
            raise Ambiguous(name, (self.views[m].file_name(s) for s in candidates))
        return candidates[0] if candidates else None

    def _internal(self, n: int, m: int, s: PatchSymbol, kinds: tuple[int, ...]) -> Symbol | None:
        """A local symbol of the module that is a global of the sources.

        Linkers make symbols local that are hidden, not exported by a version script, or internal to an LTO program.
        GNU ld lists them under a file without a name, LTO under an artificial one, gold and lld behind the statics of
        the last file.  A static of the patch's own file is meant as well."""
        view = self.views[m]
        found = {x.address: x for x in view.locals.get(s.name, ()) if x.kind in kinds}
        sure = {a: x for a, x in found.items()
                if _no_file(view, x) or base_name(view.file_name(x)) == base_name(self.patches[n].file)}
        if not sure and len(found) == 1:
            sure = {a: x for a, x in found.items() if s.hidden or x.file == view.last_file}
        return self._only(m, s.name, list(sure.values()))

    # ---- functions ------------------------------------------------------------------------------------------------

    def _program_function(self, n: int, m: int, f: PatchFunction) -> Symbol | None:
        """The module's symbol that the patch's function replaces, updatable or not.  Raises Ambiguous."""
        return next((found for s in f.names if (found := self._replaced(n, m, s))), None)

    def _replaced(self, n: int, m: int, s: PatchSymbol) -> Symbol | None:
        """The module's symbol that this name of a function of the patch stands for.  Raises Ambiguous."""
        if is_clone(s.name):
            return None
        found: Symbol | None
        if s.local:
            found = self._only(m, s.name, self.static_candidates(n, m, s.name, s.file, _CODE_KINDS))
        else:
            found = self.views[m].globals.get(s.name)
            if found is None or found.kind not in _CODE_KINDS:
                found = self._internal(n, m, s, _CODE_KINDS)
        usable = found is not None and (found.kind != descriptor.KIND_NOTYPE or found.function != NO_FUNCTION)
        return found if usable else None

    def _check_names(self, n: int, m: int, f: PatchFunction, replaced: Symbol) -> None:
        """One body can take the place of one function only: all its names must be that one's."""
        for s in f.names:
            try:
                other = self._replaced(n, m, s)
            except Ambiguous as e:
                self.problems.append(PsuError(self.patches[n].path, e.what, e.hint))
                return
            if other is not None and other.address != replaced.address:
                self.problems.append(PsuError(
                    self.patches[n].path, f"{replaced.name} and {s.name} are one function, an alias or folded into one, "
                                          f"and two in {self.views[m].path}",
                    "write both out, and compile the patch with -fno-ipa-icf"))
                return

    def _bind_functions(self, n: int) -> dict[tuple[int, int], BoundFunction]:
        patch, home = self.patches[n], self.module[n]
        out: dict[tuple[int, int], BoundFunction] = {}
        taken: dict[tuple[int, int], PatchFunction] = {}
        for f in patch.functions:
            bound = self._bind_function(n, home, f)
            if not bound.new:
                other = taken.setdefault((bound.module, bound.number), f)
                if other is not f:
                    self.problems.append(PsuError(
                        patch.path, f"{other.name} and {f.name} are one function in {self.views[bound.module].path}: "
                                    "its linker folded them", "link the program without identical code folding"))
            out[f.section, f.start] = bound
        return out

    def _bind_function(self, n: int, home: int, f: PatchFunction) -> BoundFunction:
        patch = self.patches[n]
        first = f.names[0]
        identity = (first.file if first.local else "", first.name)
        if not f.clone:
            order = [home] + [m for m in range(len(self.views)) if m != home and not first.local]
            for m in order:
                try:
                    found = self._program_function(n, m, f) if m == home else self._exported_function(m, f)
                except Ambiguous as e:
                    self.problems.append(PsuError(patch.path, e.what, e.hint))
                    break
                if found is None:
                    continue
                if found.function == NO_FUNCTION and self._is_thunk(patch, f):
                    break                                  # as in the linker's input: the patch calls its own copy
                if found.function == NO_FUNCTION:
                    self.problems.append(PsuError(
                        patch.path, f"{f.name} is not updatable in {self.views[m].path}",
                        f"`psu-bin analyze {self.views[m].path}` says why; leave it out of the patch"))
                    break
                if len(f.names) > 1:
                    self._check_names(n, m, f, found)
                return BoundFunction(n, f, m, found.function, identity, 0)
        for s in f.names:
            label = None if s.local or is_clone(s.name) else self.views[home].globals.get(s.name)
            if label is not None and label.kind == descriptor.KIND_NOTYPE:
                self.problems.append(PsuError(
                    patch.path, f"{s.name} is a label without the type of a function in {self.views[home].path}: it cannot be replaced",
                    f"where the program has it in assembly: .type {s.name}, @function"))
        known = 0
        for s in f.names:
            for m in (home, *(m for m in range(len(self.views)) if m != home and not s.local)):
                if not is_clone(s.name):
                    known = known or self.known(n, m, self.views[m].known_functions, (s.file if s.local else "", s.name)) or 0
        return BoundFunction(n, f, home, -1, identity, known)

    @staticmethod
    def _is_thunk(patch: PatchObject, f: PatchFunction) -> bool:
        """Compilers put these into every object that uses them; no caller expects the ordinary convention of them."""
        return bool(arch.for_machine(patch.machine, patch.path).link.is_thunk(f.name))

    def _exported_function(self, m: int, f: PatchFunction) -> Symbol | None:
        """A global function of another instrumented module."""
        for s in f.names:
            found = None if s.local or is_clone(s.name) else self.views[m].globals.get(s.name)
            if found is not None and found.kind == descriptor.KIND_FUNCTION:
                return found
        return None

    def known(self, n: int, m: int, table: Mapping[Identity, Row], identity: Identity) -> Row | None:
        """table[identity]; a static from a file that the module does not have also matches the only one of its name
        that other such files brought along."""
        if identity in table or not identity[0] or self._origin[n] is Origin.NEW:
            return table.get(identity)
        if self.file_known(n, m, identity[0]):
            return None
        same = [v for (file, name), v in table.items()
                if name == identity[1] and file and not self.file_known(n, m, file)]
        return same[0] if len(same) == 1 else None

    def patched(self) -> Iterator[Patched]:
        """The functions of the patches, each once: the compiler may have made copies of it, or only copies."""
        seen: set[tuple[int, str, str]] = set()
        every = [b for of_patch in self.functions for b in of_patch.values()]
        for bound in sorted(every, key=lambda b: b.function.clone):
            s, view = bound.function.names[0], self.views[bound.module]
            name, file = without_clone(s.name), base_name(s.file) if s.local else ""
            if (bound.module, name, file) not in seen and not (bound.function.clone and (bound.module, name, "") in seen):
                seen.add((bound.module, name, file))
                known = (base_name(view.file_name(x)) for x in view.locals.get(name, ()) if x.function == bound.number)
                yield Patched(view, name, next((f for f in known if file and not artificial(f)), file), bound.number,
                              s.bind == elf.STB_WEAK, tuple(x.name for x in bound.function.names))

    def elsewhere(self, n: int, s: PatchSymbol) -> Exported | None:
        """The definition in another patch of the group that stands in place of the global `s` of patch `n`."""
        if s.local:
            return None
        standing = self.exports[self.groups[n], s.name]
        return Exported(*standing) if standing[0] != n else None

    def stands(self, bound: BoundFunction) -> bool:
        """The function is not a weak one that another patch of the group defines as well."""
        return self.elsewhere(bound.patch, bound.function.names[0]) is None

    # ---- other symbols --------------------------------------------------------------------------------------------

    def undefined(self, n: int, s: PatchSymbol) -> Target:
        """What a symbol means that patch `n` refers to and does not define."""
        home, name = self.module[n], s.name
        view = self.views[home]
        found = view.globals.get(name)
        if found is not None and found.kind != descriptor.KIND_IFUNC:
            return self._bound(home, home, found)
        if (self.groups[n], name) in self.exports and found is None:
            return Exported(*self.exports[self.groups[n], name])
        for m in (home, *(m for m in range(len(self.views)) if m != home)):
            if ("", name) in self.views[m].known_functions:
                return Fixed(self.views[m].known_functions["", name], m != home)
            if ("", name) in self.views[m].known_variables:
                return Fixed(self.views[m].known_variables["", name][0], m != home)
        special = self._special(home, name)
        if special is not None:
            return special
        kinds = (*_CODE_KINDS, *_DATA_KINDS)
        try:
            internal = self._internal(n, home, s, kinds)
        except Ambiguous as e:
            return Unclear(e.what, e.hint)
        if internal is not None and internal.kind != descriptor.KIND_IFUNC:
            return self._bound(home, home, internal)
        for m, other in enumerate(self.views):
            found = other.globals.get(name)
            if m != home and found is not None and found.kind != descriptor.KIND_IFUNC:
                return self._bound(home, m, found)
        if s.type == elf.STT_TLS:
            return Unclear(f"thread-local variable {name} is in no instrumented module",
                           "psu-bin cannot know its offset in another library")
        statics_ = [x for x in view.locals.get(name, ()) if x.kind != descriptor.KIND_IFUNC]
        fallback = self._bound(home, home, statics_[0]) if len({x.address for x in statics_}) == 1 else None
        return External(home, name, s.bind == elf.STB_WEAK, fallback.address if isinstance(fallback, Fixed) else None)

    def _special(self, home: int, name: str) -> Target | None:
        """Symbols that linkers make."""
        view = self.views[home]
        if name in ("__dso_handle", "_DYNAMIC", "__ehdr_start", "__executable_start"):
            for s in view.locals.get(name, ()):
                return Fixed(s.address + view.load_bias)
            if name == "__dso_handle":
                return Fixed(view.stub(0))       # any address of the module names it to __cxa_finalize
        return None

    def _bound(self, home: int, m: int, s: Symbol) -> Target:
        """A symbol of a module as a target: what pointers to it are, or its offset from the thread pointer."""
        view = self.views[m]
        if s.function != NO_FUNCTION:
            return Fixed(view.pointer(s.function), m != home)
        if s.kind == descriptor.KIND_TLS:
            if view.tls_offset is None:
                return Unclear(
                    f"thread-local variable {s.name} of {view.path} has no fixed offset from the thread pointer",
                    "the library was loaded with dlopen: its thread-local variables cannot be used in a patch")
            return Thread(view.tls_offset + s.address)
        return Fixed(view.load_bias + s.address, m != home)

    def variable(self, n: int, s: PatchSymbol) -> Target | None:
        """What a variable means that patch `n` defines; None: it is new.

        A size that differs is added to `problems`."""
        key = (n, s.number)
        if key not in self._variables:
            self._variables[key] = self._variable(n, s)
        return self._variables[key]

    def program_constant(self, n: int, s: PatchSymbol) -> Symbol | None:
        """The module's object of the same name as a constant that patch `n` defines.  Raises Ambiguous."""
        m = self.module[n]
        if s.local:
            return statics.match(self, n, m, s)
        return self.views[m].globals.get(s.name) or self._internal(n, m, s, _DATA_KINDS)

    def _variable(self, n: int, s: PatchSymbol) -> Target | None:
        home = self.module[n]
        m, found = home, None
        if s.local:
            try:
                found = statics.match(self, n, home, s)
            except Ambiguous as e:
                return Unclear(e.what, e.hint)
        else:
            for m in (home, *(m for m in range(len(self.views)) if m != home)):
                found = self.views[m].globals.get(s.name)
                if found is not None:
                    break
            if found is None:
                try:
                    m, found = home, self._internal(n, home, s, _DATA_KINDS)
                except Ambiguous as e:
                    return Unclear(e.what, e.hint)
        path = self.patches[n].path
        if found is None:
            return self._known_variable(n, home, s)
        if found.kind not in _DATA_KINDS:
            self.problems.append(PsuError(path, f"{s.name} is a variable in the patch and a function in "
                                                f"{self.views[m].path}"))
            return Unclear(f"{s.name} is a function in {self.views[m].path}", "")
        if (found.kind == descriptor.KIND_TLS) != (s.type == elf.STT_TLS) and found.kind != descriptor.KIND_NOTYPE:
            self.problems.append(PsuError(path, f"{s.name} is thread-local on one side only: patch or "
                                                f"{self.views[m].path}"))
        if found.size and s.size and found.size != s.size:
            self.problems.append(PsuError(
                path, f"size of {s.name} differs: {s.size} bytes in the patch, {found.size} in {self.views[m].path}",
                "compile the patch without -fsanitize and --coverage" if s.name.startswith(_OF_COMPILERS) else
                "the program's data cannot change its layout while it runs"))
        return self._bound(home, m, found)

    def _of_earlier_patch(self, n: int, m: int, s: PatchSymbol) -> tuple[int, int] | None:
        known = self.views[m].known_variables
        found = self.known(n, m, known, statics.identity(self.patches[n], s))
        return statics.known_local(self.patches[n], s, known) if found is None and s.local else found

    def _is_the_programs(self, n: int, m: int, s: PatchSymbol) -> bool:
        try:
            return statics.match(self, n, m, s) is not None
        except Ambiguous:
            return False

    def _known_variable(self, n: int, m: int, s: PatchSymbol) -> Target | None:
        found = self._of_earlier_patch(n, m, s)
        if found is None:
            return None
        address, size = found
        if address == SEVERAL or any(self._of_earlier_patch(n, m, x) == found and not self._is_the_programs(n, m, x)
                                     for x in statics.namesakes(self.patches[n], s)):
            return Unclear(f"static local {s.name} is one of several of that name that the same functions use, also in an "
                           "earlier patch", "give each a name of its own")
        if size != s.size:
            self.problems.append(PsuError(
                self.patches[n].path, f"size of {s.name} differs: {s.size} bytes in the patch, {size} in the earlier "
                                      "patch that made it", "the data cannot change its layout while it is used"))
        return Fixed(address)


def _exports(patches: tuple[PatchObject, ...],
             groups: tuple[int, ...]) -> dict[tuple[int, str], tuple[int, PatchSymbol]]:
    """By group and name of a global, whose definition stands: strong before common before weak, then the first."""
    out: dict[tuple[int, str], tuple[int, PatchSymbol]] = {}

    def rank(s: PatchSymbol) -> int:
        return 2 if s.bind == elf.STB_WEAK else 1 if s.section == elf.SHN_COMMON else 0
    for n, p in enumerate(patches):
        for s in p.symbols:
            if not s.local and s.section != elf.SHN_UNDEF and s.name:
                key = (groups[n], s.name)
                if key not in out or rank(s) < rank(out[key][1]):
                    out[key] = (n, s)
    return out


def _no_file(view: ModuleView, s: Symbol) -> bool:
    """The symbol belongs to no source file, though it is local: a linker made it so."""
    if view.source_name(s) != s.name.split("@", 1)[0]:
        return False                     # renamed by LTO: it was static in its source
    return s.file == descriptor.NO_FILE or artificial(view.file_name(s))
