"""Whatever lies in the cache's folder: it is made again, listed and deleted, and never an error of another kind."""

import contextlib
import copy
import json
import math
import os
import random
import socket
import tempfile
from types import SimpleNamespace

import pytest
import torch
from test_cache import INPUTS, write
from typer.testing import CliRunner

from invfast.cli import app
from invfast.runtimes import RUNTIMES, cache, tensorrt
from invfast.runtimes.cache import MANIFEST, Cache, content

DEEP = "[" * 100_000
NESTED = '{"a":' * 300 + "1" + "}" * 300
ODD = [None, True, -1, 0, 2**64, 10**400, 1.5, 1e300, float("nan"), float("inf"), "", "text", "\ud800", [], [1], [[]]]
ODD += [{}, {"a": 1}, [{"model": 1}], {"model": None}, {"model": [256, "x"]}, {"model": {"size": "256"}}]
GPU = torch.device("cuda", 0)


@pytest.fixture
def own(monkeypatch):
    """The process's own cache, where the command line and the runtimes look too; in memory where that is to be had."""
    monkeypatch.setattr(tensorrt, "_library", lambda package: SimpleNamespace(__version__="1"))
    monkeypatch.setattr(tensorrt, "capability_of", lambda device: 86)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        monkeypatch.setenv("INVFAST_CACHE", f"{folder}/cache")
        yield Cache()


def look(own, folder):
    """All that reads entries, but for what builds; what the command line prints is JSON of ordinary numbers."""
    for entry in own.entries():
        assert isinstance(entry.inputs, dict)
        assert math.isfinite(entry.created)
        json.dumps(dict(entry.inputs), allow_nan=False).encode()
    RUNTIMES["tensorrt_rtx"].cached(lambda: "network", GPU, torch.float16)
    assert own.find(INPUTS) in (folder, None)
    with contextlib.suppress(ValueError):  # the documented one
        content(folder)


def is_made_again(own, folder, caplog):
    """Looks, then asks for the entry; whether it was built again. Then it is whole."""
    look(own, folder)
    caplog.clear()
    built: list[int] = []
    assert own.entry(INPUTS, lambda f: (built.append(1), write(f)), "toy") == folder
    assert (folder / "model").read_bytes() == bytes(range(256))
    assert sorted(os.listdir(folder)) == [MANIFEST, "model"]
    assert own.find(INPUTS) == folder
    assert bool(built) == ("making it again" in caplog.text)
    return bool(built)


