"""The notes that psu-bin keeps in a target, and the copies of patch objects on disk."""

import os
import struct
import time
import zlib
from types import SimpleNamespace

import pytest

from psu_bin.attach import copies, meta
from psu_bin.errors import PsuError


class Memory:
    """Stands for a process whose memory is one blob at address 0x1000."""
    where = "process 1"

    def __init__(self, blob):
        self.blob = blob

    def read(self, address, size):
        return self.blob[address - 0x1000:address - 0x1000 + size]


def round_trip(blob):
    return meta.read(Memory(blob), SimpleNamespace(meta=0x1000, meta_size=len(blob)))


def test_notes_survive_the_round_trip():
    notes = meta.Notes(next_patch=3)
    notes.patches.append(meta.PatchNotes(2, "a.o", "55", ["f"], [0], [["a.o", "00"]], 12, [["f", 1, 2]]))
    notes.functions.append(meta.FunctionNotes("55", 7, "f", [1, 2], [[0, 1, 0]], [0, 1, 0], 5))
    notes.stubs.append(meta.StubNotes("55", "a.c", "g", 16, 32))
    notes.stores.append(meta.Store("const", "55", 4096, 4096, 3))
    assert round_trip(meta.encode(notes) + b"\0" * 100) == notes


def test_no_notes_yet():
    assert meta.read(Memory(b""), SimpleNamespace(meta=0, meta_size=0)) == meta.Notes()


@pytest.mark.parametrize("at", [0, 9, 20, 40])
def test_damaged_notes_are_an_error(at):
    blob = bytearray(meta.encode(meta.Notes()))
    blob[at] ^= 0x55
    with pytest.raises(PsuError, match="damaged"):
        round_trip(bytes(blob))


@pytest.mark.parametrize("change", [
    lambda n: setattr(n, "next_patch", "1"), lambda n: setattr(n, "next_patch", -1), lambda n: setattr(n, "next_patch", 1 << 64),
    lambda n: setattr(n, "next_gate", [0, 0]), lambda n: setattr(n, "pinned", [1]), lambda n: setattr(n, "variables", [["a"]]),
    lambda n: setattr(n, "constants", [["m", 1, -1, 1, 1]]), lambda n: setattr(n, "imports", {}),
    lambda n: setattr(n.functions[0], "history", ["1"]), lambda n: setattr(n.functions[0], "current", [0]),
    lambda n: setattr(n.functions[0], "gates", [[3, 0, 0]]), lambda n: setattr(n.functions[0], "number", None)])
def test_notes_of_another_shape_are_an_error(change):
    """Everything that reads them relies on their types."""
    notes = meta.Notes(functions=[meta.FunctionNotes("55", 7, "f", [1], [[0, 1, 0]], [0, 1, 0], 5)])
    assert round_trip(meta.encode(notes)) == notes
    change(notes)
    with pytest.raises(PsuError, match="notes in it are damaged"):
        round_trip(meta.encode(notes))


def test_notes_that_are_no_table_or_nested_too_deeply_are_an_error():
    for text in (b"[]", b"7", b"null", b"[" * 100_000, b"9" * 5000, b'{"format": %d, "patches": 1}' % meta.FORMAT):
        packed = zlib.compress(text)
        with pytest.raises(PsuError, match="notes in it are damaged"):
            round_trip(struct.pack("<Q", len(packed)) + packed)


@pytest.fixture
def runtime_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def me():
    text = open("/proc/self/stat").read()
    return SimpleNamespace(pid=os.getpid(), start_time=int(text[text.rindex(")") + 2:].split()[19]))


def test_copies_are_kept_by_content(runtime_directory):
    process = me()
    first, warning = copies.save(process, [b"one", b"two"])
    assert not warning and copies.save(process, [b"one"]) == (first[:1], "")
    assert copies.load(process, first[1]) == b"two"
    copies.keep_only(process, {first[0]})
    assert copies.load(process, first[1]) is None
    assert copies.load(process, first[0]) == b"one"


def test_a_damaged_copy_counts_as_lost(runtime_directory):
    process = me()
    ((name,), _) = copies.save(process, [b"one"])
    (copies.folder(process) / name).write_bytes(b"evil")
    assert copies.load(process, name) is None


def test_a_folder_that_others_can_write_is_refused(runtime_directory):
    process = me()
    copies.save(process, [b"one"])
    copies.folder(process).chmod(0o777)
    with pytest.raises(PsuError, match="only you can write"):
        copies.save(process, [b"two"])


def test_folders_of_ended_processes_are_swept(runtime_directory):
    process = me()
    copies.save(process, [b"one"])
    gone = SimpleNamespace(pid=os.getpid(), start_time=1)
    copies.save(gone, [b"two"])
    copies.sweep()
    assert copies.folder(process).exists() and not copies.folder(gone).exists()


def test_what_patches_rely_on_is_kept_as_long_as_one_of_them() -> None:
    notes = meta.Notes()
    notes.rely([(1, "55", 7, 6), (2, "55", 7, 6), (2, "55", 7, 8), (5, "55", 7, 6), (5, "55", 8, 1)])
    assert notes.relied_on() == {("55", 7): 14, ("55", 8): 1}
    notes.forget_relied({1, 3, 5})
    assert notes.relied_on() == {("55", 7): 6, ("55", 8): 1}
    notes.forget_relied({1, 3})            # 3 is between: it may rely, too
    assert notes.relied == [[1, 3, "55", 7, 6]]
    notes.rely([(9, "55", 7, 6)])
    assert notes.relied == [[1, 9, "55", 7, 6]]
    notes.forget_relied({10})
    assert notes.relied == []
