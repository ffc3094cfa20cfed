"""Direct calls that stay as they are in the file: which, that attach knows them, and that the others lead to stubs."""

import shutil
import struct

import pytest
from rewriting import compiled, instrument, run

from psu_bin import descriptor
from psu_bin.arch import for_machine
from psu_bin.elf import PF_R, PF_W, PF_X, PT_LOAD


@pytest.mark.parametrize("cc, flags", [
    ("gcc", "-O2"), ("gcc", "-O0"), ("gcc", "-O2 -fcf-protection=full -Wl,-z,ibt -no-pie"), ("gcc", "-O3 -fuse-ld=gold"),
    ("clang", "-O2"), ("clang", "-O2 -fuse-ld=lld"), ("gcc", "-Os"),
    ("aarch64-linux-gnu-gcc", "-O2"), ("aarch64-linux-gnu-gcc", "-O2 -mbranch-protection=standard")])
def test_every_direct_call_is_left_and_known(tmp_path, cc, flags):
    if not shutil.which(cc):
        pytest.skip(f"{cc} is not installed")
    i = instrument(compiled(tmp_path / "ways", "ways.c", "target.c", *flags.split(), "-pthread", "-DNO_IFUNC", cc=cc))
    d, before, after = i.descriptor, *(type(i.binary).read(p) for p in (i.original, i.path))
    form = for_machine(d.machine, "").site_form
    entries = {f.address: f for f in d.functions}
    assert len(d.sites) >= 0.6 * i.result.call_sites and list(d.sites) == sorted(set(d.sites))
    for at in d.sites:
        field = after.bytes_at(at, 4)
        assert field == before.bytes_at(at, 4)
        assert not entries[form.target(at, field)].flags & descriptor.DETOURED
        # Only one byte, or one aligned word, changes when it is turned.
        to = form.target(at, field) + (3 * form.step or 4096)
        turned = form.turned(at, field, to)
        assert form.target(at, turned) == to
        changed = [n for n in range(4) if turned[n] != field[n]]
        assert changed == [3] if form.step else at % 4 == 0


def test_functions_too_close_to_each_other_go_through_the_table(tmp_path):
    source = tmp_path / "close.c"
    source.write_text("""
        __asm__(".text\\n.globl one, two, three\\n.type one, @function\\n.type two, @function\\n.type three, @function\\n"
                "one: mov $1, %eax\\n ret\\n.size one, . - one\\n"
                "two: push $2\\n pop %rax\\n ret\\n.size two, . - two\\n"
                "three: mov $3, %eax\\n nop\\n ret\\n.size three, . - three\\n");
        int one(void), two(void), three(void);
        int main(void) { return one() + two() + three() == 6 ? 0 : 1; }""")
    i = instrument(compiled(tmp_path / "close", source, "-O2"))
    d = i.descriptor
    numbers = {f.name: n for n, f in enumerate(d.functions)}
    # A mirrored stub has 6 bytes: `two` has 4, so that of `three` would be in its place.
    assert [len(i.calls(d, numbers[name])) for name in ("one", "two", "three")] == [1, 0, 1]
    run(i.path)


def test_writable_code_is_left_alone(tmp_path):
    source = tmp_path / "writable.c"
    source.write_text("__attribute__((noipa)) int inner(int n) { return n + 1; }\n"
                      "int main(int n, char **a) { return inner(n) == 2 ? 0 : 1; }\n")
    path = compiled(tmp_path / "writable", source, "-O2", "-no-pie")
    data = bytearray(path.read_bytes())
    for at in range(64, 64 + 56 * data[56], 56):            # program headers
        if struct.unpack_from("<II", data, at) == (PT_LOAD, PF_R | PF_X):
            struct.pack_into("<I", data, at + 4, PF_R | PF_W | PF_X)
    path.write_bytes(data)
    i = instrument(path)
    assert not i.descriptor.sites and i.result.call_sites
    run(i.path)