def fields(value, path=()):
    """Paths of all values in nested dicts and lists."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from fields(each, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    found = copy.deepcopy(value)
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return found


def corrupted(manifest, rng):
    """A corrupted manifest: a value replaced or renamed, or bytes changed, cut, inserted or doubled."""
    text = json.dumps(manifest).encode()
    at = rng.randrange(len(text))
    way = rng.randrange(8)
    if way < 3:
        return json.dumps(replaced(manifest, rng.choice(list(fields(manifest))), rng.choice(ODD))).encode()
    if way == 3:
        path = rng.choice([path for path in fields(manifest) if path and isinstance(path[-1], str)])
        found = replaced(manifest, path, "GONE")
        return (
            json.dumps(found)
            .replace(f'"{path[-1]}": "GONE"', f'"other": {rng.choice(["NaN", "1e999", "{}"])}')
            .encode()
        )
    if way == 4:
        return text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :]
    if way == 5:
        return text[:at]
    if way == 6:
        return text[:at] + rng.choice([b"\xff\xfe", b"\x00", DEEP.encode(), b"9" * 5000, b"\xed\xa0\x80"]) + text[at:]
    return text[:at] + text[rng.randrange(len(text)) :]


def test_a_thousand_corrupted_manifests(own, caplog, monkeypatch):
    """Only the documented errors, and none is taken for whole that says something else; a tenth are made again."""
    folder = own.entry(INPUTS, write, "toy")
    manifest = json.loads((folder / MANIFEST).read_text())
    rng = random.Random(18)
    wrong = 0
    for j in range(1000):
        text = corrupted(manifest, rng)
        (folder / MANIFEST).write_bytes(text)
        look(own, folder)
        if own.find(INPUTS):
            says = json.loads(text)
            assert (says["inputs"], says["files"]) == (manifest["inputs"], manifest["files"])
            continue
        wrong += 1
        if j % 10 == 0:
            assert is_made_again(own, folder, caplog)
    assert wrong > 900


@pytest.mark.parametrize("text", [DEEP, NESTED, '{"a":' * 100_000, "[" * 400 + "]" * 400, "", "NaN", "9" * 5000])
def test_manifests_that_are_no_plain_json(text, own, caplog):
    folder = own.entry(INPUTS, write, "toy")
    for wrong in (text, f'{{"inputs": {text or 0}}}', f'{{"schema": 1, "created": {text or 0}}}'):
        (folder / MANIFEST).write_text(wrong)
        assert is_made_again(own, folder, caplog)


@pytest.mark.parametrize("field", ["schema", "inputs", "files", "created"])
def test_fields_of_odd_types(field, own, caplog):
    folder = own.entry(INPUTS, write, "toy")
    for odd in ODD:
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, field: odd}))
        fine = {"created": type(odd) in (int, float) and 0 <= odd < 2, "schema": odd is True}.get(field, False)
        assert is_made_again(own, folder, caplog) != fine, odd


def socket_at(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:  # its name must be short
        server.bind(path.name)


PLACED = {
    "a folder": lambda path: path.mkdir(),
    "a full folder": lambda path: (path.mkdir(), (path / "more").write_text("")),
    "a file": lambda path: path.write_text("no"),
    "a dangling link": lambda path: path.symlink_to(path.with_name("nowhere")),
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to the root": lambda path: path.symlink_to("/"),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": os.mkfifo,
    "a socket": socket_at,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", PLACED)
@pytest.mark.parametrize("where", ["entry", "manifest", "model", "lock"])
def test_what_lies_in_the_place_of_a_file(where, what, own, caplog):
    """Nothing waits for a pipe, reads a device, or follows a link out of the folder."""
    folder = own.entry(INPUTS, write, "toy")
    path = {"entry": folder, "manifest": folder / MANIFEST, "model": folder / "model"}.get(
        where, folder.with_name(f"{folder.name}.lock")
    )
    cache.disk.delete(path)
    PLACED[what](path)
    if where == "lock":
        (folder / MANIFEST).unlink()
    elsewhere = set(os.listdir("/"))
    assert is_made_again(own, folder, caplog)
    assert set(os.listdir("/")) == elsewhere
    own.remove(folder.name)
    assert list(own.entries()) == []


def test_an_entry_that_is_a_link_to_a_whole_one(own, caplog):
    folder = own.entry(INPUTS, write, "toy")
    theirs = folder.rename(own.folder.with_name("theirs"))
    folder.symlink_to(theirs)
    assert is_made_again(own, folder, caplog)
    assert sorted(os.listdir(theirs)) == [MANIFEST, "model"]


def test_a_file_that_cannot_be_read(own, caplog, monkeypatch):
    folder = own.entry(INPUTS, write, "toy")
    for error in (PermissionError("no"), OSError(5, "Input/output error"), RuntimeError("unable to open file")):
        true = cache.file_digest
        fails = iter([error, error])  # once without the lock, once under it

        def digest(path, true=true, fails=fails):
            for each in fails:
                raise each
            return true(path)

        monkeypatch.setattr(cache, "file_digest", digest)
        assert is_made_again_once(own, folder, caplog)
        monkeypatch.setattr(cache, "file_digest", true)


def is_made_again_once(own, folder, caplog):
    caplog.clear()
    own.entry(INPUTS, write, "toy")
    return "cannot be read" in caplog.text and "making it again" in caplog.text


@pytest.mark.parametrize("field", ["inputs", "created", "files"])
def test_the_command_line_lists_and_deletes(field, own):
    run = lambda *args: CliRunner().invoke(app, ["cache", *args])  # noqa: E731
    folder = own.entry(INPUTS, write, "toy")
    manifest = json.loads((folder / MANIFEST).read_text())
    for odd in (3, "yesterday", 1e300, float("nan"), "\ud800", [1], {"class": "\ud800"}, {"class": [DEEP]}):
        (folder / MANIFEST).write_text(json.dumps({**manifest, field: odd}))
        assert folder.name in run("ls").stdout
        listed = json.loads(run("ls", "--json").stdout, parse_constant=pytest.fail)
        assert [entry["key"] for entry in listed["entries"]] == [folder.name]
    assert run("rm", "--all").exit_code == 0
    assert not folder.exists()


def test_a_network_that_lost_its_manifest_says_so(own):
    folder = own.entry(INPUTS, write, "toy")
    assert content(folder) == content(folder)
    for text in ("[]", '{"files": [1]}', '{"files": 3}', DEEP, None):
        (folder / MANIFEST).unlink() if text is None else (folder / MANIFEST).write_text(text)
        with pytest.raises(ValueError, match="has no readable manifest; delete it"):
            content(folder)
