"""The cache of exported networks: private, atomic, locked, checked."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from exact import steps_as_exact_as_eagers
from tiny import stable_diffusion

from invfast import invert, prepare, release
from invfast.runtimes.cache import MANIFEST, Cache, remember, remembered

INPUTS = {"class": "Net", "runtime": "toy 1", "shape": [1, 2]}


def write(folder):
    (folder / "model").write_bytes(bytes(range(256)))


@pytest.fixture
def own(tmp_path):
    return Cache(tmp_path / "cache")


def test_an_entry_is_built_once(own):
    built = []
    for _ in range(2):
        folder = own.entry(INPUTS, lambda f: (built.append(1), write(f)), "toy")
        assert (folder / "model").read_bytes() == bytes(range(256))
    assert built == [1]
    other = own.entry({**INPUTS, "shape": [1, 3]}, write, "toy")
    assert other != folder
    assert {entry.key for entry in own.entries()} == {folder.name, other.name}
    assert os.stat(own.folder).st_mode & 0o777 == 0o700
    own.remove(other.name)
    assert [entry.inputs for entry in own.entries()] == [INPUTS]
    with pytest.raises(KeyError, match="no cached network"):
        own.remove("..")


def test_every_flipped_byte_is_noticed(own, caplog):
    folder = own.entry(INPUTS, write, "toy")
    for position in range(0, 256, 15):
        content = bytearray((folder / "model").read_bytes())
        content[position] ^= 1
        (folder / "model").write_bytes(content)
        caplog.clear()
        own.entry(INPUTS, write, "toy")
        assert "is damaged (model); making it again" in caplog.text
        assert (folder / "model").read_bytes() == bytes(range(256))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "no readable manifest"),
        (lambda folder: (folder / MANIFEST).write_text("[1]"), "no readable manifest"),
        (lambda folder: (folder / MANIFEST).write_text('{"schema": 0}'), "was made from something else"),
        (lambda folder: (folder / "more").write_text(""), "has other files"),
        (lambda folder: (folder / "model").unlink(), "has other files"),
        (lambda folder: (folder / "model").write_bytes(b"cut"), "is damaged"),
    ],
)
def test_what_is_not_whole_is_made_again(harm, said, own, caplog):
    folder = own.entry(INPUTS, write, "toy")
    harm(folder)
    own.entry(INPUTS, write, "toy")
    assert said in caplog.text
    assert json.loads((folder / MANIFEST).read_text())["inputs"] == INPUTS
    assert sorted(os.listdir(folder)) == [MANIFEST, "model"]


def test_a_build_that_fails_leaves_nothing(own):
    def build(folder):
        write(folder)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        own.entry(INPUTS, build, "toy")
    assert list(own.entries()) == []
    assert not [path for path in own.folder.iterdir() if path.is_dir()]


def test_a_folder_others_can_write_to_is_refused(tmp_path):
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="can be written to by others"):
        Cache(folder)


def test_threads_build_once(own):
    built = []

    def build(folder):
        built.append(1)
        time.sleep(0.1)
        write(folder)

    threads = [threading.Thread(target=own.entry, args=(INPUTS, build, "toy")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


EXPORT = """
import sys
sys.path.insert(0, {tests!r})
from tiny import stable_diffusion
from invfast import prepare
prepare(stable_diffusion(), height=64, width=64, runtime="openvino")
print("done", flush=True)
"""


def export(folder):
    code = EXPORT.format(tests=str(Path(__file__).parent))
    env = {**os.environ, "INVFAST_CACHE": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_two_processes_export_one_good_entry_and_a_kill_leaves_none(tmp_path):
    folder = tmp_path / "cache"
    killed = export(folder)
    while not list(folder.glob("*.tmp")):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(Cache(folder).entries()) == []
    both = [export(folder) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("converting" in errors for _, errors in said) == 1
    (entry,) = Cache(folder).entries()
    assert not list(folder.glob("*.tmp"))
    assert (folder / entry.key / "model.bin").stat().st_size > 0


@pytest.mark.slow
def test_a_flipped_bit_of_a_networks_weights_is_noticed(tmp_path, peach, monkeypatch):
    """As any byte of any entry is, see above."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("INVFAST_CACHE", str(folder))
    prepare(stable_diffusion(), height=64, width=64, runtime="openvino")
    (entry,) = Cache(folder).entries()
    weights = folder / entry.key / "model.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 4
    weights.write_bytes(content)
    release()
    call = partial(invert, stable_diffusion(), peach, method="ddim", num_inference_steps=2)
    steps_as_exact_as_eagers(partial(call, runtime="openvino"), partial(call, runtime="eager"))
    assert weights.read_bytes() != content


ABOUT = {"what": "speed of bfloat16", "torch": "2.13.0"}


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """The folder of an empty cache, the process's own."""
    monkeypatch.setenv("INVFAST_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_a_small_value_is_remembered(notes):
    assert remembered(ABOUT) is None
    for value in ([1.3125, 0.01], {"pays": True}, "text", 0):
        remember(ABOUT, value)
        assert remembered(ABOUT) == value
    assert remembered({**ABOUT, "torch": "2.14.0"}) is None
    assert len(os.listdir(notes)) == 1
    assert list(Cache().entries()) == []
    for value, error in ((float("nan"), ValueError), (object(), TypeError), ("x" * 65_536, ValueError)):
        with pytest.raises(error):
            remember(ABOUT, value)
    assert remembered(ABOUT) == 0


def harmed(text):
    """Ways a note's file may be wrong, as what to write in its place."""
    return [
        *(text[:j] + chr(ord(text[j]) ^ 1) + text[j + 1 :] for j in range(len(text))),
        *(text[:j] for j in range(0, len(text), 7)),
        "[" * 100_000,
        "null",
        "[1, 2]",
        '{"body": 3, "digest": []}',
        '{"body": {}, "digest": NaN}',
        text.replace("1.25", "1" * 5000),
    ]


def test_a_harmed_value_is_forgotten(notes):
    remember(ABOUT, [1.25, False])
    (path,) = notes.iterdir()
    text = path.read_text()
    for wrong in harmed(text):
        path.write_text(wrong)
        assert remembered(ABOUT) is None or json.loads(wrong) == json.loads(text)
    path.write_bytes(b"\xff\xfe" + text.encode())
    assert remembered(ABOUT) is None
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(notes / "nowhere")):
        path.unlink()
        make()
        assert remembered(ABOUT) is None
        if path.is_dir():
            path.rmdir()
            path.touch()
    remember(ABOUT, 2)
    assert remembered(ABOUT) == 2


@pytest.mark.parametrize("way", ["under a file", "a file", "a dangling link", "full", "no home"])
def test_where_nothing_can_be_kept_nothing_is(way, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG, "invfast")
    unusable(way, tmp_path, monkeypatch)
    remember(ABOUT, 1)
    assert remembered(ABOUT) is None
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert "INVFAST_CACHE" in caplog.text or way == "full"


def unusable(way, folder, monkeypatch):
    """Makes the process's own cache one that cannot be written to, for any user, root too."""
    (folder / "file").touch()
    (folder / "link").symlink_to(folder / "nowhere" / "cache")
    place = {"under a file": folder / "file" / "cache", "a file": folder / "file", "a dangling link": folder / "link"}
    monkeypatch.setenv("INVFAST_CACHE", str(place.get(way, folder / "cache")))
    if way == "full":

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("tempfile.mkstemp", full)
    if way == "no home":
        monkeypatch.delenv("INVFAST_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
