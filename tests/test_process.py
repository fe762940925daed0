"""What belongs to the whole process, and to the cache's folder, while several threads use it."""

import ast
import os
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from together import THREADS, Meeting, together

import invfast
from invfast import demo, images, locks
from invfast.files import write_atomically
from invfast.locks import lock_of, once
from invfast.ops import registry
from invfast.runtimes import openvino
from invfast.runtimes.cache import Cache, Entry


def test_a_things_lock_is_its_own_and_goes_with_it():
    things = [torch.nn.Identity(), torch.nn.Identity()]
    first, second = map(lock_of, things)
    assert first is lock_of(things[0])
    assert first is not second
    before = len(locks._locks)
    things.clear()
    assert len(locks._locks) == before - 2


def test_what_is_made_once_is_made_once():
    meeting, made = Meeting(THREADS), []

    @once
    def value(name):
        with meeting:
            made.append(name)
        if len(made) == 1:
            raise OSError("try again")
        return object()

    def attempt():
        try:
            return value("same")
        except OSError:
            return value("same")

    assert len(set(map(id, together(*[attempt] * THREADS)))) == 1
    assert (made, meeting.most) == (["same"] * 2, 1)


def slowed(monkeypatch, owner, name):
    """Lets whoever calls a function wait for a moment for others that do."""
    meeting, real = Meeting(THREADS), getattr(owner, name)

    def slowly(*given):
        with meeting:
            return real(*given)

    monkeypatch.setattr(owner, name, slowly)
    return meeting


def test_operators_are_registered_by_one_thread(monkeypatch):
    meeting = slowed(monkeypatch, torch.library, "define")
    together(*[lambda: registry.register("invfast_tested")] * THREADS)
    assert meeting.most == 1


def test_openvino_is_imported_by_one_thread(monkeypatch):
    meeting = slowed(monkeypatch, openvino.importlib, "import_module")
    together(*[once(openvino._openvino.__wrapped__)] * THREADS)
    assert meeting.most == 1


def test_files_leave_the_umask_alone(tmp_path, monkeypatch):
    (tmp_path / "plain").write_bytes(b"")
    with monkeypatch.context() as patched:
        patched.setattr(os, "umask", lambda mask: pytest.fail("the umask is the process's"))
        write_atomically(tmp_path / "ours", b"content")
    assert (tmp_path / "ours").read_bytes() == b"content"
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"plain", "ours"}


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002])
def test_files_follow_the_umask(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "ours", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o666 & ~mask


def test_files_written_at_once_are_whole(tmp_path):
    contents = [bytes([j]) * 100_000 for j in range(THREADS)]
    together(*(partial(write_atomically, tmp_path / "same", each) for each in contents))
    assert (tmp_path / "same").read_bytes() in contents
    assert len(list(tmp_path.iterdir())) == 1


def test_warnings_filters_are_left_alone(monkeypatch):
    """catch_warnings changes them for all threads, and who ends last leaves another's behind."""
    with monkeypatch.context() as patched:  # pytest itself uses it
        patched.setattr(warnings, "catch_warnings", lambda *_, **__: pytest.fail("the filters are the process's"))
        assert images.load(demo.ROOT / "images" / "peach.png").size == (64, 64)


CHANGES = {
    "catch_warnings",
    "umask",
    "chdir",
    "set_num_threads",
    "set_default_dtype",
    "set_default_device",
    "setlocale",
}
OURS = ("app", "cli", "runtimes/convert.py")
"""Parts that are a process of their own; the page's computes one thing at a time."""


def test_nothing_of_the_process_is_changed_for_a_while():
    """Neither by a call in CHANGES nor in sys.modules, os.environ or warnings; OpenVINO's import is held by a lock."""
    root, found = Path(invfast.__file__).parent, []
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
                found.append((name, node.func.attr))
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                target = ast.unparse(node.targets[0].value)
                if target in ("sys.modules", "os.environ"):
                    found.append((name, target))
    outside = {each for each in found if not each[0].startswith(OURS)}
    assert outside == {("runtimes/openvino.py", "sys.modules")}


def test_an_entry_is_removed_once(tmp_path, monkeypatch):
    own = Cache(tmp_path / "cache")
    key = own.entry({"a": 1}, lambda folder: (folder / "file").write_bytes(b"1"), "toy").name
    listed = [Entry(key, 1, {}, 0.0)]  # both saw it there
    monkeypatch.setattr(Cache, "entries", lambda self: iter(listed))
    own.remove(key)
    with pytest.raises(KeyError, match="no cached network"):
        own.remove(key)


def test_entries_are_listed_while_one_is_removed(tmp_path, monkeypatch):
    own, real = Cache(tmp_path / "cache"), os.stat
    folder = own.entry({"a": 1}, lambda folder: [(folder / name).write_bytes(b"1") for name in "bc"], "toy")

    def removing(path, **options):
        found = real(path, **options)
        if os.path.basename(path) in ("b", "c"):
            for name in "bc":
                (folder / name).unlink(missing_ok=True)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", removing)
        assert [entry.key for entry in own.entries()] == [folder.name]
